"""What every agent offers: Stable-Baselines3's method names, reading observations, saving, exact resume."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from maskaug.agents.checkpoint import CheckpointError, read_state, write_state
from maskaug.agents.unwrapping import vector_env_of
from maskaug.envs.devices import resolve_device
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import box_to_mask, cells_for_area, patch_scores, patch_to_cells, top_cells

#: called after every update with the agent and its metrics; returning False ends the training.
Callback = Callable[[Any, Mapping[str, float]], bool | None]


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """What a masker needs to know of the game it was trained on.

    Attributes:
        image_shape: (C, H, W).
        grid: g.
        cells: how many cells a mask has.
        patch_cells: side of the square that a mask is; 0 where it may be any set of cells.
        pixels: whether actions are those of action="pixel": a cell is a pixel then, and g the image's side.
        boxes: whether actions are those of action="box"; scores are still of cells.
    """

    image_shape: tuple[int, int, int]
    grid: int
    cells: int
    patch_cells: int = 0
    pixels: bool = False
    boxes: bool = False

    def best(self, scores: Tensor) -> Tensor:
        """Scores (N, g, g) → the top cells, or the patch of the highest mean score, as cells (N, g, g) bool."""
        if not self.patch_cells:
            return top_cells(scores, self.cells)
        return patch_to_cells(patch_scores(scores, self.patch_cells).argmax(1), self.grid, self.patch_cells)

    def cells_of(self, actions: npt.NDArray[Any]) -> Tensor:
        """What `predict` returned for N images → cells (N, g, g) bool; of boxes those whose middles lie inside."""
        chosen = torch.from_numpy(actions)
        if self.pixels:
            return chosen > 0
        if self.boxes:
            return box_to_mask(chosen, self.grid, self.grid)
        if not self.patch_cells:
            return chosen.bool().reshape(-1, self.grid, self.grid)
        return patch_to_cells(chosen, self.grid, self.patch_cells)

    def actions_of(self, chosen: Tensor) -> Tensor:
        """Cells (N, g, g) bool, or corners (N,), as the environment takes them; there is no way back to a box.

        (N, g·g) int8, (N,) int64, or for pixels (N, H, W) float32 of −1 and 1.
        """
        if self.pixels:
            return 2 * chosen.float() - 1
        return chosen.flatten(1).to(torch.int8) if chosen.ndim == 3 else chosen


class Agent(ABC):
    """What training, evaluation and `load_masker` need of an agent, whoever wrote its algorithm.

    Args:
        env: a `MaskVectorEnv` or `MaskEnv` with one of `action_kinds`, perhaps inside wrappers that only record or
            show; or a `GridSpec`, for an agent that only predicts.
        settings: fields of `Settings`.
        seed: of the first weights, of the agent's draws, and of the environment's first reset.
        device: "auto", "cpu", "cuda", …: where the policy lives.
    """

    #: the settings' dataclass of each agent.
    Settings: ClassVar[type[Any]]
    #: the kinds of action it plays.
    action_kinds: ClassVar[tuple[str, ...]] = ("grid",)
    #: whether it chooses several masks an episode where the game has `steps`.
    plays_steps: ClassVar[bool] = False
    #: whether it learns from images alone: the environment's judge is then asked for nothing, and teaches nobody.
    plays_no_masks: ClassVar[bool] = False
    #: whether it learns in several processes at once; see `MaskGame.spread`.
    learns_in_ranks: ClassVar[bool] = False

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
            self.env = vector_env_of(env)
            self.spec = spec_of(self.env, self.action_kinds, self.plays_steps)
        self.seed = seed
        self.device = resolve_device(device)
        self.num_timesteps = 0
        self.updates = 0

    # ---- to be written by each agent -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def predictor(self) -> nn.Module:
        """The network whose weights `predict` and `scores` follow from, and that `save` keeps."""

    @abstractmethod
    def learn(self, total_timesteps: int, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """Play and learn until `num_timesteps` has grown by at least `total_timesteps`.

        Args:
            total_timesteps: masks to be judged; every judge call counts, all slots and tries.
            callback: called after every update with the agent and its metrics; returning False ends the training.
            progress_bar: show one.
        """

    @abstractmethod
    def scores(self, observation: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.float32]:
        """The ranking of the cells: (C, H, W) or (N, C, H, W) uint8 → (N, g, g) float32, higher = rather selected."""

    @abstractmethod
    def predict(
        self,
        observation: npt.NDArray[np.uint8] | Tensor,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Actions for one image (C, H, W), or for a batch (N, C, H, W), and the policy's memory, if it has one.

        Sets of cells: (g·g,) or (N, g·g) int8, 1 = selected. Patches: () or (N,) int64, the corner's number. Pixels:
        (H, W) or (N, H, W) float32, selected where above 0. Boxes: (4,) or (N, 4) float32.
        """

    @abstractmethod
    def _take_weights(self, weights: Mapping[str, Any]) -> None:
        """Put the weights of `predictor` that `save` kept into all that predicts or learns."""

    @abstractmethod
    def _training_state(self) -> dict[str, Any]:
        """What learning changes, beside the numbers of timesteps and updates and the game."""

    @abstractmethod
    def _load_training_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `_training_state` gave, from all of a checkpoint; the game is in place already."""

    # ---- may be written by each agent ----------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What tables and pictures call it."""
        return type(self).__name__

    @property
    def own_judge(self) -> nn.Module | None:
        """A judge that the agent has trained by itself, beside the environment's; None for most."""
        return None

    def check_env(self, env: MaskVectorEnv) -> None:  # noqa: B027 (most agents play any environment)
        """Refuse an environment that this agent cannot learn on, before anything starts."""

    def check_length(self, total_timesteps: int) -> None:  # noqa: B027 (most agents have no schedule)
        """Refuse to learn for so much longer, before anything starts."""

    def _playable(self, total_timesteps: int) -> MaskVectorEnv:
        # What `learn` refuses, before anything starts.
        if self.env is None:
            raise ConfigurationError("this agent was loaded without an environment; load it with env=… to train it")
        if total_timesteps < 1:
            raise ConfigurationError(f"total_timesteps={total_timesteps} must be at least 1")
        if self.env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ConfigurationError(
                f"this environment was made with autoreset_mode={self.env.autoreset_mode.name!r}, and agents here play "
                "'SAME_STEP'; leave autoreset_mode out"
            )
        if not self.env.game.ranks.alone and not self.learns_in_ranks:
            raise ConfigurationError(f"{type(self).__name__} learns in one process; start it without torchrun")
        self.check_env(self.env)
        self.check_length(total_timesteps)
        return self.env

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
        write_state(path, {"about": self.about(), "policy": dict(self.predictor.state_dict())})

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
                (c, h, w), about["grid"], about["cells"], about.get("patch_cells", 0), about.get("pixels", False),
                about.get("boxes", False),
            )  # fmt: skip
            settings, seed, weights = dict(about["settings"]), about["seed"], state["policy"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} lacks a part of {name}'s file ({error!r}); save the agent again") from None
        agent = cls(spec if env is None else env, seed=seed, device=device, **settings)
        if agent.spec != spec:
            raise CheckpointError(f"{path} was trained on {spec}, but the environment has {agent.spec}")
        try:
            agent._take_weights(weights)
        except (RuntimeError, TypeError):
            raise CheckpointError(
                f"{path} holds weights that do not fit {name}'s network; save the agent again"
            ) from None
        return agent

    def save_checkpoint(self, path: str | os.PathLike[str], **extra: Any) -> None:
        """Everything that learning changes, the environment's game included, for `load_checkpoint`.

        Where several ranks play one game, all call this, and the first writes.
        """
        if self.env is None:
            raise ConfigurationError("this agent has no environment, so there is nothing to continue; use save()")
        game = self.env.game.state()
        if self.env.game.ranks.first:
            write_state(
                path,
                {
                    "about": self.about(),
                    **self._training_state(),
                    "num_timesteps": self.num_timesteps,
                    "updates": self.updates,
                    "game": game,
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
        self._load_training_state(state)
        self.num_timesteps, self.updates = state["num_timesteps"], state["updates"]
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


def kind_of(state: Mapping[str, Any]) -> str | None:
    """The name of the agent whose file was read into `state`, or None where it holds none."""
    about = state.get("about") if isinstance(state, Mapping) else None
    name = about.get("agent") if isinstance(about, Mapping) else None
    return name if isinstance(name, str) else None


def spec_of(env: MaskVectorEnv, kinds: tuple[str, ...], steps: bool = False) -> GridSpec:
    """What an agent that plays `kinds` has to know of `env`; one that it cannot play is refused.

    Args:
        env: the environment.
        kinds: of action.
        steps: whether it plays several masks an episode.
    """
    rule = env.game.rule
    if rule.kind not in kinds:
        raise ConfigurationError(
            f"this agent plays action={' or '.join(map(repr, kinds))}, not {rule.kind!r}; make the environment so"
        )
    if env.game.steps > 1 and not steps:
        raise ConfigurationError(f"this agent chooses one mask an episode, not steps={env.game.steps}; use steps=1")
    shape = env.game.dataset.shape
    if rule.kind != "pixel":
        return GridSpec(shape, rule.grid, rule.cells, rule.patch_cells, boxes=rule.kind == "box")
    if shape[1] != shape[2]:
        raise ConfigurationError(f"masks of pixels need square images here, not {shape[1]}×{shape[2]}")
    return GridSpec(shape, shape[1], cells_for_area(rule.area, shape[1]), pixels=True)
