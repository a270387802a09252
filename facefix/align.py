"""Where a face's crop lies in the photo: templates, similarity fit, anti-aliased warps and their exact inverse.

Every picture is warped the same way, whichever direction it goes:
    big to small  halve by binomial filters until two to four source pixels make one, low-pass with a Lanczos kernel of
                  the right width that also makes good what the halving dimmed, then sample.
    small to big  double (small pictures: quadruple) with a Lanczos kernel first, separable, so cheap, then sample;
                  that loses hardly anything up to the source's own limit.
A crop reads only the box of the photo that it needs, strip by strip, and reflects the photo at its frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.errors import DegenerateLandmarks, UsageError
from facefix.types import Box, Crop, Face, Matrix, Photo, Pixels, Points, Template

_TEMPLATE_SIZE = 512
_FIT_FLOOR = 0.5
_TILE_PX = 512
_STRIP_PX = 1 << 21
_REACH = 3.0
_QUADRUPLED_PX = 1 << 16


def _template(name: str, *points: tuple[float, float]) -> Template:
    return Template(name, _TEMPLATE_SIZE, np.array(points, np.float64))


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "gpen": _template(
            "gpen",
            (202.041, 242.884),
            (309.430, 242.290),
            (256.077, 303.959),
            (211.960, 366.828),
            (300.891, 366.336),
        ),
        "ffhq": _template(
            "ffhq",
            (192.98138, 239.94708),
            (318.90277, 240.1936),
            (256.63416, 314.01935),
            (201.26117, 371.41043),
            (313.08905, 371.15118),
        ),
    }
)
"""The five points in a 512 px crop: GPEN's own wider one, and the one of FFHQ that facexlib and its family use."""


def template(name: str, size: int) -> Template:
    """The named template for crops of `size` pixels, scaled about pixel centres.

    Args:
        name: a key of `TEMPLATES`.
        size: side of the crop, px, ≥ 16.

    Raises:
        UsageError: no such template, or no such size.

    Example:
        >>> float(template("gpen", 1024).points[0, 0])
        404.582
    """
    if name not in TEMPLATES:
        raise UsageError(f"template: expected {' or '.join(TEMPLATES)}, got {name!r}; correct the weight record")
    if size < 16:
        raise UsageError(f"template size: expected at least 16 px, got {size}; correct the weight record")
    base = TEMPLATES[name]
    factor = size / base.size
    return Template(name, size, (base.points + 0.5) * factor - 0.5)


def estimate(points: Points, target: Template) -> Matrix:
    """The similarity (rotation, one scale, shift) crop_from_photo that best takes the points to the template's.

    Args:
        points: (5, 2) float64 in photo pixels, in the order of `Face.points`.
        target: where they are to stand.

    Raises:
        DegenerateLandmarks: points not finite, all in one place, or arranged like no face (mirrored, scrambled), so
            that less than half of the template's spread is explained.

    Source: S. Umeyama, Least-squares estimation of transformation parameters between two point patterns,
        IEEE PAMI 13(4), 1991, equations 40 to 43.
    """
    if not np.isfinite(points).all():
        raise DegenerateLandmarks("landmarks: expected five finite points, got NaN or infinity; skip this face")
    source, goal = points - points.mean(0), target.points - target.points.mean(0)
    spread, goal_spread = float((source**2).sum()), float((goal**2).sum())
    if spread < 1e-3:
        raise DegenerateLandmarks("landmarks: expected five separate points, got all in one place; skip this face")
    left, singular, right = np.linalg.svd(goal.T @ source)
    signs = np.array([1.0, math.copysign(1.0, np.linalg.det(left) * np.linalg.det(right))])
    common = float((singular * signs).sum())
    explained = common**2 / (spread * goal_spread)
    if common <= 0 or explained < _FIT_FLOOR:
        raise DegenerateLandmarks(
            f"landmarks: expected points arranged like a face, got {explained:.0%} of the template explained; "
            "skip this face"
        )
    linear = common / spread * (left * signs) @ right
    shift = target.points.mean(0) - linear @ points.mean(0)
    return np.column_stack([linear, shift])


def invert(matrix: Matrix) -> Matrix:
    """The exact inverse, src_from_dst, of a (2, 3) float64 dst_from_src."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def compose(c_from_b: Matrix, b_from_a: Matrix) -> Matrix:
    """The transform c_from_a that goes through b."""
    linear = c_from_b[:, :2] @ b_from_a[:, :2]
    return np.column_stack([linear, c_from_b[:, :2] @ b_from_a[:, 2] + c_from_b[:, 2]])


def scaling(scale: float, shift: tuple[float, float] = (0.0, 0.0)) -> Matrix:
    """The transform x' = (x - shift + 0.5)·scale - 0.5: scaling about pixel centres, `shift` in source pixels."""
    offsets = [(0.5 - shift[axis]) * scale - 0.5 for axis in (0, 1)]
    return np.array([[scale, 0.0, offsets[0]], [0.0, scale, offsets[1]]], np.float64)


