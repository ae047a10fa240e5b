"""The pages in docs/ say what is true: their code runs as written, and what it learns is learnt."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from maskaug.envs import dataset_registry
from maskaug.envs.errors import ConfigurationError

DOCS = Path(__file__).resolve().parent.parent / "docs"
Names = dict[str, Any]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, names: Names) -> Names:
    exec(compile(code, "docs", "exec"), names)
    return names


def run_page(page: str) -> Names:
    """All blocks, from top to bottom; one that begins with "# name.py" is that file, and can be imported."""
    names: Names = {"__name__": "docs"}
    for code in blocks(page):
        if name := re.match(r"# (\w+\.py)\n", code):
            Path(name[1]).write_text(code, encoding="utf-8")
        else:
            run(code, names)
    return names


# ---- algorithms.md ---------------------------------------------------------------------------------------------------

GAME, *ALGORITHMS = blocks("algorithms.md")
LEARNT = 0.55


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
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        untrained = nn.Sequential(cells(32), nn.Conv2d(32, 1, 2), nn.Flatten())
        found.append(frozen_game["score"](lambda images, network=untrained: network(images / 255)))
    print(found)
    # First weights differ: by chance some see edges, as the reconstructor's errors do.
    assert max(found) < LEARNT - 0.05


@pytest.mark.parametrize("code", ALGORITHMS, ids=["PPO", "REINFORCE", "TorchRL"])
def test_the_algorithm_learns(code: str, frozen_game: Names) -> None:
    names = run(code, dict(frozen_game))
    scores = {name: value for name, value in names.items() if name.endswith("_score")}
    assert scores
    print(scores)
    assert min(scores.values()) > LEARNT, scores


# ---- bring_your_own.md -----------------------------------------------------------------------------------------------


@pytest.fixture
def registries() -> Iterator[None]:
    """What the page registers is forgotten again."""
    yield
    gym.registry.pop("Squares-v0", None)
    dataset_registry._REGISTRY.pop("squares", None)
    sys.modules.pop("my_data", None)


def test_an_own_dataset_judge_term_and_algorithm(
    registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = run_page("bring_your_own.md")
    assert names["observations"].shape == (4, 1, 40, 40)
    assert not names["observations"][..., :4, :4].any()
    # The loader says what its files are, and the page prints it; arrays in memory are the user's.
    assert re.search(r"^squares \d+ Discrete\(16\)$", capsys.readouterr().out, re.MULTILINE)
    assert names["envs"].unwrapped.dataset.source == "user"
    # The judge tells the classes apart, the term is what it says, and the algorithm beats chance on other images.
    assert (names["terms"]["centred"] < 0).all()
    random, oracle = names["worth"].mean(), names["worth"].max(1).mean()
    assert oracle > random + 0.5
    assert names["mean"] > random + 0.7 * (oracle - random)


def test_the_registered_data_set_has_a_stand_in_and_refuses_what_it_does_not_know(
    registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (file,) = [code for code in blocks("bring_your_own.md") if code.startswith("# my_data.py")]
    Path("my_data.py").write_text(file, encoding="utf-8")
    with pytest.warns(UserWarning, match="no real data for 'squares'"):
        env: Any = gym.make("my_data:Squares-v0", image_size=40)
    assert env.unwrapped.dataset.source == "synthetic"
    with pytest.raises(ConfigurationError, match="unknown keyword 'markers'; did you mean 'marker'"):
        gym.make("Squares-v0", markers=False)


def test_what_other_libraries_need_is_python_at_least() -> None:
    """Neither is among our tests' dependencies, so no test runs the page, as it says; this one reads it."""
    tianshou, rllib = blocks("other_libraries.md")
    for code in (tianshou, rllib):
        names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        assert {"ID", "FROZEN", "cells", "score"} <= names


def test_the_pages_point_to_pages_that_are_there() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{page.name} points to {target}"
