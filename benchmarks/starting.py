"""What a run starts from: weights from local files, and a judge that has converged on clean images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskaug.agents.apga import APGA
from maskaug.agents.base import Agent
from maskaug.envs.convergence import ConvergeSettings, fit_until_converged
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.game import MaskGame
from maskaug.envs.judges import load_judge, save_judge
from maskaug.envs.rewards import ClassifierReward

#: the judge that a run's game started with, in its folder.
START = "judge_start.safetensors"
#: epochs, and patience, of a warm start where the run itself has none.
EPOCHS, PATIENCE = 100, 15


def start_judge(game: MaskGame, imagenet: str | None) -> None:
    """Put ImageNet's weights from a local file into the game's DenseNet-169."""
    if imagenet is None:
        return
    model = game.reward_model.model
    if not isinstance(model, DenseNet169):
        raise ConfigurationError(
            f"imagenet is for reward_model='densenet169', and the judge is {type(model).__name__}; leave it out, or "
            "choose that judge"
        )
    model.load_imagenet(imagenet)


def start_agent(agent: Agent, weights: Mapping[str, str]) -> None:
    """Put weights from a local file ("vgg11" or "ternausnet") into APGA's TernausNet."""
    given = {"vgg11": weights.get("vgg11"), "whole": weights.get("ternausnet")}
    if not any(given.values()):
        return
    if not isinstance(agent, APGA):
        raise ConfigurationError(f"vgg11 and ternausnet are for APGA, not {type(agent).__name__}; leave them out")
    agent.start_from(**given)


def check_warm_start(game: MaskGame) -> None:
    """Refuse a warm start that cannot be."""
    if not game.joint or not isinstance(game.reward_model, ClassifierReward):
        raise ConfigurationError(
            "warm_start trains a judge that then learns along, and needs a classifier with joint=True; leave it out"
        )
    if game.dataset.split != "train":
        raise ConfigurationError(
            f"warm_start trains on the train split until the validation split says so, and this run is for split="
            f"{game.dataset.split!r}; leave it out"
        )


def warm_judge(
    file: Path,
    game: MaskGame,
    val: ImageDataset,
    *,
    epochs: int | None,
    patience: int,
    seed: int,
    progress_bar: bool,
    play: bool,
) -> Mapping[str, Any]:
    """Train the game's judge on clean images until it has converged, or take the one that has been trained so already.

    It learns as in the game: with its learning rate and the batch of its updates. A run that is killed meanwhile begins
    this again from the start.

    Args:
        file: where the judge is kept for a resume.
        game: whose judge is trained, in place, before anything is played.
        val: what says that it has converged.
        epochs: at most so many; None: `EPOCHS`.
        patience: of the early stopping; 0: `PATIENCE`.
        seed: of the images' order.
        progress_bar: show one.
        play: whether the game begins now; else a checkpoint has the judge as it is by now, which is left alone.

    Returns:
        What the file says of it: "val", its scores with its epoch and the number of epochs, among the rest.
    """
    reward, train = game.reward_model, game.dataset
    if play and not file.is_file():
        settings = ConvergeSettings(epochs or EPOCHS, patience or PATIENCE, game.judge_batch, reward.lr, seed)
        with tqdm(total=settings.epochs, disable=not progress_bar, unit="epoch", desc="warm start", leave=False) as bar:

            def show(epoch: int, scores: Mapping[str, float]) -> None:
                bar.update(1)
                bar.set_postfix(loss=f"{scores['loss']:.3f}")

            scores = fit_until_converged(reward.model, train, val, settings, device=game.device, progress=show)
        save_judge(file, reward.model, data=train.name, digest=train.digest, seed=seed, val=scores)
    model, about = load_judge(file)
    if play:
        reward.model.load_state_dict(model.state_dict())
    return about
