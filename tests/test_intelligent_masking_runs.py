"""`maskaug train intelligent-masking`, `evaluate --downstream`, the benchmarks and the demo, on the smallest games."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import same
from PIL import Image

import maskaug
from maskaug.agents.intelligent_masking import IntelligentMaskingSettings
from maskaug.benchmarks import masking_arms
from maskaug.benchmarks.arms import ARMS, Arm, ArmsSettings, pretrain_arm
from maskaug.benchmarks.arms_table import arms_table, summary_of
from maskaug.benchmarks.demo_intelligent_masking import DEMO, demo
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.masking_arms import (
    intelligent_masking,
)
from maskaug.benchmarks.masks import control_masks
from maskaug.benchmarks.pictures import fill_in, masks_picture
from maskaug.benchmarks.presets import intelligent_masking_play, pictures_of
from maskaug.benchmarks.regret import RegretSettings, regret
from maskaug.benchmarks.reports import all_scores, correlations, own_masks
from maskaug.cli import main
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import load_judge
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.options import IntelligentMaskingOptions

DATA: dict[str, Any] = {"kind": "ultrasound", "task": "presence", "n": 90, "image_size": 40, "grid": 5}
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
TINY = ArmsSettings(
    "MaskAug-Synthetic-v0", DATA, updates=3, batch=8, budgets=(6,), draws=2, readouts=("logistic",)
)  # fmt: skip


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


# ---- the benchmarks --------------------------------------------------------------------------------------------------


def test_every_arm_starts_alike_and_learns_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = {}
    for arm in ARMS:
        left = pretrain_arm(TINY, arm, 0, "cpu")
        updates[arm] = left.judge.version
        assert (left.masker is None) == (arm in ("none", "autoencoder", "swapped"))
    assert updates == {arm: 0 if arm == "none" else 3 for arm in ARMS}


def test_the_arms_hide_what_they_say() -> None:
    areas = {arm: pretrain_arm(TINY, arm, 0, "cpu").spec.cells / 25 for arm in ("random", "centre", "ours", "mae")}
    assert areas == {"random": 12 / 25, "centre": 12 / 25, "ours": 12 / 25, "mae": 19 / 25}
    patches = {arm: pretrain_arm(TINY, arm, 0, "cpu").spec for arm in ("random_patch", "published")}
    assert {(spec.cells, spec.patch_cells) for spec in patches.values()} == {(4, 2)}


def test_swapped_masks_are_those_of_ours_on_the_next_image(monkeypatch: pytest.MonkeyPatch) -> None:
    played: dict[int, list[tuple[Any, Any]]] = {}
    step = MaskVectorEnv.step

    def watched(self: MaskVectorEnv, actions: Any) -> Any:
        before = self.game.index.tolist()
        played.setdefault(id(self), []).append((before, np.asarray(torch.as_tensor(actions)).copy()))
        return step(self, actions)

    monkeypatch.setattr(MaskVectorEnv, "step", watched)
    ours, swapped = pretrain_arm(TINY, "ours", 0, "cpu"), pretrain_arm(TINY, "swapped", 0, "cpu")
    own, follower, leader = played.values()
    assert len(own) == len(follower) == len(leader) == TINY.updates
    for (a, first), (b, second), (c, third) in zip(own, follower, leader, strict=True):
        assert a == b == c
        assert (first == third).all()
        assert (second == np.roll(first, 1, axis=0)).all()
    assert any((first != second).any() for (_, first), (_, second) in zip(own, follower, strict=True))
    assert swapped.judge.version == TINY.updates
    assert not same(ours.judge.model.state_dict(), swapped.judge.model.state_dict())


def test_the_arm_of_local_variance_hides_as_ours_does_but_by_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = []
    step = MaskVectorEnv.step

    def watched(self: MaskVectorEnv, actions: Any) -> Any:
        images.append(
            (
                np.array(self.dataset.images[self.game.index]),
                np.asarray(torch.as_tensor(actions)).copy().reshape(-1, 5, 5),
            )
        )
        return step(self, actions)

    monkeypatch.setattr(MaskVectorEnv, "step", watched)
    settings = dataclasses.replace(TINY, updates=200, batch=4)
    left = pretrain_arm(settings, "variance", 0, "cpu")
    assert {cells.sum((1, 2)).min() for _, cells in images} == {left.spec.cells}

    def chosen_ranks(part: list[Any]) -> float:
        ranks = []
        for pictures_, cells in part:
            scores = left.masker.scores(pictures_).reshape(len(cells), -1)
            ranks.append(scores.argsort(1).argsort(1)[cells.reshape(len(cells), -1) > 0].mean())
        return float(np.mean(ranks))

    # At first at random, mean rank 12 of 25; in the end nearly half of the cells are the most varied ones.
    assert chosen_ranks(images[:20]) == pytest.approx(12, abs=1)
    assert chosen_ranks(images[-20:]) > 14


def test_what_is_scored_is_the_patch_that_the_agent_plays() -> None:
    # Its scores of cells are means over patches; the best mean of those means is often another patch.
    left = pretrain_arm(TINY, "published", 0, "cpu")
    images = load_dataset("synthetic", split="train", n=90, image_size=40, kind="ultrasound")
    own = own_masks(left.masker, images)
    assert own is not None
    scores = all_scores(left.masker, images)
    played = left.spec.cells_of(left.masker.predict(images.images, deterministic=True)[0])
    assert torch.equal(control_masks(scores, images, images, left.spec, own=own)["agent"][0], played)
    assert not torch.equal(control_masks(scores, images, images, left.spec)["agent"][0], played)
    assert own_masks(pretrain_arm(TINY, "ours", 0, "cpu").masker, images) is None


def test_the_published_arms_play_the_papers_game_and_are_scored_in_it() -> None:
    settings = dataclasses.replace(TINY, env={**DATA, "fill": "mean", "visible_weight": 1.0, "judge_lr": 5e-3})
    fills = {}
    for arm in ("ours", "random", "published", "random_patch"):
        left = pretrain_arm(settings, arm, 0, "cpu")
        fills[arm] = (left.fill, left.judge.visible_weight, left.judge.lr)
    assert fills["ours"] == fills["random"] == ("mean", 1.0, 5e-3)
    assert fills["published"] == fills["random_patch"] == ("zero", 0.0, 1e-3)


def test_the_table_of_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--updates", "3", "--batch", "8", "--budgets", "6", "0", "--draws", "1", "--seeds", "0", "1"]
    arms = ["--arms", "none", "random", "ours", "random_patch", "published", "--readouts", "logistic"]
    out = tmp_path / "arms"
    assert main(["bench", "intelligent-masking", *words, *arms, *WORDS, "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "6 labels, 3 updates, 2 seeds" in printed
    assert "all labels" in printed
    results = json.loads((out / "results.json").read_text())
    assert not results["unfinished"]
    summary, seeds = results["summary"], results["seeds"].values()
    key = "logistic.6.accuracy"
    paired = [row[f"ours.{key}"] - row[f"random.{key}"] for row in seeds]
    found = [summary[f"ours-random.{key}.{end}"] for end in ("mean", "low", "high")]
    assert found == pytest.approx(paired_interval(paired))
    assert {"ours.correlation.mean", "published.hit.agent.mean", "ours.retention.random.mean"} <= set(summary)
    with Image.open(out / "arms.png") as picture:
        assert picture.size[0] > 500


def test_a_table_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, told = dataclasses.replace(TINY, arms=("none", "random")), list[str]()
    both = intelligent_masking(settings, [0, 1], tmp_path / "whole", "cpu", told.append)
    intelligent_masking(settings, [0], tmp_path / "parts", "cpu", told.append)
    again = intelligent_masking(settings, [0, 1], tmp_path / "parts", "cpu", told.append)
    assert again["random.logistic.6.accuracy.mean"] == both["random.logistic.6.accuracy.mean"]
    assert f"seed 0: found in {tmp_path}/parts/results.json" in told
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts"))
    for seed in ("0", "1"):
        figures = {k: v for k, v in one["seeds"][seed].items() if not k.endswith("cpu_s")}
        assert figures == {k: v for k, v in two["seeds"][seed].items() if not k.endswith("cpu_s")}
    with pytest.raises(ConfigurationError, match="other settings"):
        intelligent_masking(dataclasses.replace(settings, updates=4), [0], tmp_path / "parts", "cpu", told.append)


def test_an_arm_is_added_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    both = dataclasses.replace(TINY, arms=("none", "random", "ours", "swapped"))
    whole = intelligent_masking(both, [0, 1], tmp_path / "whole", "cpu", told.append)
    some = dataclasses.replace(TINY, arms=("none", "ours"))
    intelligent_masking(some, [0, 1], tmp_path / "parts", "cpu", told.append)
    done: list[str] = []

    def watched(settings: ArmsSettings, arm: str, *more: Any) -> Arm:
        done.append(arm)
        return pretrain_arm(settings, arm, *more)

    monkeypatch.setattr(masking_arms, "pretrain_arm", watched)
    added = intelligent_masking(both, [0, 1], tmp_path / "parts", "cpu", told.append)
    assert done == ["random", "swapped"] * 2
    for name in ("random.logistic.6.accuracy.mean", "ours-swapped.logistic.6.accuracy.low"):
        assert added[name] == whole[name]
    assert any("Intelligent Masking − the agent's, swapped: " in line for line in told)
    # A table keeps what it has, whichever arms are asked for next, and the figure of all of them.
    picture = (tmp_path / "parts" / "arms.png").read_bytes()
    monkeypatch.undo()
    one = dataclasses.replace(TINY, arms=("none",))
    again = intelligent_masking(one, [0, 1, 2], tmp_path / "parts", "cpu", told.append)
    assert again["seeds"] == 3
    assert "ours-swapped.logistic.6.accuracy.mean" in again
    assert (tmp_path / "parts" / "arms.png").read_bytes() != picture
    intelligent_masking(one, [0], tmp_path / "none", "cpu", told.append)
    assert not (tmp_path / "none" / "arms.png").exists()
    found = json.loads((tmp_path / "none" / "results.json").read_text())
    assert found["data"]["source"] == "synthetic"
    found["data"]["source"] = "BUSI"
    (tmp_path / "none" / "results.json").write_text(json.dumps(found))
    with pytest.raises(ConfigurationError, match="other settings, data or version"):
        intelligent_masking(one, [1], tmp_path / "none", "cpu", told.append)


def test_both_patch_arms_have_one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: dict[str, list[float]] = {}
    for arm in ("published", "random_patch"):
        seen: list[float] = []
        step = ReconstructionReward.learn

        def watched(self: Any, *more: Any, seen: list[float] = seen, step: Any = step) -> Any:
            seen.append(self.optimiser.param_groups[0]["lr"] / self.lr)
            return step(self, *more)

        monkeypatch.setattr(ReconstructionReward, "learn", watched)
        pretrain_arm(dataclasses.replace(TINY, updates=6), arm, 0, "cpu")
        monkeypatch.undo()
        factors[arm] = seen
    assert factors["published"] == factors["random_patch"] == pytest.approx([1, 1, 0.33, 0.33, 0.1089, 0.1089])


def test_intervals_of_splits_that_share_images_are_wider() -> None:
    rows = [{f"{arm}.{m}.6.accuracy": v for m in TINY.readouts} for arm, v in (("none", 0.5),)] * 2
    rows = [{**row, **{f"random.{m}.6.accuracy": 0.5 + 0.1 * i for m in TINY.readouts}} for i, row in enumerate(rows)]
    settings = dataclasses.replace(TINY, arms=("none", "random"))
    key = f"random-none.{TINY.readouts[0]}.6.accuracy"
    alone, shared = summary_of(rows, settings), summary_of(rows, settings, 0.5)
    assert alone[f"{key}.mean"] == shared[f"{key}.mean"] == pytest.approx(0.05)
    reach = [s[f"{key}.high"] - s[f"{key}.mean"] for s in (alone, shared)]
    assert reach[1] / reach[0] == pytest.approx(2**0.5)


def test_one_seed_has_no_interval() -> None:
    row = {f"{arm}.logistic.6.{m}": 0.5 for arm in ("none", "random") for m in ("accuracy", "f1", "auroc")}
    settings = dataclasses.replace(TINY, arms=("none", "random"))
    summary = summary_of([row], settings)
    assert not [name for name in summary if name.endswith(".low")]
    assert "…" not in arms_table(summary, settings, 1)


def test_unknown_arms_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="arms best cannot be used"):
        dataclasses.replace(TINY, arms=("best",))
    with pytest.raises(ConfigurationError, match="once"):
        dataclasses.replace(TINY, arms=("ours", "ours"))


@pytest.mark.parametrize("name", ["split", "area", "action", "repeat", "reward_model", "joint"])
def test_what_the_arms_set_themselves_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} cannot be given here"):
        dataclasses.replace(TINY, env={**TINY.env, name: 1})
    with pytest.raises(ConfigurationError, match="no other image"):
        dataclasses.replace(TINY, batch=1)


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


def test_the_demo_leaves_a_table_and_a_picture(tmp_path: Path) -> None:
    arms = ("none", "random", "ours")
    demo(tmp_path / "d", dataclasses.replace(TINY, arms=arms), seeds=(0,))
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"results.json", "arms.png"}
    assert set(DEMO.arms) <= set(ARMS)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_only_the_hidden_part_is_filled_in() -> None:
    left = pretrain_arm(TINY, "random", 0, "cpu")
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
    left = pretrain_arm(TINY, "ours", 0, "cpu")
    images = load_dataset("synthetic", split="val", n=90, image_size=40, kind="ultrasound")
    picture = masks_picture(left.masker, images, left.judge, "mean", rows=3, side=64)
    assert picture.shape[1] == 6 + 5 * (64 + 6)
    assert correlations(left.masker, images, left.judge, "mean").keys() == {
        "val.correlation.agent", "val.correlation.local_variance",
    }  # fmt: skip
    assert isinstance(left.judge, ReconstructionReward)


def test_intelligent_masking_gives_what_it_prints(tmp_path: Path) -> None:
    told: list[str] = []
    settings = dataclasses.replace(TINY, arms=("none", "random"))
    summary = intelligent_masking(settings, [3], None, "cpu", told.append)
    assert f"{summary['random.logistic.6.accuracy.mean']:.3f}" in told[-1]
