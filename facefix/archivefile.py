"""Zip archives of pickles, as torch writes them, become descriptions of tensors. Nothing in them ever runs.

Checkpoints of Lightning and TorchScript archives carry objects of any class; here every foreign class is inert, and
tensors are only made once their names are known, and only those asked for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

DEEPEST = 40
"""How many containers may lie in one another on the way to a tensor."""
LONGEST = 500
"""What is stored under a longer name is no tensor of a network."""
LARGEST = 4 << 30
"""What one entry of an archive may unpack to, bytes."""


class Stored(NamedTuple):
    """Where a tensor's numbers lie in the archive, and how they are laid out."""

    entry: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert(dict[Any, Any]):
    """Stands for an object of any foreign class: keeps what it is given, does nothing."""

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__()

    def __call__(self, *args: object, **named: object) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, value: object) -> None:
        """Nothing: lists lead to no named tensors."""

    extend = append


class Described(pickle.Unpickler):
    """Reads the archive's pickle as descriptions: no class of it is looked up, no tensor made, no function called.

    Args:
        archive: a zip file as torch writes it: a folder with data.pkl, and data/ with the numbers.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = archive.namelist()
        found = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(found) != 1:
            raise ValueError("a zip archive without a checkpoint in it")
        self.root = found[0].removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in names and entry_of(archive, order) != b"little":
            raise ValueError("numbers of another byte order")
        content = entry_of(archive, found[0])
        # Python's unpickler makes room for all places of its memo up to the largest that a pickle names
        memo = (int(number or 0) for code, number, _ in pickletools.genops(content) if code.name.endswith("PUT"))
        if max(memo, default=0) > max(len(content), 255):
            raise ValueError("a pickle that counts wrong")
        super().__init__(io.BytesIO(content))

    def find_class(self, module: str, name: str) -> Any:
        """What stands for the class of that name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        return type("Inert", (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        """The entry and dtype of the numbers that are kept beside the pickle."""
        _, dtype, key, _, _ = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError("numbers of an unknown kind")
        return f"{self.root}data/{key}", dtype

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Stored:
        entry, dtype = storage
        return Stored(entry, dtype, int(offset), tuple(map(int, size)), tuple(map(int, stride)))

    def _parameter(self, data: object, *_: object) -> object:
        return data

    def tensors(self) -> dict[str, Stored]:
        """All tensors that can be reached by names, under those names joined by dots."""
        found: dict[str, Stored] = {}
        seen: set[int] = set()
        root = self.load()
        left: list[tuple[tuple[str, ...], object]] = [((), root)]
        while left:
            way, value = left.pop()
            if isinstance(value, Stored):
                if sum(map(len, way)) + len(way) <= LONGEST:  # one long part, shared by many, would fill the memory
                    found[".".join(way)] = value
            elif isinstance(value, dict) and id(value) not in seen and len(way) < DEEPEST:
                seen.add(id(value))
                inner = [((*way, key), value) for key, value in dict.items(value) if isinstance(key, str)]
                left += reversed(inner)
        return found


STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def unpacked_bytes(archive: zipfile.ZipFile) -> Iterable[int]:
    """The sizes of the archive's entries."""
    return (entry.file_size for entry in archive.infolist())


def entry_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """The entry's bytes, checked against their checksum."""
    entry = archive.getinfo(name)
    if entry.file_size > LARGEST:
        raise ValueError(f"{name[:40]} unpacks to more than {LARGEST >> 30} GB")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name[:40]} is packed in another way than torch reads")
    return archive.read(name)


def made(archive: zipfile.ZipFile, wanted: Mapping[str, Stored]) -> State:
    """The tensors of these descriptions; those of one entry share its numbers."""
    read: dict[str, bytearray] = {}
    tensors: State = {}
    for name, stored in wanted.items():
        if stored.entry not in read:
            read[stored.entry] = bytearray(entry_of(archive, stored.entry))
        numbers = torch.frombuffer(read[stored.entry], dtype=stored.dtype)
        tensors[name] = torch.as_strided(numbers, stored.size, stored.stride, stored.offset)
    return tensors


def apart(state: State, stored: Mapping[str, Stored]) -> State:
    """The tensors, each with numbers of its own."""
    names_of = Counter(each.entry for each in stored.values())
    return {name: tensor.clone() if names_of[stored[name].entry] > 1 else tensor for name, tensor in state.items()}
