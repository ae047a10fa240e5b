"""How an agent's masks do on a data set: beside their controls, and its scores beside the true errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskaug.agents.base import Agent
from maskaug.agents.heuristics import LocalVariance
from maskaug.benchmarks.errors import rank_correlation, true_errors
from maskaug.benchmarks.masks import MaskReport, mask_report, measure
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.networks import at_once
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import RewardModel

#: images whose masks of pixels are looked at together.
FEW = 32


def report_on(
    agent: Agent, dataset: ImageDataset, train_set: ImageDataset, judge: RewardModel | None, fill: str
) -> MaskReport:
    """The agent's masks on `dataset` beside their controls.

    Where cells are pixels, a few images at a time: all their masks and controls would be gigabytes. A mask is then
    swapped with another of the same few.
    """
    spec = agent.spec
    if not spec.pixels:
        own = own_masks(agent, dataset)
        return mask_report(all_scores(agent, dataset), dataset, train_set, spec, judge=judge, fill=fill, own=own)
    measured = []
    for seed, rows in enumerate(np.array_split(np.arange(len(dataset)), -(-len(dataset) // FEW))):
        part = dataset.subset(rows)
        measured.append(measure(all_scores(agent, part), part, train_set, spec, judge=judge, fill=fill, seed=seed))
    return MaskReport.of(spec, len(dataset), measured)


def correlations(agent: Agent, dataset: ImageDataset, judge: RewardModel, fill: str) -> dict[str, float]:
    """Does the Q-map know what is hard? Rank correlation with the true errors, beside that of local variance.

    {"<split>.correlation.agent", "<split>.correlation.local_variance"}, means over at most 128 images, fewer where they
    are large; empty where the judge is no reconstructor.
    """
    if not isinstance(judge, ReconstructionReward):
        return {}
    # Every image is hidden in dozens of ways: 128 small images will do, and fewer large ones.
    count = min(len(dataset), max(8, 128 * 64**2 // (dataset.shape[1] * dataset.shape[2])), 128)
    some = dataset.subset(np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)))
    errors = true_errors(judge, some, agent.spec, fill)
    maps = {"agent": all_scores(agent, some), "local_variance": all_scores(LocalVariance(agent.spec), some)}
    found = {name: rank_correlation(scores, errors) for name, scores in maps.items()}
    return {
        f"{dataset.split}.correlation.{name}": float(values[np.isfinite(values)].mean())
        for name, values in found.items()
        if np.isfinite(values).any()
    }


def few_of(dataset: ImageDataset) -> ImageDataset:
    """At most `FEW` images of it, evenly spaced."""
    return dataset.subset(np.unique(np.linspace(0, len(dataset) - 1, FEW).astype(int)))


def own_masks(agent: Any, dataset: ImageDataset) -> Tensor | None:
    """The patches that an agent would play, as cells (N, g, g) bool; None where its masks follow from its scores."""
    if not agent.spec.patch_cells:
        return None
    images, chunk = dataset.images, at_once(*dataset.shape[1:])
    parts = [
        agent.predict(np.array(images[i : i + chunk]), deterministic=True)[0] for i in range(0, len(images), chunk)
    ]
    cells: Tensor = agent.spec.cells_of(np.concatenate(parts))
    return cells


def all_scores(agent: Any, dataset: ImageDataset) -> npt.NDArray[np.float32]:
    """(N, g, g) scores of every image of `dataset`, by anything that has `scores`."""
    chunk = at_once(*dataset.shape[1:])
    parts = [agent.scores(np.array(dataset.images[i : i + chunk])) for i in range(0, len(dataset), chunk)]
    return np.concatenate(parts)


def heading_of(name: str, dataset: ImageDataset, report: MaskReport) -> str:
    """One line for a picture: whose masks, on what, and what they keep beside their controls."""
    text = f"{name} on {dataset.name}, {dataset.split}: {report.area:.0%} of the image"
    if not report.retention:
        return text
    kept = report.retention
    return (
        f"{text} holds {kept['agent']:.0%} of the region (random {kept['random']:.0%}, swapped {kept['swapped']:.0%})"
    )
