"""What a mask earns, against values computed by hand; and how the judge learns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, FlatJudge, pictures, small
from torch import Tensor, nn

from maskaug.benchmarks.masks import gains
from maskaug.envs.ensemble import Ensemble
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.judging import frozen_reward
from maskaug.envs.rewards import ClassifierReward

CPU = torch.device("cpu")


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


def test_adversarial_terms_by_hand() -> None:
    reward = ClassifierReward(BrightnessJudge(4.0), "adversarial", CPU, trainable=False)
    clean = torch.stack([torch.full((1, 2, 2), 255), torch.full((1, 2, 2), 51)]).to(torch.uint8)
    hidden = torch.stack([torch.tensor([[[0, 0], [255, 255]]]), torch.zeros(1, 2, 2)]).to(torch.uint8)
    labels = torch.tensor([1, 0])
    terms = reward.score(hidden, reward.answers(clean), labels)
    # logits (0, 4 · mean): the first image goes from mean 1 to ½ with label 1, the second from 1/5 to 0 with label 0.
    loss_clean, loss_hidden = [log1pexp(-4), log1pexp(0.8)], [log1pexp(-2), math.log(2)]
    assert set(terms) == set(reward.terms) == {"loss_clean", "loss_hidden", "gain"}
    assert terms["loss_clean"].tolist() == pytest.approx(loss_clean, rel=1e-5)
    assert terms["loss_hidden"].tolist() == pytest.approx(loss_hidden, rel=1e-5)
    assert terms["gain"].tolist() == pytest.approx([b - a for a, b in zip(loss_clean, loss_hidden, strict=True)])
    assert terms["gain"][0] > 0 > terms["gain"][1]


def test_preserving_judges_the_aiding_view_by_hand() -> None:
    image = np.full((1, 1, 16, 16), 255, np.uint8)
    data = dataclasses.replace(
        pictures(1), images=image, labels=np.ones(1, np.int64), regions=None, class_names=("a", "b")
    )
    keywords: dict[str, Any] = {"dataset": data, "grid": 4, "objective": "preserving", "area_price": 2.0}
    env = MaskEnv(**keywords, joint=False, reward_model=BrightnessJudge(4.0), repeat=9)
    env.reset(seed=0)
    # A quarter is kept: the log-odds fall from 4 to 1, and the quarter has no price.
    action = np.zeros(16)
    action[:4] = 1
    hidden, reward, _, _, info = env.step(action)
    assert (info["loss_clean"], info["loss_kept"]) == pytest.approx((log1pexp(-4), log1pexp(-1)), rel=1e-5)
    assert (info["gain"], reward) == pytest.approx((log1pexp(-4) - log1pexp(-1),) * 2, rel=1e-5)
    assert info["gain"] < 0
    # What is seen is the image without the selection, as in every objective.
    assert hidden[0, :4].max() == 0 < hidden[0, 4:].min()
    env.reset()
    assert env.step(np.ones(16))[1] == pytest.approx(-2.0)
    env.reset()
    assert env.step(np.zeros(16))[1] == pytest.approx(log1pexp(-4) - math.log(2) - 2.0)


def test_both_judges_both_views_by_hand() -> None:
    image = np.full((1, 1, 16, 16), 255, np.uint8)
    data = dataclasses.replace(
        pictures(1), images=image, labels=np.ones(1, np.int64), regions=None, class_names=("a", "b")
    )
    judge = BrightnessJudge(4.0)
    env = MaskEnv(
        dataset=data, grid=4, objective="both", joint=False, reward_model=judge, repeat=9, fill="zero", area_price=0
    )
    env.reset(seed=0)
    judge.seen.clear()
    # A quarter is selected: the log-odds fall from 4 to 3 without it, and to 1 with nothing else.
    hidden, reward, _, _, info = env.step(np.arange(16) < 4)
    terms = [info[name] for name in ("loss_clean", "loss_hidden", "loss_kept")]
    assert terms == pytest.approx([log1pexp(-4), log1pexp(-3), log1pexp(-1)], rel=1e-5)
    assert (info["gain"], reward) == pytest.approx((log1pexp(-3) - log1pexp(-1),) * 2, rel=1e-5)
    assert hidden[0, :4].max() == 0 < hidden[0, 4:].min()
    # The clean image, and then both views in one pass.
    assert judge.seen == [1, 2]
    # All of the image is needed and enough; none of it neither.
    for action, gain in ((np.ones(16), math.log(2) - log1pexp(-4)), (np.zeros(16), log1pexp(-4) - math.log(2))):
        env.reset()
        assert env.step(action)[1] == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize("more", [{}, {"fill": "noise", "repeat": 2}, {"fill": "mean", "tensors": True}])
def test_both_is_the_sum_of_its_halves(more: dict[str, Any]) -> None:
    data = pictures(8)
    action: Any = np.random.default_rng(0).random((3, 16)) < 0.3
    earned = []
    for objective in ("adversarial", "preserving", "both"):
        env = MaskVectorEnv(
            3, dataset=data, grid=4, objective=objective, area_price=0, joint=False, reward_model=FlatJudge(data),
            device="cpu", **more,
        )  # fmt: skip
        env.reset(seed=0)
        reward: Any = env.step(torch.from_numpy(action) if more.get("tensors") else action)[1]
        earned.append(torch.as_tensor(reward))
    torch.testing.assert_close(earned[0] + earned[1], earned[2], rtol=1e-4, atol=1e-5)


def test_every_action_and_every_mask_earn_both_as_their_step_does() -> None:
    data = pictures(8)
    keywords: dict[str, Any] = {"joint": False, "reward_model": FlatJudge(data), "fill": "mean"}
    env = MaskVectorEnv(3, dataset=data, grid=4, objective="both", action="patch", device="cpu", **keywords)
    env.reset(seed=0)
    action, index = np.array([3, 5, 0]), env.game.index
    table = env.game.action_rewards(chunk=4)
    cells = env.game.rule.to_cells(action, 3)
    earned = gains({"x": [cells]}, data.subset(index), env.game.reward_model, "mean")["x"]
    reward = env.step(action)[1]
    np.testing.assert_allclose(table[np.arange(3), action], reward, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(earned, reward, rtol=1e-4, atol=1e-6)


def test_every_objective_learns_from_the_aiding_view_as_adversarial_does() -> None:
    data = pictures(4)
    learnt = []
    for objective in ("adversarial", "preserving", "both"):
        env = MaskVectorEnv(2, dataset=data, grid=4, objective=objective, judge_batch=2, reward_model=FlatJudge(data))
        env.reset(seed=0)
        env.step(np.eye(16)[:2])
        learnt.append(torch.cat([p.detach().flatten() for p in env.game.reward_model.model.parameters()]))
    assert torch.equal(learnt[0], learnt[1])
    assert torch.equal(learnt[0], learnt[2])


def test_sensitivity_by_hand_and_without_labels() -> None:
    class Three(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            m = images.mean((1, 2, 3))
            return torch.stack([m, 2 * m, 6 * m + 1], 1)

    reward = ClassifierReward(Three(), "sensitivity", CPU, trainable=False)
    clean, hidden = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    terms = [reward.score(hidden, reward.answers(clean), torch.tensor([label])) for label in (0, 1, 2)]
    # clean (1, 2, 7) centred (−7/3, −4/3, 11/3); hidden (0, 0, 1) centred (−1/3, −1/3, 2/3): changes 2, 1, 3
    assert [set(t) for t in terms] == [{"gain"}] * 3 == [set(reward.terms)] * 3
    assert [t["gain"].item() for t in terms] == pytest.approx([6, 6, 6])
    two = ClassifierReward(BrightnessJudge(4.0), "sensitivity", CPU, trainable=False)
    assert two.score(hidden, two.answers(clean), torch.tensor([0]))["gain"].item() == pytest.approx(4)


class Featured(BrightnessJudge):
    """Penultimate features (mean of the image, 2 · its mean), or with `maps` the image itself."""

    def __init__(self, maps: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.maps, self.scale = maps, scale

    def features(self, images: Tensor) -> Tensor:
        mean = self.scale * images.mean((1, 2, 3))
        return images if self.maps else torch.stack([mean, 2 * mean], 1)


def test_sensitivity_of_features_by_hand() -> None:
    reward = ClassifierReward(Featured(), "sensitivity", CPU, trainable=False, sensitivity="features")
    clean = torch.stack([torch.full((1, 2, 2), 255), torch.full((1, 2, 2), 51), torch.zeros(1, 2, 2)]).to(torch.uint8)
    hidden = torch.stack([torch.tensor([[[0, 0], [255, 0]]]), torch.zeros(1, 2, 2), torch.full((1, 2, 2), 51)])
    assert torch.allclose(reward.answers(clean), torch.tensor([[1, 2], [0.2, 0.4], [0, 0]]))
    gain = reward.score(hidden.to(torch.uint8), reward.answers(clean), torch.zeros(3, dtype=torch.int64))["gain"]
    # The mean falls from 1 to ¼ and from 1/5 to 0: by ¾ and by all of it. Of nothing, anything is a million times more.
    assert gain.tolist() == pytest.approx([0.75, 1, 0.2 * math.sqrt(5) / 1e-6], rel=1e-4)
    # It does not matter in which units a judge thinks; of two judges the changes are averaged.
    other = Ensemble([Featured(), Featured(scale=100)])
    two = ClassifierReward(other, "sensitivity", CPU, trainable=False, sensitivity="features")
    assert two.answers(clean).shape == (3, 4)
    half = two.score(hidden.to(torch.uint8), two.answers(clean), torch.zeros(3, dtype=torch.int64))["gain"]
    assert half[:2].tolist() == pytest.approx([0.75, 1], rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"tensors": True}, {"repeat": 2}, {"steps": 2}])
def test_the_environment_compares_features_by_hand(more: dict[str, Any]) -> None:
    data = pictures(4)
    env = MaskVectorEnv(
        2, dataset=data, grid=4, objective="sensitivity", sensitivity="features", area_price=0, joint=False,
        reward_model=Featured(), device="cpu", **more,
    )  # fmt: skip
    _, info = env.reset(seed=0)
    cells = np.zeros((2, 16), np.bool_)
    cells[0, :4] = cells[1, :1] = True
    images = torch.from_numpy(data.images)[torch.as_tensor(info["index"])].double()
    lost = torch.stack([images[0, :, :4].sum(), images[1, :, :4, :4].sum()]) / images.sum((1, 2, 3))
    action: Any = torch.from_numpy(cells) if more.get("tensors") else cells
    reward = env.step(action)[1]
    assert torch.as_tensor(reward).tolist() == pytest.approx(lost.tolist(), rel=1e-4)


def test_features_are_computed_once_for_a_clean_image() -> None:
    class Counting(Featured):
        def features(self, images: Tensor) -> Tensor:
            counts.append(len(images))
            return super().features(images)

    counts: list[int] = []
    env = MaskVectorEnv(
        2, dataset=pictures(2), grid=4, objective="sensitivity", sensitivity="features", joint=False,
        reward_model=Counting(),
    )  # fmt: skip
    env.reset(seed=0)
    counts.clear()
    for _ in range(3):
        env.step(np.ones((2, 16)))
    # Both slots see both images, in different orders perhaps: each image's own features are asked for once.
    assert sum(counts) == 2 + 3 * 2


def test_features_that_are_none_say_what_would_do() -> None:
    for judge, words in ((BrightnessJudge(), "BrightnessJudge has none"), (Featured(maps=True), "pool its maps")):
        with pytest.raises(ConfigurationError, match=words):
            MaskEnv(
                dataset=pictures(), grid=4, objective="sensitivity", sensitivity="features", joint=False,
                reward_model=[Featured(), judge],
            )  # fmt: skip
    with pytest.raises(ConfigurationError, match="does nothing with objective='reconstruction'"):
        frozen_reward(BrightnessJudge(), "reconstruction", CPU, "features")
    assert ClassifierReward(Featured(), "sensitivity", CPU, trainable=False).sensitivity == "output"
    kept = frozen_reward(Featured(), "sensitivity", CPU, "features")
    assert isinstance(kept, ClassifierReward)
    assert kept.sensitivity == "features"


def test_an_evaluation_compares_what_its_game_compares() -> None:
    data = pictures(4)
    env = MaskVectorEnv(
        2, dataset=data, grid=4, objective="sensitivity", sensitivity="features", joint=False, reward_model=Featured()
    )
    assert env.evaluation(dataset=data).game.sensitivity == "features"


def test_the_environments_reward_is_gain_minus_price() -> None:
    data = pictures(4)
    env = MaskEnv(
        dataset=data, grid=4, area=0.25, area_price=3.0, joint=False, reward_model=BrightnessJudge(4.0), repeat=9
    )
    observation, info = env.reset(seed=1)
    mean, label = float(observation.mean()) / 255, info["label"]
    sign = -1 if label == 1 else 1
    for chosen in ([], [0, 5], [1, 2, 3, 4], range(16)):
        action = np.zeros(16, np.int8)
        action[list(chosen)] = 1
        hidden, reward, _, _, info = env.step(action)
        kept = observation.copy()
        for cell in chosen:
            top, left = 4 * (cell // 4), 4 * (cell % 4)
            kept[:, top : top + 4, left : left + 4] = 0
        np.testing.assert_array_equal(hidden, kept)
        area = len(chosen) / 16
        price = 3 * (max(0, 0.25 - area) / 0.25) ** 2 + 3 * (max(0, area - 0.25) / 0.75) ** 2
        gain = log1pexp(sign * 4 * kept.mean() / 255) - log1pexp(sign * 4 * mean)
        assert info["area"] == area
        assert info["gain"] == pytest.approx(gain, abs=1e-5)
        assert info["price"] == pytest.approx(price, abs=1e-6)
        assert reward == pytest.approx(gain - price, abs=1e-5)
        env.reset()


def test_a_price_of_zero_is_no_term() -> None:
    env = MaskEnv(dataset=pictures(), grid=4, area_price=0)
    _, info = env.reset(seed=0)
    assert "price" not in info
    _, reward, _, _, info = env.step(np.ones(16))
    assert "price" not in info
    assert reward == info["gain"]


class Moody(nn.Module):
    """Dropout and batch norm: in training mode every pass gives something else and changes the statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), self.norm, nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(4 * 14 * 14, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images))
        return logits


