"""The engine that works on many machines: actors of a Ray cluster. Needs the extra `ray`.

Ray decides on which node a worker lives: each asks for its CPU cores, its memory and, on GPUs, its share of one. A
worker (`actor`) loads the networks once and has three photos in hand, as everywhere. Only the process that drives the
run knows the journal; jobs and outcomes are all that travels, never pixels: sources, masks, the output folder and its
temporary folder are read and written by the workers themselves, at the same paths on every node.

    died worker     its photos are told to be lost, and another one is started where there is room
    removed node    the same, but no photo is suspected of having done it; nodes that come later get workers, too
    killed driver   Ray ends its actors; the same command again goes on
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from facefix import __version__
from facefix.errors import FacefixError, UsageError, shown
from facefix.jobs.actor import Place, Worker
from facefix.jobs.devices import cpu_cores, memory_bytes
from facefix.jobs.engines import IN_HAND, Broken, Lost, Recalled, Tell
from facefix.jobs.workers import STAGE, Job, Outcome, Ready, Run

_LOOK_S, _PATIENCE_S, _ANSWER_S, _STARTS = 5.0, 600.0, 5.0, 3
_STORE_BYTES = 80 << 20  # nothing large goes through Ray's object store; about the least that it takes
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With what every gRPC connection begins, and an empty frame of settings; a server answers with its own."""


@dataclass(eq=False)
class _Hand:
    """One actor: how many jobs it has, and where it lives once it is ready."""

    actor: Any
    jobs: int = 0
    place: Place | None = None
    gone: bool = False


