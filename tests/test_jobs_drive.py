"""Runs over small trees with the real journal, workers and networks; the restorers are identity and pattern."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facefix.errors import FacefixError
from facefix.jobs import workers
from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive, Stopped
from facefix.jobs.engines import Engine, Lost, Processes, Serial
from facefix.jobs.journal import Journal
from facefix.jobs.walk import Walk, roots
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe

PATTERN = Recipe(restorer="pattern")
Told = list[tuple[str, str, Any]]


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """(160, 120, 3) uint8 with one face."""
    from skimage.data import astronaut

    return astronaut()[0:200, 145:295].copy()


@pytest.fixture
def scans(tmp_path: Path, face: np.ndarray) -> Path:
    """Four different photos in a tree, two of them with a face."""
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(face).save(folder / "face.jpg", quality=92)
    Image.fromarray(face[:, ::-1].copy()).save(folder / "sub" / "turned.png")
    for number in range(2):
        Image.fromarray(np.full((40, 50, 3), 60 + 40 * number, np.uint8)).save(folder / "sub" / f"plain{number}.png")
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(0, 800_000_000_123_456_789))
    return folder


def go(
    source: Path | list[Path],
    out: Path,
    *,
    engine: Engine | None = None,
    recipe: Recipe = PATTERN,
    wishes: Wishes | None = None,
    hears: Callable[..., None] | None = None,
    **run: Any,
) -> Told:
    """What the run told, but for `met`."""
    told: Told = []

    def listen(event: str, path: Path, what: Any) -> None:
        if event != "met":
            told.append((event, path.name, what))
        if hears is not None:
            hears(drive, event, path)

    inputs = source if isinstance(source, list) else [source]
    with Journal.open(out, create=True) as journal:
        drive = Drive(journal, Run(out, recipe, **run), engine or Serial(), wishes or Wishes(), listen)
        drive.go(Walk(roots(inputs, out), out))
        assert not journal.counts()["running"]
    return told


def kinds(told: Told) -> dict[str, int]:
    return {kind: sum(event == kind for event, _, _ in told) for kind in {event for event, _, _ in told}}


def reasons(told: Told) -> list[str]:
    return [what for event, _, what in told if event == "failed"]


def tree(out: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file of the tree but the journal's."""
    return {
        str(path.relative_to(out)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and FOLDER not in path.relative_to(out).parts
    }


def test_a_tree_is_mirrored_with_its_times_and_a_second_run_does_nothing(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert kinds(go(scans, out)) == {"done": 4}
    made = tree(out)
    assert sorted(made) == ["face.jpg", "sub/plain0.png", "sub/plain1.png", "sub/turned.png"]
    assert {mtime for _, mtime in made.values()} == {800_000_000_123_456_789}
    assert (out / "face.jpg").read_bytes() != (scans / "face.jpg").read_bytes()
    assert (out / "sub" / "plain0.png").read_bytes() == (scans / "sub" / "plain0.png").read_bytes()
    assert list((out / workers.STAGE).iterdir()) == []
    before = {path: path.stat().st_ino for path in out.rglob("*.png")}
    assert kinds(go(scans, out)) == {"before": 4}
    assert tree(out) == made
    assert {path: path.stat().st_ino for path in out.rglob("*.png")} == before
    with Journal.open(out, write=False) as journal:
        for row, report in journal.rows("done"):
            assert report is not None
            assert report["source_sha256"] == hashlib.sha256(row.source.read_bytes()).hexdigest()
            assert report["target_sha256"] == made[str(row.target)][0]
            assert [face["number"] for face in report["faces"] if face["outcome"] == "restored"] in ([], [1])


def test_what_changed_is_done_anew_and_what_was_only_touched_is_not(scans: Path, tmp_path: Path, face) -> None:
    out = tmp_path / "out"
    go(scans, out)
    old = tree(out)
    os.utime(scans / "sub" / "plain0.png", (7, 7))
    Image.fromarray(face[::-1].copy()).save(scans / "sub" / "plain1.png")
    (out / "face.jpg").unlink()
    told = go(scans, out)
    assert kinds(told) == {"done": 2, "before": 2}
    assert sorted(name for event, name, _ in told if event == "done") == ["face.jpg", "plain1.png"]
    new = tree(out)
    assert new["face.jpg"] == old["face.jpg"]
    assert new["sub/plain0.png"] == (old["sub/plain0.png"][0], 7_000_000_000)
    assert new["sub/plain1.png"] != old["sub/plain1.png"]


def test_another_recipe_does_all_anew_and_force_does_too(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(scans, out)
    assert kinds(go(scans, out, wishes=Wishes(force=True))) == {"done": 4}
    assert kinds(go(scans, out, recipe=Recipe(restorer="pattern", strength=0.5))) == {"done": 4}
    assert kinds(go(scans, out, recipe=Recipe(restorer="pattern", strength=0.5))) == {"before": 4}


def test_other_weights_are_another_recipe(tiny_gpen_file: Path, tmp_path: Path, scans: Path) -> None:
    weights = tmp_path / "net.safetensors"
    shutil.copy(tiny_gpen_file, weights)
    run = Run(tmp_path, Recipe(restorer=str(weights)))
    first = workers.ready_of(workers.load(run), run)
    assert len(first.weights) == 2
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    save_file({name: tensor * (1 if name.endswith(".kernel") else 1.01) for name, tensor in state.items()}, weights)
    second = workers.ready_of(workers.load(run), run)
    assert first.digest != second.digest
    assert (
        first.digest != workers.ready_of(workers.load(run), Run(tmp_path, run.recipe, mask=scans / "face.jpg")).digest
    )


@pytest.mark.parametrize("how", ["copy", "link", "redo"])
def test_the_same_picture_is_restored_once(scans: Path, tmp_path: Path, how: Any) -> None:
    out = tmp_path / "out"
    for name in ("again.jpg", "third.jpg"):
        shutil.copy(scans / "face.jpg", scans / name)
        os.utime(scans / name, (9, 9))
    told = go(scans, out, wishes=Wishes(duplicates=how))
    assert kinds(told) == ({"done": 6} if how == "redo" else {"done": 4, "copied": 2})
    same = [out / name for name in ("again.jpg", "face.jpg", "third.jpg")]
    assert len({path.read_bytes() for path in same}) == 1
    assert len({path.stat().st_ino for path in same}) == (1 if how == "link" else 3)
    if how != "link":
        assert [path.stat().st_mtime for path in same] == [9, pytest.approx(8e8, abs=1), 9]
    report = next(what for event, name, what in told if name == "third.jpg")
    assert (report["target"], len(report["faces"])) == ("third.jpg", 1)
    shutil.copy(scans / "face.jpg", scans / "sub" / "late.jpg")
    [late] = [told for told in go(scans, out, wishes=Wishes(duplicates=how)) if told[1] == "late.jpg"]
    assert late[0] == ("done" if how == "redo" else "copied")
    assert (out / "sub" / "late.jpg").read_bytes() == same[0].read_bytes()
    assert kinds(go(scans, out, wishes=Wishes(duplicates=how, force=True)))["done"] == (7 if how == "redo" else 4)


def test_a_result_that_was_changed_by_hand_is_not_handed_on_to_copies(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(scans, out)
    restored = (out / "face.jpg").read_bytes()
    (out / "face.jpg").write_bytes(b"drawn over")
    shutil.copy(scans / "face.jpg", scans / "again.jpg")
    assert kinds(go(scans, out)) == {"done": 1, "before": 4}
    assert (out / "again.jpg").read_bytes() == restored
    assert (out / "face.jpg").read_bytes() == b"drawn over"


def test_nothing_that_is_not_ours_is_overwritten(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "face.jpg").write_bytes(b"somebody's")
    (out / "sub" / "plain0.png").mkdir()
    told = go(scans, out)
    assert kinds(told) == {"done": 2, "failed": 2}
    assert all("exists already and is not ours; move it away or pass --overwrite" in reason for reason in reasons(told))
    assert (out / "face.jpg").read_bytes() == b"somebody's"
    assert kinds(go(scans, out)) == {"before": 2, "failed before": 2}
    (out / "sub" / "plain0.png").rmdir()
    assert kinds(go(scans, out, wishes=Wishes(retry_failed=True))) == {"before": 2, "failed": 1, "done": 1}
    assert kinds(go(scans, out, wishes=Wishes(retry_failed=True), overwrite=True)) == {"before": 3, "done": 1}
    assert (out / "face.jpg").read_bytes() != b"somebody's"
    (out / "face.jpg").write_bytes(b"drawn over")
    os.utime(scans / "face.jpg", (5, 5))
    Image.open(scans / "face.jpg").resize((50, 50)).save(scans / "face.jpg")
    [reason] = reasons(go(scans, out))
    assert "was changed since it was written; move it away or pass --overwrite" in reason
    assert (out / "face.jpg").read_bytes() == b"drawn over"


def test_another_source_does_not_take_a_place_that_is_taken(scans: Path, tmp_path: Path) -> None:
    out, other, copy = tmp_path / "out", tmp_path / "other", tmp_path / "copy"
    go(scans, out)
    made = tree(out)
    shutil.copytree(scans, copy)
    other.mkdir()
    shutil.copy(scans / "sub" / "turned.png", other / "face.jpg")
    [reason] = reasons(go(other, out))
    assert "its place holds the result of" in reason
    assert kinds(go(copy, out)) == {"before": 4}, "the same archive on another disk"
    shutil.rmtree(copy)
    assert kinds(go(scans, out)) == {"before": 4}
    assert tree(out) == made


def test_names_follow_the_content_and_never_collide(tmp_path: Path, face: np.ndarray) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number, (name, form) in enumerate(
        {"same.jpg": "PNG", "same.png": "PNG", "a.gif": "GIF", "a.GIF": "GIF", "b.jpeg": "JPEG"}.items()
    ):
        Image.fromarray(np.full((30, 30, 3), 20 * number, np.uint8)).save(scans / name, form)
    assert kinds(go(scans, out)) == {"done": 5}
    [marked] = [name for name in tree(out) if "~" in name]
    assert sorted(tree(out)) == sorted(["a.GIF.png", marked, "b.jpeg", "same.jpg.png", "same.png"])
    assert marked == f"a~{hashlib.sha256(b'a.gif').hexdigest()[:8]}.gif.png"


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
    mark, sha256, _ = workers_looked_at(source)
    job = workers.Job(1, 1, "id", "work", source, mark, sha256, Path("face.jpg"))
    os.utime(source, (3, 3))
    outcome = workers.perform(fix, run, job)
    assert outcome.report is None
    assert outcome.reason == f"{source}: it changed while it was being read; run the same command again"
    source.unlink()
    assert "No such file" in workers.perform(fix, run, job).reason
    assert tree(tmp_path / "out") == {}


def workers_looked_at(source: Path) -> Any:
    from facefix.jobs.files import looked_at

    return looked_at(source, max_pixels=10**8)


def test_an_error_that_nobody_foresaw_fails_one_photo_with_its_traceback(scans: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "out", PATTERN)
    (tmp_path / "out" / workers.STAGE).mkdir(parents=True)
    fix = workers.load(run)
    fix.detector = None  # type: ignore[assignment]
    mark, sha256, _ = workers_looked_at(scans / "face.jpg")
    outcome = workers.perform(fix, run, workers.Job(1, 1, "i", "w", scans / "face.jpg", mark, sha256, Path("a.jpg")))
    assert "the journal holds the traceback" in outcome.reason
    assert "Traceback" in outcome.traceback
    assert len(outcome.reason.splitlines()) == 1


def test_a_mask_limits_all_photos_and_belongs_to_the_recipe(scans: Path, tmp_path: Path) -> None:
    out, mask = tmp_path / "out", tmp_path / "mask.png"
    for path in (scans / "sub").iterdir():
        path.unlink()
    with Image.open(scans / "face.jpg") as photo:
        Image.new("L", photo.size).save(mask)
        other = Image.new("L", photo.size, 255)
    assert kinds(go(scans, out, mask=mask)) == {"done": 1}
    assert (out / "face.jpg").read_bytes() == (scans / "face.jpg").read_bytes()
    assert kinds(go(scans, out, mask=mask)) == {"before": 1}
    other.save(mask)
    assert kinds(go(scans, out, mask=mask)) == {"done": 1}
    assert (out / "face.jpg").read_bytes() != (scans / "face.jpg").read_bytes()


def test_missing_weights_stop_the_run_before_a_photo_is_touched(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(FacefixError, match="no-such-net") as caught:
        go(scans, tmp_path / "out", recipe=Recipe(restorer="no-such-net"))
    assert caught.value.exit_code == 3
    assert tree(tmp_path / "out") == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 255, (200, 200, 3)).astype(np.uint8)
        Image.fromarray(noise).save(scans / f"{number:02d}.png")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", out], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(FacefixError) as caught:
            go(scans, out)
        assert "No space left on device" in str(caught.value) or "the disk is full" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        full = tree(out)
        assert 0 < len(full) < 12
        subprocess.run(["mount", "-o", "remount,size=8m", out], check=True)
        told = go(scans, out)
        assert reasons(told) == []
        assert len(tree(out)) == 12
        assert full.items() <= tree(out).items()
        assert list((out / workers.STAGE).iterdir()) == []
    finally:
        subprocess.run(["umount", out], check=True)


def test_an_output_folder_that_goes_away_stops_the_run(scans: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "out", tmp_path / "gone"
    for number in range(8):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and not gone.exists():
            os.rename(out, gone)

    with pytest.raises(Stopped, match="run the same command again when it is mended"):
        go(scans, out, hears=hears)
    os.rename(gone, out)
    told = go(scans, out)
    assert "failed" not in kinds(told)
    assert len(tree(out)) == 12


def test_a_run_that_is_stopped_finishes_what_is_in_hand_and_goes_on_later(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(20):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")
    told = go(scans, out, hears=lambda drive, event, path: event == "done" and drive.stop.set())
    assert 1 <= kinds(told)["done"] < 12
    assert set(kinds(told)) == {"done"}
    rest = go(scans, out)
    assert kinds(rest) == {"before": kinds(told)["done"], "done": 24 - kinds(told)["done"]}


def test_processes_give_the_same_bytes_as_the_serial_engine(scans: Path, tmp_path: Path) -> None:
    """Slow: two processes load torch. One of them is killed twice in the middle of the run."""
    recipe = Recipe(restorer="facefix-lite-256")
    for number in range(6):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")
    serial, many = tmp_path / "serial", tmp_path / "many"
    go(scans, serial, recipe=recipe)
    engine = Processes(["cpu", "cpu"])
    killed = []

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and len(killed) < 1:
            killed.append(engine._hands[0].process)
            assert killed[-1] is not None
            assert killed[-1].pid is not None
            os.kill(killed[-1].pid, signal.SIGKILL)

    told = go(scans, many, recipe=recipe, engine=engine, hears=hears)
    assert kinds(told) == {"done": 10}
    assert killed[0].exitcode == -signal.SIGKILL
    assert tree(many) == tree(serial)
    assert len({hand.process.pid for hand in engine._hands if hand.process is not None}) == 2
    with Journal.open(many, write=False) as journal:
        assert {row.attempt for row, _ in journal.rows()} <= {1, 2}


class Deadly(Serial):
    """The serial engine, in which one photo kills the worker whenever it is begun."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.alone: list[int] = []

    def start(self, run: Run, tell: Any) -> None:
        self.tell, self.held = tell, 0

        def counted(told: Any) -> None:
            self.held -= isinstance(told, workers.Outcome)
            tell(told)

        super().start(run, counted)

    def submit(self, job: workers.Job) -> None:
        if job.source.name == self.name:
            self.alone.append(self.held)
            self.tell(Lost((job,), "was killed by signal 9"))
        else:
            self.held += 1
            super().submit(job)


def test_a_photo_that_kills_its_worker_is_tried_once_more_alone_and_then_fails(scans: Path, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", Deadly("turned.png")
    told = go(scans, out, engine=engine)
    assert kinds(told) == {"done": 3, "failed": 1}
    assert reasons(told)[0].endswith(
        "turned.png: two workers died at it, the last one was killed by signal 9; leave it out"
    )
    assert engine.alone[1] == 0
    assert len(engine.alone) == 2


def test_copies_of_a_photo_that_kills_its_worker_are_tried_by_themselves(scans: Path, tmp_path: Path) -> None:
    (scans / "sub" / "twin.png").write_bytes((scans / "sub" / "turned.png").read_bytes())
    told = go(scans, tmp_path / "out", engine=Deadly("turned.png"))
    assert kinds(told) == {"done": 4, "failed": 1}


def test_a_killed_run_is_finished_by_the_next_to_the_same_bytes(tmp_path: Path, face: np.ndarray) -> None:
    """Slow: each life loads torch. SIGKILL at random moments, in this process's grandchildren too."""
    scans, whole, out = tmp_path / "scans", tmp_path / "whole", tmp_path / "out"
    (scans / "sub").mkdir(parents=True)
    for number in range(14):
        varied = np.ascontiguousarray(np.roll(face, number, axis=1))
        Image.fromarray(varied).save(scans / ("sub" if number % 2 else "") / f"{number:02d}.jpg", quality=93)
    shutil.copy(scans / "00.jpg", scans / "twin.jpg")
    go(scans, whole)
    chance = random.Random(4)
    command = [sys.executable, "-m", "facefix", "restore", str(scans), "-o", str(out), "--restorer", "pattern"]
    lines: list[str] = []
    for kill_after, engine in ((2, "serial"), (3, "processes"), (1, "serial")):
        life = subprocess.Popen(
            [*command, "--engine", engine, "--workers", "1"], stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert life.stdout is not None
        for _ in range(kill_after):
            lines.append(life.stdout.readline())
        time.sleep(chance.random() * 0.2)
        os.kill(life.pid, signal.SIGKILL)
        life.communicate()
        for path in tree(out):
            Image.open(out / path).load()  # nothing half-written stands under a final name
    told = go(scans, out)
    assert kinds(told)["before"] >= 6, "what was said to be done is done"
    assert "failed" not in kinds(told)
    assert tree(out) == tree(whole)
    assert list((out / workers.STAGE).iterdir()) == []
    assert len(lines) == len({line.split(":")[0] for line in lines}) == 6, "nothing is done twice"


def test_a_second_run_is_told_who_is_at_work(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    caught: list[str] = []

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and not caught:
            with pytest.raises(FacefixError) as error:
                Journal.open(out)
            caught.append(str(error.value))

    go(scans, out, hears=hears)
    assert f"process {os.getpid()} on" in caught[0]
    assert threading.active_count() < 20


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
