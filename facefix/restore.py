"""Restorers: aligned crops in, restored crops out.

GPEN, GFPGAN and RestoreFormer differ in network and record (template, size, mean and spread), not in procedure, so
one class serves them all. Two more need no network: `Identity` gives the crop back, and `Pattern` adds a pattern that
is defined in the photo's coordinates; with them anyone can prove the geometry of crop and paste.

The embedded network sees local damage only, so a face that is larger than it is cleaned in tiles, at the photo's own
resolution, up to 1024 px.

torch is imported when the first network is, and never for those that need none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align, tiles
from facefix.errors import WeightsInvalid, WeightsMissing
from facefix.types import Box, Crop, Face, Photo, Pixels, Template, Weight
from facefix.weights import Store

if TYPE_CHECKING:
    from facefix import networks

_TEST_SIZE = 512
_LARGER = 1.25
_CLEANER = "facefix-lite"
_CLEANED = 1024
_STEP = 32
_OVERLAP = 32
_DETAIL = 1.0 / 255
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)


class Restorer(Protocol):
    """What makes new pixels for aligned faces."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def template(self) -> Template:
        """Where the crops it wants have their five points, at its output size."""

    def __call__(self, crops: Sequence[Crop]) -> list[Pixels]:
        """One (S, S, 3) float32 array, 0..1, for each crop, S the template's size."""


@dataclass(frozen=True)
class Identity:
    """Gives every crop back: the photo must come out as it went in."""

    template: Template
    name: str = "identity"

    def __call__(self, crops: Sequence[Crop]) -> list[Pixels]:
        """The crops' own pixels."""
        return [crop.pixels for crop in crops]


@dataclass(frozen=True)
class Pattern:
    """Adds `pattern` as it stands in the photo: what is pasted must show it in the same place and at the same size."""

    template: Template
    name: str = "pattern"
    amplitude: float = 0.08

    def __call__(self, crops: Sequence[Crop]) -> list[Pixels]:
        """The crops' pixels with the pattern added at the photo coordinates of each pixel's centre; not clipped."""
        return [crop.pixels + self.amplitude * self._seen_by(crop) for crop in crops]

    def _seen_by(self, crop: Crop) -> Pixels:
        size = crop.template.size
        rotation, shift = crop.crop_from_photo[:, :2], crop.crop_from_photo[:, 2]
        across, down = np.meshgrid(np.arange(size), np.arange(size))
        x, y = np.linalg.inv(rotation) @ (np.stack([across.ravel(), down.ravel()]) - shift[:, None])
        period = np.sqrt(abs(np.linalg.det(np.linalg.inv(rotation)))) * size / 4
        return pattern(x.reshape(size, size), y.reshape(size, size), period)


def pattern(x: np.ndarray, y: np.ndarray, period_px: float) -> Pixels:
    """A smooth (…, 3) pattern in −1..1 at the photo coordinates (x, y), with no symmetry that could hide a mistake.

    Args:
        x: across, in photo pixels, any shape.
        y: down, of the same shape.
        period_px: length of its shortest wave, in photo pixels.
    """
    turn = 2 * np.pi / period_px
    waves = [
        np.sin(turn * (0.93 * x + 0.31 * y)),
        np.sin(turn * (0.29 * x - 0.88 * y) + 1.0),
        np.sin(turn * (0.61 * x + 0.55 * y) + 2.0),
    ]
    return np.stack(waves, axis=-1).astype(np.float32)


class NetworkRestorer:
    """A loaded network with its record's template.

    Args:
        network: (B, 3, in_size, in_size) in −1..1 -> (B, 3, out_size, out_size).
        name: what reports call it.
        template: at the network's output size; larger for a network that works in tiles.
    """

    def __init__(self, network: networks.Network, name: str, template: Template) -> None:
        self.network = network
        self.name = name
        self.template = template

    def __call__(self, crops: Sequence[Crop]) -> list[Pixels]:
        """The restored crops, in batches that fit the device's memory."""
        return self.made_of([crop.pixels for crop in crops])

    def made_of(self, pictures: Sequence[Pixels]) -> list[Pixels]:
        """What the network makes of aligned faces, (S, S, 3) each, S the template's size."""
        from facefix import runtime

        if self.template.size > self.network.out_size:
            return [self._in_tiles(picture) for picture in pictures]
        seen = [_shrunk(picture, self.network.in_size) for picture in pictures]
        return runtime.run(self.network, seen, batch=len(seen))

    def _in_tiles(self, picture: Pixels) -> Pixels:
        """The picture, each part of which the network saw at its own resolution."""
        from facefix import runtime

        side, tile = self.template.size, self.network.in_size
        parts = [picture[box.slices] for box in tiles.grid(side, side, tile, _OVERLAP)]
        return tiles.blend(runtime.run(self.network, parts, batch=4), side, side, tile, _OVERLAP)


def _shrunk(pixels: Pixels, size: int) -> Pixels:
    """The pixels at what the network takes: itself unless it enlarges (GPEN's SR variant)."""
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA), np.float32)


