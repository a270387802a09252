"""Stable Diffusion and SDXL at a tiny size: the real classes with made weights, tokenizer included, no download."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LETTERS = [chr(code) for code in range(33, 127)]
START, END = 188, 189


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows single printable letters only."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def text_encoder(*, projects: bool = False) -> Any:
    """A CLIP text model of two layers, 32 wide."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=190, bos_token_id=START, eos_token_id=END, pad_token_id=END, hidden_size=32, intermediate_size=37,
        num_attention_heads=4, num_hidden_layers=2, projection_dim=32,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel)(config).eval()


def unet(channels: int, *, xl: bool = False) -> Any:
    """A UNet of two levels that takes 4 or 9 channels."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"cross_attention_dim": 32, "layers_per_block": 1}
    if xl:
        settings = {
            "attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2), "cross_attention_dim": 64,
            "projection_class_embeddings_input_dim": 80, "layers_per_block": 1,
        }  # fmt: skip
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), sample_size=8, in_channels=channels, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    ).eval()  # fmt: skip


def vae(*, levels: int = 4, attention: bool = True) -> Any:
    """A VAE of 8 channels; four levels give Stable Diffusion's factor 8."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=[8] * levels, down_block_types=["DownEncoderBlock2D"] * levels, latent_channels=4,
        up_block_types=["UpDecoderBlock2D"] * levels, layers_per_block=2 if levels > 2 else 1, norm_num_groups=4,
        force_upcast=False, sample_size=64, mid_block_add_attention=attention,
    ).eval()  # fmt: skip


def scheduler() -> Any:
    """DDIM as Stable Diffusion was published with."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def save(folder: Path, channels: int, *, xl: bool = False) -> Path:
    """The folder with a tiny pipeline in diffusers' layout: a base model for 4 channels, an inpainting one for 9."""
    words = tokenizer(folder / "tokenizer")
    parts = {"vae": vae(), "unet": unet(channels, xl=xl), "scheduler": scheduler(), "tokenizer": words}
    if xl:
        kind = diffusers.StableDiffusionXLInpaintPipeline if channels == 9 else diffusers.StableDiffusionXLPipeline
        parts |= {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(projects=True)}
        parts |= {"tokenizer_2": words, "add_watermarker": False}
    else:
        kind = diffusers.StableDiffusionInpaintPipeline if channels == 9 else diffusers.StableDiffusionPipeline
        parts |= {"text_encoder": text_encoder(), "safety_checker": None, "feature_extractor": None}
        parts |= {"requires_safety_checker": False}
    kind(**parts).save_pretrained(folder)
    return folder


# --- one file, as Stable Diffusion was published ---------------------------------------------------------------------

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0", "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv", "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def published(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the tiny pipeline in `folder` under the names of the checkpoints that Stable Diffusion came in."""
    state = {}
    model = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    for name, tensor in model.items():
        block = next(known for known in UNET if name.startswith(known + "."))
        rest = name.removeprefix(block + ".")
        layer = next((known for known in RESNET if "resnets" in block and rest.startswith(known + ".")), "")
        rest = RESNET[layer] + rest.removeprefix(layer) if layer else rest
        state[f"model.diffusion_model.{UNET[block]}.{rest}"] = tensor
    for name, tensor in diffusers.AutoencoderKL.from_pretrained(folder / "vae").state_dict().items():
        flat = ".to_" in name and tensor.ndim == 2
        state[f"first_stage_model.{_vae_name(name)}"] = tensor[..., None, None] if flat else tensor
    for name, tensor in transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _vae_name(name: str) -> str:
    found = re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(.*)", name)
    if found:
        coder, way, level, rest = found.groups()
        level = str(3 - int(level)) if way == "up" else level
        rest = rest.replace("resnets.", "block.").replace("conv_shortcut", "nin_shortcut")
        sampled = re.sub(r"(down|up)samplers.0", r"\1sample", rest)
        return f"{coder}.{way}.{level}.{sampled}"
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    return name.replace("conv_norm_out", "norm_out")
