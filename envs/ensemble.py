"""Several classifiers as one judge, so that a mask does not learn one network's habits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskaug.envs.errors import ConfigurationError


class Ensemble(nn.Module):
    """Classifiers of the same images and classes, averaged (Lakshminarayanan et al., 2017, arXiv 1612.01474).

    Whoever wants one classifier, such as a heuristic, gets the mean of the members' centred logits. A reward is made of
    each member's own losses instead: see `maskaug.envs.rewards.ClassifierReward`.

    Args:
        judges: at least two networks, (N, C, H, W) float in [0, 1] → logits (N, K), used as they are, not copied; the
            members of an ensemble among them become members of this one.

    Raises:
        ConfigurationError: fewer than two, or one of them twice.

    Attributes:
        judges: the members.
    """

    def __init__(self, judges: Sequence[nn.Module]) -> None:
        super().__init__()
        members = [member for judge in judges for member in members_of(judge)]
        if len(members) < 2 or len({id(member) for member in members}) < len(members):
            raise ConfigurationError(
                f"an ensemble needs at least two networks, each of them once, not {len(members)} with "
                f"{len({id(member) for member in members})} different; give copies with other weights"
            )
        self.judges = nn.ModuleList(members)

    def each(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → every member's logits, (J, N, K)."""
        return torch.stack([judge(images) for judge in self.judges])

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → logits (N, K), the mean of the members', each centred over its classes."""
        logits = self.each(images)
        return (logits - logits.mean(2, keepdim=True)).mean(0)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float in [0, 1] → every member's penultimate features side by side, (N, sum of their F)."""
        return torch.cat([judge.features(images) for judge in self.judges], 1)  # type: ignore[operator]


def members_of(judge: nn.Module) -> tuple[nn.Module, ...]:
    """The members of an ensemble; of any other judge itself."""
    return tuple(judge.judges) if isinstance(judge, Ensemble) else (judge,)


def kind_of(judge: nn.Module) -> str:
    """The class of a judge, for those who compare: "SmallClassifier", "Ensemble(SmallClassifier, DenseNet169)"."""
    name = type(judge).__name__
    if isinstance(judge, Ensemble):
        return f"{name}({', '.join(type(member).__name__ for member in judge.judges)})"
    return name
