"""Files that are no pictures, broken, bombs or no files at all: part with a warning, or one clear line."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_pictures import DISPLAY_P3, IPTC, XMP, exif_with, smooth
from PIL import Image

from facefix import imagefile
from facefix.errors import PhotoError, PhotoRefused, PhotoUnreadable
from facefix.imagefile import exif as exif_room

tifffile = pytest.importorskip("tifffile")

BAD = Path(__file__).parents[1].parent / "shared" / "badinputs"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "text"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"%PDF-1.4", "PDF"),
        (b"\0" * 5000, "zeros"),
        (b"\x93\x12\x44\x00" * 9, "unknown data"),
        (b"\xff\xd8\xff", "cut short|damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(99_999), "cut short before the picture begins"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"II*\0\x08\0\0\0", "damaged"),
        (b"GIF89a", "damaged"),
        (b"BM" + b"\1" * 60, "damaged|expected"),
        (b"8BPS" + b"\1" * 60, "damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "cut short"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "damaged|facefix"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "raw camera"),
        (b"\xff\x0a" + b"\0" * 20, "JPEG XL"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "p.jpg").write_bytes(content)
    with pytest.raises(PhotoUnreadable, match=words) as caught:
        imagefile.read(tmp_path / "p.jpg")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "p.jpg") in str(caught.value)
    assert ";" in caught.value.problem, "it ends in what to do"


def test_a_huge_file_that_is_no_picture_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "disk.jpg", "wb") as file:
        try:
            file.truncate(1 << 43)
        except OSError:
            pytest.skip("this file system has no files of that size")
    with pytest.raises(PhotoUnreadable, match="nothing but zeros"):
        imagefile.read(tmp_path / "disk.jpg")


def test_missing_files_folders_and_pipes_do_not_hang(tmp_path: Path) -> None:
    with pytest.raises(PhotoUnreadable, match="No such file"):
        imagefile.read(tmp_path / "none.jpg")
    with pytest.raises(PhotoUnreadable, match="a folder"):
        imagefile.read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(PhotoUnreadable, match="a device or pipe"):
            imagefile.read(tmp_path / "pipe.jpg")


def bomb(form: str) -> bytes:
    if form == "PNG":
        head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0" * 20
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, form)
    data = bytearray(stream.getvalue())
    if form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    if form == "BMP":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    if form == "GIF":
        data[6:10] = struct.pack("<HH", 60000, 60000)
    if form == "TIFF":
        page = exif_room.parse(bytes(data))
        for tag in (256, 257):
            struct.pack_into(page.order + exif_room._CODE[page.entries[tag].kind], data, page.entries[tag].at, 60000)
    return bytes(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_bombs_are_refused_from_the_header(tmp_path: Path, form: str) -> None:
    (tmp_path / "p").write_bytes(bomb(form))
    with pytest.raises(PhotoRefused, match="60000x60000"):
        imagefile.read(tmp_path / "p")
    Image.new("RGB", (20, 30)).save(tmp_path / "q.png")
    with pytest.raises(PhotoRefused, match="at most 599 pixels"):
        imagefile.read(tmp_path / "q.png", max_pixels=599)
    assert imagefile.read(tmp_path / "q.png", max_pixels=600).width == 20


@pytest.mark.parametrize(("mode", "first"), [("RGB", 64), ("CMYK", 1), ("CMYK", 64)])
def test_a_size_that_stands_in_a_tiff_twice_does_not_get_past_the_limit(tmp_path: Path, mode: str, first: int) -> None:
    """RGB goes through libtiff, which takes a tag's first entry, CMYK through Pillow, which took the last before 13."""
    Image.new(mode, (64, 64)).save(tmp_path / "p.tif")
    data = (tmp_path / "p.tif").read_bytes()
    page = exif_room.parse(data)
    sizes = {256: (first, 65 - first), 257: (first, 65 - first)}
    twice = [(tag, exif_room.entry("<", exif_room.LONG, side)) for tag, sides in sizes.items() for side in sides]
    entries = [*twice, *((tag, each) for tag, each in page.entries.items() if tag not in sizes)]
    block = struct.pack("<H", len(entries))
    for tag, each in entries:
        value = each.data.ljust(4, b"\0") if len(each.data) <= 4 else struct.pack("<I", each.at)
        block += struct.pack("<HHI", tag, each.kind, each.number) + value
    (tmp_path / "p.tif").write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + block + b"\0\0\0\0")
    with contextlib.suppress(PhotoRefused):
        photo = imagefile.read(tmp_path / "p.tif", max_pixels=10)
        assert (photo.width, photo.height) == (1, 1)


def test_entries_that_lie_in_one_another_are_no_bomb() -> None:
    entries, size = 500, 100_000
    block = b"II*\0" + struct.pack("<IH", 8, entries)
    block += b"".join(struct.pack("<HHII", 1000 + n, exif_room.UNDEFINED, size, 8) for n in range(entries))
    with pytest.raises(ValueError, match="its entries lie in one another"):
        exif_room.parse(block + bytes(4 + size))


