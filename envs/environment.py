"""The Gymnasium environments: `MaskVectorEnv`, batched, and `MaskEnv`, the same game with one image at a time."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame
from maskaug.envs.outcome import Outcome
from maskaug.envs.rendering import render_step

Images = npt.NDArray[np.uint8]
RENDER_MODES = ["rgb_array"]


def _check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *RENDER_MODES):
        raise ConfigurationError(f"render_mode={render_mode!r} is unknown; use 'rgb_array' (there are no windows)")
    return render_mode


def _check_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.name, known.value):
            return known
    names = ", ".join(repr(known.name) for known in AutoresetMode)
    raise ConfigurationError(f"autoreset_mode={mode!r} is unknown; use one of {names}")


def _observation_space(dataset: ImageDataset) -> spaces.Box:
    return spaces.Box(0, 255, dataset.shape, np.uint8)


class MaskVectorEnv(VectorEnv[Images, Any, npt.NDArray[Any]]):
    """N games side by side, judged in one batch. `gym.make_vec(id, num_envs=N)` makes it.

    **Description.** Each slot sees an image and chooses a mask; the judge says what the mask is worth; the next image
    follows, by default in the same step. Slot i, reset with seed s, sees what a single environment with seed s + i
    sees.

    **Observation.** Box(0, 255, (C, H, W), uint8): the image, with `steps` without what is selected already.

    **Action.** "grid": MultiBinary(g·g), the cells row by row. "patch": Discrete(corners), the patch's top left cell.
    "pixel": Box(−1, 1, (H, W)), selected where above 0. "box": Box(−1, 1, (4,)), row and column of the centre, height
    and width; see `maskaug.envs.masking.box_to_mask`.

    **Reward.** float32 (N,): the objective's gain, minus `area_price` times the two-sided price of leaving `area`.
    With `steps`, what a mask adds to the worth of those before it.

    **Episode end.** Every step terminates, or with `steps=k` every k-th. What follows is up to `autoreset_mode`, as in
    Gymnasium: "SAME_STEP" (default): the next image comes at once; `info["final_obs"]` holds the images with the mask
    hidden, `info["final_info"]` the terms of the reward, of the slots in `info["_final_info"]`. "NEXT_STEP": the step
    gives these themselves, and the one after it the next image, with reward 0, whatever its actions: every second step
    judges nothing where `steps=1`. "DISABLED": a slot whose episode is over is to be reset,
    `reset(options={"reset_mask": ended})`, before the next step.

    **Tensors.** With `tensors=True` all of this is tensors on the judge's device, observations and infos too, and
    actions may be: nothing crosses to the host but whether all is well.

    **Arguments.** See `MaskGame`; and `render_mode`, None or "rgb_array" (a tuple of N frames), and `autoreset_mode`, a
    name or Gymnasium's enum.

    **Defaults.** Images have 64×64 pixels, the real ones of MURA and of hip fractures 224×224. The grid has 8×8 cells,
    and 16×16 on images of 224×224 pixels unless patches are played. A stand-in is always of 64×64 pixels.
    `maskaug envs` shows what each id plays here.

    **Info.** `index`, `try`, `label` (−1 without labels), with `steps` > 1 `step`, `area`, every term of the reward,
    and with a reconstructor `cell_error`, (N, g, g), the mean squared error of every hidden cell and NaN elsewhere; the
    same keys in `reset` and in `step`, where they describe the image that comes next.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 2, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        **kwargs: Any,
    ) -> None:
        mode = _check_autoreset_mode(autoreset_mode)
        if "max_episode_steps" in kwargs:
            limit = kwargs["max_episode_steps"]
            raise ConfigurationError(
                f"max_episode_steps goes with gym.make; use steps={limit} for a batch whose episodes all end then"
            )
        self._play(MaskGame(num_envs, **kwargs), _check_render_mode(render_mode), mode)

    @classmethod
    def over(cls, game: MaskGame, render_mode: str | None = None) -> MaskVectorEnv:
        """An environment over an existing game, whose state it shares."""
        env = cls.__new__(cls)
        env._play(game, _check_render_mode(render_mode), AutoresetMode.SAME_STEP)
        return env

    def _play(self, game: MaskGame, render_mode: str | None, mode: AutoresetMode) -> None:
        self.render_mode, self.game, self.num_envs = render_mode, game, game.num_envs
        self.autoreset_mode, self.metadata = mode, {**self.metadata, "autoreset_mode": mode}
        # Of the modes other than SAME_STEP: the slots whose episode is over and that were not reset yet.
        self._over = np.zeros(game.num_envs, np.bool_)
        self.single_observation_space = _observation_space(self.game.dataset)
        self.single_action_space = self.game.rule.space
        self.observation_space = batch_space(self.single_observation_space, game.num_envs)
        self.action_space = batch_space(self.single_action_space, game.num_envs)
        self._last: Outcome | None = None

    @property
    def dataset(self) -> ImageDataset:
        """The images that are played."""
        return self.game.dataset

    def evaluation(
        self,
        split: str = "val",
        *,
        num_envs: int | None = None,
        dataset: ImageDataset | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> MaskVectorEnv:
        """The same game on held-out images, for `evaluate_policy`: it shares the judge, and never trains it.

        `only_class` holds there too; each image gets one try, whatever `repeat` is, and is not mirrored, whatever
        `flip` is. Held-out splits are whole, whatever `n_shot` is.

        Args:
            split: "train", "val", "test" or "all" of the data set that this environment loaded.
            num_envs: N; None takes this environment's.
            dataset: the held-out images, where this environment was made with `dataset=ImageDataset(...)`.
            autoreset_mode: "SAME_STEP" whatever this environment's is, since agents and `as_vec_env` ask for it.

        Raises:
            ConfigurationError: `autoreset_mode` is unknown, or the images were given and `dataset` is not.
        """
        mode = _check_autoreset_mode(autoreset_mode)
        game, rule = self.game, self.game.rule
        if dataset is None:
            if game.loaded is None:
                raise ConfigurationError("this environment was given its images: give the held-out ones, dataset=…")
            with warnings.catch_warnings():
                # A stand-in was announced when this environment was made.
                warnings.simplefilter("ignore", UserWarning)
                dataset = load_dataset(split=split, **game.loaded)
        keywords: dict[str, Any] = {"area": rule.area, "area_price": rule.price}
        if rule.kind == "patch":
            keywords = {"patch_cells": rule.patch_cells}
        return MaskVectorEnv(
            self.num_envs if num_envs is None else num_envs,
            dataset=dataset,
            objective=game.objective,
            action=rule.kind,
            grid=rule.grid,
            fill=game.fill,
            steps=game.steps,
            joint=False,
            reward_model=game.reward_model.model,
            sensitivity=game.sensitivity,
            only_class=game.only_class,
            reward_terms=game.own_terms.functions,
            device=game.device,
            tensors=game.tensors,
            **dataclasses.asdict(game.acceleration),
            render_mode=self.render_mode,
            autoreset_mode=mode,
            **keywords,
        )

    def oracle_reward(self, index: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """The best reward that any action earns, (M,) float32; see `MaskGame.action_rewards`, which gives them all.

        Args:
            index: (M,) positions in `dataset`, whose images are taken as they are; None takes what the slots see now,
                and M is N.
        """
        best: npt.NDArray[np.float32] = self.game.action_rewards(index).max(1)
        return best

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Images, dict[str, Any]]:
        """Start every slot anew (with `seed`), or go on to the next episode (without).

        Args:
            seed: slot i is seeded with seed + i, or with seed[i], where None asks the system for one.
            options: {"reset_mask": (N,) bool}: only these slots go on to their next episode. Not together with a seed,
                and not with autoreset_mode="NEXT_STEP", which would reset some of them twice.

        Returns:
            (N, C, H, W) uint8 and the infos, each (N,).
        """
        mask = None if options is None else options.get("reset_mask")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ConfigurationError(
                    f"reset_mask must be bool of shape ({self.num_envs},), got {mask.dtype} {mask.shape}"
                )
            if seed is not None or not self.game.started:
                raise ConfigurationError(
                    "reset_mask continues a running game: reset all slots first, and give no seed with it"
                )
            if not mask.any():
                raise ConfigurationError("reset_mask names no slot; give at least one True, or leave the reset out")
            if self.autoreset_mode == AutoresetMode.NEXT_STEP:
                raise ConfigurationError(
                    "with autoreset_mode='NEXT_STEP' slots are reset by the next step; use 'DISABLED' for reset_mask"
                )
        if seed is None and not self.game.started:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else [*seed]
            if len(seeds) != self.num_envs:
                raise ConfigurationError(
                    f"{len(seeds)} seeds were given for {self.num_envs} environments; give one each"
                )
            drawn = [seeding.np_random(None if s is None else int(s)) for s in seeds]
            self._np_random, self._np_random_seed = drawn[0]
            self.game.seed([rng for rng, _ in drawn])
        else:
            self.game.advance(mask)
        self._last = None
        self._over &= False if mask is None else ~mask
        return self.observe(), self._with_presence(self._info(*self.game.blank()))

    def step(
        self, actions: Any
    ) -> tuple[Images, npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Judge one action a slot, and show each slot its next image as `autoreset_mode` says.

        Raises:
            InvalidAction: nothing has changed then.
            JudgeError: the judge returned something that is not finite; nothing has changed then.
            gymnasium.error.ResetNeeded: `reset` was never called, or not of a slot that needs it.
        """
        if not self.game.started:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        cells = self.game.rule.to_cells(actions, self.num_envs, tensors=self.game.tensors)
        if self._over.any():
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise gym.error.ResetNeeded(
                    f"the episodes of slots {np.flatnonzero(self._over)[:8].tolist()} are over: call "
                    "reset(options={'reset_mask': terminated}) before the next step()"
                )
            # NEXT_STEP: all slots began together, so that all are over.
            observation, info = self.reset()
            still = self._convert(np.zeros(self.num_envs, np.bool_))
            reward = self._convert(np.zeros(self.num_envs, np.float32))
            return observation, reward, still, self._convert(np.zeros(self.num_envs, np.bool_)), info
        outcome = self.game.play(cells)
        self._last = None if self.render_mode is None else outcome.copy()
        ended, same = outcome.ended, self.autoreset_mode == AutoresetMode.SAME_STEP
        judged = self._info(outcome.where, {**outcome.terms, "reward": outcome.reward})
        reward = judged.pop("reward")
        truncated = self._convert(np.zeros(self.num_envs, np.bool_))
        flags = self._convert(ended)
        if not same:
            self._over = ended.copy()
            observation = self._convert(
                torch.where(
                    torch.from_numpy(ended).to(self.game.device)[:, None, None, None],
                    outcome.hidden,
                    self.game.observe(),
                )
            )
            return observation, reward, flags, truncated, self._with_presence(judged)
        self.game.advance(ended)
        following = self._info(*self.game.blank())
        if not ended.all():
            for name, value in following.items():
                value[~flags] = judged[name][~flags]
        info = self._with_presence(following)
        info["final_obs"], info["_final_obs"] = self._convert(outcome.hidden), self._convert(ended)
        info["final_info"], info["_final_info"] = self._with_presence(judged), self._convert(ended)
        return self.observe(), reward, flags, truncated, info

    def observe(self) -> Any:
        """(N, C, H, W) uint8, a fresh copy of what the slots see."""
        return self._convert(self.game.observe())

    def _info(self, where: Mapping[str, npt.NDArray[np.int64]], terms: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.game.tensors:
            return {**{k: self._convert(v) for k, v in where.items()}, **terms}
        return {**where, **on_host(terms)}

    def _convert(self, value: Tensor | npt.NDArray[Any]) -> Any:
        """A fresh array, or a fresh tensor on the device where the game is played with tensors."""
        if isinstance(value, Tensor):
            return value if self.game.tensors else value.cpu().numpy()
        return torch.from_numpy(value.copy()).to(self.game.device) if self.game.tensors else value.copy()

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """One (h, w, 3) uint8 frame a slot: the last judged image, region, mask and reward, or the image to come."""
        if self.render_mode is None:
            return None
        if not self.game.started:
            raise gym.error.ResetNeeded("call reset() before the first render()")
        return tuple(render_step(self.game, self._last, slot) for slot in range(self.num_envs))

    def close_extras(self) -> None:
        """Give back the device memory that images take; see `MaskGame.release`. `close` calls it."""
        self._last = None
        self.game.release()

    def _with_presence(self, info: dict[str, Any]) -> dict[str, Any]:
        # Gymnasium's vector convention: beside each key, which slots have it.
        present = self._convert(np.ones((len(info), self.num_envs), np.bool_))
        return {**info, **{f"_{name}": row for name, row in zip(info, present, strict=True)}}


class MaskEnv(gym.Env[Images, Any]):
    """One image, one mask, one reward. `gym.make(id)` makes it; see `MaskVectorEnv` for the game and its arguments.

    The reward is a Python float; infos are Python numbers under the same names; `step` returns the image with its mask
    hidden, and `reset` brings the next try or the next image.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 2}

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        self.render_mode = _check_render_mode(render_mode)
        if "num_envs" in kwargs:
            raise ConfigurationError("num_envs goes with gym.make_vec(id, num_envs=N); gym.make gives one environment")
        if kwargs.get("tensors"):
            raise ConfigurationError("tensors=True goes with gym.make_vec(id, num_envs=N), whose batches are worth it")
        self.game = MaskGame(1, **kwargs)
        self.observation_space = cast(spaces.Space[Images], _observation_space(self.game.dataset))
        self.action_space = self.game.rule.space
        self._last: Outcome | None = None
        self._open = False

    @property
    def dataset(self) -> ImageDataset:
        """The images that are played."""
        return self.game.dataset

    def oracle_reward(self) -> float:
        """The best reward that any action earns on the current image; see `MaskGame.action_rewards`."""
        return float(self.game.action_rewards().max())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Images, dict[str, Any]]:
        """Start anew (with `seed`), or go on to the next try or image. `options` are not used."""
        super().reset(seed=seed)
        if seed is not None or not self.game.started:
            self.game.seed([self.np_random])
        else:
            self.game.advance()
        self._last, self._open = None, True
        where, terms = self.game.blank()
        return self.game.observe()[0].cpu().numpy(), _first({**where, **on_host(terms)})

    def step(self, action: Any) -> tuple[Images, float, bool, bool, dict[str, Any]]:
        """Judge one action. Raises as `MaskVectorEnv.step` does; a second step without a reset is an error too."""
        if not self._open:
            raise gym.error.ResetNeeded("the episode is over, or never began: call reset() before step()")
        outcome = self.game.play(self.game.rule.to_cells(action, None))
        self._last, ended = None if self.render_mode is None else outcome.copy(), bool(outcome.ended[0])
        self._open = not ended
        info = _first({**outcome.where, **on_host({**outcome.terms, "reward": outcome.reward})})
        return outcome.hidden[0].cpu().numpy(), info.pop("reward"), ended, False, info

    def render(self) -> npt.NDArray[np.uint8] | None:
        """(h, w, 3) uint8: image, region, mask and reward of the last step, or the image to come."""
        if self.render_mode is None:
            return None
        if not self.game.started:
            raise gym.error.ResetNeeded("call reset() before the first render()")
        return render_step(self.game, self._last, 0)

    def close(self) -> None:
        """Give back the device memory that images take; see `MaskGame.release`."""
        self._last = None
        self.game.release()


def on_host(terms: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors (N, …) float32, all on one device → arrays of the same shapes, in one transfer."""
    if all(value.device.type == "cpu" for value in itertools.islice(terms.values(), 1)):
        return {name: value.numpy() for name, value in terms.items()}
    flat = [value.flatten(1) if value.ndim > 1 else value[:, None] for value in terms.values()]
    table = torch.cat(flat, 1).cpu().numpy()
    ends = np.cumsum([part.shape[1] for part in flat])[:-1]
    parts = zip(terms, np.split(table, ends, axis=1), strict=True)
    return {name: np.ascontiguousarray(part).reshape(terms[name].shape) for name, part in parts}


def _first(info: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    return {name: value[0].item() if value.ndim == 1 else value[0].copy() for name, value in info.items()}
