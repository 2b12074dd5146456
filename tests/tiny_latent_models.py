"""Tiny random pipelines of every latent family, made of diffusers' and transformers' own classes.

Each has a few 10,000 weights and the layout of the published models. The tokenizers know single letters only.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import LDMPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a tokenizer of single letters, from files in the format of CLIP's."""
    entries = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def tiny_t5_tokenizer() -> Any:
    """Return a tokenizer of single letters; transformers 4 has no argument for the pieces."""
    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581", *LETTERS)]
    if "vocab" in inspect.signature(T5TokenizerFast).parameters:
        return T5TokenizerFast(vocab=pieces, extra_ids=0)
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)


def tiny_vae(latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    """Return an autoencoder with one latent per 8x8 pixels, as Stable Diffusion's."""
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


def tinier_vae() -> AutoencoderTiny:
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


def tiny_vq() -> VQModel:
    """Return an autoencoder with one latent per 4x4 pixels, as in the first latent diffusion models."""
    torch.manual_seed(1)
    return VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=3,
        norm_num_groups=2,
        num_vq_embeddings=64,
    ).eval()


def tiny_text_encoder(projection: bool = False) -> Any:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        projection_dim=16,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tiny_t5() -> T5EncoderModel:
    torch.manual_seed(3)
    return T5EncoderModel(
        T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()


def tiny_conditional_unet(cross_attention_dim: int = 16, **options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    ).eval()


def stride(prediction: str = "epsilon") -> DDIMScheduler:
    """Return a DDIM scheduler with Stable Diffusion's noise levels, whose last step ends at x0."""
    return DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=True, **SCALED_LINEAR)


def tiny_sd(folder: Path, scheduler: Any = None, **options: Any) -> StableDiffusionPipeline:
    """Return a pipeline in Stable Diffusion's layout, native size 64x64; `options` are for the UNet."""
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(folder),
        unet=tiny_conditional_unet(**options),
        scheduler=scheduler or stride(),
        safety_checker=None,  # type: ignore[arg-type]  # diffusers' annotation leaves out None
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def tiny_sdxl(folder: Path, scheduler: Any = None, vae: Any = None, **options: Any) -> StableDiffusionXLPipeline:
    """Return a pipeline in Stable Diffusion XL's layout, native size 64x64; `options` are for the UNet."""
    tokenizer = tiny_tokenizer(folder)
    unet = tiny_conditional_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        **options,
    )
    return StableDiffusionXLPipeline(
        vae=vae or tiny_vae(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_text_encoder(projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler or stride(),
    )


def tiny_sd3(folder: Path, scheduler: Any = None, t5: bool = True) -> StableDiffusion3Pipeline:
    """Return a pipeline in Stable Diffusion 3's layout, native size 64x64."""
    tokenizer = tiny_tokenizer(folder)
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_text_encoder(projection=True),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=tiny_t5() if t5 else None,  # type: ignore[arg-type]  # diffusers' annotation leaves out None
        tokenizer_3=tiny_t5_tokenizer() if t5 else None,
    )


def tiny_flux(folder: Path, schnell: bool = False) -> FluxPipeline:
    """Return a pipeline in the layout of Flux dev or schnell."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=not schnell,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(folder),
        text_encoder_2=tiny_t5(),
        tokenizer_2=tiny_t5_tokenizer(),
        transformer=transformer,
    )


def tiny_ldm(autoencoder: Any = None) -> LDMPipeline:
    """Return an unconditional latent pipeline, native size 32x32, or 64x64 with an AutoencoderKL."""
    autoencoder = autoencoder or tiny_vq()
    channels = autoencoder.config["latent_channels"]
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()
    return LDMPipeline(autoencoder, unet, stride())
