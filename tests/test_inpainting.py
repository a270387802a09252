"""The whole way: scene and mask in; the hole filled, its faces restored, and not a bit changed elsewhere."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from test_inpaint import distance_slowly

from facefix import Inpainter, Recipe, Result, imagefile, upscale
from facefix.errors import DeviceError, PhotoRefused, PhotoUnreadable, UsageError
from facefix.inpaint import KINDS, Kind, Progress
from facefix.types import Mask, Meta, Photo, Pixels
from facefix.weights import Store

PROFILE = imagecodecs.cms_profile(
    "rgb", whitepoint=[0.3127, 0.3290, 1.0], primaries=[0.68, 0.32, 0, 0.265, 0.69, 0, 0.15, 0.06, 0], gamma=1.9
)


class Reckless:
    """An engine that draws noise over everything, known pixels included, and keeps what it was given."""

    name = "reckless"
    takes_prompt = False

    def __init__(self) -> None:
        self.seen: list[tuple[Pixels, Mask, int]] = []

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        self.seen.append((scene.copy(), hole.copy(), seed))
        if progress is not None:
            progress(1, 1)
        return np.random.default_rng(seed).random(scene.shape, np.float32)


class Flat:
    """An engine that draws one colour."""

    name = "flat"
    takes_prompt = False

    def __init__(self, *rgb: float) -> None:
        self.rgb = rgb

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        return np.full(scene.shape, self.rgb, np.float32)


SEEDED = Kind("reckless", seeded=True)


def painter(engine: object, **settings: object) -> Inpainter:
    recipe = Recipe(**({"faces": False, "fill_grain": 0.0} | settings))  # type: ignore[arg-type]
    return Inpainter(recipe, SEEDED, engine, None)  # type: ignore[arg-type]


def noise(bits: int = 8, *, height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(bits)
    return rng.integers(0, 2**bits, (height, width, channels), np.uint8 if bits == 8 else np.uint16)


def strokes(height: int = 48, width: int = 64) -> np.ndarray:
    """A block, a stroke of one pixel and a single pixel."""
    mask = np.zeros((height, width), bool)
    mask[8:14, 10:20] = mask[30, 25:50] = mask[40, 5] = True
    return mask


def changed(result: Result, scene: np.ndarray) -> np.ndarray:
    return (result.photo.raster != scene).any(axis=2)


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
        (np.ones((48, 64), bool), "the mask covers the whole photo"),
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


def test_a_mask_that_widening_makes_full_is_refused_and_an_almost_full_one_works() -> None:
    mask = np.ones((48, 64), bool)
    mask[:, :2] = False
    with pytest.raises(PhotoRefused, match="covers the whole photo, with --dilate-px and --feather-px around it"):
        painter(Reckless())(noise(), mask)
    result = painter(Reckless(), feather_px=0)(noise(), mask)
    np.testing.assert_array_equal(changed(result, noise()), mask)
    with pytest.raises(PhotoUnreadable):
        painter(Reckless())(noise(), Path("no/such/mask.png"))


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


@pytest.fixture(scope="module")
def telea() -> Inpainter:
    return Inpainter.load(Recipe(engine="cv2"), device="cpu")


def scratched(portrait: np.ndarray, *line: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(portrait.shape[:2], np.uint8)
    cv2.line(mask, *line, 255, 3)
    scene = portrait.copy()
    scene[mask > 0] = 255
    return scene, mask


def test_a_scratch_across_a_face_is_filled_and_the_face_restored_inside_it(
    telea: Inpainter, portrait: np.ndarray
) -> None:
    scene, mask = scratched(portrait, (170, 60), (270, 170))
    result = telea(scene, mask)
    [note] = result.report.faces
    assert (note.outcome, note.reason, note.restorer) == ("restored", "", "facefix-lite-256")
    assert result.canvas is not None
    by_fill = changed(Result(result.canvas, result.report), scene)
    by_face = (result.photo.raster != result.canvas.raster).any(axis=2)
    assert by_fill.sum() > 300
    assert by_face.sum() > 100
    soft = distance_slowly_near(mask)
    assert not (by_fill | by_face)[soft >= 4].any()
    error = np.abs(result.photo.raster[mask > 0].astype(int) - portrait[mask > 0]).mean()
    assert error < 0.25 * np.abs(scene[mask > 0].astype(int) - portrait[mask > 0]).mean()
    facts = result.report.fill
    assert (facts["engine"], facts["seed"], facts["hole_px"]) == ("cv2", None, int((mask > 0).sum()))
    assert facts["seconds"] > 0
    assert result.report.recipe == Recipe(engine="cv2").values("inpaint")
    assert list(result.report.weights) == ["facefix-lite-256"]
    assert result.report.seconds >= facts["seconds"]


def distance_slowly_near(mask: np.ndarray) -> np.ndarray:
    """The distance to the mask up to 12 px, by dilating it with discs; for pictures too large to look at all pairs."""
    distance = np.full(mask.shape, 99.0)
    for squared in range(144, -1, -1):
        reach = int(squared**0.5)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        disc = (y * y + x * x <= squared).astype(np.uint8)
        distance[cv2.dilate((mask > 0).astype(np.uint8), disc) > 0] = squared**0.5
    return distance


def test_spill_lets_the_face_be_restored_a_little_beyond_the_hole(portrait: np.ndarray) -> None:
    scene, mask = scratched(portrait, (170, 60), (270, 170))
    result = Inpainter.load(Recipe(engine="cv2", face_spill_px=6), device="cpu")(scene, mask)
    assert result.canvas is not None
    by_face = (result.photo.raster != result.canvas.raster).any(axis=2)
    distance = distance_slowly_near(mask)
    assert by_face[(distance > 5) & (distance < 7)].any()
    assert not by_face[distance >= 6 + 4].any()


def test_faces_that_the_hole_does_not_touch_are_left_alone(telea: Inpainter, portrait: np.ndarray) -> None:
    scene, mask = scratched(portrait, (20, 400), (120, 480))
    result = telea(scene, mask)
    assert [(note.outcome, note.reason) for note in result.report.faces] == [("skipped", "the hole does not touch it")]
    assert not result.patches
    # nor are they when the spill would reach them
    near = dataclasses.replace(telea.recipe, face_spill_px=300)
    wide = Inpainter(near, telea.kind, telea.engine, telea.fix)(scene, mask)
    assert [note.reason for note in wide.report.faces] == ["the hole does not touch it"]


def test_no_faces_means_that_none_is_looked_for(portrait: np.ndarray) -> None:
    scene, mask = scratched(portrait, (170, 60), (270, 170))
    result = Inpainter.load(Recipe(engine="cv2", faces=False))(scene, mask, target=Path("out.png"))
    assert result.report.faces == ()
    assert (result.report.source, result.report.target) == (None, "out.png")
    assert (result.report.width, result.report.height, result.report.weights) == (512, 512, {})


def test_auto_without_weights_says_what_would_be_better(tmp_path: Path) -> None:
    store = dataclasses.replace(
        Store.default(), folders=(tmp_path,), config_folder=tmp_path / "config", cache_folder=tmp_path / "cache"
    )
    work = Inpainter.load(Recipe(faces=False), store=store, device="cpu")
    assert work.kind is KINDS["cv2"]
    assert any("fetch big-lama" in notice for notice in work.notices)


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


def test_auto_takes_lama_from_the_store_and_names_its_file(tmp_path: Path) -> None:
    from made_lama import TINY, made_state
    from safetensors.torch import save_file

    from facefix.ffc import Generator

    save_file(made_state(Generator.layout(TINY)), tmp_path / "big-lama.safetensors")
    store = dataclasses.replace(
        Store.default(), folders=(tmp_path,), config_folder=tmp_path / "config", cache_folder=tmp_path / "cache"
    )
    work = Inpainter.load(Recipe(faces=False), store=store, device="cpu")
    assert (work.kind.name, work.notices) == ("lama", ())
    scene, mask = noise(16), strokes()
    result = work(scene, mask)
    known = distance_slowly(mask) >= 4
    np.testing.assert_array_equal(result.photo.raster[known], scene[known])
    assert changed(result, scene)[mask].all()
    assert result.report.fill["engine"].startswith("lama")
    assert list(result.report.weights) == ["big-lama"]
    assert len(result.report.weights["big-lama"]) == 64


def saved(work: Inpainter, scene: Path, mask: np.ndarray, out: Path) -> tuple[Sequence[str], bytes]:
    photo = imagefile.read(scene)
    lost = work.save(work(photo, mask), photo, out)
    return lost, out.read_bytes()


LABEL = b"compositeWithTrainedAlgorithmicMedia"


def test_the_file_keeps_its_metadata_and_says_what_ai_made(
    telea: Inpainter, portrait: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "scene.png"
    exif = Image.Exif()
    exif[0x010E] = "my grandmother"
    Image.fromarray(portrait).save(source, icc_profile=PROFILE, exif=exif, dpi=(300, 300))
    away, across = np.zeros((512, 512), bool), np.zeros((512, 512), bool)
    away[400:410, 20:60] = True
    across[60:170, 220:223] = True
    lost, plain = saved(telea, source, away, tmp_path / "away.png")
    assert (lost, LABEL in plain) == ((), False)
    got = imagefile.read(tmp_path / "away.png")
    before = imagefile.read(source)
    assert (got.meta.icc, got.meta.dpi) == (before.meta.icc, before.meta.dpi)
    assert b"my grandmother" in (got.meta.exif or b"")
    np.testing.assert_array_equal(got.raster[:390], before.raster[:390])
    assert LABEL in saved(telea, source, across, tmp_path / "across.png")[1]
    network = Inpainter(Recipe(faces=False), KINDS["lama"], Flat(1, 0, 0), None)
    assert LABEL in saved(network, source, away, tmp_path / "network.png")[1]
    silent = Inpainter(Recipe(faces=False, ai_label=False), KINDS["lama"], Flat(1, 0, 0), None)
    assert LABEL not in saved(silent, source, away, tmp_path / "silent.png")[1]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_known_pixels_keep_their_bits_from_file_to_file(bits: int, channels: int, suffix: str, tmp_path: Path) -> None:
    icc = PROFILE if channels > 2 else imagecodecs.cms_profile("gray", gamma=1.8)
    array = noise(bits, channels=channels)
    made = imagefile.from_array(array)
    imagefile.write(
        dataclasses.replace(made, meta=dataclasses.replace(made.meta, icc=icc)),
        tmp_path / f"in{suffix}",
        ai_label=False,
    )
    photo = imagefile.read(tmp_path / f"in{suffix}")
    assert (photo.meta.bits, photo.meta.gray, photo.meta.icc) == (bits, channels < 3, icc)
    work = painter(Reckless())
    assert work.save(work(photo, strokes()), photo, tmp_path / f"out{suffix}") == ()
    got = imagefile.read(tmp_path / f"out{suffix}")
    known = distance_slowly(strokes()) >= 4
    colours = array[:, :, : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(got.raster[known], np.broadcast_to(colours, (48, 64, 3))[known])
    assert (got.raster != photo.raster).any(axis=2)[strokes()].mean() > 0.9
    assert (got.meta.bits, got.meta.gray, got.meta.icc) == (bits, channels < 3, icc)
    if channels in (2, 4):
        np.testing.assert_array_equal(got.alpha, array[:, :, -1])


def test_a_fill_that_changes_nothing_copies_the_file_and_one_that_changes_alpha_does_not(tmp_path: Path) -> None:
    flat = np.full((40, 40, 4), 128, np.uint8)
    flat[:, :, 3] = 255
    Image.fromarray(flat).save(tmp_path / "flat.png", compress_level=0)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    work = painter(Flat(*(3 * [128 / 255])))
    assert saved(work, tmp_path / "flat.png", mask, tmp_path / "same.png")[1] == (tmp_path / "flat.png").read_bytes()
    flat[10:20, 10:20, 3] = 0
    Image.fromarray(flat).save(tmp_path / "holed.png")
    photo = imagefile.read(tmp_path / "holed.png")
    work.save(work(photo), photo, tmp_path / "filled.png")
    with Image.open(tmp_path / "filled.png") as written:
        assert np.asarray(written)[:, :, 3].min() == 255


def test_a_photo_of_any_depth_goes_through_the_real_engine(telea: Inpainter) -> None:
    x = np.mgrid[:60, :80][1]
    ramp = np.dstack([x * 800, 60000 - x * 500, x * 3 + 1000]).astype(np.uint16)
    mask = np.zeros((60, 80), bool)
    mask[20:24] = True
    photo = Photo(ramp, Meta(bits=16))
    result = Inpainter(Recipe(faces=False), telea.kind, telea.engine, None)(photo, mask)
    assert np.abs(result.photo.raster.astype(int) - ramp)[20:24].max() < 0.05 * 65535
    assert len(np.unique(result.photo.raster[20:24, :, 0])) > 256


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Stable Diffusion for inpainting in a folder, with made weights; what it draws is noise."""
    tiny = pytest.importorskip("tiny_diffusion")
    folder: Path = tiny.save(tmp_path_factory.mktemp("sd"), 9)
    return folder


