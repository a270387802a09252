"""The LaMa generator: a network that fills holes, half of which looks at the whole picture through Fourier transforms.

`Generator` carries the tensor names and shapes of the published checkpoints and computes every operation as the paper
states it. `Folded` computes the same numbers for use: normalisation folded into the convolutions, pictures laid out
pixel by pixel, memory written in place, and block checkpointing for whoever asks it for gradients.

Both are cut in two where refinement cuts them: `front` makes the features at an eighth of the size, `rear` the picture.
Features are one tensor (B, local + global, H/8, W/8), the local channels first.

Source: Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (WACV 2022); fast Fourier
convolutions after Chi et al., "Fast Fourier Convolution" (NeurIPS 2020). The published implementation is Apache-2.0.
Checked against recorded outputs of the published code on a small generator, and beside spandrel's at full width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALLEST = 16
"""The least height and width, px: the deepest features need two rows to be reflected at their border."""
MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a LaMa generator.

    Args:
        widths: channels at full size, at half of it, and so on down; the last are both halves' together.
        local: how many of the last are local; the others are global.
        blocks: number of residual blocks: 18 in big-LaMa, 9 in lama-fourier.
        inputs: channels of the input: the picture's and the mask.
        outputs: channels of the result.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    local: int = 128
    blocks: int = 18
    inputs: int = 4
    outputs: int = 3

    def __post_init__(self) -> None:
        if len(self.widths) != MULTIPLE.bit_length():
            raise ValueError(f"expected {MULTIPLE.bit_length() - 1} halvings, got {len(self.widths) - 1}")
        if min(*self.widths, self.blocks, self.inputs, self.outputs) < 1:
            raise ValueError(f"expected positive widths and at least one block, got {self}")
        if not 0 < self.local < self.widths[-1] - 1:
            raise ValueError(f"expected local and at least two global channels, got {self.local} of {self.widths[-1]}")

    @property
    def first_block(self) -> int:
        """Where the residual blocks begin in the published sequence."""
        return len(self.widths) + 1

    @property
    def first_rise(self) -> int:
        """Where the doublings begin in the published sequence, three places each."""
        return self.first_block + self.blocks + 1

    @property
    def last(self) -> int:
        """Where the last convolution stands in the published sequence."""
        return self.first_rise + 3 * (len(self.widths) - 1) + 1

    @classmethod
    def of_state(cls, tensors: Mapping[str, Tensor]) -> Shape:
        """The dimensions that a state dict has, from its tensors' names and shapes alone.

        Raises:
            KeyError: a tensor that every LaMa generator has is missing; its argument is the name.
            ValueError: they are no dimensions of a LaMa generator.
        """
        widths, local, place = [], 0, 1
        while (name := f"model.{place}.ffc.convl2l.weight") in tensors or place == 1:
            far = tensors.get(f"model.{place}.ffc.convl2g.weight")
            local = tensors[name].shape[0]
            widths.append(local + (0 if far is None else far.shape[0]))
            place += 1
        blocks = sum(1 for name in tensors if re.fullmatch(r"model\.\d+\.conv1\.ffc\.convl2l\.weight", name))
        shape = cls(tuple(widths), local, blocks, tensors["model.1.ffc.convl2l.weight"].shape[1])
        outputs = tensors[f"model.{shape.last}.weight"].shape[0]
        return cls(shape.widths, shape.local, shape.blocks, shape.inputs, outputs)


class Halves(Protocol):
    """What refinement needs of a network."""

    def front(self, seen: Tensor) -> Tensor:
        """(B, inputs, H, W) -> features (B, channels, H/8, W/8)."""

    def rear(self, features: Tensor) -> Tensor:
        """(B, channels, H/8, W/8) -> (B, outputs, H, W), 0..1."""


def reflected(picture: Tensor, margin: int) -> Tensor:
    """The picture with `margin` reflected pixels on every side."""
    return F.pad(picture, (margin,) * 4, mode="reflect")


# --- the published form ----------------------------------------------------------------------------------------------


class Convolution(nn.Module):
    """Holds the weight, and the bias where there is one, of a convolution."""

    def __init__(self, outputs: int, inputs: int, kernel: int, bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        if bias:
            self.bias = nn.Parameter(torch.zeros(bias))


class FourierUnit(nn.Module):
    """A pointwise convolution of the spectrum, whose real and imaginary parts are channels of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_layer = Convolution(2 * channels, 2 * channels, 1)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = features.shape[2:]
        parts = torch.view_as_real(torch.fft.rfft2(features, norm="ortho")).permute(0, 1, 4, 2, 3)
        mixed = F.relu(self.bn(F.conv2d(parts.flatten(1, 2), self.conv_layer.weight)))
        pairs = mixed.view(len(mixed), -1, 2, *mixed.shape[2:]).permute(0, 1, 3, 4, 2)
        spectrum = torch.view_as_complex(pairs.contiguous())
        there: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        return there