def scaled(crop_from_photo: Matrix, scale: float) -> Matrix:
    """The transform crop_from_canvas, for a canvas that is the photo scaled by `scale` about pixel centres."""
    return compose(crop_from_photo, scaling(1.0 / scale))


def moved(matrix: Matrix, points: Points) -> Points:
    """The points (n, 2) float64 taken through dst_from_src."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def magnification(matrix: Matrix) -> float:
    """Destination pixels for one source pixel, as a length: the root of the determinant."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def face_px(crop_from_photo: Matrix, target: Template) -> float:
    """How many photo pixels the side of the crop spans."""
    return target.size / magnification(crop_from_photo)


def crop(photo: Photo, face: Face, target: Template) -> Crop:
    """The aligned face, anti-aliased, 0..1, with the photo reflected where the crop reaches over its frame.

    Reads and converts only the box that the crop covers, in pieces, so a scan of any size costs little memory.

    Args:
        photo: the photo, 8 or 16 bit.
        face: where the face is.
        target: the template of the network that will see the crop.

    Raises:
        DegenerateLandmarks: the five points fix no crop.
    """
    crop_from_photo = estimate(face.points, target)
    pixels = extract(photo, crop_from_photo, target.size)
    return Crop(pixels, crop_from_photo, face, target)


def extract(photo: Photo, crop_from_photo: Matrix, size: int) -> Pixels:
    """The (size, size, 3) float32 crop, 0..1, that `crop_from_photo` cuts; see `crop`."""
    pixels = np.empty((size, size, 3), np.float32)
    step = _TILE_PX if magnification(crop_from_photo) > 0.25 else _TILE_PX // 2
    for y in range(0, size, step):
        for x in range(0, size, step):
            part = pixels[y : y + step, x : x + step]
            part_from_photo = crop_from_photo - np.array([[0, 0, x], [0, 0, y]], np.float64)
            _extract_part(photo, part_from_photo, part)
    return np.clip(pixels, 0, 1, out=pixels)


def _extract_part(photo: Photo, part_from_photo: Matrix, out: Pixels) -> None:
    """Fills `out` with what the transform cuts from the photo."""
    size = (out.shape[1], out.shape[0])
    density = 1 / magnification(part_from_photo)
    reduction = 1 << max(0, halvings(density) - 1)
    x0, y0, x1, y1 = bounds(invert(part_from_photo), (-0.5, -0.5, size[0] - 0.5, size[1] - 0.5))
    margin = (_REACH + 2) * max(density, 1.0) + 3 * reduction + 4
    box = Box(math.floor(x0 - margin), math.floor(y0 - margin), math.ceil(x1 + margin), math.ceil(y1 + margin))
    region = _reflected_region(photo, box, reduction)
    region_from_photo = scaling(1 / reduction, (box.x0, box.y0))
    out[...] = warp(region, compose(part_from_photo, invert(region_from_photo)), size)


