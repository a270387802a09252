"""What a file carries besides its pixels comes along, from every format to every other, or is told to be left out."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import DISPLAY_P3, IPTC, XMP, exif_with, smooth
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from facefix import imagefile
from facefix.imagefile import exif as exif_room
from facefix.imagefile import xmp as xmp_room


def descriptive(block: bytes) -> dict[int, Any]:
    exif = Image.Exif()
    exif.load(block)
    return {**exif, 0x8769: exif.get_ifd(0x8769), 0x8825: exif.get_ifd(0x8825)}


@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".tif", ".webp"])
def test_metadata_goes_from_every_format_to_every_other(tmp_path: Path, source: str, target: str) -> None:
    first = imagefile.from_array(smooth(32, 48, 3, 8))
    meta = replace(first.meta, icc=DISPLAY_P3, exif=exif_with(1), xmp=XMP, iptc=IPTC, dpi=(240.0, 240.0))
    imagefile.write(replace(first, meta=meta), tmp_path / f"a{source}", ai_label=False)
    photo = imagefile.read(tmp_path / f"a{source}")
    imagefile.write(photo, tmp_path / f"b{target}")
    back = imagefile.read(tmp_path / f"b{target}").meta
    assert back.icc == DISPLAY_P3
    assert back.exif is not None
    assert back.xmp is not None
    wanted = descriptive(exif_with(1))
    wanted[0x8769] |= {0xA002: 48, 0xA003: 32}
    found = descriptive(back.exif)
    for tag in (0x010F, 0x8298):
        assert found[tag] == wanted[tag]
    assert found[0x8769] == wanted[0x8769]
    assert found[0x8825] == wanted[0x8825]
    assert b"Tea &amp; cake" in back.xmp
    assert xmp_room.source_type(back.xmp) == xmp_room.SOURCE_TYPE
    if ".webp" not in (source, target):
        assert back.iptc == IPTC
        assert back.dpi == pytest.approx((240, 240), abs=0.01)


def test_other_readers_find_the_metadata(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(32, 48, 3, 8))
    meta = replace(photo.meta, icc=DISPLAY_P3, exif=exif_with(1), iptc=IPTC, dpi=(240.0, 240.0))
    for name in ("p.jpg", "p.png", "p.tif"):
        imagefile.write(replace(photo, meta=meta), tmp_path / name)
        with Image.open(tmp_path / name) as other:
            other.load()
            assert other.info["icc_profile"] == DISPLAY_P3
            assert other.getexif()[0x010F] == "Kodak"
            assert other.getexif().get_ifd(0x8769)[0x9003] == "1927:10:29 11:00:00"
            assert other.getexif().get_ifd(0x8825)[2] == (50, 50, 8)
            assert other.info["dpi"] == pytest.approx((240, 240), abs=0.01)
            packet = other.tag_v2[700] if isinstance(other, TiffImagePlugin.TiffImageFile) else other.info["xmp"]
            assert xmp_room.SOURCE_TYPE.encode() in (packet if isinstance(packet, bytes) else packet.encode())
            if isinstance(other, JpegImagePlugin.JpegImageFile):
                assert other.info["photoshop"][0x0404] == IPTC
            if isinstance(other, TiffImagePlugin.TiffImageFile):
                assert other.tag_v2[33723] == IPTC


def test_thumbnail_goes_and_the_rest_of_exif_stays_byte_for_byte() -> None:
    whole = exif_with(6, thumbnail=True)
    settled = exif_room.settle(whole, 48, 32)
    assert b"\xff\xd8\xff" not in settled
    assert len(settled) < len(whole)
    old, new = exif_room.parse(whole[6:]), exif_room.parse(settled[6:])
    assert new.next == 0
    assert new.numbers(exif_room.ORIENTATION) == (1,)
    assert {t: e for t, e in new.entries.items() if t != 0x0112} == {
        t: e for t, e in old.entries.items() if t != 0x0112
    }
    inner = new.children[0x8769]
    assert (inner.numbers(0xA002), inner.numbers(0xA003)) == ((48,), (32,))
    assert inner.data(0x927C) == b"maker\0note"


def test_label_is_merged_and_can_be_switched_off() -> None:
    plain = xmp_room.settle(None, ai_label=True, width=4, height=3)
    assert plain is not None
    assert xmp_room.source_type(plain) == xmp_room.SOURCE_TYPE
    assert xmp_room.settle(None, ai_label=False, width=4, height=3) is None
    without = xmp_room.settle(XMP, ai_label=False, width=4, height=3)
    assert without is not None
    assert xmp_room.source_type(without) is None
    twice = xmp_room.settle(xmp_room.settle(XMP, ai_label=True, width=4, height=3), ai_label=True, width=4, height=3)
    assert twice is not None
    assert twice.count(b"compositeWithTrained") == 1
    assert twice.count(b'about="uuid:7"') == 2


@pytest.mark.parametrize(
    "form",
    [
        ' e:DigitalSourceType="{}"/>',
        "><e:DigitalSourceType>{}</e:DigitalSourceType></r:Description>",
        '><e:DigitalSourceType r:resource="{}"/></r:Description>',
    ],
)
def test_an_older_source_type_is_replaced_unless_it_says_more(form: str) -> None:
    head = (
        '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description r:about=""'
        ' xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    )
    base = "http://cv.iptc.org/newscodes/digitalsourcetype/"
    for old, new in (("digitalCapture", xmp_room.SOURCE_TYPE), ("trainedAlgorithmicMedia",) * 2):
        packet = (head + form.format(base + old) + "</r:RDF>").encode()
        settled = xmp_room.settle(packet, ai_label=True, width=4, height=3)
        assert settled is not None
        assert xmp_room.source_type(settled) == (new if new.startswith("http") else base + new)


@pytest.mark.parametrize(
    "packet",
    [
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + XMP[XMP.index(b"<x:") :],
        b"<x>not closed",
        b"<x/>",
        b"",
        XMP.replace(b"</rdf:RDF>", b"<a>" * 3000 + b"</a>" * 3000 + b"</rdf:RDF>"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>').encode("utf-16"),
    ],
)
def test_hostile_or_broken_xmp_is_left_out_with_a_warning(tmp_path: Path, packet: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        xmp_room.check(packet)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.webp", xmp=packet or b"\0")
    photo = imagefile.read(tmp_path / "p.webp")
    assert photo.meta.xmp is None
    assert "XMP is damaged" in photo.meta.warnings[0]


def test_broken_exif_and_profile_are_left_out_with_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"x" * 300)
    photo = imagefile.read(tmp_path / "p.jpg")
    assert (photo.meta.exif, photo.meta.icc) == (None, None)
    told = " ".join(photo.meta.warnings)
    assert "the EXIF is damaged" in told
    assert "the ICC profile cannot be used" in told


def test_a_resolution_that_no_format_can_hold_is_left_out_with_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", dpi=(300, 300))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<II", data, exif_room.parse(bytes(data)).entries[282].at, 4_294_967_295, 1)
    (tmp_path / "a.tif").write_bytes(data)
    photo = imagefile.read(tmp_path / "a.tif")
    assert photo.meta.dpi is None
    assert "4,294,967,295 pixels per inch" in photo.meta.warnings[0]
    for suffix in (".tif", ".png", ".bmp"):
        imagefile.write(photo, tmp_path / f"b{suffix}")


def test_png_text_stays_and_a_comment_goes_along(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", "steps: 20\nsampler: x")
    notes.add_itxt("Title", "Brüssel")
    notes.add_text("Software", "scanner", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=notes)
    photo = imagefile.read(tmp_path / "a.png")
    assert dict(photo.meta.text) == {"parameters": "steps: 20\nsampler: x", "Title": "Brüssel", "Software": "scanner"}
    imagefile.write(photo, tmp_path / "b.png")
    assert imagefile.read(tmp_path / "b.png").meta.text == photo.meta.text
    Image.new("RGB", (8, 8)).save(tmp_path / "c.jpg", comment="hello")
    imagefile.write(imagefile.read(tmp_path / "c.jpg"), tmp_path / "d.jpg")
    assert imagefile.read(tmp_path / "d.jpg").meta.text == (("Comment", "hello"),)


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG with these chunks before its picture."""
    Image.new("RGB", (8, 8)).save(path)
    data = path.read_bytes()
    more = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    path.write_bytes(data[:33] + more + data[33:])
    return path


