"""Grids of pictures, and the conversion between uint8 pictures and tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Return pictures (B, H, W, 3) uint8 as a tensor (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_uint8(x: Tensor) -> np.ndarray:
    """Return a tensor (B, 3, H, W), clipped to [-1, 1], as pictures (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def grid(rows: Sequence[Sequence[np.ndarray] | np.ndarray], scale: int = 1) -> Image.Image:
    """Join pictures into one.

    Args:
        rows: The pictures of each row, uint8 (H, W, 3) each, of the same height; short rows are filled with white.
        scale: The integer factor by which the result is enlarged.
    """
    width = max(sum(picture.shape[1] for picture in row) for row in rows)
    strips = [np.concatenate(row, axis=1) for row in rows]
    filled = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    image = Image.fromarray(np.concatenate(filled))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def split(image: Image.Image, size: int, count: int) -> np.ndarray:
    """Return the first `count` squares of `size` pixels of a grid, row by row: (count, size, size, 3) uint8."""
    pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    squares = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return squares[:count]


def label(text: str, height: int, width: int = 180) -> np.ndarray:
    """Return black text on white, (height, width, 3) uint8, for the first column of a grid."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((2, height / 2), text, fill="black", anchor="lm")
    return np.asarray(image)
