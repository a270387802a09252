"""PNG: libpng decodes the picture, libdeflate packs it, 8 and 16 bits alike; the chunks around it are ours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np

from facefix.imagefile.found import Found, SizeCheck, UndecodableError, opened, samples_of
from facefix.imagefile.profile import profile_of_gamma
from facefix.types import Raster

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = 33  # the signature and the IHDR chunk
_UP = 2  # the row filter: each byte less the one above it
_IDAT_BYTES = 1 << 30
_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # colour type by channels
_TEXT_LIMIT = 1 << 26  # a compressed profile, and all texts together, may not grow beyond 64 MiB
_XMP = "XML:com.adobe.xmp"
_LEVEL = 1  # libdeflate's; with the one filter smaller than libpng's level 2 on photos, in a third of the time


def decode_png(data: bytes, check: SizeCheck) -> Found:
    """What a PNG holds; raises UndecodableError."""
    if len(data) < _HEAD or data[12:16] != b"IHDR":
        raise UndecodableError("the file is cut short before the picture begins")
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if not (width and height):
        raise UndecodableError(f"expected at least one pixel, got {width}x{height}")
    check(width, height)
    found = Found("PNG", np.zeros((0, 0), np.uint8))
    try:
        found.samples = imagecodecs.png_decode(data)
    except imagecodecs.PngError as error:
        if depth == 16 or interlaced:
            raise UndecodableError(f"the picture is damaged or cut short ({error})") from error
        found.samples, rows = _partly(data)
        found.warnings.append(f"the picture is damaged or cut short; only {rows} of {height} rows could be read")
    _read_chunks(found, data, gray=kind in (0, 4))
    return found


def _partly(data: bytes) -> tuple[Raster, int]:
    """The rows before the damage, the others black, and how many they are."""
    image = opened("PNG", data)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):
        image.tile = []  # what was decoded before the damage stands in the image already
    samples = samples_of(image)
    filled = np.flatnonzero(samples.reshape(len(samples), -1).any(axis=1))
    if not filled.size:
        raise UndecodableError("the picture is damaged or cut short; nothing of it could be read")
    return samples, int(filled[-1]) + 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk but the picture's own, as far as the file goes."""
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data) or kind == b"IEND":
            return
        if kind != b"IDAT":
            yield kind, data[at + 8 : at + 8 + size]
        at += 12 + size


def _read_chunks(found: Found, data: bytes, *, gray: bool) -> None:
    gamma: float | None = None
    points: tuple[float, ...] | None = None
    text: list[tuple[str, str]] = []
    room = _TEXT_LIMIT
    plain = False
    for kind, content in _chunks(data):
        try:
            if kind == b"iCCP":
                found.icc = _inflated(content.split(b"\0", 1)[1][1:], _TEXT_LIMIT)
            elif kind == b"eXIf":
                found.exif = content
            elif kind == b"pHYs" and len(content) == 9 and content[8] == 1:
                x, y = struct.unpack(">II", content[:8])
                found.dpi = (x * 0.0254, y * 0.0254) if x and y else None
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                text.append(_text(kind, content, room))
                room -= len(text[-1][1])
            elif kind == b"gAMA":
                gamma = struct.unpack(">I", content)[0] / 100000
            elif kind == b"cHRM":
                points = tuple(value / 100000 for value in struct.unpack(">8I", content))
            elif kind == b"sRGB":
                plain = True
            elif kind == b"acTL":
                found.warnings.append("only the first picture of the animation is kept")
            elif kind == b"cICP" and content[:2] != b"\x01\x0d":
                found.warnings.append("the colours that the cICP chunk tells are taken as sRGB")
            elif kind == b"caBX":
                found.warnings.append("Content Credentials (C2PA) are not kept; they vouch for the file as it was")
        except (zlib.error, ValueError, IndexError, struct.error) as error:
            found.warnings.append(f"the {kind.decode('latin-1')} chunk is damaged and not kept ({error})")
    if found.icc is None and gamma is not None and not plain:
        try:
            found.icc = profile_of_gamma(gamma, points, gray=gray)
        except imagecodecs.CmsError as error:
            found.warnings.append(f"the gAMA and cHRM chunks are of no colour space ({error}); it is taken as sRGB")
    _sort_text(found, text)


