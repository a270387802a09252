"""Networks that come through spandrel: what they take and give, and what is refused."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_networks import made, refusal, saved, without
from torch import Tensor

from facefix import networks, runtime


def test_a_network_that_spandrel_knows_but_restores_no_faces_is_named(tmp_path: Path) -> None:
    architecture = importlib.import_module("spandrel.architectures.Compact").Compact
    compact = architecture(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2)
    problem = refusal(saved(tmp_path / "w.pth", {"params": compact.state_dict()}))
    assert "is a Compact network (first tensors: body.0.weight" in problem


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
    assert (network.architecture, network.in_size, network.out_size) == ("RestoreFormer", 512, 512)
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
    assert (network.architecture, network.out_size) == ("RestoreFormer", 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(72.68e6, rel=1e-3)


@pytest.mark.slow
def test_gfpgan_takes_and_gives_minus_one_to_one_and_draws_no_noise(tmp_path: Path) -> None:
    network = networks.load(foreign_file(tmp_path / "w.pth", "GFPGAN", GFPGAN))
    assert (network.architecture, network.in_size, network.out_size) == ("GFPGAN", 512, 512)
    assert not any(module.training for module in network.modules())
    decoder = network.body.model.stylegan_decoder
    assert decoder.style_conv1.weight.abs().max() > 0  # so that noise drawn anew would be seen
    drawn: list[Tensor] = []
    hook = decoder.to_rgbs[-1].register_forward_hook(lambda *call: drawn.append(call[2].clone()))
    chance = torch.get_rng_state()
    result = check_range(network, "conv_body_first")
    hook.remove()
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(drawn[0], result)  # the range of the last layer is the network's
