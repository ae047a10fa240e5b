"""What `maskaug bench algorithms` says: one table of the ends, and learning curves against masks and CPU seconds.

Means over seeds with Student's t intervals: five runs are too few for the bootstrap (see
`maskaug.benchmarks.statistics`). Beside each arm stand the probability that it is better than our own agent of that
game, its paired difference to it, and what its masks are worth on other images than their own.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.benchmarks.algorithms import ARMS, AlgorithmSettings, judge_name, run_name
from maskaug.benchmarks.chart_parts import Colour
from maskaug.benchmarks.charts import Band, BandPanel, band_chart
from maskaug.benchmarks.intervals import paired_interval
from maskaug.benchmarks.statistics import Interval, iqm, probability_of_improvement, verdict
from maskaug.benchmarks.tables import TABLES, Table, write_tables
from maskaug.envs.files import atomic_write, write_text
from maskaug.envs.rendering import Picture, save_picture

#: measure → its name for people, and the games that have it.
MEASURES = {
    "normalised": ("normalised reward", ("reconstruction", "classification")),
    "retention": ("share of the region kept", ("classification",)),
}
#: what 0 and 1 of the normalised reward are.
SCALES = {
    "reconstruction": "0 is what a random patch of each image earns, 1 what the best one does",
    "classification": "0 is the mean of ten random masks, 1 what greedy search finds that knows the label and asks the "
    "judge about every cell: a lower bound of the best, far above what an agent that sees the image alone can reach",
}
#: masks that nobody learns, in the judge's cell.
SIMPLE = {
    "random": "random", "centre": "centre", "mean_region": "mean training region", "local_variance": "local variance",
    "input_gradient": "|input × gradient|", "ceiling": "best cells by the region", "search": "greedy search",
}  # fmt: skip
#: an arm has one colour in every picture; our own agents are black.
COLOURS: dict[str, Colour] = {
    "intelligent_masking": (0, 0, 0), "apga": (0, 0, 0), "apga_random": (90, 90, 200), "published": (140, 140, 140),
    "end_to_end": (130, 90, 30), "distilled": (190, 170, 60), "dqn": (213, 94, 0), "qrdqn": (230, 159, 0),
    "ppo": (0, 114, 178), "a2c": (0, 158, 115), "trpo": (204, 121, 167), "maskableppo": (86, 180, 233),
    "recurrentppo": (110, 60, 160), "dqn_default": (255, 170, 140), "ppo_default": (150, 195, 230),
    "a2c_default": (150, 215, 190),
}  # fmt: skip

#: name of a cell → its figures.
Results = Mapping[str, Mapping[str, float]]
#: one line of the table: column → text or number.
Row = dict[str, str | float]
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A measure of one arm over its run.

    Attributes:
        seeds: whose runs are done.
        steps: (T,) judged masks.
        cpu_s: (T,) CPU seconds until then, mean over seeds.
        values: (seeds, T).
    """

    seeds: tuple[int, ...]
    steps: Array
    cpu_s: Array
    values: Array

    def intervals(self) -> list[Interval | None]:
        """Of each column the mean with its interval; None with a single seed."""
        return [t_interval(column) for column in self.values.T]


def t_interval(values: Sequence[float] | Array) -> Interval | None:
    """The mean and its 95 % Student's t interval; None of fewer than two values.

    >>> t_interval([0.1, 0.3, 0.2]).text()
    '+.200 (−.048 … +.448)'
    """
    return Interval(*paired_interval([float(v) for v in values])) if len(values) > 1 else None


