"""`check_vector_env` passes what keeps the rules, and names what does not."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import maskaug  # noqa: F401
from maskaug.envs import check_vector_env
from maskaug.envs.errors import NonConformance

LENGTH = 2


class Counters(VectorEnv[Any, Any, Any]):
    """N counters that start at a random place: action 1 counts up and pays the count; an episode has one or two steps.

    `fault` plants one violation of the rules.
    """

    def __init__(self, num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, fault: str = "") -> None:
        self.num_envs, self.mode, self.fault = num_envs, mode, fault
        self.metadata = {"autoreset_mode": mode.name if fault == "mode is a string" else mode}
        self.single_observation_space = Box(0, 255, (2,), np.int64 if fault == "cast observations" else np.uint8)
        if fault == "attribute":
            self.autoreset_mode = AutoresetMode.DISABLED
        if fault == "other spaces" and num_envs == 1:
            self.single_observation_space = Box(0, 200, (2,), np.uint8)
        self.steps_played = 0
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs + (fault == "too many actions"))
        self.rngs: list[np.random.Generator] = []
        self.count, self.age = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self.over = np.zeros(num_envs, np.bool_)
        self.buffer = np.zeros((num_envs, 2), np.uint8)

    def rows(self) -> Any:
        return np.stack([self.count, self.age], 1).astype(np.uint8)

    def observe(self) -> Any:
        seen = self.rows()
        self.shown = seen
        if self.fault == "float observations":
            return seen.astype(np.float32)
        if self.fault == "one buffer":
            self.buffer[:] = seen
            return self.buffer
        return seen

    def info(self) -> dict[str, Any]:
        there = np.ones(self.num_envs, np.bool_)
        return {"count": self.count.copy() if self.fault != "its own count" else self.count, "_count": there}

    def start(self, slot: int) -> None:
        # Ages differ, so that episodes do not all end together.
        self.count[slot], self.age[slot] = self.rngs[slot].integers(10), self.rngs[slot].integers(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and self.fault != "reset_mask ignored":
            mask = options["reset_mask"]
        if seed is not None:
            step = 0 if self.fault == "one seed for all" else self.num_envs if self.fault == "seed times N" else 1
            seeds = [seed + i * step for i in range(self.num_envs)] if isinstance(seed, int) else seed
            if self.fault == "seed of the first":
                seeds = [seeds[0]] * len(seeds)
            if len(seeds) != self.num_envs and self.fault != "any number of seeds":
                raise ValueError("wrong number of seeds")
            self.rngs = [np.random.default_rng(s) for s in seeds]
            if self.fault == "seeds of N":
                self.rngs = [np.random.default_rng([s, self.num_envs]) for s in seeds]
            if self.fault == "no seeding":
                self.rngs = [np.random.default_rng() for _ in range(self.num_envs)]
        again = options is not None
        for slot in np.flatnonzero(mask):
            if again and self.fault == "reset_mask resets the clock alone":
                self.age[slot] = 0
            elif not (again and self.fault == "reset_mask resets nothing"):
                self.start(int(slot))
            if again and self.fault == "reset_mask leaves the clock":
                self.age[slot] = LENGTH - 1
        self.first = self.rows()
        if self.fault == "others grow younger" and not mask.all():
            self.age[~mask] = 0
        self.over[mask] = False
        if self.fault == "writes into reset_mask":
            mask[:] = True
        info = self.info()
        if self.fault == "keys of a partial reset" and options is not None:
            info |= {"only_here": np.zeros(self.num_envs), "_only_here": np.ones(self.num_envs, np.bool_)}
        if self.fault == "other keys":
            info |= {"only_here": np.zeros(self.num_envs), "_only_here": np.ones(self.num_envs, np.bool_)}
        if self.fault == "no info":
            return self.observe()
        return self.observe(), info

    def step(self, actions: Any) -> Any:
        if self.fault == "writes into actions":
            actions[:] = 0
        nobody = np.zeros(self.num_envs, np.bool_)
        begins = self.over.copy()
        if begins.any() and self.mode != AutoresetMode.NEXT_STEP:
            raise RuntimeError("reset first")
        if self.fault == "plays from what it gave":
            self.count = self.shown[:, 0].astype(np.int64)
        self.count += np.asarray(actions)
        self.age += 1
        reward = (self.count * np.asarray(actions)).astype(np.float64)
        reward[begins] = float(self.fault == "paid for a reset")
        for slot in np.flatnonzero(begins):
            if self.fault == "never draws":
                self.age[slot] = 0
            else:
                self.start(int(slot))
        ended = (self.age >= LENGTH) & ~begins
        self.steps_played += 1
        if self.fault == "ends at once":
            ended |= begins
        if self.fault == "reward of all slots":
            reward = np.full(self.num_envs, reward.sum())
        if self.fault == "rewards rolled":
            reward = np.roll(reward, 1)
        if self.fault == "NaN":
            reward[:] = np.nan
        if self.fault == "list of rewards":
            return self.observe(), reward.tolist(), ended, nobody, self.info()
        if self.fault == "integer flags":
            return self.observe(), reward, ended.astype(int), nobody, self.info()
        if self.fault == "four values":
            return self.observe(), reward, ended, self.info()
        last = self.rows()
        judged, first = self.info(), self.first.copy()
        if self.mode == AutoresetMode.SAME_STEP:
            for slot in np.flatnonzero(ended):
                self.start(int(slot))
        else:
            self.over = ended.copy()
        self.first[ended] = self.rows()[ended]
        info = self.info()
        if self.fault == "counts steps":
            info["count"][:] = self.steps_played
        if self.fault == "no presence":
            del info["_count"]
        if self.fault == "list of infos":
            return self.observe(), reward, ended, nobody, [info]
        if self.mode == AutoresetMode.SAME_STEP and ended.any() and self.fault != "no final_obs":
            present = ended.copy() if self.fault != "final of all" else ~nobody
            info |= {"final_obs": last, "_final_obs": present, "final_info": judged, "_final_info": present.copy()}
            if self.fault == "final_obs is the next":
                info["final_obs"] = self.observe()
            if self.fault == "final_obs of slot 0 is the next":
                last[0] = self.rows()[0]
            if self.fault == "final_obs of the neighbour":
                info["final_obs"] = np.roll(last, 1, axis=0)
            if self.fault == "final_info of the neighbour":
                info["final_info"] = {**judged, "count": np.roll(judged["count"], 1)}
            if self.fault == "final_obs is the first":
                info["final_obs"] = first
            if self.fault == "final_info is the next":
                info["final_info"] = self.info()
            if self.fault == "final_obs cast":
                info["final_obs"] = last.astype(np.float64)
            if self.fault == "final_info without count":
                info["final_info"] = {}
        if self.mode == AutoresetMode.SAME_STEP and not ended.any() and self.fault == "final of nobody":
            info |= {"final_obs": last, "_final_obs": ~nobody, "final_info": judged, "_final_info": ~nobody}
        if self.mode != AutoresetMode.SAME_STEP and self.fault == "final_obs in vain":
            info |= {"final_obs": last, "_final_obs": ended.copy()}
        return self.observe(), reward, ended, nobody, info

    def close(self, **kwargs: Any) -> None:
        if self.fault == "closed twice" and self.closed:
            raise RuntimeError("closed already")
        super().close(**kwargs)


NEXT, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
FAULTS: dict[str, tuple[AutoresetMode, str]] = {
    "mode is a string": (AutoresetMode.SAME_STEP, "autoreset_mode"),
    "too many actions": (AutoresetMode.SAME_STEP, "action_space is"),
    "float observations": (AutoresetMode.SAME_STEP, "float32"),
    "one buffer": (AutoresetMode.SAME_STEP, "written to by a later step|memory that"),
    "its own count": (AutoresetMode.SAME_STEP, "written to by a later step|memory that"),
    "plays from what it gave": (AutoresetMode.SAME_STEP, "overwritten by the caller gave other observations"),
    "no info": (AutoresetMode.SAME_STEP, r"reset must return \(observations, infos\)"),
    "other keys": (AutoresetMode.SAME_STEP, "info keys"),
    "no seeding": (AutoresetMode.SAME_STEP, "the same seed and actions"),
    "any number of seeds": (AutoresetMode.SAME_STEP, "4 seeds for 3 slots"),
    "one seed for all": (AutoresetMode.SAME_STEP, r"reset\(seed=s\) and reset\(seed=\[s, s \+ 1"),
    "writes into actions": (AutoresetMode.SAME_STEP, "wrote into the actions"),
    "list of rewards": (AutoresetMode.SAME_STEP, "rewards must be a float array"),
    "NaN": (AutoresetMode.SAME_STEP, "finite"),
    "integer flags": (AutoresetMode.SAME_STEP, "terminations must be a bool array"),
    "four values": (AutoresetMode.SAME_STEP, "step must return"),
    "no presence": (AutoresetMode.SAME_STEP, "lacks info"),
    "list of infos": (AutoresetMode.SAME_STEP, "one dict"),
    "no final_obs": (AutoresetMode.SAME_STEP, "no 'final_obs'"),
    "final of all": (AutoresetMode.SAME_STEP, "_final_obs"),
    "final_obs cast": (AutoresetMode.SAME_STEP, "final_obs.* is outside"),
    "final_info without count": (AutoresetMode.SAME_STEP, "final_info has the keys"),
    "paid for a reset": (NEXT, "must give reward 0"),
    "final_obs in vain": (NEXT, "belong to SAME_STEP"),
    "ends at once": (NEXT, "ends its new episode at once"),
    "never draws": (NEXT, "NEXT_STEP: the step after an end does not begin the episode that reset"),
    "reset_mask resets nothing": (DISABLED, "a reset with reset_mask does not begin the episode that reset"),
    "reset_mask resets the clock alone": (DISABLED, "a reset with reset_mask does not begin the episode that reset"),
    "reset_mask leaves the clock": (DISABLED, "a reset with reset_mask does not begin the episode that reset"),
    "others grow younger": (DISABLED, "slots that it does not name"),
    "writes into reset_mask": (DISABLED, "wrote into the reset_mask"),
    "keys of a partial reset": (DISABLED, "reset with reset_mask gives the info keys"),
    "attribute": (AutoresetMode.SAME_STEP, "autoreset_mode is .*DISABLED.*, but metadata say"),
    "cast observations": (AutoresetMode.SAME_STEP, "reset gives observations of uint8, expected int64"),
    "other spaces": (AutoresetMode.SAME_STEP, "single_observation_space is .*, of a single slot"),
    "seed times N": (AutoresetMode.SAME_STEP, r"reset\(seed=s\) and reset\(seed=\[s, s \+ 1"),
    "seeds of N": (AutoresetMode.SAME_STEP, "seeds depend on num_envs"),
    "counts steps": (AutoresetMode.SAME_STEP, r"the same seed and actions gave other infos \['count'\]"),
    "final_obs is the next": (AutoresetMode.SAME_STEP, "final_obs is always what the observations show"),
    "final of nobody": (AutoresetMode.SAME_STEP, "_final_obs.* but the episodes that ended are"),
    "closed twice": (AutoresetMode.SAME_STEP, "close must work, and do nothing when it is called again"),
    "reset_mask ignored": (DISABLED, "slots that it does not name"),
    "final_obs of slot 0 is the next": (AutoresetMode.SAME_STEP, r"final_obs is always what .* seen in slots \[0\]"),
    "final_obs is the first": (AutoresetMode.SAME_STEP, "final_obs is always the first observation of its episode"),
    "final_info is the next": (AutoresetMode.SAME_STEP, "final_info is always what the infos say of the next"),
    "final_obs of the neighbour": (AutoresetMode.SAME_STEP, r"a single slot of seed 0 are told other \['final_obs'\]"),
    "final_info of the neighbour": (AutoresetMode.SAME_STEP, r"are told other \['final_info'\]"),
    "rewards rolled": (AutoresetMode.SAME_STEP, "slot 0 of seed 0 and a single slot of seed 0 earn"),
    "seed of the first": (AutoresetMode.SAME_STEP, "slot 1 of seed 0 and a single slot of seed 1 see other"),
    "reward of all slots": (AutoresetMode.SAME_STEP, "slot 0 of seed 0 and a single slot of seed 0 earn"),
}


def maker(mode: AutoresetMode, fault: str = "") -> Callable[[int], Counters]:
    return lambda n: Counters(n, mode, fault)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_environment_that_keeps_the_rules_passes(mode: AutoresetMode) -> None:
    check_vector_env(Counters(3, mode), make=maker(mode))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault: str) -> None:
    mode, message = FAULTS[fault]
    with pytest.raises(NonConformance, match=message):
        check_vector_env(Counters(3, mode, fault), make=maker(mode, fault), steps=10)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    "fault", ["rewards rolled", "seed of the first", "final_obs of the neighbour", "final_info of the neighbour"]
)
def test_slots_that_mix_are_seen_without_make(fault: str, n: int) -> None:
    with pytest.raises(NonConformance, match=rf"slot {n - 1} of the seeds \[0, 1"):
        check_vector_env(Counters(n, fault=fault), steps=10)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", AutoresetMode)
def test_no_seed_raises_a_false_alarm(mode: AutoresetMode, seed: int) -> None:
    check_vector_env(Counters(2, mode), make=maker(mode), seed=seed, steps=4)


def test_steps_must_see_an_end() -> None:
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(NonConformance, match="no episode ended in 3 steps"):
        check_vector_env(env, steps=3)


def test_repeatable_leaves_rewards_out() -> None:
    class Judged(Counters):
        played = 0

        def step(self, actions: Any) -> Any:
            self.played += 1
            observation, reward, *rest = super().step(actions)
            return observation, reward + self.played, *rest

    with pytest.raises(NonConformance, match="the rewards"):
        check_vector_env(Judged(2))
    check_vector_env(Judged(2), repeatable=False)


def test_the_seed_and_the_tolerance_are_used() -> None:
    seeds = []

    class Watched(Counters):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

        def step(self, actions: Any) -> Any:
            observation, reward, *rest = super().step(actions)
            return observation, reward * (1 + 1e-3 * (self.num_envs == 1)), *rest

    check_vector_env(Watched(2), make=Watched, seed=7, rtol=1e-2)
    assert {seed for seed in seeds if isinstance(seed, int)} == {7, 8}
    with pytest.raises(NonConformance, match="earn"):
        check_vector_env(Watched(2), make=Watched, seed=7)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"steps": 3},
        {"objective": "reconstruction", "action": "patch"},
        {"fill": "noise", "repeat": 2, "flip": True},
    ],
    ids=lambda keywords: "-".join(keywords) or "default",
)
def test_ours_pass_in_every_mode(mode: AutoresetMode, keywords: dict[str, Any]) -> None:
    def make(n: int) -> Any:
        return gym.make_vec("MaskAug-Synthetic-v0", n, n=40, autoreset_mode=mode.name, **keywords)

    # The judge learns along: the same masks are worth something else the second time.
    check_vector_env(make(3), make=make, repeatable=False)
