from pathlib import Path

import cv2
import numpy as np
import pytest

from facefix import align, mask, tone
from facefix.types import Meta, Photo, Pixels

PHOTOS = Path(__file__).parents[1].parent / "shared" / "photos"
FACE_MASK = mask.landmark_mask(align.template("ffhq", 256).points, 256)


def made_crop(seed: int = 0, size: int = 256) -> Pixels:
    rng = np.random.default_rng(seed)
    base = cv2.GaussianBlur(rng.random((size, size, 3)), (0, 0), 8)
    base = (base - base.mean()) / base.std() * 0.12 + (0.55, 0.45, 0.4)
    return np.clip(base, 0, 1).astype(np.float32)


def sepia(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray**0.8, gray, gray**1.35], -1)


def made_photo(kind: str, bits: int = 8) -> Photo:
    rng = np.random.default_rng(1)
    gray = np.clip(cv2.GaussianBlur(rng.random((300, 400)), (0, 0), 6) * 8 - 3.5, 0.02, 0.98)
    pixels = {"gray": np.stack([gray] * 3, -1), "toned": sepia(gray), "colour": np.roll(sepia(gray), 1, 1)}[kind]
    if kind == "colour":
        pixels[:, 200:, 2] = np.clip(pixels[:, 200:, 2] + 0.3, 0, 1)
    top = 2**bits - 1
    return Photo(np.rint(pixels * top).astype(np.uint8 if bits == 8 else np.uint16), Meta(bits=bits))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["gray", "toned", "colour"])
def test_toning_tells_gray_from_toned_from_colour(kind: str, bits: int) -> None:
    assert tone.toning(made_photo(kind, bits)).kind == kind


@pytest.mark.parametrize("kind", ["gray", "toned"])
def test_toning_is_not_misled_by_grain(kind: str) -> None:
    photo = made_photo(kind)
    noise = np.random.default_rng(2).normal(0, 8, photo.raster.shape)
    noisy = Photo(np.clip(np.rint(photo.raster + noise), 0, 255).astype(np.uint8))
    assert tone.toning(noisy).kind in (kind, "toned")


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (700, 3)])
def test_toning_of_odd_shapes(shape: tuple[int, int]) -> None:
    assert tone.toning(Photo(np.full((*shape, 3), 90, np.uint8))).kind == "gray"


@pytest.mark.parametrize("side", [1, 2, 3, 9])
def test_toning_of_a_few_pixels(side: int) -> None:
    colours = np.random.default_rng(side).integers(0, 256, (side, side, 3)).astype(np.uint8)
    assert tone.toning(Photo(colours)).kind in ("toned", "colour")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("solvay_conference_1927.png", {"gray"}),
        ("queen_band_bw.jpeg", {"gray"}),
        ("gray_face_hepburn_512.png", {"gray"}),
        ("portrait_bw_icc.jpg", {"gray", "toned"}),
        ("three_men_bw_small.jpg", {"gray", "toned"}),
        ("old_portrait_scratched_sepia.jpg", {"toned"}),
        ("whole_family_faded.png", {"colour"}),
        ("portrait_small_225.jpg", {"colour"}),
        ("profile_face.jpeg", {"colour"}),
        ("crop_face_0143_512.png", {"colour"}),
    ],
)
def test_toning_of_stored_photos(name: str, kinds: set[str]) -> None:
    if not PHOTOS.is_dir():
        pytest.skip("the shared photos are not here")
    raster = cv2.imread(str(PHOTOS / name))[:, :, ::-1]
    assert tone.toning(Photo(np.ascontiguousarray(raster))).kind in kinds


def test_what_the_restorer_left_alone_stays_to_the_bit() -> None:
    crop = made_crop()
    for kind in ("gray", "toned", "colour"):
        found = tone.toning(made_photo(kind))
        assert np.array_equal(tone.keep_chroma(crop, crop, found), crop)
    assert np.array_equal(tone.match_colour(crop, crop, FACE_MASK), crop)
    assert np.array_equal(tone.match_grain(crop, crop, FACE_MASK, 4.0), crop)


