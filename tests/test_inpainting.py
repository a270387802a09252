"""The whole way: scene and mask in; the hole filled, and not a bit changed elsewhere."""

import dataclasses

import cv2
import numpy as np
import pytest
from made_fills import PROFILE, SEEDED, Flat, Reckless, changed, distance_slowly, noise, painter, strokes

from facefix import Inpainter, Recipe, imagefile
from facefix.errors import DeviceError, PhotoRefused, UsageError


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"region": "masked", "context_px": 3},
        {"feather_px": 0},
        {"dilate_px": 2, "feather_px": 7},
        {"contrast": "equalize", "post": "gaussian"},
        {"contrast": "clahe", "post": "median", "fill_grain": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["srgb", "icc"])
def test_known_pixels_keep_their_bits_whatever_the_engine_draws(
    bits: int, settings: dict[str, object], profile: bytes | None
) -> None:
    scene = noise(bits)
    photo = imagefile.from_array(scene)
    if profile is not None:
        photo = dataclasses.replace(
            photo,
            meta=dataclasses.replace(photo.meta, icc=profile),
            colour=imagefile.colour.space(profile, bits=bits, gray=False)[0],  # type: ignore[arg-type]
        )
    work = painter(Reckless(), **settings)
    result = work(photo, strokes())
    distance = distance_slowly(strokes()) - work.recipe.dilate_px
    known = distance >= max(1, work.recipe.feather_px)
    assert known.sum() > 500
    np.testing.assert_array_equal(result.photo.raster[known], scene[known])
    assert changed(result, scene)[distance <= 0].mean() > 0.95
    assert result.photo.raster.dtype == scene.dtype
    assert result.photo.raster.shape == scene.shape


@pytest.mark.parametrize("bits", [8, 16])
def test_the_hole_shows_the_fill_whole_and_the_edge_fades(bits: int) -> None:
    scene = np.zeros((40, 40, 3), np.uint8 if bits == 8 else np.uint16)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    top = 2**bits - 1
    result = painter(Flat(1, 1, 1))(scene, mask)
    got = result.photo.raster[:, :, 0] / top
    assert (got[mask] == 1).all()
    line = got[15, 20:25]
    np.testing.assert_allclose(line, [0.84375, 0.5, 0.15625, 0, 0], atol=0.5 / top + 1e-6)
    hard = painter(Flat(1, 1, 1), feather_px=0)(scene, mask).photo.raster[:, :, 0]
    np.testing.assert_array_equal(hard, mask * np.array(top, scene.dtype))


def test_grey_photos_stay_grey_and_alpha_stays_as_it_was() -> None:
    gray = noise(channels=1)
    result = painter(Flat(0.9, 0.5, 0.1))(gray, strokes())
    assert result.photo.meta.gray
    assert (result.photo.raster == result.photo.raster[:, :, :1]).all()
    both = noise(16, channels=4)
    result = painter(Reckless())(both, strokes())
    np.testing.assert_array_equal(result.photo.alpha, both[:, :, 3])


def test_transparent_pixels_are_the_hole_and_become_opaque() -> None:
    scene = noise(channels=4)
    scene[:, :, 3] = 255
    scene[20:30, 20:40, 3] = 0
    scene[30, 20:40, 3] = 200
    work = painter(Flat(0, 1, 0))
    result = work(scene)
    assert (result.photo.raster[20:31, 20:40] == (0, 255, 0)).all()
    assert result.photo.alpha is not None
    assert (result.photo.alpha == 255).all()
    assert result.report.fill["hole_px"] == 220
    with pytest.raises(PhotoRefused, match="expected a mask, got none, and every pixel of the scene is opaque"):
        work(noise())


def test_what_is_under_the_hole_is_told_apart_from_what_is_known() -> None:
    engine = Reckless()
    scene = noise()
    painter(engine, region="masked", context_px=2)(scene, strokes())
    [(seen, hole, seed)] = engine.seen
    assert (seen.shape, hole.shape, seed) == ((48, 64, 3), (48, 64), 0)
    assert set(np.unique(hole)) == {0, 1}
    assert (hole[strokes()] == 1).all()
    assert (hole == (distance_slowly(strokes()) < 4)).all()
    np.testing.assert_allclose(seen, scene / 255, atol=1e-6)


def test_each_region_is_filled_at_full_size_with_a_seed_of_its_own() -> None:
    engine, scene = Reckless(), noise(height=300, width=500)
    mask = np.zeros((300, 500), bool)
    mask[50, 50] = mask[200, 400] = True
    heard: list[tuple[str, int, int]] = []
    work = painter(engine, region="masked", seed=7)
    result = work(scene, mask, progress=lambda *step: heard.append(step))
    assert [(seen.shape, seed) for seen, _, seed in engine.seen] == [((128, 128, 3), 7), ((128, 128, 3), 8)]
    assert result.report.fill["boxes"] == [[0, 0, 128, 128], [336, 136, 464, 264]]
    assert heard == [("fill 1 of 2", 1, 1), ("fill 2 of 2", 1, 1)]
    assert changed(result, scene)[mask].all()
    assert not changed(result, scene)[distance_slowly(mask) >= 4].any()


