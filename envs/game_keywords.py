"""What the keywords of a game may be; whatever else is given is an error that names the cause and the cure.

Each function returns nothing and raises a `ConfigurationError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from maskaug.envs.actions import is_number
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import FILLS
from maskaug.envs.reconstruction import ReconstructionReward
from maskaug.envs.rewards import ClassifierReward, check_sensitivity

OBJECTIVES = (*ClassifierReward.objectives, *ReconstructionReward.objectives)


def check_counts(**counts: object) -> None:
    """Each, by its name, is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1")


def check_flags(**flags: object) -> None:
    """Each, by its name, is True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ConfigurationError(f"{name}={flag!r} must be True or False")


def check_objective(objective: str, sensitivity: str | None) -> None:
    """There is such an objective, and `sensitivity` goes with it."""
    if objective not in OBJECTIVES:
        raise ConfigurationError(f"objective={objective!r} is unknown; use one of {OBJECTIVES}")
    check_sensitivity(sensitivity, objective)


def check_fill(fill: str) -> None:
    """There is such a filling."""
    if fill not in FILLS:
        raise ConfigurationError(f"fill={fill!r} is unknown; use one of {FILLS}")


def check_learning(joint: bool, judge_lr: float | None, judge_batch: int | None) -> None:
    """How the judge learns is told only where it does, and can be."""
    if not joint and (judge_lr is not None or judge_batch is not None):
        raise ConfigurationError("judge_lr and judge_batch do nothing with joint=False; leave them out")
    if judge_lr is not None and not (is_number(judge_lr) and judge_lr > 0):
        raise ConfigurationError(f"judge_lr={judge_lr!r} must be a finite number above 0")
    if judge_batch is not None:
        check_counts(judge_batch=judge_batch)


def check_visible_weight(visible_weight: float | None, *, learns: bool) -> None:
    """The weight of visible pixels is given only where a reconstructor `learns`, and can be one."""
    if visible_weight is not None and not learns:
        raise ConfigurationError(
            "visible_weight is for a reconstructor that learns: use objective='reconstruction' with joint=True, or "
            "leave it out"
        )
    if visible_weight is not None and not (is_number(visible_weight) and visible_weight >= 0):
        raise ConfigurationError(f"visible_weight={visible_weight!r} must be a finite number of at least 0")


def check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Every option has a name among those that are `known`."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"unknown keyword {name!r}; {hint}Known are: {', '.join(sorted(known))}")
