"""`check_vector_env`: does a vector environment keep Gymnasium's rules? Gymnasium's own `check_env` takes single ones.

The rules: https://gymnasium.farama.org/api/vector/ and, of what follows the end of an episode, AutoresetMode's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from maskaug.envs.conformance_rules import (
    AnyVectorEnv,
    arrays_of,
    check_autoreset,
    check_boundaries,
    check_flags,
    check_infos,
    check_observation,
    check_spaces,
    equal,
    keys_of,
    pair,
    row_of,
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
    In DISABLED a step past an end may do anything: Gymnasium's own environments differ there. That an episode begins
    without a draw is seen only in NEXT_STEP and DISABLED, where `reset` can be asked what it would have begun.
    The environment is reset, played and at the end closed: make one for it.

    Args:
        env: any vector environment that returns NumPy arrays; nothing of MaskAug's own is asked for.
        make: makes another environment like it with so many slots. With it, slot i of a seed s is compared with a
            single slot of seed s + i: observations, rewards, infos, final_obs and final_info.
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
    if not np.any(first.ended):
        raise NonConformance(f"no episode ended in {steps} steps: give `steps` more than an episode has")
    if mode == AutoresetMode.SAME_STEP:
        check_boundaries(env, first.observations, first.infos, first.ended)
    else:
        _begins_anew(env, seed, mode, first, repeatable)
    if mode == AutoresetMode.DISABLED:
        _partial_reset(env, seed)
    _seeds(env, seed)
    if make is not None:
        _alone(env, make, seed, steps, mode, first, repeatable, rtol)
    _apart(env, seed, steps, mode, first, repeatable, rtol)
    try:
        env.close()
        env.close()
    except Exception as error:
        raise NonConformance(f"close must work, and do nothing when it is called again; got {error!r}") from error


class _Run:
    """What a run of random actions gave, copied; every answer is checked as it comes."""

    def __init__(
        self, env: AnyVectorEnv, seed: Any, steps: int, mode: AutoresetMode, *, scribble: bool = False,
        actions: list[Any] | None = None,
    ) -> None:  # fmt: skip
        n = env.num_envs
        if actions is None:
            env.action_space.seed(seed)
        handed: list[tuple[str, Any, Any]] = []
        observation, info = pair(env.reset(seed=seed))
        check_observation(env, observation, "reset")
        check_infos(info, n, "reset")
        keys = keys_of(info)
        self.observations, self.infos = [copy.deepcopy(observation)], [copy.deepcopy(info)]
        self.rewards, self.actions = [], []
        self.ended: list[Any] = []
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
            self.ended.append(ended.copy())
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


def _partial_reset(env: AnyVectorEnv, seed: int) -> None:
    before, _ = pair(env.reset(seed=seed))
    before = copy.deepcopy(before)
    if env.num_envs > 1:
        mask = np.arange(env.num_envs) == 0
        after, _ = pair(env.reset(options={"reset_mask": mask}))
        rows = zip(iterate(env.observation_space, before), iterate(env.observation_space, after), strict=True)
        if any(not equal(old, new) for slot, (old, new) in enumerate(rows) if slot):
            raise NonConformance("a reset with reset_mask changed slots that it does not name")


def _begins_anew(env: AnyVectorEnv, seed: int, mode: AutoresetMode, run: _Run, repeatable: bool) -> None:
    """What follows an end is what `reset()` would have started there, of the slots whose episode is over."""
    end = next(step for step, ended in enumerate(run.ended) if ended.any())

    def play(answer: Callable[[], Any]) -> list[tuple[Any, Any, Any]]:
        env.reset(seed=seed)
        for action in run.actions[: end + 1]:
            env.step(copy.deepcopy(action))
        observation, *_, info = answer()
        seen = [(copy.deepcopy(observation), copy.deepcopy(info), np.zeros(env.num_envs, np.bool_))]
        for action in run.actions[end + 2 :]:
            observation, _, terminated, truncated, info = env.step(copy.deepcopy(action))
            seen.append((copy.deepcopy(observation), {}, terminated | truncated))
            if seen[-1][2].any():
                break
        return seen

    whole = play(env.reset)
    if mode == AutoresetMode.DISABLED:
        slots = np.ones(env.num_envs, np.bool_)
        other = play(lambda: env.reset(options={"reset_mask": slots.copy()}))
        what = "DISABLED: a reset with reset_mask"
    elif end + 1 < len(run.actions):
        slots = run.ended[end]
        other = play(lambda: env.step(copy.deepcopy(run.actions[end + 1])))
        what = "NEXT_STEP: the step after an end"
    else:
        return
    # One of the two may stop earlier, at the end of a slot that only it has not begun anew.
    for later, ((a, said, over), (b, told, ended)) in enumerate(zip(whole, other, strict=False)):
        rows = zip(iterate(env.observation_space, a), iterate(env.observation_space, b), strict=True)
        for slot, (one, two) in enumerate(rows):
            same = equal(one, two) and over[slot] == ended[slot]
            if repeatable:
                same &= equal(row_of(said, slot), row_of(told, slot))
            if slots[slot] and not same:
                raise NonConformance(
                    f"{what} does not begin the episode that reset() begins there: slot {slot} differs after {later} "
                    "steps of it"
                )


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
        _agree(env, batch, slot, alone, 0, what, "seeds depend on num_envs", repeatable, rtol)


def _apart(
    env: AnyVectorEnv, seed: int, steps: int, mode: AutoresetMode, run: _Run, repeatable: bool, rtol: float
) -> None:
    """The last slot plays the same game whatever the seeds of the others are."""
    n = env.num_envs
    if n > 1:
        seeds = [seed + n + i for i in range(n - 1)] + [seed + n - 1]
        other = _Run(env, seeds, steps, mode, actions=run.actions)
        what = f"slot {n - 1} of the seeds {[seed + i for i in range(n)]} and of {seeds}"
        _agree(env, run, n - 1, other, n - 1, what, "a slot's game is its own seed's", repeatable, rtol)


def _agree(
    env: AnyVectorEnv, run: _Run, slot: int, other: _Run, its: int, what: str, why: str, repeatable: bool, rtol: float
) -> None:
    """A slot of one run saw, earned and was told what a slot of another was."""
    for step, (one, two) in enumerate(zip(run.observations, other.observations, strict=True)):
        space = env.single_observation_space
        here = list(iterate(env.observation_space, one))[slot]
        there = list(iterate(batch_space(space, len(other.ended[0])), two))[its]
        if not equal(here, there):
            raise NonConformance(f"{what} see other observations after {step} steps: {why}")
    for step, (some, reward) in enumerate(zip(run.rewards, other.rewards, strict=True)):
        if repeatable and not np.allclose(some[slot], reward[its], rtol=rtol, atol=rtol):
            raise NonConformance(f"{what} earn {some[slot]} and {reward[its]} in step {step + 1}")
    for step, (some, info) in enumerate(zip(run.infos, other.infos, strict=True)):
        mine, told = row_of(some, slot), row_of(info, its)
        names = sorted({*mine, *told}) if repeatable else ["final_obs"]
        if differ := [name for name in names if not equal(mine.get(name), told.get(name), rtol)]:
            raise NonConformance(f"{what} are told other {differ} after {step} steps")


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
