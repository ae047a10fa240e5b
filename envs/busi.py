"""BUSI, breast ultrasound: the folder `Dataset_BUSI_with_GT` → `ImageDataset`.

Al-Dhabyani, Gomaa, Khaled, Fahmy, "Dataset of breast ultrasound images", Data in Brief 28:104863, 2020. CC BY 4.0.
780 pictures of many sizes, no patient numbers, and many of them more than once, some under two labels: pictures that
show the same are found here and share a group, so that a split by group has no picture on both sides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.cache import cached_array
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.images import MIN_SIDE, read_grey, read_mask, resize, resize_mask
from maskaug.envs.rows import as_images, as_regions, blocks

CLASSES = ("benign", "malignant", "normal")
FOLDER = "Dataset_BUSI_with_GT"
LICENCE = "CC BY 4.0"
CITATION = (
    "W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy. Dataset of breast ultrasound images. Data in Brief 28:104863, 2020."
)

#: Two pictures show the same if their standardised 32 × 32 thumbnails correlate more than the first, or the fine detail
#: of the thumbnails more than the second, or that detail, best shifted by up to `_SHIFT` pixels, more than the third.
#: Chosen by looking at the real pairs: just above is one lesion seen twice, just below are two different ones.
#: That makes 584 groups of the 780 pictures, 8 of them with two labels.
SAME = (0.945, 0.56, 0.63)
_THUMBNAIL = 32
_SHIFT = 4

_TREE = f"""expected
  {FOLDER}/benign/benign (1).png, benign (1)_mask.png, …
  {FOLDER}/malignant/malignant (1).png, malignant (1)_mask.png, …
  {FOLDER}/normal/normal (1).png, …"""
_FILE = re.compile(r"(benign|malignant|normal) \(([1-9]\d*)\)(_mask(?:_\d+)?)?\.png", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Item:
    label: int
    number: int
    name: str
    image: Path
    masks: tuple[Path, ...]


def load_busi(
    root: Path,
    *,
    image_size: int,
    channels: int,
    seed: int,
    variant: str = "clean",
    task: str = "diagnosis",
    classes: int | str | None = None,
    workers: int | None = None,
) -> ImageDataset:
    """All images of the BUSI folder, unsplit, decoded once into the cache.

    Args:
        root: `Dataset_BUSI_with_GT` or the folder that holds it. A part of the set will do.
        image_size: S, height and width in pixels; whole pictures are squeezed to a square.
        channels: 1, or 3 with the grey values repeated.
        seed: of the crops; whole pictures do not depend on it.
        variant: "clean" keeps the first picture of each group of near-duplicates and none of the groups that carry two
            labels; "raw" keeps everything.
        task: "diagnosis" has the whole pictures with their class. "presence" has square crops with ("present") and
            without ("absent") a lesion, cut at random places, so that no fixed mask can know where the lesion is.
        classes: of "diagnosis": 3 for benign, malignant, normal (default); 2 for benign, malignant alone.
        workers: threads that decode; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only; regions (N, S, S), the lesions; groups of near-duplicates, numbered
        by the position of their first picture in class and number order.

    Raises:
        DatasetError: the folder is not laid out like BUSI, too little is left of it, or a mask is missing, empty or of
            another size than its image.
        ImageError: a file cannot be read.
        ConfigurationError: an unknown option.
    """
    names = _class_names(variant, task, classes)
    folder, items = _scan(Path(root), names)
    crops = task == "presence"
    parameters: dict[str, Any] = {"task": task, "size": image_size, "same": list(SAME)}
    if crops:
        parameters |= {"seed": seed, "crops": dataclasses.asdict(GEOMETRY)}
    cached = cached_array(
        "busi",
        root=folder,
        sources=[path for item in items for path in (item.image, *item.masks)],
        parameters=parameters,
        items=items,
        decode=lambda item: _decode(item, image_size, seed if crops else None),
        finish=_finish,
        workers=workers,
    )
    details = cached.details
    images = as_images(cached.array, 1, channels)
    regions = as_regions(cached.array)
    picture = np.array(details["picture"], np.int64)
    group = np.array(details["group"], np.int64)
    diagnosis = np.array([item.label for item in items], np.int64)
    present = np.concatenate([block.any(axis=(1, 2)) for block in blocks(regions)]).astype(np.int64)
    everything = ImageDataset(
        name="busi-presence" if crops else "busi",
        images=images,
        labels=present if crops else diagnosis,
        regions=regions,
        groups=group[picture],
        class_names=names if crops else CLASSES,
        names=tuple(details["names"]),
        source="busi",
        licence=LICENCE,
        citation=CITATION,
    )
    keep = np.ones(len(items), np.bool_) if variant == "raw" else _first_without_conflict(group, diagnosis)
    if not crops:
        keep &= diagnosis < len(names)
    chosen = everything if keep.all() else everything.subset(keep[picture])
    return chosen if crops else dataclasses.replace(chosen, class_names=names)


def _class_names(variant: str, task: str, classes: int | str | None) -> tuple[str, ...]:
    if variant not in ("clean", "raw"):
        raise ConfigurationError(f"variant={variant!r} is unknown; use 'clean' (no duplicates, no conflicts) or 'raw'")
    if task == "presence":
        if classes is not None:
            raise ConfigurationError("classes chooses among diagnoses; leave it out with task='presence'")
        return ("absent", "present")
    if task != "diagnosis":
        raise ConfigurationError(f"task={task!r} is unknown; use 'diagnosis' or 'presence'")
    count = "3" if classes is None else str(classes)
    if count not in ("2", "3"):
        raise ConfigurationError(f"classes={classes!r} is unknown; use 3 (benign, malignant, normal) or 2 (no normals)")
    return CLASSES[: int(count)]


def _scan(root: Path, names: Sequence[str]) -> tuple[Path, list[_Item]]:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; {_TREE}")
    folder = root
    if not any((root / name).is_dir() for name in CLASSES) and (root / FOLDER).is_dir():
        folder = root / FOLDER
    items = [item for label, name in enumerate(CLASSES) for item in _scan_class(folder / name, name, label)]
    found = {CLASSES[item.label] for item in items}
    if not found:
        raise DatasetError(f"{folder} holds no BUSI images; {_TREE}")
    if "present" in names:
        if found == {"normal"}:
            raise DatasetError(f"{folder} holds normal images alone, and presence needs lesions; {_TREE}")
    elif len(found & set(names)) < 2:
        raise DatasetError(f"{folder} holds images of {sorted(found)} alone, but two classes are needed; {_TREE}")
    return folder, items


def _scan_class(folder: Path, name: str, label: int) -> list[_Item]:
    images: dict[int, Path] = {}
    masks: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        # What operating systems leave behind ("._benign (1).png", Thumbs.db) and anything that is no PNG.
        if path.name.startswith(".") or path.suffix.lower() != ".png":
            continue
        match = _FILE.fullmatch(path.name)
        if match is None or match[1].lower() != name:
            raise DatasetError(f"{path} is not named like the images of {name!r}; remove it, or {_TREE}")
        if match[3]:
            masks.setdefault(int(match[2]), []).append(path)
        else:
            images[int(match[2])] = path
    for number in sorted(masks.keys() - images.keys()):
        raise DatasetError(f"{masks[number][0]} is the mask of an image that is missing: {name} ({number}).png")
    if name != "normal":
        for number in sorted(images.keys() - masks.keys()):
            raise DatasetError(f"{images[number]} has no mask; expected {name} ({number})_mask.png beside it")
    return [
        _Item(label, number, f"{name} ({number}).png", images[number], tuple(masks.get(number, ())))
        for number in sorted(images)
    ]


def _read(item: _Item) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    image = read_grey(item.image)
    region = np.zeros(image.shape, np.bool_)
    for path in item.masks:
        mask = read_mask(path)
        if mask.shape != image.shape:
            raise DatasetError(f"{path} is {mask.shape} pixels, but its image {image.shape}; are both from one copy?")
        region |= mask
    if CLASSES[item.label] == "normal":
        if region.any():
            raise DatasetError(f"{item.masks[0]} outlines something, but its image is filed as normal")
    elif not region.any():
        raise DatasetError(f"{item.masks[0]} outlines nothing, but its image is filed as {CLASSES[item.label]}")
    return image, region


def _decode(
    item: _Item, size: int, crop_seed: int | None
) -> tuple[npt.NDArray[np.uint8], tuple[list[str], npt.NDArray[np.float32]]]:
    image, region = _read(item)
    windows = [None] if crop_seed is None else choose_crops(region, _generator(crop_seed, item.name))
    planes, names = [np.empty((0, 2, size, size), np.uint8)], []
    for window in windows:
        part, inside, name = image, region, item.name
        if window is not None:
            x, y, side = window
            part, inside = image[y : y + side, x : x + side], region[y : y + side, x : x + side]
            name = f"{item.name}@{x},{y},{side}"
        planes.append(np.stack([resize(part, size), resize_mask(inside, size).astype(np.uint8)])[None])
        names.append(name)
    return np.concatenate(planes), (names, resize(image.astype(np.float32), _THUMBNAIL))


def _finish(notes: Sequence[tuple[list[str], npt.NDArray[np.float32]]]) -> dict[str, Any]:
    groups = near_duplicates(np.stack([thumbnail for _, thumbnail in notes]))
    return {
        "names": [name for names, _ in notes for name in names],
        "picture": [i for i, (names, _) in enumerate(notes) for _ in names],
        "group": groups.tolist(),
    }


def near_duplicates(
    thumbnails: npt.NDArray[np.float32], same: tuple[float, float, float] = SAME
) -> npt.NDArray[np.int64]:
    """(N, h, w) float32 thumbnails → (N,) int64 group numbers: chains of pairs that are alike by one of `SAME`'s rules.

    A group's number is the index of its first member. Contrast and brightness do not matter.
    """
    plain, still, shifted = same
    # Without the broad shading that all ultrasound shares, what is left is the tissue itself.
    detail = np.stack([t - cv2.GaussianBlur(t, (0, 0), 3) for t in thumbnails])
    alike = (_correlation(thumbnails, thumbnails) > plain) | (_correlation(detail, detail) > still)
    h, w = thumbnails.shape[1:]
    for dy in range(_SHIFT + 1):
        for dx in range(-_SHIFT, _SHIFT + 1):
            here = detail[:, dy:, max(0, dx) : w + min(0, dx)]
            there = detail[:, : h - dy, max(0, -dx) : w + min(0, -dx)]
            alike |= _correlation(here, there) > shifted
    group = np.arange(len(thumbnails))
    for i, j in np.argwhere(np.triu(alike | alike.T, 1)):
        low, high = sorted((int(group[i]), int(group[j])))
        group[group == high] = low
    return group.astype(np.int64)


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    flat = [x.reshape(len(x), -1) - x.mean(axis=(1, 2))[:, None] for x in (a, b)]
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in flat)
    product: npt.NDArray[np.float32] = first @ second.T
    return product


def _first_without_conflict(group: npt.NDArray[np.int64], label: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    keep: npt.NDArray[np.bool_] = np.equal(group, np.arange(len(group)))
    keep[np.unique(group[label != label[group]])] = False
    return keep


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest[:8], "big")]))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How crops are cut. Lengths are shares of a picture's shorter side, areas shares of the crop.

    Measured on the real set (1 980 crops at 64 pixels, 3 seeds): the lesion takes 9 to 39 % of its crop (median 19 %),
    and a quarter of the cells, fixed, keeps .25 of it in the centre, and .25 to .32 where it was most often in the
    training split. Place and size of a crop in its picture alone tell the classes apart with an AUROC of .72 to .76;
    the crop itself shows them only as far as tissue looks different with depth.

    Attributes:
        lesions: crops with a lesion from each picture that has one.
        empties: crops without one from each such picture, of the same sides.
        normals: crops from each normal picture.
        share: the lesion's area that the crop's side aims at, drawn log-uniformly between these.
        side: least and greatest side; a normal picture's is drawn log-uniformly between them.
        inside: at least this part of the lesion's area lies inside, or it takes `enough` of the crop.
        enough: see `inside`.
        most: the lesion never takes more of the crop than this.
        tilt: lesions lie near the upper border, above which no crop can begin. A place higher by one side is e**tilt
            times as likely, so that the lesion lies as often in the lower half of its crop as in the upper.
        likely: centre and spread (x, y, x, y; shares of width and height) of where empty crops are likely, about where
            those with a lesion are.
    """

    lesions: int = 2
    empties: int = 2
    normals: int = 1
    share: tuple[float, float] = (0.03, 0.15)
    side: tuple[float, float] = (0.2, 0.4)
    inside: float = 0.6
    enough: float = 0.1
    most: float = 0.45
    tilt: float = 1.8
    likely: tuple[float, float, float, float] = (0.49, 0.29, 0.2, 0.09)


