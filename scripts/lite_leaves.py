"""Dead leaves: pictures of overlapping shapes with power-law sizes, 1/f texture, shading and muted colours.

They are drawn at twice the size and reduced by area, so that edges are as soft as a good lens leaves them.
Source of the idea: Achddou, Gousseau, Ladjal, "Synthetic images as a regularity prior for image restoration neural
networks", 2021, and its follow-ups.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.types import Pixels

Rng = np.random.Generator


def power_law_field(rng: Rng, size: int, slope: float) -> NDArray[np.float32]:
    """A (size, size) periodic random field whose amplitude falls as 1/f**slope; mean 0, standard deviation 1."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None]
    radius = np.sqrt(fx * fx + fy * fy)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / radius**slope
    field = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(field / field.std(), np.float32)


class Textures:
    """A bank of random fields that a whole run draws its textures from: making one costs far more than cutting one."""

    def __init__(self, rng: Rng, size: int = 640, count: int = 18) -> None:
        self.size = size
        self.fields = [power_law_field(rng, size, float(slope)) for slope in rng.uniform(0.4, 1.9, count)]

    def cut(self, rng: Rng, height: int, width: int) -> NDArray[np.float32]:
        """A (height, width) piece, at most the bank's size, of a random field, turned or mirrored."""
        field = self.fields[int(rng.integers(len(self.fields)))]
        y, x = (int(rng.integers(0, self.size - side + 1)) for side in (height, width))
        piece = field[y : y + height, x : x + width]
        return np.asarray(piece[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])], np.float32)


def muted_colours(rng: Rng, count: int) -> NDArray[np.float32]:
    """(count, 3) colours of one scene: a shared hue bias, low saturation for most, brightness from dark to light."""
    gray = rng.beta(1.2, 1.3, (count, 1))
    bias = rng.normal(0, 0.06, (1, 3))
    spread = rng.normal(0, 1, (count, 3)) * rng.gamma(1.0, 0.05, (count, 1))
    return np.asarray(np.clip(gray + bias + spread - spread.mean(axis=1, keepdims=True), 0.01, 0.99), np.float32)


def _paint(canvas: Pixels, cover: NDArray[np.float32], colour: Pixels, origin: tuple[int, int]) -> None:
    """Lays colour (h, w, 3) over the canvas at origin (x, y) with weight cover (h, w) in 0..1."""
    x, y = origin
    part = canvas[y : y + cover.shape[0], x : x + cover.shape[1]]
    part += cover[..., None] * (colour - part)


