"""How each kind of judge plays: what a mask earns, what is remembered for it, and when the judge learns.

`MaskGame` decides which image each slot sees; everything that depends on the kind of judge stands here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.envs.actions import ActionRule
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import JudgeError
from maskaug.envs.masking import cell_means, cells_to_mask, filler, keep
from maskaug.envs.rewards import ClassifierReward, ReconstructionReward, RewardModel

Values = dict[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What N slots see now, gathered once for all tries. Never handed out: others may write into what they get.

    Attributes:
        index: (N,) int64, positions in the data set.
        labels: (N,) int64, −1 where there are none.
        pictures: (N, C, H, W) uint8 on the host.
        images: the same on the device.
        truth: the labels on the device.
        filling: what hidden pixels become; None: drawn anew for every try.
    """

    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pictures: npt.NDArray[np.uint8]
    images: Tensor
    truth: Tensor
    filling: Tensor | None


class Judging(ABC):
    """One kind of judge at work in a game of N slots.

    Args:
        reward_model: the judge.
        dataset: the images that are played.
        num_envs: N.
        rule: what is selected.
        joint: whether the judge learns along.
    """

    reward_model: RewardModel

    def __init__(
        self, reward_model: RewardModel, dataset: ImageDataset, num_envs: int, rule: ActionRule, joint: bool
    ) -> None:
        self.reward_model = reward_model
        self.dataset, self.num_envs, self.rule, self.joint = dataset, num_envs, rule, joint
        #: what the judge last learned from: a classifier's loss at its last update, a reconstructor's mean gain in the
        #: last step; NaN before the first; for logs.
        self.loss = float("nan")

    @abstractmethod
    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> Values:
        """The terms of the reward, (N,) each, "gain" among them, and what else the info holds of the masks.

        Args:
            scene: the images.
            cells: (N, *rule.shape) bool on the CPU.
            shown: (N, C, H, W) uint8, the images as the judge is to see them.

        Raises:
            JudgeError: an answer is not finite; nothing has changed then.
        """

    @abstractmethod
    def blank(self) -> Values:
        """The same keys for slots whose mask is not chosen yet."""

    def remember(self, reward: npt.NDArray[np.float32], cells: npt.NDArray[np.bool_]) -> None:  # noqa: B027
        """A try of every slot has been rewarded, (N,); its cells, (N, *rule.shape)."""

    def ended(self, slots: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> None:  # noqa: B027
        """The given slots leave their images, at `index` (of all slots) in the data set."""

    def teach(self) -> None:  # noqa: B027
        """Let the judge learn from what has ended, where it learns after the fact."""

    def seed(self, rng: np.random.Generator) -> None:  # noqa: B027
        """A new game begins; `rng` is the judge's own."""

    def state(self) -> dict[str, Any]:
        """Everything that changes, for an exact resume."""
        return {"reward_model": self.reward_model.state(), "loss": repr(self.loss)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.reward_model.load_state(state["reward_model"])
        self.loss = float(state["loss"])

    def _refuse(self, bad: npt.NDArray[np.int64]) -> None:
        if len(bad):
            raise JudgeError(
                f"the judge's answer is not finite for {', '.join(self.dataset.names[i] for i in bad[:3])}"
                f"{' and others' if len(bad) > 3 else ''}; check its weights and that it takes images in [0, 1]"
                f"{', or lower judge_lr' if self.joint else ''}"
            )


class ClassifierJudging(Judging):
    """A classifier judges; it learns from the clean image and the aiding view of the best-rewarded of all tries.

    Args:
        fill: what the aiding view's hidden pixels become.
        batch: images an update is made of.
    """

    reward_model: ClassifierReward

    def __init__(
        self,
        reward_model: ClassifierReward,
        dataset: ImageDataset,
        num_envs: int,
        rule: ActionRule,
        joint: bool,
        fill: str,
        batch: int,
    ) -> None:
        super().__init__(reward_model, dataset, num_envs, rule, joint)
        assert dataset.labels is not None
        self._labels = dataset.labels
        self._fill, self._batch = fill, batch
        self._clean = torch.zeros(len(dataset), len(dataset.class_names), device=reward_model.device)
        self._known = np.zeros(len(dataset), np.bool_)
        self._known_version = reward_model.weights_version()
        # Its own generator: a slot must see the same images however often the judge learns.
        self._rng = np.random.default_rng(0)
        self._best = np.full(num_envs, -np.inf, np.float32)
        self._best_cells = np.zeros((num_envs, *rule.shape), np.bool_)
        self._pending: list[tuple[int, npt.NDArray[np.bool_]]] = []

    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> Values:
        """See `Judging.judge`; changes nothing."""
        terms = self.reward_model.score(shown, self._clean_logits(scene.index, scene.images), scene.truth)
        # One transfer for all of them.
        table = torch.stack(list(terms.values())).float().cpu().numpy()
        values = dict(zip(terms, table, strict=True))
        finite = np.isfinite(values["gain"])
        if not finite.all():
            self._refuse(scene.index[~finite])
        return values

    def blank(self) -> Values:
        """See `Judging.blank`: every term 0."""
        return {name: np.zeros(self.num_envs, np.float32) for name in self.reward_model.terms}

    def remember(self, reward: npt.NDArray[np.float32], cells: npt.NDArray[np.bool_]) -> None:
        """Keep the best try of each slot."""
        if self.joint:
            better = reward > self._best
            self._best[better] = reward[better]
            self._best_cells[better] = cells[better]

    def ended(self, slots: npt.NDArray[np.int64], index: npt.NDArray[np.int64]) -> None:
        """The best try of each of these images waits for the update to come."""
        if self.joint:
            self._pending += [(int(index[i]), self._best_cells[i].copy()) for i in slots if self._best[i] > -np.inf]
            self._best[slots] = -np.inf

    def teach(self) -> None:
        """One update for every `batch` images that have ended."""
        while len(self._pending) >= self._batch:
            self._update(self._pending[: self._batch])
            del self._pending[: self._batch]

    def seed(self, rng: np.random.Generator) -> None:
        """Forget every try."""
        self._rng = rng
        self._best[:] = -np.inf
        self._pending.clear()
        # Kept losses differ in their last bits with the batch they came from, and one seed is to give one game.
        self._known[:] = False

    def _clean_logits(self, index: npt.NDArray[np.int64], images: Tensor) -> Tensor:
        # Once per image as long as the judge's weights stay: half of all passes would go there otherwise.
        version = self.reward_model.weights_version()
        if self._known_version != version:
            self._known[:] = False
            self._known_version = version
        device = self.reward_model.device
        if not self._known[index].all():
            new, first = np.unique(index, return_index=True)
            new, first = new[~self._known[new]], first[~self._known[new]]
            logits = self.reward_model.logits(images[torch.from_numpy(first).to(device)]).float()
            # Before it is kept: the same step can then be tried again.
            self._refuse(new[~logits.isfinite().all(1).cpu().numpy()])
            self._clean[torch.from_numpy(new).to(device)] = logits
            self._known[new] = True
        return self._clean[torch.from_numpy(index).to(device)]

    def _update(self, batch: Sequence[tuple[int, npt.NDArray[np.bool_]]]) -> None:
        device = self.reward_model.device
        index = np.array([i for i, _ in batch])
        images = torch.from_numpy(self.dataset.images[index]).to(device)
        cells = torch.from_numpy(np.stack([cells for _, cells in batch])).to(device)
        masks = cells_to_mask(cells, *self.dataset.shape[1:])
        noise = None
        if self._fill == "noise":
            noise = torch.from_numpy(self._rng.standard_normal(images.shape, np.float32)).to(device)
        aiding = keep(images, masks, filler(images, self._fill, noise))
        labels = torch.from_numpy(self._labels[index]).to(device)
        self.loss = self.reward_model.update(images, aiding, labels)["judge_loss"]

    def state(self) -> dict[str, Any]:
        """See `Judging.state`."""
        current = self._known_version == self.reward_model.weights_version()
        return {
            **super().state(),
            "rng": self._rng.bit_generator.state,
            "best": self._best.copy(),
            "best_cells": self._best_cells.copy(),
            "pending_index": np.array([i for i, _ in self._pending], np.int64),
            "pending_cells": np.array([c for _, c in self._pending], np.bool_).reshape(-1, *self._best_cells.shape[1:]),
            "clean": self._clean.clone(),
            "known": self._known & current,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Judging.load_state`."""
        super().load_state(state)
        self._rng = generator_of(state["rng"])
        self._best[:], self._best_cells[:] = state["best"], state["best_cells"]
        self._pending = [
            (int(i), np.array(m)) for i, m in zip(state["pending_index"], state["pending_cells"], strict=True)
        ]
        self._clean.copy_(torch.as_tensor(state["clean"]))
        self._known[:] = state["known"]
        self._known_version = self.reward_model.weights_version()


class ReconstructionJudging(Judging):
    """A reconstructor judges; it learns from the hidden part, in the forward pass that gives the reward.

    With `repeat` > 1 it learns from every try: that pass exists anyway. An update is made of `judge_batch` × `repeat`
    masks however many slots there are; where it falls into the middle of a batch, the slots after it are judged with
    the new weights, as if they had been played one after the other.
    """

    reward_model: ReconstructionReward

    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> Values:
        """See `Judging.judge`; with a joint judge this is where it learns."""
        on_device = cells.to(self.reward_model.device)
        if not self.joint:
            parts = [self.reward_model.score(scene.images, shown, on_device)]
        else:
            parts = self._learn(scene.images, shown, on_device)
        gains, errors = (torch.cat(part) for part in zip(*parts, strict=True))
        # One transfer for both.
        table = torch.cat([gains[:, None], cell_means(errors, on_device, self.rule.grid).flatten(1)], 1)
        on_host = table.float().cpu().numpy()
        gain = np.ascontiguousarray(on_host[:, 0])
        finite = np.isfinite(gain)
        if not finite.all():
            self._refuse(scene.index[~finite])
        if self.joint:
            self.loss = float(gain.mean())
        return {"gain": gain, "cell_error": on_host[:, 1:].reshape(-1, self.rule.grid, self.rule.grid).copy()}

    def _learn(self, images: Tensor, hidden: Tensor, cells: Tensor) -> list[tuple[Tensor, Tensor]]:
        # One part as a rule; more where an update falls into the middle, and a later part that fails must take what
        # was learned from the earlier ones back with it.
        whole = self.num_envs <= self.reward_model.room
        before = None if whole else self.reward_model.state()
        parts: list[tuple[Tensor, Tensor]] = []
        start = 0
        try:
            while start < self.num_envs:
                rows = slice(start, start + self.reward_model.room)
                parts.append(self.reward_model.learn(images[rows], hidden[rows], cells[rows]))
                start = rows.stop
        except BaseException:
            if before is not None:
                self.reward_model.load_state(before)
            raise
        return parts

    def seed(self, rng: np.random.Generator) -> None:
        """Forget what waits for an update: one seed is to give one game."""
        self.reward_model.forget()

    def blank(self) -> Values:
        """See `Judging.blank`: the gain is 0 and no cell has an error."""
        unknown = np.full((self.num_envs, self.rule.grid, self.rule.grid), np.nan, np.float32)
        return {"gain": np.zeros(self.num_envs, np.float32), "cell_error": unknown}


def generator_of(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on from a saved state."""
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = dict(state)
    return rng
