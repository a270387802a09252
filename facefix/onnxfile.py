"""An ONNX file becomes something that networks are called like, on ONNX Runtime (the extra `onnx`).

What a file takes and gives is read from its graph, never from its name: one picture in, (B, 3, S, S), one picture out,
(B, 3, T, T), both RGB of -1..1. That is what `scripts/export_onnx.py` writes and what other projects' exports of GPEN
do. A graph holds arithmetic only; nothing else in it can run.
"""

from __future__ import annotations

import importlib
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facefix.errors import DeviceError, WeightsInvalid

EXPECTED = "expected the ONNX graph of a face restorer, (B, 3, S, S) in and (B, 3, T, T) out"
_NAMES = re.compile(rb"generator[./]to_rgb")
_FIELDS = frozenset({0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42})
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_FULL = ("alloc", "out of memory")


def is_onnx(path: Path) -> bool:
    """Whether the file's first bytes are those of an ONNX graph: a version, then another field of the model."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return len(head) > 2 and head[0] == 0x08 and head[1] < 0x40 and head[2] in _FIELDS and head[8:9] != b"{"


class Graph:
    """A graph ready to run: (B, 3, in_size, in_size) float32 on the CPU -> (B, 3, out_size, out_size) float32.

    Args:
        path: the file.
        device: auto, cpu, cuda or cuda:N; auto is CUDA where ONNX Runtime can use it.

    Attributes:
        architecture: GPEN where the graph says or shows it, else ONNX.
        in_size: side of what it takes, px.
        out_size: side of what it gives, px.

    Raises:
        WeightsInvalid: ONNX Runtime is not installed or cannot read the file, or it holds another network.
        DeviceError: no such device for ONNX Runtime.
    """

    def __init__(self, path: Path, device: str | torch.device = "auto") -> None:
        try:
            self._ort = importlib.import_module("onnxruntime")
        except ImportError:
            raise WeightsInvalid(path, "is an ONNX graph, which needs `pip install 'facefix[onnx]'`") from None
        self._failures = _failures()
        self._session = self._opened(path, _providers(self._ort, device))
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        sizes = [_side(shape.shape) for shape in (*taken, *given[:1])]
        if len(taken) != 1 or not given or None in sizes or taken[0].type not in _TYPES:
            shapes = f"takes {_shown(taken)} and gives {_shown(given)}"
            raise WeightsInvalid(path, f"is another network: it {shapes}; {EXPECTED}")
        self._input, self._output, self._type = taken[0].name, given[0].name, _TYPES[taken[0].type]
        self.in_size, self.out_size = int(sizes[0] or 0), int(sizes[1] or 0)
        self._batch = taken[0].shape[0] if isinstance(taken[0].shape[0], int) else None
        told = self._session.get_modelmeta().custom_metadata_map.get("architecture")
        self.architecture = told or ("GPEN" if _shows_gpen(path) else "ONNX")

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, in_size, in_size) -> (B, 3, out_size, out_size); fixed batches run as often as it takes."""
        batch = np.ascontiguousarray(pictures.numpy(), self._type)
        step = self._batch or len(batch)
        parts = [self._run(batch[at : at + step], step) for at in range(0, len(batch), step)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))

    def _run(self, part: Any, step: int) -> Any:
        """The graph's answer; a part that is too short for its batch is filled up with its last picture."""
        whole = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
        try:
            return self._session.run([self._output], {self._input: whole})[0][: len(part)]
        except self._failures as error:
            line = _line(error)
            if any(sign in line.lower() for sign in _FULL):
                raise MemoryError(line) from None
            raise DeviceError(f"ONNX Runtime could not run the graph ({line}); export it again") from None

    def _opened(self, path: Path, providers: list[Any]) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = self._ort.InferenceSession(str(path), options, providers=providers)
        except self._failures as error:
            raise WeightsInvalid(path, f"is a damaged ONNX file ({_line(error)}); {EXPECTED}; get it again") from None
        asked = isinstance(providers[0], tuple)  # auto takes what there is
        if asked and "CUDAExecutionProvider" not in session.get_providers():
            raise DeviceError(
                "ONNX Runtime cannot use CUDA here; install the CUDA version that it asks for, or choose cpu"
            )
        return session


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its errors share no class of their own."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError, ValueError)


def _providers(ort: Any, device: str | torch.device) -> list[Any]:
    """What ONNX Runtime is to compute with, best first.

    Raises:
        DeviceError: it has no such device.
    """
    name = str(device)
    there = ort.get_available_providers()
    if name == "auto":
        return [each for each in ("CUDAExecutionProvider", "CPUExecutionProvider") if each in there]
    if name == "cpu":
        return ["CPUExecutionProvider"]
    if not name.startswith("cuda"):
        raise DeviceError(f"device {name}: an ONNX file runs on cpu or cuda; choose one of them")
    if "CUDAExecutionProvider" not in there:
        raise DeviceError(f"device {name}: this ONNX Runtime has no CUDA; `pip install onnxruntime-gpu`, or choose cpu")
    return [("CUDAExecutionProvider", {"device_id": torch.device(name).index or 0}), "CPUExecutionProvider"]


def _side(shape: list[Any]) -> int | None:
    """S of a shape (B, 3, S, S), or None where it is another one."""
    fits = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
    return shape[2] if fits else None


def _shown(tensors: list[Any]) -> str:
    """The shapes, at most three of them."""
    shapes = [f"({', '.join(str(side)[:20] for side in tensor.shape)})" for tensor in tensors]
    return (" and ".join(shapes[:3]) or "nothing") + (f" and {len(shapes) - 3} more" if len(shapes) > 3 else "")


def _shows_gpen(path: Path) -> bool:
    """Whether tensors or steps of the graph have the names that those of GPEN's decoder have."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _NAMES.search(content) is not None


def _line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without its tag."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    plain = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first)[:200]
    return "".join(c if c.isprintable() else "?" for c in plain)
