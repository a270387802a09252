"""Stable Diffusion and SDXL at a tiny size: the real classes with made weights, tokenizer included, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LETTERS = [chr(code) for code in range(33, 127)]
START, END = 188, 189


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
