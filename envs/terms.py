"""Terms of the reward that a user brings along: functions of images, masks and labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from maskaug.envs.errors import ConfigurationError, JudgeError

#: (images (N, C, H, W) uint8, mask (N, H, W) bool, labels (N,) int64, −1 without) → (N,) float, added to the reward.
RewardTerm = Callable[[Tensor, Tensor, Tensor], Tensor]


class RewardTerms:
    """Named terms, each added to the reward as it is.

    Args:
        functions: name → `RewardTerm`.
        taken: names that infos have already.
    """

    def __init__(self, functions: Mapping[str, RewardTerm] | None, taken: Collection[str]) -> None:
        self.functions = {} if functions is None else functions
        if not isinstance(self.functions, Mapping):
            raise ConfigurationError(
                f"reward_terms={functions!r} must be a dict, name → function(images, mask, labels) → (N,)"
            )
        self.functions = dict(self.functions)
        for name, function in self.functions.items():
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
                raise ConfigurationError(f"reward_terms: {name!r} cannot be a name in infos; use letters and digits")
            if name in taken:
                raise ConfigurationError(f"reward_terms: infos have {name!r} already; choose another name")
            if not callable(function):
                raise ConfigurationError(
                    f"reward_terms: {name!r} is {function!r}, not a function(images, mask, labels) → (N,)"
                )

    def __call__(self, images: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each term by its name, (N,) float32 on the device of `images`, without gradient.

        Args:
            images: (N, C, H, W) uint8, untouched.
            mask: (N, H, W) bool, 1 = selected.
            labels: (N,) int64, −1 where there are none.

        Raises:
            JudgeError: a function returned anything but N finite numbers.
        """
        found = {}
        for name, function in self.functions.items():
            with torch.no_grad():
                # Copies: the same images are shown to the judge, and again in later tries.
                value = function(images.clone(), mask.clone(), labels.clone())
            if not isinstance(value, Tensor) or value.shape != labels.shape or value.is_complex():
                seen = f"one of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
                raise JudgeError(
                    f"the reward term {name!r} must return a tensor ({len(labels)},), a number an image; got {seen}"
                )
            found[name] = value.detach().to(images.device, torch.float32, copy=True)
            if not bool(found[name].isfinite().all()):
                raise JudgeError(f"the reward term {name!r} is not finite: {found[name].tolist()[:8]}")
        return found
