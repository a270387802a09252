"""A small LaMa generator with made weights, and the pictures that its recorded results were made from."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facefix.ffc import Generator, Shape

GOLDEN = Path(__file__).parent / "data" / "lama"
RECORD = json.loads((GOLDEN / "layout.json").read_text())
SMALL = Shape(widths=(8, 16, 32, 64), local=16, blocks=3)
TINY = Shape(widths=(4, 6, 8, 12), local=5, blocks=2)


def made_state(layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of these names and shapes, drawn by a rule from the name, as for the recorded results."""
    state = {}
    for name, shape in layout.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
        drawn = ((2 * ((raw >> np.uint64(11)) * 2.0**-53) - 1) * np.sqrt(3)).reshape(shape)
        if name.endswith("running_var"):
            drawn = 1 + 0.1 * np.abs(drawn)
        elif name.endswith("running_mean"):
            drawn = 0.05 * drawn
        elif name.endswith("bias"):
            drawn = 0.02 * drawn
        elif len(shape) == 1:
            drawn = 1 + 0.1 * drawn
        else:
            drawn = drawn * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(drawn.astype(np.float32)).to(dtype)
    return state


def made_generator(shape: Shape = SMALL, dtype: torch.dtype = torch.float32) -> Generator:
    return Generator.from_state(made_state(Generator.layout(shape), dtype))


def made_picture(height: int, width: int) -> np.ndarray:
    """(3, height, width) float32 in steps of 1/255."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    turn = 2 * np.pi
    red = 0.5 + 0.25 * np.sin(turn * x / 37) + 0.2 * np.cos(turn * y / 53)
    green = 0.5 + 0.3 * np.sin(turn * (x + y) / 61) * np.cos(turn * (x - y) / 47)
    blue = (x / (width - 1) + y / (height - 1)) / 2 + 0.1 * ((x // 16 + y // 16) % 2) - 0.05
    levels = np.rint(np.clip([red, green, blue], 0, 1) * 255).astype(np.uint8)
    return levels.astype(np.float32) / np.float32(255)


def made_hole(kind: str, height: int, width: int) -> np.ndarray:
    """(height, width) float32, 0 or 1: a "blob" and a bar, or "thin" strokes."""
    y, x = np.mgrid[0:height, 0:width]
    if kind == "blob":
        blob = ((x - 0.45 * width) / (0.22 * width)) ** 2 + ((y - 0.5 * height) / (0.27 * height)) ** 2 <= 1
        return (blob | ((abs(x - 0.8 * width) <= 0.06 * width) & (y >= 0.3 * height))).astype(np.float32)
    hole = np.zeros((height, width), np.float32)
    hole[height // 2 - 3 : height // 2 + 3, width // 8 : width - width // 8] = 1
    hole[height // 8 : height - height // 8, width // 3 : width // 3 + 5] = 1
    return hole
