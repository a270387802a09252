"""`facefix restore` for many photos: the run over a tree, what it shows meanwhile, and what it says at the end."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from facefix.cli_parts import (
    EXIT_FACE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PHOTO_FAILED,
    complain,
    errors,
    place_of_report,
    remark,
)
from facefix.errors import FacefixError, JournalError, UsageError, counted, shown
from facefix.jobs.database import FOLDER
from facefix.jobs.rows import failure
from facefix.recipe import Recipe

_SAID, _KINDS, _SHOW_S = 10, 100, 0.1


@dataclass(frozen=True, slots=True)
class Many:
    """What was asked for on the command line of `restore`."""

    inputs: list[Path]
    from_file: Path | None
    out: Path | None
    recipe: Recipe
    mask: Path | None
    report: Path | None
    device: str
    overwrite: bool
    strict: bool
    quiet: bool
    max_pixels: int
    follow_links: bool
    retry_failed: bool
    force: bool
    duplicates: Literal["link", "copy", "redo"]
    json_lines: bool
    engine: str
    workers: int
    threads: int
    ray_address: str | None
    ray_gpus: float

    def wanted(self) -> bool:
        """Whether this is a run over many photos, with a journal, and not one or some photos by themselves.

        Raises:
            UsageError: there is nothing to do.
        """
        if self.from_file is None and not self.inputs:
            raise UsageError("INPUT: expected photos or folders, got none; name some, or give --from-file")
        spread = any(map(_is_spread, self.inputs))
        known = self.out is not None and os.path.exists(self.out / FOLDER / "journal.sqlite")
        return self.from_file is not None or spread or known or (self.out is not None and len(self.inputs) > 1)

    def refuse(self, options: Mapping[str, object]) -> None:
        """Nothing, where none of these options is given, which go with photos by themselves only.

        Raises:
            UsageError: one is.
        """
        for name, value in options.items():
            if value is not None:
                raise UsageError(
                    f"{name} goes with single photos; after a run over many, `facefix review OUT` shows every face"
                )

    def refuse_alone(self) -> None:
        """Nothing, where no option is given that goes with a run over many photos only.

        Raises:
            UsageError: one is.
        """
        given = {
            "--follow-links": self.follow_links,
            "--retry-failed": self.retry_failed,
            "--force": self.force,
            "--json-lines": self.json_lines,
            "--duplicates": self.duplicates != "copy",
            "--engine": self.engine != "processes",
            "--workers": self.workers,
            "--threads": self.threads != 1,
            "--ray-address": self.ray_address,
            "--ray-gpus": self.ray_gpus != 1,
        }
        for name, value in given.items():
            if value:
                raise UsageError(
                    f"{name} goes with runs over many photos: name a folder, or several photos and -o FOLDER"
                )


def _is_spread(path: Path) -> bool:
    """Whether many photos may be meant by it."""
    return os.path.isdir(path) or _is_glob(path)


def _is_glob(path: Path) -> bool:
    import glob

    return glob.has_magic(str(path)) and not os.path.lexists(path)


def restore(many: Many) -> None:
    """Do the run; leaves with its exit code where that is not 0.

    Raises:
        FacefixError: it cannot be done, or cannot go on.
    """
    from facefix.jobs.devices import devices_for
    from facefix.jobs.drive import Drive
    from facefix.jobs.engines import Engine, Processes, Serial
    from facefix.jobs.journal import Journal
    from facefix.jobs.walk import Walk, listed, roots
    from facefix.jobs.workers import Run, Wishes

    out = _out(many)
    with contextlib.ExitStack() as open_files:
        begin = iter(roots(many.inputs, out))
        if many.from_file is not None:
            begin = _chained(begin, listed(open_files.enter_context(_list(many.from_file))))
        engine: Engine = Serial()
        if many.engine != "ray" and (many.ray_address or many.ray_gpus != 1):
            raise UsageError(f"--ray-address, --ray-gpus: expected --engine ray, too, got {many.engine}; name it")
        if many.engine == "processes":
            engine = Processes(devices_for(many.device, many.workers, _heaviest(many.recipe)))
        elif many.engine == "ray":
            engine = _cluster(many)
        journal = open_files.enter_context(Journal.open(out, create=True))
        walk = Walk(begin, out, follow_links=many.follow_links)
        screen = Screen(many, out)
        run = Run(out, many.recipe, many.device, many.threads, many.max_pixels, many.mask, many.overwrite)
        wishes = Wishes(many.retry_failed, many.force, many.duplicates)
        drive = Drive(journal, run, engine, wishes, screen.hears)
        try:
            with _interrupts(drive), screen:
                drive.go(walk)
        except KeyboardInterrupt:
            complain(f"stopped at once; {screen.so_far()}; the same command goes on from here")
            if many.engine == "serial":  # its thread is left in the midst of a photo, which a tidy end would abort at
                sys.stdout.flush()
                atexit.register(os._exit, EXIT_INTERRUPTED)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        finally:
            _reports(journal, out, many.report, forgiving=sys.exc_info()[0] is not None)
        screen.conclude(walk.others, walk.links)
        if drive.stop.is_set():
            complain(f"interrupted; {screen.so_far()}; the same command goes on from here")
            raise typer.Exit(EXIT_INTERRUPTED)
    screen.leave()


def _out(many: Many) -> Path:
    """The output folder, absolute, there or not.

    Raises:
        UsageError: none was named, or it is a file.
    """
    if many.out is None:
        named = many.from_file if many.from_file is not None else next(filter(_is_spread, many.inputs))
        told = f"{shown(named)}: expected -o FOLDER for what comes of many photos, got none; name one"
        raise UsageError(told + (", or name photos only" if len(many.inputs) > 1 else ""))
    if os.path.exists(many.out) and not os.path.isdir(many.out):
        raise UsageError(f"-o {shown(many.out)}: expected a folder for many photos, got a file; name a folder")
    return many.out.absolute()


def _list(path: Path) -> Any:
    """The list of names, open for reading bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        if str(path) == "-":  # by itself, and never closed: a thread may be waiting for more
            return contextlib.nullcontext(open(0, "rb", buffering=0, closefd=False))
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise UsageError(f"--from-file {shown(path)}: {error.strerror}; give a list of photos") from error


