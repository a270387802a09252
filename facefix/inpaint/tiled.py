"""Tiled Diffusion: a UNet that sees a large latent in overlapping tiles, at every step, and blends what it predicts.

Two ways of blending. MultiDiffusion takes the mean of the tiles that cover an element; Mixture of Diffusers weighs them
by a Gaussian about each tile's centre, which hides tile borders better. Both blend the UNet's predictions; every
scheduler whose step is linear in them (DDIM, Euler, DPM++ 2M, UniPC, LMS) gives what blending its steps would.

    with tiled_unet(pipeline.unet):
        pipeline(prompt, height=2048, width=3072)

Lengths are elements of the latent; one is eight pixels of the picture in Stable Diffusion.

Source: Bar-Tal et al., MultiDiffusion, 2023 (arXiv 2302.08113); Barbero Jiménez, Mixture of Diffusers, 2023
(arXiv 2302.02412). Grids, counts and blends were checked with recorded numbers of a published tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn

from facefix import runtime, tiles
from facefix.errors import UsageError
from facefix.types import Box

METHODS = ("mixture", "multidiffusion")
TILE, OVERLAP, BATCH = 96, 8, 4
_LEAST = 16  # elements of a tile's side below which a UNet sees too little
_SPATIAL = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_SPREAD = 0.1  # standard deviation of the Gaussian in tile sides: a variance of 0.01


@contextmanager
def tiled_unet(
    unet: nn.Module, *, tile: int = TILE, overlap: int = OVERLAP, method: str = "mixture", batch: int = BATCH
) -> Iterator[None]:
    """Inside, the UNet works in tiles, whatever pipeline calls it; a latent of one tile is not touched.

    Where the memory runs out, the batch and then the tile is halved, for the rest of the context. A pipeline that keeps
    whole networks off the GPU sets them up anew after each call: there, open a context for each call.

    Args:
        unet: a diffusers UNet (UNet2DConditionModel and its like) of 4 or 9 channels.
        tile: side of a tile, in elements of the latent.
        overlap: what neighbours share at the least.
        method: mixture or multidiffusion.
        batch: how many tiles go through the UNet at once.

    Raises:
        UsageError: a setting that cannot work; inside, a call with residuals of a ControlNet or adapter.
        DeviceError: inside, not even the smallest tile fits the memory.
    """
    if method not in METHODS:
        raise UsageError(f"tiles: expected a method of {', '.join(METHODS)}, got {method!r}; choose one of them")
    if tile < _LEAST or overlap < 0 or batch < 1:
        wrong = f"tile {tile}, overlap {overlap}, batch {batch}"
        raise UsageError(f"tiles: expected tile ≥ {_LEAST}, overlap ≥ 0 and batch ≥ 1, got {wrong}; choose other sizes")
    with replaced_forward(unet, _Tiled(unet.forward, _ladder(tile, batch), overlap, method)):
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling the module calls `forward`; afterwards it is as it was, hooks of its own included."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def grid(height: int, width: int, tile_height: int, tile_width: int, overlap: int) -> list[Box]:
    """The boxes that cover (height, width), row by row, evenly spread and up to both borders.

    The overlap is brought to what such tiles can share, at most the smaller side less four.

    >>> len(grid(128, 128, 96, 96, 8))
    4
    """
    shared = max(0, min(overlap, min(tile_height, tile_width) - 4))
    down, across = tiles.windows(height, tile_height, shared), tiles.windows(width, tile_width, shared)
    return [Box(x0, y0, x1, y1) for (y0, y1), (x0, x1) in product(down, across)]


def uniform(height: int, width: int) -> Tensor:
    """The weights of a tile in MultiDiffusion: (height, width) float64, all one."""
    return torch.ones(height, width, dtype=torch.float64)


def gaussian(height: int, width: int) -> Tensor:
    """The weights of a tile in Mixture of Diffusers: (height, width) float64, 1 at the centre, 4e-6 mid-border."""
    return torch.outer(_bell(height), _bell(width))


def _bell(length: int) -> Tensor:
    places = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-((places / (_SPREAD * length)) ** 2) / 2)


def fuse(
    parts: Iterable[Tensor], boxes: Sequence[Box], height: int, width: int, weight: Callable[[int, int], Tensor]
) -> Tensor:
    """The parts laid over their boxes, each with its share of the weight: (…, height, width), float32 at the least.

    Args:
        parts: (…, y1 - y0, x1 - x0) for each box, in order; taken one at a time.
        boxes: as `grid` gives them; every element is in one at the least.
        height: elements down.
        width: elements across.
        weight: height and width of a box -> (height, width) float64, above 0.
    """
    total = torch.zeros(height, width, dtype=torch.float64)
    for box in boxes:
        total[box.slices] += weight(box.y1 - box.y0, box.x1 - box.x0)
    out: Tensor | None = None
    for box, part in zip(boxes, parts, strict=True):
        share = weight(box.y1 - box.y0, box.x1 - box.x0) / total[box.slices]
        exact = torch.promote_types(part.dtype, torch.float32)
        if out is None:
            out = part.new_zeros((*part.shape[:-2], height, width), dtype=exact)
        out[(..., *box.slices)] += part * share.to(part.device, exact)
    if out is None:
        raise ValueError("expected at least one box, got none")
    return out


def _ladder(tile: int, batch: int) -> list[tuple[int, int]]:
    """(tile, batch) from what was asked for to the least: first the batch is halved, then the tile."""
    rungs = [(tile, batch)]
    while batch > 1:
        batch //= 2
        rungs.append((tile, batch))
    while tile // 2 >= _LEAST:
        tile //= 2
        rungs.append((tile, 1))
    return rungs


class _Tiled:
    """What a UNet does instead of its forward.

    Args:
        whole: its forward.
        options: (tile, batch) from the best to the one that asks for the least memory.
        overlap: as in tiled_unet.
        method: as in tiled_unet.
    """

    def __init__(self, whole: Callable[..., Any], options: list[tuple[int, int]], overlap: int, method: str) -> None:
        self.whole = whole
        self.options = options
        self.overlap = overlap
        self.weight = gaussian if method == "mixture" else uniform

    def __call__(
        self, sample: Tensor, timestep: Any, *arguments: Any, return_dict: bool = True, **settings: Any
    ) -> Any:
        """What the UNet predicts for the whole sample: (B, C, h, w) -> (B, 4, h, w), as it wraps it."""
        if any(settings.get(name) is not None for name in _SPATIAL):
            raise UsageError("tiles: a ControlNet or adapter cannot be cut into tiles; leave it out or work untiled")

        def compute(option: tuple[int, int]) -> Any:
            tile, batch = option
            boxes = grid(sample.shape[-2], sample.shape[-1], tile, tile, self.overlap)
            if len(boxes) == 1:
                return self.whole(sample, timestep, *arguments, return_dict=return_dict, **settings)
            parts = self._predictions(sample, boxes, batch, (timestep, *arguments), settings)
            return self._fused(parts, boxes, sample, return_dict)

        made, fits = runtime.fitting(compute, self.options, "choose a smaller picture or another device")
        self.options = self.options[self.options.index(fits) :]
        return made

    def _predictions(
        self, sample: Tensor, boxes: Sequence[Box], batch: int, arguments: Sequence[Any], settings: Mapping[str, Any]
    ) -> Iterator[tuple[Tensor, type]]:
        """The prediction for each box and what the UNet wraps it in; `batch` boxes at a time, one after the other."""
        for start in range(0, len(boxes), batch):
            group = boxes[start : start + batch]
            part = torch.cat([sample[(..., *box.slices)] for box in group])
            repeated = [_repeated(value, len(group), len(sample)) for value in arguments]
            named = {name: _repeated(value, len(group), len(sample)) for name, value in settings.items()}
            output = self.whole(part, *repeated, return_dict=True, **named)
            yield from ((prediction, type(output)) for prediction in output.sample.chunk(len(group)))

    def _fused(
        self, parts: Iterator[tuple[Tensor, type]], boxes: Sequence[Box], sample: Tensor, return_dict: bool
    ) -> Any:
        first, kind = next(parts)
        others = (part for part, _ in parts)
        fused = fuse(chain([first], others), boxes, sample.shape[-2], sample.shape[-1], self.weight).to(first.dtype)
        return kind(sample=fused) if return_dict else (fused,)


def _repeated(value: Any, count: int, batch: int) -> Any:
    """What belongs to each of `batch` samples, for `count` tiles of each; other values as they are."""
    if isinstance(value, Tensor):
        return value.repeat(count, *[1] * (value.ndim - 1)) if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {name: _repeated(item, count, batch) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_repeated(item, count, batch) for item in value)
    return value
