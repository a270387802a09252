"""Making a fill match its photo: the contrast that the engine sees, the photo's tone, smoothing, and grain.

Source: contrast-limited equalisation as in K. Zuiderveld, Graphics Gems IV, 1994, by OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.inpaint.compose import Bits, clipped, grown, moved, tiles_of, widened
from facefix.tone import Toning
from facefix.types import Box, Pixels

_RING_PX = 16
_LEVELS = 256
_LINEAR_SHARE = 0.05
_SPREAD_FLOOR = 0.005
_GRAIN_TILE_PX, _GRAIN_RING_PX, _GRAIN_LEAST_PX, _GRAIN_LEAST = 1200, 48, 64, 0.5 / 255
_TEXTURE = 16  # times the median of squares: beyond 2.7 standard deviations of gray grain


class Guide(NamedTuple):
    """What the engine is shown, and the way back for what it draws: pixels in, pixels out."""

    scene: Pixels
    back: Callable[[Pixels], Pixels]


def guide(scene: Pixels, reach: Bits, contrast: str) -> Guide:
    """The scene with its contrast evened out where the known pixels need it.

    equalize: one curve for the lightness of all, from the known pixels' histogram; the way back is its inverse.
    clahe: by parts of the picture (contrast limited, 8 x 8 parts); on the way back the lightness of each hole gets the
    mean and spread again that the photo has around it.

    Args:
        scene: (h, w, 3) float32, 0..1.
        reach: (h, w), what is to be filled; it has no say in the curve.
        contrast: none, equalize or clahe.
    """
    if contrast == "none":
        return Guide(scene, lambda filled: filled)
    lab = _lab(scene)
    lightness = _lightness(lab)
    if contrast == "equalize":
        at = np.linspace(0, 1, _LEVELS + 1, dtype=np.float32)
        counts, _ = np.histogram(lightness[~reach], _LEVELS, (0, 1))
        curve = np.concatenate([[0], np.cumsum(counts) / counts.sum()])
        curve = (1 - _LINEAR_SHARE) * curve + _LINEAR_SHARE * at  # never level, so that it has an inverse
        return Guide(
            _with_lightness(lab, _interp(lightness, at, curve)),
            lambda filled: _relit(filled, lambda light: _interp(light, curve, at)),
        )
    evened = _clahe(lightness, reach)
    return Guide(
        _with_lightness(lab, evened),
        lambda filled: _relit(filled, lambda light: _rings(light, lightness, evened, reach)),
    )


def _clahe(lightness: NDArray[np.float32], reach: Bits) -> NDArray[np.float32]:
    """The lightness after contrast-limited adaptive histogram equalisation; the reach counts as the known mean."""
    filled = np.where(reach, lightness[~reach].mean(), lightness)
    levels = np.rint(np.clip(filled, 0, 1) * 65535).astype(np.uint16)
    evened: Any = cv2.createCLAHE(2.0, (8, 8)).apply(levels)
    return np.asarray(evened / np.float32(65535), np.float32)


def _rings(
    light: NDArray[np.float32], before: NDArray[np.float32], evened: NDArray[np.float32], reach: Bits
) -> NDArray[np.float32]:
    """The lightness with each hole's mean and spread moved as the ring around it moved from `evened` to `before`."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(reach.astype(np.uint8), connectivity=8)
    result = light.copy()
    for number in range(1, count):
        x, y, width, height = stats[number, :4].tolist()
        part = clipped(widened(Box(x, y, x + width, y + height), _RING_PX), reach.shape).slices
        hole = np.asarray(labels[part] == number)
        ring = grown(hole, _RING_PX) & ~reach[part]
        goal, seen = before[part][ring], evened[part][ring]
        gain = (goal.std() + _SPREAD_FLOOR) / (seen.std() + _SPREAD_FLOOR)
        result[part][hole] = (light[part][hole] - seen.mean()) * gain + goal.mean()
    return result


