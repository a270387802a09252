"""`facefix restore` for many photos: what a run shows, and how it is stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from facefix.errors import counted


def test_a_folder_goes_through_past_bad_files(facefix: Command, portrait: np.ndarray, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "restored"
    (scans / "b" / ".hidden").mkdir(parents=True)
    Image.fromarray(portrait).save(scans / "b" / "same.jpg", quality=90)
    Image.fromarray(portrait).save(scans / "b" / ".hidden" / "thumb.jpg")
    (scans / "a broken.png").write_bytes(b"no picture")
    (scans / "notes.txt").write_text("not a photo")
    report = tmp_path / "report.jsonl"
    command = ("restore", scans, "-o", out, "--restorer", "identity", "--engine", "serial")
    done = facefix(*command, "--report", report)
    assert done.code == 1
    assert "a broken.png" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [path.relative_to(out) for path in sorted(out.glob("[!.]*/*"))] == [Path("b/same.jpg")]
    assert (out / "b" / "same.jpg").read_bytes() == (scans / "b" / "same.jpg").read_bytes()
    first, second = (json.loads(line) for line in report.read_text().splitlines())
    assert "a broken.png" in first["error"]
    assert second["faces"][0]["outcome"] == "restored"
    assert (out / ".facefix" / "report.jsonl").read_text() == report.read_text()
    assert "b/same.jpg: 1 of 1 faces restored with identity in " in done.out
    summary = "1 photo done (1 face restored), 1 failed, 1 other file left alone"
    assert summary in done.out.splitlines()[-1]
    again = facefix(*command, "--report", tmp_path / "list.json")
    assert (again.code, again.err) == (1, "")
    assert "0 photos done (0 faces restored), 1 done before, 1 failed before (--retry-failed tries again)" in again.out
    assert len(json.loads((tmp_path / "list.json").read_text())) == 2
    silent = facefix(*command, "--quiet")
    assert (silent.code, silent.out) == (1, "")
    assert silent.err == "facefix: 1 failed before; --retry-failed tries again\n"
    Image.fromarray(portrait).save(scans / "a broken.png")
    mended = facefix(*command, "--json-lines")
    assert (mended.code, mended.err.count("\n")) == (0, 1)
    [line] = mended.out.splitlines()
    assert json.loads(line)["target"] == "a broken.png"


def test_several_photos_globs_and_lists_go_through_one_run(
    facefix: Command, portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1/a.png", "1/b.png", "2/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((30, 30, 3), 90 + len(list(Path().rglob("*.png"))), np.uint8)).save(name)
    Path("list").write_bytes(b"1/b.png\0./2/a.png\0")
    same = ("--restorer", "identity", "--engine", "serial", "--quiet")
    assert facefix("restore", "1/a.png", "1/b.png", "-o", "named", *same).code == 0
    assert facefix("restore", "[12]/a.png", "-o", "fitting", *same).code == 0
    assert facefix("restore", "--from-file", "list", "-o", "listed", *same) == (0, "", "")
    assert facefix("restore", "1/a.png", "-o", "listed", *same).code == 0, "an OUT with a journal takes one more"
    made = {folder: sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.png")) for folder in
            ("named", "fitting", "listed")}  # fmt: skip
    assert made == {
        "named": ["a.png", "b.png"],
        "fitting": ["1/a.png", "2/a.png"],
        "listed": ["1/b.png", "2/a.png", "a.png"],
    }
    assert facefix("restore", "1/a.png", "1/b.png", "--restorer", "identity").code == 0, "beside them, without -o"
    assert sorted(path.name for path in Path("1").iterdir()) == ["a.facefix.png", "a.png", "b.facefix.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "INPUT: expected photos or folders, got none"),
        (["scans"], 2, "scans: expected -o FOLDER for what comes of many photos"),
        (["file.png", "scans"], 2, "scans: expected -o FOLDER for what comes of many photos, got none; name one, or"),
        (["file.png", "scans/*"], 2, "scans/*: expected -o FOLDER for what comes of many photos, got none; name one"),
        (["scans", "-o", "file.png"], 2, "expected a folder for many photos, got a file"),
        (["scans", "-o", "scans/out"], 2, "expected a folder outside of scans, got one inside"),
        (["scans", "-o", "scans"], 2, "expected a folder of its own, got one that holds scans"),
        (["scans", "missing", "-o", "out"], 2, "missing: expected a photo or a folder, got nothing by that name"),
        (["scans/*.gif", "-o", "out"], 2, "expected the names of photos or folders, got none that fits"),
        (["scans", "other/scans", "-o", "out"], 2, "expected two names, got scans twice"),
        (["scans/a.png", "other/scans/a.png", "-o", "out"], 2, "expected two names, got a.png twice"),
        (["--from-file", "nothing", "-o", "out"], 2, "--from-file nothing: No such file or directory"),
        (["scans", "-o", "out", "--faces-out", "faces"], 2, "--faces-out goes with single photos"),
        (["scans", "-o", "out", "--compare", "both"], 2, "--compare goes with single photos"),
        (["scans/a.png", "-o", "out.png", "--retry-failed"], 2, "--retry-failed goes with runs over many photos"),
        (["scans", "-o", "out", "--workers", "-1"], 2, "--workers"),
        (["n" * 300, "-o", "out"], 1, "File name too long"),
        (["scans", "n" * 300, "-o", "out"], 2, "nnn: expected a photo or a folder, got nothing by that name"),
        (["scans", "-o", "n" * 300], 2, "File name too long; name a folder that can be written"),
        (["scans/a.png", "-o", "out.png", "--report", "file.png/report.json"], 2, "--report file.png/report.json"),
        (["scans", "-o", "out", "--mask", "no.png", "--engine", "serial"], 1, "no.png: No such file or directory"),
        (["scans", "-o", "out", "--engine", "serial", "--restorer", "no-net"], 3, "no-net"),
        (["empty", "-o", "out", "--engine", "serial"], 1, "empty: expected photos, got none"),
    ],
)
def test_wrong_usage_of_a_run_is_one_clear_line(
    facefix: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("scans", "other/scans", "empty"):
        Path(folder).mkdir(parents=True)
    for name in ("scans/a.png", "other/scans/a.png", "file.png"):
        Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(name)
    done = facefix("restore", *arguments)
    assert (done.code, says in done.err) == (code, True), done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in Path("scans").iterdir()) == ["a.png"]


def test_of_many_photos_with_one_trouble_ten_are_named(facefix: Command, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(25):
        (tmp_path / "scans" / f"{number:02d}.jpg").write_bytes(b"%PDF-1.7")
    (tmp_path / "scans" / "zip.jpg").write_bytes(b"PK\x03\x04")
    done = facefix("restore", tmp_path / "scans", "-o", tmp_path / "out", "--engine", "serial")
    lines = done.err.strip().splitlines()
    assert (done.code, len(lines)) == (1, 12)
    assert "more photos with 'expected a picture, got a PDF" in next(line for line in lines if "more" in line)
    assert "report.jsonl names them" in done.err
    assert "26 failed" in done.out
    assert len((tmp_path / "out" / ".facefix" / "report.jsonl").read_text().splitlines()) == 26


def test_ctrl_c_finishes_the_photos_in_hand_and_the_same_command_goes_on(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number in range(60):  # a busy machine may look at the first line late
        Image.fromarray(np.full((400, 600, 3), 90 + number, np.uint8)).save(scans / f"{number:02d}.png")
    command = [sys.executable, "-m", "facefix", "restore", scans, "-o", out, "--restorer", "identity", "--workers", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline()
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes of the run
        _, said = run.communicate()
    assert run.returncode == 130
    assert "finishing the photos in hand; Ctrl-C again stops at once" in said
    finished = [path for path in out.iterdir() if path.suffix == ".png"]
    assert 1 <= len(finished) < 55
    assert (
        f"interrupted; {counted(len(finished), 'photo')} finished and kept; the same command goes on from here" in said
    )
    assert len(said.strip().splitlines()) == 2
    assert len((out / ".facefix" / "report.jsonl").read_text().splitlines()) == len(finished)
    assert list((out / ".facefix" / "tmp").iterdir()) == []


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_second_ctrl_c_stops_at_once(portrait: np.ndarray, tmp_path: Path, engine: str) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    Image.fromarray(portrait[:20, :20]).save(scans / "0.bmp")
    for number in range(1, 5):
        Image.fromarray(np.tile(portrait[::2, ::2], (number + 4, 6, 1))).save(scans / f"{number}.bmp")
    command = [sys.executable, "-m", "facefix", "restore", scans, "-o", out, "--engine", engine]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline()
        os.killpg(run.pid, signal.SIGINT)
        while "finishing the photos in hand" not in (first := run.stderr.readline()):
            assert first.startswith("note:"), first  # on a busy machine the next photo may be done by now
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate()
    finished = sorted(path.name for path in out.iterdir() if path.suffix == ".bmp")
    assert finished in (["0.bmp"], ["0.bmp", "1.bmp"])
    assert said.splitlines()[-1] in [
        f"facefix: stopped at once; {counted(known, 'photo')} finished and kept; the same command goes on from here"
        for known in (1, len(finished))
    ]
    assert run.returncode == 130
