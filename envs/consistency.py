"""What is wrong between images that can all be read: duplicates, labels that disagree, classes without images."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from maskaug.envs.datasets import SPLITS
from maskaug.envs.duplicates import Fingerprint, alike, clusters, near_pairs
from maskaug.envs.findings import FEW, Finding, Item, finding

Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images that could be read.

    Attributes:
        names: (N,) of the images.
        files: (N,) digests of their files; None: they are no files.
        prints: (N,) what each is known again by.
        labels: (N,), or None without labels.
        class_names: of the labels.
        groups: (N,) patients, by number.
        published: (N,) places in `SPLITS` by the data set's own division, before validation is carved; 0 everywhere if
            it has none.
        dealt: (N,) bool: which images are dealt out by group, so that the seed decides where their group comes.
        part: (N,) places in `SPLITS`, as loading deals them out.
        played: (N,) bool: which images the reader does not leave out by itself.
        small: whether the pictures are so small that looking the same proves little.
    """

    names: tuple[str, ...]
    files: tuple[bytes, ...] | None
    prints: tuple[Fingerprint, ...]
    labels: Numbers | None
    class_names: tuple[str, ...]
    groups: Numbers
    published: Numbers
    dealt: npt.NDArray[np.bool_]
    part: Numbers
    played: npt.NDArray[np.bool_]
    small: bool = False

    def names_of(self, numbers: list[int]) -> tuple[str, ...]:
        """Names of the images at these places."""
        return tuple(self.names[i] for i in numbers)

    def labels_of(self, numbers: list[int]) -> list[str]:
        """The class names that the images at these places carry, in order."""
        if self.labels is None:
            return []
        return [self.class_names[label] for label in np.unique(self.labels[numbers])]

    def across(self, numbers: list[int]) -> bool:
        """Whether some seed puts two of the images at these places into two parts."""
        dealt = {int(self.groups[i]) for i in numbers if self.dealt[i]}
        return len(dealt) > 1 or len(set(self.published[numbers].tolist())) > 1


def inconsistencies(images: Images) -> list[Finding]:
    """Everything that `maskaug.envs.checking` reports of images that can be read, in no order."""
    blank = [Item((name,)) for name, seen in zip(images.names, images.prints, strict=True) if seen.blank]
    return [*finding("blank", blank), *_duplicates(images), *_near_duplicates(images), *_classes(images)]


def _duplicates(images: Images) -> list[Finding]:
    kinds: dict[str, list[Item]] = {}
    for numbers in alike([seen.pixels for seen in images.prints]):
        if images.prints[numbers[0]].blank:
            # Two pictures of nothing are no copies of one another.
            continue
        labels = images.labels_of(numbers)
        played = [i for i in numbers if images.played[i]]
        if len(labels) > 1:
            kind = "label_conflict" if len(images.labels_of(played)) > 1 else "label_conflict_left_out"
            kinds.setdefault(kind, []).append(Item(images.names_of(numbers), ", ".join(labels)))
        same = images.files is not None and len({images.files[i] for i in numbers}) == 1
        detail = "the same file" if same else "the same pixels"
        kind = "duplicate_across_parts" if images.across(played) else "duplicate"
        if len(played) < 2:
            kind = "duplicate_left_out"
        kinds.setdefault(kind, []).append(Item(images.names_of(numbers), detail))
    return [one for kind, items in kinds.items() for one in finding(kind, items)]


def _near_duplicates(images: Images) -> list[Finding]:
    # One of each set of exact duplicates stands for all.
    first: dict[bytes, int] = {}
    for i, seen in enumerate(images.prints):
        if images.played[i] and not seen.blank:
            first.setdefault(seen.pixels, i)
    chosen = np.array(list(first.values()), np.int64)
    if len(chosen) < 2:
        return []
    bits = np.stack([images.prints[i].bits for i in chosen])
    thumbnails = np.stack([images.prints[i].thumbnail for i in chosen])
    pairs = chosen[near_pairs(bits, thumbnails, images.groups[chosen])]
    official = images.published[pairs]
    across = (official[:, 0] != official[:, 1]) & (not images.small)
    found: list[Finding] = []
    for kind, of_kind in (("near_duplicate_across_parts", pairs[across]), ("near_duplicate", pairs[~across])):
        items = []
        for numbers in clusters(of_kind, len(images.names)):
            labels = images.labels_of(numbers)
            items.append(Item(images.names_of(numbers), ", ".join(labels) if len(labels) > 1 else ""))
        found += finding(kind, items)
    return found


def _classes(images: Images) -> list[Finding]:
    empty = [i for i in range(len(SPLITS)) if not (images.part[images.played] == i).any()]
    found = finding("empty_part", [Item((SPLITS[i],)) for i in empty])
    if images.labels is None:
        return found
    if len(images.class_names) == 1:
        found += finding("one_class", [Item(images.class_names)])
    none, few = [], []
    for number, name in enumerate(images.class_names):
        for i, split in enumerate(SPLITS):
            if i in empty:
                continue
            count = int(((images.labels == number) & (images.part == i) & images.played).sum())
            if not count and split == "train":
                none.append(Item((name,), f"none in {split}"))
            elif count < FEW:
                few.append(Item((name,), f"{count} in {split}"))
    return [*found, *finding("empty_class", none), *finding("few_images", few)]
