"""The files that a cache entry was made from: known by content, and recognised by their stamps at a later start.

One `os.stat` a file tells that nothing was touched; what was touched is hashed, and only other content is news.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maskaug.envs.confinement import confined
from maskaug.envs.errors import ConfigurationError, DatasetError, ImageError

#: size in bytes, time of the last change of content and of anything at all in nanoseconds, inode. The second time
#: cannot be set back; but files of a folder that is renamed keep all their times, and the inode tells them apart.
Stamp = tuple[int, int, int, int]

#: The clocks of file systems tick up to every 10 ms: a file that was as young as this when it was looked at may have
#: changed again within the same tick, so that its stamp says nothing. It is hashed once more at the next start.
YOUNG = 10**8

T = TypeVar("T")
Result = TypeVar("Result")

_UNKNOWN: Stamp = (-1, -1, -1, -1)


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """What tells that a file is as it was, from one `os.stat`; of a file that is `YOUNG`, what never equals anything.

    Raises:
        OSError: it is not there, is no file, or cannot be looked at.
    """
    now = time.time_ns()
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is not a file", str(path))
    if found.st_ctime_ns > now - YOUNG:
        return _UNKNOWN
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as hexadecimal digits.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _gone(path, error) from error


@dataclasses.dataclass
class Sources:
    """Files, their stamps and, as far as they are known, their hashes.

    Attributes:
        order: as they were given, which is about the order in which they are read.
        paths: sorted.
        names: the same below the data set's folder, as an index stores them.
        stamps: one each.
        root: the folder that none may lie outside of, by a link, when it is hashed; None: they may.
        hashes: path → SHA-256.
        expected: path → the SHA-256 that it must have, in lower case, where somebody said so.
    """

    order: list[str]
    paths: list[str]
    names: list[str]
    stamps: list[Stamp]
    expected: Mapping[str, str]
    root: Path | None
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def look(
        cls,
        root: Path,
        paths: Iterable[Path] | Mapping[str, Stamp],
        expected: Mapping[Path, str],
        confine: bool = False,
    ) -> Sources:
        """The files at `paths`, each looked at once; not at all where its stamp is given.

        Raises:
            DatasetError: a file cannot be looked at.
        """
        order = list(paths if isinstance(paths, Mapping) else dict.fromkeys(str(path) for path in paths))
        texts = sorted(order)
        prefix = os.path.join(root, "")
        wanted = {str(path): digits.strip().lower() for path, digits in expected.items()}
        stamps = [paths[text] for text in texts] if isinstance(paths, Mapping) else [_looked_at(text) for text in texts]
        return cls(
            order, texts, [text.removeprefix(prefix) for text in texts], stamps, wanted, root if confine else None
        )

    def again(self) -> Sources:
        """The same files as they are now: somebody may have waited."""
        stamps = [_looked_at(path) for path in self.paths]
        return Sources(self.order, self.paths, self.names, stamps, self.expected, self.root)

    def hash(self, path: str) -> None:
        """Hash one of the files and compare it with what was expected; threads may share this.

        Raises:
            ImageError: it is another file than was expected, or lies outside of `root`.
            DatasetError: it cannot be read.
        """
        self.hashes[path] = found = self._digest(path)
        self.verify(path, found)

    def _digest(self, path: str) -> str:
        # Links are looked at again, as they may have changed since the files were listed.
        return hash_file(path if self.root is None else confined(Path(path), self.root))

    def verify(self, path: str, found: str) -> None:
        """Compare a hash with what was expected of a file.

        Raises:
            ImageError: it is another file than was expected.
        """
        wanted = self.expected.get(path)
        if wanted is not None and wanted != found:
            raise ImageError(
                path,
                f"its SHA-256 is {found}, but {wanted} is given for it; copy or download it again",
            )

    def columns(self) -> dict[str, Any]:
        """For an index: {"names", "stamps" (one after the other), "hashes"}."""
        return {
            "names": self.names,
            "stamps": [value for stamp in self.stamps for value in stamp],
            "hashes": [self.hashes[path] for path in self.paths],
        }

    def match(self, columns: Mapping[str, Any], workers: int) -> bool | None:
        """Whether these are the files of an index; None: by content they are, but stamps have changed.

        Raises:
            ImageError: a file is another one than was expected.
        """
        if columns["names"] != self.names:
            return False
        flat = iter(columns["stamps"])
        recorded = list(zip(flat, flat, flat, flat, strict=True))
        hashes: list[str] = columns["hashes"]
        changed = []
        for path, now, before, known in zip(self.paths, self.stamps, recorded, hashes, strict=True):
            if now == before and now != _UNKNOWN:
                self.hashes[path] = known
            elif now[0] != before[0] and _UNKNOWN not in (now, before):
                return False
            else:
                changed.append((path, known))
        if self.expected:
            for path, known in self.hashes.items():
                self.verify(path, known)

        def is_same(pair: tuple[str, str]) -> bool:
            self.hash(pair[0])
            return self.hashes[pair[0]] == pair[1]

        if not all(in_order(is_same, changed, workers)):
            return False
        return None if changed else True

    def check_unchanged(self) -> None:
        """Make sure that all files are still what they were when they were hashed.

        Raises:
            DatasetError: one is not.
        """
        for i, path in enumerate(self.paths):
            now = _looked_at(path)
            # Somebody who only touched it, or a stamp that says nothing: the content decides.
            if (now == _UNKNOWN or now != self.stamps[i]) and self._digest(path) != self.hashes[path]:
                raise DatasetError(f"{path} changed while it was read; load the data set again once it is copied")


def check_workers(workers: int | None) -> int:
    """The number of threads: `workers`, or one for each core that this process may use.

    Raises:
        ConfigurationError: it is no whole number of at least 1.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ConfigurationError(
            f"workers={workers!r} must be a whole number of threads, at least 1; leave it out for one a core"
        )
    return workers


def in_order(function: Callable[[T], Result], items: Sequence[T], workers: int) -> Generator[Result, None, None]:
    """`function` of every item, in order; several ahead in threads, but never more than two a thread.

    With one worker there is no thread. Where it ends early, by an error too, what was not begun is never done.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    pool = concurrent.futures.ThreadPoolExecutor(min(workers, len(items)), "maskaug-decode")
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _looked_at(path: str) -> Stamp:
    try:
        return stamp_of(path)
    except OSError as error:
        raise _gone(path, error) from error


def _gone(path: str | os.PathLike[str], error: OSError) -> DatasetError:
    cure = "make it readable" if error.errno in (errno.EACCES, errno.EPERM) else "is the folder still there?"
    return DatasetError(f"{path} cannot be looked at ({error.strerror}); {cure}")
