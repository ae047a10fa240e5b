"""ONE table of every environment id. Nothing heavy is imported here: entry points are strings, keywords plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

# area and patch_cells stay at their defaults (0.25; 2 cells): a row that named one could not be asked for the other
# action. So do grid and image_size, which depend on each other and on the data found: see `maskaug.envs.defaults`.
_GRID: Mapping[str, Any] = {"objective": "adversarial", "action": "grid"}
_PATCH: Mapping[str, Any] = {"objective": "reconstruction", "action": "patch"}


@dataclasses.dataclass(frozen=True)
class EnvRow:
    """One registered id.

    Attributes:
        id: what `gym.make` takes.
        dataset: the data set's name in `maskaug.envs.dataset_registry`.
        kwargs: the environment's defaults.
    """

    id: str
    dataset: str
    kwargs: Mapping[str, Any]


TABLE: tuple[EnvRow, ...] = (
    EnvRow("MaskAug-MURA-v0", "mura", _GRID),
    EnvRow("MaskAug-HipFracture-v0", "hip_fracture", _GRID),
    EnvRow("MaskAug-BUSI-v0", "busi", _PATCH),
    EnvRow("MaskAug-LGG-v0", "lgg", _PATCH),
    EnvRow("MaskAug-MedMNIST-v0", "medmnist", _GRID),
    EnvRow("MaskAug-Manifest-v0", "manifest", _GRID),
    EnvRow("MaskAug-Synthetic-v0", "synthetic", _GRID),
)


def register_envs() -> None:
    """Register every row of `TABLE` with Gymnasium; calling it again changes nothing.

    Rows are registered as nondeterministic because a judge that learns along gives the same mask another reward later.
    """
    for row in TABLE:
        if row.id not in gym.registry:
            gym.register(
                row.id,
                entry_point="maskaug.envs.environment:MaskEnv",
                vector_entry_point="maskaug.envs.environment:MaskVectorEnv",
                nondeterministic=True,
                kwargs={"dataset": row.dataset, **row.kwargs},
            )
