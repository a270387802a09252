"""Downloads against a real HTTP server that misbehaves in every way seen in the field."""

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from facefix.download import Patience, Wanted, download, what_it_is
from facefix.errors import DownloadFailed

DATA = b"PK\x03\x04" + bytes(range(256)) * 2000
SHA256 = hashlib.sha256(DATA).hexdigest()
WANTED = Wanted("net.pth", bytes=len(DATA), sha256=SHA256)
UNKNOWN = Wanted("net.pth")
PATIENCE = Patience(tries=3, backoff_s=0.01, connect_s=5.0, stall_s=10.0)
STALL_S = 1.3


class Server(ThreadingHTTPServer):
    """Serves DATA; how, is said by the path: `/` and words joined by `+`. A word that ends in 2 works twice only."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        self.used: dict[str, int] = {}

    def url(self, manner: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{manner}/net.pth"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def now(self, manner: str) -> bool:
        """Whether this manner applies to this request, counting down those that apply twice only."""
        manners = self.path.split("/")[1].split("+")
        if f"{manner}2" in manners:
            self.server.used[manner] = self.server.used.get(manner, 0) + 1
            return self.server.used[manner] <= 2
        return manner in manners

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append((self.path.split("/")[1], asked))
        for manner, status in (("gone", 404), ("error", 503), ("refused", 403)):
            if self.now(manner):
                self.head(status, 0, Retry_After="\xb2")  # a digit for str.isdigit, but no number
                return
        if self.now("page"):
            page = b"<!DOCTYPE html><title>Sign in</title>"
            self.head(200, len(page), Content_Type="application/octet-stream" if self.now("plain") else "text/html")
            self.wfile.write(page)
            return
        if self.now("away"):
            self.head(302, 0, Location=self.server.url("whole"))
            return
        if self.now("loop"):
            self.head(302, 0, Location=self.path)
            return
        self.send_data(asked)

    def send_data(self, asked: str | None) -> None:
        data = bytes(reversed(DATA)) if self.now("other") else DATA
        data = DATA[:4] + data[4:]  # what cannot be told by how it begins
        marks = {} if self.now("unmarked") else {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.headers.get("If-Range", marks.get("ETag")) != marks.get("ETag") or self.now("deaf"):
            start = 0
        if start >= len(data):
            self.head(416, 0, Content_Range=f"bytes */{len(data)}")
            return
        if start and self.now("shifted"):
            self.head(206, len(data), Content_Range=f"bytes 0-{len(data) - 1}/{len(data)}")
        elif start:
            end = min(start + 100_000, len(data)) if self.now("slices") else len(data)
            self.head(206, end - start, Content_Range=f"bytes {start}-{end - 1}/{len(data)}", **marks)
            data = data[:end]
        else:
            self.head(200, None if self.now("endless") else len(data), **marks)
        rest = data[start:]
        half = max(len(rest) // 2, 1)
        if self.now("cut"):
            self.wfile.write(rest[:half])
        elif self.now("stall"):
            self.wfile.write(rest[:half])
            self.wfile.flush()
            time.sleep(STALL_S)
        else:
            self.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "net.pth"


def left(target: Path) -> list[str]:
    """What lies in the target's folder, but for the lock."""
    return sorted(name for name in os.listdir(target.parent) if not name.endswith(".lock"))


def get(server: Server, target: Path, *manners: str, wanted: Wanted = WANTED) -> str | None:
    # a busy machine may seem to stall too, so only these tests are impatient, and leave room for that
    impatient = Patience(tries=6 if "stall2" in manners else 2, backoff_s=0.01, stall_s=0.6)
    patience = impatient if manners[0].startswith("stall") else PATIENCE
    return download([server.url(manner) for manner in manners], target, wanted, patience=patience)


