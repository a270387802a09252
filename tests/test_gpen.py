"""GPEN computes what the published network computes, in both of its forms."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facefix.gpen import GPEN
from facefix.gpen_fast import FastGPEN
from facefix.gpen_shape import Shape
from facefix.gpen_steps import INNER_PIXELS

GOLDEN = Path(__file__).parent / "data" / "gpen"
LAYOUTS = json.loads((GOLDEN / "checkpoint_layouts.json").read_text())
RECORDS = json.loads((GOLDEN / "index.json").read_text())


def made_state(model: GPEN) -> dict[str, Tensor]:
    """The weights that the recorded outputs were made with: each drawn with a seed of its name."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".kernel"):
            state[name] = tensor.clone()
            continue
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        drawn = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
        if name.endswith("noise.weight"):
            drawn = 0.5 + 0.1 * drawn
        elif name.endswith("modulation.bias"):
            drawn = 1 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.1 * drawn
        elif ".style." in name:
            drawn = 100 * drawn
        state[name] = drawn
    return state


def made_picture(size: int) -> Tensor:
    """The (1, 3, size, size) input of the recorded outputs."""
    y, x = np.mgrid[0:size, 0:size] / size
    turn = 2 * np.pi
    base = 0.6 * np.stack([np.sin(turn * (3 * x + y)), np.cos(turn * (2 * x - 4 * y)), np.sin(turn * 5 * x * y)])
    noise = 0.15 * np.random.Generator(np.random.PCG64(size)).standard_normal((3, size, size))
    return torch.from_numpy(np.clip(base + noise, -1, 1).astype(np.float32))[None]


def relative(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def network(size: int = 64, **options: object) -> GPEN:
    """A small network with the made weights; small channels, but every level."""
    options.setdefault("channels", [24] * (size.bit_length() - 2))
    model = GPEN(size, style_dim=32, n_mlp=2, **options)
    return GPEN.from_state(made_state(model))


@pytest.mark.parametrize(
    "record",
    [pytest.param(record, marks=[pytest.mark.slow] * (record["size"] == 512), id=record["file"]) for record in RECORDS],
)
@pytest.mark.parametrize("form", ["fast", "plain"])
def test_output_is_the_published_networks(record: dict, form: str) -> None:
    size, multiplier, narrow = record["size"], record["channel_multiplier"], record["narrow"]
    if form == "plain" and size == 512:
        pytest.skip("the fast form is held to it, and the plain form to the fast one")
    shape = GPEN.published(record.get("out_size", size), multiplier, narrow, in_size=size)
    state = made_state(shape)
    if "out_size" in record:  # recorded without the noise of the levels above the input's
        for index in (8, 9):
            state[f"generator.convs.{index}.noise.weight"].zero_()
    model = GPEN.from_state(state)
    with torch.no_grad():
        picture = made_picture(size)
        found = (model(picture) if form == "fast" else model.plain_forward(picture, model.noise_like(picture)))[
            0
        ].numpy()
    golden = np.load(GOLDEN / record["file"])
    wide, middle = found.shape[-1], found.shape[-1] // 2 - 32
    views = {
        "output": found,
        "box_mean_8": found.reshape(3, wide // 8, 8, wide // 8, 8).mean((2, 4)),
        "centre_crop_64": found[:, middle : middle + 64, middle : middle + 64],
        "corner_crop_16": found[:, :16, :16],
    }
    for name in set(views) & set(golden):
        assert relative(views[name], golden[name]) < 1e-5, name


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensor_names_shapes_and_order_are_the_checkpoints(name: str) -> None:
    record = LAYOUTS[name]
    with torch.device("meta"):
        model = GPEN.published(record["size"], record["channel_multiplier"], record["narrow"])
    expected = [(tensor, tuple(shape)) for tensor, shape in record["tensors"].items()]
    assert [(tensor, tuple(value.shape)) for tensor, value in model.state_dict().items()] == expected
    with torch.device("meta"):
        tensors = {tensor: torch.empty(shape) for tensor, shape in expected}
    assert Shape.of_state(tensors) == model.shape
    assert list(GPEN.layout(model.shape).items()) == expected


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (8, {}),
        (32, {}),
        (64, {"channels": [5, 7, 3, 9, 2]}),
        (64, {"channels": [8, 8, 8, 56, 48], "injected": [6, 3, 10, 40, 64]}),
        (128, {"channels": [16, 16, 16, 16, 64, 16], "injected": [4, 8, 8, 8, 64, 80]}),
        (256, {"channels": [8, 8, 8, 8, 8, 52, 4]}),
        (128, {"in_size": 32}),
        (256, {"in_size": 64, "channels": [8, 8, 8, 8, 50, 50, 50]}),
        (64, {"in_size": 8}),
    ],
)
def test_fast_form_equals_plain_form(size: int, options: dict) -> None:
    model = network(size, **options)
    assert Shape.of_state(model.state_dict()) == model.shape
    pictures = torch.cat([made_picture(model.in_size), made_picture(model.in_size).flip(3)])
    with torch.no_grad():
        expected = model.plain_forward(pictures, model.noise_like(pictures))
        assert relative(model(pictures), expected) < 5e-6


