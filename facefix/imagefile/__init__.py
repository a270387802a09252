"""Bytes to a Photo and back: orientation, colour profile, metadata, depth, grey and alpha kept; written atomically.

What becomes of a photo's parts
    orientation   applied at reading; the tags (EXIF, TIFF, XMP) say 1 in what is written
    ICC profile   kept byte for byte, and gives the way to sRGB and back; a broken one is left out with a warning
    EXIF          kept byte for byte but orientation, pixel dimensions and thumbnail (it shows the photo as it was)
    XMP           kept; says that AI made parts of the photo, and which, unless that is switched off
    IPTC, DPI     kept where the format has a place for them
    JPEG          written with the source's quantisation tables and chroma subsampling, or finer
    CMYK          becomes sRGB, through its profile where it has one, and says so in a warning
    first frame   of animations, pages and layers, with a warning

    >>> import numpy as np
    >>> photo = from_array(np.zeros((2, 3, 3), np.uint8))
    >>> photo.width, photo.height
    (3, 2)
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import shutil
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix.errors import PhotoError, PhotoRefused, PhotoUnreadable, PhotoUnwritable
from facefix.imagefile import colour, exif
from facefix.imagefile.atomic import atomically, sync_folder
from facefix.imagefile.decode import decode, from_pillow, settle_metadata, sniff
from facefix.imagefile.encode import FORMAT_OF, check_size, eight_bits, encode, format_for
from facefix.imagefile.found import Data, Found, UndecodableError, one_line
from facefix.types import Box, Meta, Photo, PlainSRGB, Raster

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "copy_source",
    "from_array",
    "from_pil",
    "holds_format",
    "read",
    "save",
    "suffix_for",
    "sync_folder",
    "to_pil",
    "write",
]

SUFFIXES = frozenset({*FORMAT_OF, ".avif", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jpx", ".mpo", ".psd"})
MAX_PIXELS = 500_000_000  # an 8 x 10 inch negative at 2400 dpi
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}
_READ_ONLY_SUFFIXES = {
    "AVIF": {".avif"},
    "GIF": {".gif"},
    "HEIF": {".heic", ".heif", ".hif"},
    "JPEG2000": {".jp2", ".j2k", ".jpx"},
    "PSD": {".psd"},
}
_MAP_FROM = 64 << 20  # an uncompressed TIFF of that size is mapped, not read: it need not be in memory twice
# what decoders are known to raise on damaged data
_DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, LookupError, TypeError, EOFError, ArithmeticError)


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Photo:
    """The photo in a file, upright, in its own colours and depth, with its metadata.

    Args:
        path: the file; its content decides the format, not its name.
        max_pixels: the largest width times height; checked from the header, before anything is decoded.

    Returns:
        The photo; `meta.warnings` tells, a line each, what could not be read or kept.

    Raises:
        PhotoUnreadable: no such file, no picture, a kind that is not supported, or damaged.
        PhotoRefused: more than `max_pixels`.
    """
    path = Path(path)

    def check(width: int, height: int) -> None:
        if width * height > max_pixels:
            limit = f"expected at most {max_pixels:,} pixels, got {width}x{height} = {width * height:,}"
            raise PhotoRefused(path, f"{limit}; scale it down, or allow more with --max-pixels")

    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
            raise PhotoUnreadable(path, f"expected a file, got {kind}; give a picture file")
        with open(path, "rb") as file, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = _decoded(file, check)
        found.warnings += dict.fromkeys(one_line(each.message) for each in told if each.category is UserWarning)
        return _assembled(found, path)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoRefused(path, f"{one_line(error)}; scale it down") from error
    except UndecodableError as error:
        raise PhotoUnreadable(path, f"{error}{'' if ';' in str(error) else '; check the file'}") from error
    except OSError as error:
        problem = error.strerror or f"the picture is damaged or cut short ({one_line(error)})"
        raise PhotoUnreadable(path, f"{problem}; check the file") from error
    except MemoryError as error:
        raise PhotoUnreadable(path, "there is not enough memory for it; scale it down") from error
    except (*_DAMAGE, struct.error, zlib.error) as error:
        raise PhotoUnreadable(
            path, f"the picture is damaged or cut short ({one_line(error)}); check the file"
        ) from error


def _decoded(file: BinaryIO, check: Callable[[int, int], None]) -> Found:
    head = file.read(64)
    sniff(head)  # what is no picture may be of any size, and need not be in memory to tell
    file.seek(0)
    if head[:2] in (b"II", b"MM") and os.fstat(file.fileno()).st_size >= _MAP_FROM:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return decode(data, check)
    content: Data = file.read()
    return decode(content, check)


def from_pil(image: Image.Image) -> Photo:
    """The photo in a Pillow image: upright, with the profile, EXIF and XMP that its `info` carries.

    Raises:
        PhotoUnreadable: the image cannot be loaded, or has 32 bits a channel.
    """
    try:
        return _assembled(from_pillow(image), None)
    except UndecodableError as error:
        raise PhotoUnreadable(None, str(error)) from error
    except _DAMAGE as error:
        raise PhotoUnreadable(None, f"the picture is damaged or cut short ({one_line(error)})") from error


def from_array(array: NDArray[Any]) -> Photo:
    """The photo in an array, copied; its colours are taken as sRGB.

    Args:
        array: (H, W) or (H, W, 1) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha; uint8 with
            white at 255, or uint16 with white at 65535. Anything else is refused, because its scale would be a guess:
            for floats of 0..1 give `(array * 65535).round().astype(np.uint16)`.

    Raises:
        PhotoUnreadable: another shape or dtype.
    """
    array = np.asarray(array)
    fits = array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)
    if not fits or array.size == 0:
        raise PhotoUnreadable(None, f"expected an array (H, W) or (H, W, 1 to 4) with pixels, got {array.shape}")
    if array.dtype.type not in (np.uint8, np.uint16):
        advice = "give (array * 65535).round().astype(np.uint16) for floats of 0..1"
        raise PhotoUnreadable(None, f"expected uint8 or uint16, got {array.dtype}; {advice}")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return _assembled(Found("PNG", native), None)


def to_pil(photo: Photo) -> Image.Image:
    """The photo as a Pillow image with profile, EXIF, XMP and resolution in its `info`.

    L, LA, RGB or RGBA; 16-bit grey without alpha stays 16-bit (I;16), other 16-bit photos are rounded to 8 bits,
    because Pillow has no such images.
    """
    raster, alpha, meta = photo.raster, photo.alpha, photo.meta
    if meta.gray and meta.bits == 16 and alpha is None:
        image = Image.fromarray(colour.gray_of(raster))
    else:
        if meta.bits == 16:
            raster, alpha = eight_bits(raster), None if alpha is None else eight_bits(alpha)
        image = Image.fromarray(colour.gray_of(raster) if meta.gray else raster)
        if alpha is not None:
            image.putalpha(Image.fromarray(alpha))
    settled = exif.settle(meta.exif, photo.width, photo.height) if meta.exif else None
    info = {"icc_profile": meta.icc, "exif": settled, "xmp": meta.xmp, "dpi": meta.dpi}
    image.info.update({key: value for key, value in info.items() if value is not None})
    return image


def in_colour(photo: Photo) -> Photo:
    """The photo itself, or a grey one as RGB that can take colours, in sRGB where its profile is for grey."""
    if not photo.meta.gray:
        return photo
    meta = dataclasses.replace(photo.meta, gray=False, jpeg_subsampling=0)
    space, problem = colour.space(meta.icc, bits=meta.bits, gray=False)
    if problem is None:
        return dataclasses.replace(photo, meta=meta, colour=space)
    raster, plain = np.empty_like(photo.raster), PlainSRGB()
    for top in range(0, photo.height, 256):
        rows = slice(top, top + 256)
        raster[rows] = plain.from_srgb(photo.colour.to_srgb(photo.raster[rows]), meta.bits)
    return dataclasses.replace(photo, raster=raster, meta=dataclasses.replace(meta, icc=None), colour=plain)


def suffix_for(meta: Meta) -> str:
    """The suffix of a result: the source's own where it fits its format and can be written, else the format's, or .png.

    A PNG under the name photo.jpg gives .png; a HEIC, GIF, PSD, AVIF or JPEG 2000 picture gives .png, too.
    """
    own = meta.source.suffix if meta.source is not None else ""
    return own if FORMAT_OF.get(own.lower()) == meta.format else _SUFFIX_OF.get(meta.format, ".png")


def holds_format(path: str | os.PathLike[str], meta: Meta) -> bool:
    """Whether the path's suffix belongs to the source's format, so that a plain copy is right under that name."""
    suffix = Path(path).suffix.lower()
    return FORMAT_OF.get(suffix) == meta.format or suffix in _READ_ONLY_SUFFIXES.get(meta.format, ())


def write(
    photo: Photo,
    path: str | os.PathLike[str],
    *,
    ai_label: bool = True,
    regions: Sequence[Box] = (),
    overwrite: bool = False,
) -> tuple[str, ...]:
    """What the written file could not hold, one line each; the photo stands at `path` when this returns.

    Nobody ever sees half a file, and after an error there is nothing.

    Args:
        photo: to be written.
        path: its suffix decides the format (JPEG, PNG, TIFF, WebP, BMP).
        ai_label: whether the XMP is to say that AI made parts of the photo (IPTC DigitalSourceType).
        regions: which parts these are (IPTC ImageRegion); named only with the label.
        overwrite: replace a file that is there; without it the source and all else stays.

    Raises:
        PhotoUnwritable: the name exists or has no known suffix, the folder cannot be written, the disk is full, …
    """
    path = Path(path)
    try:
        form = format_for(path)
        check_size(form, photo.width, photo.height)
    except ValueError as error:
        raise PhotoUnwritable(path, str(error)) from error
    return atomically(path, lambda file: encode(photo, form, file, ai_label=ai_label, regions=regions), overwrite)


def save(
    photo: Photo,
    source: Photo,
    path: str | os.PathLike[str],
    *,
    ai_label: bool,
    regions: Sequence[Box] = (),
    overwrite: bool = False,
) -> tuple[str, ...]:
    """As `write`; but where no pixel differs from what was read, the source's file is copied byte for byte.

    Args:
        photo: to be written.
        source: what was read.
        path: where to; a copy is made only where its suffix belongs to the source's format.
        ai_label: as in `write`.
        regions: as in `write`.
        overwrite: as in `write`.

    Raises:
        PhotoUnwritable: as in `write`.
        PhotoUnreadable: the source's file cannot be read any more.
    """
    same = photo.raster is source.raster or np.array_equal(photo.raster, source.raster)
    if same and source.meta.source is not None and holds_format(path, source.meta):
        copy_source(source.meta.source, path, overwrite=overwrite)
        return ()
    return write(photo, path, ai_label=ai_label, regions=regions, overwrite=overwrite)


def copy_source(source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Nothing; the source's bytes stand at `target` when this returns, put there in one step.

    Args:
        source: a file in which nothing is to change.
        target: where to; the source itself is allowed and left as it is.
        overwrite: replace a file that is there.

    Raises:
        PhotoUnreadable: the source cannot be read.
        PhotoUnwritable: as in `write`.
    """
    source, target = Path(source), Path(target)
    try:
        if overwrite and os.path.exists(target) and os.path.samefile(source, target):
            return
        with open(source, "rb") as original:
            atomically(target, lambda file: shutil.copyfileobj(original, file, 1 << 20), overwrite)
    except OSError as error:
        raise PhotoUnreadable(source, f"{error.strerror or one_line(error)}; check the file") from error


