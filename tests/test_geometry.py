"""The round trips that prove crop and paste: unchanged crops change nothing, a pattern comes back in place."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from facefix import align, blend, mask
from facefix.types import Face, Meta, Patch, Photo

PHOTOS = Path(__file__).parents[1].parent / "shared" / "photos"
STORED = sorted(PHOTOS.glob("*.[jp]*")) if PHOTOS.is_dir() else []
SIZES_PX = [24, 61, 150, 420, 2000]


def made_photo(width: int, height: int, bits: int = 8, seed: int = 0) -> Photo:
    """Edges, waves and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.sin(x / 7 + y / 31) * np.cos(y / 11) * 0.2 + 0.5 + 0.15 * ((x // 23 + y // 17) % 2)
    pixels = waves[:, :, None] + rng.normal(0, 0.04, (height, width, 3))
    top = 2**bits - 1
    raster = np.rint(np.clip(pixels, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)
    return Photo(raster, Meta(bits=bits))


def stored_photo(path: Path, bits: int = 8) -> Photo:
    from facefix import imagefile

    photo = imagefile.read(path)
    if bits == 16:
        rng = np.random.default_rng(1)
        low = rng.integers(0, 256, photo.raster.shape, dtype=np.uint16)
        raster = photo.raster.astype(np.uint16) << 8 | low
        return dataclasses.replace(photo, raster=raster, alpha=None, meta=dataclasses.replace(photo.meta, bits=16))
    return photo


def face_at(x: float, y: float, width_px: float, turn: float) -> Face:
    """A face of that width (as in the FFHQ template, 275 of 512 px) at a place and an angle."""
    base = align.TEMPLATES["ffhq"].points
    scale = width_px / 275
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    half = width_px / 2
    points = (base - base.mean(0)) @ rotation.T + (x, y)
    return Face(np.array([x - half, y - half, x + half, y + half]), points, 1.0)


def patch_of(photo: Photo, face: Face, size: int = 512, name: str = "ffhq") -> Patch:
    crop = align.crop(photo, face, align.template(name, size))
    shape = mask.landmark_mask(align.moved(crop.crop_from_photo, face.points), size)
    return Patch(crop.pixels, crop.pixels, shape, crop.crop_from_photo)


def pattern(x: np.ndarray, y: np.ndarray, period_px: float) -> np.ndarray:
    """A smooth pattern (…, 3) in photo coordinates, without symmetry, of ±20 grey levels."""
    turn = 2 * np.pi / period_px
    waves = [np.sin(turn * (0.93 * x + 0.31 * y)), np.sin(turn * (0.29 * x - 0.88 * y) + 1), np.sin(turn * 0.8 * y + 2)]
    return (0.08 * np.stack(waves, -1)).astype(np.float32)


def with_pattern(patch: Patch, period_px: float) -> Patch:
    size = len(patch.mask)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2).astype(np.float64)
    x, y = align.moved(align.invert(patch.patch_from_photo), grid).T.reshape(2, size, size)
    return dataclasses.replace(patch, pixels=patch.pixels + pattern(x, y, period_px))


def mask_over(patch: Patch, canvas: Photo, scale: float) -> np.ndarray:
    """The slow twin of the mask in the canvas: sampled bilinearly at every canvas pixel's place in the crop."""
    y, x = np.mgrid[: canvas.height, : canvas.width].astype(np.float64)
    places = np.stack([(x.ravel() + 0.5) / scale - 0.5, (y.ravel() + 0.5) / scale - 0.5], 1)
    at = align.moved(patch.patch_from_photo, places).astype(np.float32).reshape(canvas.height, canvas.width, 2)
    return cv2.remap(np.array(patch.mask), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def enlarged(photo: Photo, scale: int) -> Photo:
    size = (photo.width * scale, photo.height * scale)
    return dataclasses.replace(
        photo, raster=cv2.resize(photo.raster, size, interpolation=cv2.INTER_LANCZOS4), alpha=None
    )


def check_pattern(photo: Photo, face: Face, width_px: float, scale: int, size: int = 512) -> None:
    canvas = enlarged(photo, scale) if scale > 1 else photo
    plain = patch_of(photo, face, size)
    period = align.face_px(plain.patch_from_photo, align.template("ffhq", size)) / 4
    result = blend.paste(canvas, [with_pattern(plain, period)], scale)
    shape = mask_over(plain, canvas, scale)
    box = blend.touched_box(plain, canvas, scale)
    assert box is not None
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(np.float64)
    added = pattern((x + 0.5) / scale - 0.5, (y + 0.5) / scale - 0.5, period)
    expected = canvas.colour.from_srgb(canvas.pixels(box) + added, canvas.meta.bits)
    level = (2**canvas.meta.bits - 1) / 255
    core = shape[box.slices] > 0.9999
    error = np.abs(result.raster[box.slices].astype(np.float64) - expected)[core]
    assert core.sum() > 50
    assert error.max() <= 1.001 * level
    assert np.array_equal(result.raster[shape == 0], canvas.raster[shape == 0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("width_px", SIZES_PX)
def test_an_unchanged_crop_leaves_every_bit(bits: int, width_px: int) -> None:
    side = min(2 * width_px + 60, 2400)
    photo = made_photo(side, side + 40, bits)
    for size in (512, 256) if width_px < 500 else (512,):
        patch = patch_of(photo, face_at(side * 0.47, side * 0.45, width_px, 0.3), size)
        assert np.array_equal(blend.paste(photo, [patch]).raster, photo.raster)


@pytest.mark.parametrize(
    ("width_px", "scale"), [(w, s) for w in SIZES_PX for s in (1, 2, 4) if w * s <= 1000 or s == 1]
)
def test_a_pattern_comes_back_in_its_place(width_px: int, scale: int) -> None:
    side = min(round(1.6 * width_px) + 40, 2000)
    photo = made_photo(side, side + 30)
    check_pattern(photo, face_at(side * 0.5 + 0.37, side * 0.5 - 0.21, width_px, -0.4), width_px, scale)


def test_a_pattern_comes_back_in_16_bits_and_other_crop_sizes() -> None:
    photo = made_photo(300, 300, 16)
    for size in (64, 256, 1024):
        check_pattern(photo, face_at(151.3, 140.8, 120, 0.8), 120, 1, size)


def test_half_a_pixel_would_be_seen() -> None:
    """The pattern test has teeth: a paste that is off by half a pixel misses by several levels."""
    photo = made_photo(200, 200)
    patch = patch_of(photo, face_at(100, 100, 24, 0.2))
    period = align.face_px(patch.patch_from_photo, align.TEMPLATES["ffhq"]) / 4
    moved = dataclasses.replace(
        with_pattern(patch, period), patch_from_photo=patch.patch_from_photo + np.array([[0, 0, 4.0], [0, 0, 4.0]])
    )
    right, wrong = (blend.paste(photo, [p]).raster.astype(int) for p in (with_pattern(patch, period), moved))
    assert np.abs(right - wrong).max() >= 4


@pytest.mark.parametrize("place", [(2.0, 60.0), (119.0, 3.0), (60.0, 128.0), (-20.0, 60.0)])
def test_faces_cut_by_the_frame_come_back_too(place: tuple[float, float]) -> None:
    photo = made_photo(120, 130)
    face = face_at(*place, 70, 0.5)
    patch = patch_of(photo, face)
    assert np.array_equal(blend.paste(photo, [patch]).raster, photo.raster)
    check_pattern(photo, face, 70, 1)


def test_overlapping_faces_share_one_pattern() -> None:
    photo = made_photo(260, 200)
    patches = [
        patch_of(photo, face_at(x, y, 80, turn)) for x, y, turn in ((90, 90, 0.2), (140, 100, -0.4), (120, 130, 3.0))
    ]
    assert np.array_equal(blend.paste(photo, patches).raster, photo.raster)
    period = 36.0
    result = blend.paste(photo, [with_pattern(patch, period) for patch in patches])
    shapes = np.stack([mask_over(patch, photo, 1) for patch in patches])
    y, x = np.mgrid[:200, :260].astype(np.float64)
    expected = photo.colour.from_srgb(photo.pixels() + pattern(x, y, period), 8).astype(int)
    core = shapes.max(0) > 0.9999
    assert (core & ((shapes > 0.5).sum(0) > 1)).sum() > 300
    assert np.abs(result.raster.astype(int) - expected)[core].max() <= 1
    outside = shapes.max(0) == 0
    assert np.array_equal(result.raster[outside], photo.raster[outside])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_stored_photos_come_back(path: Path, bits: int) -> None:
    photo = stored_photo(path, bits)
    sizes = (24, 90, min(photo.width, photo.height) * 0.7)
    places = ((0.2, 0.25), (0.75, 0.3), (0.5, 0.6))
    faces = [
        face_at(x * photo.width, y * photo.height, min(size, 2000), turn)
        for size, (x, y), turn in zip(sizes, places, (0.3, -0.7, 0.1), strict=True)
    ]
    patches = [patch_of(photo, face, 256) for face in (faces if bits == 8 else faces[:2])]
    assert np.array_equal(blend.paste(photo, patches).raster, photo.raster)
    check_stored_pattern(photo, patches[1])


def check_stored_pattern(photo: Photo, patch: Patch) -> None:
    period = align.face_px(patch.patch_from_photo, align.template("ffhq", 256)) / 4
    result = blend.paste(photo, [with_pattern(patch, period)])
    box = blend.touched_box(patch, photo)
    assert box is not None
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(np.float64)
    expected = photo.colour.from_srgb(photo.pixels(box) + pattern(x, y, period), photo.meta.bits)
    part = dataclasses.replace(photo, raster=photo.raster[box.slices], alpha=None)
    shift = np.array([[1, 0, -box.x0], [0, 1, -box.y0]], np.float64)
    in_part = dataclasses.replace(patch, patch_from_photo=align.compose(patch.patch_from_photo, align.invert(shift)))
    shape = mask_over(in_part, part, 1)
    level = (2**photo.meta.bits - 1) / 255
    error = np.abs(result.raster[box.slices].astype(np.float64) - expected)[shape > 0.9999]
    assert error.max() <= 1.001 * level
    rest = result.raster.copy()
    rest[box.slices][shape > 0] = photo.raster[box.slices][shape > 0]
    assert np.array_equal(rest, photo.raster)


def test_only_the_points_place_a_crop() -> None:
    photo = made_photo(100, 100)
    face = face_at(50, 50, 40, 0.0)
    other = Face(np.zeros(4), face.points, 0.1)
    target = align.template("gpen", 64)
    assert np.array_equal(align.crop(photo, face, target).pixels, align.crop(photo, other, target).pixels)
