"""Soft masks: from landmarks or a label map in crop space, and what a user's mask does to them in the photo.

Every face mask is 1 on the face, falls smoothly over a band whose width is a part of the face's width, and is 0 on
the crop's outermost pixels, so that a pasted patch has no edge of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix.errors import DegenerateLandmarks
from facefix.types import Labels, Mask, Matrix, Points

FEATHER = 0.18
"""Width of the soft band as a part of the face's width, where nothing else is asked for."""

_GRID = 128
_FACE_WIDTH_MM = 136.0
_EDGE = 0.05
_EDGE_ZERO = 0.008

_LANDMARKS_MM = np.array(
    [(-32.0, 0.0, 0.0), (32.0, 0.0, 0.0), (0.0, 38.0, 24.0), (-25.0, 66.0, 4.0), (25.0, 66.0, 4.0)], np.float64
)
"""The five points of an adult face, right, down and towards the viewer from between the eyes."""

_OUTLINE_MM = np.array(
    [
        (0.0, -62.0, 0.0), (-34.0, -58.0, -6.0), (34.0, -58.0, -6.0), (-56.0, -36.0, -24.0), (56.0, -36.0, -24.0),
        (-67.0, 0.0, -38.0), (67.0, 0.0, -38.0), (-66.0, 34.0, -38.0), (66.0, 34.0, -38.0),
        (-56.0, 74.0, -34.0), (56.0, 74.0, -34.0), (-37.0, 104.0, -14.0), (37.0, 104.0, -14.0),
        (-18.0, 118.0, 0.0), (18.0, 118.0, 0.0), (0.0, 46.0, 24.0),
    ],
    np.float64,
)  # fmt: skip
"""Forehead, temples, cheekbones, jaw, chin and nose tip of the same face."""


def landmark_mask(points: Points, size: int, feather: float = FEATHER) -> Mask:
    """A (size, size) mask over brows, cheeks and chin, turned and narrowed as the five points say.

    The points place an adult face's outline in the crop through an affine camera; its depth comes from where the nose
    stands, so a face turned aside gets a mask that follows it. The band of `feather` lies around the outline, half
    inside and half outside.

    Args:
        points: (5, 2) float64 in crop pixels, in the order of `Face.points`.
        size: side of the crop, px.
        feather: width of the soft band as a part of the face's width, 0.02 to 0.5.

    Raises:
        DegenerateLandmarks: the points span no area.

    Source: proportions from anthropometric tables (L. G. Farkas, Anthropometry of the Head and Face, 1994, means of
        adults, rounded); looked at on photos of the test set.
    """
    on_grid = (points + 0.5) * (_GRID / size) - 0.5
    outline = np.concatenate([_project_outline(on_grid), on_grid])
    hull = cv2.convexHull(outline.astype(np.float32))[:, 0].astype(np.float64)
    width = math.sqrt(max(_polygon_area(hull), 0.0) / 0.72 * _FACE_WIDTH_MM / 180.0)
    if width < 1:
        raise DegenerateLandmarks("landmarks: expected points that span a face, got an outline without area; skip it")
    band = feather * width
    soft = _smoothstep(0.5 - _distance_to_hull(hull, _GRID) / np.float32(band))
    soft = _array(cv2.GaussianBlur(soft, (0, 0), band / 6))
    return _resized(soft * _edge_window(_GRID), size)


def label_mask(labels: Labels, classes: Collection[int], size: int | None = None, feather: float = FEATHER) -> Mask:
    """A (size, size) mask over the pixels of these classes, with holes closed and the same softness at its edge.

    Args:
        labels: (S, S) uint8, one class a pixel.
        classes: the classes that may be replaced.
        size: side of the mask, px; the labels' own without it.
        feather: width of the soft band as a part of the region's width, 0.02 to 0.5.
    """
    side = labels.shape[0]
    chosen = np.isin(labels, sorted(classes)).astype(np.uint8)
    filled = _largest_filled(chosen)
    area = float(filled.sum())
    target = side if size is None else size
    if area < 16:
        return np.zeros((target, target), np.float32)
    band = feather * math.sqrt(area / 1.1)
    outside = cv2.distanceTransform(1 - filled, cv2.DIST_L2, cv2.DIST_MASK_5)
    inside = cv2.distanceTransform(filled, cv2.DIST_L2, cv2.DIST_MASK_5)
    soft = _smoothstep(0.5 - (np.asarray(outside, np.float32) - np.asarray(inside, np.float32)) / band)
    soft = _array(cv2.GaussianBlur(soft, (0, 0), band / 6))
    return _resized(soft * _edge_window(side), target)


def crop_mask(size: int, feather: float = FEATHER) -> Mask:
    """A (size, size) mask over the whole crop that fades out towards its edge, where it is 0.

    Args:
        size: side of the crop, px.
        feather: width of the soft band as a part of the side, 0.02 to 0.5.
    """
    at = np.arange(size, dtype=np.float32) + np.float32(0.5)
    ramp = _smoothstep(np.minimum(at, size - at) / np.float32(feather * size))
    return np.asarray(ramp[:, None] * ramp[None, :] * _edge_window(size), np.float32)


