"""Paths that somebody else wrote down: they stay inside one folder, or they are refused."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from maskaug.envs.errors import DatasetError, ImageError

#: What Linux allows a name and a path, in bytes; asking for longer ones is an error of the operating system.
_NAME_BYTES, _PATH_BYTES = 255, 4000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A drive letter or a URL; a colon further on is part of a name.
_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/|file:", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that may be used.

    Attributes:
        name: below the root, with a slash at its end; "" is the root.
        real: where it really is, links resolved.
        links: the names of the links in it; None: it cannot be listed, and each name must be looked at.
    """

    name: str
    real: str
    links: frozenset[str] | None


class Confinement:
    """Checks paths against one folder; every folder below it is looked at once, so that a million paths take seconds.

    This is for telling early and row by row. A link can be put in the place of a file afterwards: `confined` looks
    again when a file is opened.

    Args:
        root: the folder that all paths must stay in. It may itself be reached by a link.
    """

    def __init__(self, root: Path) -> None:
        self._real = os.path.realpath(root)
        self._folders = {"": self._scan("", self._real)}
        self._written: dict[str, _Folder | str] = {"": self._folders[""]}

    def accept(self, text: str) -> str:
        r"""A path below the root as somebody wrote it → the same with plain slashes, without `.` and empty parts.

        Whether there is such a file is not asked. Backslashes count as slashes, as lists from Windows have them.

        Raises:
            DatasetError: it is empty, absolute (also `C:\`, `\\server`, `\\?\`), begins with `~`, is a URL, has `..`,
                control characters or too long a name, ends with a slash, or a link on its way leaves the root. The
                message goes on from "path …".
        """
        if "\\" in text:
            text = text.replace("\\", "/")
        folder, slash, file = text.rpartition("/")
        written = folder + slash
        found = self._written.get(written)
        if found is None:
            found = self._written[written] = self._look(written)
        if isinstance(found, str):
            raise DatasetError(found)
        if not written and (reason := _start(file)):
            raise DatasetError(reason)
        if reason := _part(file):
            raise DatasetError(reason)
        if not file or file == ".":
            raise DatasetError("names no file; write the file's path below the root")
        if len(found.name) + len(file) > _PATH_BYTES // 4 and _bytes(found.name + file) > _PATH_BYTES:
            raise DatasetError(f"is longer than {_PATH_BYTES} bytes; shorten it")
        if (found.links is None or file in found.links) and self._leaves(os.path.join(found.real, file)):
            raise DatasetError(_LEAVES)
        return found.name + file

    def _look(self, written: str) -> _Folder | str:
        if reason := _start(written):
            return reason
        parts = [part for part in written.split("/") if part not in ("", ".")]
        if _bytes(written) > _PATH_BYTES:
            return f"is longer than {_PATH_BYTES} bytes; shorten it"
        for part in parts:
            if reason := _part(part):
                return reason
        folder = self._folders[""]
        for part in parts:
            name = f"{folder.name}{part}/"
            known = self._folders.get(name)
            if known is None:
                real = os.path.join(folder.real, part)
                if folder.links is None or part in folder.links:
                    if self._leaves(real):
                        return _LEAVES
                    real = os.path.realpath(real)
                known = self._folders[name] = self._scan(name, real)
            folder = known
        return folder

    def _scan(self, name: str, real: str) -> _Folder:
        # One look at a folder tells of all its links, without looking at each file.
        try:
            with os.scandir(real) as found:
                return _Folder(name, real, frozenset(entry.name for entry in found if entry.is_symlink()))
        except (FileNotFoundError, NotADirectoryError):
            return _Folder(name, real, frozenset())
        except OSError:
            return _Folder(name, real, None)

    def _leaves(self, path: str) -> bool:
        return not _inside(os.path.realpath(path), self._real)


def confined(path: Path, root: Path) -> Path:
    """The file that `path` really is, for opening it; asked anew each time, as links change.

    Raises:
        ImageError: it lies outside of `root`.
    """
    real = os.path.realpath(path)
    if not _inside(real, os.path.realpath(root)):
        raise ImageError(path, _LEAVES)
    return Path(real)


_LEAVES = "leads out of the root by a link; copy the file into the root"


def _inside(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def _start(text: str) -> str:
    if text.startswith("/"):
        return "is absolute; write it relative to the root"
    if text.startswith("~"):
        return "begins with ~, which is not expanded; write it relative to the root"
    if _ELSEWHERE.match(text):
        return "names a drive or is a URL; copy the file into the root and write its path relative to it"
    return ""


def _part(part: str) -> str:
    if part == "..":
        return "has '..' in it; write it relative to the root, and nothing outside of it"
    if _CONTROL.search(part):
        return "has control characters in it; is a quotation mark left open?"
    # Four bytes are the most that a character takes.
    if len(part) > _NAME_BYTES // 4 and _bytes(part) > _NAME_BYTES:
        return f"has a name of more than {_NAME_BYTES} bytes; shorten it"
    if not part.isascii() and _bytes(part) > _PATH_BYTES:
        return "has characters that this system cannot have in a file's name; rename the file"
    return ""


def _bytes(text: str) -> int:
    """How long the system's own form of a name is; very long if it has none."""
    try:
        return len(os.fsencode(text))
    except UnicodeEncodeError:
        return _PATH_BYTES + 1
