"""The arms of `maskaug.benchmarks.augmentation`: who ranks the cells, and what a second view shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.agents.apga import APGA
from maskaug.agents.base import spec_of
from maskaug.agents.distilled import Distilled
from maskaug.agents.end_to_end import EndToEnd
from maskaug.agents.heuristics import Brightness, Cutout, FixedMask, RandomErasing, RandomMasks
from maskaug.agents.saliency import GradCAM, InputGradient
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.agents.sb3_defaults import DEFAULTS
from maskaug.benchmarks.augmentation import Training
from maskaug.benchmarks.joint import Hiding, Player, nothing_hidden
from maskaug.benchmarks.presets import APGA_PRESETS, apga_play
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.masking import cells_for_area, cells_to_mask, filler, hide, keep, top_cells
from maskaug.envs.networks import to_float
from maskaug.envs.pretrain import FitSettings, View, as_writable

Scores = npt.NDArray[np.float32]
#: share that a masker which plays selects while it learns; its ranking then serves any area.
PLAYED_AREA = 0.25


def game(train: ImageDataset, judge: nn.Module, grid: int, training: Training, **keywords: Any) -> MaskVectorEnv:
    """The labelled images, cells of a grid, judged by a frozen judge."""
    play = {"objective": "adversarial", "action": "grid", "grid": grid, "area": PLAYED_AREA, **keywords}
    n = play.pop("num_envs", training.num_envs)
    return MaskVectorEnv(n, dataset=train, joint=False, reward_model=judge, device=training.device, **play)


def masker(arm: str, train: ImageDataset, judge: nn.Module | None, grid: int, training: Training, seed: int) -> Any:
    """Something with `scores`, (N, C, H, W) uint8 → (N, g, g); trained, where the arm is.

    Args:
        arm: of `maskaug.benchmarks.augmentation.TITLES`, one that ranks cells and is not "oracle".
        train: the labelled images: whoever learns learns from these alone.
        judge: of the arms that ask one.
        grid: g.
        training: how long, and where.
        seed: of all that is drawn.
    """
    spec = GridSpec(train.shape, grid, cells_for_area(PLAYED_AREA, grid))
    if judge is None:
        plain: Mapping[str, Callable[[], Any]] = {
            "centre": lambda: FixedMask.centre(spec),
            "mean_region": lambda: FixedMask.mean_region(spec, train),
            "brightness": lambda: Brightness(spec, seed),
        }
        return plain[arm]()

    def play(**keywords: Any) -> MaskVectorEnv:
        return game(train, judge, grid, training, **keywords)

    published = published_settings(training)
    asking: Mapping[str, Callable[[], Any]] = {
        "grad_cam": lambda: GradCAM(spec, judge, seed=seed),
        "input_gradient": lambda: InputGradient(spec, judge),
        "end_to_end": lambda: EndToEnd(play(fill="blur"), seed=seed, device=training.device),
        "apga": lambda: APGA(play(**apga_play({})), seed=seed, device=training.device),
        "apga_published": lambda: APGA(play(**apga_play(published)), seed=seed, device=training.device, **published),
        "ppo": lambda: SB3Agent(
            play(fill="blur", num_envs=DEFAULTS["ppo", "grid"]["num_envs"]),
            algorithm="ppo", seed=seed, device=training.device,
        ),
        "distilled": lambda: Distilled(
            play(fill="blur"), seed=seed, device=training.device, judges=4, judge_updates=training.updates_of_judge
        ),
    }  # fmt: skip
    made = asking[arm]()
    if arm == "distilled":
        return made.learn(4 * training.updates_of_judge * FitSettings().batch_size + training.timesteps)
    return made.learn(training.timesteps) if hasattr(made, "learn") else made


def published_settings(training: Training) -> dict[str, Any]:
    """Of the agent of the arm "apga_published": the paper's loss, or all that its preset has."""
    return dict(APGA_PRESETS["published"].settings) if training.published else {"loss": "published"}


