"""The dimensions of a GPEN network, and the numbers that all of its forms share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SLOPE = 0.2
GAIN = math.sqrt(2.0)
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a GPEN network.

    Args:
        size: width and height of the output, px; a power of two from 8 up.
        in_size: width and height of the input, px; at most `size`.
        style_dim: width of the style vector.
        n_mlp: number of layers between the encoder and the style.
        channels: of the decoder's convolutions, one for each of the levels 4, 8, …, size px.
        injected: channels laid beside them at each level; up to in_size these are the encoder's channels.
    """

    size: int
    in_size: int
    style_dim: int
    n_mlp: int
    channels: tuple[int, ...]
    injected: tuple[int, ...]

    def __post_init__(self) -> None:
        levels = self.size.bit_length() - 2
        if self.size < 8 or self.size & (self.size - 1) or self.in_size & (self.in_size - 1):
            raise ValueError(f"size: expected powers of two from 8 up, got {self.size} and in_size {self.in_size}")
        if not 8 <= self.in_size <= self.size:
            raise ValueError(f"in_size: expected 8 to {self.size}, got {self.in_size}")
        if len(self.channels) != levels or len(self.injected) != levels:
            got = (len(self.channels), len(self.injected))
            raise ValueError(f"channels, injected: expected {levels} levels for size {self.size}, got {got}")
        if min(self.style_dim, self.n_mlp, *self.channels, *self.injected) < 1:
            raise ValueError(f"expected positive widths, got {self}")

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor]) -> Shape:
        """The dimensions that a GPEN state dict has, from its tensors' names and shapes alone.

        Raises:
            KeyError: a tensor that every GPEN network has is missing; its argument is the name.
        """

        def count(pattern: str) -> int:
            return sum(1 for name in tensors if re.fullmatch(pattern, name))

        convolutions = count(r"generator\.convs\.\d+\.conv\.weight")
        firsts = ["generator.conv1", *(f"generator.convs.{i}" for i in range(0, convolutions, 2))]
        channels = tuple(tensors[f"{name}.conv.weight"].shape[1] for name in firsts)
        both = tuple(tensors[f"{name}.activate.bias"].shape[0] for name in firsts)
        return cls(
            size=4 << (len(firsts) - 1),
            in_size=4 << (count(r"ecd\d+\.0\.\d\.weight") - 1),
            style_dim=tensors["final_linear.0.weight"].shape[0],
            n_mlp=count(r"generator\.style\.\d+\.weight"),
            channels=channels,
            injected=tuple(b - c for b, c in zip(both, channels, strict=True)),
        )


def published_channels(size: int, channel_multiplier: float, narrow: float) -> tuple[int, ...]:
    """The published numbers of channels of the levels 4, 8, …, size px: 512 up to 32 px, then halved level by level."""
    levels = [4 << i for i in range(size.bit_length() - 2)]
    return tuple(int((512 if r <= 32 else 16384 // r * channel_multiplier) * narrow) for r in levels)
