"""Samples as pixels: the conversions that all tasks share."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def to_unit_range(x: Float[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
    """Return a picture in about [-1, 1] as float32 in [0, 1] on the CPU."""
    return (x.clamp(-1, 1).to("cpu", torch.float32) + 1) / 2


def rgb_image(x: Float[Tensor, "3 H W"]) -> Image.Image:
    """Return a picture in about [-1, 1] as an RGB image with 8 bits per channel."""
    pixels = (x.clamp(-1, 1).to("cpu", torch.float32) * 127.5 + 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
