"""What the tests of picture files share: a smooth picture, profiles, and metadata."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
from PIL import Image

from facefix.imagefile import exif as exif_room

DISPLAY_P3 = imagecodecs.cms_profile(
    "rgb", whitepoint=[0.3127, 0.329, 1], primaries=[0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1], gamma=2.2
)

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
