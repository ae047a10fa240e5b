"""What every action earns, where the actions can be enumerated: each of them is judged on each image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Discrete

from maskaug.envs.actions import ActionRule
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import cells_to_mask, filler, patch_count, patch_to_cells
from maskaug.envs.pictures import Pictures
from maskaug.envs.rewards import RewardModel
from maskaug.envs.terms import RewardTerms


def check_enumerable(rule: ActionRule, steps: int) -> None:
    """The actions can be tried one by one, and each is worth something by itself; else a ConfigurationError."""
    if not isinstance(rule.space, Discrete):
        raise ConfigurationError(
            f"action={rule.kind!r} has too many actions to try them all; regret needs action='patch'"
        )
    if steps > 1:
        raise ConfigurationError("what an action earns depends on those before it; regret needs steps=1")


def positions(index: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """(M,) positions in a data set of `count` images, as they were asked for.

    Raises:
        ConfigurationError: `index` holds something else.
    """
    wanted = np.atleast_1d(np.asarray(index))
    # Neither a mask of booleans nor fractions: both would be taken for positions that nobody meant.
    whole = wanted.ndim == 1 and wanted.dtype.kind in "iu"
    if not whole or not ((wanted >= 0) & (wanted < count)).all():
        raise ConfigurationError(f"index must be (M,) whole positions from 0 to {count - 1}")
    return wanted.astype(np.int64)


@torch.no_grad()
def every_reward(
    picture: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    *,
    pictures: Pictures,
    shape: tuple[int, int, int],
    rule: ActionRule,
    reward_model: RewardModel,
    own_terms: RewardTerms,
    fill: str,
    chunk: int,
) -> npt.NDArray[np.float32]:
    """What each of the A actions of a rule that `check_enumerable` lets pass earns on each picture: (M, A) float32.

    Args:
        picture: (M,) numbers in `pictures`.
        labels: (M,) their labels, −1 without.
        pictures: the images, on the judge's device.
        shape: (C, H, W) of each.
        rule: what the actions mean.
        reward_model: the judge.
        own_terms: what the user adds.
        fill: what is put in place of hidden pixels; "noise" is drawn from the picture's number.
        chunk: masks that are judged in one pass.
    """
    device = pictures.device
    every = patch_to_cells(torch.arange(patch_count(rule.grid, rule.patch_cells)), rule.grid, rule.patch_cells)
    every = every.to(device)
    masks = cells_to_mask(every, *shape[1:])
    result = torch.empty(len(picture), len(every), device=device)
    at_once = max(1, chunk // len(every))
    for first in range(0, len(picture), at_once):
        some = picture[first : first + at_once]
        images = pictures.at(some)
        truth = torch.from_numpy(labels[first : first + at_once]).to(device)
        noise = None
        if fill == "noise":
            drawn = [np.random.default_rng(int(i)).standard_normal(shape, np.float32) for i in some]
            noise = torch.from_numpy(np.stack(drawn)).to(device)
        filling = filler(images, fill, noise).expand_as(images)
        gains = reward_model.against(images, truth)
        pairs = torch.cartesian_prod(torch.arange(len(some)), torch.arange(len(every))).to(device)
        for rows, actions in (part.T for part in pairs.split(chunk)):  # type: ignore[no-untyped-call]
            seen, mask = images[rows], masks[actions]
            worth = gains(rows, reward_model.view(seen, mask, filling[rows]), every[actions])
            for value in own_terms(seen, mask, truth[rows]).values():
                worth = worth + value
            result[first + rows, actions] = worth
    return result.cpu().numpy()
