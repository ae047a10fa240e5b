"""The report's sections on runs: one table of all, their learning curves together, and each in detail."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Sequence

from maskaug.benchmarks.report_charts import COLOURS, Line, chart, number
from maskaug.benchmarks.report_files import flat
from maskaug.benchmarks.report_found import DONE, Run, shown
from maskaug.benchmarks.report_html import Budget, Column, badge, cell, details, escaped, pre, table
from maskaug.benchmarks.run import STEP
from maskaug.envs.errors import ConfigurationError

#: columns of the table of runs; further ones are counted below it.
SETTINGS, METRICS = 8, 10
#: charts of runs together, lines in each, charts of one run, results of one run.
CHARTS, LINES, OWN_CHARTS, OWN_RESULTS = 12, 100, 12, 300
_OWN_COLUMNS = ("agent", "arm", "env_id", "seed")
#: parts of metrics' names that come first, in this order.
_PREFERRED = (
    "auroc", "retention.agent", "retention", "gain.agent", "f1", "accuracy", "hit.agent", "correlation.agent", "reward",
)  # fmt: skip
_CURVES_FIRST = ("reward", "ep_rew_mean", "judge_loss", "loss", "entropy")


def anchor(index: int) -> str:
    """The id of a run's details."""
    return f"run-{index + 1}"


def link(runs: Sequence[Run], index: int) -> str:
    """A link to a run's details."""
    return f'<a href="#{anchor(index)}">{escaped(shown(runs[index].name, 200))}</a>'


