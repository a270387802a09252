import numpy as np
import pytest

from facefix.types import Box, Crop, Face, Meta, Patch, Photo, PlainSRGB, Template


def face() -> Face:
    return Face(np.array([0.0, 0, 8, 8]), np.zeros((5, 2)), 0.9)


def test_arrays_cannot_be_written_and_the_callers_stays_as_it_was() -> None:
    raster = np.zeros((4, 5, 3), np.uint8)
    photo = Photo(raster)
    assert (photo.width, photo.height) == (5, 4)
    with pytest.raises(ValueError, match="read-only"):
        photo.raster[0, 0, 0] = 1
    raster[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("raster", "alpha", "bits"),
    [
        (np.zeros((4, 5), np.uint8), None, 8),
        (np.zeros((4, 5, 4), np.uint8), None, 8),
        (np.zeros((4, 5, 3), np.float32), None, 8),
        (np.zeros((4, 5, 3), np.uint16), None, 8),
        (np.zeros((0, 5, 3), np.uint8), None, 8),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), 8),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint16), 8),
    ],
)
def test_a_photo_of_another_shape_or_depth_is_refused(raster: np.ndarray, alpha: np.ndarray | None, bits: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Photo(raster, Meta(bits=bits), alpha)  # type: ignore[arg-type]


def test_pixels_of_a_box_are_the_rasters_over_its_largest_value() -> None:
    raster = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    photo = Photo(raster, Meta(bits=16))
    part = photo.pixels(Box(1, 2, 4, 6))
    assert part.shape == (4, 3, 3)
    assert part.dtype == np.float32
    np.testing.assert_allclose(part, raster[2:6, 1:4] / 65535, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_plain_srgb_gives_every_level_back(bits: int) -> None:
    levels = np.arange(2**bits).astype(np.uint8 if bits == 8 else np.uint16)
    raster = np.repeat(levels[None, :, None], 3, axis=2)
    space = PlainSRGB()
    np.testing.assert_array_equal(space.from_srgb(space.to_srgb(raster), bits), raster)
    outside = np.array([[[-1.0, 0.5, 2.0]]], np.float32)
    assert space.from_srgb(outside, bits).ravel()[[0, 2]].tolist() == [0, 2**bits - 1]


def test_crops_and_patches_check_their_parts() -> None:
    template = Template("t", 8, np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"pixels: expected \(8, 8, 3\) float32"):
        Crop(np.zeros((8, 9, 3), np.float32), np.eye(2, 3), face(), template)
    pixels = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="mask"):
        Patch(pixels, pixels, np.zeros((8, 7), np.float32), np.eye(2, 3))
