"""The published APGA as one preset: what it is made of, its start, its end, and its judge at test time."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, pictures, same
from safetensors.torch import load_file, save_file

from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.checkpoint import newest, read_state
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.masker import Masker, load_agent
from maskaug.agents.ternausnet import TernausNet11
from maskaug.benchmarks import starting
from maskaug.benchmarks.classifiers import averaged_logits, chosen_masks, classifier_scores
from maskaug.benchmarks.masks import mask_report
from maskaug.benchmarks.presets import APGA_PRESETS, Preset, apga_play, apga_run
from maskaug.benchmarks.reports import FEW, all_scores, few_of, report_on
from maskaug.benchmarks.run import RunFolder
from maskaug.benchmarks.throughput_agents import apga_published
from maskaug.benchmarks.timing import in_turn
from maskaug.cli import main
from maskaug.envs.convergence import fit_until_converged
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import load_judge, make_judge
from maskaug.envs.masking import keep
from maskaug.envs.networks import seeded_weights, to_float
from maskaug.envs.pretrain import evaluate_classifier, evaluate_on_clean, score_logits
from maskaug.envs.rewards import ClassifierReward

TINY = [
    "--preset", "published", "--env.n", "40", "--env.image-size", "40", "--env.reward-model", "small",
    "--agent.network", "grid", "--num-envs", "4", "--env.judge-batch", "4", "--epochs", "2", "--device", "cpu",
]  # fmt: skip
FILES = ("masker.safetensors", "judge.safetensors", "metrics.csv", "results.json", "judge_start.safetensors")


def train(out: Path, *more: str) -> int:
    return main(["train", "apga", "--out", str(out), *TINY, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preset") / "run"
    assert train(out) == 0
    return out


def config(out: Path) -> Any:
    return json.loads((out / "config.json").read_text())


# ---- what it is made of ----------------------------------------------------------------------------------------------


def test_the_published_preset_is_the_papers() -> None:
    found = apga_run("published", {}, {})
    assert found == APGA_PRESETS["published"]
    assert (found.num_envs, found.epochs, found.patience, found.warm_start) == (25, 100, 15, True)
    env = {
        k: found.env[k] for k in ("action", "image_size", "reward_model", "judge_batch", "judge_lr", "fill", "repeat")
    }
    assert env == {
        "action": "pixel", "image_size": 224, "reward_model": "densenet169", "judge_batch": 25, "judge_lr": 1e-5,
        "fill": "zero", "repeat": 1,
    }  # fmt: skip
    agent = APGA(GridSpec((1, 224, 224), 224, 12544, pixels=True), device="cpu", **found.settings)
    assert isinstance(agent.policy, TernausNet11)
    s = agent.settings
    assert (s.loss_scale, s.penalty_none, s.penalty_all, s.baseline_decay) == (100, 0.1, 0.01, 0.5)
    assert (s.learning_rate, s.max_grad_norm, s.mirror, s.average) == (1e-5, 0, False, 0)


def test_without_a_preset_nothing_has_changed() -> None:
    found = apga_run("default", {"n": 3}, {"entropy": 0.1})
    env = {**apga_play({}), "n": 3}
    assert found == Preset(32, 20_000, None, 5_000, 0, False, env, {"entropy": 0.1})
    assert apga_run("default", {}, {"loss": "published"}).env["repeat"] == 1


def test_what_is_given_goes_before_the_preset() -> None:
    found = apga_run(
        "published", {"image_size": 64, "fill": "mean"}, {"learning_rate": 1.0}, total_timesteps=9, num_envs=2,
        checkpoint_every=7, patience=0, warm_start=False,
    )  # fmt: skip
    assert (found.total_timesteps, found.epochs) == (9, None)
    assert (found.num_envs, found.checkpoint_every, found.patience, found.warm_start) == (2, 7, 0, False)
    assert (found.env["image_size"], found.env["fill"], found.env["action"]) == (64, "mean", "pixel")
    assert (found.settings["learning_rate"], found.settings["network"]) == (1.0, "ternausnet")
    assert apga_run("published", {}, {}, epochs=3).epochs == 3
    assert apga_run("default", {}, {}, epochs=3).total_timesteps is None
    # Given to it, a judge has been trained; frozen, it does not learn.
    assert not apga_run("published", {"reward_model": "a.safetensors"}, {}).warm_start
    assert apga_run("published", {"reward_model": "a.safetensors"}, {}, warm_start=True).warm_start
    frozen = apga_run("published", {"reward_model": "a.safetensors", "joint": False}, {})
    assert (frozen.patience, frozen.warm_start) == (0, False)
    assert not {"judge_lr", "judge_batch"} & frozen.env.keys()
    with pytest.raises(ConfigurationError, match="give one of them"):
        apga_run("default", {}, {}, total_timesteps=3, epochs=3)
    with pytest.raises(ConfigurationError, match="'authors'"):
        apga_run("authors", {}, {})


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_is_warmed_up_looked_at_and_recorded(run: Path) -> None:
    asked = config(run)["asked"]
    assert (asked["patience"], asked["warm_start"], asked["num_envs"]) == (15, True, 4)
    assert asked["env"]["action"] == "pixel"
    assert config(run)["resolved"]["settings"]["loss"] == "published"
    found = json.loads((run / "results.json").read_text())
    assert found["timesteps"] == 2 * 28
    assert found["judge.epochs"] == 2
    assert {
        "judge.start.val.loss",
        "judge.start.val.epoch",
        "judge.val.accuracy",
        "val.retention.agent",
    } <= found.keys()
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["judge/val.loss"]) for row in csv.DictReader(file)]
    assert np.isfinite(losses).nonzero()[0].tolist() == [6, 13]
    assert found["judge.val.loss"] == pytest.approx(np.nanmin(losses), rel=1e-6)
    # The judge that the game started with is another one by now.
    start, about = load_judge(run / "judge_start.safetensors")
    assert about["val"]["loss"] == found["judge.start.val.loss"]
    assert not same(dict(start.state_dict()), dict(load_judge(run / "judge.safetensors")[0].state_dict()))


@pytest.mark.parametrize("when", ["during", "after", "later"])
def test_a_kill_before_or_after_the_warm_start_is_made_up_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    fit, log = fit_until_converged, RunFolder.log

    def killed(*arguments: Any, **keywords: Any) -> Any:
        fit(*arguments, **keywords)
        raise KeyboardInterrupt

    def stopped(self: RunFolder, step: int, *arguments: Any, **keywords: Any) -> None:
        log(self, step, *arguments, **keywords)
        if step == (4 if when == "after" else 40):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if when == "during":
            patched.setattr(starting, "fit_until_converged", killed)
        else:
            patched.setattr(RunFolder, "log", stopped)
        assert train(tmp_path / "r") == 130
    assert (tmp_path / "r" / starting.START).exists() == (when != "during")
    if when != "during":
        monkeypatch.setattr(starting, "fit_until_converged", None)  # it is not repeated
    assert train(tmp_path / "r", "--resume") == 0
    for name in FILES:
        assert (tmp_path / "r" / name).read_bytes() == (run / name).read_bytes(), name


def test_the_papers_judge_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "train", "apga", "--preset", "published", "--env.n", "36", "--env.image-size", "40", "--num-envs", "9",
        "--env.judge-batch", "9", "--warm-start", "False", "--epochs", "2", "--device", "cpu",
        "--agent.network", "grid",
    ]  # fmt: skip
    log = RunFolder.log

    def stopped(self: RunFolder, step: int, *arguments: Any, **keywords: Any) -> None:
        log(self, step, *arguments, **keywords)
        if step == 45:
            raise KeyboardInterrupt

    assert main([*words, "--out", str(tmp_path / "calm")]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", stopped)
        assert main([*words, "--out", str(tmp_path / "r")]) == 130
    assert main([*words, "--out", str(tmp_path / "r"), "--resume"]) == 0
    for name in ("masker.safetensors", "judge.safetensors", "metrics.csv", "results.json"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    judge, _ = load_judge(tmp_path / "r" / "judge.safetensors")
    assert isinstance(judge, DenseNet169)
    # What is left is for clean images; the game goes on with its own statistics.
    env = MaskVectorEnv(6, n=36, image_size=40, device="cpu", seed=0)
    held_out = env.evaluation().dataset
    scores = evaluate_classifier(judge, held_out)
    assert scores["loss"] == pytest.approx(evaluate_on_clean(judge, held_out, env.dataset.images)["loss"], rel=1e-6)
    last = newest(tmp_path / "r" / "checkpoints")
    assert last is not None
    played = read_state(last)["game"]["judging"]["reward_model"]["weights"]
    assert not same(played, dict(judge.state_dict()))


def test_it_plays_where_muras_files_are_not(tmp_path: Path) -> None:
    words = [*TINY[:2], *TINY[4:-4], "--env-id", "MaskAug-MURA-v0", "--warm-start", "False", "--total-timesteps", "8"]
    with pytest.warns(UserWarning, match="no real data"):
        assert main(["train", "apga", "--out", str(tmp_path / "r"), *words, "--device", "cpu"]) == 0
    assert config(tmp_path / "r")["resolved"]["data"]["source"] == "synthetic"


def test_a_judge_of_a_file_is_not_warmed_up_and_one_that_is_frozen_stays(tmp_path: Path) -> None:
    file = tmp_path / "judge.safetensors"
    assert main(["pretrain", "--out", str(file), "--updates", "3", "--env.n", "40", "--env.image-size", "40"]) == 0
    assert train(tmp_path / "joint", "--env.reward-model", str(file)) == 0
    assert not (tmp_path / "joint" / starting.START).exists()
    frozen = [x for x in TINY if x not in ("--env.judge-batch",)]
    frozen.remove("4")
    words = ["--out", str(tmp_path / "frozen"), *frozen, "--env.reward-model", str(file), "--env.joint", "False"]
    assert main(["train", "apga", *words]) == 0
    after = load_judge(tmp_path / "frozen" / "judge.safetensors")[0]
    assert same(dict(after.state_dict()), dict(load_judge(file)[0].state_dict()))


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--total-timesteps", "9"], "give one of them"),
        (["--patience", "-1"], "patience=-1"),
        (["--env.joint", "False"], "judge_lr and judge_batch"),
        (["--imagenet", "densenet.pth"], "imagenet is for reward_model='densenet169'"),
        (["--vgg11", "vgg11.pth"], "network='ternausnet'"),
        (["--ternausnet", "carvana.pth"], "network='ternausnet'"),
        (["--env.split", "val"], "split='val'"),
        (["--env.objective", "reconstruction"], "warm_start"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: list[str], cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "r", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cause in line
    assert not (tmp_path / "r").exists()


# ---- weights of others -----------------------------------------------------------------------------------------------


def game(**keywords: Any) -> MaskVectorEnv:
    return MaskVectorEnv(2, n=30, image_size=64, device="cpu", action="pixel", **keywords)


def test_the_judge_starts_from_imagenet(tmp_path: Path) -> None:
    trained = make_judge("densenet169", 1, 2, 7)
    assert isinstance(trained, DenseNet169)
    names = {n: n.replace("class_layers.out", "classifier").replace(".layers.", ".") for n in trained.net.state_dict()}
    save_file({names[n]: v for n, v in trained.net.state_dict().items()}, tmp_path / "densenet.safetensors")
    env = game(reward_model="densenet169")
    judge = env.game.reward_model.model
    before = {n: v.clone() for n, v in judge.state_dict().items()}
    starting.start_judge(env.game, None)
    assert same(before, dict(judge.state_dict()))
    starting.start_judge(env.game, str(tmp_path / "densenet.safetensors"))
    wanted = trained.state_dict()
    found = judge.state_dict()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted if "class_layers" not in n)
    assert not torch.equal(before["net.features.conv0.weight"], found["net.features.conv0.weight"])


def test_the_agent_starts_from_files_and_still_parts_the_pixels(tmp_path: Path) -> None:
    with seeded_weights(5):
        trained = TernausNet11(1)
    save_file(dict(trained.state_dict()), tmp_path / "whole.safetensors")
    vgg = {}
    for (name, value), place in zip(
        trained.encoder.named_parameters(), np.repeat([0, 3, 6, 8, 11, 13, 16, 18], 2), strict=True
    ):
        vgg[f"features.{place}.{name.rsplit('.', 1)[1]}"] = 3 * value.detach()
    vgg["features.0.weight"] = vgg["features.0.weight"].repeat(1, 3, 1, 1)
    save_file(vgg, tmp_path / "vgg11.safetensors")

    def agent() -> APGA:
        return APGA(game(), seed=0, device="cpu", loss="published", network="ternausnet")

    whole, encoder, none = agent(), agent(), agent()
    starting.start_agent(whole, {"ternausnet": str(tmp_path / "whole.safetensors")})
    starting.start_agent(encoder, {"vgg11": str(tmp_path / "vgg11.safetensors")})
    starting.start_agent(none, {"imagenet": "of no concern"})
    assert same(dict(whole.policy.state_dict()), dict(trained.state_dict()))
    assert same(dict(none.policy.state_dict()), dict(agent().policy.state_dict()))
    images = np.array(game().dataset.images)
    # The scores of an encoder of other weights are others: half of the pixels are marked all the same.
    assert (encoder.scores(images) > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert encoder.policy.state_dict()["head.bias"] != none.policy.state_dict()["head.bias"]
    other = MaskVectorEnv(2, n=30, image_size=40, device="cpu", objective="reconstruction", area=0.5)
    with pytest.raises(ConfigurationError, match="are for APGA"):
        starting.start_agent(IntelligentMasking(other, device="cpu"), {"vgg11": "x"})


def test_weights_from_files_reach_the_run(tmp_path: Path) -> None:
    with seeded_weights(5):
        save_file(dict(TernausNet11(1).state_dict()), tmp_path / "whole.safetensors")
    words = [
        *TINY[:-4], "--device", "cpu", "--agent.network", "ternausnet", "--env.image-size", "64", "--env.n", "24",
        "--warm-start", "False", "--patience", "0", "--agent.learning-rate", "1e-12",
    ]  # fmt: skip
    words = ["train", "apga", "--out", str(tmp_path / "r"), *words, "--ternausnet", str(tmp_path / "whole.safetensors")]
    assert main([*words, "--total-timesteps", "4"]) == 0
    assert config(tmp_path / "r")["asked"]["weights"] == {"ternausnet": str(tmp_path / "whole.safetensors")}
    policy = load_agent(tmp_path / "r" / "masker.safetensors", device="cpu").predictor
    wanted = load_file(tmp_path / "whole.safetensors")
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-8, rtol=0)
    # Whoever goes on has its weights in the checkpoint.
    (tmp_path / "whole.safetensors").unlink()
    assert main([*words, "--total-timesteps", "8", "--resume"]) == 0


# ---- test time -------------------------------------------------------------------------------------------------------


def test_evaluate_scores_the_judge_and_averages_on_demand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    found = json.loads((run / "results.json").read_text())
    assert {"judge.test.accuracy", "judge.test.loss"} <= found.keys()
    assert not any(".tta." in k for k in found)
    assert f"loss {found['judge.test.loss']:.3f}" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--device", "cpu", "--tta"]) == 0
    found = json.loads((run / "results.json").read_text())
    assert found["judge.test.tta.loss"] != found["judge.test.loss"]
    assert "with its aiding views" in capsys.readouterr().out


def test_a_reconstructor_has_no_softmax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--out",
        str(tmp_path / "im"),
        "--env-id",
        "MaskAug-Synthetic-v0",
        "--env.n",
        "60",
        "--env.image-size",
        "40",
    ]
    words += ["--env.grid", "5", "--num-envs", "4", "--total-timesteps", "16", "--device", "cpu"]
    assert main(["train", "intelligent-masking", *words]) == 0
    assert main(["evaluate", str(tmp_path / "im"), "--device", "cpu", "--tta"]) == 2
    assert "tta" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "im"), "--device", "cpu"]) == 0
    assert not any(k.startswith("judge.") for k in json.loads((tmp_path / "im" / "results.json").read_text()))


def thresholded(size: int = 16) -> APGA:
    data = pictures(12, size=size)
    env = MaskVectorEnv(
        4, dataset=data, action="pixel", grid=4, device="cpu", joint=False, reward_model=BrightnessJudge()
    )
    return APGA(env, device="cpu", loss="published", width=8, mirror=False)


def test_the_average_is_the_hand_computed_one() -> None:
    data, judge, agent = pictures(12), BrightnessJudge(), thresholded()

    def averaged_scores(fill: str) -> dict[str, float]:
        return score_logits(averaged_logits(judge, data, torch.device("cpu"), agent, fill), data)

    images = torch.from_numpy(data.images)
    marked = torch.from_numpy(agent.scores(np.asarray(data.images))) > 0
    assert 0.3 < marked.float().mean() < 0.7
    assert torch.equal(chosen_masks(agent, images), marked)
    with torch.no_grad():
        aiding = keep(images, marked, torch.zeros((), dtype=torch.uint8))
        p = (judge(to_float(images)).softmax(1) + judge(to_float(aiding)).softmax(1)) / 2
    labels = torch.from_numpy(np.asarray(data.labels))
    found = averaged_scores("zero")
    assert found["loss"] == pytest.approx(-float(p[torch.arange(12), labels].log().mean()), rel=1e-5)
    assert found["accuracy"] == float((p.argmax(1) == labels).double().mean())
    for fill in ("mean", "noise"):
        other = averaged_scores(fill)
        assert other == averaged_scores(fill)
        assert other["loss"] != found["loss"]
    assert classifier_scores(judge, data, torch.device("cpu")).flat.keys() == {
        f"judge.all.{name}" for name in ("accuracy", "auroc", "loss")
    }


def test_other_losses_mark_their_best_cells() -> None:
    data = pictures(6, size=40)
    agent = APGA(GridSpec((1, 40, 40), 5, 6), device="cpu", width=8)
    images = torch.from_numpy(data.images)
    assert torch.equal(chosen_masks(agent, images), Masker(agent)(images))


# ---- masks of pixels -------------------------------------------------------------------------------------------------


def test_masks_of_pixels_are_reported_in_parts() -> None:
    agent, data, train_set = thresholded(), pictures(2 * FEW + 5, seed=1), pictures(9, seed=2)
    judge = ClassifierReward(BrightnessJudge(), "adversarial", torch.device("cpu"), trainable=False)
    found = report_on(agent, data, train_set, judge, "zero")
    whole = mask_report(all_scores(agent, data), data, train_set, agent.spec, judge=judge)
    assert (found.images, found.area) == (len(data), whole.area)
    for measure in ("retention", "gain"):
        ours, theirs = getattr(found, measure), getattr(whole, measure)
        assert ours.keys() == theirs.keys()
        for name in ("agent", "centre", "mean_region", "ceiling"):
            # The same images, and the same masks on them.
            assert name not in ours or ours[name] == pytest.approx(theirs[name], rel=1e-5), (measure, name)
    assert found.retention["swapped"] != whole.retention["swapped"]
    assert len(few_of(data)) == FEW
    assert len(few_of(data.subset(range(7)))) == 7


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_the_presets_step_is_measured() -> None:
    ours, floor, images = apga_published(2, torch.device("cpu"), 6, image_size=64, reward_model="small")
    assert images == 2
    assert all((one > 0).all() for one in in_turn((ours, floor), 2))
