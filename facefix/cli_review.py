"""`facefix review`, `apply`, `undo` and `verify`: looking through a run, taking faces back, and proving the rest.

0 all is as it should be, 1 some photo is not or could not be done, 2 wrong usage or no journal, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from facefix.cli_parts import EXIT_INTERRUPTED, EXIT_PHOTO_FAILED, Quiet, complain, errors, remark
from facefix.errors import FacefixError, PhotoError, UsageError, counted, shown
from facefix.jobs.database import FOLDER

if TYPE_CHECKING:
    from facefix.jobs.journal import Journal
    from facefix.jobs.rows import Row

_SAID = 10

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder that `facefix restore … -o` wrote.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Even where somebody changed a result since; in a JPEG their changes are lost."),
]


def review(
    out: Out,
    board: Annotated[
        Path | None, typer.Option(help="Write the board here; OUT/.facefix/review.html without it.", show_default=False)
    ] = None,
    thumb_px: Annotated[int, typer.Option(min=32, max=1024, help="Longest side of a face's picture.")] = 256,
    faces: Annotated[
        int,
        typer.Option(min=1, max=50_000, help="Faces in one board; more go to further boards, the least changed last."),
    ] = 5000,
    quiet: Quiet = False,
) -> None:
    """Write a board to look through every restored face, before and after.

    The board is one HTML file that opens from disk in any browser and needs no network. Flip, accept and reject faces
    with keys or clicks; the browser remembers. Then export the decisions, and have them carried out by `facefix apply`.

    It sorts by change, seam, size or name, and by identity, the least alike first: how like itself each face still is,
    -1 to 1. That is measured while restoring where `sface` is among the weights (`facefix weights fetch sface`).

    [bold]Examples[/bold]

      facefix review restored/

      facefix review restored/ --board to-send.html --thumb-px 160
    """
    from facefix.jobs.review import write_board

    with _journal(out, write=False) as journal, _bar("faces", quiet) as moved:
        paths = write_board(journal, board, thumb_px=thumb_px, faces=faces, progress=moved)
    for path in paths:
        print(f"{shown(path)}: {path.stat().st_size / 1e6:.1f} MB")
    if not quiet:
        print(f"open it in a browser; then: facefix apply {shown(out)} decisions.json")


def apply(
    out: Out,
    decisions: Annotated[Path, typer.Argument(metavar="DECISIONS", help="The file that the board exported.")],
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Carry out what was decided on the board.

    A rejected face is taken back from what was stored of it, the rest of the photo untouched; an accepted one that was
    taken back before is brought in again. Doing it twice is the same as doing it once.

    [bold]Example[/bold]

      facefix apply restored/ ~/Downloads/decisions.json
    """
    from facefix.jobs.review import read_decisions

    told = read_decisions(decisions)
    with _journal(out) as journal:
        work = _decided(journal, told)
        _carry_out(journal, work, len(told), force, quiet)


