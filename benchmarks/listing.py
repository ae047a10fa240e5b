"""`maskaug envs`: the table of every environment id, without making one."""

from __future__ import annotations

from maskaug.envs.actions import ActionRule
from maskaug.envs.datasets import find_root
from maskaug.envs.registration import TABLE

HEAD = ("id", "data here", "observation", "action", "objective")


def environments_table() -> str:
    """One line an id: whether its data is real here or a stand-in, its spaces, its objective."""
    rows = []
    for row in TABLE:
        root = None if row.dataset == "synthetic" else find_root(row.dataset, None)
        data = "built in" if row.dataset == "synthetic" else "stand-in" if root is None else f"real: {root}"
        rule = ActionRule(row.kwargs["action"], row.kwargs["grid"], (64, 64), None, None, None)
        rows.append((row.id, data, "Box(0, 255, (1, 64, 64), uint8)", str(rule.space), row.kwargs["objective"]))
    widths = [max(len(r[i]) for r in [HEAD, *rows]) for i in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in [HEAD, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
