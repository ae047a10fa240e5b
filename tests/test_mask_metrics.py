"""Four measures of masks against known regions, on pictures small enough to count."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from maskaug.agents.agent import GridSpec
from maskaug.benchmarks.mask_metrics import MEASURES, iou, mask_figures, mask_values, pointing
from maskaug.benchmarks.masks import TITLES, control_masks, hits, retentions
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError

Scores = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
#: a 2×2 grid of cells of 4×4 pixels, one of them a mask.
SPEC = GridSpec((1, 8, 8), 2, 1)


def outlined(regions: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> ImageDataset:
    n, h, w = regions.shape
    images = np.zeros((n, 1, h, w), np.uint8)
    return ImageDataset("o", images, None, regions, np.arange(n), (), tuple(map(str, range(n))), "test")


def boxes(*corners: tuple[int, int, int, int] | None, size: int = 8) -> ImageDataset:
    """Image i's region are rows a to b and columns c to d of corners[i]; None: it has none."""
    regions = np.zeros((len(corners), size, size), np.bool_)
    for i, box in enumerate(corners):
        if box is not None:
            regions[i, box[0] : box[1], box[2] : box[3]] = True
    return outlined(regions)


def ranking(*cells: Sequence[float]) -> Scores:
    side = int(len(cells[0]) ** 0.5)
    return np.array(cells, np.float32).reshape(-1, side, side)


TRAIN = boxes((4, 8, 4, 8), (5, 8, 5, 8))
#: 12, 16 and 64 pixels, and an image without a region.
HELD_OUT = boxes((0, 4, 1, 4), (2, 6, 2, 6), (0, 8, 0, 8), None)
#: their top cells are 0, 3, 1 and 2.
SCORES = ranking([4, 1, 2, 3], [1, 2, 3, 4], [1, 4, 2, 3], [1, 2, 4, 3])


def test_every_measure_of_every_mask_by_hand() -> None:
    found = mask_values(SCORES, HELD_OUT, TRAIN, SPEC)
    assert set(found) == {f"{what}.{mask}" for what in MEASURES for mask in TITLES}
    # All of 12 pixels, 4 of 16, 16 of 64; the mask has 16.
    assert found["retention.agent"].tolist() == [1, 0.25, 0.25]
    assert found["iou.agent"] == pytest.approx([12 / 16, 4 / 28, 16 / 64])
    assert found["hit.agent"].tolist() == [1, 0, 0]
    # Middles are pixels (2, 2), (6, 6) and (2, 6); the second region ends at 6, exclusive.
    assert found["pointing.agent"].tolist() == [1, 0, 1]
    # "centre": all cells are equally near, and the mask is the first; it points a quarter at each.
    assert found["retention.centre"].tolist() == [1, 0.25, 0.25]
    assert found["pointing.centre"].tolist() == [0.25, 0.25, 1]
    # The training regions lie in cell 3.
    assert found["retention.mean_region"].tolist() == [0, 0.25, 0.25]
    assert found["iou.mean_region"] == pytest.approx([0, 4 / 28, 16 / 64])
    assert found["pointing.mean_region"].tolist() == [0, 0, 1]
    # No cell keeps more than a quarter of the second; of its four middles only (2, 2) is inside.
    assert found["hit.ceiling"].tolist() == [1, 0, 0]
    assert found["pointing.ceiling"].tolist() == [1, 1, 1]
    assert found["pointing.random"].tolist() == [0.25, 0.25, 1]
    # The others' top cells: 3, 1, 2 for the first image, and 0, 1, 2 for the second.
    assert found["pointing.swapped"] == pytest.approx([0, 1 / 3, 1])


def test_figures_are_the_means_of_the_values() -> None:
    values = mask_values(SCORES, HELD_OUT, TRAIN, SPEC, seed=3)
    assert mask_figures(SCORES, HELD_OUT, TRAIN, SPEC, seed=3) == {k: v.mean() for k, v in values.items()}
    assert mask_figures(SCORES, HELD_OUT, TRAIN, SPEC, 3)["hit.agent"] == pytest.approx(1 / 3)


