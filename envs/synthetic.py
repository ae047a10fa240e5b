"""Synthetic radiographs, ultrasound and MR images with a known region, for tests, demonstrations and benchmarks.

Both classes are one and the same scene, drawn alike but for one local thing: the shaft of a bone near a joint is broken
(radiograph), the rim of a dark mass is spiculated instead of smooth (ultrasound), a soft bright mass lies in the brain
(MR). Where that thing is, or would be, is uniform over nearly the whole image, and neither exposure, brightness nor
position gives it away: bright letters, rods, rims and borders are drawn in both classes alike.

Image i of a seed is a function of (kind, difficulty, image_size, seed, i) alone, whatever else is drawn with it, and
its scene is the same at every size and difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskaug.envs.datasets import ImageDataset
from maskaug.envs.drawing import Draws, axes
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.scenes import NORMALS, PAINTERS, UNIFORMS, Contrast, Scene

KINDS = ("radiograph", "ultrasound", "mr")
DIFFICULTIES = ("easy", "medium", "hard")
TASKS = ("diagnosis", "presence")
CLASS_NAMES = {
    "radiograph": ("normal", "fracture"),
    "ultrasound": ("normal", "lesion"),
    "mr": ("normal", "tumour"),
}
CHUNK = 32  # images drawn at once: the working arrays of 64 pixels then stay in the cache

#: The one place to recalibrate: `SmallClassifier` trained on 200 images of 64×64 is to get about .9, .7 and .6 right.
CONTRAST: dict[tuple[str, str], Contrast] = {
    ("radiograph", "easy"): Contrast(1.05, 0.62, 0.02),
    ("radiograph", "medium"): Contrast(0.85, 0.45, 0.022),
    ("radiograph", "hard"): Contrast(0.77, 0.38, 0.025),
    ("ultrasound", "easy"): Contrast(0.80, 0.18, 0.04),
    ("ultrasound", "medium"): Contrast(0.64, 0.12, 0.04),
    ("ultrasound", "hard"): Contrast(0.56, 0.09, 0.04),
    ("mr", "easy"): Contrast(0.34, 0.8, 0.025),
    ("mr", "medium"): Contrast(0.26, 0.8, 0.025),
    ("mr", "hard"): Contrast(0.22, 0.8, 0.025),
}

#: How dark the masses of task="presence" are, as a multiple of those of task="diagnosis".
PRESENCE = {"easy": 1.4, "medium": 1.0, "hard": 0.7}


def render(
    kind: str,
    difficulty: str,
    image_size: int,
    seed: int,
    indices: Sequence[int] | npt.NDArray[np.int64],
    task: str = "diagnosis",
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Draw the images with the numbers `indices`; each depends on its own number alone.

    Args:
        kind: "radiograph", "ultrasound" or "mr".
        difficulty: "easy", "medium" or "hard".
        image_size: H = W in pixels, at least 36.
        seed: at least 0.
        indices: (N,) integers of at least 0, in any order.
        task: "diagnosis"; or for ultrasound "presence": images of class 0 have no masses, those of class 1 two smooth
            ones, and the first of them is the region.

    Returns:
        images (N, H, W) uint8; labels (N,) int64, 0 or 1, equally often; regions (N, H, W) bool, all False for label 0.

    Raises:
        ConfigurationError: an unknown kind or difficulty, or a number out of range.
    """
    _check(kind, difficulty, image_size, seed, task)
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or (numbers < 0).any():
        raise ConfigurationError("indices must be a flat list of integers ≥ 0; number the images from 0")
    images = np.empty((len(numbers), image_size, image_size), np.uint8)
    labels = np.empty(len(numbers), np.int64)
    regions = np.empty(images.shape, np.bool_)
    for start in range(0, len(numbers), CHUNK):
        part = slice(start, start + CHUNK)
        images[part], labels[part], regions[part] = _draw(kind, difficulty, image_size, seed, numbers[part], task)
    return images, labels, regions


