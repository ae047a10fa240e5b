"""The painters of the three synthetic kinds: one scene in, its image and the place of the sought thing out.

Both classes go through the same strokes; the label scales one local thing alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskaug.envs.drawing import (
    Array,
    Draws,
    cover,
    fractal_noise,
    heading,
    local,
    noise_values,
    octave_values,
    smooth_noise,
    stamp,
    stroke,
)

MARGIN = 0.08  # the sought thing's centre keeps this far from the image's edge
REACH = 0.12  # radius of the region around a break


class Contrast(NamedTuple):
    """What makes a class 1 image differ, and how loud the rest is.

    Attributes:
        sign: how strong the sought thing is: depth of the break's dark gap as a share of the bone (radiograph), length
            of the rim's spikes as a share of the radius (ultrasound), brightness above the tissue (mr).
        second: its second sign: the step of the shaft as a share of its half width, the shadow below the mass, the
            share of the tumour's brightness that the dark ring around it takes away again.
        noise: standard deviation of the pixel noise (of the speckle, in ultrasound).
    """

    sign: float
    second: float
    noise: float


UNIFORMS = 96
_OCTAVES = (3, 6, 12, 24)
_LAYERS = (14, 3)  # rows, columns of the layers' noise
_SPECKLE = (44, 26)  # the beam is wider than the pulse is long
NORMALS = octave_values(_OCTAVES) + noise_values(*_LAYERS) + 2 * noise_values(*_SPECKLE)


@dataclasses.dataclass
class Scene:
    """What a painter gets.

    Attributes:
        size: H = W in pixels.
        x: (1, 1, W), columns in unit coordinates.
        y: (1, H, 1), rows.
        label: (N, 1, 1), 0 or 1.
        present: (N, 1, 1), how dark the masses of an ultrasound image are: 1 as a rule, 0 where they are left out.
        draws: the images' own random parameters.
        normals: (N, NORMALS), standard normal, for smooth noise.
        noise: (N, H, W), standard normal, for pixel noise.
        contrast: how strong the sought thing is.
    """

    size: int
    x: Array
    y: Array
    label: Array
    present: Array
    draws: Draws
    normals: Array
    noise: Array
    contrast: Contrast

    def soft(self, least: float) -> float:
        """An edge that is `least` wide in unit coordinates, and never narrower than a pixel."""
        return max(least, 1 / self.size)

    def place(self) -> tuple[Array, Array]:
        """A point uniform over the image but for the margin."""
        return self.draws.uniform(MARGIN, 1 - MARGIN), self.draws.uniform(MARGIN, 1 - MARGIN)

    def tissue(self) -> Array:
        """1/f noise (N, H, W) of unit variance."""
        return fractal_noise(self.normals[:, : octave_values(_OCTAVES)], _OCTAVES, self.size)

    def exposure(self, image: Array, gradient: float) -> Array:
        """`image` under a random gain, offset and brightness gradient: without it the mean would tell the class."""
        d = self.draws
        image -= np.float32(0.4)
        image *= d.uniform(0.8, 1.2)
        image += d.uniform(0.33, 0.49) + d.uniform(-gradient, gradient) * (self.x - np.float32(0.5))
        image += d.uniform(-gradient, gradient) * (self.y - np.float32(0.5))
        return image

    def letters(self, image: Array, letters: str, probability: float, height: float) -> None:
        """Burn one of `letters` into a corner of some of the images."""
        d = self.draws
        which, shown = d.uniform(0, len(letters)), d.chance(probability)
        chosen = [letters[int(w)] if s else "" for w, s in zip(which.ravel(), shown.ravel(), strict=True)]
        left = np.abs(d.chance(0.5) - d.uniform(0.02, 0.15))
        top = np.abs(d.chance(0.5) - d.uniform(0.02, 0.15))
        stamp(image, chosen, left, top, height, d.uniform(0.8, 1.0))


def _bone(along: Array, across: Array, length: Array, half: Array, soft: float) -> tuple[Array, Array]:
    # A bone from along = 0 (the joint) back to −length: its cover, and its brightness as a hollow tube seen from the
    # side, whose walls (the cortex) are brighter than its middle.
    middle = np.float32(0.5) * length
    beyond = np.abs(along + middle) - middle
    width = beyond * np.float32(1 / 0.07)
    width *= width
    width += 1
    np.divide(half * np.float32(0.45), width, out=width)
    width += half  # wider towards both ends
    across = np.abs(across)
    side = across - width
    np.divide(across, width, out=across)
    across *= across
    tube = np.sqrt(np.maximum(1 - across, 0))
    tube -= np.float32(0.72) * np.sqrt(np.maximum(np.float32(0.7) - across, 0))
    # The corner between side and end is rounded by a smooth maximum.
    gap = side - beyond
    gap *= gap
    gap += np.float32(0.03**2)
    side += beyond
    side += np.sqrt(gap, out=gap)
    side *= np.float32(0.5)
    return cover(side, soft), tube


def _radiograph(s: Scene) -> tuple[Array, npt.NDArray[np.bool_]]:
    d, x, y, c, soft = s.draws, s.x, s.y, s.contrast, s.soft(0.012)
    spot, way = s.place(), d.direction()
    # The joint lies beyond the break, on the side where there is more image to show it.
    inward = np.where((0.5 - spot[0]) * way[0] + (0.5 - spot[1]) * way[1] < 0, -1, 1).astype(np.float32)
    way = (way[0] * inward, way[1] * inward)
    back, half = d.uniform(0.15, 0.2), d.uniform(0.06, 0.083)
    along, across = local(x, y, (spot[0] + back * way[0], spot[1] + back * way[1]), way)

    # The break: an oblique jagged line at along = −back; what lies behind it is shifted sideways.
    line = across * d.uniform(-0.6, 0.6)
    teeth = across * d.uniform(14, 24) + d.uniform(0, 1)
    teeth -= np.floor(teeth)
    line += np.abs(teeth - np.float32(0.5), out=teeth) * d.uniform(0.05, 0.08)
    line += along
    line += back - np.float32(0.016)
    step = s.label * d.sign() * d.uniform(0.7, 1.3) * half * np.float32(c.second)
    shifted = across + step * cover(line.copy(), soft)
    np.abs(line, out=line)
    line -= d.uniform(0.02, 0.03)
    rim = cover(line - np.float32(0.016), soft)
    gap = cover(line, soft)
    rim -= gap
    # What the gap takes away piles up beside it, where the ends are driven into each other.
    gap -= np.float32(0.6) * rim
    gap *= s.label * d.uniform(0.8, 1.1) * np.float32(c.sign)

    # Soft tissue around the bones, and a second ray of bones beside the first.
    beside = d.sign() * d.uniform(0.26, 0.38)
    second = d.chance(0.6)
    inside = np.minimum(np.abs(across), np.abs(across - beside) + (1 - second))
    inside -= d.uniform(0.13, 0.2)
    texture = s.tissue()
    image = cover(inside, 0.1)
    image *= d.uniform(0.1, 0.25)
    image += texture * d.uniform(0.06, 0.12)
    image += np.float32(0.12)

    # Scratches lie behind the bones and never cross one visibly: a line across a bone would be a break.
    for _ in range(2):
        scratch = stroke(x, y, s.place(), d.direction(), d.uniform(0.03, 0.08), d.uniform(0.007, 0.009))
        image -= cover(scratch, soft) * d.uniform(-0.1, 0.22)

    own, other = d.uniform(0.4, 0.56), d.uniform(0.45, 0.65)
    length = d.uniform(0.5, 1.2)
    texture *= np.float32(0.1)
    texture += 1
    # Along, across, across beyond the joint (which a step in the shaft leaves alone), level, shown.
    first = (along, shifted, across, own, np.ones_like(second))
    beside_it = (along + d.uniform(-0.1, 0.1), across - beside, across - beside, other, second)
    for ray, (behind, body, straight, level, shown) in enumerate((first, beside_it)):
        cos, sin = heading(d.uniform(-0.5, 0.5))
        # The bone on the joint's other side looks back at it, a little bent.
        ahead = d.uniform(0.03, 0.05) - behind
        distal = (ahead * cos + straight * sin, straight * cos - ahead * sin, d.uniform(0.3, 0.8))
        for part, (t, a, long) in enumerate(((behind, body, length), distal)):
            area, tube = _bone(t, a, long, half * d.uniform(0.9, 1.1), soft)
            tube *= np.float32(0.75)
            tube += np.float32(0.45)
            tube *= level * d.uniform(0.9, 1.1)
            tube *= texture
            if ray == part == 0:
                tube *= 1 - gap
            area *= shown
            image *= 1 - np.float32(0.6) * area
            image += area * tube
    # A bright soft shadow away from the break's place, in both classes alike: the brightest part of an image is this.
    away = tuple((p + d.uniform(0.3, 0.7)) % 1 for p in spot)
    haze = 1 - ((x - away[0]) ** 2 + (y - away[1]) ** 2) / d.uniform(0.4, 0.55) ** 2
    np.maximum(haze, 0, out=haze)
    haze *= haze
    haze *= d.uniform(0.3, 0.55)
    image += haze
    image = s.exposure(image, 0.3)

    rod = cover(stroke(x, y, s.place(), d.direction(), d.uniform(0.05, 0.14), d.uniform(0.008, 0.013)), soft)
    rod *= d.chance(0.7)
    image += rod * (d.uniform(0.85, 1) - image)
    image += s.noise * np.float32(c.noise)
    dark = d.uniform(0.02, 0.1)
    for edge in (x, 1 - x, y, 1 - y):
        width = d.uniform(-0.05, 0.06)
        image += cover(edge - width, soft) * (dark - image)
    s.letters(image, "LR", 0.8, 0.13)
    near = (x - spot[0]) ** 2 + (y - spot[1]) ** 2 < np.float32(REACH**2)
    return image, near


def _ultrasound(s: Scene) -> tuple[Array, npt.NDArray[np.bool_]]:
    d, x, y, c = s.draws, s.x, s.y, s.contrast
    start = octave_values(_OCTAVES)
    stop = start + noise_values(*_LAYERS)
    image = smooth_noise(s.normals[:, start:stop], *_LAYERS, s.size)
    image *= d.uniform(0.05, 0.11)
    texture = s.tissue()
    image += texture * np.float32(0.03)
    image += d.uniform(0.42, 0.54)
    image -= d.uniform(0.0, 0.35) * y  # attenuation with depth
    # A dark acoustic shadow from above, away from the mass's place in both classes alike: the darkest part is this.
    spot = s.place()
    shade = cover(np.abs(x - (spot[0] + d.uniform(0.3, 0.7)) % 1) - d.uniform(0.08, 0.15), 0.12)
    image -= shade * (d.uniform(0.1, 0.3) * np.minimum(y * 4, 1))

    # Two dark masses, in every image unless their presence is what is asked for. In class 1 the first has a spiculated
    # rim and a shadow; all others are smooth.
    for first in (True, False):
        # The second mass keeps clear of the first: 0.25 … 0.75 of the image away, wrapped around its edges.
        centre = spot if first else ((spot[0] + d.uniform(0.25, 0.75)) % 1, (spot[1] + d.uniform(0.25, 0.75)) % 1)
        along, across = local(x, y, centre, heading(d.uniform(-0.5, 0.5)))
        radius = d.uniform(0.085, 0.11)
        squeeze = d.uniform(1.0, 1.35)
        angle = np.arctan2(across * squeeze, along)
        distance = np.sqrt(along * along + (across * squeeze) ** 2)
        if first:
            near = distance < radius * np.float32(1.3)
        # Both shapes have one area: the spikes are cut into the rim as much as they stick out of it.
        spikes = np.cos(angle * np.floor(d.uniform(6, 9)) + d.uniform(0, 6.3) + np.cos(angle + d.uniform(0, 6.3)))
        spikes += np.float32(0.7) * np.cos(angle * np.floor(d.uniform(2, 5)) + d.uniform(0, 6.3))
        ill = s.label if first else 0 * s.label
        spikes *= ill * np.float32(c.sign * 0.5)
        spikes += 1
        distance -= radius * spikes
        distance += texture * np.float32(0.006)
        inside = cover(distance, s.soft(0.02))
        below = cover(np.abs(x - centre[0]) - radius * np.float32(0.8), 0.05)
        depth = y - centre[1]
        below = below * np.where(depth > 0, np.maximum(1 - depth * np.float32(3.5), 0), 0)
        plain = d.uniform(-0.1, 0.1)
        image -= s.present * below * (plain * (1 - ill) + ill * np.float32(c.second))
        image -= s.present * inside * d.uniform(0.16, 0.26)

    size = noise_values(*_SPECKLE)
    real = smooth_noise(s.normals[:, stop : stop + size], *_SPECKLE, s.size)
    imaginary = smooth_noise(s.normals[:, stop + size : stop + 2 * size], *_SPECKLE, s.size)
    real *= real
    real += imaginary * imaginary
    real += np.float32(0.05)
    image += np.log(real, out=real) * np.float32(c.noise)
    image = s.exposure(image, 0.2)
    image += s.noise * np.float32(0.02)
    # Bright interfaces (fascia) and callipers.
    for _ in range(2):
        level = heading(d.uniform(-0.25, 0.25))
        fascia = cover(stroke(x, y, s.place(), level, d.uniform(0.06, 0.2), d.uniform(0.006, 0.012)), s.soft(0.02))
        image += fascia * d.uniform(0.1, 0.3)
    for _ in range(3):
        stamp(image, ["+"] * len(image), d.uniform(0, 1), d.uniform(0, 1), 0.1, d.uniform(0.8, 1.0))
    s.letters(image, "47", 0.7, 0.11)
    return image, near


def _mr(s: Scene) -> tuple[Array, npt.NDArray[np.bool_]]:
    d, x, y, c, soft = s.draws, s.x, s.y, s.contrast, s.soft(0.012)
    spot = s.place()
    # The head follows the spot part of the way, so that the spot can be anywhere in the image and still in the brain.
    pull = d.uniform(0.5, 0.7)
    centre = tuple(0.5 + (p - 0.5) * pull + d.uniform(-0.07, 0.07) for p in spot)
    axis = heading(d.uniform(-0.5, 0.5))
    across, along = local(x, y, (centre[0], centre[1]), axis)
    wide, high = d.uniform(0.42, 0.5), d.uniform(0.48, 0.58)
    ring = np.sqrt((across / wide) ** 2 + (along / high) ** 2)
    texture = s.tissue()

    image = texture * d.uniform(0.03, 0.06)
    image += d.uniform(0.42, 0.52)
    # Sulci: thin dark folds where the noise crosses zero, deeper towards the cortex.
    folds = np.maximum(1 - np.abs(texture) * np.float32(4), 0)
    folds *= np.clip(ring * np.float32(2.2) - np.float32(0.8), 0, 1)
    image -= folds * d.uniform(0.12, 0.22)
    fissure = cover(np.abs(across) - d.uniform(0.004, 0.01), s.soft(0.015))
    image -= fissure * d.uniform(0.08, 0.16)
    # Both ventricles in one go: the head's left half mirrored onto its right.
    lean = d.uniform(0.15, 0.4)
    side = np.abs(across) - d.uniform(0.04, 0.06) - lean * np.abs(along)
    horn = np.sqrt((side / d.uniform(0.025, 0.045)) ** 2 + (along / d.uniform(0.12, 0.18)) ** 2) - 1
    image += cover(horn, 0.3) * (d.uniform(0.1, 0.2) - image)

    near_x, near_y = x - spot[0], y - spot[1]
    squeeze = d.uniform(0.8, 1.25)
    distance = np.sqrt(near_x * near_x * squeeze + near_y * near_y / squeeze)
    near = distance < np.float32(REACH)
    distance += texture * np.float32(0.012)
    distance *= 1 / d.uniform(0.075, 0.1)
    distance *= distance
    # A bright middle in a dark ring; with second = 1 the ring takes away all the brightness that the middle adds.
    bump = np.exp(distance * np.float32(-0.9))
    bump *= np.float32(c.sign) * (1 - np.float32(0.9 * c.second) * distance)
    image += bump * s.label * d.uniform(0.8, 1.2)
    for _ in range(3):  # vessels: small and sharp, or long
        vessel = stroke(x, y, s.place(), d.direction(), d.uniform(0.0, 0.07), d.uniform(0.01, 0.02))
        image += cover(vessel, soft) * d.uniform(0.1, 0.4)
    # A broad bright patch away from the tumour's place, in both classes alike: the brightest tissue is this.
    away = tuple((p + d.uniform(0.3, 0.7)) % 1 for p in spot)
    patch = 1 - ((x - away[0]) ** 2 + (y - away[1]) ** 2) / d.uniform(0.35, 0.5) ** 2
    np.maximum(patch, 0, out=patch)
    patch *= patch
    image += patch * d.uniform(0.1, 0.3)

    image *= cover(ring - np.float32(0.87), s.soft(0.02) / 0.45)
    scalp = cover(np.abs(ring - np.float32(0.96)) - np.float32(0.035), s.soft(0.02) / 0.45)
    image += scalp * (d.uniform(0.65, 0.95) - image)
    body = cover(ring - np.float32(1.02), 0.05)
    image = s.exposure(image, 0.4)
    image *= body
    image += s.noise * np.float32(c.noise)
    np.abs(image, out=image)
    s.letters(image, "LR", 0.6, 0.12)
    return image, near


PAINTERS: Mapping[str, Callable[[Scene], tuple[Array, npt.NDArray[np.bool_]]]] = {
    "radiograph": _radiograph,
    "ultrasound": _ultrasound,
    "mr": _mr,
}