class SpectralTransform(nn.Module):
    """The way from global to global channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Sequential(Convolution(half, channels, 1), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = FourierUnit(half)
        self.conv2 = Convolution(channels, half, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, global, H, W) -> (B, global, H, W)."""
        conv, norm = cast(Convolution, self.conv1[0]), self.conv1[1]
        narrow = F.relu(norm(F.conv2d(features, conv.weight)))
        return F.conv2d(narrow + self.fu(narrow), self.conv2.weight)


class FastFourierConvolution(nn.Module):
    """Four convolutions between local and global channels; one from global to global goes through the spectrum."""

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int], kernel: int) -> None:
        super().__init__()
        self.convl2l = Convolution(outputs[0], inputs[0], kernel)
        if outputs[1]:
            self.convl2g = Convolution(outputs[1], inputs[0], kernel)
        if inputs[1]:
            self.convg2l = Convolution(outputs[0], inputs[1], kernel)
            self.convg2g = SpectralTransform(outputs[1])


class FFCLayer(nn.Module):
    """A fast Fourier convolution, normalisation of either half, and the rectifier.

    Args:
        inputs, outputs: local and global channels.
        kernel: side of the kernels.
        stride: 2 halves the size.
    """

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int], kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.local, self.margin, self.stride = inputs[0], kernel // 2, stride
        self.ffc = FastFourierConvolution(inputs, outputs, kernel)
        self.bn_l = nn.BatchNorm2d(outputs[0])
        if outputs[1]:
            self.bn_g = nn.BatchNorm2d(outputs[1])

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        near, far = features[:, : self.local], features[:, self.local :]

        def convolved(half: Tensor, by: Convolution) -> Tensor:
            return F.conv2d(reflected(half, self.margin), by.weight, stride=self.stride)

        result = convolved(near, self.ffc.convl2l)
        if far.shape[1]:
            result = result + convolved(far, self.ffc.convg2l)
        result = F.relu(self.bn_l(result))
        if not hasattr(self, "bn_g"):
            return result
        beside = convolved(near, self.ffc.convl2g)
        if far.shape[1]:
            beside = beside + self.ffc.convg2g(far)
        return torch.cat([result, F.relu(self.bn_g(beside))], dim=1)


