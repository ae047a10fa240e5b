"""Synthetic images: reproducible, with a known region that neither brightness, position nor global statistics find."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maskaug.envs.busi import _class_names as busi_names
from maskaug.envs.dataset_registry import load_dataset
from maskaug.envs.drawing import axes, cover, fractal_noise, octave_values, smooth_noise, stroke
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.synthetic import CHUNK, CONTRAST, DIFFICULTIES, KINDS, PRESENCE, make_synthetic, render

Drawn = tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]

GRID = 8
KEPT = 16  # 25 % of the cells
#: Brightness and darkness; a mass in ultrasound is dark by nature, and dark shadows elsewhere only go so far.
BRIGHTEST, DARKEST = 0.45, {"radiograph": 0.45, "ultrasound": 0.55, "mr": 0.45}
#: Share of the change that lies in the region; a step shifts the rest of the shaft, a shadow falls below its mass.
LOCAL = {"radiograph": 0.5, "ultrasound": 0.5, "mr": 0.6}


@pytest.fixture(scope="module", params=KINDS)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    return (request.param, *render(request.param, "medium", 64, 3, np.arange(2400)))


def cells(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    n, h, w = values.shape
    summed: npt.NDArray[np.float64] = (
        values.astype(np.float64).reshape(n, GRID, h // GRID, GRID, w // GRID).sum((2, 4)).reshape(n, -1)
    )
    return summed


def retention(scores: npt.NDArray[np.float64], regions: npt.NDArray[np.bool_]) -> float:
    inside = cells(regions)
    best = np.argsort(-np.broadcast_to(scores, inside.shape), axis=1)[:, :KEPT]
    return float((np.take_along_axis(inside, best, 1).sum(1) / inside.sum(1)).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_image_depends_on_its_number_alone(kind: str, difficulty: str) -> None:
    n = CHUNK + 9
    images, labels, regions = render(kind, difficulty, 64, 5, np.arange(n))
    order = np.random.default_rng(0).permutation(n)
    shuffled = render(kind, difficulty, 64, 5, order)
    assert np.array_equal(images[order], shuffled[0])
    assert np.array_equal(labels[order], shuffled[1])
    assert np.array_equal(regions[order], shuffled[2])
    for i in (0, CHUNK - 1, CHUNK, n - 1):
        alone = render(kind, difficulty, 64, 5, [i])
        assert np.array_equal(alone[0][0], images[i])
        assert np.array_equal(alone[2][0], regions[i])
    assert not np.array_equal(render(kind, difficulty, 64, 6, [0])[0][0], images[0])


def test_nothing_global_is_drawn_from() -> None:
    np.random.seed(0)
    expected = np.random.random(3)
    np.random.seed(0)
    render("radiograph", "medium", 64, 0, [0, 1])
    assert np.array_equal(np.random.random(3), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [36, 37, 64, 100, 128])
def test_every_size(kind: str, size: int) -> None:
    images, labels, regions = render(kind, "medium", size, 0, np.arange(24))
    assert images.shape == regions.shape == (24, size, size)
    assert [str(a.dtype) for a in (images, labels, regions)] == ["uint8", "int64", "bool"]
    assert np.array_equal(regions.any((1, 2)), labels == 1)
    assert images.std((1, 2)).min() > 5
    # The scene does not change with the size.
    small = render(kind, "medium", 64, 0, np.arange(24))
    assert np.array_equal(labels, small[1])
    assert np.abs(regions.mean((1, 2)) - small[2].mean((1, 2))).max() < 0.012


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [36, 64, 128])
def test_classes_differ_inside_the_region(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every sign at zero a class 1 image is its class 0 twin; the difference must be visible, and local."""
    numbers = np.arange(60)
    images, labels, regions = render(kind, "medium", size, 0, numbers)
    monkeypatch.setitem(CONTRAST, (kind, "medium"), CONTRAST[kind, "medium"]._replace(sign=0.0, second=0.0))
    plain = render(kind, "medium", size, 0, numbers)[0]
    change = np.abs(images.astype(float) - plain)
    assert change[labels == 0].max() == 0
    ill = change[labels == 1]
    assert np.percentile(ill.max((1, 2)), 10) > 15
    inside = (ill * regions[labels == 1]).sum((1, 2)) / ill.sum((1, 2))
    assert inside.mean() > LOCAL[kind]


