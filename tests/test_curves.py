"""Deletion and insertion curves of classifiers of which every probability is known beforehand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaug.benchmarks.curves import CURVE_FILLS, curve_aucs, masking_curves
from maskaug.envs.errors import ConfigurationError, JudgeError
from maskaug.envs.masking import filler, hide, keep
from maskaug.envs.networks import SmallClassifier, seeded_weights, to_float

GRID, CELL = 4, 2
SIZE = GRID * CELL
#: what a classifier that is sure gives to its class, with logits (0, ±2).
SURE = 1 / (1 + np.exp(-2))


class OneCell(nn.Module):
    """Logits (0, 2) where the mean of one cell is above ½, else (0, −2); it remembers what it was asked."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        top, left = divmod(cell, GRID)
        self.block = np.s_[top * CELL : (top + 1) * CELL, left * CELL : (left + 1) * CELL]
        self.seen: list[Tensor] = []
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.modes.add(self.training)
        bright = (images[:, 0][:, *self.block].mean((1, 2)) > 0.5).float()
        return torch.stack([torch.zeros_like(bright), 4 * bright - 2], 1)


class Brightness(nn.Module):
    """Logits (0, log odds) so that the probability of class 1 is a quarter plus half of the image's mean."""

    def forward(self, images: Tensor) -> Tensor:
        p = 0.25 + images.double().mean((1, 2, 3)) / 2
        return torch.stack([torch.zeros_like(p), (p / (1 - p)).log()], 1)


