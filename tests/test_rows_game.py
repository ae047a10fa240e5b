"""The whole game with images that stay in their file: bit for bit the same as with images in memory."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import maskaug
from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.benchmarks import masks as masks_module
from maskaug.benchmarks.masks import control_masks, hits, retentions
from maskaug.benchmarks.pictures import masks_picture
from maskaug.envs import dataset_registry
from maskaug.envs import rows as module
from maskaug.envs.busi import write_example as write_busi
from maskaug.envs.convergence import ConvergeSettings, fit_until_converged
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.mura import write_example
from maskaug.envs.networks import SmallClassifier, seeded_weights
from maskaug.envs.pretrain import FitSettings, evaluate_classifier, fit_classifier, predict_logits
from maskaug.envs.rows import Rows
from maskaug.envs.statistics import reestimate_statistics

SIZE = 40
maskaug.register_envs()


@pytest.fixture(scope="module")
def mura(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("mura"), 80)


@pytest.fixture(scope="module")
def busi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("busi"), 6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a handful of images already takes several."""
    monkeypatch.setattr(module, "BLOCK", 3 * SIZE * SIZE)


def both(monkeypatch: pytest.MonkeyPatch, name: str, **keywords: Any) -> tuple[ImageDataset, ImageDataset]:
    """The data set in memory, and in its file."""
    found = []
    for limit in (2**28, 0):
        monkeypatch.setattr(module, "IN_MEMORY", limit)
        dataset_registry._load_parts.cache_clear()
        found.append(load_dataset(name, image_size=SIZE, **keywords))
    assert isinstance(found[0].images, np.ndarray)
    assert isinstance(found[1].images, Rows)
    dataset_registry._load_parts.cache_clear()
    return found[0], found[1]


def equal(a: ImageDataset, b: ImageDataset) -> None:
    assert isinstance(b.images, Rows)
    for field in dataclasses.fields(ImageDataset):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert np.array_equal(left, np.asarray(right)), field.name
            assert left.dtype == right.dtype
            assert left.shape == right.shape
        else:
            assert left == right, field.name
    assert a.digest == b.digest
    assert np.array_equal(a.outlined, b.outlined)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["mura", "busi"])
