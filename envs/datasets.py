"""`ImageDataset`, its splits, and the registry that turns a name into one.

A loader reads a whole data set; `load_dataset` splits it as its publishers did, or by group, so that no patient and no
near-duplicate stands on both sides of a split. Labels, regions and groups never enter an observation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from maskaug.envs.defaults import default_image_size
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.folders import permitted
from maskaug.envs.rows import ImageArray, RegionArray, Rows, blocks
from maskaug.envs.splits import crossing_groups, deal_groups

SPLITS = ("train", "val", "test")
FRACTIONS = (0.7, 0.15, 0.15)

Value = TypeVar("Value", bound=np.generic)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images that are ready to be played with, and what is known of them.

    Attributes:
        name: the data set's name, as tables print it.
        images: (N, C, H, W) uint8: an array, or `Rows` of a file where there are more than memory should hold. Both are
            indexed by integers, slices and (M,) arrays along the first axis, which gives arrays.
        labels: (N,) int64, the class of each image, or None without labels.
        regions: (N, H, W) bool, likewise, the known relevant part of each image (all False where there is none), or
            None if unknown. Only ever used to score, never to train.
        groups: (N,) int64; images of one patient or of one cluster of near-duplicates share a number.
        class_names: the label's names, in the order of the labels.
        names: (N,) what to call each image in an error: a path, or a recipe.
        split: "train", "val", "test" or "all".
        source: "synthetic", or the data set's own name when the pixels are real.
        licence: under which terms the images may be used.
        citation: what to cite.
        studies: (N,) int64; images of one study, which doctors judge together, share a number. None if unknown.
        official: (N,) int64, the place in `SPLITS` of the part that each image belongs to by the data set's own
            division; None: it has none, and is split by group.
        study_names: what to call study 0, 1, …, for tables; empty: by their numbers.
    """

    name: str
    images: ImageArray
    labels: npt.NDArray[np.int64] | None
    regions: RegionArray | None
    groups: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    split: str = "all"
    source: str = "user"
    licence: str = "unknown"
    citation: str = ""
    studies: npt.NDArray[np.int64] | None = None
    official: npt.NDArray[np.int64] | None = None
    study_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or n == 0:
            raise DatasetError(
                f"images must be uint8 of shape (N, C, H, W) with N > 0, got {self.images.dtype} of shape "
                f"{self.images.shape}; convert them with explicit windowing first"
            )
        if self.regions is not None and self.regions.shape != (n, *self.images.shape[2:]):
            raise DatasetError(f"regions must be (N, H, W) = {(n, *self.images.shape[2:])}, got {self.regions.shape}")
        if self.regions is not None and self.regions.dtype != np.bool_:
            raise DatasetError(f"regions must be bool, got {self.regions.dtype}; compare with > 0 first")
        numbered = {"labels": self.labels, "groups": self.groups, "studies": self.studies, "official": self.official}
        for what, values in ({**numbered, "names": self.names}).items():
            if values is not None and len(values) != n:
                raise DatasetError(f"{what} must have one entry for each of the {n} images, got {len(values)}")
        for what, numbers in numbered.items():
            if numbers is not None and (numbers.dtype != np.int64 or numbers.ndim != 1):
                raise DatasetError(f"{what} must be int64 of shape (N,), got {numbers.dtype} of shape {numbers.shape}")
        if self.labels is not None and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise DatasetError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but there are {len(self.class_names)} "
                f"class names {self.class_names}; labels must be 0 … classes − 1"
            )
        if self.study_names and (
            self.studies is None or not 0 <= self.studies.min() <= self.studies.max() < len(self.study_names)
        ):
            raise DatasetError(f"{len(self.study_names)} study names need studies that are numbers of these, from 0")
        if self.official is not None:
            if not (self.official.min() >= 0 and self.official.max() < len(SPLITS)):
                raise DatasetError(f"official must hold places in {SPLITS}, 0 … {len(SPLITS) - 1}")
            if len(crossing := crossing_groups(self.groups, self.official)):
                raise DatasetError(
                    f"{len(crossing)} groups of {self.name} have images in more than one official part; what is learnt "
                    "from one would be known in the other: keep each group in one part"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels, regions, groups and studies: equal digests are the same data."""
        h = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for array in (self.images, self.labels, self.regions, self.groups):
            for block in [np.frombuffer(b"-", np.uint8)] if array is None else blocks(array):
                h.update(block.data)
        if self.studies is not None:
            # Data sets without studies keep the digests that runs and judges have on record.
            h.update(np.ascontiguousarray(self.studies).data)
        return h.hexdigest()

    @functools.cached_property
    def outlined(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the images whose known region is not empty; none where regions are unknown."""
        if self.regions is None:
            return np.zeros(len(self), np.bool_)
        return np.concatenate([block.any(axis=(1, 2)) for block in blocks(self.regions)])

    def subset(self, indices: npt.ArrayLike, split: str | None = None) -> ImageDataset:
        """The images at `indices` ((M,) integers or (N,) bool), in that order; those in a file stay there."""
        index = np.asarray(indices)
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.int64)
        if len(index) == 0:
            raise DatasetError(f"an empty subset of {self.name} was asked for; a data set needs at least one image")
        return dataclasses.replace(
            self,
            images=self.images.take(index) if isinstance(self.images, Rows) else self.images[index],
            labels=_at(self.labels, index),
            regions=self.regions.take(index) if isinstance(self.regions, Rows) else _at(self.regions, index),
            groups=self.groups[index],
            names=tuple(self.names[i] for i in index),
            split=self.split if split is None else split,
            studies=_at(self.studies, index),
            official=_at(self.official, index),
        )

    def with_region(self) -> ImageDataset:
        """The images whose known region is not empty."""
        if self.regions is None:
            raise DatasetError(f"{self.name} has no known regions; masks cannot be scored on it")
        return self.subset(self.outlined)

    def few(self, n_shot: int, seed: int = 0) -> ImageDataset:
        """`n_shot` images of each class, drawn from `seed`, in the order that they have here.

        What is drawn for one number is part of what is drawn for a larger one. Source: the few-shot tasks of APGA
        (arXiv 1909.04108), where n_shot=100 means 100 negative and 100 positive images.

        Raises:
            ConfigurationError: no labels, no whole number of at least 1, or a class that has fewer images.
        """
        if not isinstance(n_shot, int) or isinstance(n_shot, bool) or n_shot < 1:
            raise ConfigurationError(f"n_shot={n_shot!r} must be an integer of at least 1, the images of each class")
        if self.labels is None:
            raise ConfigurationError(
                f"n_shot={n_shot} counts images of each class, and {self.name} has no labels; leave it out"
            )
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        has = zip(self.class_names, counts, strict=True)
        short = [f"class {name!r} has {count}" for name, count in has if count < n_shot]
        if short:
            cure = f"use n_shot={counts.min()} or less, or bring more data" if counts.min() else "bring more data"
            raise ConfigurationError(
                f"n_shot={n_shot} asks for more images than there are in split {self.split!r} of {self.name}: "
                f"{', '.join(short)}; {cure}"
            )
        chosen = []
        for cls in range(len(self.class_names)):
            # One generator a class: how many images the others have does not matter.
            rng = np.random.default_rng(np.random.SeedSequence([seed, 0xFE3, cls]))
            chosen.append(rng.permutation(np.flatnonzero(self.labels == cls))[:n_shot])
        return self.subset(np.sort(np.concatenate(chosen)))

    def splits(self, seed: int = 0, fractions: Sequence[float] = FRACTIONS) -> npt.NDArray[np.int64]:
        """`deal_groups` of this data set: the part, 0 … len(fractions) − 1, that each image belongs to, (N,) int64."""
        return deal_groups(self.groups, self.labels, seed, fractions)

    def split_by_group(self, seed: int = 0, fractions: Sequence[float] = FRACTIONS) -> dict[str, ImageDataset]:
        """`splits` as data sets: {"train": …, "val": …, "test": …}. An empty part is an error."""
        part = self.splits(seed, fractions)
        result = {}
        for i, name in enumerate(SPLITS[: len(fractions)]):
            if not (part == i).any():
                raise DatasetError(
                    f"{self.name} has too few groups ({len(np.unique(self.groups))}) for a {name} split of "
                    f"{fractions[i]:.0%}; use split='all' or bring more data"
                )
            result[name] = self.subset(part == i, name)
        return result

    def part(self, split: str, seed: int = 0) -> ImageDataset:
        """The "train", "val" or "test" images: `official` where there is one, else 70/15/15 by group, from `seed`."""
        if self.official is None:
            return self.split_by_group(seed)[split]
        inside = self.official == SPLITS.index(split)
        if not inside.any():
            raise DatasetError(
                f"{self.name} has no {split} images: none of those that were read belong there by its own division; "
                "use split='all', or complete the folder"
            )
        return self.subset(inside, split)


