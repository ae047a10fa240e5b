"""Which ultrasound pictures show the same: thumbnails → groups."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from maskaug.envs.images import resize

#: Two pictures show the same if their standardised 32 × 32 thumbnails correlate more than the first, or the fine detail
#: of the thumbnails more than the second, or that detail, best shifted by up to `_SHIFT` pixels, more than the third.
#: Chosen by looking at the real pairs: just above is one lesion seen twice, just below are two different ones.
#: That makes 584 groups of the 780 pictures, 8 of them with two labels.
SAME = (0.945, 0.56, 0.63)
_SHIFT = 4
_THUMBNAIL = 32


def thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(H, W) uint8 → (32, 32) float32, of the whole picture, squeezed: what `near_duplicates` compares."""
    small: npt.NDArray[np.float32] = resize(image.astype(np.float32), _THUMBNAIL)
    return small


def near_duplicates(
    thumbnails: npt.NDArray[np.float32], same: tuple[float, float, float] = SAME
) -> npt.NDArray[np.int64]:
    """(N, h, w) float32 thumbnails → (N,) int64 group numbers: chains of pairs that are alike by one of `SAME`'s rules.

    A group's number is the index of its first member. Contrast and brightness do not matter.
    """
    plain, still, shifted = same
    # Without the broad shading that all ultrasound shares, what is left is the tissue itself.
    detail = np.stack([t - cv2.GaussianBlur(t, (0, 0), 3) for t in thumbnails])
    alike = (_correlation(thumbnails, thumbnails) > plain) | (_correlation(detail, detail) > still)
    h, w = thumbnails.shape[1:]
    for dy in range(_SHIFT + 1):
        for dx in range(-_SHIFT, _SHIFT + 1):
            here = detail[:, dy:, max(0, dx) : w + min(0, dx)]
            there = detail[:, : h - dy, max(0, -dx) : w + min(0, -dx)]
            alike |= _correlation(here, there) > shifted
    group = np.arange(len(thumbnails))
    for i, j in np.argwhere(np.triu(alike | alike.T, 1)):
        low, high = sorted((int(group[i]), int(group[j])))
        group[group == high] = low
    return group.astype(np.int64)


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    flat = [x.reshape(len(x), -1) - x.mean(axis=(1, 2))[:, None] for x in (a, b)]
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in flat)
    product: npt.NDArray[np.float32] = first @ second.T
    return product