def test_masks_are_those_of_every_other_table() -> None:
    """The same controls of the same seed, so that a figure here can be compared with a report's."""
    rng = np.random.default_rng(0)
    data = outlined(rng.random((30, 16, 16)) < 0.2)
    scores, spec = rng.random((30, 4, 4), np.float32), GridSpec((1, 16, 16), 4, 5)
    masks = control_masks(scores, data, TRAIN16, spec, seed=1)
    found = mask_values(scores, data, TRAIN16, spec, seed=1)
    for name, kept in retentions(masks, data).items():
        np.testing.assert_array_equal(found[f"retention.{name}"], kept)
    other = mask_values(scores, data, TRAIN16, spec, seed=2)
    for name in ("random", "swapped"):
        assert (other[f"iou.{name}"] != found[f"iou.{name}"]).any()
    np.testing.assert_array_equal(other["iou.agent"], found["iou.agent"])
    # A hit is a retention of at least a half; of several draws the mean of hits, not the hit of the mean.
    np.testing.assert_array_equal(found["hit.agent"], found["retention.agent"] >= 0.5)
    assert not np.isin(mask_values(SCORES, HELD_OUT, TRAIN, SPEC)["hit.random"], [0, 1]).all()
    # At equal area the best cells for retention are best for all that counts pixels.
    for what in MEASURES[:3]:
        for name in masks:
            assert (found[f"{what}.{name}"] <= found[f"{what}.ceiling"] + 1e-12).all()


TRAIN16 = boxes((0, 5, 0, 5), (1, 3, 2, 9), size=16)


def test_exactly_half_of_the_region_is_a_hit() -> None:
    held_out = boxes((0, 4, 2, 6), (0, 4, 2, 7), (0, 4, 0, 8))
    found = mask_values(ranking(*[[4, 1, 2, 3]] * 3), held_out, TRAIN, SPEC)
    assert found["retention.agent"] == pytest.approx([8 / 16, 8 / 20, 16 / 32])
    assert found["hit.agent"].tolist() == [1, 0, 1]


def test_random_pointing_is_what_random_rankings_come_to() -> None:
    rng = np.random.default_rng(0)
    data = outlined(rng.random((6, 16, 16)) < 0.3)
    spec = GridSpec((1, 16, 16), 4, 2)
    drawn = [pointing(rng.random((6, 4, 4), np.float32), data, TRAIN16, spec) for _ in range(2000)]
    np.testing.assert_allclose(np.mean([d["agent"] for d in drawn], axis=0), drawn[0]["random"], atol=0.04)
    assert 0.05 < drawn[0]["random"].mean() < 0.95


def test_swapped_pointing_by_the_long_way() -> None:
    rng = np.random.default_rng(1)
    regions = rng.random((7, 16, 16)) < 0.3
    regions[2] = False
    data, spec = outlined(regions), GridSpec((1, 16, 16), 4, 2)
    scores = rng.integers(0, 5, (7, 4, 4)).astype(np.float32)  # with ties
    found = pointing(scores, data, TRAIN16, spec)["swapped"]
    expected = []
    for i in (0, 1, 3, 4, 5, 6):
        others = np.stack([scores[j] for j in range(7) if j != i])
        own = outlined(np.repeat(regions[i : i + 1], 6, axis=0))
        expected.append(pointing(others, own, TRAIN16, spec)["agent"].mean())
    assert found == pytest.approx(expected)


def test_a_ranking_that_ties_points_with_all_its_best_cells() -> None:
    found = pointing(ranking([1, 1, 0, 0], [2, 2, 2, 2]), boxes((0, 4, 0, 4), (0, 4, 0, 8)), TRAIN, SPEC)
    assert found["agent"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("size", "grid"), [(8, 2), (9, 3), (16, 4), (5, 5)])
