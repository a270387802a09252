"""One job in, one outcome out: what `perform` does in a row, and engines step by step, with several jobs at once.

A job names a source, the bytes it held when it was hashed, and the target that the journal keeps for it. A worker reads
the source, restores it, stores what a face needs to be taken back, writes the result into OUT/.facefix/tmp, and gives
it its name in one step: nobody ever sees half a file, and everything of a dead worker lies in that one folder.

    fix = load(run)                         once a worker; loads the networks, and torch for them
    ready = ready_of(fix, run)              once; the driver wants to know with which weights
    outcome = perform(fix, run, job)        for each job; raises nothing

Run, Job, Ready and Outcome can be pickled and sent anywhere; importing this module loads neither torch nor OpenCV. A
worker never opens the journal. `Path`s are as the worker sees them: `source` absolute, `target` relative to OUT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facefix.errors import FacefixError, PhotoError, PhotoUnreadable, PhotoUnwritable, WeightsError
from facefix.jobs.database import FOLDER
from facefix.jobs.files import CHANGED, file_sha256, inside, looked_at, peak_bytes, put
from facefix.jobs.rows import Mark, report_json, text_of
from facefix.recipe import Recipe

if TYPE_CHECKING:
    from facefix.pipeline import FaceFix
    from facefix.types import Photo, Result

Duplicates = Literal["link", "copy", "redo"]
STAGE = Path(FOLDER) / "tmp"
_EVERYBODYS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EIO}
"""Errors of the output folder that the next photo will meet, too."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is the same for all photos of a run.

    Args:
        out: the output folder.
        recipe: the settings.
        device: as `FaceFix.load` takes it.
        threads: of the networks on a CPU; 0 leaves torch as it is. How a sum is split over threads decides its last
            bit, so results are the same bytes everywhere only where this is.
        max_pixels: larger photos are refused by their header.
        mask: only where this picture is white may anything change.
        overwrite: replace files under a target's name that are not ours.
    """

    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"
    threads: int = 1
    max_pixels: int = 500_000_000
    mask: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants done with photos that the journal knows already.

    Args:
        retry_failed: those that failed are tried again.
        force: all are done anew.
        duplicates: the results of identical files are copied, hard links to one, or worked out for each.
    """

    retry_failed: bool = False
    force: bool = False
    duplicates: Duplicates = "copy"


