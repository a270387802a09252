import itertools

import cv2
import numpy as np
import pytest

from facefix import align
from facefix.errors import DegenerateLandmarks, UsageError
from facefix.types import Box, Face, Matrix, Meta, Photo


def similarity(scale: float, turn: float, shift: tuple[float, float]) -> Matrix:
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.column_stack([linear, shift])


def stretched_lanczos(source: np.ndarray, src_from_dst: Matrix, size: tuple[int, int]) -> np.ndarray:
    """The slow twin of `warp`: every pixel a float64 sum over a Lanczos-3 kernel as wide as it must be."""
    density = max(1.0, align.magnification(src_from_dst))
    reach = int(np.ceil(3 * density))
    out = np.empty((size[1], size[0], source.shape[2]))
    padded = np.pad(source.astype(np.float64), ((reach + 1,) * 2, (reach + 1,) * 2, (0, 0)), "edge")
    for y, x in itertools.product(range(size[1]), range(size[0])):
        at = np.clip(src_from_dst[:, :2] @ (x, y) + src_from_dst[:, 2], -1, np.array(source.shape[1::-1]))
        low = np.floor(at).astype(int) - reach + 1
        weights = []
        for axis in (0, 1):
            distance = (low[axis] + np.arange(2 * reach) - at[axis]) / density
            taps = np.sinc(distance) * np.sinc(distance / 3) * (np.abs(distance) < 3)
            weights.append(taps / taps.sum())
        rows = slice(low[1] + reach + 1, low[1] + 3 * reach + 1)
        columns = slice(low[0] + reach + 1, low[0] + 3 * reach + 1)
        out[y, x] = np.einsum("i,j,ijc->c", weights[1], weights[0], padded[rows, columns])
    return out


