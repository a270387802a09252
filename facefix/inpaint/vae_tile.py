"""One tile on its way through a VAE, and what tiles ask of each other on the way.

A tile's way is a generator: where a GroupNorm or the attention in the middle needs all tiles, it stops and hands out
what it has of its core, and goes on with what was made of all tiles' parts. `together` walks them side by side.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from facefix.types import Box

_QUERIES = 1 << 26  # most attention weights at once


@dataclass(frozen=True)
class Moments:
    """Statistics of one tile's core for a GroupNorm: how many numbers, (B, groups) mean and variance in float64."""

    count: int
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Keys:
    """Keys and values of one tile's core: (B, heads, n, d) each."""

    keys: Tensor
    values: Tensor


Walk: TypeAlias = Generator[Moments | Keys, Any, None]


def pooled(moments: Sequence[Moments]) -> Moments:
    """The moments of all the numbers together."""
    count = sum(part.count for part in moments)
    mean = torch.stack([part.count * part.mean for part in moments]).sum(0) / count
    spread = [part.count * (part.variance + (part.mean - mean) ** 2) for part in moments]
    return Moments(count, mean, torch.stack(spread).sum(0) / count)


def _answered(asked: Sequence[Moments | Keys]) -> Moments | Keys:
    """What all tiles go on with; they all stop at the same place."""
    moments = [part for part in asked if isinstance(part, Moments)]
    if moments:
        return pooled(moments)
    keys = [part for part in asked if isinstance(part, Keys)]
    return Keys(torch.cat([part.keys for part in keys], 2), torch.cat([part.values for part in keys], 2))


def together(walks: Sequence[Walk]) -> list[Moments]:
    """Every walk to its end, side by side; the pooled statistics that they went on with, in order."""
    answers: list[Moments] = []
    answer: Moments | Keys | None = None
    while True:
        asked = []
        for walk in walks:
            try:
                asked.append(walk.send(answer))
            except StopIteration:
                continue
        if not asked:
            return answers
        answer = _answered(asked)
        if isinstance(answer, Moments):
            answers.append(answer)


