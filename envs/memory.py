"""Whether a batch fits into a CUDA device's memory, asked before it is a crash in the middle of a run.

A small batch or two is tried, the peak of what torch allocates is taken for linear in the batch, and set against what
is free. That is good to some per cent: convolutions may choose another algorithm for a larger batch. Where a pass runs
out of memory after all, the error says the same.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from maskaug.envs.acceleration import Acceleration
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import to_float

#: the batches that are tried, at most.
PROBES = (4, 16)
Result = TypeVar("Result")


def largest_batch(peak: Callable[[int], int], free: int, wanted: int) -> int:
    """How many images fit at once, as far as small batches tell: `wanted`, or fewer; 0 where not even one fits.

    Args:
        peak: n → bytes that a pass over n images takes at its peak; may raise `torch.OutOfMemoryError`. Asked for
            `PROBES` at most, and for less where they do not fit.
        free: bytes.
        wanted: images, at least 1.

    >>> largest_batch(lambda n: 100 + 10 * n, free=1000, wanted=512)
    90
    """
    small, large = (min(n, wanted) for n in PROBES)
    try:
        least = peak(small)
    except torch.OutOfMemoryError:
        return largest_batch(peak, free, small // 2) if small > 1 else 0
    try:
        most = least if large == small else peak(large)
    except torch.OutOfMemoryError:
        return largest_batch(peak, free, max(small, large // 2))
    if large == wanted and most <= free:
        return wanted
    each = (most - least) / (large - small) if large > small else most / large
    if each <= 0:
        return wanted if most <= free else 0
    return max(0, min(wanted, int((free - (most - large * each)) / each)))


@dataclasses.dataclass(frozen=True)
class Trial:
    """A pass over black images like the real ones; on a copy of the network, so that nothing of it changes.

    Attributes:
        network: the copy. Where it learns, in training mode: forward, backward, and the moments of an Adam; else in
            evaluation mode and without gradient.
        shape: (C, H, W).
        device: where it lives.
        acceleration: how it is computed. The copy is not compiled.
        learns: whether it learns.
    """

    network: nn.Module
    shape: tuple[int, int, int]
    device: torch.device
    acceleration: Acceleration
    learns: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        shape: tuple[int, int, int],
        device: torch.device,
        acceleration: Acceleration,
        *,
        learns: bool,
    ) -> Trial:
        """Of a copy of `model`.

        Raises:
            Uncopyable: it cannot be copied.
        """
        try:
            network = copy.deepcopy(model)
        except Exception as error:  # a network that was brought along may hold anything
            raise Uncopyable from error
        network.zero_grad(set_to_none=True)
        return cls(network.train(learns), shape, device, acceleration, learns)

    def __call__(self, count: int, meanwhile: Callable[[], None] | None = None) -> None:
        """Once, over `count` images; `meanwhile` is called while they wait for their gradient."""
        # What a network may draw, for dropout, is drawn again by whoever is next. Images, hidden, and as shown.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            images = [torch.zeros(count, *self.shape, dtype=torch.uint8, device=self.device) for _ in range(3)]
            with torch.set_grad_enabled(self.learns):
                answer = self.acceleration.forward(self.network, to_float(images[0]))
                if meanwhile is not None:
                    meanwhile()
                if answer.requires_grad:
                    answer.square().mean().backward()  # type: ignore[no-untyped-call]
        moments = [torch.empty_like(p) for p in self.network.parameters() if self.learns for _ in range(2)]
        del moments
        self.network.zero_grad(set_to_none=True)


class Uncopyable(Exception):  # noqa: N818 (nobody sees it)
    """A network that `copy.deepcopy` refuses: what it takes is not known before it is used."""


@dataclasses.dataclass(frozen=True)
class Demand:
    """A pass whose memory grows with a keyword.

    Attributes:
        keyword: its name.
        value: what it is.
        images: how many images go through a network at once then.
        trial: n → try n images.
        each: images for each unit of the keyword.
        shared: processes among which the keyword's value is shared; `images` are those of one.
    """

    keyword: str
    value: int
    images: int
    trial: Callable[[int], None]
    each: int = 1
    shared: int = 1


#: what there is to ask for; made only when asked, since it copies networks.
Demands = Callable[[], Sequence[Demand]]


def check(demands: Demands, device: torch.device) -> None:
    """Refuse a batch that does not fit. Nothing is tried but on CUDA; its peak statistics are reset.

    Raises:
        ConfigurationError: it says the largest that fits.
    """
    if device.type != "cuda":
        return
    for demand in _copied(demands):
        fits, free = _measure(demand, device)
        if fits < demand.images:
            raise _does_not_fit(demand, fits, free, device)


def explained(work: Callable[[], Result], demands: Demands, device: torch.device, keyword: str | None = None) -> Result:
    """What `work` returns; where it runs out of memory, the error says what would fit.

    Args:
        work: called once.
        demands: what it may have asked too much for.
        device: where.
        keyword: the one of them that it was, where that is known.

    Raises:
        ConfigurationError: in place of `torch.OutOfMemoryError`.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())[:200]
    # Out here, what the pass that failed had is free again.
    asked = [d for d in (_copied(demands) if device.type == "cuda" else []) if keyword in (None, d.keyword)]
    for demand in asked:
        fits, free = _measure(demand, device)
        if fits < demand.images:
            raise _does_not_fit(demand, fits, free, device)
    raise ConfigurationError(
        f"{_name(device)} ran out of memory ({said}); use a smaller {keyword or 'num_envs'}, or free what else is "
        "held there"
    )


def free_bytes(device: torch.device) -> int:
    """What torch can still allocate on a CUDA device: what is free there, and what torch holds without using it."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - held
    return min(free, allowed) + held - torch.cuda.memory_allocated(device)


def _copied(demands: Demands) -> Sequence[Demand]:
    try:
        return demands()
    except Uncopyable:
        return []
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"there is no memory left for a second copy of the network ({' '.join(str(error).split())[:200]}); use a "
            "smaller network, or free what else is held there"
        ) from None


def _measure(demand: Demand, device: torch.device) -> tuple[int, int]:
    """(images that fit, bytes that are free)."""

    def peak(count: int) -> int:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        demand.trial(count)
        return torch.cuda.max_memory_allocated(device) - before

    # What a first pass sets up once and for all (cuBLAS's workspace, kernels) is not the batch's.
    with contextlib.suppress(torch.OutOfMemoryError):
        demand.trial(min(PROBES[0], demand.images))
    free = free_bytes(device)
    return largest_batch(peak, free, demand.images), free


def _does_not_fit(demand: Demand, images: int, free: int, device: torch.device) -> ConfigurationError:
    fits = images // demand.each * demand.shared
    room = f"the {free / 2**30:.1f} GiB that are free on {_name(device)}"
    if fits == 0:
        return ConfigurationError(
            f"{demand.keyword}={demand.value} does not fit: not even 1 fits into {room}; use a smaller image_size or "
            "network, or free what else is held there"
        )
    return ConfigurationError(
        f"{demand.keyword}={demand.value} does not fit: about {fits} fit into {room}; use {demand.keyword}={fits}"
    )


def _name(device: torch.device) -> str:
    if device.type != "cuda" or device.index is not None:
        return str(device)
    return f"cuda:{torch.cuda.current_device()}"