def _at(values: npt.NDArray[Value] | None, index: npt.NDArray[np.int64]) -> npt.NDArray[Value] | None:
    return None if values is None else values[index]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How a named data set is found and read.

    Attributes:
        loader: "module:function", called as `loader(root, image_size=…, channels=…, seed=…, **options)`; it returns
            every image, unsplit, with `official` if the data set has its own division. None: drawn, not read.
        folder: the data set's usual folder name, looked for below `MASKAUG_DATA`.
        stand_in: the kind of synthetic image that stands in for it.
        options: the loader's own keywords.
        lister: "module:function", called as `lister(root, **options)` with those options that it has keywords for; it
            returns a `maskaug.envs.listing.Listing` without opening a picture. None: the data set is no folder of
            picture files.
        regroups: whether the loader looks at the pixels to find out which images belong together, and which to leave
            out, so that the listing alone does not tell how the images are split.
    """

    loader: str | None
    folder: str
    stand_in: str
    options: frozenset[str] = frozenset()
    lister: str | None = None
    regroups: bool = False


#: How pictures are read (`maskaug.envs.images.Reading`); of those with more than 8 bits or several pages, too.
_READING = ("fit", "max_pixels", "workers")
_DEEP = ("window", "frame")

_REGISTRY: dict[str, DatasetSpec] = {
    "synthetic": DatasetSpec(None, "", "radiograph", frozenset({"kind", "difficulty", "task", "n"})),
    "busi": DatasetSpec(
        "maskaug.envs.busi:load_busi",
        "Dataset_BUSI_with_GT",
        "ultrasound",
        frozenset({"variant", "task", "classes", *_READING}),
        "maskaug.envs.busi:list_busi",
        regroups=True,
    ),
    "mura": DatasetSpec(
        "maskaug.envs.mura:load_mura",
        "MURA-v1.1",
        "radiograph",
        frozenset({"body_part", *_READING}),
        "maskaug.envs.mura:list_mura",
    ),
    "hip_fracture": DatasetSpec(
        "maskaug.envs.manifest:load_hip_fracture",
        "hip_fracture",
        "radiograph",
        frozenset({"manifest", *_READING, *_DEEP}),
        "maskaug.envs.manifest:list_hip_fracture",
    ),
    "lgg": DatasetSpec(
        "maskaug.envs.lgg:load_lgg",
        "kaggle_3m",
        "mr",
        frozenset({"channel", *_READING}),
        "maskaug.envs.lgg:list_lgg",
    ),
    "medmnist": DatasetSpec(
        "maskaug.envs.medmnist:load_medmnist", "medmnist", "radiograph", frozenset({"flag", "workers"})
    ),
    "manifest": DatasetSpec(
        "maskaug.envs.manifest:load_manifest",
        "manifest",
        "radiograph",
        frozenset({"manifest", "class_names", *_READING, *_DEEP}),
        "maskaug.envs.manifest:list_manifest",
    ),
}


def register_dataset(name: str, spec: DatasetSpec) -> None:
    """Make `spec` known as `name`, for `load_dataset` and the environments' `dataset` keyword."""
    if name in _REGISTRY:
        raise ConfigurationError(f"a data set named {name!r} is registered already; choose another name")
    _REGISTRY[name] = spec