def kept_cells(scores: Scores, hidden: float) -> Tensor:
    """(N, g, g) bool: the cells that stay where a share `hidden` of them, the lowest ranked, goes."""
    grid = scores.shape[1]
    return top_cells(torch.from_numpy(np.ascontiguousarray(scores)), grid**2 - cells_for_area(hidden, grid))


def exchanged(n: int, seed: int) -> npt.NDArray[np.int64]:
    """(N,) whose mask each image gets: never its own, where there are two."""
    order = np.random.default_rng([seed, 0x5A9]).permutation(n)
    result = np.empty(n, np.int64)
    result[order] = np.roll(order, 1)
    return result


def kept_view(images: ImageDataset, kept: Tensor, fill: str) -> View:
    """A second view for `fit_classifier`: each image with all but its own cells hidden.

    Args:
        images: what is trained on.
        kept: (N, g, g) bool.
        fill: what hidden pixels become.
    """

    def view(x: Tensor, index: Tensor) -> Tensor:
        pictures = as_writable(images.images[index.numpy()]).to(x.device)
        masks = cells_to_mask(kept[index], *pictures.shape[2:]).to(x.device)
        return to_float(keep(pictures, masks, filler(pictures, fill)))

    return view


def drawn_view(arm: str, images: ImageDataset, grid: int, hidden: float, fill: str, seed: int) -> View:
    """A second view that hides random cells, a random rectangle (Cutout), or erases one (random erasing).

    Args:
        arm: "random", "cutout" or "random_erasing"; the last brings its own filling.
        images: what is trained on.
        grid: g.
        hidden: share of the image; of random erasing the mean.
        fill: what hidden pixels become.
        seed: of the draws.
    """
    spec = GridSpec(images.shape, grid, cells_for_area(hidden, grid))
    source = {"random": RandomMasks, "cutout": Cutout, "random_erasing": RandomErasing}[arm](spec, seed)

    def view(x: Tensor, index: Tensor) -> Tensor:
        pictures = as_writable(images.images[index.numpy()])
        if isinstance(source, RandomErasing):
            masks = torch.from_numpy(source.masks(len(index)))
            filling = torch.from_numpy(source.filling(len(index)))
        else:
            cells = spec.cells_of(source.predict(pictures.numpy())[0])
            masks, filling = cells_to_mask(cells, *pictures.shape[2:]), filler(pictures, fill)
        return to_float(hide(pictures, masks, filling).to(x.device))

    return view


def joint_player(arm: str, hidden: float, training: Training) -> tuple[Player, dict[str, Any]]:
    """Who chooses the masks of an arm of the joint setting, and the keywords of its game.

    Args:
        arm: of `maskaug.benchmarks.augmentation.JOINT`.
        hidden: share of the image that aiding views hide.
        training: how.
    """

    def spec(env: MaskVectorEnv) -> GridSpec:
        return spec_of(env, ("grid",))

    play: dict[str, Any] = {"action": "grid", "objective": "adversarial", "area": 1 - hidden}
    players: dict[str, Player] = {
        "none": nothing_hidden,
        "random": lambda env, seed: RandomMasks(spec(env), seed),
        "cutout": lambda env, seed: Hiding(Cutout(spec(env), seed)),
        "centre": lambda env, seed: FixedMask.centre(spec(env)),
        "apga": lambda env, seed: APGA(env, seed=seed, device=env.game.device),
        "apga_published": lambda env, seed: APGA(
            env, seed=seed, device=env.game.device, **published_settings(training)
        ),
        "ppo": lambda env, seed: SB3Agent(env, algorithm="ppo", seed=seed, device=env.game.device),
    }
    if arm == "cutout":
        # What it selects is what is hidden.
        play["area"] = hidden
    if arm == "apga":
        play["repeat"] = apga_play({})["repeat"]
    return players[arm], play
