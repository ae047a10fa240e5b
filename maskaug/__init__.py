"""MaskAug: masking of medical images as reinforcement learning."""

from maskaug._version import __version__

__all__ = ["__version__"]
