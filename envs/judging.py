"""How each kind of judge plays: what a mask earns, what is remembered for it, and when the judge learns.

`MaskGame` decides which image each slot sees; everything that depends on the kind of judge stands here.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.envs.actions import ActionRule
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.distributed import ALONE, Ranks
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.game_state import on_host, share_of, whole_of
from maskaug.envs.generators import generator_of
from maskaug.envs.masking import cell_means, cells_to_mask, filler, keep
from maskaug.envs.memory import Demand, Trial
from maskaug.envs.pictures import Pictures
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import ClassifierReward, RewardModel, check_sensitivity


@dataclasses.dataclass(frozen=True)
class Scene:
    """What N slots see now, gathered once for all tries. Never handed out: others may write into what they get.

    Attributes:
        index: (N,) int64, positions in the data set.
        picture: (N,) int64, numbers in `Pictures`: the same, and how they are turned.
        labels: (N,) int64, −1 where there are none.
        images: (N, C, H, W) uint8 on the device.
        truth: the labels on the device.
        filling: what hidden pixels become; None: drawn anew for every try.
    """

    index: npt.NDArray[np.int64]
    picture: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    images: Tensor
    truth: Tensor
    filling: Tensor | None


class Judging(ABC):
    """One kind of judge at work in a game of N slots.

    Args:
        reward_model: the judge.
        dataset: the images that are played.
        pictures: the same, on the judge's device.
        num_envs: N.
        rule: what is selected.
        joint: whether the judge learns along.
    """

    reward_model: RewardModel

    def __init__(
        self,
        reward_model: RewardModel,
        dataset: ImageDataset,
        pictures: Pictures,
        num_envs: int,
        rule: ActionRule,
        joint: bool,
    ) -> None:
        self.reward_model = reward_model
        self.dataset, self.pictures, self.num_envs, self.rule, self.joint = dataset, pictures, num_envs, rule, joint
        self._loss: float | Tensor = float("nan")
        #: the processes that play this game; see `MaskGame.spread`.
        self.ranks = ALONE

    def spread(self, ranks: Ranks) -> None:
        """From now on the slots are those of one among several `ranks`."""
        self.reward_model.spread(ranks)
        self.ranks = ranks

    @property
    def loss(self) -> float:
        """What the judge last learned from; NaN before the first time; for logs.

        A classifier's loss at its last update, a reconstructor's mean gain in the last step.
        """
        return float(self._loss)

    @abstractmethod
    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """The terms of the reward, (N,) each, "gain" among them, and what else the info holds of the masks.

        Args:
            scene: the images.
            cells: (N, *rule.shape) bool.
            shown: (N, C, H, W) uint8, the images as the judge is to see them; see `RewardModel.view`.

        Raises:
            JudgeError: an answer is not finite; nothing has changed then.
        """

    @abstractmethod
    def blank(self) -> dict[str, Tensor]:
        """The same keys for slots whose mask is not chosen yet."""

    @abstractmethod
    def demands(self) -> list[Demand]:
        """The largest passes of the judge, to be tried on copies of its network."""

    def _trial(self, *, learns: bool) -> Trial:
        judge = self.reward_model
        return Trial.of(judge.model, self.dataset.shape, judge.device, judge.acceleration, learns=learns)

    def remember(self, worth: Tensor, cells: Tensor, ended: npt.NDArray[np.bool_]) -> None:  # noqa: B027
        """Masks were judged: what they are worth, (N,), their cells, (N, *rule.shape), and whose try is over, (N,)."""

    def ended(self, slots: npt.NDArray[np.int64], picture: npt.NDArray[np.int64]) -> None:  # noqa: B027
        """The given slots leave what they saw, `picture` (of all slots) in `Pictures`."""

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
        self._loss = float(state["loss"])

    def _refuse_infinite(self, gain: Tensor, index: npt.NDArray[np.int64]) -> None:
        # One question for all: a sum with something infinite in it is not finite. Which they are is asked only then;
        # where finite ones alone are too large for their sum, there are none.
        if not math.isfinite(float(gain.sum())):
            self._refuse(index[~gain.isfinite().cpu().numpy()])

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
        flip: whether images are seen mirrored, too.
    """

    reward_model: ClassifierReward

    def __init__(
        self,
        reward_model: ClassifierReward,
        dataset: ImageDataset,
        pictures: Pictures,
        num_envs: int,
        rule: ActionRule,
        joint: bool,
        fill: str,
        batch: int,
        flip: bool = False,
    ) -> None:
        super().__init__(reward_model, dataset, pictures, num_envs, rule, joint)
        assert dataset.labels is not None
        device = reward_model.device
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self._fill, self._batch = fill, batch
        # By picture: what the judge says of an image in a mirror is another answer.
        pictures_seen = len(dataset) * (1 + flip)
        # The judge's answers to every image: as many logits as its members have classes, or its features.
        width = len(reward_model.judges) * len(dataset.class_names)
        if reward_model.sensitivity == "features":
            width = reward_model.answers(pictures.at(np.zeros(1, np.int64))).shape[1]
        self._clean = torch.zeros(pictures_seen, width, device=device)
        self._known = np.zeros(pictures_seen, np.bool_)
        self._known_version = reward_model.weights_version()
        # Its own generator: a slot must see the same images however often the judge learns.
        self._rng = np.random.default_rng(0)
        # The best try of each slot, if it has had one, and those of images that wait for the update to come.
        self._tried = np.zeros(num_envs, np.bool_)
        self._best = torch.full((num_envs,), -torch.inf, device=device)
        self._best_cells = torch.zeros(num_envs, *rule.shape, dtype=torch.bool, device=device)
        self._pending_index = np.zeros(0, np.int64)
        self._pending_cells = self._best_cells[:0]

    def spread(self, ranks: Ranks) -> None:
        """See `Judging.spread`; each rank learns from its share of every batch."""
        if self.joint:
            ranks.share(self._batch, "judge_batch")
        super().spread(ranks)

    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """See `Judging.judge`; changes nothing."""
        terms = self.reward_model.score(shown, self._clean_answers(scene.picture, scene.images), scene.truth)
        self._refuse_infinite(terms["gain"], scene.index)
        return terms

    def demands(self) -> list[Demand]:
        """See `Judging.demands`: N images are judged, and an update sees its images clean and as aiding views."""
        views, world = len(self.reward_model.views), self.ranks.world
        judged = self._trial(learns=False)
        found = [Demand("num_envs", self.num_envs * world, views * self.num_envs, judged, views, world)]
        if self.joint:
            learns, share = self._trial(learns=True), self._batch // world
            found.append(Demand("judge_batch", self._batch, 2 * share, learns, 2, world))
        return found

    def blank(self) -> dict[str, Tensor]:
        """See `Judging.blank`: every term 0."""
        names = self.reward_model.terms
        nothing = torch.zeros(len(names), self.num_envs, device=self.reward_model.device)
        return dict(zip(names, nothing, strict=True))

    def remember(self, worth: Tensor, cells: Tensor, ended: npt.NDArray[np.bool_]) -> None:
        """Keep the best try of each slot."""
        if self.joint:
            better = worth > self._best
            if not ended.all():
                better &= torch.from_numpy(ended).to(better.device)
            self._best = torch.where(better, worth, self._best)
            self._best_cells = torch.where(better[:, None, None], cells, self._best_cells)
            self._tried |= ended

    def ended(self, slots: npt.NDArray[np.int64], picture: npt.NDArray[np.int64]) -> None:
        """The best try of each of these images waits for the update to come."""
        if self.joint:
            taught = slots[self._tried[slots]]
            rows = torch.from_numpy(taught).to(self._best.device)
            # In the order of all slots: every rank knows the whole queue.
            index = self.ranks.gather(torch.from_numpy(picture[taught])).numpy()
            self._pending_index = np.concatenate([self._pending_index, index])
            self._pending_cells = torch.cat([self._pending_cells, self.ranks.gather(self._best_cells[rows])])
            self._best[rows] = -torch.inf
            self._tried[slots] = False

    def teach(self) -> None:
        """One update for every `batch` images that have ended."""
        while len(self._pending_index) >= self._batch:
            self._update(self._pending_index[: self._batch], self._pending_cells[: self._batch])
            self._pending_index = self._pending_index[self._batch :]
            self._pending_cells = self._pending_cells[self._batch :]

    def seed(self, rng: np.random.Generator) -> None:
        """Forget every try."""
        self._rng = rng
        self._tried[:] = False
        self._best.fill_(-torch.inf)
        self._pending_index, self._pending_cells = self._pending_index[:0], self._pending_cells[:0]
        # Kept losses differ in their last bits with the batch they came from, and one seed is to give one game.
        self._known[:] = False

    def _clean_answers(self, picture: npt.NDArray[np.int64], images: Tensor) -> Tensor:
        # Once per picture as long as the judge's weights stay: half of all passes would go there otherwise.
        version = self.reward_model.weights_version()
        if self._known_version != version:
            self._known[:] = False
            self._known_version = version
        device = self.reward_model.device
        if not self._known[picture].all():
            new, first = np.unique(picture, return_index=True)
            new, first = new[~self._known[new]], first[~self._known[new]]
            answers = self.reward_model.answers(images[torch.from_numpy(first).to(device)]).float()
            # Before it is kept: the same step can then be tried again.
            self._refuse(new[~answers.isfinite().all(1).cpu().numpy()] % len(self.dataset))
            self._clean[torch.from_numpy(new).to(device)] = answers
            self._known[new] = True
        return self._clean[torch.from_numpy(picture).to(device)]

    def _update(self, picture: npt.NDArray[np.int64], cells: Tensor) -> None:
        # Of the whole batch, its share of it.
        rows = self.ranks.rows(len(picture))
        noise = None
        if self._fill == "noise":
            drawn = self._rng.standard_normal((len(picture), *self.dataset.shape), np.float32)[rows]
            noise = torch.from_numpy(drawn).to(cells.device)
        picture, cells = picture[rows], cells[rows]
        images = self.pictures.at(picture)
        aiding = keep(images, cells_to_mask(cells, *images.shape[2:]), filler(images, self._fill, noise))
        labels = self._labels[torch.from_numpy(picture % len(self.dataset)).to(self._labels.device)]
        self._loss = self.reward_model.update(images, aiding, labels)["judge_loss"]

    def state(self) -> dict[str, Any]:
        """See `Judging.state`."""
        current = self._known_version == self.reward_model.weights_version()
        slots = {"tried": self._tried.copy(), "best": self._best.clone(), "best_cells": self._best_cells.clone()}
        answers = {"clean": self._clean.clone(), "known": self._known & current}
        return {
            **super().state(),
            **whole_of(slots, self.ranks),
            "rng": self._rng.bit_generator.state,
            "pending_index": self._pending_index.copy(),
            "pending_cells": self._pending_cells.clone(),
            **(answers if self.ranks.alone else {"of_ranks": self.ranks.everyone(on_host(answers))}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Judging.load_state`."""
        super().load_state(state)
        device = self.reward_model.device
        self._rng = generator_of(state["rng"])
        slots = share_of({name: state[name] for name in ("tried", "best", "best_cells")}, self.ranks)
        self._tried[:] = slots["tried"]
        self._best, self._best_cells = (
            torch.as_tensor(slots[name], device=device).clone() for name in ("best", "best_cells")
        )
        self._pending_index = np.array(state["pending_index"])
        self._pending_cells = torch.as_tensor(state["pending_cells"], device=device).clone()
        # What each rank knows differs in its last bits with the batches it came from. Of another number of ranks it
        # is forgotten: it will be asked for again.
        known = state.get("of_ranks", [state])
        self._known[:] = False
        if len(known) == self.ranks.world:
            self._clean.copy_(torch.as_tensor(known[self.ranks.rank]["clean"]))
            self._known[:] = known[self.ranks.rank]["known"]
        self._known_version = self.reward_model.weights_version()


class ReconstructionJudging(Judging):
    """A reconstructor judges; it learns from the hidden part, in the forward pass that gives the reward.

    With `repeat` > 1 it learns from every try: that pass exists anyway. An update is made of `judge_batch` × `repeat`
    masks however many slots there are; where it falls into the middle of a batch, the slots after it are judged with
    the new weights, as if they had been played one after the other.
    """

    reward_model: ReconstructionReward

    def spread(self, ranks: Ranks) -> None:
        """See `Judging.spread`; only with a judge that is frozen."""
        if self.joint and not ranks.alone:
            raise ConfigurationError(
                "a reconstructor learns from one slot after the other, in the pass that rewards them, and not in "
                "several processes; use joint=False with reward_model=FILE, or start one process"
            )
        super().spread(ranks)

    def judge(self, scene: Scene, cells: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """See `Judging.judge`; with a joint judge this is where it learns."""
        if not self.joint:
            parts = [self.reward_model.score(scene.images, shown, cells)]
        else:
            parts = self._learn(scene.images, shown, cells)
        gain, errors = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.joint:
            self._loss = gain.mean()
        else:
            self._refuse_infinite(gain, scene.index)
        return {"gain": gain, "cell_error": cell_means(errors, cells, self.rule.grid)}

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

    def demands(self) -> list[Demand]:
        """See `Judging.demands`: N images are judged, and learnt from in the same pass, an update's at once."""
        at_once = min(self.num_envs, self.reward_model.batch) if self.joint else self.num_envs
        world = self.ranks.world
        return [Demand("num_envs", self.num_envs * world, at_once, self._trial(learns=self.joint), shared=world)]

    def seed(self, rng: np.random.Generator) -> None:
        """Forget what waits for an update: one seed is to give one game."""
        self.reward_model.forget()

    def blank(self) -> dict[str, Tensor]:
        """See `Judging.blank`: the gain is 0 and no cell has an error."""
        device, grid = self.reward_model.device, self.rule.grid
        unknown = torch.full((self.num_envs, grid, grid), torch.nan, device=device)
        return {"gain": torch.zeros(self.num_envs, device=device), "cell_error": unknown}


def frozen_reward(
    model: nn.Module, objective: str, device: torch.device, sensitivity: str | None = None
) -> RewardModel:
    """A judge that only judges, of the kind that plays `objective`; `sensitivity` as in `ClassifierReward`."""
    if objective in ReconstructionReward.objectives:
        check_sensitivity(sensitivity, objective)
        return ReconstructionReward(model, device, trainable=False)
    return ClassifierReward(model, objective, device, trainable=False, sensitivity=sensitivity)
