"""What flows through facefix, and the conventions that every module keeps.

Pictures
    Raster   (H, W, 3) uint8 or uint16, RGB, upright, in the file's own colour space: how a whole photo is kept.
    Pixels   (h, w, 3) float32, RGB, sRGB-encoded, 0..1: crops, patches, boxes and shrunk copies; what is computed on.
    Mask     (h, w) float32, 0 keep .. 1 replace.
    Labels   (S, S) uint8, one class a pixel.
    BGR exists only inside the adapters of models that ask for it.

Geometry
    Points are (x, y). An integer coordinate is a pixel's centre, so a picture reaches from -0.5 to W - 0.5.
    Scaling by s takes x to (x + 0.5)·s - 0.5.
    A Matrix is (2, 3) float64, named dst_from_src: [x', y'] = M[:, :2] @ [x, y] + M[:, 2].
    A box is (x0, y0, x1, y1); a box of pixels (`Box`) is whole numbers with x1, y1 exclusive.
    Left and right are as seen on the screen.

All types are frozen; their arrays are made read-only, and shapes and dtypes are checked once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Raster: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Pixels: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.uint8]
Matrix: TypeAlias = NDArray[np.float64]
Points: TypeAlias = NDArray[np.float64]

Outcome = Literal["restored", "skipped", "failed"]


class Box(NamedTuple):
    """Whole pixels from (x0, y0) up to but not including (x1, y1)."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the box, to index an array of (H, W, …)."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def _frozen(array: NDArray[Any], name: str, shape: tuple[int | None, ...], *dtypes: type) -> NDArray[Any]:
    """The array itself when writing to it is off already, else a read-only view; raises where it does not fit."""
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.type not in dtypes:
        wanted = " or ".join(np.dtype(t).name for t in dtypes)
        size = "(" + ", ".join("n" if n is None else str(n) for n in shape) + ")"
        raise ValueError(f"{name}: expected {size} {wanted}, got {array.shape} {array.dtype}")
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


class ColourSpace(Protocol):
    """The way from a file's own colour space to sRGB and back; `imagefile` makes them."""

    def to_srgb(self, raster: Raster) -> Pixels:
        """The (h, w, 3) raster as sRGB-encoded float32, 0..1."""

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        """The (h, w, 3) sRGB-encoded pixels, clipped and rounded, as uint8 (bits 8) or uint16 (bits 16)."""


class PlainSRGB:
    """The colour space of files without a profile, or with sRGB's own."""

    def to_srgb(self, raster: Raster) -> Pixels:
        """The raster divided by its largest value: (h, w, 3) uint8 or uint16 -> float32, 0..1."""
        return np.asarray(raster.astype(np.float32) / np.float32(np.iinfo(raster.dtype).max), np.float32)

    def from_srgb(self, pixels: Pixels, bits: int) -> Raster:
        """The pixels clipped to 0..1 and rounded: (h, w, 3) float32 -> uint8 (bits 8) or uint16 (bits 16)."""
        scaled: Pixels = np.rint(np.clip(pixels, 0, 1) * np.float32(2**bits - 1))
        return scaled.astype(np.uint8) if bits == 8 else scaled.astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file carries besides its pixels, kept to be written back."""

    source: Path | None = None
    format: str = "PNG"
    bits: Literal[8, 16] = 8
    gray: bool = False
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
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Photo:
    """A whole picture, upright, in its own colour space and depth."""

    raster: Raster
    meta: Meta = field(default_factory=Meta)
    alpha: Raster | None = None
    colour: ColourSpace = field(default_factory=PlainSRGB)

    def __post_init__(self) -> None:
        object.__setattr__(self, "raster", _frozen(self.raster, "raster", (None, None, 3), np.uint8, np.uint16))
        if self.raster.dtype.itemsize * 8 != self.meta.bits:
            raise ValueError(f"raster: expected {self.meta.bits} bits as meta says, got {self.raster.dtype}")
        if min(self.raster.shape[:2]) < 1:
            raise ValueError(f"raster: expected at least one pixel, got {self.raster.shape}")
        if self.alpha is not None:
            alpha = _frozen(self.alpha, "alpha", self.raster.shape[:2], self.raster.dtype.type)
            object.__setattr__(self, "alpha", alpha)

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.raster.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.raster.shape[0])

    def pixels(self, box: Box | None = None) -> Pixels:
        """The box (all of the photo without one) as (h, w, 3) float32 sRGB, 0..1."""
        part: Raster = self.raster if box is None else self.raster[box.slices]
        return self.colour.to_srgb(part)


@dataclass(frozen=True, slots=True)
class Face:
    """One face where a detector found it, in the photo's pixels."""

    box_xyxy: NDArray[np.float64]
    points: Points
    score: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_xyxy", _frozen(self.box_xyxy, "box_xyxy", (4,), np.float64))
        object.__setattr__(self, "points", _frozen(self.points, "points", (5, 2), np.float64))


