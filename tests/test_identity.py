"""A face is as like itself as can be, and less like others; nothing else depends on the number."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import archive
import cv2
import numpy as np
import pytest
import recogniser
from archive import group_photo, report_at
from conftest import Command
from test_geometry import face_at

from facefix import FaceFix, Photo, Recipe, align, identity, imagefile
from facefix.errors import WeightsInvalid
from facefix.identity import SFACE, Recogniser
from facefix.jobs.journal import Journal
from facefix.weights import Store

PATTERN = Recipe(restorer="pattern", detector="centerface", sharp_faces="restore")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recogniser.written(tmp_path_factory.mktemp("recogniser") / recogniser.FILE)


@pytest.fixture(scope="module")
def small(file: Path) -> Recogniser:
    return Recogniser(file)


@pytest.fixture(scope="module")
def store(file: Path) -> Store:
    default = Store.default({})
    catalogue = recogniser.stands_as_sface(file, default.catalogue)
    return dataclasses.replace(default, catalogue=catalogue, folders=(file.parent, *default.folders))


def smooth(seed: int, bits: int = 8) -> Photo:
    rng = np.random.default_rng(seed)
    drawn = 128 + cv2.GaussianBlur(rng.normal(0, 300, (300, 320, 3)), (0, 0), 8)
    raster = np.clip(drawn, 0, 255).astype(np.uint8)
    return imagefile.from_array(raster if bits == 8 else raster.astype(np.uint16) * 257)


# --- the number ------------------------------------------------------------------------------------------------------


def test_it_is_one_for_the_same_and_less_for_another(small: Recogniser) -> None:
    photo, points = smooth(1), face_at(150, 140, 120, 0.3).points
    assert small.likeness(photo, photo, points) == pytest.approx(1, abs=1e-12)
    softer = dataclasses.replace(photo, raster=cv2.GaussianBlur(photo.raster, (0, 0), 5))
    other = smooth(2)
    near, far = (small.likeness(photo, after, points) for after in (softer, other))
    assert near is not None
    assert far is not None
    assert -1 <= far < 0.7 < near < 1
    negative = dataclasses.replace(photo, raster=np.asarray(255 - photo.raster, np.uint8))
    assert small.likeness(photo, negative, points) == pytest.approx(-1, abs=0.01)


def test_the_number_is_opencv_s_own_for_the_same_crops(small: Recogniser, file: Path) -> None:
    """OpenCV's alignCrop, feature and match, for a face of about 112 px, where its bilinear samples do not alias."""
    opencv = cv2.FaceRecognizerSF.create(str(file), "")
    for angle, px in ((0.0, 112), (0.4, 120), (-1.2, 100)):
        face = face_at(150, 140, px, angle)
        row = np.concatenate([face.box_xyxy, face.points.ravel(), [1.0]]).astype(np.float32)[None]
        photos = smooth(3), smooth(4)
        theirs = [opencv.alignCrop(photo.raster[:, :, ::-1].copy(), row) for photo in photos]
        crop_from_photo = align.estimate(face.points, SFACE)
        for photo, crop in zip(photos, theirs, strict=True):
            ours = align.extract(photo, crop_from_photo, SFACE.size)[:, :, ::-1] * 255
            assert np.abs(ours - crop).max() < 3, "another transform would differ by far more"
        wanted = opencv.match(*map(opencv.feature, theirs), cv2.FaceRecognizerSF_FR_COSINE)
        assert small.likeness(*photos, face.points) == pytest.approx(wanted, abs=0.01)


def test_size_scale_and_depth_hardly_matter(small: Recogniser) -> None:
    before, after, points = smooth(5), smooth(6), face_at(150, 140, 120, 0.2).points
    plain = small.likeness(before, after, points)
    deep = small.likeness(smooth(5, 16), smooth(6, 16), points)
    assert deep == pytest.approx(plain, abs=1e-3)
    for scale in (0.25, 3.0):
        size = round(320 * scale), round(300 * scale)
        pair = [
            dataclasses.replace(photo, raster=cv2.resize(photo.raster, size, interpolation=cv2.INTER_AREA))
            for photo in (before, after)
        ]
        assert small.likeness(*pair, points, scale) == pytest.approx(plain, abs=0.03)


def test_where_there_is_no_number_there_is_none(small: Recogniser, tmp_path: Path) -> None:
    photo = smooth(7)
    assert small.likeness(photo, photo, np.full((5, 2), 40.0)) is None
    for strength in (0.0, float("nan")):
        broken = Recogniser(recogniser.written(tmp_path / "broken.onnx", strength=strength))
        assert broken.likeness(photo, photo, face_at(150, 140, 60, 0.0).points) is None


