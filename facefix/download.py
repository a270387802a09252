"""One file over HTTP, whole and verified, or one line that says why not.

A download grows in a hidden `.NAME.part` beside its target and takes the target's name only when its size, its first
bytes and its digest are right. What was broken off is resumed, also by a later process; a file beside the part
remembers the address and the server's mark of the version (ETag), so that two versions are never joined. Two processes
that want the same file take turns: the second finds it finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from facefix.errors import DownloadFailed

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be (None where the server does not say)."""

GOOD_STRETCH_BYTES = 1 << 20
UNREACHABLE_TRIES = 2
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TORCH_SUFFIXES = frozenset({".pth", ".pt", ".ckpt", ".bin"})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download is tried.

    Args:
        tries: failures in a row, without a good stretch between them, after which an address is given up.
        backoff_s: seconds before the second try; doubled with each further one.
        connect_s: seconds to wait for a connection.
        stall_s: seconds without a byte after which a connection counts as broken.
    """

    tries: int = 5
    backoff_s: float = 1.0
    connect_s: float = 10.0
    stall_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of a file beforehand; None where nothing is.

    Args:
        name: the file's name; its suffix says how it must begin.
        bytes: its exact size.
        at_least: a size below which it cannot be whole.
        sha256, md5: its digest in lower-case hex.
    """

    name: str
    bytes: int | None = None
    at_least: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def has_digest(self) -> bool:
        """Whether a wrong byte would be noticed."""
        return self.sha256 is not None or self.md5 is not None

    def size_problem(self, size: int) -> str | None:
        """What is wrong with this size, or None."""
        if self.bytes is not None and size != self.bytes:
            return f"expected {self.bytes} bytes, got {size}"
        if self.at_least is not None and size < self.at_least:
            return f"expected at least {self.at_least} bytes, got {size}"
        return None

    def problem(self, path: Path, digest: Callable[[Path, str], str] | None = None) -> str | None:
        """What is wrong with the file at path, or None; `digest` stands in for `file_digest` where it can be faster."""
        with path.open("rb") as file:
            head = file.read(256)
        wrong = what_it_is(head, self.name) or self.size_problem(path.stat().st_size)
        if wrong is not None:
            return wrong
        for algorithm, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected is not None and (got := (digest or file_digest)(path, algorithm)) != expected:
                return f"expected {algorithm} {expected}, got {got}"
        return None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def what_it_is(head: bytes, name: str) -> str | None:
    """What a file is that cannot be the weight file of this name, judged by its first bytes; None where it may be.

    Args:
        head: the first 256 bytes, or all of a shorter file.
        name: the file's name; its suffix says what it should be.
    """
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself"
    suffix = Path(name).suffix.lower()
    if suffix in TORCH_SUFFIXES and not head.startswith((b"PK\x03\x04", b"\x80")):
        return "it is not a PyTorch file"
    if suffix == ".safetensors" and head[8:9] != b"{":
        return "it is not a safetensors file"
    return None


