"""What the synthetic images are drawn with: pixel axes, smooth noise, strokes, blobs and letters.

Every function works on a batch and in unit coordinates: x to the right and y down, both from 0 to 1 whatever the number
of pixels. Parameters of a shape are (N, 1, 1) float32, one for each image, and broadcast against the axes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

#: 5×7 pixel letters, one row a string.
_GLYPHS = {
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "+": (".....", "..#..", "..#..", "#####", "..#..", "..#..", "....."),
    "4": ("#..#.", "#..#.", "#..#.", "#####", "...#.", "...#.", "...#."),
    "7": ("#####", "....#", "...#.", "..#..", "..#..", ".#...", ".#..."),
}


class Draws:
    """Random parameters of a batch of images: every image's from its own generator, all handed out as (N, 1, 1).

    Args:
        uniforms: (N, K) float32 in [0, 1), row i drawn for image i. Column after column is used up.
    """

    def __init__(self, uniforms: Array) -> None:
        self._uniforms = uniforms
        self._next = 0

    def uniform(self, low: float, high: float) -> Array:
        """(N, 1, 1) float32, uniform between `low` and `high`."""
        column = self._uniforms[:, self._next, None, None]
        self._next += 1
        return np.float32(low) + np.float32(high - low) * column

    def chance(self, probability: float) -> Array:
        """(N, 1, 1) float32, 1 with `probability` and 0 otherwise."""
        return (self.uniform(0, 1) < probability).astype(np.float32)

    def sign(self) -> Array:
        """(N, 1, 1) float32, −1 or 1, equally often."""
        return 2 * self.chance(0.5) - 1

    def direction(self) -> tuple[Array, Array]:
        """Cosine and sine, each (N, 1, 1) float32, of an angle uniform over the circle."""
        return heading(self.uniform(0, 2 * np.pi))


@functools.lru_cache(maxsize=16)
def axes(size: int) -> tuple[Array, Array]:
    """The pixels' centres in unit coordinates: x (1, 1, size) and y (1, size, 1) float32."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return line[None, None, :], line[None, :, None]


@functools.lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> Array:
    # (size, cells + 3): cubic B-spline weights, every row scaled to unit length so that white noise keeps its variance.
    at = (np.arange(size) + 0.5)[:, None] / size * cells - np.arange(-1, cells + 2)[None, :]
    far = np.abs(at)
    weights = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.clip(2 - far, 0, None) ** 3 / 6)
    unit: Array = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    return unit


def noise_values(rows: int, columns: int) -> int:
    """How many random values `smooth_noise` needs for an image."""
    return (rows + 3) * (columns + 3)


def smooth_noise(values: Array, rows: int, columns: int, size: int) -> Array:
    """Gaussian noise of unit variance that is smooth over 1/rows by 1/columns of the image.

    Args:
        values: (N, noise_values(rows, columns)) standard normal float32.
        rows: waves from top to bottom, about.
        columns: waves from left to right, about.
        size: pixels on a side.

    Returns:
        (N, size, size) float32.
    """
    grid = values.reshape(len(values), rows + 3, columns + 3)
    result: Array = np.matmul(np.matmul(_spline(size, rows), grid), _spline(size, columns).T)
    return result


def octave_values(octaves: Sequence[int]) -> int:
    """How many random values `fractal_noise` needs for an image."""
    return sum(noise_values(k, k) for k in octaves)


def fractal_noise(values: Array, octaves: Sequence[int], size: int) -> Array:
    """About 1/f noise of unit variance: smooth noise summed over `octaves`, each weighted by its wavelength.

    Args:
        values: (N, octave_values(octaves)) standard normal float32.
        octaves: waves across the image, ascending.
        size: pixels on a side.

    Returns:
        (N, size, size) float32.
    """
    weights = 1 / np.array(octaves, np.float64)
    weights /= np.linalg.norm(weights)
    total = np.zeros((len(values), size, size), np.float32)
    start = 0
    for k, weight in zip(octaves, weights, strict=True):
        stop = start + noise_values(k, k)
        total += smooth_noise(values[:, start:stop] * np.float32(weight), k, k, size)
        start = stop
    return total


def local(x: Array, y: Array, origin: tuple[Array, Array], direction: tuple[Array, Array]) -> tuple[Array, Array]:
    """The pixels seen from `origin` looking along `direction`: how far along and how far across, (N, H, W) float32."""
    dx, dy = x - origin[0], y - origin[1]
    cos, sin = direction
    return dx * cos + dy * sin, dy * cos - dx * sin


def heading(angle: Array) -> tuple[Array, Array]:
    """Cosine and sine, each (N, 1, 1) float32, of `angle` in radians; 0 points to the right, π/2 down."""
    return np.cos(angle), np.sin(angle)


def cover(distance: Array, soft: float) -> Array:
    """How much of a pixel lies inside a shape, 0 to 1, (N, H, W) float32.

    Args:
        distance: (N, H, W) signed distance from the shape's edge in unit coordinates, negative inside. Overwritten.
        soft: width of the edge in unit coordinates; one pixel is plain anti-aliasing.
    """
    np.multiply(distance, np.float32(-1 / soft), out=distance)
    distance += np.float32(0.5)
    return np.clip(distance, 0, 1, out=distance)


def stroke(
    x: Array, y: Array, middle: tuple[Array, Array], direction: tuple[Array, Array], half: Array, width: Array
) -> Array:
    """Signed distance (N, H, W) float32 from a straight stroke with round ends.

    Args:
        x: the pixels' axis to the right, (1, 1, W).
        y: the pixels' axis downwards, (1, H, 1).
        middle: the stroke's middle point.
        direction: cosine and sine of its angle.
        half: half its length, unit coordinates.
        width: half its width, unit coordinates.
    """
    along, across = local(x, y, middle, direction)
    beyond = np.abs(along, out=along)
    beyond -= half
    np.maximum(beyond, 0, out=beyond)
    beyond *= beyond
    across *= across
    beyond += across
    np.sqrt(beyond, out=beyond)
    beyond -= width
    return beyond


@functools.lru_cache(maxsize=64)
def glyph(letter: str, height: int) -> npt.NDArray[np.bool_]:
    """(height, about 5/7 height) bool: a letter of "LR+47", scaled without smoothing."""
    bitmap = np.array([[c == "#" for c in row] for row in _GLYPHS[letter]])
    width = max(5, round(height * 5 / 7))
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 5 // width
    return bitmap[rows[:, None], columns[None, :]]


def stamp(images: Array, letters: Sequence[str], left: Array, top: Array, height: float, level: Array) -> None:
    """Burn one letter into each image, in place; "" burns nothing in.

    Args:
        images: (N, H, W) float32.
        letters: N letters of "LR+47".
        left: (N, 1, 1) its left edge, 0 (image's left) to 1 (as far right as it fits).
        top: (N, 1, 1) its upper edge, likewise.
        height: the letter's height in unit coordinates; at least seven pixels are used.
        level: (N, 1, 1) its brightness.
    """
    size = images.shape[1]
    for i, letter in enumerate(letters):
        if not letter:
            continue
        bitmap = glyph(letter, max(7, round(height * size)))
        h, w = bitmap.shape
        row, column = int(top[i, 0, 0] * (size - h)), int(left[i, 0, 0] * (size - w))
        images[i, row : row + h, column : column + w][bitmap] = level[i, 0, 0]
