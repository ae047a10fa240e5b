"""A small data set for the tests of the cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskaug.envs.cache import cache_folder, cached_array
from maskaug.envs.cache_entry import Cached


class Reader:
    """A data set of text files: image i is filled with the number that stands in file i."""

    def __init__(self, root: Path, slow: float = 0.0) -> None:
        self.root, self.slow, self.builds = root, slow, 0
        self.decoded: list[str] = []

    def sources(self) -> list[Path]:
        return sorted(self.root.glob("*.txt"))

    def decode(self, path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        self.decoded.append(path.name)
        return np.full((1, 3, 4), int(path.read_text()), np.uint8), path.name

    def finish(self, notes: list[str]) -> dict[str, Any]:
        self.builds += 1
        with (self.root / "builds.log").open("a") as log:
            log.write("built\n")
        time.sleep(self.slow)
        return {"names": tuple(notes)}

    def load(
        self, workers: int | None = None, state: Any = None, sha: dict[str, str] | None = None, **parameters: Any
    ) -> Cached:
        """The cache's rows of all files, given in reverse; `sha`: what is expected of some."""
        sources = self.sources()
        return cached_array(
            "toy",
            root=self.root,
            sources=reversed(sources),
            parameters=parameters,
            items=sources,
            decode=self.decode,
            finish=self.finish,
            state=state,
            expected={self.root / name: digits for name, digits in (sha or {}).items()},
            workers=workers,
        )


def make_reader(root: Path) -> Reader:
    """Three files, of 5, 6 and 7."""
    root.mkdir()
    for i in range(3):
        (root / f"{i}.txt").write_text(str(i + 5))
    return Reader(root)


def entries() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock")
