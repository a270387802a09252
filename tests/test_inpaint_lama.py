"""LaMa's refinement gives the recorded results; the engine fills any hole in a picture of any size and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_lama import GOLDEN, SMALL, TINY, made_generator, made_hole, made_picture, made_state
from safetensors.torch import save_file
from torch import Tensor

from facefix.errors import DeviceError, UsageError
from facefix.ffc import Generator
from facefix.ffc_fast import Folded
from facefix.inpaint import lama
from facefix.inpaint.lama import Lama, Refining

CASES = json.loads((GOLDEN / "cases.json").read_text())
OUTPUTS = np.load(GOLDEN / "outputs.npz")
STEPS = np.load(GOLDEN / "steps.npz")
SIZES = json.loads((GOLDEN / "pyramid_sizes.json").read_text())
CPU = torch.device("cpu")


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """(1, C, h, w) of (C, h, w) or (h, w)."""
    return torch.tensor(array).to(dtype).reshape(1, -1, *array.shape[-2:])


def scene_and_hole(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene (h, w, 3) and a hole (h, w), read-only, as photos come."""
    draw = np.random.default_rng(height * 1000 + width)
    scene = draw.random((height, width, 3), np.float32)
    hole = np.zeros((height, width), np.float32)
    hole[height // 3 : height // 3 + max(1, height // 4), width // 2 :] = 1
    scene.flags.writeable = hole.flags.writeable = False
    return scene, hole


def engine(shape: object = TINY, **options: object) -> Lama:
    settings = {"refining": None, "pixel_budget": lama.PIXEL_BUDGET} | options
    return Lama(Folded(made_generator(shape)), CPU, "lama", **settings)


# --- the steps of refinement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", SIZES, ids=lambda r: f"{r['height']}x{r['width']}-{r['min_side']}-{r['px_budget']}")
def test_scales_have_the_published_sizes(record: dict) -> None:
    ratio = min(1.0, (record["px_budget"] / (record["height"] * record["width"])) ** 0.5)
    if ratio < 1:
        empty = torch.empty(1, 1, record["height"], record["width"], device="meta")
        small, _ = lama.within_budget(empty, empty, record["px_budget"], antialias=False)
        height, width = small.shape[2:]
    else:
        height, width = record["height"], record["width"]
    count = Refining(smallest_side=record["min_side"], most_scales=record["max_scales"]).scales(height, width)
    sizes = [[height >> step, width >> step] for step in range(count)]
    assert sizes[::-1] == record["sizes_coarse_to_fine"]


def test_pictures_and_holes_are_halved_as_published() -> None:
    assert np.abs(lama.halved(tensor(STEPS["down_in_37x50"]))[0].numpy() - STEPS["down_out_18x25"]).max() < 1e-7
    hole = tensor(STEPS["mask_in_90x121"])
    assert np.array_equal(lama.pyramid(hole, hole, 2)[1][1][0, 0], STEPS["mask_pyramid_45x60"])
    inner = lama.halved_hole(hole)
    assert np.array_equal(inner[0, 0], STEPS["mask_loss_45x60"])
    assert np.array_equal(lama.eroded(inner)[0, 0], STEPS["mask_loss_eroded_45x60"])
    picture, hole = tensor(made_picture(150, 211)), tensor(made_hole("blob", 150, 211))
    scales = lama.pyramid(picture, hole, 3)[::-1]
    for index in (0, 1, 2):
        assert np.array_equal(scales[index][1][0, 0], STEPS[f"pyr_150x211_mask{index}"])
    assert np.abs(scales[0][0][0].numpy() - STEPS["pyr_150x211_image0"]).max() < 1e-7


def test_erosion_takes_an_ellipse_off_but_nothing_at_the_border() -> None:
    assert np.array_equal(lama.eroded(tensor(STEPS["erode_in_40x44"]))[0, 0], STEPS["erode_out_40x44"])
    assert lama.eroded(torch.ones(1, 1, 9, 30)).all()
    point = torch.ones(1, 1, 31, 31)
    point[..., 15, 15] = 0
    assert np.array_equal(1 - lama.eroded(point)[0, 0, 8:23, 8:23], STEPS["ellipse15"])


@pytest.mark.parametrize("size", [(2 * a + 1, 2 * b + 1) for a in (30, 35, 60) for b in (33, 61)])
def test_a_small_hole_survives_halving_in_float32(size: tuple[int, int]) -> None:
    assert lama.halved_hole(torch.ones(1, 1, *size)).all()


def test_the_loss_is_the_published_one() -> None:
    picture = tensor(made_picture(40, 56))
    hole = tensor(made_hole("blob", 40, 56))
    known = float(lama.mean_where(picture.flip(2) - picture, 1 - hole))
    inner = lama.halved_hole(hole)
    both = known + float(lama.mean_where(lama.halved(picture.flip(2)) - lama.halved(picture), inner))
    assert known == pytest.approx(float(STEPS["l1_known_only"]), abs=1e-7)
    assert both == pytest.approx(float(STEPS["l1_total"]), abs=1e-7)
    assert float(lama.mean_where(picture, torch.zeros_like(hole))) == 0


# --- recorded results ------------------------------------------------------------------------------------------------


@functools.cache
def computed(name: str, dtype: torch.dtype) -> tuple[list[lama.Level], list[tuple[Tensor, Tensor]]]:
    """All scales of a recorded case, and the pictures and holes that they were made from."""
    given = CASES[name]["parameters"]
    picture = tensor(made_picture(given["h"], given["w"]), dtype)
    hole = tensor(made_hole(given["mask"], given["h"], given["w"]), dtype)
    picture, hole = lama.within_budget(picture, hole, given["px_budget"], antialias=False)
    settings = Refining(given["n_iters"], given["lr"], given["min_side"], given["max_scales"])
    levels = lama.refined(Folded(made_generator(SMALL, dtype)), picture, hole, settings)
    return levels, lama.pyramid(picture, hole, len(levels))[::-1]


RUNS = [
    pytest.param(name, dtype, marks=[pytest.mark.slow] * (name in "ab" and dtype is torch.float64))
    for name in CASES
    for dtype in (torch.float64, torch.float32)
]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_refinement_gives_the_recorded_results(name: str, dtype: torch.dtype) -> None:
    exact = dtype is torch.float64
    levels, given = computed(name, dtype)
    for index, (level, scale) in enumerate(zip(levels, CASES[name]["scales"], strict=True)):
        picture, hole = given[index]
        assert list(level.composite.shape[2:]) == scale["size"]
        assert list(lama.padded(picture, "reflect").shape[2:]) == scale["padded_size"]
        recorded = np.unpackbits(OUTPUTS[f"{name}_scale{index}_mask"])[: hole.numel()].reshape(hole.shape)
        assert np.array_equal(hole, recorded)
        values = level.composite[0].permute(1, 2, 0)[hole[0, 0] == 1][:: int(OUTPUTS[f"{name}_scale{index}_step"])]
        off = np.abs(values.numpy() - OUTPUTS[f"{name}_scale{index}_values"])
        if exact or index == 0:
            assert off.max() < (1e-6 if exact else 3e-6)
        else:
            assert off.mean() < (1e-3 if name in "ac" else 3e-3)
        assert torch.equal(level.composite * (1 - hole), picture * (1 - hole))
        losses = scale["loss_float64"]
        if losses and losses[0] is None:  # the published mean over an empty erosion; the rest of its loss decides
            assert scale["eroded_mask_pixels"] == 0
            losses = scale["loss_known_term_float64"]
        assert level.losses == pytest.approx(losses, abs=1e-9 if exact else 1e-4)
        assert level.composite.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b"])
def test_refinement_gives_every_recorded_pixel(shared: Path, name: str) -> None:
    whole = np.load(shared / "golden" / "lama_refiner" / "outputs.npz")
    levels, given = computed(name, torch.float64)
    for index, level in enumerate(levels):
        values = level.composite[0].permute(1, 2, 0)[given[index][1][0, 0] == 1]
        assert np.abs(values.numpy() - whole[f"{name}_scale{index}_values"]).max() < 1e-7


def test_one_pass_at_each_scale_is_plain_lama() -> None:
    network = Folded(made_generator(TINY))
    picture, hole = tensor(made_picture(66, 91), torch.float32), tensor(made_hole("blob", 66, 91), torch.float32)
    levels = lama.refined(network, picture, hole, Refining(1, smallest_side=16))
    assert len(levels) == 3
    for level, given in zip(levels, lama.pyramid(picture, hole, 3)[::-1], strict=True):
        assert torch.equal(level.composite, lama.plain(network, *given, "reflect"))


def test_both_forms_of_the_network_are_refined_alike() -> None:
    model = made_generator(TINY, torch.float64)
    picture, hole = tensor(made_picture(66, 91)), tensor(made_hole("blob", 66, 91))
    one, other = (lama.refined(n, picture, hole, Refining(4, 0.01, 16))[-1] for n in (model, Folded(model)))
    assert other.losses == pytest.approx(one.losses, abs=1e-12)
    assert (other.composite - one.composite).abs().max() < 1e-9


def test_a_hole_that_leaves_no_known_pixel_at_a_smaller_scale_is_refined_all_the_same() -> None:
    hole = np.ones((64, 64), np.float32)
    hole[0, 0] = 0
    picture = tensor(made_picture(64, 64), torch.float32)
    levels = lama.refined(Folded(made_generator(TINY)), picture, tensor(hole, torch.float32), Refining(3, 0.01, 16))
    assert all(level.composite.isfinite().all() and np.isfinite(level.losses).all() for level in levels)


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (1, 90), (3, 5), (7, 8), (16, 16), (33, 17), (64, 40)])
@pytest.mark.parametrize("refining", [None, Refining(2, smallest_side=8)], ids=["one pass", "refined"])
def test_any_size_is_filled_and_known_pixels_stay(size: tuple[int, int], refining: Refining | None) -> None:
    scene, hole = scene_and_hole(*size)
    filled = engine(refining=refining).fill(scene, hole)
    assert filled.shape == scene.shape
    assert filled.dtype == np.float32
    assert np.array_equal(filled[hole == 0], scene[hole == 0])
    assert ((filled >= 0) & (filled <= 1)).all()
    assert not np.array_equal(filled[hole == 1], scene[hole == 1])