def zone_plate(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.repeat((0.5 + 0.5 * np.cos(np.pi * (x**2 + y**2) / size))[:, :, None], 3, 2).astype(np.float32)


def smooth_photo(width: int, height: int, bits: int = 8) -> Photo:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([np.sin(x / 9 + k) * np.cos(y / 13 - k) * 0.4 + 0.5 for k in range(3)], -1)
    raster = np.rint(pixels * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    return Photo(raster, Meta(bits=bits))


@pytest.mark.parametrize("name", ["gpen", "ffhq"])
def test_templates_scale_about_pixel_centres(name: str) -> None:
    base, large = align.TEMPLATES[name], align.template(name, 2048)
    assert large.size == 2048
    np.testing.assert_allclose((large.points + 0.5) / 4, base.points + 0.5, atol=1e-12)


def test_the_eyes_of_gpen_are_nearer_than_those_of_ffhq() -> None:
    eyes = {name: np.linalg.norm(t.points[1] - t.points[0]) for name, t in align.TEMPLATES.items()}
    assert eyes["gpen"] == pytest.approx(107.4, abs=0.05)
    assert eyes["ffhq"] == pytest.approx(125.9, abs=0.05)


@pytest.mark.parametrize(("name", "size"), [("dlib", 512), ("gpen", 4)])
def test_unknown_templates_are_refused(name: str, size: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        align.template(name, size)


@pytest.mark.parametrize(("scale", "turn"), [(0.03, 0.0), (0.4, 2.0), (5.0, -3.0), (1.0, np.pi)])
def test_estimate_finds_the_similarity_that_made_the_points(scale: float, turn: float) -> None:
    target = align.template("gpen", 512)
    photo_from_crop = similarity(scale, turn, (700.5, -30.25))
    found = align.estimate(align.moved(photo_from_crop, target.points), target)
    np.testing.assert_allclose(align.compose(found, photo_from_crop), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    np.testing.assert_allclose(align.invert(found), photo_from_crop, atol=1e-9)


def test_estimate_is_the_least_squares_fit() -> None:
    """Against the linear least squares over the four numbers of a similarity."""
    rng = np.random.default_rng(3)
    target = align.template("ffhq", 512)
    points = align.moved(similarity(0.3, 0.5, (90, 80)), target.points) + rng.normal(0, 4, (5, 2))
    rows = [((x, -y, 1, 0), (y, x, 0, 1)) for x, y in points]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows).reshape(10, 4), target.points.ravel(), rcond=None)[0]
    np.testing.assert_allclose(align.estimate(points, target), [[a, -b, tx], [b, a, ty]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((5, 2)),
        np.full((5, 2), np.nan),
        align.TEMPLATES["ffhq"].points * (-1.0, 1.0),
        align.TEMPLATES["ffhq"].points[[4, 2, 0, 1, 3]],
        np.array([(0, 0), (100, 0), (50, 0), (0, 0), (100, 0)], float),
    ],
    ids=["one place", "nan", "mirrored", "scrambled", "flat"],
)
def test_points_that_are_no_face_are_refused(points: np.ndarray) -> None:
    with pytest.raises(DegenerateLandmarks, match="skip"):
        align.estimate(np.asarray(points, np.float64), align.TEMPLATES["ffhq"])


def test_a_profile_is_still_a_face() -> None:
    points = np.array([(40.0, 50.0), (52.0, 50.0), (25.0, 75.0), (42.0, 100.0), (50.0, 100.0)])
    assert align.face_px(align.estimate(points, align.TEMPLATES["ffhq"]), align.TEMPLATES["ffhq"]) > 50


@pytest.mark.parametrize("scale", [2, 4, 1.5])
def test_scaled_speaks_of_the_same_place(scale: float) -> None:
    crop_from_photo = similarity(2.2, 0.4, (-300, 11))
    places = np.array([(0.0, 0.0), (17.25, 93.5)])
    on_canvas = (places + 0.5) * scale - 0.5
    np.testing.assert_allclose(
        align.moved(align.scaled(crop_from_photo, scale), on_canvas), align.moved(crop_from_photo, places), atol=1e-9
    )


def test_scaling_agrees_with_a_resized_picture() -> None:
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    large = cv2.resize(ramp, (256, 256), interpolation=cv2.INTER_LINEAR)
    place = align.moved(align.scaling(4.0), np.array([(20.0, 20.0)]))[0]
    assert np.interp(place[0], np.arange(256), large[100]) == pytest.approx(20.0, abs=1e-3)


def test_face_px_is_the_span_of_the_crop() -> None:
    assert align.face_px(similarity(512 / 90, 1.0, (3, 4)), align.TEMPLATES["gpen"]) == pytest.approx(90)


@pytest.mark.parametrize("density", [0.21, 0.7, 1.0, 1.6, 3.1, 7.7])
def test_warp_is_near_the_slow_twin(density: float) -> None:
    rng = np.random.default_rng(5)
    size = (24, 20)
    side = int(40 * max(density, 0.5)) + 8
    source = cv2.GaussianBlur(rng.random((side, side, 3), np.float32), (0, 0), 0.6)
    src_from_dst = similarity(density, 0.35, (side * 0.2, side * 0.05))
    fast = align.warp(source, align.invert(src_from_dst), size)
    slow = stretched_lanczos(source, src_from_dst, size)
    spread = slow[3:-3, 3:-3].std()
    assert np.sqrt(((fast - slow)[3:-3, 3:-3] ** 2).mean()) < 0.12 * spread


@pytest.mark.parametrize("density", [2.5, 5.0, 9.3])
def test_noise_shrinks_as_it_should(density: float) -> None:
    """White noise keeps 1/density of its spread in a picture that does not alias; bilinear sampling keeps more."""
    noise = np.random.default_rng(1).normal(0, 1, (800, 800, 1)).astype(np.float32)[..., 0]
    size = (round(700 / density / 1.4), round(700 / density / 1.4))
    dst_from_src = align.invert(similarity(density, 0.3, (200.0, 20.0)))
    spread = align.warp(noise, dst_from_src, size).std()
    assert 0.8 / density < spread < 1.15 / density
    naive = cv2.warpAffine(noise, dst_from_src, size, flags=cv2.INTER_LINEAR)
    assert naive.std() > 1.5 * spread


def test_a_zone_plate_does_not_alias() -> None:
    """Rings too fine for the small picture go gray, and those that fit stay: as in the supersampled twin."""
    plate = zone_plate(512)
    src_from_dst = similarity(4.3, 0.2, (30.0, 2.0))
    small = align.warp(plate, align.invert(src_from_dst), (96, 96))
    step = align.compose(src_from_dst, align.invert(align.scaling(8.0)))
    fine = cv2.warpAffine(plate, step, (96 * 8, 96 * 8), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    low = cv2.GaussianBlur(fine, (0, 0), 8 * 0.45)[4::8, 4::8]
    y, x = np.mgrid[:96, :96]
    places = align.moved(src_from_dst, np.stack([x.ravel(), y.ravel()], 1).astype(float)).reshape(96, 96, 2)
    radius = np.hypot(*(places - 255.5).transpose(2, 0, 1))
    inside = (places > 20).all(2) & (places < 490).all(2)
    limit = 512 / (2 * 4.3)
    too_fine = inside & (radius > 1.4 * np.sqrt(2) * limit)  # separable: a diagonal has √2 of the room
    assert np.abs(small[too_fine] - 0.5).max() < 0.04
    naive = cv2.warpAffine(plate, src_from_dst, (96, 96), flags=cv2.INTER_AREA | cv2.WARP_INVERSE_MAP)
    assert np.abs(naive[too_fine] - 0.5).max() > 0.3
    fits = inside & (radius < 0.5 * limit)
    assert np.corrcoef(small[fits].ravel(), low[fits].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("density", [0.3, 1.0, 2.0, 6.0])
def test_warping_a_ramp_gives_a_ramp(density: float) -> None:
    """No half-pixel shift anywhere, whichever way is taken."""
    y, x = np.mgrid[:400, :400].astype(np.float32)
    src_from_dst = similarity(density, -0.25, (150.2, 170.7))
    size = (24, 24)
    got = align.warp(np.dstack([x, y, x + y]).astype(np.float32), align.invert(src_from_dst), size)
    v, u = np.mgrid[:24, :24].astype(np.float64)
    expected = align.moved(src_from_dst, np.stack([u.ravel(), v.ravel()], 1)).reshape(24, 24, 2)
    assert np.abs(got[:, :, :2] - expected).max() < 0.06 * max(1.0, density)
    assert np.abs((got[:, :, :2] - expected).mean((0, 1))).max() < 0.01 * max(1.0, density)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_crop_at_the_photos_own_size_is_the_photo(bits: int) -> None:
    photo = smooth_photo(200, 160, bits)
    target = align.template("ffhq", 128)
    face = Face(np.zeros(4), target.points + np.array([30.0, 17.0]), 1.0)
    crop = align.crop(photo, face, target)
    expected = photo.pixels(Box(30, 17, 158, 145))
    assert crop.pixels.dtype == np.float32
    assert np.abs(crop.pixels - expected).max() < 2e-3


def test_a_crop_over_the_frame_reflects_the_photo() -> None:
    photo = smooth_photo(90, 70)
    target = align.template("ffhq", 128)
    face = Face(np.zeros(4), target.points - np.array([20.0, 30.0]), 1.0)
    crop = align.crop(photo, face, target)
    padded = np.pad(photo.pixels(), ((30, 60), (20, 60), (0, 0)), "reflect")[:128, :128]
    assert np.abs(crop.pixels - padded).max() < 4e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_photos_of_almost_nothing_can_be_cropped(shape: tuple[int, int]) -> None:
    photo = Photo(np.full((*shape, 3), 77, np.uint8))
    face = Face(np.zeros(4), align.template("ffhq", 64).points * 0.3, 1.0)
    crop = align.crop(photo, face, align.template("ffhq", 64))
    np.testing.assert_allclose(crop.pixels, 77 / 255, atol=1e-3)


def test_a_crop_reads_only_its_box_and_in_pieces() -> None:
    read: list[int] = []

    class Watched:
        def to_srgb(self, raster: np.ndarray) -> np.ndarray:
            read.append(raster.shape[0] * raster.shape[1])
            return raster.astype(np.float32) / np.float32(255)

        def from_srgb(self, pixels: np.ndarray, bits: int) -> np.ndarray:
            raise AssertionError("a crop writes nothing")

    photo = Photo(np.zeros((6000, 6000, 3), np.uint8), colour=Watched())
    small = Face(np.zeros(4), align.TEMPLATES["ffhq"].points * 0.1 + 3000, 1.0)
    align.crop(photo, small, align.TEMPLATES["ffhq"])
    assert sum(read) < 100**2
    read.clear()
    large = Face(np.zeros(4), align.TEMPLATES["ffhq"].points * 11, 1.0)
    align.crop(photo, large, align.TEMPLATES["ffhq"])
    assert max(read) <= 3 << 20


def test_a_large_crop_cut_in_tiles_has_no_joints() -> None:
    photo = smooth_photo(500, 500)
    target = align.template("gpen", 1024)
    face = Face(np.zeros(4), align.template("gpen", 400).points + 40.3, 1.0)
    pixels = align.crop(photo, face, target).pixels
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis)).max(axis=tuple(i for i in (0, 1, 2) if i != axis))
        assert steps[511] <= 1.2 * np.delete(steps, 511)[480:540].max()
