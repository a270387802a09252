"""The GPEN network: an encoder whose features are the noise of a StyleGAN2 decoder.

`GPEN` carries the tensor names and shapes of the published checkpoints, so that their state dicts load as they are.
Its forward has two forms with one result: in training, or where gradients are asked for, the plain differentiable
operations below; in evaluation without gradients, the scheduled form of `gpen_fast`.

Source: Yang et al., "GAN Prior Embedded Network for Blind Face Restoration in the Wild" (CVPR 2021); modulated
convolutions after Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), section 3.1.
Checked against recorded outputs of the published network at 64, 128, 256 and 512 px and of its SR variant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facefix.gpen_fast import FastGPEN
from facefix.gpen_shape import EPSILON, GAIN, SLOPE, Shape, published_channels


def blur_kernel(total: float) -> Tensor:
    """The (4, 4) binomial kernel [1, 3, 3, 1] x [1, 3, 3, 1], scaled so that it sums to `total`."""
    row = (1.0, 3.0, 3.0, 1.0)
    return torch.tensor([[a * b * total / 64.0 for a in row] for b in row])


def activate(features: Tensor, bias: Tensor) -> Tensor:
    """The leaky rectifier of features plus a bias per channel, times the square root of 2; (B, C, …) as it came."""
    return F.leaky_relu(features + bias.view(1, -1, *[1] * (features.ndim - 2)), SLOPE) * GAIN


def blurred(features: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Each channel of (B, C, H, W) convolved with the (4, 4) kernel, zeros around."""
    channels = features.shape[1]
    weight = kernel.to(features.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(features, weight, padding=padding, groups=channels)


def doubled(picture: Tensor, kernel: Tensor) -> Tensor:
    """The picture (B, 3, H, W) at twice its height and width, interpolated with the (4, 4) kernel, zeros around."""
    return F.conv_transpose2d(picture, kernel.to(picture.dtype).expand(3, 1, 4, 4), stride=2, padding=1, groups=3)


class PixelNorm(nn.Module):
    """Scales every vector of a batch to a mean square of 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return vectors * torch.rsqrt(vectors.square().mean(dim=1, keepdim=True) + EPSILON)


def drawn(*shape: int, rate: float = 1.0) -> Tensor:
    """Standard normal numbers over `rate`; none on the meta device, where arithmetic loads kernels for a second."""
    return torch.empty(shape) if torch.get_default_device().type == "meta" else torch.randn(shape) / rate


class EqualLinear(nn.Module):
    """A fully connected layer whose weights are scaled at run time (equalised learning rate).

    Args:
        inputs, outputs: the widths.
        rate: the learning rate multiplier by which the stored weights were divided.
        bias: the value every bias starts with.
        activated: whether the leaky rectifier follows.
    """

    def __init__(
        self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0, activated: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(outputs, inputs, rate=rate))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.rate = rate
        self.activated = activated

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        scale = self.rate / math.sqrt(self.weight.shape[1])
        if self.activated:
            return activate(F.linear(vectors, self.weight * scale), self.bias * self.rate)
        return F.linear(vectors, self.weight * scale, self.bias * self.rate)


class EqualConv2d(nn.Module):
    """A convolution without bias, its weights scaled at run time."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(outputs, inputs, kernel, kernel))
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W'), without padding."""
        scale = 1 / math.sqrt(self.weight[0].numel())
        return F.conv2d(features, self.weight * scale, stride=self.stride)


class Kernel(nn.Module):
    """Holds the fixed blur kernel under the name that the checkpoints use."""

    def __init__(self, total: float) -> None:
        super().__init__()
        self.kernel: Tensor
        self.register_buffer("kernel", blur_kernel(total))


class Bias(nn.Module):
    """Holds the biases of an activation under the name that the checkpoints use."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class EncoderLayer(nn.Sequential):
    """One encoder step: a pointwise convolution at full size, or blur and a 3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        if halves:
            super().__init__(Kernel(1.0), EqualConv2d(inputs, outputs, 3, stride=2), Bias(outputs))
        else:
            super().__init__(EqualConv2d(inputs, outputs, 1), Bias(outputs))
        self.halves = halves

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W), or half as high and wide."""
        if self.halves:
            features = blurred(features, self.get_buffer("0.kernel"), padding=2)
        return activate(self[-2](features), self.get_parameter(f"{len(self) - 1}.bias"))


class ModulatedConv2d(nn.Module):
    """A convolution whose inputs are scaled by the style, and whose outputs are brought back to unit variance."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: int, doubles: bool = False, demodulate: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(drawn(1, outputs, inputs, kernel, kernel))
        if doubles:
            self.blur = Kernel(4.0)
        self.modulation = EqualLinear(style, inputs, bias=1.0)
        self.demodulate = demodulate
        self.doubles = doubles

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """(B, inputs, H, W) features, (B, D) style -> (B, outputs, H, W), or twice as high and wide.

        Scaling the inputs and the outputs is the same as scaling the weights, and lets a batch share one convolution.
        """
        weight = self.weight[0] / math.sqrt(self.weight[0, 0].numel())
        scales = self.modulation(style)
        features = features * scales[:, :, None, None]
        if self.doubles:
            features = F.conv_transpose2d(features, weight.transpose(0, 1), stride=2)
            features = blurred(features, self.blur.kernel, padding=1)
        else:
            features = F.conv2d(features, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return features
        power = scales.square() @ weight.square().sum(dim=(2, 3)).t()
        return features * torch.rsqrt(power + EPSILON)[:, :, None, None]


class NoiseWeight(nn.Module):
    """Holds the weight of the injected features under the name that the checkpoints use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """A modulated convolution, beside which the encoder's features (or Gaussian noise) are laid as further channels."""

    def __init__(self, inputs: int, outputs: int, injected: int, style: int, doubles: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style, doubles=doubles)
        self.noise = NoiseWeight()
        self.activate = Bias(outputs + injected)

    def forward(self, features: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, D), (B, injected, H', W') -> (B, outputs + injected, H', W')."""
        beside = torch.cat([self.conv(features, style), self.noise.weight * noise], dim=1)
        return activate(beside, self.activate.bias)


class ToRGB(nn.Module):
    """The picture so far, doubled in size, plus what this level adds to it."""

    def __init__(self, inputs: int, style: int, doubles: bool = True) -> None:
        super().__init__()
        if doubles:
            self.upsample = Kernel(4.0)
        self.conv = ModulatedConv2d(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, features: Tensor, style: Tensor, picture: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W), (B, D), (B, 3, H/2, W/2) -> (B, 3, H, W)."""
        added: Tensor = self.conv(features, style) + self.bias
        if picture is None:
            return added
        return added + doubled(picture, self.upsample.kernel)


class ConstantInput(nn.Module):
    """The learned features from which every picture starts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(drawn(1, channels, 4, 4))


class Decoder(nn.Module):
    """The parameters of the StyleGAN2 decoder, in the order of the checkpoints."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        mapping = [EqualLinear(shape.style_dim, shape.style_dim, rate=0.01, activated=True) for _ in range(shape.n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = ConstantInput(shape.channels[0])
        widths = [c + n for c, n in zip(shape.channels, shape.injected, strict=True)]
        self.conv1 = StyledConv(shape.channels[0], shape.channels[0], shape.injected[0], shape.style_dim)
        self.to_rgb1 = ToRGB(widths[0], shape.style_dim, doubles=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for below, here, outputs, injected in zip(
            widths, widths[1:], shape.channels[1:], shape.injected[1:], strict=False
        ):
            self.convs.append(StyledConv(below, outputs, injected, shape.style_dim, doubles=True))
            self.convs.append(StyledConv(here, outputs, injected, shape.style_dim))
            self.to_rgbs.append(ToRGB(here, shape.style_dim))


class GPEN(nn.Module):
    """The whole network: (B, 3, in_size, in_size) RGB of -1..1 -> (B, 3, size, size) in the same range, not clipped.

    Args:
        size: width and height of the output, px.
        channels: of the decoder's convolutions, one for each of the levels 4, 8, …, size px.
        injected: channels laid beside them at each level (default: as many); up to in_size the encoder's channels.
        in_size: width and height of the input, px (default: size); smaller for the SR variant.
        style_dim: width of the style vector.
        n_mlp: number of mapping layers.
        noise_seed: what the Gaussian noise of the levels above in_size is drawn with.

    Raises:
        ValueError: the dimensions do not make a network.
    """

    def __init__(
        self,
        size: int,
        channels: Sequence[int],
        *,
        injected: Sequence[int] | None = None,
        in_size: int | None = None,
        style_dim: int = 512,
        n_mlp: int = 8,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        beside = tuple(channels if injected is None else injected)
        self.shape = shape = Shape(size, in_size or size, style_dim, n_mlp, tuple(channels), beside)
        self.size, self.in_size, self.noise_seed = shape.size, shape.in_size, noise_seed
        self.generator = Decoder(shape)
        steps = shape.in_size.bit_length() - 2
        widths = [3, *reversed(beside[:steps])]
        for step, (inputs, outputs) in enumerate(pairwise(widths)):
            self.add_module(f"ecd{step}", nn.Sequential(EncoderLayer(inputs, outputs, halves=step > 0)))
        self._prepared: tuple[object, FastGPEN] | None = None
        self.final_linear = nn.Sequential(EqualLinear(beside[0] * 16, style_dim, activated=True))

    @classmethod
    def published(
        cls, size: int, channel_multiplier: float = 2, narrow: float = 1, *, in_size: int | None = None
    ) -> GPEN:
        """A new network with the published widths: 256 px is (1, 0.5), 512 px and larger (2, 1)."""
        return cls(size, published_channels(size, channel_multiplier, narrow), in_size=in_size)

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> GPEN:
        """The network that a state dict describes, holding these very tensors, in evaluation mode.

        Raises:
            KeyError, ValueError, RuntimeError: the tensors are not those of a GPEN network.
        """
        model = cls.hollow(Shape.of_state(tensors))
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    @classmethod
    def hollow(cls, shape: Shape) -> GPEN:
        """A network of these dimensions without numbers (on the meta device): nothing is drawn, nothing allocated."""
        with torch.device("meta"):
            return cls(
                shape.size,
                shape.channels,
                injected=shape.injected,
                in_size=shape.in_size,
                style_dim=shape.style_dim,
                n_mlp=shape.n_mlp,
            )

    @classmethod
    def layout(cls, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a network of these dimensions has, in the order of its state dict."""
        return {name: tuple(tensor.shape) for name, tensor in cls.hollow(shape).state_dict().items()}

    def forward(self, pictures: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """(B, 3, in_size, in_size) -> (B, 3, size, size).

        Args:
            pictures: RGB, -1..1.
            noise: for the levels above in_size, two a level from the smallest up, each (1 or B, injected, r, r).

        Raises:
            ValueError: pictures or noise have another shape.
        """
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, self.in_size, self.in_size):
            raise ValueError(f"expected (B, 3, {self.in_size}, {self.in_size}), got {tuple(pictures.shape)}")
        noise = self.noise_like(pictures) if noise is None else noise
        if self.training or torch.is_grad_enabled():
            return self.plain_forward(pictures, noise)
        return self._fast()(pictures, noise)

    def _fast(self) -> FastGPEN:
        """The scheduled form for the parameters as they are now; made again after they change."""
        state = self.state_dict()
        marks = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in state.values())
        if self._prepared is None or self._prepared[0] != marks:
            with torch.inference_mode(False), torch.no_grad():
                self._prepared = marks, FastGPEN(state, self.shape)
        return self._prepared[1]

    def noise_like(self, pictures: Tensor) -> list[Tensor]:
        """Gaussian noise for the levels above in_size, the same for every face and at every call."""
        draw = torch.Generator().manual_seed(self.noise_seed)
        levels = [(n, 4 << i) for i, n in enumerate(self.shape.injected) if 4 << i > self.in_size for _ in range(2)]
        return [torch.randn(1, n, r, r, generator=draw).to(pictures) for n, r in levels]

    def plain_forward(self, pictures: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The differentiable form; every operation as the paper states it."""
        features = []
        for step in range(self.in_size.bit_length() - 2):
            pictures = self.get_submodule(f"ecd{step}")(pictures)
            features.append(pictures)
        batch = pictures.shape[0]  # len() would fix the batch of an exported graph
        style = self.generator.style(self.final_linear(pictures.flatten(1)))
        beside = [level for level in reversed(features) for _ in range(2)]
        beside += [drawn.expand(batch, -1, -1, -1) for drawn in noise]
        decoder = self.generator
        values = decoder.conv1(decoder.input.input.expand(batch, -1, -1, -1), style, beside[1])
        result: Tensor = decoder.to_rgb1(values, style)
        for level, to_rgb in enumerate(decoder.to_rgbs):
            values = decoder.convs[2 * level](values, style, beside[2 * level + 2])
            values = decoder.convs[2 * level + 1](values, style, beside[2 * level + 3])
            result = to_rgb(values, style, result)
        return result
