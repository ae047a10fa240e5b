"""Every arm of the classification tables, on every grid and size that they are made for: one interface, one area."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.base import spec_of
from maskaug.agents.distilled import Distilled
from maskaug.agents.end_to_end import EndToEnd
from maskaug.agents.gradients import Gradient
from maskaug.agents.heuristics import Brightness, Cutout, FixedMask, LocalVariance, RandomErasing, RandomMasks
from maskaug.agents.saliency import GradCAM, InputGradient
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.benchmarks.masks import oracle_scores
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.judges import make_judge
from maskaug.envs.masking import cells_for_area
from maskaug.envs.synthetic import make_synthetic

AREA = 0.25
GAMES = [(channels, size, grid) for channels in (1, 3) for size, grid in ((64, 8), (96, 8), (96, 12))]


class Game:
    """One frozen game of `GAMES`."""

    def __init__(self, channels: int, size: int, grid: int) -> None:
        self.images: ImageDataset = make_synthetic(n=6, image_size=size, channels=channels)
        self.judge = make_judge("small", channels, 2, 0)
        self.env = MaskVectorEnv(
            2, dataset=self.images, joint=False, reward_model=self.judge, grid=grid, area=AREA, device="cpu"
        )
        self.spec: GridSpec = spec_of(self.env, ("grid",))


ARMS: dict[str, Callable[[Game], Any]] = {
    "random": lambda g: RandomMasks(g.spec),
    "centre": lambda g: FixedMask.centre(g.spec),
    "mean region": lambda g: FixedMask.mean_region(g.spec, g.images),
    "brightness": lambda g: Brightness(g.spec),
    "local variance": lambda g: LocalVariance(g.spec),
    "cutout": lambda g: Cutout(g.spec),
    "random erasing": lambda g: RandomErasing(g.spec),
    "grad-cam": lambda g: GradCAM(g.spec, g.judge),
    "input x gradient": lambda g: InputGradient(g.spec, g.judge),
    "gradient": lambda g: Gradient(g.spec, [g.judge]),
    "distilled": lambda g: Distilled(g.env),
    "end-to-end": lambda g: EndToEnd(g.env),
    "apga": lambda g: APGA(g.env),
    "apga published": lambda g: APGA(g.env, loss="published"),
    "ppo": lambda g: SB3Agent(g.env, algorithm="ppo"),
}
#: what these select by themselves is of any area; their top cells are not.
FREE_AREA = ("apga published", "ppo")


@pytest.fixture(scope="module", params=GAMES, ids=lambda p: "{}x{}-grid{}".format(*p))
def game(request: pytest.FixtureRequest) -> Game:
    return Game(*request.param)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_ranks_all_cells_and_its_masks_have_the_area(game: Game, arm: str) -> None:
    masker, grid, images = ARMS[arm](game), game.spec.grid, np.asarray(game.images.images)
    scores = masker.scores(images)
    assert scores.shape == (6, grid, grid)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    cells = cells_for_area(AREA, grid)
    assert cells == game.spec.cells == grid**2 // 4
    assert (game.spec.best(torch.from_numpy(scores)).sum((1, 2)) == cells).all()
    actions, _ = masker.predict(images, deterministic=True)
    assert actions.shape == (6, grid**2)
    assert set(np.unique(actions)) <= {0, 1}
    if arm not in FREE_AREA:
        assert (actions.sum(1) == cells).all()
    # What it says is what the game takes.
    game.env.reset(seed=0)
    game.env.step(masker.predict(game.env.observe(), deterministic=True)[0])
    # One image alone is a batch of one.
    assert masker.predict(images[0], deterministic=True)[0].shape == (grid**2,)
    assert masker.scores(images[0]).shape == (1, grid, grid)


def test_the_oracle_ranks_all_cells_too(game: Game) -> None:
    scores = oracle_scores(game.images, game.spec.grid)
    assert scores.shape == (6, game.spec.grid, game.spec.grid)
    assert np.isfinite(scores).all()
    assert (game.spec.best(torch.from_numpy(scores)).sum((1, 2)) == game.spec.cells).all()


def test_random_erasing_augments_images_of_every_shape(game: Game) -> None:
    erasing = RandomErasing(game.spec)
    assert erasing.masks(5).shape == (5, *game.images.shape[1:])
    assert erasing.filling(5).shape == (5, *game.images.shape)


def test_free_areas_are_free(game: Game) -> None:
    # If these had the area by themselves, the tables would not have to take their top cells.
    images = np.asarray(game.images.images)
    for arm in FREE_AREA:
        actions, _ = ARMS[arm](game).predict(images)
        assert (actions.sum(1) != game.spec.cells).any()
