"""A VAE that encodes and decodes in tiles and gives what it gives untiled, in a fraction of the memory.

Tiles of a VAE usually differ in colour and contrast, because every GroupNorm takes its statistics from one tile. Here
all tiles go through the network together: at each GroupNorm they stop, statistics of their cores (which cover the
picture exactly once) are pooled, and all go on with those; at the attention in the middle every tile's queries see the
keys and values of all cores. With as much padding around a core as the network looks, the result is that of the whole
picture but for rounding. Tiles that wait rest in main memory.

`fast` needs no waiting: one pass over a small copy of the picture gives the statistics for all tiles, which then go one
by one, each with its own attention. Colours of small details may shift a little. In the encoder, where that would tint
everything, only the statistics before the first downsampling are taken from the copy.

    with tiled_vae(pipeline.vae):
        pipeline(prompt, height=2048, width=3072)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facefix import runtime
from facefix.errors import UsageError
from facefix.inpaint.tiled import replaced_forward
from facefix.inpaint.vae_tile import Moments, Tile, together
from facefix.types import Box

TILE = 64
_LEAST = 8  # elements of the latent below which padding is nearly everything
_KNOWN = {"Encoder", "Decoder", "DownEncoderBlock2D", "UpDecoderBlock2D", "UNetMidBlock2D"}
Span = tuple[int, int]


@contextmanager
def tiled_vae(vae: nn.Module, *, tile: int = TILE, fast: bool = False) -> Iterator[None]:
    """Inside, the VAE encodes and decodes in tiles; a picture of one tile is not touched.

    Where the memory runs out, the tile is halved, for the rest of the context. There is no gradient through it.

    Args:
        vae: diffusers' AutoencoderKL, as Stable Diffusion and SDXL have it.
        tile: side of a tile's core, in elements of the latent.
        fast: frozen statistics and attention within each tile, instead of the exact ones.

    Raises:
        UsageError: another kind of VAE, or a tile below 8; inside, sides that are no multiple of the VAE's factor.
        DeviceError: inside, not even the smallest tile fits the memory.
    """
    if tile < _LEAST:
        raise UsageError(f"tiles: expected a tile of at least {_LEAST}, got {tile}; choose a larger one")
    kinds = {type(part).__name__ for coder in _coders(vae) for part in (coder, *_blocks(coder))}
    if not kinds or not kinds <= _KNOWN:
        got = ", ".join(sorted(kinds - _KNOWN)) or type(vae).__name__
        raise UsageError(f"tiles: expected a VAE as in Stable Diffusion or SDXL, got {got}; work without --tiled")
    with ExitStack() as stack:
        for coder in _coders(vae):
            stack.enter_context(replaced_forward(coder, _Tiled(coder, tile, fast)))
        yield


def cores(length: int, tile: int, padding: int) -> list[Span]:
    """The spans that cover `length` once, such that each with `padding` on both sides is about tile + 2·padding.

    At the borders there is nothing to pad with, so the first and the last are longer by the padding.

    Args:
        length: elements to cover.
        tile: elements of a span; it is made smaller where that spreads them more evenly.
        padding: elements that a tile sees beyond its core.

    >>> cores(128, 64, 11)
    [(0, 75), (75, 128)]
    """
    inner = length - 2 * padding
    count = max(1, -(-inner // tile))
    even = best_tile(-(-inner // count), tile)
    inside = [padding + i * even for i in range(1, count)]
    return list(zip([0, *inside], [*inside, length], strict=True))


def best_tile(lower: int, upper: int) -> int:
    """The smallest multiple of 32, else of 16, 8, 4, 2, that is not below `lower` and not above `upper`; else lower.

    >>> best_tile(54, 64), best_tile(65, 72)
    (64, 72)
    """
    for divisor in (32, 16, 8, 4, 2):
        rounded = -(-lower // divisor) * divisor
        if rounded <= upper:
            return rounded
    return lower


def _coders(vae: nn.Module) -> list[nn.Module]:
    return [coder for name in ("encoder", "decoder") if isinstance(coder := getattr(vae, name, None), nn.Module)]


def _blocks(coder: Any) -> list[nn.Module]:
    """The encoder's or decoder's blocks; none where it is built another way."""
    if not isinstance(getattr(coder, "mid_block", None), nn.Module):
        return []
    outer = coder.down_blocks if hasattr(coder, "down_blocks") else getattr(coder, "up_blocks", [])
    return [coder.mid_block, *outer]


class _Tiled:
    """What an encoder or decoder does instead of its forward.

    Args:
        coder: diffusers' Encoder or Decoder.
        tile: side of a core, in elements of the latent.
        fast: as in tiled_vae.
    """

    def __init__(self, coder: Any, tile: int, fast: bool) -> None:
        self.coder = coder
        self.whole = coder.forward
        self.fast = fast
        self.encodes = hasattr(coder, "down_blocks")
        turns = [block.downsamplers for block in coder.down_blocks] if self.encodes else []
        turns += [] if self.encodes else [block.upsamplers for block in coder.up_blocks]
        self.factor = 1 << sum(len(turn or ()) for turn in turns)
        self.options = [tile]
        while self.options[-1] // 2 >= _LEAST:
            self.options.append(self.options[-1] // 2)

    @torch.no_grad()
    def __call__(self, x: Tensor, latent_embeds: None = None) -> Tensor:
        """What the coder gives for the whole of x: (B, C, h, w) -> (B, C', h', w')."""
        if latent_embeds is not None:
            raise UsageError("tiles: expected a VAE that takes no latent_embeds; work without --tiled")
        made, fits = runtime.fitting(
            lambda tile: self._run(x, tile), self.options, "choose a smaller picture or another device"
        )
        self.options = self.options[self.options.index(fits) :]
        return made

    def _run(self, x: Tensor, tile: int) -> Tensor:
        step = self.factor if self.encodes else 1
        side, padding = tile * step, -(-reach(self.coder) // step) * step
        if self.fast:
            padding = -(-padding // (2 * step)) * step
        height, width = x.shape[-2:]
        if max(height, width) <= side + 2 * padding:
            whole: Tensor = self.whole(x)
            return whole
        if height % step or width % step:
            raise UsageError(f"tiles: expected sides of multiples of {step}, got {width}x{height}; pad the picture")
        frozen = self._frozen(x, side + 2 * padding) if self.fast else []
        alone = bool(frozen) and not self.encodes
        spans = product(cores(height, side, padding), cores(width, side, padding))
        found = [Box(x0, y0, x1, y1) for (y0, y1), (x0, x1) in spans]
        parts = [self._cut(x, core, padding, frozen, alone) for core in found]
        together([part.walk(self.coder) for part in parts])
        return self._joined(parts, found, height, width)

    def _cut(self, x: Tensor, core: Box, padding: int, frozen: Sequence[Moments], alone: bool) -> Tile:
        """The tile around a core of x."""
        height, width = x.shape[-2:]
        seen = Box(
            max(0, core.x0 - padding),
            max(0, core.y0 - padding),
            min(width, core.x1 + padding),
            min(height, core.y1 + padding),
        )
        inside = Box(core.x0 - seen.x0, core.y0 - seen.y0, core.x1 - seen.x0, core.y1 - seen.y0)
        return Tile(x[(..., *seen.slices)], inside, frozen, alone=alone)

    def _joined(self, parts: Sequence[Tile], found: Sequence[Box], height: int, width: int) -> Tensor:
        """The cores of what the tiles became, side by side."""

        def scaled(length: int) -> int:
            return length // self.factor if self.encodes else length * self.factor

        first = parts[0].x
        out = first.new_empty((*first.shape[:2], scaled(height), scaled(width)))
        for part, core in zip(parts, found, strict=True):
            out[(..., *Box(*map(scaled, core)).slices)] = part.x[(..., *part.core.slices)]
        return out

    def _frozen(self, x: Tensor, side: int) -> list[Moments]:
        """Statistics from a small copy of x that has its colours; none where they come out as no numbers."""
        step = self.factor if self.encodes else 1
        scale = side / max(x.shape[-2:])
        size = [max(step, round(length * scale / step) * step) for length in x.shape[-2:]]
        small = functional.interpolate(x.float(), size, mode="nearest-exact")
        for part, whole in zip(small.flatten(0, 1), x.float().flatten(0, 1), strict=True):
            part.sub_(part.mean()).mul_(whole.std() / part.std().clamp_min(1e-6)).add_(whole.mean())
        small = small.clamp(x.min().float(), x.max().float()).to(x.dtype)
        tile = Tile(small, Box(0, 0, small.shape[-1], small.shape[-2]))
        found = together([tile.walk(self.coder)])
        if not all(bool(torch.isfinite(part.mean + part.variance).all()) for part in found):
            return []
        return found[: 2 * len(self.coder.down_blocks[0].resnets)] if self.encodes else found


def reach(coder: Any) -> int:
    """How far, in elements of what goes in, a number that comes out of the encoder or decoder depends on its place.

    Only convolutions count: statistics and the attention in the middle are taken over everything anyway.
    """
    encodes = hasattr(coder, "down_blocks")
    scale = 1.0  # elements of what goes in for each element here
    found = 1.0  # the first convolution
    if not encodes:
        found += 2 * scale * len(coder.mid_block.resnets)
    for block in coder.down_blocks if encodes else coder.up_blocks:
        found += 2 * scale * len(block.resnets)
        for _ in (block.downsamplers if encodes else block.upsamplers) or ():
            scale = scale * 2 if encodes else scale / 2
            found += scale / 2 if encodes else scale
    if encodes:
        found += 2 * scale * len(coder.mid_block.resnets)
    return math.ceil(found + scale)