def test_texts_of_a_png_together_are_no_bomb(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(40 << 20))
    chunks = [(b"zTXt", f"note {number}".encode() + b"\0\0" + packed) for number in range(3)]
    photo = imagefile.read(png_with(tmp_path / "p.png", *chunks))
    assert [(key, len(value)) for key, value in photo.meta.text] == [("note 0", 40 << 20)]
    assert sum("the zTXt chunk is damaged and not kept (it grows beyond 64 MiB)" in w for w in photo.meta.warnings) == 2


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([(b"gAMA", struct.pack(">I", 60000)), (b"cHRM", struct.pack(">8I", *[30000] * 8))], "of no colour space"),
        ([(b"tEXt", b"Raw profile type iptc\0\niptc\n       6\n" + b"8BIM\x04\x04".hex().encode())], ""),
    ],
)
def test_senseless_chunks_of_a_png_cost_no_picture(
    tmp_path: Path, chunks: list[tuple[bytes, bytes]], words: str
) -> None:
    photo = imagefile.read(png_with(tmp_path / "p.png", *chunks))
    assert (photo.meta.icc, photo.meta.iptc) == (None, None)
    assert words in " ".join(photo.meta.warnings)


def test_what_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 4, 16))
    told = imagefile.write(photo, tmp_path / "p.jpg")
    assert [line.split(":")[0] for line in told] == ["16 bits became 8", "transparency was laid on white"]
    assert "XMP not kept" in " ".join(imagefile.write(photo, tmp_path / "p.bmp"))
    opaque = imagefile.from_array(np.dstack([smooth(8, 9, 3, 8), np.full((8, 9), 255, np.uint8)]))
    assert imagefile.write(opaque, tmp_path / "opaque.jpg", ai_label=False) == ()
    clear = imagefile.from_array(np.dstack([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)]))
    imagefile.write(clear, tmp_path / "white.bmp")
    assert imagefile.read(tmp_path / "white.bmp").raster.min() == 255


