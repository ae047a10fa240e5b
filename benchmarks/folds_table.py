"""What the benchmark of maskers says: means over folds, and paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maskaug.benchmarks.intervals import paired_interval

CONTROLS = {
    "random": "random cells",
    "centre": "centre",
    "mean_region": "mean training region",
    "ceiling": "best cells (ceiling)",
}


def summary_of(rows: Sequence[Mapping[str, float]], arms: Sequence[str], test_share: float) -> dict[str, float]:
    """Mean and SD over folds of every figure, and each arm's paired differences with their 95 % intervals.

    Differences are to the mean training region, to the arm's own masks swapped between images, and to the distilled
    masker. Test folds are disjoint and training sets are not: see `paired_interval`.

    Args:
        rows: one of each fold, with all of `arms`.
        arms: names.
        test_share: test images ÷ training images.
    """
    summary: dict[str, float] = {"folds": float(len(rows))}
    if not rows:
        return summary
    for key in (k for k in rows[0] if all(k in row for row in rows)):
        values = [row[key] for row in rows]
        summary[f"{key}.mean"] = float(np.mean(values))
        summary[f"{key}.sd"] = float(np.std(values, ddof=1)) if len(rows) > 1 else 0.0
    for arm in arms:
        for name in ("mean_region.kept", f"{arm}.swapped", "distilled.kept"):
            if len(rows) > 1 and name != f"{arm}.kept" and all(name in row for row in rows):
                differences = [row[f"{arm}.kept"] - row[name] for row in rows]
                other = "swapped" if name.endswith(".swapped") else name.removesuffix(".kept")
                for end, value in zip(
                    ("mean", "low", "high"), paired_interval(differences, test_share=test_share), strict=True
                ):
                    summary[f"{arm}-{other}.{end}"] = value
    return summary


def folds_table(summary: Mapping[str, float], arms: Sequence[str], titles: Mapping[str, str]) -> str:
    """A table for the terminal; arms without a finished fold have no row."""
    lines = [
        f"\nregion kept at equal area, {summary['folds']:.0f} folds, mean ± SD [95 % interval of paired differences]",
        f"{'':<24}{'kept':>15}{'swapped':>10}   {'− mean training region':<28}{'− its own, swapped':<28}− distilled",
    ]
    for name, title in CONTROLS.items():
        if f"{name}.kept.mean" in summary:
            lines.append(f"{title:<24}{_mean(summary, f'{name}.kept'):>15}")
    for arm in (a for a in arms if f"{a}.kept.mean" in summary):
        cells = "".join(f"{_interval(summary, f'{arm}-{x}'):<28}" for x in ("mean_region", "swapped", "distilled"))
        swapped = summary[f"{arm}.swapped.mean"]
        lines.append(f"{titles[arm]:<24}{_mean(summary, f'{arm}.kept'):>15}{swapped:>10.3f}   {cells}".rstrip())
    return "\n".join(lines)


def _mean(summary: Mapping[str, float], key: str) -> str:
    return f"{summary[f'{key}.mean']:.3f} ± {summary[f'{key}.sd']:.3f}"


def _interval(summary: Mapping[str, float], key: str) -> str:
    if f"{key}.mean" not in summary:
        return ""
    return "{:+.3f} ({:+.3f} … {:+.3f})".format(*(summary[f"{key}.{end}"] for end in ("mean", "low", "high")))
