"""`facefix restore` for photos by themselves: one after the other in this process, and what is shown of each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from facefix.cli_parts import (
    EXIT_FACE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PHOTO_FAILED,
    Written,
    complain,
    errors,
    make_folder,
    remark,
    write_reports,
)
from facefix.errors import PhotoError, PhotoUnwritable, counted
from facefix.jobs.rows import failure, report_json
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix
    from facefix.types import Meta, Report


@dataclass(frozen=True, slots=True)
class Named:
    """What was asked for on the command line of `restore`."""

    inputs: list[Path]
    out: Path | None
    recipe: Recipe
    mask: Path | None
    report: Path | None
    faces_out: Path | None
    compare: Path | None
    device: str
    overwrite: bool
    strict: bool
    quiet: bool
    max_pixels: int


@dataclass(frozen=True, slots=True)
class _Task:
    """One photo to do, and where its results go: `out` is the file itself where `exact`, else all but its suffix."""

    source: Path
    out: Path
    exact: bool
    compare: Path | None

    def target(self, meta: Meta) -> Path:
        """Where the result of a photo with this meta is written."""
        from facefix.imagefile import suffix_for

        return self.out if self.exact else self.out.with_name(self.out.name + suffix_for(meta))


def restore(asked: Named) -> None:
    """Do them; leaves with its exit code where that is not 0.

    Raises:
        FacefixError: nothing can be done.
    """
    from facefix.pipeline import FaceFix

    fix = FaceFix.load(asked.recipe, device=asked.device)
    if not asked.quiet:
        for notice in fix.notices:
            remark(notice)
    tasks = list(_tasks(asked.inputs, asked.out, asked.compare))
    reports: list[dict[str, Any]] = []
    failed = faces_failed = 0
    written = Written(asked.inputs)
    with _bars(len(tasks), asked.quiet) as (photo_done, faces_done):
        for task in tasks:
            try:
                done = _one(fix, task, asked, written, faces_done)
            except KeyboardInterrupt:
                complain(f"interrupted; {len(reports)} of {len(tasks)} photos were finished and are kept")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except PhotoError as error:
                failed += 1
                named = str(error) if error.path is not None else f"{task.source}: {error}"
                complain(named)
                reports.append(failure(task.source, named))
            else:
                faces_failed += sum(note.outcome == "failed" for note in done.faces)
                reports.append(report_json(done))
                _summary(done, asked.quiet)
            photo_done()
            if asked.report is not None:
                write_reports(asked.report, reports, single=len(tasks) == 1)
    if failed:
        raise typer.Exit(EXIT_PHOTO_FAILED)
    if asked.strict and faces_failed:
        complain(f"{counted(faces_failed, 'face')} could not be restored; see the lines above or --report")
        raise typer.Exit(EXIT_FACE_FAILED)


def _one(fix: FaceFix, task: _Task, asked: Named, written: Written, progress: Callable[[int, int], None]) -> Report:
    """Read, restore and write one photo and what was asked for beside it; the report of it."""
    from facefix import imagefile, sheet

    photo = imagefile.read(task.source, max_pixels=asked.max_pixels)
    target = task.target(photo.meta)
    _check_names(task, photo.meta, asked, written)
    result = fix(photo, mask=asked.mask, target=target, progress=progress)
    if task.compare is not None:
        make_folder(task.compare.parent)
        imagefile.write(sheet.before_after(photo, result), task.compare, overwrite=asked.overwrite)
        written.add(task.compare, task.source)
    if asked.faces_out is not None:
        make_folder(asked.faces_out)
        for number, pair in sheet.faces(result):
            for kind, face in zip(("before", "after"), pair, strict=True):
                place = asked.faces_out / f"{task.source.stem}.{number:02d}.{kind}.png"
                written.check(place, task.source, "--faces-out")
                imagefile.write(face, place, overwrite=asked.overwrite)
                written.add(place, task.source)
    make_folder(target.parent)
    lost = fix.save(result, photo, target, overwrite=asked.overwrite)
    written.add(target, task.source)
    return dataclasses.replace(result.report, warnings=(*result.report.warnings, *lost))


def _check_names(task: _Task, meta: Meta, asked: Named, written: Written) -> None:
    """Nothing, where the result and the before/after picture may be written under their names.

    Raises:
        PhotoUnwritable: one is taken, be it by what was `written` for an earlier photo, is of no format that can be
            written, or would replace the photo or its result.
    """
    from facefix.imagefile import holds_format
    from facefix.imagefile.encode import format_for

    target = task.target(meta)
    for option, place in (("-o", target), ("--compare", task.compare)):
        if place is None:
            continue
        written.check(place, task.source, option)
        if os.path.exists(place) and not asked.overwrite:
            raise PhotoUnwritable(task.source, f"{place} exists already; give another {option} or pass --overwrite")
        if option == "-o" and holds_format(place, meta):  # a copy of the source may have a format that is only read
            continue
        try:
            format_for(place)
        except ValueError as error:
            raise PhotoUnwritable(place, str(error)) from error
    if task.compare is not None and os.path.realpath(task.compare) in map(os.path.realpath, (task.source, target)):
        raise PhotoUnwritable(task.source, f"--compare {task.compare} is the photo or its result; give another name")


def _tasks(sources: list[Path], out: Path | None, compare: Path | None) -> Iterator[_Task]:
    """One task for each of the photos, in their order."""
    single = len(sources) == 1
    for source in sources:
        exact = single and out is not None and bool(out.suffix) and not os.path.isdir(out)
        beside_it = source.with_name(f"{source.stem}.facefix")
        target = beside_it if out is None else out if exact else out / source.stem
        beside = compare
        if compare is not None and (not single or os.path.isdir(compare)):
            beside = compare / f"{source.stem}.compare.jpg"
        yield _Task(source, target, exact, beside)


@contextmanager
def _bars(photos: int, quiet: bool) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None]]]:
    """Progress on stderr, on a terminal: what to call when a photo is done, and with how many of its faces are."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    hidden = quiet or not errors.is_terminal
    with Progress(*columns, *times, console=errors, disable=hidden, transient=True) as progress:
        all_photos = progress.add_task("photos", total=photos, visible=photos > 1)
        faces = progress.add_task("faces", total=None)
        yield (
            lambda: progress.advance(all_photos),
            lambda done, total: progress.update(faces, completed=done, total=total),
        )


def _summary(report: Report, quiet: bool) -> None:
    """One line on stdout about the photo, one for each face that was not restored."""
    if quiet:
        return
    for warning in report.warnings:
        remark(f"{report.source}: {warning}")
    restored = [note for note in report.faces if note.outcome == "restored"]
    names = ", ".join(sorted({note.restorer for note in restored if note.restorer}))
    what = f"{len(restored)} of {len(report.faces)} faces restored" if report.faces else "no face found"
    print(f"{report.target}: {what}{f' with {names}' if names else ''} in {report.seconds:.1f} s")
    for number, note in enumerate(report.faces, 1):
        if note.outcome != "restored":
            print(f"  face {number} {note.outcome}: {note.reason}")
