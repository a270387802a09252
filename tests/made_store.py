"""Stores in empty folders: of the true catalogue, and of four small records that a real server has the files of."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from facefix import weights
from facefix.download import Patience
from facefix.types import Weight
from facefix.weights import Store, read_catalogue

CATALOGUE = read_catalogue(Path(weights.__file__).with_name("weights.toml"))
RECORDS = {weight.name: weight for weight in CATALOGUE}
FREE = b"PK\x03\x04 free to use" * 100
CLOSED = b"PK\x03\x04 not for money" * 100


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a real server of the folder's files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def empty_store(folder: Path) -> Store:
    """The true catalogue over two empty folders."""
    return Store(
        catalogue=CATALOGUE,
        folders=(folder / "first", folder / "second"),
        config_folder=folder / "config",
        cache_folder=folder / "cache",
        patience=Patience(tries=1, backoff_s=0.01),
    )


def put(path: Path, data: bytes = b"PK\x03\x04", size: int | None = None) -> Path:
    """The path, at which now lies a file; with a size, its rest is a hole that takes no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if size is not None:
        os.truncate(path, size)
    return path


def small_records(address: str, folder: Path) -> tuple[Weight, ...]:
    """Four small records, free or not, with a published digest or without; the folder holds what the address serves."""
    (folder / "free.pth").write_bytes(FREE)
    (folder / "closed.pth").write_bytes(CLOSED)
    free = Weight(
        "free",
        "restorer",
        "gpen",
        ("Free.pth", "other_name.pt"),
        (f"{address}/gone.pth", f"{address}/free.pth"),
        sha256=hashlib.sha256(FREE).hexdigest(),
        bytes=len(FREE),
        licence="MIT",
    )
    closed = Weight(
        "closed", "restorer", "gpen", ("Closed.pth",), (f"{address}/closed.pth",), licence="NC", commercial=False
    )
    free_unpublished = dataclasses.replace(
        free, name="unpublished", files=("Unpublished.pth",), sha256=None, bytes=None, urls=(f"{address}/free.pth",)
    )
    free_md5 = dataclasses.replace(free_unpublished, name="md5", files=("md5.pth",), md5=hashlib.md5(FREE).hexdigest())
    return free, closed, free_unpublished, free_md5
