"""What is measured of a restored face by arithmetic alone: how strong its seam is, and how much it changed.

`before` is always the canvas that was pasted into, `after` what `blend.paste` made of it, and `scale` the canvas pixels
for one photo pixel. How alike the person still is takes a network: `identity` measures that.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align
from facefix.blend import blurred, luma, touched_box
from facefix.types import Box, Mask, Patch, Photo

Plane = NDArray[np.float32]


def seam(before: Photo, after: Photo, patch: Patch, scale: float = 1.0) -> float:
    """How strong a new edge along the mask's border is, beside the picture's own detail there: 0 none, 1 as strong.

    The change (after minus before), freed of detail finer than a quarter of the soft band, is differentiated across the
    border; its 90th percentile, weighted by the mask's slope, is divided by the mean gradient that the photo has around
    the border plus one grey level a pixel.
    """
    box = touched_box(patch, before, scale)
    if box is None:
        return 0.0
    slope_x, slope_y = _gradient(_mask_over(box, patch, scale))
    slope = np.asarray(np.hypot(slope_x, slope_y), np.float32)
    if not (slope > 1e-4).any():
        return 0.0
    old, new = (luma(photo.pixels(box)) for photo in (before, after))
    band_px = float(1 / np.percentile(slope[slope > slope.max() / 4], 75))
    change_x, change_y = _gradient(blurred(new - old, max(0.5, band_px / 4)))
    across = np.asarray(
        np.abs(change_x * slope_x + change_y * slope_y) / np.maximum(slope, np.float32(1e-6)), np.float32
    )
    own = np.hypot(*_gradient(blurred(old, max(0.5, band_px / 8))))
    texture = float((own * slope).sum() / slope.sum())
    return _weighted_percentile(across, slope, 0.9) / (texture + 1 / 255)


def change(before: Photo, after: Photo, patch: Patch, scale: float = 1.0) -> float:
    """The mean difference in grey levels of 255, weighted by the mask."""
    box = touched_box(patch, before, scale)
    if box is None:
        return 0.0
    mask = _mask_over(box, patch, scale)
    difference = np.abs(after.pixels(box) - before.pixels(box)).mean(axis=2)
    return float((difference * mask).sum() * 255 / max(float(mask.sum()), 1e-6))


def _mask_over(box: Box, patch: Patch, scale: float) -> Mask:
    """The patch's mask over a box of the canvas."""
    canvas_from_patch = align.invert(align.scaled(patch.patch_from_photo, scale))
    box_from_patch = canvas_from_patch - np.array([[0, 0, box.x0], [0, 0, box.y0]], np.float64)
    return align.warp(patch.mask, box_from_patch, (box.x1 - box.x0, box.y1 - box.y0), cv2.BORDER_CONSTANT)


def _gradient(plane: Plane) -> tuple[Plane, Plane]:
    """Slopes across and down, per pixel."""
    kernel = np.array([[-0.5, 0.0, 0.5]], np.float32)
    return (
        np.asarray(cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REPLICATE), np.float32),
        np.asarray(cv2.filter2D(plane, -1, kernel.T, borderType=cv2.BORDER_REPLICATE), np.float32),
    )


def _weighted_percentile(values: Plane, weights: Plane, part: float) -> float:
    """The value below which `part` of the weight lies."""
    order = np.argsort(values, axis=None)
    cumulated = np.cumsum(weights.ravel()[order])
    return float(values.ravel()[order][min(len(order) - 1, int(np.searchsorted(cumulated, part * cumulated[-1])))])
