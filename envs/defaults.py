"""What the environments play with where a keyword is left out and its default depends on the others: ONE place.

| left out | it is |
|---|---|
| `image_size` | 64; of the real images of MURA and of hip fractures 224 |
| `grid` | 8; of images of 224×224 pixels 16, except with action="patch", whose area is counted in cells |

What is given, always holds: `grid=8, image_size=224` plays 8×8 cells.
"""

from __future__ import annotations

IMAGE_SIZE, GRID = 64, 8
#: data set → pixels along each side of its real images; a stand-in has `IMAGE_SIZE`.
REAL_SIZE = {"mura": 224, "hip_fracture": 224}
#: (H, W) → cells along each side.
GRIDS = {(224, 224): 16}


def default_image_size(dataset: str, *, real: bool) -> int:
    """Height and width in pixels of a data set's images; `real`: they are read, and not drawn in its stead.

    >>> default_image_size("mura", real=True), default_image_size("mura", real=False)
    (224, 64)
    """
    return REAL_SIZE.get(dataset, IMAGE_SIZE) if real else IMAGE_SIZE


def default_grid(action: str, image_size: tuple[int, int]) -> int:
    """Cells along each side for an action's kind on images of (H, W) pixels.

    >>> default_grid("grid", (64, 64)), default_grid("grid", (224, 224)), default_grid("patch", (224, 224))
    (8, 16, 8)
    """
    return GRID if action == "patch" else GRIDS.get(image_size, GRID)
