"""The board on which a person looks through a run, and the file of decisions that comes back from it.

The board is one HTML file that needs nothing else: no network, no server, no other file. It holds each face before and
after as one small WebP picture (the upper half before, the lower after), and a page of it is decoded only when it is
looked at. Boards for more faces than one browser tab takes well are split, those that changed most first.

Names from disks and reports are data in it, never markup: they lie in a JSON block, are shown as text, and a content
security policy lets no script run but the board's own. Control and direction marks in names are written out.

The decisions are a JSON object: {"facefix": "decisions", "version": 1, "decisions": [{"id", "photo", "face",
"decision"}, …]}, with the id of the photo as in the report, the face's number, and accept or reject.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.resources
import io
import json
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from PIL import Image

from facefix.errors import JournalError, PhotoError, UsageError, counted, shown
from facefix.jobs import kept
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal
from facefix.jobs.kept import Kept
from facefix.types import Photo, PlainSRGB

BOARD = "review.html"
_KINDS = {"restored": 0, "rejected": 1, "skipped": 2, "failed": 3, "photo": 4}
_QUALITY = 70
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One face, or one photo that failed: what the board knows of it."""

    photo: tuple[str, str, str]
    """Its id, its name and its source, to be shown."""
    face: int
    kind: int
    reason: str = ""
    seam: float | None = None
    identity: float | None = None
    size_px: float | None = None
    record: Kept | None = None

    @property
    def change(self) -> float | None:
        """How much it changed."""
        return None if self.record is None else float(self.record["change"])


