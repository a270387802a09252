"""Files to photos and back: every format, depth, orientation and piece of metadata, and files that are broken."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from facefix import imagefile
from facefix.errors import PhotoError, PhotoRefused, PhotoUnreadable, PhotoUnwritable
from facefix.imagefile import exif as exif_room
from facefix.imagefile import xmp as xmp_room
from facefix.types import Box, Meta, Photo

tifffile = pytest.importorskip("tifffile")

BAD = Path(__file__).parents[1].parent / "shared" / "badinputs"
LOSSLESS = (".png", ".tif", ".webp", ".bmp")
DISPLAY_P3 = imagecodecs.cms_profile(
    "rgb", whitepoint=[0.3127, 0.329, 1], primaries=[0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1], gamma=2.2
)
GRAY_PROFILE = imagecodecs.cms_profile("gray", gamma=1.8)
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="uuid:7"'
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6">'
    b"<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>Tea &amp; cake</rdf:li></rdf:Alt></dc:title>"
    b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x78\x00\x05Solva"


def smooth(height: int, width: int, channels: int, bits: int) -> np.ndarray:
    """A picture that JPEG keeps well, with no symmetry that a wrong turn could hide behind."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [0.5 + 0.4 * np.sin(x / (9 + 5 * c) + y / (31 - 4 * c) + c) for c in range(channels)]
    waves = [w * (0.4 + 0.6 * x / width) for w in waves]
    whole = np.rint(np.stack(waves, axis=-1) * (2**bits - 1))
    return whole.astype(np.uint8 if bits == 8 else np.uint16)


def exif_with(orientation: int, thumbnail: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8298] = "Kodak", orientation, "public domain"
    exif[0x8769] = {0x9003: "1927:10:29 11:00:00", 0xA002: 7, 0xA003: 9, 0x927C: b"maker\0note"}
    exif[0x8825] = {1: "N", 2: (50.0, 50.0, 8.0)}
    block = exif.tobytes()
    if not thumbnail:
        return block
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    bare = bytearray(block[6:])
    first = exif_room.parse(bytes(bare))
    bare += b"\0" * (len(bare) % 2)
    struct.pack_into(first.order + "I", bare, first.next_at, len(bare))
    second = exif_room.Directory(first.order)
    begin = len(bare) + 2 + 2 * 12 + 4
    second.entries = {
        0x0201: exif_room.entry(first.order, exif_room.LONG, begin),
        0x0202: exif_room.entry(first.order, exif_room.LONG, len(jpeg.getvalue())),
    }
    return exif_room.PREFIX + bytes(bare) + exif_room.serialise(second, len(bare)) + jpeg.getvalue()


def descriptive(block: bytes) -> dict[int, Any]:
    exif = Image.Exif()
    exif.load(block)
    return {**exif, 0x8769: exif.get_ifd(0x8769), 0x8825: exif.get_ifd(0x8825)}


