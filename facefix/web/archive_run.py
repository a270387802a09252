"""The run over an archive as the page has it: the command's own, in a thread of the server, paused and gone on with.

The journal in OUT/.facefix is the one that `facefix restore SCANS -o OUT` keeps, so that either can go on with what the
other began; the lock beside it lets only one of them work at a time. What a run has done is in the journal, not in a
browser: whoever opens the page sees the same, and what was paused, or was under way when the server ended, goes on
where it was. The networks work in processes of their own, and the page stays quick.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from facefix.errors import FacefixError, UsageError, shown
from facefix.jobs import undo
from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive
from facefix.jobs.engines import Processes, devices_for
from facefix.jobs.journal import Journal
from facefix.jobs.rows import Found
from facefix.jobs.walk import Closed, Walk, roots
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe
from facefix.web.house import House

State = Literal["starting", "running", "pausing", "paused", "finished", "broken"]
FAILURES, _LISTED, _FRESH_S = 50, 500, 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands.

    Args:
        state: starting until the networks are loaded; broken where it cannot go on, which `problem` explains.
        counts: how often Drive told of each of its events.
        faces: restored in this run.
        seconds: that it worked.
        failures: the first photos and folders that could not be done, a line each.
        remarks: what the user should know, a line each.
    """

    state: State
    problem: str
    counts: Mapping[str, int]
    faces: int
    seconds: float
    failures: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def finished(self) -> int:
        """Photos that this run did, or found impossible."""
        return self.counts["done"] + self.counts["copied"] + self.counts["failed"]

    @property
    def wanted(self) -> int:
        """Photos that this run met and that were not finished before it."""
        return self.counts["met"] - self.counts["before"] - self.counts["failed before"]

    @property
    def alive(self) -> bool:
        """Whether it holds the journal."""
        return self.state in ("starting", "running", "pausing")


class ArchiveRun:
    """One run from a folder to another; it begins when it is made, and `pause` ends it when what it began is done.

    Args:
        house: whose device and limits it has.
        source: the folder of photos.
        out: the folder for the results.
        recipe: the settings.
        retry_failed: try photos again that failed before.
        workers: how many processes; 0 chooses.

    Raises:
        FacefixError: it cannot begin, as where another process is at work on the journal.
    """

    def __init__(
        self, house: House, source: Path, out: Path, recipe: Recipe, *, retry_failed: bool = False, workers: int = 0
    ) -> None:
        self.source, self.out, self.recipe = source, out, recipe
        self._run = Run(out, recipe, house.device, max_pixels=house.max_pixels)
        self._wishes = Wishes(retry_failed=retry_failed)
        begin = roots([source], out)
        self._walk = Walk(begin, out)
        self._within = house.input_dir or source
        self._engine = Processes(devices_for(house.device, workers, _heaviest_bytes(house, recipe)))
        self._drive: Drive | None = None
        self._counts: Counter[str] = Counter()
        self._faces, self._failures, self._remarks = 0, list[str](), list[str]()
        self._began, self._ended = time.monotonic(), 0.0
        self._problem: FacefixError | None = None
        self._stop, self._open, self._lock = False, threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._go, name="facefix-web-archive")
        self._thread.start()
        self._open.wait()
        if self._drive is None and self._problem is not None:
            self._thread.join()
            raise self._problem

    def pause(self) -> None:
        """Nothing; the photos in hand are finished, and no other is begun, as at the command's first Ctrl-C."""
        self._stop = True
        if self._drive is not None:
            self._drive.stop.set()

    def join(self) -> None:
        """Nothing, when the run is over and has left the journal."""
        self._thread.join()

    def standing(self) -> Standing:
        """How it stands at this moment."""
        with self._lock:
            alive = self._thread.is_alive() and not self._ended
            state: State
            if alive:
                state = "pausing" if self._stop else "running" if hasattr(self._drive, "loaded") else "starting"
            else:
                state = "broken" if self._problem is not None else "paused" if self._stop else "finished"
            seconds = (self._ended or time.monotonic()) - self._began
            problem = "" if self._problem is None else str(self._problem)
            told = tuple(self._failures), tuple(self._remarks)
            return Standing(state, problem, Counter(self._counts), self._faces, seconds, *told)

    def _go(self) -> None:
        try:
            with Journal.open(self.out, create=True) as journal:
                self._drive = Drive(journal, self._run, self._engine, self._wishes, self._hears)
                self._open.set()
                try:
                    self._drive.go(_own(self._walk, self._within))
                finally:
                    if (self.out / FOLDER).is_dir():
                        journal.export(self.out / FOLDER / "report.jsonl")
        except FacefixError as error:
            self._problem = error
        finally:
            with self._lock:
                self._ended = time.monotonic()
            self._open.set()

    def _hears(self, event: str, source: Path, what: dict[str, Any] | str) -> None:
        """As Drive tells it."""
        with self._lock:
            if not self._counts["met"] and event == "met":
                self._began = time.monotonic()  # the networks are loaded
            self._counts[event] += 1
            if isinstance(what, dict):
                self._faces += sum(face["outcome"] == "restored" for face in what["faces"])
            elif event == "note":
                self._remarks.append(what)
            elif event in ("failed", "closed", "failed before") and len(self._failures) < FAILURES:
                self._failures.append(below(self.source, what))


