"""A Photo to a file's bytes: depth, grey, alpha and metadata as the format can hold them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from facefix.imagefile import exif, xmp
from facefix.imagefile.colour import gray_of
from facefix.imagefile.png import encode_png
from facefix.imagefile.tiff import write_tiff
from facefix.types import Box, Meta, Photo, Raster

FORMAT_OF = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
}
_ALPHA = {"PNG", "TIFF", "WEBP"}
_DEEP = {"PNG", "TIFF"}
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
_SEGMENT = 65533  # bytes in one JPEG segment
_XMP_SEGMENT = _SEGMENT - 29
_EFFORT = 50  # for lossless WebP: as small as Pillow's 75, in 60 % of the time
_QUALITY = 95  # for a JPEG or lossy WebP whose source had no tables of its own


@dataclass
class _Carried:
    """The metadata, settled for the photo as it is now, and what could not be kept."""

    meta: Meta
    exif: bytes | None
    xmp: bytes | None
    lost: list[str]


def format_for(path: Path) -> str:
    """The format that the path's suffix asks for; raises ValueError where it cannot be written."""
    form = FORMAT_OF.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"expected a name ending in {', '.join(FORMAT_OF)}, got {path.suffix or 'no ending'}")
    return form


def check_size(form: str, width: int, height: int) -> None:
    """Nothing, where the format holds photos of that size.

    Raises:
        ValueError: it does not.
    """
    longest = _LONGEST_SIDE.get(form)
    if longest is not None and max(width, height) > longest:
        got = f"{width}x{height}"
        raise ValueError(f"expected at most {longest:,} px a side for {form}, got {got}; write PNG or TIFF instead")


def encode(photo: Photo, form: str, file: BinaryIO, *, ai_label: bool, regions: Sequence[Box] = ()) -> tuple[str, ...]:
    """What the format could not hold, one line each; the file holds the photo when this returns.

    Args:
        photo: to be written.
        form: JPEG, PNG, TIFF, WEBP or BMP.
        file: open for writing and seeking, at its start.
        ai_label: whether the XMP is to say that AI made parts of the photo.
        regions: which parts, for the same.
    """
    meta = photo.meta
    settled = exif.settle(meta.exif, photo.width, photo.height) if meta.exif else None
    settle = partial(xmp.settle, meta.xmp, ai_label=ai_label, width=photo.width, height=photo.height)
    packet = settle(regions=regions)
    lost = []
    if form == "JPEG" and packet and len(packet) > _XMP_SEGMENT and regions:
        lost.append(f"the XMP does not name the {len(regions)} regions: that is more than a JPEG segment holds")
        packet = settle()
    carried = _Carried(meta, settled, packet, lost)
    samples = _samples(photo, form, carried.lost)
    if form == "PNG":
        bare = settled[len(exif.PREFIX) :] if settled else None
        for piece in encode_png(
            samples, icc=meta.icc, exif=bare, xmp=packet, iptc=meta.iptc, dpi=meta.dpi, text=meta.text
        ):
            file.write(piece)
    elif form == "TIFF":
        write_tiff(file, samples, icc=meta.icc, exif_block=settled, xmp=packet, iptc=meta.iptc, dpi=meta.dpi)
    elif form == "JPEG":
        _jpeg(samples, file, carried)
    elif form == "WEBP":
        _webp(samples, file, carried)
    else:
        _bmp(samples, file, carried)
    if meta.xmp_extended and form != "JPEG":
        carried.lost.append(f"the extended XMP is not kept: {form} has no place for it")
    if meta.text and form not in ("PNG", "JPEG"):
        carried.lost.append(f"the text notes of the source are not kept: {form} has no place for them")
    return tuple(carried.lost)


def _samples(photo: Photo, form: str, lost: list[str]) -> Raster:
    """(H, W) grey, or (H, W, C) with C 2 grey + alpha, 3 RGB, 4 RGB + alpha, in a depth that the format has."""
    raster, alpha = photo.raster, photo.alpha
    if photo.meta.bits == 16 and form not in _DEEP:
        raster, alpha = eight_bits(raster), eight_bits(alpha) if alpha is not None else None
        lost.append(f"16 bits became 8: {form} holds no more")
    if alpha is not None and form not in _ALPHA:
        if alpha.min() < 255:
            lost.append(f"transparency was laid on white: {form} has none")
        raster, alpha = _on_white(raster, alpha), None
    gray = gray_of(raster) if photo.meta.gray else None
    if alpha is None:
        return raster if gray is None else gray
    colours = raster if gray is None else gray[..., None]
    merged = np.empty((*alpha.shape, colours.shape[2] + 1), alpha.dtype)
    cv2.mixChannels([colours, alpha], [merged], [n for channel in range(merged.shape[2]) for n in (channel, channel)])
    return merged


