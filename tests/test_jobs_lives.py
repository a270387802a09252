"""Runs that are stopped or killed, or whose workers, disk or folder go; the next goes on to the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driven import go, kinds, reasons, tree
from PIL import Image

from facefix.errors import FacefixError
from facefix.jobs import workers
from facefix.jobs.drive import Drive, Stopped
from facefix.jobs.engines import Lost, Processes, Serial
from facefix.jobs.journal import Journal
from facefix.jobs.workers import Run
from facefix.recipe import Recipe


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 255, (200, 200, 3)).astype(np.uint8)
        Image.fromarray(noise).save(scans / f"{number:02d}.png")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", out], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(FacefixError) as caught:
            go(scans, out)
        assert "No space left on device" in str(caught.value) or "the disk is full" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        full = tree(out)
        assert 0 < len(full) < 12
        subprocess.run(["mount", "-o", "remount,size=8m", out], check=True)
        told = go(scans, out)
        assert reasons(told) == []
        assert len(tree(out)) == 12
        assert full.items() <= tree(out).items()
        assert list((out / workers.STAGE).iterdir()) == []
    finally:
        subprocess.run(["umount", out], check=True)


def test_an_output_folder_that_goes_away_stops_the_run(scans: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "out", tmp_path / "gone"
    for number in range(8):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and not gone.exists():
            os.rename(out, gone)

    with pytest.raises(Stopped, match="run the same command again when it is mended"):
        go(scans, out, hears=hears)
    os.rename(gone, out)
    told = go(scans, out)
    assert "failed" not in kinds(told)
    assert len(tree(out)) == 12


def test_a_run_that_is_stopped_finishes_what_is_in_hand_and_goes_on_later(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(20):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")
    told = go(scans, out, hears=lambda drive, event, path: event == "done" and drive.stop.set())
    assert 1 <= kinds(told)["done"] < 12
    assert set(kinds(told)) == {"done"}
    rest = go(scans, out)
    assert kinds(rest) == {"before": kinds(told)["done"], "done": 24 - kinds(told)["done"]}


def test_processes_give_the_same_bytes_as_the_serial_engine(scans: Path, tmp_path: Path) -> None:
    """Slow: two processes load torch. One of them is killed twice in the middle of the run."""
    recipe = Recipe(restorer="facefix-lite-256")
    for number in range(6):
        Image.fromarray(np.full((20, 20, 3), 100 + number, np.uint8)).save(scans / f"x{number}.png")
    serial, many = tmp_path / "serial", tmp_path / "many"
    go(scans, serial, recipe=recipe)
    engine = Processes(["cpu", "cpu"])
    killed = []

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and len(killed) < 1:
            killed.append(engine._hands[0].process)
            assert killed[-1] is not None
            assert killed[-1].pid is not None
            os.kill(killed[-1].pid, signal.SIGKILL)

    told = go(scans, many, recipe=recipe, engine=engine, hears=hears)
    assert kinds(told) == {"done": 10}
    assert killed[0].exitcode == -signal.SIGKILL
    assert tree(many) == tree(serial)
    assert len({hand.process.pid for hand in engine._hands if hand.process is not None}) == 2
    with Journal.open(many, write=False) as journal:
        assert {row.attempt for row, _ in journal.rows()} <= {1, 2}


class Deadly(Serial):
    """The serial engine, in which one photo kills the worker whenever it is begun."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.alone: list[int] = []

    def start(self, run: Run, tell: Any) -> None:
        self.tell, self.held = tell, 0

        def counted(told: Any) -> None:
            self.held -= isinstance(told, workers.Outcome)
            tell(told)

        super().start(run, counted)

    def submit(self, job: workers.Job) -> None:
        if job.source.name == self.name:
            self.alone.append(self.held)
            self.tell(Lost((job,), "was killed by signal 9"))
        else:
            self.held += 1
            super().submit(job)


def test_a_photo_that_kills_its_worker_is_tried_once_more_alone_and_then_fails(scans: Path, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", Deadly("turned.png")
    told = go(scans, out, engine=engine)
    assert kinds(told) == {"done": 3, "failed": 1}
    assert reasons(told)[0].endswith(
        "turned.png: two workers died at it, the last one was killed by signal 9; leave it out"
    )
    assert engine.alone[1] == 0
    assert len(engine.alone) == 2


def test_copies_of_a_photo_that_kills_its_worker_are_tried_by_themselves(scans: Path, tmp_path: Path) -> None:
    (scans / "sub" / "twin.png").write_bytes((scans / "sub" / "turned.png").read_bytes())
    told = go(scans, tmp_path / "out", engine=Deadly("turned.png"))
    assert kinds(told) == {"done": 4, "failed": 1}


def test_a_killed_run_is_finished_by_the_next_to_the_same_bytes(tmp_path: Path, face: np.ndarray) -> None:
    """Slow: each life loads torch. SIGKILL at random moments, in this process's grandchildren too."""
    scans, whole, out = tmp_path / "scans", tmp_path / "whole", tmp_path / "out"
    (scans / "sub").mkdir(parents=True)
    for number in range(14):
        varied = np.ascontiguousarray(np.roll(face, number, axis=1))
        Image.fromarray(varied).save(scans / ("sub" if number % 2 else "") / f"{number:02d}.jpg", quality=93)
    shutil.copy(scans / "00.jpg", scans / "twin.jpg")
    go(scans, whole)
    chance = random.Random(4)
    command = [sys.executable, "-m", "facefix", "restore", str(scans), "-o", str(out), "--restorer", "pattern"]
    lines: list[str] = []
    for kill_after, engine in ((2, "serial"), (3, "processes"), (1, "serial")):
        life = subprocess.Popen(
            [*command, "--engine", engine, "--workers", "1"], stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert life.stdout is not None
        for _ in range(kill_after):
            lines.append(life.stdout.readline())
        time.sleep(chance.random() * 0.2)
        os.kill(life.pid, signal.SIGKILL)
        life.communicate()
        for path in tree(out):
            Image.open(out / path).load()  # nothing half-written stands under a final name
    told = go(scans, out)
    assert kinds(told)["before"] >= 6, "what was said to be done is done"
    assert "failed" not in kinds(told)
    assert tree(out) == tree(whole)
    assert list((out / workers.STAGE).iterdir()) == []
    assert len(lines) == len({line.split(":")[0] for line in lines}) == 6, "nothing is done twice"


def test_a_second_run_is_told_who_is_at_work(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    caught: list[str] = []

    def hears(drive: Drive, event: str, path: Path) -> None:
        if event == "done" and not caught:
            with pytest.raises(FacefixError) as error:
                Journal.open(out)
            caught.append(str(error.value))

    go(scans, out, hears=hears)
    assert f"process {os.getpid()} on" in caught[0]
    assert threading.active_count() < 20
