"""Made-up data sets in the layouts of the real ones: each reader's `write_example`, by the data set's name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from maskaug.envs.dataset_registry import dataset_names, dataset_spec
from maskaug.envs.errors import ConfigurationError


def write_example(dataset: str, folder: Path, seed: int = 0) -> Path:
    """Write the example of a named data set below `folder`.

    Args:
        dataset: a registered name.
        folder: where the data set's own folder is made.
        seed: of the pictures.

    Returns:
        The folder to give as `root`.

    Raises:
        ConfigurationError: an unknown name, a data set whose files nobody can make up, or `folder` holds one already.
    """
    writer = _writer(dataset)
    if writer is None:
        known = ", ".join(name for name in dataset_names() if _writer(name) is not None)
        raise ConfigurationError(f"{dataset!r} has no example that could be written; these have: {known}")
    target = folder / dataset_spec(dataset).folder
    if target.exists():
        raise ConfigurationError(f"{target} exists already, and would be mixed with the example; choose another folder")
    made = writer(folder, seed=seed)
    # MedMNIST's is a file in its folder.
    return made if made.is_dir() else made.parent


def _writer(dataset: str) -> Callable[..., Path] | None:
    loader = dataset_spec(dataset).loader
    if loader is None:
        return None
    module = importlib.import_module(loader.partition(":")[0])
    # A module of several data sets names theirs after them.
    found: Callable[..., Path] | None = getattr(module, f"write_{dataset.partition('_')[0]}_example", None)
    return found or getattr(module, "write_example", None)
