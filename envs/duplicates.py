"""Pictures that are the same: a perceptual hash of each, and the pairs that are alike among tens of thousands.

Two stages, because pictures of one kind (radiographs, slices) look alike: hashes propose pairs, fine detail decides.
Copies that are flipped, rotated, inverted, cropped or have a border are other pictures to both, and are not found.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from maskaug.envs.images import resize

#: Side of the thumbnails that detail is compared on.
THUMBNAIL = 32
#: Two pictures are near-duplicates if at most so many of the 256 bits of their hashes differ, …
DISTANCE = 40
#: … and the fine detail of their thumbnails correlates at least so much. Measured with both: a copy saved as JPEG
#: (quality 40 to 95), halved, doubled, stretched, darkened, brightened or with noise differs in 20 bits at most (.97);
#: a gamma of .7 in 34 (.95). Different pictures differ in 80 bits at least (BUSI), 68 (synthetic radiographs), 48
#: (synthetic MR), with detail up to .78. Of the pairs that `maskaug.envs.busi` finds with rules made for BUSI, which
#: include one lesion seen twice, these find two thirds, and none besides.
DETAIL = 0.85

#: Standard deviation of the grey values below which a picture shows nothing.
BLANK = 1.0

_SIDE = 64
_WORDS = 4
_BLOCK = 128


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a picture is known again by.

    Attributes:
        pixels: a digest of all its values; two pictures that were decoded to the same have the same one.
        bits: its `picture_hash`, (4,) uint64.
        thumbnail: (32, 32) uint8.
        blank: whether all of it has nearly one brightness, so that there is nothing to know it by.
    """

    pixels: bytes
    bits: npt.NDArray[np.uint64]
    thumbnail: npt.NDArray[np.uint8]
    blank: bool


def fingerprint(image: npt.NDArray[np.uint8]) -> Fingerprint:
    """What a picture is known again by.

    Args:
        image: (C, H, W); of several channels their mean is hashed.
    """
    grey = image.mean(axis=0).astype(np.uint8)
    return Fingerprint(
        hashlib.sha256(np.ascontiguousarray(image).data).digest(),
        picture_hash(grey),
        resize(grey, THUMBNAIL),
        bool(grey.std() < BLANK),
    )


def picture_hash(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """256 bits that stay the same when a picture is resized, re-compressed, brightened or darkened.

    The signs, around their median, of the 16×16 lowest frequencies of the discrete cosine transform.

    Args:
        image: (H, W) grey values.

    Returns:
        (4,) uint64.
    """
    low = cv2.dct(resize(image, _SIDE).astype(np.float32))[:16, :16].ravel()
    # The picture's mean is no part of what it shows.
    low[0] = 0
    return np.packbits(low > np.median(low)).view(np.uint64)


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
    apart: npt.NDArray[np.int64] | None = None,
    distance: int = DISTANCE,
    detail: float = DETAIL,
) -> npt.NDArray[np.int64]:
    """The pairs i < j of pictures that show the same, (M, 2), in order.

    Args:
        hashes: (N, 4), from `picture_hash`.
        thumbnails: (N, h, w), of the same pictures.
        apart: (N,) numbers: pictures that share one are not compared. None: all are.
        distance: bits that may differ.
        detail: the least correlation of fine detail.
    """
    n = len(hashes)
    words = np.ascontiguousarray(hashes.T)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(n, start + _BLOCK))
        differing = np.zeros((rows.stop - start, n - start), np.uint16)
        for word in range(_WORDS):
            differing += np.bitwise_count(words[word, rows, None] ^ words[word, None, start:])
        i, j = np.nonzero(differing <= distance)
        i, j = i + start, j + start
        keep = i < j
        if apart is not None:
            keep &= apart[i] != apart[j]
        i, j = i[keep], j[keep]
        # In pieces: a folder of one picture a thousand times proposes millions of pairs.
        for at in range(0, len(i), 4096):
            a, b = i[at : at + 4096], j[at : at + 4096]
            sure = _correlation(thumbnails[a], thumbnails[b]) >= detail
            found.append(np.stack([a[sure], b[sure]], axis=1))
    return np.concatenate(found)


def clusters(pairs: npt.NDArray[np.int64], n: int) -> list[list[int]]:
    """Pairs (M, 2) of the numbers below `n` → the chains that they make, each ascending, by their first member."""
    if not len(pairs):
        return []
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return alike(connected_components(graph, directed=False)[1].tolist())


def alike(values: Sequence[object]) -> list[list[int]]:
    """The places of every value that is there more than once, ascending, by the first place."""
    places: dict[object, list[int]] = {}
    for i, value in enumerate(values):
        places.setdefault(value, []).append(i)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def _correlation(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    # Without the broad shading that all pictures of one kind share.
    x, y = _fine(a), _fine(b)
    norms = np.sqrt((x**2).sum(axis=(1, 2)) * (y**2).sum(axis=(1, 2)))
    product: npt.NDArray[np.float64] = (x * y).sum(axis=(1, 2)) / np.maximum(norms, 1e-6)
    return product


def _fine(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = thumbnails.astype(np.float32)
    fine = values - np.stack([cv2.GaussianBlur(t, (0, 0), 2) for t in values])
    centred: npt.NDArray[np.float32] = fine - fine.mean(axis=(1, 2), keepdims=True)
    return centred
