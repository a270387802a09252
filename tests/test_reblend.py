"""A result blended anew is what a fresh run with that choice makes, without its networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from archive import group_photo

from facefix import FaceFix, Photo, Recipe, Result, imagefile
from facefix.errors import UsageError
from facefix.pipeline import LEFT
from facefix.types import Crop, Pixels, Template

PATTERN = Recipe(restorer="pattern", detector="centerface")
LITE = Recipe(restorer="facefix-lite-256", detector="centerface", precision="float32")


class Exhausted:
    """A restorer that may not be asked any more."""

    name = "exhausted"
    template: Template

    def __call__(self, crops: list[Crop]) -> list[Pixels]:
        raise AssertionError("a network ran")


def same(one: Result, other: Result) -> None:
    np.testing.assert_array_equal(one.photo.raster, other.photo.raster)
    assert sorted(one.patches) == sorted(other.patches)
    assert [note.outcome for note in one.report.faces] == [note.outcome for note in other.report.faces]
    assert [note.seam for note in one.report.faces] == [note.seam for note in other.report.faces]


def fresh(recipe: Recipe, photo: Photo, mask: np.ndarray | None, **changes: object) -> Result:
    return FaceFix.load(dataclasses.replace(recipe, **changes), device="cpu")(photo, mask=mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_what_a_fresh_run_with_that_choice_makes(scale: int, masked: bool) -> None:
    photo = imagefile.from_array(group_photo())
    mask = None
    if masked:
        mask = np.ones((photo.height, photo.width), np.float32)
        mask[: photo.height // 4] = 0
        mask[:, ::7] = 0.5
    recipe = dataclasses.replace(PATTERN, scale=scale, grain=0.3)
    fix = FaceFix.load(recipe, device="cpu")
    result = fix(photo, mask=mask)
    assert sorted(result.patches) == [1, 2, 3]
    fix.restorers._ready = dict.fromkeys(fix.restorers._ready, Exhausted())  # type: ignore[arg-type]
    same(fix.reblend(result, {}), result)
    same(fix.reblend(result, {2: 0}), fresh(recipe, photo, mask, face="1,3"))
    half = dict.fromkeys(result.patches, 0.5)
    same(fix.reblend(result, half), fresh(recipe, photo, mask, strength=0.5))
    none = fix.reblend(result, dict.fromkeys(result.patches, 0))
    assert none.photo is result.canvas
    assert {note.reason for note in none.report.faces} == {LEFT}


def test_each_face_has_its_own_strength() -> None:
    photo = imagefile.from_array(group_photo())
    fix = FaceFix.load(PATTERN, device="cpu")
    result = fix(photo)
    mixed = fix.reblend(result, {1: 0.5, 2: 0, 3: 1})
    for number, strength in ((1, 0.5), (2, 0.0), (3, 1.0)):
        alone = fix.reblend(result, {other: strength if other == number else 0 for other in result.patches})
        x0, y0, x1, y1 = result.report.faces[number - 1].face.box_xyxy.astype(int)
        np.testing.assert_array_equal(mixed.photo.raster[y0:y1, x0:x1], alone.photo.raster[y0:y1, x0:x1])
    assert [note.reason for note in mixed.report.faces] == ["at strength 0.5", LEFT, ""]
    assert result.report.faces[0].reason == ""
    # once more, from the first result: nothing was lost
    same(fix.reblend(result, {1: 1, 2: 1, 3: 1}), result)


def test_the_embedded_network_gives_the_same_file(tmp_path: Path) -> None:
    photo = imagefile.from_array(group_photo())
    fix = FaceFix.load(LITE, device="cpu")
    reblended = fix.reblend(fix(photo), {2: 0})
    chosen = FaceFix.load(dataclasses.replace(LITE, face="1,3"), device="cpu")
    fix.save(reblended, photo, tmp_path / "reblended.png")
    chosen.save(chosen(photo), photo, tmp_path / "fresh.png")
    assert (tmp_path / "reblended.png").read_bytes() == (tmp_path / "fresh.png").read_bytes()


def test_what_is_no_choice_is_refused() -> None:
    photo = imagefile.from_array(group_photo())
    fix = FaceFix.load(dataclasses.replace(PATTERN, face="1"), device="cpu")
    result = fix(photo)
    with pytest.raises(UsageError, match="face 2: expected one that was restored"):
        fix.reblend(result, {2: 1})
    with pytest.raises(UsageError, match=r"strength: expected 0 to 1, got 1\.5"):
        fix.reblend(result, {1: 1.5})


def test_a_recipe_that_loads_the_same_shares_it() -> None:
    fix = FaceFix.load(PATTERN, device="cpu")
    other = fix.with_recipe(dataclasses.replace(PATTERN, strength=0.5))
    assert other.restorers is fix.restorers
    assert other.detector is fix.detector
    photo = imagefile.from_array(group_photo())
    same(other(photo), fresh(PATTERN, photo, None, strength=0.5))
