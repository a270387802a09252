"""TIFF: its tags read and written here, entry by entry; libtiff decodes the pixels, libdeflate packs them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import imagecodecs
import numpy as np
from PIL import TiffImagePlugin

from facefix.imagefile import exif
from facefix.imagefile.found import Data, Found, SizeCheck, UndecodableError, opened, samples_of
from facefix.types import Raster

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _PLANAR, _COLOURS, _EXTRA, _FORMAT = 277, 284, 320, 338, 339
_XMP, _IPTC, _ICC, _DNG = 700, 33723, 34675, 50706
_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_JPEG, _DEFLATE, _DIFFERENCES = 7, 8, 2
_STRIP = 1 << 20  # bytes before packing
_LEVEL = 4
_LIMIT = (1 << 32) - (1 << 24)


def decode_tiff(data: Data, check: SizeCheck) -> Found:
    """What a TIFF's first page holds; raises UndecodableError."""
    view = memoryview(data)
    try:
        page = exif.parse(view)
    except ValueError as error:
        raise UndecodableError(f"the TIFF is damaged ({error})") from error
    finally:
        view.release()
    width, height = (*page.numbers(_WIDTH), 0)[0], (*page.numbers(_HEIGHT), 0)[0]
    if not (width and height):
        raise UndecodableError(f"expected at least one pixel, got {width}x{height}")
    check(width, height)
    if _DNG in page.entries or page.numbers(254, (0,))[0] & 1 or page.numbers(_PHOTOMETRIC, (1,))[0] > 32000:
        raise UndecodableError("a raw camera file or a page of previews; develop it to TIFF or JPEG first")
    found = Found("TIFF", np.zeros((0, 0), np.uint8))
    _read_pixels(found, data, page, check)
    found.icc, found.xmp, found.iptc = page.data(_ICC), page.data(_XMP), page.data(_IPTC)
    found.exif, found.dpi = exif.from_tiff(page), exif.dpi_in(page)
    if page.next:
        found.warnings.append("only the first page of the file is kept")
    return found


def _read_pixels(found: Found, data: Data, page: exif.Directory, check: SizeCheck) -> None:
    depths, photometric = set(page.numbers(_BITS, (1,))), page.numbers(_PHOTOMETRIC, (1,))[0]
    formats = set(page.numbers(_FORMAT, (1,)))
    if formats != {1} or len(depths) != 1 or max(depths) > 16:
        kind = {2: "signed", 3: "floating-point"}.get(max(formats), "unsigned")
        raise UndecodableError(
            f"expected 1 to 16 unsigned bits, got {max(depths)} {kind}; scale it to 16-bit integers first"
        )
    depth = max(depths)
    direct = photometric in (_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE) and depth in (1, 8, 16)
    if not direct and not (photometric == _YCBCR and page.numbers(_COMPRESSION, (1,))[0] == _JPEG):
        _through_pillow(found, bytes(data[:]), depth, check)
        return
    try:
        samples: Any = imagecodecs.tiff_decode(data)
    except (imagecodecs.TiffError, ValueError, IndexError) as error:
        raise UndecodableError(f"the picture is damaged, cut short, or packed in an unknown way ({error})") from error
    if samples.ndim == 3 and page.numbers(_PLANAR, (1,))[0] == 2:
        samples = np.ascontiguousarray(np.moveaxis(samples, 0, -1))
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * np.uint8(1 if photometric == _PALETTE else 255)
    if photometric == _WHITE_IS_0:
        light = samples if samples.ndim == 2 else samples[..., 0]  # but not what is beside it: alpha
        np.subtract(np.iinfo(samples.dtype).max, light, out=light)
    if photometric == _PALETTE:
        table = np.array(page.numbers(_COLOURS), np.uint16).reshape(3, -1).T
        samples = (table[samples] >> 8).astype(np.uint8)
    found.samples = _without_extras(found, samples, page)
    found.turn = _turn(page.numbers(_ORIENTATION, (1,))[0])


def _through_pillow(found: Found, data: bytes, depth: int, check: SizeCheck) -> None:
    """CMYK, YCbCr, LAB and odd depths."""
    if depth > 8:
        raise UndecodableError(f"expected 8 bits for a TIFF of this kind, got {depth}; convert it to 16-bit RGB first")
    image = opened("TIFF", data)
    check(*image.size)  # of a tag that stands there twice Pillow before 13 takes the last
    image.load()
    found.samples, found.cmyk = samples_of(image), image.mode == "CMYK"
    left = image.tag_v2.get(_ORIENTATION, 1) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
    found.turn = _turn(left)  # where Pillow has turned the picture already, it has taken the tag out


