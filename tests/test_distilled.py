"""The distilled masker: what its maps are, that it finds a known answer, and that it is kept as the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import BrightnessJudge, pictures, same
from marker_game import MarkerJudge, joint_env
from torch import Tensor, nn

import maskaug
from maskaug.agents.agent import GridSpec
from maskaug.agents.distilled import Distilled, DistilledSettings
from maskaug.agents.gradients import gradient_map
from maskaug.agents.masker import Masker
from maskaug.benchmarks.training import train
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.ensemble import Ensemble
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import load_judge, make_judge, save_judge
from maskaug.envs.networks import SmallClassifier

TINY: dict[str, Any] = {"judges": 2, "judge_updates": 4, "width": 8}


class Corner(nn.Module):
    """Two classes; the log-odds are the sum of the top left pixel and half of the one right of it."""

    def forward(self, images: Tensor) -> Tensor:
        odds = images[:, :, 0, 0].sum(1) + 0.5 * images[:, :, 0, 1].sum(1)
        return torch.stack([torch.zeros_like(odds), odds], 1)


def test_the_map_by_hand() -> None:
    images = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)
    # Centred logits ± odds/2: gradients ½ and ¼ in the first cell of 2×2 pixels, mean 3/16; over 4 cells 3/64.
    one = gradient_map(nn.ModuleList([Corner()]), images, 2, mirror=False)
    assert one[0].tolist() == [[4, 0], [0, 0]]
    both = gradient_map(nn.ModuleList([Corner()]), images, 2, mirror=True)
    assert both[0].tolist() == [[2, 2], [0, 0]]
    # A judge that is four times as steep counts no more than others.
    two = gradient_map(nn.ModuleList([Corner(), BrightnessJudge(400.0)]), images, 2, mirror=False)
    assert two[0].tolist() == [[2.5, 0.5], [0.5, 0.5]]


def stripes(n: int, seed: int, size: int = 40, side: int = 8) -> ImageDataset:
    """Noise, and one square, the region, of stripes that lie (class 0) or stand (class 1)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.integers(90, 160, (n, 1, size, size)).astype(np.uint8)
    regions = np.zeros((n, size, size), np.bool_)
    standing = np.tile((np.arange(side) // 2 % 2 * 255).astype(np.uint8), (side, 1))
    for i in range(n):
        top, left = rng.integers(0, size - side + 1, 2)
        square = (i, slice(top, top + side), slice(left, left + side))
        images[:, 0][square] = standing if labels[i] else standing.T
        regions[square] = True
    names = tuple(f"stripes {i}" for i in range(n))
    return ImageDataset("stripes", images, labels, regions, np.arange(n), ("lying", "standing"), names)


def test_it_finds_the_stripes_without_looking_at_a_reward() -> None:
    env = MaskVectorEnv(32, dataset=stripes(256, 0), grid=5, device="cpu")
    env.step = None  # type: ignore[method-assign, assignment]
    agent = Distilled(env, seed=0, device="cpu", judges=2, judge_updates=150, width=16)
    agent.learn(2 * 150 * 32 + 200 * 32 * 2)
    held_out = stripes(100, 1)
    masks, regions = Masker(agent)(np.asarray(held_out.images)), held_out.regions
    assert regions is not None
    kept, swapped = (((m & regions).sum((1, 2)) / 64).mean() for m in (masks, np.roll(masks, 1, axis=0)))
    assert kept > 0.9
    assert swapped < 0.5


def test_its_judges_see_all_classes_where_it_plays_one() -> None:
    judge = MarkerJudge()
    env = MaskVectorEnv(8, dataset=stripes(40, 0), grid=5, joint=False, reward_model=judge, only_class="lying")
    agent = Distilled(env, seed=0, device="cpu", **TINY).learn(2 * 4 * 32 + 1)
    assert len(env.dataset) < len(env.game.whole) == 40
    assert agent.judges is not None
    assert len(agent.judges) == 2
    whole = Distilled(MaskVectorEnv(8, dataset=stripes(40, 0), grid=5), seed=0, device="cpu", **TINY)
    whole.learn(2 * 4 * 32 + 1)
    assert same(dict(agent.judges.state_dict()), dict(whole.judges.state_dict()))  # type: ignore[union-attr]


def test_each_judge_has_its_own_bag_and_every_pass_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskaug.agents import distilled

    bags: list[tuple[set[int], int]] = []

    def fit(judge: nn.Module, bag: Any, val: None, settings: Any, device: Any) -> None:
        bags.append((set(bag.groups.tolist()), settings.seed))
        judge.eval()

    monkeypatch.setattr(distilled, "fit_classifier", fit)
    data = pictures(20, size=40)
    env = MaskVectorEnv(4, dataset=data, grid=5, device="cpu")
    agent = Distilled(env, seed=0, device="cpu", judges=3, judge_updates=10, bag=0.5, width=8)
    agent.learn(3 * 10 * 32 + 2 * 3 * 4)
    assert [len(groups) for groups, _ in bags] == [10] * 3
    assert len({tuple(sorted(groups)) for groups, _ in bags}) == len({seed for _, seed in bags}) == 3
    assert (agent.updates, agent.num_timesteps) == (2, 984)
    with_all = Distilled(env, seed=0, device="cpu", judges=1, judge_updates=10, bag=1.0, width=8)
    with_all.learn(321)
    assert bags[-1][0] == set(range(20))


OTHER: dict[str, Any] = {
    "judges": 3, "bag": 0.5, "judge_updates": 6, "judge_lr": 1e-2, "learning_rate": 1e-3, "average": 0.5,
    "mirror": False, "place": False, "width": 16, "smooth": 1,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DistilledSettings)])
