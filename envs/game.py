"""The rules of the game, batched: which image each slot sees, what a mask earns, when the judge learns.

`MaskVectorEnv` and `MaskEnv` only translate between this and Gymnasium's interfaces; no rule stands anywhere else.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from torch import Tensor

from maskaug.envs import memory
from maskaug.envs.acceleration import Acceleration
from maskaug.envs.actions import ActionRule, is_number
from maskaug.envs.datasets import ImageDataset, dataset_options, load_dataset
from maskaug.envs.defaults import default_grid
from maskaug.envs.ensemble import kind_of
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import Judge, resolve_judge
from maskaug.envs.judging import ClassifierJudging, Judging, ReconstructionJudging, Scene, generator_of
from maskaug.envs.masking import FILLS, cells_to_mask, filler, keep, patch_to_cells
from maskaug.envs.masking import area_price as price_of_area
from maskaug.envs.pictures import Pictures
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import ClassifierReward, RewardModel, check_sensitivity
from maskaug.envs.terms import RewardTerm, RewardTerms

OBJECTIVES = (*ClassifierReward.objectives, *ReconstructionReward.objectives)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one step of all N slots gave; tensors are on the judge's device.

    Attributes:
        reward: (N,) float32.
        where: each (N,) int64, on the host: index, try, label, and with `steps` step.
        picture: (N,) int64, on the host: what was seen, as a number in `Pictures`, which knows how it was turned.
        terms: (N,) float32 each: area, every term of the reward; with a reconstructor also cell_error, (N, g, g), NaN
            where nothing was hidden.
        cells: (N, *rule.shape) bool, the cells that were selected.
        ended: (N,) bool on the host, the slots whose episode is over.
        hidden: (N, C, H, W) uint8, the images with the selected part hidden.
        shown: (V·N, C, H, W) uint8, the images as the judge saw them, in the order of its `views`, of which there are
            V, 1 but for objective="both": `hidden`, or the aiding views, or these after those.
    """

    reward: Tensor
    where: dict[str, npt.NDArray[np.int64]]
    picture: npt.NDArray[np.int64]
    terms: dict[str, Tensor]
    cells: Tensor
    ended: npt.NDArray[np.bool_]
    hidden: Tensor
    shown: Tensor

    @property
    def mask(self) -> Tensor:
        """(N, H, W) bool; made when asked for, since a step needs its complement only."""
        return cells_to_mask(self.cells, *self.hidden.shape[2:])

    def copy(self) -> Outcome:
        """The same, sharing no memory: what was handed out may be written into."""
        return copy.deepcopy(self)


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
        _positive("num_envs", num_envs)
        _positive("repeat", repeat)
        _positive("steps", steps)
        for name, flag in (("joint", joint), ("tensors", tensors), ("flip", flip)):
            if not isinstance(flag, bool):
                raise ConfigurationError(f"{name}={flag!r} must be True or False")
        if objective not in OBJECTIVES:
            raise ConfigurationError(f"objective={objective!r} is unknown; use one of {OBJECTIVES}")
        check_sensitivity(sensitivity, objective)
        if fill not in FILLS:
            raise ConfigurationError(f"fill={fill!r} is unknown; use one of {FILLS}")
        if not joint and (judge_lr is not None or judge_batch is not None):
            raise ConfigurationError("judge_lr and judge_batch do nothing with joint=False; leave them out")
        if judge_lr is not None and not (is_number(judge_lr) and judge_lr > 0):
            raise ConfigurationError(f"judge_lr={judge_lr!r} must be a finite number above 0")
        _positive("judge_batch", 32 if judge_batch is None else judge_batch)
        keywords = [p for p in inspect.signature(MaskGame).parameters if p not in ("num_envs", "options")]
        #: how the images were loaded, to load another split of them; None for images that were brought along.
        self.loaded: dict[str, Any] | None = None
        if isinstance(dataset, str):
            _check_options(options, {*keywords, "render_mode", *dataset_options(dataset)})
            loaded = {"name": dataset, "root": root, "channels": channels, "n_shot": n_shot, "seed": seed, **options}
            dataset = load_dataset(split=split, image_size=image_size, **loaded)
            self.loaded = {**loaded, "image_size": dataset.shape[1]}
        else:
            _check_options(options, {*keywords, "render_mode"})
            own = {"root": None, "split": dataset.split, "channels": dataset.shape[0], "image_size": dataset.shape[1]}
            given = {"root": root, "split": split, "channels": channels, "image_size": image_size}
            for name, value in given.items():
                default = inspect.signature(MaskGame).parameters[name].default
                if value not in (default, own[name]):
                    raise ConfigurationError(
                        f"{name}={value!r} cannot be combined with dataset=ImageDataset(...), whose {name} is "
                        f"{own[name]!r}; leave it out"
                    )
            if n_shot is not None:
                raise ConfigurationError(
                    f"n_shot={n_shot!r} cannot be combined with dataset=ImageDataset(...); bring along "
                    "dataset.few(n_shot, seed) instead"
                )
        classifies = objective in ClassifierReward.objectives
        if visible_weight is not None and (classifies or not joint):
            raise ConfigurationError(
                "visible_weight is for a reconstructor that learns: use objective='reconstruction' with joint=True, or "
                "leave it out"
            )
        if visible_weight is not None and not (is_number(visible_weight) and visible_weight >= 0):
            raise ConfigurationError(f"visible_weight={visible_weight!r} must be a finite number of at least 0")
        if classifies and dataset.labels is None:
            raise ConfigurationError(f"{dataset.name} has no labels, and objective={objective!r} needs them")
        if classifies and len(dataset.class_names) < 2:
            raise ConfigurationError(f"{dataset.name} has one class alone, and a judge must tell at least two apart")
        #: the images before `only_class` chose among them: what a classifier of them is to be trained on.
        self.whole = dataset
        if only_class is not None:
            if joint and classifies:
                raise ConfigurationError("only_class needs a frozen judge: add joint=False and reward_model=FILE")
            if dataset.labels is None or only_class not in dataset.class_names:
                raise ConfigurationError(
                    f"only_class={only_class!r} is not a class of {dataset.name}: {dataset.class_names}"
                )
            dataset = dataset.subset(dataset.labels == dataset.class_names.index(only_class))
        self.num_envs, self.dataset, self.fill = num_envs, dataset, fill
        self.repeat, self.steps, self.flip = repeat, steps, flip
        self.only_class = only_class
        self.joint, self.judge_batch = joint, 32 if judge_batch is None else judge_batch
        grid = default_grid(action, dataset.shape[1:]) if grid is None else grid
        self.rule = ActionRule(action, grid, dataset.shape[1:], area, area_price, patch_cells)
        self.device, self.tensors = resolve_device(device), tensors
        self.pictures = Pictures(dataset.images, self.device, resident=tensors or self.device.type == "cuda")
        lr = 1e-3 if judge_lr is None else judge_lr
        if classifies:
            model = resolve_judge(reward_model, dataset.shape, len(dataset.class_names), seed, joint=joint)
            self.judging: Judging = ClassifierJudging(
                ClassifierReward(
                    model, objective, self.device, trainable=joint, lr=lr, sensitivity=sensitivity,
                    acceleration=self.acceleration,
                ),
                dataset, self.pictures, num_envs, self.rule, joint, fill, self.judge_batch, flip,
            )  # fmt: skip
        else:
            model = resolve_judge(reward_model, dataset.shape, None, seed, joint=joint)
            self.judging = ReconstructionJudging(
                ReconstructionReward(
                    model, self.device, trainable=joint, lr=lr, batch=self.judge_batch * repeat * steps,
                    visible_weight=visible_weight or 0.0, acceleration=self.acceleration,
                ),
                dataset, self.pictures, num_envs, self.rule, joint,
            )  # fmt: skip
        if not compile:
            memory.check(self.judging.demands, self.device)
        taken = {"index", "try", "label", "step", "reward", "price", "final_obs", "final_info", *self.judging.blank()}
        # Those of the other kind of judge, of Gymnasium's and Stable-Baselines3's statistics, and of its ends.
        taken |= {"cell_error", "episode", "terminal_observation"}
        #: what the user adds to the reward.
        self.own_terms = RewardTerms(reward_terms, {*taken, "area"})
        self._labels = np.full(len(dataset), -1, np.int64) if dataset.labels is None else dataset.labels
        # The area of 0, 1, … all cells, and the price of selecting so many.
        total = math.prod(self.rule.shape)
        shares = torch.arange(total + 1) / total
        prices = self.rule.price * price_of_area(shares, self.rule.area)
        self._shares_and_prices = torch.stack([shares, prices]).to(self.device)
        n = len(dataset)
        self._rows = np.arange(num_envs)
        self.rngs: list[np.random.Generator] = []
        self._order = np.zeros((num_envs, n), np.int64)
        self._position = np.zeros(num_envs, np.int64)
        self._flipped = np.zeros(num_envs, np.bool_)
        self._try = np.zeros(num_envs, np.int64)
        self._step = np.zeros(num_envs, np.int64)
        # Of episodes that are under way: what is selected, what it is worth, and the images without it.
        self._selected = torch.zeros(num_envs, *self.rule.shape, dtype=torch.bool, device=self.device)
        self._worth = torch.zeros(num_envs, device=self.device)
        self._seen = torch.zeros(num_envs if steps > 1 else 0, *dataset.shape, dtype=torch.uint8, device=self.device)
        self._scene: Scene | None = None

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
    def judge_loss(self) -> float:
        """A classifier's training loss at its last update, a reconstructor's mean gain in the last step; for logs.

        NaN before the first.
        """
        return self.judging.loss

    # ---- which image -------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether `seed` was called."""
        return len(self.rngs) == self.num_envs

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """(N,) the images that the slots see now, as positions in `dataset`."""
        return self._order[self._rows, self._position]

    @property
    def picture(self) -> npt.NDArray[np.int64]:
        """(N,) what the slots see now, as numbers in `pictures`: `index`, where it is mirrored len(dataset) more."""
        return self.index + len(self.dataset) * self._flipped

    def seed(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start every slot anew, each with its own generator and its own permutation of the images."""
        self.rngs = list(rngs)
        self.judging.seed(self.rngs[0].spawn(1)[0])
        for slot, rng in enumerate(self.rngs):
            self._order[slot] = rng.permutation(len(self.dataset))
        self._position[:] = 0
        self._try[:] = 0
        self._turn(range(self.num_envs))
        self._begin(np.ones(self.num_envs, np.bool_))
        self._scene = None

    def _turn(self, slots: Iterable[int]) -> None:
        # By each slot's own generator: a slot and a single environment of its seed see the same.
        if self.flip:
            for slot in slots:
                self._flipped[slot] = self.rngs[slot].random() < 0.5

    def _begin(self, slots: npt.NDArray[np.bool_]) -> None:
        self._step[slots] = 0
        if self.steps > 1:
            left = torch.from_numpy(slots).to(self.device)
            self._selected = self._selected & ~left[:, None, None]
            self._worth = self._worth.masked_fill(left, 0)

    def advance(self, slots: npt.NDArray[np.bool_] | None = None) -> None:
        """The next episode of the given slots, (N,) bool (default: all): the next try, or the next image.

        Where an image is done and a classifier learns along, its best-rewarded try goes to it.

        Raises:
            ConfigurationError, JudgeError: the update failed. The judge is as it was, the slots have gone on, and what
                it was to learn from waits for the next call.
        """
        self._begin(np.ones(self.num_envs, np.bool_) if slots is None else slots)
        self._try += 1 if slots is None else slots
        ended = self._try == self.repeat
        if not ended.any():
            return
        done = np.flatnonzero(ended)
        self.judging.ended(done, self.picture if self._scene is None else self._scene.picture)
        self._scene = None
        self._try[done] = 0
        self._position += ended
        for slot in np.flatnonzero(self._position == len(self.dataset)):
            self._order[slot] = self.rngs[slot].permutation(len(self.dataset))
            self._position[slot] = 0
        self._turn(done)
        memory.explained(self.judging.teach, self.judging.demands, self.device, "judge_batch")

    def observe(self) -> Tensor:
        """(N, C, H, W) uint8, a fresh copy of what the slots see: their images, without what is selected already."""
        images = self._look().images
        if self.steps == 1:
            return images.clone()
        under_way = torch.from_numpy(self._step > 0).to(self.device)
        return torch.where(under_way[:, None, None, None], self._seen, images)

    @property
    def selected(self) -> Tensor:
        """(N, *rule.shape) bool, a copy: what this episode's masks so far have selected; with steps=1 nothing."""
        return self._selected.clone()

    def _look(self) -> Scene:
        if self._scene is None:
            index = self.index
            picture = index + len(self.dataset) * self._flipped
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
        cells = cells.to(self.device)
        if self.steps > 1:
            cells = cells | self._selected
        filling = self._noise(images) if scene.filling is None else scene.filling
        # What stays is spread over the pixels, not what goes: one pass over them less.
        hidden = keep(images, cells_to_mask(~cells, *images.shape[2:]), filling)
        shown = hidden
        if "kept" in self.reward_model.views:
            shown = self.reward_model.view(images, cells_to_mask(cells, *images.shape[2:]), filling)
        self._fetch_next()
        # Before the judge, which may learn in the very same pass: where a term fails, nothing has changed.
        own = self._own_terms(images, cells, scene.truth)
        terms = self.judging.judge(scene, cells, shown)
        count = cells.flatten(1).sum(1)
        area, price = self._shares_and_prices.index_select(1, count)
        terms = {"area": area, **terms}
        worth = terms["gain"]
        if self.rule.price:
            terms["price"] = price
            worth = worth - price
        for name, value in own.items():
            terms[name] = value
            worth = worth + value
        where = self._where(scene)
        # From here on it has been played.
        self._step += 1
        ended = self._step == self.steps
        # Copies: what is handed out may be written into.
        reward = worth.clone() if worth is terms["gain"] else worth
        if self.steps > 1:
            reward = worth - self._worth
            self._selected, self._worth, self._seen = cells, worth.clone(), hidden.clone()
        self.judging.remember(worth, cells, ended)
        return Outcome(reward, where, scene.picture.copy(), terms, cells, ended, hidden, shown)

    def _fetch_next(self) -> None:
        # While the judge works. Whoever has seen all images draws a new order first: those are not known yet.
        if not self.pictures.fetches:
            return
        over = (self._step + 1 == self.steps) & (self._try + 1 == self.repeat)
        following = self._position + over
        if over.any() and (following < len(self.dataset)).all():
            self.pictures.fetch(self._order[self._rows, following])

    def _where(self, scene: Scene) -> dict[str, npt.NDArray[np.int64]]:
        where = {"index": scene.index.copy(), "try": self._try.copy(), "label": scene.labels.copy()}
        return {**where, "step": self._step.copy()} if self.steps > 1 else where

    @property
    def begun(self) -> npt.NDArray[np.bool_]:
        """Which slots' episodes have no mask yet, (N,); a copy."""
        return np.equal(self._step, 0)

    def blank(self) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, Tensor]]:
        """(where, terms) of slots whose mask is not chosen yet: the keys of `Outcome`, area 0 and every term 0."""
        names = ["area", *(["price"] if self.rule.price else []), *self.own_terms.functions]
        area, *others = torch.zeros(len(names), self.num_envs, device=self.device)
        terms = {"area": area, **self.judging.blank(), **dict(zip(names[1:], others, strict=True))}
        return self._where(self._look()), terms

    def _own_terms(self, images: Tensor, cells: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.own_terms.functions:
            return {}
        return self.own_terms(images, cells_to_mask(cells, *images.shape[2:]), labels)

    def _noise(self, images: Tensor) -> Tensor:
        drawn = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in self.rngs])
        return filler(images, self.fill, torch.from_numpy(drawn).to(self.device))

    @torch.no_grad()
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
        if not isinstance(self.rule.space, Discrete):
            raise ConfigurationError(
                f"action={self.rule.kind!r} has too many actions to try them all; regret needs action='patch'"
            )
        if self.steps > 1:
            raise ConfigurationError("what an action earns depends on those before it; regret needs steps=1")
        _positive("chunk", chunk)
        if index is None and not self.started:
            raise ResetNeeded("call reset() before asking for the current images' rewards, or give index")
        wanted = np.atleast_1d(np.asarray(self.index if index is None else index))
        # Neither a mask of booleans nor fractions: both would be taken for positions that nobody meant.
        whole = wanted.ndim == 1 and wanted.dtype.kind in "iu"
        if not whole or not ((wanted >= 0) & (wanted < len(self.dataset))).all():
            raise ConfigurationError(f"index must be (M,) whole positions from 0 to {len(self.dataset) - 1}")
        wanted = self.picture if index is None else wanted.astype(np.int64)
        every = patch_to_cells(torch.arange(int(self.rule.space.n)), self.rule.grid, self.rule.patch_cells)
        every = every.to(self.device)
        masks = cells_to_mask(every, *self.dataset.shape[1:])
        result = torch.empty(len(wanted), len(every), device=self.device)
        at_once = max(1, chunk // len(every))
        for first in range(0, len(wanted), at_once):
            some = wanted[first : first + at_once]
            images = self.pictures.at(some)
            labels = torch.from_numpy(self._labels[some % len(self.dataset)]).to(self.device)
            noise = None
            if self.fill == "noise":
                shape = self.dataset.shape
                drawn = [np.random.default_rng(int(i)).standard_normal(shape, np.float32) for i in some]
                noise = torch.from_numpy(np.stack(drawn)).to(self.device)
            filling = filler(images, self.fill, noise).expand_as(images)
            gains = self.reward_model.against(images, labels)
            pairs = torch.cartesian_prod(torch.arange(len(some)), torch.arange(len(every))).to(self.device)
            for rows, actions in (part.T for part in pairs.split(chunk)):  # type: ignore[no-untyped-call]
                shown = self.reward_model.view(images[rows], masks[actions], filling[rows])
                worth = gains(rows, shown, every[actions])
                for value in self._own_terms(images[rows], every[actions], labels[rows]).values():
                    worth = worth + value
                result[first + rows, actions] = worth
        return result.cpu().numpy()

    def release(self) -> None:
        """Give back the device memory that images take; whoever plays on gets them batch by batch.

        The judge stays, and what is known of its answers: it may be another game's, or be wanted for its weights.
        """
        self._scene = None
        self.pictures.release()

    # ---- exact resume ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that changes: generators, places, the judge and what is known of it. Tensors, arrays and JSON."""
        return {
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "order": self._order.copy(),
            "position": self._position.copy(),
            "try": self._try.copy(),
            "flipped": self._flipped.copy(),
            "step": self._step.copy(),
            "selected": self._selected.clone(),
            "worth": self._worth.clone(),
            "seen": self._seen.clone(),
            "judging": self.judging.state(),
            "data": self.dataset.digest,
            "played": self._played(),
        }

    def _played(self) -> dict[str, Any]:
        # What a state is only true for.
        judge = self.reward_model
        return {
            "objective": self.objective, "joint": self.joint, "fill": self.fill, "repeat": self.repeat,
            "steps": self.steps, "judge_batch": self.judge_batch, "action": self.rule.kind, "grid": self.rule.grid,
            "patch_cells": self.rule.patch_cells, "area": self.rule.area, "area_price": self.rule.price,
            "flip": self.flip,
            "reward_model": kind_of(judge.model), "judge_lr": judge.lr if self.joint else None,
            "sensitivity": self.sensitivity, "reward_terms": sorted(self.own_terms.functions) or None,
            "visible_weight": judge.visible_weight if isinstance(judge, ReconstructionReward) else None,
            # What is known of clean images is only true for it. Layout and compilation change the last bits alone, as
            # another machine does.
            "precision": self.acceleration.precision,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, into a game made with the same keywords."""
        if state["data"] != self.dataset.digest or state["order"].shape != self._order.shape:
            raise ConfigurationError(
                "this checkpoint was written with other images or another number of environments; continue with the "
                "same data, split, image_size and num_envs"
            )
        for name, here in self._played().items():
            if (there := state.get("played", {}).get(name)) != here:
                raise ConfigurationError(
                    f"this checkpoint was written with {name}={there!r}, and this environment has {name}={here!r}; "
                    "make it with the same keywords"
                )
        self.rngs = [generator_of(saved) for saved in state["rngs"]]
        self._scene = None
        self._order[:], self._position[:], self._try[:] = state["order"], state["position"], state["try"]
        self._step[:], self._flipped[:] = state["step"], state["flipped"]
        self._selected, self._worth, self._seen = (
            torch.as_tensor(state[name], device=self.device).clone() for name in ("selected", "worth", "seen")
        )
        self.judging.load_state(state["judging"])


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant: "auto" is CUDA where there is one; one that this machine lacks is an error that says so."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={device!r} is not a device ({error}); use 'auto', 'cpu' or 'cuda'") from None
    if result.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device={device!r} is not supported; use 'auto', 'cpu' or 'cuda'")
    if result.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device={device!r}, but torch sees no CUDA device here; use device='cpu' or 'auto'")
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device={device!r}, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return result


def _positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1")


def _check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}Known are: {', '.join(sorted(known))}")
