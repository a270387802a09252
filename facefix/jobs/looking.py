"""A claimed photo as it is now, before anybody restores it: hashed, and with what stands where its result is to go."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from facefix.errors import PhotoError, PhotoUnwritable
from facefix.jobs.files import file_sha256, inside, looked_at
from facefix.jobs.rows import Mark, Row
from facefix.jobs.workers import Run


@dataclass(frozen=True, slots=True)
class Looked:
    """A claimed photo that was looked at: as it is now, or why it cannot be done."""

    row: Row
    mark: Mark | None = None
    sha256: str = ""
    form: str = ""
    standing_sha256: str | None = None
    reason: str = ""

    @property
    def untouched(self) -> bool:
        """Whether a result of an earlier run stands there, as it was written."""
        return self.standing_sha256 is not None and self.standing_sha256 == self.row.target_sha256

    @property
    def result_name(self) -> str:
        """The name of the result: the photo's own where its suffix fits its format and can be written."""
        from facefix.imagefile import suffix_for
        from facefix.types import Meta

        suffix = suffix_for(Meta(source=self.row.place, format=self.form))
        return self.row.own if suffix == self.row.place.suffix else self.row.base + suffix


def look(row: Row, run: Run) -> Looked:
    """The photo as it is now, and what stands where its result does, if one was finished; or why it cannot be done."""
    try:
        mark, sha256, form = looked_at(row.source, max_pixels=run.max_pixels)
        standing = None
        if row.target is not None and row.target_sha256 is not None:
            with contextlib.suppress(OSError, PhotoUnwritable):
                standing = file_sha256(inside(run.out, row.target.parent) / row.target.name)
        return Looked(row, mark, sha256, form, standing)
    except PhotoError as error:
        return Looked(row, reason=str(error))
