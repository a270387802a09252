"""What is stored beside a result so that each of its faces can be looked at, taken back, and brought in again.

For each restored face the box of the canvas that its mask reaches, before and after, as PNG in the photo's own depth
and colour profile. A face that stands alone needs no more: its box is laid in, or it is not.

Where boxes overlap, a pixel can belong to several faces, and what it becomes without one of them is neither before nor
after. For such faces there is one more file, `shares.npz`: which pixels of its box each one touches, a bit each, and at
the pixels that it shares with others its mask, what it adds, and the user's mask if there is one. Then, with S the
faces that stay,

    a pixel that no face of S touches             is the canvas's
    one that only faces of S touch                is the one that was pasted
    one that faces of S and others touch          is what the faces of S would have made of it

so that taking a face back changes nothing where its mask does not reach, and the order of decisions does not matter.
"""

from __future__ import annotations

import dataclasses
import io
import os
import secrets
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facefix import blend, imagefile, measures
from facefix.errors import PhotoUnreadable, PhotoUnwritable
from facefix.imagefile.colour import gray_of
from facefix.imagefile.png import encode_png
from facefix.jobs.files import inside
from facefix.types import Box, Photo, Raster, Result

Kept = dict[str, Any]
"""The record of one face, ready for JSON: box, before, after (paths below the store), change, and maybe shares."""


def keep(store: Path, job_id: str, photo: Photo, result: Result) -> dict[int, Kept]:
    """By face number, the record of what was stored below store/faces/ for each restored face.

    Running it again writes the same bytes. Nothing is recorded of a face whose mask lies outside the photo.
    `change` is the mean difference, in grey levels of 255, weighted by the face's mask.

    Args:
        store: OUT/.facefix.
        job_id: what the folder is called.
        photo: what was read.
        result: what was made of it.

    Raises:
        PhotoUnwritable: the store cannot be written.
    """
    canvas, recipe = result.canvas or photo, result.report.recipe
    scale = float(recipe["scale"])
    boxes = {
        number: box
        for number, patch in sorted(result.patches.items())
        if (box := blend.touched_box(patch, canvas, scale)) is not None
    }
    folder = Path("faces", job_id[:2], job_id)
    kept: dict[int, Kept] = {}
    for number, box in boxes.items():
        before, after = ((folder / f"{number:03d}.{kind}.png").as_posix() for kind in ("before", "after"))
        put(store, before, _png(canvas, box))
        change = 0.0
        if np.array_equal(canvas.raster[box.slices], result.photo.raster[box.slices]):
            after = before
        else:
            put(store, after, _png(result.photo, box))
            change = measures.change(canvas, result.photo, result.patches[number], scale)
        kept[number] = {"box": list(box), "before": before, "after": after, "change": round(change, 3)}
    numbers = list(boxes)
    tangled = [numbers[i] for group in blend.groups(list(boxes.values())) if len(group) > 1 for i in group]
    if tangled:
        patches = {number: result.patches[number] for number in sorted(tangled)}
        if recipe["upscaler"] != "lanczos" and scale > 1:
            patches = {number: blend.rebased(patch, canvas, scale) for number, patch in patches.items()}
        name = (folder / "shares.npz").as_posix()
        reaches = {
            number: blend.reach(patch, canvas, boxes[number], scale, result.allowed, float(recipe["strength"]))
            for number, patch in patches.items()
        }
        put(store, name, _shares(reaches, boxes))
        for number in tangled:
            kept[number]["shares"] = name
    if kept:
        imagefile.sync_folder(store / folder)
    return kept


def composed(store: Path, canvas: Photo, kept: Mapping[int, Kept], accepted: Collection[int]) -> Photo:
    """The canvas with those faces laid in that are accepted, as if the others had never been restored.

    Args:
        store: OUT/.facefix.
        canvas: as before anything was pasted; `cleared` and the source give it.
        kept: the records of all faces, by their numbers.
        accepted: the numbers of the faces to be laid in; those without a record changed nothing.

    Raises:
        PhotoUnreadable: what was stored is missing or damaged.
    """
    raster = canvas.raster.copy()
    tangled = {number: record for number, record in kept.items() if "shares" in record}
    for number in sorted(kept):
        if number in accepted and number not in tangled:
            raster[Box(*kept[number]["box"]).slices] = _read(store, kept[number], "after")
    staying = [number for number in sorted(tangled) if number in accepted]
    if staying:
        _lay_tangled(store, canvas, raster, tangled, staying)
    return _with(canvas, raster)


def cleared(store: Path, photo: Photo, kept: Mapping[int, Kept]) -> Photo:
    """The photo with each face as it was before: the canvas, where the photo is a result without loss.

    Raises:
        PhotoUnreadable: what was stored is missing or damaged, or belongs to a photo of another size or depth.
    """
    raster = photo.raster.copy()
    for record in kept.values():
        box, before = Box(*record["box"]), _read(store, record, "before")
        if before.dtype != raster.dtype or box.x1 > photo.width or box.y1 > photo.height:
            raise PhotoUnreadable(photo.meta.source, f"it is not the picture whose faces lie in {store}; restore again")
        raster[box.slices] = before
    return _with(photo, raster)


def fits(store: Path, canvas: Photo, kept: Mapping[int, Kept]) -> bool:
    """Whether the canvas shows what was stored as before, bit for bit."""
    return np.array_equal(cleared(store, canvas, kept).raster, canvas.raster)


def pair(store: Path, record: Kept) -> tuple[Photo, Photo]:
    """The face's box before and after.

    Raises:
        PhotoUnreadable: what was stored is missing or damaged.
    """
    return imagefile.read(_below(store, record["before"])), imagefile.read(_below(store, record["after"]))