class Shelf:
    """The restorers that a recipe may take, by size; a network's file is read when it is first taken.

    A subclass for another trade names the kind of weights that it takes, and says in `dressed` what is made of them.

    Args:
        name: auto, identity, pattern, a record's name, or a weight file's path. auto takes every GPEN that the store
            holds; without one GFPGAN or RestoreFormer; without those the embedded network.
        store: where the files lie.
        device: where networks run.
        precision: their arithmetic, as in `runtime`.

    Attributes:
        weights: the records that the restorers come from.
        digests: sha256 of each file that was read, by the record's name.
        template: what a face's span is measured in.
        changes_faces: False for the restorers that only check the geometry.

    Raises:
        WeightsError: the named file is missing, damaged, or no restorer.
        DeviceError: no such device or precision.
    """

    kind, called = "restorer", "face restorer"

    def __init__(self, name: str, store: Store, *, device: str, precision: str) -> None:
        self.changes_faces = name not in ("identity", "pattern")
        if self.changes_faces or precision not in ("auto", "float32") or device not in ("auto", "cpu"):
            from facefix import runtime

            runtime.choose_precision(precision, runtime.choose_device(device))
        self.store, self.device, self.precision = store, device, precision
        self.digests: dict[str, str] = {}
        self.template = align.template("gpen", _TEST_SIZE)
        self._ready: dict[int, Restorer] = {}
        self._files: dict[int, tuple[Weight, Path]] = {}
        self._cleans = False
        if not self.changes_faces:
            self.weights: tuple[Weight, ...] = ()
            self._ready[_TEST_SIZE] = Identity(self.template) if name == "identity" else Pattern(self.template)
            return
        found = _installed(store) if name == "auto" else (store.require(name),)
        self.weights = tuple(weight for weight, _ in found)
        for weight, path in found:
            if weight.kind not in (self.kind, "unknown"):
                problem = f"expected a {self.called}, got a {weight.kind}; see `facefix weights list`"
                raise WeightsInvalid(path, problem)
            self._cleans = weight.name.startswith(_CLEANER)
            if weight.size is not None:
                self._files.setdefault(weight.size, (weight, path))
            else:
                restorer = self._read(weight, path)
                self._ready[restorer.template.size] = restorer

    def size_for(self, span_px: float) -> int:
        """The output size for a crop that spans `span_px` output pixels: the smallest as large, else the largest.

        The embedded network's is the crop's own, to 32 px, where that is more than a quarter above 256 and up to 1024.
        """
        sizes = sorted({*self._ready, *self._files})
        if self._cleans:
            whole = span_px <= _LARGER * sizes[0]
            return sizes[0] if whole else min(_STEP * round(span_px / _STEP), _CLEANED)
        return next((size for size in sizes if size >= span_px), sizes[-1])

    def take(self, size: int) -> Restorer:
        """The restorer of that size, ready.

        Raises:
            WeightsInvalid: its file is damaged or no restorer.
        """
        if size not in self._ready:
            if self._cleans and size not in self._files:
                whole = self.take(self.size_for(0))
                assert isinstance(whole, NetworkRestorer)
                template = align.template(whole.template.name, size)
                self._ready[size] = NetworkRestorer(whole.network, whole.name, template)
            else:
                self._ready[size] = self._read(*self._files[size])
        return self._ready[size]

    def every_digest(self) -> dict[str, str]:
        """sha256 of each file that may be taken, read already or not, by the record's name."""
        return self.digests | {weight.name: self.store.digest(path) for weight, path in self._files.values()}

    def dressed(self, restorer: NetworkRestorer) -> Restorer:
        """What is taken from the shelf for a network: here itself."""
        return restorer

    def _read(self, weight: Weight, path: Path) -> Restorer:
        """The file's network; the template is its record's, or by its kind where no record knows it."""
        from facefix import networks

        self.store.check(weight, path)
        network = networks.load(path, device=self.device, precision=self.precision)
        template = weight.template or ("gpen" if network.architecture == "GPEN" else "ffhq")
        self.digests[weight.name] = self.store.digest(path)
        return self.dressed(NetworkRestorer(network, weight.name, align.template(template, network.out_size)))


def _installed(store: Store) -> tuple[tuple[Weight, Path], ...]:
    """What auto may take: the best family that is there.

    Raises:
        WeightsMissing: not even the embedded network is there.
    """
    there = store.available("restorer")
    embedded = tuple(pair for pair in there if pair[0].name.startswith(_CLEANER))
    others = [pair for pair in there if pair not in embedded]
    gpen = tuple(pair for pair in others if pair[0].loader == "gpen")
    chosen = gpen or tuple(others[:1]) or embedded
    if not chosen:
        raise WeightsMissing("no restorer is here; run `facefix weights fetch gpen-bfr-512` or reinstall facefix")
    return chosen


def sharper_than(photo: Photo, face: Face, span_px: float, size: int) -> bool:
    """Whether the face is larger than a network's output and holds detail that the output could not.

    What its cosine transform has beyond the output's finest wave is measured as a standard deviation; the share that
    dense noise has in it, estimated from the median, is taken away. More than 1 of 255 levels is detail: of the test
    photos, sharp faces twice as large as the output have 1.3 to 5.1, blurred, grainy or enlarged ones 0.0 to 0.6.

    Args:
        photo: where the face is.
        face: which one.
        span_px: photo pixels along the side of its crop.
        size: side of the network's output, px.
    """
    if span_px < _LARGER * size:
        return False
    low = np.maximum(np.floor(face.box_xyxy[:2]), 0).astype(int)
    high = np.minimum(np.ceil(face.box_xyxy[2:]), (photo.width, photo.height)).astype(int)
    box = Box(*low.tolist(), *high.tolist())
    if box.x1 - box.x0 < 8 or box.y1 - box.y0 < 8:
        return False
    luma: NDArray[np.float32] = np.asarray(cv2.transform(photo.pixels(box), _LUMA), np.float32)
    waves = cv2.dct(luma[: luma.shape[0] // 2 * 2, : luma.shape[1] // 2 * 2])
    kept = np.ceil(np.array(waves.shape) * size / span_px).astype(int)
    waves[: kept[0], : kept[1]] = 0
    lost = cv2.idct(waves)
    noise = float(np.median(np.abs(lost))) / 0.6745
    return math.sqrt(max(0.0, float(lost.var()) - noise**2)) > _DETAIL
