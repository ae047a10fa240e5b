"""The errors a user can meet. Each message names the cause and the cure."""

from __future__ import annotations


class MaskAugError(Exception):
    """Base of every error that MaskAug raises on purpose."""


class InvalidAction(MaskAugError, ValueError):  # noqa: N818 (the name is fixed by the design)
    """An action of a wrong shape, type or value. Raised before any state changes."""


class DatasetError(MaskAugError, ValueError):
    """A data set that is missing, incomplete or not what was asked for."""


class ImageError(MaskAugError, ValueError):
    """One image file that cannot be used.

    Attributes:
        path: the file.
        reason: what is wrong with it, and what to do.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path = str(path)
        # A file's name can hold line breaks and what a terminal takes for commands.
        shown = self.path if self.path.isprintable() else ascii(self.path)
        super().__init__(f"{shown}: {reason}")
        self.reason = reason


class ConfigurationError(MaskAugError, ValueError):
    """A keyword, or a combination of keywords, that cannot work."""


class JudgeError(MaskAugError, RuntimeError):
    """The reward model returned something that is not a reward (NaN, a wrong shape)."""


class NonConformance(MaskAugError, AssertionError):  # noqa: N818 (it says what was found, as InvalidAction does)
    """A vector environment that breaks Gymnasium's rules. Raised by `check_vector_env`."""