def curve_of(settings: AlgorithmSettings, results: Results, game: str, arm: str, measure: str) -> Curve | None:
    """What the finished runs of an arm say; None where there is none, or none with this measure."""
    runs = {seed: results.get(run_name(game, arm, seed)) for seed in range(settings.seeds)}
    done = {seed: run for seed, run in runs.items() if run is not None and measure in run}
    if not done:
        return None
    looks = sorted({tuple(_looks(run, measure)) for run in done.values()}, key=len)
    # Runs of one arm are as long as each other and looked at together.
    steps = [look for look in looks[0] if all(look in other for other in looks)]
    table = np.array([[run[f"curve.{step}.{measure}"] for step in steps] for run in done.values()])
    seconds = np.array([[run[f"curve.{step}.cpu_s"] for step in steps] for run in done.values()])
    return Curve(tuple(done), np.array([float(step) for step in steps]), seconds.mean(0), table)


def _looks(run: Mapping[str, float], measure: str) -> list[str]:
    parts = [name.split(".", 2) for name in run if name.startswith("curve.")]
    return sorted(part[1] for part in parts if part[2] == measure)


def table_rows(settings: AlgorithmSettings, results: Results) -> list[Row]:
    """One row of each arm that has a finished run, and of masks that nobody learns: column → text or number."""
    rows: list[Row] = []
    for game, setting in settings.games.items():
        rows += [
            row for arm in setting.arms if (row := _arm_row(settings, results, game, arm, setting.arms[0])) is not None
        ]
        judges = [results.get(judge_name(game, seed)) for seed in range(settings.seeds)]
        done = [judge for judge in judges if judge is not None]
        for name, title in SIMPLE.items():
            simple: Row = {"game": game, "arm": name, "title": title, "seeds": len(done)}
            known = [measure for measure in MEASURES if done and f"{name}.{measure}" in done[0]]
            for measure in known:
                simple |= _interval_cells(measure, [judge[f"{name}.{measure}"] for judge in done])
            if known:
                rows.append(simple)
    return rows


def _arm_row(settings: AlgorithmSettings, results: Results, game: str, arm: str, first: str) -> Row | None:
    runs = {seed: run for seed in range(settings.seeds) if (run := results.get(run_name(game, arm, seed))) is not None}
    if not runs:
        return None
    own = list(runs.values())
    row: Row = {
        "game": game, "arm": arm, "title": ARMS[game][arm].title, "seeds": len(runs),
        "steps": float(np.mean([run["steps"] for run in own])), "cpu_s": float(np.mean([run["cpu_s"] for run in own])),
    }  # fmt: skip
    row["steps_per_cpu_s"] = float(row["steps"]) / float(row["cpu_s"])
    for measure in MEASURES:
        if measure not in own[0]:
            continue
        values = [run[measure] for run in own]
        row |= _interval_cells(measure, values)
        row[f"{measure}.iqm"] = iqm(np.array(values)[:, None])
        row[f"{measure}.untrained"] = float(np.mean([run[f"curve.0000000.{measure}"] for run in own]))
        row[f"{measure}.swapped"] = float(np.mean([run[f"swapped.{measure}"] for run in own]))
        pairs = [
            (run[measure], other[measure])
            for seed, run in runs.items()
            if arm != first and (other := results.get(run_name(game, first, seed))) is not None
        ]
        if len(pairs) > 1:
            mine, theirs = np.array(pairs).T
            difference = Interval(*paired_interval((mine - theirs).tolist()))
            better = probability_of_improvement(mine[:, None], theirs[:, None], paired=True)
            row |= {
                f"{measure}.difference": difference.value, f"{measure}.difference.low": difference.low,
                f"{measure}.difference.high": difference.high, f"{measure}.better": better.value,
                f"{measure}.verdict": verdict(difference),
            }  # fmt: skip
    return row


def _interval_cells(measure: str, values: Sequence[float]) -> Row:
    if not values:
        return {}
    cells: Row = {measure: float(np.mean(values))}
    interval = t_interval(values)
    return cells if interval is None else {**cells, f"{measure}.low": interval.low, f"{measure}.high": interval.high}


def unfinished(settings: AlgorithmSettings, results: Results) -> str:
    """What is missing, for people; "" where nothing is."""
    cells = [cell.name for cell in settings.cells()]
    done = sum(name in results for name in cells)
    return "" if done == len(cells) else f"{done} of {len(cells)} cells done"


