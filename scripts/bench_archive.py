"""A run over many photos beside a bare loop around the API: photos per second, and memory.

    python scripts/bench.py archive                        300 made photos, with identity and with the embedded network
    python scripts/bench.py archive --photos 40 --restorer identity
    python scripts/bench.py archive --journal 1000000      what claiming and finishing cost in a journal of that length

The bare loop is `save(fix(read(photo)))` for one photo after the other, in one process with torch's own threads; its
imports and its loading are not counted. The run is counted from the start of its workers to the last photo; its
hashes, its journal and what it stores to take faces back are in it. Both are processes of their own, by turns.
Required: identity at least 1.3 times, the embedded network at least 0.97 times the bare loop, memory flat from photo
50 to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REQUIRED = {"identity": 1.3, "facefix-lite-256": 0.97}
_FLAT = 1.15


def make_photos(folder: Path, count: int, width: int) -> None:
    """`count` JPEGs of 4 to 3 with one to three faces each, of a fifth to a third of the width, no two alike."""
    import cv2
    import numpy as np
    from skimage.data import astronaut

    portrait = astronaut()[:, :, ::-1]
    for number in range(count):
        rng = np.random.default_rng(number)
        ground = cv2.resize(
            rng.integers(60, 200, (6, 8, 3), np.uint8), (width, width * 3 // 4), interpolation=cv2.INTER_CUBIC
        )
        for place in range(1 + number % 3):
            side = int(rng.integers(260, 420) * width / 1280)
            face = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
            x, y = (10 + 425 * place) * width // 1280, int(rng.integers(0, width * 3 // 4 - side))
            ground[y : y + side, x : x + side] = face[:, :: 1 if rng.random() < 0.5 else -1]
        noisy = np.clip(ground + rng.normal(0, 4, ground.shape), 0, 255).astype(np.uint8)
        below = folder / f"{number // 100:02d}"
        below.mkdir(exist_ok=True)
        cv2.imwrite(str(below / f"{number:05d}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])


def bare(photos: Path, out: Path, restorer: str, detector: str) -> dict[str, Any]:
    """Seconds and peak memory of the bare loop."""
    from facefix import FaceFix, Recipe, read

    fix = FaceFix.load(Recipe(restorer=restorer, detector=detector))
    sources = sorted(photos.rglob("*.jpg"))
    fix(read(sources[0]))
    began, before = time.perf_counter(), time.process_time()
    for source in sources:
        photo = read(source)
        target = out / source.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        fix.save(fix(photo), photo, target)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - before, "peak": _peak()}


def archive(photos: Path, out: Path, restorer: str, detector: str, workers: int) -> dict[str, Any]:
    """Seconds of the run, those from the first finished photo on, and peak memory at photo 50 and at the end."""
    from facefix import Recipe
    from facefix.jobs.devices import devices_for
    from facefix.jobs.drive import Drive
    from facefix.jobs.engines import Processes
    from facefix.jobs.journal import Journal
    from facefix.jobs.walk import Walk, roots
    from facefix.jobs.workers import Run, Wishes

    done: list[tuple[float, int, int]] = []
    failed = []

    def hears(event: str, source: Path, what: Any) -> None:
        if event == "done":
            done.append((time.perf_counter(), drive.peak_bytes, _peak()))
        elif event == "failed":
            failed.append(what)

    out.mkdir(parents=True)
    engine = Processes(devices_for("cpu", workers))
    with Journal.open(out, create=True) as journal:
        drive = Drive(journal, Run(out, Recipe(restorer=restorer, detector=detector)), engine, Wishes(), hears)
        began, before = time.perf_counter(), time.process_time()
        drive.go(Walk(roots([photos], out), out))
        journal.export(out / ".facefix" / "report.jsonl")
        ended, cpu = time.perf_counter(), time.process_time() - before
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not failed, failed
    early = done[min(49, len(done) - 1)]
    return {
        "seconds": ended - began,
        "cpu": cpu + children.ru_utime + children.ru_stime,
        "starting": done[0][0] - began,
        "workers": len(engine.devices),
        "peak": max(done[-1][1], done[-1][2]),
        "early": early[1],
        "late": done[-1][1],
        "driver early": early[2],
        "driver late": done[-1][2],
        "photos": len(done),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def journal(rows: int) -> dict[str, float]:
    """Seconds that the journal takes for adding, claiming and finishing a photo, when it has `rows` of them."""
    from facefix.jobs.journal import Journal
    from facefix.jobs.rows import Found, Mark

    report = {"source": "s", "target": "t", "target_sha256": "0" * 64, "faces": [{"box_xyxy": [0.0] * 4}] * 3}
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder), create=True) as book:
        run, recipe = book.begin(), book.recipe("d", {}, {})
        began = time.perf_counter()
        for start in range(0, rows, 1000):
            with book.together():
                for number in range(start, min(start + 1000, rows)):
                    name = f"{number // 1000:04d}/{number:07d}.jpg"
                    found = Found(Path(name), Path("/s", name), Mark(1, number, number), name[5:], name[5:])
                    book.add(found, run=run, recipe=recipe)
        took = {"add": (time.perf_counter() - began) / rows, "claim": 0.0, "settle": 0.0, "finish": 0.0}
        times: dict[str, list[float]] = {name: [] for name in ("claim", "settle", "finish")}
        for _ in range(300):
            began = time.perf_counter()
            [row] = book.claim(run, 1)
            times["claim"].append(time.perf_counter() - began)
            began = time.perf_counter()
            work = f"{row.number:064d}"
            book.settle(row, mark=row.mark, sha256=work, work=work, target=row.place)
            times["settle"].append(time.perf_counter() - began)
            began = time.perf_counter()
            book.finish(row, report)
            times["finish"].append(time.perf_counter() - began)
        took |= {name: statistics.median(each) for name, each in times.items()}
        took["peak MB"] = _peak() / 2**20
        took["journal MB"] = sum(file.stat().st_size for file in Path(folder, ".facefix").iterdir()) / 2**20
    return took


def _apart(mode: str, photos: Path, out: Path, *more: str | int) -> dict[str, Any]:
    """What the mode gives, in a process of its own."""
    code = "import json, sys, bench_archive as b; from pathlib import Path; "
    call = f"b.{mode}(Path(sys.argv[1]), Path(sys.argv[2]), *{more!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(json.dumps({call}))", str(photos), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main(argv: list[str]) -> int:
    """Print the figures; 0 where what is required held."""
    parser = argparse.ArgumentParser(prog="bench.py archive", description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--width", type=int, default=1280, help="of the photos, px")
    parser.add_argument("--restorer", action="append", help="identity and facefix-lite-256 without it")
    parser.add_argument("--detector", default="auto", help="as facefix restore --detector")
    parser.add_argument("--workers", type=int, default=0, help="as facefix restore --workers")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--journal", type=int, default=0, metavar="ROWS")
    given = parser.parse_args(argv)
    if given.journal:
        for name, value in journal(given.journal).items():
            print(f"{name:12}{value:10.1f}" if name.endswith("MB") else f"{name:12}{value * 1e3:10.3f} ms")
        return 0
    held = True
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        make_photos(photos, given.photos, given.width)
        for restorer in given.restorer or REQUIRED:
            loops, runs = [], []
            for turn in range(given.turns):
                bare_out, run_out = Path(folder, f"bare-{restorer}-{turn}"), Path(folder, f"run-{restorer}-{turn}")
                loops.append(_apart("bare", photos, bare_out, restorer, given.detector))
                runs.append(_apart("archive", photos, run_out, restorer, given.detector, given.workers))
            held &= _compared(restorer, given.photos, loops, runs)
    return 0 if held else 1


def _compared(restorer: str, photos: int, loops: list[dict[str, Any]], runs: list[dict[str, Any]]) -> bool:
    """Prints one comparison; whether what is required held."""
    loop, run = (min(each, key=lambda one: one["seconds"]) for each in (loops, runs))
    ratio = loop["seconds"] / run["seconds"]
    running = loop["seconds"] * (photos - 1) / photos / (run["seconds"] - run["starting"])
    growth = run["late"] / run["early"]
    driver = run["driver late"] / run["driver early"]
    print(
        f"{restorer}: bare loop {photos / loop['seconds']:.2f} photos/s, {loop['peak'] / 2**20:.0f} MB; "
        f"run with {run['workers']} workers {photos / run['seconds']:.2f} photos/s = {ratio:.2f}x "
        f"({running:.2f}x without the {run['starting']:.1f} s to the first photo)\n"
        f"    processor seconds a photo: {loop['cpu'] / photos:.3f} in the loop, which kept "
        f"{loop['cpu'] / loop['seconds']:.2f} cores busy, {run['cpu'] / photos:.3f} in the run, its start included\n"
        f"    memory of the largest worker at photo 50 {run['early'] / 2**20:.0f} MB, at the last "
        f"{run['late'] / 2**20:.0f} MB; of the driver {run['driver early'] / 2**20:.0f} and "
        f"{run['driver late'] / 2**20:.0f} MB"
    )
    return ratio >= REQUIRED.get(restorer, 0) and growth <= _FLAT and driver <= _FLAT
