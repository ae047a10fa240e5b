"""`maskaug report DIR…`: any set of runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def report(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path = Path("report.html"),
    title: str = "MaskAug report",
    metrics: tuple[str, ...] = (),
    megabytes: int = 20,
) -> None:
    """Write one HTML page, which needs no network, of runs, grids, tables and galleries: sortable, light and dark.

    Args:
        folders: folders of `maskaug train`, of `maskaug bench`, or of many of them; looked through at any depth.
        out: the page. One that this command wrote is written over; no other file is.
        title: its title.
        metrics: columns of the table of runs, names as in a shell, quoted: "*auroc*" "*.gain.agent". The best known
            ones if left out.
        megabytes: the page is no larger; what is left out for it is said on top.
    """
    from maskaug.benchmarks.report import report as write_report
    from maskaug.benchmarks.report_runs import progress

    found = write_report(folders, out, title=title, metrics=metrics, megabytes=megabytes)
    counts = {"table": len(found.tables), "figure": len(found.figures), "gallery": len(found.galleries)}
    said = [progress(found.runs)] if found.runs else []
    said += [f"{count} × {what}" for what, count in counts.items() if count]
    print(f"{', '.join(said) or 'nothing that could be used'}; wrote {out}")
    if found.problems:
        print(f"{len(found.problems)} files could not be used; the page says which")
