"""Who does the jobs: a thread of this process, or processes of its own; Ray has a module for itself.

An engine loads the networks once a worker and tells, from any thread, what happens: Ready when a worker has loaded
them, an Outcome for each job, Recalled for jobs that were not begun when `recall` came, Lost for those of a worker that
died, Broken where no worker can be started. In each worker one photo is read ahead and one is written while a third is
with the networks: never more than three in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol

from facefix.errors import FacefixError
from facefix.jobs.workers import STEPS, Job, Outcome, Ready, Run, Way, load, ready_of, take

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix

IN_HAND = 3
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Recalled:
    """A job that was given back before it was begun."""

    number: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Jobs whose worker died, and how; `blameless` where that cannot have been for any of them."""

    jobs: tuple[Job, ...]
    reason: str
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """No worker can be started, and why."""

    error: FacefixError


Told = Ready | Outcome | Recalled | Lost | Broken
Tell = Callable[[Told], None]


class Engine(Protocol):
    """What has jobs done.

    Attributes:
        capacity: how many jobs it takes at once.
    """

    capacity: int

    def start(self, run: Run, tell: Tell) -> None:
        """Nothing; workers are starting, and `tell` will hear of them, from any thread."""

    def submit(self, job: Job) -> None:
        """Nothing; a worker has the job, and `tell` will hear of it once."""

    def recall(self) -> None:
        """Nothing; jobs that were not begun come back, the others are finished."""

    def close(self, *, now: bool = False) -> None:
        """Nothing; no worker is left. `now` stops them in the middle of what they do."""


def overlapped(fix: FaceFix, run: Run, jobs: Callable[[], Job | None], tell: Tell, stop: threading.Event) -> None:
    """Nothing, when all jobs are done: one is read ahead and one written while another is with the networks.

    Args:
        fix: what restores.
        run: what is the same for all.
        jobs: gives the next job, or None at the end.
        tell: hears of each, from another thread.
        stop: once it is set, jobs that were not begun are recalled.
    """
    read, restore, write = STEPS
    ahead: queue.Queue[Way | None] = queue.Queue()
    made: queue.Queue[Way | None] = queue.Queue()
    may_read, may_write = threading.Semaphore(1), threading.Semaphore(1)

    def reading() -> None:
        while (job := jobs()) is not None:
            way = Way(job)
            may_read.acquire()
            if not stop.is_set():
                take(read, fix, run, way)
            ahead.put(way)
        ahead.put(None)

    def writing() -> None:
        while (way := made.get()) is not None:
            take(write, fix, run, way)
            told, way = way.outcome, None
            may_write.release()
            assert told is not None
            tell(told)

    threads = [threading.Thread(target=step, daemon=True) for step in (reading, writing)]
    for thread in threads:
        thread.start()
    while (way := ahead.get()) is not None:
        may_read.release()
        if stop.is_set() and way.outcome is None:
            tell(Recalled(way.job.number, way.job.attempt))
            continue
        take(restore, fix, run, way)
        may_write.acquire()
        made.put(way)
        way = None  # its photo is the writer's now
    made.put(None)
    for thread in threads:
        thread.join()


def _served(run: Run, jobs: Callable[[], Job | None], tell: Tell, stop: threading.Event) -> None:
    """Nothing, when all jobs are done, or at once where none can be; `tell` has heard why."""
    try:
        fix = load(run)
        tell(ready_of(fix, run))
    except FacefixError as error:
        tell(Broken(error))
        return
    except Exception as error:  # noqa: BLE001 - or the driver would wait for ever for one that is never ready
        traceback.print_exc()
        what = f"a worker could not load its networks ({type(error).__name__}: {' '.join(str(error).split())})"
        tell(Broken(FacefixError(f"{what}; the traceback above belongs into a report")))
        return
    overlapped(fix, run, jobs, tell, stop)


