"""What the agents whose network is trained here share: the loop of updates, the averaged weights, the settings."""

from __future__ import annotations

import dataclasses
import functools
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from maskaug.agents.base import Agent, Callback, GridSpec, kind_of
from maskaug.envs import memory
from maskaug.envs.acceleration import PLAIN
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import top_cells
from maskaug.envs.networks import to_float

__all__ = ["Callback", "GridSpec", "MaskAgent", "as_tensor", "check_kinds", "kind_of"]


class MaskAgent(Agent):
    """An agent whose network scores the g×g cells and whose masks are sets of cells, or patches.

    Args:
        env: a `MaskVectorEnv` or `MaskEnv` with one of `action_kinds`, wrapped or not; or a `GridSpec`, for an agent
            that only predicts.
        settings: fields of `Settings`.
        seed: of the first weights, of the agent's draws, and of the environment's first reset.
        device: "auto", "cpu", "cuda", …: where the policy lives.
    """

    #: whether one update plays all tries on an image, and so has to begin with the first.
    plays_all_tries: ClassVar[bool] = True

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        settings: Mapping[str, Any],
        seed: int,
        device: str | torch.device,
    ) -> None:
        super().__init__(env, settings, seed, device)
        self.generator = torch.Generator().manual_seed(seed)
        self._reset_done = False
        #: how the policy's passes are computed: as the judge's, and without an environment in float32.
        self.acceleration = PLAIN if self.env is None else self.env.game.acceleration
        #: the network that learns; predictions come from `averaged`, its moving average.
        self.policy: nn.Module = self.acceleration.apply(self._make_policy().to(self.device))
        self.averaged = AveragedModel(self.policy, multi_avg_fn=get_ema_multi_avg_fn(self.settings.average))  # type: ignore[no-untyped-call]
        self.acceleration.apply(self.averaged.module)
        # The policy as it is called in order to learn with other ranks.
        self._spread: nn.Module | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A copy of a compiled module is not compiled.
        for network in (self.policy, self.averaged.module):
            self.acceleration.apply(network)

    # ---- to be written by each agent -----------------------------------------------------------------------------

    @abstractmethod
    def _make_policy(self) -> nn.Module:
        """The network, with weights drawn from `self.seed`."""

    @abstractmethod
    def _update(self, env: MaskVectorEnv, observation: npt.NDArray[np.uint8] | Tensor) -> tuple[Any, dict[str, float]]:
        """Play and learn once; returns the next observation and the metrics."""

    @abstractmethod
    def _sample(self, scores: Tensor) -> Tensor:
        """What the network says → actions, drawn as in training: cells (N, g, g) bool, or corners (N,) int64."""

    @abstractmethod
    def _learning_state(self) -> dict[str, Any]:
        """What learning changes beside the policy's weights (optimiser, baselines)."""

    @abstractmethod
    def _load_learning_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `_learning_state` gave."""

    # ---- learning ------------------------------------------------------------------------------------------------

    def learn(self, total_timesteps: int, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """See `Agent.learn`."""
        env = self._playable(total_timesteps)
        demands = functools.partial(self._demands, env)
        if not self.acceleration.compile:
            memory.check(demands, self.device)
        # What an agent does before it plays may count, too.
        goal, start, began = self.num_timesteps + total_timesteps, self.num_timesteps, time.perf_counter()
        self._begin(total_timesteps)
        if self._spread is None and not env.game.ranks.alone:
            self._spread = env.game.ranks.wrap(self.policy)
        if not self._reset_done:
            env.reset(seed=self.seed + env.game.first_slot)
            self._reset_done = True
        # Somebody may have played on since, an evaluation for example: all tries of an update must be of one image.
        while self.plays_all_tries and (begun := env.game.blank()[0]["try"] > 0).any():
            env.game.advance(begun)
        observation = env.observe()
        with tqdm(total=total_timesteps, disable=not progress_bar, unit="mask", leave=False) as bar:
            while self.num_timesteps < goal:
                before = self.num_timesteps
                self.policy.train()
                update = functools.partial(self._update, env, observation)
                observation, metrics = memory.explained(update, demands, self.device)
                self.updates += 1
                self.averaged.update_parameters(self.policy)
                bar.update(self.num_timesteps - before)
                if callback is not None:
                    metrics["time/fps"] = (self.num_timesteps - start) / (time.perf_counter() - began)
                    if callback(self, metrics) is False:
                        break
        return self

    def _begin(self, total_timesteps: int) -> None:
        """`learn` was called, with arguments and an environment that will do."""

    def _demands(self, env: MaskVectorEnv) -> list[memory.Demand]:
        """What an update needs memory for: the policy's pass waits for its gradient while the judge works."""
        n, policy = env.num_envs, self._trial()

        def beside(judge: memory.Demand) -> memory.Demand:
            if judge.keyword == "num_envs":
                return dataclasses.replace(
                    judge, images=n, each=1,
                    trial=lambda m: policy(m, lambda: judge.trial(min(m * judge.each, judge.images))),
                )  # fmt: skip
            return dataclasses.replace(judge, trial=lambda m: policy(n, lambda: judge.trial(m)))

        return [beside(judge) for judge in env.game.judging.demands()]

    def _trial(self) -> memory.Trial:
        return memory.Trial.of(self.policy, self.spec.image_shape, self.device, self.acceleration, learns=True)

    def _forward(self, images: Tensor) -> Tensor:
        # (N, C, H, W) float in [0, 1] → what the network that learns says, float32.
        return self.acceleration.forward(self._spread or self.policy, images)

    # ---- using ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, observation: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.float32]:
        """The ranking of the cells: (C, H, W) or (N, C, H, W) uint8 → (N, g, g) float32, higher = rather selected."""
        scores = self._cell_scores(self._scores(self._images(observation)))
        result: npt.NDArray[np.float32] = scores.float().cpu().numpy()
        return result

    @torch.no_grad()
    def predict(
        self,
        observation: npt.NDArray[np.uint8] | Tensor,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Actions for one image (C, H, W), or for a batch (N, C, H, W).

        Sets of cells: (g·g,) or (N, g·g) int8, 1 = selected. Patches: () or (N,) int64, the corner's number. Pixels:
        (H, W) or (N, H, W) float32, 1 = selected and −1 = not.

        `state` is handed back and `episode_start` is not looked at: they are there for Stable-Baselines3's
        `evaluate_policy`, and no agent here has a memory. `deterministic`: the top cells, or the best patch, and
        not a draw.
        """
        scores = self._scores(self._images(observation))
        chosen = self._best(scores) if deterministic else self._sample(scores)
        actions = self.spec.actions_of(chosen).cpu().numpy()
        return (actions[0] if observation.ndim == 3 else actions), state

    def _mirrored(self, scores: Tensor) -> Tensor:
        # What the network says of a mirrored image, put back in place.
        return scores.flip(-1)

    def _cell_scores(self, scores: Tensor) -> Tensor:
        # What the network says, as scores of cells (N, g, g).
        return scores

    def _best(self, scores: Tensor) -> Tensor:
        return top_cells(scores, self.spec.cells)

    def _scores(self, images: Tensor) -> Tensor:
        network = self.averaged.module.eval()
        scores = self.acceleration.forward(network, to_float(images))
        if self.settings.mirror:
            # The same picture in a mirror: its scores, mirrored back, are a second opinion.
            mirrored = self.acceleration.forward(network, to_float(images.flip(-1)))
            scores = (scores + self._mirrored(mirrored)) / 2
        return scores

    # ---- keeping -------------------------------------------------------------------------------------------------

    @property
    def predictor(self) -> nn.Module:
        """The moving average of the network that learns."""
        return self.averaged.module

    def _take_weights(self, weights: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(weights)
        self.averaged.module.load_state_dict(weights)

    def _training_state(self) -> dict[str, Any]:
        return {
            "policy": dict(self.policy.state_dict()),
            "averaged": dict(self.averaged.state_dict()),
            "learning": self._learning_state(),
            "generator": self.generator.get_state(),
        }

    def _load_training_state(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.averaged.load_state_dict(state["averaged"])
        self._load_learning_state(state["learning"])
        self.generator.set_state(state["generator"])
        self._reset_done = True


def check_kinds(settings: Any) -> None:
    """Refuse a field of a settings dataclass whose type is not that of its default."""
    for field in dataclasses.fields(settings):
        _check_kind(field.name, getattr(settings, field.name), field.default)


def _check_kind(name: str, value: object, default: object) -> None:
    # bool before int: True is an int to Python, and 1 is no answer to a yes-or-no question.
    if isinstance(default, bool):
        good, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        good, wanted = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif isinstance(default, float):
        good, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        good, wanted = isinstance(value, str), "a name"
    if not good:
        raise ConfigurationError(f"{name}={value!r} must be {wanted}")


def as_tensor(value: npt.NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """What an environment returned, numpy or (with `tensors=True`) a tensor, as a tensor on `device`."""
    return torch.as_tensor(value).to(device)
