"""Tiles of a UNet blend as they are meant to; a VAE in tiles gives what the whole VAE gives."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("diffusers")
import tiny_diffusion as tiny
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from facefix.errors import DeviceError, UsageError
from facefix.inpaint import tiled, tiled_vae

GOLDEN = Path(__file__).parent / "data" / "tiled"
CONFIGURATIONS = json.loads((GOLDEN / "diffusion_tiles.json").read_text())
VAE_TILES = json.loads((GOLDEN / "vae_tiles.json").read_text())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("case", VAE_TILES["splits"], ids=str)
def test_cores_of_a_vae_are_the_recorded_ones(case: dict[str, Any]) -> None:
    side, padding, height, width = case["tile_size"], case["padding"], case["height"], case["width"]
    assert case["tiled"] == (max(height, width) > side + 2 * padding)
    if not case["tiled"]:
        return
    down, across = (tiled_vae.cores(length, side, padding) for length in (height, width))
    seen, made = [], []
    for (y0, y1), (x0, x1) in product(down, across):
        seen.append([max(0, x0 - padding), min(width, x1 + padding), max(0, y0 - padding), min(height, y1 + padding)])
        made.append([at * 8 if case["decoder"] else at // 8 for at in (x0, x1, y0, y1)])
    assert seen == case["input_boxes_x0_x1_y0_y1"]
    assert made == case["output_boxes_x0_x1_y0_y1"]


@pytest.mark.parametrize("case", VAE_TILES["best_tile_size"], ids=str)
def test_tiles_are_rounded_as_recorded(case: dict[str, int]) -> None:
    assert tiled_vae.best_tile(case["lower"], case["upper"]) == case["result"]


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


# --- the VAE ---------------------------------------------------------------------------------------------------------


def both(vae: Any, latent: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return vae.decode(latent).sample, vae.encode(picture).latent_dist.parameters


LATENT, PICTURE = drawn(1, 4, 60, 46), drawn(1, 3, 512, 264, seed=1).clamp(-1, 1)


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny.vae().requires_grad_(False)


@pytest.fixture(scope="module")
def plain(vae: Any) -> tuple[Tensor, Tensor]:
    return both(vae, LATENT, PICTURE)


@pytest.mark.parametrize(("levels", "attention", "batch"), [(4, True, 1), (2, True, 2), (2, False, 1)])
def test_exact_tiles_are_the_whole_but_for_rounding(levels: int, attention: bool, batch: int) -> None:
    """In float64 nothing but rounding is left, so padding, statistics, attention and cores are all as they must be."""
    model = tiny.vae(levels=levels, attention=attention).double()
    size = (304, 32) if levels == 4 else (60, 52)
    inputs = drawn(batch, 4, 45, 16 if levels == 4 else 40).double(), drawn(batch, 3, *size).double()
    whole = both(model, *inputs)
    with tiled_vae.tiled_vae(model, tile=8):
        found = both(model, *inputs)
    for got, wanted in zip(found, whole, strict=True):
        assert got.shape == wanted.shape
        assert not torch.equal(got, wanted)
        assert (got - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_exact_tiles_in_float32(plain: tuple[Tensor, Tensor]) -> None:
    """Within 1e-5 where the picture spans -1..1, as a VAE's does; no further from float64 than twice the whole VAE is.

    Made weights draw -7..5, so the last layer is made so much weaker.
    """
    model = tiny.vae().requires_grad_(False)
    most = plain[0].abs().max()
    model.decoder.conv_out.weight /= most
    model.decoder.conv_out.bias /= most
    whole = both(model, LATENT, PICTURE)
    assert float(whole[0].abs().max()) == pytest.approx(1)
    with tiled_vae.tiled_vae(model, tile=16):
        found = both(model, LATENT, PICTURE)
    exact = both(model.double(), LATENT.double(), PICTURE.double())
    for got, wanted, truth in zip(found, whole, exact, strict=True):
        assert (got - wanted).abs().max() <= 1e-5
        assert (got - wanted).abs().mean() < 5e-7
        assert (got - truth).abs().max() <= 2 * (wanted - truth).abs().max()


def test_less_padding_would_not_do(vae: Any, plain: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (tiled_vae.reach(vae.decoder), tiled_vae.reach(vae.encoder)) == (18, 108)
    monkeypatch.setattr(tiled_vae, "reach", lambda coder: 4 if coder is vae.decoder else 16)
    with tiled_vae.tiled_vae(vae, tile=16):
        found = both(vae, LATENT, PICTURE)
    assert all((got - wanted).abs().mean() > 1e-5 for got, wanted in zip(found, plain, strict=True))


@pytest.mark.parametrize("fast", [False, True])
def test_one_tile_is_the_plain_vae(vae: Any, plain: tuple[Tensor, Tensor], fast: bool) -> None:
    with tiled_vae.tiled_vae(vae, tile=64, fast=fast):
        found = both(vae, LATENT, PICTURE)
    assert all(torch.equal(got, wanted) for got, wanted in zip(found, plain, strict=True))
    assert "forward" not in vae.decoder.__dict__
    assert "forward" not in vae.encoder.__dict__


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_fast_tiles_come_nearer_than_tiles_that_know_nothing_of_each_other(vae: Any, kind: str) -> None:
    """diffusers' own tiles, of the side that ours have with their padding, are further from the whole."""
    small = drawn(1, 4, 6, 5)
    latent = drawn(1, 4, 58, 48) if kind == "noise" else functional.interpolate(small, (58, 48), mode="bicubic")
    with torch.no_grad():
        whole = vae.decode(latent).sample
        with tiled_vae.tiled_vae(vae, tile=24, fast=True):
            fast = vae.decode(latent).sample
        vae.tile_latent_min_size, vae.tile_sample_min_size = 44, 44 * 8
        vae.enable_tiling()
        alone = vae.decode(latent).sample
        vae.disable_tiling()
    assert 1e-4 < (fast - whole).abs().mean() < 0.9 * (alone - whole).abs().mean()


