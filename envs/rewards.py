"""Reward models: what the judge says of a mask, and how the judge learns.

`ClassifierReward` is APGA's judge, `ReconstructionReward` that of Intelligent Masking.
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

from maskaug.envs.acceleration import PLAIN, Acceleration, laid_out_as, load_optimiser
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import hide, keep, mask_to_cells
from maskaug.envs.networks import to_float

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
        self.model = acceleration.apply(model.to(device).eval())
        self.acceleration = acceleration
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
        self.lr = lr
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr, fused=True) if trainable else None

    def scale_lr(self, factor: float) -> None:
        """Learn with `factor` times the learning rate it was made with, from now on; a frozen judge has none."""
        for group in [] if self.optimiser is None else self.optimiser.param_groups:
            group["lr"] = factor * self.lr

    @property
    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The names of the reward's terms, each (N,); "gain" is the reward before any price."""

    def view(self, images: Tensor, mask: Tensor, filling: Tensor) -> Tensor:
        """What the judge is shown of images (N, C, H, W): without the mask (N, H, W) bool, or nothing else of them."""
        return keep(images, mask, filling) if self.objective == "preserving" else hide(images, mask, filling)

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
        torch counts the changes of each tensor (but for those of a fused optimiser in somebody else's training loop).
        """
        return sum(t._version for t in self._tensors)

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

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        # A copy of a compiled module is not compiled.
        self.acceleration.apply(self.model)

    def _forward(self, images: Tensor) -> Tensor:
        # (N, C, H, W) uint8 → what the network says, float32.
        return self.acceleration.forward(self.model, to_float(images))

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
    * "sensitivity": Σ over classes of |change of the centred logit|, no label needed; with two classes this is the
      absolute change of the log-odds.

    Both losses of a reward always come from the same weights in the same, evaluation, mode (papers.md §1, mistake 4).

    Args:
        model: (N, C, H, W) float in [0, 1] → logits (N, classes).
        objective, device, trainable, lr: see `RewardModel`.
    """

    objectives = ("adversarial", "preserving", "sensitivity")

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → logits (N, classes), in evaluation mode, without gradient."""
        if self.model.training:
            self.model.eval()
        # Detached: a view of a parameter keeps its gradient even under no_grad.
        return self._forward(images).detach()

    def score(self, shown: Tensor, clean_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the reward, each (N,) float32.

        Args:
            shown: (N, C, H, W) uint8, the images as the judge is to see them; see `view`.
            clean_logits: (N, classes), of the same images untouched, from the same weights.
            labels: (N,) int64; not looked at by "sensitivity".
        """
        logits = self.logits(shown)
        if self.objective == "sensitivity":
            change = (logits - logits.mean(1, keepdim=True)) - (clean_logits - clean_logits.mean(1, keepdim=True))
            return {"gain": change.abs().sum(1)}
        clean, masked = (functional.cross_entropy(x, labels, reduction="none") for x in (clean_logits, logits))
        if self.objective == "preserving":
            return {"loss_clean": clean, "loss_kept": masked, "gain": clean - masked}
        return {"loss_clean": clean, "loss_hidden": masked, "gain": masked - clean}

    @property
    def terms(self) -> tuple[str, ...]:
        """The names that `score` returns."""
        if self.objective == "sensitivity":
            return ("gain",)
        return ("loss_clean", "loss_kept" if self.objective == "preserving" else "loss_hidden", "gain")

    def against(self, images: Tensor, labels: Tensor) -> Gains:
        """See `RewardModel.against`."""
        clean = self.logits(images)
        return lambda rows, shown, _: self.score(shown, clean[rows], labels[rows])["gain"]

    def update(self, images: Tensor, aiding: Tensor, labels: Tensor) -> dict[str, float]:
        """One Adam step on cross-entropy over the clean images and their aiding views, in equal parts.

        The paper takes one step for each (its steps 1 and 5); one step on both halves the number of passes through
        the optimiser and keeps the two from overwriting one another. Where it fails, nothing has changed.
        """
        if self.optimiser is None:
            raise ConfigurationError("this judge is frozen (joint=False); make the environment with joint=True")
        with self._learning():
            loss = functional.cross_entropy(self._forward(torch.cat([images, aiding])), torch.cat([labels, labels]))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise JudgeError(f"the judge's loss became {value} after {self.version} updates; lower judge_lr")
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._step()
        return {"judge_loss": value}


class ReconstructionReward(RewardModel):
    """The reward from a reconstruction network g (Intelligent Masking, arXiv 2203.13865, steps 2 to 4).

    The reward of a mask is the mean squared error of g(image with the mask hidden) over the hidden pixels and channels,
    with pixels scaled to [−1, 1] as in the paper; 0 for an empty mask. A mean, not the authors' sum over the image:
    reward and loss then have one scale, and a patch cut off at the border gains nothing (papers.md §2, 1 and 2).

    Args:
        model: images with a part hidden, (N, C, H, W) float in [0, 1] → whole images of the same shape and scale.
        device, trainable, lr: see `RewardModel`.
        batch: masks that one update is made of; gradients of smaller passes are added up.
        visible_weight: weight, in what the network learns from, of the mean squared error over the pixels that were not
            hidden; 0 is the paper. The reward never knows of it.
    """

    objectives = ("reconstruction",)

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        trainable: bool,
        lr: float = 1e-3,
        batch: int = 32,
        visible_weight: float = 0.0,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        super().__init__(model, "reconstruction", device, trainable=trainable, lr=lr, acceleration=acceleration)
        self.batch, self.visible_weight = batch, visible_weight
        #: masks whose gradients wait for the update to come.
        self.waiting = 0

    @property
    def terms(self) -> tuple[str, ...]:
        """The reward has one term."""
        return ("gain",)

    def errors(self, images: Tensor, hidden: Tensor, grid: int | None) -> Tensor:
        """Mean squared error of every cell, hidden or not: (N, g, g) float32, pixels in [−1, 1].

        Args:
            images: (N, C, H, W) uint8, untouched.
            hidden: (N, C, H, W) uint8, as the network is to see them.
            grid: g; None: of every pixel, (N, H, W).
        """
        result = self._forward(hidden)
        # [0, 1] → [−1, 1] doubles every difference.
        square = (result - to_float(images)).square().mean(1)
        return 4 * (square if grid is None else mask_to_cells(square, grid))

    @torch.no_grad()
    def score(self, images: Tensor, hidden: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(gain (N,), error of every cell (N, g, g)), in evaluation mode, without gradient.

        Cells (N, H, W), the mask itself, give the error of every pixel.
        """
        if self.model.training:
            self.model.eval()
        errors = self.errors(images, hidden, _grid_of(images, cells)).detach()
        return mean_over(errors, cells), errors

    def against(self, images: Tensor, labels: Tensor) -> Gains:
        """See `RewardModel.against`; labels are not looked at."""
        return lambda rows, hidden, cells: self.score(images[rows], hidden, cells)[0]

    def learn(self, images: Tensor, hidden: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """As `score`, in training mode, and learn from the very same forward pass.

        The loss is the mean reward over `batch` masks, and `visible_weight` times the error of what they left:
        gradients are added up until as many have been judged, then one Adam step follows. Not more than `room` masks at
        once.

        Raises:
            JudgeError: the error is not finite. After this, or any other failure, nothing has changed.
        """
        if self.optimiser is None:
            raise ConfigurationError("this judge is frozen (joint=False); make the environment with joint=True")
        gradients, waiting = self._gradients(), self.waiting
        try:
            with self._learning():
                errors = self.errors(images, hidden, _grid_of(images, cells))
                # Visible cells too: their gradient is zero times what they are, and zero times infinity is not zero.
                if not bool(errors.isfinite().all()):
                    raise JudgeError(
                        f"the reconstruction error is not finite after {self.version} updates; lower judge_lr, and "
                        "check that the network returns images in [0, 1]"
                    )
                gain = mean_over(errors, cells)
                total = gain.sum() / self.batch
                if self.visible_weight:
                    total = total + self.visible_weight * mean_over(errors, ~cells).sum() / self.batch
                if not self.waiting:
                    # A module that was brought along may still carry the gradients of its own training.
                    self.optimiser.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                self.waiting += len(images)
                if self.waiting >= self.batch:
                    self._step()
                    self.forget()
        except BaseException:
            self.waiting = waiting
            if waiting:
                self._set_gradients(gradients)
            raise
        return gain.detach(), errors.detach()

    def __getstate__(self) -> dict[str, object]:
        # Pickle and deepcopy leave out the gradients of parameters, and some may be waiting here.
        return {**self.__dict__, "_gradients": self._gradients()}

    def __setstate__(self, state: dict[str, object]) -> None:
        gradients: Mapping[str, Tensor] = state.pop("_gradients")  # type: ignore[assignment]
        super().__setstate__(state)
        self._set_gradients(gradients)

    def _gradients(self) -> dict[str, Tensor]:
        if not self.waiting:
            return {}
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def _set_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        if self.optimiser is None:
            return  # a frozen judge may share its module with a game that learns: those gradients are not its own
        for name, parameter in self.model.named_parameters():
            parameter.grad = laid_out_as(gradients[name], parameter) if name in gradients else None

    @property
    def room(self) -> int:
        """How many masks the update to come still takes."""
        return self.batch - self.waiting

    def forget(self) -> None:
        """Drop the gradients that wait for an update."""
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        self.waiting = 0

    def state(self) -> dict[str, object]:
        """See `RewardModel.state`; with the gradients of an update that is not complete."""
        return {**super().state(), "waiting": self.waiting, "gradients": self._gradients()}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Put back what `state` gave."""
        super().load_state(state)
        self.waiting = int(state["waiting"])  # type: ignore[call-overload]
        self._set_gradients(state["gradients"])  # type: ignore[arg-type]


def frozen_reward(model: nn.Module, objective: str, device: torch.device) -> RewardModel:
    """A judge that only judges, of the kind that plays `objective`."""
    if objective in ReconstructionReward.objectives:
        return ReconstructionReward(model, device, trainable=False)
    return ClassifierReward(model, objective, device, trainable=False)


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


def _grid_of(images: Tensor, cells: Tensor) -> int | None:
    return None if cells.shape[1:] == images.shape[2:] else cells.shape[-1]


def mean_over(values: Tensor, cells: Tensor) -> Tensor:
    """Mean of values (N, g, g) over the selected cells (N, g, g) bool, (N,); 0 where none is selected.

    >>> mean_over(torch.tensor([[[1.0, 2.0], [3.0, 9.0]]]), torch.tensor([[[True, False], [True, False]]]))
    tensor([2.])
    """
    # Not a product: an error that is not finite must not leak out of cells that were not hidden.
    return torch.where(cells, values, 0).flatten(1).sum(1) / cells.flatten(1).sum(1).clamp(min=1)
