"""Intelligent Masking: deep Q-learning for context encoding (Bahrami et al., arXiv 2203.13865, MLMI 2022).

The paper's loop, step by step, and where it stands here:

    1  Q(x, ·), a fully convolutional map over the grid; the action a is random, or its arg max    `_choose`
    2  x̃ = x with the patch hidden; x̂ = g(x̃)                                the environment (`ReconstructionReward`)
    3  reward r = reconstruction error of x̂, no gradient to the agent         the environment
    4  one step of g on the error of the hidden part                          the environment, joint=True
    5  one step of the agent on (Q(x, a) − r)²                                `_learn`

An episode is one step long, so the reward is the target; there is no next state and no target network.

`mode="default"` plays the same game with what was found to work (benchmarks/results has the figures):

* The environment says the error of every hidden cell, and every one of them is a target, not only their mean. A cell's
  error depends on where in the patch it lies (its neighbours are hidden too), so Q has one map for each of these roles;
  the value of a patch is the mean of its cells' values, each in its role.
* Sets of cells: `area` of the image is hidden, of which Q chooses a share that rises from nothing to `share`; the rest
  is random. So the reconstructor never sees hard cells alone, and Q sees all of them.
* Errors are divided by their running mean, and Q regresses their logarithm (`loss="log"`): it learns how many times
  harder than usual a place is, whatever the reconstructor has learnt meanwhile, and a few large errors do not decide.
* A replay of picture numbers and errors, never frames (`replay`), with several updates for each on new transitions;
  averaged weights and mirrored views; learning rate falling to 0 over the second half (`schedule`).

`mode="published"` is the paper's: one patch, the squared error of one Q-value, random for the first fifth of the run
and greedy afterwards, both learning rates × 0.33 at one and at two thirds, no replay. It deviates from the authors'
code where that is plainly wrong: only whole patches are actions, the reward is a mean over the hidden pixels (both so
in the environment), reward and Q have one scale, and ties are broken at random (papers.md §2, 1, 2 and 4).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.agent import GridSpec, MaskAgent, as_tensor, check_kinds
from maskaug.agents.losses import low_passed, ranking_loss
from maskaug.agents.networks import ImaginingQMap, PaperQMap, QMap
from maskaug.agents.replay import Replay
from maskaug.envs.acceleration import load_optimiser
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import patch_count, patch_to_cells, top_cells
from maskaug.envs.memory import Demand
from maskaug.envs.networks import seeded_weights, to_float

LOSSES = ("log", "huber", "squared", "ranking")
#: what is added to an error, in units of the mean error, before its logarithm is taken.
FLOOR = 0.01
EXPLORATIONS = ("softmax", "epsilon", "published")
NETWORKS = ("imagining", "plain", "paper")
TARGETS = ("cells", "patch")
SCHEDULES = ("constant", "linear", "published")
#: what a setting is for: with another value of the first, it does nothing.
_NEEDS = {
    "temperature": ("exploration", "softmax"),
    "epsilon_start": ("exploration", "epsilon"),
    "epsilon_end": ("exploration", "epsilon"),
    "width": ("network", "imagining", "plain"),
}
#: what mode="published" changes; whatever is given beside it is kept.
PUBLISHED: dict[str, Any] = {
    "network": "paper", "learning_rate": 1e-3, "schedule": "published", "max_grad_norm": 0.0,
    "exploration": "published", "target": "patch", "loss": "squared", "low_pass": False, "replay": 0, "average": 0.0,
    "mirror": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IntelligentMaskingSettings:
    """How the agent learns.

    Attributes:
        mode: "default" or "published"; see the module's text. The agent gives what is not named beside "published" the
            values of `PUBLISHED`; here it is a name alone.
        network: "imagining" or "plain", for 36 to 128 pixels, or "paper", whose grid has 32 pixels a cell. The first
            says logarithms, and goes with loss="log" or "ranking".
        width: channels of the first stage of the first two, a multiple of 8.
        learning_rate: of Adam.
        schedule: of the learning rate: "constant"; "linear", falling to 0 over the second half of the run; "published",
            times 0.33 after one and two thirds of the run, the judge's too.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them as they are.
        exploration: "softmax", "epsilon" (falls linearly to `epsilon_end` over six tenths of the run) or "published".
        temperature: of "softmax", in units of the mean error.
        epsilon_start: share of random actions at the beginning, "epsilon" only.
        epsilon_end: and at the end.
        share: of the hidden cells, how many Q chooses in the end; rises from 0 over the run, and random actions take
            their part of it. Sets of cells only.
        target: "cells", the error of every hidden cell, or "patch", the reward alone.
        loss: "log", the squared difference of logarithms; "huber" or "squared", of the errors themselves; or "ranking":
            which of two hidden cells of an image has the larger error.
        low_pass: smooth errors over neighbouring hidden cells.
        replay: transitions that are remembered; 0 remembers none; -1 as many as stay true: 8 batches where the
            reconstructor learns along, 65 536 where it is frozen.
        replay_updates: updates on remembered transitions for each batch of new ones; -1: 6 where the reconstructor is
            frozen, and 1 where it learns along and all of it has to be relearnt anyway.
        replay_batch: transitions of each.
        average: decay of the moving average of the weights, which is what predicts; 0 predicts with the last ones.
        mirror: let the network see half of its images mirrored, and average both views when it predicts.
    """

    mode: str = "default"
    network: str = "imagining"
    width: int = 16
    learning_rate: float = 3e-3
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    exploration: str = "epsilon"
    temperature: float = 0.5
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    share: float = 0.5
    target: str = "cells"
    loss: str = "log"
    low_pass: bool = False
    replay: int = -1
    replay_updates: int = -1
    replay_batch: int = 64
    average: float = 0.99
    mirror: bool = True

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, known in (
            ("mode", ("default", "published")), ("network", NETWORKS), ("exploration", EXPLORATIONS),
            ("target", TARGETS), ("loss", LOSSES), ("schedule", SCHEDULES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        for name, (needed, *values) in _NEEDS.items():
            if getattr(self, needed) not in values and getattr(self, name) != getattr(type(self), name):
                raise ConfigurationError(f"{name} does nothing with {needed}={getattr(self, needed)!r}; leave it out")
        for name in ("replay_updates", "replay_batch"):
            if self.replay == 0 and getattr(self, name) != getattr(type(self), name):
                raise ConfigurationError(f"{name} does nothing with replay=0; leave it out")
        if not 0 < self.learning_rate < math.inf or not 0 < self.temperature < math.inf:
            raise ConfigurationError("learning_rate and temperature must be finite and above 0")
        if not 0 <= self.max_grad_norm < math.inf:
            raise ConfigurationError("max_grad_norm must be finite and at least 0; 0 does not clip")
        for name in ("epsilon_start", "epsilon_end", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be a share from 0 to 1")
        if not 0 <= self.average < 1:
            raise ConfigurationError(f"average={self.average} must be at least 0 and below 1")
        if self.width < 8 or self.width % 8:
            raise ConfigurationError(f"width={self.width} must be a multiple of 8 (GroupNorm has 8 groups)")
        if self.replay < -1 or not (self.replay_updates == -1 or self.replay_updates >= 1) or self.replay_batch < 1:
            raise ConfigurationError("replay must be at least 0, replay_updates and replay_batch at least 1")
        if self.network == "imagining" and self.loss not in ("log", "ranking"):
            raise ConfigurationError(
                f"network='imagining' says logarithms and goes with loss='log' or 'ranking', not {self.loss!r}; or use "
                "network='plain'"
            )
        if self.target == "patch" and (self.mirror or self.low_pass or self.loss == "ranking"):
            raise ConfigurationError(
                "target='patch' has one number for each image, at the patch's corner: it goes with mirror=False, "
                "low_pass=False and loss='log', 'huber' or 'squared'"
            )


class IntelligentMasking(MaskAgent):
    """A Q-map that chooses what a reconstruction network has to fill in; see the module's text for the paper beside it.

    Args:
        env: a vector environment with objective="reconstruction" and action="patch" or "grid" (or one environment, or
            a `GridSpec` to predict only). Its `num_envs` is the batch.
        seed: of first weights, draws, and the environment's first reset.
        device: where the Q-map lives.
        **settings: `IntelligentMaskingSettings`' fields.
    """

    Settings: ClassVar[type[Any]] = IntelligentMaskingSettings
    action_kinds = ("patch", "grid")
    plays_all_tries = False

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        **settings: Any,
    ) -> None:
        preset = PUBLISHED if settings.get("mode") == "published" else {}
        super().__init__(env, {**preset, **settings}, seed, device)
        if self.settings.target == "patch" and not self.spec.patch_cells:
            raise ConfigurationError("target='patch' (mode='published') needs an environment with action='patch'")
        if self.spec.patch_cells and self.settings.share != IntelligentMaskingSettings.share:
            raise ConfigurationError("share does nothing with action='patch'; leave it out, or use action='grid'")
        count = patch_count(self.spec.grid, self.spec.patch_cells or 1)
        # Ties must not lean to the first corner, and one image must always have one best patch.
        self._tie_order = torch.randperm(count, generator=self.generator)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), self.settings.learning_rate, fused=True)
        #: the run's length in timesteps: exploration and learning rates follow it. The first `learn` sets it to its own
        #: length, unless it was set before, to learn in several pieces.
        self.horizon = 0
        self._scale = 0.0
        capacity = self.settings.replay
        if capacity == -1:
            capacity = 0 if self.env is None else 8 * self.env.num_envs if self.env.game.joint else 65_536
        self._replay = Replay(capacity, self.spec.grid, self.spec.patch_cells)

    def _make_policy(self) -> nn.Module:
        channels, height, width = self.spec.image_shape
        grid = self.spec.grid
        with seeded_weights(self.seed):
            if self.settings.network != "paper":
                network = ImaginingQMap if self.settings.network == "imagining" else QMap
                return network(channels, grid, self.settings.width, self._roles)
            if (height, width) != (32 * grid, 32 * grid):
                raise ConfigurationError(
                    f"network='paper' has cells of 32 pixels, so a grid of {grid} needs images of {32 * grid}, not "
                    f"{height}×{width} (the paper: grid=9 with image_size=288); or use network='plain'"
                )
            return PaperQMap(channels, self._roles)

    @property
    def _roles(self) -> int:
        # Of a cell within a patch, row by row.
        return self.spec.patch_cells**2 if self.spec.patch_cells and self.settings.target == "cells" else 1

    def check_env(self, env: MaskVectorEnv) -> None:
        """See `Agent.check_env`."""
        if env.game.objective != "reconstruction":
            raise ConfigurationError(
                f"this agent learns from reconstruction errors; make the environment with objective='reconstruction', "
                f"not {env.game.objective!r}"
            )

    def check_length(self, total_timesteps: int) -> None:
        """See `Agent.check_length`: the learning rate falls to 0 at `horizon`."""
        if self.horizon and self.num_timesteps + total_timesteps > self.horizon and self.settings.schedule == "linear":
            raise ConfigurationError(
                f"this run is {self.horizon} timesteps long, its learning rate falls to 0 by then, and "
                f"{self.num_timesteps} + {total_timesteps} are more: start a longer one anew, or use "
                "schedule='constant'; to learn in pieces, set agent.horizon to the length of all of them before the "
                "first"
            )

    def _demands(self, env: MaskVectorEnv) -> list[Demand]:
        found, batch = super()._demands(env), self.settings.replay_batch
        return [*found, Demand("replay_batch", batch, batch, self._trial())] if self._replay.capacity else found

    def _begin(self, total_timesteps: int) -> None:
        if self.horizon == 0:
            self.horizon = self.num_timesteps + total_timesteps

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 to 1."""
        return min(1.0, self.num_timesteps / self.horizon) if self.horizon else 1.0

    # ---- step 1: what to hide ------------------------------------------------------------------------------------

    def explore(self, scores: Tensor, progress: float) -> Tensor:
        """Cells as this agent would hide them at `progress`, 0 to 1, of a run, if these were its Q: for comparisons.

        Args:
            scores: (N, g, g) float, higher = rather hidden. Sets of cells only.
            progress: how much of the run is over.

        Returns:
            (N, g, g) bool.
        """
        if self.spec.patch_cells or self.num_timesteps or self.settings.exploration == "softmax":
            raise ConfigurationError(
                "explore() is for an agent that hides sets of cells and has not learnt itself, and knows no scale: use "
                "exploration='epsilon'"
            )
        horizon = self.horizon
        self.horizon, self.num_timesteps = 1_000_000, round(1_000_000 * progress)
        try:
            # Ranks, so that any scale will do; from 0 to 1, which every loss takes for a value.
            return self._choose((self._ranks(scores) / self.spec.grid**2)[:, None].to(self.device))
        finally:
            self.horizon, self.num_timesteps = horizon, 0

    def _choose(self, q: Tensor) -> Tensor:
        """Q-maps (N, R, g, g) → actions, drawn as far as the run has come: corners (N,), or cells (N, g, g) bool."""
        settings, n = self.settings, len(q)
        value = self._values(q)
        # Gumbel noise makes the largest value a draw from the softmax, and the k largest a draw without replacement.
        noise = -(-torch.rand(value.shape, generator=self.generator).clamp(1e-20).log()).clamp(1e-20).log()
        noise = noise.to(q.device)
        ranked = value / settings.temperature + noise if settings.exploration == "softmax" else self._ranks(value)
        explore = self._epsilon()
        if self.spec.patch_cells:
            random = (torch.rand(n, generator=self.generator) < explore).to(q.device)
            return torch.where(random[:, None], noise, ranked).argmax(1)
        k = self.spec.cells
        chosen = top_cells(ranked, round(settings.share * self.progress * (1 - explore) * k))
        return top_cells(noise.masked_fill(chosen, math.inf), k)

    def _epsilon(self) -> float:
        settings = self.settings
        if settings.exploration == "published":
            return float(self.progress < 0.2)
        if settings.exploration == "epsilon":
            fallen = min(1.0, self.progress / 0.6)
            return float(settings.epsilon_start + fallen * (settings.epsilon_end - settings.epsilon_start))
        return 0.0

    def _values(self, q: Tensor) -> Tensor:
        """Q-maps (N, R, g, g) → the value of each action: patches (N, corners), or cells (N, g, g)."""
        if self.settings.loss == "log":
            q = q.clamp(max=8).exp() - FLOOR
        if not self.spec.patch_cells:
            return q[:, 0]
        side = self.spec.grid - self.spec.patch_cells + 1
        windows = [q[:, i, a : a + side, b : b + side] for i, (a, b) in enumerate(self._places())]
        return torch.stack(windows).mean(0).flatten(1)

    def _places(self) -> list[tuple[int, int]]:
        # Where in the patch each role lies: (rows, columns) from its corner.
        side = range(self.spec.patch_cells)
        return [(a, b) for a in side for b in side][: self._roles]

    def _ranks(self, value: Tensor) -> Tensor:
        # 0 for the lowest value of each image, 1 for the next …; equal ones in the agent's own random order.
        order = self._tie_order.to(value.device)
        ascending = order[value.flatten(1)[:, order].argsort(stable=True, dim=1)]
        places = torch.arange(len(order), dtype=value.dtype, device=value.device)
        return torch.empty_like(value.flatten(1)).scatter_(1, ascending, places.expand_as(ascending)).view_as(value)

    def _sample(self, scores: Tensor) -> Tensor:
        return self._choose(scores)

    def _best(self, scores: Tensor) -> Tensor:
        ranked = self._ranks(self._values(scores))
        return ranked.argmax(1) if self.spec.patch_cells else top_cells(ranked, self.spec.cells)

    def _mirrored(self, scores: Tensor) -> Tensor:
        # The left column of a patch is the right one in a mirror.
        n, roles, g, _ = scores.shape
        side = math.isqrt(roles)
        return scores.view(n, side, side, g, g).flip(2, 4).reshape(n, roles, g, g)

    def _cell_scores(self, scores: Tensor) -> Tensor:
        values = self._values(scores)
        if not self.spec.patch_cells:
            return values
        # A cell is worth the mean of the patches that hold it.
        corners = torch.arange(patch_count(self.spec.grid, self.spec.patch_cells), device=scores.device)
        held = patch_to_cells(corners, self.spec.grid, self.spec.patch_cells).flatten(1).to(scores.dtype)
        return (values @ held / held.sum(0)).view(-1, self.spec.grid, self.spec.grid)

    # ---- steps 2 to 5 --------------------------------------------------------------------------------------------

    def _update(self, env: MaskVectorEnv, observation: npt.NDArray[np.uint8] | Tensor) -> tuple[Any, dict[str, float]]:
        self._set_learning_rates(env)
        images = as_tensor(observation, self.device)
        q = self._q_maps(images)
        actions = self._choose(q.detach())
        # Not the image's position: what is replayed has to be turned as it was seen.
        pictures = env.game.picture
        explore = self._epsilon()
        following, reward, _, _, info = env.step(self.spec.actions_of(actions))
        self.num_timesteps += env.num_envs
        mean = float(info["final_info"]["gain"].mean())
        self._scale = mean if self._scale == 0 else 0.98 * self._scale + 0.02 * mean
        # In units of the mean error now: what is remembered stays comparable when the reconstructor has learnt more.
        errors = as_tensor(info["final_info"]["cell_error"], self.device) / max(self._scale, 1e-12)
        loss, agreement = self._learn(q, errors)
        if self._replay.capacity:
            corners = actions.cpu().numpy() if self.spec.patch_cells else pictures
            self._replay.add(pictures, errors.cpu().numpy(), corners)
            updates = self.settings.replay_updates
            for _ in range(updates if updates > 0 else 1 if env.game.joint else 6):
                again, remembered = self._replay.sample(self.settings.replay_batch, self.generator)
                frames = env.game.pictures.at(again).to(self.device)
                self._learn(self._q_maps(frames), remembered.to(self.device))
        metrics = {
            "rollout/ep_rew_mean": float(reward.mean()),
            "rollout/random": explore,
            "train/loss": loss,
            "train/correlation": agreement,
        }
        if env.game.joint:
            metrics["train/judge_loss"] = env.game.judge_loss
        return following, metrics

    def _q_maps(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → Q-maps (N, R, g, g), in units of the mean error; those of mirrored views put back."""
        as_float = to_float(images)
        if not self.settings.mirror:
            return self._forward(as_float)
        flip = (torch.rand(len(images), generator=self.generator) < 0.5).to(self.device)[:, None, None, None]
        q = self._forward(torch.where(flip, as_float.flip(-1), as_float))
        return torch.where(flip, self._mirrored(q), q)

    def _learn(self, q: Tensor, errors: Tensor) -> tuple[float, float]:
        """One step towards the errors (N, g, g) in units of their mean, NaN where nothing was hidden.

        Returns:
            (loss, correlation of Q with the target, NaN where one of them is constant).
        """
        settings = self.settings
        seen = errors.isfinite()
        target = torch.where(seen, errors, 0)
        if settings.low_pass:
            target = low_passed(target, seen)
        target, seen = target[:, None], seen[:, None]
        if self.spec.patch_cells:
            corner = seen & (seen.cumsum(2).cumsum(3) == 1)
            if settings.target == "patch":
                # The reward is the mean of the errors, and Q's number for it stands at the patch's corner.
                target = target.sum((2, 3), keepdim=True) / self.spec.patch_cells**2 * corner
            seen = torch.cat([corner.roll(place, (2, 3)) for place in self._places()], 1)
        if settings.loss == "log":
            target = (target + FLOOR).log()
        target = target.expand_as(q)
        weight = seen / seen.sum()
        if settings.loss == "ranking":
            loss = ranking_loss(q, target, seen)
        elif settings.loss == "huber":
            loss = (functional.huber_loss(q, target, reduction="none") * weight).sum()
        else:
            loss = ((q - target).square() * weight).sum()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.max_grad_norm:
            nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        self.optimiser.step()
        with torch.no_grad():
            pair = torch.stack([x - (x * weight).sum() for x in (q, target)])
            cross = (pair[0] * pair[1] * weight).sum() / (pair.square() * weight).flatten(1).sum(1).prod().sqrt()
            value, agreement = torch.stack([loss.detach(), cross]).tolist()
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the agent's loss became {value} after {self.updates} updates; lower learning_rate"
            )
        return value, agreement

    def _set_learning_rates(self, env: MaskVectorEnv) -> None:
        factor = 1.0
        if self.settings.schedule == "linear":
            factor = min(1.0, 2 * (1 - self.progress))
        elif self.settings.schedule == "published":
            factor = published_factor(self.progress)
            env.game.reward_model.scale_lr(factor)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * factor

    # ---- keeping -------------------------------------------------------------------------------------------------

    def _learning_state(self) -> dict[str, Any]:
        return {
            "optimiser": self.optimiser.state_dict(),
            "scale": self._scale,
            "horizon": self.horizon,
            "replay": self._replay.state(),
        }

    def _load_learning_state(self, state: Mapping[str, Any]) -> None:
        load_optimiser(self.optimiser, state["optimiser"])
        self._scale, self.horizon = state["scale"], state["horizon"]
        self._replay.load_state(state["replay"])


def published_factor(progress: float) -> float:
    """The paper's schedule of both learning rates: times 0.33 after one and two thirds of the run.

    >>> [round(published_factor(p), 4) for p in (0.0, 0.3, 0.4, 0.7, 1.0)]
    [1.0, 1.0, 0.33, 0.1089, 0.1089]
    """
    return float(0.33 ** min(2, int(3 * progress)))
