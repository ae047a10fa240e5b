"""The other arms of the tables: Cutout's and random erasing's rectangles, Grad-CAM against values without MONAI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from marker_game import GRID, SIZE, marker_images
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from maskaug.agents.agent import GridSpec
from maskaug.agents.heuristics import Cutout, RandomErasing
from maskaug.agents.saliency import GradCAM
from maskaug.envs.densenet import DenseNet169
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.networks import SmallClassifier, seeded_weights, to_float

SPEC = GridSpec((1, SIZE, SIZE), GRID, 4)
CELL = SIZE // GRID
IMAGES = np.asarray(marker_images(5, 2).images)


# ---- Cutout ----------------------------------------------------------------------------------------------------------


def drawn(grid: int, cells: int, n: int = 300, seed: int = 0) -> Any:
    """n masks, (n, g, g) bool."""
    spec = GridSpec((1, 8 * grid, 8 * grid), grid, cells)
    actions, state = Cutout(spec, seed).predict(np.zeros((n, 1, 8 * grid, 8 * grid), np.uint8), deterministic=True)
    assert state is None
    assert actions.dtype == np.int8
    return actions.reshape(n, grid, grid).astype(bool)


def boxes(masks: Any) -> tuple[Any, Any]:
    """Heights and widths of the smallest boxes around masks."""
    return masks.any(2).sum(1), masks.any(1).sum(1)


@pytest.mark.parametrize(("grid", "counts"), [(4, range(1, 16)), (8, (1, 7, 13, 16, 17, 40, 63))])
def test_cutout_selects_exactly_the_area_and_as_nearly_a_rectangle_as_cells_can(grid: int, counts: range) -> None:
    for cells in counts:
        masks = drawn(grid, cells)
        assert (masks.sum((1, 2)) == cells).all()
        height, width = boxes(masks)
        # What is added or missing lies along one edge: all rows but one, or all columns but one, are a whole rectangle.
        for mask, h, w in zip(masks, height, width, strict=True):
            assert 0 <= h * w - cells < max(h, w), mask.astype(int)


def test_cutout_is_a_rectangle_where_one_has_the_area() -> None:
    heights, widths = boxes(drawn(8, 12, n=2000))
    found = {(int(h), int(w)) for h, w in zip(heights, widths, strict=True)}
    assert found == {(2, 6), (3, 4), (4, 3), (6, 2)}
    # Log-uniform from .3 to 3.3: just under half are taller than wide, and the flatter ones are not rarer.
    assert (heights > widths).mean() == pytest.approx(0.498, abs=0.05)
    assert (widths == 6).mean() > 0.15


def test_cutouts_sides_stay_within_the_aspects_on_a_fine_grid() -> None:
    heights, widths = boxes(drawn(32, 256, n=2000))
    aspects = heights / widths
    assert 0.26 < aspects.min() < 0.34
    assert 2.9 < aspects.max() < 3.8
    # Thirds of the logarithms are equally likely.
    third = np.exp(np.log(11) / 3)
    assert (aspects < 0.3 * third).mean() == pytest.approx(1 / 3, abs=0.06)
    assert (aspects > 3.3 / third).mean() == pytest.approx(1 / 3, abs=0.06)


def test_cutout_lies_anywhere_is_seeded_and_new_each_time() -> None:
    corner = drawn(8, 16, n=2000).mean(0)
    # Upright and mirrored alike, and every cell is reached.
    for other in (corner[::-1], corner[:, ::-1], corner.T):
        np.testing.assert_allclose(corner, other, atol=0.06)
    assert corner.min() > 0.01
    assert np.array_equal(drawn(8, 16, seed=3), drawn(8, 16, seed=3))
    assert not np.array_equal(drawn(8, 16, seed=3), drawn(8, 16, seed=4))
    cutout = Cutout(SPEC, 3)
    assert cutout.scores(IMAGES).shape == (5, GRID, GRID)
    assert cutout.scores(IMAGES).dtype == np.float32
    assert not np.array_equal(cutout.scores(IMAGES), cutout.scores(IMAGES))
    assert cutout.predict(IMAGES[0])[0].shape == (GRID * GRID,)


def test_cutout_of_pixels_and_of_patches() -> None:
    spec = GridSpec((1, SIZE, SIZE), SIZE, SIZE * SIZE // 4, pixels=True)
    actions, _ = Cutout(spec).predict(IMAGES)
    assert actions.shape == (5, SIZE, SIZE)
    assert ((actions > 0).sum((1, 2)) == SIZE * SIZE // 4).all()
    assert set(np.unique(actions)) == {-1, 1}
    with pytest.raises(ConfigurationError, match=r"2×2 cells; use RandomMasks"):
        Cutout(GridSpec((1, SIZE, SIZE), GRID, 4, 2))


# ---- random erasing --------------------------------------------------------------------------------------------------


def erased(spec: GridSpec, n: int = 4000, **keywords: Any) -> tuple[Any, Any, Any]:
    """Masks (n, H, W) bool, heights and widths; each is one whole rectangle."""
    masks = RandomErasing(spec, **keywords).masks(n)
    assert masks.shape == (n, *spec.image_shape[1:])
    assert masks.dtype == np.bool_
    heights, widths = boxes(masks)
    assert (masks.sum((1, 2)) == heights * widths).all()
    assert (heights * widths > 0).all()
    return masks, heights, widths


@pytest.mark.parametrize("cells", [1, 4, 8, 12, 15])
def test_random_erasing_hides_the_games_area_on_average(cells: int) -> None:
    masks, heights, widths = erased(GridSpec((1, 64, 64), GRID, cells))
    share = cells / GRID**2
    assert masks.mean() == pytest.approx(share, abs=0.01)
    # Not all of one area: from about a tenth of the mean to about twice, or as far as the image goes.
    reach = min(share * 19 / 21, 1 - share)
    areas = heights * widths / 64**2
    assert areas.min() == pytest.approx(share - reach, abs=0.02)
    assert areas.max() == pytest.approx(share + reach, abs=0.02)
    assert np.median(areas) == pytest.approx(share, abs=0.03)


def test_random_erasing_as_published_and_its_aspects() -> None:
    spec = GridSpec((1, 100, 100), 10, 25)
    masks, heights, widths = erased(spec, areas=(0.02, 0.4))
    assert masks.mean() == pytest.approx(0.21, abs=0.01)
    aspects = heights / widths
    assert 0.25 < aspects.min() < 0.4
    assert 2.7 < aspects.max() < 3.8
    assert (heights > widths).mean() == pytest.approx((widths > heights).mean(), abs=0.05)
    # A tenth fits with every aspect, thirds of whose logarithms are equally likely; .6 with the squarer ones alone.
    _, heights, widths = erased(spec, areas=(0.1, 0.1))
    assert (heights / widths < 0.3 * np.exp(np.log(11) / 3)).mean() == pytest.approx(1 / 3, abs=0.04)
    _, heights, widths = erased(spec, areas=(0.6, 0.6))
    assert heights.max() == widths.max() == 100
    np.testing.assert_allclose(heights * widths / 1e4, 0.6, atol=0.01)
    assert erased(spec, n=3, areas=(1.0, 1.0))[0].all()


def test_random_erasing_lies_anywhere_and_is_seeded_and_new_each_time() -> None:
    spec = GridSpec((3, 40, 40), 8, 16)
    mean = erased(spec)[0].mean(0)
    for other in (mean[::-1], mean[:, ::-1], mean.T):
        np.testing.assert_allclose(mean, other, atol=0.06)
    assert mean.min() > 0
    one, two = RandomErasing(spec, 3), RandomErasing(spec, 3)
    two.filling(5)
    two.scores(np.zeros((2, *spec.image_shape), np.uint8))
    first = one.masks(5)
    assert np.array_equal(first, two.masks(5))
    assert not np.array_equal(first, one.masks(5))
    assert not np.array_equal(first, RandomErasing(spec, 4).masks(5))


def test_random_erasing_fits_into_images_that_are_not_square() -> None:
    masks, heights, widths = erased(GridSpec((1, 20, 100), 4, 8))
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    assert heights.max() <= 20
    assert widths.max() <= 100


def test_what_random_erasing_fills_in_is_uniform_and_each_channels_own() -> None:
    spec = GridSpec((3, SIZE, SIZE), GRID, 4)
    erasing = RandomErasing(spec, 2)
    filling = erasing.filling(30)
    assert filling.shape == (30, 3, SIZE, SIZE)
    assert filling.dtype == np.uint8
    counts = np.bincount(filling.ravel(), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(filling[:, 0].ravel(), filling[:, 1].ravel())[0, 1]) < 0.03
    assert not np.array_equal(filling, erasing.filling(30))
    assert np.array_equal(filling, RandomErasing(spec, 2).filling(30))
    assert not np.array_equal(filling, RandomErasing(spec, 1).filling(30))


def test_at_equal_area_random_erasing_is_cutout() -> None:
    erasing, cutout = RandomErasing(SPEC, 5), Cutout(SPEC, 5)
    assert np.array_equal(erasing.scores(IMAGES), cutout.scores(IMAGES))
    assert np.array_equal(erasing.predict(IMAGES)[0], cutout.predict(IMAGES)[0])
    with pytest.raises(ConfigurationError, match="RandomErasing draws rectangles"):
        RandomErasing(GridSpec((1, SIZE, SIZE), GRID, 4, 2))


@pytest.mark.parametrize("areas", [(0.0, 0.4), (0.4, 0.2), (0.2, 1.1), (float("nan"), 0.4)])
def test_areas_that_are_none_are_refused(areas: tuple[float, float]) -> None:
    with pytest.raises(ConfigurationError, match="must be two shares"):
        RandomErasing(SPEC, areas=areas)


# ---- Grad-CAM --------------------------------------------------------------------------------------------------------


class Cells(nn.Module):
    """Two feature maps, the mean brightness b of each cell and 1 − b; logits linear in the means of both."""

    def __init__(self, weight: list[list[float]], bias: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(CELL)
        self.maps = nn.Identity()
        self.after = nn.ReLU(inplace=True)
        self.never = nn.Identity()
        self.head = nn.Linear(2, 2)
        self.head.weight.data, self.head.bias.data = torch.tensor(weight), torch.tensor(bias)

    def forward(self, images: Tensor) -> Tensor:
        brightness = self.pool(images)
        maps = self.after(self.maps(torch.cat([brightness, 1 - brightness], 1)))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def smeared(maps: Any) -> Any:
    """The mean over each cell of a map (N, g, g) blown up bilinearly: an eighth of either neighbour, on both axes."""
    for axis in (1, 2):
        padded = np.pad(maps, [(0, 0), *((1, 1) if a == axis else (0, 0) for a in (1, 2))], mode="edge")
        first, second = (np.take(padded, range(s, s + GRID), axis) for s in (0, 2))
        maps = 0.75 * maps + 0.125 * first + 0.125 * second
    return maps


def scaled(maps: Any) -> Any:
    return maps / maps.max((1, 2), keepdims=True)


def brightness() -> Any:
    return (IMAGES[:, 0] / 255.0).reshape(5, GRID, CELL, GRID, CELL).mean((2, 4))


def test_grad_cam_by_hand_is_high_where_the_predicted_class_is_seen() -> None:
    # Class 1 is predicted; its logit is the mean of 2b − ½(1 − b). Upside down, the darkest cell would be the best.
    judge = Cells([[0.0, 0.0], [2.0, -0.5]], (-5.0, 0.0))
    scores = GradCAM(SPEC, judge, layer="maps").scores(IMAGES)
    b = brightness()
    expected = scaled(smeared(np.maximum(2 * b - 0.5 * (1 - b), 0)))
    np.testing.assert_allclose(scores, expected, atol=3e-6)
    assert scores.shape == (5, GRID, GRID)
    assert scores.dtype == np.float32
    for image, brightest in zip(scores, smeared(b), strict=True):
        assert image.argmax() == brightest.argmax()


def test_grad_cam_follows_each_images_own_prediction() -> None:
    # The brighter images are class 1, which b speaks for, the darker ones class 0, which 1 − b speaks for.
    b = brightness()
    middle = float(np.median(b.mean((1, 2)))) - 1e-4
    judge = Cells([[0.0, 1.0], [1.0, 0.0]], (0.0, 1 - 2 * middle))
    ones = b.mean((1, 2)) > middle
    assert 0 < ones.sum() < 5
    expected = scaled(smeared(np.where(ones[:, None, None], b, 1 - b)))
    together = GradCAM(SPEC, judge, layer="maps").scores(IMAGES)
    np.testing.assert_allclose(together, expected, atol=3e-6)
    alone = [GradCAM(SPEC, judge, layer="maps").scores(image)[0] for image in IMAGES]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@pytest.mark.parametrize("weight", [[-1.0, -1.0], [0.0, 0.0]])
def test_a_map_of_zeros_gives_finite_scores_and_chance_decides(weight: list[float]) -> None:
    judge = Cells([[-9.0, -9.0], weight])
    cam = GradCAM(SPEC, judge, layer="maps")
    scores = cam.scores(IMAGES)
    assert np.isfinite(scores).all()
    assert 0 <= scores.min() < scores.max() <= 1e-6
    actions, _ = cam.predict(IMAGES)
    assert (actions.sum(1) == 4).all()
    assert len({a.tobytes() for a in actions}) == 5
    # By the image and the seed alone, not by what was asked before.
    assert np.array_equal(cam.scores(IMAGES[2:]), scores[2:])
    assert not np.array_equal(GradCAM(SPEC, judge, layer="maps", seed=1).scores(IMAGES), scores)


def test_a_level_map_is_one_everywhere() -> None:
    flat = np.full((2, 1, SIZE, SIZE), 100, np.uint8)
    scores = GradCAM(SPEC, Cells([[0.0, 0.0], [1.0, 1.0]]), layer="maps").scores(flat)
    np.testing.assert_allclose(scores, 1, atol=3e-6)


def without_monai(maps: Tensor, logits: Tensor) -> Any:
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    size = 32 * maps.shape[-1] if maps.shape[1] == 1664 else SIZE
    blown = functional.interpolate(cam, (size, size), mode="bilinear", align_corners=False)
    return scaled(functional.avg_pool2d(blown, size // GRID)[:, 0].numpy())


def test_grad_cam_knows_our_judges_layers() -> None:
    with seeded_weights(3):
        small, dense = SmallClassifier(1, 2).eval(), DenseNet169(1, 2).eval()
    maps = small.trunk(to_float(torch.from_numpy(IMAGES)))
    logits = small.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))
    np.testing.assert_allclose(GradCAM(SPEC, small).scores(IMAGES), without_monai(maps, logits), atol=1e-4)
    assert np.array_equal(GradCAM(SPEC, small).scores(IMAGES), GradCAM(SPEC, small, layer="trunk").scores(IMAGES))
    large = IMAGES[:3].repeat(2, 2).repeat(2, 3)
    maps = dense.maps(to_float(torch.from_numpy(large)))
    head = dense.net.get_submodule("class_layers.out")
    # Negative evidence alone would leave nothing to compare.
    with torch.no_grad():
        head.get_parameter("weight").abs_()
    scores = GradCAM(GridSpec((1, 2 * SIZE, 2 * SIZE), GRID, 4), dense).scores(large)
    np.testing.assert_allclose(scores, without_monai(maps, head(maps.mean((2, 3)))), atol=1e-4)


def test_the_judge_is_left_as_it_was_and_followed_where_it_learns() -> None:
    judge = Cells([[0.0, 0.0], [2.0, -0.5]])
    judge.head.bias.grad = torch.tensor([1.0, 2.0])
    judge.pool.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
    cam = GradCAM(SPEC, judge, layer="maps")
    with torch.no_grad():
        before = cam.scores(IMAGES)
    assert judge.head.weight.grad is None
    assert judge.head.bias.grad.tolist() == [1, 2]
    assert judge.head.weight.requires_grad
    assert not judge.pool.weight.requires_grad
    assert judge.after.inplace
    assert not any(m._forward_hooks or m._backward_hooks for m in judge.modules())
    judge.head.weight.data = torch.tensor([[0.0, 0.0], [0.5, 2.0]])
    assert not np.allclose(cam.scores(IMAGES), before, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (None, r"does not know the layers of Cells; give layer=.* pool, maps"), ("mapz", "no layer 'mapz'"),
        ("", "no layer ''"), ("never", "'never' was not reached"), ("head", r"returns \(1, 2\), and .* \(N, F, h, w\)"),
    ],
)  # fmt: skip
def test_layers_that_hold_no_maps_are_refused(layer: str | None, words: str) -> None:
    judge = Cells([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ConfigurationError, match=words):
        GradCAM(SPEC, judge, layer=layer)
    assert not judge.never._forward_hooks


def test_a_judge_that_is_not_finite_is_named() -> None:
    with pytest.raises(JudgeError, match="not finite"):
        GradCAM(SPEC, Cells([[0.0, 0.0], [float("nan"), 1.0]]), layer="maps").scores(IMAGES)


def test_grad_cam_of_patches_and_of_many_images() -> None:
    judge = Cells([[0.0, 0.0], [2.0, -0.5]])
    corners, _ = GradCAM(GridSpec((1, SIZE, SIZE), GRID, 4, 2), judge, layer="maps").predict(IMAGES)
    assert corners.shape == (5,)
    many = np.concatenate([IMAGES] * 30)
    scores = GradCAM(SPEC, judge, layer="maps").scores(many)
    np.testing.assert_allclose(scores[-5:], GradCAM(SPEC, judge, layer="maps").scores(IMAGES), atol=1e-6)
