"""Reward models: what the judge says of a mask, and how the judge learns.

What both kinds share, and `ClassifierReward`, APGA's judge. That of Intelligent Masking: `maskaug.envs.reconstruction`.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskaug.envs.acceleration import PLAIN, Acceleration, load_optimiser
from maskaug.envs.distributed import ALONE, Ranks
from maskaug.envs.ensemble import members_of
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import hide, keep
from maskaug.envs.networks import to_float

#: what objective="sensitivity" compares.
SENSITIVITIES = ("output", "features")

#: (rows (M,) int64, images as the judge is shown them (M, C, H, W) uint8, cells (M, g, g) bool) → gains (M,) float32.
Gains = Callable[[Tensor, Tensor, Tensor], Tensor]


class RewardModel(ABC):
    """A judge's network, the optimiser that trains it, and its state.

    Args:
        model: (N, C, H, W) float in [0, 1] → whatever this kind of judge returns. Moved to `device`.
        objective: what is rewarded, one of `objectives`.
        device: where it lives.
        trainable: False freezes it: there is no optimiser then.
        lr: of Adam.
        acceleration: how its passes are computed; applied to `model` in place.
    """

    #: the objectives that this kind of judge plays.
    objectives: ClassVar[tuple[str, ...]]
    #: what the judge is shown of an image: "hidden", without the selected part, or "kept", nothing else; or both.
    views: tuple[str, ...] = ("hidden",)

    def __init__(
        self,
        model: nn.Module,
        objective: str,
        device: torch.device,
        *,
        trainable: bool,
        lr: float = 1e-3,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        if objective not in self.objectives:
            raise ConfigurationError(
                f"objective={objective!r} is unknown; a {type(self).__name__} plays one of {self.objectives}"
            )
        self.model = model.to(device).eval()
        for member in members_of(model):
            acceleration.apply(member)
        self.acceleration = acceleration
        self.objective = objective
        self.device = device
        # Walking through the modules for these costs more than the rest of a step's bookkeeping.
        self._tensors = [t for t in (*model.parameters(), *model.buffers()) if not t.is_inference()]
        self._changes_before = 0
        #: counts updates.
        self.version = 0
        learning = [p for p in self.model.parameters() if p.requires_grad]
        if trainable and not learning:
            raise ConfigurationError(
                "joint=True trains the judge, but no parameter of reward_model requires a gradient; use joint=False"
            )
        self.lr = lr
        #: the processes that it learns in; see `spread`.
        self.ranks = ALONE
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr, fused=True) if trainable else None

    def spread(self, ranks: Ranks) -> None:
        """From now on learn with the judges of all `ranks` as one, each from its share of a batch."""
        self.ranks = ranks

    def scale_lr(self, factor: float) -> None:
        """Learn with `factor` times the learning rate it was made with, from now on; a frozen judge has none."""
        for group in [] if self.optimiser is None else self.optimiser.param_groups:
            group["lr"] = factor * self.lr

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of the reward's terms, each (N,); "gain" is the reward before any price."""

    def view(self, images: Tensor, mask: Tensor, filling: Tensor) -> Tensor:
        """What the judge is shown of images (N, C, H, W): without the mask (N, H, W) bool, or nothing else of them.

        Where it is shown both, all of the one come before all of the other: (2N, C, H, W).
        """
        parts = [(keep if name == "kept" else hide)(images, mask, filling) for name in self.views]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @abstractmethod
    def against(self, images: Tensor, labels: Tensor) -> Gains:
        """What masks on these images earn, without learning from them: for evaluations and for regret.

        Args:
            images: (N, C, H, W) uint8, untouched.
            labels: (N,) int64.

        Returns:
            A function of M masks: the row in `images` that each is for, (M,); what `view` makes of them; the cells.
        """

    def weights_version(self) -> int:
        """Grows whenever the weights change: whoever caches a clean loss compares it.

        An evaluation shares the module of a game that trains it, so counting the updates made here is not enough;
        torch counts the changes of each tensor (but for those of a fused optimiser in somebody else's training loop). A
        copy goes on counting from where it was made.
        """
        return self._changes_before + sum(t._version for t in self._tensors)

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
            load_optimiser(self.optimiser, state["optimiser"])  # type: ignore[arg-type]
        self.version = int(state["version"])  # type: ignore[call-overload]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_changes_before": self.weights_version()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        # A copy of a compiled module is not compiled.
        for member in members_of(self.model):
            self.acceleration.apply(member)
        # torch counts anew in copies: what was known of clean images would be taken for that of other weights, or,
        # where a few updates bring the count back, of these weights when it is not.
        self._changes_before -= sum(t._version for t in self._tensors)

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        # Training mode inside; whatever fails there leaves no trace in batch norm's statistics.
        buffers = list(self.model.buffers())
        before = _kept(buffers)
        self.model.train()
        try:
            yield
        except BaseException:
            _put_back(buffers, before)
            raise
        finally:
            self.model.eval()

    def _step(self) -> None:
        assert self.optimiser is not None
        self.optimiser.step()
        # A fused optimiser leaves no trace on the weights: see `weights_version`.
        torch.autograd.graph.increment_version(self.model.parameters())
        self.version += 1


