"""Pasting patches into a photo, seam-free and box by box; outside the masks no bit changes.

With P the patch, O the crop it was made from, both laid into the canvas, C the canvas and m the soft mask, a
pixel becomes

    C + m · ( P - O - (1 - k) · (C - O) )

C - O is what the crop could not hold: detail finer than its pixels, grain, the losses of going there and back. k says
how much of it stays, and is measured: the share of O's finest detail that P still has, by local regression. A restorer
that keeps what is there has k = 1, and its difference alone is added, so a sharp photo stays as sharp as it was and an
unchanged crop changes no bit. One that smooths grain away, or draws the face anew, has k = 0, and the patch replaces
the picture, so nothing of the old grain shines through.

Only pixels whose value changes are encoded and written; all others keep their bits, whatever the colour profile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align
from facefix.errors import UsageError
from facefix.types import Box, Mask, Matrix, Patch, Photo, Pixels, Raster

_TILE_PX = 1024
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
_DETAIL_FLOOR = np.float32((0.5 / 255) ** 2)
_REDRAWN, _KEPT = np.float32(0.6), np.float32(0.95)
_MASK_FLOOR = np.float32(1 / 512)


def paste(
    canvas: Photo,
    patches: Sequence[Patch],
    scale: float = 1.0,
    within: Mask | None = None,
    strength: float | Sequence[float] = 1.0,
) -> Photo:
    """The canvas with the patches pasted; a new Photo whose pixels outside the masks are the canvas's, bit for bit.

    Where patches overlap, each counts by the square of its mask, and together they cover as much as their union.

    Args:
        canvas: the photo, or the photo enlarged by `scale` about pixel centres. Alpha and meta are kept.
        patches: in any order; `patch_from_photo` is in the unscaled photo's pixels.
        scale: canvas pixels for one photo pixel.
        within: (H, W) float32 of the unscaled photo: the masks are multiplied by it; where it is 0 nothing changes.
        strength: 0 leaves the canvas as it is, 1 replaces; one for all patches, or one for each.

    Raises:
        UsageError: `within` is not of the photo's size, or a strength is not in 0..1.
    """
    strengths = _strengths(strength, len(patches))
    if within is not None:
        expected = (round(canvas.height / scale), round(canvas.width / scale))
        if within.shape != expected:
            raise UsageError(
                f"mask: expected {expected} px (rows, columns) as the photo, got {within.shape}; resize it"
            )
    raster = canvas.raster.copy()
    placed = [
        (patch, box, each)
        for patch, each in zip(patches, strengths, strict=True)
        if (box := touched_box(patch, canvas, scale)) is not None
    ]

    def paste_group(group: Sequence[int]) -> None:
        layers = [_Layer.of(patch, box, scale, each) for patch, box, each in (placed[i] for i in group)]
        for tile in _tiles(around(layer.box for layer in layers)):
            _paste_tile(canvas, raster, layers, tile, within, scale)

    # groups share no pixel; OpenCV and NumPy let other threads run
    with ThreadPoolExecutor(max(1, cv2.getNumThreads())) as threads:
        for _ in threads.map(paste_group, groups([box for _, box, _ in placed])):
            pass
    return dataclasses.replace(canvas, raster=raster)


def _strengths(given: float | Sequence[float], count: int) -> Sequence[float]:
    """One for each patch.

    Raises:
        UsageError: one is not in 0..1.
    """
    for each in (given,) if isinstance(given, int | float) else given:
        if not 0 <= each <= 1:
            raise UsageError(f"strength: expected 0 to 1, got {each}; choose a value between")
    return [given] * count if isinstance(given, int | float) else given


def rebased(patch: Patch, canvas: Photo, scale: float) -> Patch:
    """The patch as one that replaces what the canvas shows, for canvases that a network enlarged.

    The crop was cut from the photo; such a canvas already has detail that the crop lacks, and the patch's own would
    come on top of it. With the crop cut from the canvas, the patch replaces the canvas's face.
    """
    patch_from_canvas = align.scaled(patch.patch_from_photo, scale)
    original = align.extract(canvas, patch_from_canvas, patch.mask.shape[0])
    return dataclasses.replace(patch, original=original)


class Share(NamedTuple):
    """What one patch does to some pixels: which of them, in a row (n,), its mask there (n,), what it adds (n, 3)."""

    which: NDArray[np.intp]
    mask: Mask
    step: NDArray[np.float32]
    within: Mask | float = 1.0
    """The user's mask there, (n,)."""


