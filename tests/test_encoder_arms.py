"""The arms of `maskaug bench intelligent-masking`: what each hides, and that all else is the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from encoder_grid import TASK, TINY, left_by
from env_helpers import same

from maskaug.benchmarks.encoder_arms import pretrain_arm
from maskaug.benchmarks.encoders import ARMS, SWAPS, Pretraining
from maskaug.benchmarks.masks import control_masks
from maskaug.benchmarks.reports import all_scores, own_masks
from maskaug.benchmarks.tasks import parts
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, MaskAugError
from maskaug.envs.reconstruction import ReconstructionReward


def test_every_arm_learns_as_often_on_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[int]]] = {}
    step = MaskVectorEnv.step
    arm = ""

    def watched(self: MaskVectorEnv, actions: Any) -> Any:
        seen.setdefault(arm, []).append(self.game.index.tolist())
        return step(self, actions)

    monkeypatch.setattr(MaskVectorEnv, "step", watched)
    left: dict[str, Any] = {}
    for arm in sorted(ARMS, key=SWAPS.__contains__):
        left[arm] = left_by(arm, left[SWAPS[arm]].played if arm in SWAPS else None)
        assert (left[arm].masker is None) == (arm in ("none", "autoencoder", *SWAPS)), arm
    assert {arm: one.judge.version for arm, one in left.items()} == {arm: 0 if arm == "none" else 3 for arm in ARMS}
    assert len({str(images) for images in seen.values()}) == 1
    assert len(seen) == len(ARMS) - 1
    weights = {arm: one.judge.model.state_dict() for arm, one in left.items()}
    alike = [(a, b) for a in ARMS for b in ARMS if a < b and same(weights[a], weights[b])]
    assert not alike


def test_the_arms_hide_what_they_say() -> None:
    areas = {arm: left_by(arm).spec.cells / 25 for arm in ("random", "centre", "variance", "ours", "mae")}
    assert areas == {"random": 12 / 25, "centre": 12 / 25, "variance": 12 / 25, "ours": 12 / 25, "mae": 19 / 25}
    patches = {arm: left_by(arm) for arm in ("random_patch", "centre_patch", "published")}
    assert {(one.spec.cells, one.spec.patch_cells) for one in patches.values()} == {(4, 2)}
    centre, random = (patches[arm].played for arm in ("centre_patch", "random_patch"))
    assert centre is not None
    assert random is not None
    # On a grid of 5 the four patches in the middle begin at row and column 1 or 2 of 4.
    (corner,) = np.unique(centre)
    assert divmod(int(corner), 4) in ((1, 1), (1, 2), (2, 1), (2, 2))
    assert len(np.unique(random)) > 5
    nothing = left_by("autoencoder").played
    assert nothing is not None
    assert not nothing.any()


@pytest.mark.parametrize("arm", list(SWAPS))
def test_swapped_masks_are_those_of_the_learned_arm_on_the_next_image(arm: str) -> None:
    learned = left_by(SWAPS[arm])
    swapped = left_by(arm, learned.played)
    assert learned.played is not None
    assert swapped.played is not None
    assert (swapped.played == np.roll(learned.played, 1, axis=1)).all()
    assert (swapped.played != learned.played).any()
    assert swapped.spec == learned.spec
    assert swapped.fill == learned.fill
    for wrong in (None, learned.played[:2], learned.played[:, :4]):
        with pytest.raises(ConfigurationError, match=SWAPS[arm]):
            left_by(arm, wrong)


def test_the_arm_of_local_variance_hides_as_ours_does_but_by_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = []
    step = MaskVectorEnv.step

    def watched(self: MaskVectorEnv, actions: Any) -> Any:
        cells = np.asarray(torch.as_tensor(actions)).copy().reshape(-1, 5, 5)
        images.append((np.array(self.dataset.images[self.game.index]), cells))
        return step(self, actions)

    monkeypatch.setattr(MaskVectorEnv, "step", watched)
    left = left_by("variance", updates=200, batch=4)
    assert {cells.sum((1, 2)).min() for _, cells in images} == {left.spec.cells}

    def chosen_ranks(part: list[Any]) -> float:
        ranks = []
        for pictures, cells in part:
            scores = left.masker.scores(pictures).reshape(len(cells), -1)
            ranks.append(scores.argsort(1).argsort(1)[cells.reshape(len(cells), -1) > 0].mean())
        return float(np.mean(ranks))

    # At first at random, mean rank 12 of 25; in the end nearly half of the cells are the most varied ones.
    assert chosen_ranks(images[:20]) == pytest.approx(12, abs=1)
    assert chosen_ranks(images[-20:]) > 14


def test_what_is_scored_is_the_patch_that_the_agent_plays() -> None:
    # Its scores of cells are means over patches; the best mean of those means is often another patch.
    left = left_by("published")
    images = parts(TASK, None, 0)["train"]
    own = own_masks(left.masker, images)
    assert own is not None
    scores = all_scores(left.masker, images)
    played = left.spec.cells_of(left.masker.predict(np.array(images.images), deterministic=True)[0])
    assert torch.equal(control_masks(scores, images, images, left.spec, own=own)["agent"][0], played)
    assert not torch.equal(control_masks(scores, images, images, left.spec)["agent"][0], played)
    assert own_masks(left_by("ours").masker, images) is None


def test_the_published_arms_play_the_papers_game() -> None:
    fills = {}
    for arm in ("ours", "random", "published", "random_patch", "centre_patch"):
        left = left_by(arm, fill="blur", judge_lr=5e-3)
        fills[arm] = (left.fill, left.judge.visible_weight, left.judge.lr)
    assert fills["ours"] == fills["random"] == ("blur", 0.0, 5e-3)
    assert fills["published"] == fills["random_patch"] == fills["centre_patch"] == ("zero", 0.0, 1e-3)
    assert left_by("autoencoder").judge.visible_weight == 1


def test_all_patch_arms_have_one_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: dict[str, list[float]] = {}
    played = left_by("published", updates=6).played
    for arm in ("published", "random_patch", "centre_patch", "swapped_patch"):
        seen: list[float] = []
        step = ReconstructionReward.learn

        def watched(self: Any, *more: Any, seen: list[float] = seen, step: Any = step) -> Any:
            seen.append(self.optimiser.param_groups[0]["lr"] / self.lr)
            return step(self, *more)

        monkeypatch.setattr(ReconstructionReward, "learn", watched)
        left_by(arm, played if arm in SWAPS else None, updates=6)
        monkeypatch.undo()
        factors[arm] = seen
    for arm in factors:
        assert factors[arm] == pytest.approx([1, 1, 0.33, 0.33, 0.1089, 0.1089]), arm


@pytest.mark.parametrize(
    ("name", "other"), [("updates", 4), ("batch", 6), ("area", 0.2), ("fill", "blur"), ("judge_lr", 1e-4)]
)
def test_every_setting_of_the_pre_training_does_something(name: str, other: Any) -> None:
    one, two = left_by("random"), left_by("random", **{name: other})
    assert same(one.judge.model.state_dict(), left_by("random").judge.model.state_dict())
    assert not same(one.judge.model.state_dict(), two.judge.model.state_dict())


def test_the_papers_networks_are_those_of_the_arms() -> None:
    images = dataclasses.replace(TASK, env={**TASK.env, "image_size": 96, "grid": 3})
    train = parts(images, None, 0)["train"]
    paper = Pretraining(updates=1, batch=2, reconstructor="context_encoder", network="paper")
    left = pretrain_arm(paper, "published", train, 3, 0)
    assert type(left.judge.model).__name__ == "ContextEncoder"
    assert left.masker.settings.network == "paper"
    assert left_by("published").masker.settings.network == "plain"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"updates": 0}, "updates=0"),
        ({"batch": 1}, "batch=1"),
        ({"area": 1.0}, "area=1.0"),
        ({"network": "imagining"}, "network"),
    ],
)
def test_pre_training_that_cannot_be_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        dataclasses.replace(TINY, **change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_device_is_the_one_that_was_asked_for() -> None:
    assert left_by("random", device="auto").judge.device.type == "cpu"
    with pytest.raises(MaskAugError, match="cuda"):
        left_by("random", device="cuda")