@pytest.mark.parametrize("name", ["p.jpg", "p.png", "p16.png", "p.tif", "p16.tif", "p.webp", "p.bmp", "p.gif", "p.jp2"])
def test_cut_files_give_part_with_a_warning_or_a_clear_error(tmp_path: Path, name: str) -> None:
    samples = np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    if name in ("p.gif", "p.jp2"):
        Image.fromarray(samples).save(tmp_path / name)
    else:
        samples = samples.astype(np.uint16) * 257 if "16" in name else samples
        imagefile.write(imagefile.from_array(samples), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (len(whole) // 50, len(whole) // 2, len(whole) - 40):
        (tmp_path / name).write_bytes(whole[:length])
        problem = None
        try:
            photo = imagefile.read(tmp_path / name)
        except PhotoUnreadable as error:
            problem = str(error)
        else:
            assert photo.meta.warnings or np.array_equal(photo.raster, samples)
            assert photo.raster.shape == samples.shape
        assert problem is None or "\n" not in problem


def test_cut_png_keeps_the_rows_before_the_cut(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(1, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(samples).save(tmp_path / "p.png")
    whole = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(whole[: len(whole) // 2])
    photo = imagefile.read(tmp_path / "p.png")
    rows = int(photo.meta.warnings[0].split("only ")[1].split(" ")[0])
    assert 20 < rows < 35
    np.testing.assert_array_equal(photo.raster[: rows - 1], samples[: rows - 1])


@pytest.mark.parametrize("name", ["p.jpg", "p.png", "p.tif", "p.webp", "p.bmp", "p.gif", "p.jp2", "p.avif"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, name: str) -> None:
    photo = imagefile.from_array(smooth(24, 32, 3, 8))
    if Path(name).suffix in (".gif", ".jp2", ".avif"):
        imagefile.to_pil(photo).save(tmp_path / name)
    else:
        meta = replace(photo.meta, icc=DISPLAY_P3, exif=exif_with(3, thumbnail=True), xmp=XMP, iptc=IPTC)
        imagefile.write(replace(photo, meta=meta), tmp_path / name)
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    rng = np.random.default_rng(7)
    for _ in range(120):
        damaged = whole.copy()
        head = int(rng.integers(20, min(len(whole), 2000)))
        places = rng.integers(4, head, rng.integers(1, 9))
        damaged[places] = rng.integers(0, 256, len(places))
        (tmp_path / name).write_bytes(damaged.tobytes())
        problem = ""
        try:
            imagefile.read(tmp_path / name, max_pixels=100_000)
        except PhotoError as error:
            problem = str(error)
        assert "\n" not in problem


def test_floating_point_and_32_bit_tiffs_are_refused_clearly(tmp_path: Path) -> None:
    for dtype in (np.float32, np.uint32, np.int16):
        tifffile.imwrite(tmp_path / "p.tif", np.zeros((8, 9, 3), dtype), photometric="rgb")
        with pytest.raises(PhotoUnreadable, match="expected 1 to 16 unsigned bits"):
            imagefile.read(tmp_path / "p.tif")


BAD_FILES = {
    "bomb_60000x60000.png": PhotoRefused,
    "cmyk.jpg": (491, 310),
    "empty.jpg": PhotoUnreadable,
    "exif_orientation_6.jpg": (491, 310),
    "folder_named.png": PhotoUnreadable,
    "gray_16bit.png": (491, 310),
    "name with spaces and ünïcode.jpg": (491, 310),
    "not_an_image.jpg": PhotoUnreadable,
    "one_pixel.bmp": (1, 1),
    "palette.gif": (491, 310),
    "pillow_truncated_image.png": (640, 480),
    "png_named.jpg": (491, 310),
    "rgba_alpha_200.png": (491, 310),
    "thin_4x5000.png": (4, 5000),
    "trailing_bytes.jpg": (491, 310),
    "truncated_half.jpg": (491, 310),
}


@pytest.mark.skipif(not BAD.is_dir(), reason="the shared bad inputs are not here")
@pytest.mark.parametrize("name", BAD_FILES)
def test_shared_bad_inputs(tmp_path: Path, name: str) -> None:
    wanted = BAD_FILES[name]
    if isinstance(wanted, type):
        with pytest.raises(wanted, match=name):
            imagefile.read(BAD / name)
        return
    photo = imagefile.read(BAD / name)
    assert (photo.width, photo.height) == wanted
    assert bool(photo.meta.warnings) == (name.startswith(("cmyk", "pillow_trunc", "truncated")))
    target = tmp_path / f"out{imagefile.suffix_for(photo.meta)}"
    imagefile.write(photo, target)
    back = imagefile.read(target)
    assert np.abs(back.raster.astype(float) - photo.raster).mean() < 3
    if wanted == (491, 310) and not name.startswith("truncated"):
        twin = imagefile.read(BAD / "rgba_alpha_200.png").pixels().mean(axis=2)
        assert np.abs(photo.pixels().mean(axis=2) - twin).mean() < 0.03
