"""Two tables of APGA's paper (arXiv 1909.04108), of our runs: Table 1 with its figures beside ours, and k-shot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.augmentation_analysis import Block, budget_of, title_of
from maskaug.benchmarks.augmentation_presets import PUBLISHED
from maskaug.benchmarks.paired import ALONE
from maskaug.benchmarks.statistics import Interval, uneven_note
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import scored_images, scored_on

_MURA = "MaskAug-MURA-v0"


def published_tables(blocks: Sequence[Block]) -> list[Table]:
    """Table 1 of every budget, hidden share and setting that MURA's body parts were run with; none without MURA."""
    found: dict[Any, list[Block]] = {}
    for block in blocks:
        if block.about["env_id"] == _MURA and block.about["env"].get("body_part") in PUBLISHED:
            found.setdefault((block.shots, block.hidden, block.joint), []).append(block)
    return [_published(parts) for parts in found.values()]


def _published(parts: Sequence[Block]) -> Table:
    rows: list[list[Any]] = []
    for block in parts:
        part = block.about["env"]["body_part"]
        images, figures = PUBLISHED[part]
        for arm, runs in block.runs.items():
            gain = block.difference(arm, "none", "accuracy")
            theirs = figures.get(arm)
            tested = sorted({len(run.predictions["labels"]) for run in runs.values()})
            rows.append(
                [
                    part, title_of(arm), len(runs), " or ".join(map(str, tested)),
                    _mean_sd(100 * block.values(arm, "accuracy"), 2), "" if gain is None else _points(gain),
                    *((None, None) if theirs is None else (f"{theirs[0]:.2f} ± {theirs[1]:.2f}", images)),
                ]
            )  # fmt: skip
    first = parts[0]
    setting = "joint" if first.joint else "masks first, then a new classifier"
    size = first.about["env"].get("image_size")
    scored = "MURA's own validation part, which chose nothing here"
    if first.split != "test":
        scored = (
            "one half of the validation split, carved from MURA's training part, whose other half chose the moments"
        )
    name = title_of("apga_published")
    ours = (
        f"the paper's loss, network, learning rate and views, on whole cells, is {name!r}"
        if first.training.published
        else f"{name!r} has the paper's loss, and networks, sizes and schedule that are ours"
    )
    note = (
        f"Accuracy in per cent, mean ± SD over seeds, on {scored}. "
        f"Ours: {budget_of(first.shots)}, {setting}{f', {size}×{size} pixels' if size else ''}. Published "
        "(arXiv 1909.04108, Table 1): all labels, joint, DenseNet-169, 224×224 pixels, the best of many looks at the "
        f"images that are reported; {ours}. Points: ours, with 95 % intervals clustered by seed and patient. {ALONE}"
    )
    columns = [
        "body part", "second view", "seeds", "test images", "accuracy, ours", "− no masks, points (95 %)",
        "accuracy, published", "test images, published",
    ]  # fmt: skip
    title = "Table 1 (MURA)" + first.title.removeprefix(first.task)
    return Table(title, columns, rows, note, stand_in=any(block.stand_in for block in parts))


def budget_tables(blocks: Sequence[Block]) -> list[Table]:
    """The k-shot table of every task, hidden share and setting that was run with two budgets or more."""
    found: dict[Any, list[Block]] = {}
    for block in blocks:
        if block.hidden is not None:
            found.setdefault((block.task, block.hidden, block.joint), []).append(block)
    return [_budgets(own) for own in found.values() if len(own) > 1]


def _budgets(found: Sequence[Block]) -> Table:
    own = sorted(found, key=lambda block: np.inf if block.shots is None else block.shots)
    columns = ["second view"]
    for block in own:
        columns += [budget_of(block.shots), f"{budget_of(block.shots)}: − no masks (95 %)"]
    # The widest block has its arms in the order of tables, and what only others have comes after them.
    arms = dict.fromkeys(arm for block in sorted(own, key=lambda b: -len(b.runs)) for arm in block.runs)
    rows = []
    counts = [len(runs) for block in own for runs in block.runs.values()]
    for arm in arms:
        row: list[Any] = [title_of(arm)]
        for block in own:
            gain, values = block.difference(arm, "none"), block.values(arm) if arm in block.runs else np.zeros(0)
            some = f" ({len(values)})" if len(set(counts)) > 1 else ""
            row += [_mean_sd(values, 3) + some if len(values) else "", "" if gain is None else gain.text()]
        rows.append(row)
    first = own[0]
    note = f"AUROC on {scored_images(first.split)}, mean ± SD over seeds; images: {first.source}. {ALONE}"
    if uneven := uneven_note(counts):
        note += f" In brackets: how many seeds. {uneven}"
    title = f"{first.task}, {first.hidden:.0%} hidden{', joint' if first.joint else ''}{scored_on(first.split)}: k-shot"
    return Table(title, columns, rows, note, stand_in=first.stand_in)


def _mean_sd(values: npt.NDArray[np.float64], digits: int) -> str:
    """Of one seed the value alone.

    >>> _mean_sd(np.array([82.0, 84.0]), 2), _mean_sd(np.array([0.5]), 3)
    ('83.00 ± 1.41', '0.500')
    """
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def _points(gain: Interval) -> str:
    return Interval(*(100 * x for x in (gain.value, gain.low, gain.high))).text(1)