def test_labels_balanced_and_region_small(drawn: Drawn) -> None:
    _, _, labels, regions = drawn
    assert abs(labels.mean() - 0.5) < 0.04
    assert np.array_equal(regions.any((1, 2)), labels == 1)
    ill = regions[labels == 1]
    assert 0.03 < ill.mean() < 0.06
    assert retention(cells(ill), ill) > 0.98


def test_neither_brightness_nor_position_finds_it(drawn: Drawn) -> None:
    kind, images, labels, regions = drawn
    images, regions = images[labels == 1], regions[labels == 1]
    assert retention(cells(images), regions) < BRIGHTEST
    assert retention(-cells(images), regions) < DARKEST[kind]
    half = len(regions) // 2
    assert retention(cells(regions[:half]).mean(0), regions[half:]) < 0.40
    line = np.arange(GRID) - (GRID - 1) / 2
    assert retention(-(line[:, None] ** 2 + line[None, :] ** 2).ravel(), regions) < 0.40


def test_no_global_statistic_tells_the_class(drawn: Drawn) -> None:
    _, images, labels, _ = drawn
    histogram = np.stack([np.histogram(image, 16, (0, 256))[0] for image in images])
    features = np.column_stack([images.mean((1, 2)), images.std((1, 2)), histogram])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[:1600], labels[:1600])
    assert model.score(features[1600:], labels[1600:]) < 0.58  # chance .5, standard error .018


@pytest.mark.parametrize("kind", KINDS)
def test_difficulties_are_in_order(kind: str) -> None:
    signs = [CONTRAST[kind, difficulty].sign for difficulty in DIFFICULTIES]
    assert signs == sorted(signs, reverse=True)
    # The same scene, labels and regions at every difficulty.
    easy, hard = (render(kind, difficulty, 64, 0, np.arange(20)) for difficulty in ("easy", "hard"))
    assert np.array_equal(easy[1], hard[1])
    assert np.array_equal(easy[2], hard[2])


