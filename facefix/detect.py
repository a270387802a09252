"""Photo -> Faces: one way around any detector.

A detector is right about faces of some sizes only: shrunk to 640 px a picture loses its small faces, at full size a
face of 600 px is missed or cut into several. `detect` therefore shows the photo at several sizes, large ones tile by
tile, and merges what is found. None is larger than it takes to suspect the smallest faces: whether a suspicion is a
face is decided by a closer look at that place alone, which costs little, and not by showing the whole photo larger.
The photo is never turned into floating point; only 8-bit copies are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import tiles
from facefix.detectors import NOTHING, Bytes, Detector, Floats, Found, distinct, join, overlaps
from facefix.errors import UsageError
from facefix.types import Box, Face, Photo

Rotations = Literal["auto", "always", "never"]

TILE_PX, OVERLAP_PX = 1280, 128
CANDIDATE = 0.6
"""A first find whose score is below this part of the threshold is a mere suspicion."""
LOOK = 2.0
"""Side of the second look in face sizes."""
FAINT = 0.05
INSIDE = 0.6
CLEAR = 0.2
"""How far the score of one position must lead for no further face to be asked."""


def detect(
    photo: Photo,
    detector: Detector,
    *,
    threshold: float | None = None,
    min_face_px: float = 16.0,
    rotations: Rotations = "auto",
    reach: int = 200,
) -> tuple[Face, ...]:
    """The faces of the photo, from left to right and, where equal, from top to bottom.

    Every find is looked at once more, alone, upright and at the size that suits the detector, as it is and mirrored:
    what is not found again there is no face, and the points are the mean of both looks.

    `Face.points` are eye, eye, nose, mouth corner, mouth corner, each left before right as the face's own upright
    picture has them. In a photo that lies on its side they keep this order, so that a crop aligned by the points comes
    out upright.

    Args:
        photo: any size, 8 or 16 bits; its ICC profile does not matter here.
        detector: from `detectors.load`.
        threshold: the lowest score that counts, 0..1; None takes the detector's own.
        min_face_px: faces whose box is smaller (geometric mean of its sides, in the photo's pixels) are left out.
        rotations: "never" searches the photo as it is, "always" also turned by 90, 180 and 270 degrees, "auto" does so
            where nothing sure is found, and takes another position where the faces found fit it better.
        reach: faces smaller than this part of the photo's longer side are not searched for, which bounds the time
            that a large scan takes; a higher number finds smaller faces.

    Returns:
        The faces, in the photo's pixels; a box may reach over the frame.

    >>> import numpy as np
    >>> from facefix import detectors
    >>> detect(Photo(np.zeros((40, 30, 3), np.uint8)), detectors.load("centerface"))
    ()
    """
    if rotations not in ("auto", "always", "never"):
        raise UsageError(f"rotations: expected auto, always or never, got {rotations!r}; choose one of them")
    least = detector.threshold if threshold is None else threshold
    levels = _levels(photo, detector, min_face_px, reach)
    found = _looked_at(_search(levels, detector, least, 0), levels, detector, least)
    turns: tuple[int, ...] = () if rotations == "never" else (1, 2, 3)
    if rotations == "auto" and np.any(found.scores >= max(detector.sure, least)):
        turn = _turns_upright(found[found.scores >= least], levels, detector)
        turns, found = ((turn,), NOTHING) if turn else ((), found)
    if turns:
        turned = [_search(levels, detector, least, turn) for turn in turns]
        found = join([found, *(_looked_at(part, levels, detector, least) for part in turned)])
    found = found[(found.scores >= least) & (found.sizes >= min_face_px)]
    found = found[distinct(found, found.scores, inside=INSIDE)]
    order = np.lexsort((found.boxes[:, 1], found.boxes[:, 0]))
    return tuple(Face(found.boxes[i].copy(), found.points[i].copy(), float(found.scores[i])) for i in order)


# --- the photo at several sizes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Level:
    """The photo at one size, and its pixels per pixel of the photo, across and down."""

    raster: NDArray[Any]
    scale: Floats

    def shown(self, part: tuple[slice, slice]) -> Bytes:
        """A part of it as a detector takes it: contiguous, 8 bits."""
        return _in_bytes(np.ascontiguousarray(self.raster[part]))


def _in_bytes(raster: NDArray[Any]) -> Bytes:
    return (raster >> 8).astype(np.uint8) if raster.dtype == np.uint16 else raster


def _levels(photo: Photo, detector: Detector, min_face_px: float, reach: int) -> list[Level]:
    """The photo at sizes a factor of two apart, largest first, until a face that fills it would not be too large.

    At the size of the second level the smallest faces are as large as it takes to suspect them; the first is for looks.
    """
    height, width = photo.height, photo.width
    scale = min(1.0, detector.suspect_px / max(min_face_px, max(height, width) / reach))
    scales = [min(1.0, 2 * scale), scale]
    while max(height, width) * scales[-1] > detector.largest_px:
        scales.append(scales[-1] / 2)
    levels: list[Level] = []
    raster: NDArray[Any] = photo.raster
    for scale in scales:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        if size != (raster.shape[1], raster.shape[0]):
            # to more than half the size, areas are no better than lines for any detector, and five times as slow
            way = cv2.INTER_AREA if raster.shape[1] >= 2 * size[0] else cv2.INTER_LINEAR
            raster = cv2.resize(raster, size, interpolation=way)
        levels.append(Level(raster, np.array([size[0] / width, size[1] / height])))
    return levels


def _search(levels: list[Level], detector: Detector, least: float, turns: int) -> Found:
    """What may be faces: the finds of every other level in the photo's pixels, of each face those of its best level."""
    parts, qualities = [], []
    for level in {id(level): level for level in (*levels[1::2], levels[-1])}.values():
        height, width = level.raster.shape[:2]
        for box in _tiles(height, width):
            shown = np.ascontiguousarray(np.rot90(level.shown(box.slices), turns))
            found = _turned_back(detector.at(shown, least * detector.suspicion), turns, *shown.shape[:2])
            found = found[_whole(found.boxes, box, height, width)]
            qualities.append(found.scores - 0.1 * np.abs(np.log2(found.sizes / detector.best_px)))
            parts.append(found.moved(np.array([box.x0, box.y0]), 1 / level.scale))
    found = join(parts)
    return found[distinct(found, np.concatenate(qualities))]


def _tiles(height: int, width: int) -> list[Box]:
    """The boxes in which a picture of that size is shown: no more than it takes, and none larger than needed."""
    down, across = (_windows(side) for side in (height, width))
    return [Box(x0, y0, x1, y1) for y0, y1 in down for x0, x1 in across]


def _windows(side: int) -> list[tiles.Span]:
    if side <= TILE_PX:
        return [(0, side)]
    count = -(-(side - OVERLAP_PX) // (TILE_PX - OVERLAP_PX))
    enough = -(-(side - OVERLAP_PX) // count) + OVERLAP_PX
    return tiles.windows(side, -(-enough // 32) * 32, OVERLAP_PX)


def _whole(boxes: Floats, box: Box, height: int, width: int) -> NDArray[np.bool_]:
    """Which of the boxes found in a tile keep clear of edges at which the picture goes on."""
    clear = np.array([2.0 * (box.x0 > 0), 2.0 * (box.y0 > 0), 2.0 * (box.x1 < width), 2.0 * (box.y1 < height)])
    across, down = box.x1 - box.x0 - 1, box.y1 - box.y0 - 1
    room = np.stack([boxes[:, 0], boxes[:, 1], across - boxes[:, 2], down - boxes[:, 3]], axis=1)
    whole: NDArray[np.bool_] = np.all((room > clear) | (clear == 0), axis=1)
    return whole


def _turned_back(found: Found, turns: int, height: int, width: int) -> Found:
    """What was found in a picture of (height, width) that np.rot90 had turned so often, in the picture before."""
    boxes, points = found.boxes.reshape(-1, 2, 2), found.points
    for _ in range(turns):
        boxes, points = (np.stack([height - 1 - a[..., 1], a[..., 0]], axis=-1) for a in (boxes, points))
        boxes = np.stack([boxes.min(axis=1), boxes.max(axis=1)], axis=1)
        height, width = width, height
    return Found(boxes.reshape(-1, 4), points, found.scores)


# --- the second look -----------------------------------------------------------------------------------------------


def _looked_at(found: Found, levels: list[Level], detector: Detector, least: float) -> Found:
    """Of the finds those that a closer look finds again, upright, as it is and mirrored; the mean of both looks.

    A mere suspicion is put right by a small look first; where that leads to a face that is known by then, it was a
    part of that one. A find whose score could not count, whatever the mirror shows, is not looked at there.
    """
    seen = NOTHING
    for i in np.argsort(-found.scores, kind="stable"):
        find = found[i : i + 1]
        if find.scores[0] < least * CANDIDATE:
            small = _view(find, levels, detector.best_px / 2)
            find = _beside(seen, small.in_photo(small.look(detector)), least)
        if not len(find):
            continue
        view = _view(find, levels, detector.best_px)
        looks = [view.look(detector)]
        if looks[0].scores.sum() >= 2 * least - 1:
            looks.append(view.look(detector, mirrored=True))
        seen = join([seen, view.in_photo(join(looks))])
    return seen


def _beside(seen: Found, find: Found, least: float) -> Found:
    """The find, or nothing where it is a part of what was seen and counts."""
    faces = seen.boxes[seen.scores >= least]
    return NOTHING if len(find) and np.any(overlaps(faces, find.boxes[0])[1] >= INSIDE) else find


def _turns_upright(found: Found, levels: list[Level], detector: Detector, most: int = 4) -> int:
    """How often np.rot90 must turn the photo for its faces to stand upright, 0..3, as the best few of them say.

    A detector finds most faces in any of four positions, with points as if they stood upright; seen in their true
    position they get the highest score. Shown small, most differ more, and cost less; where that does not tell, they
    are shown large, too.
    """
    votes = np.zeros(4)
    best = found[np.argsort(-found.scores, kind="stable")[:most]]
    own = np.rint(np.arctan2(*-_up(best.points).T) / (np.pi / 2)).astype(int)
    for face_px, i in product((detector.best_px / 2, detector.best_px), range(len(best))):
        for quarter in range(4):
            view = _view(best[i : i + 1], levels, face_px, quarter)
            votes[-(own[i] + quarter) % 4] += view.look(detector).scores.sum()
        second, first = np.sort(votes)[-2:]
        if first - second > CLEAR:
            break
    return int(np.argmax(votes))


@dataclass(frozen=True, slots=True)
class View:
    """A square cut out around a find, upright and at some size: the picture, where it lies, and where the find is.

    `turn` and `shift` lead from the photo into it; `lying` says whether width and height of a box change places.
    """

    crop: Bytes
    turn: Floats
    shift: Floats
    half: Floats
    lying: bool

    def look(self, detector: Detector, *, mirrored: bool = False) -> Found:
        """The best find that lies where the find is, in the view's pixels; nothing where none does."""
        side = self.crop.shape[0]
        shown = np.ascontiguousarray(self.crop[:, ::-1]) if mirrored else self.crop
        found = detector.at(shown, FAINT)
        wanted = (side - 1) / 2 + np.concatenate([-self.half, self.half])
        return _nearest(_mirrored(found, side) if mirrored else found, wanted)

    def in_photo(self, looks: Found) -> Found:
        """The mean of the looks in the photo; one that found nothing counts as a score of 0."""
        if not len(looks):
            return NOTHING
        box, points = looks.boxes.mean(axis=0).reshape(2, 2), looks.points.mean(axis=0)
        back = np.linalg.inv(self.turn)
        points, middle = (points - self.shift) @ back.T, (box.mean(axis=0) - self.shift) @ back.T
        half = (box[1] - box[0])[:: -1 if self.lying else 1] / np.hypot(*self.turn[0]) / 2
        box = np.concatenate([middle - half, middle + half])
        return Found(box[None], points[None], np.array([looks.scores.sum() / 2]))


def _view(find: Found, levels: list[Level], face_px: float, quarter: int = 0) -> View:
    """The view of one find in which its face is `face_px` large.

    Its points say where up is; `quarter` turns that by 90 degrees, counterclockwise.
    """
    size, middle = float(find.sizes[0]), find.boxes[0].reshape(2, 2).mean(axis=0)
    zoom = face_px / size
    side = round(face_px * LOOK / 32) * 32
    level = next((level for level in reversed(levels) if level.scale.max() >= zoom), levels[0])
    up = _up(find.points)[0]
    for _ in range(quarter):
        up = np.array([up[1], -up[0]])
    cos, sin = -up[1], up[0]
    turn = np.array([[cos, sin], [-sin, cos]]) * zoom
    shift = (side - 1) / 2 - turn @ middle
    crop_from_level = np.column_stack([turn / level.scale, turn @ (0.5 / level.scale - 0.5) + shift])
    crop = cv2.warpAffine(
        level.raster, crop_from_level, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    lying = bool(abs(cos) < abs(sin))
    half = (find.boxes[0, 2:] - find.boxes[0, :2])[:: -1 if lying else 1] * zoom / 2
    return View(_in_bytes(crop), turn, shift, half, lying)


def _mirrored(found: Found, width: int) -> Found:
    """The finds of a picture in its mirror picture of that width; left and right points change places."""
    boxes = np.stack(
        [width - 1 - found.boxes[:, 2], found.boxes[:, 1], width - 1 - found.boxes[:, 0], found.boxes[:, 3]], axis=1
    )
    points = np.stack([width - 1 - found.points[..., 0], found.points[..., 1]], axis=-1)
    return Found(boxes, points[:, [1, 0, 2, 4, 3]], found.scores)


def _nearest(found: Found, wanted: Floats) -> Found:
    """The best find that lies on the wanted box, alone; none where none does."""
    found = found[overlaps(found.boxes, wanted)[0] > 0.3]
    return found[np.argsort(-found.scores, kind="stable")[:1]]


def _up(points: Floats) -> Floats:
    """Unit vectors from the mouths to the eyes, (n, 2); straight up where the points do not say."""
    up = points[:, :2].mean(axis=1) - points[:, 3:].mean(axis=1)
    length = np.linalg.norm(up, axis=1, keepdims=True)
    return np.where(length > 1e-6, up / np.maximum(length, 1e-6), [0.0, -1.0])
