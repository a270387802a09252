"""Bytes to a Photo and back: orientation, metadata, depth, alpha and grey kept; written atomically."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from facefix.errors import PhotoUnreadable, PhotoUnwritable
from facefix.types import Meta, Photo

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .tif .tiff .webp .bmp .dib .avif .heic .heif .gif .jp2 .j2k .jpx .psd".split()
)
MAX_PIXELS = 500_000_000
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Photo:
    """The photo in a file, upright, with its metadata."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            return _photo(image, path)
    except OSError as error:
        raise PhotoUnreadable(path, f"not a picture that can be read ({error})") from error


def from_pil(image: Image.Image) -> Photo:
    """The photo in a Pillow image, upright, with the metadata that its `info` carries."""
    return _photo(image, None)


def _photo(image: Image.Image, path: Path | None) -> Photo:
    form = image.format or "PNG"
    image = ImageOps.exif_transpose(image)
    bits, gray = (16, True) if image.mode.startswith("I") else (8, image.mode in ("1", "L", "LA"))
    if bits == 8:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    samples = np.asarray(image)
    samples = samples.astype(np.uint16) if bits == 16 else samples
    meta = Meta(source=path, format=form, bits=bits, gray=gray, icc=image.info.get("icc_profile"))  # type: ignore[arg-type]
    return _assemble(samples, meta)


def _assemble(samples: NDArray[Any], meta: Meta) -> Photo:
    if samples.ndim == 2:
        samples = np.repeat(samples[..., None], 3, axis=2)
    alpha = np.ascontiguousarray(samples[..., 3]) if samples.shape[2] == 4 else None
    return Photo(np.ascontiguousarray(samples[..., :3]), meta, alpha)


def from_array(array: NDArray[Any]) -> Photo:
    """The photo in an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16, sRGB."""
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise PhotoUnreadable(None, f"expected (H, W[, 1|3|4]) uint8 or uint16, got {array.shape} {array.dtype}")
    gray = array.ndim == 2 or array.shape[2] == 1
    bits = array.dtype.itemsize * 8
    return _assemble(array[..., 0] if gray and array.ndim == 3 else array, Meta(bits=bits, gray=gray))  # type: ignore[arg-type]


def to_pil(photo: Photo) -> Image.Image:
    """The photo as an 8-bit Pillow image: RGB or RGBA."""
    raster = photo.raster if photo.meta.bits == 8 else (photo.raster // 257).astype(np.uint8)
    return Image.fromarray(raster)


def suffix_for(meta: Meta) -> str:
    """The suffix of a result: the source's own where its format can be written, else .png."""
    return _SUFFIX_OF.get(meta.format, ".png")


def holds_format(path: str | os.PathLike[str], meta: Meta) -> bool:
    """Whether the path's suffix belongs to the source's format, so that a plain copy is right under that name."""
    return Path(path).suffix.lower() in (suffix_for(meta), meta.source.suffix.lower() if meta.source else "")


def write(
    photo: Photo, path: str | os.PathLike[str], *, ai_label: bool = True, overwrite: bool = False
) -> tuple[str, ...]:
    """What the written file could not hold, one line each; the photo stands at `path` when this returns."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise PhotoUnwritable(path, "exists already; choose another name or allow overwriting")
    if photo.meta.bits == 16:
        path.write_bytes(imagecodecs.png_encode(photo.raster))
    else:
        to_pil(photo).save(path)
    return ()


def copy_source(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Nothing; the source's bytes stand at `target` when this returns."""
    source, target = Path(source), Path(target)
    if target.exists() and not overwrite:
        raise PhotoUnwritable(target, "exists already; choose another name or allow overwriting")
    temporary = target.with_name(f".facefix-{secrets.token_hex(8)}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
