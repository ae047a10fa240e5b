"""`ImageDataset`, its splits, and how a name becomes one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from env_helpers import pictures

from maskaug.envs import dataset_registry
from maskaug.envs.busi import write_example
from maskaug.envs.dataset_registry import DatasetSpec, dataset_options, find_root, load_dataset, register_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.splits import crossing_groups


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((4, 1, 8, 8), np.float32)}, "uint8 of shape .*got float32"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, r"\(N, C, H, W\)"),
        ({"images": np.zeros((0, 1, 8, 8), np.uint8)}, "N > 0"),
        ({"regions": np.zeros((4, 8, 9), np.bool_)}, r"regions must be \(N, H, W\) = \(4, 16, 16\)"),
        ({"regions": np.zeros((4, 16, 16), np.uint8)}, "compare with > 0"),
        ({"labels": np.zeros(3, np.int64)}, "labels must have one entry for each of the 4"),
        ({"groups": np.zeros(5, np.int64)}, "groups must have one entry for each of the 4"),
        ({"names": ("a",)}, "names must have one entry"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels run from 0 to 2, but there are 2"),
        ({"labels": np.array([0, -1, 1, 0])}, "labels must be 0 … classes − 1"),
        ({"labels": np.zeros(4, np.float32)}, "labels must be int64"),
        ({"labels": np.zeros((4, 1), np.int64)}, r"labels must be int64 of shape \(N,\)"),
        ({"groups": np.array(list("abcd"))}, "groups must be int64"),
        ({"studies": np.zeros(3, np.int64)}, "studies must have one entry for each of the 4"),
        ({"studies": np.zeros(4)}, "studies must be int64"),
        ({"official": np.zeros(5, np.int64)}, "official must have one entry for each of the 4"),
        ({"official": np.array([0, 1, 2, 3])}, "official must hold places in .*'val'.*, 0 … 2"),
        ({"official": np.array([0, -1, 2, 2])}, "official must hold places"),
        (
            {"official": np.array([0, 1, 2, 2]), "groups": np.array([7, 7, 2, 2])},
            "1 groups of pictures have images in more than one official part",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        dataclasses.replace(pictures(4), **changes)


def test_a_subset_takes_everything_along() -> None:
    studies, official = np.arange(6) // 2, np.array([0, 0, 1, 1, 2, 2])
    data = dataclasses.replace(pictures(6), studies=studies, official=official)
    assert data.labels is not None
    assert data.regions is not None
    for indices in ([4, 1], np.array([4, 1]), np.array([False, True, False, False, True, False])):
        part = data.subset(indices, "val")
        order = [1, 4] if isinstance(indices, np.ndarray) and indices.dtype == np.bool_ else [4, 1]
        assert part.names == tuple(f"picture {i}" for i in order)
        assert part.groups.tolist() == order
        assert part.split == "val"
        np.testing.assert_array_equal(part.studies, studies[order])
        np.testing.assert_array_equal(part.official, official[order])
        np.testing.assert_array_equal(part.images, data.images[order])
        np.testing.assert_array_equal(part.labels, data.labels[order])
        np.testing.assert_array_equal(part.regions, data.regions[order])
    assert data.subset([0]).split == "all"
    with pytest.raises(DatasetError, match="empty subset of pictures"):
        data.subset([])


def test_with_region_leaves_the_others_out() -> None:
    data = pictures(6)
    assert data.with_region().names == ("picture 1", "picture 3", "picture 5")
    with pytest.raises(DatasetError, match="no known regions"):
        dataclasses.replace(data, regions=None).with_region()


def test_the_digest_is_of_everything_that_is_data_and_nothing_else() -> None:
    data = pictures(4)
    assert data.labels is not None
    assert data.regions is not None
    changes: list[dict[str, Any]] = [
        {"images": np.asarray(data.images) ^ 1},
        {"labels": 1 - data.labels},
        {"labels": None},
        {"regions": ~np.asarray(data.regions)},
        {"groups": data.groups + 1},
        {"class_names": ("a", "c")},
        {"studies": np.arange(4)},
    ]
    digests = [dataclasses.replace(data, **change).digest for change in changes]
    assert len({data.digest, *digests}) == 8
    assert data.digest == pictures(4).digest == dataclasses.replace(data, split="val", licence="x").digest


def grouped(n: int = 300, seed: int = 0) -> ImageDataset:
    rng = np.random.default_rng(seed)
    data = pictures(n, size=4)
    return dataclasses.replace(
        data, groups=rng.integers(0, n // 3, n) * 7, labels=(rng.random(n) < 0.3).astype(np.int64)
    )


def test_no_group_is_on_two_sides_and_every_image_on_one() -> None:
    data = grouped()
    parts = data.split_by_group(seed=1)
    assert list(parts) == ["train", "val", "test"]
    assert [part.split for part in parts.values()] == ["train", "val", "test"]
    groups = [set(part.groups) for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert sorted(name for part in parts.values() for name in part.names) == sorted(data.names)


def test_parts_hold_their_share_of_every_class() -> None:
    data = grouped(900)
    assert data.labels is not None
    for part, share in zip(data.split_by_group().values(), (0.7, 0.15, 0.15), strict=True):
        assert len(part) / len(data) == pytest.approx(share, abs=0.03)
        assert part.labels is not None
        assert part.labels.mean() == pytest.approx(data.labels.mean(), abs=0.06)


def test_a_split_depends_on_the_seed_and_not_on_the_order() -> None:
    data = grouped()
    order = np.random.default_rng(3).permutation(len(data))
    np.testing.assert_array_equal(data.subset(order).splits(seed=5), data.splits(seed=5)[order])
    assert (data.splits(seed=5) != data.splits(seed=6)).any()
    np.testing.assert_array_equal(dataclasses.replace(data, labels=None).splits(0) >= 0, True)


def test_a_data_sets_own_division_is_kept_whatever_the_seed() -> None:
    data = dataclasses.replace(pictures(6), official=np.array([2, 0, 0, 2, 0, 2]))
    for seed in (0, 1):
        part = data.part("test", seed)
        assert part.names == ("picture 0", "picture 3", "picture 5")
        assert part.split == "test"
    with pytest.raises(DatasetError, match=r"pictures has no val images.*its own division; use split='all'"):
        data.part("val")
    plain = grouped()
    for split, part in plain.split_by_group(4).items():
        assert plain.part(split, 4).names == part.names


def test_groups_that_cross_are_found() -> None:
    groups, part = np.array([9, 4, 9, 4, 2, 2]), np.array([0, 0, 1, 0, 2, 1])
    assert crossing_groups(groups, part).tolist() == [2, 9]
    assert crossing_groups(groups[:0], part[:0]).tolist() == []
    assert crossing_groups(groups, part * 0).tolist() == []


def test_impossible_splits_say_why() -> None:
    with pytest.raises(DatasetError, match=r"too few groups \(2\) for a .* split of"):
        pictures(2).split_by_group()
    for fractions in ((0.5, 0.6), (1.0,), (1.2, -0.2)):
        with pytest.raises(ConfigurationError, match="sum to 1"):
            pictures(9).splits(0, fractions)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"name": "imagenet"}, "known are busi, hip_fracture"),
        ({"split": "training"}, "use one of"),
        ({"channels": 2}, "use 1"),
        ({"image_size": 35}, "at least 36"),
        ({"image_size": 64.0}, "at least 36"),
        ({"kinds": "mr"}, "unknown option kinds .*difficulty, kind, n"),
        ({"name": "lgg", "kind": "mr"}, "knows channel"),
        ({"name": "medmnist", "kind": "mr"}, "knows flag"),
        ({"name": "mura", "kind": "mr"}, "knows body_part"),
    ],
)
def test_wrong_arguments_say_what_is_right(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_dataset(**{"name": "synthetic", "n": 8, **keywords} if "name" not in keywords else keywords)


def test_synthetic_takes_its_options_and_needs_no_warning() -> None:
    data = load_dataset("synthetic", split="all", n=10, kind="mr", difficulty="easy", image_size=40, channels=3, seed=4)
    assert data.images.shape == (10, 3, 40, 40)
    assert data.names[0] == "synthetic-mr/easy/seed4/0"
    parts = [load_dataset("synthetic", split=split, n=40) for split in ("train", "val", "test")]
    assert [part.split for part in parts] == ["train", "val", "test"]
    assert sum(map(len, parts)) == 40
    assert len({name for part in parts for name in part.names}) == 40


def test_images_are_drawn_once_for_all_splits_and_stand_ins() -> None:
    dataset_registry._load_parts.cache_clear()
    load_dataset("synthetic", split="train", n=40)
    load_dataset("synthetic", split="val", n=40)
    assert dataset_registry._load_parts.cache_info().misses == 1
    with pytest.warns(UserWarning, match="no real data for 'mura'"):
        first = load_dataset("mura", split="all", image_size=36)
    with pytest.warns(UserWarning, match="no real data for 'hip_fracture'"):
        second = load_dataset("hip_fracture", split="all", image_size=36)
    assert first is second
    assert (first.source, first.name) == ("synthetic", "synthetic-radiograph")


def test_a_stand_in_refuses_the_real_datas_options() -> None:
    with pytest.raises(DatasetError, match=r"task chooses among the real images of 'busi'.*root=FOLDER"):
        load_dataset("busi", task="presence")


def test_a_root_that_is_given_and_wrong_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DatasetError, match=f"{nowhere}.*is not a folder; expected .*Dataset_BUSI_with_GT"):
        load_dataset("busi", root=nowhere)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path))}[\s\S]*benign/benign \(1\).png"):
        load_dataset("busi", root=tmp_path)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path))}[\s\S]*TCGA_CS_4941_19960909_1.tif"):
        load_dataset("lgg", root=tmp_path)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path))}[\s\S]*pneumoniamnist.npz"):
        load_dataset("medmnist", root=tmp_path)
    with pytest.raises(DatasetError, match=f"{tmp_path}.*drawn, not read"):
        load_dataset("synthetic", root=tmp_path)


def test_where_a_root_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_root("busi", None) is None
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path))
    assert find_root("busi", None) is None
    root = write_example(tmp_path)
    assert find_root("busi", None) == root
    assert find_root("mura", None) is None
    other = write_example(tmp_path / "other")
    assert find_root("busi", str(other)) == other
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_root("busi", "~/other/Dataset_BUSI_with_GT") == other


def test_a_data_set_can_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_registry, "_REGISTRY", dict(dataset_registry._REGISTRY))
    spec = DatasetSpec(f"{__name__}:reader", "Mine", "mr", frozenset({"taste"}))
    register_dataset("mine", spec)
    assert dataset_options("mine") == {"taste"}
    data = load_dataset("mine", root=tmp_path, split="all", image_size=40, channels=3, seed=2, taste="salt")
    assert data.name == f"{tmp_path} 40 3 2 salt"
    with pytest.raises(ConfigurationError, match="registered already"):
        register_dataset("mine", spec)


@pytest.mark.parametrize("name", dataset_registry.dataset_names())
def test_every_option_of_a_data_set_is_told(name: str) -> None:
    told = (load_dataset.__doc__ or "").partition("**options:")[2].partition("Raises:")[0]
    for option in dataset_options(name):
        assert f"`{option}`" in told, option


def reader(root: Path, *, image_size: int, channels: int, seed: int, taste: str) -> ImageDataset:
    return dataclasses.replace(pictures(4), name=f"{root} {image_size} {channels} {seed} {taste}")
