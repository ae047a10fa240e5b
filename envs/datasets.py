"""`ImageDataset`: images with all that is known of them, and their splits.

They are split as their publishers did, or by group, so that no patient and no near-duplicate stands on both sides of a
split. Labels, regions and groups never enter an observation. `maskaug.envs.dataset_registry` turns names into them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from maskaug.envs.errors import ConfigurationError, DatasetError
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