def reach(
    patch: Patch, canvas: Photo, box: Box, scale: float = 1.0, within: Mask | None = None, strength: float = 1.0
) -> Share:
    """The patch's share in the pixels of the box, counted row by row, as `paste` would lay it there.

    Args:
        patch: as for `paste`.
        canvas: as for `paste`.
        box: the patch's `touched_box`.
        scale: as for `paste`.
        within: as for `paste`.
        strength: as for `paste`.
    """
    layer, size = _Layer.of(patch, box, scale, strength), (box.y1 - box.y0, box.x1 - box.x0)
    own, step = np.zeros(size, np.float32), np.zeros((*size, 3), np.float32)
    for tile in _tiles(box):
        change, base, mask = layer.over(tile)
        at = inside(tile, box)
        own[at] = mask
        added = _step(change.reshape(-1, 4), base.reshape(-1, 4), canvas.pixels(tile).reshape(-1, 3))
        step[at] = added.reshape(*mask.shape, 3)
    if within is None:
        which = np.flatnonzero(own)
        return Share(which, _taken(own, which), _taken(step, which))
    allowed = _at_scale(within, box, scale)
    which = np.flatnonzero((own > 0) & (allowed > 0))
    return Share(which, _taken(own, which), _taken(step, which), _taken(allowed, which))


def joined(canvas: Photo, codes: Raster, shares: Sequence[Share]) -> Raster:
    """What the shares together make of pixels of the canvas, (n, 3), as `paste` would have.

    Args:
        canvas: whose colour space and depth the pixels have.
        codes: (n, 3), the pixels.
        shares: their `which` counts these pixels.
    """
    old = canvas.colour.to_srgb(codes[None])[0]
    step, weight = _averaged(len(old), shares)
    within = np.ones(len(old), np.float32)
    for share in shares:
        within[share.which] = share.within
    step *= (weight * within)[:, None]
    changed = np.flatnonzero(step.any(axis=1))
    new: Raster = codes.copy()
    new[changed] = canvas.colour.from_srgb((old[changed] + step[changed])[None], canvas.meta.bits)[0]
    return new


