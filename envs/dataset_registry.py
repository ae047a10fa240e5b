"""The registry of data sets: a name becomes an `ImageDataset`, of real images or of the stand-in for them.

A loader reads a whole data set, and `load_dataset` gives the split of it that was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maskaug.envs.datasets import SPLITS, ImageDataset
from maskaug.envs.defaults import default_image_size
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.folders import permitted
from maskaug.envs.synthetic import make_synthetic


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
