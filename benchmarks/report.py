"""`maskaug report`: any set of runs as one HTML page that needs nothing but itself.

It finds, at any depth: folders of `maskaug train`; cells of a grid (`config.json` with "asked" and "work",
`results.json` or `error.json`, and `data.json` with what a run has under resolved.data: name, source, and "digest", or
one for each part, "digest_train" and the like);
`results.json` alone; `tables.json` (`maskaug.benchmarks.tables`) and the PNG files beside it; `gallery.safetensors`
(`maskaug.benchmarks.gallery`). Nothing that it reads is executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from maskaug._version import __version__
from maskaug.benchmarks.report_charts import number
from maskaug.benchmarks.report_files import read_bytes
from maskaug.benchmarks.report_found import DONE, FAILED, UNFINISHED, Found, Run, collect, shown
from maskaug.benchmarks.report_galleries import WIDTHS, figures, galleries_of, width_for
from maskaug.benchmarks.report_html import GENERATOR, Budget, Column, badge, box, cell, details, escaped, page, table
from maskaug.benchmarks.report_runs import anchor, curves_together, link, progress, run_details, runs_table, versions_of
from maskaug.benchmarks.tables import Table
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_text

#: rows of one of an analysis's tables that are shown.
ROWS = 2000
#: bytes kept for what is always on the page: style, script, what is said on top.
_FIXED = 150_000


def report(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str = "MaskAug report",
    metrics: Sequence[str] = (),
    megabytes: int = 20,
) -> Found:
    """Write the page.

    Args:
        folders: what it is about, looked through at any depth.
        out: the .html file; a page that this function wrote is written over, anything else is not.
        title: of the page.
        metrics: columns of the table of runs, names as in a shell ("*auroc*"); empty: the best known ones.
        megabytes: the page is no larger; what is left out for it is said on top.

    Returns:
        What was found.

    Raises:
        ConfigurationError: a folder with nothing to report, a metric that no run has, or an `out` that cannot be.
    """
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{target} must end in .html")
    if megabytes < 1:
        raise ConfigurationError(f"megabytes={megabytes} must be at least 1")
    if target.is_dir() or (target.exists() and GENERATOR.encode() not in read_bytes(target)[:2000]):
        raise ConfigurationError(f"{target} exists and is no page of `maskaug report`; choose another --out")
    found = collect(folders)
    text = render(found, title, metrics, megabytes * 1_000_000)
    write_text(target, text)
    return found


def render(found: Found, title: str, metrics: Sequence[str], size: int) -> str:
    """The page of what was found, of at most `size` bytes as UTF-8."""
    budget = Budget(size - _FIXED)
    runs = found.runs
    problems = list(found.problems)
    sections = {"Tables": _tables(found.tables, budget)}
    sections["Runs"] = runs_table(runs, metrics, budget) if runs else ""
    sets, which = versions_of(runs)
    made = ["" if k is None else f"versions {k + 1}" for k in which]
    # Pictures take most of a page: text and curves leave them their share.
    folded = [run_details(runs, i, made[i], budget, 2 * size // 5) for i in range(len(runs))]
    sections["Learning curves"] = curves_together(runs, budget)
    made_of = _data(runs, budget) + _versions(sets, which, budget)
    beside = [(f"{folder}/{file.name}", file) for folder, file in found.figures]
    sections["Figures"] = figures(beside, WIDTHS[0], budget, problems)
    sections["Galleries"], style = galleries_of(found.galleries, budget, problems)
    across = width_for(sum(len(run.pictures) for run in runs), budget)
    pictures = [figures([(file.name, file) for file in run.pictures], across, budget, problems) for run in runs]
    sections["Each run"] = "".join(
        details(anchor(i), summary, inside + shots, is_open=len(runs) == 1)
        for i, ((summary, inside), shots) in enumerate(zip(folded, pictures, strict=True))
    )
    sections["Data and versions"] = made_of
    kept = {name: text for name, text in sections.items() if text}
    ids = {name: f"section-{name.lower().replace(' ', '-')}" for name in kept}
    links = "".join(f'<a href="#{ids[name]}">{name}</a>' for name in kept)
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="soft">MaskAug {__version__} · {escaped(", ".join(map(shown, found.folders[:20])))}</p>',
        *_on_top(found, problems, budget),
        f"<nav>{links}</nav>",
        "<main>",
        *(f'<h2 id="{ids[name]}">{name}</h2>{text}' for name, text in kept.items()),
        "</main>",
    ]
    return page(title, "\n".join(parts), style)


def _on_top(found: Found, problems: Sequence[str], budget: Budget) -> list[str]:
    """What has to be known before any figure is read."""
    runs = found.runs
    parts: list[str] = []
    if runs:
        kind = "bad" if any(r.state == FAILED for r in runs) else "warn" if any(r.state != DONE for r in runs) else ""
        lines = [
            f"{link(runs, i)}: {badge(run.state, run.state)} {escaped(shown(run.told, 200))}"
            for state in (FAILED, UNFINISHED)
            for i, run in enumerate(runs)
            if run.state == state
        ]
        parts.append(box(kind, progress(runs), lines))
    missing = [escaped(shown(f"{one.title}: {one.unfinished}")) for _, one in found.tables if one.unfinished]
    if missing:
        parts.append(box("warn", "Tables that are not finished", missing))
    stand_ins = sum(run.stand_in for run in runs)
    if stand_ins or any(one.stand_in for _, one in found.tables):
        told = f"{number(stand_ins)} of {number(len(runs))} runs" if stand_ins else "Some tables"
        parts.append(
            box("warn", f"Stand-ins: {told} used made-up images in place of the real ones; what they measured says "
                "nothing of the real data set, and is marked “stand-in” wherever it is shown", [])
        )  # fmt: skip
    if problems:
        parts.append(box("bad", f"{len(problems)} files could not be used", [escaped(shown(p)) for p in problems]))
    if budget.dropped or budget.notes:
        left = [f"{number(count)} {escaped(what)}" for what, count in budget.dropped.items()]
        left += map(escaped, budget.notes)
        parts.append(
            box(
                "warn",
                f"Left out or made smaller, for the page to stay below {(budget.size + _FIXED) // 1_000_000} MB",
                left,
            )
        )
    return parts


def _tables(tables: Sequence[tuple[str, Table]], budget: Budget) -> str:
    parts = []
    for i, (folder, one) in enumerate(tables):
        marks = badge("unfinished", "unfinished") if one.unfinished else ""
        marks += badge("stand-in", "standin") if one.stand_in else ""
        notes = [one.note, one.unfinished]
        if len(one.rows) > ROWS:
            budget.drop("rows of tables", len(one.rows) - ROWS)
            notes.append(f"The first {ROWS} of {len(one.rows)} rows; the rest stands in {folder}/tables.json.")
        numbers = [all(not isinstance(r[k], str) for r in one.rows) for k in range(len(one.columns))]
        heads = [Column(name, is_number) for name, is_number in zip(one.columns, numbers, strict=True)]
        rows = (f"<tr>{''.join(map(cell, row))}</tr>" for row in one.rows[:ROWS])
        told = "".join(f'<p class="note">{escaped(note)}</p>' for note in notes if note)
        inside = table(f"table-{i + 1}", one.title, heads, rows)
        head = f'<h3>{escaped(one.title)} {marks}</h3><p class="note">{escaped(folder)}</p>'
        parts.append(budget.take("tables", f"{head}{told}{inside}"))
    return "".join(parts)


def _data(runs: Sequence[Run], budget: Budget) -> str:
    seen: dict[tuple[str, ...], list[bool]] = {}
    names = ("source", "split", "images", "shape", "digest", "licence", "citation")
    for run in runs:
        if run.data:
            # The whole of a cell's digests stands with the run.
            told = {**run.data, "split": run.split, "images": run.images, "digest": run.digest(12)}
            key = (run.data_name, *(shown(str(told.get(name) or "")) for name in names))
            seen.setdefault(key, []).append(run.stand_in)
    if not seen:
        return ""
    rows = [f"<tr>{''.join(map(cell, key))}{cell(len(marks))}</tr>" for key, marks in seen.items()]
    heads = [Column("data"), *map(Column, names), Column("runs", number=True)]
    return budget.take("tables", "<h3>Data</h3>" + table("data", "Data sets", heads, rows))


def _versions(sets: Sequence[dict[str, str]], which: Sequence[int | None], budget: Budget) -> str:
    if not sets:
        return ""
    names = sorted({name for one in sets for name in one})
    rows = []
    for k, one in enumerate(sets):
        said = "".join(cell(shown(one.get(name, ""))) for name in names)
        rows.append(f"<tr>{cell(f'versions {k + 1}')}{cell(which.count(k))}{said}</tr>")
    heads = [Column("versions"), Column("runs", number=True), *map(Column, names)]
    return budget.take("tables", "<h3>Versions</h3>" + table("versions", "Versions", heads, rows))