def eight_bits(samples: Raster) -> Raster:
    """uint16 samples rounded to uint8."""
    out = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), 256):
        out[top : top + 256] = (samples[top : top + 256].astype(np.uint32) + 128) // 257
    return out


def _on_white(raster: Raster, alpha: Raster) -> Raster:
    out = np.empty_like(raster)
    for top in range(0, len(raster), 256):
        weight = alpha[top : top + 256, :, None].astype(np.uint32)
        out[top : top + 256] = (raster[top : top + 256] * weight + 255 * (255 - weight) + 127) // 255
    return out


def _jpeg(samples: Raster, file: BinaryIO, carried: _Carried) -> None:
    meta, options = carried.meta, dict[str, Any]()
    if meta.jpeg_tables:
        options |= {"qtables": [list(table) for table in meta.jpeg_tables], "subsampling": meta.jpeg_subsampling or 0}
    else:
        options |= {"quality": _QUALITY, "subsampling": 0}
    if carried.exif and len(carried.exif) > _SEGMENT:
        carried.lost.append(f"the EXIF is not kept: {len(carried.exif)} bytes are more than a JPEG holds")
    elif carried.exif:
        options["exif"] = carried.exif
    packet = carried.xmp
    if packet and len(packet) > _XMP_SEGMENT:
        carried.lost.append(f"the XMP is not kept: {len(packet)} bytes are more than a JPEG segment holds")
        packet = xmp.settle(None, ai_label=xmp.source_type(packet) is not None, width=0, height=0)
    if packet:
        options["xmp"] = packet
    comments = [value for key, value in meta.text if key == "Comment"]
    if len(meta.text) > len(comments[:1]):
        carried.lost.append("the text notes of the source are not kept: JPEG holds one comment")
    # as a segment, too: Pillow's own way has no room for a comment beside a large EXIF
    segments = [("comment is", 0xFE, comment.encode()) for comment in comments[:1]]
    segments += [("extended XMP is", 0xE1, part) for part in meta.xmp_extended]
    if meta.iptc:
        block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(meta.iptc)) + meta.iptc + b"\0" * (len(meta.iptc) % 2)
        segments.append(("IPTC records are", 0xED, b"Photoshop 3.0\0" + block))
    carried.lost += [
        f"the {what} not kept: {len(content)} bytes are more than a JPEG segment holds"
        for what, _, content in segments
        if len(content) > _SEGMENT
    ]
    options["extra"] = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for _, marker, content in segments
        if len(content) <= _SEGMENT
    )
    _save(Image.fromarray(samples), "JPEG", file, carried, options)


def _webp(samples: Raster, file: BinaryIO, carried: _Carried) -> None:
    lossless = carried.meta.lossless
    options: dict[str, Any] = {"lossless": lossless, "quality": _EFFORT if lossless else _QUALITY}
    options |= {
        "method": 1 if lossless else 4,
        "exact": True,
        "alpha_quality": 100,
        "exif": carried.exif or b"",
        "xmp": carried.xmp or b"",
    }
    image = Image.fromarray(samples)
    wanted = "RGBA" if image.mode in ("LA", "RGBA") else "RGB"
    image = image if image.mode == wanted else image.convert(wanted)
    _save(image, "WEBP", file, carried, options)
    if carried.meta.iptc:
        carried.lost.append("the IPTC records are not kept: WebP has no place for them")


def _bmp(samples: Raster, file: BinaryIO, carried: _Carried) -> None:
    meta = carried.meta
    held = {"ICC profile": meta.icc, "EXIF": carried.exif, "XMP": carried.xmp, "IPTC": meta.iptc}
    if names := [name for name, value in held.items() if value]:
        carried.lost.append(f"{', '.join(names)} not kept: BMP has no place for metadata")
    _save(Image.fromarray(samples), "BMP", file, carried, {})


def _save(image: Image.Image, form: str, file: BinaryIO, carried: _Carried, options: dict[str, Any]) -> None:
    if carried.meta.icc and form != "BMP":
        options["icc_profile"] = carried.meta.icc
    if carried.meta.dpi:
        options["dpi"] = carried.meta.dpi
    image.save(file, form, **options)
