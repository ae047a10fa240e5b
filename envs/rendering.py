"""Pictures for people: image, known region, mask, and the view that the mask leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskaug.envs.actions import is_number
from maskaug.envs.errors import ConfigurationError

if TYPE_CHECKING:
    from maskaug.envs.game import MaskGame
    from maskaug.envs.outcome import Outcome

Picture = npt.NDArray[np.uint8]
REGION = (64, 224, 208)
MASK = (255, 140, 0)
PAPER = (18, 18, 22)
_INK = (232, 232, 232)


def to_rgb(image: Picture, side: int) -> Picture:
    """(C, H, W) uint8 → (side, side, 3) RGB, pixels kept visible as squares where it is enlarged."""
    plane = np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image[:3]
    method = cv2.INTER_AREA if image.shape[1] > side else cv2.INTER_NEAREST
    return np.ascontiguousarray(
        cv2.resize(np.ascontiguousarray(plane.transpose(1, 2, 0)), (side, side), interpolation=method)
    )


def outline(picture: Picture, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], width: int = 2) -> Picture:
    """`picture` (S, S, 3) with the border of `mask` (H, W) drawn on it."""
    large = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(picture.copy(), contours, -1, colour, width), np.uint8)


def tint(
    picture: Picture, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], strength: float = 0.45
) -> Picture:
    """`picture` (S, S, 3) with the inside of `mask` (H, W) coloured and its border drawn."""
    large = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    mixed = picture.astype(np.float32)
    mixed[large] = (1 - strength) * mixed[large] + strength * np.array(colour, np.float32)
    return outline(mixed.astype(np.uint8), mask, colour)


def heat(picture: Picture, values: npt.NDArray[np.float32], strength: float = 0.6) -> Picture:
    """`picture` (S, S, 3) under the map `values` (g, g), dark where it is lowest and yellow where it is highest."""
    low, high = float(values.min()), float(values.max())
    level = ((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    large = cv2.resize(level, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(colours, strength, picture, 1 - strength, 0), np.uint8)


def label(picture: Picture, text: str, height: int = 22) -> Picture:
    """`picture` with a line of text below it."""
    strip = Image.new("RGB", (picture.shape[1], height), PAPER)
    ImageDraw.Draw(strip).text((4, height // 2), text, fill=_INK, font=_font(height - 9), anchor="lm")
    return np.concatenate([picture, np.asarray(strip, np.uint8)])


def sheet(rows: Sequence[Sequence[Picture]], titles: Sequence[str], heading: str = "", gap: int = 6) -> Picture:
    """Rows of equally sized pictures as one (h, w, 3) picture, a title over each column and a heading over all."""
    side_h, side_w = rows[0][0].shape[:2]
    left, top = gap, gap + (30 if heading else 0)
    width = left + len(titles) * (side_w + gap)
    canvas = Image.new("RGB", (width, top + 22 + len(rows) * (side_h + gap)), PAPER)
    draw = ImageDraw.Draw(canvas)
    if heading:
        # As large as fits: few columns leave little room for a long line.
        sizes = [size for size in range(17, 8, -1) if draw.textlength(heading, _font(size)) <= width - 2 * gap]
        draw.text((left, top // 2), heading, fill=_INK, font=_font(sizes[0] if sizes else 8), anchor="lm")
    for column, title in enumerate(titles):
        draw.text((left + column * (side_w + gap), top + 10), title, fill=_INK, font=_font(14), anchor="lm")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (left + j * (side_w + gap), top + 22 + i * (side_h + gap)))
    return np.asarray(canvas, np.uint8)


def mask_row(
    image: Picture, region: npt.NDArray[np.bool_] | None, mask: npt.NDArray[np.bool_], side: int
) -> list[Picture]:
    """Image · region · mask · aiding view, each (side, side, 3); without a known region the second is the image."""
    base = to_rgb(image, side)
    known, masked = base, tint(base, mask, MASK)
    if region is not None and region.any():
        known, masked = outline(base, region, REGION), outline(masked, region, REGION)
    return [base, known, masked, to_rgb(np.where(mask, image, 0).astype(np.uint8), side)]


def render_step(game: MaskGame, outcome: Outcome | None, slot: int, side: int = 192) -> Picture:
    """One slot's frame: image with region · mask · what the judge saw (one picture or two), and the reward in words."""
    mirrored, index = divmod(int((game.picture if outcome is None else outcome.picture)[slot]), len(game.dataset))
    image = game.dataset.images[index]
    region = None if game.dataset.regions is None else game.dataset.regions[index]
    if mirrored:
        image, region = image[..., ::-1], None if region is None else region[..., ::-1]
    mask = np.zeros(image.shape[1:], np.bool_) if outcome is None else outcome.mask[slot].cpu().numpy()
    panels = mask_row(image, region, mask, side)[1:3]
    views = [image] * len(game.reward_model.views)
    if outcome is not None:
        views = list(outcome.shown[slot :: game.num_envs].cpu().numpy())
    panels += [to_rgb(view, side) for view in views]
    words = "no mask yet"
    if outcome is not None:
        words = f"reward {float(outcome.reward[slot]):+.3f}   area {float(outcome.terms['area'][slot]):.0%}"
    labels = game.dataset.labels
    kind = "" if labels is None else f"{game.dataset.class_names[int(labels[index])]}   "
    return label(np.concatenate(panels, axis=1), f"{kind}{words}")


def save_picture(path: str, picture: Picture) -> None:
    """Write (h, w, 3) uint8 as PNG."""
    Image.fromarray(picture).save(path, format="PNG")


def save_animation(frames: Sequence[Picture], path: str | os.PathLike[str], fps: float = 2) -> None:
    """Write frames as an animated GIF that plays again and again; needs no video encoder.

    Args:
        frames: (h, w, 3) uint8 each, of one size: what `render()` returns, or `gymnasium.wrappers.RenderCollection`
            has collected. Of a vector environment take one slot's, `render()[slot]`.
        path: the file, *.gif; its folder is made where there is none.
        fps: frames a second, 0.01 to 50: viewers slow faster ones down, and a GIF's waits are short.
            Environments have `metadata["render_fps"]`.

    Raises:
        ConfigurationError: no frames, frames that are not pictures of one size, another kind of file, a wrong rate.
    """
    if Path(path).suffix.lower() != ".gif":
        raise ConfigurationError(f"path={os.fspath(path)!r} must end in .gif; for other formats use RecordVideo")
    if not (is_number(fps) and 0.01 <= fps <= 50):
        raise ConfigurationError(f"fps={fps!r} must be a number from 0.01 to 50")
    if len(frames) == 0:
        raise ConfigurationError("there are no frames to write; make the environment with render_mode='rgb_array'")
    for frame in frames:
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            seen = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ConfigurationError(
                f"frames must be (h, w, 3) uint8 each, got {seen}; of a vector environment take render()[slot]"
            )
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise ConfigurationError(f"frames must all have one size, got {sorted(sizes)}")
    # One palette for all: a palette a frame makes greys flicker.
    pictures = [Image.fromarray(frame) for frame in frames]
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 16)])).quantize(
        256, dither=Image.Dither.NONE
    )
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    # GIF counts hundredths of a second.
    duration = 10 * round(100 / fps)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=False)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
