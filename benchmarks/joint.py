"""The joint setting: a classifier that learns while the masks are chosen, every arm with equal chances.

Each of its updates is one Adam step on a batch of clean images and their aiding views, in equal parts (steps 1 and 5 of
APGA, arXiv 1909.04108; `ClassifierReward.update`). An arm decides what the aiding views show, and nothing else: all
arms start from the same weights, see the same images in the same order, learn for the same number of updates, and are
looked at on the same validation images at the same moments, of which the best is kept.

"none" is a mask of the whole image: the aiding view is then the clean image, and an update is one on clean images.

In the decoupled setting (`fit_classifier` with `aiding_view`) masks come first, and a new classifier after them.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.base import Agent, spec_of
from maskaug.agents.heuristics import FixedMask, Heuristic
from maskaug.envs.convergence import Patience
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import at_once
from maskaug.envs.pretrain import evaluate_on_clean
from maskaug.envs.rewards import ClassifierReward
from maskaug.envs.statistics import reestimate_statistics

#: whoever chooses the masks of a game: made from the environment and the seed that all arms share.
Player = Callable[[MaskVectorEnv, int], Agent | Heuristic]

#: keywords of the environment that are not for the user to set.
_OWN = {
    "dataset", "root", "split", "image_size", "channels", "n_shot", "seed", "num_envs", "judge_batch", "joint",
    "steps", "tensors", "device", "only_class", "autoreset_mode",
}  # fmt: skip


def nothing_hidden(env: MaskVectorEnv, seed: int) -> Heuristic:
    """The player of the arm "none": every mask is the whole image, and every aiding view the clean image itself."""
    spec = spec_of(env, ("grid", "pixel"))
    return FixedMask(dataclasses.replace(spec, cells=spec.grid**2), np.zeros((spec.grid, spec.grid)))


class Hiding(Heuristic):
    """What a heuristic selects is hidden, and all else is kept: Cutout as an augmentation.

    A game's aiding view shows what is selected, so that this selects what the heuristic does not.

    Args:
        heuristic: plays sets of cells, or pixels; no patches, whose complement is no patch.
    """

    def __init__(self, heuristic: Heuristic) -> None:
        if heuristic.spec.patch_cells:
            raise ConfigurationError("all but a patch is no patch, so a game of patches cannot hide one; use 'grid'")
        spec = heuristic.spec
        super().__init__(dataclasses.replace(spec, cells=spec.grid**2 - spec.cells))
        self._heuristic = heuristic

    def scores(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Heuristic.scores`: minus the heuristic's."""
        scores: npt.NDArray[np.float32] = -self._heuristic.scores(observation)
        return scores

    def _best(self, scores: Tensor) -> Tensor:
        return ~self._heuristic._best(-scores)


@dataclasses.dataclass(frozen=True)
class Joint:
    """What one arm left.

    Attributes:
        judge: the classifier with the weights of the best moment, in evaluation mode, its batch norms with the
            statistics of clean training images.
        player: who chose the masks; an agent with what it predicted with at that moment.
        figures: "val.loss", "val.accuracy" and, where it is finite, "val.auroc" of that moment; "update", which it was;
            "updates", learnt in all; "timesteps", masks that were judged for them; "hidden_share", the mean share of
            the image that these left unselected, and aiding views hide; "cpu_s".
        curve: the same scores at every moment: {"update", "loss", "accuracy", "auroc"} each.
    """

    judge: nn.Module
    player: Agent | Heuristic
    figures: dict[str, float]
    curve: list[dict[str, float]]


