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
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from facefix.errors import FacefixError
from facefix.jobs.database import FOLDER
from facefix.jobs.devices import devices_for, heaviest_bytes
from facefix.jobs.drive import Drive
from facefix.jobs.engines import Processes
from facefix.jobs.journal import Journal
from facefix.jobs.rows import Found
from facefix.jobs.walk import Closed, Walk, roots
from facefix.jobs.workers import Run, Wishes
from facefix.recipe import Recipe
from facefix.web.folders import below
from facefix.web.house import House

State = Literal["starting", "running", "pausing", "paused", "finished", "broken"]
FAILURES = 50
"""How many a page lists."""


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
        self._engine = Processes(devices_for(house.device, workers, heaviest_bytes(recipe.restorer, house.store)))
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
        except Exception as error:  # noqa: BLE001 - or the page would call a run done that broke
            traceback.print_exc()
            what = f"the run broke ({type(error).__name__}: {' '.join(str(error).split())})"
            self._problem = FacefixError(f"{what}; the server printed a traceback, which belongs into a report")
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


def _own(walk: Iterable[Found | Closed], base: Path) -> Iterator[Found | Closed]:
    """What the walk meets, without files that are links out of the server's folder."""
    for met in walk:
        link = isinstance(met, Found) and os.path.islink(met.source)
        if isinstance(met, Found) and link and not Path(os.path.realpath(met.source)).is_relative_to(base):
            yield Closed(met.source, "a link that leads out of the server's input folder; put the photo itself there")
            continue
        yield met
