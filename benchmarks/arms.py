"""Does Intelligent Masking help? Encoders pre-trained by different masks, read out with few labels.

`maskaug bench intelligent-masking`. One seed = one draw (or split by group) of the data and one first set of weights;
every arm pre-trains the same reconstructor on the training split for the same number of updates of the same size, and
is read out on the same labelled draws. Equal hidden area: "ours" beside "random" and "centre", "published" beside
"random_patch", the last two in the paper's own game; "mae" hides 75 %, as masked autoencoders do. Three arms ask what
it is that helps: "autoencoder" hides nothing and reconstructs what it sees; "swapped" hides in every image what the
agent chose for another one; "variance" chooses as "ours" does, by each cell's local variance, which needs no learning.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import FixedMask, LocalVariance, RandomMasks
from maskaug.agents.intelligent_masking import IntelligentMasking, published_factor
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge
from maskaug.envs.reconstruction import ReconstructionReward

ARMS = (
    "none", "autoencoder", "random", "centre", "mae", "variance", "swapped", "ours", "random_patch", "published",
)  # fmt: skip
TITLES = {
    "none": "no pre-training", "autoencoder": "nothing hidden", "random": "random cells", "centre": "centre",
    "mae": "random cells, 75 %", "variance": "local variance", "swapped": "the agent's, swapped",
    "ours": "Intelligent Masking", "random_patch": "random patch", "published": "as published",
}  # fmt: skip
#: what each learned arm is compared with: random masks of equal area.
CONTROL = {"ours": "random", "published": "random_patch"}
#: and with what else.
CONTROLS = {"ours": ("none", "autoencoder", "centre", "variance", "swapped")}

#: keywords of the environment that are not for the user to set.
_OWN = {
    "split", "area", "area_price", "action", "patch_cells", "objective", "joint", "reward_model", "sensitivity",
    "judge_batch", "repeat",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ArmsSettings:
    """One setting of the benchmark; every field is written into its results.

    Attributes:
        env_id: whose images.
        env: keywords of the environment (data, grid, judge_lr, fill, …).
        area: share hidden by "random", "centre" and "ours".
        updates: of the reconstructor, in every arm.
        batch: images each.
        arms: of `ARMS`.
        budgets: numbers of labels; None: all.
        draws: of labels, for each budget.
        readouts: "paper", "logistic".
        agent: settings of "ours".
    """

    env_id: str
    env: Mapping[str, Any]
    area: float = 0.5
    updates: int = 400
    batch: int = 32
    arms: tuple[str, ...] = ARMS
    budgets: tuple[int | None, ...] = (10, 50, 100, None)
    draws: int = 5
    readouts: tuple[str, ...] = ("paper", "logistic")
    agent: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigurationError(f"arms {', '.join(unknown) or '()'} cannot be used; name some of {ARMS} once")
        if own := sorted(_OWN & self.env.keys()):
            raise ConfigurationError(
                f"{', '.join(own)} cannot be given here: every arm sets its own game, learns on the training split, "
                "and hides what area= says"
            )
        if self.batch < 2 and "swapped" in self.arms:
            raise ConfigurationError("with batch=1 there is no other image to swap masks with; leave 'swapped' out")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What one arm left.

    Attributes:
        judge: the pre-trained reconstructor.
        masker: what chose the masks; has `scores` and `predict`; None for "none".
        spec: the game it was chosen in.
        fill: what hidden pixels became in it.
        cpu_s: of its pre-training.
    """

    judge: ReconstructionReward
    masker: Any
    spec: GridSpec
    fill: str
    cpu_s: float


class Led(MaskVectorEnv):
    """An environment that is followed: each of its masks is played in another one too, on the next slot's image.

    Args:
        follower: as many slots, which see the same images in the same order.
        **kwargs: as for `MaskVectorEnv`.
    """

    def __init__(self, follower: MaskVectorEnv, **kwargs: Any) -> None:
        super().__init__(follower.num_envs, **kwargs)
        self.follower = follower

    def step(self, actions: Any) -> Any:
        """See `MaskVectorEnv.step`."""
        self.follower.step(torch.as_tensor(actions).roll(1, 0))
        return super().step(actions)


def pretrain_arm(settings: ArmsSettings, arm: str, seed: int, device: str = "auto") -> Arm:
    """Pre-train one arm's reconstructor; every arm starts from the same weights and sees the images in one order."""
    play = {**env_keywords(settings.env_id, settings.env), "objective": "reconstruction"}
    game: dict[str, Any] = {"action": "grid", "area": 0.75 if arm == "mae" else settings.area}
    if arm == "autoencoder":
        game["visible_weight"] = 1.0
    if arm in ("random_patch", "published"):
        game = {"action": "patch", "fill": "zero", "visible_weight": None, "judge_lr": None}
    judge = make_judge("small", play.get("channels", 1), None, seed)
    keywords = {**play, **game, "seed": seed, "device": device, "judge_batch": settings.batch}
    env = MaskVectorEnv(settings.batch, **{**keywords, "reward_model": judge})
    rule = env.game.rule
    spec = GridSpec(env.dataset.shape, rule.grid, rule.cells, rule.patch_cells)
    reward = env.game.reward_model
    assert isinstance(reward, ReconstructionReward)
    began = time.process_time()
    masker: Any = None
    if arm == "swapped":
        twin = make_judge("small", play.get("channels", 1), None, seed)
        led = Led(
            env, **{**play, **game, "seed": seed, "device": device, "reward_model": twin, "judge_batch": settings.batch}
        )
        env.reset(seed=seed)
        IntelligentMasking(led, seed=seed, device=device, **settings.agent).learn(settings.updates * settings.batch)
    elif arm in ("ours", "published"):
        own = settings.agent if arm == "ours" else {"mode": "published", "network": "plain"}
        masker = IntelligentMasking(env, seed=seed, device=device, **own)
        masker.learn(settings.updates * settings.batch)
    elif arm == "autoencoder":
        env.reset(seed=seed)
        for _ in range(settings.updates):
            env.step(np.zeros((settings.batch, rule.grid**2), np.int8))
    elif arm == "variance":
        masker = LocalVariance(spec)
        chooser = IntelligentMasking(spec, seed=seed, device=device, **settings.agent)
        observation, _ = env.reset(seed=seed)
        for update in range(settings.updates):
            cells = chooser.explore(torch.from_numpy(masker.scores(observation)), update / settings.updates)
            observation, *_ = env.step(cells.flatten(1))
    elif arm != "none":
        masker = FixedMask.centre(spec) if arm == "centre" else RandomMasks(spec, seed)
        observation, _ = env.reset(seed=seed)
        for update in range(settings.updates):
            if arm == "random_patch":
                # As in "published": what is compared is where the patch lies, and nothing else.
                env.game.reward_model.scale_lr(published_factor(update / settings.updates))
            observation, *_ = env.step(masker.predict(observation)[0])
    return Arm(reward, masker, spec, env.game.fill, time.process_time() - began)