def tables(settings: AlgorithmSettings, results: Results, besides: str = "") -> list[Table]:
    """The table of every game; each says what is missing, and `besides` at the end of its note."""
    rows, missing = table_rows(settings, results), unfinished(settings, results)
    found = []
    for game, setting in settings.games.items():
        measures = [name for name, (_, games) in MEASURES.items() if game in games]
        first = ARMS[game][setting.arms[0]].title
        heads = ["arm", "seeds", "masks", "CPU-s", "masks per CPU-s"]
        for measure in measures:
            what = "" if measure == "normalised" else f"{MEASURES[measure][0]}: "
            own = ("untrained", "swapped", f"− {first} [95 %]", "P(better)", "verdict")
            heads += [f"{MEASURES[measure][0]} [95 %]", *(what + name for name in own)]
        cells = [_cells(row, measures, settings.seeds) for row in rows if row["game"] == game]
        title = f"{game}: {setting.timesteps} masks, {settings.split} split, {_seeds(settings.seeds)}"
        found.append(Table(title, heads, cells, _note(game, setting.arms) + besides, missing))
    return found


def _note(game: str, arms: Sequence[str]) -> str:
    first = ARMS[game][arms[0]].title
    said = (
        f"Normalised reward: {SCALES[game]}. Untrained: by the same policy before its first judged mask. Swapped: the "
        "masks of the trained agent, each on another image than its own. Means over seeds with 95 % intervals of "
        f"Student's t; − {first}: paired by seed. P(better): how probable it is that a seed of this arm is better than "
        f"one of {first}. Verdict: better or worse where the interval of the difference leaves out 0; of twenty "
        "comparisons of equals one would."
    )
    if game == "classification" and {"apga", "end_to_end"} & set(arms):
        said += (
            " APGA, with either loss, and end-to-end start from the frozen judge's own weights, which is most of what "
            "they know after a few masks; APGA, random start, does not, and nor do the algorithms of "
            "Stable-Baselines3."
        )
    if "distilled" in arms:
        said += (
            " Distilled asks the frozen judge nothing: its masks are images that its own judges learn from, and maps "
            "that it learns."
        )
    return said


def markdown(settings: AlgorithmSettings, results: Results, skipped: Sequence[str] = (), besides: str = "") -> str:
    """The table of every game, and what is missing from it."""
    text = "\n\n".join(table.markdown() for table in tables(settings, results, besides)) + "\n"
    if skipped:
        text += f"\nSkipped: {', '.join(skipped)} (sb3-contrib is not installed; pip install 'maskaug[contrib]').\n"
    return text


def _cells(row: Mapping[str, Any], measures: Sequence[str], seeds: int) -> list[str]:
    some = f"{row['seeds']:.0f} of {seeds}" if row["seeds"] != seeds else f"{seeds}"
    cells = [row["title"], some, *(_rounded(row.get(name), 0) for name in ("steps", "cpu_s", "steps_per_cpu_s"))]
    for measure in measures:
        cells += [
            _spread(row, measure),
            _rounded(row.get(f"{measure}.untrained")),
            _rounded(row.get(f"{measure}.swapped")),
            _spread(row, f"{measure}.difference", "+"),
            _rounded(row.get(f"{measure}.better"), 2),
            row.get(f"{measure}.verdict", ""),
        ]
    return cells


def _rounded(value: str | float | None, digits: int = 3, sign: str = "") -> str:
    return "" if value is None else f"{float(value):{sign}.{digits}f}"


