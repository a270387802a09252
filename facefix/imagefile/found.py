"""What a file holds before it becomes a Photo, and Pillow's pictures in that form."""

from __future__ import annotations

import importlib
import io
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from facefix.types import Raster

Data: TypeAlias = bytes | mmap.mmap
SizeCheck: TypeAlias = Callable[[int, int], None]


class UndecodableError(ValueError):
    """Why the file's content cannot be read, in one line."""


@dataclass
class Found:
    """What a file holds.

    Attributes:
        samples: (H, W) grey, or (H, W, C) with C 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
        cmyk: whether the four channels are ink instead, 0 none.
        turn: the EXIF orientation in which the samples still lie.
    """

    format: str
    samples: Raster
    cmyk: bool = False
    turn: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg_tables: tuple[tuple[int, ...], ...] | None = None
    jpeg_subsampling: int | None = None
    lossless: bool = True
    text: tuple[tuple[str, str], ...] = ()
    xmp_extended: tuple[bytes, ...] = ()
    warnings: list[str] = field(default_factory=list)


_PLUGINS = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "PSD": ("PsdImagePlugin", "PsdImageFile"),
    "WEBP": ("WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "JPEG2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
}


def opened(form: str, data: bytes) -> ImageFile.ImageFile:
    """The file through the one Pillow plugin for its format.

    Not through Image.open, whose limit on sizes is one for the whole process and would have to be switched off.
    """
    module, name = _PLUGINS[form]
    image: ImageFile.ImageFile = getattr(importlib.import_module(f"PIL.{module}"), name)(io.BytesIO(data))
    return image


def from_image(image: Image.Image, form: str) -> Found:
    """What a loaded Pillow image holds."""
    info = image.info
    found = Found(form, samples_of(image), cmyk=image.mode == "CMYK")
    found.icc, found.exif, found.dpi = info.get("icc_profile") or None, info.get("exif") or None, dpi_of(info)
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp")
    found.xmp = packet.encode() if isinstance(packet, str) else packet or None
    return found


def samples_of(image: Image.Image) -> Raster:
    """The samples of a Pillow image of any mode, 8 or 16 bits; UndecodableError where there is no such form."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.array(image, np.uint16)
    if mode in ("I", "F"):
        raise UndecodableError(f"expected 8 or 16 bits, got 32 (Pillow mode {mode}); scale it to 16-bit integers first")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        turned = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return _copied(turned or image)
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in info_of(image):
        return _copied(image)
    if mode == "1":
        return _copied(image.convert("L"))
    if mode == "La":
        return _copied(image.convert("LA"))
    return _copied(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def info_of(image: Image.Image) -> dict[Any, Any]:
    """The image's info, without keys whose value says nothing."""
    return {key: value for key, value in image.info.items() if value is not None}


def _copied(image: Image.Image) -> Raster:
    """The image's samples, copied a band at a time: Pillow would make two more copies of the whole."""
    bands = len(image.getbands())
    shape = (image.height, image.width) if bands == 1 else (image.height, image.width, bands)
    samples = np.empty(shape, np.uint8)
    for top in range(0, image.height, 512):
        bottom = min(top + 512, image.height)
        samples[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return samples


def stretched(samples: NDArray[Any], depth: int) -> Raster:
    """Samples of `depth` bits (1 to 16) scaled to all of uint8 or uint16."""
    full, target = 2**depth - 1, 255 if depth <= 8 else 65535
    if full == target:
        whole: Raster = samples
        return whole
    scaled: NDArray[np.uint32] = (samples.astype(np.uint32) * target + full // 2) // full
    return scaled.astype(np.uint8) if depth <= 8 else scaled.astype(np.uint16)


def dpi_of(info: dict[Any, Any]) -> tuple[float, float] | None:
    """The resolution in a Pillow image's info, in pixels per inch, or None."""
    dpi = info.get("dpi")
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(0 < float(value) < 1e6 for value in dpi):
        return None
    return float(dpi[0]), float(dpi[1])


def one_line(error: BaseException | str) -> str:
    """What the error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
