"""The proof: that every result is the file that was written, and that outside the restored faces it is its source.

For each result, in this order
    it is there, and its sha256 is the recorded one
    PNG, TIFF, BMP, lossless WebP: outside the boxes of the faces that stand in it, its pixels and its transparency are
        those of the source (enlarged as then), bit for bit
    JPEG, lossy WebP: the source with the kept faces is encoded once more, as it was then, and both files are decoded.
        Outside the boxes no value may differ by more than the tolerance, which is 0: with the same tables the same
        encoder gives the same values. Another encoder may need 1 or 2

A source that is gone or changed, and an enlargement by a network, which other devices compute a little otherwise, leave
only the hash to be compared; that is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facefix import imagefile
from facefix.errors import PhotoError
from facefix.jobs import kept as store_of
from facefix.jobs.database import FOLDER
from facefix.jobs.files import file_sha256
from facefix.jobs.journal import Journal
from facefix.jobs.rows import Row
from facefix.jobs.undo import ANY_SIZE, accepted_in, canvas_of, records_of, source_of
from facefix.types import Box, Photo

REPORT = "report.jsonl"
_BAND = 512


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one result.

    Args:
        target: the file.
        problem: what is wrong, or nothing.
        note: what could not be compared, and why, or nothing.
    """

    target: Path
    problem: str = ""
    note: str = ""


def verify(journal: Journal, *, pixels: bool = True, tolerance: int = 0) -> Iterator[Verdict]:
    """A verdict for each finished photo, in the order of their places.

    Args:
        journal: read only.
        pixels: compare with the sources, not only the hashes.
        tolerance: how far the values of a lossy file may be off, of 255.
    """
    for row, report in journal.rows("done"):
        assert report is not None
        assert row.target is not None
        target = journal.out / row.target
        try:
            if file_sha256(target) != report["target_sha256"]:
                yield Verdict(target, "it is not the file that was written: its sha256 differs from the recorded one")
                continue
        except OSError as error:
            yield Verdict(target, f"the result cannot be read ({error.strerror})")
            continue
        yield _compared(journal.out, row, target, report, tolerance) if pixels else Verdict(target)


def report_problem(journal: Journal) -> str:
    """What is wrong with OUT/.facefix/report.jsonl beside the journal, or nothing."""
    path = journal.out / FOLDER / REPORT
    told: dict[str, bytes] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                report = json.loads(line)
                if "id" in report:
                    told[report["id"]] = _digest(report)
    except OSError as error:
        return f"{path}: the report cannot be read ({error.strerror}); run the same restore again to write it"
    except ValueError as error:
        return f"{path}: the report is damaged ({error}); run the same restore again to write it"
    rows = ((row, report) for row, report in journal.rows("done") if report is not None)
    other = sum(told.pop(report["id"], None) != _digest(report) for _, report in rows)
    if other or told:
        return f"{path}: {other + len(told)} line(s) are not what the journal says; run the same restore again"
    return ""


def strays(journal: Journal) -> Iterator[Path]:
    """Files below OUT that are no results of the journal's."""
    known = {os.fsencode(row.target) for row, _ in journal.rows(reports=False) if row.target is not None}
    for folder, folders, names in os.walk(journal.out):
        folders[:] = sorted(name for name in folders if Path(folder, name) != journal.out / FOLDER)
        for name in sorted(names):
            path = Path(folder, name)
            if os.fsencode(path.relative_to(journal.out)) not in known:
                yield path


def _digest(report: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).digest()


def _compared(out: Path, row: Row, target: Path, report: Mapping[str, Any], tolerance: int) -> Verdict:
    """The verdict on the pixels outside the boxes."""
    recipe = report["recipe"]
    try:
        source = source_of(row, report)
    except PhotoError as error:
        return Verdict(target, note=f"not compared: {error}")
    if recipe["scale"] != 1 and recipe["upscaler"] != "lanczos":
        return Verdict(target, note=f"not compared: {recipe['upscaler']} enlarged it")
    try:
        result = imagefile.read(target, max_pixels=ANY_SIZE)
        canvas = canvas_of(source, recipe)
        expected = canvas if result.meta.lossless else _written(out, source, canvas, target, report)
    except PhotoError as error:
        return Verdict(target, str(error))
    if (expected.raster.shape, expected.raster.dtype) != (result.raster.shape, result.raster.dtype):
        return Verdict(target, f"expected {_kind(expected)}, got {_kind(result)}")
    outside = np.ones(result.raster.shape[:2], bool)
    for number in accepted_in(report):
        if number in records_of(report):
            outside[Box(*records_of(report)[number]["box"]).slices] = False
    allowed = 0 if result.meta.lossless else tolerance
    count, worst, first = 0, 0, (0, 0)
    for top in range(0, result.height, _BAND):
        rows = slice(top, top + _BAND)
        off = _distance(result.raster[rows], expected.raster[rows]) * outside[rows]
        if result.alpha is not None and canvas.alpha is not None:
            np.maximum(off, _distance(result.alpha[rows, :, None], canvas.alpha[rows, :, None]), out=off)
        worst = max(worst, int(off.max()))
        at = np.argwhere(off > allowed)
        if not count and len(at):
            first = int(at[0, 1]), top + int(at[0, 0])
        count += len(at)
    if not count:
        return Verdict(target)
    told = f"{count} pixel(s) outside the restored faces differ from the source by up to {worst}"
    return Verdict(target, f"{told}, the first at {first[0]},{first[1]}")


def _written(out: Path, source: Photo, canvas: Photo, target: Path, report: Mapping[str, Any]) -> Photo:
    """What a file in the target's format shows of the source with the faces that stand in the result."""
    photo = store_of.composed(out / FOLDER, canvas, records_of(report), accepted_in(report))
    with tempfile.TemporaryDirectory(prefix="facefix-") as folder:
        again = Path(folder, f"again{target.suffix}")
        imagefile.save(photo, source, again, ai_label=False)
        return imagefile.read(again, max_pixels=ANY_SIZE)


def _distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int32]:
    """(H, W): the largest difference of any channel."""
    difference = np.zeros(first.shape[:2], np.int32)
    for channel in range(first.shape[2]):
        apart = np.abs(first[..., channel].astype(np.int32) - second[..., channel])
        np.maximum(difference, apart, out=difference)
    return difference


def _kind(photo: Photo) -> str:
    return f"{photo.width}x{photo.height} px of {photo.meta.bits} bits"
