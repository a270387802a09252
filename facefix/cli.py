"""The `facefix` command. Its options are the fields of `Recipe`; its errors are one line; its exit codes tell.

0 done, 1 some photo failed, 2 wrong usage, 3 weights missing or not accepted, 4 a face failed under --strict,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from facefix import __version__, cli_archive, cli_inpaint, cli_review, cli_trades, cli_web, cli_weights
from facefix.cli_parts import (
    EXIT_FACE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PHOTO_FAILED,
    Device,
    MaskFile,
    Overwrite,
    Quiet,
    Strict,
    Written,
    complain,
    errors,
    make_folder,
    place_of_report,
    remark,
    with_recipe,
    write_reports,
)
from facefix.errors import FacefixError, PhotoError, PhotoUnwritable, counted
from facefix.jobs.rows import failure, report_json
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix
    from facefix.types import Meta, Report

MANY = "Many photos"

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
app.command()(cli_web.web)
for _command in (*cli_review.COMMANDS, *cli_trades.COMMANDS):
    app.command()(_command)


def main() -> None:
    """Run the command; a facefix error becomes one line on stderr and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        except FacefixError as error:
            complain(str(error))
            sys.exit(error.exit_code)
        finally:
            if sys.stdout is not None:  # here, where it can still be told that there is no room for it
                sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            if _takes_output():
                raise
            complain(f"standard output: expected room for what is printed, got '{error.strerror}'; send it elsewhere")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PHOTO_FAILED)