def _relit(filled: Pixels, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Pixels:
    lab = _lab(filled)
    return _with_lightness(lab, change(_lightness(lab)))


def _with_lightness(lab: NDArray[np.float32], lightness: NDArray[np.float32]) -> Pixels:
    """The sRGB pixels of CIE Lab with another lightness, 0..1."""
    changed = np.dstack([np.clip(lightness, 0, 1) * 100, lab[:, :, 1:]]).astype(np.float32)
    pixels: Any = cv2.cvtColor(changed, cv2.COLOR_Lab2RGB)
    return np.asarray(np.clip(pixels, 0, 1), np.float32)


def _lightness(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """The L of CIE Lab as 0..1."""
    return np.asarray(lab[:, :, 0] / np.float32(100), np.float32)


def _lab(pixels: Pixels) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(np.clip(pixels, 0, 1), cv2.COLOR_RGB2Lab), np.float32)


def _interp(values: NDArray[np.float32], at: NDArray[Any], to: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(np.interp(values, at, to), np.float32)


def toned(drawn: Pixels, found: Toning) -> Pixels:
    """The pixels in the tone of a black-and-white or sepia photo: their lightness, and the colour it has there."""
    lab = _lab(drawn)
    if found.kind == "gray":
        lab[:, :, 1:] = 0
    elif found.kind == "toned":
        lab[:, :, 1:] = found.chroma(lab[:, :, 0])
    else:
        return drawn
    return _with_lightness(lab, _lightness(lab))


def spread(values: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values where they are known (1), and between them a smooth surface: means of ever wider surroundings.

    Source: the push-pull of S. Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4.
    """
    part = known[:, :, None]
    if min(known.shape) <= 2:
        mean = (values * part).sum((0, 1)) / max(float(known.sum()), 1e-6)
        return np.asarray(np.broadcast_to(mean, values.shape), np.float32)
    size = (known.shape[1], known.shape[0])
    share: Any = cv2.pyrDown(known)
    wider: Any = cv2.pyrDown(values * part) / np.maximum(share, 1e-6)[:, :, None]
    below: Any = cv2.pyrUp(spread(wider, np.minimum(1, 4 * share)), dstsize=size)
    return np.asarray(values * part + below * (1 - part), np.float32)


def smoothed(filled: Pixels, post: str) -> Pixels:
    """The pixels after a Gaussian of 0.8 px or a median of 3 px, or as they are."""
    if post == "gaussian":
        return _blurred(filled, 0.8)
    if post == "median":
        return np.asarray(cv2.medianBlur(filled, 3), np.float32)
    return filled


def grained(filled: Pixels, reach: Bits, amount: float, seed: int) -> Pixels:
    """The pixels with the grain in the reach that the known pixels within 48 px of it have, and it lacks.

    Grain is what a Gaussian of 1.5 px takes away in the flattest quarter of the pixels: how strong it is, how the
    three channels hang together in it, and how much neighbours are alike. It is looked at piece by piece of 1200 px.

    Args:
        filled: (h, w, 3) float32, 0..1, known pixels where they are known.
        reach: (h, w), what was filled.
        amount: part of the missing grain to add, 0..1.
        seed: equal seeds give equal grain.
    """
    if amount == 0:
        return filled
    result = filled
    for number, tile in enumerate(tiles_of(reach.shape, _GRAIN_TILE_PX)):
        if not reach[tile.slices].any():
            continue
        area = clipped(widened(tile, _GRAIN_RING_PX), reach.shape)
        grain = _missing_grain(filled[area.slices], reach[area.slices], np.random.default_rng((seed, number)))
        if grain is None:
            continue
        result = filled.copy() if result is filled else result
        inner = moved(tile, area).slices
        here = reach[tile.slices]
        result[tile.slices][here] = np.clip(filled[tile.slices][here] + np.float32(amount) * grain[inner][here], 0, 1)
    return result


def _missing_grain(filled: Pixels, reach: Bits, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Grain (h, w, 3) as strong as what the reach lacks of its surroundings', or None where it lacks none."""
    coarse = _blurred(filled, 1.5)
    detail = filled - coarse
    luma: Any = cv2.transform(coarse, np.full((1, 3), 1 / 3, np.float32))
    slope: Any = cv2.magnitude(cv2.Sobel(luma, -1, 1, 0), cv2.Sobel(luma, -1, 0, 1))
    distance: Any = cv2.distanceTransform((~reach).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    # the blur looks 4 px into the reach
    usable = (distance > 4) & (distance <= _GRAIN_RING_PX) & (luma > 0.02) & (luma < 0.98)
    if usable.sum() < _GRAIN_LEAST_PX:
        return None
    flat = _flat(detail, slope, usable)
    wanted = np.cov(detail[flat].T)
    power = float(np.trace(wanted))
    present = detail[_flat(detail, slope, reach)].var(axis=0).sum()
    missing = power - float(present)
    if missing < _GRAIN_LEAST**2:
        return None
    pairs = flat[:, 1:] & flat[:, :-1]
    shared = float((detail[:, 1:] * detail[:, :-1])[pairs].sum(axis=1).mean()) if pairs.any() else 0.0
    noise = rng.standard_normal(filled.shape, np.float32)
    if shared > 0.05 * power:
        noise = _blurred(noise, math.sqrt(-1 / (4 * math.log(min(0.8, shared / power)))))
    noise /= (noise - _blurred(noise, 1.5)).std()
    values, vectors = np.linalg.eigh(wanted * missing / power)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return np.asarray(noise @ root.astype(np.float32), np.float32)


def _flat(detail: Pixels, slope: NDArray[np.float32], where: Bits) -> Bits:
    """The flattest quarter of `where`, without the crests and edges of a texture: there, too, the slope can be none."""
    flat = where & (slope <= np.percentile(slope[where], 25))
    energy = (detail**2).sum(axis=2)
    return np.asarray(flat & (energy <= _TEXTURE * np.median(energy[flat])))


def _blurred(pixels: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.float32)