@pytest.mark.parametrize("joint", [False, True])
def test_an_empty_mask_is_worth_exactly_minus_the_price(joint: bool) -> None:
    model = Moody().train()
    env = MaskEnv(dataset=pictures(), grid=4, joint=joint, judge_batch=3 if joint else None, reward_model=model)
    env.reset(seed=0)
    for _ in range(12):
        model.train()  # as somebody else's training loop may have left it
        _, reward, _, _, info = env.step(np.zeros(16))
        assert (info["gain"], reward) == (0.0, -1.0)
        env.reset()
    updates = env.game.reward_model.version
    assert updates == (4 if joint else 0)
    assert model.norm.num_batches_tracked == updates


def test_rewards_draw_nothing_from_torchs_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    env = MaskVectorEnv(2, dataset=pictures(), grid=4, fill="noise", judge_batch=2)
    env.reset(seed=0)
    env.step(np.ones((2, 16)))
    assert torch.equal(torch.get_rng_state(), before)


def test_update_lowers_the_loss_of_both_views_and_counts() -> None:
    data = pictures(8)
    assert data.labels is not None
    reward = ClassifierReward(FlatJudge(data), "adversarial", CPU, trainable=True, lr=1e-3)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    aiding = torch.where(images > 100, images, torch.zeros_like(images))

    def losses() -> list[float]:
        loss = nn.functional.cross_entropy
        return [float(loss(reward.answers(x), labels)) for x in (images, aiding)]

    before = losses()
    assert reward.update(images, aiding, labels)["judge_loss"] == pytest.approx(sum(before) / 2, rel=1e-5)
    for _ in range(30):
        reward.update(images, aiding, labels)
    assert all(after < start for after, start in zip(losses(), before, strict=True))
    assert reward.version == 31
    assert not reward.model.training


