"""3x3 convolutions by Winograd's minimal filtering: F(4x4, 3x3) takes 36 products where the definition takes 144.

Each 6x6 tile of the input becomes 36 numbers per channel, multiplied by 36 small matrices in one batched product, and
36 numbers per channel become a 4x4 tile of the output. Pictures are (rows, columns, channels), worked through a strip
of rows at a time, so that what passes between the steps stays in the processor's cache.

In float32 the interpolation points are 0, ±3/4, ±3/2 and infinity: with the usual ±1, ±2 the result is off by 2e-6 of
its norm, with these by 9.5e-7, against 8.5e-7 for the direct convolution (measured with 256 channels). bfloat16 has no
digits to spare and takes F(2x2, 3x3), 16 products for 36, with the points 0, ±1 and infinity, whose sums have no
factors: off by 0.0068, against 0.0023 (measured with 1024 channels).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), section 4; the choice of points
after Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for DNNs" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEAR, FAR = 0.75, 1.5
TILES = {torch.float32: 4, torch.bfloat16: 2}
"""Side of the output's tiles, px."""
_POINTS = {4: (0.0, NEAR, -NEAR, FAR, -FAR), 2: (0.0, 1.0, -1.0)}
_SCALE = {4: NEAR, 2: 1.0}


def transformed(weight: Tensor) -> Tensor:
    """The weights (outputs, inputs, 3, 3) in the domain of the products: (36 or 16, outputs, inputs).

    The finite points besides 0 are scaled, which saves multiplications on the way back.
    """
    tile = TILES[weight.dtype]
    rows = []
    for point in _POINTS[tile]:
        others = torch.tensor([point - other for other in _POINTS[tile] if other != point], dtype=torch.float64)
        scale = (_SCALE[tile] if point else 1.0) / float(others.prod())
        rows.append([scale, scale * point, scale * point * point])
    one = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    both = torch.kron(one, one).float()
    outputs, inputs = weight.shape[:2]
    products = both @ weight.reshape(outputs * inputs, 9).t().float()
    return products.to(weight.dtype).view(len(both), outputs, inputs)