def dataset_names() -> tuple[str, ...]:
    """All registered names, in the order of the alphabet."""
    return tuple(sorted(_REGISTRY))


def dataset_options(name: str) -> frozenset[str]:
    """The keywords that only data set `name` knows."""
    return dataset_spec(name).options


def find_root(name: str, root: str | os.PathLike[str] | None) -> Path | None:
    """The folder of data set `name`: the `root` that was given, else `MASKAUG_DATA/<its usual folder>`, else None."""
    spec = dataset_spec(name)
    if root is not None:
        path = Path(root).expanduser()
        if spec.loader is None:
            raise DatasetError(f"root={str(path)!r} was given, but {name} images are drawn, not read; leave it out")
        if not path.is_dir():
            raise DatasetError(f"root={str(path)!r} is not a folder; expected the {spec.folder!r} folder of {name!r}")
        return path
    base = os.environ.get("MASKAUG_DATA")
    if base and spec.loader is not None and spec.folder:
        path = Path(base).expanduser() / spec.folder
        return path if path.is_dir() else None
    return None


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    image_size: int | None = None,
    channels: int = 1,
    n_shot: int | None = None,
    seed: int = 0,
    **options: Any,
) -> ImageDataset:
    """One split of a named data set, or of its synthetic stand-in.

    Within a process a data set is read once: lists (CSV and npz files) that were changed are read again, pictures are
    not; a new process sees those that were.

    Args:
        name: a registered data set: "synthetic", "busi", "mura", …
        root: its folder. Without one, `MASKAUG_DATA` is looked through; if that has none either, the stand-in is used
            with a `UserWarning` and the result's `source` is "synthetic".
        split: "train", "val", "test" (the data set's own division, else 70/15/15 by group), or "all".
        image_size: height and width in pixels; None: see `maskaug.envs.defaults`.
        channels: 1 (grey) or 3: grey, repeated; the pictures' colours of manifest, hip_fracture and medmnist; the
            sequences of lgg with channel="all", which needs 3.
        n_shot: of the training split so many images of each class alone, see `ImageDataset.few`; "val" and "test" stay
            whole. Not together with "all", which holds them.
        seed: of the split, of synthetic images, of random crops, and of the images of each class.
        **options: the data set's own, see its loader: for synthetic `kind`, `difficulty`, `task`, `n`; for busi
            `variant`, `task`, `classes`; for mura `body_part`; for lgg `channel`; for medmnist `flag`; for manifest and
            hip_fracture `manifest`, `window`, `frame`; for manifest `class_names`. How pictures are decoded: `fit` and
            `max_pixels` for all of these but synthetic and medmnist; `workers` for all but synthetic. Only for real
            images, but for those of synthetic.

    Raises:
        DatasetError: the folder is not what was expected, a split is empty, or options without real images.
        ImageError: a picture cannot be read.
        ConfigurationError: an unknown name, split or option, or an `n_shot` that the training split cannot give.
    """
    spec = dataset_spec(name)
    if split not in (*SPLITS, "all"):
        raise ConfigurationError(f"split={split!r} is unknown; use one of {(*SPLITS, 'all')}")
    if channels not in (1, 3):
        raise ConfigurationError(f"channels={channels!r} is not supported; use 1 (grey) or 3 (grey, repeated)")
    if image_size is not None and (not isinstance(image_size, int) or image_size < 36):
        raise ConfigurationError(f"image_size={image_size!r} is too small; use an integer of at least 36")
    if n_shot is not None and split == "all":
        raise ConfigurationError(
            f"n_shot={n_shot!r} is drawn from the training split, and split='all' holds what is kept out of it; use "
            "split='train', or leave n_shot out"
        )
    unknown = set(options) - spec.options
    if unknown:
        raise ConfigurationError(
            f"unknown option {', '.join(sorted(unknown))} for the data set {name!r}; it knows "
            f"{', '.join(sorted(spec.options)) or 'no options'}"
        )
    path = None if name == "synthetic" and root is None else find_root(name, root)
    if path is None and name != "synthetic":
        if options:
            raise DatasetError(
                f"{', '.join(sorted(options))} chooses among the real images of {name!r}, and none were found; give "
                f"root=FOLDER, or set MASKAUG_DATA to the folder that holds {spec.folder!r}"
            )
        warnings.warn(
            f"no real data for {name!r} (no root, none in MASKAUG_DATA): playing on synthetic {spec.stand_in} images, "
            "whose results say nothing about the real data",
            UserWarning,
            stacklevel=2,
        )
    size = default_image_size(name, real=path is not None) if image_size is None else image_size
    if path is None:
        # Several data sets have one stand-in: under one name it is drawn once.
        name, options = "synthetic", {"kind": spec.stand_in, **options}
    key = (
        name,
        None if path is None else str(path.resolve()),
        size,
        channels,
        seed,
        _lists(path, spec, options.get("manifest")),
    )
    # What is remembered is found by its options, and a list could not be looked up.
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    everything = _load_parts(key, tuple(sorted(given.items())))
    if split == "all":
        return everything
    if n_shot is None:
        return everything.part(split, seed)
    # Whichever split is asked for: an n_shot that cannot be is an error for all of them.
    few = everything.part("train", seed).few(n_shot, seed)
    return few if split == "train" else everything.part(split, seed)


