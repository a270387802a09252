"""The commands after a run, as a shell runs them: what they print, and how they leave."""

import json
import os
import shutil
from pathlib import Path

import archive
import numpy as np
import pytest
from archive import group_photo
from conftest import Command
from PIL import Image

from facefix.jobs.database import FOLDER

LATIN = os.fsdecode(b"caf\xe9\n.jpg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds scans and out."""
    folder = tmp_path_factory.mktemp("commands")
    sources = folder / "scans"
    archive.save(group_photo(), sources / "trip" / "group.png")
    archive.save(group_photo(), sources / "trip" / LATIN, quality=90)
    archive.save(np.full((64, 64, 3), 120, np.uint8), sources / "shore.jpg")
    (sources / "broken.jpg").write_bytes(b"nothing of a photo")
    archive.restore(sources, folder / "out")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder, below the folder that the commands run in."""
    shutil.copytree(made / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    return Path("out")


def rejected(out: Path) -> dict[str, list[int]]:
    """By result, the numbers of the faces that the report calls rejected."""
    lines = [json.loads(line) for line in (out / FOLDER / "report.jsonl").read_text().splitlines()]
    told = {line["target"]: [face["number"] for face in line["faces"] if face.get("rejected")] for line in lines[1:]}
    return {target: numbers for target, numbers in told.items() if numbers}


@pytest.mark.parametrize("named", ["trip/group.png", "out/trip/group.png", "source", "absolute"])
def test_a_photo_may_be_named_as_result_or_source(facefix: Command, made: Path, out: Path, named: str) -> None:
    names = {"source": made / "scans/trip/group.png", "absolute": (out / "trip/group.png").absolute()}
    done = facefix("undo", out, names.get(named, named), "--face", 2)
    assert done == (0, "trip/group.png: face 2 taken back\n1 face taken back, in 1 photo\n", "")
    assert rejected(out) == {"trip/group.png": [2]}
    assert facefix("verify", out).code == 0
    done = facefix("undo", out, names.get(named, named), "--redo")
    assert done.out.splitlines() == [
        "trip/group.png: face 2 brought in again",
        "0 faces taken back, 1 brought in again, in 1 photo",
    ]
    assert rejected(out) == {}


def test_all_photos_at_once_become_their_sources(facefix: Command, made: Path, out: Path) -> None:
    report = out / FOLDER / "report.jsonl"
    before = report.read_bytes()
    done = facefix("undo", out, "--all", "-q")
    assert done == (0, "", "")
    for name in ("trip/group.png", f"trip/{LATIN}", "shore.jpg"):
        assert (out / name).read_bytes() == (made / "scans" / name).read_bytes()
    report.write_bytes(before)  # as a power cut leaves it that comes when all faces are back
    assert facefix("undo", out, "--all").out == "0 faces taken back, in 0 photos\n"
    done = facefix("verify", out)
    assert done == (0, "out: 3 results as written, and like their sources outside the restored faces\n", "")


def test_what_became_a_png_stays_one_and_the_help_says_so(facefix: Command, tmp_path: Path) -> None:
    source = archive.save(group_photo()[:, :250], tmp_path / "scans" / "group.gif")
    archive.restore(source.parent, tmp_path / "out")
    assert "2 faces taken back, in 1 photo" in facefix("undo", tmp_path / "out", "--all").out
    [result] = (tmp_path / "out").glob("*.png")
    with Image.open(source) as before, Image.open(result) as after:
        assert (before.format, after.format) == ("GIF", "PNG")
        assert np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after))
    told = " ".join(facefix("undo", "--help").out.split())
    assert "of a GIF, HEIC, AVIF, JPEG 2000 or PSD picture the result stays a PNG" in told


def test_names_of_any_bytes_are_named_on_one_line(facefix: Command, out: Path) -> None:
    done = facefix("undo", out, f"trip/{LATIN}", "--face", 1, "--face", 3)
    assert done.out.splitlines()[0] == "trip/caf\\udce9\\n.jpg: faces 1, 3 taken back"
    assert facefix("review", out).code == 0


def test_decisions_are_carried_out_past_those_that_cannot_be(facefix: Command, out: Path) -> None:
    lines = [json.loads(line) for line in (out / FOLDER / "report.jsonl").read_text().splitlines()]
    ids = {line["target"]: line["id"] for line in lines if line["target"]}
    told = [
        {"id": "f" * 64, "photo": "gone.jpg", "face": 1, "decision": "reject"},
        {"id": ids["shore.jpg"], "photo": "shore.jpg", "face": 1, "decision": "reject"},
        {"id": ids["trip/group.png"], "photo": "", "face": 1, "decision": "reject"},
        {"id": ids["trip/group.png"], "photo": "", "face": 2, "decision": "accept"},
        {"id": ids["trip/group.png"], "photo": "", "face": 3, "decision": "reject"},
    ]
    Path("decisions.json").write_text(json.dumps({"facefix": "decisions", "version": 1, "decisions": told}))
    done = facefix("apply", out, "decisions.json")
    assert done.code == 1
    assert done.out.splitlines() == [
        "trip/group.png: faces 1, 3 taken back",
        "2 faces taken back, in 1 photo; 2 photos could not be done",
    ]
    assert len(done.err.splitlines()) == 2
    assert "photo ffffffffffff: expected one of this run" in done.err
    assert "none: no face was found, got 1" in done.err
    assert rejected(out) == {"trip/group.png": [1, 3]}


def test_of_many_failures_with_one_reason_ten_are_named(facefix: Command, out: Path) -> None:
    told = [{"id": f"{number:064d}", "photo": "", "face": 1, "decision": "reject"} for number in range(30)]
    Path("decisions.json").write_text(json.dumps({"facefix": "decisions", "version": 1, "decisions": told}))
    done = facefix("apply", out, "decisions.json")
    assert (done.code, done.out) == (1, "0 faces taken back, in 0 photos; 30 photos could not be done\n")
    *named, rest = done.err.splitlines()
    assert len(named) == 10
    assert "further photos with this reason are only counted" in rest


def test_without_the_store_undo_says_how_to_go_on(facefix: Command, out: Path) -> None:
    shutil.rmtree(out / FOLDER / "faces")
    done = facefix("undo", out, "trip/group.png")
    assert done.code == 1
    assert "the stored face is not there any more; restore the photo again with --force" in done.err


def test_a_failed_photo_is_named_once(facefix: Command, out: Path) -> None:
    assert facefix("undo", out, "broken.jpg").err.count("broken.jpg") == 1


def test_verify_names_what_is_wrong_and_counts_the_rest(facefix: Command, out: Path) -> None:
    (out / "shore.jpg").write_bytes(b"something else")
    (out / "trip" / "notes.txt").write_text("mine")
    (out / FOLDER / "report.jsonl").unlink()
    done = facefix("verify", out)
    assert done.code == 1
    shore, report, notes = done.err.splitlines()
    assert "out/shore.jpg: it is not the file that was written" in shore
    assert "report.jsonl: the report cannot be read" in report
    assert "trip/notes.txt: not of this run" in notes
    assert done.out.startswith("out: 2 results as written, and like their sources outside the restored faces; 2 wrong;")
    assert facefix("verify", out, "--hashes-only", "-q").code == 1


def test_the_board_goes_where_it_is_wanted(facefix: Command, out: Path) -> None:
    done = facefix("review", out, "--board", "look.html", "--thumb-px", 64, "--faces", 4)
    assert done.code == 0
    first, second, then = done.out.splitlines()
    assert (first.split(":")[0], second.split(":")[0]) == ("look.html", "look-2.html")
    assert then == "open it in a browser; then: facefix apply out decisions.json"
    assert Path("look-2.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["review", "nowhere"], 2, "nowhere/.facefix/journal.sqlite: there is no such journal"),
        (["review", "out", "--board", "no/board.html"], 2, "no/board.html: No such file or directory"),
        (["review", "out", "--board", "out/shore.jpg/board.html"], 2, "out/shore.jpg/board.html: Not a directory"),
        (["apply", "out", "none.json"], 2, "none.json: No such file or directory; name the file"),
        (["undo", "out"], 2, "expected PHOTO or --all, got neither"),
        (["undo", "out", "shore.jpg", "--all"], 2, "expected PHOTO or --all, got both"),
        (["undo", "out", "other.jpg"], 2, "other.jpg: expected a result of this run, or its source"),
        (["undo", "out", "broken.jpg"], 1, "was not restored ("),
        (["undo", "out", "trip/group.png", "--face", "9"], 1, "one of 1 to 3, got 9"),
        (["verify", "out", "--tolerance", "300"], 2, "--tolerance"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    facefix: Command, out: Path, arguments: list[str], code: int, says: str
) -> None:
    done = facefix(*arguments)
    assert done.code == code
    assert says in done.err
    if "--tolerance" not in arguments:
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["review", "apply", "undo", "verify"])
def test_help_teaches_by_example(facefix: Command, command: str) -> None:
    done = facefix(command, "--help")
    assert done.code == 0
    assert f"facefix {command} restored/" in done.out


def test_the_tolerance_is_for_lossy_files_only(facefix: Command, out: Path) -> None:
    assert facefix("verify", out, "--tolerance", 3).code == 0


def test_undo_waits_for_nobody_who_writes(facefix: Command, out: Path) -> None:
    from facefix.jobs.journal import Journal

    with Journal.open(out.absolute()):
        done = facefix("undo", out, "--all")
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert facefix("review", out).code == 0
        assert facefix("verify", out).code == 0
