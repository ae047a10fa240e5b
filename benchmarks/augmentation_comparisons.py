"""The tables of `maskaug bench apga`: a row an arm, of one task or over tasks; no "better" without an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskaug.benchmarks.augmentation import SWAPPED
from maskaug.benchmarks.augmentation_analysis import ITSELF, Block, title_of
from maskaug.benchmarks.clustered_bootstrap import clusters_note
from maskaug.benchmarks.clustered_means import clustered_task_difference
from maskaug.benchmarks.paired import ALONE, DRAWS, METHOD, METRIC
from maskaug.benchmarks.presets import apga_play
from maskaug.benchmarks.statistics import (
    FEWEST,
    Interval,
    few_runs_note,
    mean_of_iqms,
    probability_of_improvement,
    stratified_bootstrap,
    uneven_note,
    verdict,
)
from maskaug.benchmarks.tables import Table
from maskaug.benchmarks.tasks import scored_images
from maskaug.benchmarks.training import env_keywords
from maskaug.envs.defaults import default_grid
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import cells_for_area

#: figures of a classifier that tables show besides; in the joint setting also what it took and hid.
OTHERS = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "averaged.auroc", "study.kappa")
JOINT_OTHERS = ("cpu_s", "hidden_share")
#: arms that learn whom to hide, and what stands beside them all.
LEARNT = ("end_to_end", "apga_published", "apga", "ppo", "distilled")
CONTROLS = (
    "none_twice", ITSELF, "cutout", "centre", "mean_region", "brightness", "grad_cam", "input_gradient", "oracle",
)  # fmt: skip


def table(block: Block) -> Table:
    """One block, a row an arm; numbers stay numbers, intervals are text."""
    others = (*OTHERS, *(JOINT_OTHERS if block.joint else ()))
    columns = [
        "second view", "seeds", "AUROC", "SD", "AUROC (95 %)", "IQM (95 %)", "− no masks (95 %)", "− random (95 %)",
        "P(better than random)", "against no masks", "against random", *others,
    ]  # fmt: skip
    rows = []
    for arm, runs in block.runs.items():
        values = block.values(arm)
        plain, chance = block.difference(arm, "none"), block.difference(arm, "random")
        alone, improves = block.interval(arm), block.improves(arm, "random")
        rows.append(
            [
                title_of(arm), len(runs), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None,
                "" if alone is None else alone.text(signed=False),
                stratified_bootstrap(values[:, None]).text(signed=False) if len(values) >= FEWEST else "",
                *(i.text() if i else "" for i in (plain, chance)),
                improves.text(2, signed=False) if improves else "",
                *(verdict(i) if i else "" for i in (plain, chance)),
                *(float(v.mean()) if len(v := block.values(arm, name)) else None for name in others),
            ]
        )  # fmt: skip
    empty = [i for i in range(len(columns)) if all(row[i] in ("", None) for row in rows)]
    return Table(
        block.title, [c for i, c in enumerate(columns) if i not in empty],
        [[v for i, v in enumerate(row) if i not in empty] for row in rows], _note(block), stand_in=block.stand_in,
    )  # fmt: skip


def controls_table(block: Block) -> Table | None:
    """Each learnt mask beside its controls other than "none" and "random"; None where there are none.

    Its controls: as many more images, the judge that it asked, fixed masks, saliency, its own masks swapped between
    images, and beside APGA its published loss.
    """
    rows: list[list[Any]] = []
    for arm in LEARNT:
        own = (arm + SWAPPED, *(("apga_published",) if arm == "apga" else ()))
        for other in (*CONTROLS, *own):
            gain = block.difference(arm, other) if {arm, other} <= set(block.runs) else None
            if gain is not None:
                improves = block.improves(arm, other)
                rows.append(
                    [
                        title_of(arm), title_of(other), len(block.common(arm, other)), gain.text(),
                        improves.text(2, signed=False) if improves else "", verdict(gain),
                    ]
                )  # fmt: skip
    if not rows:
        return None
    columns = ["learnt", "beside", "seeds", "AUROC, difference (95 %)", "P(better)", "verdict"]
    said = [
        f"Images: {block.source}. AUROC on {scored_images(block.split)}, paired by seed and image.",
        clusters_note("differences", block.shared, block.test_share), ALONE, few_runs_note([row[2] for row in rows]),
    ]  # fmt: skip
    note = " ".join(part for part in said if part)
    return Table(f"{block.title}: learnt masks and their controls", columns, rows, note, stand_in=block.stand_in)


def _note(block: Block) -> str:
    said = [
        f"Images: {block.source}. AUROC on {scored_images(block.split)}.",
        *_labels(block),
        clusters_note("AUROC (95 %) and of paired differences", block.shared, block.test_share),
        ALONE,
    ]
    counts = [len(runs) for runs in block.runs.values()]
    said += [few_runs_note(counts), uneven_note(counts)]
    said += [*_arms(block), *(f"No interval: {reason}." for reason in sorted(block.refused))]
    return " ".join(part for part in said if part)


def _labels(block: Block) -> list[str]:
    # The few labels are not all that was used.
    if block.shots is None:
        return []
    return [
        f"{block.shots} labels a class are what is trained on; the validation split that chooses every classifier's "
        f"best moment has {block.data['images']['val']} labelled images besides."
    ]


def _arms(block: Block) -> list[str]:
    said, runs = [], block.runs
    if ITSELF in runs:
        # Whoever asks a judge could use it as it is: masks must be worth more than that.
        said.append(
            "The judge itself: whom the maskers asked, trained on the images alone, with first weights of its own, for "
            f"{block.training.updates_of_judge} updates (the others: {block.training.updates})."
        )
    if block.hidden is not None:
        said.append(_real_share(block, block.hidden))
    if "apga_published" in runs:
        paper = "also the paper's network, learning rate and views" if block.training.published else "nothing else"
        said.append(f"APGA, published loss: of the paper it has the loss and {paper}; its masks are whole cells.")
    if block.joint and {"apga_published", "ppo"} & set(runs):
        said.append("hidden_share: of the image, what the aiding views hid in training, the mean of all masks played.")
    if block.joint and "ppo" in runs:
        said.append("PPO chooses how much it hides, at a price for leaving the share.")
    if block.joint and "apga_published" in runs:
        said.append(
            "APGA, published loss, is free in how much it hides: its loss prices the area, its reward does not."
        )
    if block.joint and "apga" in runs:
        said.append(
            f"The judge learns from the best-rewarded of {apga_play({})['repeat']} of APGA's masks an image, of all "
            "others' from the one there is; cpu_s says what that takes."
        )
    if any("averaged.auroc" in r.figures for some in runs.values() for r in some.values()):
        said.append(
            "averaged.auroc: test-time averaging, of the mean of what is predicted of an image and of its second view."
        )
    return said


def _real_share(block: Block, hidden: float) -> str:
    play = env_keywords(block.about["env_id"], block.about["env"])
    grid = play.get("grid") or default_grid("grid", tuple(block.data["shape"][1:]))
    cells = grid**2 - cells_for_area(1 - hidden, grid) if block.joint else cells_for_area(hidden, grid)
    text = f"Whole cells are hidden: {cells} of {grid**2}, {cells / grid**2:.1%}."
    return text + (" Random erasing hides pixels, as many on average." if "random_erasing" in block.runs else "")


def over_tasks(found: Sequence[Block]) -> Table | None:
    """Blocks of one budget and setting as the tasks of one table; None for a single one.

    Args:
        found: one of each task, all with the same budget, hidden share and setting.
    """
    arms = [arm for arm in found[0].runs if all(arm in block.runs for block in found)] if found else []
    if len(found) < 2 or not {"none", "random"} <= set(arms):
        return None
    rows: list[list[Any]] = []
    known: list[int] = []
    for arm in arms:
        scores = [block.values(arm) for block in found]
        known += map(len, scores)
        row: list[Any] = [title_of(arm)]
        many = min(map(len, scores)) >= FEWEST
        row.append(stratified_bootstrap(scores, mean_of_iqms).text(signed=False) if many else "")
        for other in ("none", "random"):
            gain, chance = (None, None) if arm == other else _over_tasks(found, arm, other)
            row += ["" if gain is None else gain.text(), "" if chance is None else chance.text(2, signed=False)]
            row.append("" if gain is None else verdict(gain))
        rows.append(row)
    columns = ["second view", "mean of IQMs (95 %)"]
    for other in ("no masks", "random"):
        columns += [f"− {other} (95 %)", f"P(better than {other})", f"against {other}"]
    first = found[0]
    same = {block.data["name"] for block in found if block.shared}
    said = [
        f"AUROC on {scored_images(first.split)} over {len(found)} tasks ({'; '.join(block.title for block in found)}).",
        "Mean of IQMs: of each task's interquartile mean; seeds resampled within each task, images not. Differences: "
        "of means, not of IQMs, over tasks, of the seeds that all tasks have, seeds and the groups of each task drawn.",
        clusters_note("paired differences", first.shared, first.test_share), ALONE, few_runs_note(known),
        "Tasks of one data set share patients, whom the intervals count as others in every task: they are too short."
        if first.shared and len(same) < len(found) else "",
    ]  # fmt: skip
    stand_in = any(block.stand_in for block in found)
    title = "over all tasks" + first.title.removeprefix(first.task)
    return Table(title, columns, rows, " ".join(part for part in said if part), stand_in=stand_in)


def _over_tasks(found: Sequence[Block], arm: str, other: str) -> tuple[Interval | None, Interval | None]:
    """(difference, probability of improvement); None with fewer seeds in common than two, and than `FEWEST`."""
    seeds = [seed for seed in found[0].common(arm, other) if all(seed in b.common(arm, other) for b in found)]
    if len(seeds) < 2:
        return None, None
    runs: list[list[Any]] = [[block.pair(arm, other, seed) for block in found] for seed in seeds]
    try:
        gain = clustered_task_difference(
            runs, METRIC, shared=found[0].shared, method=METHOD, draws=DRAWS, test_share=found[0].test_share
        )
    except ConfigurationError:
        # Every block's own table says why.
        return None, None
    if len(seeds) < FEWEST:
        return gain, None
    one, two = (
        [np.array([block.runs[a][seed].figures[METRIC] for seed in seeds]) for block in found] for a in (arm, other)
    )
    return gain, probability_of_improvement(one, two, paired=True)
