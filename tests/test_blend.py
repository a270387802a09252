import dataclasses
from functools import partial

import cv2
import numpy as np
import pytest
from test_geometry import face_at, made_photo, mask_over, patch_of, with_pattern

from facefix import align, blend
from facefix.errors import UsageError
from facefix.types import Meta, Patch, Photo, Pixels, Raster


def pasted_slowly(canvas: Photo, patches: list[Patch], scale: float) -> np.ndarray:
    """The slow twin for patches that keep the original's detail: float64, the whole frame for every patch."""
    total, weight, uncovered = (np.zeros((canvas.height, canvas.width, n)) for n in (3, 1, 1))
    uncovered += 1
    size = (canvas.width, canvas.height)
    for patch in patches:
        canvas_from_patch = align.invert(align.scaled(patch.patch_from_photo, scale))
        density = max(1.0, 1 / align.magnification(canvas_from_patch))
        change = (patch.pixels - patch.original).astype(np.float64)
        if density > 1:
            change = cv2.GaussianBlur(change, (0, 0), 0.5 * density)
        flags = cv2.INTER_LINEAR
        laid = cv2.warpAffine(change, canvas_from_patch, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        shape = mask_over(patch, canvas, scale)[:, :, None].astype(np.float64)
        total += shape**2 * laid
        weight += shape**2
        uncovered *= 1 - shape
    top = 2**canvas.meta.bits - 1
    step = total / np.maximum(weight, 1e-12) * (1 - uncovered)
    return np.clip(canvas.raster / top + step, 0, 1) * top


def brighter(patch: Patch, by: float = 0.1) -> Patch:
    return dataclasses.replace(patch, pixels=patch.pixels + np.float32(by))


@pytest.mark.parametrize(("scale", "bits"), [(1, 8), (1, 16), (2, 8), (4, 8)])
def test_paste_is_near_the_slow_twin(scale: int, bits: int) -> None:
    photo = made_photo(150, 130, bits)
    canvas = photo
    if scale > 1:
        canvas = Photo(
            cv2.resize(photo.raster, (150 * scale, 130 * scale), interpolation=cv2.INTER_LANCZOS4), photo.meta
        )
    faces = [face_at(50, 60, 40, 0.4), face_at(78, 64, 44, -0.3), face_at(130, 110, 30, 2.0)]
    patches = [with_pattern(patch_of(photo, face, 256), 30.0) for face in faces]
    got = blend.paste(canvas, patches, scale).raster
    error = np.abs(got - pasted_slowly(canvas, patches, scale)) * 255 / (2**bits - 1)
    assert error.max() < 2.0
    assert error.mean() < 0.3


def test_nothing_to_paste_gives_the_same_bits() -> None:
    photo = made_photo(40, 30)
    assert np.array_equal(blend.paste(photo, []).raster, photo.raster)
    far = patch_of(photo, face_at(500, 500, 20, 0.0), 64)
    assert blend.touched_box(far, photo) is None
    assert np.array_equal(blend.paste(photo, [brighter(far)]).raster, photo.raster)


def test_the_photo_given_is_not_written_to_and_alpha_stays() -> None:
    raster = made_photo(80, 80).raster
    alpha = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
    photo = Photo(raster, alpha=alpha)
    before = raster.copy()
    result = blend.paste(photo, [brighter(patch_of(photo, face_at(40, 40, 40, 0.0), 128))])
    assert np.array_equal(raster, before)
    assert result.alpha is photo.alpha
    assert result.meta == photo.meta
    assert not np.array_equal(result.raster, photo.raster)


def test_strength_goes_from_nothing_to_all() -> None:
    photo = Photo(np.full((90, 90, 3), 100, np.uint8))
    patch = brighter(patch_of(photo, face_at(45, 45, 50, 0.0), 128), 40 / 255)
    middles = [int(blend.paste(photo, [patch], strength=s).raster[45, 45, 0]) for s in (0, 0.25, 0.5, 1)]
    assert middles == [100, 110, 120, 140]
    with pytest.raises(UsageError, match="strength"):
        blend.paste(photo, [patch], strength=1.5)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_outside_a_user_mask_no_bit_changes(bits: int, scale: int) -> None:
    photo = made_photo(120, 110, bits)
    canvas = Photo(np.repeat(np.repeat(photo.raster, scale, 0), scale, 1), photo.meta)
    within = np.zeros((110, 120), np.float32)
    within[30:61, 47:] = 1
    within[40, 60] = 0
    patches = [brighter(patch_of(photo, face_at(x, 55, 60, 0.3), 128)) for x in (50, 70)]
    result = blend.paste(canvas, patches, scale, within)
    allowed = np.repeat(np.repeat(within > 0, scale, 0), scale, 1)
    assert np.array_equal(result.raster[~allowed], canvas.raster[~allowed])
    assert not np.array_equal(result.raster[allowed], canvas.raster[allowed])
    free = blend.paste(canvas, patches, scale)
    assert np.array_equal(result.raster[allowed], free.raster[allowed])


def test_a_user_mask_of_another_size_is_refused() -> None:
    photo = made_photo(50, 40)
    with pytest.raises(UsageError, match="mask"):
        blend.paste(photo, [], 1, np.ones((50, 40), np.float32))


def test_order_does_not_matter_and_overlaps_are_shared() -> None:
    photo = Photo(np.full((100, 140, 3), 90, np.uint8))
    first = brighter(patch_of(photo, face_at(55, 50, 60, 0.0), 128), 0.2)
    second = brighter(patch_of(photo, face_at(85, 50, 60, 0.2), 128), -0.2)
    there, back = (blend.paste(photo, order).raster for order in ([first, second], [second, first]))
    assert np.array_equal(there, back)
    row = there[50, 40:100, 0].astype(int)
    assert row[0] > 130
    assert row[-1] < 50
    assert np.abs(np.diff(row)).max() < 16, "no jump from one face to the other"


def test_threads_change_no_bit(request: pytest.FixtureRequest) -> None:
    photo = made_photo(400, 300)
    places = [(x, y) for x in range(40, 400, 80) for y in range(40, 300, 80)]
    patches = [brighter(patch_of(photo, face_at(x, y, 25, x / 100), 64)) for x, y in places]
    boxes = [box for patch in patches if (box := blend.touched_box(patch, photo)) is not None]
    assert len(blend.groups(boxes)) == len(places)
    pasted = []
    request.addfinalizer(partial(cv2.setNumThreads, cv2.getNumThreads()))
    for threads in (1, 4):
        cv2.setNumThreads(threads)
        assert cv2.getNumThreads() == threads
        pasted += [blend.paste(photo, patches).raster for _ in range(5)]
    assert not np.array_equal(pasted[0], photo.raster)
    for other in pasted[1:]:
        np.testing.assert_array_equal(other, pasted[0])


def test_tiles_have_no_joints() -> None:
    photo = Photo(np.full((1200, 1100, 3), 128, np.uint8))
    patch = patch_of(photo, face_at(560, 600, 700, 0.0))
    result = blend.paste(photo, [brighter(patch, 0.1)]).raster.astype(int)
    for axis in (0, 1):
        assert np.abs(np.diff(result, axis=axis)).max() <= 2


def test_a_sharp_photo_stays_sharp_and_a_noisy_one_gets_clean() -> None:
    """The two cases between which pasting the picture and pasting the difference would have to choose."""
    rng = np.random.default_rng(4)
    clean = made_photo(240, 240)
    for width in (60, 420):
        face = face_at(120, 120, width, 0.2)
        patch = patch_of(clean, face, 256)
        core = mask_over(patch, clean, 1) > 0.999
        kept = blend.paste(clean, [brighter(patch, 0.02)]).raster.astype(float)
        expected = np.clip(clean.raster + 0.02 * 255, 0, 255)
        assert np.abs(kept - expected)[core].max() <= 1.01

    smooth = Photo(np.full((240, 240, 3), 120, np.uint8))
    noisy = Photo(np.clip(np.rint(120 + rng.normal(0, 12, (240, 240, 3))), 0, 255).astype(np.uint8))
    for width in (60, 150, 420):
        face = face_at(120, 120, width, 0.2)
        patch = dataclasses.replace(patch_of(noisy, face, 256), pixels=patch_of(smooth, face, 256).pixels)
        core = mask_over(patch, noisy, 1) > 0.999
        assert blend.paste(noisy, [patch]).raster[core].std() < 2


def test_rebased_patches_replace_what_a_network_drew() -> None:
    photo = made_photo(120, 120)
    rng = np.random.default_rng(8)
    drawn = np.clip(np.repeat(np.repeat(photo.raster, 2, 0), 2, 1) + rng.normal(0, 20, (240, 240, 3)), 0, 255)
    canvas = Photo(drawn.astype(np.uint8))
    flat = patch_of(photo, face_at(60, 60, 60, 0.1), 256)
    flat = dataclasses.replace(flat, pixels=np.full_like(flat.pixels, 0.5))
    result = blend.paste(canvas, [blend.rebased(flat, canvas, 2)], 2)
    core = mask_over(flat, canvas, 2) > 0.999
    assert np.abs(result.raster[core].astype(float) - 127.5).mean() < 2


class Inverted:
    """A colour space in which black is white, with a curve."""

    def to_srgb(self, raster: Raster) -> Pixels:
        return (1 - (raster / np.iinfo(raster.dtype).max) ** 1.7).astype(np.float32)

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        codes = np.rint(np.clip(1 - pixels.astype(np.float64), 0, 1) ** (1 / 1.7) * (2**bits - 1))
        return codes.astype(np.uint8 if bits == 8 else np.uint16)


def test_pixels_pass_through_the_photos_own_colour_space() -> None:
    photo = dataclasses.replace(made_photo(80, 80), colour=Inverted())
    patch = patch_of(photo, face_at(40, 40, 40, 0.0), 128)
    assert np.array_equal(blend.paste(photo, [patch]).raster, photo.raster)
    result = blend.paste(photo, [brighter(patch)])
    assert result.raster[40, 40].mean() < photo.raster[40, 40].mean()


def test_values_that_overflow_are_clipped() -> None:
    photo = Photo(np.full((60, 60, 3), 250, np.uint8), Meta())
    patch = brighter(patch_of(photo, face_at(30, 30, 30, 0.0), 64), 0.5)
    assert blend.paste(photo, [patch]).raster[30, 30].tolist() == [255, 255, 255]
