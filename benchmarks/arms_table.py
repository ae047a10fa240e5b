"""What a benchmark of arms says: means, paired intervals, a table for the terminal, and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maskaug.benchmarks.arms import CONTROL, CONTROLS, TITLES, Arm, ArmsSettings
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.pictures import reconstruction_rows
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.masking import cells_to_mask
from maskaug.envs.rendering import Picture, label, sheet


def summary_of(
    rows: Sequence[Mapping[str, float]], settings: ArmsSettings, test_share: float = 0.0
) -> dict[str, float]:
    """Mean and SD over seeds of every figure, and each arm's paired differences with their 95 % intervals.

    Args:
        rows: one of each seed, with all of `settings.arms`; others may be there and are left out.
        settings: what was run.
        test_share: see `paired_interval`.
    """
    summary: dict[str, float] = {"seeds": float(len(rows))}
    if not rows:
        return summary
    known = [k for k in rows[0] if k.split(".")[0] in settings.arms and all(k in row for row in rows)]
    for key in known:
        values = [row[key] for row in rows]
        summary[f"{key}.mean"] = float(np.mean(values))
        summary[f"{key}.between_seeds"] = float(np.std(values, ddof=1)) if len(rows) > 1 else 0.0
    if len(rows) < 2:
        return summary
    for arm in settings.arms:
        for other in {"none", "random", CONTROL.get(arm, "none"), *CONTROLS.get(arm, ())} & set(settings.arms) - {arm}:
            for key in (k.removeprefix(f"{arm}.") for k in known if k.startswith(f"{arm}.")):
                if f"{other}.{key}" in known and key.endswith(("accuracy", "f1", "auroc")):
                    paired = paired_interval(
                        [row[f"{arm}.{key}"] - row[f"{other}.{key}"] for row in rows], test_share=test_share
                    )
                    for end, value in zip(("mean", "low", "high"), paired, strict=True):
                        summary[f"{arm}-{other}.{key}.{end}"] = value
    return summary


def arms_table(summary: Mapping[str, float], settings: ArmsSettings, seeds: int) -> str:
    """A table for the terminal: every arm at every budget, and its difference to random cells (or a random patch)."""
    lines = []
    for readout in settings.readouts:
        for budget in settings.budgets:
            key = f"{readout}.{budget or 'all'}"
            lines.append(
                f"\n{readout}, {budget or 'all'} labels, {settings.updates} updates, {seeds} seeds"
                f"\n{'':<22}{'accuracy':>16}{'macro-F1':>16}{'macro-AUROC':>16}   accuracy − random cells"
                " (as published: − random patch)"
            )
            for arm in settings.arms:
                cells = ""
                for metric in ("accuracy", "f1", "auroc"):
                    mean, sd = (summary[f"{arm}.{key}.{metric}.{x}"] for x in ("mean", "between_seeds"))
                    cells += f"{mean:>9.3f} ± {sd:.3f}".rjust(16)
                paired = _interval(summary, f"{arm}-{CONTROL.get(arm, 'random')}", key)
                lines.append(f"{TITLES[arm]:<22}{cells}   {paired}".rstrip())
            for arm, others in CONTROLS.items():
                for other in (o for o in others if arm in settings.arms and o in settings.arms and seeds > 1):
                    lines.append(f"{TITLES[arm]} − {TITLES[other]}: {_interval(summary, f'{arm}-{other}', key)}")
    for arm in (a for a in CONTROL if a in settings.arms):
        starts = tuple(f"{arm}.{what}" for what in ("correlation", "hit", "retention"))
        found = {k[len(arm) + 1 : -5]: v for k, v in summary.items() if k.startswith(starts) and k.endswith(".mean")}
        lines.append(f"\n{TITLES[arm]}: " + "  ".join(f"{k} {v:.3f}" for k, v in found.items()))
    return "\n".join(lines)


def _interval(summary: Mapping[str, float], pair: str, key: str) -> str:
    names = [f"{pair}.{key}.accuracy.{end}" for end in ("mean", "low", "high")]
    if not all(name in summary for name in names):
        return ""
    return "{:+.3f} ({:+.3f} … {:+.3f})".format(*(summary[name] for name in names))


def arms_picture(arms: Mapping[str, Arm], test: ImageDataset, side: int = 128) -> Picture:
    """One held-out image per arm: image · Q-map · what was hidden · hidden image · what came back."""
    shown = test.with_region() if test.outlined.any() else test
    one = shown.subset([len(shown) // 2])
    rows = []
    for name, arm in arms.items():
        if arm.masker is None:
            continue
        cells = arm.spec.cells_of(arm.masker.predict(np.array(one.images), deterministic=True)[0])
        scores = arm.masker.scores(np.array(one.images)) if name in CONTROL else None
        masks = cells_to_mask(cells, *one.shape[1:])
        (row,) = reconstruction_rows(one, scores, masks, arm.judge, arm.fill, side)
        rows.append([label(row[0], TITLES[name]), *(label(panel, "") for panel in row[1:])])
    return sheet(rows, ["image", "Q-map", "what was hidden", "hidden image", "what came back"])