def _turn(value: int) -> int:
    return value if 1 <= value <= 8 else 1


def _without_extras(found: Found, samples: Raster, page: exif.Directory) -> Raster:
    """The samples with at most one channel beside the colours, and that unassociated alpha."""
    if samples.ndim == 2:
        return samples
    colours = 3 if samples.shape[2] >= 3 else 1
    extras = page.numbers(_EXTRA)
    kinds = extras or (0,) * (samples.shape[2] - colours)
    alpha = next((n for n, kind in enumerate(kinds) if kind in (1, 2)), None)
    if len(kinds) > (alpha is not None):
        found.warnings.append("further channels beside colour and alpha are not kept")
    if alpha is None:
        return samples[..., :colours]
    samples = np.concatenate([samples[..., :colours], samples[..., colours + alpha, None]], axis=2)
    return _unmultiplied(samples) if kinds[alpha] == 1 else samples


def _unmultiplied(samples: Raster) -> Raster:
    full = int(np.iinfo(samples.dtype).max)
    for top in range(0, len(samples), 256):
        band = samples[top : top + 256]
        alpha = np.maximum(band[..., -1:].astype(np.uint64), 1)
        band[..., :-1] = np.minimum((band[..., :-1] * np.uint64(full) + alpha // 2) // alpha, full)
    return samples


def write_tiff(
    file: BinaryIO,
    samples: Raster,
    *,
    icc: bytes | None,
    exif_block: bytes | None,
    xmp: bytes | None,
    iptc: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:
    """Nothing; the samples and metadata stand in the file as one TIFF page, deflated with horizontal differences.

    Args:
        file: open for writing, at its start.
        samples: (H, W) or (H, W, C) with C 2, 3 or 4; uint8 or uint16; alpha unassociated.
        icc: the profile.
        exif_block: the EXIF, with its prefix.
        xmp: the packet.
        iptc: the records.
        dpi: pixels per inch across and down.
    """
    page = exif.to_tiff(exif_block)
    order = page.order
    file.write((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    rows = max(1, _STRIP // max(1, samples[:1].nbytes))
    offsets, sizes = [], []
    for strip in _strips(samples, rows, order):
        offsets.append(file.tell())
        sizes.append(file.write(strip))
        if file.tell() > _LIMIT:
            raise ValueError("expected a TIFF below 4 GiB, got more; write PNG instead")
        file.write(b"\0" * (len(strip) & 1))
    _describe(page, samples, rows, offsets, sizes)
    for tag, kind, content in ((_XMP, exif.BYTE, xmp), (_IPTC, exif.UNDEFINED, iptc), (_ICC, exif.UNDEFINED, icc)):
        if content:
            page.entries[tag] = exif.Entry(kind, len(content), content)
    if dpi:
        for tag, value in ((282, dpi[0]), (283, dpi[1])):
            page.entries[tag] = exif.entry(order, exif.RATIONAL, round(value * 10000), 10000)
        page.entries[296] = exif.entry(order, exif.SHORT, 2)
    at = file.tell()
    file.write(exif.serialise(page, at))
    file.seek(4)
    file.write(struct.pack(order + "I", at))
    file.seek(0, 2)


def _strips(samples: Raster, rows: int, order: Literal["<", ">"]) -> Iterator[bytes]:
    for top in range(0, len(samples), rows):
        strip = samples[top : top + rows].copy()
        strip[:, 1:] -= samples[top : top + rows, :-1]
        yield bytes(
            imagecodecs.deflate_encode(strip.astype(strip.dtype.newbyteorder(order), copy=False).tobytes(), _LEVEL)
        )


def _describe(page: exif.Directory, samples: Raster, rows: int, offsets: list[int], sizes: list[int]) -> None:
    """Adds the entries that tell how the pixels lie."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    numbers: dict[int, tuple[int, ...]] = {
        _WIDTH: (samples.shape[1],),
        _HEIGHT: (samples.shape[0],),
        273: tuple(offsets),
        278: (rows,),
        279: tuple(sizes),
    }
    shorts: dict[int, tuple[int, ...]] = {
        _BITS: (samples.dtype.itemsize * 8,) * channels,
        _COMPRESSION: (_DEFLATE,),
        _PHOTOMETRIC: (_RGB if channels >= 3 else _BLACK_IS_0,),
        _ORIENTATION: (1,),
        _SAMPLES: (channels,),
        _PLANAR: (1,),
        317: (_DIFFERENCES,),
    }
    if channels in (2, 4):
        shorts[_EXTRA] = (2,)
    for kind, group in ((exif.LONG, numbers), (exif.SHORT, shorts)):
        for tag, values in group.items():
            page.entries[tag] = exif.entry(page.order, kind, *values)
