from itertools import pairwise

import numpy as np
import pytest

from facefix import tiles
from facefix.errors import UsageError

SIZES = [(1, 1, 0), (10, 4, 1), (10, 10, 3), (11, 10, 9), (100, 32, 16), (1000, 64, 0), (7, 2, 1), (5000, 1280, 256)]


@pytest.mark.parametrize(("length", "tile", "overlap"), SIZES)
def test_windows_cover_all_with_the_overlap_asked_for(length: int, tile: int, overlap: int) -> None:
    spans = tiles.windows(length, tile, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(stop - start == min(tile, length) for start, stop in spans)
    shared = [a[1] - b[0] for a, b in pairwise(spans)]
    assert all(overlap <= share < tile for share in shared)
    assert len(spans) == max(1, -(-(length - overlap) // (tile - overlap)))


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 4, 1), (4, 0, 0), (4, 4, 4), (4, 4, -1)])
def test_sizes_that_cannot_work_are_refused(length: int, tile: int, overlap: int) -> None:
    with pytest.raises(UsageError, match="overlap"):
        tiles.windows(length, tile, overlap)


def test_grid_goes_row_by_row() -> None:
    boxes = tiles.grid(10, 7, 4, 1)
    assert boxes[0] == (0, 0, 4, 4)
    assert boxes[1] == (3, 0, 7, 4)
    assert boxes[-1] == (3, 6, 7, 10)
    assert len(boxes) == 6


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"), [(1, 1, 8, 3), (40, 97, 16, 15), (64, 64, 32, 8), (9, 30, 4, 0)]
)
def test_weights_sum_to_one_everywhere(height: int, width: int, tile: int, overlap: int) -> None:
    total = np.zeros((height, width))
    for box, weight in zip(
        tiles.grid(height, width, tile, overlap), tiles.weights(height, width, tile, overlap), strict=True
    ):
        assert weight.min() > 0
        total[box.slices] += weight
    assert np.abs(total - 1).max() < 1e-12


def test_a_ramp_falls_evenly_over_what_two_tiles_share() -> None:
    first, second = tiles.ramps([(0, 6), (3, 9)])
    np.testing.assert_allclose(first, [1, 1, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(second, first[::-1])


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3), (8, 5, 2), (1, 200, 1)])
def test_a_function_of_single_pixels_gives_the_same_in_tiles(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    height, width = shape[:2]
    parts = (array[box.slices] * 2 - 1 for box in tiles.grid(height, width, 16, 5))
    out = tiles.blend(parts, height, width, 16, 5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, array * 2 - 1, atol=1e-6)


def test_blending_hides_a_step_between_tiles() -> None:
    boxes = tiles.grid(8, 40, 24, 8)
    assert len(boxes) == 2
    out = tiles.blend((np.full((8, 24), float(i)) for i in range(2)), 8, 40, 24, 8)
    row = out[3]
    assert row[0] == 0
    assert row[-1] == 1
    assert np.diff(row).max() < 0.12
    assert np.diff(row).min() >= 0


def test_blend_is_the_weighted_sum() -> None:
    size = (20, 33, 12, 4)
    random = np.random.default_rng(1)
    parts = [random.random((b.y1 - b.y0, b.x1 - b.x0, 2)) for b in tiles.grid(*size)]
    slow = np.zeros((20, 33, 2))
    for part, box, weight in zip(parts, tiles.grid(*size), tiles.weights(*size), strict=True):
        for y in range(box.y0, box.y1):
            for x in range(box.x0, box.x1):
                slow[y, x] += part[y - box.y0, x - box.x0] * weight[y - box.y0, x - box.x0]
    np.testing.assert_allclose(tiles.blend(parts, *size), slow, atol=1e-6)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(UsageError, match="expected a part of"):
        tiles.blend([np.zeros((8, 8))], 4, 4, 8, 2)
    with pytest.raises(UsageError, match="1 part"):
        tiles.blend([], 4, 4, 8, 2)
    with pytest.raises(UsageError, match="1 part"):
        tiles.blend([np.zeros((4, 4))] * 2, 4, 4, 8, 2)
