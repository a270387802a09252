"""Weight files: what loads, and how everything else is refused."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from facefix import networks
from facefix.errors import DeviceError, WeightsInvalid, WeightsMissing
from facefix.gpen import GPEN


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(GPEN(32, [8] * 4, style_dim=16, n_mlp=2).state_dict())


class Hostile:
    """Makes a file where it was told to, if anything ever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_wrapped_prefixed_legacy_and_half_files_are_one_network(tmp_path: Path, state: dict) -> None:
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"g_ema": {f"module.{k}": v for k, v in state.items()}, "step": 3}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": {"params_ema": state}}, tmp_path / "twice.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "plain.safetensors")
    expected = networks.load(tmp_path / "plain.pth")(picture)
    for name in ("wrapped.pt", "twice.pth", "legacy.pth", "plain.safetensors"):
        assert torch.equal(networks.load(tmp_path / name)(picture), expected), name
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    half = networks.load(tmp_path / "half.safetensors")
    assert half.dtype == torch.float32
    assert (half(picture) - expected).norm() / expected.norm() < 0.01


def test_a_loaded_network_says_what_it_is(tmp_path: Path, state: dict) -> None:
    torch.save(state, tmp_path / "GPEN-BFR-2048.pth")
    network = networks.load(str(tmp_path / "GPEN-BFR-2048.pth"), device="auto", precision="auto")
    assert (network.architecture, network.in_size, network.out_size, network.size) == ("GPEN", 32, 32, 32)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\), got \(1, 3, 8, 8\)"):
        network(torch.zeros(1, 3, 8, 8))


def test_bfloat16_gives_float32_pictures(tmp_path: Path, state: dict) -> None:
    torch.save(state, tmp_path / "a.pth")
    network = networks.load(tmp_path / "a.pth", precision="bfloat16")
    assert network.dtype == torch.bfloat16
    assert network(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def write(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"<html>", "web page"),
        (b"no weights here\n", "text file"),
        (bytes(range(200, 256)) * 40, "no known kind"),
        (b"\x80\x02", "damaged or truncated"),
        ([1, 2], "a value of type list, not named tensors"),
        ({}, "an empty dict"),
        ({"epoch": 3}, "'epoch', not a tensor"),
        ({"weight": torch.ones(3), "bias": torch.ones(3)}, r"another network \(first tensors: weight, bias\)"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path, content: object, problem: str) -> None:
    if "first tensors" in problem:
        pytest.importorskip("spandrel")
    path = tmp_path / "GPEN-BFR-512.pth"
    write(path, content)
    with pytest.raises(WeightsInvalid, match=problem) as caught:
        networks.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_folders_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid, match="is a folder"):
        networks.load(tmp_path)
    with pytest.raises(WeightsMissing, match="no such file"):
        networks.load(tmp_path / "absent.pth")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, state: dict, kind: str, kept: float) -> None:
    path = tmp_path / "a"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(WeightsInvalid, match=r"truncated|damaged"):
        networks.load(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 0", "protocol 2", "protocol 4", "wrapped"])
def test_nothing_in_a_hostile_file_runs(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "a.pth", tmp_path / "mark"
    if form.startswith("protocol"):
        path.write_bytes(pickle.dumps(Hostile(mark), int(form[-1])))
    else:
        content = {"g_ema": {"weight": Hostile(mark)}} if form == "wrapped" else Hostile(mark)
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(WeightsInvalid, match="pickle"):
        networks.load(path)
    assert not mark.exists()
    if form.startswith("protocol"):  # the file does do harm to those who trust it
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsInvalid, match="zip archive without a checkpoint"):
        networks.load(path)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("ecd2.0.2.bias", None, "ecd2.0.2.bias is missing"),
        ("generator.convs.2.conv.weight", None, "generator.convs.2.conv.weight is missing"),
        ("generator.conv1.activate.bias", None, "generator.conv1.activate.bias is missing"),
        (
            "final_linear.0.weight",
            torch.zeros(16, 3),
            r"final_linear.0.weight has shape \(16, 3\) instead of \(16, 128\)",
        ),
        ("generator.extra", torch.zeros(1), "generator.extra is unknown"),
        ("ecd1.0.2.bias", torch.zeros(8, dtype=torch.int32), "ecd1.0.2.bias is torch.int32"),
        ("ecd1.0.2.bias", torch.full((8,), torch.nan), "ecd1.0.2.bias holds NaN"),
        ("ecd1.0.2.bias", torch.full((8,), torch.inf), "ecd1.0.2.bias holds NaN or infinite"),
        ("ecd1.0.0.kernel", torch.ones(4, 4), "another blur kernel"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, state: dict, name: str, change: torch.Tensor | None, problem: str
) -> None:
    path = tmp_path / "a.pth"
    changed = {k: v for k, v in state.items() if k != name} | ({} if change is None else {name: change})
    torch.save(changed, path)
    with pytest.raises(WeightsInvalid, match=problem):
        networks.load(path)


def test_the_text_file_of_the_shared_data_is_refused(shared: Path) -> None:
    with pytest.raises(WeightsInvalid, match="text file"):
        networks.load(shared / "badinputs" / "text_as_weights.pth")


@pytest.mark.slow
def test_gfpgan_loads_through_the_same_door(tmp_path: Path) -> None:
    arch = pytest.importorskip("spandrel.architectures.GFPGAN")
    torch.manual_seed(0)
    model = arch.GFPGAN(
        out_size=512, num_style_feat=512, channel_multiplier=2, fix_decoder=False, num_mlp=8, input_is_latent=True,
        different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip
    torch.save({"params_ema": model.state_dict()}, tmp_path / "a.pth")
    network = networks.load(tmp_path / "a.pth")
    assert (network.architecture, network.size, network.training) == ("GFPGAN", 512, False)
    picture = torch.rand(1, 3, 512, 512) * 2 - 1
    assert torch.equal(network(picture), network(picture))
    with pytest.raises(DeviceError, match="needs a GPU"):
        networks.load(tmp_path / "a.pth", precision="float16")