@pytest.mark.parametrize("kind", KINDS)
def test_make_synthetic(kind: str) -> None:
    dataset = make_synthetic(kind=kind, n=10, image_size=48, channels=3, seed=2, start=7)
    assert dataset.images.shape == (10, 3, 48, 48)
    assert np.array_equal(dataset.images[:, 0], dataset.images[:, 2])
    assert (dataset.name, dataset.source) == (f"synthetic-{kind}", "synthetic")
    assert dataset.names[0] == f"synthetic-{kind}/medium/seed2/7"
    assert np.array_equal(dataset.groups, np.arange(7, 17))
    assert len(dataset.class_names) == 2
    one = make_synthetic(kind=kind, n=3, image_size=48, seed=2, start=9)
    assert one.images.shape == (3, 1, 48, 48)
    assert np.array_equal(one.images[:, 0], dataset.images[2:5, 0])


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"kind": "ct"}, "radiograph, ultrasound, mr"),
        ({"difficulty": "trivial"}, "easy, medium, hard"),
        ({"image_size": 35}, "at least 36"),
        ({"image_size": 64.0}, "at least 36"),
        ({"channels": 2}, "1 \\(grey\\) or 3"),
        ({"n": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"start": -1}, "at least 0"),
    ],
)
def test_bad_arguments(keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_synthetic(**keywords)  # type: ignore[arg-type]


def test_bad_numbers() -> None:
    with pytest.raises(ConfigurationError, match="number the images from 0"):
        render("mr", "easy", 64, 0, [0, -1])
    assert len(render("mr", "easy", 64, 0, [])[0]) == 0


def test_noise_has_unit_variance_and_is_smooth() -> None:
    rng = np.random.default_rng(0)
    noise = fractal_noise(rng.standard_normal((200, octave_values((3, 12))), np.float32), (3, 12), 40)
    assert noise.shape == (200, 40, 40)
    assert noise.dtype == np.float32
    assert np.abs(noise.std(0) - 1).max() < 0.25
    flat = smooth_noise(rng.standard_normal((50, 6 * 4), np.float32), 3, 1, 40)
    assert np.abs(np.diff(flat, axis=2)).max() < np.abs(np.diff(flat, axis=1)).max()


def test_stroke_measures_distance() -> None:
    x, y = axes(64)
    point = np.full((1, 1, 1), 0.5, np.float32)
    one, none = np.ones_like(point), np.zeros_like(point)
    distance = stroke(x, y, (point, point), (one, none), 0.2 * one, 0.1 * one)
    assert distance.shape == (1, 64, 64)
    # (x, y) = (.5078, .1016): straight above the stroke; (.9922, .5078): beyond its end.
    assert distance[0, 6, 32] == pytest.approx(0.5 - 6.5 / 64 - 0.1, abs=1e-6)
    assert distance[0, 32, 63] == pytest.approx(np.hypot(63.5 / 64 - 0.7, 0.5 / 64) - 0.1, abs=1e-6)
    area = cover(distance, 1 / 64).mean()
    assert area == pytest.approx(0.4 * 0.2 + np.pi * 0.1**2, abs=2e-3)


# ---- is there a mass at all? -----------------------------------------------------------------------------------------


def presence(size: int = 64, n: int = 300, difficulty: str = "medium") -> Drawn:
    return ("ultrasound", *render("ultrasound", difficulty, size, 0, np.arange(n), "presence"))


def test_presence_depends_on_its_number_alone() -> None:
    n = CHUNK + 9
    _, images, labels, regions = presence(n=n)
    order = np.random.default_rng(0).permutation(n)
    shuffled = render("ultrasound", "medium", 64, 0, order, "presence")
    assert np.array_equal(shuffled[0], images[order])
    assert np.array_equal(shuffled[1], labels[order])
    assert np.array_equal(shuffled[2], regions[order])
    # The same scene as for the diagnosis, with another answer to another question.
    other = render("ultrasound", "medium", 64, 0, np.arange(n))
    assert np.array_equal(other[1], labels)
    assert np.array_equal(other[2], regions)
    assert (images != other[0]).any((1, 2)).mean() > 0.9


@pytest.mark.parametrize("size", [36, 64])
def test_class_0_has_no_masses_and_class_1_dark_ones(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, images, labels, regions = presence(size)
    assert np.array_equal(regions.any((1, 2)), labels == 1)
    assert 0.4 < labels.mean() < 0.6
    # Without any masses the same scenes: class 0 is the same to the bit, class 1 darker where its masses were.
    monkeypatch.setitem(PRESENCE, "medium", 0.0)
    bare = presence(size)[1]
    assert np.array_equal(images[labels == 0], bare[labels == 0])
    change = images[labels == 1].astype(float) - bare[labels == 1]
    inside = regions[labels == 1]
    assert np.percentile([c[r].mean() for c, r in zip(change, inside, strict=True)], 5) < -15
    assert change.mean() < 0
    # Two masses of one kind: the change is in the region and in as much elsewhere.
    share = (-change * inside).sum() / (-change).clip(0).sum()
    assert 0.3 < share < 0.7
    # And in the image itself: dark against its surroundings.
    darker = [
        image[~region].mean() - image[region].mean() for image, region in zip(images[labels == 1], inside, strict=True)
    ]
    assert np.mean(darker) > 15
    assert np.mean(np.array(darker) > 0) > 0.75


def test_difficulty_is_how_dark_the_masses_are() -> None:
    depth: dict[str, float] = {}
    healthy: list[npt.NDArray[np.uint8]] = []
    for difficulty in DIFFICULTIES:
        _, images, labels, regions = presence(36, 120, difficulty)
        ill = labels == 1
        depth[difficulty] = np.mean(
            [i[r].mean() - i[~r].mean() for i, r in zip(images[ill], regions[ill], strict=True)]
        )
        healthy.append(images[~ill])
    assert np.array_equal(healthy[0], healthy[1])
    assert np.array_equal(healthy[0], healthy[2])
    assert depth["easy"] < depth["medium"] - 5 < depth["hard"] - 10


def test_presence_as_a_data_set() -> None:
    data = make_synthetic(kind="ultrasound", task="presence", n=5, image_size=48, seed=2, start=7)
    assert data.class_names == busi_names("clean", "presence", None) == ("absent", "present")
    assert (data.name, data.names[0]) == (
        "synthetic-ultrasound-presence",
        "synthetic-ultrasound-presence/medium/seed2/7",
    )
    diagnosis = make_synthetic(kind="ultrasound", n=5, image_size=48, seed=2, start=7)
    assert not set(data.names) & set(diagnosis.names)
    assert data.digest != diagnosis.digest
    for kind in ("radiograph", "mr"):
        with pytest.raises(ConfigurationError, match=f"is for kind='ultrasound'; a {kind} image's label asks that"):
            make_synthetic(kind=kind, task="presence")
    with pytest.raises(ConfigurationError, match="task='mood' is unknown; use one of diagnosis, presence"):
        make_synthetic(kind="ultrasound", task="mood")
    split = load_dataset("synthetic", split="val", kind="ultrasound", task="presence", n=40, image_size=36)
    assert split.class_names == ("absent", "present")
