"""Pictures to look at what was done: before and after side by side, and the aligned faces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from facefix.types import Meta, Photo, Pixels, PlainSRGB, Result

_LONGEST_SIDE = 1600
_FACE_PX = {1: 512, 2: 256}
_FACES = 8
_GAP = 16
_PAPER, _INK = 31, (235, 235, 235)


def before_after(photo: Photo, result: Result) -> Photo:
    """One 8-bit sRGB picture: the photo before and after, and below it the largest restored faces in pairs.

    Args:
        photo: what was read; enlarged to the result's size where that is larger.
        result: what FaceFix made of it.
    """
    shrink = min(1.0, _LONGEST_SIDE / max(result.photo.width, result.photo.height))
    size = (max(1, round(result.photo.width * shrink)), max(1, round(result.photo.height * shrink)))
    rows = [_row([_labelled(_fit(photo, size), "before"), _labelled(_fit(result.photo, size), "after")])]
    patches = sorted(result.patches.values(), key=lambda patch: -_area(patch.patch_from_photo))[:_FACES]
    side = _FACE_PX.get(len(patches), 192)
    pairs = [_row([_square(patch.original, side), _square(patch.pixels, side)], gap=2) for patch in patches]
    across = max(1, rows[0].shape[1] // (2 * side))
    rows += [_row(pairs[start : start + across]) for start in range(0, len(pairs), across)]
    return Photo(PlainSRGB().from_srgb(_stack(rows), 8), Meta(format="JPEG"))


def faces(result: Result) -> Iterator[tuple[int, tuple[Photo, Photo]]]:
    """Each restored face's number in the report and its aligned crop before and after, as 8-bit sRGB pictures."""
    for number, patch in sorted(result.patches.items()):
        before, after = (
            Photo(PlainSRGB().from_srgb(pixels, 8), Meta(format="PNG")) for pixels in (patch.original, patch.pixels)
        )
        yield number, (before, after)


def _area(patch_from_photo: np.ndarray) -> float:
    """Photo pixels under one pixel of the patch."""
    return float(1 / abs(np.linalg.det(patch_from_photo[:, :2])))


def _fit(photo: Photo, size: tuple[int, int]) -> Pixels:
    """The photo as sRGB pixels of that width and height."""
    way = cv2.INTER_AREA if size[0] < photo.width else cv2.INTER_CUBIC
    resized: Any = cv2.resize(photo.raster, size, interpolation=way)
    return photo.colour.to_srgb(resized)


def _square(pixels: Pixels, side: int) -> Pixels:
    way = cv2.INTER_AREA if pixels.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=way), np.float32)


def _labelled(pixels: Pixels, text: str) -> Pixels:
    """The pixels under a strip that holds the text."""
    strip = np.full((34, pixels.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(strip, text, (6, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.8, _INK, 1, cv2.LINE_AA)
    return np.concatenate([PlainSRGB().to_srgb(strip), pixels])


def _row(parts: list[Pixels], gap: int = _GAP) -> Pixels:
    """Parts of one height, side by side."""
    between = np.full((parts[0].shape[0], gap, 3), _PAPER / 255, np.float32)
    return np.concatenate([piece for part in parts for piece in (part, between)][:-1], axis=1)


def _stack(rows: list[Pixels]) -> Pixels:
    """Rows of any width, one below the other, with a margin around."""
    width = max(row.shape[1] for row in rows)
    height = sum(row.shape[0] for row in rows) + _GAP * (len(rows) + 1)
    sheet = np.full((height, width + 2 * _GAP, 3), _PAPER / 255, np.float32)
    top = _GAP
    for row in rows:
        sheet[top : top + row.shape[0], _GAP : _GAP + row.shape[1]] = row
        top += row.shape[0] + _GAP
    return sheet
