"""What the agents share: Stable-Baselines3's method names, reading observations, saving, exact resume."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from maskaug.agents.checkpoint import CheckpointError, read_state, write_state
from maskaug.envs import memory
from maskaug.envs.acceleration import PLAIN
from maskaug.envs.environment import MaskEnv, MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import resolve_device
from maskaug.envs.masking import cells_for_area, patch_scores, patch_to_cells, top_cells
from maskaug.envs.networks import to_float

#: called after every update with the agent and its metrics; returning False ends the training.
Callback = Callable[["MaskAgent", Mapping[str, float]], bool | None]


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """What a masker needs to know of the game it was trained on.

    Attributes:
        image_shape: (C, H, W).
        grid: g.
        cells: how many cells a mask has.
        patch_cells: side of the square that a mask is; 0 where it may be any set of cells.
        pixels: whether actions are those of action="pixel": a cell is a pixel then, and g the image's side.
    """

    image_shape: tuple[int, int, int]
    grid: int
    cells: int
    patch_cells: int = 0
    pixels: bool = False

    def best(self, scores: Tensor) -> Tensor:
        """Scores (N, g, g) → the top cells, or the patch of the highest mean score, as cells (N, g, g) bool."""
        if not self.patch_cells:
            return top_cells(scores, self.cells)
        return patch_to_cells(patch_scores(scores, self.patch_cells).argmax(1), self.grid, self.patch_cells)

    def cells_of(self, actions: npt.NDArray[Any]) -> Tensor:
        """What `predict` returned for N images → cells (N, g, g) bool."""
        chosen = torch.from_numpy(actions)
        if self.pixels:
            return chosen > 0
        if not self.patch_cells:
            return chosen.bool().reshape(-1, self.grid, self.grid)
        return patch_to_cells(chosen, self.grid, self.patch_cells)

    def actions_of(self, chosen: Tensor) -> Tensor:
        """Cells (N, g, g) bool, or corners (N,), as the environment takes them.

        (N, g·g) int8, (N,) int64, or for pixels (N, H, W) float32 of −1 and 1.
        """
        if self.pixels:
            return 2 * chosen.float() - 1
        return chosen.flatten(1).to(torch.int8) if chosen.ndim == 3 else chosen


class MaskAgent(ABC):
    """An agent whose network scores the g×g cells and whose masks are sets of cells, or patches.

    Args:
        env: a `MaskVectorEnv` or `MaskEnv` with one of `action_kinds`, wrapped or not; or a `GridSpec`, for an agent
            that only predicts.
        settings: fields of `Settings`.
        seed: of the first weights, of the agent's draws, and of the environment's first reset.
        device: "auto", "cpu", "cuda", …: where the policy lives.
    """

    #: the settings' dataclass of each agent.
    Settings: ClassVar[type[Any]]
    #: the kinds of action it plays.
    action_kinds: ClassVar[tuple[str, ...]] = ("grid",)
    #: whether one update plays all tries on an image, and so has to begin with the first.
    plays_all_tries: ClassVar[bool] = True
    #: whether it learns from images alone: the environment's judge is then asked for nothing, and teaches nobody.
    plays_no_masks: ClassVar[bool] = False

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        settings: Mapping[str, Any],
        seed: int,
        device: str | torch.device,
    ) -> None:
        known = {field.name for field in dataclasses.fields(self.Settings)}
        if unknown := sorted(set(settings) - known):
            raise ConfigurationError(
                f"unknown setting {', '.join(unknown)}; {type(self).__name__} knows {', '.join(sorted(known))}"
            )
        self.settings = self.Settings(**settings)
        self.env: MaskVectorEnv | None = None
        if isinstance(env, GridSpec):
            self.spec = env
        else:
            self.env, self.spec = _attach(env, self.action_kinds)
        self.seed = seed
        self.device = resolve_device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.num_timesteps = 0
        self.updates = 0
        self._reset_done = False
        #: how the policy's passes are computed: as the judge's, and without an environment in float32.
        self.acceleration = PLAIN if self.env is None else self.env.game.acceleration
        #: the network that learns; predictions come from `averaged`, its moving average.
        self.policy: nn.Module = self.acceleration.apply(self._make_policy().to(self.device))
        self.averaged = AveragedModel(self.policy, multi_avg_fn=get_ema_multi_avg_fn(self.settings.average))  # type: ignore[no-untyped-call]
        self.acceleration.apply(self.averaged.module)

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
        """Play and learn until `num_timesteps` has grown by at least `total_timesteps`.

        Args:
            total_timesteps: masks to be judged; every judge call counts, all slots and tries.
            callback: called after every update with the agent and its metrics; returning False ends the training.
            progress_bar: show one.
        """
        if self.env is None:
            raise ConfigurationError("this agent was loaded without an environment; load it with env=… to train it")
        if total_timesteps < 1:
            raise ConfigurationError(f"total_timesteps={total_timesteps} must be at least 1")
        if self.env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ConfigurationError(
                f"this environment was made with autoreset_mode={self.env.autoreset_mode.name!r}, and agents here play "
                "'SAME_STEP'; leave autoreset_mode out"
            )
        self.check_env(self.env)
        self.check_length(total_timesteps)
        demands = functools.partial(self._demands, self.env)
        if not self.acceleration.compile:
            memory.check(demands, self.device)
        # What an agent does before it plays may count, too.
        goal, start, began = self.num_timesteps + total_timesteps, self.num_timesteps, time.perf_counter()
        self._begin(total_timesteps)
        if not self._reset_done:
            self.env.reset(seed=self.seed)
            self._reset_done = True
        # Somebody may have played on since, an evaluation for example: all tries of an update must be of one image.
        while self.plays_all_tries and (begun := self.env.game.blank()[0]["try"] > 0).any():
            self.env.game.advance(begun)
        observation = self.env.observe()
        with tqdm(total=total_timesteps, disable=not progress_bar, unit="mask", leave=False) as bar:
            while self.num_timesteps < goal:
                before = self.num_timesteps
                self.policy.train()
                update = functools.partial(self._update, self.env, observation)
                observation, metrics = memory.explained(update, demands, self.device)
                self.updates += 1
                self.averaged.update_parameters(self.policy)
                bar.update(self.num_timesteps - before)
                if callback is not None:
                    metrics["time/fps"] = (self.num_timesteps - start) / (time.perf_counter() - began)
                    if callback(self, metrics) is False:
                        break
        return self

    @property
    def own_judge(self) -> nn.Module | None:
        """A judge that the agent has trained by itself, beside the environment's; None for most."""
        return None

    def check_env(self, env: MaskVectorEnv) -> None:  # noqa: B027 (most agents play any environment)
        """Refuse an environment that this agent cannot learn on, before anything starts."""

    def check_length(self, total_timesteps: int) -> None:  # noqa: B027 (most agents have no schedule)
        """Refuse to learn for so much longer, before anything starts."""

    def _begin(self, total_timesteps: int) -> None:  # noqa: B027 (most agents have no schedule)
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
        return self.acceleration.forward(self.policy, images)

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

    def _images(self, observation: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        if isinstance(observation, np.ndarray) and not observation.flags.writeable:
            observation = observation.copy()  # a memory map, of which torch would warn
        images = torch.as_tensor(observation)
        images = images[None] if images.ndim == 3 else images
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.spec.image_shape:
            raise ConfigurationError(
                f"this agent was trained on uint8 images of shape {self.spec.image_shape}, got {images.dtype} of "
                f"shape {tuple(images.shape)}; resize them, and do not scale them to [0, 1]"
            )
        return images.to(self.device)

    # ---- keeping -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """The policy's weights and settings in one safetensors file; `load` and `maskaug.load_masker` read it."""
        write_state(path, {"about": self.about(), "policy": dict(self.averaged.module.state_dict())})

    @classmethod
    def load(cls, path: str | os.PathLike[str], env: Any = None, device: str | torch.device = "auto") -> Self:
        """An agent from the file that `save` wrote; with `env` it can go on learning (with a fresh optimiser)."""
        state = read_state(path)
        name = kind_of(state)
        if name != cls.__name__:
            raise CheckpointError(f"{path} holds {name or 'no agent'}, not {cls.__name__}")
        about = state["about"]
        try:
            c, h, w = about["image_shape"]
            spec = GridSpec(
                (c, h, w), about["grid"], about["cells"], about.get("patch_cells", 0), about.get("pixels", False)
            )
            settings, seed, weights = dict(about["settings"]), about["seed"], state["policy"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} lacks a part of {name}'s file ({error!r}); save the agent again") from None
        agent = cls(spec if env is None else env, seed=seed, device=device, **settings)
        if agent.spec != spec:
            raise CheckpointError(f"{path} was trained on {spec}, but the environment has {agent.spec}")
        try:
            agent.policy.load_state_dict(weights)
        except (RuntimeError, TypeError):
            raise CheckpointError(
                f"{path} holds weights that do not fit {name}'s network; save the agent again"
            ) from None
        agent.averaged.module.load_state_dict(weights)
        return agent

    def save_checkpoint(self, path: str | os.PathLike[str], **extra: Any) -> None:
        """Everything that learning changes, the environment's game included, for `load_checkpoint`."""
        if self.env is None:
            raise ConfigurationError("this agent has no environment, so there is nothing to continue; use save()")
        write_state(
            path,
            {
                "about": self.about(),
                "policy": dict(self.policy.state_dict()),
                "averaged": dict(self.averaged.state_dict()),
                "learning": self._learning_state(),
                "generator": self.generator.get_state(),
                "num_timesteps": self.num_timesteps,
                "updates": self.updates,
                "game": self.env.game.state(),
                "extra": extra,
            },
        )

    def load_checkpoint(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Continue where `save_checkpoint` was called: to the bit on the CPU. Returns what was kept as `extra`.

        The agent and its environment must have been made with the same arguments.
        """
        if self.env is None:
            raise ConfigurationError("this agent has no environment to continue in; make it with one")
        state = read_state(path)
        if state.get("about") != self.about():
            raise CheckpointError(
                f"{path} belongs to a run with other settings: {state.get('about')}, not {self.about()}"
            )
        if "game" not in state:
            raise CheckpointError(f"{path} is a saved agent, not a checkpoint; {type(self).__name__}.load reads it")
        self.env.game.load_state(state["game"])
        self.policy.load_state_dict(state["policy"])
        self.averaged.load_state_dict(state["averaged"])
        self._load_learning_state(state["learning"])
        self.generator.set_state(state["generator"])
        self.num_timesteps, self.updates = state["num_timesteps"], state["updates"]
        self._reset_done = True
        extra: dict[str, Any] = state["extra"]
        return extra

    def about(self) -> dict[str, Any]:
        """What was asked for, JSON: the agent's name, its settings, seed, image shape, and the rest of its spec."""
        return {
            "agent": type(self).__name__,
            "settings": dataclasses.asdict(self.settings),
            "seed": self.seed,
            "image_shape": list(self.spec.image_shape),
            "grid": self.spec.grid,
            "cells": self.spec.cells,
            "patch_cells": self.spec.patch_cells,
            "pixels": self.spec.pixels,
        }


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


def kind_of(state: Mapping[str, Any]) -> str | None:
    """The name of the agent whose file was read into `state`, or None where it holds none."""
    about = state.get("about") if isinstance(state, Mapping) else None
    name = about.get("agent") if isinstance(about, Mapping) else None
    return name if isinstance(name, str) else None


def _attach(env: Any, kinds: tuple[str, ...]) -> tuple[MaskVectorEnv, GridSpec]:
    inner = env.unwrapped if hasattr(env, "unwrapped") else env
    if isinstance(inner, MaskEnv):
        inner = MaskVectorEnv.over(inner.game)
    if not isinstance(inner, MaskVectorEnv):
        raise ConfigurationError(
            f"this agent learns on MaskAug's own environments, got {type(inner).__name__}; make one with "
            "gym.make_vec('MaskAug-…-v0', num_envs=N)"
        )
    rule = inner.game.rule
    if rule.kind not in kinds:
        raise ConfigurationError(
            f"this agent plays action={' or '.join(map(repr, kinds))}, not {rule.kind!r}; make the environment so"
        )
    if inner.game.steps > 1:
        raise ConfigurationError(f"this agent chooses one mask an episode, not steps={inner.game.steps}; use steps=1")
    shape = inner.game.dataset.shape
    if rule.kind != "pixel":
        return inner, GridSpec(shape, rule.grid, rule.cells, rule.patch_cells)
    if shape[1] != shape[2]:
        raise ConfigurationError(f"masks of pixels need square images here, not {shape[1]}×{shape[2]}")
    return inner, GridSpec(shape, shape[1], cells_for_area(rule.area, shape[1]), pixels=True)
