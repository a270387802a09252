"""A weight file becomes the network that its tensors describe, or is refused in one line, and nothing in it runs."""

import importlib
import io
import os
import pickle
import random
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_lama import TINY, made_generator, made_state
from safetensors.torch import save_file
from torch import Tensor, nn

from facefix import networks, runtime, statefile
from facefix.errors import DeviceError, WeightsInvalid, WeightsMissing
from facefix.ffc import Generator, Shape
from facefix.ffc_fast import Folded
from facefix.gpen import GPEN

State = dict[str, Tensor]
EXPECTED = "expected a GPEN, GFPGAN or RestoreFormer checkpoint"


def made(model: nn.Module, seed: int = 0) -> State:
    """Every tensor of the model, drawn anew so that none is zero and all of them matter; the blur kernels as they are.

    A model on the meta device serves too: only its names and shapes are needed.
    """
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".kernel"):
            state[name] = tensor.clone()
            continue
        drawn = torch.randn(tensor.shape, generator=draw)
        if name.endswith("bias") or tensor.ndim < 2:
            drawn *= 0.1
        elif not isinstance(model, GPEN):
            drawn *= tensor[0].numel() ** -0.5
        elif ".style." in name:  # stored divided by the learning rate multiplier
            drawn *= 100
        state[name] = drawn + (1 if name.endswith(("modulation.bias", "noise.weight")) else 0)
    return state


def small(size: int = 32, **options: Any) -> GPEN:
    options.setdefault("channels", [8] * (size.bit_length() - 2))
    options.setdefault("style_dim", 16)
    options.setdefault("n_mlp", 2)
    return GPEN(size, **options)


@pytest.fixture(scope="module")
def state() -> State:
    return made(small())


def faces(network: networks.Network, count: int = 1, seed: int = 1) -> Tensor:
    size = network.in_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def refusal(path: Path) -> str:
    """The problem that the file is refused for, after the checks that hold for every refusal."""
    with pytest.raises(WeightsInvalid) as caught:
        networks.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    assert caught.value.path == path
    assert len(caught.value.problem) < 600
    return caught.value.problem


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# --- dimensions from the tensors -------------------------------------------------------------------------------------

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
    assert (network.in_size, network.size) == (model.in_size, model.size)
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


# --- wrappers and formats --------------------------------------------------------------------------------------------

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


def compressed(path: Path, state: State) -> Path:
    """The checkpoint as someone's archiver packed it anew: the tensors' bytes are no longer in the file as such."""
    original = saved(path.with_suffix(".zip"), state)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


def as_safetensors(path: Path, state: State) -> Path:
    save_file(state, path)
    return path


FORMATS: dict[str, tuple[str, Callable[[Path, State], Path]]] = {
    "pth": ("w.pth", saved),
    "pt": ("w.pt", saved),
    "legacy": ("w.pth", lambda path, state: saved(path, state, _use_new_zipfile_serialization=False)),
    "compressed zip": ("w.pth", compressed),
    "pth under another name": ("w.safetensors", saved),
    "legacy under another name": ("w.safetensors", lambda path, state: FORMATS["legacy"][1](path, state)),
    "safetensors": ("w.safetensors", as_safetensors),
    "safetensors under another name": ("w.pth", as_safetensors),
}
NARROW = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


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


# --- hostile files ---------------------------------------------------------------------------------------------------