def write_board(
    journal: Journal,
    path: Path | None = None,
    *,
    thumb_px: int = 256,
    faces: int = 5000,
    progress: Progress | None = None,
) -> list[Path]:
    """The boards that were written: one, or several where there are more faces than one is to hold.

    Args:
        journal: of the run.
        path: the first board's file; OUT/.facefix/review.html without one. Further ones get -2, -3, … in their names.
        thumb_px: longest side of a face's picture.
        faces: at most so many pictures in one board.
        progress: called with the pictures that are done and that there are.

    Raises:
        JournalError: nothing was restored yet, or a board cannot be written.
    """
    path = path or journal.out / FOLDER / BOARD
    entries, sums = _entries(journal)
    entries.sort(key=lambda entry: -1.0 if entry.change is None else entry.change, reverse=True)
    count = sum(entry.record is not None for entry in entries)
    parts = [entries[start : start + faces] for start in range(0, count, faces)] or [[]]
    parts[-1] = parts[-1][: count - faces * (len(parts) - 1)]
    parts[0] = parts[0] + entries[count:]  # what has no picture
    paths = [path.with_name(f"{path.stem}-{n}{path.suffix}" if n > 1 else path.name) for n in range(1, len(parts) + 1)]
    before = 0
    for number, (part, target) in enumerate(zip(parts, paths, strict=True)):
        pictures = _thumbs(journal.out / FOLDER, part, thumb_px)
        data = _data(journal.out, part, sums, paths, number)
        temporary = target.with_name(f".facefix-{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "x", encoding="utf-8", newline="\n") as file:
                for done in _write(file, data, pictures):
                    if progress is not None:
                        progress(before + done, count)
            os.replace(temporary, target)
        except OSError as error:
            problem = f"{error.strerror or error}; name a file in a folder that can be written"
            raise JournalError(target, problem) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        before += len(part)
    return paths


def read_decisions(path: Path) -> dict[str, dict[int, bool]]:
    """By photo id and face number, whether the face is accepted (True) or rejected.

    Raises:
        UsageError: it is no file of decisions.
    """
    named = f"{shown(path)}: expected the decisions that a board exports"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{shown(path)}: {error.strerror}; name the file that the board exported") from error
    except ValueError as error:
        raise UsageError(f"{named}, got no JSON ({error}); export them again") from error
    if not isinstance(told, dict) or told.get("facefix") != "decisions" or not isinstance(told.get("decisions"), list):
        raise UsageError(f"{named}, got other JSON; export them again")
    if told.get("version") != 1:
        raise UsageError(f"{named}, version 1, got {told.get('version')!r}; use the facefix that wrote the board")
    decisions: dict[str, dict[int, bool]] = {}
    for entry in told["decisions"]:
        parts = [entry.get(key) for key in ("id", "face", "decision")] if isinstance(entry, dict) else []
        match parts:
            case [str(id), int(face), "accept" | "reject" as decision] if not isinstance(face, bool):
                decisions.setdefault(id, {})[face] = decision == "accept"
            case _:
                raise UsageError(f"{named}, each with id, face and accept or reject, got {str(entry)[:80]}; correct it")
    return decisions


def _entries(journal: Journal) -> tuple[list[_Entry], str]:
    """All that the boards show, in the order of their places, and the sums in words."""
    entries: list[_Entry] = []
    photos = faceless = failed = 0
    for row, report in journal.rows("done", "failed"):
        name, source = shown(row.place), shown(row.source)
        if report is None or row.state == "failed":
            failed += 1
            reason = row.reason.removeprefix(f"{source}: ")
            entries.append(_Entry((row.id or "", name, source), 0, _KINDS["photo"], shown(Path(reason))))
            continue
        photos += 1
        faceless += not report["faces"]
        for number, face in enumerate(report["faces"], 1):
            kind = "rejected" if face.get("rejected") else face["outcome"]
            width = face["box_xyxy"][2] - face["box_xyxy"][0]
            about = (report["id"], name, source)
            # reports of earlier versions have no identity
            measured = face["seam"], face.get("identity"), width
            entries.append(_Entry(about, number, _KINDS[kind], face["reason"], *measured, face.get("kept")))
    if not photos and not failed:
        raise JournalError(journal.out, "no photo was finished yet; run `facefix restore` first")
    told = f"{counted(photos, 'photo')} done" + (f", {faceless:,} without a face" if faceless else "")
    return entries, told + (f"; {failed:,} failed" if failed else "")


def _data(out: Path, entries: list[_Entry], sums: str, paths: list[Path], part: int) -> str:
    """What the board's script reads, as JSON that cannot end its block."""
    photos: dict[tuple[str, str, str], int] = {}
    reasons: dict[str, int] = {"": 0}
    rows, thumb = [], 0
    for entry in entries:
        record, size = entry.record, (0, 0)
        if record is not None:
            x0, y0, x1, y1 = record["box"]
            size = x1 - x0, y1 - y0
        rows.append(
            [
                photos.setdefault(entry.photo, len(photos)),
                entry.face,
                entry.kind,
                entry.change,
                entry.seam,
                entry.size_px,
                reasons.setdefault(entry.reason, len(reasons)),
                None if record is None else thumb,
                *size,
                *([record["before"], record["after"]] if record is not None else ["", ""]),
                entry.identity,
            ]
        )
        thumb += record is not None
    where = os.fsencode(out.resolve())
    told = {
        "key": f"facefix:{hashlib.sha256(where).hexdigest()[:16]}",
        "out": shown(out),
        "command": f"facefix apply {shown(out)} decisions.json",
        "sums": sums,
        "parts": [path.name for path in paths],
        "part": part,
        "beside": paths[0].parent.resolve() == (out / FOLDER).resolve(),
        "photos": list(photos),
        "reasons": list(reasons),
        "entries": rows,
    }
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _write(file: TextIO, data: str, pictures: Iterable[str]) -> Iterator[int]:
    """Writes one board; yields the number of pictures after each."""
    template = (importlib.resources.files("facefix.jobs") / "board.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    for name, kind in (("style", "style-src"), ("script", "script-src")):
        [body] = re.findall(rf"<{name}>(.*?)</{name}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        policy += f"; {kind} 'sha256-{digest}'"
    head, rest = template.replace("@@POLICY@@", policy).split("@@DATA@@")
    middle, tail = rest.split("@@THUMBS@@")
    file.write(head + data + middle)
    for number, picture in enumerate(pictures):
        if picture:
            file.write(f'<script type="text/plain" id="t{number}">{picture}</script>\n')
        yield number + 1
    file.write(tail)


def _thumbs(store: Path, entries: list[_Entry], side_px: int) -> Iterator[str]:
    """Each kept face's picture in base64, in order; nothing where it cannot be read."""
    records = [entry.record for entry in entries if entry.record is not None]
    waiting: deque[Future[str]] = deque()
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as hands:
        for record in records:
            waiting.append(hands.submit(_thumb, store, record, side_px))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _thumb(store: Path, record: Kept, side_px: int) -> str:
    try:
        before, after = kept.pair(store, record)
    except PhotoError:
        return ""
    both = np.concatenate([_small(photo, side_px) for photo in (before, after)])
    file = io.BytesIO()
    Image.fromarray(both).save(file, "WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(file.getvalue()).decode()


def _small(photo: Photo, side_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The photo in 8-bit sRGB, its longest side at most `side_px`."""
    shrink = min(1.0, side_px / max(photo.width, photo.height))
    size = (max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink)))
    small: Any = cv2.resize(photo.raster, size, interpolation=cv2.INTER_AREA)
    return np.asarray(PlainSRGB().from_srgb(photo.colour.to_srgb(small), 8), np.uint8)
