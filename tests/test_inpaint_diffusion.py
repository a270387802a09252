"""Stable Diffusion and SDXL as engines: real pipelines at a tiny size, from folders, files and the hub's cache."""

import ast
import copy
import dataclasses
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
import huggingface_hub
import tiny_diffusion as tiny

import facefix
from facefix import upscale
from facefix.errors import DeviceError, UsageError, WeightsInvalid, WeightsMissing
from facefix.inpaint import diffusion, pipelines
from facefix.inpaint.diffusion import Diffusion
from facefix.types import Mask, Photo, Pixels

MODELS = {"sd4": (4, False), "sd9": (9, False), "xl4": (4, True), "xl9": (9, True)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may reach the hub, nor see what its cache happens to hold."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {name: tiny.save(parent / name, channels, xl=xl) for name, (channels, xl) in MODELS.items()}


@pytest.fixture(scope="session")
def engines(folders: dict[str, Path]) -> dict[str, Diffusion]:
    return {name: loaded(folder) for name, folder in folders.items()}


def loaded(folder: Path, **settings: Any) -> Diffusion:
    kind = "sdxl" if folder.name.startswith("xl") else "sd"
    return diffusion.load(folder, **{"kind": kind, "device": "cpu", "precision": "float32", "steps": 3, **settings})


def scene_of(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def hole_of(height: int, width: int, rows: slice, columns: slice) -> Mask:
    hole = np.zeros((height, width), np.float32)
    hole[rows, columns] = 1
    return hole


SCENE, HOLE = scene_of(64, 64), hole_of(64, 64, slice(21, 42), slice(19, 33))


@contextmanager
def watched(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What the module is called with, first argument only."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        yield seen
    finally:
        hook.remove()


# --- the contract of an engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_fill_has_the_size_of_its_scene_and_repeats_under_its_seed(engines: dict[str, Diffusion], name: str) -> None:
    engine, steps = engines[name], []
    state = torch.get_rng_state()
    scene, hole = scene_of(100, 77), hole_of(100, 77, slice(30, 60), slice(20, 41))
    kept = scene.copy(), hole.copy()
    first = engine.fill(scene, hole, seed=1, progress=lambda done, total: steps.append((done, total)))
    assert first.shape == scene.shape
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert np.array_equal(first, engine.fill(scene, hole, seed=1))
    assert np.abs(first - engine.fill(scene, hole, seed=2))[hole > 0].mean() > 0.01
    assert np.array_equal(scene, kept[0])
    assert np.array_equal(hole, kept[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert engine.takes_prompt
    assert engine.name == f"{'sdxl' if name.startswith('xl') else 'sd'} {name}"


@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 1), (3, 200), (64, 64), (65, 63), (8, 8), (150, 31)])
def test_scenes_of_any_size(engines: dict[str, Diffusion], height: int, width: int) -> None:
    hole = hole_of(height, width, slice(0, 1), slice(0, 1))
    filled = engines["sd9"].fill(scene_of(height, width), hole)
    assert filled.shape == (height, width, 3)
    assert np.isfinite(filled).all()


@pytest.mark.parametrize(("height", "width", "seen"), [(64, 64, (8, 8)), (256, 128, (12, 8)), (16, 40, (8, 13))])
def test_the_model_sees_its_own_area_whatever_the_scene(
    engines: dict[str, Diffusion], height: int, width: int, seen: tuple[int, int]
) -> None:
    """Not the default of diffusers, which is a square of the model's size for every picture."""
    engine = engines["sd4"]
    with watched(engine.pipeline.unet) as calls:
        engine.fill(scene_of(height, width), hole_of(height, width, slice(4, 9), slice(4, 9)))
    assert {tuple(call.shape[2:]) for call in calls} == {seen}


def test_padding_is_cut_off_and_nothing_is_moved(engines: dict[str, Diffusion]) -> None:
    """What the VAE sees is the scene, pixel by pixel, its last row and column repeated."""
    engine = engines["sd4"]
    scene = scene_of(61, 70)
    with watched(engine.pipeline.vae.encoder) as calls:
        engine.redraw(scene, hole_of(61, 70, slice(4, 9), slice(4, 9)), denoise=0.5, steps=1)
    (picture,) = calls
    wanted = np.pad(scene, ((0, 3), (0, 2), (0, 0)), mode="edge").transpose(2, 0, 1) * 2 - 1
    np.testing.assert_allclose(picture[0].numpy(), wanted, atol=1e-6)


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd9", "xl9"])
def test_an_inpainting_model_sees_the_hole_and_the_picture_around_it(engines: dict[str, Diffusion], name: str) -> None:
    """The mask by its largest value, the picture exact to the pixel and mid-grey inside the hole."""
    engine = engines[name]
    with watched(engine.pipeline.unet) as calls, watched(engine.pipeline.vae.encoder) as pictures:
        engine.redraw(SCENE, HOLE, denoise=1.0, steps=1)
    cells = HOLE.reshape(8, 8, 8, 8).max(axis=(1, 3))
    assert calls[0].shape[1] == 9
    np.testing.assert_array_equal(calls[0][0, 4].numpy(), cells)
    around = pictures[-1][0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(around, np.where(HOLE[..., None] > 0, 0, SCENE * 2 - 1), atol=1e-6)


@pytest.mark.parametrize("name", ["sd4", "xl4"])
def test_a_base_model_keeps_what_is_known_in_the_latent(engines: dict[str, Diffusion], name: str) -> None:
    """Two prompts give the same latents outside of the hole's cells, and different ones in each of them."""
    engine = engines[name]
    latents = []
    for prompt in ("a cat", "an old boat"):
        with watched(engine.pipeline.vae.decoder) as calls:
            dataclasses.replace(engine, prompt=prompt).redraw(SCENE, HOLE, denoise=1.0, steps=3)
        latents.append(calls[-1])
    differ = (latents[0] - latents[1]).abs().sum((0, 1)).numpy()
    np.testing.assert_array_equal(differ > 0, HOLE.reshape(8, 8, 8, 8).max(axis=(1, 3)) > 0)


def test_nothing_to_draw_gives_the_pictures_own_latents(engines: dict[str, Diffusion]) -> None:
    engine, empty = engines["sd4"], np.zeros((64, 64), np.float32)
    first = engine.redraw(SCENE, empty, denoise=1.0, steps=2)
    other = dataclasses.replace(engine, prompt="a cat").redraw(SCENE, empty, denoise=0.4, steps=3)
    assert np.array_equal(first, other)


@pytest.mark.parametrize("name", ["sd4", "sd9"])
def test_a_stroke_of_one_pixel_survives_the_trip_to_the_latent(engines: dict[str, Diffusion], name: str) -> None:
    stroke = hole_of(64, 64, slice(29, 30), slice(5, 60))
    assert torch.nn.functional.interpolate(torch.from_numpy(stroke)[None, None], size=(8, 8)).sum() == 0
    cells = diffusion.open_cells(torch.from_numpy(stroke)[None, None], 8)
    np.testing.assert_array_equal(cells[0, 0].numpy(), stroke.reshape(8, 8, 8, 8).max(axis=(1, 3)))
    engine = engines[name]
    one, other = (dataclasses.replace(engine, prompt=prompt).fill(SCENE, stroke) for prompt in ("", "a red boat"))
    assert np.abs(one - other)[29].mean() > 1e-4


def test_a_stroke_survives_shrinking(engines: dict[str, Diffusion]) -> None:
    scene, stroke = scene_of(640, 640), hole_of(640, 640, slice(301, 302), slice(100, 101))
    engine = engines["sd9"]
    with watched(engine.pipeline.unet) as calls:
        engine.fill(scene, stroke)
    assert calls[0][0, 4].sum() == 1
    assert calls[0][0, 4, 3, 1] == 1


@pytest.mark.parametrize(("name", "side"), [("sd4", 64), ("sd9", 64), ("sd4", 150), ("sd4", 40)])
def test_at_full_denoise_nothing_of_the_hole_is_remembered(engines: dict[str, Diffusion], name: str, side: int) -> None:
    """At the model's own size, and where the scene is shrunk or enlarged to it."""
    scene, hole = scene_of(side, side), hole_of(side, side, slice(11, 32), slice(9, 23))
    marred = np.where(hole[..., None] > 0, 1 - scene, scene)
    engine = engines[name]
    assert np.array_equal(engine.fill(scene, hole), engine.fill(marred, hole))
    milder = dataclasses.replace(engine, denoise=0.6)
    assert not np.array_equal(milder.fill(scene, hole), milder.fill(marred, hole))


def test_colours_are_spread_over_a_hole() -> None:
    ramp = np.repeat(np.linspace(0.2, 0.8, 90, dtype=np.float32)[None, :, None], 70, axis=0).repeat(3, axis=2)
    hole = hole_of(70, 90, slice(20, 45), slice(30, 60))
    marred = np.where(hole[..., None] > 0, 1, ramp)
    filled = diffusion.spread(marred, hole)
    np.testing.assert_array_equal(filled[hole == 0], ramp[hole == 0])
    assert np.abs(filled - ramp).max() < 0.12
    even = diffusion.spread(np.full((31, 17, 3), 0.3, np.float32), hole_of(31, 17, slice(0, 30), slice(0, 17)))
    np.testing.assert_allclose(even, 0.3, atol=1e-6)


# --- words, steps and schedulers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd4", "xl9"])
def test_prompts_steer_and_negative_prompts_need_guidance(engines: dict[str, Diffusion], name: str) -> None:
    engine = engines[name]

    def drawn(**settings: Any) -> Pixels:
        return dataclasses.replace(engine, **settings).fill(SCENE, HOLE)

    plain = drawn()
    assert not np.array_equal(plain, drawn(prompt="a cat"))
    assert not np.array_equal(plain, drawn(negative="a cat"))
    assert not np.array_equal(plain, drawn(guidance=3.0, prompt="a cat"))
    assert np.array_equal(drawn(guidance=1.0), drawn(guidance=1.0, negative="a cat"))
    assert drawn(prompt="x " * 200).shape == SCENE.shape


ORDER_TWO = {"heun": lambda steps: 2 * steps - 1, "pndm": lambda steps: steps + 1}


@pytest.mark.parametrize("denoise", [1.0, 0.35])
@pytest.mark.parametrize("name", [*pipelines.SCHEDULERS, "auto", "model"])
def test_as_many_steps_are_made_as_were_asked_for(engines: dict[str, Diffusion], name: str, denoise: float) -> None:
    engine = dataclasses.replace(engines["sd9"], pipeline=copy.copy(engines["sd9"].pipeline))
    engine.pipeline.scheduler = tiny.scheduler()
    pipelines.set_scheduler(engine.pipeline, name)
    told = []
    with watched(engine.pipeline.unet) as calls:
        engine.redraw(SCENE, HOLE, denoise=denoise, steps=4, progress=lambda done, total: told.append((done, total)))
    wanted = ORDER_TWO.get(name, lambda steps: steps)(4)
    assert len(calls) == wanted
    assert told == [(step, wanted) for step in range(1, wanted + 1)]


@pytest.mark.parametrize("steps", [1, 7, 20, 33])
def test_steps_are_scheduled_so_that_rounding_loses_none(steps: int) -> None:
    for strength in np.linspace(0.05, 1, 60):
        asked = diffusion.scheduled(steps, float(strength), 100_000)
        assert int(asked * float(strength)) == steps
    assert diffusion.scheduled(20, 0.001, 1000) == 1000


def test_schedulers_by_name(folders: dict[str, Path]) -> None:
    engine = loaded(folders["sd4"])
    assert type(engine.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert engine.pipeline.scheduler.config.use_karras_sigmas
    assert engine.pipeline.scheduler.config.beta_schedule == "scaled_linear"
    pipelines.set_scheduler(engine.pipeline, "euler")
    assert type(engine.pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert not engine.pipeline.scheduler.config.use_karras_sigmas
    engine.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    pipelines.set_scheduler(engine.pipeline, "unipc")
    assert engine.pipeline.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(UsageError, match=r"--scheduler: expected one of auto, model, dpm\+\+2m-karras, .*got 'ddpm'"):
        loaded(folders["sd4"], scheduler="ddpm")


# --- tiles, memory, precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd4", "sd9"])
@pytest.mark.parametrize("method", ["mixture", "multidiffusion"])
def test_in_tiles_a_large_scene_keeps_its_size(engines: dict[str, Diffusion], name: str, method: str) -> None:
    engine = dataclasses.replace(engines[name], tiled=method, steps=1)
    scene, hole = scene_of(64, 904), hole_of(64, 904, slice(20, 40), slice(100, 700))
    with watched(engine.pipeline.unet.conv_in) as parts, watched(engine.pipeline.vae.decoder.conv_in) as pieces:
        filled = engine.fill(scene, hole)
    assert filled.shape == scene.shape
    assert {tuple(part.shape[2:]) for part in parts} == {(8, 96)}
    assert len(pieces) == 2
    assert max(piece.shape[3] for piece in pieces) < 113


def test_a_scene_of_one_tile_is_what_it_is_without_tiles(engines: dict[str, Diffusion]) -> None:
    for name in ("sd9", "xl4"):
        plain = engines[name].fill(SCENE, HOLE)
        assert np.array_equal(plain, dataclasses.replace(engines[name], tiled="mixture").fill(SCENE, HOLE))


def test_true_is_mixture(folders: dict[str, Path]) -> None:
    assert loaded(folders["sd4"], tiled=True).tiled == "mixture"
    assert loaded(folders["sd4"]).tiled is None
    with pytest.raises(UsageError, match="--tiled: expected mixture or multidiffusion, got 'panorama'"):
        loaded(folders["sd4"], tiled="panorama")


@pytest.mark.parametrize("how", ["model", "layers"])
def test_parts_that_rest_elsewhere_draw_the_same_in_tiles(folders: dict[str, Path], how: str) -> None:
    """As offloading does it: hooks of accelerate around whole networks, or around each layer; here with no GPU."""
    accelerate = pytest.importorskip("accelerate")
    scene, hole = scene_of(64, 904), hole_of(64, 904, slice(20, 40), slice(100, 700))
    engine = loaded(folders["sd9"], tiled=True, steps=1)
    wanted = engine.fill(scene, hole)
    if how == "model":
        engine.pipeline.enable_model_cpu_offload(device="cpu")
    else:
        for part in (engine.pipeline.unet, engine.pipeline.vae):
            accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
        assert engine.pipeline.unet.conv_in.weight.device.type == "meta"
    assert np.array_equal(engine.fill(scene, hole), wanted)
    assert np.array_equal(engine.fill(scene, hole), wanted)
    assert hasattr(engine.pipeline.unet, "_hf_hook")


def test_a_full_memory_advises_tiles(engines: dict[str, Diffusion]) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0")

    hook = engines["sd4"].pipeline.unet.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(DeviceError, match=r"out of memory .*; use --tiled, a smaller picture") as caught:
            engines["sd4"].fill(SCENE, HOLE)
    finally:
        hook.remove()
    assert "\n" not in str(caught.value)


def test_no_numbers_are_an_error_and_no_black_picture(folders: dict[str, Path]) -> None:
    engine = loaded(folders["sd4"])
    engine.pipeline.vae.decoder.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(DeviceError, match="no finite numbers; try --precision float32"):
        engine.fill(SCENE, HOLE)


@pytest.mark.parametrize("name", ["sd9", "xl4"])
def test_bfloat16(folders: dict[str, Path], engines: dict[str, Diffusion], name: str) -> None:
    engine = loaded(folders[name], precision="bfloat16")
    assert {part.dtype for part in (engine.pipeline.unet, engine.pipeline.vae)} == {torch.bfloat16}
    rough, exact = engine.fill(SCENE, HOLE), engines[name].fill(SCENE, HOLE)
    assert np.abs(rough - exact).mean() < 0.2
    assert np.array_equal(rough, engine.fill(SCENE, HOLE))


def test_settings_that_cannot_work_are_refused(folders: dict[str, Path]) -> None:
    for wrong, said in (
        ({"offload": "model"}, "expected a GPU to keep free"),
        ({"offload": "disk"}, "expected one of none, model, sequential"),
        ({"denoise": 0.0}, "0 < denoise ≤ 1"),
        ({"steps": 0}, "steps ≥ 1"),
        ({"kind": "flux"}, "expected sd or sdxl"),
    ):
        with pytest.raises(UsageError, match=said):
            loaded(folders["sd4"], **wrong)
    with pytest.raises(DeviceError, match="float16 needs a GPU"):
        loaded(folders["sd4"], precision="float16")


# --- hi-res fix ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd4", "sd9", "xl4"])
@pytest.mark.parametrize("scale", [1, 1.5, 2])
def test_hires_draws_a_larger_picture_from_what_is_there(
    engines: dict[str, Diffusion], name: str, scale: float
) -> None:
    engine = engines[name]
    scene = scene_of(41, 50)
    with watched(engine.pipeline.unet) as calls:
        larger = diffusion.hires(scene, engine, scale=scale, denoise=0.35, steps=2, seed=3)
    assert larger.shape == (int(41 * scale), int(50 * scale), 3)
    assert len(calls) == 2
    assert np.array_equal(larger, diffusion.hires(scene, engine, scale=scale, denoise=0.35, steps=2, seed=3))


def test_hires_takes_any_upscaler_and_draws_only_in_the_hole(engines: dict[str, Diffusion]) -> None:
    factors = []

    def enlarge(photo: Photo, factor: int) -> Photo:
        factors.append((photo.meta.bits, factor))
        return upscale.lanczos(photo, factor)

    engine, hole = engines["sd4"], hole_of(32, 32, slice(10, 20), slice(8, 16))
    latents = []
    for prompt in ("", "a cat"):
        with watched(engine.pipeline.vae.decoder) as calls:
            changed = dataclasses.replace(engine, prompt=prompt)
            diffusion.hires(scene_of(32, 32), changed, scale=2, hole=hole, upscaler=enlarge, steps=2)
        latents.append(calls[-1])
    assert factors == [(16, 2), (16, 2)]
    differ = (latents[0] - latents[1]).abs().sum((0, 1)).numpy() > 0
    np.testing.assert_array_equal(differ, hole.repeat(2, 0).repeat(2, 1).reshape(8, 8, 8, 8).max(axis=(1, 3)) > 0)


def test_hires_through_a_real_esrgan(engines: dict[str, Diffusion], tmp_path: Path) -> None:
    architecture = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    state = architecture.ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "tiny.safetensors")
    enlarge = upscale.load(tmp_path / "tiny.safetensors", device="cpu", precision="float32")
    with watched(engines["sd4"].pipeline.vae.encoder) as pictures:
        larger = diffusion.hires(scene_of(24, 40), engines["sd4"], scale=2, steps=1, upscaler=enlarge)
    assert larger.shape == (48, 80, 3)
    photo = Photo((scene_of(24, 40) * 255).astype(np.uint8))
    wanted = enlarge(photo, 2).pixels().transpose(2, 0, 1) * 2 - 1
    assert np.abs(pictures[0][0, :, :48].numpy() - wanted).mean() < 0.02


def test_hires_keeps_structure_by_refusing_what_would_lose_it(engines: dict[str, Diffusion]) -> None:
    for denoise in (0.0, 0.71, 1.0):
        with pytest.raises(UsageError, match=r"--hires: expected scale ≥ 1 and 0 < denoise ≤ 0\.7"):
            diffusion.hires(SCENE, engines["sd4"], denoise=denoise)
    with pytest.raises(UsageError, match=r"scale 0\.5"):
        diffusion.hires(SCENE, engines["sd4"], scale=0.5)


# --- models from folders ---------------------------------------------------------------------------------------------


def copied(folder: Path, target: Path, *, without: str = "") -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*([without] if without else [])))
    return target


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_the_safety_checker_is_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    """A published model names one; its files need not be there."""
    folder = copied(folders["sd4"], tmp_path / "sd")
    rewrite(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    engine = loaded(folder)
    assert engine.pipeline.safety_checker is None
    assert engine.fill(SCENE, HOLE).shape == SCENE.shape


def test_half_precision_files_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["sd4"], tmp_path / "sd")
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert loaded(folder).fill(SCENE, HOLE).shape == SCENE.shape


def test_a_model_of_the_other_kind_says_which_engine_takes_it(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="expected Stable Diffusion, got SDXL; use --engine sdxl"):
        loaded(folders["xl4"], kind="sd")
    with pytest.raises(UsageError, match="expected SDXL, got Stable Diffusion; use --engine sd"):
        loaded(folders["sd9"], kind="sdxl")


class Hostile:
    """A pickle that writes a file when it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "run")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_code_in_a_pickle_stays_inert(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = copied(folders["sd4"], tmp_path / "sd")
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


def test_tensors_in_a_pickle_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["sd4"], tmp_path / "sd", without="unet")
    tiny.unet(4).save_pretrained(folder / "unet", safe_serialization=False)
    assert (folder / "unet" / "diffusion_pytorch_model.bin").exists()
    engine = loaded(folder)
    wanted = tiny.unet(4).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in engine.pipeline.unet.state_dict().items())


@pytest.mark.parametrize("library", ["mine", "os", "unet"])
def test_code_beside_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path, library: str) -> None:
    folder = copied(folders["sd4"], tmp_path / "sd")
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
def test_spoiled_folders_are_one_line(folders: dict[str, Path], tmp_path: Path, how: str) -> None:
    folder = copied(folders["sd4"], tmp_path / "sd")
    spoiled(folder, how)
    with pytest.raises(WeightsInvalid, match=SPOILED[how]) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(folders: dict[str, Path]) -> dict[str, Tensor]:
    return tiny.published(folders["sd9"])


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
    folders: dict[str, Path], engines: dict[str, Diffusion], published: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    engine = loaded(single(folders["sd9"], published, tmp_path / f"model{suffix}"))
    assert np.array_equal(engine.fill(SCENE, HOLE), engines["sd9"].fill(SCENE, HOLE))


def test_code_in_a_checkpoint_stays_inert(
    folders: dict[str, Path], engines: dict[str, Diffusion], published: dict[str, Tensor], tmp_path: Path
) -> None:
    """What a trainer left beside the tensors is not run, and does not keep the tensors from being read."""
    path = single(folders["sd9"], published, tmp_path / "model.ckpt")
    torch.save({"callbacks": {Hostile: Hostile(tmp_path / "ran")}, "state_dict": published}, path)
    engine = loaded(path)
    assert not (tmp_path / "ran").exists()
    assert np.array_equal(engine.fill(SCENE, HOLE), engines["sd9"].fill(SCENE, HOLE))
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


def test_files_that_are_no_model(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(WeightsInvalid, match=r"ends in none of \.safetensors, \.ckpt"):
        loaded(tmp_path / "photo.png")
    path = single(folders["sd9"], {"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsInvalid, match="cannot be read"):
        loaded(path)


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_in_the_hubs_cache_needs_no_network(
    folders: dict[str, Path], engines: dict[str, Diffusion], tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--someone--sd-inpainting"
    copied(folders["sd9"], repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    engine = diffusion.load("someone/sd-inpainting", kind="sd", device="cpu", precision="float32", steps=3)
    assert engine.name == "sd sd-inpainting"
    assert np.array_equal(engine.fill(SCENE, HOLE), engines["sd9"].fill(SCENE, HOLE))


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
