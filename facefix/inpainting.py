"""Inpainter: the one place that knows the order in which a hole is filled and the faces it touches are restored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from facefix import blend, imagefile, inpaint, tone, upscale
from facefix.errors import DeviceError, PhotoRefused, UsageError
from facefix.given import PhotoLike, as_photo, doubting, text_of
from facefix.inpaint import compose, matching
from facefix.inpaint.compose import Bits, Margins
from facefix.pipeline import OUTSIDE, FaceFix
from facefix.recipe import Recipe
from facefix.types import Box, Photo, Pixels, Raster, Report, Result
from facefix.weights import Store

if TYPE_CHECKING:
    from PIL import Image

MaskLike: TypeAlias = "Photo | str | Path | NDArray[Any] | Image.Image"
Progress = Callable[[str, int, int], None]
"""Called with what is being done (fill or faces), how many of its steps are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A photo, what of it is to be filled, what of that becomes opaque, and by how much its frame grows."""

    photo: Photo
    hole: Bits
    opaque: Bits
    growth: Margins


_WISE_DENOISE = 0.5


@dataclass(frozen=True, slots=True)
class _Filled:
    """The photo after the fill, the hole at its size, its tone, and the boxes that the engine saw, in their order."""

    photo: Photo
    hole: Bits
    toning: tone.Toning | None
    boxes: tuple[Box, ...]


@dataclass(eq=False, repr=False)
class Inpainter:
    """Fills holes in photos and restores the faces that they touch; made by `load`.

    Example:
        >>> from skimage.data import astronaut
        >>> hole = np.zeros((512, 512), bool)
        >>> hole[300:302, 40:200] = True
        >>> result = Inpainter.load(Recipe(engine="cv2", faces=False))(astronaut(), hole)
        >>> bool((result.photo.raster[:296] == astronaut()[:296]).all())
        True
    """

    recipe: Recipe
    kind: inpaint.Kind
    engine: inpaint.Engine
    fix: FaceFix | None
    _: KW_ONLY
    enlarge: Callable[[Photo, int], Photo] = upscale.lanczos
    digests: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @classmethod
    def load(cls, recipe: Recipe | None = None, *, device: str = "auto", store: Store | None = None) -> Inpainter:
        """The engine and, unless the recipe leaves faces alone, all that FaceFix needs, found, checked and ready.

        Args:
            recipe: the settings; the defaults without one.
            device: auto, cpu, cuda, cuda:N or mps.
            store: where weights lie; `Store.default()` without one.

        Raises:
            UsageError: a setting that the engine cannot use was changed.
            WeightsError: a weight file is missing, damaged, or of another kind.
            DeviceError: no such device, or it cannot compute with the recipe's precision.
        """
        recipe = recipe or Recipe()
        store = store or Store.default()
        kind, note = inpaint.choose(recipe, store)
        engine, files = inpaint.load(kind, recipe, store, device=device)
        enlarge: Callable[[Photo, int], Photo] = upscale.lanczos
        if recipe.hires > 1 and recipe.upscaler != "lanczos":
            weight, path = store.require(recipe.upscaler)
            enlarge = upscale.load(path, device=device, precision=recipe.precision)
            files += ((weight, path),)
        fix = FaceFix.load(_in_hole(recipe), device=device, store=store) if recipe.faces else None
        notices = store.notices(weight for weight, _ in files)
        if note is not None:
            notices = note, *notices
        if fix is not None:
            notices += fix.notices
        digests = {weight.name: store.digest(path) for weight, path in files}
        return cls(recipe, kind, engine, fix, enlarge=enlarge, digests=digests, notices=notices)

    def with_recipe(self, recipe: Recipe) -> Inpainter:
        """An Inpainter for another recipe that asks for the same engine, networks and precision; they are shared."""
        fix = None if self.fix is None else self.fix.with_recipe(_in_hole(recipe))
        return dataclasses.replace(self, recipe=recipe, fix=fix)

    def __call__(
        self,
        scene: PhotoLike,
        mask: MaskLike | None = None,
        *,
        target: Path | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """The scene with its hole filled and the faces in it restored, and the report of both.

        Args:
            scene: a file's path, a Pillow image, an (H, W[, 1|3|4]) uint8 or uint16 array, or a Photo.
            mask: white is the hole: what is at least half white and half opaque. A picture in any of these forms, or an
                (H, W) array of bool or of floats in 0..1. Without one the pixels of the scene that are not quite
                opaque are the hole, and become opaque.
            target: where the caller is going to write it, for the report.
            progress: called with "fill" or "faces", the steps that are done, and those that there are.

        Returns:
            A photo of the scene's size (larger with `outpaint` or `hires`). Pixels farther than `feather_px` from the
            hole, as it is after `dilate_px`, are the scene's, bit for bit.

        Raises:
            PhotoError: the scene or the mask cannot be read, they differ in size, or the mask leaves nothing to fill,
                or nothing to fill it from.
            UsageError: the scene or the mask is of another type, or `outpaint` is not what it should be.
            DeviceError: the engine's memory ran out, or what it gave is no picture.
        """
        return self._made(self._task(scene, mask), self.recipe.seed, target, progress)

    def candidates(
        self,
        scene: PhotoLike,
        mask: MaskLike | None = None,
        *,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """As many results as `recipe.candidates` says, one at a time, with seeds from `recipe.seed` on."""
        task = self._task(scene, mask)
        for number in range(self.recipe.candidates):
            yield self._made(task, self.recipe.seed + number, None, progress)

    def save(self, result: Result, photo: Photo, path: Path | str, *, overwrite: bool = False) -> tuple[str, ...]:
        """Write the result with the photo's metadata; see `FaceFix.save`.

        Returns:
            What the file could not hold, one line each.

        Raises:
            PhotoUnwritable: it could not be written; nothing was left there.
        """
        boxes = [blend.touched_box(patch, result.photo) for patch in result.patches.values()]
        faces = [box for box in boxes if box is not None]
        label = self.recipe.ai_label and (self.kind.network or bool(faces))
        if _same(result.photo.alpha, photo.alpha):
            return imagefile.save(result.photo, photo, path, ai_label=label, regions=faces, overwrite=overwrite)
        return imagefile.write(result.photo, path, ai_label=label, regions=faces, overwrite=overwrite)

    def _task(self, scene: PhotoLike, mask: MaskLike | None) -> _Task:
        """What there is to do; refused where there is nothing."""
        photo = as_photo(scene)
        growth = compose.margins(self.recipe.outpaint, photo.width, photo.height)
        nothing = np.zeros((photo.height, photo.width), bool)
        if mask is None:
            drawn = compose.transparent(photo)
            if not drawn.any() and not any(growth):
                problem = "expected a mask, got none, and every pixel of the scene is opaque"
                raise PhotoRefused(photo.meta.source, f"{problem}; give a mask, or --outpaint")
        else:
            photo, drawn = _drawn(mask, photo)
            if not drawn.any() and not any(growth):
                problem = "the mask is empty: no pixel of it is at least half white and opaque"
                raise PhotoRefused(photo.meta.source, f"{problem}; draw the hole in white on black")
        hole = compose.grown(drawn, self.recipe.dilate_px)
        return _Task(photo, hole, hole if mask is None else nothing, growth)

    def _made(self, task: _Task, seed: int, target: Path | None, progress: Progress | None) -> Result:
        """The result for one seed."""
        started = time.perf_counter()
        try:
            filled = self._fill(task, seed, progress)
            if self.recipe.hires > 1:
                filled = self._redrawn(filled, seed, progress)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            problem = f"{self.engine.name}: out of memory in a photo of {task.photo.width}x{task.photo.height} px"
            raise DeviceError(f"{problem}; fill smaller holes, one after the other, or a smaller photo") from error
        fill_s = time.perf_counter() - started
        result = self._faces(filled, target, progress)
        facts = {
            "engine": self.engine.name,
            "seed": seed if self.kind.seeded else None,
            "hole_px": int(filled.hole.sum()),
            "boxes": [list(box) for box in filled.boxes],
            "seconds": round(fill_s, 4),
        }
        report = dataclasses.replace(
            result.report,
            recipe=self.recipe.values("inpaint"),
            weights={**self.digests, **result.report.weights},
            seconds=time.perf_counter() - started,
            warnings=(*result.report.warnings, *self._remarks(filled.boxes)),
            fill=facts,
        )
        return dataclasses.replace(result, report=report)

    def _fill(self, task: _Task, seed: int, progress: Progress | None) -> _Filled:
        """The hole filled, and the frame grown step by step: what one step made is known to the next."""
        photo, hole, opaque, todo = task.photo, task.hole, task.opaque, task.hole
        toning = self._toning(photo, hole)
        boxes: list[Box] = []
        for by in list(compose.steps(task.growth)) or [Margins()]:
            new = compose.frame(hole.shape, by)
            alpha = None if photo.alpha is None else compose.extended(photo.alpha, by)
            photo = dataclasses.replace(photo, raster=compose.extended(photo.raster, by), alpha=alpha)
            hole, opaque, todo = (compose.within(bits, by) | new for bits in (hole, opaque, todo))
            photo, seen = self._filled(photo, todo, toning, seed + len(boxes), progress)
            boxes += seen
            todo = np.zeros_like(hole)
        return _Filled(compose.made_opaque(photo, opaque, self.recipe.feather_px), hole, toning, tuple(boxes))

    def _toning(self, photo: Photo, hole: Bits) -> tone.Toning | None:
        """The tone that a network's fill is held to: that of a black-and-white or sepia photo, else None."""
        if not self.kind.network or self.recipe.colour == "free" or hole.all():
            return None
        if hole.any():  # what is painted over the hole has no say
            sparse = np.s_[:: max(1, photo.height // 256), :: max(1, photo.width // 256)]
            known = photo.raster[sparse][~hole[sparse]]
            raster = photo.raster.copy()
            raster[hole] = np.median(known, axis=0) if len(known) else 0
            photo = dataclasses.replace(photo, raster=raster)
        found = tone.toning(photo)
        return None if found.kind == "colour" else found

    def _filled(
        self, photo: Photo, hole: Bits, toning: tone.Toning | None, seed: int, progress: Progress | None
    ) -> tuple[Photo, list[Box]]:
        """The photo with this hole filled, and the boxes that the engine saw."""
        recipe = self.recipe
        soft = compose.soft_mask(hole, recipe.feather_px)
        reach = soft > 0
        if reach.all():
            problem = "the hole covers the whole photo, with --dilate-px and --feather-px around it"
            raise PhotoRefused(photo.meta.source, f"{problem}; leave some of the photo to fill it from")
        raster, pieces = photo.raster.copy(), self._pieces(reach)
        for number, (box, own) in enumerate(pieces):
            scene, part = photo.pixels(box), reach[box.slices]
            guide = matching.guide(scene, part, recipe.contrast)
            told = _named(progress, "fill", number, len(pieces))
            try:
                drawn = self.engine.fill(guide.scene, part.astype(np.float32), seed=seed + number, progress=told)
            except PhotoRefused as refused:  # an engine knows no files
                raise PhotoRefused(photo.meta.source, refused.problem) from refused
            whole = self._finished(guide.back(drawn), scene, part, toning, seed + number)
            compose.lay(photo, raster, box, whole, soft[box.slices] * own)
        return dataclasses.replace(photo, raster=raster), [piece.box for piece in pieces]

    def _redrawn(self, filled: _Filled, seed: int, progress: Progress | None) -> _Filled:
        """The filled photo enlarged, and its holes drawn anew at that size."""
        from facefix.inpaint import diffusion

        recipe, engine, scale = self.recipe, self.engine, self.recipe.hires
        if not isinstance(engine, diffusion.Diffusion):
            raise UsageError(f"--hires: {engine.name} cannot draw anew what is there; take --engine sd or sdxl")
        soft = compose.soft_mask(filled.hole, recipe.feather_px)
        photo = self.enlarge(filled.photo, scale)
        raster, boxes = photo.raster.copy(), self._boxes(soft > 0)
        for number, box in enumerate(boxes):
            drawn = diffusion.hires(
                filled.photo.pixels(box),
                engine,
                scale=scale,
                denoise=recipe.denoise,
                hole=(soft[box.slices] > 0).astype(np.float32),
                upscaler=self.enlarge,
                seed=seed + number,
                progress=_named(progress, "hires", number, len(boxes)),
            )
            large, edge = compose.scaled(box, scale), compose.enlarged(soft[box.slices], scale)
            whole = self._finished(drawn, photo.pixels(large), edge > 0, filled.toning, seed + number)
            compose.lay(photo, raster, large, whole, edge)
        hole = compose.enlarged(filled.hole.astype(np.float32), scale) >= 0.5
        return _Filled(dataclasses.replace(photo, raster=raster), hole, filled.toning, filled.boxes)

    def _pieces(self, reach: Bits) -> list[compose.Piece]:
        """What is filled by itself."""
        if self.kind.sees_px is not None:
            return compose.pieces(reach, self.kind.sees_px)
        return [compose.Piece(box, reach[box.slices]) for box in self._boxes(reach)]

    def _boxes(self, reach: Bits) -> list[Box]:
        """What the engine is to see, one after the other."""
        if self.recipe.region == "masked":
            return compose.regions(reach, self.recipe.context_px)
        return [Box(0, 0, reach.shape[1], reach.shape[0])]

    def _finished(self, drawn: Pixels, scene: Pixels, reach: Bits, toning: tone.Toning | None, seed: int) -> Pixels:
        """What was drawn, in the scene, in its photo's tone, after smoothing and with the grain around it."""
        if not np.isfinite(drawn[reach]).all():
            raise DeviceError(f"{self.engine.name}: it gave no finite numbers; try --precision float32")
        if toning is not None:
            drawn = matching.toned(drawn, toning)
        whole = matching.smoothed(np.where(reach[:, :, None], drawn, scene), self.recipe.post)
        return matching.grained(whole, reach, self.recipe.fill_grain, seed)

    def _remarks(self, boxes: Sequence[Box]) -> tuple[str, ...]:
        """What the report warns of: a shrunk photo where it need not be, and structures that may have changed."""
        most, recipe = self.kind.works_px, self.recipe
        told: list[str] = []
        if recipe.hires > 1 and recipe.denoise > _WISE_DENOISE:
            told.append(f"--denoise {recipe.denoise:g} is above {_WISE_DENOISE}: structures may have changed")
        seen = max((box.x1 - box.x0) * (box.y1 - box.y0) for box in boxes)
        if most is not None and not recipe.tiled and recipe.region != "masked" and seen > 2 * most:
            text = f"{self.engine.name} works at {most / 1e6:.1f} megapixels and saw the photo shrunk to them"
            told.append(f"{text}; --region masked shows it the hole at full size")
        return tuple(told)

    def _faces(self, filled: _Filled, target: Path | None, progress: Progress | None) -> Result:
        """The result with the faces restored that the hole touches, inside its soft edge and `face_spill_px` more."""
        if self.fix is None:
            photo = filled.photo
            report = Report(text_of(photo.meta.source), text_of(target), photo.width, photo.height, {}, {}, (), 0.0)
            return Result(photo, dataclasses.replace(report, warnings=photo.meta.warnings), canvas=photo)
        recipe = self.recipe
        allowed = compose.soft_mask(compose.grown(filled.hole, recipe.face_spill_px), recipe.feather_px)
        result = self.fix(
            filled.photo,
            mask=allowed,
            touching=filled.hole.astype(np.float32),
            target=target,
            progress=_named(progress, "faces"),
        )
        notes = tuple(
            dataclasses.replace(note, reason="the hole does not touch it") if note.reason == OUTSIDE else note
            for note in result.report.faces
        )
        return dataclasses.replace(result, report=dataclasses.replace(result.report, faces=notes))


def _in_hole(recipe: Recipe) -> Recipe:
    """The recipe for the faces in a hole: at the scene's size, and sharp ones too, for nothing sharp is left there."""
    return dataclasses.replace(recipe, scale=1, sharp_faces="restore")


def _named(progress: Progress | None, name: str, number: int = 0, count: int = 1) -> inpaint.Progress | None:
    """The progress of one of several parts, under its name."""
    if progress is None:
        return None
    said = name if count == 1 else f"{name} {number + 1} of {count}"
    return lambda done, total: progress(said, done, total)


def _drawn(given: MaskLike, photo: Photo) -> tuple[Photo, Bits]:
    """The photo, doubting its mask, and what the mask shows in white.

    Raises:
        PhotoError: it cannot be read, is no mask, or has another size than the photo.
    """
    white: NDArray[Any]
    if isinstance(given, np.ndarray) and (given.dtype == bool or np.issubdtype(given.dtype, np.floating)):
        white = given[:, :, 0] if given.ndim == 3 and given.shape[2] == 1 else given
        if white.ndim != 2 or not ((white >= 0) & (white <= 1)).all():
            low, high = (white.min(), white.max()) if white.size else (0, 0)
            got = f"{given.shape} from {low:g} to {high:g}"
            raise PhotoRefused(photo.meta.source, f"the mask: expected (H, W) in 0..1, got {got}; 1 is the hole")
    else:
        picture = as_photo(given, "mask")
        white = compose.whiteness(picture)
        photo = doubting(photo, picture)
    if white.shape != (photo.height, photo.width):
        got = f"{white.shape[1]}x{white.shape[0]}"
        problem = f"the mask does not fit: expected {photo.width}x{photo.height} px as the photo, got {got}"
        turned = white.shape == (photo.width, photo.height) != (photo.height, photo.width)
        advice = "turn it: the photo is taken upright, as it is shown" if turned else "make one of the photo's size"
        raise PhotoRefused(photo.meta.source, f"{problem}; {advice}")
    return photo, np.asarray(white >= 0.5)


def _same(first: Raster | None, second: Raster | None) -> bool:
    return first is second or (first is not None and second is not None and np.array_equal(first, second))
