"""Tiny random pixel-space models in diffusers' layouts, saved as any user's model is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file

import adhere
from adhere.core.presets import PRESETS

# The presets that serve a mask on any pixel-space model: psld needs a decoder, newton_exact a small state.
PIXEL_PRESETS = [name for name in PRESETS if name not in ("psld", "newton_exact")]
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")


def tiny_unet(
    channels: int = 3, out_channels: int | None = None, attention: bool = False, seed: int = 0, **options: Any
) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
        **options,
    )


def save_model(folder: Path, prediction_type: str = "epsilon", ddpm: bool = False, **network: Any) -> Path:
    """Save a DDIMPipeline or a DDPMPipeline in the folder and return the folder; `network` is for `tiny_unet`."""
    unet = tiny_unet(**network)
    options = {"prediction_type": prediction_type, "clip_sample": False}
    if ddpm:
        variance = "fixed_small" if unet.config["out_channels"] == unet.config["in_channels"] else "learned_range"
        DDPMPipeline(unet, DDPMScheduler(variance_type=variance, **options)).save_pretrained(folder)
    else:
        DDIMPipeline(unet, DDIMScheduler(steps_offset=1, **options)).save_pretrained(folder)
    return folder


def load(folder: Path | None, **options: Any) -> Any:
    """Return the constrained pipeline of a folder, or the shipped one for None, without progress bars.

    It is typed Any, since its attributes are diffusers'.
    """
    pipe: Any = adhere.load(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = folder / WEIGHTS
    save_file(change(load_file(weights)), weights)


def with_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights that are all NaN, as a diverged training run leaves them."""
    return {name: torch.full_like(value, float("nan")) for name, value in weights.items()}
