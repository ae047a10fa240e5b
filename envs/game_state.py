"""What a game's saved state is true for, and whether it may be put back into another game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskaug.envs.acceleration import Acceleration
from maskaug.envs.actions import ActionRule
from maskaug.envs.distributed import Ranks
from maskaug.envs.ensemble import kind_of
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import ClassifierReward, RewardModel
from maskaug.envs.terms import RewardTerms


def played(
    judge: RewardModel,
    rule: ActionRule,
    own_terms: RewardTerms,
    acceleration: Acceleration,
    *,
    joint: bool,
    fill: str,
    repeat: int,
    steps: int,
    judge_batch: int,
    flip: bool,
) -> dict[str, Any]:
    """The keywords, by their names, that make one game another: JSON, to be saved with the state."""
    return {
        "objective": judge.objective, "joint": joint, "fill": fill, "repeat": repeat,
        "steps": steps, "judge_batch": judge_batch, "action": rule.kind, "grid": rule.grid,
        "patch_cells": rule.patch_cells, "area": rule.area, "area_price": rule.price,
        "flip": flip,
        "reward_model": kind_of(judge.model), "judge_lr": judge.lr if joint else None,
        "sensitivity": judge.sensitivity if isinstance(judge, ClassifierReward) else None,
        "reward_terms": sorted(own_terms.functions) or None,
        "visible_weight": judge.visible_weight if isinstance(judge, ReconstructionReward) else None,
        # What is known of clean images is only true for it. Layout and compilation change the last bits alone, as
        # another machine does.
        "precision": acceleration.precision,
    }  # fmt: skip


def check_state(state: Mapping[str, Any], here: Mapping[str, Any], *, digest: str, order: tuple[int, ...]) -> None:
    """A saved state is one of a game that was made as this one was.

    Args:
        state: what was saved.
        here: what this game has `played`.
        digest: of its images.
        order: (N, images), the shape of its schedule.

    Raises:
        ConfigurationError: it is another game's, and what is to be the same.
    """
    if state["data"] != digest or state["order"].shape != order:
        raise ConfigurationError(
            "this checkpoint was written with other images or another number of environments; continue with the "
            "same data, split, image_size and num_envs"
        )
    for name, value in here.items():
        if (there := state.get("played", {}).get(name)) != value:
            raise ConfigurationError(
                f"this checkpoint was written with {name}={there!r}, and this environment has {name}={value!r}; "
                "make it with the same keywords"
            )


def on_host(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its tensors on the CPU: a device's number means another one elsewhere."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}


def whole_of(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A state of slots (lists, arrays, tensors; a slot a row), with the slots of all `ranks`, which all ask for it."""
    if ranks.alone:
        return dict(state)
    parts = ranks.everyone(on_host(state))
    return {name: _joined([part[name] for part in parts]) for name in state}


def share_of(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Of a state of all slots, those of this rank."""
    return {name: value[ranks.rows(len(value))] for name, value in state.items()}


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [one for part in parts for one in part]