def _spread(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    middle = _rounded(row.get(name), 3, sign)
    if f"{name}.low" not in row:
        return middle
    return f"{middle} [{_rounded(row[f'{name}.low'], 3, sign)}, {_rounded(row[f'{name}.high'], 3, sign)}]"


def picture(settings: AlgorithmSettings, results: Results, game: str, measure: str) -> Picture | None:
    """Curves against judged masks and against CPU seconds, (h, w, 3) uint8; None where no run is done."""
    setting = settings.games[game]
    by_steps: list[Band] = []
    by_time: list[Band] = []
    for arm in setting.arms:
        curve = curve_of(settings, results, game, arm, measure)
        if curve is None:
            continue
        some = "" if len(curve.seeds) == settings.seeds else f" ({len(curve.seeds)} of {settings.seeds} seeds)"
        ends = [(math.nan, math.nan) if one is None else (one.low, one.high) for one in curve.intervals()]
        low, high = np.array(ends).T
        # A logarithmic axis has no room for the untrained agent; the table has it.
        later = curve.steps > 0
        name, colour, middle = ARMS[game][arm].title + some, COLOURS[arm], curve.values.mean(0)
        for bands, x in ((by_steps, curve.steps), (by_time, curve.cpu_s)):
            bands.append(Band(name, colour, x[later], middle[later], low[later], high[later]))
    if not by_steps:
        return None
    label = MEASURES[measure][0]
    panels = [
        BandPanel("against judged masks", "judged masks", label, by_steps),
        BandPanel("against CPU seconds of learning", "CPU seconds (one thread)", label, by_time),
    ]
    heading = f"Frozen {game} game, held-out images ({settings.split}): {_seeds(settings.seeds)}"
    if settings.seeds > 1:
        heading += ", mean and its 95 % interval"
    if missing := unfinished(settings, results):
        heading += f"\nUNFINISHED: {missing}"
    judges = [results[judge_name(game, seed)] for seed in range(settings.seeds) if judge_name(game, seed) in results]
    best = "greedy search" if game == "classification" else "best patch"
    marks = [("random", 0.0), (best, 1.0)]
    if measure != "normalised":
        marks = [("random", float(np.mean([judge[f"random.{measure}"] for judge in judges])))]
    return band_chart(panels, heading, marks)


def write_analysis(
    settings: AlgorithmSettings, results: Results, out: Path, skipped: Sequence[str] = (), besides: str = ""
) -> tuple[Path, ...]:
    """tables.json, tables.md, table.csv, curves.csv and <game>[-<measure>].png in `out`; returns their paths.

    Pictures of games that an earlier call drew there and this one has not asked for are removed.
    """
    for game in ARMS:
        for old in (out / f"{game}.png", *out.glob(f"{game}-*.png")):
            old.unlink(missing_ok=True)
    rows = table_rows(settings, results)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _write_csv(out / "table.csv", [columns, *([row.get(name, "") for name in columns] for row in rows)])
    text = markdown(settings, results, skipped, besides)
    write_text(out / "tables.md", text)
    points: list[list[object]] = [["game", "arm", "measure", "seeds", "steps", "cpu_s", "mean", "low", "high"]]
    write_tables(out / TABLES, tables(settings, results, besides))
    files = [out / TABLES, out / "table.csv", out / "tables.md", out / "curves.csv"]
    for game, setting in settings.games.items():
        for measure, (_, games) in MEASURES.items():
            if game not in games:
                continue
            for arm in setting.arms:
                curve = curve_of(settings, results, game, arm, measure)
                if curve is None:
                    continue
                for steps, seconds, mean, interval in zip(
                    curve.steps, curve.cpu_s, curve.values.mean(0), curve.intervals(), strict=True
                ):
                    ends = ["", ""] if interval is None else [interval.low, interval.high]
                    points.append([game, arm, measure, len(curve.seeds), int(steps), seconds, mean, *ends])
            drawn = picture(settings, results, game, measure)
            if drawn is not None:
                files.append(out / (f"{game}.png" if measure == "normalised" else f"{game}-{measure}.png"))
                save_picture(str(files[-1]), drawn)
    _write_csv(out / "curves.csv", points)
    return tuple(files)


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number > 1)}"


def _write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened, lineterminator="\n").writerows(rows)

    atomic_write(file, write)
