"""The errors facefix raises on purpose.

    FacefixError
    ├── UsageError            a setting or argument that cannot work            exit 2
    ├── PhotoError            one photo cannot be read, restored or written     exit 1
    │   ├── PhotoUnreadable
    │   ├── PhotoRefused      larger than the limits allow, or not ours to touch
    │   └── PhotoUnwritable
    ├── WeightsError                                                            exit 3
    │   ├── WeightsMissing    the file is in no store
    │   ├── WeightsNotAccepted  its licence asks for consent first
    │   ├── WeightsInvalid    the file is not what it should be
    │   └── DownloadFailed
    ├── FaceError             one face cannot be restored; the photo goes on
    │   └── DegenerateLandmarks
    ├── JournalError          what is kept of many photos cannot be used        exit 2
    └── DeviceError           no such device or precision, or out of memory     exit 2

Every message is one line: what is wrong, with which file, and the next step.
A caller that wants to act on an error finds its data in the attributes.
"""

from __future__ import annotations

import os
from pathlib import Path


def shown(path: Path) -> str:
    """The path on one line and printable: newlines, control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def text_of(path: Path) -> str:
    """The path as text that any terminal and JSON reader takes; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(count: int, what: str) -> str:
    """The count and what is counted: 1 photo, 2 photos."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class FacefixError(Exception):
    """What is wrong in one line, ending in the next step to take."""

    exit_code = 1


class UsageError(FacefixError):
    """A setting or an argument cannot work as given."""

    exit_code = 2


class PhotoError(FacefixError):
    """One photo could not be done; others are not concerned.

    Args:
        path: the photo's file, or None for a photo that came as an array.
        problem: what is wrong and what to do, without the path.
    """

    def __init__(self, path: Path | None, problem: str) -> None:
        super().__init__(f"{shown(path)}: {problem}" if path is not None else problem)
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[PhotoError], tuple[Path | None, str]]:
        return type(self), (self.path, self.problem)


class PhotoUnreadable(PhotoError):
    """The file is not a picture that can be read."""


class PhotoRefused(PhotoError):
    """The picture is larger than the limits allow."""


class PhotoUnwritable(PhotoError):
    """The result could not be written; nothing was left under its name."""


class WeightsError(FacefixError):
    """A weight file cannot be used."""

    exit_code = 3


class WeightsMissing(WeightsError):
    """The named weight file is in no store; the message says where to put it."""


class WeightsNotAccepted(WeightsError):
    """The weight file's licence asks for consent, which was not given yet."""


class WeightsInvalid(WeightsError):
    """The file is damaged, hostile, or holds another network.

    Args:
        path: the file.
        problem: what it is and what was expected, without the path.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{shown(path)}: {problem}")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[WeightsInvalid], tuple[Path, str]]:
        return type(self), (self.path, self.problem)


class DownloadFailed(WeightsError):
    """No address gave the file that was asked for."""


class FaceError(FacefixError):
    """One face could not be restored; it stays as it is and is reported."""


class DegenerateLandmarks(FaceError):
    """The five points do not fix a position, size and angle."""


class JournalError(FacefixError):
    """The journal of an output folder is missing, damaged, of another version, or in another process's hands.

    Args:
        path: the file or folder.
        problem: what is wrong and what to do, without the path.
    """

    exit_code = 2

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{shown(path)}: {problem}")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type[JournalError], tuple[Path, str]]:
        return type(self), (self.path, self.problem)


class DeviceError(FacefixError):
    """The device or precision is not available here, or its memory ran out."""

    exit_code = 2
