"""How alike a face is before and after: the cosine between what SFace makes of both.

SFace (a MobileFaceNet) turns an aligned face of 112 px into 128 numbers that are near those of the same person and far
from those of others; `facefix weights fetch sface` gets it. Where its file is not there, nothing is measured. No pixel
depends on the number.

Before and after are cut by the same transform, from the points that were found before: the number tells of the picture
and not of a second detection. The cut is facefix's own, anti-aliased, and not `FaceRecognizerSF.alignCrop`, whose
bilinear samples alias where a face is larger than 112 px. The transform is that of alignCrop, and so are the pixels of
a face of about that size; the tests hold both against it.

A face smaller than 112 px is enlarged to it, and measured all the same. But the less there was to be seen, the less of
a likeness can be left when detail is drawn: of a face of a few pixels a low number says that it was small, not that it
became somebody else.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align
from facefix.detectors import opencv_reads
from facefix.errors import DegenerateLandmarks
from facefix.types import Matrix, Photo, Points, Template
from facefix.weights import Store

NAME = "sface"
NUMBERS = 128
SFACE = Template(
    NAME,
    112,
    np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]),
)
"""Where SFace was trained to see the five points; the numbers of OpenCV's alignCrop."""


class Recogniser:
    """SFace through OpenCV, on the CPU; several threads may ask it.

    Source: Zhong, Deng, Hu, Zhao, Li and Wen, "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face
    Recognition", IEEE TIP 30, 2021; the file of opencv_zoo.

    Raises:
        WeightsInvalid: the file is damaged or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._one_at_a_time = threading.Lock()
        with opencv_reads(path, "SFace"):
            self._network = cv2.FaceRecognizerSF.create(str(path), "")
            made = self._numbers(np.zeros((SFACE.size, SFACE.size, 3), np.float32))
            if made.shape != (NUMBERS,):
                raise ValueError(f"{NUMBERS} numbers a face, got {made.size}")

    def likeness(self, before: Photo, after: Photo, points: Points, scale: float = 1.0) -> float | None:
        """The cosine, -1..1, between a face before and after: 1 where it looks the same.

        None where the points fix no crop in SFace's template, or the network gives nothing that has a direction.

        Args:
            before: the canvas that was pasted into.
            after: what was made of it, of the same size.
            points: (5, 2), the face's, in the unscaled photo's pixels.
            scale: canvas pixels for one photo pixel.
        """
        try:
            crop_from_canvas = align.scaled(align.estimate(points, SFACE), scale)
        except DegenerateLandmarks:
            return None
        one, other = self.embedding(before, crop_from_canvas), self.embedding(after, crop_from_canvas)
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        if not np.isfinite(lengths) or lengths == 0:
            return None
        return float(np.clip(one @ other / lengths, -1, 1))

    def embedding(self, photo: Photo, crop_from_photo: Matrix) -> NDArray[np.float64]:
        """SFace's (128,) numbers of the face that the transform cuts from the photo; of any length, not normalised."""
        return self._numbers(align.extract(photo, crop_from_photo, SFACE.size))

    def _numbers(self, crop: NDArray[np.float32]) -> NDArray[np.float64]:
        bgr = np.ascontiguousarray(np.rint(crop[:, :, ::-1] * 255).astype(np.uint8))
        with self._one_at_a_time:
            made: Any = self._network.feature(bgr)
        return np.asarray(made, np.float64).ravel()


def installed(store: Store) -> Recogniser | None:
    """The recogniser where its file is in the store, else None; nothing is ever downloaded.

    Raises:
        WeightsInvalid: the file is damaged or holds something else.
    """
    found = store.find(NAME)
    if found is None:
        return None
    store.check(*found)
    return Recogniser(found[1])