def test_every_setting_does_something(field: str) -> None:
    def scores(**settings: Any) -> Any:
        env = joint_env()
        agent = Distilled(env, seed=1, device="cpu", **{**TINY, **settings})
        return agent.learn(2 * 4 * 32 * 2).scores(env.dataset.images[:3])

    assert same(scores(), scores())
    assert not same(scores(), scores(**{field: OTHER[field]}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judges": 0}, "at least 1"), ({"bag": 0.0}, "bag"), ({"bag": 1.5}, "bag"), ({"judge_lr": 0.0}, "judge_lr"),
        ({"learning_rate": float("inf")}, "learning_rate"), ({"average": 1.0}, "average"), ({"width": 12}, "multiple"),
        ({"smooth": -1}, "at least 0"),
        ({"judges": "many"}, "integer"), ({"judge": 3}, "unknown setting judge"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Distilled(GridSpec((1, 40, 40), 5, 6), **settings)


def test_it_needs_labels_and_cells() -> None:
    data = dataclasses.replace(pictures(8, size=40), labels=None)
    env = MaskVectorEnv(2, dataset=data, grid=5, objective="reconstruction", device="cpu")
    with pytest.raises(ConfigurationError, match="has no labels"):
        Distilled(env, **TINY).learn(999)
    with pytest.raises(ConfigurationError, match="plays action='grid'"):
        Distilled(joint_env(action="patch"))


def test_it_is_saved_loaded_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    first = 2 * 4 * 32 + 8
    whole = Distilled(joint_env(), seed=0, device="cpu", **TINY).learn(first).learn(200)
    part = Distilled(joint_env(), seed=0, device="cpu", **TINY).learn(first)
    part.save_checkpoint(tmp_path / "c.safetensors")
    other = Distilled(joint_env(), seed=0, device="cpu", **TINY)
    other.load_checkpoint(tmp_path / "c.safetensors")
    other.learn(200)
    assert same(dict(whole.policy.state_dict()), dict(other.policy.state_dict()))
    images = joint_env().dataset.images[:4]
    other.save(tmp_path / "masker.safetensors")
    masker = maskaug.load_masker(tmp_path / "masker.safetensors")
    assert same(masker.agent.scores(images), other.scores(images))
    assert (masker(images).sum((1, 2)) == 6 * 64).all()


def test_it_goes_on_to_the_bit_where_maps_are_still_missing(tmp_path: Path) -> None:
    def agent() -> Distilled:
        env = MaskVectorEnv(4, dataset=stripes(40, 0), grid=5, device="cpu")
        return Distilled(env, seed=0, device="cpu", **TINY)

    whole = agent().learn(2 * 4 * 32 + 2 * 4 * 25)
    part = agent().learn(2 * 4 * 32 + 2 * 4 * 15)
    part.save_checkpoint(tmp_path / "c.safetensors")
    other = agent()
    other.load_checkpoint(tmp_path / "c.safetensors")
    other.learn(2 * 4 * 10)
    assert same(dict(whole.policy.state_dict()), dict(other.policy.state_dict()))


def test_a_length_that_trains_the_judges_alone_is_refused() -> None:
    agent = Distilled(joint_env(), seed=0, device="cpu", **TINY)
    with pytest.raises(ConfigurationError, match="would all go into the judges' training, which takes 256"):
        agent.learn(256)
    assert agent.num_timesteps == 0
    assert agent.learn(257).updates == 1


def test_its_own_judge_is_what_a_run_scores_with() -> None:
    agent = Distilled(joint_env(), seed=0, device="cpu", **TINY)
    assert agent.own_judge is None
    agent.learn(257)
    assert isinstance(agent.own_judge, Ensemble)
    one = Distilled(joint_env(), seed=0, device="cpu", **{**TINY, "judges": 1}).learn(257)
    assert one.judges is not None
    assert one.own_judge is one.judges[0]


def test_a_run_keeps_its_own_judges_and_is_scored_with_them(tmp_path: Path) -> None:
    def run(folder: Path, env: dict[str, Any]) -> dict[str, float]:
        play = {"n": 60, "image_size": 40, "grid": 5, **env}
        return train(
            "Distilled", "MaskAug-Synthetic-v0", out=folder, total_timesteps=300, num_envs=4, seed=0, device="cpu",
            env=play, settings=TINY, checkpoint_every=1000, resume=False, progress_bar=False, say=lambda _: None,
        )  # fmt: skip

    results = run(tmp_path / "own", {})
    judge, about = load_judge(tmp_path / "own" / "judge.safetensors")
    assert isinstance(judge, Ensemble)
    assert about["data"] == "synthetic-radiograph"
    agent = Distilled(joint_env(), seed=0, device="cpu", **TINY).learn(300)
    assert agent.judges is not None
    assert same(dict(judge.judges.state_dict()), dict(agent.judges.state_dict()))
    assert maskaug.load_masker(tmp_path / "own" / "masker.safetensors")(joint_env().dataset.images[:2]).any()
    # A judge that was brought along is kept instead.
    file = tmp_path / "given.safetensors"
    save_judge(file, make_judge("small", 1, 2, 5))
    given = run(tmp_path / "given", {"joint": False, "reward_model": str(file)})
    assert isinstance(load_judge(tmp_path / "given" / "judge.safetensors")[0], SmallClassifier)
    assert given["judge.val.loss"] != results["judge.val.loss"]