class Winograd:
    """Convolves strips of rows; keeps the memory it works in.

    Args:
        inputs: channels in.
        outputs: channels out.
        rows: output rows of the largest strip, a multiple of the tile's side.
        columns: width of the output, px, a multiple of the tile's side.
        dtype: float32 or bfloat16.
    """

    def __init__(self, inputs: int, outputs: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> None:
        self.tile = TILES[dtype]
        side = self.tile + 2
        tiles, self._across = rows // self.tile, columns // self.tile
        self._inputs, self._outputs = inputs, outputs
        pixels = tiles * self._across

        def memory(count: int) -> Tensor:
            return torch.empty(count, dtype=dtype)

        self._lines = memory(side * tiles * (columns + 2) * inputs)
        self._factors = memory(side**2 * pixels * inputs)
        self._products = memory(side**2 * pixels * outputs)
        self._halfway = memory(self.tile * side * pixels * outputs)
        self._result = memory(self.tile**2 * pixels * outputs)
        self._near, self._far = memory(0), memory(0)
        if self.tile == 4:
            self._near = memory(6 * tiles * columns * max(inputs, outputs))
            self._far = memory(2 * 6 * tiles * self._across * inputs + 2 * tiles * 2 * inputs)

    def __call__(self, strip: Tensor, weights: Tensor) -> Tensor:
        """The convolved strip as tiles, (t, t, rows/t, columns/t, outputs): row and column within a tile come first.

        Args:
            strip: (rows + 2, columns + 2, inputs), contiguous: the output's pixels and one more on every side.
            weights: from `transformed`.

        The result is overwritten by the next call; `tiled` shows a destination in the same order.
        """
        tiles = (strip.shape[0] - 2) // self.tile
        factors = self._forth(strip, tiles)
        products = _shaped(self._products, len(weights), tiles * self._across, self._outputs)
        torch.bmm(factors.flatten(0, 1).flatten(1, 2), weights.transpose(1, 2), out=products)
        return self._back(products.view(*factors.shape[:-1], self._outputs))

    def _forth(self, strip: Tensor, tiles: int) -> Tensor:
        """The numbers of every tile: (t + 2, t + 2, tiles, across, inputs)."""
        side, width, across, channels = self.tile + 2, strip.shape[1], self._across, self._inputs
        lines = _shaped(self._lines, side, tiles, width, channels)
        factors = _shaped(self._factors, side, side, tiles, across, channels)
        self._evaluate(strip, 0, lines.unbind(0))
        self._evaluate(lines, 2, factors.unbind(1))
        return factors

    def _back(self, products: Tensor) -> Tensor:
        """The tiles of the output: (t, t, tiles, across, outputs)."""
        tile, rest = self.tile, products.shape[2:]
        halfway = _shaped(self._halfway, tile, tile + 2, *rest)
        self._interpolate(products.unbind(0), halfway.unbind(0))
        result = _shaped(self._result, tile, tile, *rest)
        self._interpolate(halfway.unbind(1), result.unbind(1))
        return result

    def _evaluate(self, pixels: Tensor, axis: int, values: Sequence[Tensor]) -> None:
        """Writes the t + 2 values of each tile along an axis that has as many pixels as its tiles, and 2 more."""
        if self.tile == 2:
            sample = [_every(pixels, axis, first, 2, 4) for first in range(4)]
            torch.sub(sample[2], sample[0], out=values[0])
            torch.add(sample[2], sample[1], out=values[1])
            torch.sub(sample[2], sample[1], out=values[2])
            torch.sub(sample[3], sample[1], out=values[3])
            return
        size = pixels.shape[axis] - 2
        sample = [_every(pixels, axis, first, 4, 6) for first in range(6)]
        # Pixel r + 2 less NEAR² times pixel r.
        seen = [*pixels.shape]
        seen[axis] = size
        near = _shaped(self._near, *seen)
        torch.add(pixels.narrow(axis, 2, size), pixels.narrow(axis, 0, size), alpha=-NEAR * NEAR, out=near)
        zero, one, two, three = (_every(near, axis, first, 4, 4) for first in range(4))
        odd, even = _shaped(self._far, 2, *sample[0].shape)
        torch.add(sample[3], sample[1], alpha=-FAR * FAR, out=odd)
        torch.add(sample[4], sample[2], alpha=-FAR * FAR, out=even)
        torch.add(two, zero, alpha=-FAR * FAR, out=values[0])
        torch.add(even, odd, alpha=NEAR, out=values[1])
        torch.add(even, odd, alpha=-NEAR, out=values[2])
        torch.add(two, one, alpha=FAR, out=values[3])
        torch.add(two, one, alpha=-FAR, out=values[4])
        torch.add(three, one, alpha=-FAR * FAR, out=values[5])

    def _interpolate(self, products: Sequence[Tensor], pixels: Sequence[Tensor]) -> None:
        """Writes the t pixels of each tile along an axis from its t + 2 products, the scaled ones times the scale."""
        if self.tile == 2:
            torch.add(products[1], products[2], out=pixels[0]).add_(products[0])
            torch.sub(products[1], products[2], out=pixels[1]).add_(products[3])
            return
        even_near, odd_near, even_far, odd_far = _shaped(self._near, 4, *products[0].shape)
        torch.add(products[1], products[2], out=even_near)
        torch.sub(products[1], products[2], out=odd_near)
        torch.add(products[3], products[4], out=even_far)
        torch.sub(products[3], products[4], out=odd_far)
        ratio = FAR / NEAR
        torch.add(odd_near, odd_far, alpha=ratio, out=pixels[1])
        torch.add(even_near, even_far, alpha=ratio**2, out=pixels[2]).mul_(NEAR)
        torch.add(products[0], even_near.add_(even_far), alpha=1 / NEAR, out=pixels[0])
        torch.add(products[5], odd_near.add_(odd_far, alpha=ratio**3), alpha=NEAR**2, out=pixels[3])


def tiled(strip: Tensor, tile: int) -> Tensor:
    """A view of (rows, columns, channels) in the order of a convolved strip, (t, t, rows/t, columns/t, channels)."""
    rows, columns, channels = strip.shape
    return strip.view(rows // tile, tile, columns // tile, tile, channels).permute(1, 3, 0, 2, 4)


def _every(pixels: Tensor, axis: int, first: int, step: int, reach: int) -> Tensor:
    """Every `step`-th of the pixels along an axis from `first` on, one of each group of `reach`."""
    end = first + pixels.shape[axis] - reach + 1
    return pixels[(slice(None),) * axis + (slice(first, end, step),)]


def _shaped(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)