def test_data_sets_and_their_parts(
    name: str, channels: int, mura: Path, busi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = mura if name == "mura" else busi
    memory, file = both(monkeypatch, name, root=root, split="all", channels=channels)
    reads: list[int] = []
    monkeypatch.setattr(Rows, "_read", counted(reads))
    assert memory.labels is not None
    pairs = [
        (memory, file),
        *((memory.part(split), file.part(split)) for split in ("train", "val", "test")),
        (memory.subset(memory.labels == 1, "x"), file.subset(memory.labels == 1, "x")),
        (memory.subset([3, 0, 3]), file.subset([3, 0, 3])),
        (memory.few(3, seed=1), file.few(3, seed=1)),
    ]
    # Views alone so far.
    assert reads == []
    assert file.digest == memory.digest
    assert np.array_equal(file.outlined, memory.outlined)
    assert max(reads) == (3 if channels == 1 else 3 if name == "busi" else 1)
    for a, b in pairs:
        equal(a, b)
    for again in (copy.deepcopy(file), pickle.loads(pickle.dumps(file))):  # noqa: S301 (our own)
        equal(memory, again)
    if name == "busi":
        assert isinstance(file.regions, Rows)
        equal(memory.with_region(), file.with_region())


def counted(reads: list[int]) -> Any:
    original = Rows._read

    def read(self: Rows, numbers: Any) -> Any:
        reads.append(len(numbers))
        return original(self, numbers)

    return read


def play(env: Any, tensors: bool) -> list[Any]:
    """What a few steps show, with mirrored images, evaluation and a picture."""
    seen: list[Any] = []
    observation, info = env.reset(seed=4)
    env.action_space.seed(4)
    for step in range(8):
        seen += [observation, info["index"]]
        action = env.action_space.sample()
        observation, reward, *_, info = env.step(torch.from_numpy(action) if tensors else action)
        seen.append(reward)
        if step == 4:
            seen.append(env.unwrapped.game.state()["data"])
    seen += list(env.unwrapped.render())
    return [value.numpy().copy() if isinstance(value, torch.Tensor) else value for value in seen]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("options", [{}, {"only_class": "abnormal", "joint": False}, {"n_shot": 6, "flip": True}])
def test_the_game_is_the_same_to_the_bit(
    mura: Path, monkeypatch: pytest.MonkeyPatch, tensors: bool, options: dict[str, Any]
) -> None:
    games: list[list[Any]] = []
    for limit in (2**28, 0):
        monkeypatch.setattr(module, "IN_MEMORY", limit)
        dataset_registry._load_parts.cache_clear()
        env: Any = gym.make_vec(
            "MaskAug-MURA-v0", num_envs=3, root=str(mura), image_size=SIZE, grid=5, channels=3, seed=2,
            tensors=tensors, device="cpu", render_mode="rgb_array", reward_model=judge(), **options,
        )  # fmt: skip
        inner: MaskVectorEnv = env.unwrapped
        assert isinstance(inner.dataset.images, Rows) == (limit == 0)
        assert inner.game.pictures.resident is None or limit > 0
        twin = copy.deepcopy(inner)
        found = play(env, tensors)
        assert_same(found, play(twin, tensors))
        held_out = inner.evaluation("test")
        found += play(held_out, tensors)
        again = pickle.loads(pickle.dumps(inner.dataset))  # noqa: S301 (our own)
        assert again.digest == inner.dataset.digest
        games.append(found)
        env.close()
    dataset_registry._load_parts.cache_clear()
    assert_same(*games)


def judge() -> SmallClassifier:
    with seeded_weights(5):
        return SmallClassifier(3)


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert np.array_equal(left, right)


def test_training_is_the_same_to_the_bit(mura: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, file = both(monkeypatch, "mura", root=mura)
    val = both(monkeypatch, "mura", root=mura, split="val")
    reads: list[int] = []
    monkeypatch.setattr(Rows, "_read", counted(reads))
    found: list[list[Any]] = []
    for train, held_out in zip((memory, file), val, strict=True):
        torch.manual_seed(0)
        model = SmallClassifier()
        scores = fit_classifier(model, train, held_out, FitSettings(updates=6, batch_size=8, checks=2))
        longer = fit_until_converged(model, train, held_out, ConvergeSettings(epochs=2, batch_size=8, lr=1e-4))
        network = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten())
        reestimate_statistics(network, train.images, batch=8)
        found.append([
            scores, longer, evaluate_classifier(model, held_out), *(b.numpy() for b in network[0].buffers()),
            *(p.detach().numpy() for p in model.parameters()),
            predict_logits(model, train.images, batch_size=7).numpy(),
        ])  # fmt: skip
    assert_same(*found)
    # Batches, but never the data set.
    assert max(reads) < len(file)


def test_reports_are_the_same_to_the_bit(busi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "CHUNK", 2)
    found: list[list[Any]] = []
    for data in both(monkeypatch, "busi", root=busi, split="all", variant="raw"):
        sets, patches = GridSpec(data.shape, 5, 6), GridSpec(data.shape, 5, 4, 2)
        scores = np.random.default_rng(0).random((len(data), 5, 5), np.float32)
        masks, squares = (control_masks(scores, data, data, spec) for spec in (sets, patches))
        env = MaskVectorEnv(4, dataset=data, objective="adversarial", action="grid", grid=5, device="cpu")
        picture = masks_picture(APGA(env, seed=0, device="cpu"), data, side=40)
        found.append([
            *(cells.numpy() for draws in masks.values() for cells in draws), picture,
            *retentions(masks, data).values(), *hits(squares, data).values(), np.array(list(masks)),
        ])  # fmt: skip
        env.close()
    assert_same(*found)
    assert "ceiling" in found[0][-1]