def test_what_cannot_learn_is_refused() -> None:
    data = pictures(2)
    images, labels = torch.from_numpy(data.images), torch.tensor([0, 1])
    frozen = ClassifierReward(FlatJudge(data), "adversarial", CPU, trainable=False)
    with pytest.raises(ConfigurationError, match="joint=True"):
        frozen.update(images, images, labels)
    with pytest.raises(ConfigurationError, match="joint=False"):
        ClassifierReward(FlatJudge(data).requires_grad_(False), "adversarial", CPU, trainable=True)
    with pytest.raises(ConfigurationError, match="'adversarial', 'preserving', 'both', 'sensitivity'"):
        ClassifierReward(FlatJudge(data), "reconstruction", CPU, trainable=False)


def test_a_loss_that_is_not_finite_never_reaches_the_weights() -> None:
    data = pictures(2)
    judge = FlatJudge(data)
    reward = ClassifierReward(judge, "adversarial", CPU, trainable=True)
    images, labels = torch.from_numpy(data.images), torch.tensor([0, 1])
    judge.register_forward_hook(lambda module, args, output: output * math.nan)
    before = judge.linear.weight.detach().clone()
    with pytest.raises(JudgeError, match="lower judge_lr"):
        reward.update(images, images, labels)
    assert torch.equal(judge.linear.weight, before)
    assert reward.version == 0


