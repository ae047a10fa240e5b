"""`load_listing` and its cache: what makes another array, what does not, and how often a file is looked at."""

from __future__ import annotations

import dataclasses
import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskaug.envs import loading
from maskaug.envs.cache import cache_folder
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError
from maskaug.envs.images import Reading
from maskaug.envs.listing import Entry, Listing
from maskaug.envs.loading import load_listing
from maskaug.envs.sources import hash_file


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """Three pictures, each with a mask; the third's is somebody else's too."""
    root = tmp_path / "data"
    root.mkdir()
    entries = []
    for i in range(3):
        Image.fromarray(np.full((40, 40), 50 * i, np.uint8)).save(root / f"{i}.png")
        mask = np.zeros((40, 40), np.uint8)
        mask[10 * i : 10 * i + 10] = 1
        Image.fromarray(mask).save(root / f"{i}_mask.png")
        entries.append(Entry(f"{i}.png", root / f"{i}.png", i % 2, f"p{i}", masks=(root / f"{i}_mask.png",)))
    return Listing("toy", "toy", root, tuple(entries), ("a", "b"), regions=True)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = loading.decode

    def counted(entry: Entry, *more: Any) -> Any:
        seen.append(entry.name)
        return original(entry, *more)

    monkeypatch.setattr(loading, "decode", counted)
    return seen


def load(listing: Listing, **options: Any) -> ImageDataset:
    return load_listing(listing, Reading(40), **options)


def greys(data: ImageDataset) -> list[int]:
    return [int(image[0, 0, 0]) for image in np.asarray(data.images)]


def test_the_order_the_masks_and_the_boxes_of_a_list_make_another_array(listing: Listing, decoded: list[str]) -> None:
    first, second, third = listing.entries
    assert greys(load(listing)) == [0, 50, 100]
    turned = dataclasses.replace(listing, entries=(third, first, second))
    assert greys(load(turned)) == [100, 0, 50]
    assert len(decoded) == 6
    swapped = [dataclasses.replace(first, masks=second.masks), dataclasses.replace(second, masks=first.masks), third]
    data = load(dataclasses.replace(listing, entries=tuple(swapped)))
    assert data.regions is not None
    assert np.asarray(data.regions)[0, 10:20].all()
    assert len(decoded) == 9
    boxed = [dataclasses.replace(first, masks=(), boxes=((0, 0, 40, size),)) for size in (5, 7)]
    for size, entry in zip((5, 7), boxed, strict=True):
        data = load(dataclasses.replace(listing, entries=(entry, second, third)))
        assert data.regions is not None
        assert np.asarray(data.regions)[0].sum() == 40 * size
    assert len(decoded) == 15
    # An entry of the same name, root and settings is replaced.
    assert len(list(cache_folder().glob("*.npy"))) == 1


def test_what_is_no_part_of_the_pixels_decodes_nothing(
    listing: Listing, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(listing)
    others = [dataclasses.replace(entry, label=0, group="x", split="test") for entry in listing.entries]
    again = load(dataclasses.replace(listing, entries=tuple(others), class_names=("c",)), seed=5)
    assert greys(again) == [0, 50, 100]
    # Nor is the way to the folder.
    monkeypatch.chdir(listing.root.parent)
    here = Path(listing.root.name)
    moved = [
        dataclasses.replace(entry, path=here / entry.name, masks=tuple(here / mask.name for mask in entry.masks))
        for entry in listing.entries
    ]
    assert greys(load(dataclasses.replace(listing, root=here, entries=tuple(moved)))) == [0, 50, 100]
    assert len(decoded) == 3


def test_parts_of_one_folder_do_not_drive_each_other_out(listing: Listing, decoded: list[str]) -> None:
    hand = dataclasses.replace(listing, name="toy-hand", chosen=(0, 2))
    for _ in range(2):
        assert greys(load(hand)) == [0, 100]
        assert greys(load(listing)) == [0, 50, 100]
    assert len(decoded) == 5


def test_a_later_start_looks_at_each_file_once(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = dataclasses.replace(listing.entries[1], masks=listing.entries[0].masks)
    listing = dataclasses.replace(listing, entries=(listing.entries[0], shared))
    load(listing)
    looks: list[str] = []
    original = os.stat

    def looked(path: Any, **more: Any) -> os.stat_result:
        looks.append(Path(path).name)
        return original(path, **more)

    monkeypatch.setattr("maskaug.envs.sources.YOUNG", 0)
    load(listing)
    monkeypatch.setattr(os, "stat", looked)
    load(listing)
    assert sorted(name for name in looks if name.endswith(".png")) == ["0.png", "0_mask.png", "1.png"]


def test_the_hash_that_a_list_gives_is_verified(listing: Listing) -> None:
    entry = listing.entries[1]
    for given, right in ((hash_file(entry.path), True), ("0" * 64, False)):
        entries = (listing.entries[0], dataclasses.replace(entry, sha256=given), listing.entries[2])
        if right:
            assert greys(load(dataclasses.replace(listing, entries=entries))) == [0, 50, 100]
        else:
            with pytest.raises(ImageError, match=r"1\.png: its SHA-256 is .*, but 000"):
                load(dataclasses.replace(listing, entries=entries))


def test_files_that_are_no_files_are_missing_and_those_behind_a_locked_door_an_error(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [
        dataclasses.replace(listing.entries[0], path=path)
        for path in (listing.root, listing.root / "0.png" / "x", listing.root / "a\0b")
    ]
    with pytest.warns(UserWarning, match="3 of the 6 listed images are left out"):
        assert greys(load(dataclasses.replace(listing, entries=(*odd, *listing.entries)))) == [0, 50, 100]

    def locked(path: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(loading, "stamp_of", locked)
    with pytest.raises(DatasetError, match=r"0\.png cannot be looked at \(Permission denied\); let this user read it"):
        load(listing)


def test_workers_reach_the_cache(listing: Listing) -> None:
    with pytest.raises(ConfigurationError, match="workers=0"):
        load(listing, workers=0)


def test_garbage_is_seldom_collected_while_a_data_set_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def loader(root: Path, **_: Any) -> ImageDataset:
        found.append(gc.get_threshold()[0])
        raise DatasetError("enough")

    monkeypatch.setattr("maskaug.envs.mura.load_mura", loader)
    before = gc.get_threshold()
    with pytest.raises(DatasetError, match="enough"):
        load_dataset("mura", root=Path(__file__).parent)
    assert gc.get_threshold() == before
    assert found == [200_000]


def test_two_lists_of_one_folder_keep_their_entries(listing: Listing, decoded: list[str]) -> None:
    folds = [dataclasses.replace(listing, entries=listing.entries[i : i + 2], variant=f"fold{i}.csv") for i in range(2)]
    for _ in range(2):
        assert [greys(load(fold)) for fold in folds] == [[0, 50], [50, 100]]
    assert len(decoded) == 4


def test_one_long_patient_costs_what_it_is_long(listing: Listing) -> None:
    names = ["x" * 100_000, *map(str, range(3000))]
    tracemalloc.start()
    found = loading.numbered(names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0] == 3000
    assert peak < 10**7
