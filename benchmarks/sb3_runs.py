"""What a run of one of Stable-Baselines3's algorithms is made of where nothing else is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskaug.agents.sb3_defaults import defaults_for, kinds_of
from maskaug.benchmarks.training import env_keywords


def sb3_run(algorithm: str, env_id: str, env: Mapping[str, Any], num_envs: int | None) -> tuple[dict[str, Any], int]:
    """(keywords of the environment, its number of slots).

    The id's own action, or where the algorithm does not play it the first that it does; the table's `num_envs`.

    Args:
        algorithm: a key of `ALGORITHMS`.
        env_id: a registered id.
        env: the keywords that were given.
        num_envs: None: the table's.
    """
    action, kinds = env_keywords(env_id, env)["action"], kinds_of(algorithm)
    keywords = dict(env)
    if action not in kinds and "action" not in env:
        keywords["action"] = action = kinds[0]
    row = defaults_for(algorithm, action)
    return keywords, row["num_envs"] if num_envs is None else num_envs
