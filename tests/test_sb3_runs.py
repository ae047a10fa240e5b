"""Stable-Baselines3's algorithms from the command line, and on every registered id."""

import csv
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import maskaug
from maskaug.agents.masker import load_agent
from maskaug.agents.sb3_agent import SB3Agent, SB3Settings
from maskaug.agents.sb3_defaults import ALGORITHMS, DEFAULTS, kinds_of
from maskaug.baselines import COMMANDS, TRAIN_SB3
from maskaug.benchmarks.sb3_runs import sb3_run
from maskaug.cli import main
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.registration import TABLE
from maskaug.options import SB3Options

TINY = [
    "--env-id", "MaskAug-Synthetic-v0", "--env.n", "60", "--env.image-size", "40", "--env.grid", "5",
    "--device", "cpu", "--num-envs", "4",
]  # fmt: skip
QUICK = {
    "ppo": ["--agent.n-steps", "8", "--agent.n-epochs", "1"],
    "dqn": ["--agent.learning-starts", "16", "--agent.gradient-steps", "1"],
}


def train(command: str, out: Path, timesteps: int, *more: str) -> int:
    length = ["--total-timesteps", str(timesteps), "--checkpoint-every", "32"]
    return main(["train", command, "--out", str(out), *TINY, *QUICK.get(command, []), *length, *more])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("command", ["ppo", "dqn"])