@functools.lru_cache(maxsize=4)
def _load_parts(key: tuple[str, str | None, int, int, int, Any], options: tuple[tuple[str, Any], ...]) -> ImageDataset:
    # A training and an evaluation environment ask for two splits of the same images: read or draw them once.
    name, root, image_size, channels, seed, _ = key
    if root is None:
        from maskaug.envs.synthetic import make_synthetic

        return make_synthetic(image_size=image_size, channels=channels, seed=seed, **dict(options))
    return read_dataset(name, Path(root), image_size=image_size, channels=channels, seed=seed, **dict(options))


def _lists(root: Path | None, spec: DatasetSpec, manifest: object) -> tuple[tuple[str, int, int], ...]:
    # Somebody who mends a list in a notebook wants to see what it says now; it may lie one folder further down.
    if root is None:
        return ()
    found = []
    with permitted(root):
        folders = [folder for folder in dict.fromkeys((root, root / spec.folder)) if folder.is_dir()]
        names = [
            os.path.join(folder, name)
            for folder in folders
            for name in os.listdir(folder)
            if name.lower().endswith((".csv", ".npz")) or name == manifest
        ]
    for name in names:
        # What cannot be looked at, a link to nowhere for example, is the reader's to tell of.
        with contextlib.suppress(OSError):
            stat = os.stat(name)
            found.append((name, stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))


def read_dataset(
    name: str, root: Path, *, image_size: int, channels: int = 1, seed: int = 0, **options: Any
) -> ImageDataset:
    """All real images of a named data set, unsplit, as its loader reads them now: nothing is remembered."""
    reader = dataset_spec(name).loader
    assert reader is not None
    module, function = reader.split(":")
    loader: Callable[..., ImageDataset] = getattr(importlib.import_module(module), function)
    with permitted(root), _seldom_collected():
        return loader(root, image_size=image_size, channels=channels, seed=seed, **options)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    # A list of 40 000 images is made of objects that stay: looking through all that torch has loaded every time a few
    # hundred more are there takes as long as reading the list.
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 200_000) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def dataset_spec(name: str) -> DatasetSpec:
    """How data set `name` is found and read.

    Raises:
        ConfigurationError: there is none of this name.
    """
    if name not in _REGISTRY:
        raise ConfigurationError(f"unknown data set {name!r}; known are {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]
