"""Reward models: what the judge says of a mask, and how the judge learns.

Both losses of a reward always come from the same weights in the same, evaluation, mode (papers.md §1, mistake 4).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import to_float

OBJECTIVES = ("adversarial", "sensitivity")


class ClassifierReward:
    """The reward from a classifier f (APGA, arXiv 1909.04108, steps 1 to 3 and 5).

    * "adversarial": CE(f(selected part hidden), y) − CE(f(x), y); high where the hidden part mattered for the truth.
    * "sensitivity": Σ over classes of |change of the centred logit|, no label needed; with two classes this is the
      absolute change of the log-odds.

    Args:
        model: (N, C, H, W) float in [0, 1] → logits (N, classes). Moved to `device`.
        objective: see above.
        device: where it lives.
        trainable: False freezes it: `update` is then an error and the optimiser is not made.
        lr: of Adam, for `update`.
    """

    def __init__(
        self, model: nn.Module, objective: str, device: torch.device, *, trainable: bool, lr: float = 1e-3
    ) -> None:
        if objective not in OBJECTIVES:
            raise ConfigurationError(f"objective={objective!r} is unknown; a classifier plays one of {OBJECTIVES}")
        self.model = model.to(device).eval()
        self.objective = objective
        self.device = device
        # Walking through the modules for these costs more than the rest of a step's bookkeeping.
        self._tensors = [t for t in (*model.parameters(), *model.buffers()) if not t.is_inference()]
        #: counts updates.
        self.version = 0
        learning = [p for p in self.model.parameters() if p.requires_grad]
        if trainable and not learning:
            raise ConfigurationError(
                "joint=True trains the judge, but no parameter of reward_model requires a gradient; use joint=False"
            )
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr, fused=True) if trainable else None

    def weights_version(self) -> int:
        """Grows whenever the weights change: whoever caches a clean loss compares it.

        An evaluation shares the module of a game that trains it, so counting the updates made here is not enough;
        torch counts the changes of each tensor (but for those of a fused optimiser in somebody else's training loop).
        """
        return sum(t._version for t in self._tensors)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → logits (N, classes), in evaluation mode, without gradient."""
        if self.model.training:
            self.model.eval()
        result: Tensor = self.model(to_float(images))
        # Detached: a view of a parameter keeps its gradient even under no_grad.
        return result.detach()

    def score(self, hidden: Tensor, clean_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the reward, each (N,) float32; "gain" is the reward before any price.

        Args:
            hidden: (N, C, H, W) uint8, the images as the judge is to see them.
            clean_logits: (N, classes), of the same images untouched, from the same weights.
            labels: (N,) int64; not looked at by "sensitivity".
        """
        logits = self.logits(hidden)
        if self.objective == "sensitivity":
            change = (logits - logits.mean(1, keepdim=True)) - (clean_logits - clean_logits.mean(1, keepdim=True))
            return {"gain": change.abs().sum(1)}
        clean, masked = (functional.cross_entropy(x, labels, reduction="none") for x in (clean_logits, logits))
        return {"loss_clean": clean, "loss_hidden": masked, "gain": masked - clean}

    @property
    def terms(self) -> tuple[str, ...]:
        """The names that `score` returns."""
        return ("gain",) if self.objective == "sensitivity" else ("loss_clean", "loss_hidden", "gain")

    def update(self, images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        """One Adam step on cross-entropy over the clean images and their aiding views, in equal parts.

        The paper takes one step for each (its steps 1 and 5); one step on both halves the number of passes through
        the optimiser and keeps the two from overwriting one another.
        """
        if self.optimiser is None:
            raise ConfigurationError("this judge is frozen (joint=False); make the environment with joint=True")
        self.model.train()
        loss = functional.cross_entropy(self.model(to_float(torch.cat([images, aiding]))), torch.cat([labels, labels]))
        self.model.eval()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise JudgeError(f"the judge's loss became {value} after {self.version} updates; lower judge_lr")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        # A fused optimiser leaves no trace on the weights: see `weights_version`.
        torch.autograd.graph.increment_version(self.model.parameters())
        self.version += 1
        return {"judge_loss": value}

    def state(self) -> dict[str, object]:
        """Weights, optimiser and version, for an exact resume; a copy."""
        state: dict[str, object] = {
            "weights": dict(self.model.state_dict()),
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "version": self.version,
        }
        return copy.deepcopy(state)

    def load_state(self, state: Mapping[str, object]) -> None:
        """Put back what `state` gave."""
        self.model.load_state_dict(state["weights"])  # type: ignore[arg-type]
        if self.optimiser is not None and state["optimiser"] is not None:
            # An optimiser takes the very tensors that it is given, and would then write into `state`.
            self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # type: ignore[arg-type]
        self.version = int(state["version"])  # type: ignore[call-overload]
