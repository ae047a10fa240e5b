"""`maskaug train intelligent-masking`, `evaluate --downstream`, the benchmarks and the demo, on the smallest games."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_grid import left_by

import maskaug
from maskaug.agents.intelligent_masking import IntelligentMaskingSettings
from maskaug.benchmarks.pictures import fill_in, masks_picture
from maskaug.benchmarks.presets import intelligent_masking_play, pictures_of
from maskaug.benchmarks.regret import RegretSettings, regret
from maskaug.benchmarks.reports import correlations
from maskaug.cli import main
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.judges import load_judge
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.options import IntelligentMaskingOptions

WORDS = [
    "--env.kind",
    "ultrasound",
    "--env.n",
    "90",
    "--env.image-size",
    "40",
    "--env.grid",
    "5",
    "--env.task",
    "presence",
]


def train(out: Path, *words: str) -> int:
    game = ["--env-id", "MaskAug-Synthetic-v0", "--num-envs", "8", "--checkpoint-every", "24", "--device", "cpu"]
    return main(["train", "intelligent-masking", "--out", str(out), "--total-timesteps", "48", *game, *WORDS, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "im"
    assert train(out) == 0
    return out


def test_a_run_leaves_masker_judge_and_encoder(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {"masker.safetensors", "judge.safetensors", "encoder.safetensors", "results.json", "masks.png"} <= names
    asked = json.loads((run / "config.json").read_text())["asked"]
    assert asked["env"]["objective"] == "reconstruction"
    assert (asked["env"]["action"], asked["env"]["area"], asked["env"]["fill"]) == ("grid", 0.5, "mean")
    results = json.loads((run / "results.json").read_text())
    assert {"val.correlation.agent", "val.correlation.local_variance", "val.gain.agent", "timesteps"} <= set(results)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 40, 40), dtype=np.uint8)
    masks = maskaug.load_masker(run / "masker.safetensors")(images)
    assert masks.sum((1, 2)).tolist() == [round(0.5 * 25) * 64] * 3
    encoder = maskaug.load_encoder(run / "encoder.safetensors")
    assert encoder(torch.from_numpy(images) / 255).shape == (3, encoder.out_channels, 5, 5)


def test_the_encoder_has_the_statistics_of_clean_images_and_the_judge_its_own(run: Path) -> None:
    judge, encoder = load_judge(run / "judge.safetensors")[0], load_judge(run / "encoder.safetensors")[0]
    for (name, one), two in zip(judge.state_dict().items(), encoder.state_dict().values(), strict=True):
        moved = name.startswith("down.") and "running" in name
        assert torch.equal(one, two) != moved or name.endswith("num_batches_tracked"), name


def test_the_published_mode_plays_whole_patches(tmp_path: Path) -> None:
    assert train(tmp_path / "p", "--agent.mode", "published", "--agent.network", "plain") == 0
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert (config["asked"]["env"]["action"], config["asked"]["env"]["patch_cells"]) == ("patch", 2)
    assert config["resolved"]["settings"]["schedule"] == "published"
    results = json.loads((tmp_path / "p" / "results.json").read_text())
    assert "val.hit.agent" in results or "val.hit.random" in results
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 40, 40), dtype=np.uint8)
    masks = maskaug.load_masker(tmp_path / "p" / "masker.safetensors")(images)
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows) == len(columns) == 16
        assert mask.sum() == 256


def test_what_train_plays_unless_told_otherwise() -> None:
    paper = intelligent_masking_play({"mode": "published"}, {})
    assert (paper["image_size"], paper["grid"], paper["reward_model"]) == (288, 9, "context_encoder")
    assert "image_size" not in intelligent_masking_play({"mode": "published", "network": "plain"}, {})
    assert "area" not in intelligent_masking_play({}, {"action": "patch"})
    assert "judge_lr" not in intelligent_masking_play({}, {"joint": False})
    assert (
        not {"judge_batch", "reward_model"} & intelligent_masking_play({"mode": "published"}, {"joint": False}).keys()
    )


def test_every_setting_has_a_flag() -> None:
    flags = {f.name for f in dataclasses.fields(IntelligentMaskingOptions)}
    assert flags == {f.name for f in dataclasses.fields(IntelligentMaskingSettings)}


def test_evaluate_reads_the_encoder_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--downstream", "--budgets", "6", "--draws", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "rank correlation with the true errors" in printed
    assert "not pre-trained" in printed
    results = json.loads((run / "results.json").read_text())
    for name in ("downstream.logistic.6.accuracy", "downstream.untrained.paper.all.auroc", "test.correlation.agent"):
        assert np.isfinite(results[name])
    for line in ("paper, 6 labels: accuracy", "paper, all labels: accuracy", "logistic, 6 labels: accuracy"):
        assert printed.count(line) == 2  # one of each encoder, said as it is reached
    words = ["--downstream", "--budgets", "5", "--draws", "1", "--device", "cpu", "--readouts", "logistic"]
    assert main(["evaluate", str(run), *words]) == 0
    printed = capsys.readouterr().out
    assert "logistic, 5 labels" in printed
    assert "paper," not in printed
    before = (run / "results.json").read_bytes(), (run / "masks.png").read_bytes()
    for more in (["--draws", "2"], ["--downstream", "--budgets", "5000"], ["--downstream", "--budgets", "1"]):
        assert main(["evaluate", str(run), *more, "--device", "cpu"]) == 2
        assert ((run / "results.json").read_bytes(), (run / "masks.png").read_bytes()) == before
    assert "would do nothing without --downstream" in capsys.readouterr().err


def test_a_runs_judge_is_not_used_on_images_that_it_has_seen(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--env.reward-model", str(run / "judge.safetensors"), "--env.objective", "reconstruction"]
    words = ["--out", str(tmp_path / "r"), "--total-timesteps", "16", *WORDS, *judge]
    words += ["--env-id", "MaskAug-Synthetic-v0", "--seed", "5", "--device", "cpu"]
    assert main(["train", "intelligent-masking", *words]) == 2
    assert "has seen images that --seed 5 holds out" in " ".join(capsys.readouterr().err.split())


def test_downstream_needs_a_reconstruction_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--total-timesteps", "16", "--num-envs", "2", "--env.n", "60", "--env.image-size", "40", "--env.grid", "5"]
    assert main(["train", "apga", "--out", str(tmp_path / "a"), "--device", "cpu", *words]) == 0
    assert main(["evaluate", str(tmp_path / "a"), "--downstream", "--device", "cpu"]) == 2
    assert "objective='reconstruction'" in capsys.readouterr().err


# ---- the benchmark of regret ----------------------------------------------------------------------------------------


def test_regret_plays_any_data_and_needs_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures_of("MaskAug-BUSI-v0", {"n": 3}) == {"n": 3}
    assert pictures_of("MaskAug-Synthetic-v0", {"n": 3}) == {"kind": "ultrasound", "n": 3}
    assert main(["bench", "regret", "--seeds", "0"]) == 2
    assert "seeds=0 must be at least 1" in capsys.readouterr().err


def test_regret(tmp_path: Path) -> None:
    told: list[str] = []
    play = {"kind": "ultrasound", "n": 90, "image_size": 40, "grid": 5}
    settings = RegretSettings(env=play, judge_updates=4, timesteps=64, num_envs=8)
    summary = regret(settings, 2, tmp_path / "regret.json", told.append)
    written = json.loads((tmp_path / "regret.json").read_text())
    for row in written["seeds"]:
        assert row["random"] < row["oracle"]
        assert row["agent.reward"] <= row["oracle"]
        expected = (row["agent.reward"] - row["random"]) / (row["oracle"] - row["random"])
        assert row["agent.normalised"] == pytest.approx(expected)
    values = [row["agent.normalised"] for row in written["seeds"]]
    assert summary["agent.normalised.mean"] == pytest.approx(np.mean(values))
    assert any("local_variance" in line for line in told)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_only_the_hidden_part_is_filled_in() -> None:
    left = left_by("random")
    images = load_dataset("synthetic", split="test", n=90, image_size=40, kind="ultrasound").images[:2]
    cells = torch.zeros(2, 5, 5, dtype=torch.bool)
    cells[:, 1, 2] = True
    mask = cells_to_mask(cells, 40, 40)
    hidden, restored = fill_in(left.judge, images, mask, "zero")
    assert (hidden[:, 0][mask.numpy()] == 0).all()
    for picture in (hidden, restored):
        assert (picture[:, 0][~mask.numpy()] == images[:, 0][~mask.numpy()]).all()
    assert (restored[:, 0][mask.numpy()] != 0).any()


def test_the_picture_of_a_reconstruction_run_has_five_columns() -> None:
    left = left_by("ours")
    images = load_dataset("synthetic", split="val", n=90, image_size=40, kind="ultrasound")
    picture = masks_picture(left.masker, images, left.judge, "mean", rows=3, side=64)
    assert picture.shape[1] == 6 + 5 * (64 + 6)
    assert correlations(left.masker, images, left.judge, "mean").keys() == {
        "val.correlation.agent", "val.correlation.local_variance",
    }  # fmt: skip
    assert isinstance(left.judge, ReconstructionReward)