def test_too_long_metadata_for_jpeg_is_left_out_and_told(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    huge = XMP.replace(b"Tea", b"T" * 70000)
    exif = Image.Exif()
    exif[0x010E] = "x" * 70000
    text = (("Comment", "x" * 70000),)
    meta = replace(photo.meta, xmp=huge, exif=exif.tobytes(), iptc=bytes(70000), text=text)
    told = imagefile.write(replace(photo, meta=meta), tmp_path / "p.jpg")
    assert [line.split(" ")[1] for line in told] == ["EXIF", "XMP", "comment", "IPTC"]
    packet = imagefile.read(tmp_path / "p.jpg").meta.xmp
    assert packet is not None
    assert xmp_room.source_type(packet) == xmp_room.SOURCE_TYPE


def test_extended_xmp_of_a_jpeg_stays(tmp_path: Path) -> None:
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 9, 0) + b"<xml>more"
    segment = b"\xff\xe1" + struct.pack(">H", len(extended) + 2) + extended
    Image.fromarray(smooth(16, 16, 3, 8)).save(tmp_path / "a.jpg", xmp=XMP, extra=segment)
    imagefile.write(imagefile.read(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    assert segment in (tmp_path / "b.jpg").read_bytes()
    told = imagefile.write(imagefile.read(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert told == ("the extended XMP is not kept: PNG has no place for it",)


def test_a_comment_finds_room_beside_a_large_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60000
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    meta = replace(photo.meta, exif=exif.tobytes(), text=(("Comment", "y" * 60000),))
    assert imagefile.write(replace(photo, meta=meta), tmp_path / "p.jpg") == ()
    assert imagefile.read(tmp_path / "p.jpg").meta.text == meta.text


def test_photoshop_files_bring_their_metadata(tmp_path: Path) -> None:
    samples = smooth(12, 17, 3, 8)
    exif = exif_with(6)[6:]
    resources = b""
    for number, content in ((0x040F, DISPLAY_P3), (0x0404, IPTC), (0x0422, exif), (0x0424, XMP)):
        resources += b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + b"\0" * (len(content) % 2)
    data = b"8BPS" + struct.pack(">H6sHIIHH", 1, b"", 3, 12, 17, 8, 3) + struct.pack(">I", 0)
    data += struct.pack(">I", len(resources)) + resources + struct.pack(">IH", 0, 0)
    (tmp_path / "p.psd").write_bytes(data + np.moveaxis(samples, -1, 0).tobytes())
    photo = imagefile.read(tmp_path / "p.psd")
    np.testing.assert_array_equal(photo.raster, np.rot90(samples, -1))
    assert (photo.meta.icc, photo.meta.iptc, photo.meta.xmp) == (DISPLAY_P3, IPTC, XMP)
    assert photo.meta.exif is not None
    assert descriptive(photo.meta.exif)[0x010F] == "Kodak"
