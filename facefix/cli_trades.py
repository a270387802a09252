"""`facefix colorize` and `facefix seg2face`: what GPEN's other weights do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facefix.cli_parts import (
    EXIT_FACE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PHOTO_FAILED,
    Device,
    MaskFile,
    Overwrite,
    Quiet,
    Written,
    complain,
    make_folder,
    place_of_report,
    remark,
    with_recipe,
    write_reports,
)
from facefix.errors import PhotoError, PhotoUnwritable, UsageError, counted
from facefix.jobs.rows import failure, report_json, text_of
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.types import Report


@with_recipe("colorize")
def colorize(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Photos.", show_default=False)],
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
    model: Annotated[
        str,
        typer.Option(help="Name from `facefix weights list` or file. Without it GPEN-Colorization-1024."),
    ] = "",
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned",
            help="Each photo is one square face, aligned as in FFHQ: colour all of it, as GPEN's own demo does.",
        ),
    ] = False,
    mask: MaskFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write what was done to each face as JSON: an object for one photo, a list for more; one object a "
            "line where the name ends in .jsonl.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 where a face could not be coloured.")] = False,
    quiet: Quiet = False,
) -> None:
    """Give the faces of black-and-white photos colour; only the faces.

    The network has seen nothing but faces, so all else keeps its gray, bit for bit; --mask-from crop takes in the hair
    and surroundings of a portrait. The lightness of every pixel stays the photo's own; the colours are the network's
    guess. The result is an RGB file of the photo's format and depth; JPEG and lossy WebP are packed anew.

    [bold]Examples[/bold]

      facefix colorize grandma.jpg --chroma 0.8

      facefix colorize scans/*.tif -o coloured/
    """
    from facefix import imagefile
    from facefix.trades import Colorizer

    if aligned and mask is not None:
        raise UsageError("expected --aligned or --mask, got both; all of an aligned face is coloured")
    if report is not None:
        place_of_report(report)
    colorizer = Colorizer.load(recipe, model=model, device=device)
    failed_faces = 0
    written = Written(inputs)

    def one(source: Path) -> dict[str, Any]:
        nonlocal failed_faces
        photo = imagefile.read(source)
        ending = f".facefix{imagefile.suffix_for(photo.meta)}"
        target = _target(source, out, len(inputs), ending, overwrite, written)
        result = colorizer(photo, mask=mask, aligned=aligned, target=target)
        lost = colorizer.save(result, photo, target, overwrite=overwrite)
        written.add(target, source)
        done = dataclasses.replace(result.report, warnings=(*result.report.warnings, *lost))
        failed_faces += sum(note.outcome == "failed" for note in done.faces)
        if not quiet:
            _tell(done, aligned)
        return report_json(done)

    reports = _each(inputs, one, colorizer.notices, quiet)
    if report is not None:
        write_reports(report, reports, single=len(inputs) == 1)
    _leave(reports)
    if strict and failed_faces:
        complain(f"{counted(failed_faces, 'face')} could not be coloured; see the lines above or --report")
        raise typer.Exit(EXIT_FACE_FAILED)


def seg2face(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LABELS...",
            help="Square label maps: PNG in the colours of CelebAMask-HQ, or gray with its class numbers 0 to 18.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for one face, folder for more. Without it NAME.face.png is written beside each label map.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name from `facefix weights list` or file. Without it GPEN-Seg2face-512.")
    ] = "",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw faces from label maps.

    The face is made up, and its file says so in its XMP.

    [bold]Examples[/bold]

      facefix seg2face labels.png -o face.png
    """
    from facefix import imagefile
    from facefix.trades import FaceDrawer, labels_of

    drawer = FaceDrawer.load(model, device=device, precision=precision)
    written = Written(inputs)

    def one(source: Path) -> dict[str, Any]:
        picture = imagefile.read(source)
        labels = labels_of(picture)
        target = _target(source, out, len(inputs), ".face.png", overwrite, written)
        lost = drawer.save(drawer(labels), target, overwrite=overwrite)
        written.add(target, source)
        told = (*picture.meta.warnings, *lost)
        if not quiet:
            for warning in told:
                remark(f"{text_of(source)}: {warning}")
            print(f"{text_of(target)}: drawn with {drawer.name}")
        return {"source": text_of(source), "target": text_of(target), "weights": dict(drawer.digests), "warnings": told}

    _leave(_each(inputs, one, drawer.notices, quiet))


COMMANDS = (colorize, seg2face)


def _each(
    sources: list[Path], do: Callable[[Path], dict[str, Any]], notices: tuple[str, ...], quiet: bool
) -> list[dict[str, Any]]:
    """What was done with each file, or what went wrong with it; the others go on."""
    for notice in () if quiet else notices:
        remark(notice)
    done: list[dict[str, Any]] = []
    for source in sources:
        try:
            done.append(do(source))
        except PhotoError as error:
            problem = str(error) if error.path is not None else f"{source}: {error}"
            complain(problem)
            done.append(failure(source, problem))
        except KeyboardInterrupt:
            complain(f"interrupted; {len(done)} of {len(sources)} were done, and what was written is kept")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    return done


def _leave(done: list[dict[str, Any]]) -> None:
    """Nothing, where all went well."""
    if any("error" in each for each in done):
        raise typer.Exit(EXIT_PHOTO_FAILED)


def _target(source: Path, out: Path | None, count: int, ending: str, overwrite: bool, written: Written) -> Path:
    """Where a result is written, in a folder that is there; `ending` is what a name beside the source ends in.

    Raises:
        PhotoUnwritable: there is such a file, be it `written` for another source, or the folder cannot be made.
    """
    if out is None:
        target = source.with_name(source.stem + ending)
    elif count == 1 and out.suffix and not os.path.isdir(out):
        target = out
    else:
        target = out / (source.stem + Path(ending).suffix)
    written.check(target, source)
    if os.path.exists(target) and not overwrite:
        raise PhotoUnwritable(source, f"{target} exists already; give another -o or pass --overwrite")
    make_folder(target.parent)
    return target


def _tell(report: Report, aligned: bool) -> None:
    """One line on stdout about the photo, one for each face that keeps its gray."""
    for warning in report.warnings:
        remark(f"{report.source}: {warning}")
    coloured = sum(note.outcome == "restored" for note in report.faces)
    if aligned:
        what = "the whole face coloured"
    elif report.faces:
        what = f"{coloured} of {len(report.faces)} faces coloured, all else as it was,"
    else:
        what = "no face found, and nothing else is coloured,"
    print(f"{report.target}: {what} in {report.seconds:.1f} s")
    for number, note in enumerate(report.faces, 1):
        if note.outcome != "restored":
            print(f"  face {number} {note.outcome}: {note.reason}")
