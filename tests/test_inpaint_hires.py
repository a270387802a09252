"""The hi-res fix: a larger picture drawn from what is there."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
from tiny_engines import SCENE, hole_of, scene_of, watched

from facefix import upscale
from facefix.errors import UsageError
from facefix.inpaint import diffusion
from facefix.inpaint.diffusion import Diffusion
from facefix.types import Photo

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("name", ["sd4", "sd9", "xl4"])
@pytest.mark.parametrize("scale", [1, 1.5, 2])
def test_hires_draws_a_larger_picture_from_what_is_there(
    sd_engines: dict[str, Diffusion], name: str, scale: float
) -> None:
    engine = sd_engines[name]
    scene = scene_of(41, 50)
    with watched(engine.pipeline.unet) as calls:
        larger = diffusion.hires(scene, engine, scale=scale, denoise=0.35, steps=2, seed=3)
    assert larger.shape == (int(41 * scale), int(50 * scale), 3)
    assert len(calls) == 2
    assert np.array_equal(larger, diffusion.hires(scene, engine, scale=scale, denoise=0.35, steps=2, seed=3))


def test_hires_takes_any_upscaler_and_draws_only_in_the_hole(sd_engines: dict[str, Diffusion]) -> None:
    factors = []

    def enlarge(photo: Photo, factor: int) -> Photo:
        factors.append((photo.meta.bits, factor))
        return upscale.lanczos(photo, factor)

    engine, hole = sd_engines["sd4"], hole_of(32, 32, slice(10, 20), slice(8, 16))
    latents = []
    for prompt in ("", "a cat"):
        with watched(engine.pipeline.vae.decoder) as calls:
            changed = dataclasses.replace(engine, prompt=prompt)
            diffusion.hires(scene_of(32, 32), changed, scale=2, hole=hole, upscaler=enlarge, steps=2)
        latents.append(calls[-1])
    assert factors == [(16, 2), (16, 2)]
    differ = (latents[0] - latents[1]).abs().sum((0, 1)).numpy() > 0
    np.testing.assert_array_equal(differ, hole.repeat(2, 0).repeat(2, 1).reshape(8, 8, 8, 8).max(axis=(1, 3)) > 0)


def test_hires_through_a_real_esrgan(sd_engines: dict[str, Diffusion], tmp_path: Path) -> None:
    architecture = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    state = architecture.ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "tiny.safetensors")
    enlarge = upscale.load(tmp_path / "tiny.safetensors", device="cpu", precision="float32")
    with watched(sd_engines["sd4"].pipeline.vae.encoder) as pictures:
        larger = diffusion.hires(scene_of(24, 40), sd_engines["sd4"], scale=2, steps=1, upscaler=enlarge)
    assert larger.shape == (48, 80, 3)
    photo = Photo((scene_of(24, 40) * 255).astype(np.uint8))
    wanted = enlarge(photo, 2).pixels().transpose(2, 0, 1) * 2 - 1
    assert np.abs(pictures[0][0, :, :48].numpy() - wanted).mean() < 0.02


def test_hires_keeps_structure_by_refusing_what_would_lose_it(sd_engines: dict[str, Diffusion]) -> None:
    for denoise in (0.0, 0.71, 1.0):
        with pytest.raises(UsageError, match=r"--hires: expected scale ≥ 1 and 0 < denoise ≤ 0\.7"):
            diffusion.hires(SCENE, sd_engines["sd4"], denoise=denoise)
    with pytest.raises(UsageError, match=r"scale 0\.5"):
        diffusion.hires(SCENE, sd_engines["sd4"], scale=0.5)
