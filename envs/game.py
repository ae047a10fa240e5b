"""The rules of the game, batched: which image each slot sees, what a mask earns, when the judge learns.

`MaskVectorEnv` and `MaskEnv` only translate between this and Gymnasium's interfaces; no rule stands anywhere else.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.envs.actions import ActionRule, is_number
from maskaug.envs.datasets import ImageDataset, dataset_options, load_dataset
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.judges import resolve_judge
from maskaug.envs.masking import FILLS, cells_to_mask, filler, keep
from maskaug.envs.masking import area_price as price_of_area
from maskaug.envs.rewards import OBJECTIVES, ClassifierReward


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one step of all N slots gave.

    Attributes:
        reward: (N,) float32.
        info: each (N,): index, try, label, area and every term of the reward.
        cells: (N, g, g) bool on the CPU, the cells that were selected.
        hidden: (N, C, H, W) uint8, the images as the judge saw them.
    """

    reward: npt.NDArray[np.float32]
    info: dict[str, npt.NDArray[Any]]
    cells: Tensor
    hidden: npt.NDArray[np.uint8]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(N, H, W) bool; made when asked for, since a step needs its complement only."""
        return cells_to_mask(self.cells, *self.hidden.shape[2:]).numpy()

    def copy(self) -> Outcome:
        """The same, sharing no memory: what was handed out may be written into."""
        return copy.deepcopy(self)


@dataclasses.dataclass(frozen=True)
class _Scene:
    # What the slots see now, gathered once for all tries. Never handed out: others may write into what they get.
    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    pictures: npt.NDArray[np.uint8]
    images: Tensor
    truth: Tensor
    filling: Tensor | None  # None: drawn anew for every try


class MaskGame:
    """The state and the rules of N games played side by side. The keywords are those of the environments.

    Args:
        num_envs: N, the number of slots.
        dataset: a registered name, or an `ImageDataset` (then root, split, image_size and channels are its own).
        root: the data set's folder; see `load_dataset`.
        split: "train", "val", "test" or "all".
        image_size: height and width in pixels.
        channels: 1 or 3.
        objective: "adversarial" or "sensitivity"; see `ClassifierReward`.
        action: "grid" or "patch"; see `ActionRule`.
        grid: cells along each side.
        patch_cells: side of a patch in cells; with action="patch" only.
        area: the share to select, default 0.25; with action="grid" only.
        area_price: weight of the two-sided price of leaving it, default 1; with action="grid" only.
        fill: "zero", "mean", "noise" or "blur": what is put in place of hidden pixels.
        joint: the judge learns along, from the clean image and the aiding view of its best-rewarded try.
        judge_lr: learning rate of the judge's Adam; with joint=True only.
        judge_batch: images a judge's update is made of, however many slots there are.
        reward_model: "small", a .safetensors path, or a module (N, C, H, W) float in [0, 1] → logits. A module is
            used as it is, not copied: with joint=True it is trained in place.
        only_class: play only the images of this class (its name); None plays all. With joint=False only: a judge that
            learned from one class would answer with it always.
        repeat: tries on one image before the next, one episode each.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", …: where the judge lives and masks are made.
        seed: of splits, synthetic images, crops and a new judge's first weights. Episodes are seeded by `reset(seed=)`.
        **options: the data set's own keywords.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | ImageDataset = "synthetic",
        *,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        image_size: int = 64,
        channels: int = 1,
        objective: str = "adversarial",
        action: str = "grid",
        grid: int = 8,
        patch_cells: int | None = None,
        area: float | None = None,
        area_price: float | None = None,
        fill: str = "zero",
        joint: bool = True,
        judge_lr: float | None = None,
        judge_batch: int | None = None,
        reward_model: str | os.PathLike[str] | nn.Module | None = None,
        only_class: str | None = None,
        repeat: int = 1,
        device: str | torch.device = "auto",
        seed: int = 0,
        **options: Any,
    ) -> None:
        _positive("num_envs", num_envs)
        _positive("repeat", repeat)
        if not isinstance(joint, bool):
            raise ConfigurationError(f"joint={joint!r} must be True or False")
        if objective not in OBJECTIVES:
            raise ConfigurationError(f"objective={objective!r} is unknown in this version; use one of {OBJECTIVES}")
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
            self.loaded = {"name": dataset, "root": root, "image_size": image_size, "channels": channels, "seed": seed}
            self.loaded |= options
            dataset = load_dataset(split=split, **self.loaded)
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
        if dataset.labels is None:
            raise ConfigurationError(f"{dataset.name} has no labels, and objective={objective!r} needs them")
        if len(dataset.class_names) < 2:
            raise ConfigurationError(f"{dataset.name} has one class alone, and a judge must tell at least two apart")
        if only_class is not None:
            if joint:
                raise ConfigurationError("only_class needs a frozen judge: add joint=False and reward_model=FILE")
            if only_class not in dataset.class_names:
                raise ConfigurationError(
                    f"only_class={only_class!r} is not a class of {dataset.name}: {dataset.class_names}"
                )
            dataset = dataset.subset(dataset.labels == dataset.class_names.index(only_class))
        assert dataset.labels is not None
        self.num_envs, self.dataset, self.repeat, self.fill = num_envs, dataset, repeat, fill
        self.joint, self.judge_batch = joint, 32 if judge_batch is None else judge_batch
        self.rule = ActionRule(action, grid, dataset.shape[1:], area, area_price, patch_cells)
        self.device = resolve_device(device)
        model = resolve_judge(reward_model, dataset.shape, len(dataset.class_names), seed, joint=joint)
        self.reward_model = ClassifierReward(
            model, objective, self.device, trainable=joint, lr=1e-3 if judge_lr is None else judge_lr
        )
        self._labels = dataset.labels
        # (g·g + 1,), the price of selecting 0, 1, … g·g cells.
        shares = torch.arange(grid**2 + 1) / grid**2
        self._prices = self.rule.price * price_of_area(shares, self.rule.area).numpy()
        self._clean = torch.zeros(len(dataset), len(dataset.class_names), device=self.device)
        self._known = np.zeros(len(dataset), np.bool_)
        self._known_version = self.reward_model.weights_version()
        n = len(dataset)
        self.rngs: list[np.random.Generator] = []
        # Its own generator: a slot must see the same images however often the judge learns.
        self._judge_rng = np.random.default_rng(0)
        self._order = np.zeros((num_envs, n), np.int64)
        self._position = np.zeros(num_envs, np.int64)
        self._try = np.zeros(num_envs, np.int64)
        self._best = np.full(num_envs, -np.inf, np.float32)
        self._best_cells = np.zeros((num_envs, grid, grid), np.bool_)
        self._pending: list[tuple[int, npt.NDArray[np.bool_]]] = []
        self._scene: _Scene | None = None
        #: the judge's training loss at its last update, NaN before the first; for logs.
        self.judge_loss = float("nan")

    # ---- which image -------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether `seed` was called."""
        return len(self.rngs) == self.num_envs

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """(N,) the images that the slots see now, as positions in `dataset`."""
        return self._order[np.arange(self.num_envs), self._position]

    def seed(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start every slot anew, each with its own generator and its own permutation of the images."""
        self.rngs = list(rngs)
        self._judge_rng = self.rngs[0].spawn(1)[0]
        for slot, rng in enumerate(self.rngs):
            self._order[slot] = rng.permutation(len(self.dataset))
        self._position[:] = 0
        self._try[:] = 0
        self._best[:] = -np.inf
        self._pending.clear()
        self._scene = None
        # Kept losses differ in their last bits with the batch they came from, and one seed is to give one game.
        self._known[:] = False

    def advance(self, slots: npt.NDArray[np.bool_] | None = None) -> None:
        """The next episode of the given slots, (N,) bool (default: all): the next try, or the next image.

        Where an image is done and the game is joint, its best-rewarded try goes to the judge.
        """
        self._try += 1 if slots is None else slots
        ended = self._try == self.repeat
        if not ended.any():
            return
        done = np.flatnonzero(ended)
        self._scene = None
        if self.joint:
            index = self.index
            self._pending += [(int(index[i]), self._best_cells[i].copy()) for i in done if self._best[i] > -np.inf]
            self._best[done] = -np.inf
        self._try[done] = 0
        self._position += ended
        for slot in np.flatnonzero(self._position == len(self.dataset)):
            self._order[slot] = self.rngs[slot].permutation(len(self.dataset))
            self._position[slot] = 0
        while len(self._pending) >= self.judge_batch:
            self._teach(self._pending[: self.judge_batch])
            del self._pending[: self.judge_batch]

    def observe(self) -> npt.NDArray[np.uint8]:
        """(N, C, H, W) uint8, a fresh copy of the images that the slots see."""
        return self._look().pictures.copy()

    def _look(self) -> _Scene:
        if self._scene is None:
            index = self.index
            pictures, labels = self.dataset.images[index], self._labels[index]
            images = torch.from_numpy(pictures).to(self.device)
            filling = None if self.fill == "noise" else filler(images, self.fill)
            truth = torch.from_numpy(labels).to(self.device)
            self._scene = _Scene(index, labels, pictures, images, truth, filling)
        return self._scene

    # ---- what a mask earns -------------------------------------------------------------------------------------

    def play(self, cells: Tensor) -> Outcome:
        """Judge one mask for each slot; changes nothing but the memory of the best try.

        Args:
            cells: (N, g, g) bool, from `rule.to_cells`.

        Raises:
            JudgeError: the judge returned something that is not finite; nothing has changed then.
        """
        before = [rng.bit_generator.state for rng in self.rngs] if self.fill == "noise" else []
        try:
            return self._judge(cells)
        except BaseException:
            # The same step can then be tried again, with the same noise.
            for rng, state in zip(self.rngs, before, strict=False):
                rng.bit_generator.state = state
            raise

    def _judge(self, cells: Tensor) -> Outcome:
        scene = self._look()
        index, images = scene.index, scene.images
        # What stays is spread over the pixels, not what goes: one pass over them less.
        left = cells_to_mask(~cells.to(self.device), *self.dataset.shape[1:])
        hidden = keep(images, left, self._noise(images) if scene.filling is None else scene.filling)
        terms = self.reward_model.score(hidden, self._clean_logits(index, images), scene.truth)
        count = cells.flatten(1).sum(1).numpy()
        # One transfer for all of them.
        table = torch.stack(list(terms.values())).float().cpu().numpy()
        values = dict(zip(terms, table, strict=True))
        reward = values["gain"]
        if self.rule.price:
            values["price"] = self._prices[count]
            reward = reward - values["price"]
        finite = np.isfinite(reward)
        if not finite.all():
            self._refuse(index[~finite])
        if self.joint:
            better = reward > self._best
            self._best[better] = reward[better]
            self._best_cells[better] = cells.numpy()[better]
        area = (count / self.rule.grid**2).astype(np.float32)
        info: dict[str, npt.NDArray[Any]] = {
            "index": index.copy(),
            "try": self._try.copy(),
            "label": scene.labels.copy(),
            "area": area,
            **values,
        }
        return Outcome(reward, info, cells, hidden.cpu().numpy())

    def blank_info(self) -> dict[str, npt.NDArray[Any]]:
        """The info of slots whose mask is not chosen yet: the same keys, with area 0 and every term 0."""
        scene = self._look()
        names = [*self.reward_model.terms, *(["price"] if self.rule.price else [])]
        return {
            "index": scene.index.copy(),
            "try": self._try.copy(),
            "label": scene.labels.copy(),
            **{name: np.zeros(self.num_envs, np.float32) for name in ("area", *names)},
        }

    def _clean_logits(self, index: npt.NDArray[np.int64], images: Tensor) -> Tensor:
        # Once per image as long as the judge's weights stay: half of all passes would go there otherwise.
        version = self.reward_model.weights_version()
        if self._known_version != version:
            self._known[:] = False
            self._known_version = version
        if not self._known[index].all():
            new, first = np.unique(index, return_index=True)
            new, first = new[~self._known[new]], first[~self._known[new]]
            logits = self.reward_model.logits(images[torch.from_numpy(first).to(self.device)]).float()
            # Before it is kept: the same step can then be tried again.
            self._refuse(new[~logits.isfinite().all(1).cpu().numpy()])
            self._clean[torch.from_numpy(new).to(self.device)] = logits
            self._known[new] = True
        return self._clean[torch.from_numpy(index).to(self.device)]

    def _refuse(self, bad: npt.NDArray[np.int64]) -> None:
        if len(bad):
            raise JudgeError(
                f"the judge's answer is not finite for {', '.join(self.dataset.names[i] for i in bad[:3])}"
                f"{' and others' if len(bad) > 3 else ''}; check its weights and that it takes images in [0, 1]"
                f"{', or lower judge_lr' if self.joint else ''}"
            )

    def _noise(self, images: Tensor) -> Tensor:
        drawn = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in self.rngs])
        return filler(images, self.fill, torch.from_numpy(drawn).to(self.device))

    def _teach(self, batch: Sequence[tuple[int, npt.NDArray[np.bool_]]]) -> None:
        index = np.array([i for i, _ in batch])
        images = torch.from_numpy(self.dataset.images[index]).to(self.device)
        cells = torch.from_numpy(np.stack([cells for _, cells in batch])).to(self.device)
        masks = cells_to_mask(cells, *self.dataset.shape[1:])
        noise = None
        if self.fill == "noise":
            noise = torch.from_numpy(self._judge_rng.standard_normal(images.shape, np.float32)).to(self.device)
        aiding = keep(images, masks, filler(images, self.fill, noise))
        labels = torch.from_numpy(self._labels[index]).to(self.device)
        self.judge_loss = self.reward_model.update(images, aiding, labels)["judge_loss"]

    # ---- exact resume ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that changes: generators, places, the judge and what is known of it. Tensors, arrays and JSON."""
        current = self._known_version == self.reward_model.weights_version()
        return {
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "judge_rng": self._judge_rng.bit_generator.state,
            "order": self._order.copy(),
            "position": self._position.copy(),
            "try": self._try.copy(),
            "best": self._best.copy(),
            "best_cells": self._best_cells.copy(),
            "pending_index": np.array([i for i, _ in self._pending], np.int64),
            "pending_cells": np.array([c for _, c in self._pending], np.bool_).reshape(-1, *self._best_cells.shape[1:]),
            "clean": self._clean.clone(),
            "known": self._known & current,
            "judge": self.reward_model.state(),
            "judge_loss": repr(self.judge_loss),
            "data": self.dataset.digest,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave, into a game made with the same keywords."""
        if state["data"] != self.dataset.digest or state["order"].shape != self._order.shape:
            raise ConfigurationError(
                "this checkpoint was written with other images or another number of environments; continue with the "
                "same data, split, image_size and num_envs"
            )
        self.rngs = [_generator(saved) for saved in state["rngs"]]
        self._judge_rng = _generator(state["judge_rng"])
        self._scene = None
        self._order[:], self._position[:], self._try[:] = state["order"], state["position"], state["try"]
        self._best[:], self._best_cells[:] = state["best"], state["best_cells"]
        self._pending = [
            (int(i), np.array(m)) for i, m in zip(state["pending_index"], state["pending_cells"], strict=True)
        ]
        self._clean.copy_(torch.as_tensor(state["clean"]))
        self._known[:] = state["known"]
        self.reward_model.load_state(state["judge"])
        self._known_version = self.reward_model.weights_version()
        self.judge_loss = float(state["judge_loss"])


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


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = dict(state)
    return rng


def _check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}Known are: {', '.join(sorted(known))}")