class Code:
    """Creates the file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def test_the_code_of_these_tests_would_run_in_a_plain_unpickler(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_runs(tmp_path: Path, witness: Path, state: State, container: str, protocol: int) -> None:
    content = {"g_ema": state, "extra": Code(witness)}
    path = tmp_path / "w.pth"
    if container == "pickle":
        path.write_bytes(pickle.dumps({"extra": Code(witness)}, protocol))
    else:
        saved(path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    problem = refusal(path)
    if protocol in (2, 3):
        assert f"asks for {os.mkdir.__module__}.mkdir" in problem
        assert "not run" in problem
    elif protocol >= 4:
        assert "not run" in problem
    else:
        assert EXPECTED in problem


def test_a_harmless_pickle_that_torch_cannot_read_is_refused_with_advice(tmp_path: Path, state: State) -> None:
    problem = refusal(saved(tmp_path / "w.pth", state, pickle_protocol=4))
    assert "have its author save a plain state dict" in problem


def test_code_where_the_weights_should_be_and_of_the_oldest_kind_does_not_run(tmp_path: Path, witness: Path) -> None:
    assert "asks for" in refusal(saved(tmp_path / "a.pth", Code(witness)))
    oldest = tmp_path / "b.pth"
    oldest.write_bytes(f"cos\nmkdir\n(V{witness}\ntR.".encode())
    assert "pickle of the oldest kind" in refusal(oldest)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "x" * 10_000], ids=["lines", "escape", "long"])
def test_names_of_tensors_cannot_spoil_the_message(tmp_path: Path, state: State, name: str) -> None:
    for index, content in enumerate(
        [{name: torch.zeros(2)}, {name: torch.tensor([torch.nan])}, {**state, name: torch.zeros(2)}, {name: "text"}]
    ):
        assert name[:5].encode("unicode_escape").decode() in refusal(saved(tmp_path / f"{index}.pth", content))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, 3, device="meta"), torch.eye(3).to_sparse()],
    ids=["expanded to 4 TB", "without numbers", "sparse"],
)
def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path: Path, state: State, tensor: Tensor) -> None:
    content = {**state, "generator.conv1.conv.weight": tensor}
    assert "generator.conv1.conv.weight not as plain numbers" in refusal(saved(tmp_path / "w.pth", content))


def test_whatever_is_damaged_is_refused_or_read(tmp_path: Path) -> None:
    """Bytes changed at random, in every container, never end in another error than ours."""
    tensors = made(small(8, channels=[2, 2], style_dim=2, n_mlp=1))
    originals = [
        saved(tmp_path / "zip", tensors).read_bytes(),
        saved(tmp_path / "legacy", tensors, _use_new_zipfile_serialization=False).read_bytes(),
        as_safetensors(tmp_path / "safetensors", tensors).read_bytes(),
    ]
    draw = random.Random(0)
    path = tmp_path / "w.pth"
    messages = []
    for turn in range(240):
        data = bytearray(originals[turn % 3])
        for _ in range(draw.choice([1, 20])):
            data[draw.randrange(min(len(data), 5000))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            networks.load(path)
        except WeightsInvalid as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert not any("\n" in message for message in messages)


# --- what is no checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [saved, FORMATS["legacy"][1], as_safetensors], ids=["pth", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(
    tmp_path: Path, state: State, write: Callable[[Path, State], Path], part: float
) -> None:
    whole = write(tmp_path / "whole", state).read_bytes()
    path = tmp_path / "w.pth"
    path.write_bytes(whole[: int(part * len(whole))])
    problem = refusal(path)
    assert "truncated" in problem or "damaged" in problem
    assert "download it again" in problem


def zipped(**files: str) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return memory.getvalue()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 284085738\n"
JUNK: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (POINTER.encode(), "is a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html>\n<html><body>Quota exceeded</body></html>", "is a web page"),
    "web page after blanks": (b"\r\n  <HTML>\n<head>", "is a web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "text": (b"Not Found\n", "is a text file"),
    "JSON": (b'{"error": {"code": 404}}\n', "is a text file"),
    "empty": (b"", "is empty"),
    "one byte": (b"\x80", "is of no known kind"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(600), "is of no known kind (it begins with ffd8ffe0)"),
    "zeros": (bytes(5000), "is of no known kind"),
    "another zip": (zipped(**{"a.txt": "x", "b/c.txt": "y"}), "is a zip archive without a checkpoint"),
    "huge safetensors header": (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "damaged or truncated safetensors"),
}


@pytest.mark.parametrize(("content", "what"), JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, what: str, suffix: str) -> None:
    path = tmp_path / f"GPEN-BFR-512{suffix}"
    path.write_bytes(content)
    assert what in refusal(path)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    with pytest.raises(WeightsMissing) as caught:
        networks.load(tmp_path / "none.pth")
    assert str(tmp_path / "none.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([torch.zeros(2)], "a value of type list, not named tensors"),
        (torch.zeros(2), "a value of type Tensor, not named tensors"),
        ({}, "an empty dict"),
        ({"g_ema": {}}, "an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "a value of type int under 'epoch'"),
        ({"params": torch.zeros(2)}, "first tensors: params"),
        ({0: torch.zeros(2)}, "first tensors: 0"),
    ],
    ids=str,
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object, what: str) -> None:
    assert what in refusal(saved(tmp_path / "w.pth", content))


def test_a_network_for_other_purposes_is_named_by_its_first_tensors(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    problem = refusal(saved(tmp_path / "w.pth", other.state_dict()))
    assert "another network (first tensors: 0.weight, 0.bias, 1.weight)" in problem
    assert EXPECTED in problem


def test_a_network_that_spandrel_knows_but_restores_no_faces_is_named(tmp_path: Path) -> None:
    architecture = importlib.import_module("spandrel.architectures.Compact").Compact
    compact = architecture(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2)
    problem = refusal(saved(tmp_path / "w.pth", {"params": compact.state_dict()}))
    assert "is a Compact network (first tensors: body.0.weight" in problem


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


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


# --- GFPGAN and RestoreFormer ----------------------------------------------------------------------------------------

RESTOREFORMER = {
    "n_embed": 1024, "embed_dim": 256, "ch": 64, "out_ch": 3, "ch_mult": (1, 2, 2, 4, 4, 8), "num_res_blocks": 2,
    "attn_resolutions": (16,), "in_channels": 3, "resolution": 512, "z_channels": 256, "double_z": False,
    "enable_mid": True, "head_size": 8,
}  # fmt: skip
NARROW_RESTOREFORMER = RESTOREFORMER | {
    "n_embed": 64, "embed_dim": 32, "ch": 32, "ch_mult": (1,) * 6, "num_res_blocks": 1, "z_channels": 32,
}  # fmt: skip
GFPGAN = {
    "out_size": 512, "num_style_feat": 512, "channel_multiplier": 2, "num_mlp": 8, "input_is_latent": True,
    "different_w": True, "narrow": 1, "sft_half": True, "fix_decoder": False,
}  # fmt: skip


def foreign_file(path: Path, architecture: str, dimensions: dict[str, Any], spoil: str = "") -> Path:
    """A checkpoint with made weights in the names and shapes of the architecture; the tensor `spoil` left out."""
    module = importlib.import_module(f"spandrel.architectures.{architecture}")
    with torch.device("meta"):
        model = getattr(module, architecture)(**dimensions)
    return saved(path, {"params_ema": without(made(model), spoil)})


def check_range(network: networks.Network, first: str) -> Tensor:
    """The output for one random picture 0..1, of which the first layer got -1..1."""
    model = network.body.model
    taken: list[Tensor] = []
    hook = model.get_submodule(first).register_forward_pre_hook(lambda _, given: taken.append(given[0].clone()))
    picture = np.random.default_rng(0).random((512, 512, 3), np.float32)
    with torch.inference_mode():
        result = network(runtime.to_batch([picture]))
    hook.remove()
    assert result.shape == (1, 3, 512, 512)
    assert result.dtype == torch.float32
    expected = torch.from_numpy(picture * 2 - 1).permute(2, 0, 1)[None]
    assert torch.allclose(taken[0], expected, atol=1e-6)
    return result


def test_restoreformer_takes_and_gives_minus_one_to_one(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "w.pth", "RestoreFormer", NARROW_RESTOREFORMER)
    network = networks.load(path)
    assert (network.architecture, network.in_size, network.size) == ("RestoreFormer", 512, 512)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    result = check_range(network, "encoder.conv_in")
    assert result.min() < -0.05  # spandrel's own call would have given 0..1
    twin = importlib.import_module("spandrel").ModelLoader().load_from_file(path)
    picture = torch.from_numpy(np.random.default_rng(0).random((512, 512, 3), np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        assert torch.allclose(twin(picture), (result / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_restorers_refuse_precisions_that_they_cannot_compute_with_and_incomplete_files(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "w.pth", "RestoreFormer", NARROW_RESTOREFORMER)
    assert networks.load(path, precision="bfloat16").dtype == torch.bfloat16
    spoilt = foreign_file(tmp_path / "s.pth", "RestoreFormer", NARROW_RESTOREFORMER, "decoder.norm_out.weight")
    problem = refusal(spoilt)
    assert "is incomplete or of unknown dimensions" in problem
    assert "decoder.norm_out.weight" in problem


@pytest.mark.slow
def test_restoreformer_loads_in_its_published_shapes(tmp_path: Path) -> None:
    network = networks.load(foreign_file(tmp_path / "w.pth", "RestoreFormer", RESTOREFORMER))
    assert (network.architecture, network.size) == ("RestoreFormer", 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(72.68e6, rel=1e-3)


@pytest.mark.slow
def test_gfpgan_takes_and_gives_minus_one_to_one_the_same_every_time(tmp_path: Path) -> None:
    network = networks.load(foreign_file(tmp_path / "w.pth", "GFPGAN", GFPGAN))
    assert (network.architecture, network.in_size, network.size) == ("GFPGAN", 512, 512)
    assert not any(module.training for module in network.modules())
    decoder = network.body.model.stylegan_decoder
    assert decoder.style_conv1.weight.abs().max() > 0  # so that noise drawn anew would be seen
    drawn: list[Tensor] = []
    hook = decoder.to_rgbs[-1].register_forward_hook(lambda *call: drawn.append(call[2].clone()))
    result = check_range(network, "conv_body_first")
    hook.remove()
    assert torch.equal(drawn[0], result)  # the range of the last layer is the network's
    picture = np.random.default_rng(0).random((512, 512, 3), np.float32)
    assert torch.equal(network(runtime.to_batch([picture])), result)


# --- LaMa ------------------------------------------------------------------------------------------------------------

LAMA = "expected a LaMa checkpoint"


@pytest.fixture(scope="module")
def lama_state() -> State:
    return made_state(Generator.layout(TINY))


class Traced(nn.Module):
    """What the published TorchScript archive holds: the generator inside of a module that takes picture and hole."""

    def __init__(self) -> None:
        super().__init__()
        module = importlib.import_module("spandrel.architectures.LaMa.__arch.LaMa")
        kinds = {"enable_lfu": False}
        none = kinds | {"ratio_gin": 0, "ratio_gout": 0}
        both = kinds | {"ratio_gin": 0.75, "ratio_gout": 0.75}
        self.model = module.FFCResNetGenerator(
            4, 3, ngf=2, n_blocks=2, init_conv_kwargs=none, downsample_conv_kwargs=none, resnet_conv_kwargs=both
        )

    def forward(self, picture: Tensor, hole: Tensor) -> Tensor:
        return self.model.model(torch.cat([picture * (1 - hole), hole], dim=1))


class Callback:
    """Stands for a class of a training framework, which nobody has installed; pickled by its name."""

    def __init__(self, best: Tensor) -> None:
        self.best = best
        self.monitor = {"fid": [1.0, 2.0]}


class ListLike(list):
    """Stands for a configuration's list."""


