"""A weight file becomes named tensors. Nothing in it ever runs.

`read_state` reads what is nothing but tensors: safetensors, and the state dicts that torch saves. `read_network` also
finds a network's tensors inside of checkpoints that carry other objects, such as Lightning's and TorchScript archives:
there every foreign class becomes inert, and tensors are only made once their names are known, and only those asked for.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from facefix.archivefile import Described, State, apart, entry_of, made, unpacked_bytes
from facefix.errors import WeightsInvalid, WeightsMissing

WRAPPERS = ("g_ema", "params_ema", "params", "state_dict")
EXPECTED = "expected a network's checkpoint (.pth, .pt or .safetensors)"
AGAIN = "download it again"
# What torch's reader runs into when the bytes make no sense to it.
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    struct.error,
)  # fmt: skip
SHARED, SMALL = 8, 64 << 20
"""What a file unpacks to, and tensors that share their numbers, may be so often its size, and so many bytes more."""


def read_state(path: Path, *, expected: str = EXPECTED) -> State:
    """The flat mapping of tensors that the file holds, on the CPU, without wrappers and `module.` prefixes.

    Raises:
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is none of ours, damaged, hostile, or holds NaN or infinite numbers.
    """
    kind = _kind(path, expected)
    found = _read_safetensors(path) if kind == "safetensors" else _read_pickle(path, kind, expected)
    return _sound(path, _unwrapped(path, found, expected), expected)


def read_network(path: Path, first: str, *, expected: str = EXPECTED) -> State:
    """The tensors of the network that has a tensor called `first`, wherever the file keeps it.

    Args:
        path: what `read_state` reads, or a zip archive of a pickle (Lightning, TorchScript), or a zip file that holds
            one `.ckpt` file.
        first: the full name of one tensor; what stands before it in the file is taken off all names.
        expected: what the file should have been, for messages.

    Raises:
        WeightsMissing: there is no such file.
        WeightsInvalid: as read_state; or there is no tensor of that name.
    """
    if _kind(path, expected) != "zip":
        state = read_state(path, expected=expected)
        return {name: state[stored] for name, stored in _under(path, state, first, expected).items()}
    try:
        with _opened(path, expected) as file, zipfile.ZipFile(file) as archive:
            _check_sum(path, unpacked_bytes(archive), expected)
            stored = Described(archive).tensors()
            wanted = {name: stored[full] for name, full in _under(path, stored, first, expected).items()}
            return apart(_sound(path, made(archive, wanted), expected), wanted)
    except (*DAMAGED, OSError, zipfile.BadZipFile, zlib.error, MemoryError, pickle.UnpicklingError) as error:
        raise WeightsInvalid(path, f"is damaged or truncated ({_line(error)}); {expected}; {AGAIN}") from None


def _sound(path: Path, state: State, expected: str) -> State:
    """The state itself, when all of it is plain finite numbers."""
    for name, tensor in state.items():
        # An expanded tensor of few stored numbers can claim to hold more than could ever be summed.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise WeightsInvalid(path, f"holds {name} not as plain numbers (sparse, expanded or none); {expected}")
    _check_sum(path, (tensor.numel() * tensor.itemsize for tensor in state.values()), expected)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum(dtype=torch.float32))):
            raise WeightsInvalid(path, f"tensor {name} holds NaN or infinite numbers; {AGAIN}")
    return state


def _check_sum(path: Path, sizes_bytes: Iterable[int], expected: str) -> None:
    """Nothing; thousands of names for the same numbers, or deflated zeros, are little in a file and fill the memory.

    Raises:
        WeightsInvalid: there are too many of them.
    """
    total, file_bytes = sum(sizes_bytes), path.stat().st_size
    if total > SHARED * file_bytes + SMALL:
        told = f"what is in it claims {total:,} bytes, far more than a file of {file_bytes:,} holds"
        raise WeightsInvalid(path, f"{told}; {expected}; do not trust it")


def _kind(path: Path, expected: str) -> str:
    """What the file's first bytes say it is: safetensors, zip or pickle."""
    if path.is_dir():
        raise WeightsInvalid(path, f"is a folder; {expected}")
    if not path.exists():
        raise WeightsMissing(f"{path}: no such file; {expected}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsInvalid(path, f"cannot be read ({error.strerror}); allow it or name another file") from error
    if not head:
        raise WeightsInvalid(path, f"is empty; {expected}; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsInvalid(path, f"is a Git LFS pointer, not the file itself; run `git lfs pull`, or {AGAIN}")
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body)", head, re.IGNORECASE):
        raise WeightsInvalid(path, f"is a web page, probably of the download site; {expected}; {AGAIN}")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # before it the header's length, whose bytes may be those that a pickle begins with
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and head[1] < 6:
        return "pickle"
    if re.match(rb"c\w+\n\w+\n", head):
        raise WeightsInvalid(path, f"is a pickle of the oldest kind, which only code can need; {expected}")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise WeightsInvalid(path, f"is a text file; {expected}")
    raise WeightsInvalid(path, f"is of no known kind (it begins with {head[:4].hex()}); {expected}")


def _read_safetensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsInvalid(path, f"is a damaged or truncated safetensors file ({_line(error)}); {AGAIN}") from None


def _read_pickle(path: Path, kind: str, expected: str) -> Any:
    """What torch reads from the file without running anything in it."""
    try:
        if kind == "zip" and not zipfile.is_zipfile(path):
            raise WeightsInvalid(path, f"is truncated: its table of contents is missing; {AGAIN}")
        # Torch takes the format from a path that ends so; given the open file it looks inside.
        if kind == "zip":
            with zipfile.ZipFile(path) as archive:
                _check_sum(path, unpacked_bytes(archive), expected)
        _check_calls(path, kind)
        mapped = kind == "zip" and path.suffix.lower() != ".safetensors" and _is_stored(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL `?([\w.]+)|(?<=global: )`?(?!GLOBAL)([\w.]+)", str(error))
        if wanted:
            raise WeightsInvalid(
                path,
                f"is a pickle that asks for {wanted[1] or wanted[2]}; it was not run, as only tensors are read: "
                "do not trust this file, or have its author save a plain state dict",
            ) from None
        if "Unsupported operand" in str(error):
            raise WeightsInvalid(
                path,
                "is a damaged pickle, or of a protocol that cannot be read without running what is in it; it was not "
                f"run; {expected}; {AGAIN}, or have its author save a plain state dict",
            ) from None
        raise WeightsInvalid(path, f"is a damaged or foreign pickle; {expected}; {AGAIN}") from None
    except (*DAMAGED, OSError, zipfile.BadZipFile, zlib.error) as error:
        what = "a TorchScript archive" if "torchscript" in str(error).lower() else "damaged or truncated"
        if kind == "zip" and re.search(r"data\.pkl|not in a subdirectory", str(error)):
            what = "a zip archive without a checkpoint in it"
        raise WeightsInvalid(path, f"is {what}; {expected}; {AGAIN}") from None


def _check_calls(path: Path, kind: str) -> None:
    """Nothing; torch itself calls `bytearray` and `_codecs.encode`, with which a few bytes of pickle fill the memory.

    Raises:
        pickle.UnpicklingError: it asks for one of them.
    """
    calls = re.compile(rb"c(\w+)\n(bytearray|encode)\n")
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.lower().endswith("data.pkl")]
            found = [call for name in entries for call in calls.findall(entry_of(archive, name))]
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = calls.findall(content)
    if found:
        raise pickle.UnpicklingError(f"GLOBAL {b'.'.join(found[0]).decode()}")


def _is_stored(path: Path) -> bool:
    """Whether nothing in the archive is compressed, as only then its bytes are the tensors' own."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _unwrapped(path: Path, found: Any, expected: str) -> State:
    """The tensors inside of what a checkpoint wraps them in."""
    for _ in range(3):
        inner = next((found[key] for key in WRAPPERS if isinstance(found, Mapping) and key in found), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise WeightsInvalid(path, f"holds {_article(found)}, not named tensors; {expected}")
    strange = next((name for name, value in found.items() if not isinstance(value, Tensor)), None)
    if strange is not None:
        raise WeightsInvalid(
            path, f"holds {_article(found[strange])} under {str(strange)[:40]!r}, not a tensor; {expected}"
        )
    state = {str(name): value.detach() for name, value in found.items()}
    _check_names(path, state, expected)
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check_names(path: Path, names: Iterable[str], expected: str) -> None:
    """Nothing; messages name tensors, and stay one short line."""
    odd = next((name for name in names if not name.isprintable() or len(name) > 200), None)
    if odd is not None:
        raise WeightsInvalid(path, f"holds a tensor under the name {odd[:40]!r}, which no network has; {expected}")


def _article(value: object) -> str:
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, Mapping) and not value else f"a value of type {kind}"


def _line(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "".join(c if c.isprintable() else "?" for c in first)


def _opened(path: Path, expected: str) -> IO[bytes]:
    """The archive itself, or the one checkpoint that it holds as a file."""
    with zipfile.ZipFile(path) as archive:
        _check_sum(path, unpacked_bytes(archive), expected)
        inside = [name for name in archive.namelist() if name.endswith(".ckpt")]
        if len(inside) == 1 and not any(name.endswith("data.pkl") for name in archive.namelist()):
            return io.BytesIO(entry_of(archive, inside[0]))
    return path.open("rb")


def _under(path: Path, names: Mapping[str, object], first: str, expected: str) -> dict[str, str]:
    """The names in the file by the names in the network."""
    there = next((name for name in names if name == first or name.endswith(f".{first}")), None)
    if there is None:
        _check_names(path, list(names)[:3], expected)
        shown = ", ".join(list(names)[:3]) or "none"
        raise WeightsInvalid(path, f"is another network (first tensors: {shown}); {expected}")
    before = there.removesuffix(first)
    inside = {name.removeprefix(before): name for name in names if name.startswith(before)}
    _check_names(path, inside, expected)
    return inside