def undo(
    out: Out,
    photos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PHOTO...", help="Results below OUT, or their sources.", show_default=False),
    ] = None,
    face: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Only this face, numbered as in the report; may be given again.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every photo of the run.")] = False,
    redo: Annotated[bool, typer.Option("--redo", help="The other way: bring in again what was taken back.")] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Take restored faces back.

    A photo whose faces are all taken back is its source again, byte for byte where the source is still there, was not
    enlarged and is of a format that results have, too; of a GIF, HEIC, AVIF, JPEG 2000 or PSD picture the result stays
    a PNG. PNG, TIFF, BMP and lossless WebP are taken back from what is stored in OUT alone; a JPEG is made anew from
    its source, so that only the blocks under the face change.

    [bold]Examples[/bold]

      facefix undo restored/ wedding/table3.jpg --face 2

      facefix undo restored/ wedding/table3.jpg --face 2 --redo

      facefix undo restored/ --all
    """
    if bool(photos) == everything:
        raise UsageError(
            "expected PHOTO or --all, got " + ("both" if photos else "neither") + "; name what to take back"
        )
    with _journal(out) as journal:
        rows = list(_named(journal, photos)) if photos else _all(journal)
        which = None if not face else frozenset(face)
        work = ((row, *_sides(journal, row, which, redo)) for row in rows)
        _carry_out(journal, work, len(photos) if photos else journal.counts()["done"], force, quiet)


def verify(
    out: Out,
    pixels: Annotated[
        bool, typer.Option("--pixels/--hashes-only", help="Compare with the sources, too, or only the hashes.")
    ] = True,
    tolerance: Annotated[
        int,
        typer.Option(
            min=0, max=255, help="Levels that a JPEG or lossy WebP may be off; more than 0 for another encoder's."
        ),
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Prove that every result is what was written, and outside the restored faces what its source is.

    Hashes are compared with OUT/.facefix/report.jsonl. Outside the recorded boxes of the faces, lossless files must
    show their sources bit for bit, JPEG and lossy WebP what their sources give when they are encoded as they were then,
    within the tolerance. Where a source is gone or changed, or a network enlarged the photo, only the hash is compared.

    [bold]Examples[/bold]

      facefix verify restored/

      facefix verify restored/ --hashes-only
    """
    from facefix.jobs.verify import report_problem, strays
    from facefix.jobs.verify import verify as verdicts

    found: Counter[str] = Counter()
    with _journal(out, write=False) as journal, _bar("photos", quiet) as moved:
        total = journal.counts()["done"]
        for done, verdict in enumerate(verdicts(journal, pixels=pixels, tolerance=tolerance), 1):
            kind = "wrong" if verdict.problem else "note" if verdict.note else "right"
            found[kind] += 1
            if verdict.problem:
                complain(f"{shown(verdict.target)}: {verdict.problem}")
            elif verdict.note:
                _some(found["note"], f"{shown(verdict.target)}: {verdict.note}", quiet)
            moved(done, total)
        if problem := report_problem(journal):
            found["wrong"] += 1
            complain(problem)
        for number, path in enumerate(strays(journal), 1):
            found["stray"] = number
            _some(number, f"{shown(path)}: not of this run; left alone", quiet)
    if not quiet:
        _sum_up(out, found, pixels)
    if found["wrong"]:
        raise typer.Exit(EXIT_PHOTO_FAILED)


COMMANDS: tuple[Callable[..., None], ...] = (review, apply, undo, verify)


def _sum_up(out: Path, found: Counter[str], pixels: bool) -> None:
    like = ", and like their sources outside the restored faces" if pixels else ""
    parts = [f"{counted(found['right'], 'result')} as written{like}"]
    parts += [f"{found['note']} as written, but not compared further"] if found["note"] else []
    parts += [f"{found['wrong']} wrong"] if found["wrong"] else []
    parts += [counted(found["stray"], "other file")] if found["stray"] else []
    print(f"{shown(out)}: {'; '.join(parts)}")


def _some(number: int, line: str, quiet: bool) -> None:
    """Notes the first ten of a kind."""
    if not quiet and number <= _SAID:
        remark(line)
    if not quiet and number == _SAID:
        remark("further ones are only counted")


@contextlib.contextmanager
def _journal(out: Path, *, write: bool = True) -> Iterator[Journal]:
    from facefix.jobs.journal import Journal

    with Journal.open(out.absolute(), write=write) as journal:
        yield journal


@contextlib.contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress on stderr, on a terminal: what to call with how many are done, and how many there are."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=quiet or not errors.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


_Work = Iterable[tuple["Row | str", set[int], set[int]]]
"""A photo's row, or why there is none; the faces to reject; the faces to accept."""


