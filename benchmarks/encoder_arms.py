"""Pre-training one arm of `maskaug.benchmarks.encoders`: the same reconstructor, whatever is hidden from it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, LocalVariance, RandomMasks
from maskaug.agents.intelligent_masking import IntelligentMasking, published_factor
from maskaug.benchmarks.encoders import PATCHES, SWAPS, Pretraining
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge
from maskaug.envs.reconstruction import ReconstructionReward

#: what was played, update by update: cells (updates, batch, g·g) uint8 of 0 and 1, or corners (updates, batch) int64.
Played = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one arm left.

    Attributes:
        judge: the pre-trained reconstructor.
        masker: what chose the masks; has `scores` and `predict`; None where nothing did, or another arm.
        spec: the game it was chosen in.
        fill: what hidden pixels became in it.
        played: all of its masks; None of an arm that plays none.
        cpu_s: of its pre-training.
    """

    judge: ReconstructionReward
    masker: Any
    spec: GridSpec
    fill: str
    played: Played | None
    cpu_s: float


class _Recorded(MaskVectorEnv):
    """An environment that keeps the actions that it was given, whoever plays."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.actions: list[Played] = []

    def step(self, actions: Any) -> Any:
        """See `MaskVectorEnv.step`."""
        self.actions.append(torch.as_tensor(actions).cpu().numpy().copy())
        return super().step(actions)


def pretrain_arm(
    settings: Pretraining, arm: str, train: ImageDataset, grid: int, seed: int, played: Played | None = None
) -> Arm:
    """Pre-train one arm's reconstructor; every arm starts from the same weights and sees the images in one order.

    Args:
        settings: the same for all arms.
        arm: of `ARMS`.
        train: the images.
        grid: cells along each side.
        seed: of first weights, of the images' order and of all draws.
        played: for the arms of `SWAPS`: what the arm whose masks they are has played, with the same settings, images
            and seed; each mask goes to the next image of its batch.

    Raises:
        ConfigurationError: `played` is missing, or is not of as many updates and images.
    """
    shape = (settings.updates, settings.batch)
    if arm in SWAPS and (played is None or played.shape[:2] != shape):
        found = None if played is None else played.shape[:2]
        raise ConfigurationError(f"{arm} plays the {shape} masks of {SWAPS[arm]} on other images, and got {found}")
    game: dict[str, Any] = {
        "action": "grid", "area": 0.75 if arm == "mae" else settings.area, "fill": settings.fill,
        "judge_lr": settings.judge_lr,
    }  # fmt: skip
    if arm == "autoencoder":
        game["visible_weight"] = 1.0
    if arm in PATCHES:
        game = {"action": "patch", "fill": "zero"}
    env = _Recorded(
        settings.batch, dataset=train, objective="reconstruction", grid=grid, seed=seed, device=settings.device,
        judge_batch=settings.batch, reward_model=make_judge(settings.reconstructor, train.shape[0], None, seed), **game,
    )  # fmt: skip
    rule = env.game.rule
    spec = GridSpec(train.shape, rule.grid, rule.cells, rule.patch_cells)
    reward = env.game.reward_model
    assert isinstance(reward, ReconstructionReward)
    began = time.process_time()
    masker: Any = None
    if arm in ("ours", "published"):
        own: dict[str, Any] = {} if arm == "ours" else {"mode": "published", "network": settings.network}
        masker = IntelligentMasking(env, seed=seed, device=settings.device, **own)
        masker.learn(settings.updates * settings.batch)
    elif arm != "none":
        masker = _masker(arm, spec, seed)
        chooser = IntelligentMasking(spec, seed=seed, device=settings.device) if arm == "variance" else None
        observation, _ = env.reset(seed=seed)
        for update in range(settings.updates):
            past = update / settings.updates
            if arm in PATCHES:
                # As in "published": what is compared is where the patch lies, and nothing else.
                reward.scale_lr(published_factor(past))
            actions: Any
            if arm == "autoencoder":
                actions = np.zeros((settings.batch, rule.grid**2), np.int8)
            elif played is not None:
                actions = np.roll(played[update], 1, axis=0)
            elif chooser is not None:
                actions = chooser.explore(torch.from_numpy(masker.scores(observation)), past).flatten(1)
            else:
                actions = masker.predict(observation)[0]
            observation, *_ = env.step(actions)
    seconds = time.process_time() - began
    kept = np.stack(env.actions) if env.actions else None
    if kept is not None and not spec.patch_cells:
        kept = kept.astype(np.uint8)
    return Arm(reward, masker, spec, env.game.fill, kept, seconds)


def _masker(arm: str, spec: GridSpec, seed: int) -> Any:
    if arm in ("autoencoder", *SWAPS):
        return None
    if arm == "variance":
        return LocalVariance(spec)
    return FixedMask.centre(spec) if arm in ("centre", "centre_patch") else RandomMasks(spec, seed)
