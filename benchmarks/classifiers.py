"""How good the judge of a run is as a classifier, alone and with the masks of its agent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from maskaug.agents.agent import MaskAgent
from maskaug.agents.apga import APGA
from maskaug.agents.masker import Masker
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask, filler, keep
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.pretrain import evaluate_classifier, score_logits


def classifier_results(
    model: nn.Module, dataset: ImageDataset, device: torch.device, agent: MaskAgent | None = None, fill: str = "zero"
) -> dict[str, float]:
    """{"judge.<split>.accuracy", "….auroc", "….loss"} of a classifier, for results.json; only what is finite.

    Args:
        model: the judge, with the batch-norm statistics of clean images.
        dataset: images with labels.
        device: where it lives.
        agent: with its masks also "judge.<split>.tta.accuracy", …: see `averaged_scores`.
        fill: what the aiding view's hidden pixels become.
    """
    prefix = f"judge.{dataset.split}"
    results = {f"{prefix}.{k}": v for k, v in evaluate_classifier(model, dataset, device=device).items()}
    if agent is not None:
        scores = averaged_scores(model, dataset, device, agent, fill)
        results |= {f"{prefix}.tta.{k}": v for k, v in scores.items()}
    return {k: v for k, v in results.items() if np.isfinite(v)}


@torch.no_grad()
def averaged_scores(
    model: nn.Module, dataset: ImageDataset, device: torch.device, agent: MaskAgent, fill: str
) -> dict[str, float]:
    """The scores of the mean of two softmaxes, of the clean image and of its aiding view: the authors' test time.

    With fill="noise" the noise is drawn from a fixed seed.
    """
    generator, chunk = torch.Generator().manual_seed(0), at_once(*dataset.shape[1:])
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(dataset), chunk):
        images = torch.from_numpy(np.array(dataset.images[start : start + chunk]))
        noise = torch.randn(images.shape, generator=generator) if fill == "noise" else None
        aiding = keep(images, chosen_masks(agent, images).cpu(), filler(images, fill, noise))
        clean, other = (model(to_float(x.to(device))).softmax(1).double() for x in (images, aiding))
        parts.append(((clean + other) / 2).cpu())
    model.train(was_training)
    # Logarithms of probabilities are logits of the same probabilities.
    return score_logits(torch.cat(parts).clamp(min=1e-12).log(), dataset)


def chosen_masks(agent: MaskAgent, images: Tensor) -> Tensor:
    """The masks that the agent itself plays where nothing is drawn, (N, C, H, W) uint8 → (N, H, W) bool.

    Of the published loss what its threshold selects, of whatever area; of all others the cells that rank highest, or
    the best patch.
    """
    if isinstance(agent, APGA) and agent.settings.loss == "published":
        return cells_to_mask(torch.from_numpy(agent.scores(images)) > 0, *images.shape[2:])
    return Masker(agent)(images)
