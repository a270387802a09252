"""EXIF and TIFF directories as raw entries, so that what is not touched stays byte for byte.

An EXIF block is a little TIFF file: a header, a first directory (IFD0), directories that it points to (Exif, GPS,
interoperability) and perhaps a second one (IFD1) with a thumbnail. Entries keep their type, count and bytes in the
block's own byte order; nothing is converted. Source: TIFF 6.0, section 2; BigTIFF; Exif 3.0, section 4.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from facefix.types import Raster

PREFIX = b"Exif\x00\x00"
ORIENTATION = 0x0112
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 0x011A, 0x011B, 0x0128
_POINTERS = (0x8769, 0x8825, 0xA005)
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_PIXEL_WIDTH, _PIXEL_HEIGHT, _EXIF = 0xA002, 0xA003, 0x8769
# how the pixels of a TIFF lie, its other pages, and what is carried apart (resolution, XMP, IPTC, Photoshop, ICC)
_STRUCTURE = frozenset(
    {*range(254, 267), *range(277, 285), *range(288, 294), *range(317, 348), *range(512, 533)}
    | {273, 296, 301, 700, 33723, 34377, 34675, 37724, 50255}
)


class Entry(NamedTuple):
    """One field of a directory: TIFF type, count, its bytes, and where these stand in the block."""

    kind: int
    number: int
    data: bytes
    at: int = 0


@dataclass
class Directory:
    """A directory (IFD): its entries by tag, the directories it points to, and where the next one's offset stands."""

    order: Literal["<", ">"]
    entries: dict[int, Entry] = field(default_factory=dict)
    children: dict[int, Directory] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    next_at: int = 0
    next: int = 0

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of an entry, or the default where it is absent or of another type."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _CODE:
            return default
        return struct.unpack(f"{self.order}{entry.number}{_CODE[entry.kind]}", entry.data)

    def data(self, tag: int) -> bytes | None:
        """The bytes of an entry, or None."""
        entry = self.entries.get(tag)
        return entry.data if entry is not None else None

    def last(self) -> int:
        """The end of what this directory and its children use."""
        ends = [e.at + len(e.data) for e in self.entries.values()]
        return max([self.end, *ends, *(child.last() for child in self.children.values())])

    def held(self) -> int:
        """How many bytes its entries and its children's hold."""
        own = sum(len(e.data) for e in self.entries.values())
        return own + sum(child.held() for child in self.children.values())


def entry(order: Literal["<", ">"], kind: int, *values: int) -> Entry:
    """An entry of whole numbers; for RATIONAL, numerators and denominators in turn."""
    code, count = ("I", len(values) // 2) if kind == RATIONAL else (_CODE[kind], len(values))
    return Entry(kind, count, struct.pack(f"{order}{len(values)}{code}", *values))


def parse(block: bytes | memoryview) -> Directory:
    """The first directory of a TIFF block (a whole TIFF file, or EXIF without its prefix).

    Raises:
        ValueError: the block is no TIFF, its first directory is cut off, or its entries lie in one another.
    """
    try:
        orders: dict[bytes, Literal["<", ">"]] = {b"II": "<", b"MM": ">"}
        order = orders[bytes(block[:2])]
        version = struct.unpack_from(order + "H", block, 2)[0]
        if version not in (42, 43):
            raise ValueError(f"expected TIFF version 42 or 43, got {version}")
        big = version == 43
        first = struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)[0]
        return _directory(block, order, first, big, depth=0, room=len(block))
    except (KeyError, struct.error) as error:
        raise ValueError("the directory is damaged") from error


def _directory(
    block: bytes | memoryview, order: Literal["<", ">"], start: int, big: bool, depth: int, room: int
) -> Directory:
    """The directory at `start`, whose entries, which are copied, may hold `room` bytes together.

    Of a tag that stands there twice the first entry counts, as in libtiff: what is checked must be what is decoded.
    """
    head, form, width = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    count = struct.unpack_from(order + head, block, start)[0]
    at, step = start + struct.calcsize(head), 4 + 2 * width
    end = at + count * step
    if end > len(block):
        raise ValueError("the directory is cut off")
    directory = Directory(order, start=start, end=end, next_at=end)
    for here in range(at, end, step):
        tag, kind, number, value = struct.unpack_from(order + form, block, here)
        size = _SIZE.get(kind, 0) * number
        where = here + 4 + width
        if size > width:
            where = struct.unpack(order + ("Q" if big else "I"), value)[0]
        if size and where + size <= len(block) and tag not in directory.entries:
            room -= size
            if room < 0:
                raise ValueError("its entries lie in one another")
            directory.entries[tag] = Entry(kind, number, bytes(block[where : where + size]), where)
    for tag in _POINTERS:
        pointer = directory.numbers(tag)
        if len(pointer) == 1 and depth < 3:
            try:
                child = _directory(block, order, pointer[0], big, depth + 1, room)
                room -= child.held()
                directory.children[tag] = child
            except (struct.error, ValueError):
                del directory.entries[tag]
    if end + width <= len(block):
        directory.next = struct.unpack_from(order + ("Q" if big else "I"), block, end)[0]
        directory.end += width
    return directory


