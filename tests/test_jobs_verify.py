"""The proof holds for what a run wrote, and finds what somebody changed, even where the report was changed with it."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import archive
import imagecodecs
import numpy as np
import pytest
from archive import RECIPE, group_photo, report_at, row_at
from PIL import Image

from facefix import imagefile
from facefix.jobs import undo, verify
from facefix.jobs.database import FOLDER
from facefix.jobs.files import file_sha256
from facefix.jobs.journal import Journal

NAMES = ("clear.png", "copy.jpg", "deep.tif", "group.jpg", "lossy.webp")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds scans and out."""
    folder = tmp_path_factory.mktemp("proof")
    sources = folder / "scans"
    clear = Image.fromarray(group_photo())
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    sources.mkdir()
    clear.save(sources / "clear.png")
    archive.save(group_photo(), sources / "group.jpg", quality=83)
    archive.save(group_photo(), sources / "lossy.webp", quality=80)
    archive.save(np.full((64, 64, 3), 120, np.uint8), sources / "copy.jpg", quality=50)
    (sources / "deep.tif").write_bytes(imagecodecs.tiff_encode(group_photo(16), photometric="rgb"))
    archive.restore(sources, folder / "out")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def problems(out: Path, **options: int) -> dict[str, str]:
    """What is wrong, by the names of the results."""
    with Journal.open(out, write=False) as journal:
        found = list(verify.verify(journal, **options))
    assert tuple(verdict.target.name for verdict in found) == NAMES
    return {verdict.target.name: verdict.problem for verdict in found if verdict.problem}


