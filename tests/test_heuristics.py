"""The rows that an agent is compared with: known rankings for known pictures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, marker_images
from scipy import stats
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import Brightness, FixedMask, Heuristic, LocalVariance, RandomMasks
from maskaug.agents.saliency import InputGradient
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.networks import SmallClassifier, seeded_weights

SPEC = GridSpec((1, SIZE, SIZE), GRID, 4)
CELL = SIZE // GRID
IMAGES = np.asarray(marker_images(5, 2).images)


class Linear(nn.Module):
    """Logits (0, w · x): the gradient is w wherever class 1 is predicted."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        value = (images * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(value), value], 1)


def small_judge() -> nn.Module:
    with seeded_weights(3):
        return SmallClassifier(1, 2)


ALL: list[Heuristic] = [
    RandomMasks(SPEC),
    FixedMask.centre(SPEC),
    FixedMask.mean_region(SPEC, marker_images(30, 0)),
    InputGradient(SPEC, small_judge()),
    LocalVariance(SPEC),
    Brightness(SPEC),
]


@pytest.mark.parametrize("heuristic", ALL, ids=lambda h: type(h).__name__)
def test_they_have_the_agents_methods(heuristic: Heuristic) -> None:
    scores = heuristic.scores(IMAGES)
    assert scores.shape == (5, GRID, GRID)
    assert scores.dtype == np.float32
    assert heuristic.scores(IMAGES[0]).shape == (1, GRID, GRID)
    actions, state = heuristic.predict(IMAGES, deterministic=True)
    assert state is None
    assert actions.shape == (5, GRID * GRID)
    assert actions.dtype == np.int8
    assert (actions.sum(1) == 4).all()
    assert heuristic.predict(IMAGES[0])[0].shape == (GRID * GRID,)


def test_random_masks_are_seeded_fair_and_new_each_time() -> None:
    assert np.array_equal(RandomMasks(SPEC, 5).scores(IMAGES), RandomMasks(SPEC, 5).scores(IMAGES))
    assert not np.array_equal(RandomMasks(SPEC, 5).scores(IMAGES), RandomMasks(SPEC, 6).scores(IMAGES))
    random = RandomMasks(SPEC, 5)
    many = np.stack([random.predict(IMAGES)[0] for _ in range(400)]).reshape(-1, GRID * GRID)
    # 2000 draws with p = 1/4: a standard deviation of .0097; five of them.
    np.testing.assert_allclose(many.mean(0), 0.25, atol=0.05)


def test_centre_is_the_centre() -> None:
    cells = FixedMask.centre(SPEC).predict(IMAGES)[0].reshape(5, GRID, GRID)
    expected = np.zeros((GRID, GRID))
    expected[1:3, 1:3] = 1
    assert (cells == expected).all()


def test_mean_region_favours_what_the_training_regions_cover_and_ignores_images_without() -> None:
    regions = np.zeros((4, SIZE, SIZE), np.bool_)
    regions[0, :CELL, :CELL] = True
    regions[1, :CELL, : 2 * CELL] = True
    regions[2, :CELL, :CELL] = True
    images = np.zeros((4, 1, SIZE, SIZE), np.uint8)
    train = ImageDataset("t", images, np.zeros(4, np.int64), regions, np.arange(4), ("a", "b"), tuple("wxyz"))
    scores = FixedMask.mean_region(SPEC, train).scores(IMAGES)
    expected = np.zeros((GRID, GRID), np.float32)
    expected[0, :2] = [1.0, 1 / 3]
    np.testing.assert_allclose(scores, np.repeat(expected[None], 5, 0), rtol=1e-6)


def test_input_gradient_is_the_hand_computed_one() -> None:
    weight = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    judge = Linear(weight)
    scores = InputGradient(SPEC, judge).scores(IMAGES)
    # The centred logit of either class has the gradient ± w / 2.
    product = np.abs(IMAGES[:, 0] / 255.0 * weight.numpy()[0] / 2)
    expected = product.reshape(5, GRID, CELL, GRID, CELL).mean((2, 4))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert judge.weight.grad is None


def test_input_gradient_follows_the_prediction_and_handles_many_images() -> None:
    heuristic = InputGradient(SPEC, small_judge())
    many = np.concatenate([IMAGES] * 30)
    scores = heuristic.scores(many)
    assert scores.shape == (150, GRID, GRID)
    np.testing.assert_allclose(scores[:5], heuristic.scores(IMAGES), rtol=1e-4, atol=1e-7)
    assert scores.std() > 0


# ---- patches ---------------------------------------------------------------------------------------------------------