def serialise(directory: Directory, at: int) -> bytes:
    """The bytes of a directory and its children for the place `at` in a block or file (classic TIFF)."""
    order = directory.order
    tags = sorted({*directory.entries, *directory.children})
    tail_at = at + 2 + 12 * len(tags) + 4
    head, tail = [struct.pack(order + "H", len(tags))], b""
    for tag in tags:
        if tag in directory.children:
            value = struct.pack(order + "I", tail_at + len(tail))
            tail += serialise(directory.children[tag], tail_at + len(tail))
            kind, count = LONG, 1
        else:
            kind, count, data, _ = directory.entries[tag]
            value = data.ljust(4, b"\0")
            if len(data) > 4:
                value = struct.pack(order + "I", tail_at + len(tail))
                tail += data
        tail += b"\0" * (len(tail) & 1)
        head.append(struct.pack(order + "HHI", tag, kind, count) + value)
    return b"".join([*head, b"\0\0\0\0", tail])


def from_tiff(first: Directory) -> bytes | None:
    """The EXIF block (with prefix) of what a TIFF file's first directory says about the photo, or None if nothing."""
    kept = {t: e for t, e in first.entries.items() if t not in _STRUCTURE and t not in _POINTERS and t != ORIENTATION}
    if not kept and not first.children:
        return None
    header = (b"II" if first.order == "<" else b"MM") + struct.pack(first.order + "HI", 42, 8)
    return PREFIX + header + serialise(Directory(first.order, kept, first.children), 8)


def to_tiff(exif: bytes | None) -> Directory:
    """A directory with the descriptive entries of an EXIF block, for a TIFF file's own entries to be added to."""
    if exif is None:
        return Directory("<")
    first = parse(_bare(exif))
    kept = {t: e for t, e in first.entries.items() if t not in _STRUCTURE and t not in _POINTERS and t != ORIENTATION}
    return Directory(first.order, kept, first.children)


def orientation(exif: bytes) -> int:
    """The orientation tag, 1 to 8; 1 where there is none or a senseless one. Raises ValueError as `parse` does."""
    value = parse(_bare(exif)).numbers(ORIENTATION)
    return value[0] if len(value) == 1 and 1 <= value[0] <= 8 else 1


def dpi(exif: bytes) -> tuple[float, float] | None:
    """The resolution tags in pixels per inch, or None. Raises ValueError as `parse` does."""
    return dpi_in(parse(_bare(exif)))


def dpi_in(directory: Directory) -> tuple[float, float] | None:
    """The resolution that a directory gives, in pixels per inch, or None."""
    unit = {2: 1.0, 3: 2.54}.get((*directory.numbers(_UNIT), 2)[0])
    across = [directory.entries.get(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
    found = []
    for number in across:
        if unit is None or number is None or number.kind != RATIONAL or number.number != 1:
            return None
        over, under = struct.unpack(directory.order + "II", number.data)
        found.append(unit * over / under if under else 0.0)
    return (found[0], found[1]) if min(found) > 0 else None


def settle(exif: bytes, width: int, height: int) -> bytes:
    """The EXIF block for an upright, changed photo, all else at its place byte for byte.

    Orientation becomes 1 and the pixel dimensions are set. The thumbnail goes, because it shows the photo as it was;
    viewers make their own.

    Args:
        exif: the block, with or without its prefix.
        width: of the photo, in pixels.
        height: of the photo, in pixels.
    """
    block = bytearray(_bare(exif))
    first = parse(bytes(block))
    inner = first.children.get(_EXIF, Directory(first.order))
    for directory, tag, value in (
        (first, ORIENTATION, 1),
        (inner, _PIXEL_WIDTH, width),
        (inner, _PIXEL_HEIGHT, height),
    ):
        old = directory.entries.get(tag)
        if old is not None and old.number == 1 and old.kind in _CODE and value < 256 ** _SIZE[old.kind]:
            struct.pack_into(first.order + _CODE[old.kind], block, old.at, value)
    if first.next:
        _cut_thumbnail(block, first)
    return PREFIX + bytes(block)


def _cut_thumbnail(block: bytearray, first: Directory) -> None:
    struct.pack_into(first.order + "I", block, first.next_at, 0)
    try:
        second = _directory(bytes(block), first.order, first.next, big=False, depth=3, room=len(block))
    except (struct.error, ValueError):
        return
    where, size = (*second.numbers(0x0201), 0)[0], (*second.numbers(0x0202), 0)[0]
    begin = min(first.next, where or first.next)
    if first.last() <= begin and max(second.last(), where + size) >= len(block) - 4:
        del block[begin:]
    elif where:
        block[where : where + size] = bytes(len(block[where : where + size]))


def _bare(exif: bytes) -> bytes:
    return exif[len(PREFIX) :] if exif.startswith(PREFIX) else exif


def upright(raster: Raster, turn: int) -> Raster:
    """The raster (any channels) as EXIF orientation `turn` (1 to 8) says that it is to be seen."""
    import cv2  # only photos that lie on their side pay for loading it

    codes = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if turn in codes:
        turned = cv2.rotate(raster, codes[turn])
    elif turn in (2, 4):
        turned = cv2.flip(raster, 1 if turn == 2 else 0)
    elif turn in (5, 7):
        turned = cv2.transpose(raster if turn == 5 else cv2.rotate(raster, cv2.ROTATE_180))
    else:
        return raster
    return turned.reshape(turned.shape[:2] + raster.shape[2:])
