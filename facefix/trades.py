"""GPEN's other trades: colouring the faces of a photo, drawing a face from a label map, and the recipe for a selfie.

They are the published network with other weights, and differ in what it is shown and what is taken from its answer:

    colorize   the gray face, aligned as FFHQ is; of the answer its chroma, at the photo's own lightness
    seg2face   a label map in the published colours, as 0..1 and not -1..1; the whole answer
    selfie     restoration of one large face at 2048 px, eight tenths of it, the photo enlarged to twice its size

Face filling is an engine of `facefix inpaint` and stands in `inpaint.gpen_face`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import align, imagefile, networks, parse, runtime, tone
from facefix.errors import DeviceError, PhotoRefused, WeightsInvalid
from facefix.given import PhotoLike, as_photo, text_of
from facefix.imagefile.xmp import all_made
from facefix.pipeline import FaceFix, Progress
from facefix.recipe import Recipe
from facefix.restore import NetworkRestorer, Restorer, Shelf
from facefix.types import Crop, Labels, Mask, Meta, Photo, Pixels, PlainSRGB, Report, Result
from facefix.weights import Store

COLORIZER, DRAWER = "gpen-colorization-1024", "gpen-seg2face-512"
_SELFIE = ("gpen-bfr-2048", "gpen-bfr-1024")
_TEMPLATE = "ffhq"
_ROWS = 256
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# --- colour ----------------------------------------------------------------------------------------------------------


class Colorizer:
    """Gives the faces of photos colour; made by `load`.

    The lightness stays the photo's own: the network's answer only decides the chroma of CIE Lab, inside the same soft
    masks in which faces are restored. What is around the faces keeps its gray; `Recipe.mask_from` "crop" takes in the
    hair and surroundings of a portrait.
    """

    def __init__(self, fix: FaceFix, brushes: _Brushes) -> None:
        self.fix = fix
        self.brushes = brushes
        self.notices = fix.notices

    @classmethod
    def load(
        cls, recipe: Recipe | None = None, *, model: str = "", device: str = "auto", store: Store | None = None
    ) -> Colorizer:
        """The network and all that finds and masks faces, found, checked and ready.

        Args:
            recipe: the settings; those of `Recipe.settings("colorize")` count.
            model: a name of the store or a weight file's path; GPEN-Colorization-1024 without one.
            device: auto, cpu, cuda, cuda:N or mps.
            store: where weights lie; `Store.default()` without one.

        Raises:
            WeightsError: a weight file is missing, damaged, or of another kind.
            DeviceError: no such device, or it cannot compute with the recipe's precision.
        """
        store = store or Store.default()
        recipe = Recipe(**(recipe or Recipe()).values("colorize"))
        brushes = _Brushes(model or COLORIZER, store, device=device, recipe=recipe)
        fix = FaceFix.load(dataclasses.replace(recipe, restorer="identity"), device=device, store=store)
        fix.restorers, fix.weights = brushes, (*fix.weights, *brushes.weights)
        fix.notices += store.notices(brushes.weights)
        return cls(fix, brushes)

    def __call__(
        self,
        photo: PhotoLike,
        *,
        mask: Path | str | Mask | None = None,
        aligned: bool = False,
        target: Path | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """The photo with its faces in colour, in RGB whatever it was, and the report of what was done to each.

        Args:
            photo: a file's path, a Pillow image, an (H, W[, 1|3|4]) uint8 or uint16 array, or a Photo.
            mask: as for `FaceFix`.
            aligned: the photo is one face already, aligned as FFHQ is: no face is looked for, and all of it is
                coloured. That is how the network was published; any other picture it has never seen.
            target: where the caller is going to write it, for the report.
            progress: called with the number of faces that are done and that there are.

        Raises:
            PhotoError: the photo or the mask cannot be read, they differ in size, or an aligned face is not square.
            DeviceError: the memory ran out on an aligned face, or what the network gave for it is no picture.
        """
        photo = as_photo(photo)
        ready = imagefile.in_colour(photo)
        if aligned:
            result = self._whole(ready, target)
        else:
            result = self.fix(ready, mask=mask, target=target, progress=progress)
            result = dataclasses.replace(result, photo=_relit(ready, result.photo))
        warnings = result.report.warnings
        if (aligned or result.patches) and tone.toning(photo).kind == "colour":
            warnings += ("this photo has colours of its own; the network's take their place",)
        report = dataclasses.replace(result.report, recipe=self.fix.recipe.values("colorize"), warnings=warnings)
        return dataclasses.replace(result, report=report)

    def save(self, result: Result, photo: Photo, path: Path | str, *, overwrite: bool = False) -> tuple[str, ...]:
        """Write the result; where no pixel differs from the photo's file, that file is copied byte for byte.

        Returns:
            What the file could not hold, one line each.

        Raises:
            PhotoUnwritable: it could not be written; nothing was left there.
        """
        if result.canvas is not None and np.array_equal(result.photo.raster, result.canvas.raster):
            return imagefile.save(photo, photo, path, ai_label=False, overwrite=overwrite)
        if result.patches:
            return self.fix.save(result, photo, path, overwrite=overwrite)
        return imagefile.write(result.photo, path, ai_label=self.fix.recipe.ai_label, overwrite=overwrite)

    def _whole(self, photo: Photo, target: Path | None) -> Result:
        """All of an aligned face in colour."""
        started = time.perf_counter()
        if photo.width != photo.height:
            problem = f"expected an aligned face, which is square, got {photo.width}x{photo.height} px"
            raise PhotoRefused(photo.meta.source, f"{problem}; cut it, or let its faces be found")
        brush = self.brushes.brush()
        [small] = brush.painted([_resized(photo.pixels(), brush.template.size)])
        coloured = _resized(_finite(small), photo.width)
        raster = photo.raster.copy()
        for top in range(0, photo.height, _ROWS):
            rows = slice(top, top + _ROWS)
            own = photo.colour.to_srgb(photo.raster[rows])
            new = tone.with_chroma(own, coloured[rows], brush.chroma)
            raster[rows] = photo.colour.from_srgb(new, photo.meta.bits)
        made = dataclasses.replace(photo, raster=raster)
        report = Report(
            source=text_of(photo.meta.source),
            target=text_of(target),
            width=photo.width,
            height=photo.height,
            recipe={},
            weights=dict(self.brushes.digests),
            faces=(),
            seconds=time.perf_counter() - started,
            warnings=photo.meta.warnings,
        )
        return Result(made, report, canvas=photo)


def _relit(photo: Photo, coloured: Photo) -> Photo:
    """The coloured photo with the lightness of the one it was made from, at every pixel that has changed.

    A patch is as fine as the network; where the photo is finer, its own lightness would else show in the wrong chroma.
    """
    raster = coloured.raster.copy()
    for top in range(0, photo.height, _ROWS):
        rows = slice(top, top + _ROWS)
        changed = (raster[rows] != photo.raster[rows]).any(axis=2)
        if changed.any():
            old, new = (photo.colour.to_srgb(each[rows][changed][None]) for each in (photo.raster, raster))
            raster[rows][changed] = photo.colour.from_srgb(tone.with_chroma(old, new), photo.meta.bits)[0]
    return dataclasses.replace(coloured, raster=raster)


class _Brush:
    """A restorer that gives a crop the network's chroma.

    Args:
        network: what was trained to colour gray faces.
        chroma: part of its colour to take.
    """

    def __init__(self, network: NetworkRestorer, chroma: float) -> None:
        self.network = network
        self.chroma = chroma
        self.name = network.name
        # that of the record, also for a file that no record knows
        self.template = align.template(_TEMPLATE, network.template.size)

    def __call__(self, crops: Sequence[Crop]) -> list[Pixels]:
        """The crops at their own lightness in the network's chroma; NaN where that is what the network gave."""
        painted = self.painted([crop.pixels for crop in crops])
        return [
            tone.with_chroma(crop.pixels, new, self.chroma) if np.isfinite(new).all() else new
            for crop, new in zip(crops, painted, strict=True)
        ]

    def painted(self, pictures: Sequence[Pixels]) -> list[Pixels]:
        """What the network makes of the pictures' gray, (S, S, 3) each."""
        return self.network.made_of([np.repeat((picture @ _LUMA)[:, :, None], 3, axis=2) for picture in pictures])