def touched_box(patch: Patch, canvas: Photo, scale: float = 1.0) -> Box | None:
    """The box of the canvas that the patch's mask can reach, or None where it lies outside."""
    rows, columns = np.flatnonzero(patch.mask.any(1)), np.flatnonzero(patch.mask.any(0))
    if len(rows) == 0:
        return None
    canvas_from_patch = align.invert(align.scaled(patch.patch_from_photo, scale))
    support = (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)
    x0, y0, x1, y1 = align.bounds(canvas_from_patch, support)
    reach = 2 + 3 * max(1.0, align.magnification(canvas_from_patch))
    left, top = max(0, math.floor(x0 - reach)), max(0, math.floor(y0 - reach))
    right, bottom = min(canvas.width, math.ceil(x1 + reach) + 1), min(canvas.height, math.ceil(y1 + reach) + 1)
    return Box(left, top, right, bottom) if left < right and top < bottom else None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A patch made ready to be sampled anywhere in the canvas."""

    box: Box
    change: NDArray[np.float32]
    """(h, w, 4): P - O, and the mask."""
    base: NDArray[np.float32]
    """(h, w, 4): O, and k."""
    canvas_from_layer: Matrix
    kernel: int

    @classmethod
    def of(cls, patch: Patch, box: Box, scale: float, strength: float) -> _Layer:
        """The layer of a patch that reaches `box` of the canvas."""
        canvas_from_patch = align.invert(align.scaled(patch.patch_from_photo, scale))
        density = 1 / align.magnification(canvas_from_patch)
        ready = align.prepared(patch.original, density)
        original = ready.pixels
        step = align.prepared(patch.pixels, density).pixels - original
        mask = align.prepared(patch.mask, density).pixels * np.float32(strength)
        finest_px = density / 2 ** align.halvings(density) if density > 1 else 2.0
        change = _array(cv2.merge([step, mask]))
        base = _array(cv2.merge([original, _kept_share(original, step, finest_px)]))
        return cls(
            box, change, base, align.compose(canvas_from_patch, align.invert(ready.prepared_from_source)), ready.kernel
        )

    def over(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.float32], Mask]:
        """Over a box of the canvas: `change` and `base` sampled, (h, w, 4), and the mask."""
        box_from_layer = self.canvas_from_layer - np.array([[0, 0, box.x0], [0, 0, box.y0]], np.float64)
        size = (box.x1 - box.x0, box.y1 - box.y0)
        change = align.sampled(self.change, box_from_layer, size, self.kernel, cv2.BORDER_CONSTANT)
        base = align.sampled(self.base, box_from_layer, size, self.kernel)
        return change, base, np.clip((change[:, :, 3] - _MASK_FLOOR) / (1 - 2 * _MASK_FLOOR), 0, 1)


def _kept_share(original: Pixels, change: Pixels, finest_px: float) -> NDArray[np.float32]:
    """k, (h, w) in 0..1: whether the patch still has the original's finest detail.

    The regression coefficient, over a window of some 10 finest pixels, of the patch's detail on the original's, brought
    smoothly to 0 at 0.6 and to 1 at 0.95. Noise below the crop's own finest detail is stronger than in it, so a share
    that is a little too low already asks for the patch alone: on six photos with noise of 8 to 12 grey levels and the
    clean crop as restored, these limits gave 0.6 to 4 dB more than the coefficient itself, and nothing less elsewhere.
    """
    before, added = luma(original), luma(change)
    detail = before - blurred(before, 0.8 * finest_px)
    detail_added = added - blurred(added, 0.8 * finest_px)
    side = 2 * round(5 * finest_px) + 1
    power = cv2.blur(detail * detail, (side, side), borderType=cv2.BORDER_REFLECT_101)
    shared = cv2.blur(detail * detail_added, (side, side), borderType=cv2.BORDER_REFLECT_101)
    share = 1 + np.asarray(shared, np.float32) / (np.asarray(power, np.float32) + _DETAIL_FLOOR)
    kept = np.clip((share - _REDRAWN) / (_KEPT - _REDRAWN), 0, 1)
    return np.asarray(kept * kept * (3 - 2 * kept), np.float32)


def _paste_tile(
    canvas: Photo, raster: Raster, layers: Sequence[_Layer], tile: Box, within: Mask | None, scale: float
) -> None:
    """Writes what the layers make of one tile of the canvas into the raster."""
    reached = [(layer, part) for layer in layers if (part := _common(layer.box, tile)) is not None]
    if not reached:
        return
    area = around(part for _, part in reached)
    sampled = [(layer.over(part), inside(part, area)) for layer, part in reached]
    covered = np.zeros((area.y1 - area.y0, area.x1 - area.x0), bool)
    for (_, _, mask), at in sampled:
        covered[at] |= mask > 0
    allowed = None
    if within is not None:
        allowed = _at_scale(within, area, scale)
        covered &= allowed > 0
    # from here on only the covered pixels, in a row
    index = np.flatnonzero(covered)
    codes = _taken(canvas.raster[area.slices], index)[None]
    old = canvas.colour.to_srgb(codes)[0]
    step, weight = _combined(sampled, covered, index, old)
    if allowed is not None:
        weight = weight * _taken(allowed, index)
    step *= weight[:, None]
    changed = np.flatnonzero((step[:, 0] != 0) | (step[:, 1] != 0) | (step[:, 2] != 0))
    new = np.take(old, changed, axis=0) + np.take(step, changed, axis=0)
    row, column = np.divmod(index[changed], covered.shape[1])
    where = (row + area.y0) * canvas.width + column + area.x0
    raster.reshape(-1, 3)[where] = canvas.colour.from_srgb(new[None], canvas.meta.bits)[0]


_Sampled = tuple[tuple[NDArray[np.float32], NDArray[np.float32], Mask], tuple[slice, slice]]


def _combined(
    sampled: Sequence[_Sampled], covered: NDArray[np.bool_], index: NDArray[np.intp], old: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The layers' changes (n, 3) of the covered pixels, averaged by their masks' squares, and the masks' union."""
    if len(sampled) == 1:
        (change, base, mask), _ = sampled[0]
        return _step(_taken(change, index), _taken(base, index), old), _taken(mask, index)
    number = np.zeros(covered.shape, np.intp)
    number.reshape(-1)[index] = np.arange(len(index))

    shares = []
    for (change, base, mask), at in sampled:
        here = np.flatnonzero(covered[at] & (mask > 0))
        which = _taken(number[at], here)
        step = _step(_taken(change, here), _taken(base, here), np.take(old, which, axis=0))
        shares.append(Share(which, _taken(mask, here), step))
    return _averaged(len(old), shares)


