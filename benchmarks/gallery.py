"""A few images with the masks of every arm: `gallery.safetensors`, which `maskaug report` shows, and a picture of it.

The tensors: "images" (M, C, H, W) uint8 with 1 or 3 channels; "regions" (M, H, W) uint8, where they are known, zeros
for an image without one; "mask.<arm>" (M, H, W) uint8, 1 = selected, one for each arm. The header's only entry,
`maskaug-gallery-1`, is JSON: {"title", "note", "names": M strings, "arms": in the order to show, "stand_in"}.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from maskaug.benchmarks.chart_parts import drawable
from maskaug.envs.errors import ConfigurationError
from maskaug.envs.files import write_safetensors
from maskaug.envs.rendering import MASK, PAPER, REGION, Picture, label, outline, sheet, tint, to_rgb

GALLERY = "gallery.safetensors"
_FORMAT = "maskaug-gallery-1"
_MASK = "mask."
#: values of all the pictures of a file that is read: a gallery is a handful of images.
_LARGEST = 2**28


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images beside the masks of several arms.

    Attributes:
        images: (M, C, H, W) uint8.
        masks: arm → (M, H, W) bool, in the order in which they are shown.
        regions: (M, H, W) bool, or None where none is known.
        names: M, of the images.
        title: above it.
        note: a sentence below the title.
        stand_in: the images are made up in place of real ones.
        left_out: images of the file that were not read.
    """

    images: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]
    regions: npt.NDArray[np.bool_] | None
    names: tuple[str, ...]
    title: str
    note: str
    stand_in: bool
    left_out: int = 0