@pytest.mark.parametrize("region", ["whole", "masked"])
def test_outpainting_grows_the_frame_around_the_same_bits(region: str) -> None:
    scene, engine = noise(16, channels=4), Reckless()
    scene[:, :, 3] = 65535
    result = painter(engine, outpaint="300,0,10%,5", region=region)(scene)
    assert (result.photo.width, result.photo.height) == (64 + 306, 48 + 5)
    assert (result.report.width, result.report.height) == (370, 53)
    inside = result.photo.raster[:48, 300:364]
    np.testing.assert_array_equal(inside[:44, 4:60], scene[:44, 4:60, :3])
    assert not (inside == scene[:, :, :3]).all()
    assert result.photo.alpha is not None
    assert (result.photo.alpha == 65535).all()
    assert result.report.fill["hole_px"] == 370 * 53 - 48 * 64
    assert len(engine.seen) == 2
    # the second step knows what the first one drew
    [(_, first, _), (scene_2, second, _)] = engine.seen
    assert first.sum() < 0.6 * second.size
    if region == "whole":
        assert second.shape == (53, 370)
        assert second[:40, 160:].sum() < 0.2 * second.sum()
        assert scene_2[:40, 160:290].std() > 0.2


def test_outpainting_fills_what_the_mask_shows_too() -> None:
    scene, mask = noise(), np.zeros((48, 64), bool)
    mask[20:24, 30:34] = True
    result = painter(Flat(1, 0, 0), outpaint="0,0,8,0")(scene, mask)
    assert (result.photo.raster[20:24, 30:34] == (255, 0, 0)).all()
    assert (result.photo.raster[:, 64:] == (255, 0, 0)).all()
    hole = np.pad(mask, ((0, 0), (0, 8)))
    hole[:, 64:] = True
    known = distance_slowly(hole) >= 4
    np.testing.assert_array_equal(result.photo.raster[known], np.pad(scene, ((0, 0), (0, 8), (0, 0)))[known])
    empty = painter(Flat(1, 0, 0), outpaint="0,0,8,0")(scene, np.zeros_like(mask))
    assert (empty.photo.raster[20:24, 30:34] == scene[20:24, 30:34]).all()
    with pytest.raises(UsageError, match="--outpaint"):
        painter(Reckless(), outpaint="8")(scene, mask)


def test_candidates_differ_by_their_seeds_and_the_first_is_the_one_result() -> None:
    work = painter(Reckless(), candidates=3, seed=5)
    results = list(work.candidates(noise(), strokes()))
    assert [result.report.fill["seed"] for result in results] == [5, 6, 7]
    assert len({result.photo.raster.tobytes() for result in results}) == 3
    np.testing.assert_array_equal(results[0].photo.raster, work(noise(), strokes()).photo.raster)


def test_an_engine_without_finite_numbers_is_an_error_and_no_result() -> None:
    with pytest.raises(DeviceError, match="flat: it gave no finite numbers; try --precision float32"):
        painter(Flat(np.nan, 0, 0))(noise(), strokes())


def sepia(height: int = 200, width: int = 240) -> np.ndarray:
    light = 40 + 150 * np.random.default_rng(2).random((height // 8, width // 8))
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.dstack([light * 1.15, light, light * 0.8]), 0, 255).astype(np.uint8)


def test_a_networks_fill_keeps_to_the_tone_of_old_photos() -> None:
    mask = np.zeros((200, 240), bool)
    mask[60:100, 60:120] = True
    toned = sepia()
    gray = np.repeat(toned[:, :, 1:2], 3, axis=2)
    for scene in (toned, gray):
        scene[mask] = (255, 0, 0)  # what is painted over the hole has no say in the tone
    fill = painter(Flat(0.2, 0.6, 0.9))(gray, mask).photo.raster
    assert np.ptp(fill.astype(int), axis=2).max() <= 1
    assert 120 < fill[80, 80, 0] < 160
    red, green, blue = painter(Flat(0.2, 0.6, 0.9))(toned, mask).photo.raster[80, 80].astype(int)
    assert red > green > blue
    assert abs(red / green - 1.15) < 0.06
    for kept in (painter(Flat(0.2, 0.6, 0.9), colour="free"), painter(Flat(0.2, 0.6, 0.9))):
        scene = toned if kept.recipe.colour == "free" else noise(height=200, width=240)
        assert kept(scene, mask).photo.raster[80, 80].tolist() == [51, 153, 230]


def test_the_report_says_where_an_engine_saw_a_shrunk_photo() -> None:
    scene, mask = np.full((760, 760, 3), 90, np.uint8), np.zeros((760, 760), bool)
    mask[100:110, 100:110] = True
    kind = dataclasses.replace(SEEDED, works_px=512 * 512)
    whole, masked = (Inpainter(Recipe(faces=False, region=r), kind, Flat(0, 0, 0), None) for r in ("whole", "masked"))
    [warning] = whole(scene, mask).report.warnings
    assert warning.startswith("flat works at 0.3 megapixels and saw the photo shrunk to them; --region masked")
    assert masked(scene, mask).report.warnings == ()
    assert whole(scene[:700, :700], mask[:700, :700]).report.warnings == ()
