"""Tiles of a UNet blend as they are meant to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
import tiny_diffusion as tiny
from diffusers import UNet2DConditionModel
from tiny_diffusion import drawn

from facefix.errors import DeviceError, UsageError
from facefix.inpaint import tiled

GOLDEN = Path(__file__).parent / "data" / "tiled"
CONFIGURATIONS = json.loads((GOLDEN / "diffusion_tiles.json").read_text())


# --- grids and weights against recorded numbers ----------------------------------------------------------------------


def golden_boxes(name: str) -> list[Any]:
    wanted = CONFIGURATIONS[name]
    size = [wanted[key] for key in ("latent_height", "latent_width", "tile_height", "tile_width", "overlap")]
    return tiled.grid(*size)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_grids_are_the_recorded_ones(name: str) -> None:
    wanted = CONFIGURATIONS[name]
    boxes = golden_boxes(name)
    assert [list(box) for box in boxes] == wanted["boxes_x0_y0_x1_y1"]
    assert (len(boxes) > 1) == wanted["worth_tiling"]
    count = torch.zeros(wanted["latent_height"], wanted["latent_width"], dtype=torch.uint8)
    for box in boxes:
        count[box.slices] += 1
    with np.load(GOLDEN / "diffusion_tiles.npz") as golden:
        np.testing.assert_array_equal(count.numpy(), golden[f"{name}_count"])


def recorded_gaussian(height: int, width: int) -> Tensor:
    """The weights that the published tool computes, its quirks included: centre down h/2, both axes in tile widths."""
    down = torch.arange(height, dtype=torch.float64) - height / 2
    across = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    bells = [torch.exp(-(places**2) / (2 * 0.01 * width**2)) for places in (down, across)]
    return torch.outer(*bells) / (2 * torch.pi * 0.01)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_fusions_are_the_recorded_ones(name: str) -> None:
    wanted, boxes = CONFIGURATIONS[name], golden_boxes(name)
    height, width = wanted["latent_height"], wanted["latent_width"]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.sin(0.11 * columns.double() + 0.07 * rows.double()).float()
    with np.load(GOLDEN / "diffusion_tiles.npz") as golden:
        for kind, weight in (("uniform", tiled.uniform), ("gauss", recorded_gaussian)):
            parts = (x[box.slices] * (1 + 0.25 * k) - 0.1 * k for k, box in enumerate(boxes))
            fused = tiled.fuse(parts, boxes, height, width, weight)[::7, ::5].numpy()
            recorded = golden[f"{name}_fused_{kind}"]
            assert np.abs(fused - recorded).max() <= 1e-4 * np.abs(recorded).max()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_our_gaussian_is_the_recorded_one_without_its_quirks(name: str) -> None:
    """Across, both are the same; down, ours is about the centre and in units of the tile's height."""
    wanted = CONFIGURATIONS[name]
    height, width = wanted["effective_tile_height"], wanted["effective_tile_width"]
    with np.load(GOLDEN / "diffusion_tiles.npz") as golden:
        across = golden[f"{name}_gauss_tile"][0]
    ours = tiled.gaussian(height, width)
    np.testing.assert_allclose(across / across.max(), ours[0, ::5] / ours[0, ::5].max(), rtol=1e-5)
    assert torch.equal(ours, ours.flip(0))
    assert torch.equal(ours, ours.flip(1))
    torch.testing.assert_close(tiled.gaussian(40, 40), tiled.gaussian(40, 40).T)


# --- the UNet --------------------------------------------------------------------------------------------------------


class Bounded(UNet2DConditionModel):
    """A UNet on a device that holds `most` elements of the latent at once."""

    most = 10**9

    def forward(self, sample: Tensor, *arguments: Any, **settings: Any) -> Any:
        self.__dict__.setdefault("taken", []).append((len(sample), *sample.shape[2:]))
        if sample[:, 0].numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(sample, *arguments, **settings)


@pytest.fixture(scope="module")
def unet() -> Bounded:
    model = Bounded.from_config(tiny.unet(4).config).eval().requires_grad_(False)
    model.load_state_dict(tiny.unet(4).state_dict())
    return model


SAMPLE, WORDS = drawn(2, 4, 40, 52), drawn(2, 7, 32, seed=1)


@pytest.mark.parametrize("method", tiled.METHODS)
def test_one_tile_is_the_plain_network(unet: Bounded, method: str) -> None:
    plain = unet(SAMPLE, 500, encoder_hidden_states=WORDS).sample
    with tiled.tiled_unet(unet, tile=64, method=method):
        same = unet(SAMPLE, 500, encoder_hidden_states=WORDS).sample
        (bare,) = unet(SAMPLE, torch.tensor(500), WORDS, return_dict=False)
    assert torch.equal(plain, same)
    assert torch.equal(plain, bare)


