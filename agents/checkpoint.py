"""State of any shape in one safetensors file: tensors as tensors, everything else as JSON in the header.

Nothing in such a file is executed when it is read. One file, so that a rename replaces all of it or nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskaug.envs.errors import MaskAugError
from maskaug.envs.files import write_safetensors

_FORMAT = "maskaug-state-1"


class CheckpointError(MaskAugError, ValueError):
    """A checkpoint or masker file that cannot be used."""


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors, arrays and JSON values to `path`, atomically."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, tensors, ""), allow_nan=False)
    # One entry: safetensors writes several in a random order, and equal states should be equal bytes.
    write_safetensors(path, tensors, {_FORMAT: text})


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_state` wrote; arrays come back as arrays, tensors as tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, broken, or something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; give a file that an agent's save(), or a run, has left")
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise CheckpointError(
                    f"{path} holds no agent's state ({_FORMAT}): it is a judge, another version's file, or another "
                    "program's; give a run's masker.safetensors"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); where it is a run's checkpoint, delete it to go on from the one before"
        ) from None
    try:
        state: dict[str, Any] = _unpack(json.loads(metadata[_FORMAT]), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} has a header that contradicts its contents; write it again") from None
    return state


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None. Temporary files are passed over."""
    found = sorted(Path(folder).glob("[0-9]*.safetensors"))
    return found[-1] if found else None


def keep_last(folder: str | os.PathLike[str], count: int) -> None:
    """Delete all but the last `count` checkpoints of `folder`, and what a killed run left half-written."""
    found = sorted(Path(folder).glob("[0-9]*.safetensors"))
    for old in found[: max(0, len(found) - count)]:
        old.unlink()
    for half in Path(folder).glob(".*.part"):
        half.unlink()


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    while name in tensors:
        # {"a/b": …} beside {"a": {"b": …}}, or the keys 1 and "1", would share a name.
        name += "'"
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.array(value))
        return {"array": name}
    if isinstance(value, np.generic):
        return {"value": value.item()}
    if isinstance(value, Mapping):
        # Optimiser states have integer keys, which JSON has not.
        return {"map": [[key, _pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors, f"{name}/{i}") for i, item in enumerate(value)]}
    return {"value": value}


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "map":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [_unpack(item, tensors) for item in content]
    return content
