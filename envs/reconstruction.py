"""The reward from a reconstruction network: what it cannot fill in, and how it learns (Intelligent Masking)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskaug.envs.acceleration import PLAIN, Acceleration, laid_out_as
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import mask_to_cells
from maskaug.envs.networks import to_float
from maskaug.envs.rewards import Gains, RewardModel


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
        result = self.acceleration.forward(self.model, to_float(hidden))
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
        return {**super().__getstate__(), "_gradients": self._gradients()}

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


def _grid_of(images: Tensor, cells: Tensor) -> int | None:
    return None if cells.shape[1:] == images.shape[2:] else cells.shape[-1]


def mean_over(values: Tensor, cells: Tensor) -> Tensor:
    """Mean of values (N, g, g) over the selected cells (N, g, g) bool, (N,); 0 where none is selected.

    >>> mean_over(torch.tensor([[[1.0, 2.0], [3.0, 9.0]]]), torch.tensor([[[True, False], [True, False]]]))
    tensor([2.])
    """
    # Not a product: an error that is not finite must not leak out of cells that were not hidden.
    return torch.where(cells, values, 0).flatten(1).sum(1) / cells.flatten(1).sum(1).clamp(min=1)
