"""LaMa's generator for use: the numbers of `ffc.Generator` in evaluation mode, sooner and in less memory.

- Normalisation is folded into the convolutions before it, and convolutions of the same features are one.
- Features lie pixel by pixel (channels last), in which order the spectrum's real and imaginary parts are what the
  published weights take them for: nothing is turned around on the way to and from the Fourier transforms.
- 3x3 convolutions with many channels go through `winograd` (float32 on a CPU), forth and back.
- The weights are fixed, so the gradient with regard to features needs to know nothing but where the rectifiers let
  through: one byte a value, where a graph of plain operations keeps the inputs of every one of them. Nothing is
  computed twice for it, as checkpointing would. Each step knows its own way back.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facefix.ffc import Convolution, FFCBlock, FFCLayer, Generator, SpectralTransform, reflected
from facefix.winograd import TILES, Winograd, tiled, transformed

TILE = TILES[torch.float32]
MANY_CHANNELS = 96
MANY_PIXELS = 1024
STRIP_PIXELS = 2048

CHUNK_BYTES = 48 << 20
"""More than the 32 MB up to which a C library keeps what is freed: small pieces between large ones would pin those."""


class Folded(nn.Module):
    """A generator whose tensors are fixed; takes and gives what `ffc.Generator` does.

    Args:
        generator: whose tensors are taken; it stays as it was.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        shape = generator.shape
        layers = {int(place): module for place, module in generator.model.items()}
        self.entry = nn.Sequential(*(_Entry(cast(FFCLayer, layers[i])) for i in range(1, shape.first_block)))
        steps: list[nn.Module] = [_Block(cast(FFCBlock, layers[shape.first_block + i])) for i in range(shape.blocks)]
        for place in range(shape.first_rise, shape.last - 1, 3):
            steps.append(_Rise(cast(Convolution, layers[place]), cast(nn.BatchNorm2d, layers[place + 1])))
        self.steps = nn.ModuleList([*steps, _Exit(cast(Convolution, layers[shape.last]))])
        self.eval().requires_grad_(False)

    def forward(self, seen: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.rear(self.front(seen))

    def front(self, seen: Tensor) -> Tensor:
        """(B, inputs, H, W) -> features (B, channels, H/8, W/8)."""
        features: Tensor = self.entry(seen.contiguous(memory_format=torch.channels_last))
        return features

    def rear(self, features: Tensor) -> Tensor:
        """(B, channels, H/8, W/8) -> (B, outputs, H, W)."""
        memory = _Memory(features.device, torch.is_grad_enabled() and features.requires_grad)
        picture: Tensor = _Rear.apply(features.contiguous(memory_format=torch.channels_last), self.steps, memory)
        return picture.sigmoid().contiguous()


class _Rear(torch.autograd.Function):
    """The rear as one operation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, steps: nn.ModuleList, memory: _Memory) -> Tensor:
        ctx.steps, ctx.memory = steps, memory
        for step in steps:
            features = step(features, memory)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        ctx.memory.rewind()
        for step in reversed(ctx.steps):
            grad = step.back(grad, ctx.memory)
        return grad, None, None


class _Memory:
    """What one pass and its gradient work in: where rectifiers let through, and the strips of 3x3 convolutions.

    Args:
        device: where the features are.
        keeps: whether there will be a gradient.
    """

    def __init__(self, device: torch.device, keeps: bool) -> None:
        self.device, self.keeps = device, keeps
        self.chunks: list[Tensor] = []
        self.places: list[tuple[int, int]] = []
        self.next, self.at = (-1, 0), 0
        self.strips: dict[tuple[int, int, int, int], Winograd] = {}

    def rectified(self, values: Tensor) -> Tensor:
        """The values with all below 0 set to 0, in place; where they were not is remembered."""
        if self.keeps:
            chunk, start = self.next
            if chunk < 0 or start + values.numel() > len(self.chunks[chunk]):
                size = max(values.numel(), CHUNK_BYTES)
                self.chunks.append(torch.empty(size, dtype=torch.bool, device=self.device))
                chunk, start = chunk + 1, 0
            torch.gt(values, 0, out=self._booleans(chunk, start, values))
            self.places.append((chunk, start))
            self.next = chunk, start + values.numel()
        return values.relu_()

    def rewind(self) -> None:
        """Nothing; the way back begins with what was rectified last."""
        self.at = len(self.places)

    def passed(self, grad: Tensor) -> Tensor:
        """The gradient before the rectifier that comes next on the way back; laid out as its values were."""
        self.at -= 1
        return self._booleans(*self.places[self.at], grad).to(grad.dtype).mul_(grad)

    def _booleans(self, chunk: int, start: int, values: Tensor) -> Tensor:
        """The booleans that are kept there, as the values of four axes are laid out: channels last."""
        piece = self.chunks[chunk][start : start + values.numel()]
        batch, channels, height, width = values.shape
        return piece.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def convolved(self, wide: Tensor, weight: Tensor) -> Tensor:
        """(B, I, H, W) and (O, I, k, k) -> (B, O, H - k + 1, W - k + 1); 3x3 by Winograd where that is sooner.

        The weights are transformed at each call: kept, they would take four times the memory of the network.
        """
        outputs, inputs, side = weight.shape[:3]
        height, width = wide.shape[2] - side + 1, wide.shape[3] - side + 1
        plain = wide.device.type != "cpu" or wide.dtype != torch.float32
        if plain or side != 3 or min(inputs, outputs) < MANY_CHANNELS or height * width < MANY_PIXELS:
            return F.conv2d(wide, weight)
        missing = -height % TILE, -width % TILE
        pixels = F.pad(wide.permute(0, 2, 3, 1), (0, 0, 0, missing[1], 0, missing[0]))
        rows, columns = height + missing[0], width + missing[1]
        strip = min(rows, max(TILE, STRIP_PIXELS // columns // TILE * TILE))
        key = (inputs, outputs, strip, columns)
        if key not in self.strips:
            if len(self.strips) == 2:  # a layer has two kinds of convolution, and other two on the way back
                self.strips.clear()
            self.strips[key] = Winograd(*key)
        factors = transformed(weight.contiguous())
        size = (len(wide), outputs, rows, columns)
        result = torch.empty(size, dtype=wide.dtype, memory_format=torch.channels_last)
        for picture, convolved in zip(pixels, result.permute(0, 2, 3, 1), strict=True):
            for top in range(0, rows, strip):
                part = convolved[top : top + strip]
                tiled(part, TILE).copy_(self.strips[key](picture[top : top + len(part) + 2], factors))
        if not any(missing):
            return result
        return result[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _convolved(features: Tensor, weight: Tensor, memory: _Memory) -> Tensor:
    """The features, reflected at the border, convolved."""
    return memory.convolved(reflected(features, weight.shape[-1] // 2), weight)


def _convolved_back(grad: Tensor, weight: Tensor, memory: _Memory) -> Tensor:
    """The gradient before `_convolved`: what was reflected counts where it came from."""
    side = weight.shape[-1]
    margin = side // 2
    wide = memory.convolved(F.pad(grad, (side - 1,) * 4), weight.flip(2, 3).transpose(0, 1))
    for axis in (2, 3):
        size = wide.shape[axis]
        wide.narrow(axis, margin + 1, margin).add_(wide.narrow(axis, 0, margin).flip(axis))
        wide.narrow(axis, size - 2 * margin - 1, margin).add_(wide.narrow(axis, size - margin, margin).flip(axis))
        wide = wide.narrow(axis, margin, size - 2 * margin)
    return wide


def _keep(module: nn.Module, **tensors: Tensor) -> None:
    """Nothing; the module holds the tensors as buffers, laid out pixel by pixel."""
    for name, tensor in tensors.items():
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        module.register_buffer(name, tensor.detach().contiguous(memory_format=layout).clone())


def _scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What the normalisation multiplies by and adds, in float64."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    return scale, norm.bias.double() - mean * scale


def _scaled(conv: Convolution, scale: Tensor, axis: int = 0) -> Tensor:
    """The convolution's weight, multiplied along its outputs."""
    shape = [-1 if index == axis else 1 for index in range(4)]
    return (conv.weight.double() * scale.view(shape)).to(conv.weight.dtype)


class _Entry(nn.Module):
    """A convolution of local channels only."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: FFCLayer) -> None:
        super().__init__()
        self.margin, self.stride = layer.margin, layer.stride
        ways = [(layer.ffc.convl2l, layer.bn_l)]
        if hasattr(layer, "bn_g"):
            ways.append((layer.ffc.convl2g, layer.bn_g))
        norms = [_scale_shift(norm) for _, norm in ways]
        weight = torch.cat([_scaled(conv, scale) for (conv, _), (scale, _) in zip(ways, norms, strict=True)])
        _keep(self, weight=weight, bias=torch.cat([shift for _, shift in norms]).to(weight.dtype))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(reflected(features, self.margin), self.weight, self.bias, stride=self.stride).relu_()


class _Spectral(nn.Module):
    """The way from global to global channels, pixel by pixel: (B, H, W, C) as it came."""

    narrowing: Tensor
    narrowing_bias: Tensor
    mixing: Tensor
    mixing_bias: Tensor
    widening: Tensor

    def __init__(self, spectral: SpectralTransform, scale: Tensor) -> None:
        super().__init__()
        conv = cast(Convolution, spectral.conv1[0])
        narrow, narrow_bias = _scale_shift(cast(nn.BatchNorm2d, spectral.conv1[1]))
        mix, mix_bias = _scale_shift(spectral.fu.bn)
        _keep(
            self,
            narrowing=_scaled(conv, narrow).flatten(1),
            narrowing_bias=narrow_bias.to(conv.weight.dtype),
            mixing=_scaled(spectral.fu.conv_layer, mix).flatten(1),
            mixing_bias=mix_bias.to(conv.weight.dtype),
            widening=_scaled(spectral.conv2, scale).flatten(1),
        )

    def forward(self, pixels: Tensor, memory: _Memory) -> Tensor:
        narrow = self._rectified(F.linear(pixels, self.narrowing, self.narrowing_bias), memory)
        # with the channels last, real and imaginary parts lie beside each other, as the weights want them
        parts = self._transformed(narrow)
        mixed = self._rectified(F.linear(parts, self.mixing, self.mixing_bias), memory)
        return F.linear(narrow.add_(self._back_transformed(mixed, narrow)), self.widening)

    def back(self, grad: Tensor, memory: _Memory) -> Tensor:
        grad = grad @ self.widening
        # the transform of real numbers and the way back are each other's adjoint but for the columns of which half a
        # spectrum has one of two: they would count double here and half there
        parts = memory.passed(self._transformed(grad).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        grad = grad + self._back_transformed(parts @ self.mixing, grad)
        return memory.passed(grad.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) @ self.narrowing

    @staticmethod
    def _rectified(pixels: Tensor, memory: _Memory) -> Tensor:
        return memory.rectified(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    @staticmethod
    def _transformed(pixels: Tensor) -> Tensor:
        """(B, H, W, C) -> the half spectrum (B, H, W/2 + 1, 2C)."""
        spectrum = torch.fft.rfft2(pixels, dim=(1, 2), norm="ortho").contiguous()
        return torch.view_as_real(spectrum).flatten(3)

    @staticmethod
    def _back_transformed(parts: Tensor, like: Tensor) -> Tensor:
        """The half spectrum -> (B, H, W, C), the size of `like`."""
        spectrum = torch.view_as_complex(parts.view(*parts.shape[:3], -1, 2))
        there: Tensor = torch.fft.irfft2(spectrum, s=like.shape[1:3], dim=(1, 2), norm="ortho")
        return there


class _Layer(nn.Module):
    """A fast Fourier convolution between both halves; what starts from local channels is one convolution."""

    from_local: Tensor
    from_global: Tensor
    bias: Tensor

    def __init__(self, layer: FFCLayer) -> None:
        super().__init__()
        self.local = layer.local
        near, near_bias = _scale_shift(layer.bn_l)
        far, far_bias = _scale_shift(layer.bn_g)
        ffc = layer.ffc
        self.spectral = _Spectral(ffc.convg2g, far)
        _keep(
            self,
            from_local=torch.cat([_scaled(ffc.convl2l, near), _scaled(ffc.convl2g, far)]),
            from_global=_scaled(ffc.convg2l, near),
            bias=torch.cat([near_bias, far_bias]).to(ffc.convl2l.weight.dtype),
        )

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        near, far = features[:, : self.local], features[:, self.local :]
        result = _convolved(near, self.from_local, memory).add_(self.bias.view(1, -1, 1, 1))
        result[:, : self.local] += _convolved(far, self.from_global, memory)
        result[:, self.local :] += self.spectral(far.permute(0, 2, 3, 1), memory).permute(0, 3, 1, 2)
        return memory.rectified(result)

    def back(self, grad: Tensor, memory: _Memory) -> Tensor:
        grad = memory.passed(grad)
        far = self.spectral.back(grad[:, self.local :].permute(0, 2, 3, 1), memory).permute(0, 3, 1, 2)
        far += _convolved_back(grad[:, : self.local], self.from_global, memory)
        near = _convolved_back(grad, self.from_local, memory)
        return torch.cat([near, far], dim=1)


class _Block(nn.Module):
    def __init__(self, block: FFCBlock) -> None:
        super().__init__()
        self.first, self.second = _Layer(block.conv1), _Layer(block.conv2)

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        changed: Tensor = self.second(self.first(features, memory), memory)
        return changed.add_(features)

    def back(self, grad: Tensor, memory: _Memory) -> Tensor:
        before: Tensor = self.first.back(self.second.back(grad, memory), memory)
        return before.add_(grad)


class _Rise(nn.Module):
    """Doubles the size."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Convolution, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = _scale_shift(norm)
        bias = (conv.bias.double() * scale + shift).to(conv.weight.dtype)
        _keep(self, weight=_scaled(conv, scale, axis=1), bias=bias)

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        return memory.rectified(
            F.conv_transpose2d(features, self.weight, self.bias, stride=2, padding=1, output_padding=1)
        )

    def back(self, grad: Tensor, memory: _Memory) -> Tensor:
        return F.conv2d(memory.passed(grad), self.weight, stride=2, padding=1)


class _Exit(nn.Module):
    """The picture; its sigmoid stands outside, as it knows its own way back."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        _keep(self, weight=conv.weight, bias=conv.bias)

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        return _convolved(features, self.weight, memory).add_(self.bias.view(1, -1, 1, 1))

    def back(self, grad: Tensor, memory: _Memory) -> Tensor:
        return _convolved_back(grad, self.weight, memory)
