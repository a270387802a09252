"""Taking restored faces back, and bringing them in again.

A result is made anew from its canvas and what was kept of the faces that stay, and is what a run that had restored
these faces alone would have written. Where the canvas comes from decides what stays untouched:

    PNG, TIFF, BMP, lossless WebP   the result itself, with what was kept before laid in: no other pixel can change. The
                                    source is asked for its metadata only, and may be gone
    JPEG, lossy WebP                the source, enlarged as then where it was: encoding the decoded result once more
                                    would wear all of it. A JPEG's blocks that no such face touches stay bit for bit
    nothing differs any more        the source's file, byte for byte, as the run itself would have put there

A result that somebody has changed since is refused. Everything is written in one step, and the same call again finishes
what a power cut left between the file and the journal.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facefix import imagefile
from facefix.errors import PhotoRefused, PhotoUnreadable, PhotoUnwritable, shown
from facefix.imagefile import xmp
from facefix.jobs import kept as store_of
from facefix.jobs.database import FOLDER
from facefix.jobs.files import file_sha256, inside, put
from facefix.jobs.journal import Journal
from facefix.jobs.kept import Kept
from facefix.jobs.rows import Row
from facefix.jobs.workers import STAGE
from facefix.types import Box, Photo

if TYPE_CHECKING:
    from facefix.upscale import Upscaler


def faces_of(report: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The restored faces of a report by their numbers, rejected ones among them."""
    return {number: face for number, face in enumerate(report["faces"], 1) if face["outcome"] == "restored"}


def records_of(report: Mapping[str, Any]) -> dict[int, Kept]:
    """What was kept of the restored faces, by their numbers."""
    return {number: face["kept"] for number, face in faces_of(report).items() if "kept" in face}


def accepted_in(report: Mapping[str, Any]) -> set[int]:
    """The numbers of the restored faces that stand in the result."""
    return {number for number, face in faces_of(report).items() if not face.get("rejected")}


def decide(
    journal: Journal,
    row: Row,
    *,
    reject: Collection[int] = (),
    accept: Collection[int] = (),
    force: bool = False,
) -> tuple[set[int], set[int]]:
    """The faces that were taken back now, and those that were brought in again; result and journal agree on it.

    Args:
        journal: open for writing.
        row: of the photo.
        reject: numbers of faces, from 1 as in the report.
        accept: the same.
        force: even where somebody has changed the result since; in a JPEG these changes are lost.

    Raises:
        PhotoRefused: the photo was not restored, has no such restored face, or was changed since.
        PhotoUnreadable: the result, what was kept, or the source that is needed is missing or damaged.
        PhotoUnwritable: the result cannot be written; it stays as it was.
    """
    report = journal.report(row.id) if row.id is not None else None
    if report is None or row.target is None:
        why = (row.reason or "its turn has not come").removeprefix(f"{shown(row.source)}: ")
        raise PhotoRefused(row.source, f"was not restored ({why}); there is nothing to take back")
    for number in sorted({*reject, *accept}):
        _check_face(row, report, number)
    before = accepted_in(report)
    after = before.difference(reject).union(accept)
    if after != before:
        target = inside(journal.out, row.target.parent) / row.target.name
        digest = _rewrite(journal.out, row, target, report, after, force)
        for number, face in faces_of(report).items():
            report["faces"][number - 1] = {**face, "rejected": True} if number not in after else _without_mark(face)
        journal.amend(report["id"], report | {"target_sha256": digest})
    return before - after, after - before


def canvas_of(photo: Photo, recipe: Mapping[str, Any]) -> Photo:
    """The photo at the recipe's scale, as the pipeline enlarges it; itself at scale 1.

    Raises:
        WeightsError: the network that enlarged it is not here.
    """
    if recipe["scale"] == 1:
        return photo
    from facefix import upscale

    if recipe["upscaler"] == "lanczos":
        return upscale.lanczos(photo, recipe["scale"])
    return _upscaler(recipe["upscaler"], recipe["precision"])(photo, recipe["scale"])


@functools.lru_cache(maxsize=1)
def _upscaler(name: str, precision: str) -> Upscaler:
    import torch

    from facefix import upscale
    from facefix.weights import Store

    torch.set_num_threads(1)  # as a run's workers: how a sum is split over threads decides its last bit
    return upscale.load(Store.default().require(name)[1], device="auto", precision=precision)


