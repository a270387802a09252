"""LaMa fills holes of any shape at any size; refinement carries a coarse fill's structure into the fine picture.

LaMa was trained at 256 px and repeats itself in holes much larger than that. Refinement fills a small copy first. At
each larger scale it then changes the network's features, never its weights, until the fill, made half as large, agrees
with the scale below, and the known pixels with themselves.

Pictures of more pixels than the budget are filled in a smaller copy, whose fill is enlarged into the picture; a caller
that wants detail in a large photo gives the engine what lies around the hole instead of the whole.

Source: Kulshreshtha et al., "Feature Refinement to Improve High Resolution Image Inpainting" (2022), with the settings
of its published implementation (Apache-2.0): two feature maps, a loss on known pixels too, one step less than passes.
Checked against recorded results of that implementation, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facefix import networks, runtime
from facefix.errors import DeviceError, UsageError
from facefix.ffc import MULTIPLE, SMALLEST, Halves
from facefix.inpaint import Progress
from facefix.types import Mask, Pixels

PIXEL_BUDGET = 1_800_000
"""Pixels that are filled at once, at most."""
LEAST_BUDGET = 256 * 256
ITERATIONS, ITERATIONS_ON_CPU = 15, 4
"""Passes at each scale but the first: as published, and where one takes seconds."""
TRACE = 1e-8
"""Any coverage above this makes a pixel of a smaller mask a hole."""
WHOLE = 1 - 1e-4
"""From this coverage on a pixel is hole alone: halving a float32 mask of ones can give a little less than 1."""
ELLIPSE_ROWS = (1, 9, 11, 13, 13, 15, 15, 15, 15, 15, 13, 13, 11, 9, 1)
"""Widths of the rows of the element by which the hole is eroded."""


@dataclass(frozen=True, slots=True)
class Refining:
    """How refinement goes about it; the defaults are the published ones.

    Args:
        iterations: passes through the network at each scale but the coarsest; the features change between them.
        rate: the optimiser's step.
        smallest_side: as long as the shorter side is about twice this, there is a scale below, px.
        most_scales: how many there are at most.
    """

    iterations: int = ITERATIONS
    rate: float = 0.002
    smallest_side: int = 512
    most_scales: int = 3

    def scales(self, height: int, width: int) -> int:
        """How many scales a picture of this size has.

        >>> [Refining().scales(side, side) for side in (724, 725, 1448, 1449)]
        [1, 2, 2, 3]
        """
        doublings = max(0.0, math.log2(min(height, width) / self.smallest_side))
        return min(1 + round(doublings), self.most_scales)


@dataclass(frozen=True, slots=True)
class Level:
    """The result of one scale: the composite (1, 3, h, w), and the loss before each step."""

    composite: Tensor
    losses: tuple[float, ...]


class Lama:
    """LaMa as an engine.

    Args:
        network: the generator, in evaluation mode.
        device: where it computes.
        name: what reports call it.
        refining: how to refine, or None for one pass.
        pixel_budget: pixels that are filled at once, at most.
    """

    takes_prompt = False

    def __init__(
        self, network: Halves, device: torch.device, name: str, *, refining: Refining | None, pixel_budget: int
    ) -> None:
        self.network = network
        self.device = device
        self.name = name
        self.refining = refining
        self.pixel_budget = pixel_budget

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its hole filled; nothing in it is random, and outside of the hole it is the scene itself.

        Where the memory runs out, the budget is halved for as long as that helps.

        Raises:
            DeviceError: not even a small copy fits the memory.
        """
        budget = min(self.pixel_budget, hole.size)
        while True:
            compute = partial(self._filled, hole=hole, budget=budget, progress=progress)
            try:
                with torch.inference_mode(False), torch.no_grad():
                    [filled] = runtime.in_batches(compute, [scene], 1)
                break
            except DeviceError as error:
                budget //= 2
                if budget < LEAST_BUDGET:
                    raise DeviceError(
                        f"out of memory with {hole.shape[1]}x{hole.shape[0]} px in a copy of {2 * budget} pixels; "
                        "fill a smaller part of the photo, or choose another device"
                    ) from error
        [pixels] = runtime.from_batch(filled, mean=0.0, std=1.0)
        np.copyto(pixels, scene, where=hole[..., None] == 0)
        return pixels

    def _filled(self, scenes: Sequence[Pixels], hole: Mask, budget: int, progress: Progress | None) -> Tensor:
        """(1, 3, h, w), filled in a copy of at most `budget` pixels."""
        picture = runtime.to_batch(scenes, mean=0.0, std=1.0).to(self.device)
        small, small_hole = within_budget(picture, torch.tensor(hole)[None, None].to(self.device), budget)
        scales = self.refining.scales(*small.shape[2:]) if self.refining else 1
        steps = 1 + (scales - 1) * (self.refining.iterations if self.refining else 0)
        done = iter(range(1, steps + 1))

        def tick() -> None:
            if progress is not None:
                progress(next(done), steps)

        if self.refining is None:
            filled = plain(self.network, small, small_hole, "symmetric")
            tick()
        else:
            filled = refined(self.network, small, small_hole, self.refining, tick)[-1].composite
        if small is picture:
            return filled
        return F.interpolate(filled, size=picture.shape[2:], mode="bicubic", align_corners=False)


