"""`load_masker`: a file in, a function from images to masks out, and nothing else needed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, marker_env, marker_images
from patch_game import frozen_env, square_images

import maskaug
from maskaug.agents.apga import APGA
from maskaug.agents.checkpoint import CheckpointError, write_state
from maskaug.agents.intelligent_masking import IntelligentMasking
from maskaug.agents.masker import load_agent
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.judges import make_judge, save_judge

IMAGES = np.asarray(marker_images(6, 11).images)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[APGA, Path]:
    path = tmp_path_factory.mktemp("saved") / "masker.safetensors"
    agent = APGA(marker_env(), seed=1).learn(320)
    agent.save(path)
    return agent, path


def by_hand(scores: Any, k: int) -> Any:
    """The k best cells, blown up to pixels, without any of the package's own functions."""
    mask = np.zeros((len(scores), SIZE, SIZE), np.bool_)
    side = SIZE // GRID
    for i, image in enumerate(scores):
        for cell in np.argsort(-image.ravel(), kind="stable")[:k]:
            top, left = divmod(int(cell), GRID)
            mask[i, top * side : (top + 1) * side, left * side : (left + 1) * side] = True
    return mask


def test_masks_are_the_best_cells_in_the_kind_that_came_in(saved: tuple[APGA, Path]) -> None:
    agent, path = saved
    masker = maskaug.load_masker(path)
    expected = by_hand(agent.scores(IMAGES), 4)
    masks = masker(IMAGES)
    assert isinstance(masks, np.ndarray)
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, expected)
    assert np.array_equal(masker(IMAGES[2]), expected[2])
    tensors = masker(torch.from_numpy(IMAGES))
    assert isinstance(tensors, torch.Tensor)
    assert tensors.dtype == torch.bool
    assert np.array_equal(tensors.numpy(), expected)
    assert masker(torch.from_numpy(IMAGES[2])).shape == (SIZE, SIZE)
    # Ready for `torch.where(mask[:, None], images, 0)`.
    assert torch.where(tensors[:, None], torch.from_numpy(IMAGES), 0).shape == IMAGES.shape


@pytest.mark.parametrize(("area", "cells"), [(1 / 16, 1), (0.25, 4), (0.5, 8), (15 / 16, 15)])
def test_any_area_can_be_asked_for(saved: tuple[APGA, Path], area: float, cells: int) -> None:
    agent, path = saved
    masks = maskaug.load_masker(path, area=area)(IMAGES)
    assert np.array_equal(masks, by_hand(agent.scores(IMAGES), cells))


@pytest.mark.parametrize("area", [0.0, 1.0, 0.01, 0.99, -1.0, 3.0, float("nan")])
def test_areas_that_select_nothing_or_everything_are_refused(saved: tuple[APGA, Path], area: float) -> None:
    with pytest.raises(ConfigurationError, match="area"):
        maskaug.load_masker(saved[1], area=area)


def test_wrong_images_are_refused_with_the_cure(saved: tuple[APGA, Path]) -> None:
    masker = maskaug.load_masker(saved[1])
    wrongs: list[Any] = [
        IMAGES / 255,
        torch.from_numpy(IMAGES).float(),
        IMAGES[..., : SIZE // 2],
        IMAGES[:, 0],
        np.repeat(IMAGES, 3, 1),
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match=r"uint8 images of shape \(1, 32, 32\)"):
            masker(wrong)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "a", {"about": {"agent": "DQN"}})
    with pytest.raises(CheckpointError, match="holds DQN; known are APGA"):
        load_agent(tmp_path / "a")
    save_judge(tmp_path / "judge.safetensors", make_judge("small", 1, 2, 0))
    with pytest.raises(CheckpointError, match="it is a judge"):
        maskaug.load_masker(tmp_path / "judge.safetensors")
    with pytest.raises(CheckpointError, match="nowhere"):
        maskaug.load_masker(tmp_path / "nowhere")


def test_a_fresh_process_needs_no_environment(saved: tuple[APGA, Path]) -> None:
    code = f"""
import numpy as np
import maskaug
import maskaug.envs.game as game

def refuse(*_, **__):
    raise AssertionError("a game was made")

game.MaskGame.__init__ = refuse
masker = maskaug.load_masker({str(saved[1])!r})
print(int(masker(np.zeros((2, 1, {SIZE}, {SIZE}), np.uint8)).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * SIZE * SIZE // 4


# ---- patches ---------------------------------------------------------------------------------------------------------


def test_maskers_of_patches_give_whole_patches_and_sets_of_cells_where_an_area_is_asked_for(tmp_path: Path) -> None:
    images = np.asarray(square_images(12, 5).images)
    for patch_cells in (2, 3):
        path = tmp_path / f"{patch_cells}.safetensors"
        agent = IntelligentMasking(frozen_env(4, patch_cells=patch_cells), width=8, replay_batch=8).learn(12)
        agent.save(path)
        corners, _ = agent.predict(images, deterministic=True)
        side = 5 - patch_cells + 1
        expected = np.zeros((12, 40, 40), np.bool_)
        for i, corner in enumerate(corners):
            top, left = (8 * v for v in divmod(int(corner), side))
            expected[i, top : top + 8 * patch_cells, left : left + 8 * patch_cells] = True
        masker = maskaug.load_masker(path)
        assert np.array_equal(masker(images), expected)
        assert np.array_equal(masker(images[3]), expected[3])
        assert torch.equal(masker(torch.from_numpy(images)), torch.from_numpy(expected))
        cells = maskaug.load_masker(path, area=0.2)(images).reshape(12, 5, 8, 5, 8)
        assert (cells.all((2, 4)) == cells.any((2, 4))).all()
        order = np.argsort(-agent.scores(images).reshape(12, -1), kind="stable")[:, :5]
        for i, chosen in enumerate(cells.all((2, 4)).reshape(12, -1)):
            assert set(np.flatnonzero(chosen)) == set(order[i])


def test_maskers_of_intelligent_masking_on_sets_of_cells(tmp_path: Path) -> None:
    images = np.asarray(square_images(12, 5).images)
    agent = IntelligentMasking(frozen_env(4, action="grid", area=0.24), width=8, replay_batch=8).learn(12)
    agent.save(tmp_path / "m")
    cells = maskaug.load_masker(tmp_path / "m")(images).reshape(12, 5, 8, 5, 8).all((2, 4))
    assert (cells.sum((1, 2)) == 6).all()
    assert np.array_equal(cells.reshape(12, -1), agent.predict(images, deterministic=True)[0])
