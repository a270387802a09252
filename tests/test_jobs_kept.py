"""What is stored for each face, and that it gives back every combination of faces bit for bit."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_geometry import enlarged, face_at, made_photo, patch_of, with_pattern

from facefix import blend
from facefix.errors import PhotoUnreadable, PhotoUnwritable
from facefix.jobs import kept
from facefix.recipe import Recipe
from facefix.types import Box, Mask, Meta, Patch, Photo, Report, Result

ID = "ab" + "0" * 62
CROWD = ((60, 60, 0.2), (95, 66, -0.3), (80, 100, 0.5), (215, 60, 0.0))  # three in a knot, one by itself


def result_of(
    canvas: Photo, patches: dict[int, Patch], recipe: Recipe | None = None, allowed: Mask | None = None
) -> Result:
    recipe = recipe or Recipe()
    pasted = blend.paste(canvas, list(patches.values()), recipe.scale, allowed, recipe.strength)
    report = Report(None, None, pasted.width, pasted.height, dataclasses.asdict(recipe), {}, (), 0.0)
    return Result(pasted, report, patches, canvas, allowed)


def crowd(photo: Photo, places: tuple[tuple[int, int, float], ...] = CROWD, size: int = 128) -> dict[int, Patch]:
    """Patches that differ from the photo, each by a pattern of its own."""
    plain = [patch_of(photo, face_at(x, y, 50, turn), size) for x, y, turn in places]
    return {number: with_pattern(patch, 9.0 + 4 * number) for number, patch in enumerate(plain, 1)}


def subsets(numbers: list[int]) -> list[tuple[int, ...]]:
    return [some for count in range(len(numbers) + 1) for some in itertools.combinations(numbers, count)]


@pytest.mark.parametrize(
    ("bits", "scale", "strength", "masked"), [(8, 1, 1.0, False), (16, 1, 0.7, False), (8, 2, 1.0, True)]
)
def test_every_choice_of_faces_is_what_these_faces_alone_give(
    tmp_path: Path, bits: int, scale: int, strength: float, masked: bool
) -> None:
    photo = made_photo(270, 150, bits)
    canvas = enlarged(photo, scale) if scale > 1 else photo
    patches = crowd(photo)
    recipe = Recipe(scale=scale, strength=strength)
    allowed = np.linspace(-0.2, 1, 270 * 150, dtype=np.float32).clip(0).reshape(150, 270) if masked else None
    result = result_of(canvas, patches, recipe, allowed)
    records = kept.keep(tmp_path, ID, photo, result)
    assert list(records) == [1, 2, 3, 4]
    assert ["shares" in record for record in records.values()] == [True, True, True, False]
    for accepted in subsets([1, 2, 3, 4]):
        got = kept.composed(tmp_path, canvas, records, accepted).raster
        chosen = [patches[number] for number in accepted]
        alone = blend.paste(canvas, chosen, scale, allowed, strength).raster
        assert np.array_equal(got, alone), accepted


def test_what_a_face_does_not_touch_stays_when_it_is_taken_back(tmp_path: Path) -> None:
    photo = made_photo(270, 150)
    patches = crowd(photo)
    result = result_of(photo, patches)
    records = kept.keep(tmp_path, ID, photo, result)
    for number, patch in patches.items():
        got = kept.composed(tmp_path, photo, records, set(patches) - {number}).raster
        reach = blend.reach(patch, photo, Box(*records[number]["box"]))
        touched = np.zeros((150, 270), bool)
        part = touched[Box(*records[number]["box"]).slices].copy()
        part.reshape(-1)[reach.which] = True
        touched[Box(*records[number]["box"]).slices] = part
        assert np.array_equal(got[~touched], result.photo.raster[~touched])
        assert not np.array_equal(got[touched], result.photo.raster[touched])


def test_a_result_without_loss_gives_its_canvas_back(tmp_path: Path) -> None:
    photo = made_photo(270, 150)
    result = result_of(photo, crowd(photo))
    records = kept.keep(tmp_path, ID, photo, result)
    assert np.array_equal(kept.cleared(tmp_path, result.photo, records).raster, photo.raster)
    assert kept.fits(tmp_path, photo, records)
    assert not kept.fits(tmp_path, result.photo, records)


def test_the_files_are_in_the_photos_depth_and_colours_and_the_same_each_time(tmp_path: Path) -> None:
    import imagecodecs

    icc = imagecodecs.cms_profile(
        "rgb", whitepoint=[0.3127, 0.329, 1], primaries=[0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1], gamma=2.2
    )
    plain = made_photo(270, 150, 16)
    photo = dataclasses.replace(plain, meta=Meta(bits=16, icc=icc))
    result = result_of(photo, crowd(photo))
    records = kept.keep(tmp_path / "one", ID, photo, result)
    assert kept.keep(tmp_path / "two", ID, photo, result) == records
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [path.name for path in files] == [
        *(f"00{number}.{kind}.png" for number in (1, 2, 3, 4) for kind in ("after", "before")),
        "shares.npz",
    ]
    assert {path.parent for path in files} == {Path("faces", "ab", ID)}
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    before, after = kept.pair(tmp_path / "one", records[4])
    assert (before.meta.bits, before.meta.icc) == (16, icc)
    box = Box(*records[4]["box"])
    assert np.array_equal(before.raster, photo.raster[box.slices])
    assert np.array_equal(after.raster, result.photo.raster[box.slices])


def test_grey_photos_are_kept_grey(tmp_path: Path) -> None:
    grey = made_photo(120, 120).raster[..., :1].repeat(3, axis=2)
    photo = Photo(grey, Meta(gray=True))
    result = result_of(photo, crowd(photo, CROWD[:1]))
    [record] = kept.keep(tmp_path, ID, photo, result).values()
    with Image.open(tmp_path / record["after"]) as picture:
        assert picture.mode == "L"


def test_change_tells_weak_from_strong_and_an_unchanged_face_is_stored_once(tmp_path: Path) -> None:
    photo = made_photo(120, 120)
    plain = patch_of(photo, face_at(60, 60, 50, 0.1), 128)
    changes = []
    for name, by in (("none", 0.0), ("weak", 0.05), ("strong", 0.2)):
        patch = dataclasses.replace(plain, pixels=plain.pixels + np.float32(by))
        [record] = kept.keep(tmp_path / name, ID, photo, result_of(photo, {1: patch})).values()
        changes.append(record["change"])
        assert (record["before"] == record["after"]) == (by == 0)
    assert changes[0] == 0
    assert 8 < changes[1] < 13
    assert 3 < changes[2] / changes[1] < 4.5


def test_a_face_outside_the_photo_leaves_no_record(tmp_path: Path) -> None:
    photo = made_photo(60, 60)
    far = patch_of(photo, face_at(500, 500, 20, 0.0), 64)
    assert kept.keep(tmp_path, ID, photo, result_of(photo, {1: far})) == {}
    assert kept.composed(tmp_path, photo, {}, {1}).raster.tolist() == photo.raster.tolist()


@pytest.mark.parametrize("harm", ["missing", "cut", "empty", "other size"])
@pytest.mark.parametrize("name", ["001.before.png", "001.after.png", "shares.npz"])
def test_damaged_stores_are_named_in_one_line(tmp_path: Path, name: str, harm: str) -> None:
    photo = made_photo(270, 150)
    records = kept.keep(tmp_path, ID, photo, result_of(photo, crowd(photo)))
    path = tmp_path / "faces" / "ab" / ID / name
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "other size":
        Image.new("RGB", (9, 9)).save(path, "PNG")
    else:
        path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    with pytest.raises(PhotoUnreadable, match=name) as caught:
        kept.composed(tmp_path, kept.cleared(tmp_path, photo, records), records, {1, 2})
    assert "\n" not in str(caught.value)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        kept.put(tmp_path, "faces/ab/c.png", content)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "faces/ab/c.png"
    ]
    assert (tmp_path / "faces/ab/c.png").read_bytes() == b"two"
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(PhotoUnwritable, match="plain"):
        kept.put(tmp_path, "plain/c.png", b"three")
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("name", ["../../private.png", "/private.png"])
def test_records_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    photo = made_photo(120, 120)
    records = kept.keep(tmp_path, ID, photo, result_of(photo, crowd(photo, CROWD[:1])))
    records[1] |= {"before": name, "after": name}
    for look in (lambda: kept.cleared(tmp_path, photo, records), lambda: kept.pair(tmp_path, records[1])):
        with pytest.raises(PhotoUnreadable, match="a way out of the store"):
            look()
