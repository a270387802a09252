"""`facefix inpaint`: fill a hole in one photo, and restore the faces that it touches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from facefix.cli_parts import (
    EXIT_FACE_FAILED,
    EXIT_INTERRUPTED,
    Device,
    Overwrite,
    Quiet,
    Strict,
    complain,
    errors,
    make_folder,
    place_of_report,
    remark,
    with_recipe,
    write_reports,
)
from facefix.errors import PhotoUnwritable, counted, text_of
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.types import Photo, Report


@with_recipe("inpaint")
def inpaint(
    scene: Annotated[Path, typer.Argument(metavar="SCENE", help="The photo.", show_default=False)],
    recipe: Recipe,
    mask: Annotated[
        Path | None,
        typer.Argument(
            metavar="MASK",
            help="Picture of the scene's size: white is the hole. Without it the scene's transparent pixels are.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File or folder for the result. Without it NAME.facefix.EXT is written beside the scene. With "
            "--candidates a number is put before the suffix.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write what was done as JSON: an object for one result, a list for more candidates; one object a line "
            "where the name ends in .jsonl.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Fill a hole in a photo, then restore the faces that the hole touches.

    The result has the scene's size, format, depth, profile and metadata. Outside the hole and its soft edge
    (--feather-px) no bit changes, whatever fills it; only JPEG and lossy WebP are packed anew. With --outpaint the
    frame grows, with --hires all of it.

    [bold]Examples[/bold]

      facefix inpaint scan.tif scratches.png -o mended.tif

      facefix inpaint beach.jpg stranger.png -o beach-alone.jpg --engine lama --region masked --dilate-px 6

      facefix inpaint room.png -o wider.png --outpaint 0,0,25%,0 --engine sd --model ./sd15-inpainting
    """
    from facefix import imagefile
    from facefix.inpainting import Inpainter
    from facefix.jobs.rows import report_json

    if report is not None:
        place_of_report(report)
    photo = imagefile.read(scene)
    targets = _targets(scene, out, photo, recipe.candidates, overwrite)
    painter = Inpainter.load(recipe, device=device)
    if not quiet:
        for notice in painter.notices:
            remark(notice)
    reports: list[Report] = []
    try:
        with _bar(quiet) as show:
            for target, result in zip(targets, painter.candidates(photo, mask, progress=show), strict=True):
                make_folder(target.parent)
                lost = painter.save(result, photo, target, overwrite=overwrite)
                warnings = (*result.report.warnings, *lost)
                reports.append(dataclasses.replace(result.report, target=text_of(target), warnings=warnings))
    except KeyboardInterrupt:
        complain(f"interrupted; {len(reports)} of {len(targets)} results were finished and are kept")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    for done in reports:
        _summary(done, quiet)
    if report is not None:
        told = [report_json(done) | {"fill": dict(done.fill)} for done in reports]
        write_reports(report, told, single=recipe.candidates == 1)
    failed = sum(face.outcome == "failed" for done in reports for face in done.faces)
    if strict and failed:
        complain(f"{counted(failed, 'face')} could not be restored; see the lines above or --report")
        raise typer.Exit(EXIT_FACE_FAILED)


def _targets(scene: Path, out: Path | None, photo: Photo, candidates: int, overwrite: bool) -> list[Path]:
    """Where each candidate is written.

    Raises:
        PhotoUnwritable: one is there already, or its suffix is of no format that can be written.
    """
    from facefix.imagefile import suffix_for
    from facefix.imagefile.encode import format_for

    if out is None:
        out = scene.with_name(f"{scene.stem}.facefix{suffix_for(photo.meta)}")
    elif os.path.isdir(out) or not out.suffix:
        out = out / f"{scene.stem}{suffix_for(photo.meta)}"
    targets = [out]
    if candidates > 1:
        targets = [out.with_name(f"{out.stem}.{number}{out.suffix}") for number in range(1, candidates + 1)]
    for target in targets:
        try:
            format_for(target)
        except ValueError as error:
            raise PhotoUnwritable(target, str(error)) from error
        if os.path.exists(target) and not overwrite:
            raise PhotoUnwritable(scene, f"{target} exists already; give another -o or pass --overwrite")
    return targets


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr, on a terminal: what to call with what is being done, the steps done, and all steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    hidden = quiet or not errors.is_terminal
    with Progress(*columns, *times, console=errors, disable=hidden, transient=True) as progress:
        task = progress.add_task("fill", total=None)
        yield lambda name, done, total: progress.update(task, description=name, completed=done, total=total)


def _summary(report: Report, quiet: bool) -> None:
    """One line on stdout about the result, one for each face that was not restored."""
    if quiet:
        return
    for warning in report.warnings:
        remark(f"{report.source}: {warning}")
    fill = report.fill
    seed = "" if fill["seed"] is None else f", seed {fill['seed']}"
    what = f"{fill['hole_px']} px filled with {fill['engine']}{seed}"
    restored = [face for face in report.faces if face.outcome == "restored"]
    names = ", ".join(sorted({face.restorer for face in restored if face.restorer}))
    if report.faces:
        what += f", {len(restored)} of {len(report.faces)} faces restored{f' with {names}' if names else ''}"
    print(f"{report.target}: {what} in {report.seconds:.1f} s")
    for number, face in enumerate(report.faces, 1):
        if face.outcome != "restored":
            print(f"  face {number} {face.outcome}: {face.reason}")