def white(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((n, 1, SIZE, SIZE), 255, np.uint8)


def ranked(*orders: list[int], grid: int = GRID) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Scores of which the cells in `orders` are the best, in this order; the others follow by number."""
    scores = np.zeros((len(orders), grid * grid), np.float32)
    for row, first in zip(scores, orders, strict=True):
        row[[*first, *(c for c in range(grid * grid) if c not in first)]] = np.arange(grid * grid)[::-1]
    return scores.reshape(-1, grid, grid)


def test_a_classifier_of_one_cell_has_the_areas_computed_by_hand() -> None:
    """The cell is at place r: hidden (or shown) from step r + 1 on, and the trapezoid there counts half of each."""
    places = [0, 5, 15]
    scores = np.stack([ranked([*[c for c in range(16) if c != 6][:r], 6])[0] for r in places])
    found = masking_curves(OneCell(6), white(3), {"a": scores}, "zero")["a"]
    np.testing.assert_allclose(found.shares, np.arange(17) / 16)
    for i, r in enumerate(places):
        np.testing.assert_allclose(found.deletion[i], [SURE] * (r + 1) + [1 - SURE] * (16 - r))
        np.testing.assert_allclose(found.insertion[i], [1 - SURE] * (r + 1) + [SURE] * (16 - r))
        areas = found.aucs()
        assert areas["deletion"][i] == pytest.approx((SURE * (r + 0.5) + (1 - SURE) * (15.5 - r)) / 16)
        assert areas["insertion"][i] == pytest.approx((SURE * (15.5 - r) + (1 - SURE) * (r + 0.5)) / 16)
    assert found.insertion.mean(axis=0)[0] == pytest.approx(1 - SURE)


def test_the_class_followed_is_the_predicted_one_unless_labels_say_otherwise() -> None:
    images = white(2)
    images[1] = 0  # the classifier says 0, and nothing that is hidden in black changes that
    scores = ranked([6], [6])
    predicted = curve_aucs(OneCell(6), images, {"a": scores}, "zero")["a"]
    assert predicted["deletion"] == pytest.approx([(SURE * 0.5 + (1 - SURE) * 15.5) / 16, SURE])
    labelled = curve_aucs(OneCell(6), images, {"a": scores}, "zero", labels=np.array([0, 1]))["a"]
    assert labelled["deletion"] == pytest.approx(1 - predicted["deletion"])
    assert labelled["insertion"] == pytest.approx(1 - predicted["insertion"])


def test_where_every_cell_counts_alike_the_order_does_not_matter() -> None:
    """The probability is .75 clean and falls in a straight line to .25: an area of ½, whatever the ranking."""
    rng = np.random.default_rng(0)
    found = curve_aucs(Brightness(), white(5), {"a": rng.random((5, 4, 4)), "b": rng.random((5, 4, 4))}, "zero")
    for name in ("a", "b"):
        assert found[name]["deletion"] == pytest.approx(0.5)
        assert found[name]["insertion"] == pytest.approx(0.5)


def test_every_point_has_the_area_that_it_says() -> None:
    """With logits of the mean the probability tells how many white cells were left, at each step."""
    for steps, counts in (
        (16, range(17)),
        (4, range(0, 17, 4)),
        (5, (0, 3, 6, 10, 13, 16)),
        (1, (0, 16)),
        (99, range(17)),
    ):
        found = masking_curves(Brightness(), white(2), {"a": ranked([3], [9])}, "zero", steps=steps)["a"]
        np.testing.assert_allclose(found.shares, np.array(counts) / 16)
        for i in range(2):
            np.testing.assert_allclose(found.deletion[i], 0.75 - found.shares / 2)
            np.testing.assert_allclose(found.insertion[i], 0.25 + found.shares / 2)


def test_unequal_steps_are_weighed_by_their_width() -> None:
    """Five steps over 16 cells are of 3, 3, 4, 3, 3 cells; the one cell goes with the third."""
    scores = ranked([0, 1, 2, 3, 4, 5, 6])
    found = curve_aucs(OneCell(6), white(1), {"a": scores}, "zero", steps=5)["a"]
    low = 1 - SURE
    assert found["deletion"][0] == pytest.approx((SURE * 6 + (SURE + low) / 2 * 4 + low * 6) / 16)
    assert curve_aucs(OneCell(6), white(1), {"a": scores}, "zero")["a"]["deletion"][0] != found["deletion"][0]


@pytest.mark.parametrize("fill", CURVE_FILLS)
def test_a_curve_is_what_the_classifier_says_of_each_view(fill: str) -> None:
    """Step by step, one image at a time, with the functions of the game."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    scores = rng.random((3, 4, 4))
    with seeded_weights(0):
        model = SmallClassifier(3, 5)
    found = masking_curves(model, images, {"a": scores}, fill)["a"]
    with torch.no_grad():
        for i in range(3):
            image = torch.from_numpy(images[i : i + 1])
            chosen = int(model(to_float(image)).argmax())
            for k in range(17):
                best = np.argsort(-scores[i].ravel())[:k]
                cells = np.zeros(16, np.bool_)
                cells[best] = True
                mask = torch.from_numpy(np.kron(cells.reshape(4, 4), np.ones((4, 4)))[None] > 0)
                for curve, view in ((found.deletion, hide), (found.insertion, keep)):
                    shown = to_float(view(image, mask, filler(image, fill)))
                    expected = float(model(shown).double().softmax(1)[0, chosen])
                    assert curve[i, k] == pytest.approx(expected, abs=1e-6)


def test_the_filling_decides_what_is_seen() -> None:
    """Three of eight rows are white. The blur's rows: ¾ white and black, and between them eighths of that, rounded."""
    images = white(1)
    images[0, 0, 3:] = 0
    means = {"zero": 0, "mean": 96, "blur": (191 + 191 + 167 + 120 + 72 + 24) / 8}
    for fill, mean in means.items():
        found = masking_curves(Brightness(), images, {"a": ranked([0])}, fill, labels=np.array([1]))["a"]
        assert found.deletion[0, -1] == found.insertion[0, 0] == pytest.approx(0.25 + mean / 255 / 2)
        # The first cell is white; with the blur it was ¾ white already.
        cell = {"zero": 255, "mean": 255 - 96, "blur": 255 - 191}[fill]
        assert found.insertion[0, 1] == pytest.approx(0.25 + (mean + cell / 16) / 255 / 2)


def test_draws_are_averaged() -> None:
    first, last = ranked([6]), ranked([c for c in range(16) if c != 6])
    one, two, both = (
        curve_aucs(OneCell(6), white(1), {"a": draws}, "zero")["a"]["deletion"][0]
        for draws in (first, last[None], np.stack([first, last]))
    )
    assert one < 0.2 < 0.8 < two
    assert both == pytest.approx((one + two) / 2)


def test_a_ranking_that_knows_the_cell_beats_chance_and_its_opposite() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random((200, 10, 4, 4))
    knows = ranked(*[[6]] * 10)
    found = curve_aucs(OneCell(6), white(10), {"knows": knows, "chance": chance, "not": -knows}, "zero")
    deletion, insertion = (
        {name: areas[what].mean() for name, areas in found.items()} for what in ("deletion", "insertion")
    )
    assert deletion["knows"] < deletion["chance"] < deletion["not"]
    assert insertion["knows"] > insertion["chance"] > insertion["not"]
    # Every place is equally likely: on average the curve is a straight line.
    assert deletion["chance"] == pytest.approx(0.5, abs=0.02)


def test_cells_that_tie_are_in_an_order_of_chance() -> None:
    same = np.zeros((300, 4, 4))
    found = {seed: curve_aucs(OneCell(0), white(300), {"a": same, "b": same}, "zero", seed=seed) for seed in (0, 1)}
    # Were the first cell always the first, the areas would all be about .15.
    assert found[0]["a"]["deletion"].mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(found[0]["a"]["deletion"], found[0]["b"]["deletion"])
    assert (found[0]["a"]["deletion"] != found[1]["a"]["deletion"]).any()
    again = curve_aucs(OneCell(0), white(300), {"a": same}, "zero", seed=0)
    np.testing.assert_array_equal(again["a"]["deletion"], found[0]["a"]["deletion"])
    # What does not tie is not for chance to decide.
    scores = ranked(*[[0]] * 20)
    one, other = (curve_aucs(OneCell(0), white(20), {"a": scores}, "zero", seed=s)["a"]["deletion"] for s in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_all_rankings_share_what_does_not_depend_on_them() -> None:
    """Clean, hidden, and two views a step and ranking between the ends; a few images at a time."""
    judge = OneCell(6)
    curve_aucs(judge, white(10), {"a": ranked(*[[6]] * 10), "b": ranked(*[[5]] * 10)}, "zero")
    assert len(judge.seen) == 2 + 2 * 2 * 15


def test_parts_of_the_images_and_several_grids_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 1, SIZE, SIZE), dtype=np.uint8)
    rankings = {"fine": rng.integers(0, 3, (11, 4, 4)).astype(float), "coarse": rng.integers(0, 3, (2, 11, 2, 2)) / 1}
    whole = masking_curves(Brightness(), images, rankings, "zero")
    assert {name: curves.deletion.shape for name, curves in whole.items()} == {"fine": (11, 17), "coarse": (11, 5)}
    monkeypatch.setattr("maskaug.benchmarks.curves.at_once", lambda height, width: 4)
    parts = masking_curves(Brightness(), images, rankings, "zero")
    alone = masking_curves(Brightness(), images, {"coarse": rankings["coarse"]}, "zero")
    for name, curves in whole.items():
        np.testing.assert_array_equal(parts[name].deletion, curves.deletion)
        np.testing.assert_array_equal(parts[name].insertion, curves.insertion)
    np.testing.assert_array_equal(alone["coarse"].deletion, whole["coarse"].deletion)


