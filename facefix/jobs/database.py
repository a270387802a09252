"""The SQLite file under the journal: its tables, who may open it, and what is said where it cannot be used."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from pathlib import Path

from filelock import FileLock, Timeout

from facefix.errors import JournalError

FOLDER = ".facefix"
VERSION = 2
_APPLICATION = 0x66616365  # "face"
_SCHEMA = """
CREATE TABLE recipes (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, recipe TEXT NOT NULL, weights TEXT NOT NULL
);
CREATE TABLE runs (number INTEGER PRIMARY KEY, began REAL NOT NULL, holder TEXT NOT NULL);
CREATE TABLE photos (
    number INTEGER PRIMARY KEY,
    place BLOB NOT NULL UNIQUE,
    source BLOB NOT NULL,
    own BLOB NOT NULL,
    base BLOB NOT NULL,
    bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    run INTEGER NOT NULL,
    recipe INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    attempt INTEGER NOT NULL DEFAULT 0,
    lease REAL,
    sha256 TEXT, work TEXT, id TEXT UNIQUE,
    target BLOB UNIQUE, target_sha256 TEXT,
    reason TEXT NOT NULL DEFAULT '', traceback TEXT NOT NULL DEFAULT ''
);
CREATE INDEX queue ON photos (run, number) WHERE state = 'queued';
CREATE INDEX leases ON photos (lease) WHERE state = 'running';
CREATE INDEX works ON photos (work) WHERE work IS NOT NULL;
CREATE TABLE reports (
    number INTEGER PRIMARY KEY REFERENCES photos, report TEXT NOT NULL, amended INTEGER NOT NULL DEFAULT 0
);
"""


def files(folder: Path) -> tuple[Path, ...]:
    """The journal in its folder, and what SQLite and the lock put beside it."""
    return tuple(folder / name for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "lock"))


def holder() -> str:
    """Who this process is, for those who find a journal in its hands."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def locked(folder: Path, path: Path) -> FileLock:
    """The lock on a journal's folder, held.

    Raises:
        JournalError: another process holds it.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as journal:
            last = journal.execute("SELECT holder FROM runs ORDER BY number DESC LIMIT 1").fetchone()
            who = last[0] if last else who
        raise JournalError(folder, f"{who} is at work on this folder; wait for it, or stop it") from None
    return lock


def connected(path: Path, write: bool) -> sqlite3.Connection:
    """The open journal, made where the file is new or empty, and brought to this version where it is of an earlier one.

    Raises:
        JournalError: the file is damaged, no journal, or of another version.
    """
    with contextlib.ExitStack() as undone:
        try:
            still = not write and _still(path)
            name = f"{path.absolute().as_uri()}?immutable=1" if still else path
            connection = sqlite3.connect(name, timeout=10, isolation_level=None, cached_statements=64, uri=still)
            undone.callback(connection.close)
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if (application, version) == (0, 0) and not connection.execute("SELECT 1 FROM sqlite_master").fetchall():
                connection.execute("PRAGMA journal_mode = WAL")
                marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {VERSION};"
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT;")
            elif application != _APPLICATION:
                raise JournalError(path, "expected a journal of facefix, got another database; move it away")
            elif version == 1 and not still:  # it lacks the times of change: photos are looked at once more
                connection.execute("BEGIN IMMEDIATE")
                if connection.execute("PRAGMA user_version").fetchone() == (1,):  # nobody else was faster
                    connection.execute("ALTER TABLE photos ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
            elif version != VERSION:
                told = f"expected a journal of version {VERSION}, got version {version}"
                raise JournalError(path, f"{told}; use the facefix that wrote it, or another output folder")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -32768")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            if not write:
                connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise JournalError(path, trouble(error)) from error
        undone.pop_all()
    return connection


def _still(path: Path) -> bool:
    """Whether the journal lies in a folder that cannot be written, where SQLite could not open it as usual."""
    return not os.access(path.parent, os.W_OK) and not any(beside.exists() for beside in files(path.parent)[1:3])


def trouble(error: sqlite3.Error) -> str:
    """What is wrong with the journal, and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; make room and run the same command again"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the journal is damaged ({error}); move it away and run again with --overwrite"
    return f"the journal cannot be used ({error}); check the folder and the disk"
