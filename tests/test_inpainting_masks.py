"""What a mask may be, what of it is the hole, and what is said of one that cannot work."""

from pathlib import Path

import numpy as np
import pytest
from made_fills import Greedy, Reckless, changed, noise, painter, strokes
from PIL import Image

from facefix import imagefile
from facefix.errors import DeviceError, PhotoRefused, PhotoUnreadable

MASKS = {
    "1": lambda drawn: Image.fromarray(drawn),
    "L": lambda drawn: Image.fromarray(drawn.astype(np.uint8) * 255),
    "LA": lambda drawn: Image.fromarray(drawn.astype(np.uint8) * 255).convert("LA"),
    "RGB": lambda drawn: Image.fromarray(drawn.astype(np.uint8) * 255).convert("RGB"),
    "RGBA": lambda drawn: Image.fromarray(drawn.astype(np.uint8) * 255).convert("RGBA"),
    "P": lambda drawn: Image.fromarray(drawn.astype(np.uint8) * 255).convert("P"),
    "I;16": lambda drawn: Image.fromarray(drawn.astype(np.uint16) * 65535),
    "strokes on nothing": lambda drawn: Image.fromarray(
        np.dstack([np.full((*drawn.shape, 3), 255, np.uint8), drawn.astype(np.uint8) * 255])
    ),
}


@pytest.mark.parametrize("mode", MASKS)
def test_masks_of_every_mode_are_understood(mode: str, tmp_path: Path) -> None:
    scene, drawn = noise(), strokes()
    expected = painter(Reckless())(scene, drawn).photo.raster
    picture = MASKS[mode](drawn)
    picture.save(tmp_path / "mask.png")
    if " " not in mode:
        with Image.open(tmp_path / "mask.png") as written:
            assert written.mode == mode
    for given in (picture, tmp_path / "mask.png", str(tmp_path / "mask.png"), imagefile.read(tmp_path / "mask.png")):
        np.testing.assert_array_equal(painter(Reckless())(scene, given).photo.raster, expected)


def test_what_is_doubtful_of_a_mask_is_told(tmp_path: Path) -> None:
    Image.fromarray(strokes(300, 400).astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=95)
    whole = (tmp_path / "mask.jpg").read_bytes()
    (tmp_path / "mask.jpg").write_bytes(whole[: len(whole) // 2])
    work = painter(Reckless(), outpaint="0,0,8,0")
    [told] = work(noise(height=300, width=400), tmp_path / "mask.jpg").report.warnings
    assert told.startswith("the mask: the file is cut short")
    assert work(noise(height=300, width=400), strokes(300, 400)).report.warnings == ()


@pytest.mark.parametrize("dtype", [bool, np.float32, np.float64, np.uint8, np.uint16])
def test_masks_may_be_arrays(dtype: type) -> None:
    scene, drawn = noise(), strokes()
    expected = painter(Reckless())(scene, drawn).photo.raster
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    given = drawn.astype(dtype) * dtype(top) if dtype is not bool else drawn
    np.testing.assert_array_equal(painter(Reckless())(scene, given).photo.raster, expected)
    np.testing.assert_array_equal(painter(Reckless())(scene, given[:, :, None]).photo.raster, expected)


def test_a_pixel_counts_from_half_white_on() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10, 10], mask[10, 30] = 127, 128
    assert painter(Reckless())(noise(), mask).report.fill["hole_px"] == 1


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones((10, 20), bool), "expected 64x48 px as the photo, got 20x10; make one of the photo's size"),
        (np.ones((64, 48), bool), "got 48x64; turn it: the photo is taken upright, as it is shown"),
        (
            np.zeros((48, 64), bool),
            "the mask is empty: no pixel of it is at least half white and opaque; draw the hole",
        ),
        (np.ones((48, 64), np.uint8), "the mask is empty"),
        (np.ones((48, 64), bool), "the hole covers the whole photo"),
        (np.full((48, 64), 255.0), "the mask: expected (H, W) in 0..1, got (48, 64) from 255 to 255; 1 is the hole"),
        (np.full((48, 64), np.nan), "expected (H, W) in 0..1"),
        (np.zeros((48, 64, 3)), "expected (H, W) in 0..1, got (48, 64, 3) from 0 to 0"),
        (np.zeros((0, 0)), "the mask does not fit"),
    ],
)
def test_masks_that_cannot_work_say_why(mask: np.ndarray, says: str) -> None:
    with pytest.raises(PhotoRefused) as caught:
        painter(Reckless())(noise(), mask)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by_opencv", [False, True])
def test_memory_that_runs_out_is_one_line(*, by_opencv: bool) -> None:
    with pytest.raises(DeviceError, match=r"^reckless: out of memory in a photo of 64x48 px; fill smaller holes"):
        painter(Greedy(by_opencv=by_opencv))(noise(), strokes())


def test_a_mask_that_widening_makes_full_is_refused_and_an_almost_full_one_works() -> None:
    mask = np.ones((48, 64), bool)
    mask[:, :2] = False
    with pytest.raises(PhotoRefused, match="covers the whole photo, with --dilate-px and --feather-px around it"):
        painter(Reckless())(noise(), mask)
    result = painter(Reckless(), feather_px=0)(noise(), mask)
    np.testing.assert_array_equal(changed(result, noise()), mask)
    with pytest.raises(PhotoUnreadable):
        painter(Reckless())(noise(), Path("no/such/mask.png"))
