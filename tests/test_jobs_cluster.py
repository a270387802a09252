"""Runs on a real Ray cluster of two nodes on this machine; workers are killed, a node comes and goes."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facefix.errors import DeviceError, UsageError, WeightsMissing
from facefix.jobs.database import FOLDER
from facefix.jobs.drive import Drive
from facefix.jobs.engines import IN_HAND, Engine, Lost, Serial
from facefix.jobs.journal import Journal
from facefix.jobs.walk import Walk, roots
from facefix.jobs.workers import STAGE, Run, Wishes
from facefix.recipe import Recipe

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
from facefix.jobs import cluster as engine_module  # noqa: E402
from facefix.jobs.cluster import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # what Ray itself leaves open or warns of
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*", "ignore::FutureWarning:ray.*"),
    pytest.mark.skipif(sys.platform != "linux", reason="several nodes on one machine are for Linux"),
]
PATTERN = Recipe(restorer="pattern")
PHOTOS = 18
NODE = {"num_cpus": 1, "memory": 4 << 30, "object_store_memory": 80 << 20, "include_dashboard": False}
CALM = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "FACEFIX_TESTED_BY": str(os.getpid()),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one core each."""
    before = dict(os.environ)
    os.environ.update(CALM)
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
    try:
        made.add_node(**NODE)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        gc.collect()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Different photos with a face each, one of them twice, and a file that is none."""
    from skimage.data import astronaut

    folder = tmp_path_factory.mktemp("cluster") / "scans"
    (folder / "sub").mkdir(parents=True)
    for number in range(PHOTOS - 1):
        photo = np.roll(astronaut()[0:200, 145:295], number, axis=1)
        place = folder / ("sub" if number % 2 else ".") / f"{number:02d}.{'jpg' if number % 3 else 'png'}"
        Image.fromarray(photo).save(place)
    (folder / "again.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "zip.jpg").write_bytes(b"PK\3\4 no photo")
    return folder


@pytest.fixture(scope="module")
def expected(scans: Path) -> dict[str, str]:
    """What the serial engine makes of them."""
    out = scans.with_name("serial")
    go(scans, out, Serial())
    return tree(out)


def go(source: Path, out: Path, engine: Engine, hears: Callable[..., None] | None = None, **run: Any) -> None:
    done = 0

    def listen(event: str, path: Path, what: Any) -> None:
        nonlocal done
        done += event == "done"
        if hears is not None:
            hears(event, done)

    run.setdefault("recipe", PATTERN)
    with Journal.open(out, create=True) as journal:
        Drive(journal, Run(out, **run), engine, Wishes(), listen).go(Walk(roots([source], out), out))
        assert journal.counts() == {"queued": 0, "running": 0, "done": PHOTOS, "failed": 1}


def tree(out: Path) -> dict[str, str]:
    """Digest of every file below OUT, patches of faces included, but for journal, report and what the dead leave."""
    files = (path for path in out.rglob("*") if path.is_file() and not path.match(f"{FOLDER}/*"))
    files = (path for path in files if out / STAGE not in path.parents)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attempts(out: Path) -> list[int]:
    with Journal.open(out, write=False) as journal:
        return [row.attempt for row, _ in journal.rows(reports=False)]


def worker_processes() -> set[int]:
    """The processes of this test run's actors, each of which calls itself by what it does."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = f"FACEFIX_TESTED_BY={os.getpid()}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.add(int(folder.name))
    return found


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


class Watched(Cluster):
    """The engine, which remembers what it told."""

    def start(self, run: Run, tell: Callable[[Any], None]) -> None:
        self.heard: list[Any] = []
        super().start(run, lambda told: (self.heard.append(told), tell(told)))


