"""What is played where image_size and grid are left out, and that what is given always holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import pictures

import maskaug
from maskaug.agents.apga import APGA
from maskaug.benchmarks.listing import environments_table
from maskaug.benchmarks.training import dataset_of, env_keywords, train
from maskaug.envs import dataset_registry
from maskaug.envs.busi import write_example
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.registration import TABLE

PATCHES = {row.id for row in TABLE if row.kwargs["action"] == "patch"}
rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
stand_ins = pytest.mark.filterwarnings("ignore:no real data")


def read(root: Path, *, image_size: int, channels: int, seed: int) -> ImageDataset:
    """As a reader of real files would."""
    return dataclasses.replace(pictures(30, image_size, channels, seed=seed), name="real", source="real")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MURA and hip fractures have a reader, and MURA a folder below MASKAUG_DATA."""
    registry = dict(dataset_registry._REGISTRY)
    for name in ("mura", "hip_fracture"):
        registry[name] = dataclasses.replace(registry[name], loader=f"{__name__}:read", folder=name)
    monkeypatch.setattr(dataset_registry, "_REGISTRY", registry)
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path))
    (tmp_path / "mura").mkdir()
    return tmp_path / "mura"


def played(env: Any) -> tuple[int, int]:
    game = env.unwrapped.game
    return game.dataset.shape[1], game.rule.grid


@rows
@stand_ins
def test_an_id_alone_and_at_224_pixels(row: Any) -> None:
    more: dict[str, Any] = {"n": 12} if row.dataset == "synthetic" else {}
    assert played(gym.make(row.id, **more)) == (64, 8)
    assert played(gym.make(row.id, image_size=48, **more)) == (48, 8)


def test_the_grid_at_224_pixels() -> None:
    # One data set for all: a thousand large images take a while to draw.
    data = pictures(6, size=224)
    for row in TABLE:
        for made in (gym.make(row.id, dataset=data), gym.make_vec(row.id, num_envs=2, dataset=data)):
            assert played(made) == (224, 8 if row.id in PATCHES else 16)
        for grid in (8, 14):
            assert played(gym.make(row.id, dataset=data, grid=grid)) == (224, grid)
            assert played(gym.make_vec(row.id, num_envs=2, dataset=data, grid=grid)) == (224, grid)
        assert played(gym.make(row.id, dataset=data, action="patch")) == (224, 8)
        for action in ("grid", "pixel", "box"):
            assert played(gym.make(row.id, dataset=data, action=action)) == (224, 16)


def test_drawn_at_224_pixels() -> None:
    env = gym.make("MaskAug-Synthetic-v0", image_size=224, n=12)
    assert played(env) == (224, 16)
    assert env.action_space == gym.spaces.MultiBinary(256)
    coarse = gym.make("MaskAug-Synthetic-v0", grid=8, image_size=224, n=12)
    assert played(coarse) == (224, 8)
    assert coarse.action_space == gym.spaces.MultiBinary(64)
    assert played(MaskEnv(image_size=224, n=12)) == (224, 16)
    assert played(MaskEnv(image_size=240, n=12)) == (240, 8)