def tree(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("profiled", [False, True])
def test_depth_channels_and_profile_come_back(
    tmp_path: Path, suffix: str, bits: int, channels: int, profiled: bool
) -> None:
    photo = imagefile.from_array(smooth(37, 53, channels, bits))
    icc = (GRAY_PROFILE if channels <= 2 else DISPLAY_P3) if profiled else None
    photo = replace(photo, meta=replace(photo.meta, icc=icc, dpi=(300.0, 150.0)))
    assert imagefile.write(photo, tmp_path / f"p{suffix}") == ()
    back = imagefile.read(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(back.raster, photo.raster)
    assert (back.alpha is None) == (channels in (1, 3))
    if photo.alpha is not None:
        np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert (back.meta.bits, back.meta.gray, back.meta.icc) == (bits, channels <= 2, icc)
    assert back.meta.dpi == pytest.approx((300, 150), abs=0.02)
    assert back.meta.warnings == ()


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bits_come_back_from_every_lossless_format(tmp_path: Path, suffix: str, channels: int) -> None:
    photo = imagefile.from_array(smooth(20, 31, channels, 8))
    imagefile.write(photo, tmp_path / f"p{suffix}", ai_label=False)
    back = imagefile.read(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(back.raster, photo.raster)
    with Image.open(tmp_path / f"p{suffix}") as other:
        np.testing.assert_array_equal(np.asarray(other.convert("RGB")), photo.raster)


def test_written_sixteen_bit_tiff_is_what_another_reader_sees(tmp_path: Path) -> None:
    samples = smooth(300, 700, 4, 16)
    imagefile.write(imagefile.from_array(samples), tmp_path / "p.tiff")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tiff"), samples)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "tile": (16, 16)},
        {"bigtiff": True},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
def test_sixteen_bit_tiffs_of_other_writers(tmp_path: Path, options: dict[str, Any]) -> None:
    samples = smooth(40, 50, 3, 16)
    given = np.moveaxis(samples, -1, 0) if "planarconfig" in options else samples
    tifffile.imwrite(tmp_path / "p.tif", given, photometric="rgb", **options)
    np.testing.assert_array_equal(imagefile.read(tmp_path / "p.tif").raster, samples)


def test_white_is_zero_palettes_and_premultiplied_alpha(tmp_path: Path) -> None:
    gray = smooth(20, 30, 1, 8)[..., 0]
    tifffile.imwrite(tmp_path / "w.tif", gray, photometric="miniswhite")
    np.testing.assert_array_equal(imagefile.read(tmp_path / "w.tif").raster[..., 0], 255 - gray)
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", gray, photometric="palette", colormap=table * 257)
    np.testing.assert_array_equal(imagefile.read(tmp_path / "p.tif").raster, table.T[gray])
    colours, alpha = smooth(20, 30, 3, 16), np.full((20, 30, 1), 32768, np.uint16)
    multiplied = np.rint(colours * (alpha / 65535)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([multiplied, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(imagefile.read(tmp_path / "a.tif").raster.astype(int) - colours).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does_and_set_to_1(tmp_path: Path, suffix: str, orientation: int) -> None:
    picture = Image.fromarray(smooth(24, 40, 3, 8))
    options: dict[str, Any] = {"exif": exif_with(orientation), "quality": 95}
    picture.save(tmp_path / f"in{suffix}", **options | ({"lossless": True} if suffix == ".webp" else {}))
    photo = imagefile.read(tmp_path / f"in{suffix}")
    with Image.open(tmp_path / f"in{suffix}") as other:
        expected = np.asarray(ImageOps.exif_transpose(other).convert("RGB"))
    np.testing.assert_array_equal(photo.raster, expected)
    imagefile.write(photo, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as written:
        assert written.getexif().get(0x0112, 1) == 1
        assert written.size == (photo.width, photo.height)
    again = imagefile.read(tmp_path / f"out{suffix}")
    assert np.abs(again.raster.astype(int) - photo.raster).max() <= (12 if suffix == ".jpg" else 0)


def test_orientation_of_xmp_counts_where_there_is_no_exif(tmp_path: Path) -> None:
    Image.fromarray(smooth(24, 40, 3, 8)).save(tmp_path / "p.jpg", xmp=XMP)
    photo = imagefile.read(tmp_path / "p.jpg")
    assert (photo.width, photo.height) == (24, 40)
    assert photo.meta.xmp is not None
    packet = xmp_room.settle(photo.meta.xmp, ai_label=False, width=24, height=40)
    assert packet is not None
    assert xmp_room.orientation(packet) == 1


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


@pytest.mark.parametrize("quality", [30, 75, 92])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_tables_and_subsampling_are_the_sources(tmp_path: Path, quality: int, subsampling: int, mode: str) -> None:
    picture = Image.fromarray(smooth(40, 56, 3, 8)).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    photo = imagefile.read(tmp_path / "a.jpg")
    imagefile.write(photo, tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as old, Image.open(tmp_path / "b.jpg") as new:
        assert isinstance(old, JpegImagePlugin.JpegImageFile)
        assert isinstance(new, JpegImagePlugin.JpegImageFile)
        assert new.quantization == old.quantization
        assert new.mode == old.mode
        assert JpegImagePlugin.get_sampling(new) == JpegImagePlugin.get_sampling(old)


def test_jpeg_from_another_format_is_fine_and_full_chroma(tmp_path: Path) -> None:
    imagefile.write(imagefile.from_array(smooth(40, 56, 3, 16)), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as new:
        assert isinstance(new, JpegImagePlugin.JpegImageFile)
        assert JpegImagePlugin.get_sampling(new) == 0
        assert max(new.quantization[0]) <= 12


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


def test_what_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 4, 16))
    told = imagefile.write(photo, tmp_path / "p.jpg")
    assert [line.split(":")[0] for line in told] == ["16 bits became 8", "transparency was laid on white"]
    assert "XMP not kept" in " ".join(imagefile.write(photo, tmp_path / "p.bmp"))
    clear = imagefile.from_array(np.dstack([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)]))
    imagefile.write(clear, tmp_path / "white.bmp")
    assert imagefile.read(tmp_path / "white.bmp").raster.min() == 255


def test_too_long_metadata_for_jpeg_is_left_out_and_told(tmp_path: Path) -> None:
    photo = imagefile.from_array(smooth(8, 9, 3, 8))
    huge = XMP.replace(b"Tea", b"T" * 70000)
    exif = Image.Exif()
    exif[0x010E] = "x" * 70000
    told = imagefile.write(replace(photo, meta=replace(photo.meta, xmp=huge, exif=exif.tobytes())), tmp_path / "p.jpg")
    assert [line.split(" ")[1] for line in told] == ["EXIF", "XMP"]
    packet = imagefile.read(tmp_path / "p.jpg").meta.xmp
    assert packet is not None
    assert xmp_room.source_type(packet) == xmp_room.SOURCE_TYPE


def test_extended_xmp_of_a_jpeg_stays(tmp_path: Path) -> None:
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 9, 0) + b"<xml>more"
    segment = b"\xff\xe1" + struct.pack(">H", len(extended) + 2) + extended
    Image.fromarray(smooth(16, 16, 3, 8)).save(tmp_path / "a.jpg", xmp=XMP, extra=segment)
    imagefile.write(imagefile.read(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    assert segment in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".gif", "P"), (".gif", "L"), (".avif", "RGB"), (".avif", "RGBA"), (".jp2", "RGB"), (".jp2", "L")],
)
def test_formats_that_are_only_read(tmp_path: Path, suffix: str, mode: str) -> None:
    picture = Image.fromarray(smooth(40, 56, 3, 8)).convert(mode)
    picture.save(tmp_path / f"p{suffix}", **({"quality": 100} if suffix == ".avif" else {}))
    photo = imagefile.read(tmp_path / f"p{suffix}")
    assert np.abs(photo.raster.astype(int) - np.asarray(picture.convert("RGB"))).max() <= 24
    assert imagefile.suffix_for(photo.meta) == ".png"
    assert imagefile.holds_format(f"x{suffix.upper()}", photo.meta)
    assert not imagefile.holds_format("x.png", photo.meta)


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


def test_photos_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    Image.fromarray(smooth(20, 30, 3, 8)).save(tmp_path / "p.png", icc_profile=DISPLAY_P3)
    photo = imagefile.read(tmp_path / "p.png")
    again = pickle.loads(pickle.dumps(photo))
    np.testing.assert_array_equal(again.pixels(), photo.pixels())
    assert again.meta == photo.meta


def test_first_frame_of_animations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue", "green")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        photo = imagefile.read(tmp_path / name)
        assert photo.raster[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
        assert any("first" in line for line in photo.meta.warnings)


def test_sixteen_bit_jpeg_2000_and_heic(tmp_path: Path) -> None:
    samples = smooth(40, 56, 3, 16)
    (tmp_path / "p.jp2").write_bytes(imagecodecs.jpeg2k_encode(samples, 0))
    np.testing.assert_array_equal(imagefile.read(tmp_path / "p.jp2").raster, samples)
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_bytes(mode="RGB;16", size=(56, 40), data=samples.tobytes())
    heif.save(tmp_path / "p.heic", quality=-1)
    photo = imagefile.read(tmp_path / "p.heic")
    assert photo.meta.bits == 16
    assert np.abs(photo.raster.astype(int) - samples).max() < 1200
    turned = pillow_heif.from_pillow(Image.fromarray(smooth(40, 56, 3, 8)))
    turned.info["exif"] = exif_with(6)
    turned.save(tmp_path / "q.heic", quality=95)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pillow_heif", None)
        with pytest.raises(PhotoUnreadable, match=r"facefix\[heif\]"):
            imagefile.read(tmp_path / "p.heic")


def test_heic_orientation_is_applied_once(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.fromarray(smooth(40, 56, 3, 8)))
    heif.save(tmp_path / "p.heic", quality=95, exif=exif_with(6))
    photo = imagefile.read(tmp_path / "p.heic")
    with_plugin = pillow_heif.open_heif(tmp_path / "p.heic")
    assert (photo.width, photo.height) == with_plugin.size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "RGBX", "HSV"])
def test_pillow_images_of_every_mode(mode: str) -> None:
    picture = Image.fromarray(smooth(20, 30, 3, 8))
    picture = Image.fromarray(smooth(20, 30, 1, 16)[..., 0]) if mode == "I;16" else picture.convert(mode)
    photo = imagefile.from_pil(picture)
    assert photo.meta.gray == (mode in ("1", "L", "LA", "I;16"))
    if mode == "I;16":
        np.testing.assert_array_equal(photo.raster[..., 0], np.asarray(picture))
    else:
        assert np.abs(photo.raster.astype(int) - np.asarray(picture.convert("RGB"))).max() <= 1
    returned = imagefile.to_pil(photo)
    assert returned.size == picture.size


def test_pillow_images_bring_their_info_and_take_it_along() -> None:
    stream = io.BytesIO()
    Image.fromarray(smooth(20, 30, 3, 8)).save(stream, "JPEG", exif=exif_with(6), icc_profile=DISPLAY_P3, dpi=(99, 99))
    with Image.open(stream) as opened:
        photo = imagefile.from_pil(opened)
    assert (photo.width, photo.height, photo.meta.icc, photo.meta.format) == (20, 30, DISPLAY_P3, "JPEG")
    returned = imagefile.to_pil(photo)
    assert returned.info["icc_profile"] == DISPLAY_P3
    again = imagefile.from_pil(returned)
    np.testing.assert_array_equal(again.raster, photo.raster)
    assert again.meta.icc == DISPLAY_P3


def test_pillow_images_of_32_bits_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(PhotoUnreadable, match="16-bit integers"):
            imagefile.from_pil(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_, np.uint32])
def test_arrays_of_other_types_are_refused_with_advice(dtype: Any) -> None:
    with pytest.raises(PhotoUnreadable, match=r"expected uint8 or uint16, got .*65535"):
        imagefile.from_array(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 5), (2, 4, 4, 3), (0, 4, 3), (4, 4, 0)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PhotoUnreadable, match="expected an array"):
        imagefile.from_array(np.zeros(shape, np.uint8))


def test_arrays_are_copied_and_views_and_byte_orders_understood() -> None:
    array = smooth(6, 8, 3, 16)
    photo = imagefile.from_array(array[::-1, :, ::-1].astype(">u2"))
    np.testing.assert_array_equal(photo.raster, array[::-1, :, ::-1])
    plain = np.zeros((4, 4, 3), np.uint8)
    photo = imagefile.from_array(plain)
    plain[:] = 9
    assert photo.raster.max() == 0
    assert not photo.raster.flags.writeable


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


def test_large_scans_are_read_without_the_limit_of_pillow(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 52_000)
        for name in ("p.jpg", "p.png", "p.tif", "p.bmp", "p.webp"):
            imagefile.write(imagefile.from_array(smooth(1400, 100, 3, 8)), tmp_path / name)
            assert imagefile.read(tmp_path / name).height == 1400
    assert limit == Image.MAX_IMAGE_PIXELS


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


def test_large_tiffs_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = smooth(40, 50, 3, 16)
    imagefile.write(imagefile.from_array(samples), tmp_path / "p.tif")
    monkeypatch.setattr(imagefile, "_MAP_FROM", 1)
    np.testing.assert_array_equal(imagefile.read(tmp_path / "p.tif").raster, samples)
    Image.fromarray(smooth(40, 50, 3, 8)).convert("CMYK").save(tmp_path / "c.tif")
    assert imagefile.read(tmp_path / "c.tif").width == 50
    (tmp_path / "d.tif").write_bytes((tmp_path / "p.tif").read_bytes()[:500])
    with pytest.raises(PhotoUnreadable, match="damaged"):
        imagefile.read(tmp_path / "d.tif")


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
    with pytest.raises(PhotoUnwritable, match="could not be written"):
        imagefile.write(imagefile.from_array(np.zeros((1, 70000, 3), np.uint8)), tmp_path / "wide.jpg")
    assert tree(tmp_path) == set()


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


def test_photo_reads_boxes_through_its_profile(tmp_path: Path) -> None:
    Image.fromarray(smooth(20, 30, 3, 8)).save(tmp_path / "p.png", icc_profile=DISPLAY_P3)
    photo: Photo = imagefile.read(tmp_path / "p.png")
    np.testing.assert_array_equal(photo.pixels(Box(5, 6, 9, 8)), photo.pixels()[6:8, 5:9])
