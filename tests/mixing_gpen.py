"""GPEN networks whose answer is known: every colour of the picture mixed from its own, exactly.

With the published layout at a tiny size, and made weights that carry +x and -x of each colour past all convolutions to
the last to_rgb, as the embedded network's training starts. What goes in and comes out of a trade can then be checked
to the last digit: channel order, range, and what the network was shown.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from facefix.gpen import GPEN
from facefix.gpen_shape import GAIN, SLOPE

COPY = np.eye(3)


def mixing(matrix: ArrayLike = COPY, offset: ArrayLike = (0, 0, 0), size: int = 64) -> GPEN:
    """A network that makes matrix @ (r, g, b) + offset of every pixel, in its own range."""
    torch.manual_seed(0)
    model = GPEN.published(size, 1, 0.125)
    for name, parameter in model.named_parameters():
        if name.endswith("modulation.weight") or (".to_rgb" in name and name.endswith("conv.weight")):
            nn.init.zeros_(parameter)
        elif name.endswith("noise.weight"):
            nn.init.ones_(parameter)
    width = model.shape.channels[-1]
    first = model.get_parameter("ecd0.0.0.weight").data
    level = model.generator.to_rgbs[-1]
    last, bias = level.conv.weight.data, level.bias.data
    slope = GAIN**2 * (1 + SLOPE**2)
    first[:6] = 0
    for colour in range(3):
        first[2 * colour, colour], first[2 * colour + 1, colour] = math.sqrt(3), -math.sqrt(3)
        for made in range(3):
            share = float(np.asarray(matrix)[made, colour]) * math.sqrt(2 * width) / slope
            last[0, made, width + 2 * colour], last[0, made, width + 2 * colour + 1] = share, -share
    bias[0, :, 0, 0] = torch.tensor(np.asarray(offset, np.float32))
    return model.eval()


def of_pixels(matrix: ArrayLike = COPY, offset: ArrayLike = (0, 0, 0), size: int = 64) -> GPEN:
    """The same for a network of -1..1 that does it to pixels of 0..1."""
    matrix = np.asarray(matrix, float)
    return mixing(matrix, matrix @ np.ones(3) + 2 * np.asarray(offset, float) - 1, size)


def saved(model: GPEN, path: Path) -> Path:
    """The file, written as the published ones are: a plain state dict under .pth."""
    torch.save(model.state_dict(), path)
    return path