def test_results_of_any_size_are_compared(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be allowed larger photos than is usual, and enlarges them, too."""
    height, width = group_photo().shape[:2]
    monkeypatch.setitem(imagefile.read.__kwdefaults__, "max_pixels", height * width - 1)
    assert problems(out) == {}


def forged(out: Path, name: str, change: Callable[[Path], None]) -> None:
    """Changes a result, and the journal and the report so that they agree with it."""
    change(out / name)
    with Journal.open(out) as journal:
        report = dict(report_at(journal, name))
        journal.amend(report["id"], report | {"target_sha256": file_sha256(out / name)})
        journal.export(out / FOLDER / verify.REPORT)
        assert verify.report_problem(journal) == ""


def pixel_changed(by: int, at: tuple[int, int] = (300, 5), alpha: bool = False) -> Callable[[Path], None]:
    """What writes the file again with the same encoder and one pixel changed."""

    def change(path: Path) -> None:
        photo = imagefile.read(path)
        if alpha:
            assert photo.alpha is not None
            photo = dataclasses.replace(photo, alpha=_changed(photo.alpha, at, by))
        else:
            photo = dataclasses.replace(photo, raster=_changed(photo.raster, at, by))
        imagefile.write(photo, path, ai_label=False, overwrite=True)

    return change


def _changed(plane: np.ndarray, at: tuple[int, int], by: int) -> np.ndarray:
    copy = plane.copy()
    copy[at[1], at[0]] ^= np.array(by, plane.dtype)
    return copy


def test_what_a_run_wrote_is_proven_to_the_last_bit(out: Path) -> None:
    assert problems(out) == {}
    with Journal.open(out, write=False) as journal:
        assert not [verdict.note for verdict in verify.verify(journal) if verdict.note]
        assert verify.report_problem(journal) == ""
        assert list(verify.strays(journal)) == []


def test_taken_back_faces_are_held_to_the_source(out: Path) -> None:
    with Journal.open(out) as journal:
        for name in ("clear.png", "group.jpg", "lossy.webp"):
            undo.decide(journal, row_at(journal, name), reject={2})
        journal.export(out / FOLDER / verify.REPORT)
    assert problems(out) == {}
    box = None
    with Journal.open(out, write=False) as journal:
        box = report_at(journal, "clear.png")["faces"][1]["kept"]["box"]
    forged(out, "clear.png", pixel_changed(1, ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)))
    assert list(problems(out)) == ["clear.png"]


def test_another_file_under_the_name_is_found_by_its_hash(out: Path) -> None:
    (out / "group.jpg").write_bytes((out / "copy.jpg").read_bytes())
    (out / "deep.tif").unlink()
    found = problems(out)
    assert found["group.jpg"].startswith("it is not the file that was written")
    assert found["deep.tif"] == "the result cannot be read (No such file or directory)"
    assert problems(out, pixels=False) == found


@pytest.mark.parametrize(
    ("name", "by"), [("clear.png", 1), ("deep.tif", 1), ("group.jpg", 64), ("lossy.webp", 64), ("copy.jpg", 64)]
)
def test_one_pixel_outside_a_box_is_found_though_the_report_agrees(out: Path, name: str, by: int) -> None:
    at = (300, 5) if name != "copy.jpg" else (30, 5)
    forged(out, name, pixel_changed(by, at))
    found = problems(out)
    assert list(found) == [name]
    assert "outside the restored faces differ from the source by up to" in found[name]
    if name in ("clear.png", "deep.tif"):
        assert found[name].startswith("1 pixel(s)")
        assert found[name].endswith("by up to 1, the first at 300,5")


def test_transparency_is_proven_too_also_under_a_face(out: Path) -> None:
    with Journal.open(out, write=False) as journal:
        box = report_at(journal, "clear.png")["faces"][0]["kept"]["box"]
    forged(out, "clear.png", pixel_changed(1, (box[0] + 20, box[1] + 20), alpha=True))
    assert list(problems(out)) == ["clear.png"]


def test_a_jpeg_of_another_encoder_passes_with_a_tolerance_only(out: Path) -> None:
    """Other tables stand for another encoder: the values are a little off everywhere."""

    def change(path: Path) -> None:
        with Image.open(path) as picture:
            tables = {number: [max(1, q - 1) for q in table] for number, table in picture.quantization.items()}
            file = io.BytesIO()
            picture.save(file, "JPEG", qtables=tables, subsampling=2)
        path.write_bytes(file.getvalue())

    forged(out, "group.jpg", change)
    found = problems(out)["group.jpg"]
    worst = int(found.rsplit("up to ", 1)[1].split(",")[0])
    assert worst > 0
    assert "group.jpg" in problems(out, tolerance=worst - 1)
    assert problems(out, tolerance=worst) == {}


def test_without_its_source_only_the_hash_is_compared_and_that_is_told(made: Path, out: Path) -> None:
    source = made / "scans" / "group.jpg"
    whole = source.read_bytes()
    source.write_bytes(whole + b"\0")
    try:
        with Journal.open(out, write=False) as journal:
            [told] = [verdict for verdict in verify.verify(journal) if verdict.note]
    finally:
        source.write_bytes(whole)
    assert (told.target.name, told.problem) == ("group.jpg", "")
    assert "the source was changed since it was restored" in told.note


def test_a_changed_report_and_stray_files_are_named(out: Path) -> None:
    path = out / FOLDER / verify.REPORT
    (out / "deeper").mkdir()
    (out / "deeper" / "own.jpg").write_bytes(b"")
    with Journal.open(out, write=False) as journal:
        assert [stray.relative_to(out).as_posix() for stray in verify.strays(journal)] == ["deeper/own.jpg"]
        lines = path.read_text().splitlines(keepends=True)
        for text, says in (
            ("".join(lines[1:]), "1 line"),
            ("".join([*lines[:-1], lines[-1].replace('"width": 500', '"width": 501')]), "1 line"),
            ("nonsense\n", "damaged"),
        ):
            path.write_text(text)
            assert says in verify.report_problem(journal)
        path.unlink()
        assert "cannot be read" in verify.report_problem(journal)


def test_enlarged_results_are_held_to_the_enlarged_source(tmp_path: Path) -> None:
    sources, out = tmp_path / "scans", tmp_path / "out"
    archive.save(group_photo(), sources / "a.png")
    archive.restore(sources, out, dataclasses.replace(RECIPE, scale=2))
    with Journal.open(out, write=False) as journal:
        assert [(verdict.problem, verdict.note) for verdict in verify.verify(journal)] == [("", "")]
    forged(out, "a.png", pixel_changed(1, (600, 3)))
    with Journal.open(out, write=False) as journal:
        [verdict] = verify.verify(journal)
    assert verdict.problem.startswith("1 pixel(s)")
