"""A photo as the walk meets it, and as the journal knows it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facefix.errors import text_of as text_of

if TYPE_CHECKING:
    from facefix.types import Report

State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells without reading it whether a file is still the one that was seen.

    Writing that puts the modification time back shows in `ctime_ns` alone. As links and permissions move that, too,
    it is a reason to read a photo again, but does not make marks unequal.
    """

    bytes: int
    mtime_ns: int
    inode: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, state: os.stat_result) -> Mark:
        """The mark of a file with this state."""
        return cls(state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Found:
    """A photo that was met on the walk.

    Args:
        place: where it stands below OUT, under its own name; the key of its row.
        source: the file, absolute.
        mark: as it was when it was met.
        own: the result's name where it keeps the source's suffix.
        base: the result's name, but for the suffix, where that changes.
    """

    place: Path
    source: Path
    mark: Mark
    own: str
    base: str


@dataclass(frozen=True, slots=True)
class Row:
    """One photo in the journal; `target` is relative to OUT, and None until it is settled.

    Where the state is queued or running, `target`, `sha256` and `work` are those of an earlier attempt.
    """

    number: int
    place: Path
    source: Path
    own: str
    base: str
    mark: Mark
    state: State
    attempt: int
    sha256: str | None
    work: str | None
    id: str | None
    target: Path | None
    target_sha256: str | None
    reason: str
    traceback: str

    @property
    def root(self) -> Path:
        """The folder that was walked: the source without its place."""
        return self.source.parents[len(self.place.parts) - 1]


COLUMNS = (
    "photos.number, place, source, own, base, bytes, mtime_ns, inode, ctime_ns, state, attempt, sha256, work, id, "
    "target, target_sha256, reason, traceback"
)
Verdict = Literal["new", "again", "done", "failed", "taken", "twice"]
"""What `add` made of a photo: queued for the first time, queued again, done before and unchanged, failed before;
refused because the result of another source stands at its place; or met twice in this run."""


def failure(source: Path, reason: str) -> dict[str, Any]:
    """The report of a photo that could not be done."""
    return {"source": text_of(source), "target": None, "error": reason}


def row_id(work: str, place: Path) -> str:
    """The id of the row at this place when this work is done for it."""
    return hashlib.sha256(work.encode() + os.fsencode(place)).hexdigest()


def row_of(values: tuple[Any, ...]) -> Row:
    """The row of these columns."""
    number, place, source, own, base, size, mtime_ns, inode, ctime_ns, state, attempt, *rest = values[:18]
    sha256, work, id, target, target_sha256, reason, traceback = rest
    return Row(
        number=number,
        place=Path(os.fsdecode(place)),
        source=Path(os.fsdecode(source)),
        own=os.fsdecode(own),
        base=os.fsdecode(base),
        mark=Mark(size, mtime_ns, inode, ctime_ns),
        state=state,
        attempt=attempt,
        sha256=sha256,
        work=work,
        id=id,
        target=None if target is None else Path(os.fsdecode(target)),
        target_sha256=target_sha256,
        reason=reason,
        traceback=traceback,
    )


def report_json(report: Report) -> dict[str, Any]:
    """The report in the words of the command's documentation, ready for `json.dumps`."""
    faces = [
        {
            "box_xyxy": [round(float(v), 2) for v in note.face.box_xyxy],
            "points": [[round(float(v), 2) for v in point] for point in note.face.points],
            "score": round(note.face.score, 4),
            "outcome": note.outcome,
            "reason": note.reason,
            "restorer": note.restorer,
            "size": note.size,
            "seam": None if note.seam is None else round(note.seam, 4),
            "identity": None if note.identity is None else round(note.identity, 4),
            "seconds": round(note.seconds, 4),
        }
        for note in report.faces
    ]
    return {
        "source": report.source,
        "target": report.target,
        "width": report.width,
        "height": report.height,
        "recipe": dict(report.recipe),
        "weights": dict(report.weights),
        "faces": faces,
        "warnings": list(report.warnings),
        "seconds": round(report.seconds, 4),
    }