def load(
    path: Path | str,
    *,
    device: str | torch.device = "auto",
    refine: bool = False,
    pixel_budget: int = PIXEL_BUDGET,
    iterations: int | None = None,
) -> Lama:
    """The engine with the LaMa generator of the file.

    Args:
        path: `big-lama.pt`, `best.ckpt`, a state dict or .safetensors, see `networks.load_lama`.
        device: auto, cpu, cuda, cuda:N or mps. The arithmetic is float32.
        refine: whether larger pictures are refined scale by scale.
        pixel_budget: pixels that are filled at once, at most. A pass needs about 0.9 kB for each, refinement 1.7 kB.
        iterations: passes at each scale of a refinement but the first; None for 15, and for 4 on a CPU.

    Raises:
        UsageError: a number is out of range.
        WeightsMissing: there is no such file.
        WeightsInvalid: the file is damaged, or holds another network.
        DeviceError: no such device here.
    """
    if pixel_budget < LEAST_BUDGET:
        raise UsageError(f"pixel budget: expected at least {LEAST_BUDGET}, got {pixel_budget}")
    if iterations is not None and iterations < 1:
        raise UsageError(f"iterations: expected at least 1, got {iterations}")
    path, where = Path(path), runtime.choose_device(device)
    network = networks.load_lama(path, device=where)
    passes = iterations or (ITERATIONS_ON_CPU if where.type == "cpu" else ITERATIONS)
    refining = Refining(iterations=passes) if refine else None
    name = f"lama ({path.name}{f', refined in {passes} passes' if refine else ''})"
    return Lama(network, where, name, refining=refining, pixel_budget=pixel_budget)


# --- one pass --------------------------------------------------------------------------------------------------------


def plain(network: Halves, picture: Tensor, hole: Tensor, border: Literal["symmetric", "reflect"]) -> Tensor:
    """The picture with what one pass of the network puts into the hole: (1, 3, h, w), 0..1.

    Args:
        network: the generator.
        picture: (1, 3, h, w), 0..1, of any size; what it shows in the hole is not looked at.
        hole: (1, 1, h, w), 0 or 1.
        border: how the picture is continued to the right and below, to a size that the network takes.
    """
    height, width = picture.shape[2:]
    drawn = network.rear(network.front(seen(padded(picture, border), padded(hole, border))))
    return composed(drawn[:, :, :height, :width], picture, hole)


def seen(picture: Tensor, hole: Tensor) -> Tensor:
    """What the network looks at: the picture, black in the hole, and the hole."""
    return torch.cat([picture * (1 - hole), hole], dim=1)


def composed(drawn: Tensor, picture: Tensor, hole: Tensor) -> Tensor:
    """What was drawn in the hole, the picture elsewhere."""
    return hole * drawn + (1 - hole) * picture


def padded(picture: Tensor, border: Literal["symmetric", "reflect"]) -> Tensor:
    """The picture (1, C, h, w), continued to the right and below to multiples of 8 and at least 16 px."""
    for axis in (2, 3):
        size = picture.shape[axis]
        wanted = max(SMALLEST, math.ceil(size / MULTIPLE) * MULTIPLE)
        if wanted != size:
            # numpy goes back and forth as often as it takes, which torch does not
            source = np.pad(np.arange(size), (0, wanted - size), mode=border)
            picture = picture.index_select(axis, torch.from_numpy(source).to(picture.device))
    return picture


