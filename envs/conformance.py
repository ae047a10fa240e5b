"""`check_vector_env`: does a vector environment keep Gymnasium's rules? Gymnasium's own `check_env` takes single ones.

The rules: https://gymnasium.farama.org/api/vector/ and, of what follows the end of an episode, AutoresetMode's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from maskaug.envs.errors import NonConformance

AnyVectorEnv = VectorEnv[Any, Any, Any]
FINAL = ("final_obs", "final_info")


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
            observations are compared then.
        rtol: relative tolerance of rewards, wherever two runs of different batch sizes are compared.

    Raises:
        NonConformance: names the rule and what was seen.
    """
    _spaces(env)
    mode = env.metadata["autoreset_mode"]
    first = _Run(env, seed, steps, mode)
    again = _Run(env, seed, steps, mode)
    _same(first, again, "the same seed and actions", repeatable, 0.0)
    scribbled = _Run(env, seed, steps, mode, scribble=True)
    _same(first, scribbled, "a run whose observations, rewards and flags were overwritten by the caller", repeatable, 0)
    if not first.ends:
        raise NonConformance(f"no episode ended in {steps} steps: give `steps` more than an episode has")
    if mode == AutoresetMode.DISABLED:
        _partial_reset(env, seed, steps)
    _seeds(env, seed)
    if make is not None:
        _alone(env, make, seed, steps, mode, first, repeatable, rtol)
    env.close()
    env.close()


class _Run:
    """What a run of random actions gave, copied; every answer is checked as it comes."""

    def __init__(
        self, env: AnyVectorEnv, seed: int, steps: int, mode: AutoresetMode, *, scribble: bool = False,
        actions: list[Any] | None = None,
    ) -> None:  # fmt: skip
        n = env.num_envs
        env.action_space.seed(seed)
        handed: list[tuple[str, Any, Any]] = []
        observation, info = _pair(env.reset(seed=seed))
        _observation(env, observation, "reset")
        _infos(info, n, "reset")
        keys = _keys(info)
        self.observations, self.infos = [copy.deepcopy(observation)], [copy.deepcopy(info)]
        self.rewards, self.finals, self.actions = [], [], []
        self.ends = 0
        _hand(handed, "reset", observation, info)
        over = np.zeros(n, np.bool_)
        for step in range(steps):
            if mode == AutoresetMode.DISABLED and over.any():
                observation, info = _pair(env.reset(options={"reset_mask": over.copy()}))
                _observation(env, observation, "reset with reset_mask")
                over[:] = False
            action = env.action_space.sample() if actions is None else actions[step]
            given = copy.deepcopy(action)
            self.actions.append(given)
            answer = env.step(action)
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise NonConformance("step must return (observations, rewards, terminations, truncations, infos)")
            observation, reward, terminated, truncated, info = answer
            if not _equal(action, given):
                raise NonConformance("step wrote into the actions that it was given")
            _observation(env, observation, "step")
            _flags(reward, terminated, truncated, n)
            _infos(info, n, "step")
            if (got := _keys(info)) != keys:
                raise NonConformance(
                    f"step gives the info keys {sorted(got)}, reset {sorted(keys)}: make them the same"
                )
            ended = terminated | truncated
            _autoreset(env, mode, over, ended, reward, info, keys)
            self.ends += int(ended.sum())
            self.observations.append(copy.deepcopy(observation))
            self.rewards.append(reward.copy())
            self.infos.append(copy.deepcopy(info))
            self.finals.append([copy.deepcopy(info["final_obs"][i]) if same_step(mode) and e else None
                                for i, e in enumerate(ended)])  # fmt: skip
            over = ended if mode != AutoresetMode.SAME_STEP else over
            _untouched(handed)
            _hand(handed, f"step {step + 1}", observation, reward, terminated, truncated, info)
            if scribble:
                for what in (observation, reward, terminated, truncated):
                    for array in _arrays(what):
                        array[...] = 0
                handed.clear()


def same_step(mode: AutoresetMode) -> bool:
    """Whether the next episode begins in the step that ends one."""
    return mode == AutoresetMode.SAME_STEP


