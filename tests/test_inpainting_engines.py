"""Real engines fill holes: cv2, LaMa and Stable Diffusion; and the faces that a hole touches are restored inside it."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_fills import Reckless, changed, distance_slowly, noise, painter, strokes

from facefix import Inpainter, Recipe, Result, upscale
from facefix.errors import UsageError
from facefix.inpaint import KINDS
from facefix.types import Meta, Photo
from facefix.weights import Store


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


def test_a_photo_of_any_depth_goes_through_the_real_engine(telea: Inpainter) -> None:
    x = np.mgrid[:60, :80][1]
    ramp = np.dstack([x * 800, 60000 - x * 500, x * 3 + 1000]).astype(np.uint16)
    mask = np.zeros((60, 80), bool)
    mask[20:24] = True
    photo = Photo(ramp, Meta(bits=16))
    result = Inpainter(Recipe(faces=False), telea.kind, telea.engine, None)(photo, mask)
    assert np.abs(result.photo.raster.astype(int) - ramp)[20:24].max() < 0.05 * 65535
    levels = np.unique(result.photo.raster[20:24, :, 0])
    assert len(levels) > 80
    assert np.count_nonzero(levels % 257) > 60, "8 bit would be multiples of 257"


def test_stable_diffusion_fills_by_seed_and_keeps_all_else(sd_folders: dict[str, Path], tmp_path: Path) -> None:
    scene, mask = noise(16, height=72, width=90), np.zeros((72, 90), bool)
    mask[30:31, 20:60] = True
    recipe = Recipe(
        engine="sd", model=str(sd_folders["sd9"]), prompt="a wall", steps=2, faces=False, candidates=2, seed=3
    )
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


def test_hires_enlarges_everything_and_draws_the_hole_anew(sd_folders: dict[str, Path]) -> None:
    y, x = np.mgrid[:80, :96]
    scene = np.dstack([x * 2 + 20, y * 2 + 30, x + y]).astype(np.uint8)
    mask = np.zeros((80, 96), bool)
    mask[30:50, 30:60] = True
    settings = {"engine": "sd", "model": str(sd_folders["sd9"]), "steps": 2, "faces": False, "fill_grain": 0.0}
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
