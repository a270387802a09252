"""The face engine: GPEN-Inpainting-1024 draws what is missing of a face.

The face around the hole is found and aligned as FFHQ is, the hole is shown in white, and of the network's answer only
what lies in the hole is used. It was published with strokes all over the aligned picture, hair and background of a
portrait included, so a hole counts as lying on a face where it lies in the picture that is cut around one.

The network draws the known pixels anew, too, and a little off. How far off is known there, and is carried smoothly into
the hole and taken away. In the ten published results, with 20 px around the strokes held out as if they were hole, that
brings the mean error from 5.7 to 4.4 levels (it is lower in each of the ten), and the step at the hole's edge from 3.7
to 1.4.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align, detect, detectors, networks, runtime
from facefix.errors import DegenerateLandmarks, PhotoRefused
from facefix.inpaint import Progress, compose, matching
from facefix.inpaint.telea import Telea
from facefix.types import Box, Mask, Matrix, Meta, Photo, Pixels, PlainSRGB

TEMPLATES = ("ffhq", "gpen")
_WHITE_FROM = 0.02


def load(path: Path, *, detector: detectors.Detector, device: str = "auto", precision: str = "auto") -> FaceFiller:
    """The engine, ready.

    Args:
        path: GPEN-Inpainting-1024, or a network of your own with the same conventions.
        detector: what finds the face.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: as in `runtime`.

    Raises:
        WeightsInvalid: the file is damaged, hostile, or holds another network.
        DeviceError: no such device, or it cannot compute with that precision.
    """
    return FaceFiller(networks.load(path, device=device, precision=precision), detector)


class FaceFiller:
    """Fills holes that lie on faces; made by `load`. The seed changes nothing.

    Args:
        network: what draws.
        detector: what finds faces.
        match: whether its error on the known pixels is taken away from the hole.
    """

    takes_prompt = False

    def __init__(self, network: networks.Network, detector: detectors.Detector, *, match: bool = True) -> None:
        self.network = network
        self.detector = detector
        self.match = match
        self.name = f"face, {network.architecture} of {network.out_size} px"

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its hole filled; see `Engine.fill`.

        Raises:
            PhotoRefused: some of the hole lies on no face that was found.
        """
        wanted = hole > 0
        # nothing may depend on what lies under the hole, and no ringing of it may reach the known pixels
        known = Telea().fill(scene, hole)
        shown = Photo(PlainSRGB().from_srgb(known, 16), Meta(bits=16))
        holes = self._holes(wanted, shown) or self._holes(wanted, Photo(PlainSRGB().from_srgb(scene, 8)))
        if not holes:
            raise PhotoRefused(
                None,
                "--engine face: some of the hole lies on no face that was found; draw it on faces only and show them "
                "whole (--region whole), or take --engine lama",
            )
        filled = known
        for done, (crop_from_scene, part) in enumerate(holes, 1):
            self._draw(shown, wanted, crop_from_scene, part, filled)
            if progress is not None:
                progress(done, len(holes))
        return filled

    def _holes(self, wanted: NDArray[np.bool_], photo: Photo) -> list[tuple[Matrix, NDArray[np.bool_]]]:
        """crop_from_scene of each of the photo's faces that has a hole, and the pixels of its holes.

        Nothing where a hole lies on no face: not in FFHQ's template, and not in GPEN's, which takes in more.
        """
        faces = detect.detect(photo, self.detector)
        for name in TEMPLATES:
            crops = []
            for face in faces:
                with contextlib.suppress(DegenerateLandmarks):
                    crops.append(align.estimate(face.points, align.template(name, self.network.out_size)))
            holes = self._shared_out(wanted, crops)
            if holes:
                return holes
        return []

    def _shared_out(self, wanted: NDArray[np.bool_], crops: list[Matrix]) -> list[tuple[Matrix, NDArray[np.bool_]]]:
        """Each crop that has a hole, with the pixels of its holes; nothing where a hole does not lie whole in any.

        A hole goes to the face that it is nearest to the middle of, in that face's own measure.
        """
        size = self.network.out_size
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(wanted.astype(np.uint8), connectivity=8)
        parts: dict[int, NDArray[np.bool_]] = {}
        for number in range(1, count):
            x, y, width, height, _ = stats[number].tolist()
            around = Box(x, y, x + width, y + height).slices
            part = numbers[around] == number
            at = np.argwhere(part)[:, ::-1].astype(np.float64) + np.array([x, y], np.float64)
            distances = []
            for crop_from_scene in crops:
                inside = align.moved(crop_from_scene, at)
                fits = bool(((inside >= -0.5) & (inside <= size - 0.5)).all())
                distance = float(np.linalg.norm(inside.mean(0) - (size - 1) / 2))
                distances.append(distance if fits else np.inf)
            if min(distances, default=np.inf) == np.inf:
                return []
            parts.setdefault(int(np.argmin(distances)), np.zeros_like(wanted))[around] |= part
        return [(crops[index], part) for index, part in sorted(parts.items())]

    def _draw(
        self, shown: Photo, wanted: NDArray[np.bool_], crop_from_scene: Matrix, part: NDArray[np.bool_], filled: Pixels
    ) -> None:
        """Nothing; `part` of what is filled is now what the network draws there."""
        size = self.network.in_size
        crop_from_scene = align.compose(align.scaling(size / self.network.out_size), crop_from_scene)
        face = align.extract(shown, crop_from_scene, size).copy()
        white = _seen_by(wanted, crop_from_scene, size) > _WHITE_FROM
        original = face.copy()
        face[white] = 1
        [drawn] = runtime.run(self.network, [face])
        if self.match:
            error = original - _resized(drawn, size)
            drawn = drawn + _resized(matching.spread(error, (~white).astype(np.float32)), self.network.out_size)
        scene_from_drawn = align.invert(align.compose(align.scaling(self.network.out_size / size), crop_from_scene))
        box = compose.around(part)
        box_from_drawn = scene_from_drawn - np.array([[0, 0, box.x0], [0, 0, box.y0]], np.float64)
        laid = align.warp(drawn, box_from_drawn, (box.x1 - box.x0, box.y1 - box.y0))
        here = part[box.slices]
        filled[box.slices][here] = np.clip(laid[here], 0, 1)


def _resized(picture: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The square picture at another size."""
    if picture.shape[0] == size:
        return picture
    way = cv2.INTER_AREA if size < picture.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (size, size), interpolation=way), np.float32)


def _seen_by(wanted: NDArray[np.bool_], crop_from_scene: Matrix, size: int) -> Mask:
    """How much of each crop pixel is hole, (size, size)."""
    corners = align.bounds(align.invert(crop_from_scene), (-0.5, -0.5, size - 0.5, size - 0.5))
    margin = 8 + 4 / align.magnification(crop_from_scene)
    height, width = wanted.shape
    left, top = (max(0, int(low - margin)) for low in corners[:2])
    right, bottom = (min(most, int(high + margin)) for high, most in zip(corners[2:], (width, height), strict=True))
    box = Box(left, top, right, bottom)
    crop_from_box = align.compose(crop_from_scene, align.invert(align.scaling(1, (left, top))))
    part: Any = wanted[box.slices].astype(np.float32)
    return align.warp(part, crop_from_box, (size, size), cv2.BORDER_CONSTANT)
