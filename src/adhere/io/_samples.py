"""Samples of pictures as arrays, tensors and PIL images: the conversions that reading, pasting and saving share."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as in Pillow's convert("L")


def to_pil(pixels: np.ndarray, alpha: np.ndarray | None, is_bilevel: bool = False) -> Image.Image:
    """Return samples (H, W, 1) or (H, W, 3), and alpha (H, W) if there is any, as a PIL image.

    Args:
        pixels: The samples.
        alpha: Of the same height and width, or None.
        is_bilevel: Whether gray samples become 1 bit: white from 128 on.
    """
    if is_bilevel:
        return Image.fromarray(pixels[..., 0] >= 128)
    planes = pixels if alpha is None else np.dstack([pixels, alpha])
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Return integer samples (H, W, C) as float32 (C, H, W) in [-1, 1].

    Each value is the float32 nearest to v / (v_max / 2) - 1: the lookup table is computed in float64.
    """
    v_max = int(np.iinfo(pixels.dtype).max)
    table = (np.arange(v_max + 1) / (v_max / 2) - 1).astype(np.float32)
    return table[np.ascontiguousarray(pixels.transpose(2, 0, 1))]


def quantize(x: Tensor, dtype: np.dtype) -> np.ndarray:
    """Return a picture (C, h, w) in [-1, 1] as integer samples (h, w, C)."""
    samples = ((x + 1) * (np.iinfo(dtype).max / 2)).round()
    return samples.permute(1, 2, 0).numpy().astype(dtype)


def luma(x: Tensor) -> Tensor:
    """Return the luma (1, h, w) of a picture (3, h, w)."""
    return (x * torch.tensor(LUMA_WEIGHTS, dtype=x.dtype, device=x.device).view(3, 1, 1)).sum(0, keepdim=True)


def samples_of(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the samples (H, W, C) and alpha (H, W) of a PIL image of any mode."""
    if image.mode == "F":
        raise AdhereError(f"{name}: holds floating-point values; export it with 8 or 16 bits per sample")
    if image.mode.startswith("I"):
        return _integer_samples(image, name), None
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        samples = np.array(image if image.mode == mode else image.convert(mode))  # (H, W) or (H, W, 3)
        return samples.reshape(image.height, image.width, -1), None
    samples = np.array(image.convert(mode + "A"))  # (H, W, 2 or 4)
    return samples[..., :-1].copy(), samples[..., -1].copy()


def bits_per_sample(image: Image.Image) -> tuple[int, ...]:
    """Return the bits per sample that a TIFF file states, and () for other files."""
    return getattr(image, "tag_v2", {}).get(258, ())


def lost_in_conversion(image: Image.Image) -> Iterator[str]:
    """Yield the names of the parts of an opened file that Pillow cannot read."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]  # a text, a tuple or None, by the format
    rawmodes = [str(one[0] if isinstance(one, tuple) and one else one) for one in arguments]
    bits = [mode.partition(";")[2] for mode in rawmodes]
    if not image.mode.startswith("I") and any(one.startswith("16") for one in bits):
        yield "8 of the 16 bits per sample"
    if image.mode == "I" and (image.format is None or bits_per_sample(image) == (32,)):
        yield "16 of the 32 bits per sample"
    if image.mode.startswith("I") and "transparency" in image.info:
        yield "the transparent value"


def _integer_samples(image: Image.Image, name: str) -> np.ndarray:
    """Return the samples (H, W, 1) of a PIL image of mode I;16, or of 32-bit integers that fit into 16 bits."""
    values = np.asarray(image)  # (H, W)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise AdhereError(f"{name}: its values go from {low} to {high}; export it with 8 or 16 bits per sample")
    return values.astype(np.uint16)[..., None]


def convert_for(format: str, pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return samples and alpha, converted to the number of bits and channels that the format can hold."""
    if format in ("JPEG", "WEBP", "BMP") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if format in ("JPEG", "BMP") and alpha is not None:
        weight = alpha[..., None].astype(np.uint32)
        pixels = ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)  # onto white
        alpha = None
    return pixels, alpha


def fill_unknown(x: Tensor, known: Tensor) -> Tensor:
    """Return x (1, C, H, W) with its unknown pixels replaced by means of known ones, from coarse to fine."""
    if known.all() or not known.any():
        return x
    weight = known.float()
    pad = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)
    sums = functional.avg_pool2d(functional.pad(x * weight, pad), 2)
    weights = functional.avg_pool2d(functional.pad(weight, pad), 2)
    coarse = fill_unknown(sums / weights.clamp_min(1e-6), weights > 0)
    return torch.where(known, x, functional.interpolate(coarse, x.shape[-2:], mode="bilinear"))


def channels_last(image: Tensor) -> np.ndarray:
    """Return a tensor (C, H, W) or (1, C, H, W) as an array (H, W, C)."""
    planes = image[0] if image.ndim == 4 and len(image) == 1 else image
    if planes.ndim != 3 or not planes.is_floating_point():
        raise AdhereError(
            f"the image is a tensor of {image.dtype} {tuple(image.shape)}; give float in [0, 1] of shape (C, H, W)"
        )
    return planes.detach().permute(1, 2, 0).to("cpu", torch.float32).numpy()


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return float values in [0, 1] as bytes; values outside the range raise AdhereError."""
    if image.size and not (image.min() >= 0 and image.max() <= 1):  # also for NaN
        raise AdhereError(f"the image has values from {image.min():g} to {image.max():g}; give float values in [0, 1]")
    return (image * 255).round().astype(np.uint8)
