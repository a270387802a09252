"""File formats to samples: what a file holds, as it lies there, with everything it says about itself.

The content decides the format, never the name. The size is checked from the header before anything is decoded.
JPEG, PNG and TIFF are decoded by libjpeg-turbo, libpng and libtiff straight into one array (through imagecodecs), which
keeps all 16 bits and no second copy; the other formats come through Pillow or its HEIF plugin.
"""

from __future__ import annotations

import importlib
import io
import struct

import imagecodecs
import numpy as np
from PIL import Image, JpegImagePlugin

from facefix.imagefile import exif, xmp
from facefix.imagefile.found import Data, Found, SizeCheck, UndecodableError, dpi_of, from_image, opened, stretched
from facefix.imagefile.png import decode_png
from facefix.imagefile.tiff import decode_tiff
from facefix.types import Raster

_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_IPTC_RESOURCE, _EXIF_RESOURCE, _XMP_RESOURCE = 0x0404, 0x0422, 0x0424
_RAW = "a raw camera file; develop it to TIFF or JPEG first"
_MOST_DPI = 400_000  # four times a microscope's; a TIFF cannot hold much more


def decode(data: Data, check: SizeCheck) -> Found:
    """What the data hold.

    Args:
        data: the whole file.
        check: called with (width, height) before decoding; raises where that is too large.

    Raises:
        UndecodableError: the data are no picture, a kind that is not supported, or damaged.
    """
    form = sniff(bytes(data[:64]))
    if form == "JPEG":
        return _jpeg(bytes(data), check)
    if form == "PNG":
        return decode_png(bytes(data), check)
    if form == "TIFF":
        return decode_tiff(data, check)
    if form == "HEIF":
        return _heif(bytes(data), check)
    if form == "WEBP" and b"ANIM" not in data[12:64]:
        return _webp(bytes(data), check)
    return _pillow(form, bytes(data), check)


def sniff(head: bytes) -> str:
    """The format that a file's first 64 bytes announce, in Pillow's names; UndecodableError for any other."""
    for magic, form in _MAGIC:
        if head.startswith(magic):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, len(head) - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"}:
            return "HEIF"
        if head[8:12] == b"crx ":
            raise UndecodableError(_RAW)
    raise UndecodableError(
        f"expected a picture, got {_named(head)}; give a JPEG, PNG, TIFF, WebP or another picture file"
    )


_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"8BPS", "PSD"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
)


