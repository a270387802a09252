"""The steps of `gpen_fast`: convolutions with what the style does to them, whole or in strips of rows.

Features are (rows, columns, channels), with a border of zero pixels where a convolution needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from facefix.gpen_shape import EPSILON, GAIN, SLOPE
from facefix.winograd import Winograd, tiled, transformed

Rows = Callable[[int, int], Tensor]
State = Mapping[str, Tensor]

KEPT = 5
STRIP_PIXELS = 16384
INNER_PIXELS = {torch.float32: 8192, torch.bfloat16: 2048}
MANY_CHANNELS = {torch.float32: 96, torch.bfloat16: 256}


def stored(features: Tensor) -> Rows:
    """Rows of features that are kept with two zero rows above and below."""
    return lambda top, end: features[top + 2 : end + 2]


def rows_of_noise(noise: Tensor, face: int) -> Rows:
    """Rows of drawn noise (1 or B, C, H, W)."""
    values = noise[min(face, len(noise) - 1)].permute(1, 2, 0).contiguous()
    return lambda top, end: values[top:end]


def planes(rows: Tensor) -> Tensor:
    """(H, W, C) as torch's convolutions want it: (1, C, H, W), channels last."""
    return rows[None].permute(0, 3, 1, 2)


class Linear:
    """A fully connected layer with its run-time scale."""

    def __init__(self, state: State, name: str, rate: float = 1.0) -> None:
        self.weight = state[f"{name}.weight"]
        self.bias = state[f"{name}.bias"] * rate
        self.scale = rate / math.sqrt(self.weight.shape[1])

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return torch.addmm(self.bias, vectors, self.weight.t(), alpha=self.scale)


class Entry:
    """The pointwise convolution with which the encoder begins."""

    def __init__(self, state: State) -> None:
        self.weight = state["ecd0.0.0.weight"] * (GAIN / math.sqrt(3.0))
        self.bias = state["ecd0.0.1.bias"] * GAIN

    def whole(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H, W)."""
        return F.leaky_relu_(F.conv2d(pictures, self.weight, self.bias), SLOPE)

    def rows_of(self, face: Tensor) -> Rows:
        """Rows made when they are asked for; zero outside of the face."""
        size, weight = face.shape[1], self.weight[:, :, 0, 0].t()

        def rows(top: int, end: int) -> Tensor:
            inside = face[:, max(top, 0) : min(end, size)].flatten(1).t()
            features = torch.addmm(self.bias, inside, weight).view(-1, size, weight.shape[1])
            F.leaky_relu_(features, SLOPE)
            if top >= 0 and end <= size:
                return features
            return F.pad(features, (0, 0, 0, 0, max(-top, 0), max(end - size, 0)))

        return rows


class Halving:
    """An encoder step: blur, 3x3 convolution of stride 2, activation."""

    def __init__(self, state: State, step: int) -> None:
        weight = state[f"ecd{step}.0.1.weight"]
        self.outputs, self.inputs = weight.shape[:2]
        self.weight = (weight * (GAIN / math.sqrt(self.inputs * 9))).contiguous(memory_format=torch.channels_last)
        self.bias = state[f"ecd{step}.0.2.bias"] * GAIN
        self.blur = _blur(self.weight, 1 / 64).expand(self.inputs, 1, 4, 4).contiguous()
        self.memory: list[Tensor] = []

    def whole(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""
        blurred = F.conv2d(features, self.blur, padding=2, groups=self.inputs)
        return F.leaky_relu_(F.conv2d(blurred, self.weight, self.bias, stride=2), SLOPE)

    def strips(self, rows: Rows, size: int, face: int) -> Tensor:
        """The level below, (size / 2 + 4, size / 2, outputs) with two zero rows above and below.

        Written to memory that each face of a group, by its index, has for itself.
        """
        half, high = size // 2, max(4, min(size // 2, STRIP_PIXELS // size))
        if len(self.memory) <= face:
            self.memory.append(self.bias.new_zeros(half + 4, half, self.outputs))
        below = self.memory[face]
        for top in range(0, half, high):
            seen = planes(rows(2 * top - 2, 2 * (top + high) + 2))
            blurred = F.conv2d(seen, self.blur, padding=(0, 2), groups=self.inputs)
            made = F.conv2d(blurred, self.weight, self.bias, stride=2)
            _activate_into(below[top + 2 : top + 2 + high], made[0].permute(1, 2, 0))
        return below


def _blur(like: Tensor, scale: float) -> Tensor:
    """The (4, 4) binomial kernel times `scale`."""
    row = like.new_tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(row, row) * scale


def _activate_into(target: Tensor, values: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(values, SLOPE, out=target)


class _Modulated:
    """The static part of a modulated convolution: weights, what the style does to them, and their power."""

    def __init__(self, state: State, name: str) -> None:
        self.weight = state[f"{name}.weight"][0]
        self.outputs, self.inputs = self.weight.shape[:2]
        self.modulation = Linear(state, f"{name}.modulation")
        self.scale = 1 / math.sqrt(self.weight[0].numel())

    def scales(self, style: Tensor) -> Tensor:
        """What the inputs are multiplied with, (B, inputs)."""
        return self.modulation(style) * self.scale


class Styled(_Modulated):
    """A modulated 3x3 convolution with its activation and the weight of what is laid beside it."""

    def __init__(self, state: State, name: str, doubles: bool) -> None:
        super().__init__(state, f"{name}.conv")
        self.doubles = doubles
        self.power = torch.linalg.vector_norm(self.weight, dim=(2, 3), dtype=torch.float32).square_().t()
        bias = state[f"{name}.activate.bias"] * GAIN
        self.bias, self.beside_bias = bias[: self.outputs], bias[self.outputs :]
        self.beside_weight = float(state[f"{name}.noise.weight"]) * GAIN
        self.blur = _blur(self.weight, 4 / 64)
        if doubles:
            # Transposed convolutions take them so, and would turn them for every face.
            self.weight = self.weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)

    def demodulation(self, scales: Tensor) -> Tensor:
        """What the outputs are multiplied with, the activation's gain included, (B, outputs)."""
        return (torch.rsqrt(scales.float().square() @ self.power + EPSILON) * GAIN).to(scales.dtype)

    def whole(self, values: Tensor, style: Tensor, beside: Tensor) -> Tensor:
        """The activated values of a batch with what is laid beside them: (B, outputs + injected, H, W)."""
        scales = self.scales(style)
        values = values * scales[:, :, None, None]
        if self.doubles:
            values = F.conv_transpose2d(values, self.weight, stride=2)
            values = F.conv2d(values, self.blur.expand(self.outputs, 1, 4, 4), padding=1, groups=self.outputs)
        else:
            values = F.conv2d(values, self.weight, padding=1)
        values = torch.addcmul(self.bias[:, None, None], values, self.demodulation(scales)[:, :, None, None])
        injected = torch.add(self.beside_bias[:, None, None], beside, alpha=self.beside_weight)
        return F.leaky_relu_(torch.cat([values, injected], dim=1), SLOPE)

    def beside_into(self, target: Tensor, rows: Tensor) -> None:
        """Writes the activated injected features of some rows, (n, W, injected)."""
        _activate_into(target, torch.add(self.beside_bias, rows, alpha=self.beside_weight))


