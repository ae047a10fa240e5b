"""Looking at the judge after every epoch: what is kept, when it ends, and that a resume cannot be told apart."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from env_helpers import pictures, same

from maskaug.agents.checkpoint import newest, read_state
from maskaug.benchmarks import early_stopping
from maskaug.benchmarks.early_stopping import EarlyStopping, epoch_timesteps
from maskaug.benchmarks.run import RunFolder
from maskaug.benchmarks.training import train
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame

ENV = {"n": 40, "image_size": 40, "grid": 5, "repeat": 2, "judge_batch": 6, "fill": "noise"}
EPOCH = 56  # 28 images, 4 slots, 2 tries
#: validation losses of the epochs: the second is the best.
LOSSES = [0.5, 0.3, 0.4, 0.6, 0.1, 0.1]


def run(out: Path, epochs: int | None, **changes: Any) -> dict[str, float]:
    arguments: dict[str, Any] = {
        "num_envs": 4, "seed": 0, "device": "cpu", "env": ENV, "settings": {}, "checkpoint_every": 16, "resume": False,
        "progress_bar": False, "say": lambda _: None,
    }  # fmt: skip
    return train("APGA", "MaskAug-Synthetic-v0", out=out, epochs=epochs, **{**arguments, **changes})


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are as good as `LOSSES` says."""
    look = EarlyStopping.look

    def looking(self: EarlyStopping, agent: Any) -> dict[str, float]:
        loss = LOSSES[self.patience.looks]
        monkeypatch.setattr(
            early_stopping, "evaluate_on_clean", lambda *_, **__: {"accuracy": 0.5, "auroc": math.nan, "loss": loss}
        )
        return look(self, agent)

    monkeypatch.setattr(EarlyStopping, "look", looking)


def results(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "results.json").read_text())
    return found


def eval_rows(out: Path) -> dict[int, float]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    looked = {int(r["timesteps"]): float(r["judge/val.loss"]) for r in rows}
    return {step: loss for step, loss in looked.items() if not math.isnan(loss)}


def test_an_epoch_shows_as_many_images_as_there_are() -> None:
    for n, num_envs, repeat, steps, expected in ((8, 4, 1, 1, 8), (8, 3, 1, 1, 9), (8, 4, 3, 1, 24), (8, 4, 1, 2, 16)):
        game = MaskGame(num_envs, pictures(n, size=40), repeat=repeat, steps=steps, device="cpu")
        assert epoch_timesteps(game) == expected


def test_epochs_are_timesteps(tmp_path: Path) -> None:
    assert run(tmp_path / "a", 2)["timesteps"] == 2 * EPOCH
    assert run(tmp_path / "b", None, total_timesteps=2 * EPOCH)["timesteps"] == 2 * EPOCH
    for name in ("masker.safetensors", "judge.safetensors", "metrics.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "judge/val.loss" not in (tmp_path / "a" / "metrics.csv").read_text()
    assert {"judge.val.accuracy", "judge.val.loss"} <= results(tmp_path / "a").keys()


def test_a_run_may_grow_by_epochs_and_checkpoints_follow_them(tmp_path: Path) -> None:
    run(tmp_path / "r", 1, checkpoint_every=None)
    run(tmp_path / "r", 3, checkpoint_every=None, resume=True)
    names = sorted(int(p.stem) for p in (tmp_path / "r" / "checkpoints").iterdir())
    assert names == [2 * EPOCH, 3 * EPOCH]


@pytest.mark.usefixtures("losses")
def test_it_ends_in_time_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    run(tmp_path / "r", 6, patience=2)
    found = results(tmp_path / "r")
    assert (found["judge.epochs"], found["judge.best_epoch"], found["timesteps"]) == (4, 2, 4 * EPOCH)
    assert eval_rows(tmp_path / "r") == {EPOCH * (i + 1): LOSSES[i] for i in range(4)}
    # The very files of a run that ended after the second epoch.
    run(tmp_path / "two", 2)
    for name in ("masker.safetensors", "judge.safetensors"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    # Another patience, another end.
    assert run(tmp_path / "p", 6, patience=3)["judge.best_epoch"] == 5
    # Enough is enough, however long the run may now be.
    kept = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir() if p.is_file()}
    run(tmp_path / "r", 20, patience=2, resume=True)
    assert kept["masker.safetensors"] == (tmp_path / "r" / "masker.safetensors").read_bytes()
    assert kept["metrics.csv"] == (tmp_path / "r" / "metrics.csv").read_bytes()
    assert kept["results.json"] == (tmp_path / "r" / "results.json").read_bytes()


@pytest.mark.usefixtures("losses")
@pytest.mark.parametrize("step", [32, EPOCH + 8, 2 * EPOCH, 3 * EPOCH + 24])
def test_a_crash_is_made_up_for(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "calm", 6, patience=2)
    log = RunFolder.log

    def crashing(self: RunFolder, at: int, metrics: Any, **keywords: Any) -> None:
        log(self, at, metrics, **keywords)
        if at == step:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", crashing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path / "r", 6, patience=2)
    run(tmp_path / "r", 6, patience=2, resume=True)
    for name in ("masker.safetensors", "judge.safetensors", "metrics.csv", "results.json"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name


def test_looking_disturbs_nothing(tmp_path: Path) -> None:
    run(tmp_path / "off", 2)
    run(tmp_path / "on", 2, patience=9)
    states = []
    for name in ("off", "on"):
        last = newest(tmp_path / name / "checkpoints")
        assert last is not None
        states.append(read_state(last))
    for part in ("policy", "averaged", "learning", "generator", "game"):
        assert same(states[0][part], states[1][part]), part
    assert states[0]["extra"] == {}
    kept = states[1]["extra"]["stopping"]
    assert kept["looks"] == 2
    assert list(eval_rows(tmp_path / "on")) == [EPOCH, 2 * EPOCH]
    assert kept["best"]["loss"] == min(eval_rows(tmp_path / "on").values())


def test_who_has_no_judge_that_gets_better_is_told(tmp_path: Path) -> None:
    val = pictures(4, size=40)
    frozen = MaskVectorEnv(2, n=30, image_size=40, device="cpu").evaluation()
    mending = MaskVectorEnv(2, n=30, image_size=40, device="cpu", objective="reconstruction")
    held_out = MaskVectorEnv(2, n=60, image_size=40, device="cpu", split="val")
    for env, words in ((frozen, "joint=True"), (mending, "classifier"), (held_out, "split='val'")):
        with pytest.raises(ConfigurationError, match=words):
            EarlyStopping(2, env.game, val)
    for change, words in (
        ({"patience": -1}, "patience=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1, "total_timesteps": 8}, "give one of them"),
        ({"epochs": None}, "give one of them"),
        ({"epochs": 1, "checkpoint_every": 0}, "checkpoint_every=0"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            run(tmp_path / "r", **{"epochs": 1, **change})
        assert not (tmp_path / "r").exists()
