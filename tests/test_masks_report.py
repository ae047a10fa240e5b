"""The figures of a mask and of its controls, on pictures where each is known beforehand."""

import json

import numpy as np
import pytest
import torch
from marker_game import MarkerJudge, marker_images
from torch import Tensor, nn

from maskaug.agents.agent import GridSpec
from maskaug.benchmarks.masks import (
    TITLES,
    MaskReport,
    _derangement,
    control_masks,
    gains,
    hits,
    mask_report,
    oracle_scores,
    retentions,
)
from maskaug.envs.datasets import ImageDataset
from maskaug.envs.errors import ConfigurationError, DatasetError
from maskaug.envs.rewards import ClassifierReward

GRID, SIZE, CELL = 2, 8, 4
SPEC = GridSpec((1, SIZE, SIZE), GRID, 1)


class Brightness(nn.Module):
    """Logits (0, 10 · mean): hiding a cell of value v costs class 1 a quarter of 10 v."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(mean), 10 * mean], 1)


def corners(where: list[int], values: list[int] | None = None, labels: list[int] | None = None) -> ImageDataset:
    """Image i is dark but for cell where[i] (of a 2×2 grid), which is its region; −1 has neither."""
    n = len(where)
    images, regions = np.zeros((n, 1, SIZE, SIZE), np.uint8), np.zeros((n, SIZE, SIZE), np.bool_)
    for i, cell in enumerate(where):
        if cell >= 0:
            top, left = divmod(cell, GRID)
            block = np.s_[top * CELL : (top + 1) * CELL, left * CELL : (left + 1) * CELL]
            images[i, 0][block] = 255 if values is None else values[i]
            regions[i][block] = True
    names = tuple(map(str, range(n)))
    return ImageDataset("c", images, np.array(labels or [1] * n), regions, np.arange(n), ("no", "yes"), names, "test")


def scores_for(cells: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    result = np.zeros((len(cells), GRID * GRID), np.float32)
    result[np.arange(len(cells)), cells] = 1
    return result.reshape(-1, GRID, GRID)


def test_every_control_has_its_known_retention() -> None:
    # Three regions at cell 0, one at 3, one image without a region; the agent finds all but the second.
    held_out, train = corners([0, 0, 3, 0, -1]), corners([3, 3, 3, 0])
    report = mask_report(scores_for([0, 1, 3, 0, 2]), held_out, train, SPEC)
    assert report.area == 0.25
    assert report.images == 5
    assert report.retention["agent"] == pytest.approx(3 / 4)
    # Both diagonals are equally near to the centre; the first cell wins the tie.
    assert report.retention["centre"] == pytest.approx(3 / 4)
    assert report.retention["mean_region"] == pytest.approx(1 / 4)
    assert report.retention["ceiling"] == 1
    assert report.gain == {}


def test_random_is_as_good_as_its_area_and_swapped_masks_are_others() -> None:
    n = 400
    where = np.random.default_rng(0).integers(0, 4, n).tolist()
    report = mask_report(scores_for(where), corners(where), corners(where), SPEC)
    assert report.retention["agent"] == 1
    assert report.retention["random"] == pytest.approx(0.25, abs=0.04)
    assert report.retention["swapped"] == pytest.approx(0.25, abs=0.04)


def test_a_ranking_that_knows_only_position_is_unmasked_by_swapping() -> None:
    report = mask_report(scores_for([2] * 6), corners([2] * 6), corners([2] * 6), SPEC)
    assert report.retention["agent"] == report.retention["swapped"] == report.retention["mean_region"] == 1


@pytest.mark.parametrize("n", [2, 3, 10])
def test_nobody_keeps_its_own_mask(n: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = _derangement(rng, n)
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()


def test_masks_have_equal_area_and_one_seed_means_one_set() -> None:
    held_out = marker_images(20, 3)
    spec = GridSpec((1, 32, 32), 4, 5)
    scores = np.random.default_rng(0).random((20, 4, 4), np.float32)
    masks = control_masks(scores, held_out, marker_images(10, 4), spec, seed=2)
    assert set(masks) == {"agent", "swapped", "random", "centre", "mean_region", "ceiling"}
    for draws in masks.values():
        for cells in draws:
            assert (cells.flatten(1).sum(1) == 5).all()
    again = control_masks(scores, held_out, marker_images(10, 4), spec, seed=2)
    other = control_masks(scores, held_out, marker_images(10, 4), spec, seed=3)
    for name, draws in masks.items():
        assert all(torch.equal(a, b) for a, b in zip(draws, again[name], strict=True))
    assert not torch.equal(masks["random"][0], other["random"][0])
    assert not torch.equal(masks["swapped"][0], other["swapped"][0])
    # The swapped masks are the agent's own, dealt out anew.
    for cells in masks["swapped"]:
        assert sorted(cells.flatten(1).int().tolist()) == sorted(masks["agent"][0].flatten(1).int().tolist())


def test_gain_is_the_hand_computed_one() -> None:
    held_out = corners([0, 3], values=[255, 128], labels=[1, 0])
    judge = ClassifierReward(Brightness(), "adversarial", torch.device("cpu"), trainable=False)
    masks = {"hit": [torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 1]]]).bool()], "miss": [torch.zeros(2, 2, 2).bool()]}
    gained = gains(masks, held_out, judge, "zero")
    # Loss of class 1 is log(1 + e^-x), of class 0 log(1 + e^x), with x = 10 · mean; hidden, x = 0.
    bright, dim = 10 / 4, 10 * 128 / 255 / 4
    expected = [np.log(2) - np.log1p(np.exp(-bright)), np.log(2) - np.log1p(np.exp(dim))]
    np.testing.assert_allclose(gained["hit"], expected, rtol=1e-5)
    np.testing.assert_allclose(gained["miss"], 0, atol=1e-7)


def test_gain_covers_every_image_across_chunks() -> None:
    held_out = marker_images(150, 8)
    spec = GridSpec((1, 32, 32), 4, 4)
    judge = ClassifierReward(MarkerJudge(), "adversarial", torch.device("cpu"), trainable=False)
    found = torch.from_numpy(held_out.regions).float().reshape(150, 4, 8, 4, 8).amax((2, 4))
    report = mask_report(found.numpy(), held_out, held_out, spec, judge=judge)
    assert set(report.gain) == set(report.retention) == set(TITLES)
    assert report.gain["agent"] == pytest.approx(3, abs=1e-3)
    assert 0 < report.gain["random"] < 2


def test_without_regions_only_the_judge_speaks() -> None:
    held_out = corners([-1, -1])
    assert retentions({"agent": [torch.zeros(2, 2, 2).bool()]}, held_out) == {}
    judge = ClassifierReward(Brightness(), "adversarial", torch.device("cpu"), trainable=False)
    report = mask_report(scores_for([0, 1]), held_out, held_out, SPEC, judge=judge)
    assert report.retention == {}
    assert set(report.gain) == {"agent", "swapped", "random", "centre"}
    assert "–" in report.table()


def test_one_image_has_nothing_to_swap_with() -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        mask_report(scores_for([0]), corners([0]), corners([0]), SPEC)


def test_the_table_and_the_flat_numbers_say_the_same() -> None:
    report = MaskReport(0.25, {"agent": 0.9, "random": 0.25}, {"agent": 1.5, "random": -0.25}, 7)
    flat = report.flat("test")
    assert flat == {
        "test.area": 0.25, "test.images": 7.0, "test.retention.agent": 0.9, "test.retention.random": 0.25,
        "test.gain.agent": 1.5, "test.gain.random": -0.25,
    }  # fmt: skip
    json.dumps(flat)
    lines = report.table().splitlines()
    assert "25%" in lines[0]
    assert lines[1].split() == ["the", "agent's", "0.900", "+1.500"]
    assert lines[2].split() == ["random", "0.250", "-0.250"]


# ---- patches ---------------------------------------------------------------------------------------------------------


def is_a_patch(cells: Tensor, side: int) -> bool:
    rows, columns = cells.any(1).nonzero().flatten(), cells.any(0).nonzero().flatten()
    whole = [len(along) == side and int(along[-1] - along[0]) == side - 1 for along in (rows, columns)]
    return all(whole) and int(cells.sum()) == side**2


@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_controls_of_patches_are_patches(side: int) -> None:
    held_out, train, spec = marker_images(20, 3), marker_images(10, 4), GridSpec((1, 32, 32), 4, side**2, side)
    scores = np.random.default_rng(0).random((20, 4, 4), np.float32)
    masks = control_masks(scores, held_out, train, spec, seed=2)
    assert set(masks) == set(TITLES)
    for draws in masks.values():
        for cells in draws:
            assert all(is_a_patch(one, side) for one in cells)
    for i, own in enumerate(masks["agent"][0]):
        sums = [scores[i, a : a + side, b : b + side].sum() for a in range(5 - side) for b in range(5 - side)]
        assert scores[i][own.numpy()].sum() == pytest.approx(max(sums))
    assert held_out.regions is not None
    inside = np.asarray(held_out.regions).reshape(20, 4, 8, 4, 8).any((2, 4))
    # Every marker lies in one cell, and the best patch for an image holds it.
    assert (masks["ceiling"][0].numpy() & inside).any((1, 2)).all()
    report = mask_report(scores, held_out, train, spec)
    assert report.area == side**2 / 16
    assert set(report.hit) == set(report.retention) == set(TITLES)
    assert report.flat("x")["x.hit.centre"] == report.hit["centre"]
    assert "points at it" in report.table().splitlines()[0]
    assert all(f"{report.hit[name]:.3f}" in report.table() for name in TITLES)


def test_hits_by_hand() -> None:
    """The middle of a patch of 2×2 cells of 4 pixels is the first pixel of its last cell."""
    regions = np.zeros((4, 16, 16), np.bool_)
    regions[0, 4, 8] = True  # a single pixel, which is the middle
    regions[1] = True
    regions[1, 4, 8] = False  # all but the middle
    regions[3, :, :8] = True  # the third image has no region; here the middle is one pixel too far right
    images = np.zeros((4, 1, 16, 16), np.uint8)
    held_out = ImageDataset("h", images, None, regions, np.arange(4), (), tuple("abcd"))
    cells = torch.zeros(4, 4, 4).bool()
    cells[:, 0:2, 1:3] = True
    elsewhere = cells.roll(-1, 2)
    found = hits({"agent": [cells], "both": [cells, elsewhere]}, held_out)
    assert found["agent"].tolist() == [1, 0, 0]
    # One cell to the left the middle is at column 4: another answer for all three.
    assert found["both"].tolist() == [0.5, 0.5, 0.5]
    assert hits({"agent": [cells]}, corners([-1, -1])) == {}


@pytest.mark.parametrize("side", range(1, 8))
def test_the_middle_of_a_patch_is_one_pixel_wherever_it_lies(side: int) -> None:
    grid, cell = 8, 4
    for corner in range(grid - side + 1):
        regions = np.zeros((1, 32, 32), np.bool_)
        middle = int((corner + side / 2) * cell)
        regions[0, middle, middle] = True
        data = ImageDataset("h", np.zeros((1, 1, 32, 32), np.uint8), None, regions, np.arange(1), (), ("a",))
        cells = torch.zeros(1, grid, grid).bool()
        cells[:, corner : corner + side, corner : corner + side] = True
        assert hits({"agent": [cells]}, data)["agent"].tolist() == [1]


def test_sets_of_cells_point_nowhere() -> None:
    report = mask_report(scores_for([0, 1]), corners([0, 1]), corners([0, 1]), SPEC)
    assert report.hit == {}
    assert "points" not in report.table()


# ---- the oracle ------------------------------------------------------------------------------------------------------


def outlined(n: int, grid: int = 8, cell: int = 4, empty: int = 0) -> ImageDataset:
    """n images of `grid`² cells with a rectangle each that ends between cells; the first `empty` have none."""
    rng, size = np.random.default_rng(0), grid * cell
    regions = np.zeros((n, size, size), np.bool_)
    for region in regions[empty:]:
        top, left = rng.integers(0, size - 10, 2)
        region[top : top + 9, left : left + 6] = True
    images, names = np.zeros((n, 1, size, size), np.uint8), tuple(map(str, range(n)))
    return ImageDataset("o", images, np.arange(n) % 2, regions, np.arange(n), ("no", "yes"), names)


def test_the_oracle_ranks_by_the_share_that_the_region_covers() -> None:
    regions = np.zeros((1, 8, 8), np.bool_)
    regions[0, :4, :4], regions[0, 3, 4:6], regions[0, 7, 0] = True, True, True
    images = np.zeros((1, 1, 8, 8), np.uint8)
    data = ImageDataset("o", images, None, regions, np.zeros(1, np.int64), (), ("a",))
    scores = oracle_scores(data, 2)
    assert scores.shape == (1, 2, 2)
    assert scores.dtype == np.float32
    # Less than a pixel's share is added to them.
    np.testing.assert_allclose(scores[0], [[1, 2 / 16], [1 / 16, 0]], atol=1 / 32)
    assert scores[0].ravel().argsort().tolist() == [3, 2, 1, 0]


def test_the_oracle_keeps_whole_regions_and_goes_on_with_what_is_near() -> None:
    data = outlined(60)
    scores = oracle_scores(data, 8)
    covered = np.asarray(data.regions).reshape(60, 8, 4, 8, 4).max((2, 4))
    for cells in (covered.sum((1, 2)).max(), 16, 30):
        mask = GridSpec((1, 32, 32), 8, int(cells)).best(torch.from_numpy(scores)).numpy()
        assert (mask >= covered).all()
        for one, region in zip(mask, covered, strict=True):
            inside, outside = (np.argwhere(where) for where in (one & ~region, ~one))
            away = [
                np.hypot(*(some[:, None] - np.argwhere(region)[None]).transpose(2, 0, 1)).min(1)
                for some in (inside, outside)
            ]
            assert max(away[0], default=0) <= min(away[1])


def test_chance_decides_the_oracles_ties_and_nothing_else() -> None:
    data = outlined(200)
    one, two = oracle_scores(data, 8, seed=0), oracle_scores(data, 8, seed=1)
    assert np.array_equal(one, oracle_scores(data, 8, seed=0))
    assert not np.array_equal(one, two)
    # Hardly two cells tie, none that is covered more ranks lower, and no corner is favoured among those that tied.
    assert np.mean([len(np.unique(image)) for image in one]) > 63.9
    shares = np.asarray(data.regions).reshape(200, 8, 4, 8, 4).mean((2, 4))
    order = one.reshape(200, -1).argsort(1)
    assert (np.diff(np.take_along_axis(shares.reshape(200, -1), order, 1), axis=1) >= 0).all()
    blank = outlined(400, empty=399)
    assert blank.regions is not None
    everywhere = np.ones_like(blank.regions)
    flat = oracle_scores(ImageDataset("f", blank.images, None, everywhere, blank.groups, (), blank.names), 8)
    first = GridSpec((1, 32, 32), 8, 16).best(torch.from_numpy(flat)).numpy().mean(0)
    np.testing.assert_allclose(first, 0.25, atol=0.11)  # five standard deviations of 400 draws


def test_who_has_no_region_is_given_that_of_another_and_shapes_do_not_tell_the_label() -> None:
    data = outlined(300, empty=100)
    scores = oracle_scores(data, 8)
    shares = np.asarray(data.regions)[100:].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    covered = {region.tobytes() for region in shares > 0}
    borrowed = [(image >= 1 / 16).tobytes() for image in scores[:100]]
    assert set(borrowed) <= covered
    assert len(set(borrowed)) > 30
    other = oracle_scores(data, 8, seed=1)[:100]
    assert sum(a != (b >= 1 / 16).tobytes() for a, b in zip(borrowed, other, strict=True)) > 80


@pytest.mark.parametrize("known", [False, True])
def test_an_oracle_without_any_region_is_refused(known: bool) -> None:
    data = outlined(3, empty=3)
    regions = data.regions if known else None
    with pytest.raises(DatasetError, match="has no known regions"):
        oracle_scores(ImageDataset("o", data.images, None, regions, data.groups, (), data.names), 8)
