"""Which of torchrun's processes this one is; without torch, for whoever only wants to know that."""

from __future__ import annotations

import os
from typing import NamedTuple


class Place(NamedTuple):
    """A process among those that torchrun started.

    Attributes:
        rank: its number, from 0.
        world: how many there are, on all machines.
        local: its number on its own machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


def place() -> Place:
    """Where this process stands; alone where torchrun did not start it.

    WORLD_SIZE by itself says nothing: other launchers set it, too, for programs that know nothing of torch.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