def test_a_face_of_a_few_pixels_is_measured_all_the_same(small: Recogniser) -> None:
    points = face_at(150, 140, 6, 0.0).points
    likeness = small.likeness(smooth(8), smooth(9), points)
    assert likeness is not None
    assert -1 <= likeness < 1


# --- the file --------------------------------------------------------------------------------------------------------


def test_files_that_hold_something_else_are_refused_in_one_line(
    tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.onnx"
    contents = [b"", b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(5000)]
    contents += [file.read_bytes()[:-2000]]
    contents += [recogniser.written(tmp_path / "w", **shape).read_bytes() for shape in ({"numbers": 64}, {"side": 96})]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WeightsInvalid, match="expected the ONNX file of SFace") as caught:
            Recogniser(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_only_the_published_file_is_taken_from_the_store(file: Path, store: Store) -> None:
    assert identity.installed(store) is not None
    published = dataclasses.replace(store, catalogue=Store.default({}).catalogue)
    with pytest.raises(WeightsInvalid, match="weights fetch sface"):
        identity.installed(published)
    assert identity.installed(dataclasses.replace(store, folders=())) is None


# --- what becomes of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(store: Store) -> tuple[FaceFix, FaceFix]:
    """The same but for the recogniser: without and with."""
    recipe = dataclasses.replace(PATTERN, face="1,2")
    without = FaceFix.load(recipe, device="cpu", store=dataclasses.replace(store, folders=store.folders[1:]))
    return without, FaceFix.load(recipe, device="cpu", store=store)


def test_it_is_in_the_notes_and_changes_nothing_else(both: tuple[FaceFix, FaceFix]) -> None:
    without, with_it = both
    plain, measured = without(group_photo()), with_it(group_photo())
    np.testing.assert_array_equal(plain.photo.raster, measured.photo.raster)
    assert [note.identity for note in plain.report.faces] == [None] * 3
    first, second, skipped = (note.identity for note in measured.report.faces)
    assert skipped is None
    assert first is not None
    assert second is not None
    assert -1 <= min(first, second) <= max(first, second) < 0.999
    # what an archive asks to know whether work must be done again
    assert without.weight_digests() == with_it.weight_digests()
    assert (plain.report.recipe, plain.report.weights) == (measured.report.recipe, measured.report.weights)
    assert without.recipe.digest == with_it.recipe.digest


def test_blending_again_measures_again(both: tuple[FaceFix, FaceFix]) -> None:
    _, fix = both
    result = fix.with_recipe(fix.recipe)(group_photo())
    numbers = [note.identity or 0 for note in result.report.faces]
    weaker = [note.identity or 0 for note in fix.reblend(result, {1: 0.2, 2: 0}).report.faces]
    assert numbers[0] < weaker[0] < 1
    assert weaker[1] == 0


def test_an_unchanged_face_is_wholly_like_itself(store: Store, portrait: np.ndarray) -> None:
    fix = FaceFix.load(Recipe(restorer="identity", detector="centerface", scale=2), device="cpu", store=store)
    [note] = fix(portrait).report.faces
    assert note.identity == pytest.approx(1, abs=1e-3)


def test_the_command_reports_it_and_says_what_is_wrong_with_the_file(
    facefix: Command, portrait_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recogniser.put(tmp_path / "weights", monkeypatch)
    command = ("restore", portrait_file, "--restorer", "pattern", "--report", tmp_path / "report.json", "--overwrite")
    assert facefix(*command).code == 0
    [face] = json.loads((tmp_path / "report.json").read_text())["faces"]
    assert -1 <= face["identity"] < 1
    assert face["identity"] == round(face["identity"], 4)
    listed = facefix("weights", "list").out
    assert any("sface" in line and "recogniser" in line for line in listed.splitlines())
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    done = facefix(*command)
    assert done.code == 3
    [line] = done.err.strip().splitlines()
    assert "weights fetch sface" in line


def test_an_archive_without_it_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, face: np.ndarray
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    archive.save(face, scans / "first.png")
    assert "done" in archive.restore(scans, out)
    recogniser.put(tmp_path / "weights", monkeypatch)
    archive.save(face[:, ::-1], scans / "second.png")
    archive.restore(scans, out)
    with Journal.open(out, write=False) as journal:
        first, second = (report_at(journal, f"{name}.png")["faces"] for name in ("first", "second"))
        attempts = {row.place.stem: row.attempt for row, _ in journal.rows()}
    assert attempts == {"first": 1, "second": 1}
    assert [each["identity"] for each in first] == [None]
    [measured] = second
    assert -1 <= measured["identity"] < 1
    lines = [json.loads(line) for line in (out / ".facefix" / "report.jsonl").read_text().splitlines()]
    told: list[Any] = sorted(line["faces"][0]["identity"] is None for line in lines)
    assert told == [False, True]
