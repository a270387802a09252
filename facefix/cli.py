"""The `facefix` command. Its options are the fields of `Recipe`; its errors are one line; its exit codes tell.

0 done, 1 some photo failed, 2 wrong usage, 3 weights missing or not accepted, 4 a face failed under --strict,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from facefix import __version__, cli_inpaint, cli_weights
from facefix.cli_parts import complain, errors, remark, with_recipe, write_reports
from facefix.errors import FacefixError, PhotoError, PhotoUnreadable, PhotoUnwritable, UsageError
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix
    from facefix.types import Meta, Report

EXIT_PHOTO_FAILED, EXIT_USAGE, EXIT_FACE_FAILED, EXIT_INTERRUPTED = 1, 2, 4, 130

app = typer.Typer(
    name="facefix",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find, align and restore the faces of photos, and put them back so that nobody can see where.",
    epilog="A restored face is an interpretation, not a record: keep the original.",
)
app.add_typer(cli_weights.app, name="weights", help="The store of weight files: what is there, what it costs, get it.")
app.command()(cli_inpaint.inpaint)


def main() -> None:
    """Run the command; a facefix error becomes one line on stderr and its exit code."""
    try:
        app()
    except FacefixError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PHOTO_FAILED)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"facefix {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


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


@app.command()
@with_recipe("restore")
def restore(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Photos, or folders of photos.", show_default=False)
    ],
    recipe: Recipe,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for one photo, folder for more. Without it NAME.facefix.EXT is written beside each photo.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the photo's size: only where it is white may anything change.", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write what was done to each face as JSON: an object for one photo, a list for more; one object a "
            "line where the name ends in .jsonl.",
            show_default=False,
        ),
    ] = None,
    faces_out: Annotated[
        Path | None,
        typer.Option(help="Folder for each face before and after, as aligned crops.", show_default=False),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Write a before/after picture: file for one photo, folder for more.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist already.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 where a face could not be restored.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what went wrong.")] = False,
) -> None:
    """Restore the faces of photos.

    Each photo keeps its format, depth, profile and metadata; what is outside the faces stays as it was, bit for bit.
    A photo that cannot be done is named, and the others go on.

    [bold]Examples[/bold]

      facefix restore grandma.jpg

      facefix restore scans/ -o restored/ --report restored.jsonl

      facefix restore wedding.tif -o wedding-2x.tif --scale 2 --strength 0.8 --compare before-after.jpg
    """
    tasks = list(_tasks(inputs, out, compare))
    from facefix.pipeline import FaceFix

    fix = FaceFix.load(recipe, device=device)
    if not quiet:
        for notice in fix.notices:
            remark(notice)
    reports: list[dict[str, Any]] = []
    failed = faces_failed = 0
    with _bars(len(tasks), quiet) as (photo_done, faces_done):
        for task in tasks:
            try:
                done = _one(fix, task, mask, faces_out, overwrite, faces_done)
            except KeyboardInterrupt:
                complain(f"interrupted; {len(reports)} of {len(tasks)} photos were finished and are kept")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except PhotoError as error:
                failed += 1
                named = str(error) if error.path is not None else f"{task.source}: {error}"
                complain(named)
                reports.append({"source": _text(task.source), "target": None, "error": named})
            else:
                faces_failed += sum(note.outcome == "failed" for note in done.faces)
                reports.append(_as_json(done))
                _summary(done, quiet)
            photo_done()
            if report is not None:
                write_reports(report, reports, single=len(tasks) == 1)
    if failed:
        raise typer.Exit(EXIT_PHOTO_FAILED)
    if strict and faces_failed:
        complain(f"{faces_failed} face(s) could not be restored; see the lines above or --report")
        raise typer.Exit(EXIT_FACE_FAILED)


def _one(
    fix: FaceFix,
    task: _Task,
    mask: Path | None,
    faces_out: Path | None,
    overwrite: bool,
    progress: Callable[[int, int], None],
) -> Report:
    """Read, restore and write one photo and what was asked for beside it; the report of it."""
    from facefix import imagefile, sheet

    photo = imagefile.read(task.source)
    target = task.target(photo.meta)
    if target.exists() and not overwrite:
        raise PhotoUnwritable(task.source, f"{target} exists already; give another -o or pass --overwrite")
    result = fix(photo, mask=mask, target=target, progress=progress)
    _make_folder(target.parent)
    lost = fix.save(result, photo, target, overwrite=overwrite)
    if task.compare is not None:
        _make_folder(task.compare.parent)
        imagefile.write(sheet.before_after(photo, result), task.compare, overwrite=True)
    if faces_out is not None:
        _make_folder(faces_out)
        for number, pair in sheet.faces(result):
            for kind, face in zip(("before", "after"), pair, strict=True):
                imagefile.write(face, faces_out / f"{task.source.stem}.{number:02d}.{kind}.png", overwrite=True)
    return dataclasses.replace(result.report, warnings=(*result.report.warnings, *lost))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PhotoUnwritable(folder, f"{error.strerror}; name a folder that can be written") from error


def _tasks(inputs: list[Path], out: Path | None, compare: Path | None) -> Iterator[_Task]:
    """One task for each photo that is named or lies in a named folder, in a stable order."""
    sources = [pair for path in inputs for pair in _photos(path, out)]
    single = len(sources) == 1 and not inputs[0].is_dir()
    if not single and out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: expected a folder for {len(sources)} photos, got a file; name a folder")
    for source, relative in sources:
        exact = single and out is not None and bool(out.suffix) and not out.is_dir()
        if out is None:
            target = source.with_name(f"{source.stem}.facefix")
        else:
            target = out if exact else out / relative.with_name(relative.stem)
        beside = compare
        if compare is not None and (not single or compare.is_dir()):
            beside = compare / relative.with_name(f"{relative.stem}.compare.jpg")
        yield _Task(source, target, exact, beside)


def _photos(path: Path, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """The photo, or a folder's photos at any depth, each with its path below what was named."""
    from facefix.imagefile import SUFFIXES

    if not path.is_dir():
        yield path, Path(path.name)
        return
    skip = None if out is None else out.resolve()
    found = False
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() != skip)
        for name in sorted(names):
            if name[0] != "." and Path(name).suffix.lower() in SUFFIXES and ".facefix." not in name:
                found = True
                yield here / name, (here / name).relative_to(path)
    if not found:
        raise PhotoUnreadable(path, "expected a photo, got a folder without any; name a photo")


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


def _as_json(report: Report) -> dict[str, Any]:
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


def _text(path: Path) -> str:
    """The path as text that any terminal and JSON reader takes; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