def _averaged(count: int, shares: Sequence[Share]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The changes (count, 3) that the shares make together, averaged by their masks' squares, and the masks' union.

    A pixel that only one of them touches gets exactly what that one alone gives, to the last bit.
    """
    step, weight = np.zeros((count, 3), np.float32), np.zeros(count, np.float32)
    covered = np.zeros(count, np.float32)
    for share in shares:
        weight[share.which] += share.mask * share.mask
        covered[share.which] += share.mask - covered[share.which] * share.mask
    for share in shares:
        part = share.mask * share.mask / np.maximum(weight[share.which], np.finfo(np.float32).tiny)
        step[share.which] += part[:, None] * share.step
    return step, covered


def _taken(picture: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """The picture's pixels with these flat numbers, in a row; several times as fast as picking by a bool array."""
    return np.take(picture.reshape(-1, *picture.shape[2:]) if picture.ndim == 3 else picture.ravel(), index, axis=0)


def _step(change: NDArray[np.float32], base: NDArray[np.float32], old: NDArray[np.float32]) -> NDArray[np.float32]:
    """P - O - (1 - k) · (C - O) for pixels in a row, (n, 3)."""
    lost = old - base[:, :3]
    lost *= np.clip(base[:, 3:], 0, 1) - 1
    lost += change[:, :3]
    return lost


def inside(part: Box, area: Box) -> tuple[slice, slice]:
    """The rows and columns of `part` in an array that holds `area`."""
    return Box(part.x0 - area.x0, part.y0 - area.y0, part.x1 - area.x0, part.y1 - area.y0).slices


def _at_scale(within: Mask, area: Box, scale: float) -> Mask:
    """The user's mask over a box of the canvas; a canvas pixel takes the photo pixel it lies in."""
    rows, columns = (
        np.clip(((np.arange(low, high) + 0.5) / scale).astype(np.int64), 0, length - 1)
        for low, high, length in ((area.y0, area.y1, within.shape[0]), (area.x0, area.x1, within.shape[1]))
    )
    return within[rows[:, None], columns]


def groups(boxes: Sequence[Box]) -> list[list[int]]:
    """The boxes' numbers in groups, such that boxes of different groups do not overlap."""
    known: list[tuple[Box, list[int]]] = []
    for number, box in enumerate(boxes):
        joined, members = box, [number]
        while True:
            near = [group for group in known if _common(group[0], joined) is not None]
            if not near:
                break
            known = [group for group in known if group not in near]
            joined = around([joined, *(group[0] for group in near)])
            members = sorted([*members, *(i for group in near for i in group[1])])
        known.append((joined, members))
    return [members for _, members in known]


def _tiles(box: Box) -> Iterable[Box]:
    """The box in pieces of at most 1024 px."""
    for y in range(box.y0, box.y1, _TILE_PX):
        for x in range(box.x0, box.x1, _TILE_PX):
            yield Box(x, y, min(x + _TILE_PX, box.x1), min(y + _TILE_PX, box.y1))


def around(boxes: Iterable[Box]) -> Box:
    """The smallest box around all."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return Box(min(x0), min(y0), max(x1), max(y1))


def _common(first: Box, second: Box) -> Box | None:
    """What both boxes hold, or None."""
    box = Box(max(first.x0, second.x0), max(first.y0, second.y0), min(first.x1, second.x1), min(first.y1, second.y1))
    return box if box.x0 < box.x1 and box.y0 < box.y1 else None


def _array(result: Any) -> NDArray[np.float32]:
    """OpenCV's result, typed."""
    return np.asarray(result, np.float32)


def blurred(plane: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """The plane after a Gaussian."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px), np.float32)


def luma(pixels: Pixels) -> NDArray[np.float32]:
    """How light each pixel is, (h, w)."""
    return np.asarray(cv2.transform(pixels, _LUMA), np.float32)