@pytest.mark.parametrize("method", tiled.METHODS)
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_are_blended_predictions_of_their_boxes(unet: Bounded, method: str, batch: int) -> None:
    weight = tiled.gaussian(24, 24) if method == "mixture" else torch.ones(24, 24, dtype=torch.float64)
    summed, total = torch.zeros(2, 4, 40, 52, dtype=torch.float64), torch.zeros(40, 52, dtype=torch.float64)
    boxes = tiled.grid(40, 52, 24, 24, 8)
    assert len(boxes) == 6
    for box in boxes:
        part = unet(SAMPLE[(..., *box.slices)], 500, encoder_hidden_states=WORDS).sample
        summed[(..., *box.slices)] += part * weight
        total[box.slices] += weight
    with tiled.tiled_unet(unet, tile=24, overlap=8, method=method, batch=batch):
        output = unet(SAMPLE, 500, encoder_hidden_states=WORDS)
        (bare,) = unet(SAMPLE, 500, encoder_hidden_states=WORDS, return_dict=False)
    assert type(output).__name__ == "UNet2DConditionOutput"
    assert output.sample.dtype == torch.float32
    torch.testing.assert_close(output.sample.double(), summed / total, atol=1e-5, rtol=0)
    assert torch.equal(bare, output.sample)


@pytest.mark.parametrize("method", tiled.METHODS)
def test_tiles_of_what_changes_nothing_give_the_input(method: str) -> None:
    boxes = tiled.grid(40, 52, 24, 16, 8)
    weight = tiled.gaussian if method == "mixture" else tiled.uniform
    fused = tiled.fuse((SAMPLE[(..., *box.slices)] for box in boxes), boxes, 40, 52, weight)
    torch.testing.assert_close(fused, SAMPLE, atol=2e-6, rtol=0)


def test_conditions_of_sdxl_go_with_every_tile() -> None:
    model = tiny.unet(9, xl=True)
    sample, words = drawn(2, 9, 24, 24), drawn(2, 7, 64, seed=1)
    added = {"text_embeds": drawn(2, 32, seed=2), "time_ids": torch.rand(2, 6)}
    with torch.no_grad(), tiled.tiled_unet(model, tile=16, overlap=8, method="multidiffusion"):
        together = model(sample, 7, encoder_hidden_states=words, added_cond_kwargs=added).sample
        singly = [
            model(
                sample[i : i + 1], torch.tensor([7]), encoder_hidden_states=words[i : i + 1],
                added_cond_kwargs={name: value[i : i + 1] for name, value in added.items()},
            ).sample
            for i in range(2)
        ]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(singly), atol=1e-5, rtol=0)
    assert together[0].sub(together[1]).abs().max() > 0.01


def test_a_full_memory_halves_the_batch_and_then_the_tile_for_good(unet: Bounded) -> None:
    unet.taken = []
    unet.most = 2 * 16 * 16
    try:
        with tiled.tiled_unet(unet, tile=32, overlap=8, batch=4):
            first = unet(SAMPLE, 500, encoder_hidden_states=WORDS).sample
            tried = unet.taken.copy()
            unet.taken.clear()
            again = unet(SAMPLE, 500, encoder_hidden_states=WORDS).sample
    finally:
        unet.most = 10**9
    assert tried[:4] == [(8, 32, 32), (4, 32, 32), (2, 32, 32), (2, 16, 16)]
    assert set(unet.taken) == {(2, 16, 16)}
    with tiled.tiled_unet(unet, tile=16, overlap=8, batch=1):
        wanted = unet(SAMPLE, 500, encoder_hidden_states=WORDS).sample
    assert torch.equal(first, again)
    assert torch.equal(first, wanted)


def test_a_memory_that_holds_no_tile_is_one_line(unet: Bounded) -> None:
    unet.most = 9
    try:
        with (
            pytest.raises(DeviceError, match=r"out of memory .*choose a smaller picture") as caught,
            tiled.tiled_unet(unet, tile=32),
        ):
            unet(SAMPLE, 500, encoder_hidden_states=WORDS)
    finally:
        unet.most = 10**9
    assert "\n" not in str(caught.value)
    assert "forward" not in unet.__dict__


def test_afterwards_the_network_is_as_it_was(unet: Bounded) -> None:
    def own(*arguments: Any, **settings: Any) -> Any:
        return UNet2DConditionModel.forward(unet, *arguments, **settings)

    def work() -> None:
        with tiled.tiled_unet(unet, tile=16):
            assert unet.forward is not own
            raise KeyError

    unet.forward = own
    with pytest.raises(KeyError):
        work()
    assert unet.forward is own
    del unet.forward


def test_settings_that_cannot_work_are_refused(unet: Bounded) -> None:
    for wrong in ({"tile": 8}, {"overlap": -1}, {"batch": 0}, {"method": "panorama"}):
        with pytest.raises(UsageError, match="tiles: expected"), tiled.tiled_unet(unet, **wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(UsageError, match="ControlNet"), tiled.tiled_unet(unet, tile=16):
        unet(SAMPLE, 1, WORDS, mid_block_additional_residual=torch.zeros(1))