def test_a_cell_points_at_its_middle_pixel(size: int, grid: int) -> None:
    cell, middles = size // grid, []
    for top in range(size):
        for left in range(size):
            data = boxes((top, top + 1, left, left + 1), (0, 1, 0, 1), size=size)
            scores = np.zeros((2, grid, grid), np.float32)
            scores[:, top // cell, left // cell] = 1
            train = boxes((0, 1, 0, 1), size=size)
            if pointing(scores, data, train, GridSpec((1, size, size), grid, 1))["agent"][0]:
                middles.append((top % cell, left % cell))
    assert middles == [(cell // 2, cell // 2)] * grid**2


def test_pixels_point_at_themselves() -> None:
    data = boxes((1, 2, 3, 4), (2, 4, 2, 4), size=4)
    scores = np.zeros((2, 4, 4), np.float32)
    scores[:, 1, 3] = 1
    found = mask_values(scores, data, boxes((1, 2, 3, 4), size=4), GridSpec((1, 4, 4), 4, 2, pixels=True))
    assert found["pointing.agent"].tolist() == [1, 0]
    assert found["pointing.random"].tolist() == [1 / 16, 4 / 16]
    assert found["iou.agent"] == pytest.approx([1 / 2, 0])


def test_patches_point_at_their_middle_and_may_be_the_agents_own() -> None:
    spec = GridSpec((1, 16, 16), 4, 4, patch_cells=2)
    data = boxes((2, 6, 2, 6), (8, 16, 8, 16), size=16)
    scores = np.zeros((2, 4, 4), np.float32)
    scores[:, :2, :2] = 1
    own = torch.zeros(2, 4, 4, dtype=torch.bool)
    own[:, 2:, 2:] = True
    found, played = (mask_values(scores, data, TRAIN16, spec, own=mine) for mine in (None, own))
    # The patch at the top left has its middle at (4, 4).
    assert found["pointing.agent"].tolist() == [1, 0]
    assert found["hit.agent"].tolist() == [1, 0]
    assert found["iou.agent"] == pytest.approx([16 / 64, 0])
    assert played["pointing.agent"].tolist() == [0, 1]
    assert played["iou.agent"] == pytest.approx([0, 1])
    for name, values in hits(control_masks(scores, data, TRAIN16, spec), data).items():
        np.testing.assert_array_equal(found[f"pointing.{name}"], values)


def test_without_training_regions_there_is_no_mean_region() -> None:
    found = mask_values(SCORES, HELD_OUT, boxes(None, None), SPEC)
    assert {name.split(".")[1] for name in found} == {"agent", "swapped", "random", "centre"}
    assert {name.split(".")[0] for name in found} == set(MEASURES)


def test_many_images_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data, scores = outlined(rng.random((23, 16, 16)) < 0.2), rng.random((23, 4, 4), np.float32)
    spec = GridSpec((1, 16, 16), 4, 5)
    whole = mask_values(scores, data, TRAIN16, spec)
    monkeypatch.setattr("maskaug.benchmarks.masks.CHUNK", 5)
    monkeypatch.setattr("maskaug.benchmarks.mask_metrics.CHUNK", 4)
    for name, values in mask_values(scores, data, TRAIN16, spec).items():
        np.testing.assert_array_equal(values, whole[name])


def test_iou_of_nothing_is_unknown() -> None:
    mask = torch.tensor([[[1, 0]], [[0, 0]], [[0, 0]]])
    region = torch.tensor([[[1, 1]], [[0, 1]], [[0, 0]]])
    assert iou(mask, region).tolist()[:2] == [0.5, 0]
    assert iou(mask, region)[2].isnan()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="known region"):
        mask_values(SCORES[:2], boxes(None, None), TRAIN, SPEC)
    with pytest.raises(ConfigurationError, match="known region"):
        mask_values(SCORES, dataclasses.replace(HELD_OUT, regions=None), TRAIN, SPEC)
    for wrong in (SCORES[:3], SCORES.reshape(4, 4), np.where(SCORES == 1, np.nan, SCORES)):
        with pytest.raises(ConfigurationError, match=r"finite and of shape \(4, 2, 2\)"):
            mask_values(wrong, HELD_OUT, TRAIN, SPEC)
    own = torch.zeros(4, 2, 2, dtype=torch.bool)
    own[:, 0] = True
    for masks in (own, own[:, :1]):
        with pytest.raises(ConfigurationError, match="equal area"):
            mask_values(SCORES, HELD_OUT, TRAIN, SPEC, own=masks)
    with pytest.raises(ConfigurationError, match="at least two"):
        mask_values(SCORES[:1], boxes((0, 4, 0, 4)), TRAIN, SPEC)