class FFCBlock(nn.Module):
    """Two fast Fourier convolutions, added to what they came from."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = FFCLayer(channels, channels, 3)
        self.conv2 = FFCLayer(channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        changed: Tensor = self.conv2(self.conv1(features))
        return features + changed


class Generator(nn.Module):
    """The whole network: (B, 4, H, W), RGB 0..1 with the hole set to 0 and the hole's mask -> (B, 3, H, W), 0..1.

    H and W are multiples of 8 and at least 16.

    Example:
        >>> Generator(Shape((2, 4, 8, 16), 4, 1))(torch.zeros(1, 4, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        widths, both = shape.widths, (shape.local, shape.widths[-1] - shape.local)
        self.model = nn.ModuleDict({"1": FFCLayer((shape.inputs, 0), (widths[0], 0), 7)})
        for place, (wide, deep) in enumerate(pairwise(widths), start=2):
            outputs = both if place == len(widths) else (deep, 0)
            self.model[str(place)] = FFCLayer((wide, 0), outputs, 3, stride=2)
        for place in range(shape.first_block, shape.first_block + shape.blocks):
            self.model[str(place)] = FFCBlock(both)
        for step, (deep, wide) in enumerate(pairwise(reversed(widths))):
            self.model[str(shape.first_rise + 3 * step)] = Convolution(deep, wide, 3, bias=wide)
            self.model[str(shape.first_rise + 3 * step + 1)] = nn.BatchNorm2d(wide)
        self.model[str(shape.last)] = Convolution(shape.outputs, widths[0], 7, bias=shape.outputs)

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Generator:
        """The network that a state dict describes, holding these very tensors, in evaluation mode and grad-free.

        Raises:
            KeyError, ValueError, RuntimeError: the tensors are not those of a LaMa generator.
        """
        model = cls.hollow(Shape.of_state(tensors))
        model.load_state_dict(tensors, assign=True)
        return model.eval().requires_grad_(False)

    @classmethod
    def hollow(cls, shape: Shape) -> Generator:
        """A network of these dimensions without numbers (on the meta device): nothing is drawn, nothing allocated."""
        with torch.device("meta"):
            return cls(shape)

    @classmethod
    def layout(cls, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a network of these dimensions has, in the order of its state dict."""
        return {name: tuple(tensor.shape) for name, tensor in cls.hollow(shape).state_dict().items()}

    def forward(self, seen: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.rear(self.front(seen))

    def front(self, seen: Tensor) -> Tensor:
        """(B, inputs, H, W) -> features (B, channels, H/8, W/8)."""
        for place in range(1, self.shape.first_block):
            seen = self.model[str(place)](seen)
        return seen

    def rear(self, features: Tensor) -> Tensor:
        """(B, channels, H/8, W/8) -> (B, outputs, H, W)."""
        shape = self.shape
        for place in range(shape.first_block, shape.first_block + shape.blocks):
            features = self.model[str(place)](features)
        for place in range(shape.first_rise, shape.last - 1, 3):
            rise = cast(Convolution, self.model[str(place)])
            features = F.conv_transpose2d(features, rise.weight, rise.bias, stride=2, padding=1, output_padding=1)
            features = F.relu(self.model[str(place + 1)](features))
        last = cast(Convolution, self.model[str(shape.last)])
        return F.conv2d(reflected(features, 3), last.weight, last.bias).sigmoid()


# --- the form for use ------------------------------------------------------------------------------------------------


class Folded(nn.Module):
    """The same numbers as the generator's in evaluation mode, sooner and in less memory.

    Args:
        generator: whose tensors are taken; it stays as it was.
        checkpointed: whether gradients make each block anew instead of keeping what it computed.
    """

    def __init__(self, generator: Generator, *, checkpointed: bool = True) -> None:
        super().__init__()
        shape = generator.shape
        layers = {int(place): module for place, module in generator.model.items()}
        self.checkpointed = checkpointed
        self.entry = nn.Sequential(*(_Entry(cast(FFCLayer, layers[i])) for i in range(1, shape.first_block)))
        self.steps = nn.ModuleList(
            _Block(cast(FFCBlock, layers[shape.first_block + index])) for index in range(shape.blocks)
        )
        for place in range(shape.first_rise, shape.last - 1, 3):
            self.steps.append(_Rise(cast(Convolution, layers[place]), cast(nn.BatchNorm2d, layers[place + 1])))
        self.steps.append(_Exit(cast(Convolution, layers[shape.last])))
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
        again = self.checkpointed and torch.is_grad_enabled() and features.requires_grad
        for step in self.steps:
            if again:
                features = cast(Tensor, checkpoint(step, features, use_reentrant=False, preserve_rng_state=False))
            else:
                features = step(features)
        return features.contiguous()


def _kept(module: nn.Module, **tensors: Tensor) -> None:
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
        weights, biases = [], []
        for conv, norm in ways:
            scale, shift = _scale_shift(norm)
            weights.append(_scaled(conv, scale))
            biases.append(shift.to(conv.weight.dtype))
        _kept(self, weight=torch.cat(weights), bias=torch.cat(biases))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(reflected(features, self.margin), self.weight, self.bias, stride=self.stride).relu_()


class _Spectral(nn.Module):
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
        dtype = conv.weight.dtype
        _kept(
            self,
            narrowing=_scaled(conv, narrow),
            narrowing_bias=narrow_bias.to(dtype),
            mixing=_scaled(spectral.fu.conv_layer, mix).flatten(1),
            mixing_bias=mix_bias.to(dtype),
            widening=_scaled(spectral.conv2, scale),
        )

    def forward(self, features: Tensor) -> Tensor:
        narrow = F.conv2d(features, self.narrowing, self.narrowing_bias).relu_()
        pixels = narrow.permute(0, 2, 3, 1)  # with channels last, real and imaginary parts lie as the weights want them
        spectrum = torch.view_as_real(torch.fft.rfft2(pixels, dim=(1, 2), norm="ortho").contiguous())
        mixed = F.linear(spectrum.flatten(3), self.mixing, self.mixing_bias).relu_().view(spectrum.shape)
        there = torch.fft.irfft2(torch.view_as_complex(mixed), s=pixels.shape[1:3], dim=(1, 2), norm="ortho")
        return F.conv2d(narrow + there.permute(0, 3, 1, 2), self.widening)


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
        _kept(
            self,
            from_local=torch.cat([_scaled(ffc.convl2l, near), _scaled(ffc.convl2g, far)]),
            from_global=_scaled(ffc.convg2l, near),
            bias=torch.cat([near_bias, far_bias]).to(ffc.convl2l.weight.dtype),
        )

    def forward(self, features: Tensor) -> Tensor:
        near, far = features[:, : self.local], features[:, self.local :]
        result = F.conv2d(reflected(near, 1), self.from_local, self.bias)
        result[:, : self.local] += F.conv2d(reflected(far, 1), self.from_global)
        result[:, self.local :] += self.spectral(far)
        return result.relu_()


class _Block(nn.Module):
    def __init__(self, block: FFCBlock) -> None:
        super().__init__()
        self.first, self.second = _Layer(block.conv1), _Layer(block.conv2)

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.second(self.first(features))
        # the rectifier before it remembers its result where gradients are wanted
        return features + changed if torch.is_grad_enabled() else changed.add_(features)


class _Rise(nn.Module):
    """Doubles the size."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Convolution, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = _scale_shift(norm)
        bias = (conv.bias.double() * scale + shift).to(conv.weight.dtype)
        _kept(self, weight=_scaled(conv, scale, axis=1), bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.conv_transpose2d(features, self.weight, self.bias, stride=2, padding=1, output_padding=1).relu_()


class _Exit(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Convolution) -> None:
        super().__init__()
        _kept(self, weight=conv.weight, bias=conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(reflected(features, 3), self.weight, self.bias).sigmoid()
