"""A photo small enough to be painted on in a browser, and what was painted brought back to the photo's own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.types import Box, Photo, PlainSRGB

CANVAS_PX = 1024


def shrunk(photo: Photo) -> NDArray[np.uint8]:
    """The photo in 8-bit sRGB to be painted on: (h, w, 3 or 4), its longer side at most `CANVAS_PX`."""
    shrink = min(1.0, CANVAS_PX / max(photo.width, photo.height))
    size = (max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink)))
    if size == (photo.width, photo.height):
        small = photo.pixels(Box(0, 0, photo.width, photo.height))
    else:
        area: Any = cv2.resize(photo.raster, size, interpolation=cv2.INTER_AREA)
        small = photo.colour.to_srgb(area)
    eight = np.asarray(PlainSRGB().from_srgb(small, 8), np.uint8)
    if photo.alpha is None:
        return eight
    seen: Any = cv2.resize(photo.alpha, size, interpolation=cv2.INTER_AREA)
    full = np.iinfo(photo.alpha.dtype).max
    return np.dstack([eight, np.asarray(seen.astype(np.float32) * (255 / full), np.uint8)])


def hole_of(painted: Mapping[str, Any] | None, photo: Photo) -> NDArray[np.bool_] | None:
    """What was painted, in the photo's own pixels: (H, W); None where nothing was.

    Args:
        painted: as `gr.ImageEditor` gives it; only its layers count.
        photo: what was shrunk to paint on.
    """
    drawn: NDArray[Any] | None = None
    for layer in (painted or {}).get("layers") or ():
        alpha = np.asarray(layer)[:, :, 3].astype(np.float32) / 255
        drawn = alpha if drawn is None or drawn.shape != alpha.shape else np.maximum(drawn, alpha)
    if drawn is None or not (drawn >= 0.5).any():
        return None
    if drawn.shape != (photo.height, photo.width):
        # by pixels' centres, as INTER_LINEAR maps them: the edge lies where it was painted, between the copy's pixels
        drawn = np.asarray(cv2.resize(drawn, (photo.width, photo.height), interpolation=cv2.INTER_LINEAR))
    return np.asarray(drawn >= 0.5)
