"""MedMNIST, small medical images of many kinds: a folder of `{flag}.npz` files → `ImageDataset`.

Yang, Shi, Wei, et al., "MedMNIST v2 – A large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10:41, 2023. Each set is one file of 28×28 pixels, `pneumoniamnist.npz`, or of more,
`pneumoniamnist_64.npz`, `_128`, `_224`, with the publishers' own division into train, val and test. Nothing in a
file is ever unpickled, and images are read in batches, so that a file may be larger than the memory.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskaug.envs.cache import cached_array
from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.images import MAX_PIXELS, MIN_SIDE, resize
from maskaug.envs.npz import Member, Npz
from maskaug.envs.rows import as_images
from maskaug.envs.synthetic import KINDS, render

FOLDER = "medmnist"
CITATION = (
    "J. Yang, R. Shi, D. Wei, et al. MedMNIST v2 – A large-scale lightweight benchmark for 2D and 3D biomedical image "
    "classification. Scientific Data 10:41, 2023."
)
#: Pixels along each side by the file names; 28 has no suffix.
SIZES = (28, 64, 128, 224)


@dataclasses.dataclass(frozen=True)
class MedSet:
    """One of the published sets: its classes in the order of their numbers, whether it is in colour, its licence."""

    classes: tuple[str, ...]
    colour: bool = False
    licence: str = "CC BY 4.0"


_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
_TISSUES = (
    "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
    "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
)  # fmt: skip
_COLON = (
    "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
    "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
)  # fmt: skip
_SKIN = (
    "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
    "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
)  # fmt: skip
_BLOOD = (
    "basophil", "eosinophil", "erythroblast", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip
#: The published sets with one class for each image, by flag (the package's `INFO`, version 3.0.2).
SETS = {
    "pathmnist": MedSet(_COLON, colour=True),
    "dermamnist": MedSet(_SKIN, colour=True, licence="CC BY-NC 4.0"),
    "octmnist": MedSet(("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
    "pneumoniamnist": MedSet(("normal", "pneumonia")),
    "retinamnist": MedSet(("0", "1", "2", "3", "4"), colour=True),
    "breastmnist": MedSet(("malignant", "normal, benign")),
    "bloodmnist": MedSet(_BLOOD, colour=True),
    "tissuemnist": MedSet(_TISSUES),
    "organamnist": MedSet(_ORGANS),
    "organcmnist": MedSet(_ORGANS),
    "organsmnist": MedSet(_ORGANS),
}
MULTI_LABEL = ("chestmnist",)
VOLUMES = ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d")

#: More classes than this are no classes: of a set whose names nobody knows, one is made for each number.
MOST_CLASSES = 1000
#: More images than this are refused: of few bytes each, they would fill any disk with what they become.
MOST_IMAGES = 1_000_000
#: Raw bytes that are read from a file at once.
BATCH = 16 * 2**20
_TREE = f"""expected
  {FOLDER}/pneumoniamnist.npz, pneumoniamnist_64.npz, pneumoniamnist_128.npz, pneumoniamnist_224.npz, breastmnist.npz, …
one of them or more, each with train_images, train_labels, val_images, val_labels, test_images and test_labels;
the originals are at https://zenodo.org/records/10519652 (medmnist.com)"""