def touches(mask: Mask, mask_from_photo: Matrix, user_mask: Mask) -> bool:
    """Whether the face's mask, laid into the photo, meets the user's mask anywhere.

    Args:
        mask: (S, S) float32 in crop space.
        mask_from_photo: (2, 3) float64, the crop's transform.
        user_mask: (H, W) float32 in the photo, above 0 where it may change.
    """
    photo_from_mask = np.linalg.inv(np.vstack([mask_from_photo, (0, 0, 1)]))
    rows, columns = np.nonzero(mask > 0)
    if len(rows) == 0:
        return False
    left, right, top, bottom = columns.min() - 0.5, columns.max() + 0.5, rows.min() - 0.5, rows.max() + 0.5
    corners = np.array([(left, top, 1), (right, top, 1), (left, bottom, 1), (right, bottom, 1)]) @ photo_from_mask[:2].T
    height, width = user_mask.shape
    x0, y0 = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(0)) + 1, 0, (width, height)).astype(int)
    part = user_mask[y0:y1, x0:x1]
    found_y, found_x = np.nonzero(part > 0)
    if len(found_y) == 0:
        return False
    where = np.column_stack([found_x + x0, found_y + y0]) @ mask_from_photo[:, :2].T + mask_from_photo[:, 2]
    at = np.rint(where).astype(np.int64)
    inside = ((at >= 0) & (at < mask.shape[0])).all(1)
    return bool((mask[at[inside, 1], at[inside, 0]] > 0).any())


def _project_outline(points: Points) -> Points:
    """The face's outline where the five points place it, (n, 2).

    The depth column rests on the nose alone, so it is drawn towards 0 a little and limited to what a profile gives.
    """
    model = np.column_stack([_LANDMARKS_MM, np.ones(5)])
    centre = points.mean(0)
    weak = np.diag([0.0, 0.0, 60.0, 0.0])
    camera = np.linalg.solve(model.T @ model + weak, model.T @ (points - centre))
    across, down = float(np.linalg.norm(camera[0])), float(np.linalg.norm(camera[1]))
    limit, depth = 1.1 * max(across, down), float(np.linalg.norm(camera[2]))
    if depth > limit > 0:
        camera[2] *= limit / depth
    return np.asarray(np.column_stack([_OUTLINE_MM, np.ones(len(_OUTLINE_MM))]) @ camera + centre, np.float64)


def _distance_to_hull(hull: Points, size: int) -> NDArray[np.float32]:
    """Signed distance to a convex polygon on a (size, size) grid, below 0 inside: the farthest of its sides' lines."""
    if _signed_area(hull) < 0:
        hull = hull[::-1]
    along = np.roll(hull, -1, 0) - hull
    length = np.linalg.norm(along, axis=1)
    hull, along, length = hull[length > 1e-6], along[length > 1e-6], length[length > 1e-6]
    normal = (np.column_stack([along[:, 1], -along[:, 0]]) / length[:, None]).astype(np.float32)
    offset = (normal * hull).sum(1).astype(np.float32)
    at = np.arange(size, dtype=np.float32)
    farthest = np.full((size, size), -np.inf, np.float32)
    for (across, down), shift in zip(normal, offset, strict=True):
        np.maximum(farthest, (across * at - shift)[None, :] + (down * at)[:, None], out=farthest)
    return farthest


def _signed_area(polygon: Points) -> float:
    """The polygon's area, above 0 where it runs clockwise on the screen."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _polygon_area(polygon: Points) -> float:
    return abs(_signed_area(polygon))


def _largest_filled(region: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest connected part of the region, its holes filled."""
    outlines, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(region)
    if outlines:
        cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled


def _edge_window(size: int) -> NDArray[np.float32]:
    """1 in the middle, falling smoothly to 0 on the outermost pixels of a (size, size) square."""
    at = np.arange(size, dtype=np.float32)
    inward = np.minimum(at, at[::-1]) + np.float32(0.5)
    zero = max(2.0, _EDGE_ZERO * size)
    ramp = _smoothstep((inward - np.float32(zero)) / np.float32(_EDGE * size))
    return np.asarray(ramp[:, None] * ramp[None, :], np.float32)


def _smoothstep(at: NDArray[np.float32]) -> NDArray[np.float32]:
    """0 below 0, 1 above 1, and between them a curve that starts and ends level."""
    within = np.clip(at, 0, 1)
    return np.asarray(within * within * (3 - 2 * within), np.float32)


def _resized(mask: NDArray[np.float32], size: int) -> Mask:
    """The mask at another size, about pixel centres, within 0..1 whatever rounding did."""
    mask = np.clip(mask, 0, 1)
    if mask.shape[0] == size:
        return mask
    flags = cv2.INTER_AREA if size < mask.shape[0] else cv2.INTER_LINEAR
    return _array(cv2.resize(mask, (size, size), interpolation=flags))


def _array(result: Any) -> NDArray[np.float32]:
    """OpenCV's result, typed."""
    return np.asarray(result, np.float32)