def _named(head: bytes) -> str:
    start = head.lstrip().lower()
    for known, name in (
        (b"", "an empty file" if not head else ""),
        (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
        (b"<!doctype html", "a web page"),
        (b"<html", "a web page"),
        (b"<svg", "an SVG drawing"),
        (b"%pdf", "a PDF"),
        (b"%!ps", "a PostScript file"),
        (b"pk\x03\x04", "a ZIP archive"),
        (b"\xff\x0a", "JPEG XL, which is not supported"),
        (b"\0\0\0\x0cjxl ", "JPEG XL, which is not supported"),
    ):
        if name and start.startswith(known):
            return name
    if not any(head):
        return "nothing but zeros"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "text"
    return f"unknown data (beginning {head[:8].hex(' ')})"


def _jpeg(data: bytes, check: SizeCheck) -> Found:
    cut = "the file is cut short before the picture begins"
    if b"\xff\xda" not in data:  # of a disk's zeros after the first bytes Pillow would look at each
        raise UndecodableError(cut)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    check(*image.size)
    body = image.fp.tell() if image.fp is not None else 0
    if len(data) - body < 3:
        raise UndecodableError(cut)
    samples: Raster = imagecodecs.jpeg8_decode(data)
    info = image.info
    found = Found("JPEG", samples, lossless=False, icc=info.get("icc_profile"), exif=info.get("exif"))
    if samples.ndim == 3 and samples.shape[2] == 4:
        found.cmyk = True
        if "adobe" in info:  # Adobe stores light, not ink
            np.subtract(255, samples, out=samples)
    found.xmp = info.get("xmp")
    found.iptc = info.get("photoshop", {}).get(_IPTC_RESOURCE)
    found.dpi = dpi_of(info) if info.get("jfif_unit") in (1, 2) else None
    found.jpeg_tables, found.jpeg_subsampling = _tables(image), max(0, JpegImagePlugin.get_sampling(image))
    found.xmp_extended = tuple(s for _, s in image.applist if s.startswith(_EXTENDED_XMP))
    if comment := info.get("comment"):
        found.text = (("Comment", comment.decode("utf-8", "replace")),)
    if data.find(b"\xff\xd9", body) < 0:
        found.warnings.append("the file is cut short; the part that is missing is plain grey")
    if "mp" in info:
        found.warnings.append("further pictures in the file (gain map, depth or preview) are not kept")
    if any(name == "APP11" and b"jumb" in segment[:64] for name, segment in image.applist):
        found.warnings.append("Content Credentials (C2PA) are not kept; they vouch for the file as it was")
    return found


def _tables(image: JpegImagePlugin.JpegImageFile) -> tuple[tuple[int, ...], ...] | None:
    """The quantisation tables for luma and chroma: of each, the finest that any component uses."""
    used = [image.quantization.get(layer[3]) for layer in image.layer]
    known = [table for table in used if table is not None and len(table) == 64]
    if not known or len(known) < len(used):
        return None
    mixed = image.info.get("adobe_transform") == 0 or [layer[0] for layer in image.layer] == [82, 71, 66]
    groups = [known] if len(known) == 1 or mixed else [known[:1], known[1:3]]
    return tuple(tuple(min(values) for values in zip(*group, strict=True)) for group in groups)


def _webp(data: bytes, check: SizeCheck) -> Found:
    """A still WebP; animated ones come through Pillow, which refuses more than 179 megapixels."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    lossless = b"VP8L" in chunks
    body = chunks.get(b"VP8L" if lossless else b"VP8 ", b"")
    if len(body) < 10:
        raise UndecodableError("the file is cut short before the picture begins")
    if lossless:
        bits = int.from_bytes(body[1:5], "little")
        check((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    else:
        check(*(side & 0x3FFF for side in struct.unpack_from("<HH", body, 6)))
    found = Found("WEBP", imagecodecs.webp_decode(data), lossless=lossless)
    found.icc, found.exif, found.xmp = (chunks.get(kind) or None for kind in (b"ICCP", b"EXIF", b"XMP "))
    return found


def _heif(data: bytes, check: SizeCheck) -> Found:
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        raise UndecodableError("HEIC needs one more package; run `pip install 'facefix[heif]'`") from None
    heif = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    check(*heif.size)
    samples: Raster = np.array(heif)
    if samples.dtype == np.uint16:
        samples += samples >> int(heif.info.get("bit_depth", 10))  # so that the largest code is 65535
    found = Found("HEIF", samples, lossless=False, exif=heif.info.get("exif"), xmp=heif.info.get("xmp"))
    found.icc = heif.info.get("icc_profile") or None
    if len(heif) > 1:
        found.warnings.append("only the file's main picture is kept")
    return found


def _pillow(form: str, data: bytes, check: SizeCheck) -> Found:
    image = opened(form, data)
    check(*image.size)
    at = data.find(b"\xff\x4f\xff\x51") if form == "JPEG2000" else -1
    depth = (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 8
    if depth > 8:
        samples: Raster = imagecodecs.jpeg2k_decode(data)
        if samples.dtype != np.uint16 or depth > 16:
            raise UndecodableError(f"expected 8 to 16 unsigned bits, got {samples.dtype}; convert it to TIFF first")
        found = Found(form, stretched(samples, depth))
    else:
        image.load()
        found = from_image(image, form)
    found.lossless = form not in ("AVIF", "WEBP")
    if getattr(image, "is_animated", False) and form != "PSD":
        found.warnings.append("only the first of the file's pictures is kept")
    if form == "PSD":
        resources = {code: content for code, _, content in getattr(image, "resources", [])}
        found.iptc = resources.get(_IPTC_RESOURCE)
        found.exif = found.exif or resources.get(_EXIF_RESOURCE)
        found.xmp = found.xmp or resources.get(_XMP_RESOURCE)
    return found


def from_pillow(image: Image.Image) -> Found:
    """What a Pillow image holds, opened from a file or made in memory."""
    image.load()
    form = {"MPO": "JPEG"}.get(image.format or "", image.format or "PNG")
    found = from_image(image, form)
    found.lossless = form not in ("JPEG", "WEBP", "AVIF", "HEIF")
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        found.jpeg_tables, found.jpeg_subsampling = _tables(image), max(0, JpegImagePlugin.get_sampling(image))
    return found


def settle_metadata(found: Found) -> None:
    """Nothing; what cannot be parsed is taken out of `found` with a warning, and its orientation is looked up."""
    if found.xmp is not None:
        try:
            xmp.check(found.xmp)
        except ValueError as error:
            found.warnings.append(f"the XMP is damaged and not kept: {error}")
            found.xmp = None
    turn = 1
    if found.exif is not None:
        found.exif = found.exif if found.exif.startswith(exif.PREFIX) else exif.PREFIX + found.exif
        try:
            turn = exif.orientation(found.exif)
            found.dpi = found.dpi or exif.dpi(found.exif)
        except ValueError as error:
            found.warnings.append(f"the EXIF is damaged and not kept: {error}")
            found.exif = None
    elif found.xmp is not None:
        turn = xmp.orientation(found.xmp)
    if found.dpi is not None and max(found.dpi) > _MOST_DPI:
        found.warnings.append(f"a resolution of {max(found.dpi):,.0f} pixels per inch is none, and not kept")
        found.dpi = None
    if found.format not in ("HEIF", "TIFF"):  # libheif has turned the picture already; a TIFF has a tag of its own
        found.turn = turn
