"""The game, batched: `MaskGame` is made from the environments' keywords, and puts together what its rules stand in.

Which image each slot sees is told by `Schedule`, how far its episode is by `Progress`, what a mask is worth by `Worth`,
what the judge says and when it learns by `Judging`. `MaskVectorEnv` and `MaskEnv` only translate between this and
Gymnasium's interfaces; they hold no rule.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from maskaug.envs import memory
from maskaug.envs.acceleration import Acceleration
from maskaug.envs.actions import ActionRule
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.defaults import default_grid
from maskaug.envs.devices import resolve_device
from maskaug.envs.distributed import ALONE, Ranks
from maskaug.envs.enumeration import check_enumerable, every_reward, positions
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game_images import check_classes, find_images, images_of
from maskaug.envs.game_judge import make_judging
from maskaug.envs.game_keywords import (
    check_counts,
    check_fill,
    check_flags,
    check_learning,
    check_objective,
    check_visible_weight,
)
from maskaug.envs.game_state import check_state, played, share_of, whole_of
from maskaug.envs.generators import generator_of
from maskaug.envs.judges import Judge
from maskaug.envs.judging import Scene
from maskaug.envs.masking import cells_to_mask, filler, keep
from maskaug.envs.outcome import Outcome
from maskaug.envs.pictures import Pictures
from maskaug.envs.progress import Progress
from maskaug.envs.rewards import ClassifierReward, RewardModel
from maskaug.envs.schedule import Schedule
from maskaug.envs.terms import RewardTerm, RewardTerms
from maskaug.envs.worth import Worth


class MaskGame:
    """The state and the rules of N games played side by side. The keywords are those of the environments.

    Args:
        num_envs: N, the number of slots.
        dataset: a registered name, or an `ImageDataset` (then root, split, image_size and channels are its own).
        root: the data set's folder; see `load_dataset`.
        split: "train", "val", "test" or "all".
        image_size: height and width in pixels, default 64; for the real images of MURA and of hip fractures 224.
        channels: 1 or 3.
        n_shot: play only so many images of each class of the training split, drawn from `seed`; None plays all. The
            other splits stay whole, and "all" is refused.
        flip: show each image mirrored left to right with probability ½, anew each time that a slot comes to it, the
            same for all its tries. The judge, too, sees and learns what is shown; `evaluation` mirrors nothing.
        objective: "adversarial", "preserving", "both" or "sensitivity", see `ClassifierReward`; "reconstruction", see
            `ReconstructionReward`.
        action: "grid", "patch", "pixel" or "box"; see `ActionRule`.
        grid: cells along each side, default 8; for images of 224×224 pixels 16, except with action="patch".
        patch_cells: side of a patch in cells; with action="patch" only.
        area: the share to select, default 0.25; not with action="patch".
        area_price: weight of the two-sided price of leaving it, default 1; not with action="patch".
        fill: "zero", "mean", "noise" or "blur": what is put in place of hidden pixels.
        joint: the judge learns along: a classifier from the clean image and the aiding view of its best-rewarded try, a
            reconstructor from the hidden part, in the pass that gives the reward.
        judge_lr: learning rate of the judge's Adam; with joint=True only.
        judge_batch: images a judge's update is made of, however many slots there are.
        reward_model: a name ("small", "densenet169"; for reconstruction "small" or "context_encoder", the paper's), a
            .safetensors path, or a module: (N, C, H, W) float in [0, 1] → logits, or for reconstruction → images of the
            same shape. A module is used as it is, not copied: with joint=True it is trained in place. Classifiers may
            be several, a list of names, paths and modules: rewards are then the mean of what each of them says, and
            with joint=True each learns. The same name twice is two judges with first weights of their own.
        sensitivity: what objective="sensitivity" compares: "output" (the default), the judge's logits, or "features",
            what its last layer gets; see `ClassifierReward`. The clean images' features are kept on the device.
        visible_weight: weight of the visible pixels' error in what a reconstructor learns from, default 0 as in the
            paper; with joint=True and objective="reconstruction" only. The reward never knows of it.
        reward_terms: terms of your own, name → function(images (N, C, H, W) uint8, mask (N, H, W) bool, labels (N,)
            int64) → (N,), tensors on `device`. What it returns is added to the reward, and infos have it under its
            name; see below.
        only_class: play only the images of this class (its name); None plays all. A classifier must then be frozen: one
            that learned from one class would answer with it always.
        repeat: tries on one image before the next, one episode each.
        steps: masks an episode. What was selected stays selected, the next mask is chosen on the image without it, and
            each earns what it adds to the worth of them all: the rewards of an episode sum up to what one mask of all
            of them would have earned.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", …: where the judge lives and masks are made.
        tensors: for vector environments: actions may be, and all that is returned is, tensors on `device`; the images
            are kept there too, where they fit into a quarter of its free memory.
        precision: "fp32", or "bf16": the judge's passes, and those of the policies of agents that learn here, in
            bfloat16; all that is returned stays float32, moves by some thousandths and ranks alike; see `Acceleration`.
        channels_last: lay out weights and images channels last in memory, in these passes; see below.
        compile: compile these passes by `torch.compile`; see below.
        seed: of splits, synthetic images, crops and a new judge's first weights. Episodes are seeded by `reset(seed=)`.
        **options: the data set's own keywords.

    A term of `reward_terms` counts wherever the reward does: in `evaluation` environments, in `action_rewards` and the
    oracle, and where a classifier learns along from its best-rewarded try (a reconstructor learns from every mask, with
    its own loss). With `steps` the mask is all that is selected so far, and its worth's increase is earned. Checkpoints
    hold the names and no code: an exact resume needs a game made with terms of the same names, and the same functions.
    They should be functions of what they are given alone; one that is drawn at random makes a seed's game another one.

    `channels_last` and `compile` change a module that was brought along in place; games that share one are made with
    the same. On CUDA, `num_envs` and `judge_batch` that do not fit into the device's free memory are an error that says
    what does (compiled networks are not measured beforehand: they take less, and minutes to compile).
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | ImageDataset = "synthetic",
        *,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        image_size: int | None = None,
        channels: int = 1,
        n_shot: int | None = None,
        flip: bool = False,
        objective: str = "adversarial",
        action: str = "grid",
        grid: int | None = None,
        patch_cells: int | None = None,
        area: float | None = None,
        area_price: float | None = None,
        fill: str = "zero",
        joint: bool = True,
        judge_lr: float | None = None,
        judge_batch: int | None = None,
        reward_model: Judge | Sequence[Judge] | None = None,
        sensitivity: str | None = None,
        visible_weight: float | None = None,
        reward_terms: Mapping[str, RewardTerm] | None = None,
        only_class: str | None = None,
        repeat: int = 1,
        steps: int = 1,
        device: str | torch.device = "auto",
        tensors: bool = False,
        precision: str = "fp32",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        #: how the judge's passes, and those of the policies that learn here, are computed.
        self.acceleration = Acceleration(precision, channels_last, compile)
        check_counts(num_envs=num_envs, repeat=repeat, steps=steps)
        check_flags(joint=joint, tensors=tensors, flip=flip)
        check_objective(objective, sensitivity)
        check_fill(fill)
        check_learning(joint, judge_lr, judge_batch)
        #: how the images were loaded, to load another split of them; None for images that were brought along.
        self.loaded: dict[str, Any] | None
        dataset, self.loaded = find_images(
            dataset, inspect.signature(MaskGame).parameters, options,
            root=root, split=split, image_size=image_size, channels=channels, n_shot=n_shot, seed=seed,
        )  # fmt: skip
        classifies = objective in ClassifierReward.objectives
        check_visible_weight(visible_weight, learns=joint and not classifies)
        if classifies:
            check_classes(dataset, objective)
        #: the images before `only_class` chose among them: what a classifier of them is to be trained on.
        self.whole = dataset
        if only_class is not None:
            dataset = images_of(dataset, only_class, classifier_learns=joint and classifies)
        self.num_envs, self.dataset, self.fill = num_envs, dataset, fill
        self.repeat, self.steps, self.flip = repeat, steps, flip
        self.only_class = only_class
        self.joint, self.judge_batch = joint, 32 if judge_batch is None else judge_batch
        grid = default_grid(action, dataset.shape[1:]) if grid is None else grid
        self.rule = ActionRule(action, grid, dataset.shape[1:], area, area_price, patch_cells)
        self.device, self.tensors = resolve_device(device), tensors
        self.pictures = Pictures(dataset.images, self.device, resident=tensors or self.device.type == "cuda")
        self.judging = make_judging(
            dataset, self.pictures, self.rule, self.acceleration, num_envs=num_envs, objective=objective,
            reward_model=reward_model, joint=joint, judge_lr=judge_lr, judge_batch=self.judge_batch,
            sensitivity=sensitivity, visible_weight=visible_weight, fill=fill, flip=flip,
            tries=repeat * steps, seed=seed,
        )  # fmt: skip
        if not compile:
            memory.check(self.judging.demands, self.device)
        #: what counts besides the judge.
        self.worth = Worth(self.rule, reward_terms, self.judging.blank(), self.device)
        self._labels = np.full(len(dataset), -1, np.int64) if dataset.labels is None else dataset.labels
        #: which image each slot sees.
        self.schedule = Schedule(num_envs, len(dataset), repeat=repeat, flip=flip)
        #: the episodes under way.
        self.progress = Progress(num_envs, steps, self.rule.shape, dataset.shape, self.device)
        self._scene: Scene | None = None
        #: the processes that play it; see `spread`.
        self.ranks = ALONE

    def spread(self, ranks: Ranks) -> None:
        """Make the slots of this game some of those of a larger one, which is played in the processes of `ranks`.

        Each of them makes a game with the same keywords and its share of the slots, and calls this before the first
        `reset`. From then on all play in step: same calls, same order.

        Raises:
            ConfigurationError: it has begun, or the judge cannot learn so: `judge_batch` has to be a multiple of the
                number of ranks, and a reconstructor has to be frozen.
        """
        if self.started:
            raise ConfigurationError("this game has begun; spread it over processes before the first reset()")
        self.judging.spread(ranks)
        self.ranks = ranks

    @property
    def total_envs(self) -> int:
        """The number of slots of all ranks; `num_envs` where there is one."""
        return self.num_envs * self.ranks.world

    @property
    def first_slot(self) -> int:
        """The number of this rank's first slot among them all."""
        return self.num_envs * self.ranks.rank

    @property
    def reward_model(self) -> RewardModel:
        """The judge."""
        return self.judging.reward_model

    @property
    def objective(self) -> str:
        """What is rewarded."""
        return self.judging.reward_model.objective

    @property
    def sensitivity(self) -> str | None:
        """What objective="sensitivity" compares, "output" or "features"; None for the other objectives."""
        judge = self.judging.reward_model
        return judge.sensitivity if isinstance(judge, ClassifierReward) else None

    @property
    def own_terms(self) -> RewardTerms:
        """What the user adds to the reward."""
        return self.worth.own_terms

    @property
    def judge_loss(self) -> float:
        """A classifier's training loss at its last update, a reconstructor's mean gain in the last step; for logs.

        NaN before the first.
        """
        return self.judging.loss

    # ---- which image -------------------------------------------------------------------------------------------

    @property
    def rngs(self) -> list[np.random.Generator]:
        """Each slot's generator; none before `seed`."""
        return self.schedule.rngs

    @property
    def started(self) -> bool:
        """Whether `seed` was called."""
        return len(self.rngs) == self.num_envs

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """(N,) the images that the slots see now, as positions in `dataset`."""
        return self.schedule.index

    @property
    def picture(self) -> npt.NDArray[np.int64]:
        """(N,) what the slots see now, as numbers in `pictures`: `index`, where it is mirrored len(dataset) more."""
        return self.schedule.picture

    def seed(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start every slot anew, each with its own generator and its own permutation of the images."""
        self.schedule.seed(rngs)
        judge_rng = self.rngs[0].spawn(1)[0]
        if not self.ranks.alone:
            # That of the first of all slots.
            judge_rng = generator_of(self.ranks.from_first(judge_rng.bit_generator.state))
        self.judging.seed(judge_rng)
        self.progress.begin(np.ones(self.num_envs, np.bool_))
        self._scene = None

    def advance(self, slots: npt.NDArray[np.bool_] | None = None) -> None:
        """The next episode of the given slots, (N,) bool (default: all): the next try, or the next image.

        Where an image is done and a classifier learns along, its best-rewarded try goes to it.

        Raises:
            ConfigurationError, JudgeError: the update failed. The judge is as it was, the slots have gone on, and what
                it was to learn from waits for the next call.
        """
        self.progress.begin(np.ones(self.num_envs, np.bool_) if slots is None else slots)
        done = self.schedule.end_try(slots)
        if not len(done):
            return
        self.judging.ended(done, self.picture if self._scene is None else self._scene.picture)
        self._scene = None
        self.schedule.next_image(done)
        memory.explained(self.judging.teach, self.judging.demands, self.device, "judge_batch")

    def observe(self) -> Tensor:
        """(N, C, H, W) uint8, a fresh copy of what the slots see: their images, without what is selected already."""
        return self.progress.remaining(self._look().images)

    @property
    def selected(self) -> Tensor:
        """(N, *rule.shape) bool, a copy: what this episode's masks so far have selected; with steps=1 nothing."""
        return self.progress.selected.clone()

    def _look(self) -> Scene:
        if self._scene is None:
            index = self.index
            picture = index + len(self.dataset) * self.schedule.flipped
            images, labels = self.pictures.at(picture), self._labels[index]
            filling = None if self.fill == "noise" else filler(images, self.fill)
            truth = torch.from_numpy(labels).to(self.device)
            self._scene = Scene(index, picture, labels, images, truth, filling)
        return self._scene

    # ---- what a mask earns -------------------------------------------------------------------------------------

    def play(self, cells: Tensor) -> Outcome:
        """Judge one mask for each slot. A joint reconstructor learns from it; `advance` leaves ended episodes.

        Args:
            cells: (N, *rule.shape) bool, from `rule.to_cells`; with `steps` they come on top of what is selected.

        Raises:
            JudgeError: the judge returned something that is not finite; nothing has changed then.
            ConfigurationError: the device's memory does not suffice; nothing has changed then.
        """
        before = [rng.bit_generator.state for rng in self.rngs] if self.fill == "noise" else []
        try:
            return memory.explained(lambda: self._judge(cells), self.judging.demands, self.device, "num_envs")
        except BaseException:
            # The same step can then be tried again, with the same noise.
            for rng, state in zip(self.rngs, before, strict=False):
                rng.bit_generator.state = state
            raise

    def _judge(self, cells: Tensor) -> Outcome:
        scene = self._look()
        images = scene.images
        cells = self.progress.joined(cells.to(self.device))
        filling = self._noise(images) if scene.filling is None else scene.filling
        # What stays is spread over the pixels, not what goes: one pass over them less.
        hidden = keep(images, cells_to_mask(~cells, *images.shape[2:]), filling)
        shown = hidden
        if "kept" in self.reward_model.views:
            shown = self.reward_model.view(images, cells_to_mask(cells, *images.shape[2:]), filling)
        self._fetch_next()
        # Before the judge, which may learn in the very same pass: where a term fails, nothing has changed.
        own = self.worth.own(images, cells, scene.truth)
        worth, terms = self.worth.of(self.judging.judge(scene, cells, shown), cells, own)
        where = self._where(scene)
        # From here on it has been played.
        reward, ended = self.progress.add(cells, worth, hidden)
        self.judging.remember(worth, cells, ended)
        return Outcome(reward, where, scene.picture.copy(), terms, cells, ended, hidden, shown)

    def _fetch_next(self) -> None:
        # While the judge works.
        if not self.pictures.fetches:
            return
        following = self.schedule.following(self.progress.last)
        if following is not None:
            self.pictures.fetch(following)

    def _where(self, scene: Scene) -> dict[str, npt.NDArray[np.int64]]:
        where = {"index": scene.index.copy(), "try": self.schedule.tries.copy(), "label": scene.labels.copy()}
        return {**where, "step": self.progress.step.copy()} if self.steps > 1 else where

    @property
    def begun(self) -> npt.NDArray[np.bool_]:
        """Which slots' episodes have no mask yet, (N,); a copy."""
        return np.equal(self.progress.step, 0)

    def blank(self) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Tensor]]:
        """(where, terms) of slots whose mask is not chosen yet: the keys of `Outcome`, area 0 and every term 0."""
        return self._where(self._look()), self.worth.blank(self.judging.blank())

    def _noise(self, images: Tensor) -> Tensor:
        drawn = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in self.rngs])
        return filler(images, self.fill, torch.from_numpy(drawn).to(self.device))

    def action_rewards(self, index: npt.ArrayLike | None = None, *, chunk: int = 256) -> npt.NDArray[np.float32]:
        """What every action earns on each image: (M, A) float32. Judges in evaluation mode and teaches nobody.

        With fill="noise" all actions on one image see the same noise, drawn from the image's position.

        Args:
            index: (M,) positions in `dataset`, whose images are taken as they are; None takes what the slots see now,
                mirrored where they see it so.
            chunk: masks that are judged in one pass.

        Raises:
            ConfigurationError: the actions cannot be enumerated (action="grid" has 2^(g·g) of them), or `index` holds
                something else than positions.
            gymnasium.error.ResetNeeded: no index was given, and no image is seen before `reset`.
        """
        check_enumerable(self.rule, self.steps)
        check_counts(chunk=chunk)
        if index is None and not self.started:
            raise ResetNeeded("call reset() before asking for the current images' rewards, or give index")
        picture = self.picture if index is None else positions(index, len(self.dataset))
        return every_reward(
            picture, self._labels[picture % len(self.dataset)], pictures=self.pictures, shape=self.dataset.shape,
            rule=self.rule, reward_model=self.reward_model, own_terms=self.own_terms, fill=self.fill, chunk=chunk,
        )  # fmt: skip

    def release(self) -> None:
        """Give back the device memory that images take; whoever plays on gets them batch by batch.

        The judge stays, and what is known of its answers: it may be another game's, or be wanted for its weights.
        """
        self._scene = None
        self.pictures.release()

    # ---- exact resume ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that changes: generators, places, the judge and what is known of it. Tensors, arrays and JSON.

        Of all slots, whichever rank plays them: all ranks ask for it, and any number of them can go on from it.
        """
        return {
            **whole_of({**self.schedule.state(), **self.progress.state()}, self.ranks),
            "judging": self.judging.state(),
            "data": self.dataset.digest,
            "played": self._played(),
        }

    def _played(self) -> dict[str, Any]:
        return played(
            self.reward_model, self.rule, self.own_terms, self.acceleration, joint=self.joint, fill=self.fill,
            repeat=self.repeat, steps=self.steps, judge_batch=self.judge_batch, flip=self.flip,
        )  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, into a game made with the same keywords."""
        order = (self.total_envs, len(self.dataset))
        check_state(state, self._played(), digest=self.dataset.digest, order=order)
        slots = {name: value for name, value in state.items() if name not in ("judging", "data", "played")}
        slots = share_of(slots, self.ranks)
        self.schedule.load_state(slots)
        self._scene = None
        self.progress.load_state(slots)
        self.judging.load_state(state["judging"])