class Archive:
    """The one run of a server, and what the journals of its output folder say; all visitors see the same.

    Args:
        house: whose folders are worked on; the run ends with it.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.run: ArchiveRun | None = None
        self._changing = threading.Lock()
        self._known: dict[Path, tuple[float, tuple[int, ...], dict[str, int], list[str]]] = {}
        self._reverse: dict[Path, dict[str, dict[int, bool]]] = {}
        house.at_close(self.close)

    @property
    def alive(self) -> bool:
        """Whether a run is under way."""
        return self.run is not None and self.run.standing().alive

    def start(self, source: str, out: str, recipe: Recipe, *, retry_failed: bool = False) -> ArchiveRun:
        """The run, begun or gone on with.

        Raises:
            FacefixError: a folder is none of the server's, or another run is under way.
        """
        with self._changing:
            if self.run is not None and self.run.standing().alive:
                doing = f"{shown(self.run.source.relative_to(self.input_dir))} is being restored"
                raise UsageError(f"{doing}, expected one archive at a time; wait for it, or pause it")
            photos, results = self.source(source), self.results(out)
            self.run = ArchiveRun(self.house, photos, results, recipe, retry_failed=retry_failed)
            return self.run

    def pause(self) -> None:
        """Nothing; the run, if there is one, begins no other photo."""
        if self.run is not None:
            self.run.pause()

    def close(self) -> None:
        """Nothing; the photos in hand are finished, and the journal is left as the next run needs it."""
        self.pause()
        if self.run is not None:
            self.run.join()

    @property
    def input_dir(self) -> Path:
        """The folder whose photos may be read.

        Raises:
            UsageError: the server was started without one.
        """
        return _given(self.house.input_dir)

    @property
    def output_dir(self) -> Path:
        """The folder that may be written to.

        Raises:
            UsageError: the server was started without one.
        """
        return _given(self.house.output_dir)

    def source(self, named: str) -> Path:
        """The folder of that name in the input folder.

        Raises:
            UsageError: it is none, or leads out.
        """
        path = inside(self.input_dir, named, "input")
        if not path.is_dir():
            raise UsageError(
                f"{shown(Path(named))}: expected a folder of the server's input folder, got none; choose one"
            )
        return path

    def results(self, named: str) -> Path:
        """The folder of that name in the output folder, there or not.

        Raises:
            UsageError: it leads out, or is a file.
        """
        path = inside(self.output_dir, named, "output")
        if path.exists() and not path.is_dir():
            raise UsageError(f"{shown(Path(named))}: expected a folder for the results, got a file; name another")
        return path

    def journal_says(self, out: Path) -> tuple[dict[str, int], list[str]] | None:
        """How many photos of OUT are in each state, and the first failures; None where it has no journal.

        What was read is shared by all visitors, and read again only when the journal changed.

        Raises:
            JournalError: it cannot be used.
        """
        mark = tuple(_mtime_ns(out / FOLDER / f"journal.sqlite{end}") for end in ("", "-wal"))
        if not mark[0]:
            return None
        known = self._known.get(out)
        if known is None or (known[1] != mark and time.monotonic() - known[0] > _FRESH_S):
            with Journal.open(out, write=False) as journal:
                counts = {str(state): count for state, count in journal.counts().items()}
                rows = journal.rows("failed", reports=False) if counts["failed"] else iter(())
                failures = [below(row.source.parents[len(row.place.parts) - 1], row.reason) for row, _ in rows_of(rows)]
            known = self._known[out] = time.monotonic(), mark, counts, failures
        return known[2], known[3]

    def began_with(self, out: Path) -> tuple[Path, Recipe] | None:
        """The folder and the settings of the photos that OUT holds, from the first that is done; None without one."""
        if not (out / FOLDER / "journal.sqlite").is_file():
            return None
        with Journal.open(out, write=False) as journal:
            row, report = next(journal.rows("done"), (None, None))
        if row is None or report is None:
            return None
        return row.source.parents[len(row.place.parts) - 1], Recipe.from_mapping(report["recipe"])

    def carry_out(self, out: Path, told: Mapping[str, Mapping[int, bool]]) -> tuple[str, list[str]]:
        """What became of the decisions: rejected faces are taken back, accepted ones brought in again.

        Returns:
            It in words, and the faces whose decisions are spent, each as ID#FACE: they were carried out, or are about
            a photo that was restored anew since.

        Raises:
            JournalError: there is no journal, or another process holds it.
        """
        sums: Counter[str] = Counter()
        troubles, spent = list[str](), list[str]()
        reverse: dict[str, dict[int, bool]] = {}
        with Journal.open(out) as journal:
            for id, faces in told.items():
                row = journal.row(id)
                if row is None:
                    sums["strange"] += 1
                    spent += [f"{id}#{face}" for face in faces]
                    continue
                accept = {face for face, good in faces.items() if good}
                try:
                    gone, back = undo.decide(journal, row, reject=set(faces) - accept, accept=accept)
                except FacefixError as error:
                    troubles.append(below(out, str(error)))
                    continue
                spent += [f"{id}#{face}" for face in gone | back]
                if gone or back:
                    reverse[id] = dict.fromkeys(gone, True) | dict.fromkeys(back, False)
                    sums.update(gone=len(gone), back=len(back), photos=1)
            if sums["photos"]:
                journal.export(out / FOLDER / "report.jsonl")
        if reverse:
            self._reverse[out] = reverse
        return _summed(sums, troubles), spent

    def take_back(self, out: Path) -> str:
        """What became of undoing the decisions that were carried out last, in words.

        Raises:
            UsageError: none were carried out since the server was started.
        """
        told = self._reverse.pop(out, None)
        if told is None:
            raise UsageError(
                "expected decisions that were carried out here, got none; `facefix undo` takes any face back"
            )
        return self.carry_out(out, told)[0]

    def can_take_back(self, out: Path) -> bool:
        """Whether decisions were carried out since the server was started."""
        return out in self._reverse


def inside(base: Path, named: str, what: str) -> Path:
    """The folder of that name below a folder of the server, with links followed.

    Args:
        base: the folder, without links.
        named: a way below it, as a visitor writes it.
        what: what the folder is for, in a word.

    Raises:
        UsageError: it leads out of it.
    """
    name = named.strip()
    try:
        real = Path(os.path.realpath(base / name))
    except (OSError, ValueError):
        real = Path(os.sep)
    if ".." in Path(name).parts or not real.is_relative_to(base):
        what = f"expected a folder inside the server's {what} folder, got a way out of it"
        raise UsageError(f"{shown(Path(name))}: {what}; choose one of the list")
    return real


def folders(base: Path | None) -> list[str]:
    """The folders below a folder of the server, as a visitor chooses among them: at most some hundred, none hidden."""
    found, ahead = list[str](), [Path()] if base is not None else []
    while ahead and len(found) < _LISTED:
        below_base = ahead.pop(0)
        try:
            with os.scandir(base / below_base if base is not None else below_base) as entries:
                names = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
        except OSError:
            continue
        inner = [below_base / name for name in names if not name.startswith(".") and shown(Path(name)) == name]
        found += map(str, inner)
        ahead += inner
    return sorted(found[:_LISTED])


def below(folder: Path, line: str) -> str:
    """The line with names as they are below the folder: where the server keeps it is nobody's business."""
    return line.replace(f"{shown(folder)}{os.sep}", "")


