"""The arms of `maskaug bench apga`: what second views show, checked by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import pictures, small
from torch import Tensor

from maskaug.agents.apga import APGA
from maskaug.agents.networks import GridPolicy
from maskaug.agents.ternausnet import TernausNet11
from maskaug.benchmarks.augmentation import ASKING, DRAWN, JOINT, LOOKING, PLAIN, TITLES, Training
from maskaug.benchmarks.augmentation_arms import (
    PLAYED_AREA,
    drawn_view,
    exchanged,
    game,
    joint_player,
    kept_cells,
    kept_view,
    masker,
    published_settings,
)
from maskaug.benchmarks.presets import APGA_PRESETS
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.networks import to_float

#: 12 images of 40×40, none of whose pixels is black.
DATA = pictures(12, size=40)
INDEX = torch.tensor([7, 2, 2, 11])
X = to_float(torch.from_numpy(DATA.images[INDEX.numpy()]))
QUICK = Training(updates=2, timesteps=64, num_envs=8)
assert np.array(DATA.images).min() > 0


def hidden_cells(view: Tensor, grid: int = 5) -> Tensor:
    """(N, g, g): the share of each cell that is black."""
    n, size = len(view), view.shape[-1] // grid
    return (view[:, 0] == 0).float().reshape(n, grid, size, grid, size).mean((2, 4))


# ---- masks that are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "stay"), [(0.05, 24), (0.25, 19), (0.6, 10), (0.95, 1)])
def test_the_share_that_is_hidden_is_exact_and_the_best_cells_stay(hidden: float, stay: int) -> None:
    scores = np.random.default_rng(0).random((12, 5, 5), np.float32)
    kept = kept_cells(scores, hidden)
    assert kept.flatten(1).sum(1).tolist() == [stay] * 12
    for mine, own in zip(kept.numpy(), scores, strict=True):
        assert own[mine].min() > own[~mine].max()


def test_a_kept_view_shows_each_image_in_its_own_cells_and_nothing_else() -> None:
    kept = kept_cells(np.random.default_rng(0).random((12, 5, 5), np.float32), 0.6)
    view = kept_view(DATA, kept, "zero")(X, INDEX)
    assert view.shape == X.shape
    assert torch.equal(hidden_cells(view), (~kept[INDEX]).float())
    shown = view > 0
    assert torch.equal(view[shown], X[shown])
    # The same mask each time: rows 1 and 2 are one image.
    assert torch.equal(view[1], view[2])
    assert torch.equal(view, kept_view(DATA, kept, "zero")(X, INDEX))


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_what_is_hidden_is_filled(fill: str) -> None:
    kept = kept_cells(np.random.default_rng(0).random((12, 5, 5), np.float32), 0.6)
    black, filled = (kept_view(DATA, kept, name)(X, INDEX) for name in ("zero", fill))
    hidden = black == 0
    assert torch.equal(filled[~hidden], X[~hidden])
    assert bool((filled[hidden] > 0).all())
    if fill == "mean":
        for mine, image, part in zip(filled, X, hidden, strict=True):
            assert sorted(set(mine[part].tolist())) == pytest.approx([round(float(image.mean() * 255)) / 255])


def test_swapped_masks_are_those_of_others_each_used_once() -> None:
    for n in (2, 3, 12):
        whose = exchanged(n, seed=4)
        assert sorted(whose) == list(range(n))
        assert not (whose == np.arange(n)).any()
    assert exchanged(1, 0).tolist() == [0]
    assert exchanged(12, 4).tolist() == exchanged(12, 4).tolist() != exchanged(12, 5).tolist()


# ---- masks that are drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["random", "cutout"])
@pytest.mark.parametrize(("hidden", "cells"), [(0.25, 6), (0.6, 15)])
def test_drawn_cells_are_of_exactly_the_share_and_new_each_time(arm: str, hidden: float, cells: int) -> None:
    view = drawn_view(arm, DATA, 5, hidden, "zero", seed=3)
    seen = [hidden_cells(view(X, INDEX)) for _ in range(8)]
    for found in seen:
        assert set(found.flatten().tolist()) <= {0.0, 1.0}
        assert found.flatten(1).sum(1).tolist() == [cells] * 4
    assert not torch.equal(seen[0], seen[1])
    # One image twice in a batch has two masks.
    assert any(not torch.equal(found[1], found[2]) for found in seen)
    again, other = (drawn_view(arm, DATA, 5, hidden, "zero", seed)(X, INDEX) for seed in (3, 4))
    assert torch.equal(hidden_cells(again), seen[0])
    assert not torch.equal(hidden_cells(other), seen[0])


def test_random_hides_no_more_than_a_learnt_mask_does() -> None:
    for hidden in (0.05, 0.25, 0.4, 0.6):
        kept = kept_cells(np.random.default_rng(0).random((12, 5, 5), np.float32), hidden)
        random = hidden_cells(drawn_view("random", DATA, 5, hidden, "zero", 0)(X, INDEX))
        assert float(random.mean()) == pytest.approx(float((~kept).float().mean()))


def test_cutout_hides_what_lies_together_and_random_cells_do_not() -> None:
    def borders(found: Tensor) -> float:
        return float((found.diff(dim=1).abs().sum() + found.diff(dim=2).abs().sum()) / len(found))

    apart, together = (
        sum(borders(hidden_cells(drawn_view(arm, DATA, 5, 0.4, "zero", seed)(X, INDEX))) for seed in range(20))
        for arm in ("random", "cutout")
    )
    assert together < 0.7 * apart


def test_random_erasing_puts_noise_into_one_rectangle_of_the_share_on_average() -> None:
    view = drawn_view("random_erasing", DATA, 5, 0.4, "zero", seed=0)
    shares = []
    for _ in range(100):
        changed = (view(X, INDEX) != X)[:, 0]
        for one in changed:
            rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
            box = (int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1)
            # By chance a 256th of what is erased becomes what it was.
            assert one.sum() >= 0.9 * box
            shares.append(box / 1600)
    assert np.mean(shares) == pytest.approx(0.4, abs=0.03)
    assert np.std(shares) > 0.1


@pytest.mark.parametrize("arm", ["random", "cutout"])
def test_drawn_views_are_filled_too(arm: str) -> None:
    black, filled = (drawn_view(arm, DATA, 5, 0.4, fill, 0)(X, INDEX) for fill in ("zero", "mean"))
    hidden = black == 0
    assert torch.equal(filled[~hidden], X[~hidden])
    assert bool((filled[hidden] > 0).all())


def test_views_do_not_change_the_images() -> None:
    before = np.array(DATA.images)
    kept = kept_cells(np.random.default_rng(0).random((12, 5, 5), np.float32), 0.6)
    for view in (kept_view(DATA, kept, "zero"), *(drawn_view(arm, DATA, 5, 0.4, "zero", 0) for arm in DRAWN)):
        x = X.clone()
        view(x, INDEX)
        assert torch.equal(x, X)
    assert np.array_equal(DATA.images, before)


# ---- maskers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", [arm for arm in TITLES if arm not in (*PLAIN, *DRAWN, "oracle")])
def test_every_masker_ranks_cells_of_images_that_it_has_never_seen(arm: str) -> None:
    judge = small(DATA) if arm in ASKING else None
    before = None if judge is None else [p.detach().clone() for p in judge.parameters()]
    ranker = masker(arm, DATA, judge, 5, QUICK, seed=0)
    others = pictures(6, size=40, seed=9).images
    scores = ranker.scores(others)
    assert scores.shape == (6, 5, 5)
    assert np.isfinite(scores).all()
    # Those that look at the image rank other images otherwise, and only they have twins with swapped masks.
    assert bool((scores != scores[:1]).any()) == (arm in LOOKING)
    if judge is not None and before is not None:
        assert all(torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))
    again = masker(arm, DATA, None if judge is None else small(DATA), 5, QUICK, seed=0)
    assert np.array_equal(scores, again.scores(others))


@pytest.mark.parametrize("arm", ["apga", "apga_published", "end_to_end"])
def test_a_masker_that_learns_does_so_for_the_timesteps_and_by_its_seed(arm: str) -> None:
    others = pictures(6, size=40, seed=9).images

    def scores(seed: int = 0, **changes: Any) -> Any:
        training = Training(**{"updates": 2, "timesteps": 64, "num_envs": 8, **changes})
        return masker(arm, DATA, small(DATA), 5, training, seed).scores(others)

    base = scores()
    for other in (scores(1), scores(timesteps=256), scores(num_envs=4)):
        assert not np.array_equal(base, other)


def test_maskers_play_the_labelled_images_with_a_frozen_judge() -> None:
    env = game(DATA, small(DATA), 5, QUICK, repeat=4)
    assert env.num_envs == 8
    assert env.game.dataset is DATA
    assert not env.game.joint
    assert (env.game.repeat, env.game.rule.area, env.game.rule.cells) == (4, PLAYED_AREA, 6)


def test_the_published_arm_has_the_paper_s_loss_alone_or_all_of_its_settings() -> None:
    whole = dataclasses.replace(QUICK, published=True)
    assert published_settings(QUICK) == {"loss": "published"}
    assert published_settings(whole) == APGA_PRESETS["published"].settings
    data = pictures(8, size=64)
    for training, network in ((QUICK, GridPolicy), (whole, TernausNet11)):
        ranker = masker("apga_published", data, small(data), 4, dataclasses.replace(training, timesteps=8), 0)
        assert (isinstance(ranker.policy, network), ranker.settings.loss) == (True, "published")
        assert ranker.scores(data.images[:3]).shape == (3, 4, 4)
        make, keywords = joint_player("apga_published", 0.5, training)
        env = MaskVectorEnv(4, dataset=data, reward_model=small(data), grid=4, device="cpu", **keywords)
        player = make(env, 0)
        assert isinstance(player, APGA)
        assert isinstance(player.policy, network)


# ---- the joint setting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", JOINT)
def test_joint_players_show_what_is_not_hidden(arm: str) -> None:
    make, keywords = joint_player(arm, 0.6, QUICK)
    env = MaskVectorEnv(4, dataset=DATA, reward_model=small(DATA), grid=5, device="cpu", **keywords)
    player = make(env, 0)
    observation, _ = env.reset(seed=0)
    shown = np.asarray(player.predict(observation)[0]).reshape(4, -1).sum(1)
    expected = {"none": 25, "ppo": None, "apga_published": None}.get(arm, 10)
    # As published, and with PPO's action, a mask may be of any area; leaving the share has a price.
    assert env.game.rule.price == 1
    if expected is not None:
        assert shown.tolist() == [expected] * 4
    if arm == "cutout":
        # The rectangle is what is hidden: what stays lies around it.
        assert env.game.rule.cells == 15
