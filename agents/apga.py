"""APGA: adversarial policy gradient augmentation (Zhang et al., arXiv 1909.04108, MICCAI 2019).

The paper's loop, step by step, and where it stands here:

    0  pre-train the classifier f on clean images            `maskaug pretrain`, or skip it: the game can be joint
    1  one step of f on clean images                          the environment, joint=True (`ClassifierReward.update`)
    2  action a from the segmentation network P               `_reinforce`, `_published`
    3  reward R = CE(f(x with a erased)) − CE(f(x))           the environment (`ClassifierReward.score`)
    4  policy step on BCE(P, a)·(R − b) + price               `_reinforce`, `_published`
    5  one step of f on the aiding view, all but a erased     the environment, joint=True

`loss="reinforce"`, the default, is the estimator that works. What differs from the paper, and why:

* The action is drawn, not thresholded: k of the g×g cells without replacement (Plackett-Luce). The paper's threshold of
  0.5 has no probability, hence no policy gradient and no exploration.
* The log-probability is exact, that of the drawn order; BCE(P, a) is minus a log-probability only for Bernoulli draws.
* Reward and advantage per image instead of one scalar per batch.
* The baseline of a draw is the mean reward of the other S − 1 draws of the same image (leave-one-out, no bias), or of
  the rest of the batch when S = 1, instead of a moving average.
* The area is k cells by construction, so no price is needed and a mask cannot collapse to all or nothing.
* One pass of the policy serves all S draws.
* Not in the paper at all, each a setting, their effects in benchmarks/results: the policy's trunk starts from the
  judge's (`init`), its map is smoothed over neighbouring cells (`smooth`), it sees mirrored images (`mirror`), the
  moving average of its weights is what predicts (`average`), and an entropy term keeps it from settling early
  (`entropy`).

`loss="published"` is the paper's: a = 1[P > 0.5]; one reward for the batch; a moving baseline b with decay 0.5; the
loss 100·BCE(P, a)·(R − b) + |R − b|·(0.1·BCE(P, 0) + 0.01·BCE(P, 1)), with the weights of the authors' code. It
deviates from the code where that is plainly wrong: b is used before it is updated, and starts at 0 (the code's first
step has no gradient and all its advantages are halved); both losses of a reward come from the same weights in
evaluation mode; masks are predicted in one batch. It deviates from the paper in its price, for which the paper has
λ·BCE(P, 0) and the code the two terms above. By itself it trains the small network on g×g cells, which starts with
half of the cells selected, as the default does: clipped gradients, mirrored views, averaged weights. The paper's own
networks, size and schedule are the preset "published", whose list of deviations (maskaug/benchmarks/presets.py) is
the whole one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents import bernoulli, plackett_luce
from maskaug.agents.agent import GridSpec, MaskAgent, as_tensor, check_kinds
from maskaug.agents.networks import GridPolicy, take_trunk
from maskaug.agents.ternausnet import TernausNet11
from maskaug.envs.acceleration import load_optimiser
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import seeded_weights, to_float

LOSSES = ("reinforce", "published")
INITS = ("auto", "judge", "random")
ESTIMATORS = ("plackett_luce", "bernoulli")
NETWORKS = ("grid", "ternausnet")
#: what a setting is for: with another value of the first, it does nothing.
_NEEDS = {
    "loss_scale": ("loss", "published"),
    "penalty_none": ("loss", "published"),
    "penalty_all": ("loss", "published"),
    "baseline_decay": ("loss", "published"),
    "estimator": ("loss", "reinforce"),
    "entropy": ("loss", "reinforce"),
    "normalise": ("loss", "reinforce"),
    "init": ("network", "grid"),
    "smooth": ("network", "grid"),
    "width": ("network", "grid"),
}


@dataclasses.dataclass(frozen=True)
class APGASettings:
    """How APGA learns.

    Attributes:
        loss: "reinforce" or "published"; see the module's text.
        estimator: "plackett_luce" draws sets of one size, "bernoulli" each cell by itself: their area is free, and the
            environment's `area_price` keeps it ("reinforce" only).
        network: "grid", small and for 36 to 128 pixels, or "ternausnet", the paper's, for multiples of 32.
        learning_rate: of Adam.
        entropy: weight of the entropy of the first drawn cell (of a cell, for "bernoulli"), which keeps the policy from
            settling early ("reinforce" only).
        normalise: divide a batch's advantages by their root mean square ("reinforce" only).
        max_grad_norm: gradients are clipped to this norm; 0 leaves them as they are.
        average: decay of the moving average of the weights, which is what predicts; 0 predicts with the last ones.
        mirror: let the policy see half of its images mirrored, and average both views when it predicts.
        init: "judge" starts the policy's trunk from the judge's weights, "random" from the seed, "auto" from the judge
            where it, or one of several, is a `SmallClassifier` of the same width, else from the seed (network "grid"
            only).
        smooth: whether the policy's map is smoothed over neighbouring cells (network "grid" only).
        width: channels of the policy's first stage, a multiple of 8 (network "grid" only).
        loss_scale: the published loss's factor on its first term (100 in the authors' code).
        penalty_none: the published price of claiming pixels, weight of |A|·BCE(P, 0).
        penalty_all: the published price of claiming none, weight of |A|·BCE(P, 1).
        baseline_decay: of the published moving baseline.
    """

    loss: str = "reinforce"
    estimator: str = "plackett_luce"
    network: str = "grid"
    learning_rate: float = 2e-3
    entropy: float = 0.05
    normalise: bool = True
    max_grad_norm: float = 1.0
    average: float = 0.98
    mirror: bool = True
    init: str = "auto"
    smooth: bool = True
    width: int = 16
    loss_scale: float = 100.0
    penalty_none: float = 0.1
    penalty_all: float = 0.01
    baseline_decay: float = 0.5

    def __post_init__(self) -> None:
        for name, known in (
            ("loss", LOSSES), ("estimator", ESTIMATORS), ("network", NETWORKS), ("init", INITS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        check_kinds(self)
        for name, (needed, value) in _NEEDS.items():
            if getattr(self, needed) != value and getattr(self, name) != getattr(type(self), name):
                raise ConfigurationError(f"{name} does nothing with {needed}={getattr(self, needed)!r}; leave it out")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.max_grad_norm < math.inf:
            raise ConfigurationError("learning_rate must be above 0, max_grad_norm at least 0, and both finite")
        for name in ("entropy", "loss_scale", "penalty_none", "penalty_all"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be a finite number of at least 0")
        if not 0 <= self.average < 1:
            raise ConfigurationError(f"average={self.average} must be at least 0 and below 1")
        if self.width < 8 or self.width % 8:
            raise ConfigurationError(f"width={self.width} must be a multiple of 8 (GroupNorm has 8 groups)")
        if not 0 <= self.baseline_decay < 1:
            raise ConfigurationError(f"baseline_decay={self.baseline_decay} must be at least 0 and below 1")


class APGA(MaskAgent):
    """A policy-gradient masker; see the module's text for the paper beside it.

    Args:
        env: a vector environment with action="grid" or "pixel" (or one environment, or a `GridSpec` to predict only).
            Its `repeat` is S, its `num_envs` the batch of images.
        seed: of first weights, draws, and the environment's first reset.
        device: where the policy lives.
        **settings: `APGASettings`' fields.
    """

    Settings: ClassVar[type[Any]] = APGASettings
    action_kinds = ("grid", "pixel")
    learns_in_ranks = True

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, settings, seed, device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, fused=True)
        self._baseline = 0.0

    def _make_policy(self) -> nn.Module:
        channels, height, width = self.spec.image_shape
        threshold = self.settings.loss == "published"
        with seeded_weights(self.seed):
            if self.settings.network == "ternausnet":
                if height % 32 or width % 32:
                    raise ConfigurationError(
                        f"network='ternausnet' takes sizes that are multiples of 32, not {height}×{width}; choose "
                        "another image_size, or network='grid'"
                    )
                policy: GridPolicy | TernausNet11 = TernausNet11(channels, 0 if self.spec.pixels else self.spec.grid)
            else:
                policy = GridPolicy(
                    channels, self.spec.grid, self.settings.width, self.settings.smooth, level=not threshold
                )
                if self.env is not None:
                    take_trunk(policy, self.env.game.reward_model.model, self.settings.init)
        if threshold:
            self._part(policy)
        elif self.settings.estimator == "bernoulli":
            area = self.spec.cells / self.spec.grid**2
            with torch.no_grad():
                policy.head.get_parameter("bias").add_(math.log(area / (1 - area)))
        return policy

    @torch.no_grad()
    def _part(self, policy: GridPolicy | TernausNet11) -> None:
        # The threshold must part the cells from the start: who selects none (or all) of them earns the same whatever
        # the image, has no advantage and never learns.
        if self.env is not None:
            few = min(64, 2**20 // (self.spec.image_shape[1] * self.spec.image_shape[2]))
            device = next(policy.parameters()).device
            images = torch.from_numpy(np.array(self.env.dataset.images[: max(1, few)])).to(device)
            parts = [policy(to_float(part)) for part in images.split(8)]  # type: ignore[no-untyped-call]
            policy.head.get_parameter("bias").sub_(torch.cat(parts).median())

    def start_from(
        self, *, vgg11: str | os.PathLike[str] | None = None, whole: str | os.PathLike[str] | None = None
    ) -> None:
        """Put trained weights from a local file into a TernausNet, before it learns.

        Args:
            vgg11: of the encoder, VGG11's by torchvision's names; the published threshold is set anew.
            whole: of all of it; see `TernausNet11.load_whole`. One of the two.
        """
        if not isinstance(self.policy, TernausNet11) or (vgg11 is None) == (whole is None) or self.updates:
            raise ConfigurationError(
                "start_from puts one file of weights, vgg11 or whole, into an agent with network='ternausnet' that has "
                "not learnt yet"
            )
        if vgg11 is not None:
            self.policy.load_vgg11(vgg11)
            if self.settings.loss == "published":
                self._part(self.policy)
        elif whole is not None:
            self.policy.load_whole(whole)
        self.averaged.module.load_state_dict(self.policy.state_dict())

    def check_env(self, env: MaskVectorEnv) -> None:
        """See `Agent.check_env`."""
        tries = env.game.repeat
        if self.settings.loss == "published" and tries != 1:
            raise ConfigurationError(
                f"loss='published' has one mask for an image, so {tries} tries would be {tries} times the same; make "
                "the environment with repeat=1"
            )
        if self.settings.loss == "reinforce" and tries == 1 and env.game.total_envs == 1:
            raise ConfigurationError(
                "one try of one image has nothing to be compared with; make the environment with repeat=4, or with "
                "num_envs > 1"
            )

    def _update(self, env: MaskVectorEnv, observation: npt.NDArray[np.uint8] | Tensor) -> tuple[Any, dict[str, float]]:
        images = to_float(as_tensor(observation, self.device))
        if self.settings.mirror:
            drawn = env.game.ranks.rand(len(images), generator=self.generator)
            flip = (drawn < 0.5).to(self.device)[:, None, None]
            scores = self._forward(torch.where(flip[:, None], images.flip(-1), images))
            scores = torch.where(flip, scores.flip(-1), scores)
        else:
            scores = self._forward(images)
        loss, observation, metrics = (self._published if self.settings.loss == "published" else self._reinforce)(
            env, scores
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.settings.max_grad_norm:
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)
        self.optimiser.step()
        metrics["train/loss"] = float(loss.detach())
        if env.game.joint:
            metrics["train/judge_loss"] = env.game.judge_loss
        return observation, env.game.ranks.mean(metrics)

    def _play(self, env: MaskVectorEnv, cells: Tensor) -> tuple[Any, Tensor, Mapping[str, Any]]:
        observation, reward, _, _, info = env.step(self.spec.actions_of(cells))
        self.num_timesteps += env.game.total_envs
        return observation, as_tensor(reward, self.device), info["final_info"]

    def _reinforce(self, env: MaskVectorEnv, scores: Tensor) -> tuple[Tensor, Any, dict[str, float]]:
        k, tries, grid, ranks = self.spec.cells, env.game.repeat, self.spec.grid, env.game.ranks
        logits = scores.flatten(1)
        if self.settings.estimator == "bernoulli":
            drawn = bernoulli.sample(logits, tries, self.generator, ranks)
            log_prob, entropy = bernoulli.log_prob(logits, drawn) / grid**2, bernoulli.entropy(logits).mean()
            cells = drawn.view(tries, -1, grid, grid)
        else:
            orders = plackett_luce.sample(logits, tries, self.generator, ranks)
            cells = plackett_luce.to_cells(orders, k, grid)
            log_prob, entropy = plackett_luce.log_prob(logits, orders, k) / k, plackett_luce.entropy(logits).mean()
        rewards = []
        for one_try in cells:
            observation, reward, _ = self._play(env, one_try)
            rewards.append(reward)
        # Of all ranks: advantages are compared over the whole batch.
        reward_table = ranks.gather(torch.stack(rewards), 1)
        advantage = leave_one_out(reward_table)
        if self.settings.normalise:
            advantage = advantage / advantage.square().mean().sqrt().clamp(min=1e-8)
        own = advantage[:, ranks.rows(advantage.shape[1])]
        loss = -(own * log_prob).mean() - self.settings.entropy * entropy
        metrics = {
            "rollout/ep_rew_mean": float(reward_table.mean()),
            "rollout/area": float(cells.float().mean()),
            "train/entropy": float(entropy.detach()),
            "train/advantage_rms": float(leave_one_out(reward_table).square().mean().sqrt()),
        }
        return loss, observation, metrics

    def _published(self, env: MaskVectorEnv, scores: Tensor) -> tuple[Tensor, Any, dict[str, float]]:
        settings = self.settings
        action = scores.detach() > 0  # sigmoid(score) > 0.5
        observation, _, final = self._play(env, action)
        # The paper's reward knows no price of the area: the objective's gain, averaged over the batch.
        reward = env.game.ranks.mean({"gain": float(final["gain"].mean())})["gain"]
        advantage = reward - self._baseline
        self._baseline = settings.baseline_decay * self._baseline + (1 - settings.baseline_decay) * reward
        bce = functional.binary_cross_entropy_with_logits
        price = settings.penalty_none * bce(scores, torch.zeros_like(scores)) + settings.penalty_all * bce(
            scores, torch.ones_like(scores)
        )
        loss = settings.loss_scale * bce(scores, action.float()) * advantage + abs(advantage) * price
        metrics = {
            "rollout/ep_rew_mean": reward,
            "rollout/area": float(action.float().mean()),
            "train/baseline": self._baseline,
        }
        return loss, observation, metrics

    def _sample(self, scores: Tensor) -> Tensor:
        if self.settings.loss == "published":
            return scores > 0
        if self.settings.estimator == "bernoulli":
            return bernoulli.sample(scores.flatten(1), 1, self.generator)[0].view(scores.shape)
        orders = plackett_luce.sample(scores.flatten(1), 1, self.generator)
        return plackett_luce.to_cells(orders[0], self.spec.cells, self.spec.grid)

    def _learning_state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "baseline": self._baseline}

    def _load_learning_state(self, state: Mapping[str, Any]) -> None:
        load_optimiser(self.optimiser, state["optimiser"])
        self._baseline = state["baseline"]


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages over the mean of the others: (S, N) → (S, N). With S = 1 the others are the rest of the batch.

    >>> leave_one_out(torch.tensor([[1.0], [2.0], [6.0]]))[:, 0]
    tensor([-3.0000, -1.5000,  4.5000])
    """
    axis = 0 if rewards.shape[0] > 1 else 1
    count = rewards.shape[axis]
    others = (rewards.sum(axis, keepdim=True) - rewards) / (count - 1)
    return rewards - others
