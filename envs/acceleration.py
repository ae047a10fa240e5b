"""How passes through a network are computed: precision, layout in memory, compilation. What is computed stays the same.

One `Acceleration` serves the judge and the policies of the agents that learn on its environment.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import channels_last

PRECISIONS = ("fp32", "bf16")


@dataclasses.dataclass(frozen=True)
class Acceleration:
    """How the passes of a judge and of a policy are computed.

    Attributes:
        precision: "fp32", or "bf16": convolutions and products in bfloat16 by torch's autocast. Weights, their
            optimisers, losses and all that is returned stay float32. An answer then differs in about its third digit:
            rewards of a judge that was trained move by some thousandths, by .03 and 2 % of themselves at most, and rank
            masks as those of fp32 do (rank correlation above .99 over masks that differ; tests/test_acceleration.py,
            tests/test_same_game.py).
        channels_last: weights and images channels last in memory, which is what convolutions on CUDA like best.
        compile: `torch.compile`; the first pass of each shape takes seconds to minutes, later ones less than before.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"precision={self.precision!r} is unknown; use one of {PRECISIONS}")
        for name in ("channels_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name}={getattr(self, name)!r} must be True or False")

    def apply(self, module: nn.Module) -> nn.Module:
        """Lay out and compile `module` in place; its class and the names in its state dict stay. Returns it.

        Before its optimiser is made: moments take the layout that the weights have then. A copy or an unpickled module
        has the layout and is not compiled: apply this again.
        """
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            # Fused kernels skip roundings to bfloat16, and then what is compared with its own maximum (the gradient of
            # `amax`) is nowhere equal to it: measured as NaN in every gradient of the small judge.
            module.compile(options={"emulate_precision_casts": True} if self.precision == "bf16" else None)
        return module

    def forward(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What `network` says of images (N, C, H, W) float32, always as float32.

        Raises:
            ConfigurationError: compile=True, and torch cannot compile it here.
        """
        if self.channels_last:
            images = channels_last(images)
        half = self.precision == "bf16"
        try:
            with torch.autocast(images.device.type, torch.bfloat16) if half else contextlib.nullcontext():
                return network(images).float()
        except Exception as error:
            # Told by where the error comes from: importing torch's compiler takes seconds, for an error alone.
            if self.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigurationError(
                    f"compile=True, but torch cannot compile this network here ({' '.join(str(error).split())[:300]}); "
                    "on a CPU it needs a C++ compiler (g++); or use compile=False"
                ) from error
            raise


#: float32, as torch lays it out, not compiled.
PLAIN = Acceleration()


def laid_out_as(value: Tensor, weight: Tensor) -> Tensor:
    """`value` in the layout, type and device of `weight`, of the same shape; a copy."""
    return torch.empty_like(weight, requires_grad=False).copy_(value)


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put a state back into a fused optimiser, whatever layout its tensors have; `state` is not written into later.

    Files hold plain layouts, and torch keeps what it is given. A fused Adam goes through weights and moments side by
    side in memory: on a CPU with two layouts, it would update each weight with another one's moments, without a word.
    """
    # It takes the very tensors that it is given.
    optimiser.load_state_dict(copy.deepcopy(dict(state)))
    for weight, kept in optimiser.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                kept[name] = laid_out_as(value, weight)
