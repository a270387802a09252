"""Damaged twins of clean pictures, seeded, and the quality figures PSNR, SSIM and NIQE.

The one place that touches basicsr. Its blur kernels, noise and metrics are used where it is installed; elsewhere
twins in numpy and cv2 compute the same numbers from the same seeds (`tests/test_degrade.py` compares them), so that a
figure does not depend on what is installed. NIQE alone has no twin: without basicsr it is absent.

What old photos have (film grain, scratches, dust, halftone, fading, casts, mono and sepia) is made here.
Fading, casts, mono and sepia change the *target* too: how a photo is toned is not damage that a face cleaner may undo.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.types import Pixels

Rng = np.random.Generator
Span = tuple[float, float]
Tone = Literal["colour", "mono", "sepia", "faded"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
MISSING_BASICSR = (
    "expected basicsr for this figure, got none; install it with `pip install basicsr` (builds on Python 3.11 and 3.12)"
)


@dataclass(frozen=True, slots=True)
class Level:
    """How strongly a picture is damaged: spans to draw from, lengths in pixels of a 256 px face.

    Args:
        blur_px: standard deviation of the Gaussian blur along each axis.
        shrink: factor of the downsampling before noise and JPEG; the picture is enlarged again afterwards.
        noise: standard deviation of the sensor noise or grain, in levels of 255.
        jpeg: quality of the JPEG file in between, 1..100; none where it is 100.
        scars: chance of scratches and dust.
        halftone: chance of a printing screen.
    """

    blur_px: Span
    shrink: Span
    noise: Span
    jpeg: Span
    scars: float
    halftone: float


LEVELS: dict[str, Level] = {
    "light": Level((0.2, 0.8), (1.0, 1.3), (1.0, 5.0), (75, 95), 0.1, 0.0),
    "medium": Level((0.3, 1.2), (1.0, 1.8), (5.0, 15.0), (50, 80), 0.2, 0.02),
    "heavy": Level((0.6, 2.2), (1.2, 3.5), (10.0, 28.0), (25, 60), 0.3, 0.05),
}


@functools.cache
def basicsr_part(name: str) -> Any | None:
    """The basicsr submodule of that name, or None where basicsr is not installed.

    basicsr 1.4.2 asks for `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed; the one function
    it wants from there is supplied under the old name before the import. It imports names that SciPy has deprecated,
    and SciPy's warnings about that are not the caller's.
    """
    if importlib.util.find_spec("basicsr") is None:
        return None
    old_name = "torchvision.transforms.functional_tensor"
    if old_name not in sys.modules and importlib.util.find_spec(old_name) is None:
        functional = importlib.import_module("torchvision.transforms.functional")
        stand_in = types.ModuleType(old_name)
        vars(stand_in)["rgb_to_grayscale"] = functional.rgb_to_grayscale
        sys.modules[old_name] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(f"basicsr.{name}")


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float32]:
    """The (k, k) blur kernel of an oriented Gaussian, k odd and at least 6 sigma, sum 1.

    Args:
        sigma_x: standard deviation along the first axis of the rotated frame, pixels, above 0.
        sigma_y: the same along the second.
        angle: rotation, radians.

    Source: basicsr `bivariate_Gaussian`, used where installed.
    """
    size = 2 * int(np.ceil(3 * max(sigma_x, sigma_y))) + 1
    degradations = basicsr_part("data.degradations")
    if degradations is not None:
        kernel = degradations.bivariate_Gaussian(size, sigma_x, sigma_y, angle, isotropic=False)
        return np.asarray(kernel, np.float32)
    return gaussian_kernel_twin(size, sigma_x, sigma_y, angle)


def gaussian_kernel_twin(size: int, sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float32]:
    """The (size, size) oriented Gaussian computed with numpy alone; see `gaussian_kernel`."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    precision = np.linalg.inv(rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T)
    reach = size // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    points = np.stack([x, y], axis=-1).astype(np.float64)
    kernel = np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", points, precision, points))
    return np.asarray(kernel / kernel.sum(), np.float32)


def gaussian_noise(shape: tuple[int, int, int], sigma: float, seed: int, *, gray: bool) -> Pixels:
    """White noise of that (h, w, 3) shape, standard deviation sigma/255; equal in all channels where gray.

    Source: basicsr `generate_gaussian_noise` under the same numpy seed.
    """
    degradations = basicsr_part("data.degradations")
    if degradations is None:
        return gaussian_noise_twin(shape, sigma, seed, gray=gray)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        noise = degradations.generate_gaussian_noise(np.zeros(shape, np.float32), sigma=sigma, gray_noise=gray)
    finally:
        np.random.set_state(state)
    return np.asarray(noise, np.float32)


def gaussian_noise_twin(shape: tuple[int, int, int], sigma: float, seed: int, *, gray: bool) -> Pixels:
    """The noise of `gaussian_noise` without basicsr."""
    drawn = np.random.RandomState(seed).randn(*(shape[:2] if gray else shape))
    noise = np.asarray(drawn, np.float32) * np.float32(sigma / 255)
    return np.repeat(noise[..., None], 3, axis=2) if gray else noise


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """The (h, w, 3) pixels after a JPEG file of that quality (1..100, 4:2:0 chroma as OpenCV writes it).

    Source: basicsr `add_jpg_compression`, which hands OpenCV floats that it complains of and rounds.
    """
    levels = np.clip(pixels[..., ::-1], 0, 1) * np.float32(255)
    _, data = cv2.imencode(".jpg", np.rint(levels).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1]).astype(np.float32) / np.float32(255)


def toned(pixels: Pixels, tone: Tone, rng: Rng) -> Pixels:
    """The clean picture as its kind of photo shows it: as it is, grey, sepia, or faded with a colour cast."""
    if tone == "colour":
        return pixels
    gray = np.repeat((pixels @ LUMA)[..., None], 3, axis=2)
    if tone == "mono":
        return gray
    black, white = rng.uniform(0, 0.15), rng.uniform(0.8, 1.0)
    if tone == "sepia":
        cast = np.array([1.0, rng.uniform(0.84, 0.96), rng.uniform(0.62, 0.85)], np.float32)
        return np.asarray((black + (white - black) * gray) * cast, np.float32)
    keep = np.float32(rng.uniform(0.4, 0.9))
    cast = rng.uniform(0.85, 1.0, 3).astype(np.float32)
    return np.asarray((black + (white - black) * (gray + keep * (pixels - gray))) * cast, np.float32)


def film_grain(shape: tuple[int, int, int], sigma: float, rng: Rng) -> Pixels:
    """Grain of that (h, w, 3) shape: grey, blurred to a grain size of 0.4 to 0.9 px, standard deviation sigma/255."""
    white = rng.standard_normal(shape[:2], np.float32)
    grain = np.asarray(cv2.GaussianBlur(white, (0, 0), float(rng.uniform(0.4, 0.9))), np.float32)
    grain *= np.float32(sigma / 255) / max(float(grain.std()), 1e-6)
    return np.repeat(grain[..., None], 3, axis=2)


def scarred(pixels: Pixels, rng: Rng) -> Pixels:
    """The picture with a few scratches and specks of dust, light or dark."""
    height, width = pixels.shape[:2]
    out = pixels.copy()
    for light in (True, False):
        cover = np.zeros((height, width), np.uint8)
        for _ in range(int(rng.integers(0, 4))):
            start = rng.uniform(0, [width, height])
            heading = rng.normal(np.pi / 2, 0.35)
            steps = np.cumsum(rng.normal(0, 0.03, 24)) + heading
            walk = np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1) * rng.uniform(2, 10), axis=0)
            line = np.rint((start + walk) * 16).astype(np.int32)
            cv2.polylines(cover, [line.reshape(-1, 1, 2)], False, 255, int(rng.integers(1, 3)), cv2.LINE_AA, 4)
        for _ in range(int(rng.integers(0, 12))):
            centre = rng.uniform(0, [width, height]) * 16
            axes = rng.uniform(0.4, 2.0, 2) * 16
            middle, radii = (int(centre[0]), int(centre[1])), (int(axes[0]), int(axes[1]))
            cv2.ellipse(cover, middle, radii, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA, 4)
        weight = cover[..., None].astype(np.float32) * np.float32(rng.uniform(0.3, 0.95) / 255)
        shade = np.float32(rng.uniform(0.75, 1.0) if light else rng.uniform(0.0, 0.25))
        out += weight * (shade - out)
    return out


def halftoned(pixels: Pixels, rng: Rng) -> Pixels:
    """The picture through a rotated printing screen of 2.5 to 4 px pitch."""
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi / 2), rng.uniform(2.5, 4.0)
    across = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / pitch)
    along = (np.cos(angle) * y - np.sin(angle) * x) * (2 * np.pi / pitch)
    screen = ((np.cos(across) + np.cos(along)) * rng.uniform(0.05, 0.2)).astype(np.float32)
    shadow = np.sqrt(np.clip(pixels * (1 - pixels), 0, 0.25)) * 2
    return np.asarray(pixels + screen[..., None] * shadow, np.float32)


def _noisy(pixels: Pixels, sigma: float, gray: bool, rng: Rng) -> Pixels:
    """The picture with Gaussian noise, shot noise or film grain of about that strength."""
    kind = rng.choice(["gaussian", "shot", "grain"], p=[0.5, 0.25, 0.25])
    if kind == "grain":
        return pixels + film_grain(pixels.shape, sigma, rng)
    noise = gaussian_noise(pixels.shape, sigma, int(rng.integers(2**31)), gray=gray or rng.random() < 0.3)
    if kind == "shot":
        noise = noise * np.sqrt(np.clip(pixels, 0.02, 1) * 2)
    return np.asarray(pixels + noise, np.float32)


def _draw(span: Span, rng: Rng) -> float:
    return float(rng.uniform(*span))


def degrade(clean: Pixels, level: Level, rng: Rng, tone: Tone = "colour") -> tuple[Pixels, Pixels]:
    """The damaged picture and the target that a perfect restorer would give back.

    Args:
        clean: (h, w, 3) float32, 0..1.
        level: how strong; one of `LEVELS`, or spans of one's own.
        rng: the only source of chance; the same state gives the same picture.
        tone: what kind of photo; applied to the target as well.

    Returns:
        (damaged, target), both (h, w, 3) float32 in 0..1, the damaged one rounded to 8 bits.
    """
    target = np.clip(toned(clean, tone, rng), 0, 1)
    height, width = clean.shape[:2]
    out = scarred(target, rng) if rng.random() < level.scars else target
    out = halftoned(out, rng) if rng.random() < level.halftone else out
    kernel = gaussian_kernel(_draw(level.blur_px, rng), _draw(level.blur_px, rng), rng.uniform(0, np.pi))
    out = np.asarray(cv2.filter2D(out, -1, kernel, borderType=cv2.BORDER_REFLECT), np.float32)
    shrink = _draw(level.shrink, rng)
    if shrink > 1.05:
        small = (max(8, round(width / shrink)), max(8, round(height / shrink)))
        method = int(rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        out = np.asarray(cv2.resize(out, small, interpolation=method), np.float32)
    out = _noisy(out, _draw(level.noise, rng), tone in ("mono", "sepia"), rng)
    quality = round(_draw(level.jpeg, rng))
    out = jpeg(out, quality) if quality < 100 else out
    if out.shape[:2] != (height, width):
        out = np.asarray(cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.rint(np.clip(out, 0, 1) * np.float32(255)) / np.float32(255), target


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two (h, w, 3) pictures in 0..1, in dB, over all channels; inf where equal."""
    difference = np.float64(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if difference == 0 else float(-10 * np.log10(difference))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity of two (h, w, 3) pictures in 0..1: the mean over channels and pixels.

    Source: Wang et al. 2004, 11 px Gaussian window of 1.5 px, borders of 5 px left out; basicsr `calculate_ssim`
    gives the same number up to its rounding to 0..255 (checked in `tests/test_degrade.py`).
    """

    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred = cv2.GaussianBlur(values, (11, 11), 1.5)
        return np.asarray(blurred[5:-5, 5:-5], np.float64)

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def niqe(pixels: Pixels) -> float | None:
    """The no-reference score NIQE (lower is more natural) of one (h, w, 3) picture, or None without basicsr."""
    metric = basicsr_part("metrics")
    if metric is None:
        return None
    calculate: Callable[..., Any] = metric.calculate_niqe
    levels = np.rint(np.clip(pixels[..., ::-1], 0, 1) * 255)
    return float(calculate(levels, 0, input_order="HWC", convert_to="y"))