def _spaces(env: AnyVectorEnv) -> None:
    if not isinstance(env, gym.vector.VectorEnv):
        raise NonConformance(f"not a gymnasium.vector.VectorEnv, but {type(env).__name__}")
    for name in ("num_envs", "single_observation_space", "single_action_space", "observation_space", "action_space"):
        if getattr(env, name, None) is None:
            raise NonConformance(f"it has no {name}")
    if not isinstance(env.num_envs, int) or env.num_envs < 1:
        raise NonConformance(f"num_envs must be an int of at least 1, got {env.num_envs!r}")
    for kind in ("observation", "action"):
        single, batched = getattr(env, f"single_{kind}_space"), getattr(env, f"{kind}_space")
        if batched != (expected := batch_space(single, env.num_envs)):
            raise NonConformance(f"{kind}_space is {batched}, expected {expected}: single_{kind}_space, batched")
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise NonConformance(f"metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, got {mode!r}")
    if getattr(env.unwrapped, "autoreset_mode", mode) != mode:
        raise NonConformance(f"autoreset_mode is {env.unwrapped.autoreset_mode}, but metadata say {mode}")  # type: ignore[attr-defined]


def _pair(answer: Any) -> tuple[Any, dict[str, Any]]:
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise NonConformance("reset must return (observations, infos)")
    return answer


def _observation(env: AnyVectorEnv, observation: Any, where: str) -> None:
    if not env.observation_space.contains(observation):
        seen = ", ".join(f"{a.dtype} of shape {a.shape}" for a in _arrays(observation)) or type(observation).__name__
        raise NonConformance(f"{where} gives observations outside {env.observation_space}: {seen}")


def _flags(reward: Any, terminated: Any, truncated: Any, n: int) -> None:
    if not isinstance(reward, np.ndarray) or reward.shape != (n,) or reward.dtype.kind != "f":
        raise NonConformance(f"rewards must be a float array of shape ({n},), got {_described(reward)}")
    if not np.isfinite(reward).all():
        raise NonConformance(f"rewards must be finite, got {reward}")
    for name, flag in (("terminations", terminated), ("truncations", truncated)):
        if not isinstance(flag, np.ndarray) or flag.shape != (n,) or flag.dtype != np.bool_:
            raise NonConformance(f"{name} must be a bool array of shape ({n},), got {_described(flag)}")


def _infos(info: Any, n: int, where: str) -> None:
    if not isinstance(info, dict):
        raise NonConformance(f"{where} must give infos as one dict, got {type(info).__name__}")
    for name, value in info.items():
        if name.startswith("_"):
            if not isinstance(value, np.ndarray) or value.shape != (n,) or value.dtype != np.bool_:
                raise NonConformance(f"{where}: info[{name!r}] must be bool of shape ({n},), got {_described(value)}")
            if name[1:] not in info:
                raise NonConformance(f"{where}: info[{name!r}] says who has {name[1:]!r}, which is not there")
            continue
        if f"_{name}" not in info:
            raise NonConformance(f"{where}: info[{name!r}] lacks info['_{name}'], the mask of the slots that have it")
        if isinstance(value, dict):
            _infos({k: v for k, v in value.items()}, n, f"{where}: info[{name!r}]")
        elif not isinstance(value, np.ndarray) or value.shape[:1] != (n,):
            raise NonConformance(f"{where}: info[{name!r}] must be an array of {n} rows, got {_described(value)}")


def _keys(info: Mapping[str, Any]) -> set[str]:
    return {name for name in info if name.removeprefix("_") not in FINAL}


