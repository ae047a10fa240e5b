"""What `check_vector_env` holds a single answer against: types, infos, what the end of an episode leaves behind.

Each raises NonConformance, which names the rule and what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from maskaug.envs.errors import NonConformance

AnyVectorEnv = VectorEnv[Any, Any, Any]
FINAL = ("final_obs", "final_info")


def check_spaces(env: AnyVectorEnv) -> None:
    """It is a VectorEnv whose batched spaces are its single ones, batched, and which says its autoreset mode."""
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


def pair(answer: Any) -> tuple[Any, dict[str, Any]]:
    """What `reset` returned, if it is a pair."""
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise NonConformance("reset must return (observations, infos)")
    return answer


def check_observation(env: AnyVectorEnv, observation: Any, where: str) -> None:
    """It lies in the batched space and has its types; `where` names the call in the error."""
    if not env.observation_space.contains(observation):
        seen = ", ".join(f"{a.dtype} of shape {a.shape}" for a in arrays_of(observation)) or type(observation).__name__
        raise NonConformance(f"{where} gives observations outside {env.observation_space}: {seen}")
    check_types(env.observation_space, observation, f"{where} gives observations")


def check_types(space: spaces.Space[Any], value: Any, what: str) -> None:
    """Arrays have exactly their space's types; `contains` is content with any type that could be cast."""
    if isinstance(space, spaces.Dict):
        for name, part in space.items():
            check_types(part, value[name], what)
    elif isinstance(space, spaces.Tuple):
        for part, item in zip(space, value, strict=True):
            check_types(part, item, what)
    elif isinstance(value, np.ndarray) and space.dtype is not None and value.dtype != space.dtype:
        raise NonConformance(f"{what} of {value.dtype}, expected {space.dtype} as {space} says")


def check_flags(reward: Any, terminated: Any, truncated: Any, n: int) -> None:
    """Rewards are finite floats (n,), terminations and truncations bool (n,)."""
    if not isinstance(reward, np.ndarray) or reward.shape != (n,) or reward.dtype.kind != "f":
        raise NonConformance(f"rewards must be a float array of shape ({n},), got {described(reward)}")
    if not np.isfinite(reward).all():
        raise NonConformance(f"rewards must be finite, got {reward}")
    for name, flag in (("terminations", terminated), ("truncations", truncated)):
        if not isinstance(flag, np.ndarray) or flag.shape != (n,) or flag.dtype != np.bool_:
            raise NonConformance(f"{name} must be a bool array of shape ({n},), got {described(flag)}")


def check_infos(info: Any, n: int, where: str) -> None:
    """One dict of arrays of n rows, each with its mask of those who have it, dicts in it likewise."""
    if not isinstance(info, dict):
        raise NonConformance(f"{where} must give infos as one dict, got {type(info).__name__}")
    for name, value in info.items():
        if name.startswith("_"):
            if not isinstance(value, np.ndarray) or value.shape != (n,) or value.dtype != np.bool_:
                raise NonConformance(f"{where}: info[{name!r}] must be bool of shape ({n},), got {described(value)}")
            if name[1:] not in info:
                raise NonConformance(f"{where}: info[{name!r}] says who has {name[1:]!r}, which is not there")
            continue
        if f"_{name}" not in info:
            raise NonConformance(f"{where}: info[{name!r}] lacks info['_{name}'], the mask of the slots that have it")
        if isinstance(value, dict):
            check_infos({k: v for k, v in value.items()}, n, f"{where}: info[{name!r}]")
        elif not isinstance(value, np.ndarray) or value.shape[:1] != (n,):
            raise NonConformance(f"{where}: info[{name!r}] must be an array of {n} rows, got {described(value)}")


def keys_of(info: Mapping[str, Any]) -> set[str]:
    """The keys that `reset` and `step` must have in common."""
    return {name for name in info if name.removeprefix("_") not in FINAL}


def check_autoreset(
    env: AnyVectorEnv, mode: AutoresetMode, over: Any, ended: Any, reward: Any, info: dict[str, Any], keys: set[str]
) -> None:
    """What a step says of ends, as `mode` has it.

    Args:
        env: the environment.
        mode: its autoreset mode.
        over: (n,) bool, the slots whose episode was over before the step.
        ended: (n,) bool, those whose episode ended in it.
        reward: (n,) float.
        info: the step's infos.
        keys: those that `reset` gave.
    """
    if mode != AutoresetMode.SAME_STEP:
        if any(name in info for name in FINAL):
            raise NonConformance(f"final_obs and final_info belong to SAME_STEP, but the mode is {mode.name}")
        if mode == AutoresetMode.NEXT_STEP and over.any():
            if reward[over].any():
                raise NonConformance(f"NEXT_STEP: the step that resets a slot must give reward 0, got {reward[over]}")
            if ended[over].any():
                raise NonConformance("NEXT_STEP: the step that resets a slot ends its new episode at once")
        return
    for name in FINAL:
        if name not in info and not ended.any():
            continue
        if name not in info:
            raise NonConformance(f"SAME_STEP: an episode ended, and info has no {name!r}")
        if not np.array_equal(info[f"_{name}"], ended):
            raise NonConformance(
                f"SAME_STEP: info['_{name}'] is {info[f'_{name}']}, but the episodes that ended are {ended}"
            )
    for slot in np.flatnonzero(ended):
        if not env.single_observation_space.contains(info["final_obs"][slot]):
            raise NonConformance(f"SAME_STEP: final_obs[{slot}] is outside {env.single_observation_space}")
        check_types(env.single_observation_space, info["final_obs"][slot], f"SAME_STEP: final_obs[{slot}] is")
    if ended.any() and (got := keys_of(info["final_info"])) != keys:
        raise NonConformance(f"SAME_STEP: final_info has the keys {sorted(got)}, infos {sorted(keys)}")


