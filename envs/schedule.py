"""Which image each slot of a game sees, and at which try: every slot goes through all of them in its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.generators import generator_of

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Schedule:
    """N slots at their places in a data set.

    Args:
        num_envs: N.
        count: how many images there are.
        repeat: tries on one image before the next.
        flip: show an image mirrored with probability ½, drawn anew each time that a slot comes to it.

    Attributes:
        rngs: each slot's generator; empty before `seed`.
        order: (N, count) int64, the permutation of the images that each slot goes through.
        position: (N,) int64, its place there.
        tries: (N,) int64, the try on its image, from 0.
        flipped: (N,) bool, whether it sees its image mirrored.
    """

    def __init__(self, num_envs: int, count: int, *, repeat: int, flip: bool) -> None:
        self.count, self.repeat, self.flip = count, repeat, flip
        self.rngs: list[np.random.Generator] = []
        self.order = np.zeros((num_envs, count), np.int64)
        self.position = np.zeros(num_envs, np.int64)
        self.flipped = np.zeros(num_envs, np.bool_)
        self.tries = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs)

    @property
    def index(self) -> Numbers:
        """(N,) the images that the slots see now, as positions in the data set."""
        return self.order[self._rows, self.position]

    @property
    def picture(self) -> Numbers:
        """(N,) what the slots see now, as numbers in `Pictures`: `index`, where it is mirrored `count` more."""
        return self.index + self.count * self.flipped

    def seed(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start every slot anew, each with its own generator and its own permutation of the images."""
        self.rngs = list(rngs)
        for slot, rng in enumerate(self.rngs):
            self.order[slot] = rng.permutation(self.count)
        self.position[:] = 0
        self.tries[:] = 0
        self._mirror(np.arange(len(self.order)))

    def end_try(self, slots: Flags | None) -> Numbers:
        """The try of the given slots, (N,) bool (None: all), is over: the numbers of those whose image is done."""
        self.tries += 1 if slots is None else slots
        return np.flatnonzero(self.tries == self.repeat)

    def next_image(self, done: Numbers) -> None:
        """These slots go on to their next image; whoever has seen all of them draws a new order."""
        self.tries[done] = 0
        self.position[done] += 1
        for slot in np.flatnonzero(self.position == self.count):
            self.order[slot] = self.rngs[slot].permutation(self.count)
            self.position[slot] = 0
        self._mirror(done)

    def _mirror(self, slots: Numbers) -> None:
        # By each slot's own generator: a slot and a single environment of its seed see the same.
        if self.flip:
            for slot in slots:
                self.flipped[slot] = self.rngs[slot].random() < 0.5

    def following(self, ending: Flags) -> Numbers | None:
        """The images, (N,), that will be seen once the try of the `ending` slots, (N,) bool, is over.

        None where they are those of now, or not known: whoever has seen all images draws a new order first.
        """
        over = ending & (self.tries + 1 == self.repeat)
        following = self.position + over
        if over.any() and (following < self.count).all():
            images: Numbers = self.order[self._rows, following]
            return images
        return None

    def state(self) -> dict[str, Any]:
        """All of it, copied."""
        return {
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "order": self.order.copy(),
            "position": self.position.copy(),
            "try": self.tries.copy(),
            "flipped": self.flipped.copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, of as many slots and images."""
        self.rngs = [generator_of(saved) for saved in state["rngs"]]
        self.order[:], self.position[:], self.tries[:] = state["order"], state["position"], state["try"]
        self.flipped[:] = state["flipped"]
