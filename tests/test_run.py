"""A run's folder: what is written when, what a kill may leave behind, and what --resume refuses."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import maskaug
from maskaug.agents.checkpoint import read_state
from maskaug.benchmarks import run as run_module
from maskaug.benchmarks import training
from maskaug.benchmarks.evaluation import evaluate
from maskaug.benchmarks.pretraining import pretrain_judge
from maskaug.benchmarks.run import RunFolder, read_config, versions
from maskaug.benchmarks.training import train
from maskaug.envs.errors import ConfigurationError

CONFIG = {"agent": "APGA", "num_envs": 2, "env": {"n": 40}, "settings": {"entropy": 0.1}}
ENV = {"n": 60, "image_size": 40, "grid": 5, "repeat": 2, "judge_batch": 6}


def small_run(out: Path, total: int = 48, **changes: Any) -> dict[str, float]:
    arguments: dict[str, Any] = {
        "num_envs": 4, "seed": 0, "device": "cpu", "env": ENV, "settings": {}, "checkpoint_every": 16, "resume": False,
        "progress_bar": False, "say": lambda _: None,
    }  # fmt: skip
    arguments |= changes
    return train("APGA", "MaskAug-Synthetic-v0", out=out, total_timesteps=total, **arguments)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- the folder ------------------------------------------------------------------------------------------------------


def opened(path: Path, step: int = 0, *, resume: bool = False) -> RunFolder:
    folder = RunFolder(path, CONFIG, resume=resume)
    folder.start({"data": {}}, step)
    return folder


def test_rows_after_the_checkpoint_are_dropped_and_written_again(tmp_path: Path) -> None:
    folder = opened(tmp_path / "r")
    for step in (4, 8, 12, 16):
        folder.log(step, {"train/loss": step / 3, "time/fps": 99.0})
    folder.close()
    before = (tmp_path / "r" / "metrics.csv").read_bytes()
    again = opened(tmp_path / "r", 8, resume=True)
    assert [r["timesteps"] for r in rows(tmp_path / "r")] == ["4", "8"]
    for step in (12, 16):
        again.log(step, {"train/loss": step / 3, "time/fps": 11.0})
    again.close()
    assert (tmp_path / "r" / "metrics.csv").read_bytes() == before
    assert b"fps" not in before


@pytest.mark.parametrize("half", ["12", "1200", "12,", "12,4.0,", "12,4.0,0.3", "\n", ""])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, half: str) -> None:
    folder = opened(tmp_path / "r")
    for step in (4, 8):
        folder.log(step, {"a": 1.5, "b": 0.25})
    folder.close()
    before = (tmp_path / "r" / "metrics.csv").read_bytes()
    with (tmp_path / "r" / "metrics.csv").open("a") as file:
        file.write(half)
    opened(tmp_path / "r", 8, resume=True).close()
    assert (tmp_path / "r" / "metrics.csv").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    folder = opened(tmp_path / "r")
    folder.log(4, {"a": 1.0})
    folder.close()
    again = opened(tmp_path / "r", 0, resume=True)
    assert again.newest_checkpoint() is None
    assert rows(tmp_path / "r") == []
    again.log(4, {"a": 2.0})
    again.close()
    # TensorBoard shows one curve, not the lost one and the new one on top of each other.
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(4, 2.0)]


def test_what_is_not_finite_is_in_the_csv_but_not_in_tensorboard_nor_in_results(tmp_path: Path) -> None:
    folder = opened(tmp_path / "r")
    folder.log(4, {"a": float("nan"), "b": 1.0})
    folder.log(8, {"eval/x": 3.0}, csv_row=False)
    folder.results({"x": 1.0, "bad": float("inf")})
    folder.results({"y": 2})
    folder.close()
    assert rows(tmp_path / "r") == [{"timesteps": "4", "a": "nan", "b": "1.0"}]
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == {"x": 1.0, "y": 2}
    tags = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload().Tags()["scalars"]
    assert set(tags) == {"b", "eval/x"}


def test_an_existing_run_is_not_touched_without_resume(tmp_path: Path) -> None:
    opened(tmp_path / "r").close()
    before = snapshot(tmp_path)
    with pytest.raises(ConfigurationError, match="--resume"):
        RunFolder(tmp_path / "r", CONFIG, resume=False)
    assert snapshot(tmp_path) == before


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose")
    for resume in (True, False):
        with pytest.raises(ConfigurationError, match="not empty"):
            RunFolder(tmp_path, CONFIG, resume=resume)


def test_a_kill_while_config_was_written_leaves_a_folder_that_can_start(tmp_path: Path) -> None:
    (tmp_path / ".config.json.abc.part").write_text("{")
    opened(tmp_path, resume=True).close()
    assert not list(tmp_path.glob(".*.part"))
    assert read_config(tmp_path)["asked"] == CONFIG


def test_config_is_the_first_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "keep_last", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "r")
    monkeypatch.undo()
    opened(tmp_path / "r", resume=True).close()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_envs": 4}, "num_envs"),
        ({"env": {"n": 50}}, r"env\.n"),
        ({"env": {"n": 40, "fill": "blur"}}, r"env\.fill"),
        ({"settings": {}}, r"settings\.entropy"),
        ({"agent": "X", "num_envs": 3}, "agent, num_envs"),
    ],
)
def test_other_arguments_at_resume_are_named_and_nothing_changes(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    opened(tmp_path / "r").close()
    before = snapshot(tmp_path)
    with pytest.raises(ConfigurationError, match=f"another {name};"):
        RunFolder(tmp_path / "r", {**CONFIG, **change}, resume=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{half", "[]", "{}", '{"asked": {}}'])
def test_an_unreadable_config_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        RunFolder(tmp_path, CONFIG, resume=True)


def test_versions_say_what_ran() -> None:
    found = versions()
    assert found["maskaug"] == maskaug.__version__
    assert {"python", "torch", "numpy", "gymnasium", "commit"} <= set(found)
    commit = found["commit"].removesuffix("-dirty")
    assert found["commit"] == "not a checkout" or (len(commit) == 40 and int(commit, 16) >= 0)


# ---- training into it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    small_run(out)
    return out


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        "config.json", "metrics.csv", "tensorboard", "checkpoints", "results.json", "masks.png", "masker.safetensors",
        "judge.safetensors", ".lock",
    }  # fmt: skip
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == [
        "000000000032.safetensors", "000000000048.safetensors",
    ]  # fmt: skip
    config = read_config(finished)
    data = config["resolved"]["data"]
    assert data["source"] == "synthetic"
    assert len(data["digest"]) == 64
    assert config["resolved"]["settings"]["entropy"] == 0.05
    assert config["resolved"]["device"] == "cpu"
    # Defaults too: what was not asked for is resolved.
    played = {k: config["resolved"]["env"][k] for k in ("area", "area_price", "joint", "split", "grid", "n")}
    assert played == {"area": 0.25, "area_price": 1.0, "joint": True, "split": "train", "grid": 5, "n": 60}
    assert config["versions"]["maskaug"] == maskaug.__version__
    assert "commit" in config["versions"]
    table = rows(finished)
    assert [int(r["timesteps"]) for r in table] == list(range(8, 49, 8))
    assert {"rollout/ep_rew_mean", "train/loss", "train/judge_loss"} <= set(table[0])
    results = json.loads((finished / "results.json").read_text())
    assert results["timesteps"] == 48
    assert {"val.retention.agent", "val.retention.random", "val.retention.swapped", "val.gain.agent"} <= set(results)
    assert all(isinstance(v, int | float) and math.isfinite(v) for v in results.values())
    events = EventAccumulator(str(finished / "tensorboard")).Reload().Tags()
    assert {"rollout/ep_rew_mean", "time/fps", "train/loss", "eval/val.retention.agent"} <= set(events["scalars"])
    assert events["images"] == ["masks"]


def test_masks_png_is_a_picture(finished: Path) -> None:
    from PIL import Image

    picture = np.asarray(Image.open(finished / "masks.png"))
    assert picture.ndim == 3
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 10


def test_training_further_is_the_same_as_training_long(finished: Path, tmp_path: Path) -> None:
    small_run(tmp_path / "short", 24)
    small_run(tmp_path / "short", 48, resume=True)
    assert (tmp_path / "short" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    for name in ("masker.safetensors", "judge.safetensors", "results.json"):
        assert (tmp_path / "short" / name).read_bytes() == (finished / name).read_bytes(), name


def test_resuming_a_finished_run_changes_nothing_that_counts(finished: Path) -> None:
    kept = {n: (finished / n).read_bytes() for n in ("metrics.csv", "masker.safetensors", "results.json")}
    small_run(finished, resume=True)
    assert kept == {n: (finished / n).read_bytes() for n in kept}


def test_a_crash_in_the_middle_is_made_up_for(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunFolder.log

    def crashing(self: RunFolder, step: int, metrics: Any, **keywords: Any) -> None:
        log(self, step, metrics, **keywords)
        if step == 40:
            raise RuntimeError("power cut")

    monkeypatch.setattr(RunFolder, "log", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        small_run(tmp_path / "r")
    monkeypatch.undo()
    assert rows(tmp_path / "r")[-1]["timesteps"] == "40"
    small_run(tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert (tmp_path / "r" / "masker.safetensors").read_bytes() == (finished / "masker.safetensors").read_bytes()


def test_a_broken_last_checkpoint_says_which_file_to_delete(tmp_path: Path, finished: Path) -> None:
    small_run(tmp_path / "r")
    last = tmp_path / "r" / "checkpoints" / "000000000048.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"000000000048\.safetensors.*delete it"):
        small_run(tmp_path / "r", resume=True)
    last.unlink()
    small_run(tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "masker.safetensors").read_bytes() == (finished / "masker.safetensors").read_bytes()


def test_too_few_images_to_score_masks_are_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        small_run(tmp_path / "r", env={**ENV, "n": 9})
    assert not (tmp_path / "r").exists()


def test_relative_paths_in_a_run_are_kept_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    play = {k: v for k, v in ENV.items() if k != "judge_batch"}
    pretrain_judge(
        Path("judge.safetensors"), "MaskAug-Synthetic-v0", {"n": 60, "image_size": 40}, updates=3, batch_size=8,
        lr=1e-3, seed=0, device="cpu", progress_bar=False, say=lambda _: None,
    )  # fmt: skip
    small_run(Path("r"), 16, env={**play, "reward_model": "judge.safetensors", "joint": False})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = str(tmp_path / "judge.safetensors")
    assert read_config(tmp_path / "r")["asked"]["env"]["reward_model"] == absolute
    small_run(tmp_path / "r", 32, env={**play, "reward_model": absolute, "joint": False}, resume=True)
    assert read_state(tmp_path / "r" / "checkpoints" / "000000000032.safetensors")["num_timesteps"] == 32


# ---- evaluating it ---------------------------------------------------------------------------------------------------


def test_evaluate_adds_the_splits_figures_and_repeats(finished: Path) -> None:
    said: list[str] = []
    first = evaluate(finished, "test", "cpu", said.append)
    assert first == evaluate(finished, "test", "cpu", lambda _: None)
    assert {"test.area", "test.retention.agent", "test.retention.mean_region", "test.gain.swapped"} <= set(first)
    stored = json.loads((finished / "results.json").read_text())
    assert first.items() <= stored.items()
    assert "val.retention.agent" in stored
    for words in ("the agent's", "its own, swapped", "random", "centre", "mean training region"):
        assert words in said[-1]
    # The validation figures at the end of training are what evaluate finds again.
    again = evaluate(finished, "val", "cpu", lambda _: None)
    assert again == {k: stored[k] for k in again}


def test_evaluate_refuses_an_unfinished_run_and_no_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a run's folder"):
        evaluate(tmp_path, "test", "cpu")
    small_run(tmp_path / "r", 8)
    (tmp_path / "r" / "masker.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="--resume"):
        evaluate(tmp_path / "r", "test", "cpu")


def test_evaluate_says_when_the_images_have_changed(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 8)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    config["resolved"]["data"]["digest"] = "0" * 64
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    evaluate(tmp_path / "r", "test", "cpu", said.append)
    assert "not the ones" in said[0]
    config["resolved"]["data"]["source"] = "mura"
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="was trained on"):
        evaluate(tmp_path / "r", "test", "cpu")


def test_the_masker_file_of_a_run_is_what_load_masker_reads(finished: Path) -> None:
    masks = maskaug.load_masker(finished / training.MASKER)(np.zeros((2, 1, 40, 40), np.uint8))
    assert masks.shape == (2, 40, 40)
    assert (masks.mean((1, 2)) == 6 / 25).all()


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", {"seed": 1}, resume=False)
    first.start({}, 0)
    second = RunFolder(tmp_path / "run", {"seed": 1}, resume=True)
    with pytest.raises(ConfigurationError, match="another process"):
        second.start({}, 0)
    first.close()
    second.start({}, 0)
    second.close()
