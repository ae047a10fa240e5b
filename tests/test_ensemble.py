"""Several judges as one: what they say together, how each learns, and how they are named and kept."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, reconstructor, same, small
from gymnasium.envs.registration import EnvSpec
from torch import Tensor, nn

import maskaug
from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.saliency import InputGradient
from maskaug.benchmarks.masks import gains
from maskaug.benchmarks.training import train
from maskaug.cli import main
from maskaug.envs.ensemble import Ensemble
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.files import write_safetensors
from maskaug.envs.judges import load_judge, make_judge, resolve_judge, save_judge
from maskaug.envs.networks import SmallClassifier
from maskaug.envs.rewards import ClassifierReward

CPU = torch.device("cpu")
DATA = pictures(8)
SHAPE = (1, 36, 36)
OBJECTIVES = ("adversarial", "preserving", "both", "sensitivity")
Game = dict[str, Any]


def two() -> list[nn.Module]:
    return [FlatJudge(DATA, 0), FlatJudge(DATA, 1)]


def play(**more: Any) -> Game:
    return {"dataset": DATA, "grid": 4, "device": "cpu", **more}


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


# ---- the network -----------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """The same logits, and the same features, for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor([float(x) for x in logits])

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.repeat(len(images), 1)

    def features(self, images: Tensor) -> Tensor:
        return self.logits[:2].repeat(len(images), 1)


def test_one_classifier_of_many_is_the_mean_of_centred_logits() -> None:
    ensemble = Ensemble([Constant(1, 2, 6), Constant(0, -4, 1)])
    images = torch.zeros(2, 1, 4, 4)
    assert ensemble.each(images).tolist() == [[[1, 2, 6]] * 2, [[0, -4, 1]] * 2]
    # centred: (−2, −1, 3) and (1, −3, 2)
    assert ensemble(images).tolist() == [[-0.5, -2, 2.5]] * 2
    assert ensemble.features(images).tolist() == [[1, 2, 0, -4]] * 2


def test_members_of_members_are_members() -> None:
    a, b, c = Constant(0, 1), Constant(1, 0), Constant(2, 0)
    ensemble = Ensemble([Ensemble([a, b]), c])
    assert list(ensemble.judges) == [a, b, c]
    for wrong in ([], [a], [a, a], [Ensemble([a, b]), b]):
        with pytest.raises(ConfigurationError, match="at least two networks, each of them once"):
            Ensemble(wrong)


# ---- what they say ---------------------------------------------------------------------------------------------------


