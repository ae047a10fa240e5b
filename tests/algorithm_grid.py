"""A small grid of `maskaug bench algorithms`, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from maskaug.benchmarks.algorithms import AlgorithmSettings, Game
from maskaug.benchmarks.grid import Grid

SMALL = {"n": 40, "image_size": 40, "grid": 5}
PATCHES = {"kind": "ultrasound", "objective": "reconstruction", "action": "patch", **SMALL}
CELLS = {"kind": "radiograph", "objective": "adversarial", "action": "grid", "fill": "blur", **SMALL}
TINY = AlgorithmSettings(
    {
        "reconstruction": Game(PATCHES, 2, 256, ("published", "a2c")),
        "classification": Game(CELLS, 4, 128, ("apga", "end_to_end")),
    },
    seeds=1,
    first=32,
)


def finished(root: Path) -> Grid:
    """All cells of `TINY`, run."""
    result = Grid(root, TINY.cells())
    assert set(result.run(say=lambda _: None).values()) == {"done"}
    return result
