"""What an encoder's features are worth with few labels: the downstream proof of Intelligent Masking.

The encoder is frozen. Its features are computed once; small read-outs are then fitted to a few labelled training
images, chosen on labelled validation images and scored on test images that neither pre-training nor any choice has
seen. Draws of labels depend on the seed alone, so that two encoders are compared on the same ones.

Source: "Intelligent Masking: Deep Q-Learning for Context Encoding in Medical Image Analysis" (arXiv 2203.13865). Two
things differ from the authors' code: class weights go by class, not by frequency, and what is frozen stays frozen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from maskaug.benchmarks import readouts
from maskaug.benchmarks.readouts import CHUNK, DownstreamSettings, Labelled
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.networks import to_float

METRICS = ("accuracy", "f1", "auroc")


class Row(TypedDict):
    """One read-out of one draw, scored on the test split.

    Keys:
        readout: "paper" or "logistic".
        budget: "10", …, or "all".
        draw: its number, from 0.
        labels: how many labelled training images it had.
        chosen: the epoch (from 1) or the C that the validation images chose.
        accuracy: share of right answers.
        f1: mean over the classes of F1; 0 for a class that is never found.
        auroc: with two classes as usual, with more the mean of each class against the rest.
    """

    readout: str
    budget: str
    draw: int
    labels: int
    chosen: float
    accuracy: float
    f1: float
    auroc: float


class ReadOut(NamedTuple):
    """One read-out of one draw, and what it says of the test split.

    Attributes:
        readout: "paper" or "logistic".
        budget: "10", …, or "all".
        draw: its number, from 0.
        labels: how many labelled training images it had.
        chosen: the epoch (from 1) or the C that the validation images chose.
        probabilities: (N, classes) of the test images.
    """

    readout: str
    budget: str
    draw: int
    labels: int
    chosen: float
    probabilities: npt.NDArray[np.float64]


@torch.no_grad()
def features(encoder: nn.Module, dataset: ImageDataset, device: str | torch.device = "cpu") -> Tensor:
    """Every image's feature maps, (N, F, h, w) float32 on the CPU, computed in evaluation mode.

    Args:
        encoder: (N, C, H, W) float in [0, 1] → (N, F, h, w); moved to `device`, its mode is put back.
        dataset: N images.
        device: where the encoder runs.

    Raises:
        ConfigurationError: the encoder returns something else, or numbers that are not finite.
    """
    was_training = encoder.training
    encoder.to(device).eval()
    parts = []
    for start in range(0, len(dataset), CHUNK):
        # A copy: torch warns of arrays that cannot be written to, and a cache's memory map is one.
        images = torch.from_numpy(np.array(dataset.images[start : start + CHUNK]))
        parts.append(encoder(to_float(images.to(device))).float().cpu())
    encoder.train(was_training)
    maps = torch.cat(parts)
    if maps.ndim != 4 or len(maps) != len(dataset):
        raise ConfigurationError(
            f"the encoder made {tuple(maps.shape)} of {len(dataset)} images; it must return feature maps (N, F, h, w)"
        )
    if not bool(maps.isfinite().all()):
        raise ConfigurationError("the encoder returned NaN or infinity; look at its pre-training's loss")
    return maps


def draw_labelled(labels: npt.NDArray[np.int64], budget: int | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The indices, ascending, of `budget` images drawn class by class in proportion, at least one of each class.

    Args:
        labels: (N,) with every class at least once.
        budget: from the number of classes up to N; None: all N.
        rng: what is drawn from.
    """
    counts = np.bincount(labels)
    if budget is None or budget == len(labels):
        return np.arange(len(labels))
    share = counts * budget / len(labels)
    take = np.maximum(1, np.floor(share)).astype(np.int64)
    while take.sum() < budget:
        take[(share - take).argmax()] += 1
    while take.sum() > budget:
        take[np.where(take > 1, take - share, -np.inf).argmax()] -= 1
    drawn = [rng.permutation(np.flatnonzero(labels == cls))[:k] for cls, k in enumerate(take)]
    return np.sort(np.concatenate(drawn))


