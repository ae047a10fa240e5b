"""What a Q-map learns from errors of hidden cells: smoothing them, and ranking by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def low_passed(values: Tensor, seen: Tensor) -> Tensor:
    """Smooth (N, g, g) with a 3×3 binomial kernel over the cells that are `seen` (N, g, g) bool; 0 elsewhere.

    >>> low_passed(torch.tensor([[[1.0, 0.0], [4.0, 0.0]]]), torch.tensor([[[True, False], [True, False]]]))
    tensor([[[2., 0.],
             [3., 0.]]])
    """
    side = values.new_tensor([1.0, 2.0, 1.0])
    kernel = (side[:, None] * side)[None, None]
    weight = seen.to(values.dtype)
    total, count = (functional.conv2d(x[:, None], kernel, padding=1)[:, 0] for x in (values * weight, weight))
    return torch.where(seen, total / count.clamp(min=1), 0)


def ranking_loss(q: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """Which of two cells has the larger target? Logistic loss over all pairs of seen cells of an image, (N, …) each.

    Pairs weigh what their targets differ by. After HPM (Wang et al., CVPR 2023), which ranks patches by predicted loss.
    """
    q, target, known = q.flatten(1), target.flatten(1), seen.flatten(1)
    difference = target[:, :, None] - target[:, None, :]
    weight = difference.clamp(min=0) * (known[:, :, None] & known[:, None, :])
    losses = functional.softplus(q[:, None, :] - q[:, :, None])
    return (losses * weight).sum() / weight.sum().clamp(min=1e-12)
