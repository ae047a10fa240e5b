"""`check_vector_env`: does a vector environment keep Gymnasium's rules? Gymnasium's own `check_env` takes single ones.

The rules: https://gymnasium.farama.org/api/vector/ and, of what follows the end of an episode, AutoresetMode's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from maskaug.envs.conformance_rules import (
    AnyVectorEnv,
    arrays_of,
    check_autoreset,
    check_flags,
    check_infos,
    check_observation,
    check_spaces,
    equal,
    keys_of,
    pair,
)
from maskaug.envs.errors import NonConformance


def check_vector_env(
    env: AnyVectorEnv,
    *,
    make: Callable[[int], AnyVectorEnv] | None = None,
    seed: int = 0,
    steps: int = 6,
    repeatable: bool = True,
    rtol: float = 1e-5,
) -> None:
    """Play `env` for some steps of random actions and raise at the first rule that it breaks.

    What is looked at: spaces, shapes and types; that a seed gives the same again; that nothing handed out is written to
    later, and that writing into it changes nothing; infos, their presence masks, and the same keys in `reset` and
    `step`; what follows the end of an episode in each `AutoresetMode`; partial resets; the seeds' meaning; `close`.
    The environment is reset, played and at the end closed: make one for it.

    Args:
        env: any vector environment that returns NumPy arrays; nothing of MaskAug's own is asked for.
        make: makes another environment like it with so many slots. With it, slot i of a seed s is compared with a
            single slot of seed s + i.
        seed: of the game and of the actions.
        steps: how many to play; more than an episode has, so that an end is seen.
        repeatable: False where rewards depend on more than seeds and actions, as with a judge that learns along; only
            observations are compared then, and neither rewards nor infos.
        rtol: relative tolerance of rewards, wherever two runs of different batch sizes are compared.

    Raises:
        NonConformance: names the rule and what was seen.
    """
    check_spaces(env)
    mode = env.metadata["autoreset_mode"]
    first = _Run(env, seed, steps, mode)
    again = _Run(env, seed, steps, mode)
    _same(first, again, "the same seed and actions", repeatable, 0.0)
    scribbled = _Run(env, seed, steps, mode, scribble=True)
    _same(first, scribbled, "a run whose answers were overwritten by the caller", repeatable, 0)
    if not first.ends:
        raise NonConformance(f"no episode ended in {steps} steps: give `steps` more than an episode has")
    if mode == AutoresetMode.SAME_STEP:
        first.check_boundary(env)
    if mode == AutoresetMode.DISABLED:
        _partial_reset(env, seed, steps)
    _seeds(env, seed)
    if make is not None:
        _alone(env, make, seed, steps, mode, first, repeatable, rtol)
    try:
        env.close()
        env.close()
    except Exception as error:
        raise NonConformance(f"close must work, and do nothing when it is called again; got {error!r}") from error


class _Run:
    """What a run of random actions gave, copied; every answer is checked as it comes."""

    def __init__(
        self, env: AnyVectorEnv, seed: int, steps: int, mode: AutoresetMode, *, scribble: bool = False,
        actions: list[Any] | None = None,
    ) -> None:  # fmt: skip
        n = env.num_envs
        env.action_space.seed(seed)
        handed: list[tuple[str, Any, Any]] = []
        observation, info = pair(env.reset(seed=seed))
        check_observation(env, observation, "reset")
        check_infos(info, n, "reset")
        keys = keys_of(info)
        self.observations, self.infos = [copy.deepcopy(observation)], [copy.deepcopy(info)]
        self.rewards, self.actions = [], []
        # Of SAME_STEP: whether final_obs ever differed from what follows it.
        self.told_apart = False
        self.ends = 0
        _hand(handed, "reset", observation, info)
        if scribble:
            observation = self._scribble(handed, observation, info)
        over = np.zeros(n, np.bool_)
        for step in range(steps):
            if mode == AutoresetMode.DISABLED and over.any():
                observation, info = self._reset(env, over, observation, keys)
                _hand(handed, "a reset with reset_mask", observation, info)
                over[:] = False
            action = env.action_space.sample() if actions is None else actions[step]
            given = copy.deepcopy(action)
            self.actions.append(given)
            answer = env.step(action)
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise NonConformance("step must return (observations, rewards, terminations, truncations, infos)")
            observation, reward, terminated, truncated, info = answer
            if not equal(action, given):
                raise NonConformance("step wrote into the actions that it was given")
            check_observation(env, observation, "step")
            check_flags(reward, terminated, truncated, n)
            check_infos(info, n, "step")
            if (got := keys_of(info)) != keys:
                raise NonConformance(
                    f"step gives the info keys {sorted(got)}, reset {sorted(keys)}: make them the same"
                )
            ended = terminated | truncated
            check_autoreset(env, mode, over, ended, reward, info, keys)
            if mode == AutoresetMode.SAME_STEP:
                self._boundary(env, observation, info, ended)
            self.ends += int(ended.sum())
            self.observations.append(copy.deepcopy(observation))
            self.rewards.append(reward.copy())
            self.infos.append(copy.deepcopy(info))
            over = ended if mode != AutoresetMode.SAME_STEP else over
            _untouched(handed)
            _hand(handed, f"step {step + 1}", observation, reward, terminated, truncated, info)
            if scribble:
                observation = self._scribble(handed, observation, reward, terminated, truncated, info)

    def _scribble(self, handed: list[Any], *answer: Any) -> Any:
        """Write over all of an answer, as its caller may; the observation as it was."""
        for array in arrays_of(answer):
            if array.flags.writeable:
                array[...] = 0
        handed.clear()
        return copy.deepcopy(self.observations[-1])

    @staticmethod
    def _reset(env: AnyVectorEnv, over: Any, before: Any, keys: set[str]) -> tuple[Any, dict[str, Any]]:
        """The slots whose episode is over are reset, (observations, infos)."""
        mask = over.copy()
        observation, info = pair(env.reset(options={"reset_mask": mask}))
        check_observation(env, observation, "reset with reset_mask")
        check_infos(info, env.num_envs, "reset with reset_mask")
        if (got := keys_of(info)) != keys:
            raise NonConformance(f"reset with reset_mask gives the info keys {sorted(got)}, reset {sorted(keys)}")
        if not np.array_equal(mask, over):
            raise NonConformance("reset wrote into the reset_mask that it was given")
        rows = zip(iterate(env.observation_space, before), iterate(env.observation_space, observation), strict=True)
        if any(not equal(old, new) for (old, new), reset in zip(rows, over, strict=True) if not reset):
            raise NonConformance("a reset with reset_mask changed slots that it does not name")
        return observation, info

    def _boundary(self, env: AnyVectorEnv, observation: Any, info: dict[str, Any], ended: Any) -> None:
        following = list(iterate(env.observation_space, observation))
        for slot in np.flatnonzero(ended):
            self.told_apart |= not equal(info["final_obs"][slot], following[slot])

    def check_boundary(self, env: AnyVectorEnv) -> None:
        """In SAME_STEP an episode's last observation is in final_obs, and the next one's first in the observations."""
        seen = [row for batch in self.observations for row in iterate(env.observation_space, batch)]
        if not self.told_apart and any(not equal(seen[0], row) for row in seen):
            raise NonConformance(
                "SAME_STEP: final_obs is always what the observations show: one must be the last of the episode, the "
                "other the first of the next"
            )


def _partial_reset(env: AnyVectorEnv, seed: int, steps: int) -> None:
    before, _ = pair(env.reset(seed=seed))
    before = copy.deepcopy(before)
    if env.num_envs > 1:
        mask = np.arange(env.num_envs) == 0
        after, _ = pair(env.reset(options={"reset_mask": mask}))
        rows = zip(iterate(env.observation_space, before), iterate(env.observation_space, after), strict=True)
        if any(not equal(old, new) for slot, (old, new) in enumerate(rows) if slot):
            raise NonConformance("a reset with reset_mask changed slots that it does not name")
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if (terminated | truncated).any():
            break
    try:
        env.step(env.action_space.sample())
    except Exception:
        return
    raise NonConformance("DISABLED: a step was played though an episode was over and not reset; it must be an error")


def _seeds(env: AnyVectorEnv, seed: int) -> None:
    n = env.num_envs
    one, _ = pair(env.reset(seed=seed))
    one = copy.deepcopy(one)
    other, _ = pair(env.reset(seed=_many([seed + i for i in range(n)])))
    if not equal(one, other):
        raise NonConformance("reset(seed=s) and reset(seed=[s, s + 1, …]) must start the same games")
    try:
        env.reset(seed=_many([seed] * (n + 1)))
    except Exception:
        return
    raise NonConformance(f"reset took {n + 1} seeds for {n} slots; it must be an error")


def _many(seeds: list[int]) -> Any:
    # VectorEnv's own annotation knows of one seed alone; its environments take a list.
    return seeds


def _alone(
    env: AnyVectorEnv, make: Callable[[int], AnyVectorEnv], seed: int, steps: int, mode: AutoresetMode, batch: _Run,
    repeatable: bool, rtol: float,
) -> None:  # fmt: skip
    for slot in range(env.num_envs):
        single = make(1)
        try:
            if single.num_envs != 1:
                raise NonConformance(f"make(1) gave {single.num_envs} slots")
            for name in ("single_observation_space", "single_action_space"):
                if getattr(single, name) != getattr(env, name):
                    raise NonConformance(f"{name} is {getattr(env, name)}, of a single slot {getattr(single, name)}")
            rows = [list(iterate(env.action_space, action))[slot] for action in batch.actions]
            alone = _Run(single, seed + slot, steps, mode, actions=[_row(single, row) for row in rows])
        finally:
            single.close()
        what = f"slot {slot} of seed {seed} and a single slot of seed {seed + slot}"
        for step, (together, by_itself) in enumerate(zip(batch.observations, alone.observations, strict=True)):
            here = list(iterate(env.observation_space, together))[slot]
            if not equal(here, next(iter(iterate(single.observation_space, by_itself)))):
                raise NonConformance(f"{what} see other observations after {step} steps: seeds depend on num_envs")
        for step, (some, reward) in enumerate(zip(batch.rewards, alone.rewards, strict=True)):
            if repeatable and not np.allclose(some[slot], reward[0], rtol=rtol, atol=rtol):
                raise NonConformance(f"{what} earn {some[slot]} and {reward[0]} in step {step + 1}")


def _row(env: AnyVectorEnv, action: Any) -> Any:
    batch: Any = create_empty_array(env.single_action_space, 1)
    return concatenate(env.single_action_space, [action], batch)


def _same(one: _Run, other: _Run, what: str, repeatable: bool, rtol: float) -> None:
    for step, (a, b) in enumerate(zip(one.observations, other.observations, strict=True)):
        if not equal(a, b):
            raise NonConformance(f"{what} gave other observations after {step} steps")
    for step, (a, b) in enumerate(zip(one.rewards, other.rewards, strict=True)):
        if repeatable and not np.allclose(a, b, rtol=rtol, atol=0):
            raise NonConformance(f"{what} gave the rewards {b} instead of {a} in step {step + 1}")
    for step, (before, after) in enumerate(zip(one.infos, other.infos, strict=True)):
        if repeatable and not equal(before, after):
            names = sorted(name for name in before if name not in after or not equal(before[name], after[name]))
            raise NonConformance(f"{what} gave other infos {names} after {step} steps")


def _hand(handed: list[tuple[str, Any, Any]], where: str, *values: Any) -> None:
    for value in values:
        for array in arrays_of(value):
            for earlier, before, _ in handed:
                if np.shares_memory(array, before):
                    raise NonConformance(f"{where} hands out memory that {earlier} handed out before: copy it")
            handed.append((where, array, array.copy()))


def _untouched(handed: list[tuple[str, Any, Any]]) -> None:
    for where, array, before in handed:
        if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
            raise NonConformance(f"what {where} handed out was written to by a later step: copy it")