def test_the_fast_encoder_keeps_colours(vae: Any, plain: tuple[Tensor, Tensor]) -> None:
    """Frozen before the first downsampling only: the mean of each latent channel stays within 2 % of its spread."""
    with tiled_vae.tiled_vae(vae, tile=16, fast=True):
        _, found = both(vae, LATENT, PICTURE)
    shift = (found - plain[1]).mean((0, 2, 3)).abs() / plain[1].std((0, 2, 3))
    assert not torch.equal(found, plain[1])
    assert shift.max() < 0.02


def test_statistics_that_are_no_numbers_make_fast_exact(vae: Any) -> None:
    """A small copy in which something overflows freezes nothing."""
    forward = tiled_vae._Tiled(vae.decoder, 16, True)
    assert forward._frozen(torch.full((1, 4, 60, 46), torch.inf), 16) == []
    assert len(forward._frozen(LATENT, 16)) == 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = tiny.vae().to(dtype)
    inputs = drawn(1, 4, 50, 20).to(dtype), drawn(1, 3, 288, 64).to(dtype)
    whole = both(model, *inputs)
    with tiled_vae.tiled_vae(model, tile=8):
        found = both(model, *inputs)
    for got, wanted in zip(found, whole, strict=True):
        assert got.dtype == dtype
        assert (got - wanted).abs().float().mean() < 0.05 * wanted.float().std()


def test_layers_that_accelerate_keeps_elsewhere(plain: tuple[Tensor, Tensor]) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny.vae()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.decoder.conv_norm_out.weight.device.type == "meta"
    with tiled_vae.tiled_vae(model, tile=16):
        found = both(model, LATENT, PICTURE)
    for got, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_a_full_memory_halves_the_tile_for_good(vae: Any, plain: tuple[Tensor, Tensor]) -> None:
    sizes: list[tuple[int, ...]] = []

    def refuse(_: Any, inputs: tuple[Tensor]) -> None:
        sizes.append(tuple(inputs[0].shape[2:]))
        if inputs[0][0, 0].numel() > 2200:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = vae.decoder.conv_in.register_forward_pre_hook(refuse)
    try:
        with torch.no_grad(), tiled_vae.tiled_vae(vae, tile=32):
            first = vae.decode(LATENT).sample
            tried = sizes.copy()
            sizes.clear()
            again = vae.decode(LATENT).sample
        with pytest.raises(torch.OutOfMemoryError):
            vae.decode(LATENT)
    finally:
        hook.remove()
    assert tried[0] == (60, 46)
    assert max(height * width for height, width in sizes[:-1]) <= 2200
    assert torch.equal(first, again)
    torch.testing.assert_close(first, plain[0], atol=1e-4, rtol=0)


def test_other_vaes_and_sizes_are_refused(vae: Any) -> None:
    masked = AsymmetricAutoencoderKL(norm_num_groups=4, down_block_out_channels=(8,), up_block_out_channels=(8,))
    for other in (AutoencoderTiny(), masked):
        with pytest.raises(UsageError, match="as in Stable Diffusion or SDXL, got"), tiled_vae.tiled_vae(other):
            pass
    with pytest.raises(UsageError, match="at least 8"), tiled_vae.tiled_vae(vae, tile=4):
        pass
    with pytest.raises(UsageError, match="multiples of 8, got 301x512"), tiled_vae.tiled_vae(vae, tile=8):
        vae.encode(torch.zeros(1, 3, 512, 301))
