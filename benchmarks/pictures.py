"""What an agent did, as pictures: for runs, for TensorBoard, for tables."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskaug.agents.base import Agent
from maskaug.agents.masker import Masker
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import filler, hide
from maskaug.envs.networks import to_float
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rendering import MASK, REGION, Picture, heat, mask_row, outline, sheet, tint, to_rgb
from maskaug.envs.rewards import RewardModel


def masks_picture(
    agent: Agent,
    dataset: ImageDataset,
    judge: RewardModel | None = None,
    fill: str = "zero",
    *,
    rows: int = 4,
    blocks: int = 2,
    side: int = 128,
    heading: str = "",
) -> Picture:
    """Evenly spaced images (those with a region, where known), each with what the agent made of it: (h, w, 3) uint8.

    With a reconstructor as judge: image · Q-map · mask · hidden image · reconstruction, one image a line. Otherwise:
    image · region · mask · aiding view, and `blocks` images a line.
    """
    shown = dataset.with_region() if dataset.outlined.any() else dataset
    restores = isinstance(judge, ReconstructionReward)
    blocks = 1 if restores else blocks
    chosen = np.linspace(0, len(shown) - 1, min(rows * blocks, len(shown))).astype(int)
    some = shown.subset(chosen)
    images = np.array(some.images)
    masks = Masker(agent)(images)
    if isinstance(judge, ReconstructionReward):
        lines = reconstruction_rows(some, agent.scores(images), torch.from_numpy(masks), judge, fill, side)
        return sheet(lines, ["image", "Q-map", "mask", "hidden", "reconstruction"], heading)
    cells = [
        mask_row(image, None if some.regions is None else some.regions[i], masks[i], side)
        for i, image in enumerate(images)
    ]
    per_row = max(1, min(blocks, len(cells)))
    whole = len(cells) - len(cells) % per_row
    lines = [list(itertools.chain(*cells[i : i + per_row])) for i in range(0, whole, per_row)]
    return sheet(lines, ["image", "known region", "mask", "aiding view"] * per_row, heading)


def reconstruction_rows(
    dataset: ImageDataset,
    scores: npt.NDArray[np.float32] | None,
    masks: Tensor,
    judge: ReconstructionReward,
    fill: str,
    side: int,
) -> list[list[Picture]]:
    """For every image: itself with its known region · Q-map · mask · hidden image · what came back in the hidden part.

    Args:
        dataset: a few images.
        scores: (N, g, g) the Q-map; None leaves its place empty.
        masks: (N, H, W) bool.
        judge: the reconstructor.
        fill: what hidden pixels become.
        side: of each panel, pixels.
    """
    hidden, restored = fill_in(judge, np.array(dataset.images), masks, fill)
    return restored_rows(dataset, scores, masks.numpy(), hidden, restored, side)


def restored_rows(
    dataset: ImageDataset,
    scores: npt.NDArray[np.float32] | None,
    masks: npt.NDArray[np.bool_],
    hidden: Picture,
    restored: Picture,
    side: int,
) -> list[list[Picture]]:
    """`reconstruction_rows` of what `fill_in` gave: hidden and restored images, (N, C, H, W) uint8 both."""
    result = []
    for i, image in enumerate(np.array(dataset.images)):
        base = to_rgb(image, side)
        region = dataset.regions[i] if dataset.regions is not None and dataset.outlined[i] else None
        mask = masks[i]
        panels = [
            base,
            np.full_like(base, 24) if scores is None else heat(base, scores[i]),
            tint(base, mask, MASK),
            to_rgb(hidden[i], side),
            outline(to_rgb(restored[i], side), mask, MASK, 1),
        ]
        if region is not None:
            shown = [0, 2] if scores is None else [0, 1, 2]
            for k in shown:
                panels[k] = outline(panels[k], region, REGION)
        result.append(panels)
    return result


@torch.no_grad()
def fill_in(
    judge: ReconstructionReward, images: npt.NDArray[np.uint8], masks: Tensor, fill: str, seed: int = 0
) -> tuple[Picture, Picture]:
    """(hidden images, images with their hidden part as the reconstructor fills it in), (N, C, H, W) uint8 both.

    Args:
        judge: the reconstructor.
        images: (N, C, H, W) uint8.
        masks: (N, H, W) bool.
        fill: what hidden pixels become.
        seed: of the noise, for fill="noise".
    """
    whole = torch.from_numpy(np.array(images)).to(judge.device)
    mask = masks.to(judge.device)
    noise = None
    if fill == "noise":
        noise = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed)).to(judge.device)
    hidden = hide(whole, mask, filler(whole, fill, noise))
    judge.model.eval()
    answer = (255 * judge.model(to_float(hidden))).round().clamp(0, 255).to(torch.uint8)
    return hidden.cpu().numpy(), torch.where(mask[:, None], answer, whole).cpu().numpy()