def _draw(
    kind: str, difficulty: str, size: int, seed: int, numbers: npt.NDArray[np.int64], task: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    n = len(numbers)
    uniforms = np.empty((n, UNIFORMS), np.float32)
    normals = np.empty((n, NORMALS), np.float32)
    noise = np.empty((n, size, size), np.float32)
    for i, number in enumerate(numbers):
        source = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, int(number), KINDS.index(kind)])))
        source.random(dtype=np.float32, out=uniforms[i])
        source.standard_normal(dtype=np.float32, out=normals[i])
        # Last, because only this depends on the size: the scene above is the same at every size.
        source.standard_normal(dtype=np.float32, out=noise[i])
    x, y = axes(size)
    draws = Draws(uniforms)
    label = draws.chance(0.5)
    # Either the label says what the first mass is like, or whether there are masses at all.
    asked, present = label, np.ones_like(label)
    if task == "presence":
        asked, present = np.zeros_like(label), label * np.float32(PRESENCE[difficulty])
    scene = Scene(size, x, y, asked, present, draws, normals, noise, CONTRAST[kind, difficulty])
    image, near = PAINTERS[kind](scene)
    image *= 255
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8), label[:, 0, 0].astype(np.int64), near & (label > 0)


def _check(kind: str, difficulty: str, image_size: int, seed: int, task: str) -> None:
    if kind not in KINDS:
        raise ConfigurationError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    if difficulty not in DIFFICULTIES:
        raise ConfigurationError(f"difficulty={difficulty!r} is unknown; use one of {', '.join(DIFFICULTIES)}")
    if task not in TASKS:
        raise ConfigurationError(f"task={task!r} is unknown; use one of {', '.join(TASKS)}")
    if task == "presence" and kind != "ultrasound":
        raise ConfigurationError(f"task='presence' is for kind='ultrasound'; a {kind} image's label asks that already")
    if not isinstance(image_size, int | np.integer) or image_size < 36:
        raise ConfigurationError(f"image_size={image_size!r} is too small; use an integer of at least 36")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigurationError(f"seed={seed!r} cannot be used; give an integer of at least 0")


def make_synthetic(
    *,
    kind: str = "radiograph",
    difficulty: str = "medium",
    task: str = "diagnosis",
    n: int = 1000,
    image_size: int = 64,
    channels: int = 1,
    seed: int = 0,
    start: int = 0,
) -> ImageDataset:
    """A data set of n synthetic images, numbers `start` to `start + n − 1` of a seed.

    Args:
        kind: "radiograph" (a broken shaft), "ultrasound" (a spiculated mass) or "mr" (a tumour).
        difficulty: "easy", "medium" or "hard": how faint the sought thing is, see `CONTRAST` and `PRESENCE`.
        task: "diagnosis"; or for ultrasound "presence": is there a (smooth) mass at all? A few labels teach that.
        n: how many images.
        image_size: height and width in pixels, at least 36.
        channels: 1 (grey) or 3 (grey, repeated).
        seed: at least 0; another seed is another data set.
        start: the first image's number; images of other numbers are new images of the same distribution.

    Returns:
        An `ImageDataset` with images (n, channels, image_size, image_size) uint8, labels 0 and 1, regions that are
        empty for label 0, every image its own group, and source "synthetic".

    Raises:
        ConfigurationError: an argument that cannot work.
    """
    _check(kind, difficulty, image_size, seed, task)
    if channels not in (1, 3):
        raise ConfigurationError(f"channels={channels!r} is not supported; use 1 (grey) or 3 (grey, repeated)")
    if not isinstance(n, int | np.integer) or n < 1:
        raise ConfigurationError(f"n={n!r} images cannot be drawn; ask for at least 1")
    if not isinstance(start, int | np.integer) or start < 0:
        raise ConfigurationError(f"start={start!r} is no image's number; give an integer of at least 0")
    numbers = np.arange(start, start + n, dtype=np.int64)
    images, labels, regions = render(kind, difficulty, image_size, seed, numbers, task)
    # Another task draws another image under the same number.
    name = f"synthetic-{kind}" if task == "diagnosis" else f"synthetic-{kind}-{task}"
    return ImageDataset(
        name=name,
        images=np.repeat(images[:, None], channels, axis=1),
        labels=labels,
        regions=regions,
        groups=numbers,
        class_names=CLASS_NAMES[kind] if task == "diagnosis" else ("absent", "present"),
        names=tuple(f"{name}/{difficulty}/seed{seed}/{i}" for i in numbers),
        source="synthetic",
        licence="MIT (generated)",
    )