def put(store: Path, name: str, content: bytes) -> None:
    """Nothing; the file of that name in the store holds the content, got there in one step, and is on the disk.

    Raises:
        PhotoUnwritable: it could not be written; what was there stays.
    """
    path = inside(store.parent, Path(store.name, name).parent) / Path(name).name
    temporary = inside(store.parent, Path(store.name, "tmp")) / f"{secrets.token_hex(8)}.tmp"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        problem = f"it could not be written ({error.strerror or error}); check the folder and the disk"
        raise PhotoUnwritable(path, problem) from error


def _lay_tangled(
    store: Path, canvas: Photo, raster: NDArray[Any], tangled: Mapping[int, Kept], staying: list[int]
) -> None:
    """Writes into the raster what the staying ones of faces whose boxes overlap make of the canvas."""
    boxes = {number: Box(*record["box"]) for number, record in tangled.items()}
    touches, values = _read_shares(_below(store, next(iter(tangled.values()))["shares"]), boxes)
    area = blend.around(boxes.values())
    leaving, several, shared = (np.zeros((area.y1 - area.y0, area.x1 - area.x0), bool) for _ in range(3))
    for number, box in boxes.items():
        at = blend.inside(box, area)
        shared[at] |= several[at] & touches[number]
        several[at] |= touches[number]
        if number not in staying:
            leaving[at] |= touches[number]
    mixed = np.zeros_like(leaving)
    for number in staying:
        at, after = blend.inside(boxes[number], area), _read(store, tangled[number], "after")
        whole = touches[number] & ~leaving[at]
        raster[boxes[number].slices][whole] = after[whole]
        mixed[at] |= touches[number] & leaving[at]
    index, shares = np.flatnonzero(mixed), []
    for number in staying:
        at = blend.inside(boxes[number], area)
        rows, columns = np.nonzero(touches[number] & mixed[at])
        which = np.searchsorted(index, (rows + at[0].start) * mixed.shape[1] + columns + at[1].start)
        own = values[number][mixed[at][touches[number] & shared[at]]]
        shares.append(blend.Share(which, own[:, 0], own[:, 1:4], own[:, 4] if own.shape[1] > 4 else 1.0))
    row, column = np.divmod(index, mixed.shape[1])
    where = row + area.y0, column + area.x0
    raster[where] = blend.joined(canvas, canvas.raster[where], shares)


def _shares(reaches: Mapping[int, blend.Share], boxes: Mapping[int, Box]) -> bytes:
    """The file of the faces whose boxes overlap."""
    area = blend.around(boxes[number] for number in reaches)
    several, shared = (np.zeros((area.y1 - area.y0, area.x1 - area.x0), bool) for _ in range(2))
    touches = {}
    for number, share in reaches.items():
        box = boxes[number]
        touch = np.zeros((box.y1 - box.y0, box.x1 - box.x0), bool)
        touch.reshape(-1)[share.which] = True
        at = blend.inside(box, area)
        shared[at] |= several[at] & touch
        several[at] |= touch
        touches[number] = touch
    arrays: dict[str, NDArray[Any]] = {}
    for number, share in reaches.items():
        both = shared[blend.inside(boxes[number], area)][touches[number]]
        arrays[f"touch{number}"] = np.packbits(touches[number])
        columns = [share.mask, *share.step.T]
        if not isinstance(share.within, float):
            columns.append(share.within)
        arrays[f"share{number}"] = np.stack([column[both] for column in columns], axis=1)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read_shares(
    path: Path, boxes: Mapping[int, Box]
) -> tuple[dict[int, NDArray[np.bool_]], dict[int, NDArray[np.float32]]]:
    """Of each face, which pixels of its box it touches, and its numbers at those that it shares."""
    touches, values = {}, {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            for number, box in boxes.items():
                size = (box.y1 - box.y0, box.x1 - box.x0)
                bits = np.unpackbits(arrays[f"touch{number}"], count=size[0] * size[1])
                touches[number] = bits.reshape(size).astype(bool)
                values[number] = arrays[f"share{number}"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PhotoUnreadable(path, "the stored shares are missing or damaged; restore the photo again") from error
    return touches, values


def _png(photo: Photo, box: Box) -> bytes:
    """A box of the photo as a PNG file, grey where the photo is."""
    part: Any = np.ascontiguousarray(photo.raster[box.slices])
    samples = gray_of(part) if photo.meta.gray else part
    return b"".join(encode_png(samples, icc=photo.meta.icc, exif=None, xmp=None, iptc=None, dpi=None, text=()))


def _read(store: Path, record: Kept, kind: str) -> Raster:
    """The stored raster of a face before or after."""
    path, box = _below(store, record[kind]), Box(*record["box"])
    if not path.is_file():
        raise PhotoUnreadable(path, "the stored face is not there any more; restore the photo again with --force")
    stored = imagefile.read(path)
    if stored.meta.warnings or (stored.width, stored.height) != (box.x1 - box.x0, box.y1 - box.y0):
        told = "the stored face is damaged, or not of the size on record; restore the photo again with --force"
        raise PhotoUnreadable(path, told)
    return stored.raster


def _below(store: Path, name: str) -> Path:
    """The file of that name in the store.

    Raises:
        PhotoUnreadable: the name leads out of it, as no run's does.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise PhotoUnreadable(Path(name), "expected the name of a stored face, got a way out of the store")
    return store / name


def _with(photo: Photo, raster: NDArray[Any]) -> Photo:
    return dataclasses.replace(photo, raster=raster)
