"""What callers give, made ready: the photo, the mask, and the faces that they ask for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facefix import errors, imagefile
from facefix.errors import PhotoRefused, UsageError
from facefix.types import Face, Mask, Photo

_ROUNDING = 1e-3

PhotoLike: TypeAlias = Photo | str | Path | NDArray[Any] | Image.Image


def as_photo(photo: PhotoLike, name: str = "photo") -> Photo:
    """The photo itself, or read from a path, a Pillow image or an array; messages call it by the `name`.

    Raises:
        PhotoError: it cannot be read.
        UsageError: it is none of these.
    """
    if isinstance(photo, Photo):
        return photo
    if isinstance(photo, str | Path):
        return imagefile.read(photo)
    if isinstance(photo, np.ndarray):
        return imagefile.from_array(photo)
    if isinstance(photo, Image.Image):
        return imagefile.from_pil(photo)
    expected = "a path, a Pillow image, a Photo, or an array (H, W) or (H, W, 1 to 4) of uint8 or uint16"
    raise UsageError(f"the {name}: expected {expected}, got {_kind(photo)}")


def doubting(photo: Photo, mask: Photo) -> Photo:
    """The photo, whose warnings now tell what is doubtful of its mask, too."""
    doubts = tuple(f"the mask: {warning}" for warning in mask.meta.warnings)
    return dataclasses.replace(photo, meta=dataclasses.replace(photo.meta, warnings=photo.meta.warnings + doubts))


def user_mask(given: Path | str | Mask | None, photo: Photo) -> tuple[Photo, Mask | None]:
    """The photo, doubting its mask, and the mask as (H, W) float32, or None; white is where something may change.

    Raises:
        PhotoError: it cannot be read, has another size than the photo, or holds other numbers.
        UsageError: it is neither a path nor numbers.
    """
    if given is None:
        return photo, None
    if isinstance(given, str | Path):
        drawn = imagefile.read(given, max_pixels=max(imagefile.MAX_PIXELS, photo.width * photo.height))
        photo = doubting(photo, drawn)
        allowed: Mask = drawn.pixels().mean(axis=2, dtype=np.float32).clip(0, 1)
    else:
        try:
            allowed = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            expected = "expected a path, or an array (H, W) of numbers in 0..1"
            raise UsageError(f"the mask: {expected}, got {_kind(given)}; 1 is where anything may change") from None
    if allowed.shape != (photo.height, photo.width):
        got = "x".join(str(side) for side in allowed.shape[::-1])
        expected = f"expected {photo.width}x{photo.height} px as the photo, got {got}"
        raise PhotoRefused(photo.meta.source, f"the mask does not fit: {expected}; make one of the photo's size")
    low, high = float(allowed.min()), float(allowed.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is neither
        got = f"expected 0..1, got {low:g} to {high:g}; give 1 where anything may change"
        raise PhotoRefused(photo.meta.source, f"the mask: {got}")
    return photo, allowed


def _kind(given: object) -> str:
    """What was given, in a few words with the next step."""
    if given is None:
        return "None; cv2.imread gives it for a file that it cannot read: give the file's path"
    return f"a value of type {type(given).__name__}; give one of these"


def face_numbers(setting: str) -> frozenset[int] | None:
    """The face numbers that --face lists, or None for a word.

    Raises:
        UsageError: neither a word that is known nor numbers.
    """
    if setting in ("all", "largest", "center"):
        return None
    parts = [part.strip() for part in setting.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", part) and int(part) > 0 for part in parts):
        raise UsageError(f"--face: expected all, largest, center, or numbers from 1 such as 1,3, got {setting!r}")
    return frozenset(int(part) for part in parts)


def selected(setting: str, photo: Photo, faces: Sequence[Face]) -> frozenset[int]:
    """The numbers, from 1, of the faces that the setting asks for."""
    numbers = face_numbers(setting)
    if numbers is not None:
        return numbers
    if setting == "all" or not faces:
        return frozenset(range(1, len(faces) + 1))
    boxes = np.array([face.box_xyxy for face in faces])
    sides, middles = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    centre = (np.array([photo.width, photo.height]) - 1) / 2
    distances = np.linalg.norm(middles - centre, axis=1)
    best = np.argmax(sides.prod(axis=1)) if setting == "largest" else np.argmin(distances)
    return frozenset({int(best) + 1})


def text_of(path: Path | None) -> str | None:
    """The path as text for a report, None for a photo of no file."""
    return None if path is None else errors.text_of(path)
