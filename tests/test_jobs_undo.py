"""Faces taken back and brought in again: always the very file that a run with these faces alone writes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive
import imagecodecs
import numpy as np
import pytest
import torch
from archive import RECIPE, group_photo, report_at, row_at
from PIL import Image
from safetensors.torch import save_file

from facefix import imagefile
from facefix.errors import PhotoRefused, PhotoUnreadable, PhotoUnwritable
from facefix.jobs import undo, verify
from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Wishes
from facefix.jobs.files import file_sha256
from facefix.jobs.journal import Journal
from facefix.pipeline import FaceFix
from facefix.types import Box

ALL = {1, 2, 3}
NAMES = ("group.png", "group.jpg", "deep.tif", "lossy.webp")


@dataclasses.dataclass(frozen=True)
class Archive:
    """What was restored: the sources, and a copy of the output folder that a test may change."""

    sources: Path
    out: Path

    def decide(self, name: str, *, force: bool = False, **which: set[int]) -> tuple[set[int], set[int]]:
        with Journal.open(self.out) as journal:
            return undo.decide(journal, row_at(journal, name), force=force, **which)

    def report(self, name: str) -> dict:
        with Journal.open(self.out, write=False) as journal:
            return dict(report_at(journal, name))

    def alone(self, name: str, faces: set[int], folder: Path, **settings: Any) -> bytes:
        """The file that a run writes which restores these faces alone."""
        recipe = dataclasses.replace(RECIPE, face=",".join(map(str, sorted(faces))) or "9", **settings)
        fix, photo, path = loaded(recipe), imagefile.read(self.sources / name), folder / f"alone-{name}"
        fix.save(fix(photo), photo, path, overwrite=True)
        return path.read_bytes()


loaded = functools.cache(FaceFix.load)


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    away = path.with_name("away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    sources = folder / "scans"
    archive.save(group_photo(), sources / "group.png")
    archive.save(group_photo(), sources / "group.jpg", quality=88)
    archive.save(group_photo(), sources / "lossy.webp", quality=80)
    archive.save(np.full((64, 64, 3), 120, np.uint8), sources / "shore.jpg")
    (sources / "deep.tif").write_bytes(imagecodecs.tiff_encode(group_photo(16), photometric="rgb"))
    (sources / "broken.jpg").write_bytes(b"nothing of a photo")
    archive.restore(sources, folder / "out")
    return Archive(sources, folder / "out")


@pytest.fixture
def some(made: Archive, tmp_path: Path) -> Archive:
    shutil.copytree(made.out, tmp_path / "out")
    return Archive(made.sources, tmp_path / "out")


def test_the_first_two_faces_share_pixels_and_the_third_is_alone(some: Archive) -> None:
    records = undo.records_of(some.report("group.png"))
    assert [number for number, record in records.items() if "shares" in record] == [1, 2]
    with np.load(some.out / FOLDER / records[1]["shares"]) as arrays:
        assert len(arrays["share1"]) == len(arrays["share2"]) > 100


@pytest.mark.parametrize("name", NAMES)
def test_taking_a_face_back_gives_what_a_run_without_it_writes(some: Archive, name: str, tmp_path: Path) -> None:
    target = some.out / name
    whole = target.read_bytes()
    assert whole != (some.sources / name).read_bytes()
    assert undo.accepted_in(some.report(name)) == ALL
    for rejected in ({2}, {3, 1}):
        assert some.decide(name, reject=rejected) == (rejected, set())
        assert target.read_bytes() == some.alone(name, ALL - rejected, tmp_path)
        report = some.report(name)
        assert undo.accepted_in(report) == ALL - rejected
        assert report["target_sha256"] == file_sha256(target)
        assert some.decide(name, accept=rejected) == (set(), rejected)
        assert target.read_bytes() == whole
        assert not any("rejected" in face for face in some.report(name)["faces"])


def test_all_faces_back_is_the_source_byte_for_byte_with_its_time(some: Archive) -> None:
    for name in NAMES[:2]:
        some.decide(name, reject=ALL)
        assert (some.out / name).read_bytes() == (some.sources / name).read_bytes()
        assert (some.out / name).stat().st_mtime == 800_000_000


@pytest.mark.parametrize("name", ["group.png", "deep.tif"])
def test_outside_the_face_not_a_bit_changes(some: Archive, name: str) -> None:
    before = imagefile.read(some.out / name).raster
    box = Box(*some.report(name)["faces"][2]["kept"]["box"])
    some.decide(name, reject={3})
    after, source = imagefile.read(some.out / name).raster, imagefile.read(some.sources / name).raster
    outside = np.ones(before.shape[:2], bool)
    outside[box.slices] = False
    assert np.array_equal(before[outside], after[outside])
    assert np.array_equal(after[box.slices], source[box.slices])
    assert not np.array_equal(before[box.slices], after[box.slices])


def test_a_jpegs_blocks_beside_the_face_stay_bit_for_bit(some: Archive) -> None:
    before = imagefile.read(some.out / "group.jpg").raster
    box = Box(*some.report("group.jpg")["faces"][2]["kept"]["box"])
    some.decide("group.jpg", reject={3})
    after = imagefile.read(some.out / "group.jpg").raster
    block = 16  # of halved chroma, whose decoder looks one pixel beyond
    near = Box(box.x0 // block * block - 1, box.y0 // block * block - 1, box.x1 + block + 1, box.y1 + block + 1)
    outside = np.ones(before.shape[:2], bool)
    outside[near.slices] = False
    assert outside.sum() > 0.6 * outside.size
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before[box.slices], after[box.slices])


def test_without_the_source_a_lossless_result_is_taken_back_and_a_jpeg_is_not(some: Archive) -> None:
    with moved_away(some.sources):
        assert some.decide("group.png", reject={2}) == ({2}, set())
        with pytest.raises(PhotoUnreadable, match=r"the source is not there any more.*a JPEG is made anew from it"):
            some.decide("group.jpg", reject={2})
    kept = imagefile.read(some.out / "group.png")
    assert kept.meta.xmp is not None
    assert kept.meta.xmp.count(b"rId>facefix-") == 2
    with moved_away(some.sources):
        some.decide("group.png", reject=ALL)
    bare = imagefile.read(some.out / "group.png")
    assert np.array_equal(bare.raster, imagefile.read(some.sources / "group.png").raster)
    assert bare.meta.xmp is None
    with moved_away(some.sources):
        some.decide("group.png", accept=ALL)
    again = imagefile.read(some.out / "group.png")
    assert again.meta.xmp is not None
    assert again.meta.xmp.count(b"rId>facefix-") == 3


def test_a_source_that_changed_is_not_taken_for_the_old_one(some: Archive) -> None:
    source = some.sources / "group.jpg"
    whole, state = source.read_bytes(), source.stat()
    source.write_bytes(whole + b" ")
    try:
        with pytest.raises(PhotoUnreadable, match=r"group\.jpg: the source was changed since it was restored, and"):
            some.decide("group.jpg", reject={1})
    finally:
        source.write_bytes(whole)
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_twice_is_once_and_what_is_not_restored_is_refused(some: Archive) -> None:
    some.decide("group.png", reject={2})
    once = (some.out / "group.png").read_bytes()
    assert some.decide("group.png", reject={2}) == (set(), set())
    assert some.decide("group.png", accept={1, 3}) == (set(), set())
    assert (some.out / "group.png").read_bytes() == once
    with pytest.raises(PhotoRefused, match="expected a face's number, one of 1 to 3, got 4"):
        some.decide("group.png", reject={4})
    with pytest.raises(PhotoRefused, match="none: no face was found"):
        some.decide("shore.jpg", reject={1})
    with pytest.raises(PhotoRefused, match=r"was not restored .*expected a picture, got text"):
        some.decide("broken.jpg", reject={1})


def test_an_edited_result_is_refused_unless_forced(some: Archive) -> None:
    for name in ("group.png", "group.jpg"):
        target = some.out / name
        edited = imagefile.read(target).raster.copy()
        edited[:8, :8] = (255, 0, 0)
        Image.fromarray(edited).save(target)
        whole = target.read_bytes()
        with pytest.raises(PhotoRefused, match="was changed since facefix wrote it"):
            some.decide(name, reject={1})
        assert target.read_bytes() == whole
        some.decide(name, reject={1}, force=True)
        assert undo.accepted_in(some.report(name)) == {2, 3}
    assert (imagefile.read(some.out / "group.png").raster[:8, :8] == (255, 0, 0)).all()
    Image.new("RGB", (9, 9)).save(some.out / "group.png")
    with pytest.raises(PhotoRefused, match="expected 500x240 px as written, got 9x9"):
        some.decide("group.png", reject={2}, force=True)
    (some.out / "group.png").unlink()
    with pytest.raises(PhotoUnreadable, match="the result is not there"):
        some.decide("group.png", reject={2})


@pytest.mark.parametrize("name", NAMES[:2])
def test_what_a_power_cut_left_between_file_and_journal_is_finished(some: Archive, name: str, tmp_path: Path) -> None:
    old = shutil.copytree(some.out / FOLDER, tmp_path / "before")
    some.decide(name, reject={2})
    done = (some.out / name).read_bytes()
    shutil.rmtree(some.out / FOLDER)
    old.rename(some.out / FOLDER)
    assert undo.accepted_in(some.report(name)) == ALL
    assert some.decide(name, reject={2}) == ({2}, set())
    assert (some.out / name).read_bytes() == done
    assert some.report(name)["target_sha256"] == file_sha256(some.out / name)


def test_a_full_disk_is_told_with_the_results_name(some: Archive) -> None:
    resource = pytest.importorskip("resource")
    target = some.out / "group.png"
    before = target.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(some.out) as journal:
        row = row_at(journal, "group.png")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(PhotoUnwritable) as caught:
                undo.decide(journal, row, reject={1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.path == target
    assert "check the folder and the disk" in str(caught.value)
    assert target.read_bytes() == before
    assert list((some.out / FOLDER / "tmp").iterdir()) == []


def test_missing_and_foreign_patches_leave_the_result_as_it_is(some: Archive) -> None:
    whole = (some.out / "group.jpg").read_bytes()
    record = some.report("group.jpg")["faces"][2]["kept"]
    (some.out / FOLDER / record["after"]).unlink()
    with pytest.raises(PhotoUnreadable, match=r"003\.after\.png"):
        some.decide("group.jpg", reject={1})
    Image.new("RGB", (record["box"][2] - record["box"][0], record["box"][3] - record["box"][1])).save(
        some.out / FOLDER / record["before"]
    )
    with pytest.raises(PhotoRefused, match="what was kept of its faces is not what the source shows here"):
        some.decide("group.jpg", reject={3})
    assert (some.out / "group.jpg").read_bytes() == whole
    assert not list((some.out / FOLDER / "tmp").iterdir())


def test_a_run_that_goes_on_leaves_decisions_and_copies_alone(tmp_path: Path) -> None:
    sources, out = tmp_path / "scans", tmp_path / "out"
    for name in ("a.png", "b.png"):
        archive.save(group_photo(), sources / name)
    link = Wishes(duplicates="link")
    assert sorted(archive.restore(sources, out, wishes=link)) == ["copied", "done", "met", "met"]
    assert (out / "a.png").samefile(out / "b.png")
    some, whole = Archive(sources, out), (out / "b.png").read_bytes()
    some.decide("b.png", reject={2})
    taken_back = (out / "b.png").read_bytes()
    assert (out / "a.png").read_bytes() == whole != taken_back
    assert sorted(archive.restore(sources, out, wishes=link)) == ["before", "before", "met", "met"]
    assert [(out / name).read_bytes() for name in ("a.png", "b.png")] == [whole, taken_back]
    archive.save(group_photo(), sources / "c.png")  # a copy is made of what the network gave, not of a decision
    some.decide("a.png", reject=ALL)
    assert "done" in archive.restore(sources, out, wishes=link)
    assert (out / "c.png").read_bytes() == whole
    with Journal.open(out, write=False) as journal:
        assert [verdict.problem for verdict in verify.verify(journal)] == [""] * 3


@pytest.mark.slow
def test_enlarged_results_are_taken_back_too(tmp_path: Path) -> None:
    sources, out = tmp_path / "scans", tmp_path / "out"
    for name, options in (("a.png", {}), ("b.jpg", {"quality": 90})):
        archive.save(group_photo(), sources / name, **options)
    archive.restore(sources, out, dataclasses.replace(RECIPE, scale=2))
    some = Archive(sources, out)
    for name in ("a.png", "b.jpg"):
        some.decide(name, reject={1})
        assert (out / name).read_bytes() == some.alone(name, {2, 3}, tmp_path, scale=2)
        some.decide(name, reject=ALL)
        assert (out / name).read_bytes() == some.alone(name, set(), tmp_path, scale=2)


@pytest.mark.slow
def test_a_jpeg_that_a_network_enlarged_is_taken_back_by_the_same_network(tmp_path: Path) -> None:
    architecture = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    network = architecture.ESRGAN(num_filters=8, num_blocks=1, scale=4)
    path = tmp_path / "RealESRGAN_tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    archive.save(group_photo()[:, :250], tmp_path / "scans" / "a.jpg", quality=90)
    recipe = dataclasses.replace(RECIPE, scale=2, upscaler=str(path), face="1,2")
    archive.restore(tmp_path / "scans", tmp_path / "out", recipe)
    some = Archive(tmp_path / "scans", tmp_path / "out")
    whole = (some.out / "a.jpg").read_bytes()
    with Journal.open(some.out, write=False) as journal:
        [verdict] = verify.verify(journal)
    assert (verdict.problem, "RealESRGAN_tiny.safetensors enlarged it" in verdict.note) == ("", True)
    assert some.decide("a.jpg", reject={1}) == ({1}, set())
    assert (some.out / "a.jpg").read_bytes() == some.alone("a.jpg", {2}, tmp_path, scale=2, upscaler=str(path))
    assert some.decide("a.jpg", accept={1}) == (set(), {1})
    assert (some.out / "a.jpg").read_bytes() == whole