@pytest.mark.parametrize("refining", [None, Refining(2, smallest_side=16)], ids=["one pass", "refined"])
@pytest.mark.parametrize("budget", [lama.PIXEL_BUDGET, 2000], ids=["whole", "smaller"])
def test_what_the_hole_showed_does_not_matter(refining: Refining | None, budget: int) -> None:
    scene, hole = scene_and_hole(61, 83)
    other = np.where(hole[..., None] == 1, np.float32(1), scene)
    model = engine(refining=refining, pixel_budget=budget)
    assert np.allclose(model.fill(scene, hole), model.fill(other, hole), atol=1e-6)
    assert np.array_equal(model.fill(scene, hole, seed=1), model.fill(scene, hole, seed=2))


class Watched(Folded):
    """Remembers the sizes that it computed at; runs out of memory above `most` pixels."""

    def __init__(self, model: Generator, most: int = 10**9) -> None:
        super().__init__(model)
        self.most = most
        self.sizes: list[tuple[int, int]] = []

    def front(self, seen: Tensor) -> Tensor:
        self.sizes.append(tuple(seen.shape[2:]))
        if seen.shape[2] * seen.shape[3] > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return super().front(seen)


def smooth_scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(made_picture(height, width).transpose(1, 2, 0)), made_hole("blob", height, width)


