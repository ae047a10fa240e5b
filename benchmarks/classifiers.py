"""How good the judge of a run is as a classifier, alone and with the masks of its agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from maskaug.agents.apga import APGA
from maskaug.agents.base import Agent
from maskaug.agents.masker import Masker
from maskaug.benchmarks.studies import StudyScores, mixed_studies, study_scores
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask, filler, keep
from maskaug.envs.networks import at_once, to_float
from maskaug.envs.pretrain import predict_logits, score_logits


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierScores:
    """How good a classifier is on one split.

    Attributes:
        flat: {"judge.<split>.accuracy", "….auroc", "….loss"}, where the images have studies also
            "judge.<split>.study.n", "….study.accuracy", "….study.auroc", "….study.kappa", and the same of
            "judge.<split>.tta.…" where masks were averaged in; for results.json: only what is finite.
        studies: what the studies' figures are of, by "judge.<split>" and "judge.<split>.tta"; empty without studies.
        note: why there are no figures by study although the images have studies; else empty.
    """

    flat: dict[str, float]
    studies: dict[str, StudyScores]
    note: str = ""


def classifier_scores(
    model: nn.Module, dataset: ImageDataset, device: torch.device, agent: Agent | None = None, fill: str = "zero"
) -> ClassifierScores:
    """How good a classifier is, by image and, where the data set has studies, by study.

    Args:
        model: the judge, with the batch-norm statistics of clean images.
        dataset: images with labels.
        device: where it lives.
        agent: with its masks also "judge.<split>.tta.…": see `averaged_logits`.
        fill: what the aiding view's hidden pixels become.
    """
    assert dataset.labels is not None
    prefix = f"judge.{dataset.split}"
    logits = {prefix: predict_logits(model, dataset.images, device=device)}
    if agent is not None:
        logits[f"{prefix}.tta"] = averaged_logits(model, dataset, device, agent, fill)
    flat = {f"{name}.{k}": v for name, x in logits.items() for k, v in score_logits(x, dataset).items()}
    studies: dict[str, StudyScores] = {}
    note = ""
    if dataset.studies is not None:
        if mixed := len(mixed_studies(dataset.studies, dataset.labels)):
            note = f"no figures by study: images of one study have different labels in {mixed} studies"
        else:
            studies = {
                name: study_scores(x.double().softmax(1).numpy(), dataset.studies, dataset.labels)
                for name, x in logits.items()
            }
            flat |= {f"{name}.study.{k}": v for name, one in studies.items() for k, v in one.metrics().items()}
    return ClassifierScores({k: v for k, v in flat.items() if np.isfinite(v)}, studies, note)


def sentence(figures: Mapping[str, float], prefix: str) -> str:
    """The figures "<prefix>.accuracy", … by image or by study that there are, for people; empty if there are none."""
    words = {"n": "studies", "accuracy": "accuracy", "auroc": "auroc", "kappa": "κ", "loss": "loss"}
    found = {word: figures[f"{prefix}.{key}"] for key, word in words.items() if f"{prefix}.{key}" in figures}
    return ", ".join(f"{v:.0f} {word}" if word == "studies" else f"{word} {v:.3f}" for word, v in found.items())


@torch.no_grad()
def averaged_logits(model: nn.Module, dataset: ImageDataset, device: torch.device, agent: Agent, fill: str) -> Tensor:
    """The mean of two softmaxes, of the clean image and of its aiding view: the authors' test time.

    With fill="noise" the noise is drawn from a fixed seed.

    Returns:
        (N, classes) float64 on the CPU: its logarithm, as logarithms of probabilities are logits of them.
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
    return torch.cat(parts).clamp(min=1e-12).log()


def chosen_masks(agent: Agent, images: Tensor) -> Tensor:
    """The masks that the agent itself plays where nothing is drawn, (N, C, H, W) uint8 → (N, H, W) bool.

    Of the published loss what its threshold selects, of whatever area; of all others the cells that rank highest, or
    the best patch.
    """
    if isinstance(agent, APGA) and agent.settings.loss == "published":
        return cells_to_mask(torch.from_numpy(agent.scores(images)) > 0, *images.shape[2:])
    return Masker(agent)(images)
