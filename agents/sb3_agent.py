"""`SB3Agent`: an algorithm of Stable-Baselines3 or sb3-contrib wherever our own agents are: runs, evaluation, maskers.

The algorithm is theirs, unchanged; around it stand the policies and defaults of this package, generators of its own,
files that execute nothing, and an exact resume. SB3's own save and load is none: it forgets the game, the generators
and the images that were seen last, and its replay comes as a pickle.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from maskaug.agents import sb3_defaults, sb3_state
from maskaug.agents.base import Agent, Callback, GridSpec
from maskaug.agents.sb3 import as_vec_env
from maskaug.envs.actions import is_number
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import patch_count


@dataclasses.dataclass(frozen=True)
class SB3Settings:
    """The algorithm, and those of its hyperparameters that matter most here.

    None takes the default of the table in `maskaug.agents.sb3_defaults`; giving one that the algorithm does not have is
    an error that names those it has.

    Attributes:
        algorithm: ppo, a2c, dqn, sac; of sb3-contrib trpo, qrdqn, maskableppo (or maskable-ppo), recurrentppo (or
            recurrent-ppo).
        learning_rate: of the optimiser.
        gamma: the discount; 0 where an episode is one mask, and 1 with `steps`.
        n_steps: steps of all environments in a rollout (on-policy).
        batch_size: masks in a step of the optimiser (all but A2C).
        n_epochs: passes over a rollout (PPO and its relatives).
        ent_coef: weight of the entropy (PPO and its relatives, A2C).
        clip_range: of the ratio of probabilities (PPO and its relatives).
        target_kl: how far an update may go (TRPO).
        buffer_size: masks that are remembered (DQN, QR-DQN, SAC).
        learning_starts: masks that are drawn at random first (DQN, QR-DQN, SAC).
        train_freq: steps of all environments between updates (DQN, QR-DQN, SAC).
        gradient_steps: steps of the optimiser in an update (DQN, QR-DQN, SAC).
        exploration_initial_eps: share of random actions at the beginning (DQN, QR-DQN).
        exploration_final_eps: and at the end (DQN, QR-DQN).
        exploration_fraction: share of the run in which it falls (DQN, QR-DQN).
        width: channels of the network's first stage, a multiple of 8; the algorithm's.
        grid: cells along each side of the network's map, for pixels and boxes, which are read from it; the
            environment's grid. Grids and patches have theirs.
    """

    algorithm: str = "ppo"
    learning_rate: float | None = None
    gamma: float | None = None
    n_steps: int | None = None
    batch_size: int | None = None
    n_epochs: int | None = None
    ent_coef: float | None = None
    clip_range: float | None = None
    target_kl: float | None = None
    buffer_size: int | None = None
    learning_starts: int | None = None
    train_freq: int | None = None
    gradient_steps: int | None = None
    exploration_initial_eps: float | None = None
    exploration_final_eps: float | None = None
    exploration_fraction: float | None = None
    width: int | None = None
    grid: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithm", sb3_defaults.named(self.algorithm))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "algorithm":
                continue
            least = 0 if field.name == "learning_starts" else 1
            if "int" in str(field.type):
                if not isinstance(value, int) or isinstance(value, bool) or value < least:
                    raise ConfigurationError(f"{field.name}={value!r} must be an integer of at least {least}")
            elif not is_number(value) or value < 0:
                raise ConfigurationError(f"{field.name}={value!r} must be a number of at least 0")
        for name in ("gamma", "exploration_initial_eps", "exploration_final_eps", "exploration_fraction"):
            if (getattr(self, name) or 0) > 1:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} must be at most 1")
        for name in ("learning_rate", "clip_range", "target_kl", "exploration_fraction"):
            if getattr(self, name) == 0:
                raise ConfigurationError(f"{name}=0 must be above 0")
        if (self.width or 0) % 8:
            raise ConfigurationError(f"width={self.width} must be a multiple of 8")

    def given(self) -> dict[str, Any]:
        """What is the algorithm's, and not None."""
        own = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return {k: v for k, v in own.items() if k not in ("algorithm", "width", "grid")}


