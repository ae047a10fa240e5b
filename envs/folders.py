"""Looking at folders that somebody else made: what may not be looked at is told, never taken for what is not there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from maskaug.envs.errors import DatasetError

#: What the system says of a file that is not there, or is none.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextlib.contextmanager
def permitted(root: Path) -> Iterator[None]:
    """For what looks through the folder `root`: where the system refuses, the error names the place and the cure.

    Raises:
        DatasetError: `root`, or a file or folder that was looked at inside, may not be entered or read.
    """
    try:
        # A folder that may not be entered looks empty to some functions: they call its files absent.
        if os.path.isdir(root):
            os.stat(os.path.join(root, os.curdir))
        yield
    except OSError as error:
        raise DatasetError(refusal(error.filename or root, error)) from error


def refusal(path: object, error: OSError) -> str:
    """What to say of a file or folder that the system does not let us look at."""
    cure = "check the disk that it lies on"
    if isinstance(error, PermissionError):
        cure = "let this user read it and enter its folders (chmod -R u+rX, as its owner)"
    return f"{path} cannot be looked at ({error.strerror or error}); {cure}"


def is_file(path: Path) -> bool:
    """Whether there is a regular file; unlike `Path.is_file`, nothing is called absent that may not be looked at.

    Raises:
        OSError: the system refuses to say.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    except ValueError:  # a name that no file can have
        return False
