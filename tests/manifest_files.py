"""Small folders with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.listing import Listing, Problem
from maskaug.envs.manifest import (
    list_manifest,
    load_manifest,
)

SIZE = 40
PLAIN = "path,label,patient\na.png,no,P1\nb.png,yes,P2\n"


def picture(path: Path, value: int = 90, shape: tuple[int, int] = (40, 40), colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*shape, 3) if colour else shape, value, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(tmp_path: Path, text: str | bytes, pictures: int = 4) -> Path:
    """A root with `a.png`, `b.png`, …, of grey values 10, 20, …, and this manifest."""
    root = tmp_path / "root"
    for i in range(pictures):
        picture(root / f"{'abcdefgh'[i]}.png", 10 * (i + 1))
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def listed(tmp_path: Path, text: str | bytes, **options: Any) -> Listing:
    return list_manifest(folder(tmp_path, text, 0), **options)


def errors(listing: Listing) -> list[Problem]:
    return [problem for problem in listing.problems if problem.severity == "error"]


def load(root: Path, **options: Any) -> ImageDataset:
    return load_manifest(root, **{"image_size": SIZE, "channels": 1, "seed": 0, **options})


def known(values: Any) -> Any:
    assert values is not None
    return values