def _autoreset(
    env: AnyVectorEnv, mode: AutoresetMode, over: Any, ended: Any, reward: Any, info: dict[str, Any], keys: set[str]
) -> None:
    if mode != AutoresetMode.SAME_STEP:
        if any(name in info for name in FINAL):
            raise NonConformance(f"final_obs and final_info belong to SAME_STEP, but the mode is {mode.name}")
        if mode == AutoresetMode.NEXT_STEP and over.any():
            if reward[over].any():
                raise NonConformance(f"NEXT_STEP: the step that resets a slot must give reward 0, got {reward[over]}")
            if ended[over].any():
                raise NonConformance("NEXT_STEP: the step that resets a slot ends its new episode at once")
        return
    if not ended.any():
        return
    for name in FINAL:
        if name not in info:
            raise NonConformance(f"SAME_STEP: an episode ended, and info has no {name!r}")
        if not np.array_equal(info[f"_{name}"], ended):
            raise NonConformance(
                f"SAME_STEP: info['_{name}'] is {info[f'_{name}']}, but the episodes that ended are {ended}"
            )
    for slot in np.flatnonzero(ended):
        if not env.single_observation_space.contains(info["final_obs"][slot]):
            raise NonConformance(f"SAME_STEP: final_obs[{slot}] is outside {env.single_observation_space}")
    if (got := _keys(info["final_info"])) != keys:
        raise NonConformance(f"SAME_STEP: final_info has the keys {sorted(got)}, infos {sorted(keys)}")


def _partial_reset(env: AnyVectorEnv, seed: int, steps: int) -> None:
    before, _ = _pair(env.reset(seed=seed))
    before = copy.deepcopy(before)
    if env.num_envs > 1:
        mask = np.arange(env.num_envs) == 0
        after, _ = _pair(env.reset(options={"reset_mask": mask}))
        rows = zip(iterate(env.observation_space, before), iterate(env.observation_space, after), strict=True)
        if any(not _equal(old, new) for slot, (old, new) in enumerate(rows) if slot):
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
    one, _ = _pair(env.reset(seed=seed))
    one = copy.deepcopy(one)
    other, _ = _pair(env.reset(seed=_many([seed + i for i in range(n)])))
    if not _equal(one, other):
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
            rows = [list(iterate(env.action_space, action))[slot] for action in batch.actions]
            alone = _Run(single, seed + slot, steps, mode, actions=[_row(single, row) for row in rows])
        finally:
            single.close()
        what = f"slot {slot} of seed {seed} and a single slot of seed {seed + slot}"
        for step, (together, by_itself) in enumerate(zip(batch.observations, alone.observations, strict=True)):
            here = list(iterate(env.observation_space, together))[slot]
            if not _equal(here, next(iter(iterate(single.observation_space, by_itself)))):
                raise NonConformance(f"{what} see other observations after {step} steps: seeds depend on num_envs")
        for step, (some, reward) in enumerate(zip(batch.rewards, alone.rewards, strict=True)):
            if repeatable and not np.allclose(some[slot], reward[0], rtol=rtol, atol=rtol):
                raise NonConformance(f"{what} earn {some[slot]} and {reward[0]} in step {step + 1}")


def _row(env: AnyVectorEnv, action: Any) -> Any:
    batch: Any = create_empty_array(env.single_action_space, 1)
    return concatenate(env.single_action_space, [action], batch)


def _same(one: _Run, other: _Run, what: str, repeatable: bool, rtol: float) -> None:
    for step, (a, b) in enumerate(zip(one.observations, other.observations, strict=True)):
        if not _equal(a, b):
            raise NonConformance(f"{what} gave other observations after {step} steps")
    for step, (a, b) in enumerate(zip(one.rewards, other.rewards, strict=True)):
        if repeatable and not np.allclose(a, b, rtol=rtol, atol=0):
            raise NonConformance(f"{what} gave the rewards {b} instead of {a} in step {step + 1}")


def _hand(handed: list[tuple[str, Any, Any]], where: str, *values: Any) -> None:
    for value in values:
        for array in _arrays(value):
            for earlier, before, _ in handed:
                if np.shares_memory(array, before):
                    raise NonConformance(f"{where} hands out memory that {earlier} handed out before: copy it")
            handed.append((where, array, array.copy()))


def _untouched(handed: list[tuple[str, Any, Any]]) -> None:
    for where, array, before in handed:
        if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
            raise NonConformance(f"what {where} handed out was written to by a later step: copy it")


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        if value.dtype != object and value.size:
            yield value
        elif value.dtype == object:
            for item in value:
                yield from _arrays(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _arrays(item)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
