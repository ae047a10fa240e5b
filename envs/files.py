"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor


def temporary_file(folder: Path, name: str) -> tuple[int, Path]:
    """A new file `.name.….part` in `folder`, open for reading and writing; who may read it is up to the umask.

    `tempfile.mkstemp` lets nobody else read it, and what a rename publishes keeps that.
    """
    while True:
        path = folder / f".{name}.{secrets.token_hex(4)}.part"
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)`, fsync, and rename to `path`; the folder is made if need be."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = temporary_file(target.parent, target.name)
    os.close(handle)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors and a header of strings, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # As bytes: save_file makes a temporary file of its own name, which a kill would leave behind for ever.
    data = save(ready, dict(metadata))
    atomic_write(path, lambda temporary: _write_bytes(temporary, data))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """JSON with sorted keys, atomically. NaN is refused: a reader in another language could not read it."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """UTF-8, lines ending as in `text`, atomically."""
    atomic_write(path, lambda temporary: _write_bytes(temporary, text.encode()))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
