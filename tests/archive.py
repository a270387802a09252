"""A small archive that was restored, for the tests of what comes after: real photos, networks, journal and workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.data import astronaut

from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive
from facefix.jobs.engines import Serial
from facefix.jobs.journal import Journal
from facefix.jobs.rows import Row
from facefix.jobs.walk import Walk, roots
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe

RECIPE = Recipe(restorer="pattern", sharp_faces="restore")


def group_photo(bits: int = 8) -> np.ndarray:
    """(240, 500, 3) with three faces: two so near that their masks overlap, and one by itself."""
    face = astronaut()[20:220, 150:290] // 5 * 4
    photo = np.full((240, 500, 3), 180, np.uint8)
    for left in (0, 106, 350):
        photo[20:220, left : left + 140] = face
    photo = np.asarray(photo + np.linspace(0, 40, 500)[None, :, None].astype(np.uint8), np.uint8)
    return photo if bits == 8 else photo.astype(np.uint16) * 257


def restore(sources: Path, out: Path, recipe: Recipe = RECIPE, wishes: Wishes | None = None) -> list[str]:
    """Brings a folder through, in this process; what happened, in words of Drive."""
    events: list[str] = []
    with Journal.open(out, create=True) as journal:
        run, hears = Run(out, recipe, threads=1), lambda event, *_: events.append(event)
        drive = Drive(journal, run, Serial(), wishes or Wishes(), hears)
        drive.go(Walk(roots([sources], out), out))
        journal.export(out / FOLDER / "report.jsonl")
    return events


def row_at(journal: Journal, place: str | Path) -> Row:
    [row] = [row for row, _ in journal.rows(reports=False) if row.place == Path(place)]
    return row


def report_at(journal: Journal, place: str | Path) -> Mapping[str, Any]:
    row = row_at(journal, place)
    assert row.id is not None
    report = journal.report(row.id)
    assert report is not None
    return report


def save(photo: np.ndarray, path: Path, **options: Any) -> Path:
    """The picture's file, last changed in 1995."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, **options)
    os.utime(path, (800_000_000, 800_000_000))
    return path
