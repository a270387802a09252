"""GPEN's forward, scheduled for inference: the numbers of the plain form, with a third of its work or less.

What the plain form does for every face and every operation is arranged once for the network, or once for the face:

- The style scales a convolution's inputs or, at levels with fewer weights than pixels, its weights. What follows it
  (demodulation, and the gain of the activation) goes into weights, the blur kernel or the bias: the leaky rectifier
  commutes with positive factors.
- The blur after a transposed convolution is a depthwise convolution that scales and adds the bias on its way.
- 3x3 convolutions with many channels go through `winograd` (on a CPU).
- Levels above 16 px are worked through in strips of rows. A strip's up-sampled features, the encoder's features beside
  them, the second convolution and what it adds to the picture are made one after the other while they are in cache;
  both halves of the features are written where the next convolution reads them, so nothing is concatenated.
  Five rows are kept from a strip to the next: the result is exact, and no convolution over all channels is done twice.
- The encoder's features at full size are made again where the decoder needs them: they cost less than their memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from facefix.gpen_shape import EPSILON, GAIN, SLOPE, Shape
from facefix.gpen_steps import (
    Entry,
    Halving,
    Level,
    Linear,
    Rows,
    State,
    Styled,
    TallLevel,
    ToRGB,
    planes,
    rows_of_noise,
    stored,
)

WHOLE = 16


class FastGPEN:
    """The scheduled forward of a network with these tensors: (B, 3, in_size, in_size) -> (B, 3, size, size).

    Args:
        state: the network's state dict; its tensors are used as they are, but for those that want another layout.
        shape: the network's dimensions.
    """

    def __init__(self, state: State, shape: Shape) -> None:
        self.shape = shape
        self.lock = threading.Lock()
        self.start = state["generator.input.input"]
        on_cpu = self.start.device.type == "cpu"
        # A GPU has no use for strips, and its libraries choose their own algorithms.
        self.whole = WHOLE if on_cpu else shape.size
        self.mapping = [Linear(state, "final_linear.0", 1.0)]
        self.mapping += [Linear(state, f"generator.style.{i + 1}", 0.01) for i in range(shape.n_mlp)]
        self.entry = Entry(state)
        self.halvings = {
            shape.in_size >> step: Halving(state, step + 1) for step in range(shape.in_size.bit_length() - 3)
        }
        self.first = Styled(state, "generator.conv1", doubles=False)
        self.first_rgb = ToRGB(state, "generator.to_rgb1")
        sizes = [8 << index for index in range(len(shape.channels) - 1)]
        self.low = [Level(state, i, size) for i, size in enumerate(sizes) if size <= self.whole]
        self.high = [TallLevel(state, i, size, winograd=on_cpu) for i, size in enumerate(sizes) if size > self.whole]

    def __call__(self, pictures: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """(B, 3, in_size, in_size) RGB, and noise as GPEN.forward takes it -> (B, 3, size, size)."""
        # Memory that is kept must not be made in inference mode: outside of it nothing could write there.
        with self.lock, torch.inference_mode(False), torch.no_grad():
            return self._in_groups(pictures, noise)

    def _in_groups(self, pictures: Tensor, noise: Sequence[Tensor]) -> Tensor:
        at_once = max(1, 2048 // self.shape.size) if self.high else len(pictures)
        results = []
        for first in range(0, len(pictures), at_once):
            part = slice(first, first + at_once)
            results.append(self._group(pictures[part], [level[part] if len(level) > 1 else level for level in noise]))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _group(self, pictures: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The restored faces of a batch that is worked through at once."""
        batch, size = len(pictures), self.shape.in_size
        tall: list[dict[int, Rows]] = [{} for _ in range(batch)]
        if size > self.whole:
            features = torch.cat([self._encode_tall(pictures[face], rows, face) for face, rows in enumerate(tall)])
        else:
            features = self.entry.whole(pictures)
        size = min(size, self.whole)
        beside = {size: (features, features)}
        while size > 4:
            features = self.halvings[size].whole(features)
            size //= 2
            beside[size] = (features, features)
        drawn = {
            self.shape.in_size << (i + 1): pair for i, pair in enumerate(zip(noise[::2], noise[1::2], strict=True))
        }
        for size, (one, two) in drawn.items():
            if size <= self.whole:
                beside[size] = one.expand(batch, -1, -1, -1), two.expand(batch, -1, -1, -1)
        style = self._style(features.flatten(1))
        values = self.first.whole(self.start.expand(batch, -1, -1, -1), style, beside[4][0])
        picture = self.first_rgb.whole(values, style)
        for level in self.low:
            values, picture = level.whole(values, style, beside[level.size], picture)
        if not self.high:
            return picture
        results = []
        for face in range(batch):
            injected = {size: (rows, rows) for size, rows in tall[face].items()}
            for size, pair in drawn.items():
                injected[size] = rows_of_noise(pair[0], face), rows_of_noise(pair[1], face)
            results.append(self._decode_tall(values[face], picture[face], style[face], injected))
        return results[0] if batch == 1 else torch.cat(results)

    def _style(self, vectors: Tensor) -> Tensor:
        """(B, 16 · channels) -> (B, style_dim)."""
        vectors = F.leaky_relu(self.mapping[0](vectors), SLOPE) * GAIN
        vectors = vectors * torch.rsqrt(vectors.square().mean(dim=1, keepdim=True) + EPSILON)
        for layer in self.mapping[1:]:
            vectors = F.leaky_relu(layer(vectors), SLOPE) * GAIN
        return vectors

    def _encode_tall(self, face: Tensor, rows: dict[int, Rows], index: int) -> Tensor:
        """Features (1, C, whole, whole) of one face (3, in_size, in_size); leaves those of larger levels in `rows`."""
        size = self.shape.in_size
        rows[size] = self.entry.rows_of(face)
        while size > self.whole:
            features = self.halvings[size].strips(rows[size], size, index)
            size //= 2
            rows[size] = stored(features)
        return planes(features[2:-2])

    def _decode_tall(
        self, values: Tensor, picture: Tensor, style: Tensor, injected: Mapping[int, tuple[Rows, Rows]]
    ) -> Tensor:
        """The (1, 3, size, size) picture from one face's values and picture at the size `whole`."""
        below = F.pad(values.permute(1, 2, 0), (0, 0, 1, 1, 1, 1)).contiguous()
        for level in self.high:
            below, picture = level.strips(below, style, injected[level.size], picture, last=level is self.high[-1])
        return picture[None]