GEOMETRY = Geometry()


def choose_crops(
    region: npt.NDArray[np.bool_], rng: np.random.Generator, geometry: Geometry = GEOMETRY
) -> list[tuple[int, int, int]]:
    """Crops (x, y, side) in pixels of one picture whose lesion is `region`, (H, W) bool.

    A crop with a lesion is drawn among all places where `geometry` allows it, one without among all places where no
    pixel of a lesion is inside. A lesion that leaves no such place gives fewer crops.
    """
    height, width = region.shape
    short = min(region.shape)
    area = int(region.sum())
    # The summed area table gives the lesion's area in every possible crop at once.
    table = np.zeros((height + 1, width + 1), np.int64)
    table[1:, 1:] = region.cumsum(axis=0).cumsum(axis=1)
    wanted = {True: geometry.lesions, False: geometry.empties} if area else {True: 0, False: geometry.normals}
    crops = []
    for i in range(max(wanted.values())):
        if area:
            share = float(np.exp(rng.uniform(*np.log(geometry.share))))
            ideal = float(np.clip(np.sqrt(area / share) / short, *geometry.side))
        else:
            ideal = float(np.exp(rng.uniform(*np.log(geometry.side))))
        side = max(MIN_SIDE, round(ideal * short))
        covered = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
        ys, xs = np.indices(covered.shape)
        for lesion in (True, False):
            if lesion:
                allowed = (covered >= geometry.inside * area) | (covered >= geometry.enough * side**2)
                allowed &= covered <= geometry.most * side**2
                weight = np.exp(-geometry.tilt * ys / side)
            else:
                allowed = covered == 0
                middle_x, middle_y, spread_x, spread_y = geometry.likely
                across = ((xs + side / 2) / width - middle_x) / spread_x
                down = ((ys + side / 2) / height - middle_y) / spread_y
                weight = np.exp(-0.5 * (across**2 + down**2))
            weight = np.where(allowed, weight, 0).ravel()
            if i < wanted[lesion] and weight.sum() > 0:
                y, x = divmod(int(rng.choice(weight.size, p=weight / weight.sum())), covered.shape[1])
                crops.append((x, y, side))
    return crops


