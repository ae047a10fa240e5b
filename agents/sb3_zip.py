"""Models that Stable-Baselines3 saved itself, as zip files. Reading one runs code: nothing here does so by itself."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from maskaug.agents.base import GridSpec
from maskaug.agents.checkpoint import CheckpointError
from maskaug.agents.sb3_agent import SB3Agent
from maskaug.agents.sb3_defaults import find, load_class, named, policy_of
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.masking import cells_for_area


def load_sb3_zip(
    path: str | os.PathLike[str],
    algorithm: str,
    env: Any = None,
    *,
    trust: bool = False,
    device: str | torch.device = "auto",
) -> SB3Agent:
    """The agent in a file that `PPO.save` and the like wrote, of a model with this package's policies.

    Args:
        path: the zip file.
        algorithm: whose it is, a key of `ALGORITHMS` or of `SPELLINGS`.
        env: to go on learning in; None: it only predicts.
        trust: the file was written by somebody you trust. It holds pickled Python objects, and reading these runs
            whatever code its author has put there.
        device: where the policy lives.

    Raises:
        ConfigurationError: `trust` is not given.
        CheckpointError: the file is missing, broken, or holds another algorithm's or somebody else's policy, whose
            weights have no place in ours; SB3's own `load` reads these.
    """
    algorithm = named(algorithm)
    title = find(algorithm).title
    if not trust:
        raise ConfigurationError(
            f"{path} is not read: a zip of Stable-Baselines3 holds pickled objects, and reading them runs whatever "
            "code its author has put there; if it is from somebody you trust, say so with trust=True (--trust)"
        )
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no zip file; give one that {title}.save wrote")
    try:
        model = load_class(algorithm).load(path, device="cpu")
    except Exception as error:  # whatever an unpickled file raises, the answer is the same
        raise CheckpointError(f"{path} cannot be read as a model of {title} ({error})") from None
    if type(model.policy) is not policy_of(algorithm):
        raise CheckpointError(
            f"{path} holds a {type(model.policy).__name__}, and weights are kept of {policy_of(algorithm).__name__} "
            f"alone, which maskaug.agents.sb3_defaults.keywords({algorithm!r}, env) chooses; play it with {title}.load"
        )
    made = dict(model.policy.features_extractor_kwargs)
    shape, pixels = model.observation_space.shape, made["kind"] == "pixel"
    grid = shape[1] if pixels else made["grid"]
    spec = GridSpec(
        shape, grid, cells_for_area(made["area"], grid), made["patch_cells"], pixels=pixels,
        boxes=made["kind"] == "box",
    )  # fmt: skip
    settings = {"algorithm": algorithm, "width": made["width"], "grid": made["grid"]}
    agent = SB3Agent(spec if env is None else env, device=device, **settings)
    if agent.spec != spec:
        raise CheckpointError(f"{path} was trained on {spec}, but the environment has {agent.spec}")
    try:
        agent.policy.load_state_dict(model.policy.state_dict())
    except RuntimeError:
        raise CheckpointError(
            f"{path} holds weights of another shape than {title}'s policy has here; play it with {title}.load"
        ) from None
    agent.num_timesteps = model.num_timesteps
    return agent