def patches(grid: int, patch_cells: int) -> GridSpec:
    return GridSpec((1, 8 * grid, 8 * grid), grid, patch_cells**2, patch_cells)


@pytest.mark.parametrize("kind", [RandomMasks, FixedMask.centre, LocalVariance, Brightness])
def test_with_patches_they_predict_corners(kind: Callable[[GridSpec], Heuristic]) -> None:
    heuristic = kind(patches(GRID, 2))
    corners, _ = heuristic.predict(IMAGES)
    assert corners.shape == (5,)
    assert corners.dtype == np.int64
    assert ((corners >= 0) & (corners < 9)).all()
    assert heuristic.predict(IMAGES[0])[0].shape == ()
    assert heuristic.scores(IMAGES).shape == (5, GRID, GRID)


@pytest.mark.parametrize(("grid", "patch_cells"), [(4, 2), (5, 3), (6, 1)])
def test_random_patches_are_equally_likely_at_the_border_and_inside(grid: int, patch_cells: int) -> None:
    images, count = np.zeros((6000, 1, 8, 8), np.uint8), (grid - patch_cells + 1) ** 2
    corners, again, other = (RandomMasks(patches(grid, patch_cells), s).predict(images)[0] for s in (5, 5, 6))
    drawn = np.bincount(corners, minlength=count)
    assert len(drawn) == count
    assert stats.chisquare(drawn).pvalue > 1e-3
    assert np.array_equal(corners, again)
    assert not np.array_equal(corners, other)


@pytest.mark.parametrize(
    ("grid", "patch_cells", "corner"), [(8, 2, (3, 3)), (9, 3, (3, 3)), (5, 1, (2, 2)), (4, 2, (1, 1))]
)
def test_the_centre_patch_is_central(grid: int, patch_cells: int, corner: tuple[int, int]) -> None:
    chosen, _ = FixedMask.centre(patches(grid, patch_cells)).predict(np.zeros((3, 1, 8, 8), np.uint8))
    assert [divmod(int(c), grid - patch_cells + 1) for c in chosen] == [corner] * 3


def test_a_patch_is_chosen_by_its_mean() -> None:
    # The best cell lies alone in a corner; the best square is elsewhere.
    cells = np.zeros((GRID, GRID))
    cells[0, 0], cells[1:3, 2:4] = 2.0, 1.0
    chosen, _ = FixedMask(patches(GRID, 2), cells).predict(IMAGES)
    assert (chosen == 1 * 3 + 2).all()


def test_local_variance_by_hand() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, SIZE, SIZE)).astype(np.uint8)
    images[0, :, :CELL, :CELL] = 77
    scores = LocalVariance(GridSpec((2, SIZE, SIZE), GRID, 4)).scores(images)
    pixels = 2 * (images / 255.0) - 1
    cells = pixels.reshape(3, 2, GRID, CELL, GRID, CELL).transpose(0, 2, 4, 1, 3, 5).reshape(3, GRID, GRID, -1)
    np.testing.assert_allclose(scores, cells.var(-1), rtol=1e-4, atol=1e-6)
    # What is left when every hidden pixel is filled with the cell's mean is the reconstruction error.
    assert scores[0, 0, 0] == pytest.approx(0, abs=1e-6)


def test_brightness_by_hand() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, SIZE, SIZE)).astype(np.uint8)
    scores = Brightness(GridSpec((2, SIZE, SIZE), GRID, 4)).scores(images)
    cells = (images / 255.0).reshape(3, 2, GRID, CELL, GRID, CELL).mean((1, 3, 5))
    np.testing.assert_allclose(scores, cells, atol=1e-4)


def test_brightness_leaves_ties_to_chance_and_differences_alone() -> None:
    # All cells alike but two: one pixel darker by 1, and one brighter by 1.
    images = np.full((40, 1, SIZE, SIZE), 100, np.uint8)
    images[:, 0, 0, 0], images[:, 0, -1, -1] = 99, 101
    images[np.arange(40), 0, 1, 1] = np.arange(40)  # 40 different pictures, all with the first cell the darkest
    scores = Brightness(SPEC, 3).scores(images).reshape(40, -1)
    assert (scores.argmax(1) == GRID**2 - 1).all()
    assert (scores.argmin(1) == 0).all()
    second = scores.argsort(1)[:, -2]
    assert len(set(second.tolist())) > 8
    # By the image and the seed alone.
    assert np.array_equal(Brightness(SPEC, 3).scores(images[7:9]).reshape(2, -1), scores[7:9])
    assert not np.array_equal(Brightness(SPEC, 4).scores(images).reshape(40, -1), scores)