def test_real_radiographs_are_large(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MaskAug-MURA-v0", "MaskAug-HipFracture-v0"):
        env = gym.make_vec(name, num_envs=2, root=str(real))
        assert played(env) == (224, 16)
        assert env.unwrapped.dataset.source == "real"  # type: ignore[attr-defined]
        assert played(env.unwrapped.evaluation("val")) == (224, 16)  # type: ignore[attr-defined]
        assert played(gym.make(name, root=str(real), image_size=64)) == (64, 8)
        assert played(gym.make(name, root=str(real), grid=8)) == (224, 8)
        assert played(gym.make(name, root=str(real), image_size=224, grid=8)) == (224, 8)
    assert played(gym.make("MaskAug-MURA-v0")) == (224, 16)
    monkeypatch.delenv("MASKAUG_DATA")
    for name in ("MaskAug-MURA-v0", "MaskAug-HipFracture-v0"):
        with pytest.warns(UserWarning, match="no real data"):
            assert played(gym.make(name)) == (64, 8)


def test_an_evaluation_is_as_large_as_its_game(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKAUG_DATA")
    with pytest.warns(UserWarning, match="no real data"):
        env = MaskVectorEnv(2, dataset="mura")
    # Data that are found only later have another default.
    monkeypatch.setenv("MASKAUG_DATA", str(real.parent))
    assert played(env.evaluation("val")) == (64, 8)


def test_other_real_images_are_not(tmp_path: Path) -> None:
    assert played(gym.make("MaskAug-BUSI-v0", root=str(write_example(tmp_path, n_per_class=5)), split="all")) == (64, 8)


def test_loading_follows_the_same_rule(real: Path) -> None:
    assert load_dataset("mura").shape == (1, 224, 224)
    assert load_dataset("mura", image_size=64).shape == (1, 64, 64)
    assert load_dataset("mura").digest == load_dataset("mura", root=real, image_size=224).digest
    keywords = {**env_keywords("MaskAug-MURA-v0", {}), "seed": 0}
    assert dataset_of(keywords, "val").shape == (1, 224, 224)
    assert load_dataset("synthetic", n=12).shape == (1, 64, 64)
    for size in (35, "64", 64.0):
        with pytest.raises(ConfigurationError, match="use an integer of at least 36"):
            load_dataset("mura", image_size=size)  # type: ignore[arg-type]


def test_envs_says_what_is_played_here(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(env_id: str) -> str:
        (found,) = [x for x in environments_table().splitlines() if x.startswith(env_id)]
        return found

    assert "Box(0, 255, (1, 224, 224), uint8)  MultiBinary(256)" in line("MaskAug-MURA-v0")
    assert f"real: {real}" in line("MaskAug-MURA-v0")
    assert "Box(0, 255, (1, 64, 64), uint8)    MultiBinary(64)" in line("MaskAug-HipFracture-v0")
    monkeypatch.delenv("MASKAUG_DATA")
    assert "Box(0, 255, (1, 64, 64), uint8)  MultiBinary(64)" in line("MaskAug-MURA-v0")
    assert "Box(0, 255, (1, 64, 64), uint8)  Discrete(49)" in line("MaskAug-BUSI-v0")


@stand_ins
def test_the_table_shows_what_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKAUG_DATA", raising=False)
    for row, line in zip(TABLE, environments_table().splitlines()[2:], strict=True):
        env = gym.make(row.id)
        size = env.observation_space.shape
        assert f"Box(0, 255, {size}, uint8)  {env.action_space} " in line


def test_an_agent_plays_the_large_default(real: Path, tmp_path: Path) -> None:
    env = MaskVectorEnv(2, dataset="mura", root=real)
    agent = APGA(env, seed=0, device="cpu", width=8).learn(2)
    assert agent.scores(env.observe()).shape == (2, 16, 16)
    agent.save(tmp_path / "masker.safetensors")
    mask = maskaug.load_masker(tmp_path / "masker.safetensors")(env.dataset.images[:2])
    assert mask.mean((1, 2)).tolist() == [0.25, 0.25]


def test_a_run_writes_down_what_was_played(real: Path, tmp_path: Path) -> None:
    train(
        "APGA", "MaskAug-MURA-v0", out=tmp_path / "run", total_timesteps=2, num_envs=2, seed=0, device="cpu", env={},
        settings={"width": 8}, checkpoint_every=8, resume=False, progress_bar=False, say=lambda _: None,
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]
    assert (config["env"]["image_size"], config["env"]["grid"]) == (224, 16)
    assert config["data"]["shape"] == [1, 224, 224]


def test_images_that_are_not_square_keep_eight_cells() -> None:
    data = pictures(4, size=224)
    wide = dataclasses.replace(data, images=np.ascontiguousarray(data.images[:, :, :112]), regions=None)
    assert played(MaskEnv(dataset=wide)) == (112, 8)