def test_a_gray_photo_stays_gray_to_the_bit() -> None:
    original = np.repeat(made_crop()[:, :, :1], 3, 2)
    kept = tone.keep_chroma(made_crop(3), original, tone.toning(made_photo("gray")))
    assert np.array_equal(kept[:, :, 0], kept[:, :, 1])
    assert np.array_equal(kept[:, :, 0], kept[:, :, 2])
    luma = made_crop(3) @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.abs(kept[:, :, 0] - luma).max() < 1e-5


def test_a_toned_photo_follows_its_tone_to_a_new_brightness() -> None:
    """A gray restoration of a sepia face comes back in sepia, darker parts in the sepia of darker parts."""
    rng = np.random.default_rng(5)
    before = np.clip(cv2.GaussianBlur(rng.random((128, 128)), (0, 0), 4) * 4 - 1.5, 0.1, 0.9)
    after = np.clip(before * 0.8 + 0.05 * np.sin(np.arange(128) / 5), 0.05, 0.95)
    restored = np.stack([after] * 3, -1).astype(np.float32)
    kept = tone.keep_chroma(restored, sepia(before).astype(np.float32), tone.toning(made_photo("toned")))
    light = cv2.cvtColor(restored, cv2.COLOR_RGB2Lab)[:, :, 0]
    got = cv2.cvtColor(kept, cv2.COLOR_RGB2Lab)
    assert np.abs(got[:, :, 0] - light).max() < 0.6
    grays = np.linspace(0.02, 0.98, 200)
    ideal = cv2.cvtColor(sepia(grays).astype(np.float32)[None], cv2.COLOR_RGB2Lab)[0]
    for channel in (1, 2):
        expected = np.interp(light, ideal[:, 0], ideal[:, channel])
        assert np.abs(got[:, :, channel] - expected).mean() < 1.0


def test_keeping_chroma_in_a_colour_photo_takes_only_the_brightness() -> None:
    original = made_crop(1) * 0.5 + 0.25
    restored = np.clip(original * 1.1, 0, 1)
    kept = tone.keep_chroma(restored, original, tone.toning(made_photo("colour")))
    before, after, wanted = (cv2.cvtColor(p, cv2.COLOR_RGB2Lab) for p in (original, kept, restored))
    assert np.abs(after[:, :, 1:] - before[:, :, 1:]).max() < 0.6
    assert np.abs(after[:, :, 0] - wanted[:, :, 0]).max() < 0.6


@pytest.mark.parametrize("shift", [(0.06, 0.0, -0.05), (0.05, 0.05, 0.05), (-0.08, 0.02, 0.04)])
def test_colours_that_drifted_come_back(shift: tuple[float, float, float]) -> None:
    original = made_crop()
    drifted = np.clip((original - 0.5) * 1.15 + 0.5 + np.float32(shift), 0, 1).astype(np.float32)
    matched = tone.match_colour(drifted, original, FACE_MASK)
    inside = FACE_MASK > 0.5
    assert np.abs(drifted - original)[inside].mean() > 4 * np.abs(matched - original)[inside].mean()
    half = tone.match_colour(drifted, original, FACE_MASK, 0.5)
    assert np.abs(half - (drifted + matched) / 2).mean() < 0.01


def test_sharpening_is_not_undone_by_the_colour_match() -> None:
    crop = made_crop()
    detail = np.random.default_rng(7).normal(0, 0.05, crop.shape).astype(np.float32)
    matched = tone.match_colour(crop + detail, crop, FACE_MASK)
    kept = (matched - cv2.GaussianBlur(matched, (0, 0), 2)).std() / detail.std()
    assert 0.85 < kept < 1.1


def test_an_empty_mask_matches_nothing() -> None:
    crop = made_crop()
    assert tone.match_colour(made_crop(2), crop, np.zeros((256, 256), np.float32)) is not None
    assert np.array_equal(tone.match_colour(made_crop(2), crop, np.zeros((256, 256), np.float32)), made_crop(2))


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.06])
def test_grain_is_measured(sigma: float) -> None:
    crop = made_crop()
    noise = np.random.default_rng(0).normal(0, sigma, (256, 256, 1)).astype(np.float32)
    assert tone.grain_level(crop + noise) == pytest.approx(sigma, rel=0.15)
    assert tone.grain_level(crop) < 0.004