class _Batches:
    """An array's rows in batches that threads may ask for in nearly any order, while it is read front to back."""

    def __init__(self, rows: Member, size: int) -> None:
        self._rows = rows
        self._size = size
        self._lock = threading.Lock()
        self._next = 0
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return -(-self._rows.shape[0] // self._size)

    def take(self, number: int) -> npt.NDArray[np.uint8]:
        """Batch `number`, once."""
        with self._lock:
            # Threads start in order and overtake each other by a few: no more than that is ever kept.
            while self._next <= number:
                self._kept[self._next] = self._rows.read(self._size)
                self._next += 1
            return self._kept.pop(number)


def load_medmnist(
    root: Path, *, image_size: int, channels: int, seed: int, flag: str = "pneumoniamnist", workers: int | None = None
) -> ImageDataset:
    """One set of MedMNIST, with its official parts, decoded once into the cache.

    Args:
        root: the folder of the npz files, or the one that holds it under the name `medmnist`.
        image_size: S, height and width in pixels. Of the files that are there, the one with the smallest images of at
            least this size is read (by its name), else the one with the largest, and its images are resized.
        channels: 1 (of colours their luma) or 3 (the colours; grey values three times).
        seed: of nothing here; the parts are the publishers'.
        flag: "pneumoniamnist", "breastmnist", …; with a size ("pneumoniamnist_64", or "_28" for the plain file) just
            that file is read. A set that is none of the published ones has classes "class 0", "class 1", ….
        workers: threads that resize; None: one for each core.

    Returns:
        images (N, channels, S, S) uint8, read-only, train before val before test; labels; every image its own group, as
        nobody knows the patients; no regions. The name is the file's ("pneumoniamnist_64").

    Raises:
        DatasetError: no such file; or it is damaged, is not laid out like MedMNIST, or has labels that are no class.
        ConfigurationError: a flag that is no file's name, or of a set that no game here can play: of several labels an
            image (ChestMNIST), or of volumes (OrganMNIST3D, …).
    """
    file = _find(Path(root), flag, image_size)
    known = SETS.get(_base(file.stem))
    with Npz(file, _TREE) as npz:
        images = [_images(npz.rows(f"{split}_images")) for split in SPLITS]
        counts = [rows.shape[0] for rows in images]
        labels = [_labels(npz.rows(f"{split}_labels"), n) for split, n in zip(SPLITS, counts, strict=True)]
        shapes = sorted({rows.shape[1:] for rows in images})
        if len(shapes) > 1 or not sum(counts):
            cause = f"images of {len(shapes)} shapes {shapes}" if sum(counts) else "no images"
            raise DatasetError(f"{file} holds {cause}; {_TREE}")
        numbers = np.concatenate(labels)
        class_names = _class_names(file, numbers, known)
        stored = channels if len(shapes[0]) == 3 else 1
        step = max(1, BATCH // max(math.prod(shapes[0]), stored * image_size**2))
        parts = [_Batches(rows, step) for rows in images]
        cached = cached_array(
            "medmnist",
            root=file.parent,
            sources=[file],
            parameters={"file": file.name, "size": image_size, "channels": stored},
            items=[(part, number) for part in parts for number in range(len(part))],
            decode=lambda item: (_fit(item[0].take(item[1]), image_size, stored), None),
            workers=workers,
            unit="batch",
        )
    return ImageDataset(
        name=file.stem,
        images=as_images(cached.array, stored, channels),
        labels=numbers,
        regions=None,
        groups=np.arange(len(numbers), dtype=np.int64),
        class_names=class_names,
        names=tuple(f"{file.name}/{split}/{i}" for split, n in zip(SPLITS, counts, strict=True) for i in range(n)),
        source="medmnist",
        licence=known.licence if known else "unknown",
        citation=CITATION if known else "",
        official=np.repeat(np.arange(len(SPLITS), dtype=np.int64), counts),
    )


def _base(flag: str) -> str:
    """A set's flag without the size."""
    return re.sub(rf"_({'|'.join(map(str, SIZES))})$", "", flag)


def _check_flag(flag: str) -> None:
    # It becomes a part of a path.
    if not isinstance(flag, str) or not re.fullmatch(r"\w[\w-]*", flag):
        raise ConfigurationError(f"flag={flag!r} is no set's name; use one of {', '.join(SETS)}, or your own file's")
    if _base(flag) in (*MULTI_LABEL, *VOLUMES):
        cause = "has several labels for each image" if _base(flag) in MULTI_LABEL else "holds volumes"
        raise ConfigurationError(
            f"flag={flag!r} {cause}, and the games need images of one class each; use one of {', '.join(SETS)}, or "
            "make pictures of one class each and list them in a manifest (MaskAug-Manifest-v0)"
        )


def _find(root: Path, flag: str, image_size: int) -> Path:
    _check_flag(flag)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; {_TREE}")
    folder = root / FOLDER if not any(root.glob("*.npz")) and (root / FOLDER).is_dir() else root
    base = _base(flag)
    files = {size: folder / _file_name(base, size) for size in SIZES}
    there = {size: file for size, file in files.items() if file.is_file()}
    wanted = there if flag == base else {size: file for size, file in there.items() if flag == f"{base}_{size}"}
    if not wanted:
        found = ", ".join(sorted(path.name for path in folder.glob("*.npz") if not path.name.startswith(".")))
        raise DatasetError(f"{folder} holds no file of {flag!r} (but {found or 'no npz file at all'}); {_TREE}")
    return wanted[min((size for size in wanted if size >= image_size), default=max(wanted))]


def _file_name(base: str, size: int) -> str:
    return f"{base}.npz" if size == SIZES[0] else f"{base}_{size}.npz"


def _images(rows: Member) -> Member:
    n, *shape = rows.shape
    if rows.dtype != np.uint8:
        raise rows.wrong(f"is {rows.dtype}, not uint8; choose a window and save 0 to 255")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        raise rows.wrong(f"has the shape {rows.shape}, not (N, H, W) or (N, H, W, 3)")
    if min(shape[:2]) < MIN_SIDE or math.prod(shape[:2]) > MAX_PIXELS or n > MOST_IMAGES:
        raise rows.wrong(
            f"has the shape {rows.shape}; what can be used has at least {MIN_SIDE} pixels a side, at most {MAX_PIXELS} "
            f"pixels an image, and at most {MOST_IMAGES} images"
        )
    return rows


def _labels(rows: Member, count: int) -> npt.NDArray[np.int64]:
    n, *shape = rows.shape
    if n != count:
        raise rows.wrong(f"has {n} rows, but there are {count} images")
    if rows.dtype.kind not in "iu" or shape not in ([], [1]):
        several = ": several labels for each image, and the games need one class each" if math.prod(shape) > 1 else ""
        raise rows.wrong(f"is {rows.dtype} of shape {rows.shape}, not uint8 of shape ({n}, 1){several}")
    values = rows.read(n).ravel()
    if n and (int(values.min()) < 0 or int(values.max()) >= MOST_CLASSES):
        raise rows.wrong(f"runs from {values.min()} to {values.max()}, not from 0 to the number of classes − 1")
    return values.astype(np.int64)


def _class_names(file: Path, labels: npt.NDArray[np.int64], known: MedSet | None) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    if known is None:
        return tuple(f"class {i}" for i in range(count))
    if count > len(known.classes):
        raise DatasetError(
            f"{file}: labels run up to {count - 1}, but {_base(file.stem)} has {len(known.classes)} classes "
            f"({', '.join(known.classes[:3])}, …), numbered from 0; download it again, or call your own set "
            "something else"
        )
    return known.classes


def _fit(images: npt.NDArray[np.uint8], size: int, channels: int) -> npt.NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, 3) → (N, channels, size, size), grey and resized as pictures are that lie in files."""
    if images.ndim == 4 and channels == 1:
        n, h, w, c = images.shape
        images = np.asarray(Image.fromarray(images.reshape(n * h, w, c)).convert("L")).reshape(n, h, w)
    planes = np.moveaxis(images, -1, 1) if images.ndim == 4 else images[:, None]
    fitted = np.empty((len(images), channels, size, size), np.uint8)
    for i, image in enumerate(planes):
        for channel, plane in enumerate(image):
            fitted[i, channel] = resize(np.ascontiguousarray(plane), size)
    return fitted


def write_example(
    folder: Path, flag: str = "pneumoniamnist", size: int = 28, n: int | None = None, seed: int = 0
) -> Path:
    """Write one small made-up set in MedMNIST's layout below `folder`, for tests and for trying things out.

    Synthetic images (`maskaug.envs.synthetic`), another kind, lesion or turn for each class, tinted where the published
    set is in colour. Three fifths of each class are train, a fifth val and a fifth test.

    Args:
        folder: where the folder `medmnist` is made, if it is not there.
        flag: of the set; one that is not published gets four classes.
        size: of the images in pixels, 28, 64, 128 or 224.
        n: images in all, at least 5 for each class; None: 20 for each class.
        seed: of the pictures.

    Returns:
        The path of the npz file.

    Raises:
        ConfigurationError: a flag or a size that there is none of, too few images, or the file exists already.
    """
    _check_flag(flag)
    if size not in SIZES or flag != _base(flag):
        raise ConfigurationError(f"flag={flag!r} with size={size!r}: use a flag without a size, and one of {SIZES}")
    known = SETS.get(flag, MedSet(("a", "b", "c", "d")))
    classes = len(known.classes)
    n = 20 * classes if n is None else n
    if n < 5 * classes:
        raise ConfigurationError(f"n={n} is too few for {classes} classes in three parts; use at least {5 * classes}")
    file = Path(folder) / FOLDER / _file_name(flag, size)
    if file.exists():
        raise ConfigurationError(f"{file} exists already; choose another folder, or remove it")
    labels = np.arange(n) % classes
    part = np.array([0, 0, 0, 1, 2])[np.arange(n) // classes % 5]
    images = np.stack([_example_picture(int(label), i, size, seed, known.colour) for i, label in enumerate(labels)])
    arrays = {}
    for i, split in enumerate(SPLITS):
        arrays[f"{split}_images"] = images[part == i]
        arrays[f"{split}_labels"] = labels[part == i, None].astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file


def _example_picture(label: int, number: int, size: int, seed: int, colour: bool) -> npt.NDArray[np.uint8]:
    turns, look = divmod(label, 2 * len(KINDS))
    kind, lesion = divmod(look, 2)
    # One of these has the label; what is drawn depends on its number alone.
    pictures, labels, _ = render(KINDS[kind], "easy", max(size, 36), seed, np.arange(16 * number, 16 * number + 16))
    picture = np.rot90(resize(pictures[int((labels == lesion).argmax())], size), turns)
    tint = np.array([1.0, 0.7, 0.85], np.float32)
    return (picture[..., None] * tint).astype(np.uint8) if colour else np.ascontiguousarray(picture)
