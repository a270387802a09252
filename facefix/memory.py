"""What is remembered from run to run: small JSON files, in which processes do not undo each other's entries."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from facefix.errors import UsageError


@dataclass(frozen=True, slots=True)
class Memory:
    """A file of entries by name; one that is not there is an empty one.

    Args:
        path: where it lies.
        strict: whether a damaged file is an error; else it is an empty one, too, and written anew.
    """

    path: Path
    strict: bool = True

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry, or None where there is none.

        Raises:
            UsageError: the file is damaged.
        """
        entry = self._entries().get(key)
        return entry if isinstance(entry, dict) else None

    def put(self, key: str, **entry: Any) -> None:
        """Nothing; the entry stands in the file.

        Raises:
            OSError: it cannot be written.
            UsageError: the file is damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            entries = self._entries() | {key: entry}
            fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                fresh.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                fresh.replace(self.path)
            finally:
                fresh.unlink(missing_ok=True)

    def _entries(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError:
            return {}
        except ValueError:
            entries = None
        if isinstance(entries, dict):
            return entries
        if self.strict:
            raise UsageError(f"{self.path}: expected JSON, got something else; delete it")
        return {}
