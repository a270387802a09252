"""A weight file becomes the GPEN network that its tensors describe, whatever its format; what does not fit is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_networks import (
    EXPECTED,
    FORMATS,
    NARROW,
    State,
    as_safetensors,
    made,
    refusal,
    relative,
    saved,
    small,
    without,
)
from torch import Tensor, nn

from facefix import networks
from facefix.errors import DeviceError
from facefix.gpen import GPEN


def faces(network: networks.Network, count: int = 1, seed: int = 1) -> Tensor:
    size = network.in_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


SHAPES = {
    "published widths": {"size": 64, "channels": [64, 64, 64, 32, 16], "style_dim": 64, "n_mlp": 8},
    "smallest": {"size": 8, "channels": [4, 3], "style_dim": 5, "n_mlp": 1},
    "odd and growing": {"size": 32, "channels": [3, 17, 5, 29], "style_dim": 7, "n_mlp": 3},
    "one channel": {"size": 16, "channels": [1, 1, 1], "style_dim": 1, "n_mlp": 1},
    "injected apart": {
        "size": 32, "channels": [8, 6, 5, 4], "injected": [2, 9, 1, 3], "style_dim": 11, "n_mlp": 5,
    },
    "SR": {"size": 64, "in_size": 16, "channels": [12, 10, 8, 6, 4], "style_dim": 16, "n_mlp": 4},
    "SR by two, injected apart": {
        "size": 32, "in_size": 16, "channels": [9, 7, 5, 3], "injected": [4, 4, 4, 2], "style_dim": 8, "n_mlp": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_dimensions_are_found_from_the_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    model = GPEN(**options)
    tensors = made(model)
    shuffled = dict(sorted(tensors.items(), key=lambda item: hash(item[0][::-1])))
    network = networks.load(saved(tmp_path / "GPEN-BFR-2048.pth", {"g_ema": shuffled}))
    assert network.architecture == "GPEN"
    assert isinstance(network.body, GPEN)
    assert network.body.shape == model.shape
    assert (network.in_size, network.out_size) == (model.in_size, model.size)
    model.load_state_dict(tensors)
    with torch.no_grad():
        expected = model.plain_forward(faces(network), model.noise_like(faces(network)))
    assert expected.std() > 1e-3
    assert relative(network(faces(network)), expected) < 1e-5


@pytest.mark.parametrize("in_size", [32, 16], ids=["same size", "SR"])
def test_a_batch_equals_single_faces(tmp_path: Path, in_size: int) -> None:
    network = networks.load(saved(tmp_path / "w.pth", made(small(in_size=in_size))))
    batch = faces(network, 3)
    together = network(batch)
    assert together.shape == (3, 3, 32, 32)
    for index in range(3):
        assert relative(together[index : index + 1], network(batch[index : index + 1])) < 1e-5
    assert relative(together[:1], together[1:2]) > 1e-3


def test_it_is_in_evaluation_mode_and_free_of_gradients(tmp_path: Path, state: State) -> None:
    network = networks.load(saved(tmp_path / "w.pth", state))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    found = network(faces(network).requires_grad_())
    assert not found.requires_grad
    assert torch.equal(found, network(faces(network)))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 16, 16), (1, 1, 32, 32), (1, 3, 32, 64)])
def test_pictures_of_another_shape_are_refused(tmp_path: Path, state: State, shape: tuple[int, ...]) -> None:
    network = networks.load(saved(tmp_path / "w.pth", state))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        network(torch.zeros(shape))


@pytest.mark.parametrize("precision", ["bfloat16", torch.bfloat16])
def test_reduced_precision_gives_float32_pictures_near_the_exact_ones(
    tmp_path: Path, state: State, precision: str | torch.dtype
) -> None:
    path = saved(tmp_path / "w.pth", state)
    network, exact = networks.load(path, precision=precision), networks.load(path)
    assert (network.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    found = network(faces(network))
    assert found.dtype == torch.float32
    assert 0 < relative(found, exact(faces(exact))) < 0.05


def test_device_and_precision_are_checked_before_the_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        networks.load(tmp_path / "none.pth", device="gpu")
    with pytest.raises(DeviceError):
        networks.load(tmp_path / "none.pth", precision="float16")


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "bare": lambda state: state,
    "g_ema": lambda state: {"g": {}, "g_ema": state, "g_optim": {"lr": 0.002}},
    "params_ema": lambda state: {"params": {"other": torch.zeros(1)}, "params_ema": state},
    "params": lambda state: {"params": state},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "name": "x"},
    "two deep": lambda state: {"state_dict": {"params_ema": state}},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "g_ema module": lambda state: {"g_ema": {f"module.{name}": tensor for name, tensor in state.items()}},
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, state: State, wrap: Callable[[State], object]) -> None:
    found = networks.read_state(saved(tmp_path / "w.pth", wrap(state)))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) and not found[name].requires_grad for name in state)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(("name", "write"), FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_network(
    tmp_path: Path, state: State, name: str, write: Callable[[Path, State], Path], dtype: torch.dtype
) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state.items()}
    path = write(tmp_path / name, stored)
    network = networks.load(path)
    found = network.body.state_dict()
    assert all(found[key].dtype == torch.float32 for key in stored)
    assert all(torch.equal(found[key], tensor.float()) for key, tensor in stored.items())
    assert torch.isfinite(network(faces(network))).all()


def test_a_network_for_other_purposes_is_named_by_its_first_tensors(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    problem = refusal(saved(tmp_path / "w.pth", other.state_dict()))
    assert "another network (first tensors: 0.weight, 0.bias, 1.weight)" in problem
    assert EXPECTED in problem


FIRST = "generator.convs.0.conv.weight"

MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: without(s, "generator.to_rgbs.1.bias"), "generator.to_rgbs.1.bias is missing"),
    "missing head": (lambda s: without(s, "final_linear.0.weight"), "final_linear.0.weight is missing"),
    "missing level": (lambda s: without(s, "ecd2.0.1.weight"), "ecd2.0.1.weight is missing"),
    "unknown": (lambda s: {**s, "extra.weight": torch.zeros(2)}, "extra.weight is unknown"),
    "shape": (lambda s: {**s, FIRST: torch.zeros(1, 8, 15, 3, 3)}, f"{FIRST} has shape (1, 8, 15, 3, 3) instead of"),
    "shapes": (lambda s: {k: v[:1] if "to_rgbs" in k else v for k, v in s.items()}, "more; expected"),
    "no axes": (lambda s: {**s, FIRST: torch.tensor(1.0)}, "no complete GPEN network"),
    "integers": (lambda s: {**s, FIRST: s[FIRST].int()}, f"{FIRST} is torch.int32"),
    "kernel": (lambda s: {**s, "ecd1.0.0.kernel": torch.full((4, 4), 1 / 16)}, "another blur kernel (ecd1.0.0.kernel)"),
    "NaN": (lambda s: {**s, FIRST: s[FIRST] * torch.nan}, f"tensor {FIRST} holds NaN"),
    "one infinity": (lambda s: {**s, "final_linear.0.bias": torch.tensor([torch.inf] + [0.0] * 15)}, "infinite"),
    "half infinity": (lambda s: {**s, FIRST: torch.full_like(s[FIRST], torch.inf, dtype=torch.half)}, "infinite"),
}


@pytest.mark.parametrize(("spoil", "what"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("write", [saved, as_safetensors], ids=["pth", "safetensors"])
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    state: State,
    spoil: Callable[[State], State],
    what: str,
    write: Callable[[Path, State], Path],
) -> None:
    spoilt = {name: tensor.contiguous() for name, tensor in spoil(state).items()}
    assert what in refusal(write(tmp_path / "w.pth", spoilt))
