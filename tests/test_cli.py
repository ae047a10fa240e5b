"""The command line: what it leaves, what it prints, and that bad input ends in one line and a status."""

import dataclasses
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskaug
from maskaug import cli
from maskaug.agents.apga import APGASettings
from maskaug.benchmarks.presets import apga_play
from maskaug.cli import main
from maskaug.envs.dataset_registry import dataset_options
from maskaug.envs.game import MaskGame
from maskaug.envs.registration import TABLE
from maskaug.options import APGAOptions, EnvOptions

TINY = ["--env.n", "60", "--env.image-size", "40", "--env.grid", "5", "--device", "cpu"]
SHORT = [*TINY, "--num-envs", "4", "--total-timesteps", "48", "--checkpoint-every", "32"]


def train(out: Path, *more: str) -> int:
    return main(["train", "apga", "--out", str(out), *SHORT, *more])


def status(arguments: list[str]) -> int:
    """The exit status, whether `main` returns it or the parser leaves by itself."""
    try:
        return main(arguments)
    except SystemExit as left:
        return -1 if left.code is None else int(left.code)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert train(out) == 0
    return out


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "sub" / "judge.safetensors"
    words = ["--env.n", "60", "--env.image-size", "40", "--device", "cpu"]
    assert main(["pretrain", "--out", str(out), "--updates", "20", *words]) == 0
    return out


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_envs_lists_every_id(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKAUG_DATA", raising=False)
    assert main(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TABLE) + 2
    for row, line in zip(TABLE, lines[2:], strict=True):
        assert line.split()[0] == row.id
        assert row.kwargs["objective"] in line
        assert ("built in" if row.dataset == "synthetic" else "stand-in") in line
        assert ("MultiBinary" if row.kwargs["action"] == "grid" else "Discrete") in line


def test_envs_says_where_real_data_lie(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Dataset_BUSI_with_GT").mkdir()
    monkeypatch.setenv("MASKAUG_DATA", str(tmp_path))
    assert main(["envs"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("MaskAug-BUSI-v0")]
    assert f"real: {tmp_path}" in line


def test_train_leaves_a_run_and_evaluate_adds_to_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "metrics.csv", "results.json", "masks.png", "masker.safetensors", "judge.safetensors"):
        assert (run / name).is_file(), name
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    results = json.loads((run / "results.json").read_text())
    for control in ("agent", "swapped", "random", "centre", "mean_region"):
        assert f"test.retention.{control}" in results
        assert f"test.gain.{control}" in results
    printed = capsys.readouterr().out
    assert "its own, swapped" in printed
    assert f"{results['test.retention.agent']:.3f}" in printed
    masks = maskaug.load_masker(run / "masker.safetensors")(np.zeros((1, 1, 40, 40), np.uint8))
    assert masks.any()


def test_train_plays_what_apga_plays_best_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    asked = json.loads((run / "config.json").read_text())["asked"]
    played = {"objective": "adversarial", "action": "grid", "repeat": 4, "fill": "blur"}
    assert asked["env"] == {**played, "n": 60, "image_size": 40, "grid": 5}
    assert train(tmp_path / "p", "--agent.loss", "published", "--env.fill", "mean", "--agent.penalty-none", "0.2") == 0
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert (config["asked"]["env"]["repeat"], config["asked"]["env"]["fill"]) == (1, "mean")
    assert config["resolved"]["settings"]["penalty_none"] == 0.2
    assert apga_play({})["repeat"] == 4


def test_the_id_of_a_patch_game_is_trained_on_as_well(tmp_path: Path) -> None:
    # The registered action is "patch"; `train AGENT` sets what the agent plays. And the stand-in is announced.
    words = ["--env-id", "MaskAug-BUSI-v0", "--total-timesteps", "16", "--num-envs", "2", "--device", "cpu"]
    with pytest.warns(UserWarning, match="no real data"):
        assert main(["train", "apga", "--out", str(tmp_path / "r"), *words]) == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["resolved"]["env"]["action"] == "grid"
    assert config["resolved"]["data"]["source"] == "synthetic"
    assert "BUSI" not in config["resolved"]["data"]["name"]


def test_resume_continues_and_is_needed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "apga", "--out", str(tmp_path / "r"), *SHORT[:-4], "--total-timesteps", "32"]) == 0
    assert main(["train", "apga", "--out", str(tmp_path / "r"), *SHORT[:-4], "--total-timesteps", "48"]) == 2
    again = ["--total-timesteps", "48", "--resume"]
    capsys.readouterr()
    assert main(["train", "apga", "--out", str(tmp_path / "r"), *SHORT[:-4], *again]) == 0
    assert "at 32 timesteps" in capsys.readouterr().out
    assert (tmp_path / "r" / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_a_pretrained_judge_is_played_against(judge: Path, tmp_path: Path) -> None:
    frozen = ["--env.reward-model", str(judge), "--env.joint", "False"]
    assert train(tmp_path / "r", *frozen) == 0
    with (tmp_path / "r" / "metrics.csv").open() as file:
        assert "judge_loss" not in file.readline()
    from maskaug.envs.judges import load_judge

    before, after = load_judge(judge)[0], load_judge(tmp_path / "r" / "judge.safetensors")[0]
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b)