class ClassifierReward(RewardModel):
    """The reward from a classifier f (APGA, arXiv 1909.04108, steps 1 to 3 and 5).

    * "adversarial": CE(f(selected part hidden), y) − CE(f(x), y); high where the hidden part mattered for the truth.
    * "preserving": −(CE(f(all but the selected part hidden), y) − CE(f(x), y)); at most the clean loss, and high where
      the selected part alone is enough for the truth.
    * "both": the sum of the two, CE(f(selected part hidden), y) − CE(f(all but the selected part hidden), y); high
      where the selected part is needed and enough (Dabkowski & Gal, 2017, arXiv 1705.07857, ask for both).
    * "sensitivity": what hiding the selected part changes in the judge, no label needed (Zeiler & Fergus, 2014,
      arXiv 1311.2901). In its output: Σ over classes of |change of the centred logit|; with two classes this is the
      absolute change of the log-odds. In its features: ‖φ(selected part hidden) − φ(x)‖₂ ÷ (‖φ(x)‖₂ + 1e-6), φ what
      the last layer gets.

    All answers of a reward come from the same weights in the same, evaluation, mode (papers.md §1, mistake 4). With an
    `Ensemble` every term is the mean of its members' terms: of their losses, and of the sizes of their changes, which
    is not the size of the mean change.

    Args:
        model: (N, C, H, W) float in [0, 1] → logits (N, classes).
        objective, device, trainable, lr: see `RewardModel`.
        sensitivity: "output" (None means it) or "features"; with objective="sensitivity" only. Features are
            `model.features`: (N, C, H, W) float in [0, 1] → (N, F).
    """

    objectives = ("adversarial", "preserving", "both", "sensitivity")

    def __init__(
        self,
        model: nn.Module,
        objective: str,
        device: torch.device,
        *,
        trainable: bool,
        lr: float = 1e-3,
        sensitivity: str | None = None,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        check_sensitivity(sensitivity, objective)
        self.views = {"preserving": ("kept",), "both": ("hidden", "kept")}.get(objective, self.views)
        self.judges = members_of(model)
        #: what "sensitivity" compares; None for the other objectives.
        self.sensitivity = "output" if sensitivity is None and objective == "sensitivity" else sensitivity
        if self.sensitivity == "features":
            for judge in self.judges:
                if not callable(getattr(judge, "features", None)):
                    raise ConfigurationError(
                        f"sensitivity='features' asks the judge for its features, and {type(judge).__name__} has none; "
                        "give it a method features(images (N, C, H, W)) → (N, F), or use sensitivity='output'"
                    )
        super().__init__(model, objective, device, trainable=trainable, lr=lr, acceleration=acceleration)
        # The judges as they are called in order to learn.
        self._learners: tuple[nn.Module, ...] = self.judges

    def spread(self, ranks: Ranks) -> None:
        """See `RewardModel.spread`."""
        super().spread(ranks)
        if self.optimiser is not None:
            self._learners = tuple(ranks.wrap(judge) for judge in self.judges)

    def answers(self, images: Tensor) -> Tensor:
        """What rewards are made of, in evaluation mode, without gradient: logits, or features.

        Args:
            images: (N, C, H, W) uint8.

        Returns:
            (N, A), with A the number of classes (or of features); those of an ensemble's members side by side.
        """
        parts = self._answers(images)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @torch.no_grad()
    def _answers(self, images: Tensor) -> list[Tensor]:
        if any(judge.training for judge in self.judges):
            self.model.eval()
        inputs = to_float(images)
        # Detached: a view of a parameter keeps its gradient even under no_grad.
        if self.sensitivity != "features":
            return [self.acceleration.forward(judge, inputs).detach() for judge in self.judges]
        parts = [self.acceleration.forward(judge.features, inputs).detach() for judge in self.judges]  # type: ignore[arg-type]
        for judge, part in zip(self.judges, parts, strict=True):
            if part.ndim != 2 or len(part) != len(images):
                raise ConfigurationError(
                    f"{type(judge).__name__}.features must return (N, F), but for images {tuple(images.shape)} it "
                    f"returned {tuple(part.shape)}; pool its maps, or use sensitivity='output'"
                )
        return parts

    def score(self, shown: Tensor, clean: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the reward, each (N,) float32.

        Args:
            shown: (N, C, H, W) uint8, the images as the judge is to see them; (2N, C, H, W) for "both"; see `view`.
            clean: (N, A), the `answers` to the same images untouched, from the same weights.
            labels: (N,) int64; not looked at by "sensitivity".
        """
        masked = self._answers(shown)
        if len(masked) == 1:
            return self._terms(clean, masked[0], labels)
        known = clean.split([part.shape[1] for part in masked], 1)  # type: ignore[no-untyped-call]
        each = [self._terms(*answers, labels) for answers in zip(known, masked, strict=True)]
        return {name: torch.stack([terms[name] for terms in each]).mean(0) for name in self.terms}

    def _terms(self, clean_answer: Tensor, answer: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # Of one judge.
        if self.sensitivity == "features":
            norms = torch.linalg.vector_norm(clean_answer, dim=1)
            return {"gain": torch.linalg.vector_norm(answer - clean_answer, dim=1) / (norms + 1e-6)}
        if self.sensitivity == "output":
            change = (answer - answer.mean(1, keepdim=True)) - (clean_answer - clean_answer.mean(1, keepdim=True))
            return {"gain": change.abs().sum(1)}
        parts = (clean_answer, answer) if len(self.views) == 1 else (clean_answer, *answer.chunk(2))
        losses = [functional.cross_entropy(part, labels, reduction="none") for part in parts]
        clean, masked = losses[:2]
        if self.objective == "preserving":
            return {"loss_clean": clean, "loss_kept": masked, "gain": clean - masked}
        if self.objective == "both":
            return {"loss_clean": clean, "loss_hidden": masked, "loss_kept": losses[2], "gain": masked - losses[2]}
        return {"loss_clean": clean, "loss_hidden": masked, "gain": masked - clean}

    @property
    def terms(self) -> tuple[str, ...]:
        """The names that `score` returns."""
        if self.objective == "sensitivity":
            return ("gain",)
        return ("loss_clean", *(f"loss_{name}" for name in self.views), "gain")

    def against(self, images: Tensor, labels: Tensor) -> Gains:
        """See `RewardModel.against`."""
        clean = self.answers(images)
        return lambda rows, shown, _: self.score(shown, clean[rows], labels[rows])["gain"]

    def update(self, images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        """One Adam step on cross-entropy over the clean images and their aiding views, in equal parts.

        Each member of an ensemble learns by itself: the loss is the mean of theirs.

        The paper takes one step for each (its steps 1 and 5); one step on both halves the number of passes through
        the optimiser and keeps the two from overwriting one another. Where it fails, nothing has changed.

        Where several ranks learn, images, aiding views and labels are this one's share of a batch, and the loss is that
        of the whole. Batch norm then normalises each share by itself, and its running statistics are averaged.
        """
        if self.optimiser is None:
            raise ConfigurationError("this judge is frozen (joint=False); make the environment with joint=True")
        with self._learning():
            inputs, truth = to_float(torch.cat([images, aiding])), torch.cat([labels, labels])
            answers = [self.acceleration.forward(judge, inputs) for judge in self._learners]
            losses = [functional.cross_entropy(answer, truth) for answer in answers]
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            value = self.ranks.mean({"loss": float(loss.detach())})["loss"]
            if not math.isfinite(value):
                raise JudgeError(f"the judge's loss became {value} after {self.version} updates; lower judge_lr")
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.ranks.average(self.model.buffers())
            self._step()
        return {"judge_loss": value}


def check_sensitivity(sensitivity: str | None, objective: str) -> None:
    """Raise ConfigurationError if `sensitivity` is unknown, or given with an objective that does not ask for it."""
    if sensitivity is not None and objective != "sensitivity":
        raise ConfigurationError(
            f"sensitivity={sensitivity!r} does nothing with objective={objective!r}; leave it out, or use "
            "objective='sensitivity'"
        )
    if sensitivity not in (None, *SENSITIVITIES):
        raise ConfigurationError(f"sensitivity={sensitivity!r} is unknown; use one of {SENSITIVITIES}")


def _kept(tensors: Sequence[Tensor]) -> dict[torch.dtype, Tensor]:
    # One copy for each type: hundreds of small ones would take as long as a pass.
    kinds = {t.dtype for t in tensors}
    return {kind: torch.cat([t.detach().flatten() for t in tensors if t.dtype == kind]) for kind in kinds}


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], kept: Mapping[torch.dtype, Tensor]) -> None:
    for kind, values in kept.items():
        own = [t for t in tensors if t.dtype == kind]
        for tensor, value in zip(own, values.split([t.numel() for t in own]), strict=True):  # type: ignore[no-untyped-call]
            tensor.copy_(value.view_as(tensor))