def chosen_metrics(runs: Sequence[Run], patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics that are columns of the table, and those that are not.

    Args:
        runs: whose.
        patterns: names as in a shell ("*auroc*"); empty: the best known of those that most runs have.

    Raises:
        ConfigurationError: a pattern that no metric answers to.
    """
    counted = Counter(name for run in runs for name in run.results if name != STEP)
    known = sorted(counted)
    if patterns:
        chosen: list[str] = []
        for pattern in patterns:
            matching = [name for name in known if fnmatch.fnmatchcase(name, pattern) and name not in chosen]
            if not matching and not any(fnmatch.fnmatchcase(name, pattern) for name in chosen):
                some = ", ".join(known[:12]) or "none at all"
                raise ConfigurationError(f"no run has a metric {pattern!r}; there are {some}")
            chosen += matching
        return chosen, [name for name in known if name not in chosen]
    ranked = sorted(known, key=lambda name: (_place(name, _PREFERRED), -counted[name], name))
    return ranked[:METRICS], ranked[METRICS:]


def runs_table(runs: Sequence[Run], patterns: Sequence[str], budget: Budget) -> str:
    """The table of all runs with its filter, and what has no column."""
    settings = [{**flat(run.asked), **({"work": run.work} if run.work else {})} for run in runs]
    names = Counter(name for one in settings for name in one if name not in _OWN_COLUMNS)
    values_of = {name: {one.get(name) for one in settings} for name in names}
    # Those with several values before those that some runs merely do not have, as where there are runs of two kinds.
    differ = sorted(
        (
            name
            for name, values in values_of.items()
            if len(values) > 1 and (name != "work" or len(values - {None}) > 1)
        ),
        key=lambda name: (len(values_of[name] - {None}) < 2, -names[name], name),
    )
    columns, others = differ[:SETTINGS], differ[SETTINGS:]
    metrics, rest = chosen_metrics(runs, patterns)
    own = {
        "agent": [run.agent for run in runs],
        "environment": [run.environment for run in runs],
        "data": [run.data_name for run in runs],
        "seed": [flat(run.asked).get("seed", "") for run in runs],
    }
    kept = {title: values for title, values in own.items() if any(values)}
    rows = []
    for i, run in enumerate(runs):
        if budget.left < 100_000:
            budget.drop("runs", len(runs) - i)
            break
        cells = [f'<th scope="row">{link(runs, i)}</th><td>{badge(run.state, run.state)}</td>']
        for title, values in kept.items():
            marked = f"<td>{escaped(shown(str(run.data.get('name')), 80))} {badge('stand-in', 'standin')}</td>"
            cells.append(marked if title == "data" and run.stand_in else cell(shown(values[i])))
        cells += [cell(shown(settings[i].get(name, ""), 80)) for name in columns]
        cells += [cell(run.results.get(name)) for name in metrics]
        rows.append(budget.take("runs", f'<tr data-run="{anchor(i)}">{"".join(cells)}</tr>'))
    heads = [Column("run"), Column("state"), *(Column(title, title == "seed") for title in kept)]
    heads += [*map(Column, columns), *(Column(name, number=True) for name in metrics)]
    told = []
    for what, left in (("settings that differ", others), ("metrics", rest)):
        if left:
            some = ", ".join(left[:8]) + (", …" if len(left) > 8 else "")
            told.append(f"{len(left)} more {what} stand with each run below: {shown(some)}.")
    if rest and not patterns:
        told.append("--metrics chooses other columns.")
    return (
        '<div class="tools"><label for="filter">Filter</label>'
        f'<input id="filter" type="search" data-all="{len(runs)}" placeholder="words that a row has to have">'
        f'<output id="shown" for="filter" class="soft">{len(runs)} of {len(runs)} runs</output></div>'
        + table("runs", "All runs", heads, rows)
        + f'<p class="note">{escaped(" ".join(told))}</p>'
    )


def curves_together(runs: Sequence[Run], budget: Budget) -> str:
    """Charts with a line for each run, of those that play the same game on the same data; "" without curves."""
    games: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.curves:
            objective = flat(run.resolved).get("env.objective", flat(run.asked).get("objective", ""))
            games.setdefault((run.environment, run.data_name, objective), []).append(run)
    shared = {game: members for game, members in games.items() if len(members) > 1}
    parts, charts = [], 0
    for game, members in sorted(shared.items()):
        kinds = list(dict.fromkeys(run.agent or shown(run.work) or "run" for run in members))
        counted = Counter(name for run in members for name in run.curves)
        ranked = sorted(counted, key=lambda name: (_place(name, _CURVES_FIRST), -counted[name], name))
        # A loss of one algorithm has nothing to do with another's.
        names = [n for n in ranked if counted[n] > 1 and (len(kinds) == 1 or not n.startswith("train/"))][:4]
        drawn = []
        for name in names:
            having = [run for run in members if name in run.curves]
            if charts >= CHARTS:
                budget.drop("charts of runs together")
                continue
            budget.drop("lines of charts", len(having) - LINES) if len(having) > LINES else None
            lines = [
                Line(shown(run.name), kinds.index(run.agent or shown(run.work) or "run"), run.curves[name])
                for run in having[:LINES]
            ]
            charts += 1
            drawn.append(budget.take("charts of runs together", chart(name, lines, STEP, 40)))
        if any(drawn):
            title = " · ".join(filter(None, game)) or "runs"
            parts.append(f'<h3>{escaped(title)}</h3>{legend(kinds)}<div class="charts">{"".join(drawn)}</div>')
    if not parts:
        return ""
    return '<p class="note">One line is one run; a pointer over it shows which.</p>' + "".join(parts)


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    items = []
    for i, name in enumerate(names[: 2 * COLOURS]):
        dashed = " d" if i >= COLOURS else ""
        line = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path class="s{i % COLOURS}{dashed}" d="M0 5h26"/></svg>'
        items.append(f"<li>{line}{escaped(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def run_details(runs: Sequence[Run], index: int, made: str, budget: Budget, keep: int) -> tuple[str, str]:
    """A run's summary and what it unfolds, both HTML; without its curves, or with less still, where room is short.

    Args:
        runs: all.
        index: which.
        made: which set of versions it was made with.
        budget: of the page.
        keep: bytes that must be left for pictures.
    """
    run = runs[index]
    marks = [badge(run.state, run.state), *([badge("stand-in", "standin")] if run.stand_in else [])]
    summary = f"{escaped(run.name)} {' '.join(marks)}"
    facts = [("state", f"{run.state}: {run.told}" if run.told else run.state), ("work", run.work), ("agent", run.agent)]
    facts += [("environment", run.environment), ("data", run.data_name), ("source", str(run.data.get("source") or ""))]
    facts += [("images", run.images), ("digest", run.digest()), ("made with", made), ("folder", str(run.folder))]
    facts += [("commit", run.versions.get("commit", ""))]
    lines = [f"<strong>{name}</strong> {escaped(shown(value, 600))}" for name, value in facts if value]
    text = f"<p>{'<br>'.join(lines)}</p>"
    if run.trace:
        text += pre(run.trace)
    if run.results:
        rows = [f"<tr><td>{escaped(k)}</td>{cell(v)}</tr>" for k, v in list(run.results.items())[:OWN_RESULTS]]
        more = len(run.results) - OWN_RESULTS
        rest = f'<p class="note">{more} more stand in its results.json.</p>' if more > 0 else ""
        inside = f'<div class="scroll" tabindex="0"><table><tbody>{"".join(rows)}</tbody></table></div>{rest}'
        text += details("", f"{len(run.results)} results", inside, is_open=len(runs) == 1)
    for title, value in (("asked for", run.asked), ("resolved", run.resolved)):
        if value:
            text += details("", title, pre(json.dumps(value, indent=1, ensure_ascii=False)))
    names = sorted(run.curves, key=lambda name: (_place(name, _CURVES_FIRST), name))
    drawn = "".join(chart(name, [Line("", 0, run.curves[name])], STEP) for name in names[:OWN_CHARTS])
    if len(names) > OWN_CHARTS:
        drawn += f'<p class="note">{len(names) - OWN_CHARTS} more columns stand in its metrics.csv.</p>'
    kept = budget.take("runs' details", text, keep)
    if not kept:
        where = f'<p class="note">Left out, because the page would grow too large: see {escaped(run.folder)}.</p>'
        return summary, where
    if drawn:
        kept += budget.take("runs' learning curves", f'<div class="charts">{drawn}</div>', keep)
    return summary, kept


def versions_of(runs: Sequence[Run]) -> tuple[list[dict[str, str]], list[int | None]]:
    """The different sets of versions, and which of them each run was made with."""
    sets: list[dict[str, str]] = []
    which: list[int | None] = []
    for run in runs:
        if run.versions and run.versions not in sets:
            sets.append(run.versions)
        which.append(sets.index(run.versions) if run.versions else None)
    return sets, which


def progress(runs: Sequence[Run]) -> str:
    """How many of the runs are done, in words."""
    counts = Counter(run.state for run in runs)
    said = [f"{number(count)} {state}" for state, count in counts.items() if state != DONE]
    return f"{number(counts[DONE])} of {number(len(runs))} runs done" + "".join(f", {one}" for one in said)


def _place(name: str, order: Sequence[str]) -> int:
    return next((i for i, part in enumerate(order) if part in name.lower()), len(order))
