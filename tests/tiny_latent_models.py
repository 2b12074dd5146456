"""Tiny random text-to-image pipelines of diffusers' and transformers' real classes."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Single letters, in the files of CLIP's tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def tiny_vae(latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    """8 pixels a cell, as Stable Diffusion's."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=64,
        **options,
    ).eval()


def tiny_text_encoder(hidden: int = 16) -> CLIPTextModel:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        projection_dim=hidden,
    )
    return CLIPTextModel(config).eval()


def tiny_sd(folder: Path, prediction: str = "epsilon", scheduler: Any = None, **options: Any) -> StableDiffusionPipeline:
    """Stable Diffusion's layout, native size 64x64; `options` go to the UNet."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    ).eval()
    default = DDIMScheduler(prediction_type=prediction, steps_offset=1, set_alpha_to_one=True, **SCALED_LINEAR)
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(folder),
        unet=unet,
        scheduler=scheduler or default,
        safety_checker=None,  # type: ignore[arg-type]  # diffusers' annotation leaves out None
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