def test_state_continues_to_the_bit() -> None:
    data = pictures(8)
    assert data.labels is not None
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)

    def make(seed: int) -> ClassifierReward:
        return ClassifierReward(small(data, seed), "adversarial", CPU, trainable=True, lr=1e-2)

    one, other = make(0), make(1)
    one.update(images, images, labels)
    state = one.state()
    other.load_state(state)
    assert other.version == 1
    ends: list[Any] = []
    for reward in (one, other):
        reward.update(images, images // 2, labels)
        ends.append(reward.answers(images))
    assert torch.equal(*ends)
    # Neither of the two has written into what was saved.
    other.load_state(state)
    other.update(images, images // 2, labels)
    assert torch.equal(other.answers(images), ends[0])


def test_the_weights_version_sees_every_change() -> None:
    data = pictures(2)
    model = Moody()
    reward = ClassifierReward(model, "adversarial", CPU, trainable=True)
    images, labels = torch.from_numpy(data.images), torch.tensor([0, 1])
    seen = [reward.weights_version()]
    reward.answers(images)
    assert reward.weights_version() == seen[0]
    reward.update(images, images, labels)
    seen.append(reward.weights_version())
    model.load_state_dict(Moody().state_dict())
    seen.append(reward.weights_version())
    with torch.no_grad():
        model.head.bias.add_(1)
    seen.append(reward.weights_version())
    assert seen == sorted(set(seen))
