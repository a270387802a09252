"""The run: photos are met, looked at, claimed, handed out and recorded; and it goes on after whatever happens.

Everything that changes the journal happens here, in one thread, a round at a time: what was heard since the last round
is recorded in one transaction, and only then are jobs handed out and people told. So a target's name is on the disk
before anything is written to it, and nobody hears of a photo that a power cut could undo.

Other threads walk the folders, and hash sources a little ahead of the workers, which also brings them into the system's
cache: a photo is read from the disk once. Every queue is bounded.

A photo whose worker died is done once more, alone; where that kills the worker again, it has failed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from facefix.errors import FacefixError, JournalError, PhotoError, shown
from facefix.jobs.database import FOLDER
from facefix.jobs.engines import Broken, Engine, Lost, Recalled, Told
from facefix.jobs.files import emptied, forget, looked_at
from facefix.jobs.journal import Journal
from facefix.jobs.looking import Looked, look
from facefix.jobs.rows import Found, Row, row_id
from facefix.jobs.walk import Ahead, Closed
from facefix.jobs.workers import STAGE, Job, Outcome, Ready, Run, Twin, Wishes, work_id

Event = Literal["met", "done", "copied", "before", "failed", "failed before", "closed", "note"]
Hears = Callable[[Event, Path, "dict[str, Any] | str"], None]
"""Called with what happened, the source, and the report or the reason: `met` when a photo is there to be done, `before`
when it was done by an earlier run, `closed` for a folder that cannot be looked into, `note` for the user."""

_AHEAD, _HEARD, _IN_A_ROW, _WAITING = 4, 64, 3, 1000
_LEASE_S, _ROUND_S = 3600.0, 0.5


class Stopped(FacefixError):
    """The run cannot go on: what happened to a photo would happen to all that follow."""


class Drive:
    """One run over the photos of a walk; `go` returns when all are done, or `stop` was set and those begun are done.

    Args:
        journal: of the output folder, open for writing.
        run: what every worker gets.
        engine: not started yet.
        wishes: what to do with photos that are known.
        hears: is told of every photo.
    """

    def __init__(self, journal: Journal, run: Run, engine: Engine, wishes: Wishes, hears: Hears) -> None:
        self.journal, self.run, self.engine, self.wishes, self.hears = journal, run, engine, wishes, hears
        self.stop = threading.Event()
        self.peak_bytes = 0
        self._told: queue.SimpleQueue[Told | Looked] = queue.SimpleQueue()
        self._walking = True
        self._rows: dict[int, Row] = {}  # claimed, and not heard of since
        self._looking = 0
        self._ready: list[Job] = []  # settled, to be handed out
        self._out: dict[int, Job] = {}  # with the engine
        self._suspects: list[Job] = []
        self._leaders: dict[str, int] = {}  # work -> the photo for which it is being done
        self._waiting: dict[str, list[Looked]] = {}
        self._news: list[tuple[Event, Path, dict[str, Any] | str]] = []
        self._died: set[int] = set()
        self._blocked: list[tuple[Row, Outcome]] = []
        self._fatal: Exception | None = None

    def go(self, walk: Iterable[Found | Closed]) -> None:
        """Nothing, when the run is over.

        Raises:
            WeightsError: as `FaceFix.load`, in the workers.
            Stopped: the output folder or the weights cannot be used any longer.
            JournalError: the journal cannot be written.
        """
        self.number = self.journal.begin()
        stage = self.run.out / STAGE
        try:
            emptied(stage)  # what workers of earlier runs left unfinished, all of it
        except OSError as error:
            raise JournalError(stage, f"{error.strerror}; name an output folder that can be written") from error
        self._walked = Ahead(walk)
        renewed = time.monotonic()
        self._looker = ThreadPoolExecutor(2, thread_name_prefix="look")
        now = False
        try:
            self.engine.start(self.run, self._told.put)
            self._first_ready()
            while not self._over():
                self._round()
                if time.monotonic() - renewed > _LEASE_S / 4:
                    self.journal.renew(list(self._rows), lease_s=_LEASE_S)
                    renewed = time.monotonic()
        except KeyboardInterrupt:
            now = True
            raise
        finally:
            self._walked.close()
            self._looker.shutdown(wait=not now, cancel_futures=True)
            self.engine.recall()
            try:
                self.engine.close(now=now)
            except KeyboardInterrupt:
                self.engine.close(now=True)
                raise
            with contextlib.suppress(OSError):
                emptied(stage)  # what workers that died in this run left
        if not self.stop.is_set():
            forget(self.run.out / FOLDER / "faces", self.journal.works)

    # ---- before -------------------------------------------------------------------------------------------------

    def _first_ready(self) -> None:
        while not self.stop.is_set():
            try:
                told = self._told.get(timeout=_ROUND_S)
            except queue.Empty:
                continue
            if isinstance(told, Broken):
                raise told.error
            if isinstance(told, Ready):
                self.loaded = told
                values = self.run.recipe.values("restore")
                self.recipe = self.journal.recipe(told.digest, values, told.weights)
                for notice in told.notices:
                    self.hears("note", Path(), notice)
                return
        self._walking = False

    # ---- a round ------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        return not (self._walking or self._rows)

    def _round(self) -> None:
        """Hears, records in one transaction, and only then hands out and tells."""
        heard = self._heard()
        with self.journal.together():
            for each in heard:
                self._take_in(each)
            if self.stop.is_set() or self._fatal is not None:
                self._wind_up()
            else:
                self._meet()
                self._claim()
                if len(self._rows) == len(self._blocked):
                    self._fail_blocked()
        if self._fatal is None:
            self._hand_out()
        news, self._news = self._news, []
        for event, source, what in news:
            self.hears(event, source, what)
        if self._fatal is not None:
            raise self._fatal

    def _heard(self) -> list[Told | Looked]:
        """What was told since the last round; where nothing else is to be done, it waits for something."""
        heard: list[Told | Looked] = []
        busy = self._walking and self._walked.has_met
        with contextlib.suppress(queue.Empty):
            heard.append(self._told.get(timeout=0.001 if busy else _ROUND_S if self._rows else _ROUND_S / 10))
            while len(heard) < _HEARD:
                heard.append(self._told.get_nowait())
        return heard

    def _meet(self) -> None:
        """Adds what the walk has met."""
        met: list[Found | Closed] = []
        try:
            met = self._walked.take() if self._walking else []
        except EOFError:
            self._walking = False
        except (OSError, FacefixError, ValueError) as error:  # as the walk raised it
            self._fatal = error
        for each in met:
            self._add(each)

    def _add(self, met: Found | Closed) -> None:
        if isinstance(met, Closed):
            self._news.append(("closed", met.path, f"{shown(met.path)}: {met.reason}"))
            return
        wishes = self.wishes
        known = {"retry_failed": wishes.retry_failed, "force": wishes.force}
        verdict, row = self.journal.add(met, run=self.number, recipe=self.recipe, **known)
        if verdict == "taken" and row is not None and self._moved(met, row):
            verdict, row = self.journal.add(met, run=self.number, recipe=self.recipe, moved=True, **known)
        if verdict == "twice":
            return
        self._news.append(("met", met.source, ""))
        if verdict == "done":
            self._news.append(("before", met.source, ""))
        elif verdict == "failed" and row is not None:
            self._news.append(("failed before", met.source, row.reason))
        elif verdict == "taken" and row is not None:
            told = f"its place holds the result of {shown(row.source)}; restore it to another folder"
            self._news.append(("failed", met.source, f"{shown(met.source)}: {told}"))

    def _moved(self, met: Found, row: Row) -> bool:
        """Whether another source's result may be taken for this one's: the old one is gone, or both hold the same."""
        if self.run.overwrite or not os.path.lexists(row.source):
            return True
        if row.sha256 is None or met.mark.bytes != row.mark.bytes:
            return False
        try:
            return looked_at(met.source, max_pixels=self.run.max_pixels)[1] == row.sha256
        except PhotoError:
            return False

    def _claim(self) -> None:
        """Claims as many photos as there will soon be room for, and has them looked at."""
        room = self.engine.capacity + _AHEAD - len(self._out) - len(self._ready) - self._looking
        room = min(room, self.engine.capacity + _WAITING - len(self._rows))  # copies of what is in hand wait, too
        if room <= 0 or self._suspects:
            return
        for row in self.journal.claim(self.number, room, lease_s=_LEASE_S):
            self._rows[row.number] = row
            self._looking += 1
            self._looker.submit(self._look, row)

    def _look(self, row: Row) -> None:
        self._told.put(look(row, self.run))

    def _hand_out(self) -> None:
        """Gives the engine what it has room for; a photo whose worker died goes alone."""
        while self._suspects and not self._out:
            job = self._suspects.pop()
            self._out[job.number] = job
            self.engine.submit(job)
        while self._ready and not self._suspects and len(self._out) < self.engine.capacity:
            job = self._ready.pop(0)
            self._out[job.number] = job
            self.engine.submit(job)

    # ---- what was heard -----------------------------------------------------------------------------------------

    def _take_in(self, told: Told | Looked) -> None:
        if isinstance(told, Looked):
            self._looking -= 1
            self._settle(told)
        elif isinstance(told, Outcome):
            self._record(told)
        elif isinstance(told, Recalled):
            if self._out.pop(told.number, None) is not None:
                self._give_back(told.number)
        elif isinstance(told, Lost):
            for job in told.jobs:
                self._lost(job, told)
        elif isinstance(told, Broken):
            self._fatal = told.error
        elif told.digest != self.loaded.digest:
            names = sorted(name for name, _ in set(told.weights.items()) ^ set(self.loaded.weights.items()))
            self._fatal = Stopped(f"workers have different files of {', '.join(names)}; give all of them the same")

    def _settle(self, looked: Looked) -> None:
        """Sees to it that a photo that was looked at is done: again, from its twin, or not at all."""
        row, out = looked.row, self.run.out
        if self.stop.is_set() or self._fatal is not None:
            self._give_back(row.number)
            return
        if looked.reason or looked.mark is None:
            self._fail(row, looked.reason)
            return
        work = work_id(looked.sha256, self.loaded.digest)
        if row.work == work and looked.untouched and row.target is not None:
            self.journal.still_done(row)
            del self._rows[row.number]
            with contextlib.suppress(OSError):
                os.utime(out / row.target, ns=(looked.mark.mtime_ns, looked.mark.mtime_ns), follow_symlinks=False)
            self._news.append(("before", row.source, ""))
            return
        if self.wishes.duplicates != "redo" and work in self._leaders:
            self._waiting.setdefault(work, []).append(looked)
            return
        target = row.place.parent / looked.result_name
        standing, ours = os.path.lexists(out / target), row.target == target
        if standing and not self.run.overwrite and not (ours and (looked.untouched or row.target_sha256 is None)):
            what = "was changed since it was written" if ours else "exists already and is not ours"
            self._fail(row, f"{shown(row.source)}: {shown(out / target)} {what}; move it away or pass --overwrite")
            return
        if not self.journal.settle(row, mark=looked.mark, sha256=looked.sha256, work=work, target=target):
            told = f"{shown(row.source)}: another photo is written to {shown(target)}; rename one of them"
            self._fail(row, told)
            return
        self._ready.append(
            Job(
                *(row.number, row.attempt, row_id(work, row.place), work),
                *(row.source, looked.mark, looked.sha256, target),
                replace=standing and ours,
                stale=row.target if looked.untouched and not ours else None,
                twin=self._twin(work),
            )
        )
        if self._ready[-1].twin is None:
            self._leaders[work] = row.number

    def _twin(self, work: str) -> Twin | None:
        """The result of an identical photo that was done already, where there is one and it is wanted."""
        if self.wishes.duplicates == "redo":
            return None
        done = self.journal.same_work(work, run=self.number if self.wishes.force else 0)
        if done is None or done.target is None or done.id is None or done.target_sha256 is None:
            return None
        report = self.journal.report(done.id)
        link = self.wishes.duplicates == "link"
        return None if report is None else Twin(done.target, done.target_sha256, report, link)

    def _record(self, outcome: Outcome) -> None:
        """Writes down what became of a job."""
        job = self._out.pop(outcome.number, None)
        if job is None or job.attempt != outcome.attempt:
            return
        row = self._rows[outcome.number]
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        if outcome.report is not None:
            self.journal.finish(row, outcome.report)
            del self._rows[row.number]
            report = {**outcome.report, "weights": dict(self.loaded.weights)}
            self._news.append(("done" if job.twin is None else "copied", row.source, report))
            self._fail_blocked()
        elif outcome.everybodys:
            self._blocked.append((row, outcome))
            if len(self._blocked) == _IN_A_ROW or not os.access(self.run.out / STAGE, os.W_OK):
                told = "the photos that follow would meet it, too; run the same command again when it is mended"
                self._fatal = Stopped(f"{outcome.reason}; {told}")
        elif job.twin is not None:
            self._ready.append(replace(job, twin=None))
            return
        else:
            ours = job.replace and not outcome.taken
            self._fail(row, outcome.reason, traceback=outcome.traceback, forget_target=not ours)
        self._led(job)

    def _fail_blocked(self) -> None:
        """Photos that met trouble in the output folder fail by themselves: others go through, or none is left."""
        blocked, self._blocked = self._blocked, []
        for row, outcome in blocked:
            self._fail(row, outcome.reason)

    def _lost(self, job: Job, lost: Lost) -> None:
        self._out.pop(job.number, None)
        row = self._rows.get(job.number)
        if row is None:
            return
        if job.number in self._died and not lost.blameless:
            self._fail(row, f"{shown(job.source)}: two workers died at it, the last one {lost.reason}; leave it out")
            self._led(job)
            return
        self._rows[row.number] = row = self.journal.retry(row)
        again = replace(job, attempt=row.attempt, replace=True)
        if lost.blameless:
            self._ready.insert(0, again)
        else:
            self._died.add(job.number)
            self._suspects.append(again)

    def _led(self, job: Job) -> None:
        """Nothing; photos that waited for the result of this one, which is identical, wait no longer."""
        if self._leaders.get(job.work) == job.number:
            del self._leaders[job.work]
        for looked in self._waiting.pop(job.work, []):
            self._settle(looked)

    def _fail(self, row: Row, reason: str, *, traceback: str = "", forget_target: bool | None = None) -> None:
        """Records that a claimed photo failed; a target is forgotten where nothing of ours stands there."""
        if forget_target is None:
            forget_target = row.target is None or not os.path.lexists(self.run.out / row.target)
        self.journal.fail(row, reason, traceback=traceback, forget_target=forget_target)
        del self._rows[row.number]
        self._news.append(("failed", row.source, reason))

    def _give_back(self, number: int) -> None:
        self.journal.release(self._rows.pop(number))

    def _wind_up(self) -> None:
        """Gives back what was not begun."""
        self._walking = False
        self.engine.recall()
        idle = [looked.row.number for group in self._waiting.values() for looked in group]
        idle += [job.number for job in (*self._ready, *self._suspects)] + [row.number for row, _ in self._blocked]
        for number in idle:
            self._give_back(number)
        self._waiting, self._ready, self._suspects, self._blocked = {}, [], [], []
