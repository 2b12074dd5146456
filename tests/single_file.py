"""Saves a Stable Diffusion pipeline as one file in its authors' layout, by renaming diffusers' weights."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
]
ENDS = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]
AUTOENCODER = [
    (r"downsamplers\.0", "downsample"),
    (r"upsamplers\.0", "upsample"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks", "down"),
]


def unet_name(name: str, layers: int, crossed: set[int]) -> str:
    """Return the authors' name of a weight of the UNet.

    Args:
        name: diffusers' name.
        layers: the number of layers of a down block.
        crossed: the indices of the up blocks with attention.
    """
    for ours, theirs in ENDS:
        if name.startswith(ours + "."):
            return name.replace(ours, theirs)
    for half, theirs, first in (("down", "input", 1), ("up", "output", 0)):
        if block := re.match(rf"{half}_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", name):
            index = (layers + 1) * int(block[1]) + int(block[3]) + first
            name = f"{theirs}_blocks.{index}.{int(block[2] == 'attentions')}" + name[block.end() :]
    name = re.sub(
        r"down_blocks\.(\d+)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{(layers + 1) * (int(m[1]) + 1)}.0.op",
        name,
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0",
        lambda m: f"output_blocks.{(layers + 1) * int(m[1]) + layers}.{1 + (int(m[1]) in crossed)}",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle_block.1")
    if "transformer_blocks" not in name:
        for ours, theirs in RESNET:
            name = re.sub(rf"\.{ours}\.", f".{theirs}.", name)
    return name


def autoencoder_name(name: str, blocks: int) -> str:
    """Return the authors' name of a weight of the autoencoder, which has so many blocks."""
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    for ours, theirs in AUTOENCODER:
        name = re.sub(ours, theirs, name)
    return name


def save_single_file(pipe: Any, file: Path) -> Path:
    """Save the UNet, the autoencoder and the text encoder of a pipeline in one file and return its path."""
    unet, vae = pipe.unet.config, pipe.vae.config
    crossed = {i for i, kind in enumerate(unet["up_block_types"]) if "Attn" in kind}
    weights: dict[str, Tensor] = {}
    for name, value in pipe.unet.state_dict().items():
        weights["model.diffusion_model." + unet_name(name, unet["layers_per_block"], crossed)] = value
    for name, value in pipe.vae.state_dict().items():
        weights["first_stage_model." + autoencoder_name(name, len(vae["block_out_channels"]))] = value
    for name, value in pipe.text_encoder.state_dict().items():
        prefix = "" if name.startswith("text_model.") else "text_model."
        weights["cond_stage_model.transformer." + prefix + name] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file
