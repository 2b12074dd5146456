"""A denoiser for large pictures: the network sees overlapping tiles, whose results are blended.

    D(x_t) = sum_i w_i D_i(x_t) / sum_i w_i        w_i: linear ramps over the overlaps, zero outside tile i

The memory of the network's activations no longer grows with the picture. A network whose receptive field is within the
overlap gives the same result as on the whole picture.

Source: Bar-Tal et al., *MultiDiffusion* (2023), equation 5, for a denoiser's output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.denoisers import Denoiser, DenoiserWrapper
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class TiledDenoiser(DenoiserWrapper):
    """Evaluates the network tile by tile on states (B, C, H, W); a state within one tile is evaluated whole.

    Attributes:
        tile_size: the side of the square tiles, in entries of the state.
        overlap: the overlap of neighboring tiles, 0 <= overlap < tile_size.

    Raises:
        ValueError: for an overlap outside this range.
    """

    denoiser: Denoiser
    tile_size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile_size:
            raise InvalidInput(
                f"overlap = {self.overlap}: it must be at least 0 and below tile_size = {self.tile_size}"
            )

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        if max(x_t.shape[-2:]) <= self.tile_size:
            return self.denoiser(x_t, t)
        return _in_tiles(lambda tile: self.denoiser(tile, t), x_t, self.tile_size, self.overlap)


def _in_tiles(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile_size: int,
    overlap: int,
    cell_in: int = 1,
    cell_out: int = 1,
) -> Tensor:
    """Return function(x), evaluated on overlapping tiles of x whose results are blended.

    Args:
        function: maps (B, C, cell_in h, cell_in w) to (B, C', cell_out h, cell_out w) for any h and w.
        x: (B, C, cell_in H, cell_in W).
        tile_size: the side of the tiles, in cells.
        overlap: the overlap of neighboring tiles, in cells.
        cell_in, cell_out: the side of a cell in x and in the result; one of an encoder's latents is a square of pixels.
    """
    height, width = (side // cell_in for side in x.shape[-2:])
    total, weights = x.new_zeros(0), x.new_zeros(height * cell_out, width * cell_out)
    for rows in _spans(height, tile_size, overlap):
        for columns in _spans(width, tile_size, overlap):
            out = function(x[..., _scaled(rows, cell_in), _scaled(columns, cell_in)])
            if not total.numel():
                total = x.new_zeros(*out.shape[:2], *weights.shape)
            down, right = (_ramp(*one, overlap, cell_out, x) for one in ((rows, height), (columns, width)))
            box = _scaled(rows, cell_out), _scaled(columns, cell_out)
            weight = down[:, None] * right
            total[..., *box] += weight * out
            weights[box] += weight
    return total.div_(weights)


def _scaled(span: slice, cell: int) -> slice:
    return slice(span.start * cell, span.stop * cell)


def _spans(length: int, tile_size: int, overlap: int) -> list[slice]:
    """Return spans that cover `length`; the last one may overlap by more than `overlap`."""
    if length <= tile_size:
        return [slice(0, length)]
    step = tile_size - overlap
    count = -(-(length - tile_size) // step) + 1
    starts = [*(i * step for i in range(count - 1)), length - tile_size]
    return [slice(start, start + tile_size) for start in starts]


def _ramp(span: slice, length: int, overlap: int, cell: int, like: Tensor) -> Tensor:
    """Return weights (span,): 1 inside, falling linearly over the overlap towards ends inside the picture."""
    position = torch.arange(cell * (span.stop - span.start), device=like.device, dtype=like.dtype)
    width = cell * overlap + 1
    rising = (position + 1) / width if span.start > 0 else torch.ones_like(position)
    falling = (len(position) - position) / width if span.stop < length else torch.ones_like(position)
    return torch.minimum(rising, falling).clamp(max=1)
