"""Around an engine: the hole and its soft edge, the boxes that it sees, and how its fill gets into the photo.

How far a fill reaches
    drawn   the pixels that the mask shows at least half white
    hole    drawn, widened by `dilate_px`; here the fill counts whole
    reach   the hole and the soft edge around it, where d, the distance to the hole, is below `feather_px`: here the
            fill counts smoothstep(1 - d / feather_px), so it fades into the photo outside of what was drawn
    known   all else: not a bit of it changes, whatever an engine returns

The engine is asked to fill the whole reach, so that in the soft edge two pictures that differ fade into each other, and
a halo around a scratch goes with it. It never sees what was under the reach as known.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.errors import UsageError
from facefix.imagefile import MAX_PIXELS
from facefix.types import Box, Mask, Photo, Pixels, Raster

Bits = NDArray[np.bool_]

_LEAST_SIDE_PX = 128
_LONGEST = 2.0
_STEP_PX = 256
_MOST_GROWTH = 10


def whiteness(picture: Photo) -> NDArray[np.float32]:
    """How white and opaque each pixel of a drawn mask is, (H, W) float32, 0..1; coloured pixels count by their luma."""
    most = np.float32(np.iinfo(picture.raster.dtype).max)
    luma: Any = cv2.cvtColor(picture.raster, cv2.COLOR_RGB2GRAY)
    white = np.asarray(luma / most, np.float32)
    return white if picture.alpha is None else white * np.asarray(picture.alpha / most, np.float32)


def transparent(photo: Photo) -> Bits:
    """The pixels that are not quite opaque."""
    if photo.alpha is None:
        return np.zeros((photo.height, photo.width), bool)
    return np.asarray(photo.alpha < np.iinfo(photo.alpha.dtype).max)


def made_opaque(photo: Photo, hole: Bits, feather_px: float) -> Photo:
    """The photo with alpha at its most in the hole, and on the way there in the hole's soft edge."""
    if photo.alpha is None or not hole.any():
        return photo
    most = np.iinfo(photo.alpha.dtype).max
    alpha = photo.alpha + np.rint(soft_mask(hole, feather_px) * (most - photo.alpha.astype(np.float32)))
    return dataclasses.replace(photo, alpha=alpha.astype(photo.alpha.dtype))


def grown(hole: Bits, distance_px: float) -> Bits:
    """The hole widened by so many pixels on every side, round at its corners."""
    if distance_px <= 0 or not hole.any():
        return hole
    box, distance = _distances(hole, distance_px)
    wider = hole.copy()
    wider[box.slices] = distance <= distance_px
    return wider


def soft_mask(hole: Bits, feather_px: float) -> Mask:
    """(H, W) float32: 1 in the hole, from there falling smoothly, and exactly 0 from `feather_px` on."""
    if feather_px <= 0 or not hole.any():
        return hole.astype(np.float32)
    box, distance = _distances(hole, feather_px)
    near = distance < feather_px
    at = 1 - distance[near] / np.float32(feather_px)
    soft = np.zeros(hole.shape, np.float32)
    soft[box.slices][near] = at * at * (3 - 2 * at)
    return soft


def _distances(hole: Bits, reach_px: float) -> tuple[Box, NDArray[np.float32]]:
    """The box that the hole reaches by so many pixels, and each of its pixels' distance to the hole."""
    box = clipped(widened(around(hole), math.ceil(reach_px)), hole.shape)
    outside = (~hole[box.slices]).astype(np.uint8)
    distance: Any = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's roots are off by a bit here and there, according to where the array begins in memory; their squares are
    # whole numbers
    return box, np.sqrt(np.rint(distance * distance))


