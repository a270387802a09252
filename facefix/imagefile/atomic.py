"""Bytes that get to their name in one step, and stay there through a power cut."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from facefix.errors import PhotoUnwritable
from facefix.imagefile.found import one_line

_EXISTS = "exists already; choose another name or allow overwriting"
_Told = TypeVar("_Told")


def atomically(path: Path, fill: Callable[[BinaryIO], _Told], overwrite: bool) -> _Told:
    """What `fill` returns; its bytes stand at `path`, and are on the disk, when this returns.

    They go to a temporary file in the same folder, and from there to their name in one step: nobody ever sees half a
    file, and after an error there is nothing.

    Args:
        path: where to.
        fill: writes the bytes to the file that it is given.
        overwrite: replace a file that is there.

    Raises:
        PhotoUnwritable: the name exists, the folder cannot be written, the disk is full, …
    """
    if not overwrite and os.path.lexists(path):
        raise PhotoUnwritable(path, _EXISTS)
    temporary = path.with_name(f".facefix-{secrets.token_hex(8)}.tmp")  # short, however long the name is
    try:
        with open(temporary, "xb") as file:
            told = fill(file)
            file.flush()
            os.fsync(file.fileno())
        if overwrite and path.exists():
            shutil.copymode(path, temporary)
        _rename(temporary, path, overwrite)
    except FileExistsError as error:
        raise PhotoUnwritable(path, _EXISTS) from error
    except (OSError, ValueError, RuntimeError, MemoryError, struct.error) as error:
        problem = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise PhotoUnwritable(path, f"it could not be written ({problem}); check the folder and the disk") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return told


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, path)  # unlike a rename, fails where another process was quicker
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError from None
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Makes the new name last through a power cut, where the system can do that for folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
