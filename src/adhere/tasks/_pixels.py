"""Samples as pixels: the conversions that all tasks share."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from adhere.errors import AdhereError

MAX_SAMPLED_PIXELS = 50_000_000  # of a picture, or a part of one, that is sampled as a whole


def check_sampled_size(size: tuple[int, int], what: str = "the result") -> None:
    """Check the (height, width) of a picture that is sampled as a whole.

    Args:
        size: (height, width) in pixels.
        what: the picture, for the message.

    Raises:
        AdhereError: if it has too many pixels.
    """
    if size[0] * size[1] > MAX_SAMPLED_PIXELS:
        given = f"{what} would have {size[1]}x{size[0]} pixels"
        raise AdhereError(f"{given}; at most {MAX_SAMPLED_PIXELS:,} are allowed: request a smaller one")


def to_unit_range(x: Float[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
    """Return a picture in about [-1, 1] as float32 in [0, 1] on the CPU."""
    return (x.clamp(-1, 1).to("cpu", torch.float32) + 1) / 2


def rgb_image(x: Float[Tensor, "3 H W"]) -> Image.Image:
    """Return a picture in about [-1, 1] as an RGB image with 8 bits per channel."""
    pixels = (x.clamp(-1, 1).to("cpu", torch.float32) * 127.5 + 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def match_means(x: Float[Tensor, "C H W"], y: Float[Tensor, "C h w"], factor: int) -> Float[Tensor, "C H W"]:
    """Return the picture in [-1, 1] near x whose means over factor x factor pixels are y.

    The difference of the means is first added with bilinear interpolation, then as one value for each square. Where
    values are clipped to [-1, 1], the other pixels of the square compensate.

    Args:
        x: the picture, in about [-1, 1].
        y: the means, in [-1, 1].
        factor: the side of the squares in pixels.
    """
    x = x.clamp(-1, 1)
    for _ in range(4):
        x = x + interpolate((y - avg_pool2d(x, factor))[None], scale_factor=factor, mode="bilinear")[0]
    for rows in _bands(y.shape[1]):
        part = x[:, rows.start * factor : rows.stop * factor]
        squares = _shift_and_clip(_squares(part, factor), y[:, rows].flatten()[:, None])
        part.copy_(_from_squares(squares, part.shape, factor))
    return x


def _shift_and_clip(squares: Tensor, means: Tensor) -> Tensor:
    """Return clip(squares + s) with one shift s per row, so that the means of the rows are `means`, (N, 1).

    The shift is found by Newton's method, or by bisection where Newton's step would leave the bracket.
    """
    low, high = -1 - squares.amax(1, keepdim=True), 1 - squares.amin(1, keepdim=True)
    shift, tolerance = torch.zeros_like(means), 16 * torch.finfo(means.dtype).eps
    for _ in range(50):  # a few are enough, since the mean is piecewise linear in the shift
        clipped = (squares + shift).clamp(-1, 1)
        missing = means - clipped.mean(1, keepdim=True)
        done = missing.abs() < tolerance
        if done.all():
            break
        low, high = torch.where(missing > 0, shift, low), torch.where(missing < 0, shift, high)
        newton = shift + missing / (clipped.abs() < 1).to(squares).mean(1, keepdim=True)
        moved = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        shift = torch.where(done, shift, moved)
    return (squares + shift).clamp(-1, 1)


def round_with_means(x: Float[Tensor, "C H W"], levels: np.ndarray, factor: int) -> np.ndarray:
    """Return x, in [-1, 1], as integers (H, W, C) whose means over factor x factor pixels are exactly `levels`.

    All values are rounded down; then those with the largest remainders are increased by 1.

    Args:
        x: a picture whose means are about those of `levels`; see `match_means`.
        levels: (h, w, C), integers.
        factor: the side of the squares in pixels.
    """
    v_max = int(np.iinfo(levels.dtype).max)
    result = np.empty((*x.shape[1:], x.shape[0]), levels.dtype)
    for rows in _bands(levels.shape[0]):
        pixels = slice(rows.start * factor, rows.stop * factor)
        values = (_squares(x[:, pixels], factor).double() + 1) * (v_max / 2)
        floor = values.floor()
        total = torch.from_numpy(levels[rows].astype(np.int64)).permute(2, 0, 1).reshape(-1, 1) * factor**2
        missing = total - floor.long().sum(1, keepdim=True)  # of each square
        rank = (values - floor).argsort(1, descending=True).argsort(1)
        raised = floor.long() + missing.div(factor**2, rounding_mode="floor") + (rank < missing % factor**2)
        band = _from_squares(raised.clamp(0, v_max), x[:, pixels].shape, factor)
        result[pixels] = band.permute(1, 2, 0).numpy()
    return result


def _bands(height: int) -> list[slice]:
    """Return slices of rows that are processed together, which limits the memory."""
    return [slice(top, min(top + 64, height)) for top in range(0, height, 64)]


def _squares(x: Tensor, factor: int) -> Tensor:
    """Return x (C, H, W) as (C * H / factor * W / factor, factor^2), one row per square."""
    channels, height, width = x.shape
    x = x.reshape(channels, height // factor, factor, width // factor, factor)
    return x.transpose(2, 3).reshape(-1, factor**2)


def _from_squares(squares: Tensor, shape: torch.Size, factor: int) -> Tensor:
    channels, height, width = shape
    x = squares.reshape(channels, height // factor, width // factor, factor, factor)
    return x.transpose(2, 3).reshape(shape)