class _BrokenError(Exception):
    """One try failed; the next may do better."""

    def __init__(self, problem: str, *, after_s: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(problem)
        self.after_s = after_s
        self.unreachable = unreachable


class _UselessError(Exception):
    """An address does not have the file."""


def download(
    urls: Sequence[str], target: Path, wanted: Wanted, *, patience: Patience, progress: Progress | None = None
) -> str | None:
    """The address that gave the file, which is now at target; None where another process had put it there.

    Args:
        urls: http(s) addresses, tried in order.
        target: where the file goes; its folder is made.
        wanted: what the file must be.
        patience: how long to try.
        progress: called as the file grows.

    Raises:
        DownloadFailed: no address gave the file, or it cannot be written; what came stays in the part, to be resumed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file() and wanted.problem(target) is None:
                return None
            return _from_any(urls, target, wanted, patience, progress or (lambda done, total: None))
    except OSError as error:
        raise DownloadFailed(_disk_problem(error, target)) from error


def _disk_problem(error: OSError, target: Path) -> str:
    way_out = "or set FACEFIX_WEIGHTS to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{target}: the disk is full ({error.strerror}); free some room, {way_out}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{target}: expected a folder that can be written to, got '{error.strerror}'; allow it, {way_out}"
    return f"{target}: could not be written ({error.strerror or error}); allow it, {way_out}"


def _from_any(urls: Sequence[str], target: Path, wanted: Wanted, patience: Patience, progress: Progress) -> str:
    import httpx

    problems = []
    timeout = httpx.Timeout(patience.stall_s, connect=patience.connect_s)
    headers = {"User-Agent": "facefix", "Accept-Encoding": "identity"}
    try:
        client = httpx.Client(timeout=timeout, follow_redirects=True, headers=headers)
    except (ImportError, ValueError) as error:
        raise DownloadFailed(f"the proxy that the environment names cannot be used ({error})") from error
    with client:
        for url in urls:
            part = _Part(target, url, wanted)
            try:
                _from_one(client, part, patience, progress)
            except _UselessError as problem:
                problems.append(f"{url}: {problem}")
            else:
                part.finish()
                return url
    raise DownloadFailed(f"{'; '.join(problems)}; try again, or put the file by hand as {target}")


def _from_one(client: httpx.Client, part: _Part, patience: Patience, progress: Progress) -> None:
    """Nothing, once the part is whole and right.

    Raises:
        _UselessError: the address is given up.
    """
    failures = 0
    restarted = False
    while True:
        before = part.size
        try:
            _transfer(client, part, progress)
        except _BrokenError as broken:
            failures = 1 if part.size - before >= GOOD_STRETCH_BYTES else failures + 1
            if failures >= (min(UNREACHABLE_TRIES, patience.tries) if broken.unreachable else patience.tries):
                raise _UselessError(f"{broken} (tried {failures} times)") from broken
            time.sleep(max(patience.backoff_s * 2 ** (failures - 1), broken.after_s))
            continue
        problem = part.wanted.problem(part.path)
        if problem is None:
            return
        retry = part.joined and not restarted
        part.discard()
        if not retry:
            raise _UselessError(problem)
        restarted = True


def _transfer(client: httpx.Client, part: _Part, progress: Progress) -> None:
    """Nothing, once the part is as long as the server says the file is."""
    import httpx

    try:
        with client.stream("GET", part.url, headers=part.resume_headers()) as response:
            total = _begin(response, part)
            if total == part.size:
                return
            part.append(response.iter_raw(), total, progress)
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise _UselessError(str(error)) from error
    except httpx.TimeoutException as error:
        raise _BrokenError("no answer in time", unreachable=isinstance(error, httpx.ConnectTimeout)) from error
    except httpx.TransportError as error:
        unreachable = isinstance(error, httpx.ConnectError)
        problem = f"no connection: {error}" if unreachable else str(error) or type(error).__name__
        raise _BrokenError(problem, unreachable=unreachable) from error
    if total is not None and part.size < total:
        raise _BrokenError(f"broken off after {part.size} of {total} bytes")


def _begin(response: httpx.Response, part: _Part) -> int | None:
    """The size of the whole file where the server says it; the part is ready to be appended to."""
    status = response.status_code
    if status in PASSING_STATUS:
        raise _BrokenError(f"HTTP {status} {response.reason_phrase}", after_s=_retry_after(response))
    described = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("content-range", "").strip())
    if status == 416:
        if described and described[2] == str(part.size):
            return part.size
        part.discard()
        raise _BrokenError("the server cannot resume what is there")
    if status not in (200, 206):
        raise _UselessError(f"HTTP {status} {response.reason_phrase}")
    if response.headers.get("content-type", "").lower().startswith("text/html"):
        raise _UselessError("a web page came instead of the file")
    if status == 206:
        if not described or described[1] != str(part.size):
            part.discard()
            raise _BrokenError("the server resumed at another place")
        total = None if described[2] == "*" else int(described[2])
    else:
        part.discard()
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else None
    problem = None if total is None else part.wanted.size_problem(total)
    if problem is not None:
        raise _UselessError(problem)
    part.remember(response)
    return total


def _retry_after(response: httpx.Response) -> float:
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), 60.0) if seconds.isdecimal() else 0.0


class _Part:
    """The unfinished file beside the target, and what is remembered of where it came from."""

    def __init__(self, target: Path, url: str, wanted: Wanted) -> None:
        self.target = target
        self.url = url
        self.wanted = wanted
        self.path = target.with_name(f".{target.name}.part")
        self._origin_path = target.with_name(f".{target.name}.part.json")
        self._validator: str | None = None
        self.joined = self.path.is_file()
        if not self._may_resume():
            self.discard()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def _may_resume(self) -> bool:
        """Whether what is there can belong to this address: the same version of it, or a digest will tell."""
        try:
            origin = json.loads(self._origin_path.read_text(encoding="utf-8"))
            self._validator = origin["validator"] if origin["url"] == self.url else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            self._validator = None
        return self._validator is not None or self.wanted.has_digest

    def resume_headers(self) -> dict[str, str]:
        if self.size == 0:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        if self._validator is not None:
            headers["If-Range"] = self._validator
        return headers

    def remember(self, response: httpx.Response) -> None:
        etag = response.headers.get("etag", "")
        # a weak ETag does not promise equal bytes, so HTTP does not allow it here
        self._validator = etag if etag.startswith('"') else response.headers.get("last-modified")
        origin = {"url": self.url, "validator": self._validator}
        self._origin_path.write_text(json.dumps(origin), encoding="utf-8")

    def append(self, chunks: Iterator[bytes], total: int | None, progress: Progress) -> None:
        """Nothing; the chunks are written behind what is there. More than the file can hold is refused."""
        done = self.size
        self.joined = done > 0
        room = shutil.disk_usage(self.path.parent).free
        if total is not None and room < total - done:
            raise OSError(errno.ENOSPC, f"{total - done} bytes needed, {room} free")
        limit = total if total is not None else self.wanted.bytes
        with self.path.open("ab") as file:
            progress(done, total)
            for chunk in chunks:
                done += len(chunk)
                if limit is not None and done > limit:
                    self.discard()
                    raise _UselessError(f"expected {limit} bytes, got more")
                file.write(chunk)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        self.joined = False
        self.path.unlink(missing_ok=True)
        self._origin_path.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.target)
        self._origin_path.unlink(missing_ok=True)