class SB3Agent(Agent):
    """An algorithm of Stable-Baselines3, set up for the game of `env`.

    With `steps` it chooses one mask after the other; `scores`, and so a masker made of it, are those of the first.

    Args:
        env: as for every agent, with any action that the algorithm plays, and without `tensors`.
        seed: of the first weights, of the algorithm's draws, and of the environment's first reset.
        device: where the policy lives.
        settings: see `SB3Settings`.
    """

    Settings: ClassVar[type[Any]] = SB3Settings
    action_kinds: ClassVar[tuple[str, ...]] = ("grid", "patch", "pixel", "box")
    plays_steps: ClassVar[bool] = True
    settings: SB3Settings

    def __init__(
        self,
        env: gym.Env[Any, Any] | MaskVectorEnv | GridSpec,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(env, settings, seed, device)
        spec, algorithm = self.spec, self.settings.algorithm
        width = self.settings.width or sb3_defaults.find(algorithm).width
        sb3_defaults.defaults_for(algorithm, self.kind)
        own = spec.grid if self.env is None else self.env.game.rule.grid
        grid = self.settings.grid or own
        if grid != own and self.kind in ("grid", "patch"):
            raise ConfigurationError(
                f"the network's grid={grid} is for pixels and boxes; with action={self.kind!r} it is the "
                f"environment's, {own}: leave it out"
            )
        #: the algorithm itself; None without an environment.
        self.algorithm: Any = None
        self._draws = sb3_state.Draws(seed, self.device)
        if self.env is None:
            made = sb3_defaults.policy_keywords(
                algorithm, self.kind, grid, spec.patch_cells, spec.cells / spec.grid**2, width
            )
            with self._draws:
                self.policy: Any = sb3_defaults.policy_of(algorithm)(
                    spaces.Box(0, 255, spec.image_shape, np.uint8), _space_of(spec), lambda _: 1.0, **made
                ).to(self.device)
            return
        vec_env = as_vec_env(self.env)
        given = self.settings.given()
        game = self.env.game
        resolved = sb3_defaults.resolve(algorithm, self.kind, self.env.num_envs, game.steps, given)
        self.settings = dataclasses.replace(self.settings, width=width, grid=grid, **resolved)
        chosen = sb3_defaults.keywords(algorithm, self.env, width, grid, **given)
        with self._draws:
            self.algorithm = sb3_defaults.load_class(algorithm)(
                env=vec_env, seed=seed, device=self.device, verbose=0, **chosen
            )
        # SB3 would make a folder below /tmp for a log that nobody asked for.
        self.algorithm.set_logger(Logger(folder=None, output_formats=[]))
        self.policy = self.algorithm.policy

    @property
    def kind(self) -> str:
        """The kind of action: "grid", "patch", "pixel" or "box"."""
        names = {"patch": self.spec.patch_cells > 0, "pixel": self.spec.pixels, "box": self.spec.boxes}
        return next((name for name, holds in names.items() if holds), "grid")

    @property
    def title(self) -> str:
        """See `Agent.title`."""
        return f"{sb3_defaults.find(self.settings.algorithm).title} (Stable-Baselines3)"

    @property
    def predictor(self) -> nn.Module:
        """SB3's policy, its critics and target networks included."""
        policy: nn.Module = self.policy
        return policy

    # ---- learning ------------------------------------------------------------------------------------------------

    def learn(self, total_timesteps: int, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """See `Agent.learn`; DQN's exploration falls over all timesteps, those of earlier calls included."""
        env = self._playable(total_timesteps)
        if self.algorithm._last_obs is not None:
            # Somebody may have played on since, an evaluation for example.
            self.algorithm._last_obs, self.algorithm._last_episode_starts = env.observe(), env.game.begun
        with tqdm(total=total_timesteps, disable=not progress_bar, unit="mask", leave=False) as bar:
            watch = _Watch(self, callback, bar)
            try:
                with self._draws:
                    self.algorithm.learn(total_timesteps, watch, log_interval=None, reset_num_timesteps=False)
            except _EnoughError:
                pass
            finally:
                self.num_timesteps = self.algorithm.num_timesteps
        return self

    # ---- using ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, observation: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.float32]:
        """(C, H, W) or (N, C, H, W) uint8 → (N, g, g) float32, higher = rather selected.

        Of cells and pixels the logits or means; of patches the mean value of all those that cover a cell (Q, or
        logits); of boxes how far a cell's middle lies inside: 1 − its distance to the centre in box sizes, so that
        masks of any area are that box, smaller or larger.
        """
        images = self._images(observation)
        self.policy.set_training_mode(False)
        values, grid = self.policy.values(images).float(), self.spec.grid
        if self.kind == "patch":
            side = self.spec.patch_cells
            corners = values.reshape(len(values), 1, grid - side + 1, grid - side + 1)
            square = torch.ones(1, 1, side, side, device=values.device)
            covered = functional.conv_transpose2d(torch.ones_like(corners), square)
            values = functional.conv_transpose2d(corners, square) / covered
        elif self.kind == "box":
            values = _depth(values.clamp(-1, 1), grid)
        result: npt.NDArray[np.float32] = values.reshape(-1, grid, grid).cpu().numpy()
        return result

    def predict(
        self,
        observation: npt.NDArray[np.uint8] | Tensor,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """See `Agent.predict`: what SB3's own `predict` says. `state` and `episode_start` are RecurrentPPO's memory.

        Sets of cells are of whatever area the policy selects. DQN and QR-DQN draw with the exploration of their
        training where not `deterministic`, one coin for the batch as SB3 has it, and none without an environment.
        """
        images = self._images(observation).cpu().numpy()
        with self._draws:
            player = self.policy if self.algorithm is None else self.algorithm
            actions, state = player.predict(images, state, episode_start, deterministic)
        if self.kind == "grid":
            actions = actions.astype(np.int8)
        return (actions[0] if observation.ndim == 3 else actions), state

    # ---- keeping -------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """See `Agent.about`."""
        return {**super().about(), "boxes": self.spec.boxes}

    def _take_weights(self, weights: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(weights)

    def _training_state(self) -> dict[str, Any]:
        return {**sb3_state.state_of(self.algorithm), "draws": self._draws.state()}

    def _load_training_state(self, state: Mapping[str, Any]) -> None:
        assert self.env is not None
        sb3_state.load_state(self.algorithm, state, self.env.observe())
        self._draws.load_state(state["draws"])


class _EnoughError(Exception):
    """A callback has said that it is enough, between two updates."""


class _Watch(BaseCallback):
    """Tells the agent's callback of every update, between it and the next rollout: a checkpoint is exact there."""

    def __init__(self, agent: SB3Agent, callback: Callback | None, bar: Any) -> None:
        super().__init__()
        self.agent, self.callback, self.bar = agent, callback, bar
        self.began, self.start = time.perf_counter(), agent.num_timesteps
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        self.rewards.append(float(np.mean(self.locals["rewards"])))
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        if not self._tell():
            raise _EnoughError

    def _on_training_end(self) -> None:
        self._tell()

    def _tell(self) -> bool:
        values = {k: float(v) for k, v in self.logger.name_to_value.items() if k != "train/n_updates"}
        self.logger.name_to_value.clear()
        if not any(name.startswith("train/") for name in values):
            return True  # nothing was learnt, as before `learning_starts`
        agent = self.agent
        agent.num_timesteps = self.num_timesteps
        agent.updates += 1
        reward = float(np.mean(self.rewards))
        self.rewards.clear()
        if self.callback is None:
            return True
        fps = (agent.num_timesteps - self.start) / (time.perf_counter() - self.began)
        metrics = {"rollout/reward": reward, **values, "time/fps": fps}
        # Nobody but the algorithm draws from its generators.
        with agent._draws.rest():
            return self.callback(agent, metrics) is not False


def _space_of(spec: GridSpec) -> gym.Space[Any]:
    if spec.patch_cells:
        return spaces.Discrete(patch_count(spec.grid, spec.patch_cells))
    if spec.pixels:
        return spaces.Box(-1, 1, (spec.grid, spec.grid), np.float32)
    return spaces.Box(-1, 1, (4,), np.float32) if spec.boxes else spaces.MultiBinary(spec.grid**2)


def _depth(boxes: Tensor, grid: int) -> Tensor:
    # (N, 4) → (N, g, g), above 0 inside the box; the thinnest box still has a shape to grow in.
    middles = (torch.arange(grid, device=boxes.device) + 0.5) * (2 / grid) - 1
    reach = ((boxes[:, 2:] + 1) / 2).clamp(min=1 / grid)
    away = [(middles - boxes[:, axis, None]).abs() / reach[:, axis, None] for axis in (0, 1)]
    return 1 - torch.maximum(away[0][:, :, None], away[1][:, None, :])