def around(hole: Bits) -> Box:
    """The smallest box around a hole that has a pixel."""
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def regions(reach: Bits, context_px: int) -> list[Box]:
    """The boxes in which holes are filled at full resolution, from the top; together they hold all of the reach.

    One box for each connected hole, `context_px` wider on every side, no longer than twice its width and at least
    128 px, shifted inside where the photo ends; boxes that overlap are joined.

    Args:
        reach: (H, W), what is to be filled; at least one pixel.
        context_px: from 1, so that each box has a known pixel unless the photo has none.
    """
    count, _, stats, _ = cv2.connectedComponentsWithStats(reach.astype(np.uint8), connectivity=8)
    pending = []
    for x, y, width, height, _ in stats[1:count].tolist():
        pending.append(_shaped(widened(Box(x, y, x + width, y + height), context_px), reach.shape))
    done = np.zeros((0, 4), np.int64)
    while pending:
        box = pending.pop()
        meets = (done[:, 0] < box.x1) & (done[:, 2] > box.x0) & (done[:, 1] < box.y1) & (done[:, 3] > box.y0)
        if meets.any():
            both = np.concatenate([done[meets], [box]])
            done = done[~meets]
            pending.append(_shaped(Box(*both[:, :2].min(0).tolist(), *both[:, 2:].max(0).tolist()), reach.shape))
        else:
            done = np.concatenate([done, [box]])
    return sorted((Box(*row) for row in done.tolist()), key=lambda box: (box.y0, box.x0))


class Piece(NamedTuple):
    """A part of a photo that is filled by itself, and which pixels of its fill (h, w) are taken."""

    box: Box
    own: Bits


