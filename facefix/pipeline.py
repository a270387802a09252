"""FaceFix: the one place that knows the order in which a photo is restored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np

from facefix import align, blend, detect, detectors, identity, imagefile, measures, parse, restore, tone, upscale
from facefix import mask as masks
from facefix.errors import DegenerateLandmarks, DeviceError, UsageError
from facefix.given import PhotoLike, as_photo, face_numbers, selected, text_of, user_mask
from facefix.recipe import Recipe
from facefix.restore import Restorer
from facefix.types import Crop, Face, FaceNote, Mask, Patch, Photo, Pixels, Report, Result, Weight
from facefix.weights import Store

Progress = Callable[[int, int], None]

OUTSIDE = "outside of the mask that was given"
"""The reason that a face's note gives where the mask does not touch the face."""

LEFT = "left as it was: its strength was set to 0"
"""The reason that a face's note gives where it was restored, and then taken back."""

_BATCH = 4


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A face that is to be restored: its number in the report, its crop, and by what."""

    number: int
    crop: Crop
    restorer: Restorer


@dataclass(eq=False, repr=False)
class FaceFix:
    """Restores the faces of photos; made by `load`, which finds weights and detector once.

    Example:
        >>> from skimage.data import astronaut
        >>> result = FaceFix.load(Recipe(restorer="identity"))(astronaut())
        >>> [face.outcome for face in result.report.faces]
        ['restored']
    """

    recipe: Recipe
    detector: detectors.Detector
    restorers: restore.Shelf
    _: KW_ONLY
    parser: parse.Parser | None = None
    upscaler: upscale.Upscaler | None = None
    recogniser: identity.Recogniser | None = None
    notices: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()

    @classmethod
    def load(cls, recipe: Recipe | None = None, *, device: str = "auto", store: Store | None = None) -> FaceFix:
        """Everything the recipe asks for, found, checked and ready; networks are read when first needed.

        Args:
            recipe: the settings; the defaults without one.
            device: auto, cpu, cuda, cuda:N or mps.
            store: where weights lie; `Store.default()` without one.

        Raises:
            WeightsError: a weight file is missing, damaged, or of another kind.
            DeviceError: no such device, or it cannot compute with the recipe's precision.
        """
        recipe = recipe or Recipe()
        store = store or Store.default()
        face_numbers(recipe.face)
        shelf = restore.Shelf(recipe.restorer, store, device=device, precision=recipe.precision)
        detector, weight = detectors.installed(recipe.detector, store, device=device)
        used: tuple[Weight, ...] = (weight, *shelf.weights)
        parser = upscaler = None
        if recipe.mask_from not in ("landmarks", "crop"):
            weight, path = store.require(f"parsing_{recipe.mask_from}")
            used += (weight,)
            parser = parse.load(recipe.mask_from, path, device=device)
        if recipe.upscaler != "lanczos" and recipe.scale > 1:
            weight, path = store.require(recipe.upscaler)
            used += (weight,)
            upscaler = upscale.load(path, device=device, precision=recipe.precision)
        notices = store.notices(used)
        return cls(
            recipe,
            detector,
            shelf,
            parser=parser,
            upscaler=upscaler,
            recogniser=identity.installed(store),
            notices=notices,
            weights=used,
        )

    def weight_digests(self) -> dict[str, str]:
        """sha256 of every weight file that may take part, used already or not, by its record's name."""
        store = self.restorers.store
        beside = {weight: store.locate(weight) for weight in self.weights if weight not in self.restorers.weights}
        digests = {weight.name: store.digest(path) for weight, path in beside.items() if path is not None}
        return digests | self.restorers.every_digest()

    def __call__(
        self,
        photo: PhotoLike,
        *,
        mask: Path | str | Mask | None = None,
        touching: Mask | None = None,
        target: Path | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """The restored photo and the report of what was done to each face.

        Args:
            photo: a file's path, a Pillow image, an (H, W[, 1|3|4]) uint8 or uint16 array, or a Photo.
            mask: only where it is white (above 0) may anything change: a picture's path, or (H, W) float32 in 0..1,
                of the photo's size.
            touching: only faces that this mask touches are restored, (H, W) float32; without it, those that `mask`
                does.
            target: where the caller is going to write it, for the report.
            progress: called with the number of faces that are done and that there are.

        Raises:
            PhotoError: the photo or the mask cannot be read, or they differ in size.
            UsageError: the photo or the mask is of another type, as None is that cv2.imread gives for a missing file.
        """
        started = time.perf_counter()
        # 1 read
        photo, allowed = user_mask(mask, as_photo(photo))
        # 2 detect
        recipe = self.recipe
        faces = detect.detect(
            photo,
            self.detector,
            threshold=recipe.threshold or None,
            min_face_px=recipe.min_face,
            rotations=recipe.rotations,  # type: ignore[arg-type]
        )
        # 3 align: a crop for each chosen face, in its restorer's template
        notes, chosen = self._crops(photo, faces, allowed if touching is None else touching)
        # 4 restore, 5 parse and mask, 6 tone
        patches: dict[int, Patch] = {}
        toning = tone.toning(photo) if chosen and self.restorers.changes_faces else None
        for done, (face, pixels, note) in enumerate(self._restored(chosen), 1):
            notes[face.number] = note
            if pixels is not None:
                patches[face.number] = self._patch(face, pixels, toning)
            if progress is not None:
                progress(done, len(chosen))
        # 7 upscale
        canvas = self._canvas(photo)
        # 8 blend
        result = self._blended(canvas, patches, allowed, [recipe.strength] * len(patches), notes)
        # 9 report
        report = self._report(photo, result, notes, target, time.perf_counter() - started)
        return Result(result, report, patches, canvas, allowed)

    def with_recipe(self, recipe: Recipe) -> FaceFix:
        """A FaceFix for another recipe that asks for the same detector, weights and precision; they are shared."""
        return dataclasses.replace(self, recipe=recipe)

    def reblend(self, result: Result, strengths: Mapping[int, float], *, target: Path | None = None) -> Result:
        """The result blended anew from what was restored, each face at its own strength; nothing is restored again.

        A face at strength 0 is left as it was, as if it had not been chosen.

        Args:
            result: what this recipe made, with its patches and canvas.
            strengths: by face number, 0..1; the recipe's for those that are not named.
            target: where the caller is going to write it, for the report.

        Raises:
            UsageError: a number is no restored face's, or a strength is not in 0..1.
        """
        started = time.perf_counter()
        if strange := sorted(set(strengths) - set(result.patches)):
            raise UsageError(f"face {strange[0]}: expected one that was restored, got another; see the report")
        taken = {number: float(strengths.get(number, self.recipe.strength)) for number in result.patches}
        patches = {number: patch for number, patch in result.patches.items() if taken[number] != 0}
        notes = dict(enumerate(result.report.faces, 1))
        for number, strength in taken.items():
            if strength == 0:
                notes[number] = FaceNote(notes[number].face, "skipped", LEFT)
            elif strength != self.recipe.strength:
                notes[number] = dataclasses.replace(notes[number], reason=f"at strength {strength:g}")
        assert result.canvas is not None
        chosen = [taken[number] for number in patches]
        photo = self._blended(result.canvas, patches, result.allowed, chosen, notes)
        seconds = time.perf_counter() - started
        report = dataclasses.replace(
            result.report, faces=tuple(notes.values()), target=text_of(target), seconds=seconds
        )
        return dataclasses.replace(result, photo=photo, report=report, patches=patches)

    def save(self, result: Result, photo: Photo, path: Path | str, *, overwrite: bool = False) -> tuple[str, ...]:
        """Write the result; where no pixel differs from the photo's file, that file is copied byte for byte.

        Args:
            result: what was made of the photo.
            photo: what was read.
            path: where to; its suffix decides the format.
            overwrite: replace a file that is there.

        Returns:
            What the file could not hold, one line each.

        Raises:
            PhotoUnwritable: it could not be written; nothing was left there.
        """
        patches = [patch for _, patch in sorted(result.patches.items())]
        boxes = [blend.touched_box(patch, result.photo, self.recipe.scale) for patch in patches]
        regions = [box for box in boxes if box is not None]
        label = self.recipe.ai_label and bool(result.patches)
        return imagefile.save(result.photo, photo, path, ai_label=label, regions=regions, overwrite=overwrite)

    def _crops(
        self, photo: Photo, faces: Sequence[Face], touching: Mask | None
    ) -> tuple[dict[int, FaceNote], list[_Chosen]]:
        """A note for each face that is left alone, and a crop for each that is not; numbers count from 1."""
        notes: dict[int, FaceNote] = {}
        chosen: list[_Chosen] = []
        wanted = selected(self.recipe.face, photo, faces)
        for number, face in enumerate(faces, 1):
            if number not in wanted:
                notes[number] = FaceNote(face, "skipped", f"not chosen by --face {self.recipe.face}")
                continue
            try:
                crop_or_reason = self._crop(photo, face, touching)
            except DegenerateLandmarks as error:
                crop_or_reason = str(error)
            if isinstance(crop_or_reason, str):
                notes[number] = FaceNote(face, "skipped", crop_or_reason)
            else:
                chosen.append(_Chosen(number, *crop_or_reason))
        return notes, chosen

    def _crop(self, photo: Photo, face: Face, touching: Mask | None) -> tuple[Crop, Restorer] | str:
        """The face's crop and restorer, or the reason to leave it alone."""
        span_px = align.face_px(align.estimate(face.points, self.restorers.template), self.restorers.template)
        size = self.restorers.size_for(span_px * self.recipe.scale)
        beyond = self.recipe.sharp_faces == "leave" and self.restorers.changes_faces
        if beyond and restore.sharper_than(photo, face, span_px, size):
            return f"already sharper than the {size} px that the network gives; --sharp-faces restore does it anyway"
        restorer = self.restorers.take(size)
        crop = align.crop(photo, face, restorer.template)
        if touching is not None and not masks.touches(self._shape(crop), crop.crop_from_photo, touching):
            return OUTSIDE
        return crop, restorer

    def _restored(self, chosen: Sequence[_Chosen]) -> Iterator[tuple[_Chosen, Pixels | None, FaceNote]]:
        """Each face with its new pixels (None where that failed) and its note; faces of one restorer go together."""
        by_restorer: dict[int, list[_Chosen]] = {}
        for face in chosen:
            by_restorer.setdefault(id(face.restorer), []).append(face)
        for group in by_restorer.values():
            for start in range(0, len(group), _BATCH):
                part = group[start : start + _BATCH]
                restorer = part[0].restorer
                began = time.perf_counter()
                reason = "the network gave no finite numbers; try --precision float32"
                pixels: Sequence[Pixels | None]
                try:
                    pixels = restorer([face.crop for face in part])
                except DeviceError as error:
                    pixels, reason = [None] * len(part), str(error)
                seconds = (time.perf_counter() - began) / len(part)
                for face, new in zip(part, pixels, strict=True):
                    fine = new is not None and bool(np.isfinite(new).all())
                    note = FaceNote(
                        face.crop.face,
                        "restored" if fine else "failed",
                        "" if fine else reason,
                        restorer.name,
                        restorer.template.size,
                        seconds=seconds,
                    )
                    yield face, new if fine else None, note

    def _shape(self, crop: Crop) -> Mask:
        """The crop's soft mask."""
        if self.recipe.mask_from == "crop":
            return masks.crop_mask(crop.template.size, self.recipe.feather)
        points = align.moved(crop.crop_from_photo, crop.face.points)
        if self.parser is None:
            return masks.landmark_mask(points, crop.template.size, self.recipe.feather)
        labels = self.parser(crop.pixels)
        return masks.label_mask(labels, self.parser.face_classes, crop.template.size, self.recipe.feather)

    def _patch(self, face: _Chosen, pixels: Pixels, toning: tone.Toning | None) -> Patch:
        """What is pasted for a restored crop: colours and grain as in its photo, and the soft mask."""
        crop, recipe = face.crop, self.recipe
        shape = self._shape(crop)
        if toning is not None:
            mono = recipe.colour == "auto" and toning.kind != "colour"
            if recipe.colour == "keep" or mono:
                pixels = tone.keep_chroma(pixels, crop.pixels, toning)
            elif recipe.colour != "free":
                pixels = tone.match_colour(pixels, crop.pixels, shape)
            photo_pixel_px = align.magnification(crop.crop_from_photo)
            seed = recipe.seed + face.number
            pixels = tone.match_grain(pixels, crop.pixels, shape, photo_pixel_px, recipe.grain, seed)
        return Patch(pixels, crop.pixels, shape, crop.crop_from_photo)

    def _canvas(self, photo: Photo) -> Photo:
        """The photo at the recipe's scale."""
        if self.upscaler is not None:
            return self.upscaler(photo, self.recipe.scale)
        return upscale.lanczos(photo, self.recipe.scale)

    def _blended(
        self,
        canvas: Photo,
        patches: Mapping[int, Patch],
        allowed: Mask | None,
        strengths: Sequence[float],
        notes: dict[int, FaceNote],
    ) -> Photo:
        """The canvas with the patches pasted, each at its strength; their notes get what is measured of them."""
        scale = self.recipe.scale
        pasted = dict(patches)
        if self.upscaler is not None:
            pasted = {number: blend.rebased(patch, canvas, scale) for number, patch in patches.items()}
        if not pasted:
            return canvas
        photo = blend.paste(canvas, list(pasted.values()), scale, allowed, strengths)
        for number, patch in pasted.items():
            note, seam, likeness = notes[number], measures.seam(canvas, photo, patch, scale), None
            if self.recogniser is not None:
                likeness = self.recogniser.likeness(canvas, photo, note.face.points, scale)
            notes[number] = dataclasses.replace(note, seam=seam, identity=likeness)
        return photo

    def _report(
        self, photo: Photo, result: Photo, notes: Mapping[int, FaceNote], target: Path | None, seconds: float
    ) -> Report:
        return Report(
            source=text_of(photo.meta.source),
            target=text_of(target),
            width=result.width,
            height=result.height,
            recipe=self.recipe.values(),
            weights=dict(self.restorers.digests),
            faces=tuple(notes[number] for number in sorted(notes)),
            seconds=seconds,
            warnings=photo.meta.warnings,
        )
