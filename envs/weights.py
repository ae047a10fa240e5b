"""Weights that others trained, from a local file: read without executing anything, and put into our networks."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from maskaug.envs.errors import ConfigurationError


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name → tensor of a .safetensors file, or of one that `torch.save` wrote of a state dict (`weights_only`).

    Raises:
        ConfigurationError: it cannot be read so, or holds something else.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(os.fspath(path))
        with warnings.catch_warnings():
            # Of a pickle that torch did not write: what is wrong with it is said below.
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]}); give a .safetensors file, or "
            "one that torch.save wrote of a state dict"
        ) from None
    # Training scripts like to wrap it, and DataParallel puts its own name before every other.
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ConfigurationError(f"{path} holds no state dict (name → tensor); save model.state_dict() alone")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def put_weights(model: nn.Module, found: Mapping[str, Tensor], rename: Callable[[str], str | None], what: str) -> None:
    """Put weights into `model`, every one of its own or none.

    Args:
        model: changed in place.
        found: name → tensor.
        rename: a name in `found` → its name here; None: not needed.
        what: the file, for an error.

    Raises:
        ConfigurationError: one is missing, or has another shape; nothing has changed then.
    """
    wanted = model.state_dict()
    named = {new: value for name, value in found.items() if (new := rename(name)) is not None}
    missing = sorted(wanted.keys() - named.keys() - {n for n in wanted if n.endswith("num_batches_tracked")})
    wrong = sorted(n for n in wanted.keys() & named.keys() if wanted[n].shape != named[n].shape)
    if missing or wrong:
        one = missing[0] if missing else wrong[0]
        said = "is missing" if missing else f"has shape {tuple(named[one].shape)}, not {tuple(wanted[one].shape)}"
        raise ConfigurationError(
            f"{what} does not fit {type(model).__name__}: {one} {said} ({len(missing)} missing, {len(wrong)} of "
            "another shape); give weights of the same network"
        )
    model.load_state_dict({**wanted, **{n: named[n] for n in wanted if n in named}})


def to_channels(kernel: Tensor, channels: int) -> Tensor:
    """The first convolution of a colour network, (F, 3, k, k), for images with any number of channels, (F, C, k, k).

    One channel gets the sum of the three kernels: a grey picture then gives what it gave as three equal colours. More
    share that sum, so that C equal channels give the same; three stay as they are.
    """
    if channels == kernel.shape[1]:
        return kernel
    return (kernel.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