def test_few_updates_of_a_judge_are_reported_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--env.n", "60", "--env.image-size", "40", "--updates", "3", "--device", "cpu"]
    assert main(["pretrain", "--out", str(tmp_path / "j.safetensors"), *words]) == 0
    assert "AUROC" in capsys.readouterr().out


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["train", "apga", "--out", "new", "--env-id", "MaskAug-Foo-v0"], "Foo"),
        (["train", "apga", "--out", "new", "--env-id", "CartPole-v1"], "CartPole-v1 is not one of"),
        (["pretrain", "--out", "new.safetensors", "--env-id", "CartPole-v1"], "CartPole-v1 is not one of"),
        (["train", "apga", "--out", "new", "--env-id", "MaskAug-BUSI-v0", "--env.root", "/nowhere"], "/nowhere"),
        (["train", "apga", "--out", "full", *SHORT], "not empty"),
        (["train", "apga", "--out", "new", "--env.grid", "7"], "grid=7"),
        (["train", "apga", "--out", "new", "--env.patch-cells", "2"], "patch_cells"),
        (["train", "apga", "--out", "new", "--env.area", "1.5"], "area=1.5"),
        (["train", "apga", "--out", "new", "--device", "tpu-v9"], "tpu-v9"),
        (["train", "apga", "--out", "new", "--env.joint", "False"], "reward_model=FILE"),
        (["train", "apga", "--out", "new", "--env.reward-model", "gone.safetensors"], "gone.safetensors"),
        (["train", "apga", "--out", "new", "--env.reward-model", "tiny"], "tiny"),
        (["train", "apga", "--out", "new", "--env.variant", "raw"], "variant"),
        (["train", "apga", "--out", "new", "--env.fill", "white"], "white"),
        (["train", "apga", "--out", "new", "--env.objective", "fun"], "fun"),
        (["train", "apga", "--out", "new", "--env.only-class", "cat"], "only_class"),
        (["train", "apga", "--out", "new", "--agent.loss", "ppo"], "ppo"),
        (["train", "apga", "--out", "new", "--agent.loss-scale", "3"], "loss_scale does nothing"),
        (["train", "apga", "--out", "new", "--env.repeat", "1", "--num-envs", "1"], "repeat=4"),
        (["train", "apga", "--out", "new", "--total-timesteps", "0"], "total_timesteps"),
        (["train", "apga", "--out", "new", "--num-envs", "0"], "num_envs"),
        (["train", "apga", "--out", "new", "--seed", "-1"], "seed"),
        (["train", "apga", "--out", "full/file"], "full/file"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "full"], "full"),
        (["pretrain", "--out", "judge.pt"], ".safetensors"),
        (["pretrain", "--out", "full/here.safetensors"], "exists already"),
        (["pretrain", "--out", "full/file/x.safetensors"], "full/file"),
        (["pretrain", "--out", "new.safetensors", "--env.fill", "blur"], "fill"),
        (["pretrain", "--out", "new.safetensors", "--updates", "0"], "updates"),
        (["pretrain", "--out", "new.safetensors", "--lr", "nan"], "lr"),
        (["pretrain", "--out", "new.safetensors", "--device", "tpu-v9"], "tpu-v9"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    Path("full/here.safetensors").write_text("mine")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskaug: error: ")
    assert cause in line
    assert not Path("new").exists()
    assert not Path("new.safetensors").exists()
    assert Path("full/file").read_text() == Path("full/here.safetensors").read_text() == "mine"


def test_other_arguments_at_resume_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(run, "--resume", "--env.area", "0.5", "--agent.entropy", "0.3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "env.area, settings.entropy" in line


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["bench"],
        ["trian"],
        ["train", "dpo"],
        ["bench", "speed"],
        ["evaluate"],
        ["train", "apga"],
        ["train", "apga", "--out", "x", "--env.gird", "8"],
        ["train", "apga", "--out", "x", "--num-envs", "many"],
        ["evaluate", "x", "--split", "holdout"],
    ],
)
def test_what_cannot_be_parsed_is_help_and_a_status(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(words) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out + captured.err != ""
    assert not Path("x").exists()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "apga", "--help"], ["bench", "--help"]])