def test_stable_diffusion_fills_by_seed_and_keeps_all_else(tiny_model: Path, tmp_path: Path) -> None:
    scene, mask = noise(16, height=72, width=90), np.zeros((72, 90), bool)
    mask[30:31, 20:60] = True
    recipe = Recipe(engine="sd", model=str(tiny_model), prompt="a wall", steps=2, faces=False, candidates=2, seed=3)
    work = Inpainter.load(recipe, device="cpu")
    heard: list[tuple[str, int, int]] = []
    first, second = work.candidates(scene, mask, progress=lambda *step: heard.append(step))
    assert heard[-1] == ("fill", 2, 2)
    known = distance_slowly(mask) >= 4
    for result in (first, second):
        np.testing.assert_array_equal(result.photo.raster[known], scene[known])
        assert changed(result, scene)[mask].all()
    assert (first.photo.raster != second.photo.raster).any()
    np.testing.assert_array_equal(work(scene, mask).photo.raster, first.photo.raster)
    assert [result.report.fill["seed"] for result in (first, second)] == [3, 4]
    assert first.report.fill["engine"].startswith("sd ")


def test_hires_enlarges_everything_and_draws_the_hole_anew(tiny_model: Path) -> None:
    y, x = np.mgrid[:80, :96]
    scene = np.dstack([x * 2 + 20, y * 2 + 30, x + y]).astype(np.uint8)
    mask = np.zeros((80, 96), bool)
    mask[30:50, 30:60] = True
    settings = {"engine": "sd", "model": str(tiny_model), "steps": 2, "faces": False, "fill_grain": 0.0}
    plain = Inpainter.load(Recipe(**settings), device="cpu")(scene, mask)
    result = Inpainter.load(Recipe(hires=2, denoise=0.6, **settings), device="cpu")(scene, mask)
    assert "--denoise 0.6 is above 0.5: structures may have changed" in result.report.warnings
    assert result.photo.raster.shape == (160, 192, 3)
    enlarged = upscale.lanczos(plain.photo, 2).raster
    distance = np.repeat(np.repeat(distance_slowly(mask), 2, 0), 2, 1)
    far = distance >= 4 + 1
    np.testing.assert_array_equal(result.photo.raster[far], enlarged[far])
    assert (result.photo.raster != enlarged).any(axis=2)[distance == 0].mean() > 0.9
    assert result.report.fill["hole_px"] == 4 * mask.sum()
    assert (result.report.width, result.report.height) == (192, 160)


def test_a_model_must_be_named_for_what_draws_by_words() -> None:
    with pytest.raises(UsageError, match="--model: expected a folder, a file or a name on the hub for --engine sdxl"):
        Inpainter.load(Recipe(engine="sdxl", prompt="a wall", faces=False))
    with pytest.raises(UsageError, match="--hires: reckless cannot draw anew what is there"):
        painter(Reckless(), hires=2)(noise(), strokes())
