"""LaMa's generator for use: the numbers of `ffc.Generator` in evaluation mode, sooner and in less memory.

- Normalisation is folded into the convolutions before it, and convolutions of the same features are one.
- Features lie pixel by pixel (channels last), in which order the spectrum's real and imaginary parts are what the
  published weights take them for: nothing is turned around on the way to and from the Fourier transforms.
- 3x3 convolutions with many channels go through `winograd` (float32 on a CPU), forth and back.
- The weights are fixed, so gradients with regard to features need to know nothing but where the rectifiers let through:
  one byte a value, where a graph of plain operations keeps the inputs of every one of them. Nothing is computed twice
  for it, as checkpointing would.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facefix.ffc import Convolution, FFCBlock, FFCLayer, Generator, SpectralTransform, reflected
from facefix.winograd import TILE, Winograd, tiled, transformed

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
        features = features.contiguous(memory_format=torch.channels_last)
        memory = _Memory(features.device)
        for step in self.steps:
            features = step(features, memory)
        return features.contiguous()


class _Memory:
    """What one pass and its gradient work in: booleans from few large pieces, and the strips of 3x3 convolutions."""

    def __init__(self, device: torch.device) -> None:
        self.left = torch.empty(0, dtype=torch.bool, device=device)
        self.strips: dict[tuple[int, int, int, int], Winograd] = {}

    def like(self, values: Tensor) -> Tensor:
        """As many booleans as there are values, laid out as they are; the values are dense."""
        count = values.numel()
        if len(self.left) < count:
            self.left = self.left.new_empty(max(count, CHUNK_BYTES))
        part, self.left = self.left[:count], self.left[count:]
        # data: pieces are written one after the other, and are no versions of each other
        return part.as_strided(values.shape, values.stride()).data

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
                tiled(part).copy_(self.strips[key](picture[top : top + len(part) + 2], factors))
        if not any(missing):
            return result
        return result[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


class _Convolve(torch.autograd.Function):
    """A convolution by fixed weights, the border reflected; keeps nothing for its gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, memory: _Memory) -> Tensor:
        ctx.weight, ctx.memory = weight, memory
        result = memory.convolved(reflected(features, weight.shape[-1] // 2), weight)
        return result if bias is None else result.add_(bias.view(1, -1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        side = ctx.weight.shape[-1]
        margin = side // 2
        around = F.pad(grads[0], (side - 1,) * 4)
        wide = ctx.memory.convolved(around, ctx.weight.flip(2, 3).transpose(0, 1))
        for axis in (2, 3):  # what was reflected counts where it came from
            size = wide.shape[axis]
            wide.narrow(axis, margin + 1, margin).add_(wide.narrow(axis, 0, margin).flip(axis))
            wide.narrow(axis, size - 2 * margin - 1, margin).add_(wide.narrow(axis, size - margin, margin).flip(axis))
            wide = wide.narrow(axis, margin, size - 2 * margin)
        return wide, None, None, None


class _Double(torch.autograd.Function):
    """A transposed convolution of stride 2 by fixed weights; keeps nothing for its gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.weight = weight
        return F.conv_transpose2d(features, weight, bias, stride=2, padding=1, output_padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return F.conv2d(grads[0], ctx.weight, stride=2, padding=1), None, None


class _Rectify(torch.autograd.Function):
    """The rectifier, in place; keeps one byte a value for its gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, memory: _Memory) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.gt(features, 0, out=memory.like(features)))
        ctx.mark_dirty(features.relu_())
        return features

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0].to(grads[0].dtype).mul_(grads[0]), None


class _Transform(torch.autograd.Function):
    """The half spectrum of real numbers (B, H, W, C), over rows and columns; keeps nothing for its gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.size = pixels.shape[1:3]
        spectrum: Tensor = torch.fft.rfft2(pixels, dim=(1, 2), norm="ortho")
        return spectrum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # the way back counts every column twice that has a mirrored one, which the half spectrum left out
        alone = (ctx.size[1] + 1) // 2
        halves = grads[0].clone()
        halves[:, :, 1:alone] *= 0.5
        pixels: Tensor = torch.fft.irfft2(halves, s=ctx.size, dim=(1, 2), norm="ortho")
        return pixels


def _convolved(features: Tensor, memory: _Memory, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, _Convolve.apply(features, weight, bias, memory))


def _doubled(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return cast(Tensor, _Double.apply(features, weight, bias))


def _rectified(features: Tensor, memory: _Memory) -> Tensor:
    return cast(Tensor, _Rectify.apply(features, memory))


def _transformed(pixels: Tensor) -> Tensor:
    return cast(Tensor, _Transform.apply(pixels))


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
    widening_bias: Tensor

    def __init__(self, spectral: SpectralTransform, scale: Tensor, shift: Tensor) -> None:
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
            widening_bias=shift.to(conv.weight.dtype),
        )

    def forward(self, pixels: Tensor, memory: _Memory) -> Tensor:
        narrow = _rectified(F.linear(pixels, self.narrowing, self.narrowing_bias), memory)
        # with the channels last, real and imaginary parts lie beside each other, as the weights want them
        spectrum = torch.view_as_real(_transformed(narrow).contiguous())
        mixed = _rectified(F.linear(spectrum.flatten(3), self.mixing, self.mixing_bias), memory).view(spectrum.shape)
        there = torch.fft.irfft2(torch.view_as_complex(mixed), s=pixels.shape[1:3], dim=(1, 2), norm="ortho")
        return F.linear(narrow + there, self.widening, self.widening_bias)  # without a bias it would keep its input


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
        self.spectral = _Spectral(ffc.convg2g, far, far_bias)
        _keep(
            self,
            from_local=torch.cat([_scaled(ffc.convl2l, near), _scaled(ffc.convl2g, far)]),
            from_global=_scaled(ffc.convg2l, near),
            bias=torch.cat([near_bias, torch.zeros_like(far_bias)]).to(ffc.convl2l.weight.dtype),
        )

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        near, far = features[:, : self.local], features[:, self.local :]
        spectral = self.spectral(far.permute(0, 2, 3, 1), memory).permute(0, 3, 1, 2)
        beside = torch.cat([_convolved(far, memory, self.from_global), spectral], dim=1)
        return _rectified(_convolved(near, memory, self.from_local, self.bias).add_(beside), memory)


class _Block(nn.Module):
    def __init__(self, block: FFCBlock) -> None:
        super().__init__()
        self.first, self.second = _Layer(block.conv1), _Layer(block.conv2)

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        changed: Tensor = self.second(self.first(features, memory), memory)
        return changed.add_(features)


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
        return _rectified(_doubled(features, self.weight, self.bias), memory)


class _Exit(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        _keep(self, weight=conv.weight, bias=conv.bias)

    def forward(self, features: Tensor, memory: _Memory) -> Tensor:
        return _convolved(features, memory, self.weight, self.bias).sigmoid()
