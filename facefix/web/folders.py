"""The folders of the server that a visitor may name, by their ways below the input and the output folder."""

from __future__ import annotations

import os
from pathlib import Path

from facefix.errors import UsageError, shown

_MOST = 500


def given(folder: Path | None) -> Path:
    """The folder that the server was started with.

    Raises:
        UsageError: it was started without.
    """
    if folder is None:
        raise UsageError("expected a server with --input-dir and --output-dir, got one without; start it with both")
    return folder


def inside(base: Path, named: str, what: str) -> Path:
    """The folder of that name below a folder of the server, with links followed.

    Args:
        base: the folder, without links.
        named: a way below it, as a visitor writes it.
        what: what the folder is for, in a word.

    Raises:
        UsageError: it leads out of it.
    """
    name = named.strip()
    try:
        real = Path(os.path.realpath(base / name))
    except (OSError, ValueError):
        real = Path(os.sep)
    if ".." in Path(name).parts or not real.is_relative_to(base):
        what = f"expected a folder inside the server's {what} folder, got a way out of it"
        raise UsageError(f"{shown(Path(name))}: {what}; choose one of the list")
    return real


def folders(base: Path | None) -> list[str]:
    """The folders below a folder of the server, as a visitor chooses among them: at most some hundred, none hidden."""
    found, ahead = list[str](), [Path()] if base is not None else []
    while ahead and len(found) < _MOST:
        below_base = ahead.pop(0)
        try:
            with os.scandir(base / below_base if base is not None else below_base) as entries:
                names = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
        except OSError:
            continue
        inner = [below_base / name for name in names if not name.startswith(".") and shown(Path(name)) == name]
        found += map(str, inner)
        ahead += inner
    return sorted(found[:_MOST])


def below(folder: Path, line: str) -> str:
    """The line with names as they are below the folder: where the server keeps it is nobody's business."""
    return line.replace(f"{shown(folder)}{os.sep}", "")


def name_of(path: Path, base: Path) -> str:
    """What the page calls a folder of the server."""
    return shown(path.relative_to(base)) if path.is_relative_to(base) else path.name