@pytest.mark.slow
def test_fast_form_equals_plain_form_at_1024() -> None:
    model = network(1024, channels=[8, 8, 8, 8, 8, 8, 56, 20, 8])
    picture = made_picture(1024)
    with torch.no_grad():
        assert relative(model(picture), model.plain_forward(picture, model.noise_like(picture))) < 5e-6


@pytest.mark.parametrize("strip", [64 * 8, 64 * 16, 64 * 64])
def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr("facefix.gpen_steps.STRIP_PIXELS", strip)
    monkeypatch.setitem(INNER_PIXELS, torch.float32, strip // 2)
    model = network(128, channels=[8, 8, 8, 8, 56, 12])
    picture = made_picture(128)
    with torch.no_grad():
        assert relative(model(picture), model.plain_forward(picture, [])) < 5e-6


@pytest.mark.parametrize("size", [32, 128])
def test_a_batch_equals_its_faces_one_by_one(size: int) -> None:
    model = network(size)
    pictures = torch.cat([made_picture(size).roll(turn, 3) for turn in (0, 5, 9)])
    with torch.no_grad():
        batch = model(pictures)
        for index in range(3):
            assert relative(batch[index], model(pictures[index : index + 1])[0]) < 2e-6


def test_a_second_face_leaves_no_trace_of_the_first() -> None:
    model = network(128)
    first, second = made_picture(128), made_picture(128).flip(2)
    with torch.no_grad():
        expected = model(first).clone()
        model(second)
        assert torch.equal(model(first), expected)


def test_training_gives_gradients_to_every_parameter() -> None:
    model = network(64).train()
    model(made_picture(64)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_fast_form_follows_the_parameters() -> None:
    model = network(64)
    picture = made_picture(64)
    with torch.no_grad():
        before = model(picture)
        model.generator.to_rgbs[-1].bias += 1
        assert relative(model(picture), before + 1) < 1e-5
        model.load_state_dict(network(64).state_dict())
        assert relative(model(picture), before) < 1e-6


def test_noise_above_the_input_is_drawn_from_the_seed_or_given() -> None:
    model = network(128, in_size=64)
    picture = made_picture(64)
    with torch.no_grad():
        drawn = model.noise_like(picture)
        assert [tuple(level.shape) for level in drawn] == [(1, 24, 128, 128)] * 2
        assert torch.equal(model(picture), model(picture, drawn))
        model.noise_seed = 1
        assert relative(model(picture), model(picture, drawn)) > 1e-3


@pytest.mark.parametrize("options", [{}, {"channels": [8, 8, 8, 160, 40], "injected": [8, 8, 8, 100, 230]}])
def test_bfloat16_stays_near_float32(options: dict) -> None:
    model = network(64, **options)
    picture = made_picture(64)
    with torch.no_grad():
        exact = model(picture)
        rough = model.bfloat16()(picture.bfloat16()).float()
    assert rough.dtype == torch.float32
    assert relative(rough, exact) < 0.05


@pytest.mark.parametrize(
    ("size", "channels", "options", "problem"),
    [
        (48, [8, 8, 8, 8], {}, "powers of two"),
        (64, [8, 8], {}, "expected 5 levels"),
        (64, [8] * 5, {"in_size": 128}, "in_size: expected 8 to 64"),
        (64, [8, 8, 8, 8, 0], {}, "positive widths"),
    ],
)
def test_impossible_dimensions_are_refused(size: int, channels: list[int], options: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GPEN(size, channels, **options)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        network(64)(made_picture(32))


def test_the_scheduled_form_can_be_made_alone() -> None:
    model = network(64)
    picture = made_picture(64)
    with torch.no_grad():
        assert torch.equal(FastGPEN(model.state_dict(), model.shape)(picture, []), model(picture))
