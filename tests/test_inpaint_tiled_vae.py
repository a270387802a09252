"""A VAE in tiles gives what the whole VAE gives."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("diffusers")
import tiny_diffusion as tiny
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny
from tiny_diffusion import drawn

from facefix.errors import UsageError
from facefix.inpaint import tiled_vae

VAE_TILES = json.loads((Path(__file__).parent / "data" / "tiled" / "vae_tiles.json").read_text())


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