class Serial:
    """The engine that works in this process, beside the one that drives."""

    capacity = IN_HAND

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, run: Run, tell: Tell) -> None:
        """As Engine.start."""
        self._thread = threading.Thread(target=_served, args=(run, self._jobs.get, tell, self._stop), daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """As Engine.submit."""
        self._jobs.put(job)

    def recall(self) -> None:
        """As Engine.recall."""
        self._stop.set()

    def close(self, *, now: bool = False) -> None:
        """As Engine.close; in this process `now` can only leave the thread behind, which ends with it."""
        self._stop.set()
        self._jobs.put(None)
        if self._thread is not None and not now:
            self._thread.join()


class _Hand:
    """One worker process, the thread that keeps it, and the jobs it has."""

    def __init__(self, run: Run, tell: Tell) -> None:
        self.run, self.tell = run, tell
        self.jobs: dict[int, Job] = {}
        self.said: list[str] = []
        self.closing = False
        self.lock = threading.Lock()
        self.connection: Connection | None = None
        self.process: multiprocessing.process.BaseProcess | None = None
        self.thread = threading.Thread(target=self._keep, daemon=True)
        self.thread.start()

    def say(self, word: str) -> None:
        """Nothing; the worker, or the one that takes its place, hears the word."""
        with self.lock:
            self.said.append(word)
            self.send(word)

    def send(self, message: Job | str) -> None:
        """Nothing; a worker that has just died does not hear it, and its jobs are told to be lost."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send(message)

    def _keep(self) -> None:
        """Starts the process, passes on what it tells, and starts another one where it dies, but not for ever."""
        failed_starts = 0
        while not self.closing:
            try:
                _leave_interrupts_to_the_driver()
                was_ready = self._one_life()
            except OSError as error:  # the system has no process or pipe to give
                told = f"a worker process could not start ({error.strerror or error})"
                self.tell(Broken(FacefixError(f"{told}; end other programs, or take fewer --workers")))
                return
            assert self.process is not None
            self.process.join()
            with self.lock:
                lost, self.jobs = tuple(self.jobs.values()), {}
                self.connection = None
            if self.closing:
                return
            reason = _ending(self.process.exitcode)
            failed_starts = 0 if was_ready else failed_starts + 1
            if failed_starts == _STARTS:
                self.tell(Broken(FacefixError(f"a worker process could not start, {_STARTS} times: it {reason}")))
                return
            self.tell(Lost(lost, reason, blameless=not was_ready))

    def _one_life(self) -> bool:
        """Whether the process got ready before it ended."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self.run, os.getpid()), daemon=True)
        process.start()
        self.process = process  # from now on it can be killed
        if self.closing:
            process.kill()
        there.close()
        ready = False
        with self.lock:
            self.connection = here
            for job in self.jobs.values():
                self.send(job)
            for message in self.said:
                self.send(message)
        with here:
            while True:
                try:
                    told: Told = here.recv()
                except (EOFError, OSError):
                    return ready
                if isinstance(told, Outcome | Recalled):
                    with self.lock:
                        self.jobs.pop(told.number, None)
                if isinstance(told, Ready):
                    ready = True
                if isinstance(told, Broken):
                    self.closing = True
                self.tell(told)


class Processes:
    """The engine that works in processes of its own, one for each of `devices`."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self.capacity = IN_HAND * len(self.devices)
        self._hands: list[_Hand] = []

    def start(self, run: Run, tell: Tell) -> None:
        """As Engine.start."""
        self._hands = [_Hand(replace(run, device=device), tell) for device in self.devices]

    def submit(self, job: Job) -> None:
        """As Engine.submit."""
        hand = min(self._hands, key=lambda hand: len(hand.jobs))
        with hand.lock:
            hand.jobs[job.number] = job
            hand.send(job)

    def recall(self) -> None:
        """As Engine.recall."""
        for hand in self._hands:
            hand.say("recall")

    def close(self, *, now: bool = False) -> None:
        """As Engine.close."""
        for hand in self._hands:
            hand.closing = True
            if now and hand.process is not None:
                hand.process.kill()
            hand.say("end")
        for hand in self._hands:
            hand.thread.join()


def _work(connection: Connection, run: Run, driver: int) -> None:
    """What a worker process does from its beginning to its end."""
    _die_with(driver)
    sending, stop = threading.Lock(), threading.Event()
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def tell(told: Told) -> None:
        with sending:
            connection.send(told)

    def receiving() -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # nobody is left to tell
            if isinstance(message, Job):
                jobs.put(message)
            elif message == "recall":
                stop.set()
            else:
                jobs.put(None)
                return

    threading.Thread(target=receiving, daemon=True).start()
    _served(run, jobs.get, tell, stop)


def _leave_interrupts_to_the_driver() -> None:
    """Nothing; processes that this thread starts never hear Ctrl-C, not even while they are starting."""
    if sys.platform == "win32":
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # first: it would take the mask away again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _die_with(driver: int) -> None:
    """Nothing; where Linux can do that, this process is killed with the one that started it."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != driver:
        os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        why = " (there may not be enough memory; fewer --workers need less)" if code == -signal.SIGKILL else ""
        return f"was killed by signal {-code}{why}"
    return f"ended with status {code}"
