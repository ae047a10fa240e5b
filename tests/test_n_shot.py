"""Few images of each class: which ones, of which split, and that what is held out stays whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import pictures, same

from maskaug.benchmarks.evaluation import evaluate
from maskaug.benchmarks.pretraining import pretrain_judge
from maskaug.benchmarks.training import dataset_of, train
from maskaug.cli import main
from maskaug.envs import dataset_registry
from maskaug.envs.busi import write_example
from maskaug.envs.dataset_registry import DatasetSpec, load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.registration import TABLE

SMALL: dict[str, Any] = {"n": 60, "image_size": 40}


def counts(data: ImageDataset) -> list[int]:
    assert data.labels is not None
    return [int(count) for count in np.bincount(data.labels, minlength=len(data.class_names))]


def load(split: str = "train", n_shot: int | None = None, seed: int = 0) -> ImageDataset:
    return load_dataset("synthetic", split=split, n_shot=n_shot, seed=seed, **SMALL)


# ---- which images ----------------------------------------------------------------------------------------------------


def test_so_many_of_each_class_in_their_own_order() -> None:
    data = dataclasses.replace(pictures(30, classes=3), labels=np.repeat([2, 0, 1], [5, 20, 5]), split="train")
    few = data.few(4, seed=1)
    assert counts(few) == [4, 4, 4]
    at = [data.names.index(name) for name in few.names]
    assert at == sorted(at)
    assert len(set(at)) == 12
    assert same(dataclasses.asdict(few), dataclasses.asdict(data.subset(at)))
    assert few.split == "train"
    assert same(few.images, data.few(4, seed=1).images)
    assert few.names != data.few(4, seed=2).names


def test_a_smaller_set_is_part_of_a_larger_one() -> None:
    data, before = pictures(60, classes=3), set[str]()
    for k in range(1, 21):
        names = set(data.few(k, seed=5).names)
        assert before < names
        before = names
    assert before == set(data.names)


def test_every_image_is_drawn_as_often_as_the_others() -> None:
    data = pictures(20)
    drawn = [int(name.split()[1]) for seed in range(400) for name in data.few(3, seed).names]
    # Each of 20 images in 400 draws with probability 0.3: 120 ± 9.2.
    often = np.bincount(drawn, minlength=20)
    assert (np.abs(often - 120) < 40).all()


def test_a_class_does_not_depend_on_how_many_images_the_others_have() -> None:
    data = pictures(20)
    fewer = data.subset([i for i in range(20) if i % 2 == 0 or i < 12])
    own = [{n for n in d.few(4).names if int(n.split()[1]) % 2 == 0} for d in (data, fewer)]
    assert own[0] == own[1]
    assert len(own[0]) == 4


@pytest.mark.parametrize(
    ("n_shot", "changes", "words"),
    [
        (0, {}, "n_shot=0 must be an integer of at least 1"),
        (-1, {}, "n_shot=-1 must be an integer of at least 1"),
        (2.0, {}, "n_shot=2.0 must be an integer"),
        (True, {}, "n_shot=True must be an integer"),
        ("5", {}, "n_shot='5' must be an integer"),
        (6, {}, "n_shot=6 asks for more .* split 'all' of pictures: class 'b' has 5; use n_shot=5 or less"),
        (9, {}, "class 'a' has 7, class 'b' has 5; use n_shot=5 or less, or bring more data"),
        (1, {"class_names": ("a", "b", "c")}, "class 'c' has 0; bring more data"),
        (1, {"labels": None}, "n_shot=1 counts images of each class, and pictures has no labels; leave it out"),
    ],
)
def test_what_cannot_be_drawn_says_why(n_shot: Any, changes: dict[str, Any], words: str) -> None:
    data = dataclasses.replace(pictures(12), labels=np.repeat([0, 1], [7, 5]))
    with pytest.raises(ConfigurationError, match=words):
        dataclasses.replace(data, **changes).few(n_shot)


# ---- of which split --------------------------------------------------------------------------------------------------


def test_only_the_training_split_is_reduced() -> None:
    for seed in (0, 1):
        few, whole = load(n_shot=6, seed=seed), load(seed=seed)
        assert counts(few) == [6, 6]
        assert few.split == "train"
        assert set(few.names) < set(whole.names)
        assert set(load(n_shot=5, seed=seed).names) < set(few.names)
        for split in ("val", "test"):
            assert load(split, 6, seed).digest == load(split, None, seed).digest
        # What was loaded once serves every number, and is not changed by one.
        assert load(seed=seed).digest == whole.digest


def test_the_seed_chooses_the_images(tmp_path: Path) -> None:
    root = write_example(tmp_path, n_per_class=12)
    drawn = {}
    for seed in range(4):
        part = load_dataset("busi", root=root, n_shot=3, seed=seed, classes=2, image_size=48)
        assert counts(part)[:2] == [3, 3]
        drawn[seed] = part.names
        assert part.names == load_dataset("busi", root=root, n_shot=3, seed=seed, classes=2, image_size=48).names
    assert len(set(drawn.values())) == 4


def test_nothing_is_read_again_for_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_registry, "_REGISTRY", dict(dataset_registry._REGISTRY))
    dataset_registry.register_dataset("counted", DatasetSpec(f"{__name__}:counted", "Counted", "mr"))
    READ.clear()
    for n_shot in (None, 3, 2, None, 3):
        part = load_dataset("counted", root=tmp_path, n_shot=n_shot)
        assert counts(part) == ([14, 14] if n_shot is None else [n_shot] * 2)
    assert len(READ) == 1
    with pytest.raises(ConfigurationError, match=r"n_shot=15 .* split 'train' of pictures: class 'a' has 14"):
        load_dataset("counted", root=tmp_path, n_shot=15)
    with pytest.raises(ConfigurationError, match="has no labels"):
        load_dataset("counted", root=tmp_path, n_shot=1, seed=99)


READ: list[Path] = []


def counted(root: Path, *, image_size: int, channels: int, seed: int) -> ImageDataset:
    READ.append(root)
    data = pictures(40)
    return dataclasses.replace(data, labels=None) if seed == 99 else data


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(("n_shot", "words"), [(0, "at least 1"), (1000, "class 'normal' has 18, class 'fracture'")])
def test_a_number_that_cannot_be_is_an_error_for_every_split(split: str, n_shot: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(split, n_shot)


def test_all_images_hold_those_that_are_kept_out() -> None:
    with pytest.raises(ConfigurationError, match="split='all' holds what is kept out of it; use split='train'"):
        load("all", 5)
    with pytest.raises(ConfigurationError, match="split='all'"):
        MaskEnv(split="all", n_shot=5, **SMALL)


# ---- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
@pytest.mark.filterwarnings("ignore:no real data")
def test_every_id_knows_it(row: Any) -> None:
    env: Any = gym.make(row.id, n_shot=7, image_size=48)
    vector: Any = gym.make_vec(row.id, num_envs=2, n_shot=7, image_size=48)
    for made in (env.unwrapped, vector.unwrapped):
        assert counts(made.dataset) == [7, 7]
    held_out = vector.unwrapped.evaluation("test")
    assert len(held_out.dataset) > 100
    assert held_out.dataset.digest == gym.make(row.id, split="test", image_size=48).unwrapped.dataset.digest  # type: ignore[attr-defined]
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[1])


def test_what_is_held_out_stays_whole_in_an_evaluation() -> None:
    env = MaskVectorEnv(2, n_shot=4, seed=3, **SMALL)
    for split in ("val", "test"):
        assert env.evaluation(split).dataset.digest == load(split, seed=3).digest
        assert MaskEnv(split=split, n_shot=4, seed=3, **SMALL).dataset.digest == load(split, seed=3).digest
    assert env.evaluation("train").dataset.digest == env.dataset.digest == load("train", 4, seed=3).digest
    with pytest.raises(ConfigurationError, match="split='all'"):
        env.evaluation("all")


def test_one_class_of_the_few() -> None:
    env = MaskEnv(n_shot=5, only_class="fracture", objective="reconstruction", **SMALL)
    assert counts(env.dataset) == [0, 5]


def test_images_that_were_brought_along_are_drawn_by_their_owner() -> None:
    data = pictures(12)
    with pytest.raises(ConfigurationError, match=r"bring along dataset.few\(n_shot, seed\)"):
        MaskVectorEnv(2, dataset=data, grid=4, n_shot=2)
    assert len(MaskVectorEnv(2, dataset=data.few(2), grid=4).dataset) == 4


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_trains_on_few_and_is_judged_on_all(tmp_path: Path) -> None:
    said: list[str] = []
    train(
        "APGA", "MaskAug-Synthetic-v0", out=tmp_path / "run", total_timesteps=8, num_envs=4, seed=2, device="cpu",
        env={**SMALL, "n_shot": 3, "flip": True}, settings={"width": 8}, checkpoint_every=8, resume=False,
        progress_bar=False, say=said.append,
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    keywords = {"dataset": "synthetic", "seed": 2, "n_shot": 3, **SMALL}
    few = dataset_of(keywords)
    assert counts(few) == [3, 3]
    assert config["resolved"]["data"]["images"] == 6
    assert config["resolved"]["data"]["digest"] == few.digest
    assert (config["resolved"]["env"]["grid"], config["resolved"]["env"]["image_size"]) == (8, 40)
    val, test = (dataset_of(keywords, split) for split in ("val", "test"))
    assert (val.digest, test.digest) == (load("val", seed=2).digest, load("test", seed=2).digest)
    assert any(f"val split, {len(val)} images" in line for line in said)
    said.clear()
    evaluate(tmp_path / "run", "test", "cpu", said.append)
    assert not any("note: the training images are not the ones" in line for line in said)
    assert any(f"test split, {len(test)} images" in line for line in said)


def test_a_judge_of_few_images(tmp_path: Path) -> None:
    said: list[str] = []
    pretrain_judge(
        tmp_path / "judge.safetensors", "MaskAug-Synthetic-v0", {**SMALL, "n_shot": 3}, updates=2, batch_size=4,
        lr=1e-3, seed=0, device="cpu", progress_bar=False, say=said.append,
    )  # fmt: skip
    assert "6 training images" in said[0]
    with pytest.raises(ConfigurationError, match="flip would do nothing in pretrain"):
        pretrain_judge(
            tmp_path / "other.safetensors", "MaskAug-Synthetic-v0", {**SMALL, "flip": True}, updates=2, batch_size=4,
            lr=1e-3, seed=0, device="cpu", progress_bar=False,
        )  # fmt: skip


def test_the_command_line_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "apga", "--out", str(tmp_path / "r"), "--env.n", "60", "--env.image-size", "40"]
    assert main([*words, "--env.n-shot", "500"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "class 'normal' has 18" in line
    assert not (tmp_path / "r").exists()