def within_budget(picture: Tensor, hole: Tensor, budget: int, *, antialias: bool = True) -> tuple[Tensor, Tensor]:
    """Picture and hole at a size of at most `budget` pixels; themselves where they have no more.

    Without antialias this is what the published refinement does.
    """
    height, width = picture.shape[2:]
    if height * width <= budget:
        return picture, hole
    ratio = math.sqrt(budget / (height * width))
    size = (max(1, int(height * ratio)), max(1, int(width * ratio)))
    small = F.interpolate(picture, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    covered = F.interpolate(hole, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    return small, (covered > TRACE).to(hole.dtype)


# --- refinement ------------------------------------------------------------------------------------------------------


def refined(
    network: Halves, picture: Tensor, hole: Tensor, settings: Refining, tick: Callable[[], None] = lambda: None
) -> list[Level]:
    """The results of all scales, from the coarsest to the picture's own size.

    Args:
        network: the generator, in evaluation mode and grad-free.
        picture: (1, 3, h, w), 0..1.
        hole: (1, 1, h, w), 0 or 1, of the same dtype.
        settings: how to go about it.
        tick: called after each pass through the network.
    """
    levels: list[Level] = []
    for small, small_hole in reversed(pyramid(picture, hole, settings.scales(*picture.shape[2:]))):
        if levels:
            levels.append(_agreed(network, small, small_hole, levels[-1].composite, settings, tick))
        else:
            with torch.no_grad():
                levels.append(Level(plain(network, small, small_hole, "reflect"), ()))
            tick()
    return levels


def _agreed(
    network: Halves, picture: Tensor, hole: Tensor, below: Tensor, settings: Refining, tick: Callable[[], None]
) -> Level:
    """The fill whose features were changed until it agrees with the scale below."""
    height, width = picture.shape[2:]
    wide, wide_hole = padded(picture, "reflect"), padded(hole, "reflect")
    inner = eroded(halved_hole(hole))
    with torch.no_grad():
        features = network.front(seen(wide, wide_hole))
    features = features.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([features], lr=settings.rate)
    losses = []
    for turn in range(settings.iterations):
        last = turn + 1 == settings.iterations
        with torch.set_grad_enabled(not last):
            drawn = network.rear(features)
            loss = mean_where(drawn - wide, 1 - wide_hole)
            loss = loss + mean_where(halved(drawn[:, :, :height, :width]) - below, inner)
        losses.append(float(loss.detach()))
        if not last and loss.requires_grad:
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            del drawn, loss  # or the next pass begins beside what is left of this one
        tick()
    return Level(composed(drawn[:, :, :height, :width], picture, hole), tuple(losses))


def pyramid(picture: Tensor, hole: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Picture and hole at `count` scales, the finest first; the hole grows as far as the blur carries what is in it."""
    scales = [(picture, hole)]
    for _ in range(count - 1):
        picture, hole = halved(picture), (halved(hole) >= TRACE).to(hole.dtype)
        scales.append((picture, hole))
    return scales


def halved(picture: Tensor) -> Tensor:
    """The picture (1, C, h, w), blurred by a Gaussian of 1 px and brought to half its size."""
    return F.interpolate(_blurred(picture), size=_half(picture), mode="bilinear", align_corners=False)


def halved_hole(hole: Tensor) -> Tensor:
    """The hole at half its size, where a pixel counts only when it lies in the hole as a whole."""
    covered = F.interpolate(hole, size=_half(hole), mode="bilinear", align_corners=False)
    return (covered >= WHOLE).to(hole.dtype)


def eroded(hole: Tensor) -> Tensor:
    """The hole (1, 1, h, w) without what lies within 7 px of a known pixel; the picture's border takes nothing off."""
    side = len(ELLIPSE_ROWS)
    near = [[abs(column - side // 2) <= width // 2 for column in range(side)] for width in ELLIPSE_ROWS]
    element = torch.tensor(near, dtype=hole.dtype, device=hole.device)[None, None]
    return (F.conv2d(1 - hole, element, padding=side // 2) < 0.5).to(hole.dtype)


def mean_where(difference: Tensor, mask: Tensor) -> Tensor:
    """The mean absolute difference (1, 3, h, w) where the mask (1, 1, h, w) is 1; 0 where it is 1 nowhere."""
    count = mask.sum() * difference.shape[1]
    return (difference.abs() * mask).sum() / count.clamp(min=1)


def _half(picture: Tensor) -> tuple[int, int]:
    return picture.shape[2] // 2, picture.shape[3] // 2


def _blurred(picture: Tensor) -> Tensor:
    """Each channel under a Gaussian of sigma 1 and 5x5 taps, reflected at the border."""
    distances = torch.arange(-2, 3, dtype=picture.dtype, device=picture.device)
    row = torch.exp(-distances.square() / 2)
    kernel = torch.outer(row, row) / row.sum().square()
    channels = picture.shape[1]
    around = F.pad(picture, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(around, kernel.expand(channels, 1, 5, 5), groups=channels)
