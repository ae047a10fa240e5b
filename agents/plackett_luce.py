"""The Plackett-Luce distribution over ordered draws of k of M cells without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from maskaug.envs.distributed import ALONE, Ranks


def sample(logits: Tensor, draws: int, generator: torch.Generator, ranks: Ranks = ALONE) -> Tensor:
    """Full random orders: logits (N, M) → (draws, N, M) int64; the first k entries of an order are a draw of k.

    Adding Gumbel noise and sorting draws exactly from the distribution (Yellott 1977).

    Args:
        logits: (N, M), any device.
        draws: number of independent orders for each row.
        generator: on the CPU, so that a seed means the same on every device.
        ranks: whose rows these are a part of; see `Ranks.rand`.
    """
    uniform = ranks.rand(draws, *logits.shape, generator=generator, dim=1, dtype=torch.float64)
    uniform = uniform.clamp_(1e-12, 1 - 1e-12)
    gumbel = -torch.log(-torch.log(uniform))
    return (logits.detach() + gumbel.to(logits.device, logits.dtype)).argsort(dim=-1, descending=True)


def log_prob(logits: Tensor, orders: Tensor, k: int) -> Tensor:
    """Exact log-probability of the first k entries of each order, differentiable in `logits`.

    log p = Σ_{j<k} (s[o_j] − log Σ_{i≥j} exp s[o_i]): each cell is drawn from those that are left.

    Args:
        logits: (N, M).
        orders: (S, N, M) int64, from `sample`.
        k: how many of each order were drawn.

    Returns:
        (S, N).
    """
    ordered = logits.expand(orders.shape).gather(-1, orders)
    left = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    return (ordered - left)[..., :k].sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Of the first drawn cell, in nats: logits (N, M) → (N,), differentiable."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def to_cells(orders: Tensor, k: int, grid: int) -> Tensor:
    """The first k entries of orders (…, g·g) as cells (…, g, g) bool."""
    flat = torch.zeros(orders.shape, dtype=torch.bool, device=orders.device)
    flat.scatter_(-1, orders[..., :k], True)
    return flat.view(*orders.shape[:-1], grid, grid)
