"""What the tests of runs share: one run over a small tree, and what it told and left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive
from facefix.jobs.engines import Engine, Serial
from facefix.jobs.journal import Journal
from facefix.jobs.walk import Walk, roots
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe

PATTERN = Recipe(restorer="pattern")
Told = list[tuple[str, str, Any]]


def go(
    source: Path | list[Path],
    out: Path,
    *,
    engine: Engine | None = None,
    recipe: Recipe = PATTERN,
    wishes: Wishes | None = None,
    hears: Callable[..., None] | None = None,
    **run: Any,
) -> Told:
    """What the run told, but for `met`."""
    told: Told = []

    def listen(event: str, path: Path, what: Any) -> None:
        if event != "met":
            told.append((event, path.name, what))
        if hears is not None:
            hears(drive, event, path)

    inputs = source if isinstance(source, list) else [source]
    with Journal.open(out, create=True) as journal:
        drive = Drive(journal, Run(out, recipe, **run), engine or Serial(), wishes or Wishes(), listen)
        drive.go(Walk(roots(inputs, out), out))
        assert not journal.counts()["running"]
    return told


def kinds(told: Told) -> dict[str, int]:
    return {kind: sum(event == kind for event, _, _ in told) for kind in {event for event, _, _ in told}}


def reasons(told: Told) -> list[str]:
    return [what for event, _, what in told if event == "failed"]


def tree(out: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file of the tree but the journal's."""
    return {
        str(path.relative_to(out)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and FOLDER not in path.relative_to(out).parts
    }