def _takes_output() -> bool:
    """Whether standard output takes a further line."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


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
    recipe: Recipe,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Photos, folders of photos, or globs in quotes such as 'scans/**/*.tif'.",
            show_default=False,
            readable=False,  # not before its turn: of many one may be closed
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for one photo, folder for more. Without it NAME.facefix.EXT is written beside each named photo; "
            "folders, globs and lists need it.",
            show_default=False,
        ),
    ] = None,
    mask: MaskFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write what was done to each face as JSON: an object for one photo, a list for more; one object a "
            "line where the name ends in .jsonl. A run over many photos writes OUT/.facefix/report.jsonl anyhow. "
            "`seam` is how strong an edge the paste left (0 none, 1 as the photo's own detail), `identity` how like "
            "itself the face still is (-1 to 1; null without the weights sface).",
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
    device: Device = "auto",
    overwrite: Overwrite = False,
    strict: Strict = False,
    quiet: Quiet = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse photos of more pixels, by their header, before anything is decoded.")
    ] = 500_000_000,
    from_file: Annotated[
        Path | None,
        typer.Option(
            help="Take the names of photos and folders from this file, - for stdin: one a line, or each ended by a NUL "
            "as `find -print0` writes them. OUT mirrors the names as they are written.",
            rich_help_panel=MANY,
            show_default=False,
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Go into linked folders, too; loops are seen.", rich_help_panel=MANY)
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try photos again that failed before.", rich_help_panel=MANY)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Do all photos anew, finished ones, too; also takes back what was undone.",
            rich_help_panel=MANY,
        ),
    ] = False,
    duplicates: Annotated[
        Literal["link", "copy", "redo"],
        typer.Option(
            help="Identical files are restored once: copy the result, link to it (one file under several names, which "
            "saves room), or redo each.",
            rich_help_panel=MANY,
        ),
    ] = "copy",
    json_lines: Annotated[
        bool,
        typer.Option("--json-lines", help="Print one JSON object a photo instead of text.", rich_help_panel=MANY),
    ] = False,
    engine: Annotated[
        Literal["processes", "serial", "ray"],
        typer.Option(
            help="Who does the work: processes of its own, a thread of this one, or a Ray cluster.",
            rich_help_panel=MANY,
        ),
    ] = "processes",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many processes. 0 chooses: one for each GPU, else one for each CPU core as memory allows; with "
            "Ray, on all nodes.",
            rich_help_panel=MANY,
        ),
    ] = 0,
    threads: Annotated[
        int,
        typer.Option(
            min=1,
            help="Threads of the networks in each process on a CPU. How sums are split over threads decides last bits: "
            "results are the same bytes wherever this number is.",
            rich_help_panel=MANY,
        ),
    ] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster of which this machine is a node, as HOST:PORT, or auto for the one that runs here. "
            "Without it RAY_ADDRESS; without that, Ray is started on this machine for the run.",
            rich_help_panel=MANY,
            show_default=False,
        ),
    ] = None,
    ray_gpus: Annotated[
        float, typer.Option(help="Share of a GPU that each worker of a Ray cluster takes.", rich_help_panel=MANY)
    ] = 1.0,
) -> None:
    """Restore the faces of photos.

    Each photo keeps its format, depth, profile and metadata; what is outside the faces stays as it was, bit for bit.
    A photo that cannot be done is named, and the others go on.

    A folder, several photos with -o, a glob or a list is a run over many photos: the tree is mirrored in OUT, and
    OUT/.facefix keeps a journal. The same command again goes on where it was stopped, and does what changed.
    Ctrl-C finishes the photos in hand; a second one stops at once, and nothing half-written stays.

    [bold]Examples[/bold]

      facefix restore grandma.jpg

      facefix restore scans/ -o restored/ --report restored.jsonl

      find /mnt/scans -name '*.tif' -print0 | facefix restore --from-file - -o restored/

      facefix restore wedding.tif -o wedding-2x.tif --scale 2 --strength 0.8 --compare before-after.jpg
    """
    inputs = inputs or []
    if report is not None:
        place_of_report(report)
    if recipe.upscaler != "lanczos" and recipe.scale == 1 and not quiet:
        remark(f"--upscaler {recipe.upscaler} has nothing to do at --scale 1; give --scale 2 or 4")
    many = cli_archive.Many(
        *(inputs, from_file, out, recipe, mask, report, device, overwrite, strict, quiet, max_pixels),
        *(follow_links, retry_failed, force, duplicates, json_lines, engine, workers, threads),
        *(ray_address, ray_gpus),
    )
    if many.wanted():
        many.refuse({"--faces-out": faces_out, "--compare": compare})
        cli_archive.restore(many)
        return
    many.refuse_alone()
    tasks = list(_tasks(inputs, out, compare))
    from facefix.pipeline import FaceFix

    fix = FaceFix.load(recipe, device=device)
    if not quiet:
        for notice in fix.notices:
            remark(notice)
    reports: list[dict[str, Any]] = []
    failed = faces_failed = 0
    written = Written()
    with _bars(len(tasks), quiet) as (photo_done, faces_done):
        for task in tasks:
            try:
                done = _one(fix, task, mask, faces_out, overwrite, max_pixels, written, faces_done)
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
                _summary(done, quiet)
            photo_done()
            if report is not None:
                write_reports(report, reports, single=len(tasks) == 1)
    if failed:
        raise typer.Exit(EXIT_PHOTO_FAILED)
    if strict and faces_failed:
        complain(f"{counted(faces_failed, 'face')} could not be restored; see the lines above or --report")
        raise typer.Exit(EXIT_FACE_FAILED)


def _one(
    fix: FaceFix,
    task: _Task,
    mask: Path | None,
    faces_out: Path | None,
    overwrite: bool,
    max_pixels: int,
    written: Written,
    progress: Callable[[int, int], None],
) -> Report:
    """Read, restore and write one photo and what was asked for beside it; the report of it."""
    from facefix import imagefile, sheet

    photo = imagefile.read(task.source, max_pixels=max_pixels)
    target = task.target(photo.meta)
    _check_names(task, photo.meta, overwrite, written)
    result = fix(photo, mask=mask, target=target, progress=progress)
    if task.compare is not None:
        make_folder(task.compare.parent)
        imagefile.write(sheet.before_after(photo, result), task.compare, overwrite=overwrite)
        written.add(task.compare, task.source)
    if faces_out is not None:
        make_folder(faces_out)
        for number, pair in sheet.faces(result):
            for kind, face in zip(("before", "after"), pair, strict=True):
                place = faces_out / f"{task.source.stem}.{number:02d}.{kind}.png"
                written.check(place, task.source, "--faces-out")
                imagefile.write(face, place, overwrite=overwrite)
                written.add(place, task.source)
    make_folder(target.parent)
    lost = fix.save(result, photo, target, overwrite=overwrite)
    written.add(target, task.source)
    return dataclasses.replace(result.report, warnings=(*result.report.warnings, *lost))


def _check_names(task: _Task, meta: Meta, overwrite: bool, written: Written) -> None:
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
        if os.path.exists(place) and not overwrite:
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