@pytest.mark.parametrize("photo_pixel_px", [1.0, 2.0, 4.0])
def test_grain_is_brought_to_that_of_the_surroundings(photo_pixel_px: float) -> None:
    size = round(256 / photo_pixel_px)
    noise = np.random.default_rng(0).normal(0, 0.04, (size, size)).astype(np.float32)
    noise = cv2.resize(noise, (256, 256), interpolation=cv2.INTER_CUBIC)[:, :, None]
    restored = made_crop() * 0.4 + 0.3
    original = restored + noise
    grained = tone.match_grain(restored, original, FACE_MASK, photo_pixel_px, seed=3)
    assert np.array_equal(grained, tone.match_grain(restored, original, FACE_MASK, photo_pixel_px, seed=3))
    assert not np.array_equal(grained, tone.match_grain(restored, original, FACE_MASK, photo_pixel_px, seed=4))
    inside = cv2.resize(FACE_MASK, (size, size), interpolation=cv2.INTER_AREA) > 0.5
    levels = [
        tone.grain_level(cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA), inside) for p in (original, grained)
    ]
    assert levels[1] == pytest.approx(levels[0], rel=0.3)
    half = tone.match_grain(restored, original, FACE_MASK, photo_pixel_px, 0.5, seed=3)
    assert 0 < np.abs(half - restored).mean() < np.abs(grained - restored).mean()
    assert np.array_equal(tone.match_grain(restored, original, FACE_MASK, photo_pixel_px, 0.0), restored)


def test_grain_of_an_even_print_is_not_lowered() -> None:
    restored = made_crop() + np.random.default_rng(0).normal(0, 0.05, (256, 256, 1)).astype(np.float32)
    assert np.array_equal(tone.match_grain(restored, made_crop(), FACE_MASK, 1.0), restored)


def test_the_chroma_of_another_picture_is_taken_at_the_own_lightness() -> None:
    own, other = made_crop(1), made_crop(2)[..., ::-1].copy()
    before, wanted = (cv2.cvtColor(each, cv2.COLOR_RGB2Lab) for each in (own, other))
    for amount in (0.5, 1.0):
        made = cv2.cvtColor(tone.with_chroma(own, other, amount), cv2.COLOR_RGB2Lab)
        np.testing.assert_allclose(made[..., 0], before[..., 0], atol=0.4)  # OpenCV looks Lab up in a table
        goal = before.copy()
        goal[..., 1:] += np.float32(amount) * (wanted - before)[..., 1:]
        shown = cv2.cvtColor(cv2.cvtColor(goal, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2Lab)
        there = np.abs(shown - goal).max(axis=2) < 0.4
        assert there.mean() > 0.95
        np.testing.assert_allclose(made[there], goal[there], atol=1)
    assert np.array_equal(tone.with_chroma(own, other, 0.0), own)
    assert np.array_equal(tone.with_chroma(own, own), own)


def test_chroma_beyond_srgb_is_drawn_in_along_its_hue() -> None:
    own = np.tile(np.linspace(0.02, 0.98, 64, dtype=np.float32)[:, None, None], (1, 8, 3))
    blue = np.broadcast_to(np.array([0, 0, 1], np.float32), own.shape).copy()
    before, made, hue = (cv2.cvtColor(each, cv2.COLOR_RGB2Lab) for each in (own, tone.with_chroma(own, blue), blue))
    np.testing.assert_allclose(made[..., 0], before[..., 0], atol=0.6)
    chroma = np.hypot(made[..., 1], made[..., 2])
    assert chroma.max() > 100
    seen = chroma > 20
    turn = np.arctan2(made[..., 2], made[..., 1])[seen] - np.arctan2(hue[0, 0, 2], hue[0, 0, 1])
    assert np.abs(turn).max() < 0.05
