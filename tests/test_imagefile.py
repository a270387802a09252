"""Files to photos and back: every format, depth and orientation, pictures of Pillow and arrays."""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from made_pictures import DISPLAY_P3, XMP, exif_with, smooth
from PIL import Image, ImageOps, JpegImagePlugin

from facefix import imagefile
from facefix.errors import PhotoUnreadable
from facefix.imagefile import exif as exif_room
from facefix.imagefile import xmp as xmp_room
from facefix.types import Box, Photo

tifffile = pytest.importorskip("tifffile")

LOSSLESS = (".png", ".tif", ".webp", ".bmp")

GRAY_PROFILE = imagecodecs.cms_profile("gray", gamma=1.8)


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
    both = np.dstack([gray, np.full_like(gray, 200)])
    tifffile.imwrite(tmp_path / "wa.tif", both, photometric="miniswhite", extrasamples=["unassalpha"], planarconfig=1)
    photo = imagefile.read(tmp_path / "wa.tif")
    np.testing.assert_array_equal(photo.raster[..., 0], 255 - gray)
    assert photo.alpha is not None
    assert (photo.alpha == 200).all()
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", gray, photometric="palette", colormap=table * 257)
    np.testing.assert_array_equal(imagefile.read(tmp_path / "p.tif").raster, table.T[gray])
    two, dots = table[:, :2], gray > 128
    bits = np.packbits(dots, axis=1).tobytes()
    told = {256: [30], 257: [20], 258: [1], 259: [1], 262: [3], 273: [8], 277: [1], 278: [20], 279: [len(bits)]}
    told[320] = (two * 257).ravel().tolist()
    page = exif_room.Directory("<", {tag: exif_room.entry("<", exif_room.SHORT, *told[tag]) for tag in told})
    at = 8 + len(bits)
    (tmp_path / "b.tif").write_bytes(b"II*\0" + struct.pack("<I", at) + bits + exif_room.serialise(page, at))
    np.testing.assert_array_equal(imagefile.read(tmp_path / "b.tif").raster, two.T[dots.astype(int)])
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


def test_large_scans_are_read_without_the_limit_of_pillow(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 52_000)
        for name in ("p.jpg", "p.png", "p.tif", "p.bmp", "p.webp"):
            imagefile.write(imagefile.from_array(smooth(1400, 100, 3, 8)), tmp_path / name)
            assert imagefile.read(tmp_path / name).height == 1400
    assert limit == Image.MAX_IMAGE_PIXELS


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


def test_photo_reads_boxes_through_its_profile(tmp_path: Path) -> None:
    Image.fromarray(smooth(20, 30, 3, 8)).save(tmp_path / "p.png", icc_profile=DISPLAY_P3)
    photo: Photo = imagefile.read(tmp_path / "p.png")
    np.testing.assert_array_equal(photo.pixels(Box(5, 6, 9, 8)), photo.pixels()[6:8, 5:9])
