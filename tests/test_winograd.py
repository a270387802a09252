"""The minimal filtering equals the convolution."""

import pytest
import torch
import torch.nn.functional as F

from facefix.winograd import Winograd, tiled, transformed


@pytest.mark.parametrize(("inputs", "outputs", "rows", "columns"), [(8, 4, 4, 4), (3, 5, 12, 8), (96, 40, 8, 32)])
def test_it_equals_the_direct_convolution(inputs: int, outputs: int, rows: int, columns: int) -> None:
    torch.manual_seed(rows)
    strip = torch.randn(rows + 2, columns + 2, inputs)
    weight = torch.randn(outputs, inputs, 3, 3)
    expected = F.conv2d(strip.permute(2, 0, 1)[None].double(), weight.double())[0].permute(1, 2, 0)
    convolve = Winograd(inputs, outputs, rows + 4, columns)
    for _ in range(2):
        found = torch.empty(rows, columns + 1, outputs)[:, 1:]
        tiled(found).copy_(convolve(strip, transformed(weight)))
        assert (found - expected).norm() / expected.norm() < 2e-6