def test_terms_are_means_of_the_members_terms_by_hand() -> None:
    judges = [BrightnessJudge(4.0), BrightnessJudge(-2.0)]
    image = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    half = torch.tensor([[[[0, 0], [255, 255]]]], dtype=torch.uint8)
    label = torch.tensor([1])
    terms = {}
    for objective in OBJECTIVES:
        reward = ClassifierReward(Ensemble(judges), objective, CPU, trainable=False)
        assert reward.answers(image).shape == (1, 4)
        shown = torch.cat([half, half // 5]) if objective == "both" else half
        terms[objective] = {k: v.item() for k, v in reward.score(shown, reward.answers(image), label).items()}
        assert set(terms[objective]) == set(reward.terms)
    # logits (0, 4 · mean) and (0, −2 · mean); the mean falls from 1 to ½
    clean, masked = (log1pexp(-4) + log1pexp(2)) / 2, (log1pexp(-2) + log1pexp(1)) / 2
    kept = (log1pexp(-0.4) + log1pexp(0.2)) / 2
    expected = {
        "adversarial": {"loss_clean": clean, "loss_hidden": masked, "gain": masked - clean},
        "preserving": {"loss_clean": clean, "loss_kept": masked, "gain": clean - masked},
        "both": {"loss_clean": clean, "loss_hidden": masked, "loss_kept": kept, "gain": masked - kept},
        # The changes are −2 and +1: the size of their mean would be ½.
        "sensitivity": {"gain": 1.5},
    }
    assert terms == {name: pytest.approx(values, rel=1e-5) for name, values in expected.items()}


def rounds(env: MaskVectorEnv, count: int = 6) -> list[dict[str, Any]]:
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(count):
        action: Any = rng.random((env.num_envs, 16)) < 0.3
        if env.game.tensors:
            action = torch.from_numpy(action)
        _, reward, _, _, info = env.step(action)
        found = {**info, **info.get("final_info", {})}
        found = {"reward": reward, **{k: found[k] for k in env.game.reward_model.terms}}
        seen.append({k: torch.as_tensor(v).numpy() for k, v in found.items()})
    return seen


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("more", [{}, {"repeat": 2, "fill": "noise"}, {"steps": 2}, {"tensors": True}])
def test_a_game_of_two_pays_the_mean_of_two_games(objective: str, more: Game) -> None:
    judges = two()
    envs = [
        MaskVectorEnv(3, **play(objective=objective, joint=False, reward_model=judge, **more))
        for judge in (*judges, judges)
    ]
    first, second, both = (rounds(env) for env in envs)
    for one, other, together in zip(first, second, both, strict=True):
        for name, values in together.items():
            np.testing.assert_allclose(values, (one[name] + other[name]) / 2, rtol=1e-4, atol=1e-5)
    assert any((one["gain"] != other["gain"]).all() for one, other in zip(first, second, strict=True))
    if not more:
        # The single environment is the same game.
        alone = MaskEnv(**play(objective=objective, joint=False, reward_model=judges))
        alone.reset(seed=3)
        reward = alone.step(np.random.default_rng(0).random((3, 16))[0] < 0.3)[1]
        assert reward == pytest.approx(both[0]["reward"][0], rel=1e-4, abs=1e-6)


def test_clean_images_are_judged_once_by_each() -> None:
    judges = [BrightnessJudge(4.0), BrightnessJudge(1.0)]
    env = MaskVectorEnv(2, **play(joint=False, reward_model=judges, repeat=3))
    env.reset(seed=0)
    for judge in judges:
        judge.seen.clear()
    for _ in range(3):
        env.step(np.ones((2, 16)))
    assert [judge.seen for judge in judges] == [[2, 2, 2, 2]] * 2


def test_every_action_and_every_mask_earns_what_its_step_earns() -> None:
    env = MaskVectorEnv(2, **play(joint=False, action="patch", reward_model=two()))
    env.reset(seed=0)
    table, index = env.game.action_rewards(), env.game.index
    cells = env.game.rule.to_cells(np.array([3, 5]), 2)
    earned = gains({"x": [cells]}, DATA.subset(index), env.game.reward_model, "zero")["x"]
    reward = env.step(np.array([3, 5]))[1]
    np.testing.assert_allclose(table[[0, 1], [3, 5]], reward, rtol=1e-5)
    np.testing.assert_allclose(earned, reward, rtol=1e-5)


def test_others_see_one_classifier() -> None:
    env = MaskVectorEnv(2, **play(joint=False, reward_model=two()))
    model = env.game.reward_model.model
    scores = InputGradient(GridSpec((1, 16, 16), 4, 4), model).scores(np.asarray(DATA.images))
    assert scores.shape == (8, 4, 4)
    held_out = env.evaluation(dataset=DATA)
    assert held_out.game.reward_model.model is model


# ---- how they learn --------------------------------------------------------------------------------------------------


def test_each_member_learns_as_it_would_alone() -> None:
    images = torch.from_numpy(DATA.images)
    labels = torch.from_numpy(np.array(DATA.labels))
    alone = [ClassifierReward(judge, "adversarial", CPU, trainable=True, lr=1e-3) for judge in two()]
    together = ClassifierReward(Ensemble(two()), "adversarial", CPU, trainable=True, lr=1e-3)
    for _ in range(3):
        losses = [reward.update(images, images // 2, labels)["judge_loss"] for reward in alone]
        assert together.update(images, images // 2, labels)["judge_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    # Half a gradient is the same Adam step: each has moved as if it had been by itself.
    for reward, judge in zip(alone, together.judges, strict=True):
        for a, b in zip(reward.model.parameters(), judge.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert together.version == 3


def test_a_member_left_in_training_mode_is_put_back() -> None:
    judges = [nn.Sequential(FlatJudge(DATA), nn.Dropout(0.5)), FlatJudge(DATA, 1)]
    env = MaskVectorEnv(2, **play(joint=False, reward_model=judges))
    env.reset(seed=0)
    for _ in range(5):
        judges[0].train()
        np.testing.assert_allclose(env.step(np.zeros((2, 16)))[4]["final_info"]["gain"], 0, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"objective": "sensitivity", "sensitivity": "features", "repeat": 2}])
def test_a_state_continues_to_the_bit(more: Game) -> None:
    def make(seed: int) -> MaskVectorEnv:
        return MaskVectorEnv(2, **play(reward_model=[small(DATA, seed), small(DATA, seed + 1)], judge_batch=2, **more))

    one, other = make(0), make(5)
    played = rounds(one)
    other.reset(seed=9)
    assert not same(one.game.state(), other.game.state())
    other.game.load_state(one.game.state())
    twin = copy.deepcopy(one)
    assert same(one.game.state(), other.game.state())
    assert same(one.game.state(), twin.game.state())
    actions = np.random.default_rng(1).integers(0, 2, (6, 2, 16))
    for action in actions:
        seen = one.step(action)
        assert same(seen, other.step(action))
        assert same(seen, twin.step(action))
    assert same(one.game.state(), other.game.state())
    assert one.game.reward_model.version > 0
    # A new game is the same game only from the same weights.
    assert not same(played, rounds(other))


def test_a_state_of_other_judges_is_refused() -> None:
    env = MaskVectorEnv(2, **play(reward_model=two()))
    env.reset(seed=0)
    state = env.game.state()
    for judges, said in (
        (FlatJudge(DATA), "reward_model='FlatJudge'"),
        ([FlatJudge(DATA), small(DATA)], r"reward_model='Ensemble\(FlatJudge, SmallClassifier\)'"),
    ):
        with pytest.raises(ConfigurationError, match=rf"'Ensemble\(FlatJudge, FlatJudge\)', and this .* has {said}"):
            MaskVectorEnv(2, **play(reward_model=judges)).game.load_state(state)


# ---- how they are named ----------------------------------------------------------------------------------------------


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def test_the_same_name_twice_is_two_judges_and_the_first_is_what_it_is_alone() -> None:
    alone = resolve_judge("small", SHAPE, 2, 7, joint=True)
    both = resolve_judge(["small", "small"], SHAPE, 2, 7, joint=True)
    assert isinstance(both, Ensemble)
    first, second = both.judges
    assert same(weights(alone), weights(first))
    assert not same(weights(first), weights(second))
    assert same(weights(both), weights(resolve_judge(("small", "small"), SHAPE, 2, 7, joint=True)))
    for seed in range(20):
        assert not same(weights(second), weights(make_judge("small", 1, 2, seed)))


def test_a_list_of_one_is_that_one() -> None:
    judge = small(DATA)
    assert resolve_judge([judge], DATA.shape, 2, 0, joint=False) is judge
    rebuilder = reconstructor(pictures(2, 40))
    assert resolve_judge([rebuilder], (1, 40, 40), None, 0, joint=False) is rebuilder


def test_names_files_and_modules_may_be_mixed(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    save_judge(path, make_judge("small", 1, 2, 3))
    module = make_judge("small", 1, 2, 4, width=8)
    both = resolve_judge(["small", path, module], SHAPE, 2, 0, joint=True)
    assert isinstance(both, Ensemble)
    assert same(weights(both.judges[1]), weights(make_judge("small", 1, 2, 3)))
    assert both.judges[2] is module


def test_what_cannot_be_an_ensemble_says_what_would(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    judge = make_judge("small", 1, 2, 3)
    save_judge(path, judge)
    same_file = tmp_path / "." / ".." / tmp_path.name / "judge.safetensors"
    cases: list[tuple[Any, int | None, bool, str]] = [
        ([], 2, True, "an empty list"),
        (["small", "small"], None, True, "for classifiers only"),
        ([judge, judge], 2, True, "the same judge twice"),
        ([path, same_file], 2, True, "the same judge twice"),
        ([Ensemble([judge, make_judge("small", 1, 2, 4)]), judge], 2, True, "the same judge twice"),
        (["small", None], 2, True, r"must be a name, .* or a list of these"),
        (["small", ["small"]], 2, True, r"must be a name, .* or a list of these"),
        (5, 2, True, r"reward_model=5 must be a name"),
        ([path, "small"], 2, False, "joint=False freezes the judge"),
        ([path, "resnet"], 2, True, "'resnet' is neither"),
        ([path, make_judge("small", 1, 3, 4)], 2, True, r"must return logits \(N, 2\)"),
    ]
    for given, classes, joint, words in cases:
        with pytest.raises(ConfigurationError, match=words):
            resolve_judge(given, SHAPE, classes, 0, joint=joint)


def test_gymnasium_knows_an_environment_of_several_by_its_spec() -> None:
    for given in (["small", "small"], ("small", "small")):
        env = gym.make("MaskAug-Synthetic-v0", n=20, image_size=40, reward_model=given)
        assert env.spec is not None
        again = gym.make(EnvSpec.from_json(env.spec.to_json()))
        seen = [one.reset(seed=0) and one.step(np.ones(64, np.int8))[1] for one in (env, again)]
        assert seen[0] == seen[1]
        assert isinstance(again.unwrapped.game.reward_model.model, Ensemble)  # type: ignore[attr-defined]


# ---- how they are kept -----------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "judges.safetensors"
    ensemble = Ensemble([make_judge("small", 1, 2, 0, width=8), make_judge("densenet169", 1, 2, 1)])
    save_judge(path, ensemble, data="pictures")
    loaded, about = load_judge(path)
    assert isinstance(loaded, Ensemble)
    assert same(dict(ensemble.state_dict()), dict(loaded.state_dict()))
    assert (about["data"], about["in_channels"], about["classes"]) == ("pictures", 1, 2)
    resolved = resolve_judge(path, SHAPE, 2, 0, joint=False)
    assert same(weights(resolved), weights(ensemble))
    with pytest.raises(ConfigurationError, match="1 channels and 2 classes, but the data has 3 channels"):
        resolve_judge(path, (3, 36, 36), 2, 0, joint=False)
    with pytest.raises(ConfigurationError, match="holds a classifier, and this objective needs a reconstructor"):
        resolve_judge(path, SHAPE, None, 0, joint=False)


def test_only_classifiers_of_one_kind_of_data_are_saved_together(tmp_path: Path) -> None:
    path = tmp_path / "judges.safetensors"
    judge = make_judge("small", 1, 2, 0)
    for other in (make_judge("small", 1, 3, 1), make_judge("small", 3, 2, 1), make_judge("small", 1, None, 0)):
        for members in ([judge, other], [other, judge]):
            with pytest.raises(ConfigurationError, match="not classifiers of the same channels and classes"):
                save_judge(path, Ensemble(members))
    with pytest.raises(ConfigurationError, match="BrightnessJudge is not one of MaskAug's judges"):
        save_judge(path, Ensemble([judge, BrightnessJudge()]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"members": []},
        {"members": None},
        {"members": 3},
        {"members": ["small", "small"]},
        {"members": [{"judge": "small", "width": 16}]},
        {"members": [{"judge": "small", "width": 16}, {"judge": "os.system", "width": 16}]},
        {"members": [{"judge": "small", "width": 16}, {"judge": "ensemble", "members": []}]},
        {"members": [{"judge": "small", "width": 16}, {"judge": "small", "width": 8}]},
        {"members": [{"judge": "small", "width": 16, "kind": "reconstructor"}] * 2, "classes": 3},
        {"classes": 3},
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, changes: Game) -> None:
    path = tmp_path / "judges.safetensors"
    save_judge(path, Ensemble([make_judge("small", 1, 2, 0), make_judge("small", 1, 2, 1)]))
    model, about = load_judge(path)
    write_safetensors(path, model.state_dict(), {"maskaug_judge": json.dumps({**about, **changes})})
    with pytest.raises(JudgeError, match=f"{path} does not hold what its header says"):
        load_judge(path)


# ---- agents and runs -------------------------------------------------------------------------------------------------


def test_a_policy_starts_from_the_first_member_that_fits() -> None:
    data = pictures(8, 40)
    judges = [FlatJudge(data), small(data, 1), small(data, 2)]
    env = MaskVectorEnv(4, dataset=data, grid=4, joint=False, reward_model=judges, device="cpu")
    agent: Any = APGA(env, seed=0, device="cpu", width=8)
    assert isinstance(judges[1], SmallClassifier)
    assert same(dict(agent.policy.trunk.state_dict()), dict(judges[1].trunk.state_dict()))
    env = MaskVectorEnv(4, dataset=data, grid=4, joint=False, reward_model=judges[:1] + two_flat(data), device="cpu")
    with pytest.raises(ConfigurationError, match=r"not Ensemble\(FlatJudge, FlatJudge\)"):
        APGA(env, seed=0, device="cpu", width=8, init="judge")


def two_flat(data: Any) -> list[nn.Module]:
    return [FlatJudge(data, 3)]


def test_a_run_with_several_judges_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maskaug.register_envs()
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        save_judge(tmp_path / f"{seed}.safetensors", make_judge("small", 1, 2, seed))
    words = [
        "train", "apga", "--out", "run", "--total-timesteps", "16", "--num-envs", "4", "--device", "cpu",
        "--env.n", "40", "--env.image-size", "40", "--env.objective", "sensitivity", "--env.sensitivity", "features",
        "--env.reward-model", "1.safetensors", "2.safetensors", "--env.joint", "False",
    ]  # fmt: skip
    assert main(words) == 0
    asked = json.loads((tmp_path / "run" / "config.json").read_text())["asked"]["env"]
    assert asked["reward_model"] == [str(tmp_path / "1.safetensors"), str(tmp_path / "2.safetensors")]
    loaded, about = load_judge(tmp_path / "run" / "judge.safetensors")
    assert isinstance(loaded, Ensemble)
    assert same(weights(loaded.judges[1]), weights(make_judge("small", 1, 2, 2)))
    said = json.loads((tmp_path / "run" / "results.json").read_text())
    assert main(["evaluate", "run", "--split", "val", "--device", "cpu"]) == 0
    # The same judges, and the same question to them.
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == pytest.approx(said)
    assert said["val.gain.agent"] > 0
    # The run's judges are one file from now on; of another seed they have seen what is held out.
    again: Game = {"n": 40, "image_size": 40, "joint": False, "reward_model": ["run/judge.safetensors"] * 2}
    with pytest.raises(ConfigurationError, match="another split"):
        train(
            "APGA", "MaskAug-Synthetic-v0", out=tmp_path / "other", total_timesteps=16, num_envs=4, seed=1,
            device="cpu", env=again, settings={}, checkpoint_every=100, resume=False, progress_bar=False,
        )  # fmt: skip
    assert about["seed"] == 0