def test_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(words) == 0
    assert "usage" in capsys.readouterr().out


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "envs", interrupted)
    assert main(["envs"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_the_module_runs_as_a_command() -> None:
    def maskaug_command(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "maskaug", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    shown = maskaug_command("--help")
    assert shown.returncode == 0, shown.stderr
    for name in cli.COMMANDS:
        assert name in shown.stdout
    wrong = maskaug_command("evaluate", "/nowhere")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("maskaug: error: /nowhere")


# ---- nothing forgotten -----------------------------------------------------------------------------------------------


def test_every_keyword_of_the_game_has_a_flag() -> None:
    # Those are flags of the command itself; functions cannot be given on a command line.
    elsewhere = {"self", "num_envs", "dataset", "device", "seed", "options", "reward_terms"}
    keywords = set(inspect.signature(MaskGame.__init__).parameters) - elsewhere
    for row in TABLE:
        keywords |= dataset_options(row.dataset)
    assert {f.name for f in dataclasses.fields(EnvOptions)} == keywords


def test_every_setting_of_apga_has_a_flag_of_its_type() -> None:
    flags: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(APGAOptions)}
    settings = {f.name: f"{f.type} | None" for f in dataclasses.fields(APGASettings)}
    assert flags == settings


@pytest.mark.parametrize("options", [EnvOptions, APGAOptions])
def test_every_flag_is_explained_and_left_out_by_default(options: Any) -> None:
    for field in dataclasses.fields(options):
        assert field.default is None
        assert f"        {field.name}: " in options.__doc__, field.name


def test_main_registers_the_ids_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["envs"]) == 0


def test_a_judge_of_another_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "judge.safetensors"
    assert main(["pretrain", "--out", str(judge), "--updates", "10", "--env.n", "60", "--seed", "1"]) == 0
    frozen = ["--env.n", "60", "--env.reward-model", str(judge), "--env.joint", "False", "--num-envs", "4"]
    train = ["train", "apga", "--total-timesteps", "16", *frozen]
    capsys.readouterr()
    assert main([*train, "--out", str(tmp_path / "other"), "--seed", "2"]) == 2
    assert "another split" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*train, "--out", str(tmp_path / "same"), "--seed", "1"]) == 0
