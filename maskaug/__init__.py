"""MaskAug: masking of medical images as reinforcement learning.

Importing it registers every environment id with Gymnasium and loads nothing heavy: torch comes with the first
environment, agent or masker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskaug._version import __version__
from maskaug.envs.registration import register_envs

if TYPE_CHECKING:
    from maskaug.agents.masker import load_masker
    from maskaug.envs.judges import load_encoder

__all__ = ["__version__", "load_encoder", "load_masker", "register_envs"]


def __getattr__(name: str) -> Any:
    if name == "load_masker":
        from maskaug.agents.masker import load_masker

        return load_masker
    if name == "load_encoder":
        from maskaug.envs.judges import load_encoder

        return load_encoder
    raise AttributeError(f"module 'maskaug' has no attribute {name!r}")


register_envs()