class Tile:
    """One tile on its way through an encoder or decoder; `walk` stops where the others are needed.

    Args:
        x: (B, C, h, w), what the network is to see, padding included.
        core: its part that no other tile has.
        frozen: statistics to use for the first GroupNorms, which then need no stop.
        alone: attend within the tile, and do not stop for it.
    """

    def __init__(self, x: Tensor, core: Box, frozen: Sequence[Moments] = (), *, alone: bool = False) -> None:
        self.x = x
        self.core = core
        self.skip: Tensor | None = None
        self.device = x.device
        self.frozen = iter(frozen)
        self.alone = alone

    def walk(self, coder: Any) -> Walk:
        """The way through the network; `x` is what it gives, `core` in its pixels."""
        self.x = coder.conv_in(self.x)
        encodes = hasattr(coder, "down_blocks")
        for block in coder.down_blocks if encodes else ():
            for resnet in block.resnets:
                yield from self._resnet(resnet)
            for downsampler in block.downsamplers or ():
                self.x = downsampler(self.x)
                self.core = Box(*(side // 2 for side in self.core))
        first, *others = coder.mid_block.resnets
        yield from self._resnet(first)
        for attention, resnet in zip(coder.mid_block.attentions, others, strict=True):
            if attention is not None:
                yield from self._attend(attention)
            yield from self._resnet(resnet)
        for block in () if encodes else coder.up_blocks:
            for resnet in block.resnets:
                yield from self._resnet(resnet)
            for upsampler in block.upsamplers or ():
                self.x = upsampler(self.x)
                self.core = Box(*(side * 2 for side in self.core))
        yield from self._norm(coder.conv_norm_out)
        self.x = coder.conv_out(coder.conv_act(self.x))

    def _resnet(self, block: Any) -> Walk:
        self.skip = self.x
        yield from self._norm(block.norm1)
        self.x = block.conv1(block.nonlinearity(self.x))
        yield from self._norm(block.norm2)
        self.x = block.conv2(block.nonlinearity(self.x))
        skip = self.skip if block.conv_shortcut is None else block.conv_shortcut(self.skip)
        self.x, self.skip = (skip + self.x) / block.output_scale_factor, None

    def _norm(self, norm: nn.GroupNorm) -> Walk:
        moments = next(self.frozen, None)
        if moments is None:
            asked = self._moments(norm)
            self._rest()
            moments = yield asked
            self._wake()
        exact = self.x.to(torch.promote_types(self.x.dtype, torch.float32))
        factor, addend = (part.to(exact.dtype).to(self.x.device) for part in _affine(norm, moments))
        self.x = torch.addcmul(addend, exact, factor).to(self.x.dtype)

    def _moments(self, norm: nn.GroupNorm) -> Moments:
        core = self.x[(..., *self.core.slices)]
        core = core.to(torch.promote_types(core.dtype, torch.float32)).reshape(len(core), norm.num_groups, -1)
        variance, mean = torch.var_mean(core, dim=-1, correction=0)
        return Moments(core.shape[-1], mean.cpu().double(), variance.cpu().double())

    def _attend(self, attention: Any) -> Walk:
        self.skip = self.x
        yield from self._norm(attention.group_norm)
        batch, channels, height, width = self.x.shape
        tokens = self.x.flatten(2).transpose(1, 2)
        queries, keys, values = (
            to(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for to in (attention.to_q, attention.to_k, attention.to_v)
        )
        if not self.alone:
            asked = Keys(self._core_of(keys, width), self._core_of(values, width))
            self.x = queries
            del queries, keys, values, tokens
            self._rest()
            answer = yield asked
            self._wake()
            queries, keys, values = self.x, answer.keys, answer.values
        seen = _attention(queries, keys, values).transpose(1, 2).flatten(2)
        for layer in attention.to_out:
            seen = layer(seen)
        self.x = seen.transpose(1, 2).reshape(batch, channels, height, width)
        if attention.residual_connection:
            self.x = self.x + self.skip
        self.x, self.skip = self.x / attention.rescale_output_factor, None

    def _core_of(self, tokens: Tensor, width: int) -> Tensor:
        """The tokens (B, heads, h·w, d) of the core."""
        rows = tokens.reshape(*tokens.shape[:2], -1, width, tokens.shape[-1])
        return rows[:, :, *self.core.slices].flatten(2, 3)

    def _rest(self) -> None:
        """Leave the GPU to the others."""
        if self.device.type != "cpu":
            same = self.skip is self.x
            self.x = self.x.cpu()
            if self.skip is not None:
                self.skip = self.x if same else self.skip.cpu()

    def _wake(self) -> None:
        same = self.skip is self.x
        self.x = self.x.to(self.device)
        if self.skip is not None:
            self.skip = self.x if same else self.skip.to(self.device)


def _affine(norm: nn.GroupNorm, moments: Moments) -> tuple[Tensor, Tensor]:
    """Factor and addend (B, C, 1, 1) of the GroupNorm with these statistics, float64 on the CPU."""
    each = norm.num_channels // norm.num_groups
    deviation = (moments.variance + norm.eps).sqrt()
    scale, shift = (part.repeat_interleave(each, 1) for part in (1 / deviation, -moments.mean / deviation))
    with _present(norm):
        weight, bias = norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double()
    return (scale * weight)[:, :, None, None], (shift * weight + bias)[:, :, None, None]


@contextmanager
def _present(module: nn.Module) -> Iterator[None]:
    """Inside, the module's own parameters are there, even where accelerate keeps them elsewhere between calls."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention (B, heads, n, d), in parts of the queries where all at once would be too much."""
    rows = max(1, _QUERIES // (keys.shape[0] * keys.shape[1] * keys.shape[2]))
    parts = [functional.scaled_dot_product_attention(part, keys, values) for part in torch.split(queries, rows, dim=2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
