"""Stable Diffusion and SDXL fill holes, and draw larger pictures anew (hi-res fix).

Inpainting models (UNets of 9 channels) see the picture around the hole. Any other of their models (4 channels) is
steered: after each step what is known of the picture, with the noise of that step, replaces what the model drew there.

The mask goes to the latent size by its largest value, so that a stroke of one pixel still opens the eight-pixel cells
it crosses; what the model sees around it stays exact to the pixel. At denoise 1 what the hole shows is forgotten: the
colours around it are spread over it first, so that nothing of a scratch leaks through the VAE. Below 1 the model starts
from what the hole shows.

The result shows the model's picture everywhere; known pixels pass through the VAE and differ, and the caller puts them
back. No safety checker is loaded.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facefix import runtime, upscale
from facefix.errors import DeviceError, UsageError
from facefix.inpaint import Progress, matching, pipelines
from facefix.inpaint.tiled import METHODS, TILE, tiled_unet
from facefix.inpaint.tiled_vae import tiled_vae
from facefix.types import Mask, Meta, Photo, Pixels

OFFLOADS = ("none", "model", "sequential")
MOST_DENOISE = 0.7
_LEAST_PX = 64  # sides below that a UNet cannot halve as often as it does
_XL_DENOISE = 0.999  # at exactly 1 SDXL drops the picture's colours


@dataclass(frozen=True)
class Diffusion:
    """A diffusers pipeline as an engine; made by `load`.

    Args:
        pipeline: StableDiffusionInpaintPipeline or StableDiffusionXLInpaintPipeline.
        name: for reports.
        prompt: what the hole is to show.
        negative: what it must not show.
        steps: how many the model makes, whatever the denoise.
        guidance: how closely the prompt is followed; up to 1 the negative prompt has no effect.
        denoise: 1 forgets what the hole shows; less starts from it.
        tiled: mixture or multidiffusion, to work in tiles at the scene's own size; None to fit it to the model's.
        fast_vae: in tiles, take the VAE's fast variant instead of the exact one.
    """

    pipeline: Any
    name: str
    prompt: str = ""
    negative: str = ""
    steps: int = 30
    guidance: float = 7.0
    denoise: float = 1.0
    tiled: str | None = None
    fast_vae: bool = False
    takes_prompt: bool = True

    def __post_init__(self) -> None:
        if self.tiled is not None and self.tiled not in METHODS:
            raise UsageError(f"--tiled: expected {' or '.join(METHODS)}, got {self.tiled!r}")
        if not 0 < self.denoise <= 1 or self.steps < 1:
            raise UsageError(f"expected steps ≥ 1 and 0 < denoise ≤ 1, got {self.steps} and {self.denoise}")

    def fill(self, scene: Pixels, hole: Mask, *, seed: int = 0, progress: Progress | None = None) -> Pixels:
        """The scene with its hole drawn anew: (h, w, 3) float32 sRGB, 0..1; see `inpaint.Engine`.

        The scene is brought to the model's own area (512² or 1024² px), and enlarged back afterwards; in tiles, scenes
        larger than that stay as they are.

        Raises:
            DeviceError: the memory ran out, or the model gave no finite numbers.
        """
        height, width = hole.shape
        native = self._native_px
        scale = native / math.sqrt(height * width)
        if self.tiled is not None:
            scale = max(1.0, scale)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        forgets = self.denoise == 1
        start = spread(scene, hole) if forgets and scale >= 1 else scene
        small = start if scale == 1 else resized(start, size)
        opened = hole if scale == 1 else _resized_hole(hole, size)
        if forgets and scale < 1:  # at the smaller size, which is as good: no known pixel saw any of the hole
            small = spread(small, opened)
        drawn = self.redraw(small, opened, denoise=self.denoise, steps=self.steps, seed=seed, progress=progress)
        return drawn if scale == 1 else resized(drawn, (width, height))

    def redraw(
        self,
        scene: Pixels,
        hole: Mask,
        *,
        denoise: float,
        steps: int,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Pixels:
        """The scene at its own size, drawn anew inside the hole from what it shows there: (h, w, 3) float32, 0..1.

        Args:
            scene: (h, w, 3) float32 sRGB, 0..1.
            hole: (h, w) float32, 1 to be drawn; a hole over all of it makes this image-to-image.
            denoise: above 0, how far to go from what is there; 1 starts from noise.
            steps: how many the model makes.
            seed: equal seeds give equal pixels on one machine.
            progress: called with the model's steps.

        Raises:
            DeviceError: the memory ran out, or the model gave no finite numbers.
        """
        height, width = hole.shape
        factor = self.pipeline.vae_scale_factor
        right, bottom = (max(_LEAST_PX, -(-side // factor) * factor) - side for side in (width, height))
        padded = cv2.copyMakeBorder(scene, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        opened = cv2.copyMakeBorder(hole, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=0)
        picture = runtime.to_batch([np.asarray(padded, np.float32)], mean=0.0, std=1.0)
        mask = torch.from_numpy((np.asarray(opened) > 0).astype(np.float32))[None, None]
        advice = "use --tiled, a smaller picture or another device"
        drawn, _ = runtime.fitting(lambda _: self._drawn(picture, mask, denoise, steps, seed, progress), [None], advice)
        return drawn[:height, :width]

    def _drawn(
        self, picture: Tensor, mask: Tensor, denoise: float, steps: int, seed: int, progress: Progress | None
    ) -> Pixels:
        """The pipeline's picture for (1, 3, H, W) in 0..1 and (1, 1, H, W); sides are multiples of the VAE's factor."""
        pipeline = self.pipeline
        cells = open_cells(mask, pipeline.vae_scale_factor)
        strength = min(denoise, _XL_DENOISE) if "XL" in type(pipeline).__name__ else denoise
        most = pipeline.scheduler.config.num_train_timesteps
        if pipeline.unet.config.in_channels == 9:
            around = (picture * 2 - 1) * (mask < 0.5)
        else:  # not looked at: zeros of the latent's size save an encoding
            around = torch.zeros(1, pipeline.vae.config.latent_channels, *cells.shape[2:])
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of the libraries' own: nothing here could heed them
            if self.tiled is not None:
                tile = max(TILE, pipeline.unet.config.sample_size)
                stack.enter_context(tiled_unet(pipeline.unet, tile=tile, method=self.tiled))
                stack.enter_context(tiled_vae(pipeline.vae, fast=self.fast_vae))
            output = pipeline(
                prompt=self.prompt,
                negative_prompt=self.negative,
                image=picture,
                mask_image=cells.repeat_interleave(pipeline.vae_scale_factor, 2).repeat_interleave(
                    pipeline.vae_scale_factor, 3
                ),
                masked_image_latents=around,
                height=picture.shape[2],
                width=picture.shape[3],
                strength=strength,
                num_inference_steps=scheduled(steps, strength, most),
                guidance_scale=self.guidance,
                generator=runtime.seeded(seed),
                output_type="pt",
                callback_on_step_end=_reporting(progress),
            )
        if not bool(torch.isfinite(output.images).all()):
            raise DeviceError("the model gave no finite numbers; try --precision float32 or bfloat16")
        [drawn] = runtime.from_batch(output.images, mean=0.0, std=1.0)
        return drawn

    @property
    def _native_px(self) -> int:
        """Side of the pictures that the model was made for."""
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)


def load(
    model: str | Path,
    *,
    kind: str,
    device: str = "auto",
    precision: str = "auto",
    prompt: str = "",
    negative: str = "",
    steps: int = 30,
    guidance: float = 7.0,
    denoise: float = 1.0,
    scheduler: str = "auto",
    offload: str = "none",
    tiled: bool | str = False,
    fast_vae: bool = False,
) -> Diffusion:
    """The engine over a model of Stable Diffusion or SDXL, ready on its device.

    Args:
        model: a folder, a file, or a name on the hub; see `pipelines`.
        kind: sd or sdxl.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, float32, bfloat16 or float16, see `runtime`.
        prompt: what the hole is to show.
        negative: what it must not show.
        steps: as in Diffusion.
        guidance: as in Diffusion.
        denoise: as in Diffusion.
        scheduler: auto, model (its own), or one of `pipelines.SCHEDULERS`.
        offload: none; model keeps each network off the GPU while it rests, sequential each layer (slow, least memory).
        tiled: True or mixture, or multidiffusion; False to fit scenes to the model's size.
        fast_vae: as in Diffusion.

    Raises:
        UsageError: a setting that cannot work.
        WeightsError: the model is missing, damaged, hostile or of another kind.
        DeviceError: no such device, or it cannot compute with that precision.
    """
    where = runtime.choose_device(device)
    dtype = runtime.choose_precision(precision, where)
    if offload not in OFFLOADS:
        raise UsageError(f"--offload: expected one of {', '.join(OFFLOADS)}, got {offload!r}")
    if offload != "none" and where.type == "cpu":
        raise UsageError(f"--offload {offload}: expected a GPU to keep free, got the CPU; leave it out")
    pipeline = pipelines.load(model, kind, dtype)
    pipelines.set_scheduler(pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=where)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=where)
    else:
        pipeline.to(where)
    method = METHODS[0] if tiled is True else tiled or None
    name = f"{kind} {Path(model).name}"
    return Diffusion(pipeline, name, prompt, negative, steps, guidance, denoise, method, fast_vae)


def hires(
    scene: Pixels,
    engine: Diffusion,
    *,
    scale: float = 2,
    denoise: float = 0.35,
    steps: int | None = None,
    hole: Mask | None = None,
    upscaler: Callable[[Photo, int], Photo] = upscale.lanczos,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pixels:
    """The scene enlarged and drawn anew at that size: (int(h·scale), int(w·scale), 3) float32 sRGB, 0..1.

    Args:
        scene: (h, w, 3) float32 sRGB, 0..1, with its hole filled.
        engine: what draws; its tiles are used where it has them.
        scale: how many times as large, at least 1.
        denoise: how far the model may go from the enlarged picture: above 0.5 structures may change, above 0.7 they
            would be lost, which is refused.
        steps: how many the model makes; the engine's own number without it.
        hole: (h, w) float32, only where it is 1 the picture is drawn anew; everywhere without one.
        upscaler: what enlarges by a whole factor: `upscale.lanczos`, or an `upscale.Upscaler` (Real-ESRGAN).
        seed: equal seeds give equal pixels on one machine.
        progress: called with the model's steps.

    Raises:
        UsageError: scale below 1, or denoise above 0.7 or not above 0.
        DeviceError: the memory ran out.
    """
    if scale < 1 or not 0 < denoise <= MOST_DENOISE:
        wrong = f"scale {scale:g} and denoise {denoise:g}"
        raise UsageError(f"--hires: expected scale ≥ 1 and 0 < denoise ≤ {MOST_DENOISE}, got {wrong}; 0.35 is usual")
    size = int(scene.shape[1] * scale), int(scene.shape[0] * scale)
    whole = math.ceil(scale)
    raster = np.rint(np.clip(scene, 0, 1) * 65535).astype(np.uint16)
    enlarged = upscaler(Photo(raster, Meta(bits=16)), whole).pixels()
    if enlarged.shape[1::-1] != size:
        enlarged = resized(enlarged, size)
    opened = np.ones(size[::-1], np.float32) if hole is None else _resized_hole(hole, size)
    return engine.redraw(enlarged, opened, denoise=denoise, steps=steps or engine.steps, seed=seed, progress=progress)


def scheduled(steps: int, strength: float, most: int) -> int:
    """How many steps to ask diffusers for so that it makes `steps`: it skips the part 1 - strength of them.

    >>> scheduled(20, 0.35, 1000), int(58 * 0.35)
    (58, 20)
    """
    asked = math.ceil(steps / strength)
    while int(asked * strength) < steps:
        asked += 1
    return min(asked, most)


def open_cells(mask: Tensor, factor: int) -> Tensor:
    """The mask (1, 1, H, W) at the latent's size: 1 for each cell of factor² px in which a single pixel is."""
    return torch.nn.functional.max_pool2d(mask, factor)


def spread(scene: Pixels, hole: Mask) -> Pixels:
    """The scene with the colours around its hole spread smoothly over it: (h, w, 3) float32."""
    return np.where(hole[..., None] > 0, matching.spread(scene, 1 - hole), scene)


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The pixels at (width, height): by area where they shrink, cubic where they grow; clipped to 0..1."""
    shrinks = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.clip(np.asarray(cv2.resize(pixels, size, interpolation=way), np.float32), 0, 1)


def _resized_hole(hole: Mask, size: tuple[int, int]) -> Mask:
    """The hole at (width, height): every pixel that it touches, so that no stroke is lost."""
    return (np.asarray(cv2.resize(hole, size, interpolation=cv2.INTER_AREA)) > 0).astype(np.float32)


def _reporting(progress: Progress | None) -> Callable[..., dict[str, Any]] | None:
    """The progress as diffusers calls it after each step."""
    if progress is None:
        return None

    def report(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(step + 1, pipeline.num_timesteps)
        return tensors

    return report
