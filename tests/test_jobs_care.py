"""What runs leave behind and what they meet: old work, dead workers' files, closed files and folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive
import numpy as np
import pytest
from archive import RECIPE, group_photo

from facefix.errors import PhotoUnwritable
from facefix.jobs import kept
from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive, Stopped
from facefix.jobs.engines import Serial
from facefix.jobs.journal import Journal
from facefix.jobs.walk import Walk, roots
from facefix.jobs.workers import STAGE, Run, Wishes
from facefix.recipe import Recipe


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    archive.save(group_photo()[:, 340:], folder / "one.png")
    archive.save(group_photo()[:, 340:], folder / "sub" / "again.png")
    archive.save(group_photo()[:, 350:], folder / "sub" / "other.jpg", quality=90)
    archive.save(np.full((30, 40, 3), 90, np.uint8), folder / "plain.png")
    return folder


def stored(out: Path) -> set[str]:
    return {path.name for path in (out / FOLDER / "faces").glob("*/*")}


def works(out: Path) -> set[str | None]:
    with Journal.open(out, write=False) as journal:
        return {row.work for row, _ in journal.rows(reports=False)}


def run(scans: Path, out: Path, hears: Callable[[Drive, str], None], recipe: Recipe = RECIPE) -> Counter[str]:
    told: Counter[str] = Counter()

    def listen(event: str, source: Path, what: Any) -> None:
        told[event] += 1
        hears(drive, event)

    with Journal.open(out, create=True) as journal:
        drive = Drive(journal, Run(out, recipe), Serial(), Wishes(), listen)
        drive.go(Walk(roots([scans], out), out))
    return told


def test_faces_of_work_that_nothing_shows_any_longer_are_removed(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archive.restore(scans, out)
    first = stored(out)
    assert len(first) == 2
    assert first < works(out)
    shutil.copytree(out / FOLDER / "faces" / "..", tmp_path / "before")
    weaker = Recipe(restorer="pattern", sharp_faces="restore", strength=0.5)
    run(scans, out, lambda drive, event: event == "done" and drive.stop.set(), weaker)  # type: ignore[func-returns-value]
    assert first & works(out) <= stored(out), "a run that was stopped removes nothing that is still shown"
    archive.restore(scans, out, weaker)
    assert len(stored(out)) == 2
    assert not stored(out) & first
    assert stored(out) < works(out)
    own = out / FOLDER / "faces" / "ab" / "notes"
    own.mkdir(parents=True)
    archive.save(group_photo()[:, 360:], scans / "one.png")
    archive.save(group_photo()[:, 360:], scans / "sub" / "again.png")
    other = stored(out) - {"notes"}
    archive.restore(scans, out, weaker)
    assert len(other & stored(out)) == 1
    assert len(stored(out)) == 3
    assert own.is_dir(), "what is not ours stays"


def test_faces_of_photos_that_failed_since_are_kept_for_when_they_are_back(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archive.restore(scans, out)
    first = stored(out)
    (scans / "sub" / "other.jpg").rename(tmp_path / "away.jpg")
    (scans / "sub" / "other.jpg").mkdir()
    archive.restore(scans, out)
    (scans / "sub" / "other.jpg").rmdir()
    (scans / "sub" / "other.jpg").symlink_to("nowhere")
    assert archive.restore(scans, out).count("failed") == 1
    assert stored(out) == first
    (scans / "sub" / "other.jpg").unlink()
    (tmp_path / "away.jpg").rename(scans / "sub" / "other.jpg")
    assert set(archive.restore(scans, out, wishes=Wishes(retry_failed=True))) == {"met", "before"}
    assert stored(out) == first


def test_what_a_worker_that_died_left_is_gone_at_the_end_of_the_run(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def hears(drive: Drive, event: str) -> None:
        (out / STAGE / f"{event}-1.png").write_bytes(b"half a photo")

    assert run(scans, out, hears)["done"] == 3
    assert list((out / STAGE).iterdir()) == []
    assert sorted(path.name for path in (out / FOLDER).iterdir() if path.is_dir()) == ["faces", "tmp"]


def test_a_store_that_leads_out_of_the_folder_stops_the_run(scans: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / FOLDER).mkdir(parents=True)
    (out / FOLDER / "faces").symlink_to(elsewhere)
    for number in range(4):
        archive.save(group_photo()[:, 342 + number :], scans / f"more{number}.png")
    (scans / "plain.png").unlink()
    with pytest.raises(Stopped, match=r"faces: .*got a link, which may lead out of it; remove it; the photos that"):
        run(scans, out, lambda drive, event: None)
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(PhotoUnwritable, match="got a link"):
        kept.put(out / FOLDER, "faces/ab/c.png", b"")
    (out / FOLDER / "faces").unlink()
    assert run(scans, out, lambda drive, event: None)["failed"] == 0


def test_copies_of_a_photo_that_takes_long_wait_in_a_bounded_number(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facefix.jobs.drive._WAITING", 6)
    for number in range(20):
        shutil.copy(scans / "one.png", scans / f"copy{number:02d}.png")
    claimed = []
    told = run(scans, tmp_path / "out", lambda drive, event: claimed.append(len(drive._rows)))
    assert (told["done"], told["copied"]) == (3, 21)
    assert max(claimed) <= 3 + 6


ACCESS = "-dac_override,-dac_read_search"  # what lets root pass by a file's mode


def as_others(*command: object, at: Path) -> subprocess.CompletedProcess[str]:
    """The command, run by somebody to whom file modes mean something; skips where there is nobody."""
    whole = [sys.executable, "-m", "facefix", *map(str, command)]
    if not hasattr(os, "geteuid"):
        pytest.skip("file modes are for POSIX systems")
    if os.geteuid() == 0:
        drop = ["setpriv", f"--bounding-set={ACCESS}", "--inh-caps=-all"]
        (at / "closed").touch(mode=0)
        if (
            not shutil.which("setpriv")
            or subprocess.run([*drop, "cat", at / "closed"], capture_output=True).returncode != 1
        ):
            pytest.skip("rights cannot be given up here")
        whole = [*drop, *whole]
    return subprocess.run(whole, cwd=at, capture_output=True, text=True, check=False)


def test_closed_photos_and_folders_are_one_line_each_and_the_others_are_done(scans: Path, tmp_path: Path) -> None:
    (scans / "shut").mkdir()
    shutil.copy(scans / "one.png", scans / "shut" / "inside.png")
    (scans / "blind").mkdir()
    shutil.copy(scans / "one.png", scans / "blind" / "seen.png")
    closed = {scans / "plain.png": 0, scans / "shut": 0, scans / "blind": 0o644}
    for path, mode in closed.items():
        path.chmod(mode)
    restore = ["restore", "--restorer", "pattern", "--engine", "serial", "-o", "out"]
    try:
        done = as_others(*restore, "scans", at=tmp_path)
        named = as_others(*restore, "scans/plain.png", "scans/shut", "--retry-failed", at=tmp_path)
    finally:
        for path in closed:
            path.chmod(0o755)
    assert done.returncode == 1
    assert sorted(done.stderr.splitlines()) == [
        f"facefix: {scans}/blind/seen.png: Permission denied; check the file",
        f"facefix: {scans}/plain.png: Permission denied; check the file",
        f"facefix: {scans}/shut: Permission denied; allow it to be read",
    ]
    assert "2 failed, 1 folder could not be looked into" in done.stdout
    assert (tmp_path / "out" / "sub" / "other.jpg").is_file()
    assert (named.returncode, len(named.stderr.splitlines())) == (1, 2)
    assert "Permission denied" in named.stderr


def test_a_folder_that_cannot_be_written_is_said_in_few_lines(scans: Path, tmp_path: Path) -> None:
    for number in range(15):
        archive.save(np.full((9, 9, 3), number, np.uint8), scans / "deep" / f"{number}.png")
    shut, deep = tmp_path / "shut", tmp_path / "out" / "deep"
    shut.mkdir(mode=0o555)
    deep.mkdir(parents=True, mode=0o555)
    restore = ["restore", "scans", "--restorer", "identity", "--engine", "serial", "-o"]
    try:
        refused, partly = as_others(*restore, shut, at=tmp_path), as_others(*restore, "out", at=tmp_path)
    finally:
        shut.chmod(0o755)
        deep.chmod(0o755)
    assert refused.returncode == 2
    assert refused.stderr == f"facefix: {shut}/.facefix: Permission denied; name a folder that can be written\n"
    lines = partly.stderr.splitlines()
    assert (partly.returncode, len(lines)) == (1, 11)
    told = [line for line in lines if "more photos with" in line]
    assert told[0].startswith(
        "facefix: more photos with 'it could not be written (Permission denied); check the folder"
    )
    assert (tmp_path / "out" / "sub" / "other.jpg").is_file()


def test_an_archive_that_cannot_be_written_any_more_is_proven_and_looked_through(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    archive.restore(scans, out)
    (out / FOLDER).chmod(0o555)
    try:
        proven = as_others("verify", "out", at=tmp_path)
        board = as_others("review", "out", "--board", "board.html", at=tmp_path)
        undone = as_others("undo", "out", "--all", at=tmp_path)
    finally:
        (out / FOLDER).chmod(0o755)
    assert (proven.returncode, proven.stderr) == (0, "")
    assert "4 results as written, and like their sources" in proven.stdout
    assert board.returncode == 0, board.stderr
    assert undone.returncode == 2
    assert len(undone.stderr.splitlines()) == 1