def lightning(state: State, **more: object) -> dict[str, object]:
    """What a training framework saves: the generator beside other networks, callbacks by class, settings, progress."""
    return {
        "epoch": 11,
        "global_step": 25_000,
        "callbacks": {Callback: {"best_model_score": torch.tensor(0.5), "callback": Callback(torch.zeros(2))}},
        "hyper_parameters": OrderedDict(generator=ListLike([Callback(torch.ones(1)), 3]), data={"path": Path("x")}),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "state_dict": OrderedDict(
            {"discriminator.model0.0.weight": torch.full((2, 2), torch.nan)}
            | {f"generator.{name}": tensor for name, tensor in state.items()}
        ),
        **more,
    }


def foreign(path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, saved with classes of a module that is not there when the file is read."""
    module = types.ModuleType("strange_training")
    for kind in (Callback, ListLike):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    saved(path, content)
    monkeypatch.delitem(sys.modules, module.__name__)
    return path


def zipped_checkpoint(path: Path, state: State) -> Path:
    inner = saved(path.with_suffix(".inner"), lightning(state))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big-lama/config.yaml", "generator:\n  kind: ffc_resnet\n")
        archive.write(inner, "big-lama/models/best.ckpt")
    return path


LAMA_FILES: dict[str, Callable[[Path, State], Path]] = {
    "state dict": saved,
    "generator's": lambda path, state: saved(path, {f"generator.{name}": t for name, t in state.items()}),
    "wrapped": lambda path, state: saved(path, {"gen_state_dict": {f"model.{name}": t for name, t in state.items()}}),
    "parameters": lambda path, state: saved(path, {n: nn.Parameter(t) if t.ndim else t for n, t in state.items()}),
    "Lightning": lambda path, state: saved(path, lightning(state)),
    "zip around Lightning": zipped_checkpoint,
    "compressed": compressed,
    "legacy": FORMATS["legacy"][1],
    "safetensors": as_safetensors,
}


@pytest.mark.parametrize("write", LAMA_FILES.values(), ids=LAMA_FILES)
def test_lama_is_read_from_every_format(
    tmp_path: Path, lama_state: State, write: Callable[[Path, State], Path]
) -> None:
    found = networks.load_lama(write(tmp_path / "GPEN-BFR-512.pth", lama_state))
    expected = Folded(made_generator(TINY)).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert not any(module.training for module in found.modules())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_lama_is_float32_whatever_the_file_holds(tmp_path: Path, lama_state: State, dtype: torch.dtype) -> None:
    stored = {n: t.to(dtype) if t.is_floating_point() else t for n, t in lama_state.items()}
    found = networks.load_lama(saved(tmp_path / "w.pth", stored))
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}
    exact = networks.load_lama(saved(tmp_path / "w.pth", stored), precision=torch.float64)
    assert {tensor.dtype for tensor in exact.state_dict().values()} == {torch.float64}


def test_lama_needs_no_counters_of_training(tmp_path: Path, lama_state: State) -> None:
    bare = {name: tensor for name, tensor in lama_state.items() if not name.endswith("num_batches_tracked")}
    assert networks.load_lama(as_safetensors(tmp_path / "w.safetensors", bare))


def test_a_checkpoint_with_classes_that_nobody_has_gives_its_tensors(
    tmp_path: Path, lama_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign(tmp_path / "best.ckpt", lightning(lama_state), monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="strange_training"):
        torch.load(path, weights_only=False)
    found = statefile.read_network(path, networks.FIRST_OF_LAMA)
    assert list(found) == list(lama_state)
    assert all(torch.equal(found[name], tensor) for name, tensor in lama_state.items())


def test_a_torchscript_archive_gives_its_tensors_without_torch_jit(
    tmp_path: Path, lama_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("spandrel")
    state = made_state(Generator.layout(Shape((2, 4, 8, 16), 4, 2)))
    module = Traced()
    module.model.load_state_dict(state)
    path = tmp_path / "big-lama.pt"
    picture, hole = torch.rand(1, 3, 32, 40), torch.zeros(1, 1, 32, 40)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published file was made with it
        traced = torch.jit.trace(module.eval(), (picture, hole), check_trace=False)
        torch.jit.save(traced, path)
        expected = traced(picture, hole)
    monkeypatch.delattr(torch.jit, "load")
    found = statefile.read_network(path, networks.FIRST_OF_LAMA)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with torch.no_grad():
        assert relative(networks.load_lama(path)(torch.cat([picture, hole], dim=1)), expected) < 1e-5


class Reduced:
    """Asks for a call when it is unpickled, with arguments and everything else that the protocol knows."""

    def __init__(self, *answer: object) -> None:
        self.answer = answer

    def __reduce__(self) -> tuple[Any, ...]:
        return self.answer


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["beside", "within", "instead"])
def test_hostile_objects_in_a_checkpoint_stay_inert(
    tmp_path: Path, witness: Path, lama_state: State, protocol: int, place: str
) -> None:
    hostile = [
        Code(witness),
        Reduced(os.system, (f"mkdir {witness}",)),
        Reduced(eval, (f"__import__('os').mkdir({str(witness)!r})",)),
        Reduced(Callback, (torch.zeros(1),), {"best": Code(witness)}, iter([Code(witness)]), iter([("a", 1)])),
        Reduced(getattr, (Reduced(__import__, ("os",)), "mkdir")),
    ]
    path = tmp_path / "best.ckpt"
    if place == "instead":
        saved(path, hostile, pickle_protocol=protocol)
        with pytest.raises(WeightsInvalid, match=LAMA):
            networks.load_lama(path)
        return
    content = lightning(lama_state, hostile=hostile)
    if place == "within":
        content["state_dict"] = {"a": hostile[0], **content["state_dict"], "generator.extra": hostile[1]}
    saved(path, content, pickle_protocol=protocol)
    if protocol == 0:  # torch itself cannot read what it writes so
        assert "damaged" in lama_refusal(path)
    else:
        networks.load_lama(path)


def test_hostile_objects_in_a_torchscript_archive_stay_inert(tmp_path: Path, witness: Path, lama_state: State) -> None:
    plain = saved(tmp_path / "plain.pth", lama_state)
    path = tmp_path / "big-lama.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("plain/constants.pkl", pickle.dumps((Code(witness),), 2))
        new.writestr("plain/code/__torch__.py", f"import os\nos.mkdir({str(witness)!r})\n")
    networks.load_lama(path)


def lama_refusal(path: Path) -> str:
    with pytest.raises(WeightsInvalid) as caught:
        networks.load_lama(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 700
    return caught.value.problem


BLOCK = "model.6.conv2.ffc.convg2g.fu.conv_layer.weight"
LAST = "model.18.weight"
ODD = "model.6.conv1.ffc.gate.weight"
LAMA_MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: without(s, BLOCK), f"{BLOCK} is missing"),
    "missing block": (lambda s: {n: t for n, t in s.items() if "model.6." not in n}, "model.17.weight is missing"),
    "missing end": (lambda s: without(s, LAST), f"is no complete LaMa generator: tensor {LAST} is missing"),
    "unknown": (lambda s: {**s, ODD: torch.zeros(2)}, f"{ODD} is unknown"),
    "shape": (lambda s: {**s, BLOCK: torch.zeros(4, 4, 1, 1)}, f"{BLOCK} has shape (4, 4, 1, 1) instead of (6, 6,"),
    "integers": (lambda s: {**s, BLOCK: s[BLOCK].int()}, f"{BLOCK} is torch.int32"),
    "no axes": (lambda s: {**s, "model.2.ffc.convl2l.weight": torch.tensor(1.0)}, "is no complete LaMa generator"),
    "two halvings": (lambda s: without(s, "model.4.ffc.convl2l.weight"), "expected 3 halvings, got 2"),
    "NaN": (lambda s: {**s, BLOCK: s[BLOCK] * torch.nan}, f"tensor {BLOCK} holds NaN"),
    "infinite": (lambda s: {**s, LAST: s[LAST] / 0}, f"tensor {LAST} holds NaN or infinite"),
}


@pytest.mark.parametrize(("spoil", "what"), LAMA_MISFITS.values(), ids=LAMA_MISFITS)
@pytest.mark.parametrize("write", [saved, as_safetensors], ids=["pth", "safetensors"])
def test_lama_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    lama_state: State,
    spoil: Callable[[State], State],
    what: str,
    write: Callable[[Path, State], Path],
) -> None:
    assert what in lama_refusal(write(tmp_path / "w.pth", spoil(lama_state)))


@pytest.mark.parametrize(("content", "what"), JUNK.values(), ids=JUNK)
def test_files_that_are_no_lama_are_named_for_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "big-lama.pt"
    path.write_bytes(content)
    if "safetensors" not in what and "zip" not in what:
        assert what in lama_refusal(path)
    assert lama_refusal(path)


def test_other_networks_are_named_by_their_first_tensors(tmp_path: Path, state: State) -> None:
    for write in (saved, as_safetensors, FORMATS["legacy"][1]):
        problem = lama_refusal(write(tmp_path / "w.pth", state))
        assert "another network (first tensors: " in problem
        assert next(iter(state)) in problem or write is as_safetensors
    assert "is another network (first tensors: none)" in lama_refusal(saved(tmp_path / "w.pth", [1, 2]))


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_lama_files_are_refused(tmp_path: Path, lama_state: State, part: float) -> None:
    whole = saved(tmp_path / "whole", lightning(lama_state)).read_bytes()
    path = tmp_path / "best.ckpt"
    path.write_bytes(whole[: int(part * len(whole))])
    assert "damaged or truncated" in lama_refusal(path)


def test_whatever_is_damaged_in_a_checkpoint_is_refused_or_read(tmp_path: Path, lama_state: State) -> None:
    original = saved(tmp_path / "zip", lightning(lama_state)).read_bytes()
    draw = random.Random(0)
    path = tmp_path / "w.ckpt"
    messages = []
    for _ in range(150):
        data = bytearray(original)
        for _ in range(draw.choice([1, 20])):
            data[draw.randrange(min(len(data), 9000))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            networks.load_lama(path)
        except WeightsInvalid as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(message.isprintable() for message in messages)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, lama_state: State) -> None:
    huge = {**lama_state, BLOCK: torch.zeros(1).expand(10**6, 10**6)}
    assert f"{BLOCK} not as plain numbers" in lama_refusal(saved(tmp_path / "w.pth", huge))
