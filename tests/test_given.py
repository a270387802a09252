"""What callers give becomes a photo, a mask of its size and the numbers of faces, or is refused in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facefix import FaceFix, Inpainter, Recipe, given, imagefile
from facefix.errors import PhotoRefused, UsageError
from facefix.jobs.rows import failure
from facefix.types import Face


def face_in(x0: float, y0: float, x1: float, y1: float) -> Face:
    return Face(np.array([x0, y0, x1, y1], np.float64), np.zeros((5, 2)), 1.0)


def test_a_photo_is_itself_and_all_else_becomes_one(portrait: np.ndarray, portrait_file: Path) -> None:
    photo = imagefile.from_array(portrait)
    assert given.as_photo(photo) is photo
    for other in (portrait_file, str(portrait_file), portrait, Image.fromarray(portrait)):
        np.testing.assert_array_equal(given.as_photo(other).raster, portrait)


def test_a_mask_is_of_the_photo_s_size(portrait: np.ndarray, tmp_path: Path) -> None:
    photo = imagefile.from_array(portrait)
    assert given.user_mask(None, photo) == (photo, None)
    white = np.zeros((512, 512), np.uint8)
    white[10:20] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    for mask in (tmp_path / "mask.png", str(tmp_path / "mask.png"), (white / 255).astype(np.float32)):
        _, allowed = given.user_mask(mask, photo)
        assert allowed is not None
        np.testing.assert_allclose(allowed, white / 255)
    with pytest.raises(PhotoRefused, match="expected 512x512 px as the photo, got 512x511"):
        given.user_mask(np.zeros((511, 512), np.float32), photo)
    for strange in (white, np.full((512, 512), np.nan, np.float32)):
        with pytest.raises(PhotoRefused, match=r"the mask: expected 0\.\.1, got "):
            given.user_mask(strange, photo)


@pytest.mark.parametrize("strange", [None, 3, b"GIF89a", ["a.png", "b.png"], object(), {"photo": 1}])
def test_what_is_no_photo_or_mask_is_told_what_may_be(portrait: np.ndarray, telea: Inpainter, strange: Any) -> None:
    photo = imagefile.from_array(portrait)
    got = "None; cv2.imread gives it" if strange is None else f"a value of type {type(strange).__name__}; give"
    expected = re.escape("expected a path, a Pillow image, a Photo, or an array (H, W) or (H, W, 1 to 4) of uint8 or ")
    for ask in (given.as_photo, FaceFix.load(Recipe(restorer="identity"), device="cpu"), telea):
        with pytest.raises(UsageError, match=f"^the photo: {expected}uint16, got {got}"):
            ask(strange)
    if strange is not None:  # no mask is none
        with pytest.raises(UsageError, match=f"^the mask: {expected}uint16, got {got}"):
            telea(photo, strange)
    if not isinstance(strange, int | None):  # numbers have a shape
        with pytest.raises(
            UsageError, match=r"^the mask: expected a path, or an array \(H, W\) of numbers in 0\.\.1, got"
        ):
            given.user_mask(strange, photo)


def test_a_mask_may_be_as_large_as_its_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever allows a larger photo than is usual has allowed its mask."""
    monkeypatch.setitem(imagefile.read.__kwdefaults__, "max_pixels", 99)
    monkeypatch.setattr(imagefile, "MAX_PIXELS", 99)
    photo = imagefile.from_array(np.zeros((10, 10), np.uint8))
    imagefile.write(photo, tmp_path / "mask.png")
    assert given.user_mask(tmp_path / "mask.png", photo)[1] is not None


def test_faces_are_chosen_by_word_or_number(portrait: np.ndarray) -> None:
    photo = imagefile.from_array(portrait)
    faces = [face_in(0, 0, 200, 200), face_in(240, 240, 270, 270), face_in(400, 400, 500, 500)]
    wanted = {"all": {1, 2, 3}, "largest": {1}, "center": {2}, "2, 9": {2, 9}}
    assert {setting: set(given.selected(setting, photo, faces)) for setting in wanted} == wanted
    assert given.selected("largest", photo, []) == frozenset()
    for setting in ("0", "1,,2", "-1", "left", "", "²", "9" * 5000):
        with pytest.raises(UsageError, match="--face: expected all"):
            given.face_numbers(setting)


def test_a_path_is_text_whatever_its_bytes() -> None:
    assert given.text_of(None) is None
    assert given.text_of(Path("caf\udce9")) == "caf\\xe9" == failure(Path("caf\udce9"), "why")["source"]