@pytest.mark.parametrize("training", [True, False])
def test_the_classifier_is_left_as_it_was(training: bool) -> None:
    judge = OneCell(6).train(training)
    curve_aucs(judge, white(1), {"a": ranked([6])}, "zero")
    assert judge.modes == {False}
    assert judge.training is training
    judge.train(training)
    with pytest.raises(ConfigurationError, match="knows 2 classes"):
        curve_aucs(judge, white(1), {"a": ranked([6])}, "zero", labels=np.array([2]))
    assert judge.training is training


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 2), torch.nan)


class Features(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize("model", [NotFinite(), Features()])
def test_a_classifier_that_is_none_is_refused(model: nn.Module) -> None:
    with pytest.raises(JudgeError, match="finite logits"):
        curve_aucs(model, white(1), {"a": ranked([6])}, "zero")


def test_what_does_not_fit_is_refused_before_anything_is_asked() -> None:
    judge, good = OneCell(6), ranked([6], [6])
    for rankings, said in (
        ({}, "at least one ranking"),
        ({"a": good, "b": good[:1]}, "ranking 'b' must be"),
        ({"a": good[:, :2]}, "ranking 'a' must be"),
        ({"a": good[0]}, "ranking 'a' must be"),
        ({"a": np.zeros((0, 2, 4, 4))}, "ranking 'a' must be"),
        ({"a": np.zeros((2, 3, 3))}, "does not divide images of 8×8"),
        ({"a": np.zeros((2, 0, 0))}, "does not divide"),
        ({"a": np.where(good == 3, np.nan, good)}, "not finite"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            curve_aucs(judge, white(2), rankings, "zero")
    with pytest.raises(ConfigurationError, match="at least one ranking and one image"):
        curve_aucs(judge, white(0), {"a": good[:0]}, "zero")
    for fill in ("noise", "pink"):
        with pytest.raises(ConfigurationError, match=f"fill='{fill}' is not for curves"):
            curve_aucs(judge, white(2), {"a": good}, fill)
    with pytest.raises(ConfigurationError, match="steps=0"):
        curve_aucs(judge, white(2), {"a": good}, "zero", steps=0)
    for labels in (np.array([0]), np.array([0.0, 1.0]), np.array([0, -1])):
        with pytest.raises(ConfigurationError, match="labels must be the classes"):
            curve_aucs(judge, white(2), {"a": good}, "zero", labels=labels)
    assert judge.seen == []
