"""The pages in docs/ say what is true: their code runs as written, and what it learns is learnt."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
Names = dict[str, Any]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, names: Names) -> Names:
    exec(compile(code, "docs", "exec"), names)
    return names


# ---- algorithms.md ---------------------------------------------------------------------------------------------------

GAME, *ALGORITHMS = blocks("algorithms.md")
LEARNT = 0.5


@pytest.fixture(scope="module")
def frozen_game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    """What the page's first block makes; its judge lies in the working directory."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("algorithms"))
    yield run(GAME, {"__name__": "docs"})
    os.chdir(before)


def test_the_page_has_three_blocks_of_at_most_forty_lines() -> None:
    assert len(ALGORITHMS) == 3
    assert [code for code in ALGORITHMS if len([line for line in code.splitlines() if line.strip()]) > 40] == []


def test_without_learning_the_threshold_is_out_of_reach(frozen_game: Names) -> None:
    """Neither one patch for all images, even the best, nor untrained networks come near it."""
    import torch

    worth = frozen_game["gym"].make_vec(frozen_game["ID"], num_envs=1, split="val", **frozen_game["FROZEN"])
    rewards = worth.unwrapped.game.action_rewards(np.arange(len(worth.unwrapped.dataset)))
    best = int(rewards.mean(0).argmax())
    assert 0.2 < frozen_game["score"](lambda images: torch.eye(49)[[best] * len(images)]) < 0.4
    nn, cells = torch.nn, frozen_game["cells"]
    untrained = nn.Sequential(cells(32), nn.Conv2d(32, 1, 2), nn.Flatten())
    assert frozen_game["score"](lambda images: untrained(images / 255)) < 0.4


@pytest.mark.parametrize("code", ALGORITHMS, ids=["PPO", "REINFORCE", "TorchRL"])
def test_the_algorithm_learns(code: str, frozen_game: Names) -> None:
    names = run(code, dict(frozen_game))
    scores = {name: value for name, value in names.items() if name.endswith("_score")}
    assert scores
    print(scores)
    assert min(scores.values()) > LEARNT, scores
