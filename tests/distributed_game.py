"""Small games that one process or several can play; torchrun starts this file, and what it learns lies in a folder.

python -m torch.distributed.run --nproc-per-node=2 tests/distributed_game.py FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from env_helpers import pictures, small
from torch import Tensor, nn

from maskaug.agents.apga import APGA
from maskaug.agents.checkpoint import write_state
from maskaug.envs.distributed import Ranks, joined
from maskaug.envs.environment import MaskVectorEnv
from maskaug.envs.networks import seeded_weights

SLOTS = 4
#: seven images: orders are drawn anew, and in every slot at another time than updates of the judge.
DATA = pictures(7, size=40)
JOINT: dict[str, Any] = {"joint": True, "judge_lr": 0.2, "judge_batch": 6}
#: name → (keywords of the environment, settings of APGA).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "frozen": ({"joint": False, "repeat": 4, "tensors": True}, {"learning_rate": 0.2, "average": 0.5}),
    "joint": ({**JOINT, "repeat": 2, "fill": "noise", "flip": True}, {"learning_rate": 0.2, "average": 0.5}),
    # The others of one try are those of the whole batch.
    "one try": (
        {**JOINT, "repeat": 1},
        {"learning_rate": 0.2, "average": 0.5, "estimator": "bernoulli", "mirror": False},
    ),
    "published": ({**JOINT, "repeat": 1, "fill": "blur"}, {"learning_rate": 0.05, "average": 0.5, "loss": "published"}),
    "two judges": ({**JOINT, "repeat": 2, "reward_model": "two"}, {"learning_rate": 0.2, "average": 0.5}),
}
#: updates before a checkpoint, and after it.
UPDATES = (3, 4)


def sgd(parameters: Any, lr: float, fused: bool) -> torch.optim.SGD:
    """In place of Adam, whose first steps are as large as can be whatever the gradient: it makes much of roundings."""
    return torch.optim.SGD(parameters, lr)


class BatchNormJudge(nn.Module):
    """A judge with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_weights(0):
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1))
            self.head = nn.Linear(4 * 9 * 9, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images))
        return logits


def agent_of(name: str, ranks: Ranks) -> APGA:
    """A new agent in a new game, this rank's part of it."""
    keywords, settings = CASES[name]
    judges = keywords.get("reward_model")
    judge = [small(DATA, 0), small(DATA, 1)] if judges == "two" else small(DATA)
    play = {**keywords, "reward_model": judge, "grid": 5, "device": "cpu"}
    env = MaskVectorEnv(ranks.share(SLOTS, "num_envs"), dataset=DATA, **play)
    env.game.spread(ranks)
    return APGA(env, seed=3, device="cpu", **settings)


def learn(agent: APGA, updates: int) -> dict[str, float]:
    """So many updates; returns the last one's metrics."""
    assert agent.env is not None
    said: dict[str, float] = {}
    agent.learn(updates * SLOTS * agent.env.game.repeat, lambda _, metrics: said.update(metrics))
    return said


def play(folder: Path, ranks: Ranks) -> None:
    """Every game: a checkpoint in the middle, one at the end with its metrics, and one of a run that was resumed."""
    for name in CASES:
        agent = agent_of(name, ranks)
        learn(agent, UPDATES[0])
        agent.save_checkpoint(folder / f"{name}.half.safetensors")
        metrics = learn(agent, UPDATES[1])
        agent.save_checkpoint(folder / f"{name}.safetensors", **metrics)
        ranks.wait()
        go_on(name, folder / f"{name}.half.safetensors", folder / f"{name}.resumed.safetensors", ranks, metrics)


def go_on(name: str, start: Path, end: Path, ranks: Ranks, metrics: dict[str, float] | None = None) -> None:
    """From one checkpoint to the end."""
    agent = agent_of(name, ranks)
    agent.load_checkpoint(start)
    said = learn(agent, UPDATES[1])
    agent.save_checkpoint(end, **({} if metrics is None else {**said, "time/fps": metrics["time/fps"]}))


def digest(module: nn.Module) -> str:
    """Of all weights and buffers."""
    values = [value.detach().numpy().tobytes() for value in module.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def statistics_of_batches(folder: Path, ranks: Ranks) -> None:
    """A judge with batch norm, whose statistics each rank takes from its own share: is it the same on all?"""
    judge = BatchNormJudge()
    before = digest(judge)
    env = MaskVectorEnv(ranks.share(SLOTS, "num_envs"), dataset=DATA, grid=5, repeat=2, reward_model=judge, **JOINT)
    env.game.spread(ranks)
    agent = APGA(env, seed=3, device="cpu")
    learn(agent, 4)
    found = {"before": before, "judge": ranks.everyone(digest(judge)), "policy": ranks.everyone(digest(agent.policy))}
    other = BatchNormJudge()
    for value in other.state_dict().values():
        value.add_(ranks.rank)
    ranks.copy_first([*other.parameters(), *other.buffers()])
    found["copied"] = ranks.everyone(digest(other))
    if ranks.first:
        write_state(folder / "batch norm.safetensors", found)


def main(folder: Path) -> None:
    """What torchrun starts."""
    with joined("auto") as ranks:
        statistics_of_batches(folder, ranks)
        torch.optim.Adam = sgd  # type: ignore[assignment, misc]
        play(folder, ranks)
        for name in CASES:
            go_on(name, folder / f"alone/{name}.half.safetensors", folder / f"{name}.from_one.safetensors", ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
