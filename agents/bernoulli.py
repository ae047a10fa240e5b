"""Independent draws of every cell: a set of any size, and the paper's BCE as minus its log-probability."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from maskaug.envs.distributed import ALONE, Ranks


def sample(logits: Tensor, draws: int, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Random sets: logits (N, M) → (draws, N, M) bool, each cell with probability sigmoid(logit).

    Args:
        logits: (N, M), any device.
        draws: number of independent sets for each row.
        generator: on the CPU, so that a seed means the same on every device.
        ranks: whose rows these are a part of; see `Ranks.rand`.
    """
    uniform = ranks.rand(draws, *logits.shape, generator=generator, dim=1).to(logits.device)
    return uniform < logits.detach().sigmoid()


def log_prob(logits: Tensor, chosen: Tensor) -> Tensor:
    """Exact log-probability of sets (S, N, M) bool, differentiable in `logits` (N, M): (S, N).

    >>> log_prob(torch.tensor([[0.0, 0.0]]), torch.tensor([[[True, False]]])).exp()
    tensor([[0.2500]])
    """
    expanded = logits.expand(chosen.shape)
    return -functional.binary_cross_entropy_with_logits(expanded, chosen.to(logits.dtype), reduction="none").sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of a cell, in nats: logits (N, M) → (N,), differentiable."""
    p = logits.sigmoid()
    return functional.binary_cross_entropy_with_logits(logits, p, reduction="none").mean(1)