def rows_of(rows: Iterator[Any]) -> Iterator[Any]:
    """As many rows as a page lists."""
    return islice(rows, FAILURES)


def _own(walk: Iterable[Found | Closed], base: Path) -> Iterator[Found | Closed]:
    """What the walk meets, without files that are links out of the server's folder."""
    for met in walk:
        link = isinstance(met, Found) and os.path.islink(met.source)
        if isinstance(met, Found) and link and not Path(os.path.realpath(met.source)).is_relative_to(base):
            yield Closed(met.source, "a link that leads out of the server's input folder; put the photo itself there")
            continue
        yield met


def _heaviest_bytes(house: House, recipe: Recipe) -> int:
    """The size of the largest restorer's file that the recipe may take."""
    if recipe.restorer == "auto":
        found = [path for _, path in house.store.available("restorer")]
    else:
        named = house.store.find(recipe.restorer)
        found = [named[1]] if named is not None else []
    return max((path.stat().st_size for path in found), default=0)


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _summed(sums: Counter[str], troubles: list[str]) -> str:
    faces, photos = f"face{'' if sums['gone'] == 1 else 's'}", f"photo{'' if sums['photos'] == 1 else 's'}"
    parts = [f"{sums['gone']} {faces} taken back"]
    parts += [f"{sums['back']} brought in again"] if sums["back"] else []
    lines = [f"{', '.join(parts)}, in {sums['photos']} {photos}"]
    if sums["strange"]:
        lines.append(f"{sums['strange']} decided before their photos were restored anew: look at them again")
    return "; ".join([*lines, *troubles])


def _given(folder: Path | None) -> Path:
    """The folder that the server was started with.

    Raises:
        UsageError: it was started without.
    """
    if folder is None:
        raise UsageError("expected a server with --input-dir and --output-dir, got one without; start it with both")
    return folder
