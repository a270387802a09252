"""How files get to their names: in one step, over nothing unasked, whatever the name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from made_pictures import smooth

from facefix import imagefile
from facefix.errors import PhotoUnreadable, PhotoUnwritable
from facefix.types import Meta


def tree(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


NAMES = [
    b"with space.jpg",
    "ünï.jpg".encode(),
    b"-rf.jpg",
    b"quote'\".jpg",
    b"new\nline.jpg",
    b"raw\xff\xfe.jpg",
    b"x" * 251 + b".jpg",
    b"semi;$(echo).jpg",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system does not take that name")
    path.unlink()
    imagefile.write(photo, path)
    assert imagefile.read(path).width == 9
    assert tree(tmp_path) == {os.fsdecode(name)}
    path.write_bytes(b"text")
    with pytest.raises(PhotoUnreadable) as caught:
        imagefile.read(path)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    path = tmp_path / "p.png"
    path.write_bytes(b"mine")
    with pytest.raises(PhotoUnwritable, match="exists already"):
        imagefile.write(photo, path)
    assert path.read_bytes() == b"mine"
    path.chmod(0o640)
    imagefile.write(photo, path, overwrite=True)
    assert imagefile.read(path).width == 9
    assert path.stat().st_mode & 0o777 == 0o640
    assert tree(tmp_path) == {"p.png"}


@pytest.mark.parametrize("quicker", [False, True])
def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quicker: bool) -> None:
    path = tmp_path / "p.png"

    def no_links(*_: object) -> None:
        if quicker:
            path.write_bytes(b"theirs")
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    if quicker:
        with pytest.raises(PhotoUnwritable, match="exists already"):
            imagefile.write(photo, path)
        assert path.read_bytes() == b"theirs"
    else:
        imagefile.write(photo, path)
        assert imagefile.read(path).width == 9
    assert tree(tmp_path) == {"p.png"}


def test_new_files_have_ordinary_rights(tmp_path: Path) -> None:
    imagefile.write(imagefile.from_array(smooth(8, 9, 3, 8)), tmp_path / "p.png")
    (tmp_path / "q").touch()
    assert (tmp_path / "p.png").stat().st_mode == (tmp_path / "q").stat().st_mode


class _FullError(OSError):
    strerror = "No space left on device"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise _FullError

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "p.png"
    if overwrite:
        path.write_bytes(b"old")
    with pytest.raises(PhotoUnwritable, match="No space left"):
        imagefile.write(imagefile.from_array(smooth(8, 9, 3, 8)), path, overwrite=overwrite)
    assert tree(tmp_path) == ({"p.png"} if overwrite else set())
    assert not overwrite or path.read_bytes() == b"old"


def test_unwritable_places_and_pictures(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    with pytest.raises(PhotoUnwritable, match=r"No such file"):
        imagefile.write(photo, tmp_path / "none" / "p.png")
    with pytest.raises(PhotoUnwritable, match=r"expected a name ending in \.jpg"):
        imagefile.write(photo, tmp_path / "p.heic")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("place", ["file/p.png", "n" * 300 + ".png"], ids=["no folder", "too long"])
def test_a_name_that_nothing_can_have_is_said(tmp_path: Path, place: str) -> None:
    source, target = tmp_path / "file", tmp_path / place
    source.touch()
    with pytest.raises(PhotoUnwritable, match="could not be written"):
        imagefile.write(imagefile.from_array(smooth(8, 9, 3, 8)), target)
    with pytest.raises(PhotoUnwritable, match="could not be written"):
        imagefile.copy_source(source, target, overwrite=True)


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65500), (".webp", 16383)])
def test_a_side_longer_than_the_format_has_is_said(tmp_path: Path, suffix: str, side: int) -> None:
    photo = imagefile.from_array(np.zeros((1, side + 1), np.uint8))
    with pytest.raises(PhotoUnwritable, match=f": expected at most {side:,} px a side .* write PNG or TIFF instead$"):
        imagefile.write(photo, tmp_path / f"p{suffix}")


def test_copies_are_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 anything" * 1000)
    imagefile.copy_source(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(PhotoUnwritable, match="exists already"):
        imagefile.copy_source(tmp_path / "a.jpg", tmp_path / "b.jpg")
    imagefile.copy_source(tmp_path / "a.jpg", tmp_path / "a.jpg", overwrite=True)
    with pytest.raises(PhotoUnreadable, match="No such file"):
        imagefile.copy_source(tmp_path / "none.jpg", tmp_path / "c.jpg")
    assert tree(tmp_path) == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    ("name", "form", "suffix"),
    [
        ("a.JPEG", "JPEG", ".JPEG"),
        ("a.jpg", "PNG", ".png"),
        ("a.tif", "TIFF", ".tif"),
        ("a", "JPEG", ".jpg"),
        ("a.heic", "HEIF", ".png"),
        ("a.psd", "PSD", ".png"),
    ],
)
def test_suffix_of_a_result(name: str, form: str, suffix: str) -> None:
    assert imagefile.suffix_for(Meta(source=Path(name), format=form)) == suffix
