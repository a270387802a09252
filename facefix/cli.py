"""The `facefix` command. Its options are the fields of `Recipe`; its errors are one line; its exit codes tell.

0 done, 1 some photo failed, 2 wrong usage, 3 weights missing or not accepted, 4 a face failed under --strict,
130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from facefix import __version__, cli_archive, cli_inpaint, cli_photos, cli_review, cli_trades, cli_web, cli_weights
from facefix.cli_parts import (
    EXIT_PHOTO_FAILED,
    Device,
    MaskFile,
    Overwrite,
    Quiet,
    Strict,
    complain,
    place_of_report,
    remark,
    with_recipe,
)
from facefix.errors import FacefixError
from facefix.recipe import Recipe

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

    Each photo keeps its format, depth, profile and metadata; what is outside the faces stays as it was, bit for bit
    (JPEG and lossy WebP are packed anew, which moves some pixels by a few levels).
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
    cli_photos.restore(
        cli_photos.Named(
            *(inputs, out, recipe, mask, report, faces_out, compare, device),
            *(overwrite, strict, quiet, max_pixels),
        )
    )