def test_train_evaluate_resume(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, calm = tmp_path / "run", tmp_path / "calm"
    assert train(command, run, 64) == 0
    for name in ("config.json", "metrics.csv", "results.json", "masks.png", "masker.safetensors", "judge.safetensors"):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").iterdir())
    config = json.loads((run / "config.json").read_text())
    assert config["asked"]["settings"]["algorithm"] == command
    assert config["resolved"]["settings"]["gamma"] == 0
    # DQN does not play grids: the first action that it does play is chosen, and said.
    assert config["resolved"]["env"]["action"] == ("grid" if command == "ppo" else "patch")
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert {"test.retention.agent", "val.retention.agent", "test.gain.random"} <= set(results)
    masks = maskaug.load_masker(run / "masker.safetensors")(np.zeros((1, 1, 40, 40), np.uint8))
    assert masks.any()
    assert train(command, run, 128) == 2  # without --resume
    capsys.readouterr()
    assert train(command, run, 128, "--resume") == 0
    assert "at 64 timesteps" in capsys.readouterr().out
    assert int(rows_of(run)[-1]["timesteps"]) == 128
    if command == "ppo":
        # Nothing of PPO follows the length of the run: two halves are the whole.
        assert train(command, calm, 128) == 0
        assert (run / "metrics.csv").read_bytes() == (calm / "metrics.csv").read_bytes()
        one, other = (load_agent(folder / "masker.safetensors", device="cpu") for folder in (run, calm))
        for a, b in zip(one.predictor.parameters(), other.predictor.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_picture_says_whose_masks_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("a2c", tmp_path / "r", 64, "--seed", "1") == 0
    assert "A2C (Stable-Baselines3) on MaskAug-Synthetic-v0" in capsys.readouterr().out


def test_a_zip_becomes_a_masker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make_vec("MaskAug-Synthetic-v0", num_envs=2, n=20, image_size=40, grid=5, device="cpu")
    agent = SB3Agent(env.unwrapped, algorithm="ppo", device="cpu", n_steps=4)  # type: ignore[arg-type]
    agent.algorithm.save(tmp_path / "m.zip")
    words = ["export", str(tmp_path / "m.zip"), "--out", str(tmp_path / "m.safetensors"), "--algorithm", "ppo"]
    assert main(words) == 2
    assert "--trust" in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()
    assert main([*words, "--trust"]) == 0
    masks = maskaug.load_masker(tmp_path / "m.safetensors")(np.zeros((1, 1, 40, 40), np.uint8))
    assert masks.sum() == agent.spec.cells * 64
    assert main([*words, "--trust"]) == 2  # nothing is overwritten


def test_every_command_names_the_algorithm_to_export_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, (algorithm, _) in COMMANDS.items():
        assert SB3Settings(algorithm=command) == SB3Settings(algorithm=algorithm)
    env = gym.make_vec("MaskAug-Synthetic-v0", num_envs=2, n=20, image_size=40, grid=5, action="patch", device="cpu")
    agent = SB3Agent(env.unwrapped, algorithm="maskable-ppo", device="cpu", n_steps=4)  # type: ignore[arg-type]
    agent.algorithm.save(tmp_path / "m.zip")
    for name in ("maskable-ppo", "maskableppo"):
        out = tmp_path / f"{name}.safetensors"
        words = ["export", str(tmp_path / "m.zip"), "--out", str(out), "--algorithm", name, "--trust"]
        assert main(words) == 0
        assert SB3Agent.load(out, device="cpu").settings.algorithm == "maskableppo"
    words = ["export", str(tmp_path / "m.zip"), "--out", str(tmp_path / "x.safetensors"), "--algorithm", "mask-ppo"]
    assert main(words) == 2
    assert "algorithm='mask-ppo' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["ppo", "--agent.buffer-size", "10"], "PPO has no buffer_size"),
        (["dqn", "--env.action", "grid"], "DQN does not play action='grid', which is for ppo, a2c"),
        (["sac", "--env.action", "patch"], "with action='box' or 'pixel'"),
        (["ppo", "--agent.batch-size", "7"], "batch_size=7"),
        (["ppo", "--env.tensors", "True"], "without tensors=True"),
        (["ppo", "--env-id", "CartPole-v1"], "CartPole-v1 is not one of"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(words[0], tmp_path / "new", 64, *words[1:]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cause in line
    assert not (tmp_path / "new").exists()


def test_what_a_run_is_made_of() -> None:
    assert sb3_run("ppo", "MaskAug-BUSI-v0", {}, None) == ({}, 16)
    assert sb3_run("dqn", "MaskAug-BUSI-v0", {"fill": "mean"}, None) == ({"fill": "mean"}, 8)
    assert sb3_run("sac", "MaskAug-BUSI-v0", {}, 3) == ({"action": "box"}, 3)
    assert sb3_run("sac", "MaskAug-BUSI-v0", {"action": "pixel"}, 3) == ({"action": "pixel"}, 3)
    assert sb3_run("dqn", "MaskAug-MURA-v0", {}, None)[0] == {"action": "patch"}
    with pytest.raises(ConfigurationError, match="does not play"):
        sb3_run("dqn", "MaskAug-MURA-v0", {"action": "grid"}, None)


def test_every_algorithm_has_a_command_and_every_setting_a_flag_of_its_type() -> None:
    assert {algorithm for algorithm, _ in COMMANDS.values()} == set(ALGORITHMS)
    assert set(TRAIN_SB3) == set(COMMANDS)
    flags: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(SB3Options)}
    settings = {f.name: str(f.type) for f in dataclasses.fields(SB3Settings) if f.name != "algorithm"}
    assert flags == {name: kind if "None" in kind else f"{kind} | None" for name, kind in settings.items()}
    assert SB3Options.__doc__ is not None
    for field in dataclasses.fields(SB3Options):
        assert field.default is None
        assert f"        {field.name}: " in SB3Options.__doc__, field.name
    for command, (_, title) in COMMANDS.items():
        assert title in str(TRAIN_SB3[command].__doc__)


# ---- every id --------------------------------------------------------------------------------------------------------

#: seconds an update: in the suite TRPO plays one id.
IDS = [row.id for row in TABLE]
PAIRS = [
    pytest.param(name, algorithm, marks=[pytest.mark.slow] if algorithm == "trpo" and name != IDS[0] else [])
    for name in IDS
    for algorithm in ALGORITHMS
]


@pytest.mark.parametrize(("env_id", "algorithm"), PAIRS)
def test_every_id_is_played_by_every_algorithm_without_a_warning(env_id: str, algorithm: str) -> None:
    own = str(gym.spec(env_id).kwargs["action"])
    # The id's own action; those that do not play it play one of their own on it.
    action = own if (algorithm, own) in DEFAULTS else kinds_of(algorithm)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a stand-in is announced
        env: Any = gym.make_vec(env_id, num_envs=8, action=action, image_size=40, grid=5, device="cpu")
    row = DEFAULTS[algorithm, action]
    quick = {"n_steps": 16, "n_epochs": 1, "learning_starts": 32, "train_freq": 4, "gradient_steps": 1}
    agent = SB3Agent(env, algorithm=algorithm, device="cpu", **{k: v for k, v in quick.items() if k in row})
    agent.learn(256)
    assert agent.num_timesteps == 256
    assert agent.updates >= 2
    assert all(torch.isfinite(value).all() for value in agent.policy.state_dict().values())
