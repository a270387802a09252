"""The arithmetic around the engines, the cv2 engine, and which engine a recipe gets."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_fills import distance_slowly

from facefix import inpaint
from facefix.errors import UsageError, WeightsInvalid, WeightsMissing
from facefix.inpaint import compose, matching, telea
from facefix.inpaint.compose import Margins
from facefix.inpaint.telea import Telea
from facefix.recipe import Recipe
from facefix.types import Box, Meta, Photo, Pixels
from facefix.weights import Store


def speckled(seed: int, count: int = 5) -> np.ndarray:
    hole = np.zeros((31, 37), bool)
    rng = np.random.default_rng(seed)
    hole[rng.integers(0, 31, count), rng.integers(0, 37, count)] = True
    return hole


def waves(height: int = 60, width: int = 80) -> Pixels:
    y, x = np.mgrid[:height, :width]
    planes = [0.5 + 0.3 * np.sin(x / (6 + i) + y / (9 - i)) for i in range(3)]
    return np.dstack(planes).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reach_px", [1, 2.5, 4, 40])
def test_holes_grow_and_fade_by_their_true_distance(seed: int, reach_px: float) -> None:
    hole = speckled(seed)
    distance = distance_slowly(hole)
    np.testing.assert_array_equal(compose.grown(hole, reach_px), distance <= reach_px)
    at = np.clip(1 - distance / reach_px, 0, 1)
    soft = compose.soft_mask(hole, reach_px)
    np.testing.assert_allclose(soft, at * at * (3 - 2 * at), atol=1e-5)
    assert (soft[hole] == 1).all()
    assert (soft[distance >= reach_px] == 0).all()


def test_a_soft_edge_is_the_same_to_the_last_bit_wherever_it_lies_in_memory() -> None:
    hole = np.zeros((41, 43), bool)
    hole[20, 21] = True
    y, x = np.mgrid[:41, :43]
    true = np.sqrt(((y - 20) ** 2 + (x - 21) ** 2).astype(np.float32))
    at = 1 - true / np.float32(40)
    np.testing.assert_array_equal(compose.soft_mask(hole, 40), at * at * (3 - 2 * at))


def test_without_a_width_a_hole_stays_as_it_is() -> None:
    hole = speckled(0)
    assert (compose.grown(hole, 0) == hole).all()
    assert (compose.soft_mask(hole, 0) == hole).all()
    assert not compose.soft_mask(np.zeros((4, 4), bool), 3).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("context_px", [1, 32])
def test_regions_hold_the_holes_with_context_and_do_not_overlap(seed: int, context_px: int) -> None:
    rng = np.random.default_rng(seed)
    reach = np.zeros((700, 900), bool)
    for _ in range(rng.integers(1, 6)):
        y, x, h, w = rng.integers(0, (700, 900, 20, 250))
        reach[y : y + h + 1, x : x + w + 1] = True
    covered = np.zeros(reach.shape, int)
    for box in compose.regions(reach, context_px):
        assert 0 <= box.x0 < box.x1 <= 900
        assert 0 <= box.y0 < box.y1 <= 700
        wide, high = box.x1 - box.x0, box.y1 - box.y0
        assert min(wide, high) >= 128
        assert max(wide, high) <= 2 * min(wide, high) + 1 or min(wide, high) in (700, 900)
        covered[box.slices] += 1
        inner = compose.around(reach[box.slices])
        assert inner.x0 >= context_px or box.x0 == 0
        assert inner.y0 >= context_px or box.y0 == 0
        assert wide - inner.x1 >= context_px or box.x1 == 900
        assert high - inner.y1 >= context_px or box.y1 == 700
    assert covered.max() == 1
    assert covered[reach].all()


def test_holes_far_apart_get_boxes_of_their_own_and_near_ones_share() -> None:
    reach = np.zeros((400, 900), bool)
    reach[100, 100] = reach[100, 800] = True
    assert compose.regions(reach, 32) == [Box(36, 36, 164, 164), Box(736, 36, 864, 164)]
    reach[140, 180] = True
    assert [box.x0 for box in compose.regions(reach, 32)] == [36, 736]
    tiny = np.eye(5, dtype=bool)
    assert compose.regions(tiny, 32) == [Box(0, 0, 5, 5)]


def test_pieces_take_each_pixel_once_and_look_beyond_their_own() -> None:
    rng = np.random.default_rng(0)
    reach = rng.random((300, 420)) < 0.002
    reach[150:152, 10:400] = True
    reach[40:100, 180:260] = True
    taken = np.zeros(reach.shape, int)
    found = compose.pieces(reach, 20, tile_px=128)
    for box, own in found:
        taken[box.slices] += own
        inner = compose.around(own)
        assert inner.x0 >= 20 or box.x0 == 0
        assert own.shape[1] - inner.x1 >= 20 or box.x1 == 420
        assert not own[~reach[box.slices]].any()
    np.testing.assert_array_equal(taken, reach)
    [block] = [piece for piece in found if piece.own.sum() > 4000]
    assert block.box[0] <= 160
    assert len(found) == 1 + 3 * 4


def test_filling_in_pieces_is_filling_at_once_to_a_hair() -> None:
    scene = waves(300, 420)
    reach = np.zeros(scene.shape[:2], bool)
    reach[20:280:40, :] = reach[:, 30:400:50] = reach[100:180, 130:220] = True
    at_once = Telea().fill(scene, reach.astype(np.float32))
    for box, own in compose.pieces(reach, 64, tile_px=128):
        part = Telea().fill(scene[box.slices], reach[box.slices].astype(np.float32))
        assert np.abs(part - at_once[box.slices])[own].max() < 1e-3


def test_equalising_has_an_inverse_and_the_hole_no_say() -> None:
    scene = waves() * 0.4 + 0.1
    reach = np.zeros(scene.shape[:2], bool)
    reach[20:30, 30:50] = True
    spoiled = scene.copy()
    spoiled[reach] = (1, 0, 1)
    guide = matching.guide(scene, reach, "equalize")
    assert guide.scene.std() > 1.5 * scene.std()
    np.testing.assert_allclose(guide.back(guide.scene), scene, atol=6e-3)  # colours that do not fit are clipped
    other = matching.guide(spoiled, reach, "equalize")
    np.testing.assert_array_equal(other.scene[~reach], guide.scene[~reach])


def test_clahe_is_taken_back_by_the_ring_around_each_hole() -> None:
    scene = waves() * 0.3 + 0.3
    reach = np.zeros(scene.shape[:2], bool)
    reach[10:18, 10:22] = reach[40:50, 60:72] = True
    spoiled = scene.copy()
    spoiled[reach] = 1
    guide, other = (matching.guide(each, reach, "clahe") for each in (scene, spoiled))
    np.testing.assert_array_equal(other.scene[~reach], guide.scene[~reach])
    assert np.abs(guide.scene - scene)[~reach].mean() > 0.02
    # an engine that fills with the ring's own mean as it sees it gives the mean of the photo's ring
    for hole in (np.s_[10:18, 10:22], np.s_[40:50, 60:72]):
        one = np.zeros_like(reach)
        one[hole] = True
        ring = compose.grown(one, 16) & ~reach
        drawn = guide.scene.copy()
        drawn[hole] = guide.scene[ring].mean(axis=0)
        np.testing.assert_allclose(guide.back(drawn)[hole].mean((0, 1)), scene[ring].mean(axis=0), atol=0.03)


def test_no_contrast_shows_the_scene_itself() -> None:
    scene = waves()
    guide = matching.guide(scene, np.zeros(scene.shape[:2], bool), "none")
    assert guide.scene is scene
    assert guide.back(scene) is scene


def test_smoothing_takes_noise_away() -> None:
    noisy = np.full((40, 40, 3), 0.5, np.float32)
    noisy[::7, ::7] = 1
    assert np.abs(matching.smoothed(noisy, "median") - 0.5).max() == 0
    assert 0 < np.abs(matching.smoothed(noisy, "gaussian") - 0.5).max() < 0.2
    assert matching.smoothed(noisy, "none") is noisy


def test_a_fill_gets_the_grain_around_it() -> None:
    rng = np.random.default_rng(0)
    clean = np.full((120, 120, 3), 0.4, np.float32)
    reach = np.zeros((120, 120), bool)
    reach[40:80, 40:80] = True
    mixed = rng.standard_normal(clean.shape) @ [[0.02, 0.01, 0], [0, 0.03, 0.01], [0, 0, 0.02]]
    scene = (clean + mixed).astype(np.float32)
    filled = np.where(reach[:, :, None], clean, scene)
    got = matching.grained(filled, reach, 1.0, seed=1)
    np.testing.assert_array_equal(got[~reach], scene[~reach])
    np.testing.assert_allclose(np.cov(got[reach].T), np.cov(scene[~reach].T), rtol=0.3, atol=1e-4)
    half = matching.grained(filled, reach, 0.5, seed=1)
    np.testing.assert_allclose((half - filled)[reach], 0.5 * (got - filled)[reach], atol=1e-6)
    np.testing.assert_array_equal(matching.grained(filled, reach, 1.0, seed=1), got)
    assert (matching.grained(filled, reach, 1.0, seed=2) != got).any()
    # what has grain already, or stands in a photo without any, gets none
    assert np.abs(matching.grained(scene, reach, 1.0, seed=1) - scene).std() < 0.01
    assert matching.grained(clean, reach, 1.0, seed=1) is clean
    assert matching.grained(filled, reach, 0.0, seed=1) is filled


def test_texture_beside_a_hole_is_not_taken_for_grain() -> None:
    rng = np.random.default_rng(0)
    scene = (0.4 + 0.003 * rng.standard_normal((120, 120, 3))).astype(np.float32)  # fine grain, and foam on the left
    specks = np.zeros((120, 120), np.float32)
    specks[rng.integers(0, 120, 160), rng.integers(0, 30, 160)] = 0.4
    scene += cv2.GaussianBlur(specks, (0, 0), 0.7)[:, :, None]
    reach = np.zeros((120, 120), bool)
    reach[40:80, 40:80] = True
    filled = np.where(reach[:, :, None], np.float32(0.4), scene)
    grain = (matching.grained(filled, reach, 1.0, seed=1) - filled)[reach]
    assert grain.std() == pytest.approx(0.003, rel=0.2)


def test_what_is_laid_over_changes_only_where_it_counts() -> None:
    rng = np.random.default_rng(3)
    photo = Photo(rng.integers(0, 256, (20, 30, 3), np.uint8), Meta())
    raster, box = photo.raster.copy(), Box(5, 4, 25, 18)
    soft = np.zeros((14, 20), np.float32)
    soft[3:8, 3:9], soft[9, 9], soft[1, 1] = 1, 0.5, 1e-4
    filled = np.full((14, 20, 3), 0.2, np.float32)
    compose.lay(photo, raster, box, filled, soft)
    part, before = raster[box.slices], photo.raster[box.slices]
    assert (part[3:8, 3:9] == 51).all()
    assert np.abs(part[9, 9] - (before[9, 9] + 51.0) / 2).max() <= 0.5
    np.testing.assert_array_equal(part[1, 1], before[1, 1])
    untouched = np.ones(photo.raster.shape[:2], bool)
    untouched[box.slices] = soft == 0
    np.testing.assert_array_equal(raster[untouched], photo.raster[untouched])
    assert compose.lay(photo, raster, box, filled, np.zeros_like(soft)) is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("", (0, 0, 0, 0)), ("1,2,3,4", (1, 2, 3, 4)), (" 10%, 0 ,0,25% ", (20, 0, 0, 25)), ("0,0,0,1", (0, 0, 0, 1))],
)
def test_margins_are_pixels_or_parts_of_the_sides(setting: str, expected: tuple[int, ...]) -> None:
    assert compose.margins(setting, 200, 100) == expected


def test_a_frame_has_its_limits() -> None:
    assert compose.margins("900%,0,0,900", 200, 100) == (1800, 0, 0, 900)
    for setting, width, height in (("901%,0,0,0", 200, 100), ("0,901,0,0", 200, 100), ("200%,0,0,0", 20_000, 10_000)):
        with pytest.raises(UsageError, match=r"expected a frame at most 10 times as wide .* 500,000,000 pixels, got"):
            compose.margins(setting, width, height)


@pytest.mark.parametrize(
    "wrong",
    ["1,2,3", "0,0,0,0", "a,b,c,d", "-1,0,0,0", "1.5,0,0,0", "1;2;3;4", "%,1,1,1",
     "9" * 400 + "%,0,0,0", "9,9,9," + "9" * 5000],
    ids=lambda wrong: wrong[:9],
)  # fmt: skip
def test_other_margins_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="--outpaint: expected LEFT,TOP,RIGHT,BOTTOM"):
        compose.margins(wrong, 200, 100)


def test_frames_grow_in_steps_of_256_px_at_most() -> None:
    for whole in (Margins(1, 0, 0, 0), Margins(256, 3, 0, 7), Margins(257, 0, 1000, 13)):
        parts = list(compose.steps(whole))
        assert tuple(np.sum(parts, axis=0)) == whole
        assert max(map(max, parts)) <= 256
        assert len(parts) == -(-max(whole) // 256)
    assert list(compose.steps(Margins())) == []


def test_a_frame_is_new_all_around_and_repeats_the_edge() -> None:
    by = Margins(1, 2, 3, 4)
    new = compose.frame((5, 6), by)
    assert new.shape == (11, 10)
    assert not new[2:7, 1:7].any()
    assert new.sum() == 110 - 30
    grown = compose.extended(np.arange(90, dtype=np.uint16).reshape(5, 6, 3), by)
    assert (grown[:2, 1] == grown[2, 1]).all()
    assert grown.dtype == np.uint16
    assert compose.within(~np.zeros((5, 6), bool), by).sum() == 30


def test_telea_continues_a_ramp_and_does_not_drift() -> None:
    ramp = np.repeat(np.linspace(0.2, 0.8, 64, dtype=np.float32)[None, :, None], 64, axis=0).repeat(3, axis=2)
    hole = np.zeros((64, 64), np.float32)
    hole[:, 30:33] = 1
    steps: list[tuple[int, int]] = []
    filled = Telea().fill(ramp, hole, progress=lambda *step: steps.append(step))
    assert np.abs(filled - ramp).max() < 0.02
    np.testing.assert_array_equal(filled[hole == 0], ramp[hole == 0])
    assert steps == [(1, 3), (2, 3), (3, 3)]
    flat = np.full((100, 100, 3), 100 / 255, np.float32)
    hole = np.zeros((100, 100), np.float32)
    hole[20:80, 20:80] = 1
    assert np.abs(Telea().fill(flat, hole) * 255 - 100).max() < 0.02


def test_telea_leaves_no_step_where_two_fronts_meet() -> None:
    scene = np.full((40, 60, 3), 0.2, np.float32)
    scene[:, 30:] = 0.8
    hole = np.zeros((40, 60), np.float32)
    hole[:, 22:38] = 1
    filled = Telea().fill(scene, hole)
    assert np.abs(np.diff(filled, axis=1)).max() < 0.15
    np.testing.assert_array_equal(filled[:, :22], scene[:, :22])


def test_telea_is_calm_inside_a_wide_hole_and_marches_in_a_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stripes = np.full((120, 120, 3), 0.2, np.float32)
    stripes[np.arange(120) // 10 % 2 == 0] = 0.8
    wide, narrow = np.zeros((120, 120), np.float32), np.zeros((120, 120), np.float32)
    wide[10:110, 10:110] = narrow[10:110, 45:75] = 1
    calm = {name: Telea().fill(stripes, hole) for name, hole in (("wide", wide), ("narrow", narrow))}
    monkeypatch.setattr(telea, "_CALM_FROM_PX", 1000)
    marched = {name: Telea().fill(stripes, hole) for name, hole in (("wide", wide), ("narrow", narrow))}
    np.testing.assert_array_equal(calm["narrow"], marched["narrow"])
    np.testing.assert_array_equal(calm["wide"][:26], marched["wide"][:26])
    steps = {
        name: np.abs(np.diff(made["wide"][50:70, 50:70], axis=0)).max() for name, made in (("m", marched), ("c", calm))
    }
    assert steps["m"] > 0.03
    assert steps["c"] < 0.015
    assert np.abs(calm["wide"][50:70, 50:70] - 0.5).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 5), (5, 1), (3, 3), (40, 7)])
def test_telea_fills_whatever_stands_at_the_edge(shape: tuple[int, int]) -> None:
    scene = np.full((*shape, 3), 0.25, np.float32)
    hole = np.ones(shape, np.float32)
    hole[-1, -1] = 0
    scene[hole > 0] = 1
    beside: list[np.ndarray] = []  # in the memory around: what must not be read
    for number in range(100):
        beside = [*beside[-50:], np.full(1 + number % 7, np.nan, np.float32)]
        filled = Telea().fill(scene, hole, seed=5)
        assert np.abs(filled - 0.25).max() < 0.01


def test_telea_never_sees_what_is_under_the_hole() -> None:
    scene, hole = waves(), np.zeros((60, 80), np.float32)
    hole[10:20, 70:] = 1
    other = scene.copy()
    other[hole > 0] = 0.9
    np.testing.assert_array_equal(Telea().fill(scene, hole)[hole > 0], Telea().fill(other, hole)[hole > 0])


@pytest.fixture
def empty_store(tmp_path: Path) -> Store:
    """The whole catalogue, and no file of it."""
    return dataclasses.replace(
        Store.default(), folders=(tmp_path,), config_folder=tmp_path / "config", cache_folder=tmp_path / "cache"
    )


def test_auto_is_lama_where_its_weights_are_and_else_says_what_is_missing(empty_store: Store, tmp_path: Path) -> None:
    kind, note = inpaint.choose(Recipe(), empty_store)
    assert kind.name == "cv2"
    assert note is not None
    assert "facefix weights fetch big-lama" in note
    (tmp_path / "big-lama.pt").write_bytes(b"")
    kind, note = inpaint.choose(Recipe(), empty_store)
    assert (kind.name, note) == ("lama", None)
    assert inpaint.choose(Recipe(engine="cv2"), empty_store) == (inpaint.KINDS["cv2"], None)
    assert inpaint.choose(Recipe(model="places_512_fulldata_g"), empty_store)[0].name == "mat"
    with pytest.raises(UsageError, match="expected --engine lama, face, mat, sd or sdxl beside it, got auto"):
        inpaint.choose(Recipe(model="./sd15"), empty_store)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(prompt="a wall"), "--prompt: --engine auto took cv2, which does not use it; leave it out, or take"),
        (Recipe(engine="lama", prompt="a wall"), "--prompt: --engine lama, which does not use it"),
        (Recipe(engine="mat", negative="text"), "take --engine sd or sdxl"),
        (Recipe(engine="cv2", refine=True), "take --engine lama"),
        (Recipe(engine="lama", hires=2), "--hires: --engine lama, which"),
        (Recipe(engine="lama", candidates=3), "--candidates: --engine lama, whose fill is the same every time"),
        (Recipe(engine="mat", steps=5), "--steps"),
        (Recipe(engine="mat", refine=True), "--refine: --engine mat"),
        (Recipe(engine="sd", refine=True), "--refine: --engine sd"),
    ],
)
def test_a_setting_that_the_engine_cannot_use_is_refused(recipe: Recipe, says: str, empty_store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        inpaint.choose(recipe, empty_store)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unfitting_weights_are_named(empty_store: Store) -> None:
    for name, missing in (("lama", "big-lama"), ("mat", "mat-places-512")):
        recipe = Recipe(engine=name)
        with pytest.raises(WeightsMissing, match=missing):
            inpaint.load(inpaint.KINDS[name], recipe, empty_store, device="cpu")
    with pytest.raises(WeightsInvalid, match="expected a network that fills holes, got a detector"):
        inpaint.load(inpaint.KINDS["lama"], Recipe(engine="lama", model="centerface"), Store.default(), device="cpu")


def test_every_particular_setting_is_one_of_inpaint_and_every_engine_a_choice() -> None:
    settings = Recipe.settings("inpaint")
    assert set().union(*(kind.uses for kind in inpaint.KINDS.values())) <= set(settings)
    assert settings["engine"][1].choices == ("auto", *inpaint.KINDS)


def test_the_contract_and_telea_load_no_torch() -> None:
    code = "import sys, facefix.inpaint.compose, facefix.inpaint.telea; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
