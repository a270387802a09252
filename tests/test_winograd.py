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
        tiled(found, convolve.tile).copy_(convolve(strip, transformed(weight)))
        assert (found - expected).norm() / expected.norm() < 2e-6


@pytest.mark.parametrize(("inputs", "outputs", "rows", "columns"), [(8, 4, 2, 2), (3, 5, 6, 10), (96, 40, 8, 32)])
def test_in_bfloat16_it_is_off_by_a_few_roundings(inputs: int, outputs: int, rows: int, columns: int) -> None:
    torch.manual_seed(rows)
    strip = torch.randn(rows + 2, columns + 2, inputs).bfloat16()
    weight = torch.randn(outputs, inputs, 3, 3).bfloat16()
    expected = F.conv2d(strip.permute(2, 0, 1)[None].double(), weight.double())[0].permute(1, 2, 0)
    convolve = Winograd(inputs, outputs, rows + 2, columns, torch.bfloat16)
    for _ in range(2):
        found = torch.empty(rows, columns + 1, outputs, dtype=torch.bfloat16)[:, 1:]
        tiled(found, convolve.tile).copy_(convolve(strip, transformed(weight)))
        assert (found - expected).norm() / expected.norm() < 0.012
