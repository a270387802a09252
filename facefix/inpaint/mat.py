"""MAT fills holes of photos with what such places look like: large holes, several candidates, no words.

`Places_512_FullData_G.pth` is the generator of the Mask-Aware Transformer (Li et al., CVPR 2022, arXiv 2203.15270), a
GAN trained on photos of places at 512 px. It is not a Stable Diffusion model: it takes no prompt, and nothing but a
seed tells one fill from another. Its code and weights are CC BY-NC 4.0, so neither is part of facefix. The code is
reached through spandrel_extra_arches, which the extra `mat-noncommercial` installs.

The network takes squares of 512 px and multiples. Each hole gets a square of its surroundings, filled at 512 or
1024 px; a photo as a whole is never padded to such a square.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facefix import runtime
from facefix.errors import DeviceError, UsageError, WeightsInvalid
from facefix.inpaint import Progress
from facefix.statefile import read_state
from facefix.types import Mask, Pixels

PACKAGE = "spandrel_extra_arches"
EXPECTED = "expected a MAT checkpoint such as Places_512_FullData_G.pth (.pth or .safetensors)"
FIRST = "synthesis.first_stage.conv_first.conv.resample_filter"
SMALL, LARGE = 512, 1024
"""Sides that the network computes at, px."""
MOST_OF_SIDE = 0.78
"""How much of a square's side its hole may take."""
STYLES = 512


class Network(Protocol):
    """The network: picture (1, 3, S, S) and hole (1, 1, S, S), both 0..1, to the filled picture."""

    z: Tensor
    """(1, 512), what a fill is drawn from."""

    def __call__(self, image: Tensor, mask: Tensor) -> Tensor:
        """(1, 3, S, S), 0..1."""


@dataclass(frozen=True, slots=True)
class Square:
    """Where one pass looks: from (x0, y0), `side` px of the photo, whatever of them lies beyond its border.

    Args:
        x0, y0: the upper left corner, in the photo.
        side: of the square, in photo pixels.
        holes: numbers of the holes that it fills.
    """

    x0: int
    y0: int
    side: int
    holes: tuple[int, ...]


class Mat:
    """MAT as an engine.

    Args:
        network: MAT, in evaluation mode.
        device: where it computes.
        name: what reports call it.
    """

    takes_prompt = False

    def __init__(self, network: Network, device: torch.device, name: str) -> None:
        self.network = network
        self.device = device
        self.name = name

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its holes filled, the largest first; another seed fills them otherwise.

        Raises:
            DeviceError: the memory does not suffice for 512 px.
        """
        filled = scene.copy()
        left = hole.copy()
        numbers, squares = plan(hole)
        with _seeded(seed, self.device):
            for done, square in enumerate(squares, start=1):
                self._fill_square(filled, left, numbers, square)
                if progress is not None:
                    progress(done, len(squares))
        return filled

    def _fill_square(self, scene: Pixels, hole: Mask, numbers: NDArray[np.int32], square: Square) -> None:
        """Nothing; the square's holes are filled in the scene, and no longer in the hole."""
        height, width = hole.shape
        rows, columns = _indices(square.y0, square.side, height), _indices(square.x0, square.side, width)
        near, near_hole = scene[np.ix_(rows, columns)], hole[np.ix_(rows, columns)]
        drawn = self._drawn(near, near_hole, LARGE) if square.side > SMALL else None
        if drawn is None:
            drawn = self._drawn(near, near_hole, SMALL)
        if drawn is None:
            raise DeviceError(f"out of memory with MAT at {SMALL} px; choose another device or engine")
        top, left = max(square.y0, 0), max(square.x0, 0)
        bottom, right = min(square.y0 + square.side, height), min(square.x0 + square.side, width)
        inside = drawn[top - square.y0 : bottom - square.y0, left - square.x0 : right - square.x0]
        here = np.isin(numbers[top:bottom, left:right], square.holes)
        scene[top:bottom, left:right][here] = inside[here]
        hole[top:bottom, left:right][here] = 0

    def _drawn(self, near: Pixels, hole: Mask, size: int) -> Pixels | None:
        """The square's pixels, filled at `size` px; None where the memory does not suffice for that."""
        side = hole.shape[0]
        small, covered = (_resized(near, size), _resized(hole, size)) if side != size else (near, hole)
        # a pixel that holds anything of the hole is hole: thin strokes survive, and nothing shines through
        mask = torch.from_numpy((covered > 1e-6).astype(np.float32))[None, None].to(self.device)

        def compute(pictures: Sequence[Pixels]) -> Tensor:
            return self.network(runtime.to_batch(pictures, mean=0.0, std=1.0).to(self.device), mask)

        self.network.z = torch.randn(1, STYLES).to(self.device)
        try:
            with torch.inference_mode():
                [batch] = runtime.in_batches(compute, [small], 1)
        except DeviceError:
            return None
        [drawn] = runtime.from_batch(batch, mean=0.0, std=1.0)
        return _resized(drawn, side) if side != size else drawn


