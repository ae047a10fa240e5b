"""One game in several processes, as torchrun starts them: each plays its share of the slots, and all learn as one.

Slots keep their numbers: rank r of W plays slots r·N/W … (r + 1)·N/W − 1 of N, so that slot i of seed s sees the same
images however many processes there are. What is drawn for a batch is drawn on every rank for the whole of it, from the
same generator, and each takes its own rows; what is computed over a batch (advantages, baselines, the judge's queue) is
computed from what all ranks have gathered. Gradients are averaged by DistributedDataParallel: shares are equal, so that
this is the mean over the whole batch. What W processes learn is what one would have learnt, but for rounding.

All ranks play in step: whatever is said here to be for all of them has to be called by each, in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maskaug.envs.devices import resolve_device
from maskaug.envs.errors import ConfigurationError, MaskAugError
from maskaug.envs.torchrun import Place, place

#: how long a rank waits for what all of them compute at the same time.
TIMEOUT = datetime.timedelta(minutes=30)
#: how long the others wait for what the first does alone: looking at held-out images, training a judge beforehand.
PATIENCE = datetime.timedelta(days=7)

#: of each time that this process has joined: names of an earlier one would be answered by what is no longer there.
_joined = itertools.count()
Value = TypeVar("Value")


class RankError(MaskAugError, RuntimeError):
    """Another process of this run has failed, or cannot be reached."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes that play one game, seen from one of them; `ALONE` is the only one, and asks nobody.

    Attributes:
        rank: this one's number.
        world: how many there are.
        device: where this one computes; None: wherever it is asked to.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    _waiting: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and looks at held-out images."""
        return self.rank == 0

    # ---- its share -----------------------------------------------------------------------------------------------

    def share(self, count: int, keyword: str) -> int:
        """How many of `count` are this rank's; shares that are not equal are an error that names the `keyword`."""
        if count % self.world:
            raise ConfigurationError(
                f"{keyword}={count} cannot be shared equally by the {self.world} processes of torchrun; use a multiple "
                f"of {self.world}, {-(-count // self.world) * self.world} for example"
            )
        return count // self.world

    def rows(self, count: int) -> slice:
        """Which of the `count` rows of all ranks are its own."""
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def rand(self, *shape: int, generator: torch.Generator, dim: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform draws from [0, 1) on the CPU: its rows along `dim` of what is drawn for all ranks.

        The generators of all ranks stay the same, and a row's draws do not depend on how many ranks there are.
        """
        whole = [size * (self.world if axis == dim else 1) for axis, size in enumerate(shape)]
        return torch.rand(whole, generator=generator, dtype=dtype).narrow(dim, self.rank * shape[dim], shape[dim])

    # ---- for all ranks at the same time --------------------------------------------------------------------------

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` as it has to be called in order to learn: its gradients are then the mean of those of all ranks.

        It starts with the first rank's weights and buffers. What its own passes do to buffers: see `average`.
        """
        if self.alone or not any(p.requires_grad for p in network.parameters()):
            return network
        return DistributedDataParallel(network)

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        """The rows of all ranks, in their order, along `dim`; each has as many."""
        if self.alone:
            return rows
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts, dim)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value's mean over the ranks."""
        if self.alone:
            return dict(values)
        total = torch.tensor([*values.values()], dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.world).tolist(), strict=True))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put into every tensor of floats the mean over the ranks: batch norm's statistics, after an update."""
        if self.alone:
            return
        for tensor in tensors:
            if tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor.div_(self.world)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Put into every tensor what the first rank has there; waits for it as long as it takes."""
        self.wait()
        if not self.alone:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def from_first(self, value: Value) -> Value:
        """The first rank's value; waits for it as long as it takes."""
        if self.alone:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, self._waiting)
        return values[0]

    def everyone(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if self.alone:
            return [value]
        values: list[Value | None] = [None] * self.world
        dist.all_gather_object(values, value, self._waiting)
        return cast(list[Value], values)

    def wait(self) -> None:
        """Until all ranks are here, as long as it takes."""
        if not self.alone:
            dist.barrier(self._waiting)


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks of this run, inside; `ALONE` where torchrun started this process by itself, or not at all.

    Tensors on a CPU go from one to another by gloo, those on CUDA devices by NCCL. What fails on one rank ends all of
    them: by torchrun, which ends the others, and at once by the connections that it leaves. What fails in the same way
    on all of them is raised on one; the others, and those that only miss another, leave with status 2.

    Args:
        device: "auto", "cpu" or "cuda"; each process takes the CUDA device of its own number on its machine.

    Raises:
        ConfigurationError: the device is one by its number, or there are fewer than processes.
        RankError: another one has gone and has said nothing.
    """
    here = place()
    if here.world == 1:
        yield ALONE
        return
    shared, *_ = next(rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"maskaug/{next(_joined)}", shared)  # type: ignore[attr-defined]
    ended = False
    try:
        where = _device_of(device, here)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world, timeout=TIMEOUT)
        waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
        ranks = Ranks(here.rank, here.world, where, waiting)
        with warnings.catch_warnings():
            # Of convolutions of one channel, where two layouts are one and cost the same.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            if not ranks.first:
                # The first says it.
                warnings.simplefilter("ignore", UserWarning)
            yield ranks
        ranks.wait()
        ended = True
    except Exception as error:
        if _lost(error):
            lost = RankError(
                f"another process of this run has failed, or cannot be reached ({' '.join(str(error).split())[:200]}); "
                "its own message says why; --resume continues the run"
            )
            if store.check(["failed"]):
                raise SystemExit(2) from lost
            raise lost from error
        # Before the connections close: the others look for it.
        store.set("failed", str(here.rank))
        if store.add(hashlib.sha256(str(error).encode()).hexdigest(), 1) > 1:
            raise SystemExit(2) from error
        raise
    finally:
        # NCCL waits for the others here, and who has failed has something to say first: its end closes the connections.
        if dist.is_initialized() and (ended or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def _device_of(device: str, here: Place) -> torch.device:
    kind = resolve_device(device)
    if kind.type != "cuda":
        return kind
    if device not in ("auto", "cuda"):
        raise ConfigurationError(f"device={device!r} is one device, and each process has its own; use device='cuda'")
    if here.local >= torch.cuda.device_count():
        raise ConfigurationError(
            f"torch sees {torch.cuda.device_count()} CUDA devices here, and torchrun started a process number "
            f"{here.local + 1}; use --nproc-per-node={torch.cuda.device_count()}, or device='cpu'"
        )
    return torch.device("cuda", here.local)


def _lost(error: Exception) -> bool:
    # gloo raises bare RuntimeErrors, which name its own source files.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
