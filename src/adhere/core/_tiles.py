"""Evaluation of a function on overlapping tiles of a picture or a state, whose results are blended."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(
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
        cell_in, cell_out: the side of a cell in x and in the result. For an encoder, a cell is a square of pixels in x
            and one latent in the result.
    """
    height, width = (side // cell_in for side in x.shape[-2:])
    total, weights = x.new_zeros(0), x.new_zeros(height * cell_out, width * cell_out)
    for rows in spans(height, tile_size, overlap):
        for columns in spans(width, tile_size, overlap):
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


def spans(length: int, tile_size: int, overlap: int) -> list[slice]:
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