def _carry_out(journal: Journal, work: _Work, total: int, force: bool, quiet: bool) -> None:
    """Takes back and brings in, photo by photo; leaves with 1 where one could not be done."""
    from facefix.jobs import undo as room

    sums: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def failed(line: str, kind: str) -> None:
        """Says the line; of many with one reason the first ten."""
        sums["failed"] += 1
        kinds[kind] += 1
        if kinds[kind] <= _SAID:
            complain(line)
        if kinds[kind] == _SAID:
            complain("further photos with this reason are only counted")

    try:
        with _bar("photos", quiet) as moved:
            for done, (row, reject, accept) in enumerate(work, 1):
                moved(done, total)
                if isinstance(row, str):
                    failed(row, "restored anew")
                    continue
                try:
                    gone, back = room.decide(journal, row, reject=reject, accept=accept, force=force)
                except FacefixError as error:
                    failed(str(error), error.problem if isinstance(error, PhotoError) else str(error))
                    continue
                sums.update(gone=len(gone), back=len(back), photos=int(bool(gone or back)))
                if not quiet and (gone or back):
                    _tell(row, gone, back)
    except KeyboardInterrupt:
        complain(f"interrupted; {counted(sums['photos'], 'photo')} changed; the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        journal.export(journal.out / FOLDER / "report.jsonl")  # always: a power cut may have come before it last time
    if not quiet:
        parts = [f"{counted(sums['gone'], 'face')} taken back"]
        parts += [f"{sums['back']} brought in again"] if sums["back"] else []
        rest = f"; {counted(sums['failed'], 'photo')} could not be done" if sums["failed"] else ""
        print(f"{', '.join(parts)}, in {counted(sums['photos'], 'photo')}{rest}")
    if sums["failed"]:
        raise typer.Exit(EXIT_PHOTO_FAILED)


def _tell(row: Row, gone: set[int], back: set[int]) -> None:
    told = [
        f"face{'s' if len(faces) > 1 else ''} {', '.join(map(str, sorted(faces)))} {what}"
        for what, faces in (("taken back", gone), ("brought in again", back))
        if faces
    ]
    print(f"{shown(row.target or row.place)}: {'; '.join(told)}")


def _decided(journal: Journal, told: dict[str, dict[int, bool]]) -> _Work:
    for id, faces in told.items():
        row: Row | str | None = journal.row(id)
        if row is None:
            named = shown(Path(id))[:12]
            row = f"photo {named}: expected one of this run, got another; restored anew, so write the board again"
        accept = {face for face, good in faces.items() if good}
        yield row, set(faces) - accept, accept


def _all(journal: Journal) -> Iterator[Row]:
    return (row for row, _ in journal.rows("done", reports=False))


def _named(journal: Journal, photos: Sequence[Path]) -> Iterator[Row]:
    """The rows of these photos, named as results (below OUT or from here) or sources.

    Raises:
        UsageError: a name is none of the run's.
    """
    wanted: dict[Path, Path] = {}
    for photo in photos:
        wanted |= {Path(os.path.normpath(photo)): photo, Path(os.path.abspath(photo)): photo}
    found: dict[Path, Row] = {}
    for row, _ in journal.rows(reports=False):
        names = [row.place, row.source] + ([] if row.target is None else [row.target, journal.out / row.target])
        for name in names:
            if name in wanted:
                found.setdefault(wanted[name], row)
    for photo in photos:
        if photo not in found:
            told = "expected a result of this run, or its source"
            raise UsageError(f"{shown(photo)}: {told}, got neither; {FOLDER}/report.jsonl names them all")
    yield from {row.number: row for row in found.values()}.values()


def _sides(journal: Journal, row: Row, faces: frozenset[int] | None, redo: bool) -> tuple[set[int], set[int]]:
    """The faces to reject and to accept."""
    from facefix.jobs.undo import faces_of

    report = journal.report(row.id) if row.id is not None else None
    chosen = set(faces_of(report)) if report is not None else {1}
    if faces is not None:
        chosen = set(faces)
    return (set(), chosen) if redo else (chosen, set())