class _Brushes(Shelf):
    """The one network that colours; what it changes is chroma alone, so nothing is matched to the photo afterwards."""

    kind, called = "colorizer", "network that colours faces"

    def __init__(self, name: str, store: Store, *, device: str, recipe: Recipe) -> None:
        self.chroma = recipe.chroma
        path = store.require(name)[1]
        super().__init__(str(path.absolute()), store, device=device, precision=recipe.precision)
        self.changes_faces = False

    def dressed(self, restorer: NetworkRestorer) -> Restorer:
        """The brush that the network is."""
        return _Brush(restorer, self.chroma)

    def brush(self) -> _Brush:
        """The one there is, ready."""
        only = self.take(self.size_for(0))
        assert isinstance(only, _Brush)
        return only


def _finite(pixels: Pixels) -> Pixels:
    """The pixels themselves.

    Raises:
        DeviceError: there are none, but NaN or infinite numbers.
    """
    if not np.isfinite(pixels).all():
        raise DeviceError("the network gave no finite numbers; try --precision float32")
    return pixels


def _resized(pixels: Pixels, size: int) -> Pixels:
    """The square picture at another size, about pixel centres."""
    way = cv2.INTER_AREA if size < pixels.shape[0] else cv2.INTER_CUBIC
    resized: Any = cv2.resize(pixels, (size, size), interpolation=way)
    return np.asarray(np.clip(resized, 0, 1), np.float32)