def test_whole_file(server: Server, target: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    url = server.url("whole")
    got = download([url], target, WANTED, patience=PATIENCE, progress=lambda done, total: steps.append((done, total)))
    assert got == url
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]
    assert steps[0] == (0, len(DATA))
    assert steps[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("manner", ["cut2", "stall2", "error2", "cut2+deaf", "away", "endless", "cut2+unmarked"])
@pytest.mark.parametrize("wanted", [WANTED, UNKNOWN], ids=["known", "unknown"])
def test_recovers(server: Server, target: Path, manner: str, wanted: Wanted) -> None:
    get(server, target, manner, wanted=wanted)
    assert target.read_bytes() == DATA
    assert left(target) == ["net.pth"]


def test_resumes_where_it_was_cut(server: Server, target: Path) -> None:
    get(server, target, "cut2")
    half = len(DATA) // 2
    assert [asked for _, asked in server.seen] == [None, f"bytes={half}-", f"bytes={half + (len(DATA) - half) // 2}-"]


def test_resumes_what_an_earlier_process_left(server: Server, target: Path) -> None:
    with pytest.raises(DownloadFailed, match="received 64000 bytes, expected 128001"):
        get(server, target, "cut")
    left_there = (target.parent / ".net.pth.part").stat().st_size
    assert 0 < left_there < len(DATA)
    assert not target.exists()
    server.seen.clear()
    get(server, target, "whole")
    assert server.seen == [("whole", f"bytes={left_there}-")]
    assert target.read_bytes() == DATA


def test_tries_are_counted_from_the_last_good_stretch(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facefix.download.GOOD_STRETCH_BYTES", 1)
    get(server, target, "cut")
    assert len(server.seen) > PATIENCE.tries
    assert target.read_bytes() == DATA


def test_a_server_that_gives_slices(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facefix.download.GOOD_STRETCH_BYTES", 100_000)
    get(server, target, "cut2+slices")
    assert target.read_bytes() == DATA


def test_a_part_of_another_version_is_not_joined(server: Server, target: Path) -> None:
    with pytest.raises(DownloadFailed):
        get(server, target, "cut+other", wanted=UNKNOWN)
    origin = target.parent / ".net.pth.part.json"
    origin.write_text(origin.read_text().replace("cut+other", "whole"))
    get(server, target, "whole", wanted=UNKNOWN)
    assert target.read_bytes() == DATA


def test_a_part_without_a_known_origin_is_dropped_where_no_digest_would_tell(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".net.pth.part").write_bytes(b"from somewhere else")
    get(server, target, "whole", wanted=UNKNOWN)
    assert server.seen == [("whole", None)]
    assert target.read_bytes() == DATA


def test_a_damaged_part_is_started_over_once(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".net.pth.part").write_bytes(b"PK\x03\x04 damaged")
    get(server, target, "whole")
    assert [asked for _, asked in server.seen] == ["bytes=12-", None]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 7])
def test_a_part_that_is_whole_or_too_long(server: Server, target: Path, size: int) -> None:
    target.parent.mkdir()
    (target.parent / ".net.pth.part").write_bytes((DATA + b"1234567")[:size])
    get(server, target, "whole")
    assert target.read_bytes() == DATA


def test_resumed_at_another_place(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / ".net.pth.part").write_bytes(DATA[:100])
    get(server, target, "shifted")
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("gone", "HTTP 404"),
        ("refused", "HTTP 403"),
        ("page", "web page"),
        ("page+plain", "expected 512004 bytes, got 37"),
        ("other", "expected sha256"),
        ("loop", "redirects"),
        ("error", "HTTP 503.*tried 3 times"),
        ("stall", "no answer in time"),
    ],
)
def test_a_useless_address_is_said_and_the_next_is_tried(
    server: Server, target: Path, manner: str, reason: str
) -> None:
    with pytest.raises(DownloadFailed, match=reason) as caught:
        get(server, target, manner)
    assert "\n" not in str(caught.value)
    assert server.url(manner) in str(caught.value)
    assert not target.exists()
    assert get(server, target, manner, "whole") == server.url("whole")
    assert target.read_bytes() == DATA


def test_a_page_is_refused_where_nothing_is_known(server: Server, target: Path) -> None:
    with pytest.raises(DownloadFailed, match="it is a web page"):
        get(server, target, "page+plain", wanted=UNKNOWN)
    assert left(target) == []


def test_md5_is_checked(server: Server, target: Path) -> None:
    right = hashlib.md5(DATA).hexdigest()
    with pytest.raises(DownloadFailed, match="expected md5"):
        get(server, target, "other", wanted=Wanted("net.pth", md5=right))
    get(server, target, "whole", wanted=Wanted("net.pth", md5=right))


def test_nobody_answers(target: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen; a port that nobody holds another test might take
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/net.pth"
        begun = time.monotonic()
        with pytest.raises(DownloadFailed, match="tried 2 times"):
            download([url], target, WANTED, patience=Patience(backoff_s=0.01))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("proxy", ["nonsense://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(target: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(DownloadFailed, match=r"proxy|tried 2 times"):
        download(["http://facefix.invalid/net.pth"], target, WANTED, patience=PATIENCE)


def test_two_at_once_download_it_once(server: Server, target: Path) -> None:
    results: list[str | None] = []
    threads = [threading.Thread(target=lambda: results.append(get(server, target, "whole"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 1
    assert sorted(map(str, results)) == ["None", "None", server.url("whole")]
    assert target.read_bytes() == DATA


def test_full_disk_is_seen_beforehand(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadFailed, match=f"disk is full.*{len(DATA)} bytes needed, 1000 free.*FACEFIX_WEIGHTS"):
        get(server, target, "whole")


def test_disk_fills_up_on_the_way(server: Server, target: Path) -> None:
    def full(done: int, total: int | None) -> None:
        if done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DownloadFailed, match=r"disk is full \(No space left on device\); free some room"):
        download([server.url("whole")], target, WANTED, patience=PATIENCE, progress=full)
    get(server, target, "whole")
    assert target.read_bytes() == DATA


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadFailed, match="FACEFIX_WEIGHTS"):
        get(server, tmp_path / "file" / "net.pth", "whole")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(server: Server, target: Path) -> None:
    target.parent.mkdir(mode=0o500)
    with pytest.raises(DownloadFailed, match="expected a folder that can be written to"):
        get(server, target, "whole")


def test_interrupted_keeps_what_came(server: Server, target: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download([server.url("whole")], target, WANTED, patience=PATIENCE, progress=stop)
    assert json.loads((target.parent / ".net.pth.part.json").read_text())["url"] == server.url("whole")
    assert (target.parent / ".net.pth.part").stat().st_size > 0
    get(server, target, "whole")
    assert server.seen[-1][1] is not None
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    ("head", "name", "said"),
    [
        (b"", "a.onnx", "empty"),
        (b"  <HTML>", "a.onnx", "web page"),
        (b'<?xml version="1.0"?><Error>', "a.pth", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a.onnx", "Git LFS pointer"),
        (b"hello", "a.pth", "not a PyTorch file"),
        (b"PK\x03\x04", "a.safetensors", "not a safetensors file"),
        (b"PK\x03\x04", "a.pt", None),
        (b"\x80\x02", "a.PTH", None),
        (b"\x10\0\0\0\0\0\0\0{", "a.safetensors", None),
        (b"\x08\x07", "a.onnx", None),
    ],
)
def test_what_it_is(head: bytes, name: str, said: str | None) -> None:
    got = what_it_is(head, name)
    assert (got is None) if said is None else (got is not None and said in got)