@dataclass(frozen=True, slots=True)
class Template:
    """Where the five points stand in an aligned crop of `size` pixels."""

    name: str
    size: int
    points: Points

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _frozen(self.points, "points", (5, 2), np.float64))


@dataclass(frozen=True, slots=True)
class Crop:
    """An aligned face: (S, S, 3) pixels and the transform that took them from the photo."""

    pixels: Pixels
    crop_from_photo: Matrix
    face: Face
    template: Template

    def __post_init__(self) -> None:
        size = self.template.size
        object.__setattr__(self, "pixels", _frozen(self.pixels, "pixels", (size, size, 3), np.float32))
        object.__setattr__(
            self, "crop_from_photo", _frozen(self.crop_from_photo, "crop_from_photo", (2, 3), np.float64)
        )


@dataclass(frozen=True, slots=True)
class Patch:
    """What is to be pasted: (S, S, 3) new pixels, the crop they replace, a (S, S) soft mask, and the way there."""

    pixels: Pixels
    original: Pixels
    mask: Mask
    patch_from_photo: Matrix

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", _frozen(self.pixels, "pixels", (None, None, 3), np.float32))
        object.__setattr__(self, "original", _frozen(self.original, "original", self.pixels.shape, np.float32))
        object.__setattr__(self, "mask", _frozen(self.mask, "mask", self.pixels.shape[:2], np.float32))
        object.__setattr__(
            self, "patch_from_photo", _frozen(self.patch_from_photo, "patch_from_photo", (2, 3), np.float64)
        )


@dataclass(frozen=True, slots=True)
class FaceNote:
    """What became of one face, and why.

    `seam` is `measures.seam`'s, and `identity` the likeness of the face before and after, -1..1, `identity`'s; both are
    None where nothing was restored, and identity where the recogniser's weights are not there, too.
    """

    face: Face
    outcome: Outcome
    reason: str
    restorer: str | None = None
    size: int | None = None
    seam: float | None = None
    identity: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to one photo; no pixels, cheap to store and send.

    `fill` says how a hole was filled, empty where there was none: engine, seed, hole_px, boxes, seconds.
    """

    source: str | None
    target: str | None
    width: int
    height: int
    recipe: Mapping[str, Any]
    weights: Mapping[str, str]
    faces: tuple[FaceNote, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    fill: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The new photo, its report, and by face number (from 1, as in the report) what was pasted for each face.

    `canvas` is the photo at the result's scale before anything was pasted; at scale 1 the photo itself. `allowed` is
    the user's mask, (H, W) of the photo, where there was one.
    """

    photo: Photo
    report: Report
    patches: Mapping[int, Patch] = field(default_factory=dict)
    canvas: Photo | None = None
    allowed: Mask | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """One record of the catalogue: a weight file, where it comes from, and what it asks of its user.

    `files` are the names under which the file goes, the first is the one it is stored under. `bytes` is the published
    size; `tensor_bytes` counts the tensors alone, where no size is published: a file is a little larger.
    """

    name: str
    kind: str
    loader: str
    files: tuple[str, ...]
    urls: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = None
    tensor_bytes: int | None = None
    licence: str = ""
    commercial: bool = True
    source: str = ""
    template: str | None = None
    size: int | None = None
    mean: float = 0.5
    std: float = 0.5
    note: str = ""