# --- faces from label maps -------------------------------------------------------------------------------------------

CLASSES = parse.KINDS["parsenet"].classes
"""What the numbers of a label map mean: the order of CelebAMask-HQ, which ParseNet gives, too."""

PALETTE: NDArray[np.uint8] = np.array(
    [
        (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204), (0, 255, 255),
        (51, 255, 255), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0), (0, 0, 153), (0, 0, 204),
        (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51), (0, 204, 0),
    ],
    np.uint8,
)  # fmt: skip
"""(19, 3) RGB of each class as the network was shown it.

Source: counted in the 20 published examples; glasses and hat, which none of them has, from CelebAMask-HQ's own table.
That table has another colour for the right brow, (255, 204, 204), which is taken for it, too.
"""

_OTHER_RIGHT_BROW = (255, 204, 204)


class FaceDrawer:
    """Draws faces from label maps; made by `load`."""

    def __init__(
        self, network: networks.Network, name: str, *, digests: Mapping[str, str], notices: tuple[str, ...] = ()
    ) -> None:
        self.network = network
        self.name = name
        self.digests = MappingProxyType(dict(digests))
        self.notices = notices

    @classmethod
    def load(
        cls, model: str = "", *, device: str = "auto", precision: str = "auto", store: Store | None = None
    ) -> FaceDrawer:
        """The network, found, checked and ready.

        Args:
            model: a name of the store or a weight file's path; GPEN-Seg2face-512 without one.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: its arithmetic, as in `runtime`.
            store: where weights lie; `Store.default()` without one.

        Raises:
            WeightsError: the file is missing, damaged, or of another kind.
            DeviceError: no such device, or it cannot compute with that precision.
        """
        store = store or Store.default()
        weight, path = store.require(model or DRAWER)
        if weight.kind not in ("seg2face", "unknown"):
            raise WeightsInvalid(path, f"expected a network that draws faces from label maps, got a {weight.kind}")
        network = networks.load(path, device=device, precision=precision)
        digests = {weight.name: store.digest(path)}
        return cls(network, weight.name, digests=digests, notices=store.notices([weight]))

    def __call__(self, labels: Labels) -> Pixels:
        """The face, (S, S, 3) float32, 0..1.

        Args:
            labels: (n, n) uint8, numbers of `CLASSES`; see `labels_of`. It is brought to the network's size by taking
                the nearest label.

        Raises:
            DeviceError: the memory ran out, or what the network gave is no picture.
        """
        size = self.network.in_size
        whole: Any = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        shown = PALETTE[whole].astype(np.float32) / np.float32(255)
        # as published: this network alone was trained on 0..1 both ways
        return _finite(runtime.run(self.network, [shown], mean=0.0, std=1.0)[0])

    def save(self, face: Pixels, path: Path | str, *, overwrite: bool = False) -> tuple[str, ...]:
        """Write the face as 8-bit sRGB, marked as made by AI from edge to edge.

        Returns:
            What the file could not hold, one line each.

        Raises:
            PhotoUnwritable: it could not be written; nothing was left there.
        """
        photo = Photo(PlainSRGB().from_srgb(face, 8), Meta(xmp=all_made()))
        return imagefile.write(photo, path, overwrite=overwrite)