def _assembled(found: Found, source: Path | None) -> Photo:
    """The Photo of what a file holds: turned upright, in three channels, with its colour space."""
    settle_metadata(found)
    told = found.warnings
    if found.cmyk:
        found.samples, problem = colour.srgb_from_cmyk(found.samples, found.icc)
        found.icc = None
        told += [problem] if problem else []
        told.append("CMYK was converted to sRGB, and the result is RGB")
    samples = exif.upright(found.samples, found.turn)
    gray = samples.ndim == 2 or samples.shape[2] <= 2
    bits: Literal[8, 16] = 8 if samples.dtype == np.uint8 else 16
    space, problem = colour.space(found.icc, bits=bits, gray=gray)
    if problem:
        told.append(problem)
    raster, alpha = _split(samples)
    meta = Meta(
        source=source,
        format=found.format,
        bits=bits,
        gray=gray,
        icc=None if problem else found.icc,
        exif=found.exif,
        xmp=found.xmp,
        iptc=found.iptc,
        dpi=found.dpi,
        jpeg_tables=found.jpeg_tables,
        jpeg_subsampling=found.jpeg_subsampling,
        lossless=found.lossless,
        text=found.text,
        xmp_extended=found.xmp_extended,
        warnings=tuple(told),
    )
    return Photo(raster, meta, alpha, space)


def _split(samples: Raster) -> tuple[Raster, Raster | None]:
    """The (H, W, 3) raster and the (H, W) alpha of samples with 1 to 4 channels."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    if channels == 3:
        whole: Any = np.ascontiguousarray(samples)
        return whole, None
    first: Any = samples.reshape(samples.shape[:2]) if channels == 1 else samples
    alpha: Any = cv2.extractChannel(samples, channels - 1) if channels in (2, 4) else None
    if channels == 2:
        first = cv2.extractChannel(samples, 0)
    raster: Any = cv2.cvtColor(first, cv2.COLOR_RGBA2RGB if channels == 4 else cv2.COLOR_GRAY2RGB)
    return raster, alpha