def pieces(reach: Bits, sees_px: int, tile_px: int = 1024) -> list[Piece]:
    """The pieces in which an engine that looks no farther than `sees_px` fills the reach, each pixel once.

    Holes that are nowhere wider than half of `sees_px` are filled tile by tile, so that a scan full of dust and
    scratches needs memory for a tile only; each wider one has a piece of its own, as a cut through it would be seen.

    Args:
        reach: (H, W), what is to be filled; at least one pixel.
        sees_px: how far beyond its own pixels each piece reaches.
        tile_px: side of the tiles.
    """
    depth = np.asarray(cv2.distanceTransform(reach.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(reach.astype(np.uint8), connectivity=8)
    wide = np.zeros(count, bool)
    wide[labels[depth > sees_px / 4]] = True
    found = []
    for number in np.flatnonzero(wide):
        x, y, width, height = stats[number, :4].tolist()
        box = clipped(widened(Box(x, y, x + width, y + height), sees_px), reach.shape)
        found.append(Piece(box, np.asarray(labels[box.slices] == number)))
    narrow = reach & ~wide[labels]
    for tile in tiles_of(reach.shape, tile_px):
        if narrow[tile.slices].any():
            inner = around(narrow[tile.slices])
            core = Box(tile.x0 + inner.x0, tile.y0 + inner.y0, tile.x0 + inner.x1, tile.y0 + inner.y1)
            box = clipped(widened(core, sees_px), reach.shape)
            own = np.zeros((box.y1 - box.y0, box.x1 - box.x0), bool)
            own[moved(core, box).slices] = narrow[core.slices]
            found.append(Piece(box, own))
    return found


def tiles_of(shape: tuple[int, ...], side_px: int) -> Iterator[Box]:
    """The boxes of at most that side that cover a picture of that shape, none over another."""
    for y in range(0, shape[0], side_px):
        for x in range(0, shape[1], side_px):
            yield Box(x, y, min(x + side_px, shape[1]), min(y + side_px, shape[0]))


def moved(part: Box, area: Box) -> Box:
    """Where the part lies in an array that holds the area."""
    return Box(part.x0 - area.x0, part.y0 - area.y0, part.x1 - area.x0, part.y1 - area.y0)


def _shaped(box: Box, shape: tuple[int, ...]) -> Box:
    """The box at least 128 px and at most twice as long as wide, inside a picture of that shape."""
    height, width = shape
    wide, high = box.x1 - box.x0, box.y1 - box.y0
    wide, high = (
        max(side, _LEAST_SIDE_PX, math.ceil(other / _LONGEST)) for side, other in ((wide, high), (high, wide))
    )
    x0, x1 = _inside(box.x0, box.x1, wide, width)
    y0, y1 = _inside(box.y0, box.y1, high, height)
    return Box(x0, y0, x1, y1)


def _inside(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """A span of `length` about the middle of low..high, shifted into 0..limit and cut to it."""
    length = min(length, limit)
    start = min(max(0, (low + high - length) // 2), limit - length)
    return start, start + length


def widened(box: Box, by: int) -> Box:
    """The box so many pixels wider on every side."""
    return Box(box.x0 - by, box.y0 - by, box.x1 + by, box.y1 + by)


def clipped(box: Box, shape: tuple[int, ...]) -> Box:
    """What of the box lies in a picture of that (height, width)."""
    return Box(max(0, box.x0), max(0, box.y0), min(shape[1], box.x1), min(shape[0], box.y1))


def lay(photo: Photo, raster: Raster, box: Box, filled: Pixels, soft: Mask) -> None:
    """Nothing; in the raster, the box's pixels where `soft` is above 0 now show soft · filled + (1 - soft) · photo.

    Args:
        photo: the picture before; its colour space is the way from pixels to the raster.
        raster: a copy of the photo's, written to.
        box: which part of it.
        filled: (h, w, 3) float32 of the box.
        soft: (h, w) float32 of the box; pixels at 0 are not even looked at.
    """
    index = np.flatnonzero(soft)
    if len(index) == 0:
        return
    old = photo.colour.to_srgb(photo.raster[box.slices].reshape(-1, 3)[index][None])[0]
    step = soft.ravel()[index][:, None] * (np.take(filled.reshape(-1, 3), index, axis=0) - old)
    changed = np.flatnonzero(step.any(axis=1))
    row, column = np.divmod(index[changed], box.x1 - box.x0)
    new = photo.colour.from_srgb((old + step)[changed][None], photo.meta.bits)[0]
    raster[row + box.y0, column + box.x0] = new


def scaled(box: Box, scale: int) -> Box:
    """The box in a picture that is so many times as large."""
    return Box(*(side * scale for side in box))


def enlarged(mask: Mask, scale: int) -> Mask:
    """The mask so many times as large, smooth between its pixels' centres, 0 where they and their neighbours are 0."""
    size = (mask.shape[1] * scale, mask.shape[0] * scale)
    return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR), np.float32)


class Margins(NamedTuple):
    """Pixels by which a frame grows on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def margins(setting: str, width: int, height: int) -> Margins:
    """What `--outpaint` asks for, in pixels of a photo of that size; no margins for an empty setting.

    Raises:
        UsageError: it is not four numbers from 0, of pixels or per cent, of which one is above 0; or the frame would
            be more than ten times as wide or high, or have more pixels than a photo may have.
    """
    if not setting:
        return Margins()
    problem = f"--outpaint: expected LEFT,TOP,RIGHT,BOTTOM in pixels or per cent, not all 0, got {setting!r}"
    parts = [part.strip() for part in setting.split(",")]
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,9}%?", part) for part in parts):
        raise UsageError(f"{problem}; for example 0,0,256,0 or 10%,0,10%,0")
    sides = [
        round(int(part[:-1]) * length / 100) if part.endswith("%") else int(part)
        for part, length in zip(parts, (width, height, width, height), strict=True)
    ]
    if not any(sides):
        raise UsageError(f"{problem}; leave it out where nothing is to grow")
    wide, high = width + sides[0] + sides[2], height + sides[1] + sides[3]
    if wide > _MOST_GROWTH * width or high > _MOST_GROWTH * height or wide * high > MAX_PIXELS:
        most = f"at most {_MOST_GROWTH} times as wide and high as the photo, and {MAX_PIXELS:,} pixels"
        raise UsageError(f"--outpaint: expected a frame {most}, got {wide}x{high}; grow less")
    return Margins(*sides)


def steps(whole: Margins) -> Iterator[Margins]:
    """The margins in steps of at most 256 px on each side, which add up to them; all sides grow together."""
    count = -(-max(whole) // _STEP_PX)
    for step in range(count):
        yield Margins(*(side * (step + 1) // count - side * step // count for side in whole))


def extended(array: NDArray[Any], by: Margins) -> NDArray[Any]:
    """The raster or alpha with margins that repeat its outermost pixels."""
    left, top, right, bottom = by
    bordered: Any = cv2.copyMakeBorder(array, top, bottom, left, right, cv2.BORDER_REPLICATE)
    return np.asarray(bordered)


def within(bits: Bits, by: Margins) -> Bits:
    """The bits with margins of False around them."""
    return np.pad(bits, ((by.top, by.bottom), (by.left, by.right)))


def frame(shape: tuple[int, ...], by: Margins) -> Bits:
    """The hole that the margins are, around a picture of that (height, width)."""
    new = np.ones((shape[0] + by.top + by.bottom, shape[1] + by.left + by.right), bool)
    new[by.top : by.top + shape[0], by.left : by.left + shape[1]] = False
    return new
