"""Engines that fill without a network, the photos and holes that they are given, and what of a photo is known."""

from __future__ import annotations

import cv2
import imagecodecs
import numpy as np

from facefix import Inpainter, Recipe, Result
from facefix.inpaint import Kind, Progress
from facefix.types import Mask, Pixels

PROFILE = imagecodecs.cms_profile(
    "rgb", whitepoint=[0.3127, 0.3290, 1.0], primaries=[0.68, 0.32, 0, 0.265, 0.69, 0, 0.15, 0.06, 0], gamma=1.9
)


class Reckless:
    """An engine that draws noise over everything, known pixels included, and keeps what it was given."""

    name = "reckless"
    takes_prompt = False

    def __init__(self) -> None:
        self.seen: list[tuple[Pixels, Mask, int]] = []

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        self.seen.append((scene.copy(), hole.copy(), seed))
        if progress is not None:
            progress(1, 1)
        return np.random.default_rng(seed).random(scene.shape, np.float32)


class Greedy(Reckless):
    """An engine that wants more memory than any machine has, from NumPy or from OpenCV."""

    def __init__(self, *, by_opencv: bool) -> None:
        super().__init__()
        self.by_opencv = by_opencv

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        if self.by_opencv:
            return np.asarray(cv2.resize(scene, (2**31 - 1, 2**21)))
        return np.empty((2**45, 4, 3), np.float32)


class Flat:
    """An engine that draws one colour."""

    name = "flat"
    takes_prompt = False

    def __init__(self, *rgb: float) -> None:
        self.rgb = rgb

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        return np.full(scene.shape, self.rgb, np.float32)


SEEDED = Kind("reckless", seeded=True)


def painter(engine: object, **settings: object) -> Inpainter:
    recipe = Recipe(**({"faces": False, "fill_grain": 0.0} | settings))  # type: ignore[arg-type]
    return Inpainter(recipe, SEEDED, engine, None)  # type: ignore[arg-type]


def noise(bits: int = 8, *, height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(bits)
    return rng.integers(0, 2**bits, (height, width, channels), np.uint8 if bits == 8 else np.uint16)


def strokes(height: int = 48, width: int = 64) -> np.ndarray:
    """A block, a stroke of one pixel and a single pixel."""
    mask = np.zeros((height, width), bool)
    mask[8:14, 10:20] = mask[30, 25:50] = mask[40, 5] = True
    return mask


def changed(result: Result, scene: np.ndarray) -> np.ndarray:
    return (result.photo.raster != scene).any(axis=2)


def distance_slowly(hole: np.ndarray) -> np.ndarray:
    """Each pixel's distance to the nearest one of the hole, by looking at all of them."""
    rows, columns = np.nonzero(hole)
    y, x = np.mgrid[: hole.shape[0], : hole.shape[1]]
    return np.sqrt(((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2).min(axis=2))
