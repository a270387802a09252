"""What became of each photo of a folder tree, in OUT/.facefix/journal.sqlite.

A row is one photo, and its key is its place: where it stands in the mirrored tree. Its state is one of

    queued    to be done
    running   claimed: an attempt is under way, and its lease says until when it may be taken for alive
    done      the result stands at `target`, and the report says what was done
    failed    it could not be done; `reason` says why in one line

Rules
    A claim is one UPDATE … RETURNING. Each claim counts the row's attempt up, and whoever finishes names the attempt: a
    hand that was given up for lost and comes back late changes nothing.
    `work` is sha256(digest of the source's bytes + digest of the recipe with its weights): equal work,
    equal results.
    `id` is sha256(work + place): one row, as reports, decisions and stored patches call it.
    `target` is on the disk before anything is written there. What stands under a recorded name is ours; anything else
    is never overwritten unasked.
    One process at a time may change a journal; it holds OUT/.facefix/lock.

A photo is looked at again only where its size, inode, or time of modification or of change (ctime, which cannot be put
back) differs from what is recorded; then its bytes are hashed, and where they are the recorded ones, nothing is redone.

SQLite writes ahead (WAL). What is done `together` waits for the disk at its end (synchronous=FULL), and is there after
a power cut, too; a change by itself does not wait, and the next `together` takes it along. Reports lie in a table of
their own, so that claims do not wade through them, and recipes in a third.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from facefix.errors import JournalError
from facefix.jobs import database
from facefix.jobs.rows import COLUMNS, Found, Mark, Row, State, Verdict, failure, row_id, row_of

_PAGE = 500


class Journal:
    """The journal of the output folder `out`; made by `open`, closed by `close` or at the end of a `with`."""

    def __init__(self, out: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.out = out
        self._connection, self._lock = connection, lock

    @classmethod
    def open(cls, out: Path, *, write: bool = True, create: bool = False) -> Journal:
        """The journal of OUT.

        Args:
            out: the output folder.
            write: hold the lock, so that nobody else changes it; without, it is only read.
            create: make it where there is none.

        Raises:
            JournalError: there is none, it is damaged, of another version, or another process holds it.
        """
        folder = out / database.FOLDER
        path = database.files(folder)[0]
        link = next((each for each in (folder, *database.files(folder)) if os.path.islink(each)), None)
        if link is not None:
            raise JournalError(link, "got a link, which may lead out of the output folder; remove it")
        if not create and not os.path.isfile(path):
            raise JournalError(path, "there is no such journal; name the folder that `facefix restore … -o` wrote")
        with contextlib.ExitStack() as undone:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = database.locked(folder, path) if write else None
            except OSError as error:
                raise JournalError(folder, f"{error.strerror or error}; name a folder that can be written") from error
            if lock is not None:
                undone.callback(lock.release)
            journal = cls(out, database.connected(path, write), lock)
            undone.pop_all()
        return journal

    def close(self) -> None:
        """Nothing; the file is closed and the lock given back."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Everything inside is one transaction: all of it or nothing, and on the disk when this is left."""
        self._do("PRAGMA synchronous = FULL")
        self._do("BEGIN IMMEDIATE")
        with contextlib.ExitStack() as undone:
            undone.callback(self._roll_back)
            yield
            self._do("COMMIT")
            undone.pop_all()
        self._do("PRAGMA synchronous = NORMAL")

    def _roll_back(self) -> None:
        with contextlib.suppress(JournalError):  # where the disk is full, SQLite has done so by itself
            self._do("ROLLBACK")

    # ---- a run ----------------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """The new run's number; what an earlier run left running is queued again."""
        with self.together():
            self._do("UPDATE photos SET state = 'queued', lease = NULL WHERE state = 'running'")
            run = self._do(
                "INSERT INTO runs (began, holder) VALUES (?, ?) RETURNING number", time.time(), database.holder()
            )
            return int(run[0][0])

    def recipe(self, digest: str, recipe: Mapping[str, Any], weights: Mapping[str, str]) -> int:
        """The number under which this recipe stands in the journal."""
        told = json.dumps(dict(recipe)), json.dumps(dict(weights))
        self._do("INSERT OR IGNORE INTO recipes (digest, recipe, weights) VALUES (?, ?, ?)", digest, *told)
        return int(self._do("SELECT number FROM recipes WHERE digest = ?", digest)[0][0])

    def add(
        self,
        found: Found,
        *,
        run: int,
        recipe: int,
        retry_failed: bool = False,
        force: bool = False,
        moved: bool = False,
    ) -> tuple[Verdict, Row | None]:
        """What becomes of a photo that was met: queued, or left as it stands; and the row that stood at its place.

        A photo keeps the names that it got when it was first met.

        Args:
            found: the photo.
            run: as `begin` said.
            recipe: as `recipe` said.
            retry_failed: queue it where it failed before.
            force: queue it in any case, and have it done anew.
            moved: another source's result at this place may be taken for this one's.
        """
        place = os.fsencode(found.place)
        there = self._do(f"SELECT {COLUMNS}, run, recipe FROM photos WHERE place = ?", place)
        mark = dataclasses.astuple(found.mark)
        if not there:
            self._do(
                "INSERT OR IGNORE INTO photos "
                "(place, source, own, base, bytes, mtime_ns, inode, ctime_ns, run, recipe, state) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued')",
                *(place, *(os.fsencode(name) for name in (found.source, found.own, found.base)), *mark, run, recipe),
            )
            return "new", None
        row, (seen, before) = row_of(there[0]), there[0][-2:]
        verdict: Verdict = "done"
        if seen == run:
            verdict = "twice" if row.source == found.source else "taken"
        elif row.source != found.source and row.target_sha256 is not None and not moved:
            verdict = "taken"
        elif force or before != recipe or dataclasses.astuple(row.mark) != mark or row.state in ("queued", "running"):
            verdict = "again"
        elif row.state == "failed":
            verdict = "again" if retry_failed else "failed"
        elif row.target is None or not os.path.lexists(self.out / row.target):
            verdict = "again"
        if verdict == "again":
            self._do(
                "UPDATE photos SET source = ?, bytes = ?, mtime_ns = ?, inode = ?, ctime_ns = ?, run = ?, recipe = ?, "
                "work = iif(?, NULL, work), state = 'queued', reason = '', traceback = '' WHERE number = ?",
                *(os.fsencode(found.source), *mark, run, recipe, force, row.number),
            )
        elif verdict in ("done", "failed"):
            self._do("UPDATE photos SET run = ? WHERE number = ?", run, row.number)
        return verdict, row

    def claim(self, run: int, count: int, *, lease_s: float = 3600.0) -> list[Row]:
        """Up to `count` queued photos of this run, from now on running, in the order in which they were met."""
        until = time.time() + lease_s
        claimed = self._do(
            "UPDATE photos SET state = 'running', attempt = attempt + 1, lease = ? WHERE number IN "
            "(SELECT number FROM photos WHERE state = 'queued' AND run = ? ORDER BY number LIMIT ?) "
            f"RETURNING {COLUMNS}",
            *(until, run, count),
        )
        return sorted(map(row_of, claimed), key=lambda row: row.number)

    def renew(self, numbers: Sequence[int], *, lease_s: float = 3600.0) -> None:
        """Nothing; these photos are still being worked on, and running ones whose lease is over are queued again."""
        until = time.time() + lease_s
        with self.together():
            for number in numbers:
                self._do("UPDATE photos SET lease = ? WHERE number = ? AND state = 'running'", until, number)
            self._do(
                "UPDATE photos SET state = 'queued', lease = NULL WHERE state = 'running' AND lease < ?", time.time()
            )

    def retry(self, row: Row) -> Row:
        """The row at its next attempt: the hand that had it is lost."""
        counted = self._do(
            "UPDATE photos SET attempt = attempt + 1 WHERE number = ? AND attempt = ? AND state = 'running' "
            f"RETURNING {COLUMNS}",
            *(row.number, row.attempt),
        )
        return row_of(counted[0]) if counted else row

    def settle(self, row: Row, *, mark: Mark, sha256: str, work: str, target: Path) -> bool:
        """Whether the running photo may be written to `target`; if so, the name is its own from now on.

        False where another photo has that name, or the attempt is over.
        """
        name = os.fsencode(target)
        if self._do("SELECT 1 FROM photos WHERE target = ? AND number != ?", name, row.number):
            return False
        now = "bytes = ?, mtime_ns = ?, inode = ?, ctime_ns = ?"
        values = f"{now}, sha256 = ?, work = ?, id = ?, target = ?, target_sha256 = NULL"
        return self._changed(row, values, *dataclasses.astuple(mark), sha256, work, row_id(work, row.place), name)

    def finish(self, row: Row, report: Mapping[str, Any]) -> bool:
        """Whether the attempt counted: the photo is done, and this is its report (its recipe and weights are known)."""
        done = self._changed(row, "state = 'done', lease = NULL, target_sha256 = ?", report["target_sha256"])
        if done:
            self._do("INSERT OR REPLACE INTO reports (number, report) VALUES (?, ?)", row.number, _own_part(report))
        return done

    def still_done(self, row: Row) -> bool:
        """Whether the attempt counted: the source turned out to hold what it held when the photo was done."""
        return self._changed(row, "state = 'done', lease = NULL")

    def fail(self, row: Row, reason: str, *, traceback: str = "", forget_target: bool = False) -> bool:
        """Whether the attempt counted: the photo could not be done, for this reason.

        Args:
            row: as it was claimed.
            reason: one line.
            traceback: of an error that nobody foresaw.
            forget_target: nothing of ours stands under the recorded name.
        """
        forget = ", target = NULL, target_sha256 = NULL" if forget_target else ""
        return self._changed(
            row, f"state = 'failed', lease = NULL, reason = ?, traceback = ?{forget}", reason, traceback
        )

    def release(self, row: Row) -> bool:
        """Whether the attempt counted: nobody works on the photo any longer, and it is queued again."""
        return self._changed(row, "state = 'queued', lease = NULL")

    def _changed(self, row: Row, values: str, *parameters: object) -> bool:
        return bool(
            self._do(
                f"UPDATE photos SET {values} WHERE number = ? AND attempt = ? AND state = 'running' RETURNING number",
                *(*parameters, row.number, row.attempt),
            )
        )

    # ---- looking into it ------------------------------------------------------------------------------------------

    def same_work(self, work: str, *, run: int = 0) -> Row | None:
        """A photo for which this work is done, by no earlier run than that, and not amended since; or None."""
        found = self._do(
            f"SELECT {COLUMNS} FROM photos JOIN reports USING (number) "
            "WHERE work = ? AND state = 'done' AND run >= ? AND NOT amended ORDER BY number LIMIT 1",
            *(work, run),
        )
        return row_of(found[0]) if found else None

    def works(self, beginning: str) -> set[str]:
        """The works of photos, whatever their state, that begin with these hex digits."""
        return {
            work
            for (work,) in self._do("SELECT work FROM photos WHERE work BETWEEN ? AND ?", beginning, f"{beginning}g")
        }

    def counts(self) -> dict[State, int]:
        """How many photos there are in each state."""
        counted = dict(self._do("SELECT state, count(*) FROM photos GROUP BY state"))
        return {state: counted.get(state, 0) for state in ("queued", "running", "done", "failed")}

    def rows(self, *states: State, reports: bool = True) -> Iterator[tuple[Row, dict[str, Any] | None]]:
        """Each photo in one of these states (any without) with its report, in the order of their places.

        A page at a time: memory does not grow with their number, and the journal may be changed meanwhile.
        """
        wanted = f"AND state IN ({', '.join('?' * len(states))})" if states else ""
        last = b""
        while True:
            page = self._do(
                f"SELECT {COLUMNS} FROM photos WHERE place > ? {wanted} ORDER BY place LIMIT {_PAGE}", last, *states
            )
            for each in page:
                row = row_of(each)
                yield row, self._report(row.number) if reports else None
            if not page:
                return
            last = page[-1][1]

    def newest(self) -> tuple[Row, dict[str, Any]] | None:
        """A photo that the newest run met, and the run's recipe; None before any was met."""
        found = self._do(
            f"SELECT {COLUMNS}, recipes.recipe FROM photos JOIN recipes ON recipes.number = photos.recipe "
            "ORDER BY run DESC, photos.number LIMIT 1"
        )
        return (row_of(found[0]), json.loads(found[0][-1])) if found else None

    def row(self, id: str) -> Row | None:
        """The row of that id, or None."""
        found = self._do(f"SELECT {COLUMNS} FROM photos WHERE id = ?", id)
        return row_of(found[0]) if found else None

    def report(self, id: str) -> dict[str, Any] | None:
        """The report of the finished photo with that id, or None.

        Its keys are those of `facefix restore --report`, with `target` relative to OUT, and `id`, `source_sha256`,
        `target_sha256` and, for a copy of an identical photo's result, `same_as`: that photo's target.
        """
        row = self.row(id)
        return self._report(row.number) if row is not None and row.state == "done" else None

    def amend(self, id: str, report: Mapping[str, Any]) -> None:
        """Nothing; this is from now on the report of a finished photo whose result was changed on purpose.

        Raises:
            KeyError: no finished photo has that id.
        """
        with self.together():
            changed = self._do(
                "UPDATE photos SET target_sha256 = ? WHERE id = ? AND state = 'done' RETURNING number",
                *(report["target_sha256"], id),
            )
            if not changed:
                raise KeyError(id)
            self._do(
                "UPDATE reports SET report = ?, amended = 1 WHERE number = ?", _own_part(report), int(changed[0][0])
            )

    def export(self, path: Path, *, lines: bool = True) -> None:
        """Nothing; `path` holds the JSON of every finished and failed photo, one a line, or else as one list.

        Of a failed one: source, target null, error. In the order of their places, put there in one step.

        Raises:
            JournalError: it cannot be written.
        """
        ours = path.parent == self.out / database.FOLDER
        folder = path.parent / "tmp" if ours else path.parent  # where the next run clears up after a killed one
        temporary = folder / f".facefix-{secrets.token_hex(8)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "x", encoding="utf-8") as file:
                before = "" if lines else "["
                for row, report in self.rows("done", "failed"):
                    told = report if row.state == "done" else failure(row.source, row.reason)
                    file.write(f"{before}{json.dumps(told)}" + ("\n" if lines else ""))
                    before = "" if lines else ",\n"
                file.write("" if lines else "[]\n" if before == "[" else "]\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise JournalError(
                path, f"{error.strerror or error}; name a file in a folder that can be written"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _report(self, number: int) -> dict[str, Any] | None:
        found = self._do(
            "SELECT report, recipes.recipe, weights FROM reports JOIN photos USING (number) "
            "JOIN recipes ON recipes.number = photos.recipe WHERE reports.number = ?",
            number,
        )
        if not found:
            return None
        told, recipe, weights = (json.loads(text) for text in found[0])
        head = {key: told.pop(key) for key in ("source", "target", "width", "height") if key in told}
        return {**head, "recipe": recipe, "weights": weights, **told}

    def _do(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise JournalError(self.out / database.FOLDER / "journal.sqlite", database.trouble(error)) from error


def _own_part(report: Mapping[str, Any]) -> str:
    """The report as JSON without what is the same for all photos of a run."""
    return json.dumps({key: value for key, value in report.items() if key not in ("recipe", "weights")})