def load(path: Path | str, *, device: str | torch.device = "auto") -> Mat:
    """The engine with MAT's generator of the file. The arithmetic is float32.

    Raises:
        UsageError: the package with MAT's code is not installed.
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is damaged, or holds another network.
        DeviceError: no such device here.
    """
    path, where = Path(path), runtime.choose_device(device)
    architecture = _architecture()
    state = {name: tensor.float() for name, tensor in read_state(path, expected=EXPECTED).items()}
    if not any(name.removeprefix("model.") == FIRST for name in state):
        raise WeightsInvalid(path, f"is another network (first tensors: {', '.join(list(state)[:3])}); {EXPECTED}")
    try:
        with _seeded(0, torch.device("cpu")), _numpy_as_it_was():
            network = architecture.load(state).model
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise WeightsInvalid(path, f"is no complete MAT network: {detail}; {EXPECTED}") from None
    network.eval().requires_grad_(False).to(where)
    network.label = network.label.to(where)
    return Mat(network, where, f"mat ({path.name})")


def plan(hole: Mask) -> tuple[NDArray[np.int32], list[Square]]:
    """The number of the hole that each pixel belongs to (0 for none), and the squares that fill them all in turn.

    The largest hole that is left gets a square that it fills to three quarters at most, of 512 px or more where the
    photo is as large, inside the photo where it fits; the other holes that lie well inside of it are filled with it.
    """
    count, numbers, stats, _ = cv2.connectedComponentsWithStats((hole > 0).astype(np.uint8), connectivity=8)
    height, width = hole.shape
    boxes = {number: _box(stats[number]) for number in range(1, count)}
    squares = []
    while boxes:
        x0, y0, x1, y1 = max(boxes.values(), key=lambda box: max(box[2] - box[0], box[3] - box[1]))
        side = max(SMALL, round(max(x1 - x0, y1 - y0) / MOST_OF_SIDE))
        side = min(side, max(height, width))
        left, top = _placed(x0, x1, side, width), _placed(y0, y1, side, height)
        margin = side // 16
        inside = {
            number
            for number, (a, b, c, d) in boxes.items()
            if _within(a, c, left, side, width, margin) and _within(b, d, top, side, height, margin)
        } | {number for number, box in boxes.items() if box == (x0, y0, x1, y1)}
        squares.append(Square(left, top, side, tuple(sorted(inside))))
        boxes = {number: box for number, box in boxes.items() if number not in inside}
    return np.asarray(numbers, np.int32), squares


def _box(stats: Any) -> tuple[int, int, int, int]:
    left, top, width, height = (int(value) for value in stats[:4])
    return left, top, left + width, top + height


def _placed(low: int, high: int, side: int, size: int) -> int:
    """Where the square begins along one axis: about the hole's middle, inside the photo where it fits."""
    if side >= size:
        return -((side - size) // 2)
    return min(max((low + high - side) // 2, 0), size - side)


def _within(low: int, high: int, start: int, side: int, size: int, margin: int) -> bool:
    """Whether the hole lies inside the square along one axis, off its edges where those are not the photo's."""
    first = start if start <= 0 else start + margin
    last = start + side if start + side >= size else start + side - margin
    return first <= low and high <= last


def _indices(start: int, count: int, size: int) -> NDArray[np.intp]:
    """The photo's rows or columns that the square shows, reflected at the border as often as it takes."""
    period = max(2 * size - 2, 1)
    places = np.arange(start, start + count) % period
    return np.where(places < size, places, period - places).astype(np.intp)


def _resized(picture: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The square picture or mask at another size; each pixel is made of the nearest alone."""
    way = cv2.INTER_AREA if side < picture.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (side, side), interpolation=way), np.float32)


def _architecture() -> Any:
    """MAT as spandrel_extra_arches describes it."""
    try:
        with warnings.catch_warnings():
            # it compiles another of its networks with torch.jit when it is imported
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(f"{PACKAGE}.architectures.MAT").MATArch()
    except ImportError:
        raise UsageError(
            f"engine mat: expected the package {PACKAGE}, which is not installed; MAT's code and weights are for "
            "non-commercial use (CC BY-NC 4.0): `pip install 'facefix[mat-noncommercial]'` if yours is, or choose lama"
        ) from None


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers start at the seed inside, and outside go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _numpy_as_it_was() -> Iterator[None]:
    """The network draws from numpy's global generator when it is made; that one goes on as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
