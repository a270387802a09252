"""Which photos there are, in a stable order, and where the result of each goes.

Places. One folder is mirrored into OUT itself; of several inputs each folder is mirrored under its own name, and a
named file goes to OUT. A quoted glob mirrors what fits below its fixed part. A list mirrors the paths as they are
written, without a leading / and without `..`.

Names. A result keeps the photo's name. Where its suffix has to change (scan.psd cannot be written, scan.jpg holds a
PNG), the new one is added to the whole name: scan.psd.png. So a name depends on the photo alone, not on the order in
which photos come. Two exceptions, told apart by 8 hex digits of the name's sha256: of names that differ only in upper
and lower case all but the first (a~2f3c8a11.jpg), and names that would become another photo's or be longer than 255
bytes.

Left alone: hidden files and folders (save those that a list names, but for the .facefix of any run), OUT itself,
results of single runs (.facefix. in the name), files without a picture's suffix. Files and folders come sorted by name,
a folder's files before its folders. Linked folders are followed only when asked, and then never into a folder that is
being walked. Memory grows with the largest single folder, some 200 bytes a name, not with the tree.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import glob
import hashlib
import os
import queue
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from facefix.errors import FacefixError, UsageError, shown
from facefix.imagefile import SUFFIXES
from facefix.jobs.database import FOLDER
from facefix.jobs.rows import Found, Mark

_LONGEST, _LONGEST_SUFFIX = 255, len(".tiff")
_NOTHING = Mark(0, 0, 0)
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Root:
    """A file or folder to begin with, absolute, and its place below OUT."""

    path: Path
    place: Path
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """A folder that could not be looked into, and why."""

    path: Path
    reason: str


class Walk:
    """The photos under the roots, one after the other; `others` and `links` count what was left alone.

    Args:
        roots: where to begin.
        out: the output folder, skipped wherever it is met.
        follow_links: go into linked folders, too.
    """

    def __init__(self, roots: Iterable[Root], out: Path, *, follow_links: bool = False) -> None:
        self.roots, self.follow_links = roots, follow_links
        self.others = self.links = 0
        self._out = _identity(out)

    def __iter__(self) -> Iterator[Found | Closed]:
        for root in self.roots:
            if FOLDER in root.place.parts:  # a list may name what a run keeps for itself; OUT has a place for its own
                self.others += 1
            elif root.is_folder:
                yield from self._folder(root)
            else:
                own, base = next(named([root.place.name]))
                yield Found(root.place, root.path, mark_at(root.path), own, base)

    def _folder(self, root: Root) -> Iterator[Found | Closed]:
        """The photos of a folder at any depth; a stack instead of recursion, for trees of any depth."""
        stack: list[tuple[str, Path, _Above]] = [(str(root.path), root.place, None)]
        while stack:
            folder, place, above = stack.pop()
            try:
                pictures, folders = self._listed(folder)
                if self.follow_links:
                    above = (_identity(Path(folder)), above)
            except OSError as error:
                yield Closed(Path(folder), f"{error.strerror or error}; allow it to be read")
                continue
            for name, (own, base) in zip(pictures, named(pictures), strict=True):
                path = Path(folder, name)
                yield Found(place / name, path, mark_at(path), own, base)
            for name in reversed(folders):
                path = Path(folder, name)
                if not (self.follow_links and path.is_symlink() and _stands_in(_identity(path), above)):
                    stack.append((str(path), place / name, above))

    def _listed(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folder's pictures and of its folders, sorted."""
        pictures: list[str] = []
        folders: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if _leads_to_folder(entry):
                    if entry.is_symlink() and not self.follow_links:
                        self.links += 1
                    elif not self._is_out(entry):
                        folders.append(name)
                elif os.path.splitext(name)[1].lower() in SUFFIXES and ".facefix." not in name:
                    pictures.append(name)
                else:
                    self.others += 1
        pictures.sort()
        folders.sort()
        return pictures, folders

    def _is_out(self, entry: os.DirEntry[str]) -> bool:
        if self._out is None or (entry.inode() != self._out[1] and not entry.is_symlink()):
            return False
        return _identity(Path(entry.path)) == self._out


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; of what cannot be looked at, the name decides."""
    try:
        return entry.is_dir()
    except OSError as error:  # a link that leads in a circle leads nowhere, like one to nothing
        return error.errno != errno.ELOOP and os.path.splitext(entry.name)[1].lower() not in SUFFIXES


class Ahead:
    """A walk that goes on in a thread of its own, a bounded way ahead of the one who takes what it meets."""

    def __init__(self, walk: Iterable[Found | Closed]) -> None:
        self._met: queue.Queue[list[Found | Closed] | Exception] = queue.Queue(4)
        self._closed = threading.Event()
        threading.Thread(target=self._go, args=(walk,), daemon=True).start()

    def _go(self, walk: Iterable[Found | Closed]) -> None:
        met: list[Found | Closed] = []
        try:
            for each in walk:
                met.append(each)
                if len(met) == _AT_ONCE:
                    self._offer(met)
                    met = []
            self._offer(met)
            self._offer(EOFError())
        except (OSError, FacefixError, ValueError) as error:
            self._offer(error)

    def _offer(self, met: list[Found | Closed] | Exception) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._met.put(met, timeout=0.5)
                return

    @property
    def has_met(self) -> bool:
        """Whether there is something to take at once."""
        return not self._met.empty()

    def take(self) -> list[Found | Closed]:
        """What was met since, a thousand at most; nothing where the walk is still looking.

        Raises:
            EOFError: the walk is over.
            OSError, FacefixError, ValueError: what the walk raised.
        """
        try:
            met = self._met.get_nowait()
        except queue.Empty:
            return []
        if isinstance(met, Exception):
            raise met
        return met

    def close(self) -> None:
        """Nothing; the walk ends at what it meets next."""
        self._closed.set()


_Identity = tuple[int, int] | None
_Above = tuple[_Identity, "_Above"] | None


def _identity(path: Path) -> _Identity:
    """Device and inode of what the path leads to, or None where it leads nowhere."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _stands_in(identity: _Identity, above: _Above) -> bool:
    while above is not None:
        if above[0] == identity:
            return True
        above = above[1]
    return False


