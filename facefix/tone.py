"""Making a restored face belong to its photo: colours, the tone of a black-and-white or sepia print, and grain.

Every function takes and returns pixels and changes nothing where there is nothing to change: from a crop that the
restorer returned as it was, the same crop comes back, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.types import Box, Mask, Photo, Pixels

_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
_SAMPLE_PX = 128
_CURVE_POINTS = 16
_GRAY_CHROMA = 2.0
_TONED = {90: (3.0, 0.2, 6.0), 97: (5.0, 0.3, 9.0)}
_GAIN_LIMITS = (0.75, 1.33)
_MEDIAN_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Toning:
    """What colours a photo has: none, one for each brightness (sepia, cyanotype), or many.

    `curve` is (16, 2) float32: CIE a and b of a toned photo at evenly spaced L from 0 to 100; zeros for the others.
    """

    kind: Literal["gray", "toned", "colour"]
    curve: NDArray[np.float32]

    def chroma(self, lightness: NDArray[np.float32]) -> NDArray[np.float32]:
        """The (h, w, 2) CIE a and b that the tone has at these L, (h, w) in 0..100."""
        at = np.linspace(0, 100, _CURVE_POINTS, dtype=np.float32)
        return np.dstack([np.interp(lightness, at, self.curve[:, i]) for i in (0, 1)]).astype(np.float32)


def toning(photo: Photo) -> Toning:
    """Whether the photo is gray, toned or in colour, and the tone's curve.

    Looked at on a blurred copy of some 128 px, where grain and JPEG's colour noise are averaged away. Gray: 98 of 100
    pixels have a chroma below 2. Toned: a and b follow from L, within 3 (or a fifth of the chroma, up to 6) for 90 and
    within 5 (or three tenths, up to 9) for 97 of 100 pixels.

    Args:
        photo: 8 or 16 bit; read in strips.
    """
    lab = _array(cv2.GaussianBlur(_lab(_thumbnail(photo)), (0, 0), 1.2)).reshape(-1, 3)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    strongest = float(np.percentile(chroma, 98))
    nothing = np.zeros((_CURVE_POINTS, 2), np.float32)
    if strongest < _GRAY_CHROMA:
        return Toning("gray", nothing)
    found = Toning("toned", _tone_curve(lab))
    expected = found.chroma(lab[:, 0][None])[0]
    residue = np.hypot(lab[:, 1] - expected[:, 0], lab[:, 2] - expected[:, 1])
    if all(
        np.percentile(residue, p) < min(most, max(least, part * strongest)) for p, (least, part, most) in _TONED.items()
    ):
        return found
    return Toning("colour", nothing)


def keep_chroma(restored: Pixels, original: Pixels, found: Toning) -> Pixels:
    """The restored brightness in the original's colours.

    A gray photo stays gray to the bit: the same step goes to all three channels. A toned one follows its own curve to
    the new brightness. In any other the chroma is the original's own.

    Args:
        restored: (h, w, 3) float32, 0..1.
        original: the crop it was made from.
        found: what `toning` said of the photo.
    """
    if found.kind == "gray":
        step = _luma(restored) - _luma(original)
        return np.asarray(np.clip(original + step[:, :, None], 0, 1), np.float32)
    before, after = _lab(original), _lab(restored)
    goal = before.copy()
    goal[:, :, 0] = after[:, :, 0]
    if found.kind == "toned":
        goal[:, :, 1:] += found.chroma(after[:, :, 0]) - found.chroma(before[:, :, 0])
    return _stepped(original, before, goal)


def with_chroma(original: Pixels, coloured: Pixels, amount: float = 1.0) -> Pixels:
    """The original's lightness in the coloured picture's chroma, both of CIE Lab; its own pixels where `amount` is 0.

    A chroma that sRGB does not have at that lightness is drawn towards gray until it does, so that clipping cannot
    change the lightness.

    Args:
        original: (h, w, 3) float32, 0..1.
        coloured: of the same shape.
        amount: 0 the original's chroma .. 1 the coloured picture's.
    """
    before = _lab(original)
    goal = before.copy()
    goal[:, :, 1:] += np.float32(amount) * (_lab(coloured)[:, :, 1:] - before[:, :, 1:])
    return _stepped(original, before, _shown(goal))


def match_colour(restored: Pixels, original: Pixels, mask: Mask, amount: float = 1.0) -> Pixels:
    """The restored face with the mean and spread of the original's colours, in CIE Lab, weighed by the mask.

    Both are taken from pictures freed of detail finer than 1/32 of the side, so that a face that is sharper than it was
    does not lose its contrast again.

    Args:
        restored: (S, S, 3) float32, 0..1.
        original: the crop it was made from.
        mask: (S, S) float32, where to measure.
        amount: 0 nothing .. 1 all of the correction.

    Source: E. Reinhard et al., Color transfer between images, IEEE CG&A 21(5), 2001, in CIE Lab instead of
        l-alpha-beta, with the gain limited to 0.75..1.33.
    """
    weight = np.asarray(mask, np.float64)
    if amount == 0 or weight.sum() <= 0:
        return restored
    after = _lab(restored)
    goal_mean, goal_spread = _statistics(_lab(original), weight)
    mean, spread = _statistics(after, weight)
    gain = np.clip((goal_spread + 0.5) / (spread + 0.5), *_GAIN_LIMITS)
    step = (gain - 1) * (after - mean) + (goal_mean - mean)
    return _stepped(restored, after, after + np.float32(amount) * step.astype(np.float32))


def match_grain(
    restored: Pixels, original: Pixels, mask: Mask, photo_pixel_px: float, amount: float = 1.0, seed: int = 0
) -> Pixels:
    """The restored face with the grain that its surroundings have and it lacks.

    Grain is measured on both at the photo's own pixels, in their flattest parts: in the original outside the mask, in
    the restored inside. What is missing is added as seeded noise whose grains are a photo pixel wide, or
    wider where the photo's are.

    Args:
        restored: (S, S, 3) float32, 0..1.
        original: the crop it was made from.
        mask: (S, S) float32 soft mask of the face.
        photo_pixel_px: crop pixels that one photo pixel covers, along a side; see `align.magnification`.
        amount: part of the missing grain to add, 0..1.
        seed: equal seeds give equal grain.
    """
    if amount == 0:
        return restored
    factor = max(1.0, photo_pixel_px)
    size = max(16, round(restored.shape[0] / factor))
    small_mask = _shrunk(mask, size)
    wanted, correlation = _grain(_shrunk(original, size), small_mask < 0.5)
    present, _ = _grain(_shrunk(restored, size), small_mask > 0.5)
    missing = math.sqrt(max(0.0, wanted**2 - present**2)) * amount
    if missing < 0.2 / 255:
        return restored
    grain = _made_grain(size, correlation, seed)
    if size != restored.shape[0]:
        grain = _array(cv2.resize(grain, restored.shape[1::-1], interpolation=cv2.INTER_CUBIC))
    grain *= np.float32(missing) / _response(_shrunk(grain, size)).std()
    light = _luma(restored)
    midtone = np.clip(4 * light * (1 - light), 0.25, 1)
    return np.asarray(np.clip(restored + (grain * midtone)[:, :, None], 0, 1), np.float32)


def grain_level(pixels: Pixels, where: NDArray[np.bool_] | None = None) -> float:
    """The standard deviation of the grain, 0..1, in the flattest parts of the pixels (of those `where` holds)."""
    chosen = np.ones(pixels.shape[:2], bool) if where is None else where
    return _grain(pixels, chosen)[0]


def _grain(pixels: Pixels, where: NDArray[np.bool_]) -> tuple[float, float]:
    """Standard deviation of the luma's grain in the flattest fifth of `where`, and its correlation at one pixel.

    Source: the mask of J. Immerkær, Fast noise variance estimation, CVIU 64(2), 1996, which is blind to planes.
    """
    luma = _luma(pixels)
    response = _response(luma)
    coarse = _array(cv2.GaussianBlur(luma, (0, 0), 1.5))
    slope = np.hypot(_array(cv2.Sobel(coarse, -1, 1, 0)), _array(cv2.Sobel(coarse, -1, 0, 1)))
    inner = where.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    usable = inner & (luma > 0.03) & (luma < 0.97)
    if usable.sum() < 32:
        return 0.0, 0.0
    flat = usable & (slope <= np.percentile(slope[usable], 20))
    sigma = _MEDIAN_TO_SIGMA * float(np.median(np.abs(response[flat])))
    detail = luma - coarse
    pairs = flat[:, 1:] & flat[:, :-1]
    power = float((detail[flat] ** 2).mean())
    shared = float((detail[:, 1:] * detail[:, :-1])[pairs].mean()) if pairs.any() else 0.0
    return sigma, min(0.8, max(0.0, shared / power)) if power > 0 else 0.0


def _made_grain(size: int, correlation: float, seed: int) -> NDArray[np.float32]:
    """Noise (size, size), blurred until neighbours correlate as asked."""
    noise = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    if correlation > 0.05:
        sigma = math.sqrt(-1 / (4 * math.log(correlation)))
        noise = _array(cv2.GaussianBlur(noise, (0, 0), sigma))
    return noise


def _response(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Immerkær's mask over the plane: blind to planes, and of white noise it keeps the standard deviation."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    return _array(cv2.filter2D(luma, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def _thumbnail(photo: Photo) -> Pixels:
    """The photo area-reduced by a whole number to 128 px or more on its longer side, read strip by strip."""
    factor = max(1, max(photo.width, photo.height) // _SAMPLE_PX)
    width = photo.width - photo.width % factor if photo.width >= factor else photo.width
    strips = []
    for top in range(0, photo.height, factor):
        low = photo.pixels(Box(0, top, width, min(top + factor, photo.height)))
        strips.append(cv2.resize(low, (max(1, width // factor), 1), interpolation=cv2.INTER_AREA))
    return np.asarray(np.concatenate(strips), np.float32)


def _tone_curve(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median a and b around each of the curve's L, filled between those that occur."""
    at = np.linspace(0, 100, _CURVE_POINTS)
    step = at[1]
    curve, known = np.zeros((_CURVE_POINTS, 2), np.float32), np.zeros(_CURVE_POINTS, bool)
    for i, lightness in enumerate(at):
        near = np.abs(lab[:, 0] - lightness) < 0.75 * step
        if near.sum() >= 8:
            curve[i], known[i] = np.median(lab[near, 1:], axis=0), True
    if not known.any():  # of a photo of a few pixels no lightness occurs often enough
        curve[:], known[:] = np.median(lab[:, 1:], axis=0), True
    for i in (0, 1):
        curve[:, i] = np.interp(at, at[known], curve[known, i])
    return curve


