"""The worker of the engine over Ray: an actor, on whatever node Ray puts it. Needs the extra `ray`."""

from __future__ import annotations

import os
import queue
import secrets
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from facefix import __version__
from facefix.errors import FacefixError, UsageError, shown
from facefix.jobs.engines import Broken, Recalled, overlapped
from facefix.jobs.workers import Job, Outcome, Ready, Run, load, ready_of


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker lives, and the versions of what makes its pixels."""

    node: str
    address: str
    process: int
    versions: tuple[tuple[str, str], ...]


class Worker:
    """What an actor is; `work` runs from its beginning to its end, beside the other calls."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._answers: dict[int, Future[Outcome | Recalled]] = {}
        self._ready: Future[tuple[Ready, Place]] = Future()
        self._stop = threading.Event()

    def work(self, run: Run, sign: Path) -> Broken:
        """Why nothing can be done here; while photos can be done, it does not return."""
        try:
            _see(run, sign)
            fix = load(run)
            self._ready.set_result((ready_of(fix, run), _place()))
        except FacefixError as error:
            return Broken(error)
        overlapped(fix, run, self._jobs.get, self._answer, self._stop)
        raise AssertionError("it has no end")

    def ready(self) -> tuple[Ready, Place]:
        """What was loaded, and where."""
        return self._ready.result()

    def do(self, job: Job) -> tuple[Outcome | Recalled, bool]:
        """What became of the job, and whether it failed where its source cannot be seen."""
        answer = self._answers[job.number] = Future()
        self._jobs.put(job)
        told = answer.result()
        failed = isinstance(told, Outcome) and told.report is None
        return told, failed and not os.path.lexists(job.source)

    def recall(self) -> None:
        """Nothing; jobs that were not begun come back."""
        self._stop.set()

    def _answer(self, told: Any) -> None:
        self._answers.pop(told.number).set_result(told)


def _see(run: Run, sign: Path) -> None:
    """Nothing, where this node has the run's output folder, may write there, and has its mask.

    Raises:
        UsageError: it does not.
    """
    mine = sign.with_name(f"{sign.name}-{secrets.token_hex(4)}")
    path: Path | None = None
    try:
        for path in (sign, run.mask):
            if path is not None:
                open(path, "rb").close()
        path = mine
        mine.touch()
        mine.unlink()
    except OSError as error:
        told = f"expected {shown(path or run.out)} on node {_address()}, too, got '{error.strerror}'"
        raise UsageError(f"{told}; every node needs the same folders under the same paths") from error


def _place() -> Place:
    import cv2
    import numpy
    import PIL

    versions = {"facefix": __version__, "opencv": cv2.__version__, "numpy": numpy.__version__}
    versions["pillow"] = PIL.__version__
    # only a run with networks needs torch; its version is no plain string: to read it, the driver would import torch
    if "torch" in sys.modules:
        versions["torch"] = str(sys.modules["torch"].__version__)
    return Place(ray.get_runtime_context().get_node_id(), _address(), os.getpid(), tuple(versions.items()))


def _address() -> str:
    return str(ray.util.get_node_ip_address())
