import contextlib
import os
import pickle
import queue
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facefix.errors import FacefixError, UsageError
from facefix.jobs import workers
from facefix.jobs.devices import cpu_cores, devices_for, memory_bytes
from facefix.jobs.engines import Broken, Processes, Recalled, Serial
from facefix.jobs.files import looked_at, put
from facefix.jobs.rows import Mark
from facefix.jobs.workers import Job, Outcome, Ready, Run, Twin, work_id
from facefix.recipe import Recipe


def test_what_travels_can_be_pickled_and_loads_nothing_heavy() -> None:
    job = Job(
        1, 2, "i", "w", Path(os.fsdecode(b"/\xff.jpg")), Mark(1, 2, 3), "s", Path("a"), twin=Twin(Path("b"), "t", {})
    )
    for thing in (job, Run(Path("out")), Ready("d", {}), Outcome(1, 2), Recalled(1, 2), Broken(FacefixError("no"))):
        again = pickle.loads(pickle.dumps(thing))
        assert str(again) == str(thing)
    code = "import sys, facefix.jobs.workers, facefix.jobs.journal, facefix.jobs.engines; "
    code += "sys.exit(' '.join({'torch', 'cv2'} & set(sys.modules)) or 0)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_torch_is_imported_for_networks_alone_and_then_on_the_threads_of_the_run() -> None:
    code = """
        import sys
        from pathlib import Path
        from facefix.jobs.workers import Run, load
        from facefix.recipe import Recipe
        load(Run(Path("out"), Recipe(restorer="identity", detector="centerface"), device="cpu", threads=1))
        assert "torch" not in sys.modules
        import torch
        assert torch.get_num_threads() == 1, torch.get_num_threads()
        load(Run(Path("out"), Recipe(restorer="facefix-lite-256"), device="cpu", threads=2))
        assert torch.get_num_threads() == 2, torch.get_num_threads()
    """
    surroundings = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=surroundings, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_equal_work_has_equal_ids() -> None:
    assert work_id("a" * 64, "b" * 64) == work_id("a" * 64, "b" * 64)
    assert len({work_id(a * 64, b * 64) for a in "ab" for b in "ab"}) == 4


def test_workers_are_as_many_as_cores_and_memory_allow() -> None:
    assert len(devices_for("cpu", 0)) in range(1, cpu_cores() + 1)
    assert devices_for("cpu", 3) == ("cpu",) * 3
    assert len(devices_for("cpu", 0, heaviest_bytes=1 << 50)) == 1
    assert memory_bytes(100) > memory_bytes(0)
    assert devices_for("mps", 0) == ("mps",)
    with pytest.raises(UsageError, match="--workers: expected 1 or more, or 0 to choose, got -1"):
        devices_for("cpu", -1)


def test_jobs_that_were_not_begun_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", Recipe(restorer="identity"))
    (run.out / workers.STAGE).mkdir(parents=True)
    source = tmp_path / "a.png"
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(source)
    mark, sha256, form = looked_at(source, max_pixels=1000)
    assert form == "PNG"
    engine: Serial = Serial()
    told: queue.Queue[object] = queue.Queue()
    engine.recall()
    engine.start(run, told.put)
    for number in range(5):
        engine.submit(Job(number, 1, "i", "w", source, mark, sha256, Path(f"{number}.png")))
    engine.close()
    heard = list(told.queue)
    assert isinstance(heard[0], Ready)
    assert heard[1:] == [Recalled(number, 1) for number in range(5)]
    assert not list(run.out.glob("*.png"))


def test_an_engine_whose_workers_cannot_start_says_why(tmp_path: Path) -> None:
    for engine in (Serial(), Processes(["cpu"])):
        told: queue.Queue[object] = queue.Queue()
        engine.start(Run(tmp_path, Recipe(restorer="no-such-net")), told.put)
        broken = told.get(timeout=120)
        assert isinstance(broken, Broken)
        assert broken.error.exit_code == 3
        engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("look")]


@pytest.mark.skipif(sys.platform == "win32", reason="files that are open are limited otherwise")
def test_nobody_waits_for_a_process_that_the_system_has_no_room_for(tmp_path: Path) -> None:
    import resource

    told: queue.Queue[object] = queue.Queue()
    engine = Processes(["cpu"])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        open_files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with contextlib.suppress(OSError):
            while True:
                open_files.enter_context(open(os.devnull))
        engine.start(Run(tmp_path), told.put)
        broken = told.get(timeout=60)
    assert isinstance(broken, Broken)
    assert "a worker process could not start (Too many open files)" in str(broken.error)
    engine.close(now=True)


def test_nobody_waits_for_a_worker_that_broke_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("facefix.jobs.engines.load", lambda run: run.no_such_word)
    told: queue.Queue[object] = queue.Queue()
    engine = Serial()
    engine.start(Run(tmp_path), told.put)
    broken = told.get(timeout=60)
    assert isinstance(broken, Broken)
    assert "could not load its networks (AttributeError: 'Run' object has no" in str(broken.error)
    engine.close()
    assert "Traceback" in capfd.readouterr().err


def test_a_late_hand_with_the_same_bytes_takes_its_own_place_and_no_other(tmp_path: Path) -> None:
    staged, target = tmp_path / "staged", tmp_path / "target"
    for there, replace, allowed in (
        (None, False, True),
        (b"new", False, True),
        (b"old", True, True),
        (b"old", False, False),
    ):
        target.unlink(missing_ok=True)
        staged.write_bytes(b"new")
        if there is not None:
            target.write_bytes(there)
        if allowed:
            put(staged, target, replace=replace)
            assert target.read_bytes() == b"new"
            assert not staged.exists()
        else:
            with pytest.raises(FacefixError, match="exists already and is not ours"):
                put(staged, target, replace=replace)
            assert target.read_bytes() == b"old"