def _chained(first: Iterator[Any], second: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from second


def _cluster(many: Many) -> Any:
    """The engine over Ray.

    Raises:
        UsageError: Ray is not installed, or cannot be reached.
    """
    if not (many.ray_address or os.environ.get("RAY_ADDRESS")):  # read by Ray when it is imported: who reaches its
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # ports can run code, so none but loopback's
    try:
        from facefix.jobs.cluster import Cluster
    except ImportError as error:
        told = f"--engine ray: expected Ray, got '{error}'; install it with pip install 'facefix[ray]'"
        raise UsageError(told) from error
    wanted = many.ray_address, many.device, many.workers
    return Cluster(*wanted, gpus=many.ray_gpus, heaviest_bytes=_heaviest(many.recipe))


def _heaviest(recipe: Recipe) -> int:
    """The size of the largest restorer's file that the recipe may take, in bytes."""
    from facefix.jobs.devices import heaviest_bytes
    from facefix.weights import Store

    return heaviest_bytes(recipe.restorer, Store.default())


def _reports(journal: Any, out: Path, wanted: Path | None, *, forgiving: bool) -> None:
    """Writes OUT/.facefix/report.jsonl, and the one that was asked for."""
    try:
        if os.path.isdir(out / FOLDER):  # it may have gone away
            journal.export(out / FOLDER / "report.jsonl")
        if wanted is not None:
            journal.export(place_of_report(wanted), lines=wanted.suffix.lower() == ".jsonl")
    except (JournalError, UsageError):
        if not forgiving:
            raise


@contextlib.contextmanager
def _interrupts(drive: Any) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets what is begun be finished, the second stops at once."""

    def heard(number: int, frame: FrameType | None) -> None:
        if drive.stop.is_set():
            raise KeyboardInterrupt
        drive.stop.set()
        complain("finishing the photos in hand; Ctrl-C again stops at once, and the same command goes on from here")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Screen:
    """What a run shows: progress on a terminal, a line or a JSON object a photo, what went wrong, and the sum."""

    def __init__(self, many: Many, out: Path) -> None:
        self.many, self.out = many, out
        self.count: Counter[str] = Counter()
        self.faces = self.faces_failed = 0
        self._kinds: Counter[str] = Counter()
        self._began, self._shown_at = time.monotonic(), 0.0
        hidden = many.quiet or many.json_lines or not errors.is_terminal
        self._bar = Progress(
            *(TextColumn("photos"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}")),
            *(TextColumn("left"), TimeRemainingColumn()),
            console=errors,
            disable=hidden,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, more="")

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def hears(self, event: str, source: Path, what: dict[str, Any] | str) -> None:
        """As Drive tells it."""
        self.count[event] += 1
        if isinstance(what, dict):
            self._done(what)
        elif event == "note":
            if not self.many.quiet:
                remark(what)
        elif event in ("failed", "closed"):
            self._failed(source, what)
        self._show()

    @property
    def finished(self) -> int:
        """Photos that this run has done or found impossible."""
        return self.count["done"] + self.count["copied"] + self.count["failed"]

    def _show(self) -> None:
        if self._bar.disable or time.monotonic() < self._shown_at + _SHOW_S:
            return
        self._shown_at = time.monotonic()
        rate = self.finished / max(time.monotonic() - self._began, 1e-9)
        failed = self.count["failed"] + self.count["closed"]
        more = f"{counted(self.faces, 'face')}  {rate:.2f}/s  {failed} failed"
        known = self.count["before"] + self.count["failed before"]
        self._bar.update(self._task, total=self.count["met"] - known, completed=self.finished, more=more)

    def _done(self, report: dict[str, Any]) -> None:
        restored = [face for face in report["faces"] if face["outcome"] == "restored"]
        self.faces += len(restored)
        self.faces_failed += sum(face["outcome"] == "failed" for face in report["faces"])
        if self.many.json_lines:
            print(json.dumps(report), flush=True)
        elif not self.many.quiet:
            for warning in report["warnings"]:
                self._say(remark, f"{report['source']}: {warning}", f"the note '{warning}'")
            what = f"{len(restored)} of {len(report['faces'])} faces restored" if report["faces"] else "no face found"
            names = ", ".join(sorted({face["restorer"] for face in restored if face["restorer"]}))
            by = f" with {names}" if names else ""
            told = f"{what}{by} in {report['seconds']:.1f} s"
            if "same_as" in report:
                told = f"copied from {report['same_as']}, the same photo ({what})"
            print(f"{_shown(self.out / report['target'])}: {told}")

    def _failed(self, source: Path, reason: str) -> None:
        """Names a failure."""
        if self.many.json_lines:
            print(json.dumps(failure(source, reason)), flush=True)
        self._say(complain, reason, f"'{_without_names(source, reason)}'")

    def _say(self, aloud: Callable[[str], None], line: str, kind: str) -> None:
        """Says the line; of many of one kind the first ten."""
        kind = kind if kind in self._kinds or len(self._kinds) < _KINDS else "other reasons"
        self._kinds[kind] += 1
        if self._kinds[kind] <= _SAID:
            aloud(line)
        if self._kinds[kind] == _SAID:
            where = _shown(self.out / FOLDER / "report.jsonl")
            aloud(f"more photos with {kind} are only counted; {where} names them")

    def so_far(self) -> str:
        """What was done up to now, in a few words."""
        return f"{counted(self.count['done'] + self.count['copied'], 'photo')} finished and kept"

    def conclude(self, others: int, links: int) -> None:
        """Prints the sum of the run."""
        count, seconds = self.count, time.monotonic() - self._began
        parts = [f"{counted(count['done'], 'photo')} done ({counted(self.faces, 'face')} restored)"]
        parts += [f"{count['copied']} copied from identical ones"] if count["copied"] else []
        parts += [f"{count['before']} done before"] if count["before"] else []
        parts += [f"{count['failed']} failed"] if count["failed"] else []
        parts += (
            [f"{count['failed before']} failed before (--retry-failed tries again)"] if count["failed before"] else []
        )
        parts += [f"{counted(count['closed'], 'folder')} could not be looked into"] if count["closed"] else []
        parts += [f"{counted(others, 'other file')} left alone"] if others else []
        parts += [f"{counted(links, 'linked folder')} not followed (--follow-links does)"] if links else []
        rate = f"; {self.finished / seconds:.2f} photos/s" if self.finished else ""
        if not self.many.quiet:
            line = f"{_shown(self.out)}: {', '.join(parts)}{rate}"
            print(line, file=sys.stderr if self.many.json_lines else sys.stdout)

    def leave(self) -> None:
        """Leaves with the exit code that the run deserves.

        Raises:
            UsageError: there was no photo.
        """
        if not self.count["met"] and not self.count["closed"]:
            named = ", ".join(shown(path) for path in self.many.inputs) or "the list"
            raise FacefixError(f"{named}: expected photos, got none; name a folder that holds some")
        if self.many.quiet and self.count["failed before"] and not self.count["failed"]:  # or nothing would say why
            complain(f"{self.count['failed before']} failed before; --retry-failed tries again")
        if self.count["failed"] or self.count["failed before"] or self.count["closed"]:
            raise typer.Exit(EXIT_PHOTO_FAILED)
        if self.many.strict and self.faces_failed:
            complain(f"{counted(self.faces_failed, 'face')} could not be restored; {FOLDER}/report.jsonl says which")
            raise typer.Exit(EXIT_FACE_FAILED)


def _without_names(source: Path, reason: str) -> str:
    """What is wrong, whatever the photo: its names, its own and that below OUT, are taken out."""
    name = re.escape(shown(Path(source.name)))
    return re.sub(rf"(^|\s)(/|\w:\\).*?{name}(\.\w+)?(: )?", r"\1", reason).strip()


def _shown(path: Path) -> str:
    """The path, relative to where the user is where that is shorter."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shown(path)