def _sort_text(found: Found, text: list[tuple[str, str]]) -> None:
    """Metadata that stands in text chunks goes where it belongs; the rest stays text."""
    kept = []
    for key, value in text:
        if key == _XMP:
            found.xmp = value.encode()
        elif key.startswith("Raw profile type "):
            content = _raw_profile(value)
            name = key.rsplit(" ", 1)[1]
            if name in ("exif", "APP1") and content[:4] == b"Exif":
                found.exif = found.exif or content
            elif name == "iptc":
                found.iptc = _iptc_in(content)
            elif name == "xmp":
                found.xmp = found.xmp or content
        else:
            kept.append((key, value))
    found.text = tuple(kept)


def _text(kind: bytes, content: bytes, room: int) -> tuple[str, str]:
    """Key and text of a chunk; raises ValueError where it inflates to more than `room` bytes."""
    key, rest = content.split(b"\0", 1)
    if kind == b"tEXt":
        return key.decode("latin-1"), rest.decode("latin-1")
    if kind == b"zTXt":
        return key.decode("latin-1"), _inflated(rest[1:], room).decode("latin-1")
    packed, body = rest[0], rest[2:].split(b"\0", 2)[2]
    return key.decode("latin-1"), (_inflated(body, room) if packed else body).decode("utf-8", "replace")


def _inflated(content: bytes, room: int) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(content, max(room, 1))  # 0 would be without a limit
    if stream.unconsumed_tail:
        raise ValueError(f"it grows beyond {_TEXT_LIMIT >> 20} MiB")
    return plain


def _raw_profile(value: str) -> bytes:
    """The bytes that ImageMagick writes into a text chunk: a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex("".join(value.split()[2:]))
    except ValueError:
        return b""


def _iptc_in(content: bytes) -> bytes | None:
    """The IPTC records of a Photoshop resource block, or the content itself where it is no such block."""
    if not content.startswith((b"8BIM", b"Photoshop")):
        return content or None
    at = content.find(b"8BIM\x04\x04")
    if at < 0 or at + 6 == len(content):
        return None
    name = content[at + 6]
    begin = at + 7 + name + (1 - name % 2)
    size = struct.unpack_from(">I", content, begin)[0] if begin + 4 <= len(content) else 0
    return content[begin + 4 : begin + 4 + size] or None


def encode_png(
    samples: Raster,
    *,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    iptc: bytes | None,
    dpi: tuple[float, float] | None,
    text: tuple[tuple[str, str], ...],
) -> list[bytes | bytearray | memoryview]:
    """The file's bytes in pieces: the samples as PNG, with the metadata between header and picture.

    Args:
        samples: (H, W) or (H, W, C) with C 2, 3 or 4; uint8 or uint16.
        icc: the profile.
        exif: the block without its prefix.
        xmp: the packet.
        iptc: the records.
        dpi: pixels per inch across and down.
        text: keys and values.
    """
    height, width, channels = samples.reshape(*samples.shape[:2], -1).shape
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.dtype.itemsize, _KINDS[channels], 0, 0, 0)
    chunks: list[bytes | bytearray | memoryview] = [_SIGNATURE, _chunk(b"IHDR", header)]
    if icc:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi:
        per_metre = [max(1, round(value / 0.0254)) for value in dpi]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif:
        chunks.append(_chunk(b"eXIf", exif))
    if xmp:
        chunks.append(_chunk(b"iTXt", _XMP.encode() + b"\0\0\0\0\0" + xmp))
    if iptc:
        block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        raw = f"\niptc\n{len(block):8d}\n{block.hex()}\n"
        chunks.append(_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(raw.encode())))
    for key, value in text:
        label = key.encode("latin-1", "replace")[:79] or b"Comment"
        chunks.append(_chunk(b"iTXt", label + b"\0\0\0\0\0" + value.encode("utf-8", "replace")))
    packed = memoryview(_packed(samples))
    for at in range(0, len(packed), _IDAT_BYTES):
        part = packed[at : at + _IDAT_BYTES]
        check = zlib.crc32(part, zlib.crc32(b"IDAT"))
        chunks += [struct.pack(">I", len(part)) + b"IDAT", part, struct.pack(">I", check)]
    return [*chunks, _chunk(b"IEND", b"")]


def _packed(samples: Raster) -> bytes:
    """The picture's rows, each with its filter, as one zlib stream."""
    big_endian = np.ascontiguousarray(samples, samples.dtype.newbyteorder(">"))
    rows = big_endian.view(np.uint8).reshape(len(samples), -1)
    filtered: Any = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return bytes(imagecodecs.deflate_encode(filtered, _LEVEL))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