@dataclass(frozen=True, slots=True)
class Twin:
    """The finished result of an identical photo: where it stands below OUT, what it holds, and its report."""

    target: Path
    sha256: str
    report: Mapping[str, Any]
    link: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One photo to be done.

    Args:
        number: of its row in the journal; with `attempt` it says whose outcome comes back.
        attempt: how often it has been claimed.
        id: as reports call it.
        work: sha256 of content and recipe; what is stored to take faces back goes by it.
        source: the file.
        mark: as it was when it was hashed.
        source_sha256: of its bytes.
        target: where the result goes, relative to OUT.
        replace: what stands there is ours and may be replaced.
        stale: an earlier result under another name, which goes away.
        twin: take the result from here instead of restoring.
    """

    number: int
    attempt: int
    id: str
    work: str
    source: Path
    mark: Mark
    source_sha256: str
    target: Path
    replace: bool = False
    stale: Path | None = None
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker has loaded: the digest of recipe and weights, sha256 by weight name, and what to tell the user."""

    digest: str
    weights: Mapping[str, str]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Args:
        number: the job's.
        attempt: the job's.
        report: the photo's JSON where it is done, None where it failed.
        reason: of the failure, one line, naming the file.
        traceback: of an error that nobody foresaw.
        everybodys: the failure is the output folder's, or the weights', and the next photo will meet it, too.
        taken: a file that is not ours stands under the target's name.
        peak_bytes: the largest memory of the worker's process so far.
    """

    number: int
    attempt: int
    report: Mapping[str, Any] | None = None
    reason: str = ""
    traceback: str = ""
    everybodys: bool = False
    taken: bool = False
    peak_bytes: int = 0


def load(run: Run) -> FaceFix:
    """The networks for this run, in a process that is this worker's own.

    Raises:
        WeightsError: as `FaceFix.load`.
        DeviceError: as `FaceFix.load`.
    """
    from facefix.pipeline import FaceFix

    _compute_on(run.threads)
    fix = FaceFix.load(run.recipe, device=run.device)
    _compute_on(run.threads)
    return fix


def _compute_on(threads: int) -> None:
    """Nothing; OpenCV and torch use so many threads, torch also where a network that needs it imports it later."""
    import cv2

    if not threads:
        return
    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def ready_of(fix: FaceFix, run: Run) -> Ready:
    """What the worker has loaded; the digest covers the recipe, every weight file it may take, and the mask.

    Raises:
        PhotoError: the mask is no picture that can be read.
    """
    weights = fix.weight_digests()
    told = [run.recipe.digest("restore"), *(f"{name} {digest}" for name, digest in sorted(weights.items()))]
    if run.mask is not None:
        told.append(f"mask {looked_at(run.mask, max_pixels=run.max_pixels)[1]}")
    return Ready(hashlib.sha256("\n".join(told).encode()).hexdigest(), weights, fix.notices)


def work_id(source_sha256: str, recipe_digest: str) -> str:
    """The same for equal bytes and equal recipe and weights: then the result is the same, too."""
    return hashlib.sha256(f"{source_sha256}{recipe_digest}".encode()).hexdigest()


@dataclass
class Way:
    """A job on its way through the steps, and what they left."""

    job: Job
    photo: Photo | None = None
    result: Result | None = None
    outcome: Outcome | None = None


def perform(fix: FaceFix, run: Run, job: Job) -> Outcome:
    """What became of the job; its result stands at its target, or nothing of it does."""
    way = Way(job)
    for step in STEPS:
        take(step, fix, run, way)
    assert way.outcome is not None
    return way.outcome


def take(step: Callable[[FaceFix, Run, Way], None], fix: FaceFix, run: Run, way: Way) -> None:
    """Nothing; the way is one step further, or has its outcome where the step failed."""
    if way.outcome is not None:
        return
    job = way.job
    told: dict[str, Any]
    try:
        step(fix, run, way)
        return
    except PhotoError as error:
        everybodys = not os.access(run.out / STAGE, os.W_OK)
        if isinstance(error, PhotoUnwritable) and error.path is not None:
            everybodys |= _number(error) in _EVERYBODYS or error.path.is_relative_to(run.out / FOLDER)
        reason = str(error) if error.path is not None else f"{text_of(job.source)}: {error}"
        told = {"reason": reason, "everybodys": everybodys, "taken": isinstance(error.__cause__, FileExistsError)}
    except FacefixError as error:
        told = {"reason": f"{text_of(job.source)}: {error}", "everybodys": isinstance(error, WeightsError)}
    except Exception as error:  # noqa: BLE001 - the one place: a photo that breaks something stops nobody else's
        what = "there is not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        reason = f"{text_of(job.source)}: {' '.join(what.split())}; the journal holds the traceback"
        told = {"reason": reason, "traceback": traceback.format_exc()}
    way.photo = way.result = None
    way.outcome = Outcome(job.number, job.attempt, peak_bytes=peak_bytes(), **told)


def _read(fix: FaceFix, run: Run, way: Way) -> None:
    if way.job.twin is not None:
        return
    from facefix import imagefile

    _unchanged(way.job)
    way.photo = imagefile.read(way.job.source, max_pixels=run.max_pixels)
    _unchanged(way.job)


def _restore(fix: FaceFix, run: Run, way: Way) -> None:
    if way.photo is not None:
        way.result = fix(way.photo, mask=run.mask, target=way.job.target)


def _write(fix: FaceFix, run: Run, way: Way) -> None:
    job, folder = way.job, inside(run.out, way.job.target.parent)
    staged = run.out / STAGE / f"{job.number}-{job.attempt}{job.target.suffix}"
    try:
        if job.twin is not None:
            report = _copied(run, job, job.twin, staged)
        else:
            assert way.photo is not None
            assert way.result is not None
            report = _written(fix, run, job, way.photo, way.result, staged)
        _unchanged(job)
        if job.twin is None or not job.twin.link:
            os.utime(staged, ns=(job.mark.mtime_ns, job.mark.mtime_ns))
        put(staged, folder / job.target.name, replace=job.replace or run.overwrite)
        if job.stale is not None and job.stale != job.target:
            (inside(run.out, job.stale.parent) / job.stale.name).unlink(missing_ok=True)
    except PhotoUnwritable as error:
        if error.path != staged:
            raise
        raise PhotoUnwritable(run.out / job.target, error.problem) from error.__cause__
    except OSError as error:
        problem = f"it could not be written ({error.strerror or error}); check the folder and the disk"
        raise PhotoUnwritable(run.out / job.target, problem) from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
    way.photo = way.result = None
    way.outcome = Outcome(job.number, job.attempt, report, peak_bytes=peak_bytes())


STEPS = (_read, _restore, _write)
"""Reading, restoring and writing: an engine may have different jobs at different steps at once."""


def _written(fix: FaceFix, run: Run, job: Job, photo: Photo, result: Result, staged: Path) -> dict[str, Any]:
    """The report of a result that now stands at `staged`, with what is stored to take its faces back."""
    from facefix.jobs import kept

    lost = fix.save(result, photo, staged, overwrite=True)
    told = report_json(dataclasses.replace(result.report, warnings=(*result.report.warnings, *lost)))
    for number, record in kept.keep(run.out / FOLDER, job.work, photo, result).items():
        told["faces"][number - 1] |= {"number": number, "kept": record}
    return told | {"id": job.id, "source_sha256": job.source_sha256, "target_sha256": file_sha256(staged)}


def _copied(run: Run, job: Job, twin: Twin, staged: Path) -> dict[str, Any]:
    """The report of the twin's result, which now stands at `staged`, too.

    Raises:
        PhotoUnwritable: the twin's result is not what the journal says.
    """
    origin = inside(run.out, twin.target.parent) / twin.target.name
    if file_sha256(origin) != twin.sha256:
        raise PhotoUnwritable(origin, "it was changed since it was written; restore its copies with --duplicates redo")
    linked = False
    if twin.link:
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(origin, staged)
            linked = True
    if not linked:
        shutil.copyfile(origin, staged)
    own = {"source": text_of(job.source), "target": text_of(job.target)}
    return {**twin.report, **own, "id": job.id, "same_as": text_of(twin.target)}


def _unchanged(job: Job) -> None:
    try:
        now = Mark.of(os.stat(job.source))
    except OSError as error:
        raise PhotoUnreadable(job.source, f"{error.strerror or error}; check the file") from error
    if now != job.mark:
        raise PhotoUnreadable(job.source, CHANGED)


def _number(error: BaseException) -> int | None:
    cause = error.__cause__
    return cause.errno if isinstance(cause, OSError) else None
