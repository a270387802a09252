"""A small recogniser that OpenCV really runs, and the catalogue in which it stands as SFace."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from facefix import identity, weights
from facefix.types import Weight
from facefix.weights import Store

FILE = "face_recognition_sface_2021dec.onnx"


def written(
    path: Path, *, side: int = identity.SFACE.size, numbers: int = identity.NUMBERS, strength: float = 0.1
) -> Path:
    """A graph of SFace's shape: the means of 8 x 8 fields, less their middle, through made weights."""
    onnx = pytest.importorskip("onnx")
    make, single = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    matrix = (strength * rng.normal(0, 1, (numbers, 192))).astype(np.float32)
    # the pictures are 0..255; without their middle, all would point the same way
    bias = -127.5 * matrix.sum(axis=1)
    field = [side // 8, side // 8]
    graph = make.make_graph(
        [
            make.make_node("AveragePool", ["data"], ["fields"], kernel_shape=field, strides=field),
            make.make_node("Flatten", ["fields"], ["row"], axis=1),
            make.make_node("Gemm", ["row", "matrix", "bias"], ["fc1"], transB=1),
        ],
        "recogniser",
        [make.make_tensor_value_info("data", single, [1, 3, side, side])],
        [make.make_tensor_value_info("fc1", single, [1, numbers])],
        [
            make.make_tensor("matrix", single, matrix.shape, matrix.ravel()),
            make.make_tensor("bias", single, bias.shape, bias),
        ],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def stands_as_sface(file: Path, catalogue: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """The catalogue, in which the file is what is published as SFace."""
    sha256, size = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
    return tuple(
        dataclasses.replace(weight, sha256=sha256, bytes=size) if weight.name == identity.NAME else weight
        for weight in catalogue
    )


def put(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """The file of the small recogniser in the folder, where every default store finds it until the patch is undone."""
    file = written(folder / FILE)
    catalogue = stands_as_sface(file, Store.default().catalogue)
    patch.setattr(weights, "read_catalogue", lambda path: catalogue)
    patch.setenv("FACEFIX_WEIGHTS", str(folder))
    return file
