"""Files: state there and back, whole or not at all, nothing executed; and continuing to the bit."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, joint_env, marker_env, marker_images
from safetensors.torch import save_file
from torch import Tensor

from maskaug.agents import checkpoint
from maskaug.agents.apga import APGA
from maskaug.agents.checkpoint import CheckpointError, keep_last, newest, read_state, write_state
from maskaug.envs import files
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


# ---- state -----------------------------------------------------------------------------------------------------------


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "tensor": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
        "half": torch.ones(2, dtype=torch.float16),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "shared": [shared, shared[2:4], shared],
        "strided": torch.arange(12.0).view(3, 4).T,
        "array": np.arange(4, dtype=np.int64),
        "flags": np.array([[True, False]]),
        "none_of": np.zeros((0, 4), np.bool_),
        "zero_d": np.array(3.5),
        "numbers": {0: {"step": torch.tensor(3.0)}, 17: 0.1, "0": torch.tensor(9.0)},
        "a/b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0)},
        "rng": np.random.default_rng(5).bit_generator.state,
        "plain": [None, True, False, -3, 2**127 + 1, 0.1 + 0.2, "ä µ", [], {}, np.float32(0.5), np.int64(3)],
    }
    write_state(tmp_path / "s", state)
    back = read_state(tmp_path / "s")

    def same(a: Any, b: Any) -> None:
        if isinstance(a, Tensor):
            assert isinstance(b, Tensor)
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert torch.equal(a, b)
        elif isinstance(a, np.ndarray):
            assert isinstance(b, np.ndarray)
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert np.array_equal(a, b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for key in a:
                same(a[key], b[key])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                same(x, y)
        else:
            assert a == b
            assert isinstance(b, bool) == isinstance(a, bool)

    same(state, back)
    rng = np.random.default_rng(0)
    rng.bit_generator.state = back["rng"]
    assert rng.integers(1 << 60) == np.random.default_rng(5).integers(1 << 60)


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    state = {"b": torch.arange(3), "a": {"x": 1, "y": np.arange(2)}}
    for name in "abcdef":
        write_state(tmp_path / name, state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf"), object(), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_state(tmp_path / "s", {"bad": bad})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, {"x": torch.tensor(1.0)})

    def half(target: Path, data: bytes) -> None:
        target.write_bytes(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "_write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        write_state(path, {"x": torch.tensor(2.0)})
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    assert read_state(path)["x"] == 1


def test_tensors_are_written_in_place_of_a_name_that_is_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # safetensors' own save_file renames a second temporary file over ours; killed there, it stays for ever.
    inodes: list[int] = []
    temporary_file, replace = files.temporary_file, Path.replace

    def seen_file(folder: Path, name: str) -> tuple[int, Path]:
        handle, path = temporary_file(folder, name)
        inodes.append(path.stat().st_ino)
        return handle, path

    def seen_replace(self: Path, target: Path) -> Path:
        inodes.append(self.stat().st_ino)
        return replace(self, target)

    monkeypatch.setattr(files, "temporary_file", seen_file)
    monkeypatch.setattr(Path, "replace", seen_replace)
    write_state(tmp_path / "s.safetensors", {"x": torch.tensor(1.0)})
    assert len(inodes) == 2
    assert inodes[0] == inodes[1]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def seen_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    write_state(tmp_path / "s", {"x": torch.tensor(1.0)})
    # The second fsync is the folder's: a rename is not on the disk before that.
    assert order == ["fsync", "rename", "fsync"]


def test_the_last_ones_are_kept_and_half_written_ones_are_not(tmp_path: Path) -> None:
    for step in (100, 20, 3, 1000):
        (tmp_path / f"{step:012d}.safetensors").touch()
    (tmp_path / ".000000001100.safetensors.abc.part").touch()
    (tmp_path / "notes.txt").touch()
    last = newest(tmp_path)
    assert last is not None
    assert last.name == "000000001000.safetensors"
    keep_last(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000000000100.safetensors", "000000001000.safetensors", "notes.txt",
    ]  # fmt: skip
    keep_last(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 3
    assert newest(tmp_path / "nowhere") is None


# ---- agents' files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[APGA, Path]:
    path = tmp_path_factory.mktemp("saved") / "masker.safetensors"
    agent = APGA(marker_env(), seed=4, entropy=0.2).learn(640)
    agent.save(path)
    return agent, path


def test_a_loaded_agent_predicts_the_same_without_an_environment(saved: tuple[APGA, Path]) -> None:
    agent, path = saved
    images = np.asarray(marker_images(8, 7).images)
    loaded = APGA.load(path)
    assert loaded.env is None
    assert loaded.settings == agent.settings
    assert loaded.seed == 4
    assert np.array_equal(loaded.scores(images), agent.scores(images))
    assert np.array_equal(loaded.predict(images, deterministic=True)[0], agent.predict(images, deterministic=True)[0])
    with pytest.raises(ConfigurationError, match="env="):
        loaded.learn(10)
    with pytest.raises(ConfigurationError, match="save"):
        loaded.save_checkpoint(path.parent / "c")


def test_a_loaded_agent_goes_on_learning_from_what_it_knew(saved: tuple[APGA, Path]) -> None:
    agent, path = saved
    loaded = APGA.load(path, env=marker_env())
    images = np.asarray(marker_images(8, 7).images)
    assert np.array_equal(loaded.scores(images), agent.scores(images))
    for mine, its in zip(loaded.policy.parameters(), agent.averaged.module.parameters(), strict=True):
        assert torch.equal(mine, its)
    loaded.learn(64)
    assert not np.array_equal(loaded.scores(images), agent.scores(images))


def test_an_environment_of_another_shape_is_refused(saved: tuple[APGA, Path]) -> None:
    with pytest.raises(CheckpointError, match="trained on"):
        APGA.load(saved[1], env=marker_env(area=0.5))


def broken_json(path: Path) -> None:
    save_file({}, path, {"maskaug-state-1": "{not json"})


def dangling(path: Path) -> None:
    save_file({}, path, {"maskaug-state-1": json.dumps({"map": [["policy", {"tensor": "/x"}]]})})


def another_agent(path: Path) -> None:
    write_state(path, {"about": {"agent": "Other"}, "policy": {}})


def no_spec(path: Path) -> None:
    write_state(path, {"about": {"agent": "APGA", "settings": {}}, "policy": {}})


def other_weights(path: Path) -> None:
    about = {"agent": "APGA", "settings": {}, "seed": 0, "image_shape": [1, SIZE, SIZE], "grid": GRID, "cells": 4}
    write_state(path, {"about": about, "policy": {"head.weight": torch.zeros(1)}})


BROKEN: list[Callable[[Path], object]] = [
    lambda path: None,
    lambda path: path.mkdir(),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(os.urandom(500)),
    lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0{}"),
    lambda path: save_file({"w": torch.zeros(1)}, path),
    lambda path: write_state(path, {"x": 1}),
    lambda path: write_state(path, {"about": [1]}),
    broken_json,
    dangling,
    another_agent,
    no_spec,
    other_weights,
]


@pytest.mark.parametrize("make", BROKEN)
def test_files_that_hold_no_agent_are_one_clear_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        APGA.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_an_error_wherever_it_ends(saved: tuple[APGA, Path], tmp_path: Path) -> None:
    whole = saved[1].read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            APGA.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("torch_zip", [False, True])
def test_a_pickle_in_disguise_is_not_executed(tmp_path: Path, torch_zip: bool) -> None:
    path, crater = tmp_path / "evil.safetensors", tmp_path / "crater"
    if torch_zip:
        torch.save({"policy": Bomb(crater)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(crater)))
    for load in (APGA.load, read_state):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load(path)
    assert not crater.exists()


# ---- continuing ------------------------------------------------------------------------------------------------------


def everything(agent: APGA) -> dict[str, Any]:
    assert agent.env is not None
    return {
        "policy": dict(agent.policy.state_dict()),
        "averaged": dict(agent.averaged.state_dict()),
        "learning": agent._learning_state(),
        "judge": agent.env.game.reward_model.state(),
        "generator": agent.generator.get_state(),
    }


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{name}/{i}").items()}
    return {name: value.tolist() if isinstance(value, Tensor) else value}


def frozen(**keywords: Any) -> MaskVectorEnv:
    return marker_env(6, images=20, **keywords)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: joint_env(4, 4, fill="noise"), {}),
        (lambda: joint_env(3, 2, fill="blur", judge_batch=7), {"entropy": 0.3}),
        (lambda: joint_env(5, 1), {"loss": "published"}),
        (lambda: frozen(repeat=4, fill="noise"), {"average": 0.5}),
        (lambda: frozen(repeat=1), {"loss": "published", "mirror": False}),
    ],
)
@pytest.mark.parametrize("before", [1, 7])
def test_continuing_is_equal_to_the_bit(
    tmp_path: Path, make: Callable[[], MaskVectorEnv], settings: dict[str, Any], before: int
) -> None:
    updates = 12

    def learn(agent: APGA, count: int) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []

        def keep(_: object, metrics: Any) -> bool:
            rows.append({k: v for k, v in metrics.items() if k != "time/fps" and v == v})
            return len(rows) < count

        agent.learn(10**6, keep)
        return rows

    whole = APGA(make(), seed=2, **settings)
    expected = learn(whole, updates)

    first = APGA(make(), seed=2, **settings)
    rows = learn(first, before)
    first.save_checkpoint(tmp_path / "c", note="kept")
    learn(first, 2)  # what is lost by a kill must leave no trace in the file

    second = APGA(make(), seed=2, **settings)
    assert second.load_checkpoint(tmp_path / "c") == {"note": "kept"}
    rows += learn(second, updates - before)

    assert rows == expected
    assert second.updates == whole.updates
    assert second.num_timesteps == whole.num_timesteps
    assert flat(everything(second)) == flat(everything(whole))
    assert second.env is not None
    assert whole.env is not None
    assert np.array_equal(second.env.game.observe(), whole.env.game.observe())


def test_a_checkpoint_of_other_settings_data_or_kind_is_refused(saved: tuple[APGA, Path], tmp_path: Path) -> None:
    agent = APGA(joint_env(), seed=0).learn(32)
    agent.save_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="other settings"):
        APGA(joint_env(), seed=0, entropy=0.9).load_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="other settings"):
        APGA(joint_env(), seed=1).load_checkpoint(tmp_path / "c")
    for other in (joint_env(n=50), joint_env(3)):
        with pytest.raises(ConfigurationError, match="other images or another number"):
            APGA(other, seed=0).load_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        APGA(marker_env(), seed=4, entropy=0.2).load_checkpoint(saved[1])
    with pytest.raises(ConfigurationError, match="environment"):
        APGA.load(saved[1]).load_checkpoint(tmp_path / "c")


def test_checkpoint_error_is_what_users_catch() -> None:
    assert issubclass(checkpoint.CheckpointError, ValueError)