def _outline(rng: Rng, radius: float) -> NDArray[np.float64]:
    """(n, 2) points of a random shape about 0: ellipse, blob, polygon or bar."""
    kind = rng.choice(["ellipse", "blob", "polygon", "bar"], p=[0.3, 0.35, 0.2, 0.15])
    if kind == "bar":
        length, width = radius * 2, max(1.0, radius * rng.uniform(0.03, 0.3))
        points = np.array([[-length, -width], [length, -width], [length, width], [-length, width]]) / 2
    else:
        corners = int(rng.integers(3, 8)) if kind == "polygon" else 40
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if kind == "polygon" else np.arange(40) * (np.pi / 20)
        reach = np.full(corners, radius)
        if kind == "blob":
            for wave in range(2, 6):
                reach += radius * rng.normal(0, 0.5 / wave) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], 1) * reach[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(points @ rotation.T, np.float64)


def _leaf(
    canvas: Pixels, rng: Rng, textures: Textures, colour: NDArray[np.float32], radius: float, soft: float
) -> None:
    """Draws one leaf somewhere on the canvas: outline, shading, texture, edge softness in pixels."""
    side = canvas.shape[0]
    points = _outline(rng, radius) + rng.uniform(-radius * 0.3, side + radius * 0.3, 2)
    pad = int(3 * soft) + 2
    x0, y0 = np.clip(np.floor(points.min(0)).astype(int) - pad, 0, side)
    x1, y1 = np.clip(np.ceil(points.max(0)).astype(int) + pad, 0, side)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    stencil = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(stencil, [np.rint((points - [x0, y0]) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    cover = stencil.astype(np.float32) / np.float32(255)
    if soft > 0.3:
        cover = np.asarray(cv2.GaussianBlur(cover, (0, 0), soft), np.float32)
    ramp_x = np.linspace(-1, 1, x1 - x0, dtype=np.float32)[None] * np.float32(rng.normal(0, 0.12))
    ramp_y = np.linspace(-1, 1, y1 - y0, dtype=np.float32)[:, None] * np.float32(rng.normal(0, 0.12))
    light = 1 + ramp_x + ramp_y
    if rng.random() < 0.7:
        light = light + textures.cut(rng, y1 - y0, x1 - x0) * np.float32(rng.gamma(1.3, 0.05))
    _paint(canvas, cover * np.float32(rng.choice([1.0, rng.uniform(0.4, 1)])), light[..., None] * colour, (x0, y0))


def _strands(
    canvas: Pixels, rng: Rng, count: int, colour: NDArray[np.float32], region: tuple[float, float, float]
) -> None:
    """Draws `count` thin curved strands of varying brightness around (x, y) within a radius."""
    x, y, radius = region
    lay = rng.uniform(0, 2 * np.pi)
    curl = rng.normal(0, 0.04)
    for _ in range(count):
        steps = lay + rng.normal(0, 0.2) + np.cumsum(np.full(20, curl) + rng.normal(0, 0.02, 20))
        walk = np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1), 0) * (radius / 14)
        line = np.rint((walk + rng.normal(0, radius * 0.4, 2) + [x, y]) * 16).astype(np.int32)
        tint = np.clip(colour * rng.uniform(0.6, 1.5), 0, 1)
        cv2.polylines(canvas, [line.reshape(-1, 1, 2)], False, tint.tolist(), int(rng.integers(1, 3)), cv2.LINE_AA, 4)


def lit(canvas: Pixels, rng: Rng, textures: Textures) -> Pixels:
    """The canvas under an uneven light, with contrast and brightness as photos have them."""
    side = canvas.shape[0]
    small = cv2.resize(textures.cut(rng, 160, 160), (4, 4), interpolation=cv2.INTER_AREA)
    glow = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
    bright = canvas * (1 + glow[..., None] * np.float32(rng.uniform(0, 0.12)))
    low, high = rng.uniform(-0.05, 0.25), rng.uniform(0.6, 1.05)
    bright = np.clip(low + (high - low) * np.clip(bright, 0, 1), 0, 1) ** rng.uniform(0.75, 1.4)
    return np.asarray(bright, np.float32)


def reduced(canvas: Pixels, size: int, rng: Rng) -> Pixels:
    """The canvas at (size, size) by area, some with a trace of lens blur; float32 in 0..1."""
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.35:
        small = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.3, 0.7)))
    return np.clip(small, 0, 1)


def dead_leaves(rng: Rng, size: int, textures: Textures) -> Pixels:
    """A (size, size, 3) picture of overlapping shapes with the statistics of photos.

    Source: the dead leaves model with radii of density r^-3; texture, shading and palette are ours.
    """
    side = 2 * size
    count = int(rng.choice([60, 150, 300]))
    colours = muted_colours(rng, count + 1)
    canvas = np.broadcast_to(colours[-1], (side, side, 3)).copy()
    canvas *= 1 + textures.cut(rng, side, side)[..., None] * np.float32(rng.gamma(1.5, 0.06))
    smallest, largest = rng.uniform(4, 16), side * rng.uniform(0.2, 0.5)
    radii = 1 / np.sqrt(rng.uniform(1 / largest**2, 1 / smallest**2, count))
    radii[: count // 4] = rng.uniform(side * 0.06, largest, count // 4)
    # Large shapes first: drawn in random order, late large ones would bury nearly all the small ones.
    radii = np.sort(radii)[::-1] if rng.random() < 0.6 else radii
    blurry = rng.random() < 0.3
    for colour, radius in zip(colours, radii, strict=False):
        soft = float(rng.gamma(1.0, 2.0)) if blurry or rng.random() < 0.2 else 0.0
        _leaf(canvas, rng, textures, colour, float(radius), soft)
        if rng.random() < 2 / count:
            _strands(
                canvas, rng, int(rng.integers(5, 60)), colour, (*rng.uniform(0, side, 2), side * rng.uniform(0.05, 0.3))
            )
    return reduced(lit(canvas, rng, textures), size, rng)
