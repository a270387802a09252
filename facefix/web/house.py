"""What the tabs of the page share: folders, limits, loaded networks, and what is kept for each visitor.

All files that a browser sends or is shown lie in one folder of their own, `House.root`: uploads, and one folder for
each visitor with a name that nobody can guess. Nothing else on the disk is served. What a visitor has not touched for
`keep_seconds` is removed, and all of it when the server ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from filelock import FileLock, Timeout

from facefix import imagefile
from facefix.errors import PhotoRefused, UsageError
from facefix.pipeline import FaceFix
from facefix.recipe import Recipe
from facefix.types import Photo
from facefix.weights import Store

KEEP_SECONDS = 3600.0
NETWORKS: dict[str, Any] = {"concurrency_id": "networks", "concurrency_limit": 1}
"""How what runs networks waits in gradio's queue: one after the other, whichever tab it is from."""
MEGABYTE = 2**20
MAX_BYTES = 200 * MEGABYTE
MAX_PIXELS = 100_000_000
_PREFIX = "facefix-web-"
_KEPT_BYTES = 4_000_000_000
_LOADED = 3
_LOADS_SOMETHING = ("restorer", "detector", "mask_from", "upscaler", "precision")
_FRESH_SECONDS = 60


class Asker(Protocol):
    """What is asked of a request: `gradio.Request` has it."""

    session_hash: str | None
    username: str | None


@dataclasses.dataclass(slots=True)
class Visit:
    """One visitor's folder, and what is kept in memory for them, by name.

    Args:
        folder: theirs alone.
        used_at: when they last did something, on the monotonic clock.
        kept: values and about how many bytes each takes.
        in_hand: the photo of which each of those is being made, see `check_in_hand`.
        lock: held while something of theirs is changed.
    """

    folder: Path
    used_at: float
    kept: dict[str, tuple[Any, int]] = dataclasses.field(default_factory=dict)
    in_hand: dict[str, Path] = dataclasses.field(default_factory=dict)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def get(self, name: str) -> Any:
        """What is kept under this name, or None where nothing is any more."""
        return self.kept.get(name, (None, 0))[0]

    def drop(self, name: str) -> None:
        """Remove a piece of work that is kept under this name, and its folder."""
        work = self.get(name)
        self.kept.pop(name, None)
        self.in_hand.pop(name, None)
        if work is not None:
            shutil.rmtree(work.folder, ignore_errors=True)

    def check_in_hand(self, name: str, photo: Path) -> None:
        """Nothing, as long as what is kept under this name shall be made of this photo.

        Gradio lets a run go on that its page has given up.

        Raises:
            PhotoRefused: the photo was taken away, and maybe another given.
        """
        if self.in_hand.get(name) != photo:
            raise PhotoRefused(photo, "expected a photo to work on, got it taken away; give it again")

    def new_folder(self) -> Path:
        """An empty folder inside the visitor's own."""
        folder = self.folder / secrets.token_urlsafe(12)
        folder.mkdir()
        return folder


