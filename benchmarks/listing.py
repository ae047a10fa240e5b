"""`maskaug envs`: the table of every environment id, without making one."""

from __future__ import annotations

import inspect

from maskaug.envs.actions import ActionRule
from maskaug.envs.dataset_registry import find_root
from maskaug.envs.defaults import default_grid, default_image_size
from maskaug.envs.game import MaskGame
from maskaug.envs.registration import TABLE

DEFAULTS = inspect.signature(MaskGame).parameters
HEAD = ("id", "data here", "observation", "action", "objective")


def environments_table() -> str:
    """One line an id: whether its data is real here or a stand-in, its spaces, its objective."""
    rows = []
    for row in TABLE:
        root = None if row.dataset == "synthetic" else find_root(row.dataset, None)
        data = "built in" if row.dataset == "synthetic" else "stand-in" if root is None else f"real: {root}"
        size = row.kwargs.get("image_size", default_image_size(row.dataset, real=root is not None))
        channels = row.kwargs.get("channels", DEFAULTS["channels"].default)
        action = row.kwargs["action"]
        grid = row.kwargs.get("grid", default_grid(action, (size, size)))
        rule = ActionRule(action, grid, (size, size), None, None, None)
        observation = f"Box(0, 255, ({channels}, {size}, {size}), uint8)"
        rows.append((row.id, data, observation, str(rule.space), row.kwargs["objective"]))
    widths = [max(len(r[i]) for r in [HEAD, *rows]) for i in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in [HEAD, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
