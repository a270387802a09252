"""Models of Stable Diffusion and SDXL from folders, files and the hub's cache, of which no code is run."""

import ast
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
import tiny_diffusion as tiny
from tiny_engines import HOLE, SCENE, loaded

import facefix
from facefix.errors import UsageError, WeightsInvalid, WeightsMissing
from facefix.inpaint import diffusion
from facefix.inpaint.diffusion import Diffusion

pytestmark = pytest.mark.usefixtures("offline")


# --- models from folders ---------------------------------------------------------------------------------------------


def copied(folder: Path, target: Path, *, without: str = "") -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*([without] if without else [])))
    return target


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_the_safety_checker_is_not_loaded(sd_folders: dict[str, Path], tmp_path: Path) -> None:
    """A published model names one; its files need not be there."""
    folder = copied(sd_folders["sd4"], tmp_path / "sd")
    rewrite(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    engine = loaded(folder)
    assert engine.pipeline.safety_checker is None
    assert engine.fill(SCENE, HOLE).shape == SCENE.shape


def test_half_precision_files_are_found(sd_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(sd_folders["sd4"], tmp_path / "sd")
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert loaded(folder).fill(SCENE, HOLE).shape == SCENE.shape


def test_a_model_of_the_other_kind_says_which_engine_takes_it(sd_folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="expected Stable Diffusion, got SDXL; use --engine sdxl"):
        loaded(sd_folders["xl4"], kind="sd")
    with pytest.raises(UsageError, match="expected SDXL, got Stable Diffusion; use --engine sd"):
        loaded(sd_folders["sd9"], kind="sdxl")


class Hostile:
    """A pickle that writes a file when it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "run")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_code_in_a_pickle_stays_inert(sd_folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = copied(sd_folders["sd4"], tmp_path / "sd")
    (folder / f"{part}.safetensors").unlink()
    name = "pytorch_model.bin" if part.startswith("text") else "diffusion_pytorch_model.bin"
    path = (folder / part).with_name(name)
    torch.save({"weight": Hostile(tmp_path / "ran")}, path)
    with pytest.raises(WeightsInvalid) as caught:
        loaded(folder)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(WeightsInvalid):
        loaded(folder)
    assert not (tmp_path / "ran").exists()


def test_tensors_in_a_pickle_are_read(sd_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(sd_folders["sd4"], tmp_path / "sd", without="unet")
    tiny.unet(4).save_pretrained(folder / "unet", safe_serialization=False)
    assert (folder / "unet" / "diffusion_pytorch_model.bin").exists()
    engine = loaded(folder)
    wanted = tiny.unet(4).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in engine.pipeline.unet.state_dict().items())


@pytest.mark.parametrize("library", ["mine", "os", "unet"])
def test_code_beside_a_model_is_not_run(sd_folders: dict[str, Path], tmp_path: Path, library: str) -> None:
    folder = copied(sd_folders["sd4"], tmp_path / "sd")
    (folder / "unet" / f"{library}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    rewrite(folder / "model_index.json", unet=[library, "Net"])
    with pytest.raises(WeightsInvalid, match=f"asks for code from '{library}' for its unet, which was not run"):
        loaded(folder)
    assert not (tmp_path / "ran").exists()


def spoiled(folder: Path, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    match how:
        case "no index":
            (folder / "model_index.json").unlink()
        case "index no json":
            (folder / "model_index.json").write_text("<html>")
        case "index a list":
            (folder / "model_index.json").write_text("[]")
        case "another pipeline":
            rewrite(folder / "model_index.json", _class_name="FluxFillPipeline")
        case "channels":
            rewrite(folder / "unet" / "config.json", in_channels=5)
        case "no unet":
            shutil.rmtree(folder / "unet")
        case "no tokenizer":
            shutil.rmtree(folder / "tokenizer")
        case "no vocabulary":
            for name in ("vocab.json", "tokenizer.json"):
                (folder / "tokenizer" / name).unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "no weights":
            weights.unlink()
        case "a page":
            weights.write_text("<html>Not found</html>")
        case "another shape":
            rewrite(folder / "unet" / "config.json", block_out_channels=[32, 96])


SPOILED = {
    "no index": "has no model_index.json; expected a folder in diffusers' layout",
    "index no json": "model_index.json: cannot be read",
    "index a list": "model_index.json: holds a list",
    "another pipeline": "is a FluxFillPipeline; expected Stable Diffusion",
    "channels": "has a UNet of 5 channels; expected 4",
    "no unet": "has no unet/",
    "no tokenizer": "has no tokenizer/vocab",
    "no vocabulary": "has no tokenizer/vocab",
    "truncated": "cannot be read",
    "no weights": "cannot be read",
    "a page": "cannot be read",
    "another shape": "cannot be read",
}


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_folders_are_one_line(sd_folders: dict[str, Path], tmp_path: Path, how: str) -> None:
    folder = copied(sd_folders["sd4"], tmp_path / "sd")
    spoiled(folder, how)
    with pytest.raises(WeightsInvalid, match=SPOILED[how]) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(sd_folders: dict[str, Path]) -> dict[str, Tensor]:
    return tiny.published(sd_folders["sd9"])


def single(folder: Path, state: dict[str, Tensor], path: Path) -> Path:
    """The model as one file at `path`, its configuration beside it."""
    copied(folder, path.with_suffix(""), without="*.safetensors")
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 7}, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_one_file_is_the_folder(
    sd_folders: dict[str, Path],
    sd_engines: dict[str, Diffusion],
    published: dict[str, Tensor],
    tmp_path: Path,
    suffix: str,
) -> None:
    engine = loaded(single(sd_folders["sd9"], published, tmp_path / f"model{suffix}"))
    assert np.array_equal(engine.fill(SCENE, HOLE), sd_engines["sd9"].fill(SCENE, HOLE))


def test_code_in_a_checkpoint_stays_inert(
    sd_folders: dict[str, Path], sd_engines: dict[str, Diffusion], published: dict[str, Tensor], tmp_path: Path
) -> None:
    """What a trainer left beside the tensors is not run, and does not keep the tensors from being read."""
    path = single(sd_folders["sd9"], published, tmp_path / "model.ckpt")
    torch.save({"callbacks": {Hostile: Hostile(tmp_path / "ran")}, "state_dict": published}, path)
    engine = loaded(path)
    assert not (tmp_path / "ran").exists()
    assert np.array_equal(engine.fill(SCENE, HOLE), sd_engines["sd9"].fill(SCENE, HOLE))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(WeightsInvalid, match=r"model\.ckpt: is ") as caught:
        loaded(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_its_configuration_says_what_to_put_where(published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(published, tmp_path / "model.safetensors")
    wanted = rf"HF_HUB_OFFLINE is set\); put model_index\.json, .*left out, into the folder {tmp_path / 'model'}"
    with pytest.raises(WeightsMissing, match=wanted) as caught:
        loaded(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_model(sd_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(WeightsInvalid, match=r"ends in none of \.safetensors, \.ckpt"):
        loaded(tmp_path / "photo.png")
    path = single(sd_folders["sd9"], {"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsInvalid, match="cannot be read"):
        loaded(path)


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_in_the_hubs_cache_needs_no_network(
    sd_folders: dict[str, Path], sd_engines: dict[str, Diffusion], tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--someone--sd-inpainting"
    copied(sd_folders["sd9"], repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    engine = diffusion.load("someone/sd-inpainting", kind="sd", device="cpu", precision="float32", steps=3)
    assert engine.name == "sd sd-inpainting"
    assert np.array_equal(engine.fill(SCENE, HOLE), sd_engines["sd9"].fill(SCENE, HOLE))


def test_offline_a_name_says_which_files_to_put_where() -> None:
    with pytest.raises(WeightsMissing) as caught:
        diffusion.load("someone/sd-inpainting", kind="sd", device="cpu")
    said = str(caught.value)
    assert "is not in the hub's cache and cannot be fetched (HF_HUB_OFFLINE is set)" in said
    for part in ("model_index.json", "unet/", "vae/", "text_encoder/", "tokenizer/", "scheduler/", "--model"):
        assert part in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "./models/sd", "a/model.safetensors", "two\nlines/x"])
def test_names_that_are_neither_here_nor_on_the_hub(name: str) -> None:
    with pytest.raises(WeightsMissing, match="no such file or folder; put a Stable Diffusion model there") as caught:
        diffusion.load(name, kind="sd", device="cpu")
    assert "\n" not in str(caught.value)


def test_no_model_asks_for_one() -> None:
    with pytest.raises(UsageError, match="--model: expected a SDXL model, got none"):
        diffusion.load("", kind="sdxl", device="cpu")


@pytest.mark.parametrize("module", ["inpaint", "inpaint.diffusion", "inpaint.pipelines", "integrations.diffusers"])
def test_diffusers_is_imported_where_it_is_used_and_not_before(module: str) -> None:
    path = Path(facefix.__file__).parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    tops = {str(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in names}
    assert tops
    assert not tops & {"diffusers", "transformers", "accelerate", "huggingface_hub"}
