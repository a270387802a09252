"""MAT is asked for squares about the holes, gets them as it wants them, and gives the same fill for the same seed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from facefix.errors import DeviceError, UsageError, WeightsInvalid
from facefix.inpaint import mat
from facefix.inpaint.mat import LARGE, SMALL, Mat, plan
from facefix.types import Mask, Pixels

CPU = torch.device("cpu")


class Convention(nn.Module):
    """A network with MAT's conventions: 1 is hole, known pixels stay, dropout draws even in evaluation, z is given.

    It fills the hole with the mean of the known pixels, changed by z and dropout.
    """

    def __init__(self, most: int = LARGE) -> None:
        super().__init__()
        self.z = torch.zeros(1, 512)
        self.most = most
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        self.seen.append((image, mask))
        if image.shape[3] > self.most:
            raise torch.OutOfMemoryError("out of memory")
        mean = (image * (1 - mask)).sum((2, 3), keepdim=True) / (1 - mask).sum()
        drawn = torch.nn.functional.dropout(torch.ones(1, 3, 1, 1), training=True)
        return image * (1 - mask) + mask * (mean * 0.9 + 0.02 * drawn + 0.01 * self.z[0, 0])


def scene_and_hole(height: int, width: int, *holes: tuple[int, int, int, int]) -> tuple[Pixels, Mask]:
    """A random scene, and a hole of the boxes (x0, y0, x1, y1); read-only, as photos come."""
    scene = np.random.default_rng(height + width).random((height, width, 3), np.float32)
    hole = np.zeros((height, width), np.float32)
    for x0, y0, x1, y1 in holes:
        hole[y0:y1, x0:x1] = 1
    scene.flags.writeable = hole.flags.writeable = False
    return scene, hole


def engine(most: int = LARGE) -> tuple[Mat, Convention]:
    network = Convention(most).eval()
    return Mat(network, CPU, "mat"), network


# --- squares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "hole", "expected"),
    [
        ((2000, 3000), (1000, 900, 1040, 930), (764, 659, 512)),
        ((2000, 3000), (0, 0, 40, 30), (0, 0, 512)),
        ((2000, 3000), (2990, 1995, 3000, 2000), (2488, 1488, 512)),
        ((2000, 3000), (1000, 700, 1780, 800), (890, 250, 1000)),
        ((2000, 3000), (0, 500, 3000, 503), (0, -500, 3000)),
        ((300, 200), (50, 60, 80, 90), (-50, 0, 300)),
        ((1, 7), (3, 0, 4, 1), (0, -3, 7)),
    ],
    ids=["small", "corner", "other corner", "long", "across", "small photo", "one row"],
)
def test_a_square_is_the_hole_and_its_surroundings(size: tuple, hole: tuple, expected: tuple) -> None:
    _, squares = plan(scene_and_hole(*size, hole)[1])
    [square] = squares
    assert (square.x0, square.y0, square.side) == expected
    assert square.x0 <= hole[0]
    assert hole[2] <= square.x0 + square.side
    assert square.y0 <= hole[1]
    assert hole[3] <= square.y0 + square.side


def test_near_holes_share_a_square_and_far_ones_have_their_own() -> None:
    holes = [(700, 700, 800, 800), (640, 760, 660, 770), (505, 720, 515, 730), (1900, 100, 1910, 110)]
    numbers, squares = plan(scene_and_hole(1500, 2000, *holes)[1])
    shared = [{int(numbers[y0, x0]) for x0, y0, _, _ in holes} & set(square.holes) for square in squares]
    assert [len(group) for group in shared] == [2, 1, 1]  # the third lies at the edge of the first one's square
    assert set().union(*shared) == {1, 2, 3, 4}


def test_touching_corners_make_one_hole() -> None:
    hole = np.eye(600, dtype=np.float32)
    numbers, [square] = plan(hole)
    assert square.holes == (1,)
    assert set(np.unique(numbers)) == {0, 1}


@pytest.mark.parametrize(("start", "count", "size"), [(0, 5, 5), (-3, 12, 5), (-20, 50, 7), (-4, 9, 1), (-2, 6, 2)])
def test_beyond_the_photo_lies_its_reflection(start: int, count: int, size: int) -> None:
    expected = np.pad(np.arange(size), (-start, start + count - size), mode="reflect")
    assert np.array_equal(mat._indices(start, count, size), expected)


# --- what the network gets, and what is made of it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "hole", "side"),
    [
        ((700, 900), (300, 300, 340, 340), SMALL),
        ((1400, 1300), (100, 100, 900, 300), LARGE),
        ((2600, 2700), (100, 100, 2500, 300), LARGE),
        ((300, 200), (50, 60, 80, 90), SMALL),
        ((2, 1), (0, 0, 1, 1), SMALL),
        ((1, 700), (20, 0, 30, 1), SMALL),
    ],
)
def test_the_network_gets_squares_of_its_sizes_and_its_convention(size: tuple, hole: tuple, side: int) -> None:
    scene, mask = scene_and_hole(*size, hole)
    model, network = engine()
    filled = model.fill(scene, mask)
    [(picture, seen_hole)] = network.seen
    assert picture.shape == (1, 3, side, side)
    assert seen_hole.shape == (1, 1, side, side)
    assert 0 <= picture.min() <= picture.max() <= 1
    assert set(seen_hole.unique().tolist()) == {0.0, 1.0}
    assert filled.shape == scene.shape
    assert filled.dtype == np.float32
    assert np.array_equal(filled[mask == 0], scene[mask == 0])
    assert not np.array_equal(filled[mask == 1], scene[mask == 1])


def test_the_square_is_shown_as_it_stands_in_the_photo() -> None:
    scene, mask = scene_and_hole(700, 900, (300, 310, 340, 350))
    model, network = engine()
    model.fill(scene, mask)
    [(picture, hole)] = network.seen
    assert np.array_equal(picture[0].permute(1, 2, 0), scene[74:586, 64:576])
    assert np.array_equal(hole[0, 0], mask[74:586, 64:576])


@pytest.mark.parametrize("size", [(3000, 3100), (90, 100)], ids=["shrunk", "enlarged"])
def test_a_thin_stroke_survives_and_nothing_shines_through(size: tuple[int, int]) -> None:
    height, width = size
    scene, mask = scene_and_hole(height, width, (2, height // 2, width - 2, height // 2 + 1))
    other = np.where(mask[..., None] == 1, np.float32(1), scene)
    found = []
    for shown in (scene, other):
        model, network = engine()
        found.append(model.fill(shown, mask))
        [(_, hole)] = network.seen
        assert (hole.amax(2) == 1).float().mean() > 0.9
    assert np.allclose(*found, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_leaves_other_draws_alone() -> None:
    scene, mask = scene_and_hole(40, 60, (10, 10, 20, 20))
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    fills = [engine()[0].fill(scene, mask, seed=seed) for seed in (1, 1, 2, 3)]
    assert torch.equal(torch.rand(4), expected)
    assert np.array_equal(fills[0], fills[1])
    assert len({fill.tobytes() for fill in fills}) == 3


def test_later_squares_see_what_earlier_ones_filled() -> None:
    scene, mask = scene_and_hole(600, 2000, (100, 100, 300, 200), (475, 100, 515, 140), (1500, 300, 1520, 320))
    model, network = engine()
    calls: list[tuple[int, int]] = []
    filled = model.fill(scene, mask, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    second_picture, second_hole = network.seen[1]
    start = (475 + 515 - SMALL) // 2
    assert second_hole[0, 0, :, : 300 - start].sum() == 0
    assert np.array_equal(second_picture[0, :, :, : 300 - start].permute(1, 2, 0), filled[:SMALL, start:300])
    assert np.array_equal(filled[mask == 0], scene[mask == 0])


def test_without_memory_for_a_large_square_a_smaller_copy_is_filled() -> None:
    scene, mask = scene_and_hole(1400, 1300, (100, 100, 900, 300))
    model, network = engine(most=SMALL)
    filled = model.fill(scene, mask)
    assert [picture.shape[3] for picture, _ in network.seen] == [LARGE, SMALL]
    assert np.array_equal(filled[mask == 0], scene[mask == 0])
    with pytest.raises(DeviceError, match=r"^out of memory with MAT at 512 px; choose another device or engine$"):
        engine(most=100)[0].fill(scene, mask)


# --- the package and the file ----------------------------------------------------------------------------------------


def test_only_loading_needs_the_package_and_without_it_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from facefix.errors import UsageError\n"
        "from facefix.inpaint import mat\n"
        "assert 'spandrel_extra_arches' not in sys.modules\n"
        "sys.modules['spandrel_extra_arches'] = None\n"
        "try:\n    mat.load(sys.argv[1], device='cpu')\n"
        "except UsageError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.pth")], capture_output=True, text=True, check=True
    )
    [line] = done.stdout.splitlines()
    assert "pip install 'facefix[mat-noncommercial]'" in line
    assert "non-commercial use (CC BY-NC 4.0)" in line


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the published names with random weights."""
    pytest.importorskip("spandrel")
    try:
        architecture = mat._architecture()
    except UsageError:
        pytest.skip("needs the extra mat-noncommercial")
    path = tmp_path_factory.mktemp("mat") / "Places_512_FullData_G.safetensors"
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        state = sys.modules[type(architecture).__module__].MAT().state_dict()
    save_file({name.removeprefix("model."): tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.slow
def test_mat_itself_fills_and_repeats_itself(published: Path) -> None:
    numbers, draws = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    model = mat.load(published, device="cpu")
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert model.name == "mat (Places_512_FullData_G.safetensors)"
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(module.training for module in model.network.modules())
    scene, mask = scene_and_hole(200, 300, (60, 50, 120, 90), (10, 150, 200, 151))
    fills = [model.fill(scene, mask, seed=3) for _ in range(2)]
    assert np.array_equal(*fills)
    assert np.array_equal(fills[0][mask == 0], scene[mask == 0])
    assert fills[0][mask == 1].std() > 0.01


def test_other_files_are_refused_in_one_line(tmp_path: Path, tiny_gpen_file: Path) -> None:
    try:
        mat._architecture()
    except UsageError:
        pytest.skip("needs the extra mat-noncommercial")
    with pytest.raises(WeightsInvalid, match=r"is another network \(first tensors: .*\); expected a MAT checkpoint"):
        mat.load(tiny_gpen_file)
    part = tmp_path / "part.pth"
    torch.save({mat.FIRST: torch.zeros(4, 4)}, part)
    with pytest.raises(WeightsInvalid, match=r"is no complete MAT network: .*; expected a MAT checkpoint") as caught:
        mat.load(part)
    assert "\n" not in str(caught.value)
    pointer = tmp_path / "Places_512_FullData_G.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsInvalid, match="is a Git LFS pointer"):
        mat.load(pointer)
