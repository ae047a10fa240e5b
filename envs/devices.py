"""Which device is meant, and whether this machine has it."""

from __future__ import annotations

import torch

from maskaug.envs.errors import ConfigurationError


def resolve_device(device: str | torch.device) -> torch.device:
    """The device meant: "auto" is CUDA where there is one; one that this machine lacks is an error that says so."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={device!r} is not a device ({error}); use 'auto', 'cpu' or 'cuda'") from None
    if result.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device={device!r} is not supported; use 'auto', 'cpu' or 'cuda'")
    if result.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device={device!r}, but torch sees no CUDA device here; use device='cpu' or 'auto'")
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device={device!r}, but torch sees {torch.cuda.device_count()} CUDA devices here")
    return result