def check_boundaries(
    env: AnyVectorEnv, observations: list[Any], infos: list[dict[str, Any]], ended: list[np.ndarray[Any, Any]]
) -> None:
    """SAME_STEP: final_obs and final_info are of the episode's end, not of its start or of the next episode's.

    One equality proves nothing: a game may end where it began, and infos may stand still. A rule is broken where *all*
    ends agree, of all slots or of one, and that would happen by chance less than once in a thousand times, going by how
    often what is compared stands still between ends.

    Args:
        env: the environment.
        observations: T + 1 batches, the reset's first.
        infos: T + 1, likewise.
        ended: T times (n,) bool, the slots whose episode ended in the step.
    """
    rows = [list(iterate(env.observation_space, batch)) for batch in observations]
    rules = {
        "final_obs is always what the observations show: one must be the last of the episode, the other the first of "
        "the next": _Agreement(),
        "final_obs is always the first observation of its episode; it must be the last": _Agreement(),
        "final_info is always what the infos say of the next episode; it must be of the one that ended": _Agreement(),
    }
    following, beginning, telling = rules.values()
    for slot in range(env.num_envs):
        first = rows[0][slot]
        before: dict[str, Any] = _row_without_final(infos[0], slot)
        for step, over in enumerate(ended, 1):
            now, said = rows[step][slot], _row_without_final(infos[step], slot)
            following.still.append((slot, equal(now, rows[step - 1][slot])))
            telling.still.append((slot, equal(said, before)))
            if over[slot]:
                last = row_of(infos[step], slot)
                following.at_ends.append((slot, equal(last["final_obs"], now)))
                beginning.at_ends.append((slot, equal(last["final_obs"], first)))
                telling.at_ends.append((slot, equal(last["final_info"], said)))
                first = now
            else:
                beginning.still.append((slot, equal(now, first)))
            before = said
    for rule, agreement in rules.items():
        for slots in (range(env.num_envs), *([slot] for slot in range(env.num_envs))):
            if agreement.beyond_chance(slots):
                raise NonConformance(f"SAME_STEP: {rule}; seen in slots {[*slots]}")


class _Agreement:
    """(slot, whether two things agreed), at the ends of episodes and wherever it may happen by chance."""

    def __init__(self) -> None:
        self.at_ends: list[tuple[int, bool]] = []
        self.still: list[tuple[int, bool]] = []

    def beyond_chance(self, slots: Sequence[int]) -> bool:
        ends = [agreed for slot, agreed in self.at_ends if slot in slots]
        still = [agreed for slot, agreed in self.still if slot in slots]
        # One more agreement than was seen: what was never looked at may always agree.
        return bool(ends) and all(ends) and ((sum(still) + 1) / (len(still) + 1)) ** len(ends) < 1e-3


def _row_without_final(info: Mapping[str, Any], slot: int) -> dict[str, Any]:
    return {name: value for name, value in row_of(info, slot).items() if name not in FINAL}


def row_of(info: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """What infos say of one slot: only the names that it has, dicts in it likewise."""
    return {
        name: row_of(value, slot) if isinstance(value, dict) else value[slot]
        for name, value in info.items()
        if not name.startswith("_") and info[f"_{name}"][slot]
    }


def arrays_of(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Every array of numbers in a nest of dicts, tuples, lists and arrays of objects."""
    if isinstance(value, np.ndarray):
        if value.dtype != object and value.size:
            yield value
        elif value.dtype == object:
            for item in value:
                yield from arrays_of(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from arrays_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from arrays_of(item)


def equal(a: Any, b: Any, rtol: float = 0.0) -> bool:
    """Whether two such nests are equal, numbers within `rtol`, absolute and relative; NaN equals NaN."""
    if a is None or b is None:
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k], rtol) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(equal(x, y, rtol) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype == object or b.dtype == object:
        if not a.ndim:
            return bool(a.item() == b.item())
        return all(equal(x, y, rtol) for x, y in zip(a.flat, b.flat, strict=True))
    if a.dtype.kind in "iu" and b.dtype.kind == "f":
        a, b = b, a
    if a.dtype.kind == "f" and b.dtype.kind in "iu":
        # Gymnasium's own batches give an info the type of the first slot that has it, and so cut others' fractions off.
        with np.errstate(invalid="ignore"):
            a = a.astype(b.dtype)
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))
    return bool(np.array_equal(a, b))


def described(value: Any) -> str:
    """Type and shape of an array, else the type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
