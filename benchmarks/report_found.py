"""What a set of folders holds for `maskaug report`: runs, cells of a grid, tables, figures, galleries."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskaug.benchmarks.gallery import GALLERY
from maskaug.benchmarks.report_files import Curve, figures, flat, printable, read_curves, read_object
from maskaug.benchmarks.run import STEP
from maskaug.benchmarks.tables import TABLES, Table, read_tables
from maskaug.envs.errors import ConfigurationError

CONFIG, RESULTS, ERROR, METRICS, DATA = "config.json", "results.json", "error.json", "metrics.csv", "data.json"
_MARKS = {CONFIG, RESULTS, ERROR, TABLES, GALLERY}
#: folders of a run that hold nothing to show, and may hold a lot of it.
PASSED_OVER = ("checkpoints", "tensorboard", "__pycache__")
DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"


@dataclasses.dataclass
class Run:
    """One run's folder: of `maskaug train`, a cell of a grid, or results alone.

    Attributes:
        name: its path from the folder that was asked for.
        folder: where it lies.
        state: "done", "failed" or "unfinished".
        told: what there is to say of the state.
        trace: where it failed, for people who mend it.
        asked: what it was asked for.
        resolved: what came of that (`maskaug train` alone).
        work: what computed it (cells alone).
        data: name, source, digest, … of its images, where it says so.
        versions: of what it was made with.
        results: metric → number.
        curves: metric → steps and values.
        pictures: its PNG files.
    """

    name: str
    folder: Path
    state: str = UNFINISHED
    told: str = ""
    trace: str = ""
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)
    work: str = ""
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
    pictures: list[Path] = dataclasses.field(default_factory=list)

    @property
    def stand_in(self) -> bool:
        """Whether made-up images took the place of the real ones that were asked for."""
        if self.data.get("source") != "synthetic":
            return False
        named = (_inside(self.resolved, "env", "dataset"), self.asked.get("dataset"), self._env_id)
        wanted = next((str(name) for name in named if name), "")
        return wanted != "" and "synthetic" not in wanted.lower()

    @property
    def agent(self) -> str:
        """Whose masks they are: the agent's, or the arm's, name."""
        algorithm = _inside(self.asked, "settings", "algorithm")
        if algorithm and self.asked.get("agent") == "SB3Agent":
            return f"SB3 {algorithm}"
        return str(next((self.asked[key] for key in ("agent", "arm") if self.asked.get(key)), ""))

    @property
    def environment(self) -> str:
        """The id that it was played on; a stand-in is called one, whatever the id."""
        name = self._env_id
        return f"stand-in for {name}" if name and self.stand_in else name

    @property
    def _env_id(self) -> str:
        # A cell of a grid has a task, of which it is a part.
        return str(self.asked.get("env_id") or _inside(self.asked, "task", "env_id") or "")

    @property
    def split(self) -> str:
        """The part of the images: that it was played on, or, of a cell, that was scored."""
        return str(self.data.get("split") or self.asked.get("split") or "")

    @property
    def images(self) -> str:
        """How many images; a cell's by part.

        >>> Run("a", Path(), data={"images": {"train": 63, "val": 14}}).images
        'train 63, val 14'
        """
        count = self.data.get("images")
        return ", ".join(f"{k} {v}" for k, v in count.items()) if isinstance(count, dict) else str(count or "")

    def digest(self, most: int | None = None) -> str:
        """The images' digest, or those of the parts that a cell has run on.

        Args:
            most: letters of each part's; all if None.

        >>> Run("a", Path(), data={"digest_train": "0123", "digest_val": "4567"}).digest(2)
        'train 01, val 45'
        """
        parts = {k.removeprefix("digest_"): str(v)[:most] for k, v in self.data.items() if k.startswith("digest_")}
        return str(self.data.get("digest") or ", ".join(f"{name} {value}" for name, value in parts.items()))

    @property
    def data_name(self) -> str:
        """What the images are; stand-ins are called so."""
        name = str(self.data.get("name") or "")
        return f"{name} (stand-in)" if self.stand_in else name


@dataclasses.dataclass
class Found:
    """Everything that there is to show.

    Attributes:
        folders: as they were given.
        runs: in the order of their names, numbers by value.
        tables: (name of the folder, table).
        figures: (name of the folder, PNG file), those beside tables.
        galleries: (name of the folder, file).
        problems: files that could not be used, in words.
    """

    folders: list[str]
    runs: list[Run] = dataclasses.field(default_factory=list)
    tables: list[tuple[str, Table]] = dataclasses.field(default_factory=list)
    figures: list[tuple[str, Path]] = dataclasses.field(default_factory=list)
    galleries: list[tuple[str, Path]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def collect(folders: Sequence[str | os.PathLike[str]]) -> Found:
    """Look through `folders`, at any depth; links are not followed out of them.

    Raises:
        ConfigurationError: no folder, one that is not there, or one in which there is nothing to show.
    """
    if not folders:
        raise ConfigurationError("give at least one folder of runs")
    found = Found([os.fspath(folder) for folder in folders])
    seen: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigurationError(f"{folder} is not a folder; give the --out of a run, or a folder of such folders")
        refused: list[str] = []
        if not _walk(folder, found, seen, refused, several=len(folders) > 1):
            looked = f"; {refused[0]}" if refused else ""
            raise ConfigurationError(
                f"{folder} holds nothing to report: no {CONFIG}, {RESULTS}, {ERROR}, {TABLES} or {GALLERY} at any "
                f"depth; give the --out of a run or of a benchmark{looked}"
            )
        found.problems += refused
    found.runs.sort(key=lambda run: natural(run.name))
    return found


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value.

    >>> sorted(["seed10", "seed9", "seed1"], key=natural)
    ['seed1', 'seed9', 'seed10']
    """
    # No more digits than any number of runs has: turning thousands of them into a number takes for ever.
    parts = re.findall(r"[0-9]{1,15}|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]


def _count(found: Found) -> int:
    return len(found.runs) + len(found.tables) + len(found.figures) + len(found.galleries) + len(found.problems)


def _walk(top: Path, found: Found, seen: set[Path], refused: list[str], *, several: bool) -> int:
    """Add what lies below `top`; the number of folders that hold something, those that were known already too."""
    root, used = top.resolve(), 0

    def refuse(error: OSError) -> None:
        refused.append(f"{error.filename} cannot be looked at ({error.strerror})")

    for place, inner, names in os.walk(top, onerror=refuse):
        inner[:] = sorted(name for name in inner if name not in PASSED_OVER and not name.startswith("."))
        folder = Path(place)
        if not _MARKS & set(names):
            continue
        if folder.resolve() in seen:
            used += 1
            continue
        wanted = [name for name in names if name in (*_MARKS, METRICS, DATA) or name.lower().endswith(".png")]
        # Whatever a link leads to outside is not the run's, and has no place on a page that is shown around.
        files = {name for name in wanted if (folder / name).resolve().is_relative_to(root)}
        inside = folder.relative_to(top).as_posix()
        name = inside if inside != "." else (root.name or str(root))
        if several and inside != ".":
            name = f"{root.name}/{inside}"
        before = _count(found)
        try:
            _folder(name, folder, files, found)
        except RecursionError:
            found.problems.append(f"{folder} holds a file that is nested too deeply")
        if _count(found) > before:
            seen.add(folder.resolve())
            used += 1
    return used


def _folder(name: str, folder: Path, files: set[str], found: Found) -> None:
    pictures = [folder / file for file in sorted(files, key=natural) if file.lower().endswith(".png")]
    if TABLES in files:
        try:
            found.tables += [(name, table) for table in read_tables(folder / TABLES)]
        except ConfigurationError as error:
            found.problems.append(str(error))
        found.figures += [(name, picture) for picture in pictures]
    if GALLERY in files:
        found.galleries.append((name, folder / GALLERY))
    if files & {CONFIG, RESULTS, ERROR}:
        run = _run(name, folder, files, found.problems)
        if run is not None:
            run.pictures = [] if TABLES in files else pictures
            found.runs.append(run)


def _run(name: str, folder: Path, files: set[str], problems: list[str]) -> Run | None:
    def read(file: str) -> dict[str, Any]:
        if file not in files:
            return {}
        try:
            return read_object(folder / file)
        except ConfigurationError as error:
            problems.append(str(error))
            return {}

    run = Run(name, folder)
    config, failure, results = read(CONFIG), read(ERROR), read(RESULTS)
    if CONFIG in files and config and "asked" not in config and RESULTS not in files:
        return None  # some other program's config.json
    run.asked, run.resolved = _object(config, "asked"), _object(config, "resolved")
    run.work = str(config.get("work") or "")
    run.data = _object(run.resolved, "data") or read(DATA)
    run.versions = flat(_object(config, "versions"))
    run.results = figures(results)
    if METRICS in files:
        try:
            run.curves = read_curves(folder / METRICS, STEP)
        except ConfigurationError as error:
            problems.append(str(error))
    _judge(run, files, failure)
    return run


def _judge(run: Run, files: set[str], failure: dict[str, Any]) -> None:
    """Fill in the state, and what there is to say of it."""
    reached = int(max((steps[-1] for steps, _ in run.curves.values()), default=0))
    if run.results:
        run.state = DONE
        # A run that is being continued still has the results of its first part.
        if reached > run.results.get(STEP, reached):
            run.state = UNFINISHED
            run.told = f"continued to {reached} {STEP} after its results, which are those at {run.results[STEP]:.0f}"
    elif ERROR in files:
        run.state = FAILED
        run.told = f"{failure.get('type') or 'an error'}: {failure.get('message') or ''}"
        run.trace = str(failure.get("traceback") or "")
    elif RESULTS in files:
        run.told = f"{RESULTS} holds no figures"
    else:
        run.told = f"no {RESULTS}" + (f"; it has come to {reached} {STEP}" if reached else "")


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}


def _inside(value: dict[str, Any], *names: str) -> Any:
    for name in names[:-1]:
        value = _object(value, name)
    return value.get(names[-1])


def shown(text: str, most: int = 300) -> str:
    r"""One line of `text`, no longer than `most`.

    >>> shown("a\n b", 10)
    'a b'
    """
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
