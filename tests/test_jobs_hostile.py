"""Runs over what is no photo, has odd names, leads elsewhere or changes; one line each, and the others are done."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from driven import PATTERN, go, kinds, reasons, tree
from PIL import Image

from facefix.jobs import workers
from facefix.jobs.database import FOLDER
from facefix.jobs.files import looked_at
from facefix.jobs.journal import Journal
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe


@pytest.mark.skipif(os.name == "nt", reason="names that only a POSIX system has")
def test_any_name_comes_through(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    names = [
        b"new\nline.png",
        b"'quote\".png",
        b"-dash.png",
        "\u202ebidi.png".encode(),
        b"\xff\xfe.png",
        b"x" * 251 + b".png",
    ]
    for number, name in enumerate(names):
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(scans / "plain.png")
        os.rename(scans / "plain.png", scans / os.fsdecode(name))
    long = scans / ("y" * 251 + ".gif")
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(long, "GIF")
    assert kinds(go(scans, out)) == {"done": 7}
    found = {os.fsencode(path.name) for path in out.iterdir()} - {FOLDER.encode()}
    [cut] = found - set(names)
    assert cut.startswith(b"y" * 200)
    assert cut.endswith(b".png")
    assert len(cut) <= 255
    with Journal.open(out, write=False) as journal:
        journal.export(tmp_path / "report.jsonl")
    for line in (tmp_path / "report.jsonl").read_text().splitlines():
        assert json.loads(line)["target"]
    assert kinds(go(scans, out)) == {"before": 7}


def test_what_is_no_photo_fails_in_one_line_and_is_not_read(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    os.mkfifo(scans / "pipe.jpg")
    (scans / "nowhere.jpg").symlink_to("nothing")
    (scans / "zip.png").write_bytes(b"PK\x03\x04 and so on")
    (scans / "page.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (scans / "empty.jpg").touch()
    with open(scans / "sparse.png", "wb") as sparse:
        sparse.truncate(8 << 30)
    with open(scans / "huge.tif", "wb") as huge:
        huge.write(b"II*\0")
        huge.truncate(8 << 30)
    (scans / "cut.png").write_bytes((scans / "sub" / "turned.png").read_bytes()[:200])
    began = time.process_time()
    told = go(scans, out, max_pixels=100_000)
    assert time.process_time() - began < 20, "16 GB were not hashed"
    lines = {name: what for event, name, what in told if event == "failed"}
    assert kinds(told) == {"done": 4, "failed": 8}
    for name, says in {
        "pipe.jpg": "expected a file, got a folder, device or pipe",
        "nowhere.jpg": "No such file or directory",
        "zip.png": "got a ZIP archive",
        "page.jpg": "got a web page",
        "empty.jpg": "got an empty file",
        "sparse.png": "expected at most 269,235,456 bytes for 100,000 pixels, got 8,589,934,592",
        "huge.tif": "allow more with --max-pixels",
        "cut.png": "damaged or cut short",
    }.items():
        assert says in lines[name], lines[name]
        assert lines[name].startswith(str(scans / name))
        assert len(lines[name].splitlines()) == 1
    assert not set(tree(out)) & set(lines)


def test_large_pictures_are_refused_by_their_header(scans: Path, tmp_path: Path) -> None:
    told = go(scans, tmp_path / "out", max_pixels=3000)
    assert kinds(told) == {"done": 2, "failed": 2}
    assert all("expected at most 3,000 pixels" in reason for reason in reasons(told))


def test_writing_never_leaves_the_output_folder(scans: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    (out / "face.jpg").symlink_to(elsewhere / "face.jpg")
    told = go(scans, out)
    assert kinds(told) == {"failed": 4}
    assert sum("got a link, which may lead out of it; remove it" in reason for reason in reasons(told)) == 3
    assert list(elsewhere.iterdir()) == []
    go(scans, out, wishes=Wishes(retry_failed=True), overwrite=True)
    assert list(elsewhere.iterdir()) == []
    assert not (out / "face.jpg").is_symlink()


def test_a_source_that_changes_or_goes_while_it_is_read_fails_by_itself(scans: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "out", PATTERN)
    (tmp_path / "out" / workers.STAGE).mkdir(parents=True)
    fix = workers.load(run)
    source = scans / "face.jpg"
    mark, sha256, _ = looked_at(source, max_pixels=10**8)
    job = workers.Job(1, 1, "id", "work", source, mark, sha256, Path("face.jpg"))
    os.utime(source, (3, 3))
    outcome = workers.perform(fix, run, job)
    assert outcome.report is None
    assert outcome.reason == f"{source}: it changed while it was being read; run the same command again"
    source.unlink()
    assert "No such file" in workers.perform(fix, run, job).reason
    assert tree(tmp_path / "out") == {}


def test_an_error_that_nobody_foresaw_fails_one_photo_with_its_traceback(scans: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "out", PATTERN)
    (tmp_path / "out" / workers.STAGE).mkdir(parents=True)
    fix = workers.load(run)
    fix.detector = None  # type: ignore[assignment]
    mark, sha256, _ = looked_at(scans / "face.jpg", max_pixels=10**8)
    outcome = workers.perform(fix, run, workers.Job(1, 1, "i", "w", scans / "face.jpg", mark, sha256, Path("a.jpg")))
    assert "the journal holds the traceback" in outcome.reason
    assert "Traceback" in outcome.traceback
    assert len(outcome.reason.splitlines()) == 1


def test_everything_in_badinputs_is_done_as_its_readme_says(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = go(shared / "badinputs", out, recipe=Recipe(restorer="identity"))
    rows = {}
    for line in (shared / "badinputs" / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 5 and "." in cells[1]:
            rows[cells[1]] = (cells[3], cells[4])
    state = {name: event for event, name, _ in told}
    for name, (must, faces) in rows.items():
        if name in ("folder_named.png", "text_as_weights.pth"):
            assert name not in state
        elif must in ("error", "refused"):
            assert state[name] == "failed", name
        elif must.startswith("restored"):
            assert state[name] in ("done", "copied"), name
            report = next(what for event, met, what in told if met == name)
            assert len(report["faces"]) == int(faces), name
        else:
            assert name in state
    assert all(len(reason.splitlines()) == 1 and "Traceback" not in reason for reason in reasons(told))
