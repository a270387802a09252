"""Colour spaces: there and back within one level, and the same colours as Little CMS and Pillow's own engine."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from facefix import imagefile
from facefix.imagefile import colour
from facefix.types import PlainSRGB

WHITE = [0.3127, 0.329, 1]
PRIMARIES = {
    "srgb": [0.64, 0.33, 1, 0.3, 0.6, 1, 0.15, 0.06, 1],
    "p3": [0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1],
    "adobe": [0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1],
    "wide": [0.7347, 0.2653, 1, 0.1596, 0.8404, 1, 0.0366, 0.0001, 1],
}


def profile(primaries: str, gamma: float) -> bytes:
    made: bytes = imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=PRIMARIES[primaries], gamma=gamma)
    return made


def codes(bits: int, seed: int = 0) -> np.ndarray:
    """All corners, the dark end of every channel, greys, and colours at random."""
    rng = np.random.default_rng(seed)
    top = 2**bits - 1
    corners = np.stack(np.meshgrid(*[[0, 1, 2, top // 2, top - 1, top]] * 3), axis=-1).reshape(-1, 3)
    drawn = rng.integers(0, top + 1, (3000, 3))
    dark = rng.integers(0, top // 20, (1000, 3))
    grays = np.repeat(rng.integers(0, top + 1, (400, 1)), 3, axis=1)
    whole = np.concatenate([corners, drawn, dark, grays])
    return whole.astype(np.uint8 if bits == 8 else np.uint16).reshape(2, -1, 3)


def tables_profile(gamma: float, *, backward: bool = True) -> bytes:
    """An RGB profile of look-up tables (mft2, 17 nodes, Lab), as scanners have, made from a matrix profile.

    The chroma grows with the lightness, so that no three curves and a matrix can say the same.
    """
    grid = np.linspace(0, 1, 17)
    matrix = profile("p3", gamma)
    device = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1).reshape(1, -1, 3)
    lab2 = imagecodecs.cms_profile("lab2")
    kinds = {"colorspace": "rgb", "outcolorspace": "lab", "outdtype": np.float64, "intent": 1}
    lab = imagecodecs.cms_transform(device, matrix, lab2, **kinds)[0]
    lab[:, 1:] *= 0.8 + 0.2 * lab[:, :1] / 100
    forward = np.stack([lab[:, 0] / 100 * 65280, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=1)
    wanted = np.stack([device[0][:, 0]] + [device[0][:, c] * 255.996 - 128 for c in (1, 2)], axis=1)
    wanted[:, 0] *= 100 * 65535 / 65280
    kinds = {"colorspace": "lab", "outcolorspace": "rgb", "outdtype": np.float64, "intent": 1}
    back = imagecodecs.cms_transform(wanted[None], lab2, matrix, **kinds)[0] * 65535

    def table(nodes: np.ndarray) -> bytes:
        head = b"mft2\0\0\0\0" + struct.pack(">BBBB", 3, 3, 17, 0)
        head += struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))) + struct.pack(">HH", 2, 2)
        straight = struct.pack(">6H", *[0, 65535] * 3)
        body = np.clip(np.rint(nodes), 0, 65535).astype(">u2").tobytes()
        return head + straight + body + straight

    tags = [(b"A2B0", table(forward)), (b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061))]
    if backward:
        tags.append((b"B2A0", table(back)))
    at, listing, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += b"\0" * (-len(content) % 4)
        listing += name + struct.pack(">II", at + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + listing + data
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 128 + len(body), b"lcms", 0x02400000, b"scnr", b"RGB ", b"Lab ", b"", b"acsp"
    )
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + body


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("primaries", "gamma"), [("p3", 2.2), ("adobe", 563 / 256), ("wide", 1.8), ("srgb", 1.0)])
def test_there_and_back_is_within_one_level(bits: int, primaries: str, gamma: float) -> None:
    space, problem = colour.space(profile(primaries, gamma), bits=bits, gray=False)
    assert problem is None
    raster = codes(bits)
    pixels = space.to_srgb(raster)
    assert pixels.dtype == np.float32
    off = np.abs(space.from_srgb(pixels, bits).astype(int) - raster)
    # float32 cannot hold a channel near 0 beside one near 1 more finely than that: a tenth of an 8-bit level
    assert off.max() <= (0 if bits == 8 else 40)
    assert np.quantile(off, 0.85) <= 1


@pytest.mark.parametrize(("primaries", "gamma"), [("p3", 2.2), ("adobe", 563 / 256), ("wide", 1.8), ("srgb", 1.0)])
def test_same_colours_as_little_cms(primaries: str, gamma: float) -> None:
    icc = profile(primaries, gamma)
    raster = codes(16)
    got = colour.space(icc, bits=16, gray=False)[0].to_srgb(raster)
    kinds = {"colorspace": "rgb", "outcolorspace": "rgb", "outdtype": np.float64, "intent": 1}
    expected = imagecodecs.cms_transform(raster / 65535, icc, imagecodecs.cms_profile("srgb"), **kinds)
    inside = ((expected > 0) & (expected < 1)).all(axis=-1)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(got[inside], expected[inside], atol=3e-5)


def test_same_colours_as_pillow() -> None:
    raster = codes(8)
    icc = profile("p3", 2.2)
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    other = ImageCms.profileToProfile(
        Image.fromarray(raster), source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    assert other is not None
    got = np.clip(colour.space(icc, bits=8, gray=False)[0].to_srgb(raster), 0, 1) * 255
    assert np.abs(got - np.asarray(other)).max() <= 1.1


def test_colours_outside_srgb_are_not_clipped() -> None:
    space = colour.space(profile("p3", 2.2), bits=8, gray=False)[0]
    red = space.to_srgb(np.array([[[255, 0, 0]]], np.uint8))
    assert red.max() > 1.05
    assert red.min() < -0.05


@pytest.mark.parametrize("icc", [None, imagecodecs.cms_profile("srgb")])
def test_srgb_is_plain(icc: bytes | None) -> None:
    assert isinstance(colour.space(icc, bits=8, gray=False)[0], PlainSRGB)
    raster = codes(8)
    space = colour.space(icc, bits=8, gray=False)[0]
    np.testing.assert_array_equal(space.from_srgb(space.to_srgb(raster), 8), raster)


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_look_up_tables_come_back_too(backward: bool, bits: int) -> None:
    icc = tables_profile(2.2, backward=backward)
    space, problem = colour.space(icc, bits=bits, gray=False)
    assert problem is None
    assert isinstance(space, colour._Tables)
    raster = np.maximum(codes(bits), 2**bits // 20)  # below, the 16-bit Lab of such tables has no steps left
    off = np.abs(space.from_srgb(space.to_srgb(raster), bits).astype(int) - raster)
    assert off.max() <= (1 if bits == 8 else 128)  # half an 8-bit level: the tables themselves are rounded


def test_curve_and_matrix_agree_with_the_general_way() -> None:
    icc = profile("adobe", 2.2)
    fast, slow = colour.space(icc, bits=8, gray=False)[0], colour._Tables(icc)
    raster = codes(8)
    np.testing.assert_allclose(fast.to_srgb(raster), slow.to_srgb(raster), atol=5e-5)
    np.testing.assert_array_equal(slow.from_srgb(slow.to_srgb(raster), 8), raster)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "icc", [None, imagecodecs.cms_profile("gray", gamma=1.8), profile("p3", 2.2)], ids=["none", "gray", "rgb"]
)
def test_gray_files_stay_gray(bits: int, icc: bytes | None) -> None:
    space, problem = colour.space(icc, bits=bits, gray=True)
    assert problem is None
    ramp = np.linspace(0, 2**bits - 1, 1024).astype(np.uint8 if bits == 8 else np.uint16)
    raster = np.repeat(ramp[None, :, None], 3, axis=2)
    pixels = space.to_srgb(raster)
    off = np.abs(space.from_srgb(pixels, bits).astype(int) - raster)
    assert off.max() <= 1
    coloured = pixels * np.array([1.2, 1.0, 0.6], np.float32)
    back = space.from_srgb(coloured, bits)
    np.testing.assert_array_equal(back[..., 0], back[..., 1])
    np.testing.assert_array_equal(back[..., 0], back[..., 2])


def test_gray_profile_is_the_curve_it_says() -> None:
    space = colour.space(imagecodecs.cms_profile("gray", gamma=1.8), bits=16, gray=True)[0]
    ramp = np.linspace(0, 65535, 50).astype(np.uint16)
    pixels = space.to_srgb(np.repeat(ramp[None, :, None], 3, axis=2))
    expected = colour.encode_srgb((ramp / 65535) ** 1.8)
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=2e-4)


def test_srgb_curve_is_its_own_inverse() -> None:
    values = np.linspace(-1, 2, 3001)
    np.testing.assert_allclose(colour.encode_srgb(colour.decode_srgb(values)), values, atol=1e-7)
    np.testing.assert_allclose(colour.encode_srgb(np.array([0.18, 1.0, -0.18])), [0.461356, 1, -0.461356], atol=1e-5)


@pytest.mark.parametrize(
    ("icc", "gray", "words"),
    [
        (b"junk", False, "not a profile"),
        (profile("p3", 2.2)[:300], False, "cannot be used"),
        (imagecodecs.cms_profile("gray", gamma=2.2), False, "for gray, the picture is RGB"),
        (imagecodecs.cms_profile("lab2"), False, "for Lab"),
        (profile("p3", 2.2)[:128] + b"\0" * 400, True, "cannot be used"),
    ],
)
def test_unusable_profiles_are_named_and_taken_as_srgb(icc: bytes, gray: bool, words: str) -> None:
    space, problem = colour.space(icc, bits=8, gray=gray)
    assert problem is not None
    assert words in problem
    assert "\n" not in problem
    assert space.to_srgb(np.full((1, 1, 3), 51, np.uint8))[0, 0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_without_profile_is_no_negative(tmp_path: Path, adobe: bool, bits: int) -> None:
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    expected = np.array([[[255] * 3, [0, 255, 255], [255, 0, 0], [0] * 3, [127] * 3]])
    if bits == 16:
        raster, problem = colour.srgb_from_cmyk(ink.astype(np.uint16) * 257, None)
        np.testing.assert_allclose(raster / 257, expected, atol=1)
        assert problem is None
        return
    whole = np.repeat(np.repeat(ink, 16, axis=0), 16, axis=1)
    path = tmp_path / ("p.jpg" if adobe else "p.tif")
    Image.frombytes("CMYK", whole.shape[1::-1], whole.tobytes()).save(path, **({"quality": 100} if adobe else {}))
    photo = imagefile.read(path)
    assert np.abs(photo.raster[8, 8::16].astype(int) - expected[0]).max() <= 3
    assert any("CMYK" in line for line in photo.meta.warnings)
    imagefile.write(photo, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.mode == "RGB"


def cmyk_profile() -> bytes:
    """A press profile (mft2, 9 nodes, Lab) whose paper is yellowish and whose inks are a bit dirty."""
    grid = np.linspace(0, 1, 9)
    ink = np.stack(np.meshgrid(grid, grid, grid, grid, indexing="ij"), axis=-1).reshape(1, -1, 4)
    light = (1 - 0.95 * ink[..., :3]) * (1 - 0.9 * ink[..., 3:]) * np.array([1, 0.98, 0.9])
    kinds = {"colorspace": "rgb", "outcolorspace": "lab", "outdtype": np.float64, "intent": 1}
    lab = imagecodecs.cms_transform(light, imagecodecs.cms_profile("srgb"), imagecodecs.cms_profile("lab2"), **kinds)[0]
    nodes = np.stack([lab[:, 0] / 100 * 65280, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=1)
    table = b"mft2\0\0\0\0" + struct.pack(">BBBB", 4, 3, 9, 0)
    table += struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))) + struct.pack(">HH", 2, 2)
    table += struct.pack(">8H", *[0, 65535] * 4) + np.rint(nodes).astype(">u2").tobytes()
    table += struct.pack(">6H", *[0, 65535] * 3)
    table += b"\0" * (-len(table) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    body = struct.pack(">I", 2) + b"A2B0" + struct.pack(">II", 156, len(table))
    body += b"wtpt" + struct.pack(">II", 156 + len(table), 20) + table + b"XYZ \0\0\0\0" + white
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 128 + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"", b"acsp"
    )
    return head.ljust(68, b"\0") + white.ljust(60, b"\0") + body


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_goes_through_its_profile(bits: int) -> None:
    ink = np.array([[[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0.5, 0.5, 0, 0.25]]])
    samples = np.rint(ink * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    raster, problem = colour.srgb_from_cmyk(samples, cmyk_profile())
    assert problem is None
    assert raster.dtype == samples.dtype
    expected = (1 - 0.95 * ink[..., :3]) * (1 - 0.9 * ink[..., 3:]) * np.array([1, 0.98, 0.9])
    assert np.abs(raster / (2**bits - 1) - expected)[0, 1:3].max() < 0.01
    assert raster[0, 0].min() == 2**bits - 1  # bare paper is white
    assert raster[0, 3].max() < 0.12 * 2**bits


def test_cmyk_jpeg_with_profile_is_written_as_plain_srgb(tmp_path: Path) -> None:
    whole = np.zeros((32, 32, 4), np.uint8)
    whole[:16, :, 1:3] = 255
    picture = Image.frombytes("CMYK", (32, 32), whole.tobytes())
    picture.save(tmp_path / "p.jpg", quality=95, icc_profile=cmyk_profile())
    photo = imagefile.read(tmp_path / "p.jpg")
    assert photo.raster[4, 4, 0] > 200 > 60 > photo.raster[4, 4, 1]
    assert photo.raster[28, 28].min() > 200
    assert photo.meta.icc is None
    assert isinstance(photo.colour, PlainSRGB)


def test_cmyk_with_a_profile_that_is_none() -> None:
    raster, problem = colour.srgb_from_cmyk(np.zeros((2, 2, 4), np.uint8), profile("p3", 2.2))
    assert raster.min() == 255
    assert problem is not None
    assert "for rgb, the picture is CMYK" in problem


def test_lab_tiffs_are_understood(tmp_path: Path) -> None:
    lab = np.zeros((4, 8, 3), np.uint8)
    lab[:, :4, 0], lab[:, 4:] = 255, (138, 81, 70)  # white, and sRGB's red
    Image.frombytes("LAB", (8, 4), lab.tobytes()).save(tmp_path / "p.tif")
    photo = imagefile.read(tmp_path / "p.tif")
    assert photo.raster[0, 0].min() >= 254
    assert photo.raster[0, 7].tolist() == pytest.approx([255, 0, 0], abs=12)


def test_png_gamma_becomes_a_profile(tmp_path: Path) -> None:
    samples = codes(8)
    Image.fromarray(samples).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    for gamma, plain in ((45455, True), (100000, False)):
        chunk = b"gAMA" + struct.pack(">I", gamma)
        chunk = struct.pack(">I", 4) + chunk + struct.pack(">I", __import__("zlib").crc32(chunk))
        (tmp_path / "g.png").write_bytes(data[:33] + chunk + data[33:])
        photo = imagefile.read(tmp_path / "g.png")
        assert isinstance(photo.colour, PlainSRGB) == plain
        np.testing.assert_array_equal(photo.raster, samples)
        if not plain:
            linear = colour.encode_srgb(samples / 255)
            np.testing.assert_allclose(photo.pixels(), linear, atol=2e-3)
            imagefile.write(photo, tmp_path / "h.png")
            np.testing.assert_allclose(imagefile.read(tmp_path / "h.png").pixels(), photo.pixels(), atol=1e-6)


@pytest.mark.parametrize("primaries", PRIMARIES)
def test_look_ups_for_8_bits_agree_with_the_exact_way(primaries: str) -> None:
    fast = colour.space(profile(primaries, 1.9), bits=8, gray=False)[0]
    assert isinstance(fast, colour._Curves8)
    exact = colour._Curves(fast._curves, fast._matrix)
    raster = codes(8)
    np.testing.assert_allclose(fast.to_srgb(raster), exact.to_srgb(raster), atol=4e-5)
    pixels = np.random.default_rng(3).uniform(-0.6, 1.4, (60, 70, 3)).astype(np.float32)
    off = np.abs(fast.from_srgb(pixels, 8).astype(int) - exact.from_srgb(pixels, 8))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01
    np.testing.assert_array_equal(fast.from_srgb(pixels, 16), exact.from_srgb(pixels, 16))


def test_gray_of_takes_luma_where_channels_differ() -> None:
    even = np.full((3, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(colour.gray_of(even), even[..., 0])
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 200
    assert colour.gray_of(red)[0, 0] == round(0.2126 * 200)
