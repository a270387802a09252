"""Overlapping windows over a length or a picture, and soft weights that sum to one over them.

For pixels, detection and latents alike: every size is counted in elements of whatever is tiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .types import Box

Span = tuple[int, int]


def windows(length: int, tile: int, overlap: int) -> list[Span]:
    """The spans [start, stop) that cover `length`, each `tile` long, neighbours sharing at least `overlap`.

    The fewest that do, spread evenly; one span over all of it where the length fits into one tile.

    Args:
        length: elements to cover, at least 1.
        tile: elements of one span, at least 1.
        overlap: elements that neighbours share at the least, 0 to tile - 1.

    Raises:
        UsageError: a size cannot work.

    >>> windows(10, 4, 1)
    [(0, 4), (3, 7), (6, 10)]
    """
    if length < 1 or tile < 1 or not 0 <= overlap < tile:
        wrong = f"length {length}, tile {tile}, overlap {overlap}"
        raise UsageError(f"tiles: expected length and tile ≥ 1 and 0 ≤ overlap < tile, got {wrong}; choose other sizes")
    if length <= tile:
        return [(0, length)]
    steps = -(-(length - tile) // (tile - overlap))
    starts = [i * (length - tile) // steps for i in range(steps + 1)]
    return [(start, start + tile) for start in starts]


def grid(height: int, width: int, tile: int, overlap: int) -> list[Box]:
    """The boxes that cover (height, width), row by row: `windows` down times `windows` across.

    >>> len(grid(100, 220, 128, 32))
    2
    """
    down, across = windows(height, tile, overlap), windows(width, tile, overlap)
    return [Box(x0, y0, x1, y1) for (y0, y1), (x0, x1) in product(down, across)]


def ramps(spans: Sequence[Span]) -> list[NDArray[np.float64]]:
    """One weight per element of each span, falling linearly over what it shares with a neighbour; sums are 1.

    Args:
        spans: as `windows` gives them: sorted, together covering their range, of which an element may be in several.

    Returns:
        For each span (stop - start,) float64, above 0 and up to 1; over all spans they sum to 1 at every element.
    """
    first, last = spans[0][0], spans[-1][1]
    total = np.zeros(last - first)
    rises = []
    before = [None, *(start[1] - stop[0] for start, stop in pairwise(spans))]
    after = [*before[1:], None]
    for (start, stop), shared_before, shared_after in zip(spans, before, after, strict=True):
        weight = np.ones(stop - start)
        steps = np.arange(1, stop - start + 1, dtype=np.float64)
        if shared_before:
            weight = np.minimum(weight, steps / (shared_before + 1))
        if shared_after:
            weight = np.minimum(weight, steps[::-1] / (shared_after + 1))
        total[start - first : stop - first] += weight
        rises.append(weight)
    return [w / total[start - first : stop - first] for w, (start, stop) in zip(rises, spans, strict=True)]


def weights(height: int, width: int, tile: int, overlap: int) -> list[NDArray[np.float64]]:
    """The soft weights of the boxes of `grid`, in its order; at every element they sum to 1.

    Returns:
        For each box (y1 - y0, x1 - x0) float64, above 0 and up to 1.
    """
    down, across = ramps(windows(height, tile, overlap)), ramps(windows(width, tile, overlap))
    return [np.outer(column, row) for column, row in product(down, across)]


def blend(parts: Iterable[NDArray[Any]], height: int, width: int, tile: int, overlap: int) -> NDArray[np.float32]:
    """The parts laid over the boxes of `grid` by their `weights`: (height, width, …) float32.

    Args:
        parts: one array of (y1 - y0, x1 - x0, …) per box, in the order of `grid`; taken one at a time.
        height: elements down.
        width: elements across.
        tile: elements of a box's side, as for `grid`.
        overlap: elements that neighbours share, as for `grid`.

    Raises:
        UsageError: there are more or fewer parts than boxes, or one has another shape than its box.
    """
    boxes, soft = grid(height, width, tile, overlap), weights(height, width, tile, overlap)
    out: NDArray[np.float32] | None = None
    count = 0
    for count, part in enumerate(parts, 1):
        if count > len(boxes):
            break
        box, weight = boxes[count - 1], soft[count - 1]
        if part.shape[:2] != weight.shape:
            raise UsageError(f"tiles: expected a part of {weight.shape} for {box}, got {part.shape}; do not resize it")
        if out is None:
            out = np.zeros((height, width, *part.shape[2:]), np.float32)
        out[box.slices] += part * weight.astype(np.float32).reshape(*weight.shape, *(1,) * (part.ndim - 2))
    if out is None or count != len(boxes):
        raise UsageError(f"tiles: expected {len(boxes)} part(s), got {count}; give one a box")
    return out