class ToRGB(_Modulated):
    """What a level adds to the picture."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__(state, f"{name}.conv")
        self.bias = state[f"{name}.bias"].flatten()
        self.blur = _blur(self.weight, 4 / 64).expand(3, 1, 4, 4).contiguous()

    def weights(self, style: Tensor) -> Tensor:
        """One face's weights: (3, inputs, 1, 1) from a (style_dim,) style."""
        return self.weight * self.scales(style[None])[0, None, :, None, None]

    def whole(self, values: Tensor, style: Tensor, picture: Tensor | None = None) -> Tensor:
        """The (B, 3, H, W) picture of a level from (B, inputs, H, W) values and the picture of half its size."""
        added = F.conv2d(values * self.scales(style)[:, :, None, None], self.weight, self.bias)
        return added if picture is None else added.add_(self.doubled(picture))

    def doubled(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, 2H, 2W)."""
        return F.conv_transpose2d(picture, self.blur, stride=2, padding=1, groups=3)


def _doubled(picture: Tensor) -> Tensor:
    """A (3, H, W) picture at (3, 2H, 2W): the same as `ToRGB.doubled`, by weighted sums of neighbours."""
    height, width = picture.shape[1:]
    padded = F.pad(picture, (1, 1, 1, 1))
    rows = picture.new_empty(3, height, 2, width + 2)
    torch.lerp(padded[:, 1:-1], padded[:, :-2], 0.25, out=rows[:, :, 0])
    torch.lerp(padded[:, 1:-1], padded[:, 2:], 0.25, out=rows[:, :, 1])
    rows = rows.view(3, 2 * height, width + 2)
    doubled = picture.new_empty(3, 2 * height, width, 2)
    torch.lerp(rows[..., 1:-1], rows[..., :-2], 0.25, out=doubled[..., 0])
    torch.lerp(rows[..., 1:-1], rows[..., 2:], 0.25, out=doubled[..., 1])
    return doubled.view(3, 2 * height, 2 * width)


class Level:
    """The two convolutions and the colours of one level, worked through whole."""

    def __init__(self, state: State, index: int, size: int) -> None:
        self.size = size
        self.one = Styled(state, f"generator.convs.{2 * index}", doubles=True)
        self.two = Styled(state, f"generator.convs.{2 * index + 1}", doubles=False)
        self.rgb = ToRGB(state, f"generator.to_rgbs.{index}")

    def whole(
        self, values: Tensor, style: Tensor, beside: tuple[Tensor, Tensor], picture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The values and the picture of this level from those of the level below."""
        values = self.one.whole(values, style, beside[0])
        values = self.two.whole(values, style, beside[1])
        return values, self.rgb.whole(values, style, picture)


