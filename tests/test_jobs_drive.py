"""Runs over small trees with the real journal, workers and networks; the restorers are identity and pattern."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driven import go, kinds, reasons, tree
from PIL import Image

from facefix.errors import FacefixError
from facefix.jobs import workers
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe


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


def test_a_change_that_put_size_and_time_back_is_seen_and_new_permissions_are_none(scans: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", scans / "sub" / "plain0.png"
    go(scans, out)
    before, state = (out / "sub" / "plain0.png").read_bytes(), source.stat()
    Image.fromarray(np.full((40, 50, 3), 61, np.uint8)).save(source)
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_ino) == (state.st_size, state.st_ino)
    assert kinds(go(scans, out)) == {"done": 1, "before": 3}
    assert (out / "sub" / "plain0.png").read_bytes() != before
    source.chmod(0o600)
    assert kinds(go(scans, out)) == {"before": 4}


def test_a_journal_without_times_of_change_goes_on(scans: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    out = tmp_path / "out"
    go(scans, out)
    with contextlib.closing(sqlite3.connect(out / FOLDER / "journal.sqlite")) as journal:
        journal.executescript("ALTER TABLE photos DROP COLUMN ctime_ns; PRAGMA user_version = 1;")
    assert kinds(go(scans, out)) == {"before": 4}


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