def labels_of(picture: Photo) -> Labels:
    """The label map that a picture shows, (n, n) uint8 numbers of `CLASSES`.

    Args:
        picture: square; grey with the numbers 0 to 18 as its values, or in the colours of `PALETTE`.

    Raises:
        PhotoRefused: another shape, or a value that is neither.
    """
    codes: NDArray[Any] = picture.raster
    if picture.width != picture.height:
        problem = f"expected a square label map of an aligned face, got {picture.width}x{picture.height} px"
        raise PhotoRefused(picture.meta.source, f"{problem}; cut it square")
    if codes.max() < len(PALETTE) and (codes == codes[:, :, :1]).all():
        return np.ascontiguousarray(codes[:, :, 0]).astype(np.uint8)
    if picture.meta.bits == 16:
        codes = codes // 257
    known = {_packed(np.array(colour)).item(): number for number, colour in enumerate(PALETTE)}
    known[_packed(np.array(_OTHER_RIGHT_BROW)).item()] = CLASSES.index("right brow")
    colours, where, counts = np.unique(_packed(codes), return_inverse=True, return_counts=True)
    foreign = [index for index, colour in enumerate(colours.tolist()) if colour not in known]
    if foreign:
        most = max(foreign, key=lambda index: int(counts[index]))
        colour = tuple(int(colours[most]) >> shift & 255 for shift in (16, 8, 0))
        part = f"{len(foreign)} others such as {colour} in {counts[foreign].sum() / codes[:, :, 0].size:.0%} of it"
        problem = f"expected a label map in the colours of CelebAMask-HQ, or grey values 0 to 18, got {part}"
        raise PhotoRefused(picture.meta.source, f"{problem}; save it without smoothing or compression, as PNG")
    numbers = np.array([known[colour] for colour in colours.tolist()], np.uint8)
    return numbers[where].reshape(codes.shape[:2])


def _packed(colours: NDArray[Any]) -> NDArray[np.uint32]:
    """Each (…, 3) colour as one number."""
    return np.asarray(colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32), np.uint32)


# --- selfies ---------------------------------------------------------------------------------------------------------


def selfie(store: Store | None = None) -> Recipe:
    """The recipe for one large face, with the published demo's settings as far as the weights are there.

    It takes GPEN-BFR-2048 (or, where only that is there, -1024) with its own template for the largest face, however
    sharp that is, lays eight tenths of it over the photo, and enlarges the photo to twice its size: by Real-ESRGAN
    where its weights are, else by Lanczos. The demo's own enlarger is another network, which facefix does not read.

    Args:
        store: where weights lie; `Store.default()` without one.

    Source: the last command of GPEN's run.sh that is not commented out.
    """
    store = store or Store.default()
    there = [name for name in _SELFIE if store.find(name) is not None]
    enlarger = "realesrgan-x2plus"
    return Recipe(
        restorer=there[0] if there else _SELFIE[0],
        face="largest",
        sharp_faces="restore",
        strength=0.8,
        scale=2,
        upscaler=enlarger if store.find(enlarger) is not None else "lanczos",
    )