def downstream(
    encoder: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    test: ImageDataset,
    settings: DownstreamSettings | None = None,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Read an encoder's features out with few labels: one row for each read-out, budget and draw.

    On a CPU one seed gives the same bits; labelled images are the same whatever the encoder.

    Args:
        encoder: images (N, C, H, W) float in [0, 1] → feature maps (N, F, h, w), e.g. a `FrozenEncoder`. Not trained.
        train: labels are drawn from here.
        val: chooses the epoch and the regularisation.
        test: is scored, once for each row.
        settings: None takes the defaults of `DownstreamSettings`.
        device: where encoder and heads run.
        say: is told, after each read-out and budget, what came out; the paper's head takes a while on a CPU.

    Raises:
        ConfigurationError: splits without labels, without one of the classes, or that share a group; a budget that the
            training split cannot fill.
    """
    settings = DownstreamSettings() if settings is None else settings
    rows: list[Row] = []
    began = time.perf_counter()
    for found in read_out(encoder, train, val, test, settings, device):
        assert test.labels is not None
        about = {k: v for k, v in found._asdict().items() if k != "probabilities"}
        rows.append(Row(**about, **scores(found.probabilities, test.labels)))  # type: ignore[typeddict-item]
        if say is not None and found.draw == settings.draws - 1:
            accuracy = np.mean([row["accuracy"] for row in rows[-settings.draws :]])
            took, began = time.perf_counter() - began, time.perf_counter()
            say(f"{found.readout}, {found.budget} labels: accuracy {accuracy:.3f} ({took:.0f} s)")
    return rows


def read_out(
    encoder: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    test: ImageDataset,
    settings: DownstreamSettings,
    device: str | torch.device = "cpu",
) -> Iterator[ReadOut]:
    """What the read-outs of `downstream` say of each test image; arguments and errors are its own."""
    classes = _check(train, val, test, settings)
    parts = []
    for dataset in (train, val, test):
        assert dataset.labels is not None
        parts.append(Labelled(features(encoder, dataset, device), dataset.labels))
    for readout in settings.readouts:
        for budget in settings.budgets:
            for draw in range(settings.draws):
                # Not of the read-out: both get the same labelled images.
                source = np.random.SeedSequence([settings.seed, draw, budget or 0])
                rng = np.random.default_rng(source)
                labelled = parts[0].at(draw_labelled(parts[0].labels, budget, rng))
                most = settings.validation
                few = None if most is None or most >= len(val) else most
                choice = parts[1].at(draw_labelled(parts[1].labels, few, rng))
                if readout == "paper":
                    number = int(source.generate_state(1)[0])
                    found, chosen = readouts.paper(labelled, choice, parts[2], classes, settings, number, device)
                else:
                    found, chosen = readouts.logistic(labelled, choice, parts[2], classes, settings)
                named = "all" if budget is None else str(budget)
                yield ReadOut(readout, named, draw, len(labelled.labels), chosen, found)


def scores(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """{"accuracy", "f1", "auroc"} of (N, classes) probabilities; see `Row`. Every class must be among the labels."""
    answers = probabilities.argmax(1)
    if probabilities.shape[1] == 2:
        auroc = roc_auc_score(labels, probabilities[:, 1])
    else:
        auroc = roc_auc_score(labels, probabilities, multi_class="ovr")
    return {
        "accuracy": float((answers == labels).mean()),
        "f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
        "auroc": float(auroc),
    }


def summarise(rows: Sequence[Row], prefix: str = "downstream") -> dict[str, float]:
    """{"downstream.logistic.100.accuracy": mean over the draws, "….accuracy.sd": their SD (0 of one draw), …}.

    The SD is that of the draws of labels, with one encoder and one test split: no measure of what a comparison of two
    ways of pre-training can be trusted with. For that see `paired_interval`.
    """
    result: dict[str, float] = {}
    for readout, budget in dict.fromkeys((row["readout"], row["budget"]) for row in rows):
        same = [row for row in rows if (row["readout"], row["budget"]) == (readout, budget)]
        for metric, values in (
            ("accuracy", [row["accuracy"] for row in same]),
            ("f1", [row["f1"] for row in same]),
            ("auroc", [row["auroc"] for row in same]),
        ):
            name = f"{prefix}.{readout}.{budget}.{metric}"
            result[name] = float(np.mean(values))
            result[f"{name}.sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return result


def table(arms: Mapping[str, Sequence[Row]]) -> str:
    """A plain text table for the terminal: for each read-out and budget one line an arm, mean ± SD over the draws.

    Args:
        arms: the encoder's name → its rows.
    """
    summaries = {arm: summarise(rows) for arm, rows in arms.items()}
    width = max(len(arm) for arm in arms) + 2
    lines = [f"{'read-out':<10}{'labels':>7}  {'encoder':<{width}}" + "".join(f"{m:>15}" for m in METRICS)]
    cells = dict.fromkeys((row["readout"], row["budget"]) for rows in arms.values() for row in rows)
    for readout, budget in cells:
        for arm, summary in summaries.items():
            name = f"downstream.{readout}.{budget}"
            if f"{name}.accuracy" in summary:
                values = "".join(f"{summary[f'{name}.{m}']:>9.3f} ±{summary[f'{name}.{m}.sd']:.2f}" for m in METRICS)
                lines.append(f"{readout:<10}{budget:>7}  {arm:<{width}}{values}")
    return "\n".join(lines)


def _check(train: ImageDataset, val: ImageDataset, test: ImageDataset, settings: DownstreamSettings) -> int:
    """The number of classes, or the one clear error."""
    classes = len(train.class_names)
    if classes < 2:
        raise ConfigurationError(f"{train.name} has {classes} class; a read-out needs at least two to tell apart")
    named = {"train": train, "val": val, "test": test}
    for split, dataset in named.items():
        if dataset.labels is None:
            raise ConfigurationError(f"the {split} split of {dataset.name} has no labels, and a read-out needs them")
        if dataset.class_names != train.class_names:
            raise ConfigurationError(
                f"the {split} split has the classes {dataset.class_names}, the train split {train.class_names}; "
                "give three splits of one data set"
            )
        missing = [train.class_names[c] for c in range(classes) if not (dataset.labels == c).any()]
        if missing:
            raise ConfigurationError(
                f"the {split} split of {dataset.name} ({len(dataset)} images) has no {', '.join(missing)}; split with "
                "another seed, or bring more images"
            )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = np.intersect1d(named[one].groups, named[other].groups)
        if len(shared):
            raise ConfigurationError(
                f"{one} and {other} share {len(shared)} groups, such as number {shared[0]}; split by group, and number "
                "the groups of separate data sets differently"
            )
    for what, number in (*(("budget", budget) for budget in settings.budgets), ("validation", settings.validation)):
        if number is not None and number < classes:
            raise ConfigurationError(f"{what} {number} is less than one label for each of the {classes} classes")
    for budget in settings.budgets:
        if budget is not None and budget > len(train):
            raise ConfigurationError(
                f"budget {budget} is more than the {len(train)} training images of {train.name}; None takes all"
            )
    return classes
