"""The one archive run of a server, and what the journals of its results say and are told."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from facefix.errors import FacefixError, UsageError, shown
from facefix.jobs import undo
from facefix.jobs.database import FOLDER
from facefix.jobs.journal import Journal
from facefix.recipe import Recipe
from facefix.web.archive_run import FAILURES, ArchiveRun
from facefix.web.folders import below, given, inside
from facefix.web.house import House

_FRESH_S = 2.0


class Archive:
    """The one run of a server, and what the journals of its output folder say; all visitors see the same.

    Args:
        house: whose folders are worked on; the run ends with it.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.run: ArchiveRun | None = None
        self._changing = threading.Lock()
        self._known: dict[Path, tuple[float, tuple[int, ...], dict[str, int], list[str]]] = {}
        self._reverse: dict[Path, dict[str, dict[int, bool]]] = {}
        house.at_close(self.close)

    @property
    def alive(self) -> bool:
        """Whether a run is under way."""
        return self.run is not None and self.run.standing().alive

    def start(self, source: str, out: str, recipe: Recipe, *, retry_failed: bool = False) -> ArchiveRun:
        """The run, begun or gone on with.

        Raises:
            FacefixError: a folder is none of the server's, or another run is under way.
        """
        with self._changing:
            if self.run is not None and self.run.standing().alive:
                doing = f"{shown(self.run.source.relative_to(self.input_dir))} is being restored"
                raise UsageError(f"{doing}, expected one archive at a time; wait for it, or pause it")
            photos, results = self.source(source), self.results(out)
            self.run = ArchiveRun(self.house, photos, results, recipe, retry_failed=retry_failed)
            return self.run

    def pause(self) -> None:
        """Nothing; the run, if there is one, begins no other photo."""
        if self.run is not None:
            self.run.pause()

    def close(self) -> None:
        """Nothing; the photos in hand are finished, and the journal is left as the next run needs it."""
        self.pause()
        if self.run is not None:
            self.run.join()

    @property
    def input_dir(self) -> Path:
        """The folder whose photos may be read.

        Raises:
            UsageError: the server was started without one.
        """
        return given(self.house.input_dir)

    @property
    def output_dir(self) -> Path:
        """The folder that may be written to.

        Raises:
            UsageError: the server was started without one.
        """
        return given(self.house.output_dir)

    def source(self, named: str) -> Path:
        """The folder of that name in the input folder.

        Raises:
            UsageError: it is none, or leads out.
        """
        path = inside(self.input_dir, named, "input")
        if not os.path.isdir(path):
            raise UsageError(
                f"{shown(Path(named))}: expected a folder of the server's input folder, got none; choose one"
            )
        return path

    def results(self, named: str) -> Path:
        """The folder of that name in the output folder, there or not.

        Raises:
            UsageError: it leads out, or is a file.
        """
        path = inside(self.output_dir, named, "output")
        if os.path.exists(path) and not os.path.isdir(path):
            raise UsageError(f"{shown(Path(named))}: expected a folder for the results, got a file; name another")
        return path

    def journal_says(self, out: Path) -> tuple[dict[str, int], list[str]] | None:
        """How many photos of OUT are in each state, and the first failures; None where it has no journal.

        What was read is shared by all visitors, and read again only when the journal changed.

        Raises:
            JournalError: it cannot be used.
        """
        mark = tuple(_mtime_ns(out / FOLDER / f"journal.sqlite{end}") for end in ("", "-wal"))
        if not mark[0]:
            return None
        known = self._known.get(out)
        if known is None or (known[1] != mark and time.monotonic() - known[0] > _FRESH_S):
            with Journal.open(out, write=False) as journal:
                counts = {str(state): count for state, count in journal.counts().items()}
                rows = journal.rows("failed", reports=False) if counts["failed"] else iter(())
                failures = [below(row.root, row.reason) for row, _ in islice(rows, FAILURES)]
            known = self._known[out] = time.monotonic(), mark, counts, failures
        return known[2], known[3]

    def began_with(self, out: Path) -> tuple[Path, Recipe] | None:
        """The folder and the settings of the newest run into OUT; None without one."""
        if not os.path.isfile(out / FOLDER / "journal.sqlite"):
            return None
        with Journal.open(out, write=False) as journal:
            newest = journal.newest()
        return None if newest is None else (newest[0].root, Recipe.from_mapping(newest[1]))

    def carry_out(self, out: Path, told: Mapping[str, Mapping[int, bool]]) -> tuple[str, list[str]]:
        """What became of the decisions: rejected faces are taken back, accepted ones brought in again.

        Returns:
            It in words, and the faces whose decisions are spent, each as ID#FACE: they were carried out, or are about
            a photo that was restored anew since.

        Raises:
            JournalError: there is no journal, or another process holds it.
        """
        sums: Counter[str] = Counter()
        troubles, spent = list[str](), list[str]()
        reverse: dict[str, dict[int, bool]] = {}
        with Journal.open(out) as journal:
            for id, faces in told.items():
                row = journal.row(id)
                if row is None:
                    sums["strange"] += 1
                    spent += [f"{id}#{face}" for face in faces]
                    continue
                accept = {face for face, good in faces.items() if good}
                try:
                    gone, back = undo.decide(journal, row, reject=set(faces) - accept, accept=accept)
                except FacefixError as error:
                    troubles.append(below(out, str(error)))
                    continue
                spent += [f"{id}#{face}" for face in gone | back]
                if gone or back:
                    reverse[id] = dict.fromkeys(gone, True) | dict.fromkeys(back, False)
                    sums.update(gone=len(gone), back=len(back), photos=1)
            if reverse:
                self._reverse[out] = reverse
            journal.export(out / FOLDER / "report.jsonl")  # always: a power cut may have come before it last time
        return _summed(sums, troubles), spent

    def take_back(self, out: Path) -> str:
        """What became of undoing the decisions that were carried out last, in words.

        Raises:
            UsageError: none were carried out since the server was started.
        """
        told = self._reverse.get(out)
        if told is None:
            raise UsageError(
                "expected decisions that were carried out here, got none; `facefix undo` takes any face back"
            )
        line, _ = self.carry_out(out, told)
        if self._reverse.get(out) is told:
            del self._reverse[out]
        return line

    def can_take_back(self, out: Path) -> bool:
        """Whether decisions were carried out since the server was started."""
        return out in self._reverse


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _summed(sums: Counter[str], troubles: list[str]) -> str:
    faces, photos = f"face{'' if sums['gone'] == 1 else 's'}", f"photo{'' if sums['photos'] == 1 else 's'}"
    parts = [f"{sums['gone']} {faces} taken back"]
    parts += [f"{sums['back']} brought in again"] if sums["back"] else []
    lines = [f"{', '.join(parts)}, in {sums['photos']} {photos}"]
    if sums["strange"]:
        lines.append(f"{sums['strange']} decided before their photos were restored anew: look at them again")
    return "; ".join([*lines, *troubles])