class Cluster:
    """The engine that works in actors of Ray.

    Everything after `start` happens in one thread, an event after the other; Ray tells of each when it has happened.

    Args:
        address: HOST:PORT of a cluster of which this machine is a node, or `auto` for the one that runs here; without
            it RAY_ADDRESS, and without that, Ray is started on this machine for the run. Where this process uses Ray
            already, that is used.
        device: as `FaceFix.load` takes it, but for numbered GPUs; auto means GPUs where the cluster has any.
        workers: how many; 0 means as many as the nodes have room for, and follows nodes that come and go.
        gpus: share of a GPU that a worker takes.
        heaviest_bytes: size of the largest weight file, from which the memory of a worker is guessed.

    Raises:
        UsageError: these cannot be.
    """

    def __init__(
        self, address: str | None, device: str, workers: int = 0, *, gpus: float = 1.0, heaviest_bytes: int = 0
    ) -> None:
        self.capacity = IN_HAND
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._device, self._workers, self._gpus = device, workers, gpus
        self._memory = 0 if workers else memory_bytes(heaviest_bytes)
        if device.startswith("cuda:"):
            raise UsageError(f"--device {device}: expected cuda, as Ray gives out the GPUs, got a number; leave it out")
        if not 0 < gpus <= 1:
            raise UsageError(f"--ray-gpus: expected more than 0 and at most 1 for a worker, got {gpus:g}; give a share")
        if self._address not in (None, "auto", "local") and not ray.is_initialized():
            _knock(self._address)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._hands: list[_Hand] = []
        self._waiting: list[Job] = []  # nobody is ready for them
        self._versions: tuple[tuple[str, str], ...] = ()
        self._failed_starts = 0
        self._stopping = self._closing = self._own = False
        self._sign: Path | None = None
        self._keeper: threading.Thread | None = None

    def start(self, run: Run, tell: Tell) -> None:
        """As Engine.start.

        Raises:
            UsageError: Ray cannot be reached or started, or no node has room for a worker.
        """
        self._tell = tell
        if not ray.is_initialized():
            _connect(self._address)
            self._own = True
        device = self._device
        if device == "auto":
            device = "cuda" if any("GPU" in node["Resources"] for node in _nodes()) else "cpu"
        self._needs = {"CPU": float(max(run.threads, 1)), "memory": float(self._memory)}
        self._needs["GPU"] = self._gpus if device == "cuda" else 0.0
        if not self._workers and not self._room():
            gigabytes, cores = self._needs["memory"] / 2**30, self._needs["CPU"]
            gpu = f" and {self._gpus:g} GPU" if device == "cuda" else ""
            told = f"expected a node with {cores:g} CPU cores, {gigabytes:.1f} GB{gpu} for a worker"
            raise UsageError(f"{told}, got none among {len(_nodes())}; add one, or name --workers to wait for it")
        self._remote = ray.remote(Worker).options(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            memory=self._memory or None,
            max_concurrency=IN_HAND + 3,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._run = replace(run, device=device)
        self._sign = run.out / STAGE / f"ray-{secrets.token_hex(8)}"
        self._sign.touch()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def submit(self, job: Job) -> None:
        """As Engine.submit."""
        self._events.put(partial(self._give, job))

    def recall(self) -> None:
        """As Engine.recall."""
        self._events.put(self._recall)

    def close(self, *, now: bool = False) -> None:
        """As Engine.close."""
        self._closing = True
        self._events.put(lambda: None)
        if self._keeper is not None:
            self._keeper.join()
        for hand in self._hands:
            ray.kill(hand.actor)
        if self._sign is not None:
            with contextlib.suppress(OSError):
                self._sign.unlink(missing_ok=True)
        if self._own:
            ray.shutdown()
            _hush(False)

    # ---- in the keeper's thread -------------------------------------------------------------------------------------

    def _keep(self) -> None:
        looked = some_ready = -_PATIENCE_S
        try:
            while not self._closing:
                now = time.monotonic()
                if now - looked > _LOOK_S:
                    looked = now
                    self._fill()
                if any(hand.place for hand in self._hands) or some_ready < 0:
                    some_ready = now
                elif now - some_ready > _PATIENCE_S:
                    told = f"no node of the cluster had room for a worker for {_PATIENCE_S / 60:.0f} minutes"
                    self._tell(Broken(FacefixError(f"{told}; add nodes and run the same command again")))
                    return
                with contextlib.suppress(queue.Empty):
                    self._events.get(timeout=_LOOK_S)()
        except (RayError, ConnectionError) as error:
            told = f"Ray cannot be reached any longer: {_line(error)}"
            self._tell(Broken(FacefixError(f"{told}; run the same command again when it can")))

    def _room(self) -> int:
        """How many workers fit on the nodes that are alive, if nobody else uses them."""
        needs = {name: need for name, need in self._needs.items() if need}
        have = [node["Resources"] for node in _nodes()]
        return sum(int(min(each.get(name, 0.0) // need for name, need in needs.items())) for each in have)

    def _fill(self) -> None:
        """Starts workers that are missing; where there is no room, Ray keeps them waiting for it."""
        for _ in range((self._workers or self._room()) - len(self._hands)):
            hand = _Hand(self._remote.remote())
            self._hands.append(hand)
            self._when(hand.actor.work.remote(self._run, self._sign), self._ended, hand)
            self._when(hand.actor.ready.remote(), self._begun, hand)

    def _when(self, reference: Any, then: Callable[..., None], *what: object) -> None:
        """Nothing; `then(*what, future)` is an event once Ray has the answer."""
        reference.future().add_done_callback(lambda future: self._events.put(partial(then, *what, future)))

    def _begun(self, hand: _Hand, future: Future[tuple[Ready, Place]]) -> None:
        try:
            ready, place = future.result()
        except RayError:
            return  # `_ended` knows why
        self._versions = self._versions or place.versions
        if place.versions != self._versions or dict(place.versions)["facefix"] != __version__:
            names = ", ".join(" ".join(each) for each in sorted({*place.versions} ^ {*self._versions}))
            told = f"expected the same versions on every node, got {names or 'another facefix than here'}"
            self._tell(Broken(UsageError(f"{told} on {place.address}; install the same ones everywhere")))
            return
        hand.place, self._failed_starts = place, 0
        self._tell(ready)
        self._count()
        if self._stopping:
            hand.actor.recall.remote()
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            self._give(job)

    def _ended(self, hand: _Hand, future: Future[Broken]) -> None:
        """The worker has ended, which none does by itself."""
        try:
            self._tell(future.result())
        except RayError as error:
            began = hand.place is not None
            self._failed_starts += not began
            if not began and self._failed_starts == _STARTS:
                told = f"{_STARTS} workers ended while they were starting, the last one so: {_line(error)}"
                self._tell(Broken(FacefixError(f"{told}; see Ray's log on that node")))
        self._dismiss(hand)

    def _give(self, job: Job) -> None:
        ready = [hand for hand in self._hands if hand.place is not None]
        if self._stopping:
            self._tell(Recalled(job.number, job.attempt))
        elif not ready:
            self._waiting.append(job)
        else:
            hand = min(ready, key=lambda hand: hand.jobs)
            hand.jobs += 1
            self._when(hand.actor.do.remote(job), self._answered, hand, job)

    def _answered(self, hand: _Hand, job: Job, future: Future[tuple[Outcome | Recalled, bool]]) -> None:
        hand.jobs -= 1
        assert hand.place is not None
        address = hand.place.address
        try:
            told, unseen = future.result()
        except RayError:
            self._dismiss(hand)
            gone = not _lives(hand.place.node)
            reason = "went with its node" if gone else "died; there may not be enough memory"
            self._tell(Lost((job,), f"on {address} {reason}", blameless=gone))
            return
        if unseen and os.path.lexists(job.source):
            there = f"expected {shown(job.source)} on node {address}, too, got nothing there"
            self._tell(Broken(UsageError(f"{there}; every node needs the same folders under the same paths")))
            return
        self._tell(told)

    def _recall(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        for hand in self._hands:
            if hand.place is not None:
                hand.actor.recall.remote()
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            self._give(job)

    def _dismiss(self, hand: _Hand) -> None:
        """Sees to it that the actor has ended, and that another one takes its place."""
        if hand.gone:
            return
        hand.gone = True
        self._hands.remove(hand)
        ray.kill(hand.actor)
        self._count()
        self._fill()

    def _count(self) -> None:
        self.capacity = IN_HAND * max(1, sum(hand.place is not None for hand in self._hands))


def _nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def _lives(name: str) -> bool:
    """Whether the node answers; Ray itself notices only after a while that one does not."""
    for node in _nodes():
        if node["NodeID"] == name:
            with contextlib.suppress(OSError):
                where = node["NodeManagerAddress"], node["NodeManagerPort"]
                socket.create_connection(where, _ANSWER_S).close()
                return True
    return False


def _connect(address: str | None) -> None:
    """Nothing; this process uses the cluster, or one that was started for it.

    Raises:
        UsageError: it cannot.
    """
    settings: dict[str, Any] = {}
    if address in (None, "local"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # as other engines' workers; Ray's own are the last to run
        settings = {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "num_cpus": cpu_cores()}
        address = "local"
    before = signal.getsignal(signal.SIGTERM)
    _hush(True)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"expected a Ray cluster of which this machine is a node, got '{_line(error)}'"
        raise UsageError(f"--ray-address {address}: {problem}; `ray status` there tells more") from error
    finally:  # Ray takes the signal for itself, but it is the run's
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _hush(quiet: bool) -> None:
    """Nothing; Ray does not print what happens to its nodes to this process's stdout, whose lines are for reports.

    There is no public way to: with `log_to_driver=False`, too, it prints when a node goes.
    """
    ray._private.worker._worker_logs_enabled = not quiet


def _knock(address: str) -> None:
    """Nothing, where something at the address speaks as a Ray cluster does; Ray itself would try for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        raise UsageError(f"--ray-address: expected HOST:PORT or auto, got '{address}'; `ray status` there tells it")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(_HELLO)
            problem = "" if connection.recv(9)[3:4] == b"\x04" else "something else answers there"
    except (OSError, OverflowError) as error:
        problem = str(getattr(error, "strerror", None) or error)
    if problem:
        raise UsageError(f"--ray-address: expected a Ray cluster at {address}, got '{problem}'; start one, or mend it")


def _line(error: BaseException) -> str:
    """What is at the bottom of the error, on one line: Ray's errors hold whole tracebacks, whose last line tells."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". ")[0][:300] if lines else type(error).__name__
