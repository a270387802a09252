"""Engines of Stable Diffusion and SDXL at a tiny size, what they are to fill, and what their networks are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facefix.inpaint import diffusion
from facefix.inpaint.diffusion import Diffusion
from facefix.types import Mask, Pixels

MODELS = {"sd4": (4, False), "sd9": (9, False), "xl4": (4, True), "xl9": (9, True)}


def loaded(folder: Path, **settings: Any) -> Diffusion:
    kind = "sdxl" if folder.name.startswith("xl") else "sd"
    return diffusion.load(folder, **{"kind": kind, "device": "cpu", "precision": "float32", "steps": 3, **settings})


def scene_of(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def hole_of(height: int, width: int, rows: slice, columns: slice) -> Mask:
    hole = np.zeros((height, width), np.float32)
    hole[rows, columns] = 1
    return hole


SCENE, HOLE = scene_of(64, 64), hole_of(64, 64, slice(21, 42), slice(19, 33))


@contextmanager
def watched(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What the module is called with, first argument only."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        yield seen
    finally:
        hook.remove()