class TallLevel(Level):
    """The same, worked through in strips for one face."""

    def __init__(self, state: State, index: int, size: int, winograd: bool) -> None:
        super().__init__(state, index, size)
        self.high = min(size, max(8, STRIP_PIXELS // size))
        self.memory: tuple[Tensor, Tensor] | None = None
        self.winograd: Winograd | None = None
        dtype = self.two.weight.dtype
        if winograd and self.two.inputs >= MANY_CHANNELS.get(dtype, math.inf):
            self.inner = max(4, min(self.high + 4, INNER_PIXELS[dtype] // size // 4 * 4))
            self.winograd = Winograd(self.two.inputs, self.two.outputs, self.inner, size, dtype)
            self.products = transformed(self.two.weight)
            self.light = self.products.numel() <= size**2 * self.two.inputs
            if self.light:
                self.products = self.products.transpose(1, 2).contiguous().transpose(1, 2)

    def strips(
        self, below: Tensor, style: Tensor, beside: tuple[Rows, Rows], picture: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Values with a border, (size + 2, size + 2, channels), and the picture, from those of the level below.

        The values of the last level are not kept.
        """
        one, two, size, high = self.one, self.two, self.size, self.high
        first = self._first(below, style)
        second = self._second(style)
        colours = self.rgb.weights(style)
        picture = _doubled(picture)
        middle, values = self._memory(below, last)
        for top in range(0, size, high):
            end = top + high
            start, stop = top - 4 if top else 0, size if end == size else end - 4
            early = beside[0](start, end)
            late = early[: stop - start] if beside[1] is beside[0] else beside[1](start, stop)
            inside = middle[KEPT : KEPT + high, 1:-1]
            first(inside[..., : one.outputs], top, end)
            one.beside_into(inside[..., one.outputs :], early[top - start :])
            if end == size:
                middle[-1] = 0
            made = values[: stop - start] if last else values[start + 1 : stop + 1]
            second(made[:, 1:-1, : two.outputs], middle[start - 1 - top + KEPT : stop + 1 - top + KEPT])
            two.beside_into(made[:, 1:-1, two.outputs :], late)
            added = F.conv2d(planes(made), colours, self.rgb.bias)[0, :, :, 1:-1]
            picture[:, start:stop].add_(added)
            middle[:KEPT] = middle[high : high + KEPT]
        return values, picture

    def _memory(self, like: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """What strips are written to, with zero borders; kept from face to face."""
        if self.memory is None:
            high, wide = self.high, self.size + 2
            values = like.new_zeros(high + 4 if last else wide, wide, self.rgb.inputs)
            self.memory = like.new_zeros(KEPT + high + 1, wide, self.two.inputs), values
        self.memory[0][:KEPT] = 0
        return self.memory

    def _first(self, below: Tensor, style: Tensor) -> Callable[[Tensor, int, int], None]:
        """Writes rows (top to end) of the first convolution's activated values."""
        one = self.one
        scales = one.scales(style[None])
        factors = one.demodulation(scales)[0]
        weight, inputs = one.weight, below
        if weight.numel() > below.numel():
            inputs = below * scales[0]
        else:
            weight = weight * scales[0][:, None, None, None]
        blur = factors[:, None, None, None] * one.blur

        def write(target: Tensor, top: int, end: int) -> None:
            seen = planes(inputs[top // 2 : end // 2 + 2])
            spread = F.conv_transpose2d(seen, weight, stride=2, padding=1)
            made = F.conv2d(spread, blur, one.bias, groups=one.outputs)
            _activate_into(target, made[0].permute(1, 2, 0))

        return write

    def _second(self, style: Tensor) -> Callable[[Tensor, Tensor], None]:
        """Writes the second convolution's activated values for a strip of its inputs with a border."""
        two = self.two
        scales = two.scales(style[None])
        factors = two.demodulation(scales)[0]
        if self.winograd is None:
            weight = two.weight * (scales * factors[:, None])[:, :, None, None]
            weight = weight.contiguous(memory_format=torch.channels_last)

            def direct(target: Tensor, strip: Tensor) -> None:
                _activate_into(target, F.conv2d(planes(strip), weight, two.bias)[0].permute(1, 2, 0))

            return direct
        winograd = self.winograd
        light = self.light
        products = self.products * (scales * factors[:, None]) if light else self.products
        bias = two.bias if light else two.bias / factors

        def minimal(target: Tensor, strip: Tensor) -> None:
            for top in range(0, len(target), self.inner):
                rows = target[top : top + self.inner]
                seen = strip[top : top + len(rows) + 2]
                tiles = winograd(seen if light else seen * scales[0], products)
                _activate_into(tiled(rows, winograd.tile), tiles.add_(bias))
                if not light:
                    rows.mul_(factors)

        return minimal
