"""Everything that an algorithm of Stable-Baselines3 changes while it learns, for an exact resume."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

#: numbers that some or all algorithms count in.
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate")
#: what a replay buffer holds.
REPLAY = ("observations", "actions", "rewards", "dones")


class Draws:
    """SB3 draws from the global generators. Inside, these are this object's own; outside, nobody notices.

    Args:
        seed: of all of them.
        device: a CUDA device has a generator besides.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._own: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        before = self._read()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        self._own = self._read()
        self._write(before)

    def __enter__(self) -> Self:
        # SB3 seeds Python's generator too, and draws nothing from it.
        self._others = {**self._read(), "python": random.getstate()}
        self._write(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._own = self._read()
        self._write(self._others)
        random.setstate(self._others["python"])

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Outside again for a while."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def state(self) -> dict[str, Any]:
        """The own generators', as seen from outside."""
        return dict(self._own)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self._own = {**self._own, **state}

    def _read(self) -> dict[str, Any]:
        found = {"torch": torch.get_rng_state(), "numpy": list(np.random.get_state())}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def _write(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        np.random.set_state(tuple(state["numpy"]))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def state_of(algorithm: Any) -> dict[str, Any]:
    """Between two updates: weights and optimisers, counters, and what is remembered. Tensors, arrays and JSON.

    Replay is the largest part: `buffer_size` images.
    """
    learning: dict[str, Any] = {name: getattr(algorithm, name) for name in COUNTERS if hasattr(algorithm, name)}
    learning["starts"] = algorithm._last_episode_starts
    learning["actions"] = algorithm.action_space.np_random.bit_generator.state
    if getattr(algorithm, "log_ent_coef", None) is not None:
        learning["log_ent_coef"] = algorithm.log_ent_coef.detach()
    if hasattr(algorithm, "_last_lstm_states"):
        learning["memory"] = [list(pair) for pair in algorithm._last_lstm_states]
    if (replay := getattr(algorithm, "replay_buffer", None)) is not None:
        # The row after the last holds the image that followed.
        rows = replay.buffer_size if replay.full else replay.pos + 1
        learning["replay"] = {
            "pos": replay.pos, "full": replay.full, **{name: getattr(replay, name)[:rows] for name in REPLAY},
        }  # fmt: skip
    return {"policy": algorithm.get_parameters(), "learning": learning}


def load_state(algorithm: Any, state: Mapping[str, Any], observation: npt.NDArray[np.uint8]) -> None:
    """Put back what `state_of` gave.

    Args:
        algorithm: made with the same arguments.
        state: with "policy" and "learning".
        observation: (N, C, H, W) uint8, what the environments see now.
    """
    algorithm.set_parameters(state["policy"], exact_match=True, device=algorithm.device)
    learning = state["learning"]
    for name in COUNTERS:
        if name in learning:
            setattr(algorithm, name, learning[name])
    algorithm._last_obs, algorithm._last_episode_starts = observation, learning["starts"]
    algorithm.action_space.np_random.bit_generator.state = learning["actions"]
    if "log_ent_coef" in learning:
        with torch.no_grad():
            algorithm.log_ent_coef.copy_(learning["log_ent_coef"])
    if "memory" in learning:
        pairs = [tuple(part.to(algorithm.device) for part in pair) for pair in learning["memory"]]
        algorithm._last_lstm_states = type(algorithm._last_lstm_states)(*pairs)
    if "replay" in learning:
        saved, replay = learning["replay"], algorithm.replay_buffer
        replay.pos, replay.full = saved["pos"], saved["full"]
        for name in REPLAY:
            getattr(replay, name)[: len(saved[name])] = saved[name]