@pytest.mark.parametrize("refining", [None, Refining(2, smallest_side=64)], ids=["one pass", "refined"])
def test_a_photo_above_the_budget_is_filled_in_a_smaller_copy(refining: Refining | None) -> None:
    scene, hole = smooth_scene(300, 421)
    network = Watched(made_generator(TINY))
    filled = Lama(network, CPU, "lama", refining=refining, pixel_budget=70_000).fill(scene, hole)
    assert filled.shape == scene.shape
    assert np.array_equal(filled[hole == 0], scene[hole == 0])
    assert network.sizes[-1] == (224, 320)
    assert not np.array_equal(filled[hole == 1], scene[hole == 1])


class Ramp:
    """Draws the column that it draws in, in thousandths, so that a fill shows where it was drawn."""

    def front(self, seen: Tensor) -> Tensor:
        return seen

    def rear(self, features: Tensor) -> Tensor:
        return ((torch.arange(features.shape[3]) + 0.5) / 1000).expand(1, 3, *features.shape[2:])


def test_the_fill_of_a_smaller_copy_lies_where_the_hole_is() -> None:
    scene, hole = smooth_scene(300, 421)
    filled = Lama(Ramp(), CPU, "ramp", refining=None, pixel_budget=70_000).fill(scene, hole)
    inner = lama.eroded(tensor(hole))[0, 0].numpy() == 1  # off the border, where known pixels shine in
    inner[:, -8:] = False
    expected = (np.nonzero(inner)[1] + 0.5) * 313 / 421 / 1000
    assert np.abs(filled[inner] - expected[:, None]).max() < 1e-4  # a tenth of a pixel


