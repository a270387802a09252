"""The names of weight files: how they are compared, and the files that go by one.

Names match without regard to case, `-` or `_`, with or without suffix, by record name, alias or any name the file goes
by. An ONNX export is another file than the network in torch's formats; those hold the same.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from facefix.download import TORCH_SUFFIXES
from facefix.types import Weight

SUFFIXES = TORCH_SUFFIXES | {".safetensors", ".onnx"}

Listing = Mapping[str, list[Path]]
"""The weight files of a folder by their names as names are compared."""


def suffix_of(name: str) -> str:
    """The name's suffix where it is one of a weight file: `GFPGANv1.4` has none."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


def key_of(name: str) -> str:
    """The name as names are compared."""
    name = name.strip()
    return name[: len(name) - len(suffix_of(name))].casefold().replace("_", "-")


def names_of(weight: Weight) -> tuple[str, ...]:
    """All names that the record goes by."""
    return (weight.name, *weight.aliases, *weight.files)


def _same_network(suffix: str, published: str) -> bool:
    """Whether files with these suffixes may hold the same network: an ONNX export is another file altogether."""
    torch_like = TORCH_SUFFIXES | {".safetensors"}
    return suffix in ("", published) or (suffix in torch_like and published in torch_like)


def goes_by(weight: Weight, name: str) -> bool:
    """Whether this name, with or without suffix, means the record."""
    key, suffix = key_of(name), suffix_of(name)
    return _same_network(suffix, suffix_of(weight.files[0])) and any(key_of(known) == key for known in names_of(weight))


def listing_of(folder: Path) -> Listing:
    """The folder's weight files; none where there is no such folder."""
    listing: dict[str, list[Path]] = {}
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return listing
    for entry in entries:
        if suffix_of(entry) and not entry.startswith("."):
            listing.setdefault(key_of(entry), []).append(folder / entry)
    return listing


def files_called(name: str, listing: Listing) -> Iterable[Path]:
    """The files of a folder that go by this name, the one spelled exactly so first."""
    for path in sorted(listing.get(key_of(name), ()), key=lambda path: path.name != name):
        if _same_network(suffix_of(name) or suffix_of(path.name), suffix_of(path.name)) and path.is_file():
            yield path


def packaged(url: str) -> Path | None:
    """The file that a "package:NAME/FILE" address means, where that package is installed; it is not imported."""
    if not url.startswith("package:"):
        return None
    package, _, inside = url.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / inside).is_file():
            return Path(root) / inside
    return None