def test_two_nodes_write_the_bytes_of_the_serial_run(
    scans: Path, expected: dict[str, str], nodes: Any, tmp_path: Path
) -> None:
    engine = Watched(nodes.address, "cpu")
    lived: list[set[str]] = []

    def both(event: str, done: int) -> None:
        if event == "done":
            until(lambda: engine.capacity == 2 * IN_HAND)
            lived.append({hand.place.node for hand in engine._hands if hand.place})

    go(scans, tmp_path / "out", engine, both)
    assert tree(tmp_path / "out") == expected
    assert set(attempts(tmp_path / "out")) == {1}
    assert dict(engine._versions).keys() == {"facefix", "opencv", "numpy", "pillow"}, "torch is for networks"
    assert list((tmp_path / "out" / STAGE).iterdir()) == []
    assert lived[-1] == {node["NodeID"] for node in _alive(nodes)}
    assert not ray.is_initialized()


def _alive(nodes: Any) -> list[dict[str, Any]]:
    ray.init(nodes.address, log_to_driver=False, logging_level="CRITICAL")
    try:
        return [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def test_a_killed_worker_loses_nothing_and_does_nothing_twice(
    scans: Path, expected: dict[str, str], nodes: Any, tmp_path: Path
) -> None:
    out, engine, killed = tmp_path / "out", Watched(nodes.address, "cpu"), []

    def kill(event: str, done: int) -> None:
        if event == "done" and done >= 3 and not killed:
            for hand in [hand for hand in engine._hands if hand.place]:
                process = hand.place.process
                os.kill(process, signal.SIGSTOP)  # so that it cannot finish them meanwhile
                if hand.jobs:
                    killed.append(process)
                    os.kill(process, signal.SIGKILL)
                    return
                os.kill(process, signal.SIGCONT)

    go(scans, out, engine, kill)
    [process] = killed
    lost = [told for told in engine.heard if isinstance(told, Lost)]
    assert lost
    assert all(told.reason.endswith("died; there may not be enough memory") for told in lost)
    assert tree(out) == expected
    assert sum(attempts(out)) == len(attempts(out)) + len(lost)
    assert process not in worker_processes()


def test_a_node_that_comes_is_used_and_one_that_goes_loses_nothing(
    scans: Path,
    expected: dict[str, str],
    nodes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.5)
    out, engine = tmp_path / "out", Watched(nodes.address, "cpu")
    third: list[Any] = []

    def come_and_go(event: str, done: int) -> None:
        if event == "done" and done == 1:
            third.append(nodes.add_node(**NODE))
            until(lambda: engine.capacity == 3 * IN_HAND)
        elif event == "done" and len(third) == 1:
            [hand] = [hand for hand in engine._hands if hand.place and hand.place.node == third[0].node_id]
            os.kill(hand.place.process, signal.SIGSTOP)
            if hand.jobs:
                third.append(None)
                nodes.remove_node(third[0], allow_graceful=False)
                os.kill(hand.place.process, signal.SIGKILL)
            else:
                os.kill(hand.place.process, signal.SIGCONT)

    go(scans, out, engine, come_and_go)
    assert capfd.readouterr() == ("", "")
    assert len(third) == 2
    lost = [told for told in engine.heard if isinstance(told, Lost)]
    assert lost
    assert all(told.blameless for told in lost), lost
    assert tree(out) == expected
    assert sum(attempts(out)) == len(attempts(out)) + len(lost)


def command(scans: Path, out: Path, *more: object) -> list[str]:
    options = ["--engine", "ray", "--restorer", "pattern", *map(str, more)]
    return [sys.executable, "-m", "facefix", "restore", str(scans), "-o", str(out), *options]


def begun(arguments: list[str], lines: int) -> subprocess.Popen[str]:
    """The command, as many photos later."""
    running = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    for _ in range(lines):
        assert running.stdout.readline()
    return running


def test_a_killed_driver_goes_on_where_it_was(
    scans: Path, expected: dict[str, str], nodes: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(scans, out, "--ray-address", nodes.address, "--workers", 1)
    running = begun(arguments, 2)
    assert worker_processes()
    running.kill()
    running.communicate(timeout=60)
    until(lambda: not worker_processes(), 30)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "done before" in done.stdout
    assert done.stderr.count("\n") == done.stderr.count("zip.jpg")
    assert tree(out) == expected
    assert list((out / STAGE).iterdir()) == []


def test_without_an_address_ray_is_started_for_the_run_and_ctrl_c_ends_both(
    scans: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("FACEFIX_TESTED_BY", str(os.getpid()))
    out = tmp_path / "out"
    running = begun(command(scans / "sub", out, "--workers", 1), 2)
    os.killpg(running.pid, signal.SIGINT)
    printed, complaints = running.communicate(timeout=120)
    assert running.returncode == 130, complaints
    said = complaints.splitlines()
    assert len(said) == 2, complaints
    assert "finishing the photos in hand" in said[0]
    assert "the same command goes on from here" in said[1]
    with Journal.open(out, write=False) as journal:
        finished = journal.counts()
    assert (finished["running"], finished["failed"]) == (0, 0)
    assert 2 <= finished["done"] <= 2 + printed.count("\n")
    made = {name: digest for name, digest in tree(out).items() if FOLDER not in name}
    assert len(made) == finished["done"]
    assert made.items() <= {name[4:]: digest for name, digest in expected.items() if name.startswith("sub/")}.items()
    assert not worker_processes()
    assert list((out / STAGE).iterdir()) == []


def test_gpus_are_asked_from_ray(scans: Path, nodes: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UsageError, match=r"expected a node with 1 CPU cores, .* and 0.5 GPU"):
        go(scans, tmp_path / "out", Cluster(nodes.address, "cuda", False, gpus=0.5))
    third = nodes.add_node(**NODE, num_gpus=1.0)
    try:
        with pytest.raises(DeviceError, match="cuda"):
            go(scans, tmp_path / "out", Cluster(nodes.address, "auto", True, gpus=0.5))
    finally:
        nodes.remove_node(third)


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        ({"recipe": Recipe(restorer="gpen-bfr-1024")}, WeightsMissing, "gpen-bfr-1024"),
        ({"mask": Path("/nowhere/mask.png")}, UsageError, r"expected /nowhere/mask.png on node [\d.]+, too"),
        ({"threads": 64}, UsageError, "expected a node with 64 CPU cores"),
    ],
)
def test_what_no_worker_can_do_is_one_line(
    scans: Path, nodes: Any, tmp_path: Path, run: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        go(scans, tmp_path / "out", Cluster(nodes.address, "cpu", "threads" not in run), **run)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "out" / STAGE).iterdir()) == []


class Web(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_wrong_addresses_and_missing_ray_are_one_line(
    facefix: Any, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    web = HTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    for address, says in {
        f"127.0.0.1:{free}": "Connection refused",
        f"127.0.0.1:{web.server_port}": "something else answers there",
        "ray://127.0.0.1:10001": "expected HOST:PORT or auto",
        "head": "expected HOST:PORT or auto",
    }.items():
        done = facefix("restore", scans, "-o", tmp_path / "out", "--engine", "ray", "--ray-address", address)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert says in done.err
    web.shutdown()
    web.server_close()
    for options, says in {
        ("--engine", "ray", "--device", "cuda:1"): "Ray gives out the GPUs",
        ("--engine", "ray", "--ray-gpus", "2"): "at most 1",
        ("--ray-gpus", "0.5"): "expected --engine ray",
    }.items():
        done = facefix("restore", scans, "-o", tmp_path / "out", *options)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert says in done.err
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "facefix.jobs.cluster")
    monkeypatch.delattr("facefix.jobs.cluster")
    done = facefix("restore", scans, "-o", tmp_path / "out", "--engine", "ray")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "pip install 'facefix[ray]'" in done.err
    assert not (tmp_path / "out").exists()
