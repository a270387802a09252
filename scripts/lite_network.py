"""The network of facefix-lite as it is trained: how it begins, a forward for training, its loss and its optimiser.

It is a GPEN, so that the ordinary loader reads it, but what makes GPEN invent faces is left out: the style is constant
(modulation weights are zero and stay so). What is left is a plain convolutional cleaner that sees local damage only. It
can be trained on pieces of 128 px, and runs in tiles on pictures of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facefix.gpen import GAIN, GPEN, SLOPE, EncoderLayer, StyledConv, ToRGB, blurred, doubled

SIZE = 256
CHANNELS = (32, 32, 32, 64, 64, 48, 32)
STYLE_DIM, N_MLP = 16, 1
FLOOR = 3e-4
COLOURING = 3
"""How many of the last to_rgb layers are trained: from 64 px up. Those below could only shift colours."""

_BELOW = (
    "generator.convs.2",
    "generator.convs.1.",
    "generator.convs.0.",
    "generator.conv1.",
    "ecd5.",
    "ecd6.",
)
"""What works below 16 px, and the convolution that would bring it up, which stays zero.

On a training piece of 128 px those levels are nearly all border, on a face of 256 px they are not: where they were
trained, the network smoothed whole faces more than it had ever smoothed a piece.
"""


def identity_network(seed: int) -> GPEN:
    """A new lite network that gives its input back (to float rounding), ready to learn a correction.

    The pointwise first encoder layer carries +x and -x of each colour past all the convolutions to the last to_rgb,
    where their difference is x exactly, because leaky(x) - leaky(-x) is linear. Everything else starts at zero weight
    in the picture.
    """
    torch.manual_seed(seed)
    model = GPEN(SIZE, CHANNELS, style_dim=STYLE_DIM, n_mlp=N_MLP)
    model.generator.input.input.data[:] = model.generator.input.input.data[:, :, :1, :1]
    last = len(CHANNELS) - 2
    coloured = tuple(f"generator.to_rgbs.{last - i}.conv.weight" for i in range(COLOURING))
    for name, parameter in model.named_parameters():
        constant = ".modulation." in name or name.startswith(("final_linear", "generator.style.", "generator.input."))
        unused = constant or name.startswith(_BELOW) or (".to_rgb" in name and name not in coloured)
        parameter.requires_grad_(not unused)
        if name.endswith("modulation.weight") or (".to_rgb" in name and name.endswith("conv.weight")):
            nn.init.zeros_(parameter)
        elif name.endswith("noise.weight"):
            nn.init.ones_(parameter)
    nn.init.zeros_(model.get_parameter(f"{_BELOW[0]}.conv.weight"))
    _start_with_contrasts(model)
    first = model.get_parameter("ecd0.0.0.weight").data
    final = model.get_parameter(f"generator.to_rgbs.{last}.conv.weight").data
    width = CHANNELS[-1]
    # Two activations lie on the way (encoder, styled convolution): the slope of the difference of a +x, -x pair.
    slope = GAIN**2 * (1 + SLOPE**2)
    first[:6] = 0
    for colour in range(3):
        first[2 * colour, colour] = math.sqrt(3)
        first[2 * colour + 1, colour] = -math.sqrt(3)
        final[0, colour, width + 2 * colour] = math.sqrt(2 * width) / slope
        final[0, colour, width + 2 * colour + 1] = -math.sqrt(2 * width) / slope
    return model


def _start_with_contrasts(model: GPEN) -> None:
    """Sets the filters of the encoder's first halving and of the second convolutions from 32 px up.

    With the usual random filters every feature is mostly brightness, noise is a few hundredths of it, and training
    takes thousands of steps to find it. These filters have no response to even brightness. They come in pairs +f, -f
    with the same weights on the features from below: a context that is large and positive opens both, and their
    difference passes the contrast; one that is negative closes both. The pair is a gate from the first step on.
    """
    halving = model.get_parameter("ecd1.0.1.weight").data
    pairs = halving.shape[0] // 2
    halving[: 2 * pairs] = 0
    _add_opposed(halving[: 2 * pairs], 0, 6 * _contrasts(pairs, 3))
    for level in range(3, len(CHANNELS)):
        layer = model.get_submodule(f"generator.convs.{2 * level - 1}")
        assert isinstance(layer, StyledConv)
        weight, width = layer.conv.weight.data[0], CHANNELS[level]
        pairs = width // 2
        on_top = level == len(CHANNELS) - 1
        context = weight[0 : 2 * pairs : 2] * (0.15 if on_top else 0.3)
        context[:, width : width + 6 if on_top else None] = 0
        weight[0 : 2 * pairs : 2] = context
        weight[1 : 2 * pairs : 2] = context
        if on_top:
            filters = _contrasts(pairs, 3)
            filters[::2] = filters[::2, :1]
            _add_opposed(weight[: 2 * pairs], width, 1.5 * filters)
        else:
            filters = _contrasts(pairs, width)
            weight[0 : 2 * pairs : 2, width:] += filters
            weight[1 : 2 * pairs : 2, width:] -= filters


def _contrasts(count: int, inputs: int) -> Tensor:
    """(count, inputs, 3, 3) random filters whose sum over each 3x3 is zero."""
    filters = torch.randn(count, inputs, 3, 3)
    return filters - filters.mean(dim=(2, 3), keepdim=True)


def _add_opposed(weight: Tensor, first: int, filters: Tensor) -> None:
    """Adds to rows 0, 2, … filters of the three colours that lie as pairs +x, -x from channel `first` on.

    Rows 1, 3, … get the same with the other sign.
    """
    for colour in range(3):
        for side, sign in enumerate((1, -1)):
            weight[0::2, first + 2 * colour + side] += sign * filters[:, colour]
            weight[1::2, first + 2 * colour + side] -= sign * filters[:, colour]


def folded_forward(model: GPEN, pictures: Tensor) -> Tensor:
    """What the model gives for (B, 3, h, w) pictures, h and w multiples of 64, where its modulation weights are zero.

    The scales are then the same for every picture and go into the weights, and so do the gains of the activations. For
    256 px it equals the model's forward; for less, the constant input is cut to the same share of its 4 x 4.
    """

    def folded(layer: StyledConv) -> Tensor:
        weight = layer.conv.weight[0] * layer.conv.modulation.bias[None, :, None, None]
        return weight * (GAIN * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8))

    def styled(layer: StyledConv, values: Tensor, beside: Tensor) -> Tensor:
        width = layer.conv.weight.shape[1]
        bias = layer.activate.bias * GAIN
        if layer.conv.doubles:
            values = F.conv_transpose2d(values, folded(layer).transpose(0, 1), stride=2)
            kernel = layer.conv.blur.kernel.to(values.dtype).expand(width, 1, 4, 4)
            values = F.conv2d(values, kernel, bias[:width].to(values.dtype), padding=1, groups=width)
        else:
            values = F.conv2d(values, folded(layer), bias[:width], padding=1)
        scale = (layer.noise.weight * GAIN).to(beside.dtype)
        beside = torch.addcmul(bias[width:, None, None].to(beside.dtype), beside, scale)
        return F.leaky_relu(torch.cat([values, beside], dim=1), SLOPE)

    def encoded(layer: EncoderLayer, values: Tensor) -> Tensor:
        if layer.halves:
            values = blurred(values, layer.get_buffer("0.kernel"), padding=2)
        weight = layer.get_parameter(f"{len(layer) - 2}.weight")
        bias = layer.get_parameter(f"{len(layer) - 1}.bias") * GAIN
        weight = weight * (GAIN / math.sqrt(weight[0].numel()))
        return F.leaky_relu(F.conv2d(values, weight, bias, stride=2 if layer.halves else 1), SLOPE)

    features = [pictures]
    for step in range(model.size.bit_length() - 2):
        layer = model.get_submodule(f"ecd{step}.0")
        assert isinstance(layer, EncoderLayer)
        features.append(encoded(layer, features[-1]))
    features = features[:0:-1]
    decoder = model.generator
    layers = [layer for layer in decoder.convs if isinstance(layer, StyledConv)]
    to_rgbs = [decoder.to_rgb1, *(layer for layer in decoder.to_rgbs if isinstance(layer, ToRGB))]
    height, width = features[0].shape[2:]
    values = decoder.input.input[:, :, :height, :width].expand(len(pictures), -1, -1, -1)
    values = styled(decoder.conv1, values, features[0])
    result: Tensor | None = None
    for level, to_rgb in enumerate(to_rgbs):
        if level:
            values = styled(layers[2 * level - 2], values, features[level])
            values = styled(layers[2 * level - 1], values, features[level])
        weight = to_rgb.conv.weight[0] * to_rgb.conv.modulation.bias[None, :, None, None]
        added = F.conv2d(values, weight / math.sqrt(weight.shape[1])).float() + to_rgb.bias
        result = added if result is None else added + doubled(result, to_rgb.upsample.kernel)
    assert result is not None
    return result


def loss_of(restored: Tensor, target: Tensor, gray: Tensor) -> Tensor:
    """The mean over pictures of the logarithm of the squared error, edges and the colour of grey photos counted extra.

    The logarithm makes a lightly damaged picture count as much as a ruined one: it is PSNR itself, up to a factor.
    """
    error = restored - target
    squared = error.square().mean(dim=(1, 2, 3))
    edges = error.diff(dim=2).square().mean(dim=(1, 2, 3)) + error.diff(dim=3).square().mean(dim=(1, 2, 3))
    chroma = (restored - restored.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2, 3)) * gray
    return torch.log(squared + 0.25 * edges + 4 * chroma + FLOOR).mean()


def likeness_of(restored: Tensor, target: Tensor) -> Tensor:
    """The structural similarity of each pair of (B, 3, h, w) pictures in -1..1, (B,), as `degrade.ssim` defines it."""
    row = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, device=target.device) / 1.5).square())
    row = (row / row.sum()).expand(15, 1, 1, 11)
    x, y = restored / 2 + 0.5, target / 2 + 0.5
    both = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    smooth = F.conv2d(F.conv2d(both, row, groups=15), row.transpose(2, 3), groups=15)
    mean_x, mean_y, square_x, square_y, product = smooth.split(3, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * (product - mean_x * mean_y) + c2)
    powers = mean_x.square() + mean_y.square()
    return (top / ((powers + c1) * (square_x + square_y - powers + c2))).mean(dim=(1, 2, 3))


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: every direction of a layer moves alike, the rare ones too.

    Args:
        parameters: convolution weights, taken as matrices of one row for each output.
        lr: root mean square of a step's entries.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the polynomial is theirs.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                ahead = torch.lerp(momentum, parameter.grad, 0.05)
                matrix = ahead.reshape(-1, math.prod(parameter.shape[-3:]))
                step = orthogonal(matrix) * math.sqrt(max(matrix.shape))
                parameter.add_(step.view_as(parameter), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought near 1 (0.7 to 1.2), by five steps of Newton and Schulz."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    wide = wide / (wide.norm() + 1e-9)
    for _ in range(5):
        gram = wide @ wide.t()
        wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.t()