def test_a_long_thin_photo_within_the_budget() -> None:
    scene, hole = smooth_scene(2, 3000)
    filled = engine(pixel_budget=100).fill(scene, hole)
    assert np.array_equal(filled[hole == 0], scene[hole == 0])


def test_the_budget_is_halved_when_memory_runs_out() -> None:
    scene, hole = smooth_scene(520, 520)
    network = Watched(made_generator(TINY), most=150_000)
    filled = Lama(network, CPU, "lama", refining=None, pixel_budget=lama.PIXEL_BUDGET).fill(scene, hole)
    assert [height for height, _ in network.sizes] == [520, 368]
    assert np.array_equal(filled[hole == 0], scene[hole == 0])
    poor = Lama(Watched(made_generator(TINY), most=100), CPU, "lama", refining=None, pixel_budget=lama.PIXEL_BUDGET)
    with pytest.raises(DeviceError, match=r"^out of memory with 520x520 px in a copy of \d+ pixels; fill"):
        poor.fill(scene, hole)


@pytest.mark.parametrize(
    ("refining", "expected"),
    [
        (None, [(1, 1)]),
        (Refining(3, smallest_side=200), [(1, 1)]),
        (Refining(3, smallest_side=16), [(n, 7) for n in range(1, 8)]),
    ],
    ids=["one pass", "one scale", "three scales"],
)
def test_progress_counts_passes(refining: Refining | None, expected: list[tuple[int, int]]) -> None:
    scene, hole = smooth_scene(64, 70)
    calls: list[tuple[int, int]] = []
    engine(refining=refining).fill(scene, hole, progress=lambda done, total: calls.append((done, total)))
    assert calls == expected


def test_it_is_loaded_and_works_under_inference_mode_and_leaves_no_graph(tmp_path: Path) -> None:
    scene, hole = smooth_scene(40, 48)
    model = engine(refining=Refining(2, smallest_side=16))
    expected = model.fill(scene, hole)
    save_file(made_state(Generator.layout(TINY)), tmp_path / "lama.safetensors")
    with torch.inference_mode():
        assert np.array_equal(model.fill(scene, hole), expected)
        loaded = lama.load(tmp_path / "lama.safetensors", device="cpu", refine=True)
        loaded.refining = model.refining
        assert np.array_equal(loaded.fill(scene, hole), expected)


def test_loading(tmp_path: Path) -> None:
    path = tmp_path / "big-lama.safetensors"
    save_file(made_state(Generator.layout(TINY)), path)
    plain = lama.load(path)
    assert (plain.name, plain.takes_prompt, plain.refining) == ("lama (big-lama.safetensors)", False, None)
    scene, hole = smooth_scene(40, 48)
    assert np.array_equal(plain.fill(scene, hole), engine().fill(scene, hole))
    refining = lama.load(path, device="cpu", refine=True)
    assert refining.refining == Refining(iterations=4)
    assert "refined" in refining.name
    assert lama.load(path, refine=True, iterations=9).refining == dataclasses.replace(Refining(), iterations=9)
    with pytest.raises(UsageError, match=r"^iterations: expected at least 1, got 0$"):
        lama.load(path, refine=True, iterations=0)
    with pytest.raises(UsageError, match=r"^pixel budget: expected at least 65536, got 5$"):
        lama.load(path, pixel_budget=5)