class House:
    """What all tabs share; a server has one.

    Args:
        input_dir: the folder of the server whose photos the archive tab may read; None for none.
        output_dir: the folder it may write to.
        device: where networks run: auto, cpu, cuda, cuda:N or mps.
        store: where weights lie; `Store.default()` without one.
        max_bytes: the largest upload.
        max_pixels: the largest photo, by its width times height.
        keep_seconds: how long a visitor's things are kept after they last did something.
        parent: where `root` is made; the system's folder for temporary files without one.

    Attributes:
        root: the one folder from which files are served.
        one_at_a_time: held while networks run: the device is one, and its memory, too.
    """

    def __init__(
        self,
        *,
        input_dir: Path | None = None,
        output_dir: Path | None = None,
        device: str = "auto",
        store: Store | None = None,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        keep_seconds: float = KEEP_SECONDS,
        parent: Path | None = None,
    ) -> None:
        if input_dir is not None and not os.path.isdir(input_dir):
            raise UsageError(f"--input-dir {input_dir}: expected a folder, got none; make it or name another")
        self.input_dir = None if input_dir is None else input_dir.resolve()
        self.output_dir = None if output_dir is None else output_dir.resolve()
        self.device, self.store = device, store or Store.default()
        self.max_bytes, self.max_pixels, self.keep_seconds = max_bytes, max_pixels, keep_seconds
        self.one_at_a_time = threading.Lock()
        self._visits: dict[tuple[str, str], Visit] = {}
        self._loaded: OrderedDict[tuple[Any, ...], FaceFix] = OrderedDict()
        self._lock = threading.Lock()
        above = parent or Path(tempfile.gettempdir())
        _remove_abandoned(above)
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=above)).resolve()
        self._in_use = FileLock(self.root / ".lock")
        self._in_use.acquire()
        self._at_close: list[Callable[[], None]] = []
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_often, name="facefix-web-sweep", daemon=True)
        self._sweeper.start()

    def at_close(self, end: Callable[[], None]) -> None:
        """Have this called when the server ends, before anything is removed."""
        self._at_close.append(end)

    def close(self) -> None:
        """End what was begun, and remove everything that was kept."""
        for end in self._at_close:
            end()
        self._closing.set()
        self._sweeper.join()
        self._visits.clear()
        self._in_use.release()
        shutil.rmtree(self.root, ignore_errors=True)

    def visit(self, request: Asker) -> Visit:
        """What is kept for whoever asks; a new visit for one who has none, or who does not say who they are."""
        hash = request.session_hash or secrets.token_urlsafe(24)
        key = (hash, request.username or "")
        with self._lock:
            visit = self._visits.get(key)
            if visit is None:
                folder = self.root / secrets.token_urlsafe(24)
                folder.mkdir()
                visit = self._visits[key] = Visit(folder, time.monotonic())
            visit.used_at = time.monotonic()
            return visit

    def keep(self, visit: Visit, name: str, value: Any, size_bytes: int) -> None:
        """Keep a value for a visitor; where all visitors' become too many, the longest unused go."""
        with self._lock:
            visit.kept[name] = (value, size_bytes)
            total = sum(size for each in self._visits.values() for _, size in each.kept.values())
            for other in sorted(self._visits.values(), key=lambda each: each.used_at):
                if total <= _KEPT_BYTES:
                    break
                if other is not visit:
                    total -= sum(size for _, size in other.kept.values())
                    other.kept.clear()

    def facefix(self, recipe: Recipe) -> FaceFix:
        """The recipe's FaceFix; what it loads is shared with other recipes that load the same.

        Raises:
            FacefixError: as `FaceFix.load`.
        """
        values = recipe.values()
        key = (*(values[name] for name in _LOADS_SOMETHING), recipe.scale if recipe.upscaler != "lanczos" else 1)
        with self._lock:
            loaded = self._loaded.get(key)
            if loaded is not None:
                self._loaded.move_to_end(key)
        if loaded is None:
            loaded = FaceFix.load(recipe, device=self.device, store=self.store)
            with self._lock:
                self._loaded[key] = loaded
                while len(self._loaded) > _LOADED:
                    self._loaded.popitem(last=False)
        return loaded.with_recipe(recipe)

    def received(self, upload: str | Path, visit: Visit) -> Path:
        """An upload's file in a new folder of its visitor, where it stays for as long as their things do.

        Raises:
            PhotoRefused: it is no upload, or larger than the limit.
        """
        path = Path(upload)
        if not path.resolve().is_relative_to(self.root) or not path.is_file() or path.is_symlink():
            raise PhotoRefused(None, "expected a file that was uploaded here, got another; upload it again")
        size = path.stat().st_size
        if size > self.max_bytes:
            limit = f"expected at most {self.max_bytes / MEGABYTE:,.0f} MB, got {size / MEGABYTE:,.1f} MB"
            raise PhotoRefused(path, f"{limit}; send a smaller file, or start the server with --max-megabytes")
        with contextlib.suppress(OSError):
            os.utime(path.parent)  # its hour counts from its last use
        target = visit.new_folder() / path.name
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
        return target

    def read(self, path: Path) -> Photo:
        """The photo in a file that was received, within the limits.

        Raises:
            PhotoError: no picture, damaged, or too large.
        """
        return imagefile.read(path, max_pixels=self.max_pixels)

    def url(self, path: Path) -> str:
        """Where a browser gets a file of `root`, as a path below the page's address."""
        return f"gradio_api/file={quote(path.as_posix())}"

    def sweep(self) -> None:
        """Remove what was not used for `keep_seconds`: visits with their folders, and uploads."""
        now, gone = time.monotonic(), []
        with self._lock:
            for key, visit in list(self._visits.items()):
                if now - visit.used_at > self.keep_seconds:
                    gone.append(self._visits.pop(key).folder)
            kept = {visit.folder.name for visit in self._visits.values()}
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        oldest = time.time() - self.keep_seconds
        for entry in self.root.iterdir():
            if entry.name in kept or entry.name == ".lock":
                continue
            with contextlib.suppress(OSError):  # another sweep, or the upload's end, may be first
                if entry.stat().st_mtime < oldest:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _sweep_often(self) -> None:
        while not self._closing.wait(min(60.0, self.keep_seconds / 4)):
            self.sweep()


def _remove_abandoned(above: Path) -> None:
    """Removes the folders of servers that ended without doing so: nobody holds their locks."""
    for folder in above.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - folder.stat().st_mtime > _FRESH_SECONDS and not folder.is_symlink():
                with FileLock(folder / ".lock", timeout=0):
                    pass
                shutil.rmtree(folder, ignore_errors=True)