def write_example(folder: Path, n_per_class: int = 4, seed: int = 0) -> Path:
    """Write a tiny made-up data set in BUSI's layout below `folder`, for tests and for trying things out.

    Pictures are RGB files of differing sizes. `benign (2)` has two masks, the last benign picture is `benign (1)` once
    more, brighter and smaller, and the last malignant one is `benign (2)` under another label.

    Args:
        folder: where `Dataset_BUSI_with_GT` is made.
        n_per_class: pictures of each class, at least 3.
        seed: of the pictures.

    Returns:
        The path of `Dataset_BUSI_with_GT`.
    """
    if n_per_class < 3:
        raise ConfigurationError(f"n_per_class={n_per_class} is too few for a duplicate and a conflict; use at least 3")
    root = Path(folder) / FOLDER
    pictures: dict[tuple[str, int], tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]] = {}
    for label, name in enumerate(CLASSES):
        for number in range(1, n_per_class + 1):
            rng = np.random.default_rng(np.random.SeedSequence([seed, label, number]))
            lesions = 0 if name == "normal" else 2 if (name, number) == ("benign", 2) else 1
            pictures[name, number] = _example_picture(rng, lesions)
    image, masks = pictures["benign", 1]
    size = (image.shape[0] - 12, image.shape[1] - 20)
    brighter = np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8)
    pictures["benign", n_per_class] = (resize(brighter, size), [resize_mask(mask, size) for mask in masks])
    pictures["malignant", n_per_class] = pictures["benign", 2]
    for (name, number), (image, masks) in pictures.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(root / name / f"{name} ({number}).png")
        for i, mask in enumerate(masks):
            suffix = f"_{i}" if i else ""
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / name / f"{name} ({number})_mask{suffix}.png")
    return root


def _example_picture(
    rng: np.random.Generator, lesions: int
) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]:
    h, w = int(rng.integers(90, 131)), int(rng.integers(110, 181))
    # Layers of tissue (broad, lying flat), and speckle on top.
    image = 110 + 900 * cv2.GaussianBlur(rng.normal(size=(h, w)), (0, 0), sigmaX=9, sigmaY=3) + rng.normal(0, 8, (h, w))
    y, x = np.mgrid[:h, :w]
    masks = []
    for i in range(lesions):
        middle_x = w * (rng.uniform(0.3, 0.7) if lesions == 1 else (0.25, 0.7)[i])
        a, b = h * rng.uniform(0.08, 0.16, 2)
        mask = ((x - middle_x) / (1.3 * a)) ** 2 + ((y - h * rng.uniform(0.3, 0.6)) / b) ** 2 < 1
        image[mask] -= 70
        masks.append(mask)
    return np.clip(image, 0, 255).astype(np.uint8), masks or [np.zeros((h, w), np.bool_)]