def _reflected_region(photo: Photo, box: Box, reduction: int) -> Pixels:
    """The box of the photo, reflected past the frame, area-reduced by a whole number, read strip by strip."""
    width, height = -(-(box.x1 - box.x0) // reduction), -(-(box.y1 - box.y0) // reduction)
    columns = _reflected(np.arange(box.x0, box.x0 + width * reduction), photo.width)
    rows = _reflected(np.arange(box.y0, box.y0 + height * reduction), photo.height)
    left, right = int(columns.min()), int(columns.max()) + 1
    plain_columns = right - left == len(columns) and columns[0] == left
    region = np.empty((height, width, 3), np.float32)
    step = max(1, _STRIP_PX // (width * reduction * reduction))
    for top in range(0, height, step):
        taken = rows[top * reduction : (top + step) * reduction]
        low, high = int(taken.min()), int(taken.max()) + 1
        strip = photo.pixels(Box(left, low, right, high))
        if high - low != len(taken) or taken[0] != low:
            strip = strip[taken - low]
        if not plain_columns:
            strip = strip[:, columns - left]
        lines = region[top : top + step]
        lines[...] = _area_reduced(strip, reduction)
    return region


def _reflected(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices brought back into 0..length-1 by reflection about the outermost pixels' centres."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = np.abs(index) % period
    return np.asarray(np.minimum(folded, period - folded), np.int64)


def bounds(dst_from_src: Matrix, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The smallest upright (x0, y0, x1, y1) around the box after the transform."""
    x0, y0, x1, y1 = box
    corners = moved(dst_from_src, np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], np.float64))
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return left, top, right, bottom


def halvings(density: float) -> int:
    """How often a picture is halved first, when `density` source pixels make one: not below 4."""
    return max(0, math.floor(math.log2(density)) - 1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture filtered for sampling at one density; made by `prepared`."""

    pixels: NDArray[np.float32]
    prepared_from_source: Matrix
    kernel: int
    """cv2.INTER_LINEAR where the filtered picture is so much finer than the samples that it is enough, else cubic."""


def prepared(pixels: NDArray[np.float32], density: float) -> Prepared:
    """The picture ready for `sampled` at `density` source pixels a sample.

    Args:
        pixels: (h, w) or (h, w, 1 to 4) float32.
        density: source pixels for one destination pixel, as a length.
    """
    if density <= 1:
        small = density < 0.35 and pixels.shape[0] * pixels.shape[1] <= _QUADRUPLED_PX
        times = 4 if small else 2
        size = (pixels.shape[1] * times, pixels.shape[0] * times)
        larger = _array(cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4))
        return Prepared(larger, scaling(times), cv2.INTER_LINEAR if small else cv2.INTER_CUBIC)
    times = halvings(density)
    for _ in range(times):
        pixels = _array(cv2.pyrDown(pixels, borderType=cv2.BORDER_REPLICATE))
    linear = density >= 2
    taps = _low_pass(density / 2**times, times, linear)
    # pyrDown keeps pixel 2i as pixel i, so here a half is x/2 and not a scaling about centres
    prepared_from_source = np.array([[0.5**times, 0, 0], [0, 0.5**times, 0]], np.float64)
    filtered = _array(cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REPLICATE))
    return Prepared(filtered, prepared_from_source, cv2.INTER_LINEAR if linear else cv2.INTER_CUBIC)


def sampled(
    pixels: NDArray[np.float32],
    dst_from_pixels: Matrix,
    size: tuple[int, int],
    kernel: int,
    border: int = cv2.BORDER_REPLICATE,
) -> NDArray[np.float32]:
    """Prepared pixels sampled on a grid of `size` (width, height); kernel and border as OpenCV names them."""
    flags = kernel | cv2.WARP_INVERSE_MAP
    return _array(cv2.warpAffine(pixels, invert(dst_from_pixels), size, flags=flags, borderMode=border))


def warp(
    pixels: NDArray[np.float32], dst_from_src: Matrix, size: tuple[int, int], border: int = cv2.BORDER_REPLICATE
) -> NDArray[np.float32]:
    """The picture taken through a similarity, anti-aliased, on a grid of `size` (width, height).

    Args:
        pixels: (h, w) or (h, w, 1 to 4) float32, any range; overshoots are not clipped.
        dst_from_src: (2, 3) float64, a similarity.
        size: destination width and height, px.
        border: what lies past the source's edge, an OpenCV border mode (constant is 0).

    Source: checked against a float64 sum over a stretched Lanczos kernel in the tests.
    """
    ready = prepared(pixels, 1 / magnification(dst_from_src))
    dst_from_ready = compose(dst_from_src, invert(ready.prepared_from_source))
    return sampled(ready.pixels, dst_from_ready, size, ready.kernel, border)


def _area_reduced(pixels: NDArray[np.float32], reduction: int) -> NDArray[np.float32]:
    """Means over squares of `reduction` px; both sides must be multiples of it."""
    if reduction == 1:
        return pixels
    size = (pixels.shape[1] // reduction, pixels.shape[0] // reduction)
    return _array(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _low_pass(width: float, times: int, linear: bool) -> NDArray[np.float32]:
    """Taps, of sum 1, of the Lanczos-3 low-pass for one sample in `width` pixels of a picture that was halved `times`.

    Where the low-pass lets detail through, its response is divided by that of the halvings' binomial filters, cos⁴, and
    of linear sampling, sinc², where that follows.
    """
    reach = math.ceil(_REACH * width)
    at = np.arange(-reach, reach + 1) / width
    taps = np.sinc(at) * np.sinc(at / _REACH) * (np.abs(at) < _REACH)
    if times or linear:
        length = 16 * (reach + 4)
        frequency = np.minimum(np.fft.rfftfreq(length), 0.35)
        dimmed = np.sinc(frequency) ** 2 if linear else np.ones_like(frequency)
        for level in range(1, times + 1):
            dimmed = dimmed * np.cos(np.pi * frequency / 2**level) ** 4
        placed = np.roll(np.pad(taps, (0, length - len(taps))), -reach)
        taps = np.roll(np.fft.irfft(np.fft.rfft(placed) / dimmed, length), reach + 3)[: 2 * (reach + 3) + 1]
    return np.asarray(taps / taps.sum(), np.float32)


def _array(result: Any) -> NDArray[np.float32]:
    """OpenCV's result, typed."""
    return np.asarray(result, np.float32)
