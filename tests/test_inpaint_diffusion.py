"""Stable Diffusion and SDXL as engines: real pipelines at a tiny size."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import tiny_diffusion as tiny
from tiny_engines import HOLE, MODELS, SCENE, hole_of, loaded, scene_of, watched

from facefix.errors import DeviceError, UsageError
from facefix.inpaint import diffusion, pipelines
from facefix.inpaint.diffusion import Diffusion
from facefix.types import Pixels

pytestmark = pytest.mark.usefixtures("offline")


# --- the contract of an engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_fill_has_the_size_of_its_scene_and_repeats_under_its_seed(
    sd_engines: dict[str, Diffusion], name: str
) -> None:
    engine, steps = sd_engines[name], []
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
def test_scenes_of_any_size(sd_engines: dict[str, Diffusion], height: int, width: int) -> None:
    hole = hole_of(height, width, slice(0, 1), slice(0, 1))
    filled = sd_engines["sd9"].fill(scene_of(height, width), hole)
    assert filled.shape == (height, width, 3)
    assert np.isfinite(filled).all()


@pytest.mark.parametrize(("height", "width", "seen"), [(64, 64, (8, 8)), (256, 128, (12, 8)), (16, 40, (8, 13))])
def test_the_model_sees_its_own_area_whatever_the_scene(
    sd_engines: dict[str, Diffusion], height: int, width: int, seen: tuple[int, int]
) -> None:
    """Not the default of diffusers, which is a square of the model's size for every picture."""
    engine = sd_engines["sd4"]
    with watched(engine.pipeline.unet) as calls:
        engine.fill(scene_of(height, width), hole_of(height, width, slice(4, 9), slice(4, 9)))
    assert {tuple(call.shape[2:]) for call in calls} == {seen}


