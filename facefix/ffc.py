"""The LaMa generator: a network that fills holes, half of which looks at the whole picture through Fourier transforms.

`Generator` carries the tensor names and shapes of the published checkpoints and computes every operation as the paper
states it; `ffc_fast` computes the same numbers for use.

The network is cut in two where refinement cuts it: `front` makes features at an eighth of the size, `rear` the picture.
The features are one tensor (B, local + global, H/8, W/8), the local channels first.

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
