"""Files as the jobs treat them: looked at before they are read, put in place in one step, and never outside of OUT."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from facefix.errors import PhotoRefused, PhotoUnreadable, PhotoUnwritable
from facefix.jobs.rows import Mark

CHANGED = "it changed while it was being read; run the same command again"


def inside(out: Path, below: Path) -> Path:
    """The folder `below` OUT, made where it is missing.

    Raises:
        PhotoUnwritable: the way there leads out of OUT, or it cannot be made.
    """
    from facefix.imagefile import sync_folder

    folder = out
    if below.is_absolute() or ".." in below.parts:
        raise PhotoUnwritable(below, "expected a way below the output folder, got one that leads out of it")
    for part in below.parts:
        folder = folder / part
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                sync_folder(folder.parent)
            mode = os.lstat(folder).st_mode
        except OSError as error:
            raise PhotoUnwritable(folder, f"{error.strerror}; name a folder that can be written") from error
        if not stat.S_ISDIR(mode):
            kind = "a link, which may lead out of it" if stat.S_ISLNK(mode) else "a file"
            raise PhotoUnwritable(folder, f"expected a folder of the output folder, got {kind}; remove it")
    return folder


def put(staged: Path, target: Path, *, replace: bool) -> None:
    """Nothing; the staged file stands at `target`, put there in one step, and lasts through a power cut.

    What stands there already is kept, unless it is to be replaced or holds the same bytes: then a hand that was given
    up for lost has put it there after all.

    Raises:
        PhotoUnwritable: another file stands there, and it is not to be replaced.
        OSError: the file system refuses.
    """
    from facefix.imagefile import sync_folder

    with open(staged, "rb") as file:  # its time, too
        os.fsync(file.fileno())
    if not replace:
        try:
            os.link(staged, target)  # unlike a rename, fails where something stands there
        except OSError as error:  # and on file systems without hard links
            if os.path.lexists(target) and not _same(staged, target):
                reason = "exists already and is not ours; move it away or pass --overwrite"
                raise PhotoUnwritable(target, reason) from FileExistsError(errno.EEXIST, str(error))
            replace = True
    if replace:
        os.replace(staged, target)
    else:
        os.unlink(staged)
    sync_folder(target.parent)


def _same(one: Path, other: Path) -> bool:
    return not other.is_symlink() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def emptied(folder: Path) -> None:
    """Nothing; the folder is there, with nothing in it. A link or a file of its name is removed.

    Raises:
        OSError: the file system refuses.
    """
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    folder.mkdir()


def forget(faces: Path, works: Callable[[str], Collection[str]]) -> None:
    """Nothing; of what is stored to take faces back only that is left which belongs to such work.

    Args:
        faces: OUT/.facefix/faces, with a folder for the first two digits of a work, and in it one for each work.
        works: gives the works that begin with some digits.
    """
    for group in _folders(faces, 2):
        wanted = works(group.name)
        for each in _folders(group, 64):
            if each.name not in wanted:
                shutil.rmtree(each, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are in it
            group.rmdir()


def _folders(folder: Path, digits: int) -> list[Path]:
    """The folders in a folder whose names are so many hex digits; none in a link."""
    try:
        found = [] if folder.is_symlink() else list(os.scandir(folder))
    except OSError:
        return []
    named = re.compile(f"[0-9a-f]{{{digits}}}")
    return [Path(entry) for entry in found if named.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]


def looked_at(source: Path, *, max_pixels: int) -> tuple[Mark, str, str]:
    """The file's mark, the sha256 of its bytes, and the format they announce; nothing but files is opened.

    Raises:
        PhotoUnreadable: it is gone, cannot be read, is no picture, or changes meanwhile.
        PhotoRefused: larger than any picture of `max_pixels` can be.
    """
    from facefix.imagefile.decode import sniff
    from facefix.imagefile.found import UndecodableError

    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise PhotoUnreadable(source, "expected a file, got a folder, device or pipe; give a picture file")
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb", buffering=0) as file:
            mark = Mark.of(os.fstat(handle))
            limit = 8 * max_pixels + (256 << 20)
            if mark.bytes > limit:
                told = f"expected at most {limit:,} bytes for {max_pixels:,} pixels, got {mark.bytes:,}"
                raise PhotoRefused(source, f"{told}; allow more with --max-pixels")
            form = sniff(file.read(64))
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if Mark.of(os.fstat(handle)) != mark:
                raise PhotoUnreadable(source, CHANGED)
    except UndecodableError as error:
        raise PhotoUnreadable(source, str(error)) from error
    except OSError as error:
        raise PhotoUnreadable(source, f"{error.strerror or error}; check the file") from error
    return mark, sha256, form


def file_sha256(path: Path) -> str:
    """The sha256 of the file's bytes, 64 hex digits."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_bytes() -> int:
    """The largest memory that this process has had, 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