def test_padding_is_cut_off_and_nothing_is_moved(sd_engines: dict[str, Diffusion]) -> None:
    """What the VAE sees is the scene, pixel by pixel, its last row and column repeated."""
    engine = sd_engines["sd4"]
    scene = scene_of(61, 70)
    with watched(engine.pipeline.vae.encoder) as calls:
        engine.redraw(scene, hole_of(61, 70, slice(4, 9), slice(4, 9)), denoise=0.5, steps=1)
    (picture,) = calls
    wanted = np.pad(scene, ((0, 3), (0, 2), (0, 0)), mode="edge").transpose(2, 0, 1) * 2 - 1
    np.testing.assert_allclose(picture[0].numpy(), wanted, atol=1e-6)


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd9", "xl9"])
def test_an_inpainting_model_sees_the_hole_and_the_picture_around_it(
    sd_engines: dict[str, Diffusion], name: str
) -> None:
    """The mask by its largest value, the picture exact to the pixel and mid-grey inside the hole."""
    engine = sd_engines[name]
    with watched(engine.pipeline.unet) as calls, watched(engine.pipeline.vae.encoder) as pictures:
        engine.redraw(SCENE, HOLE, denoise=1.0, steps=1)
    cells = HOLE.reshape(8, 8, 8, 8).max(axis=(1, 3))
    assert calls[0].shape[1] == 9
    np.testing.assert_array_equal(calls[0][0, 4].numpy(), cells)
    around = pictures[-1][0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(around, np.where(HOLE[..., None] > 0, 0, SCENE * 2 - 1), atol=1e-6)


@pytest.mark.parametrize("name", ["sd4", "xl4"])
def test_a_base_model_keeps_what_is_known_in_the_latent(sd_engines: dict[str, Diffusion], name: str) -> None:
    """Two prompts give the same latents outside of the hole's cells, and different ones in each of them."""
    engine = sd_engines[name]
    latents = []
    for prompt in ("a cat", "an old boat"):
        with watched(engine.pipeline.vae.decoder) as calls:
            dataclasses.replace(engine, prompt=prompt).redraw(SCENE, HOLE, denoise=1.0, steps=3)
        latents.append(calls[-1])
    differ = (latents[0] - latents[1]).abs().sum((0, 1)).numpy()
    np.testing.assert_array_equal(differ > 0, HOLE.reshape(8, 8, 8, 8).max(axis=(1, 3)) > 0)


def test_nothing_to_draw_gives_the_pictures_own_latents(sd_engines: dict[str, Diffusion]) -> None:
    engine, empty = sd_engines["sd4"], np.zeros((64, 64), np.float32)
    first = engine.redraw(SCENE, empty, denoise=1.0, steps=2)
    other = dataclasses.replace(engine, prompt="a cat").redraw(SCENE, empty, denoise=0.4, steps=3)
    assert np.array_equal(first, other)


@pytest.mark.parametrize("name", ["sd4", "sd9"])
def test_a_stroke_of_one_pixel_survives_the_trip_to_the_latent(sd_engines: dict[str, Diffusion], name: str) -> None:
    stroke = hole_of(64, 64, slice(29, 30), slice(5, 60))
    assert torch.nn.functional.interpolate(torch.from_numpy(stroke)[None, None], size=(8, 8)).sum() == 0
    cells = diffusion.open_cells(torch.from_numpy(stroke)[None, None], 8)
    np.testing.assert_array_equal(cells[0, 0].numpy(), stroke.reshape(8, 8, 8, 8).max(axis=(1, 3)))
    engine = sd_engines[name]
    one, other = (dataclasses.replace(engine, prompt=prompt).fill(SCENE, stroke) for prompt in ("", "a red boat"))
    assert np.abs(one - other)[29].mean() > 1e-4


def test_a_stroke_survives_shrinking(sd_engines: dict[str, Diffusion]) -> None:
    scene, stroke = scene_of(640, 640), hole_of(640, 640, slice(301, 302), slice(100, 101))
    engine = sd_engines["sd9"]
    with watched(engine.pipeline.unet) as calls:
        engine.fill(scene, stroke)
    assert calls[0][0, 4].sum() == 1
    assert calls[0][0, 4, 3, 1] == 1


@pytest.mark.parametrize(("name", "side"), [("sd4", 64), ("sd9", 64), ("sd4", 150), ("sd4", 40)])
def test_at_full_denoise_nothing_of_the_hole_is_remembered(
    sd_engines: dict[str, Diffusion], name: str, side: int
) -> None:
    """At the model's own size, and where the scene is shrunk or enlarged to it."""
    scene, hole = scene_of(side, side), hole_of(side, side, slice(11, 32), slice(9, 23))
    marred = np.where(hole[..., None] > 0, 1 - scene, scene)
    engine = sd_engines[name]
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
def test_prompts_steer_and_negative_prompts_need_guidance(sd_engines: dict[str, Diffusion], name: str) -> None:
    engine = sd_engines[name]

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
def test_as_many_steps_are_made_as_were_asked_for(sd_engines: dict[str, Diffusion], name: str, denoise: float) -> None:
    engine = dataclasses.replace(sd_engines["sd9"], pipeline=copy.copy(sd_engines["sd9"].pipeline))
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


def test_schedulers_by_name(sd_folders: dict[str, Path]) -> None:
    engine = loaded(sd_folders["sd4"])
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
        loaded(sd_folders["sd4"], scheduler="ddpm")


# --- tiles, memory, precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd4", "sd9"])
@pytest.mark.parametrize("method", ["mixture", "multidiffusion"])
def test_in_tiles_a_large_scene_keeps_its_size(sd_engines: dict[str, Diffusion], name: str, method: str) -> None:
    engine = dataclasses.replace(sd_engines[name], tiled=method, steps=1)
    scene, hole = scene_of(64, 904), hole_of(64, 904, slice(20, 40), slice(100, 700))
    with watched(engine.pipeline.unet.conv_in) as parts, watched(engine.pipeline.vae.decoder.conv_in) as pieces:
        filled = engine.fill(scene, hole)
    assert filled.shape == scene.shape
    assert {tuple(part.shape[2:]) for part in parts} == {(8, 96)}
    assert len(pieces) == 2
    assert max(piece.shape[3] for piece in pieces) < 113


def test_a_scene_of_one_tile_is_what_it_is_without_tiles(sd_engines: dict[str, Diffusion]) -> None:
    for name in ("sd9", "xl4"):
        plain = sd_engines[name].fill(SCENE, HOLE)
        assert np.array_equal(plain, dataclasses.replace(sd_engines[name], tiled="mixture").fill(SCENE, HOLE))


def test_true_is_mixture(sd_folders: dict[str, Path]) -> None:
    assert loaded(sd_folders["sd4"], tiled=True).tiled == "mixture"
    assert loaded(sd_folders["sd4"]).tiled is None
    with pytest.raises(UsageError, match="--tiled: expected mixture or multidiffusion, got 'panorama'"):
        loaded(sd_folders["sd4"], tiled="panorama")


@pytest.mark.parametrize("how", ["model", "layers"])
def test_parts_that_rest_elsewhere_draw_the_same_in_tiles(sd_folders: dict[str, Path], how: str) -> None:
    """As offloading does it: hooks of accelerate around whole networks, or around each layer; here with no GPU."""
    accelerate = pytest.importorskip("accelerate")
    scene, hole = scene_of(64, 904), hole_of(64, 904, slice(20, 40), slice(100, 700))
    engine = loaded(sd_folders["sd9"], tiled=True, steps=1)
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


def test_a_full_memory_advises_tiles(sd_engines: dict[str, Diffusion]) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0")

    hook = sd_engines["sd4"].pipeline.unet.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(DeviceError, match=r"out of memory .*; use --tiled, a smaller picture") as caught:
            sd_engines["sd4"].fill(SCENE, HOLE)
    finally:
        hook.remove()
    assert "\n" not in str(caught.value)


def test_no_numbers_are_an_error_and_no_black_picture(sd_folders: dict[str, Path]) -> None:
    engine = loaded(sd_folders["sd4"])
    engine.pipeline.vae.decoder.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(DeviceError, match="no finite numbers; try --precision float32"):
        engine.fill(SCENE, HOLE)


@pytest.mark.parametrize("name", ["sd9", "xl4"])
def test_bfloat16(sd_folders: dict[str, Path], sd_engines: dict[str, Diffusion], name: str) -> None:
    engine = loaded(sd_folders[name], precision="bfloat16")
    assert {part.dtype for part in (engine.pipeline.unet, engine.pipeline.vae)} == {torch.bfloat16}
    rough, exact = engine.fill(SCENE, HOLE), sd_engines[name].fill(SCENE, HOLE)
    assert np.abs(rough - exact).mean() < 0.2
    assert np.array_equal(rough, engine.fill(SCENE, HOLE))


def test_settings_that_cannot_work_are_refused(sd_folders: dict[str, Path]) -> None:
    for wrong, said in (
        ({"offload": "model"}, "expected a GPU to keep free"),
        ({"offload": "disk"}, "expected one of none, model, sequential"),
        ({"denoise": 0.0}, "0 < denoise ≤ 1"),
        ({"steps": 0}, "steps ≥ 1"),
        ({"kind": "flux"}, "expected sd or sdxl"),
    ):
        with pytest.raises(UsageError, match=said):
            loaded(sd_folders["sd4"], **wrong)
    with pytest.raises(DeviceError, match="float16 needs a GPU"):
        loaded(sd_folders["sd4"], precision="float16")
