"""Pictures that show the same are found whatever was done to the file, and different ones are not taken for them."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from maskaug.envs.duplicates import THUMBNAIL, alike, clusters, fingerprint, near_pairs, picture_hash
from maskaug.envs.duplicates import __doc__ as duplicates_text
from maskaug.envs.images import resize
from maskaug.envs.synthetic import render

Picture = npt.NDArray[np.uint8]


def jpeg(image: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def sized(image: Picture, height: float, width: float) -> Picture:
    h, w = image.shape
    return np.asarray(resize(image, (round(h * height), round(w * width))))


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "jpeg 90": lambda image: jpeg(image, 90),
    "jpeg 40": lambda image: jpeg(image, 40),
    "halved": lambda image: sized(image, 0.5, 0.5),
    "doubled": lambda image: sized(image, 2, 2),
    "stretched": lambda image: sized(image, 0.8, 1.1),
    "brightened": lambda image: np.clip(image * 1.15 + 15, 0, 255).astype(np.uint8),
    "darkened": lambda image: (image * 0.7).astype(np.uint8),
    "halved, brightened, jpeg 75": lambda image: jpeg(
        np.clip(sized(image, 0.5, 0.5) * 1.1 + 10, 0, 255).astype(np.uint8), 75
    ),
}


def pairs(images: list[Picture], apart: npt.NDArray[np.int64] | None = None) -> list[tuple[int, int]]:
    seen = [fingerprint(resize(image, 256)[None]) for image in images]
    found = near_pairs(np.stack([s.bits for s in seen]), np.stack([s.thumbnail for s in seen]), apart)
    return [(int(i), int(j)) for i, j in found]


@pytest.mark.parametrize("kind", ["radiograph", "ultrasound", "mr"])
def test_copies_are_found_and_nothing_else(kind: str) -> None:
    # 100 of one kind, which look alike, and the copies of ten of them.
    images = list(render(kind, "medium", 192, 0, np.arange(100))[0])
    for copy in COPIES.values():
        images += [copy(image) for image in images[:10]]
    found = set(pairs(images))
    expected = {(i, 100 + 10 * c + i) for i in range(10) for c in range(len(COPIES))}
    assert expected <= found
    assert all(j >= 100 and i % 10 == j % 10 and (i < 10 or i >= 100) for i, j in found)


@pytest.mark.parametrize(
    "change",
    [
        np.fliplr,
        np.flipud,
        np.rot90,
        lambda image: 255 - image,
        lambda image: np.pad(image, 24),
        lambda image: image[20:, 20:],
    ],
)
def test_copies_that_are_not_found_are_those_that_are_said_not_to_be(change: Callable[[Picture], Picture]) -> None:
    image = render("radiograph", "medium", 192, 0, np.arange(1))[0][0]
    assert pairs([image, image]) == [(0, 1)]
    assert pairs([image, np.ascontiguousarray(change(image))]) == []
    assert duplicates_text is not None
    assert "flipped, rotated, inverted, cropped or have a border" in duplicates_text


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_near_but_not_the_same(name: str) -> None:
    image = render("radiograph", "medium", 192, 3, np.arange(1))[0][0]
    first, second = (fingerprint(resize(x, 256)[None]) for x in (image, COPIES[name](image)))
    assert first.pixels != second.pixels
    assert first.pixels == fingerprint(resize(image, 256)[None]).pixels
    assert int(np.bitwise_count(first.bits ^ second.bits).sum()) <= 20


def test_both_stages_count() -> None:
    image = render("radiograph", "medium", 192, 0, np.arange(2))[0]
    seen = [fingerprint(resize(x, 256)[None]) for x in image]
    bits = np.stack([seen[0].bits, seen[0].bits])
    thumbnails = np.stack([s.thumbnail for s in seen])
    # One hash, two pictures: detail decides. And the hash proposes: other bits are no pair, whatever the detail.
    assert len(near_pairs(bits, thumbnails)) == 0
    assert len(near_pairs(bits, thumbnails, detail=-1.0)) == 1
    assert len(near_pairs(bits, thumbnails[[0, 0]])) == 1
    bits[1] = ~bits[1]
    assert len(near_pairs(bits, thumbnails[[0, 0]])) == 0
    assert len(near_pairs(bits, thumbnails[[0, 0]], distance=256)) == 1


def test_what_shares_a_group_is_not_compared() -> None:
    image = render("mr", "medium", 96, 0, np.arange(1))[0][0]
    assert pairs([image] * 3) == [(0, 1), (0, 2), (1, 2)]
    assert pairs([image] * 3, np.array([7, 7, 8])) == [(0, 2), (1, 2)]


def test_a_hash_has_256_bits_and_forgets_brightness() -> None:
    image = render("ultrasound", "medium", 96, 0, np.arange(1))[0][0] // 2
    assert picture_hash(image).shape == (4,)
    assert picture_hash(image).dtype == np.uint64
    assert np.array_equal(picture_hash(image), picture_hash(image + 60))
    assert not np.array_equal(picture_hash(image), picture_hash(np.ascontiguousarray(image.T)))


def test_blank_is_what_shows_nothing() -> None:
    flat = np.full((1, 64, 64), 7, np.uint8)
    assert fingerprint(flat).blank
    flat[0, :32] = 12
    assert not fingerprint(flat).blank
    assert fingerprint(flat).thumbnail.shape == (THUMBNAIL, THUMBNAIL)


def test_colour_counts_as_pixels() -> None:
    image = render("mr", "medium", 64, 0, np.arange(1))[0]
    colours = np.concatenate([image, image, image])
    turned = colours.copy()
    turned[0, 5, 5] ^= 1
    assert fingerprint(colours).pixels != fingerprint(turned).pixels
    assert np.array_equal(fingerprint(colours).bits, fingerprint(image).bits)


def test_chains_are_clusters() -> None:
    assert clusters(np.array([[5, 2], [2, 0], [3, 4]]), 7) == [[0, 2, 5], [3, 4]]
    assert clusters(np.empty((0, 2), np.int64), 7) == []
    assert alike(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]


def test_one_copy_is_found_among_thousands() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, (8000, 4), dtype=np.uint64)
    thumbnails = rng.integers(0, 256, (8000, THUMBNAIL, THUMBNAIL), dtype=np.uint8)
    bits[7999], thumbnails[7999] = bits[3] ^ np.uint64(1), thumbnails[3]
    assert near_pairs(bits, thumbnails).tolist() == [[3, 7999]]
