"""The memory of image numbers and errors: what goes in comes out, it is small, and the oldest makes room."""

from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import same

from maskaug.agents.replay import Replay
from maskaug.envs.masking import patch_count, patch_to_cells


def transitions(n: int, grid: int, patch_cells: int, first: int = 0) -> tuple[Any, Any, Any]:
    """n of them, numbered from `first`, with errors that half precision can say."""
    rng = np.random.default_rng(first)
    if patch_cells:
        corner = rng.integers(0, patch_count(grid, patch_cells), n)
        hidden = patch_to_cells(torch.from_numpy(corner), grid, patch_cells).numpy()
    else:
        corner = np.zeros(n, np.int64)
        hidden = rng.random((n, grid, grid)) < 0.5
    errors = (rng.integers(0, 2000, (n, grid, grid)) / 256).astype(np.float32)
    return first + np.arange(n), np.where(hidden, errors, np.float32(np.nan)), corner


def test_a_million_patches_take_less_than_50_mb() -> None:
    memory = Replay(10**6, 8, 2)
    assert memory.nbytes < 50e6
    index, errors, corner = transitions(1000, 8, 2)
    for _ in range(3):
        memory.add(index, errors, corner)
    assert len(memory) == 3000
    held = [v for v in vars(memory).values() if isinstance(v, np.ndarray)]
    assert sum(v.nbytes for v in held) == memory.nbytes
    # An image would be 64×64 numbers for each transition.
    assert max(v.size for v in held) == 4 * 10**6


@pytest.mark.parametrize(("grid", "patch_cells"), [(5, 2), (5, 3), (4, 1), (4, 0)])
def test_what_goes_in_comes_out(grid: int, patch_cells: int) -> None:
    memory = Replay(64, grid, patch_cells)
    index, errors, corner = transitions(40, grid, patch_cells)
    memory.add(index[:25], errors[:25], corner[:25])
    memory.add(index[25:], errors[25:], corner[25:])
    drawn, again = memory.sample(400, torch.Generator().manual_seed(0))
    assert drawn.dtype == np.int64
    assert again.dtype == torch.float32
    assert set(drawn) == set(range(40))
    np.testing.assert_array_equal(again.numpy(), errors[drawn])


def test_errors_are_kept_to_half_precision_and_large_ones_stay_finite() -> None:
    memory = Replay(4, 2, 0)
    errors = np.array([[[1 / 3, np.nan], [1e-4, 1e9]]], np.float32)
    memory.add(np.array([0]), errors, np.array([0]))
    _, again = memory.sample(1, torch.Generator())
    np.testing.assert_allclose(again.numpy(), [[[1 / 3, np.nan], [1e-4, 65504]]], rtol=1e-3)


@pytest.mark.parametrize("parts", [(3, 7, 7, 6), (23,), (10, 10, 3)])
def test_the_oldest_make_room(parts: tuple[int, ...]) -> None:
    memory = Replay(10, 4, 2)
    index, errors, corner = transitions(23, 4, 2)
    start = 0
    for n in parts:
        part = slice(start, start + n)
        memory.add(index[part], errors[part], corner[part])
        start += n
        assert len(memory) == min(10, start)
    drawn, again = memory.sample(500, torch.Generator().manual_seed(1))
    assert set(drawn) == set(range(13, 23))
    np.testing.assert_array_equal(again.numpy(), errors[drawn])


def test_draws_are_uniform_and_seeded() -> None:
    memory = Replay(50, 4, 2)
    memory.add(*transitions(20, 4, 2))
    drawn, errors = memory.sample(20_000, torch.Generator().manual_seed(3))
    counts = np.bincount(drawn, minlength=20)
    # 1000 each, a standard deviation of 31; five of them.
    np.testing.assert_allclose(counts, 1000, atol=155)
    again, same_errors = memory.sample(20_000, torch.Generator().manual_seed(3))
    other, _ = memory.sample(20_000, torch.Generator().manual_seed(4))
    assert np.array_equal(drawn, again)
    assert same(errors, same_errors)
    assert not np.array_equal(drawn, other)


@pytest.mark.parametrize("patch_cells", [2, 0])
@pytest.mark.parametrize("filled", [4, 10, 17])
def test_the_state_comes_back_and_goes_on_alike(patch_cells: int, filled: int) -> None:
    memory, other = Replay(10, 4, patch_cells), Replay(10, 4, patch_cells)
    other.add(*transitions(9, 4, patch_cells, first=500))
    memory.add(*transitions(filled, 4, patch_cells))
    state = memory.state()
    assert len(state["index"]) == min(10, filled)
    memory.add(*transitions(3, 4, patch_cells, first=900))  # the state is a copy
    other.load_state(state)
    twin = Replay(10, 4, patch_cells)
    twin.add(*transitions(filled, 4, patch_cells))
    for _ in range(2):
        drawn = [m.sample(100, torch.Generator().manual_seed(5)) for m in (other, twin)]
        assert same(drawn[0], drawn[1])
        for m in (other, twin):
            m.add(*transitions(5, 4, patch_cells, first=100))