def write_gallery(
    path: str | os.PathLike[str],
    images: npt.NDArray[np.uint8],
    masks: Mapping[str, npt.NDArray[Any]],
    regions: npt.NDArray[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    note: str = "",
    stand_in: bool = False,
) -> None:
    """Write a gallery, atomically; the same pictures are the same bytes.

    Args:
        path: the file; the report finds those called gallery.safetensors.
        images: (M, C, H, W) uint8, 1 or 3 channels.
        masks: arm → (M, H, W), bool or integers, not 0 = selected; shown in this order.
        regions: (M, H, W) likewise, or None.
        names: M, of the images; their numbers if left out.
        title: above the gallery; the folder's name if left out.
        note: a sentence below the title, such as what the masks' area is.
        stand_in: whether the images are made up in place of real ones; the page then says so.

    Raises:
        ConfigurationError: shapes that do not go together; nothing is written.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigurationError(f"{os.fspath(path)} must end in .safetensors")
    if images.dtype != np.uint8:
        raise ConfigurationError(f"images must be uint8, got {images.dtype}")
    tensors = {_MASK + arm: mask for arm, mask in masks.items()}
    if regions is not None:
        tensors["regions"] = regions
    for name, values in tensors.items():
        if values.dtype != np.bool_ and not np.issubdtype(values.dtype, np.integer):
            raise ConfigurationError(f"{name} must be bool or integers, not 0 = selected, got {values.dtype}")
    names = [str(i) for i in range(len(images))] if names is None else list(names)
    about = {"title": title, "note": note, "names": names, "arms": list(masks), "stand_in": stand_in}
    _check({"images": images.shape, **{k: v.shape for k, v in tensors.items()}}, about, "the gallery")
    packed = {k: torch.from_numpy(np.ascontiguousarray(v != 0).astype(np.uint8)) for k, v in tensors.items()}
    packed["images"] = torch.from_numpy(np.ascontiguousarray(images))
    write_safetensors(path, packed, {_FORMAT: json.dumps(about)})


def read_gallery(path: str | os.PathLike[str], most: int | None = None) -> Gallery:
    """What `write_gallery` wrote. Executes nothing.

    Args:
        path: the file.
        most: read so many images, the first ones; all if None.

    Raises:
        ConfigurationError: the file is missing, broken or something else.
    """
    where = os.fspath(path)
    if not Path(path).is_file():
        raise ConfigurationError(f"{where} does not exist; give a file that write_gallery has left")
    try:
        with safe_open(where, "np") as file:
            header = (file.metadata() or {}).get(_FORMAT)
            if header is None:
                raise ConfigurationError(f"{where} is no gallery ({_FORMAT}); it is another version's, or another file")
            about = json.loads(header)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            types = {one.get_dtype() for one in slices.values()}
            if types != {"U8"}:
                raise ConfigurationError(f"{where} must hold uint8 alone, but has {', '.join(sorted(types))}")
            _check(shapes, about, where)
            count = shapes["images"][0]
            kept = count if most is None else min(most, count)
            found = {name: np.asarray(one[:kept]) for name, one in slices.items()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{where} cannot be read ({error})") from None
    return Gallery(
        found["images"],
        {arm: found[_MASK + arm] != 0 for arm in about["arms"]},
        found["regions"] != 0 if "regions" in found else None,
        tuple(about["names"][:kept]),
        about["title"],
        about["note"],
        about["stand_in"],
        count - kept,
    )


def gallery_picture(gallery: Gallery, side: int = 80, columns: int = 2) -> Picture:
    """A line of all images for the images themselves and for every arm, (h, w, 3) uint8.

    Args:
        gallery: what is shown: known regions in turquoise, masks in orange.
        side: pixels of an image's sides.
        columns: lines beside each other.
    """
    known = [None] * len(gallery.images) if gallery.regions is None else list(gallery.regions)

    def strip(name: str, masks: npt.NDArray[np.bool_] | None) -> Picture:
        pictures = []
        for i, (image, region) in enumerate(zip(gallery.images, known, strict=True)):
            picture = to_rgb(image, side) if masks is None else tint(to_rgb(image, side), masks[i], MASK)
            picture = picture if region is None else outline(picture, region, REGION)
            pictures.append(np.pad(picture, ((0, 0), (0, 2), (0, 0))))
        return label(np.concatenate(pictures, 1), drawable(name))

    first = "images" if gallery.regions is None else "images, known region outlined"
    strips = [strip(first, None), *(strip(name, masks) for name, masks in gallery.masks.items())]
    strips += [np.full_like(strips[0], PAPER)] * (-len(strips) % columns)
    rows = [strips[i : i + columns] for i in range(0, len(strips), columns)]
    heading = f"{'STAND-IN IMAGES: ' if gallery.stand_in else ''}{gallery.title}"
    return sheet(rows, [""] * columns, drawable(heading))


def _check(shapes: Mapping[str, tuple[int, ...]], about: Any, where: str) -> None:
    """Shapes and header go together, or an error."""
    kinds = {"title": str, "note": str, "names": list, "arms": list, "stand_in": bool}
    if not isinstance(about, dict) or set(about) != set(kinds):
        raise ConfigurationError(f"{where} has a header without {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(about[name], kind):
            raise ConfigurationError(f"{where}: {name} must be a {kind.__name__}")
    names, arms = about["names"], about["arms"]
    if not all(isinstance(text, str) for text in [*names, *arms]):
        raise ConfigurationError(f"{where}: names and arms must be strings")
    shape = shapes.get("images", ())
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ConfigurationError(f"{where}: images must be (M, C, H, W) of 1 or 3 channels, got {shape}")
    if not arms:
        raise ConfigurationError(f"{where} has no masks; give those of at least one arm")
    planes = {_MASK + arm for arm in arms}
    if len(planes) != len(arms) or set(shapes) - {"images", "regions"} != planes:
        raise ConfigurationError(f"{where}: the masks are {sorted(set(shapes) - {'images', 'regions'})}, not {arms}")
    for name in set(shapes) - {"images"}:
        if shapes[name] != (shape[0], *shape[2:]):
            raise ConfigurationError(f"{where}: {name} must be {(shape[0], *shape[2:])}, got {shapes[name]}")
    if len(names) != shape[0]:
        raise ConfigurationError(f"{where} has {len(names)} names for {shape[0]} images")
    if sum(int(np.prod(one, dtype=np.float64)) for one in shapes.values()) > _LARGEST:
        raise ConfigurationError(f"{where} is no gallery: more than {_LARGEST} values; keep a handful of images")