def _statistics(lab: NDArray[np.float32], weight: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of each channel of the low-passed picture, weighted."""
    size = max(8, lab.shape[0] // 8)
    small = np.asarray(cv2.resize(lab, (size, size), interpolation=cv2.INTER_AREA), np.float64)
    small = np.asarray(cv2.GaussianBlur(small, (0, 0), size / 32), np.float64)
    part = np.asarray(cv2.resize(weight, (size, size), interpolation=cv2.INTER_AREA), np.float64)[:, :, None]
    mean = (part * small).sum((0, 1)) / part.sum()
    return mean, np.sqrt((part * (small - mean) ** 2).sum((0, 1)) / part.sum())


def _stepped(pixels: Pixels, before: NDArray[np.float32], after: NDArray[np.float32]) -> Pixels:
    """The pixels plus the difference of two Lab pictures in RGB: exactly the pixels where the two are equal."""
    step = _array(cv2.cvtColor(after, cv2.COLOR_Lab2RGB)) - _array(cv2.cvtColor(before, cv2.COLOR_Lab2RGB))
    return np.asarray(np.clip(pixels + step, 0, 1), np.float32)


def _shown(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (h, w, 3) colours, those that sRGB cannot show with as much less chroma as it takes."""
    beyond = ~_can_be_shown(lab)
    if not beyond.any():
        return lab
    colours = lab[beyond][None]
    least, most = np.zeros(colours.shape[1], np.float32), np.ones(colours.shape[1], np.float32)
    for _ in range(8):
        share = np.asarray((least + most) / 2, np.float32)
        fits = _can_be_shown(_paler(colours, share))[0]
        least, most = _array(np.where(fits, share, least)), _array(np.where(fits, most, share))
    result = lab.copy()
    result[beyond] = _paler(colours, least)[0]
    return result


def _can_be_shown(lab: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether sRGB has the colours, (h, w), to half a unit."""
    seen = _lab(_array(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)))
    return np.asarray(np.abs(seen - lab).max(axis=2) <= 0.5)


def _paler(lab: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (1, n, 3) colours with this share (n,) of their chroma."""
    return lab * np.stack([np.ones_like(share), share, share], axis=1)[None]


def _lab(pixels: Pixels) -> NDArray[np.float32]:
    """CIE Lab of sRGB pixels: L 0..100."""
    return _array(cv2.cvtColor(np.clip(pixels, 0, 1), cv2.COLOR_RGB2Lab))


def _luma(pixels: Pixels) -> NDArray[np.float32]:
    return _array(cv2.transform(np.ascontiguousarray(pixels), _LUMA))


def _shrunk(pixels: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The square picture area-reduced to `size`."""
    return _array(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA))


def _array(result: Any) -> NDArray[np.float32]:
    """OpenCV's result, typed."""
    return np.asarray(result, np.float32)
