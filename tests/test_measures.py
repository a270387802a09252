"""The seam knows hard edges, the change knows strong from weak, and neither sees what lies outside the mask."""

import dataclasses

import cv2
import numpy as np
import pytest
from test_geometry import face_at, patch_of

from facefix import blend, measures
from facefix.types import Patch, Photo


def brighter(patch: Patch, by: float) -> Patch:
    return dataclasses.replace(patch, pixels=patch.pixels + np.float32(by))


@pytest.fixture(scope="module")
def photo() -> Photo:
    rng = np.random.default_rng(0)
    smooth = 128 + cv2.GaussianBlur(rng.normal(0, 60, (200, 200, 3)), (0, 0), 3)
    return Photo(np.clip(smooth, 0, 255).astype(np.uint8))


def test_the_seam_score_knows_hard_edges(photo: Photo) -> None:
    patch = patch_of(photo, face_at(100, 100, 90, 0.2), 256)
    same = blend.paste(photo, [patch])
    assert measures.seam(photo, same, patch) == 0
    soft = brighter(patch, 0.12)
    hard = dataclasses.replace(soft, mask=(patch.mask > 0.5).astype(np.float32))
    scores = [measures.seam(photo, blend.paste(photo, [p]), p) for p in (brighter(patch, 0.03), soft, hard)]
    assert 0 < scores[0] < scores[1] < scores[2]
    assert scores[2] > 2 * scores[1]


def test_the_change_is_told_in_grey_levels(photo: Photo) -> None:
    patch = patch_of(photo, face_at(100, 100, 90, 0.2), 256)
    assert measures.change(photo, photo, patch) == 0
    lighter = dataclasses.replace(photo, raster=np.asarray(photo.raster // 2 + 60, np.uint8))
    darker = dataclasses.replace(lighter, raster=lighter.raster - np.uint8(10))
    assert measures.change(lighter, darker, patch) == pytest.approx(10, abs=1e-3)
    # a change where the mask does not reach is none
    elsewhere = lighter.raster.copy()
    elsewhere[:5] -= 10
    assert measures.change(lighter, dataclasses.replace(lighter, raster=elsewhere), patch) == 0


def test_a_patch_outside_the_photo_measures_nothing(photo: Photo) -> None:
    far = patch_of(photo, face_at(900, 900, 20, 0.0), 64)
    assert (measures.seam(photo, photo, far), measures.change(photo, photo, far)) == (0, 0)