def source_of(row: Row, report: Mapping[str, Any]) -> Photo:
    """The photo's source, if it still holds what was restored.

    Raises:
        PhotoUnreadable: it is gone or changed.
    """
    try:
        same = file_sha256(row.source) == report["source_sha256"]
    except OSError as error:
        raise PhotoUnreadable(row.source, f"the source is not there any more ({error.strerror})") from error
    if not same:
        raise PhotoUnreadable(row.source, "the source was changed since it was restored")
    return imagefile.read(row.source, max_pixels=ANY_SIZE)


ANY_SIZE = 1 << 62
"""Of a photo that was restored: its size was found good then, whatever the limit is by itself."""


def _check_face(row: Row, report: Mapping[str, Any], number: int) -> None:
    faces = report["faces"]
    if not 1 <= number <= len(faces):
        known = f"one of 1 to {len(faces)}" if faces else "none: no face was found"
        raise PhotoRefused(row.source, f"expected a face's number, {known}, got {number}; see the report")
    face = faces[number - 1]
    if face["outcome"] != "restored":
        told = f"face {number} was not restored but {face['outcome']} ({face['reason']})"
        raise PhotoRefused(row.source, f"{told}; there is nothing to take back")


def _without_mark(face: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in face.items() if key != "rejected"}


def _rewrite(out: Path, row: Row, target: Path, report: Mapping[str, Any], accepted: set[int], force: bool) -> str:
    """The sha256 of the result, which now shows the accepted faces and no other."""
    try:
        state, digest = target.stat(), file_sha256(target)
    except OSError as error:
        problem = f"the result is not there ({error.strerror}); run the same restore again"
        raise PhotoUnreadable(target, problem) from error
    staged = inside(out, STAGE) / f"{row.number}-undo{target.suffix}"
    try:
        _write(out, row, target, report, accepted, staged)
        made = file_sha256(staged)
        if digest not in (report["target_sha256"], made) and not force:
            problem = "it was changed since facefix wrote it; restore the photo again, or pass --force to go on from it"
            raise PhotoRefused(target, problem)
        staged.chmod(state.st_mode & 0o7777)
        os.utime(staged, ns=(state.st_atime_ns, state.st_mtime_ns))
        put(staged, target, replace=True)
    except PhotoUnwritable as error:  # the name that the user knows, not that of the file it is written to first
        raise PhotoUnwritable(target, error.problem) from error.__cause__
    except OSError as error:
        raise PhotoUnwritable(target, f"{error.strerror or error}; check the folder and the disk") from error
    finally:
        staged.unlink(missing_ok=True)
    return made


def _write(out: Path, row: Row, target: Path, report: Mapping[str, Any], accepted: set[int], staged: Path) -> None:
    """Writes to `staged` what a run that restored the accepted faces alone would have written."""
    store, records = out / FOLDER, records_of(report)
    result = imagefile.read(target, max_pixels=ANY_SIZE)
    expected = (report["width"], report["height"])
    if (result.width, result.height) != expected:
        got = f"{result.width}x{result.height}"
        raise PhotoRefused(target, f"expected {expected[0]}x{expected[1]} px as written, got {got}; restore it again")
    source, canvas = _canvas(store, row, report, records, result)
    composed = store_of.composed(store, canvas, records, accepted)
    label = bool(report["recipe"]["ai_label"] and accepted)
    regions = [Box(*record["box"]) for number, record in sorted(records.items()) if number in accepted]
    imagefile.save(composed, source, staged, ai_label=label, regions=regions, overwrite=True)


def _canvas(
    store: Path, row: Row, report: Mapping[str, Any], records: Mapping[int, Kept], result: Photo
) -> tuple[Photo, Photo]:
    """The source, or what stands in for it where it is not needed; and the picture before anything was pasted.

    The second has the metadata of the first.
    """
    if not result.meta.lossless:
        try:
            source = source_of(row, report)
        except PhotoUnreadable as error:
            need = f"{error.problem}, and a {result.meta.format} is made anew from it; bring it back, or keep the face"
            raise PhotoUnreadable(row.source, need) from error
        canvas = canvas_of(source, report["recipe"])
        if not store_of.fits(store, canvas, records):
            problem = "what was kept of its faces is not what the source shows here: it is damaged, or the source was "
            problem += "enlarged by another device or version; restore it again"
            raise PhotoRefused(row.source, problem)
        return source, canvas
    try:
        source = source_of(row, report)
    except PhotoUnreadable:
        packet = result.meta.xmp and xmp.cleared(result.meta.xmp, [Box(*record["box"]) for record in records.values()])
        source = dataclasses.replace(result, meta=dataclasses.replace(result.meta, source=None, xmp=packet))
    canvas = store_of.cleared(store, result, records)
    return source, dataclasses.replace(canvas, meta=source.meta, colour=source.colour)