def mark_at(path: Path) -> Mark:
    """The file's mark; all zeros where it cannot be looked at, which reading it will explain."""
    try:
        return Mark.of(os.stat(path))
    except OSError:
        return _NOTHING


def named(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """For each of a folder's sorted names its result's name with the suffix kept, and what a new suffix is added to.

    >>> list(named(["A.jpg", "a.jpg", "scan.psd"]))[::2]
    [('A.jpg', 'A.jpg'), ('scan.psd', 'scan.psd')]
    """
    seen: set[int] = set()
    for name in names:
        folded = hash(unicodedata.normalize("NFC", name).casefold())
        own = _marked(name) if folded in seen else name
        seen.add(folded)
        at = bisect.bisect_left(names, f"{name}.")
        becomes = at < len(names) and os.path.splitext(names[at])[0] == name
        too_long = len(os.fsencode(own)) + _LONGEST_SUFFIX > _LONGEST
        yield own, (_cut(name, _LONGEST - _LONGEST_SUFFIX) if becomes or too_long else own)


def _marked(name: str) -> str:
    """The name with its own digest before the suffix."""
    stem, suffix = os.path.splitext(name)
    return _cut(stem, _LONGEST - len(os.fsencode(suffix)), name) + suffix


def _cut(stem: str, longest: int, name: str | None = None) -> str:
    """The stem, cut where it is too long between two characters, and the digest of the name."""
    tag = "~" + hashlib.sha256(os.fsencode(name or stem)).hexdigest()[:8]
    whole = os.fsencode(stem)
    end = min(len(whole), longest - len(tag))
    while end < len(whole) and whole[end] & 0xC0 == 0x80:
        end -= 1
    return os.fsdecode(whole[:end]) + tag


def roots(inputs: Sequence[Path], out: Path) -> list[Root]:
    """The files and folders that the inputs name, globs expanded, each with its place.

    Raises:
        UsageError: an input is missing, lies in OUT or OUT in it, or two would go to the same place.
    """
    given: list[tuple[Path, Path, bool]] = []
    for path in inputs:
        if os.path.lexists(path) or not glob.has_magic(str(path)):
            given.append((path, Path(), False))
        else:
            given += _expanded(path, out)
    alone = len(inputs) == 1
    found: list[Root] = []
    for path, below, from_glob in given:
        absolute = Path(os.path.abspath(path))
        if not os.path.lexists(path):
            raise UsageError(f"{shown(path)}: expected a photo or a folder, got nothing by that name; check it")
        is_folder = os.path.isdir(path)
        if from_glob:
            place = below if alone else Path(absolute.parents[len(below.parts) - 1].name, below)
        else:
            place = Path(absolute.name or "root") if not (alone and is_folder) else Path()
            _outside(path, out, is_folder)
        found.append(Root(absolute, place, is_folder))
    _distinct(found)
    return found


def _expanded(pattern: Path, out: Path) -> list[tuple[Path, Path, bool]]:
    """What fits the pattern, each with its place below the pattern's fixed part; nothing hidden and nothing in OUT.

    Raises:
        UsageError: nothing fits.
    """
    parts = pattern.parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    deep = "**" in parts
    own = Path(os.path.realpath(out))
    fitting = []
    for name in sorted(glob.glob(str(pattern), recursive=True)):
        path = Path(name)
        named_picture = path.suffix.lower() in SUFFIXES and ".facefix." not in path.name
        is_folder = os.path.isdir(path)
        wanted = (is_folder and not deep) or (named_picture and not is_folder)
        if wanted and not Path(os.path.realpath(path)).is_relative_to(own):
            fitting.append((path, path.relative_to(fixed), True))
    if not fitting:
        raise UsageError(f"{shown(pattern)}: expected the names of photos or folders, got none that fits; check it")
    return fitting


def _outside(path: Path, out: Path, is_folder: bool) -> None:
    """Nothing, where neither of the input and the output folder lies in the other."""
    given, target = Path(os.path.realpath(path)), Path(os.path.realpath(out))
    if given.is_relative_to(target):
        raise UsageError(
            f"-o {shown(out)}: expected a folder of its own, got one that holds {shown(path)}; name another"
        )
    if is_folder and target.is_relative_to(given):
        told = f"expected a folder outside of {shown(path)}, got one inside"
        raise UsageError(f"-o {shown(out)}: {told}; a later run would take results for sources, so name another")


def _distinct(found: Sequence[Root]) -> None:
    """Nothing, where no two roots have one place and none lies in another."""
    by_place: dict[str, Root] = {}
    for root in found:
        other = by_place.setdefault(unicodedata.normalize("NFC", str(root.place)).casefold(), root)
        if other.path != root.path:
            told = f"{shown(other.path)} and {shown(root.path)}: expected two names, got {shown(Path(root.path.name))}"
            raise UsageError(f"{told} twice, and both would be written to one place; restore them to two folders")
    folders = {root.path for root in found if root.is_folder}
    for root in found:
        above = next((parent for parent in root.path.parents if parent in folders), None)
        if above is not None:
            raise UsageError(f"{shown(root.path)} lies in {shown(above)}, which is named, too; name only one of them")


def listed(file: BinaryIO) -> Iterator[Root]:
    """The roots that a list names, one a line; or each ended by a NUL, where the list begins with such a name.

    Args:
        file: the list, as `find -print` or `find -print0` write it; empty names are passed over.
    """
    chunk = file.read(1 << 16)
    end, rest = (b"\0" if b"\0" in chunk else b"\n"), b""
    while chunk:
        *names, rest = (rest + chunk).split(end)
        yield from map(_listed_root, filter(None, names))
        chunk = file.read(1 << 16)
    if rest:
        yield _listed_root(rest)


def _listed_root(name: bytes) -> Root:
    path = Path(os.fsdecode(name))
    parts = [part for part in Path(os.path.normpath(path)).parts if part not in (path.anchor, "..", ".")]
    return Root(Path(os.path.abspath(path)), Path(*parts), os.path.isdir(path))