class _Watched(MaskVectorEnv):
    """An environment whose judge is looked at after given numbers of updates, whoever plays.

    Args:
        val: images that the judge does not learn from.
        moments: the numbers of updates.
        **kwargs: as for `MaskVectorEnv`.
    """

    def __init__(self, num_envs: int, val: ImageDataset, moments: set[int], **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.val, self.moments = val, moments
        self.player: Agent | Heuristic | None = None
        self.patience = Patience(len(moments))
        self.curve: list[dict[str, float]] = []
        self.shown: list[float] = []
        self._judge: dict[str, Tensor] = {}
        self._masker: dict[str, Tensor] = {}
        self._best_update = 0

    def step(self, actions: Any) -> Any:
        """See `MaskVectorEnv.step`."""
        self.shown.append(float(self.game.rule.to_cells(actions, self.num_envs).double().mean()))
        result = super().step(actions)
        update = self.game.reward_model.version
        # Several steps may pass without an update, and none has two: all slots are one batch.
        if update in self.moments:
            self.moments.remove(update)
            self._look(update)
        return result

    def _look(self, update: int) -> None:
        model = self.game.reward_model.model
        scores = evaluate_on_clean(model, self.val, self.game.dataset.images, device=self.game.device)
        self.curve.append({"update": float(update), **scores})
        if self.patience.better(scores):
            self._best_update, self._judge = update, _copy(model)
            if isinstance(self.player, Agent):
                self._masker = _copy(self.player.predictor)

    def put_best(self) -> dict[str, float]:
        """Give judge and agent their weights of the best moment; its figures.

        Raises:
            JudgeError: no moment had a finite validation loss.
        """
        if not self._judge:
            raise JudgeError(f"the validation loss was not finite at {len(self.curve)} moments; lower judge_lr")
        self.game.reward_model.model.load_state_dict(self._judge)
        if isinstance(self.player, Agent):
            self.player.predictor.load_state_dict(self._masker)
        return {"update": float(self._best_update), **{f"val.{k}": v for k, v in self.patience.best.items()}}


def train_joint(
    player: Player,
    train: ImageDataset,
    val: ImageDataset,
    *,
    updates: int,
    checks: int = 10,
    batch: int = 32,
    seed: int = 0,
    device: str | torch.device = "auto",
    env: Mapping[str, Any] | None = None,
) -> Joint:
    """Let a classifier learn while masks are chosen, and keep its best moment on `val`.

    Whatever depends on `seed` is the same for every player: first weights, and which images each update sees. Every
    slot goes through a permutation of its own, so that a batch may hold an image twice where there are few. A learning
    agent may end its last rollout after the last update; the judge's weights are those of before.

    With `repeat` > 1 the judge learns from the best-rewarded of so many tries, which makes more of random masks than
    they are: give it to agents that learn from their tries, APGA with repeat=4, and to no control.

    Args:
        player: makes who chooses the masks, e.g. `lambda env, seed: APGA(env, seed=seed)`, `nothing_hidden`, or
            `lambda env, seed: Hiding(Cutout(spec_of(env, ("grid",)), seed))`. An agent must be made with this seed,
            from which it resets the environment. Those that look into a judge find the one that learns in
            `env.game.reward_model.model`.
        train: what is learnt from.
        val: what chooses the moment: no image, patient or group of `train`.
        updates: of the judge.
        checks: evenly spaced moments at which it is looked at, the last of them the end.
        batch: images an update, and environments.
        seed: of the judge's first weights, the images' order and the player.
        device: where judge and player live.
        env: further keywords of `MaskVectorEnv`: action, grid, area, fill, repeat, judge_lr, flip, objective, …; a
            `reward_model` that is a module is copied, so that no arm trains another's.

    Raises:
        ConfigurationError: numbers that cannot be, `train` and `val` that share a group, keywords that would do nothing
            or would let the arms see different images, or an agent with another seed.
        JudgeError: the judge learnt something that is not finite.
    """
    keywords = dict(env or {})
    _check(train, val, updates, checks, batch, keywords)
    moments = {updates * (i + 1) // checks for i in range(checks)}
    if "reward_model" in keywords:
        keywords["reward_model"] = copy.deepcopy(keywords["reward_model"])
    watched = _Watched(batch, val, moments, **keywords, dataset=train, judge_batch=batch, seed=seed, device=device)
    game = watched.game
    if not isinstance(game.reward_model, ClassifierReward):
        raise ConfigurationError(
            f"a classifier learns here, and objective={game.objective!r} has a reconstructor; use another objective"
        )
    watched.player = player(watched, seed)
    began = time.process_time()
    timesteps = updates * game.repeat * batch
    if isinstance(watched.player, Agent):
        if watched.player.env is not watched or watched.player.seed != seed:
            raise ConfigurationError(
                f"the player must be made of the environment and the seed that it is given, seed={seed}: "
                "lambda env, seed: APGA(env, seed=seed)"
            )
        watched.player.learn(timesteps)
    else:
        observation, _ = watched.reset(seed=seed)
        for _ in range(updates * game.repeat):
            observation, *_ = watched.step(watched.player.predict(observation)[0])
    if watched.moments:
        raise ConfigurationError(
            f"{type(watched.player).__name__} has let the judge learn {game.reward_model.version} of {updates} times; "
            "take an agent that plays its masks in the environment until all timesteps are over"
        )
    figures = watched.put_best()
    figures |= {"updates": float(updates), "timesteps": float(timesteps), "cpu_s": time.process_time() - began}
    figures["hidden_share"] = 1 - float(np.mean(watched.shown))
    judge = reestimate_statistics(game.reward_model.model, train.images, batch=at_once(*train.shape[1:])).eval()
    watched.close()
    return Joint(judge, watched.player, figures, watched.curve)


def _check(
    train: ImageDataset, val: ImageDataset, updates: int, checks: int, batch: int, keywords: Mapping[str, Any]
) -> None:
    for name, value in (("updates", updates), ("checks", checks), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1")
    if checks > updates:
        raise ConfigurationError(f"checks={checks} moments do not fit into updates={updates}; ask for fewer")
    if own := sorted(_OWN & keywords.keys()):
        raise ConfigurationError(
            f"{', '.join(own)} cannot be given here: images, seed, device and batch are arguments of their own, and "
            "the judge learns along from one mask an episode"
        )
    if keywords.get("fill") == "noise":
        raise ConfigurationError(
            "fill='noise' is drawn for every try, from what also draws the images' order: arms with another repeat "
            "would see other images; use fill='zero', 'mean' or 'blur'"
        )
    if train.labels is None or val.labels is None:
        raise ConfigurationError(f"a classifier of {train.name} needs labels for training and validation images")
    if len(shared := np.intersect1d(train.groups, val.groups)):
        raise ConfigurationError(
            f"train and val share {len(shared)} groups, such as number {shared[0]}; carve the validation split by group"
        )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    # On the host: a device has better uses for its memory.
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
