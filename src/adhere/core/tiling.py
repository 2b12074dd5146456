"""A denoiser for large pictures: the network sees overlapping tiles, whose results are blended.

    D(x_t) = sum_i w_i D_i(x_t) / sum_i w_i        w_i: linear ramps over the overlaps, zero outside tile i

The memory of the network's activations no longer grows with the picture. A network whose receptive field is within the
overlap gives the same result as on the whole picture.

Source: Bar-Tal et al., *MultiDiffusion* (2023), equation 5, for a denoiser's output.
"""

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
        height, width = x_t.shape[-2:]
        if max(height, width) <= self.tile_size:
            return self.denoiser(x_t, t)
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(height, width)
        for rows in self._spans(height):
            for columns in self._spans(width):
                weight = self._ramp(rows, height, x_t)[:, None] * self._ramp(columns, width, x_t)
                total[..., rows, columns] += weight * self.denoiser(x_t[..., rows, columns], t)
                weights[rows, columns] += weight
        return total.div_(weights)

    def _spans(self, length: int) -> list[slice]:
        """Return spans that cover `length`; the last one may overlap by more than `overlap`."""
        if length <= self.tile_size:
            return [slice(0, length)]
        step = self.tile_size - self.overlap
        count = -(-(length - self.tile_size) // step) + 1
        starts = [*(i * step for i in range(count - 1)), length - self.tile_size]
        return [slice(start, start + self.tile_size) for start in starts]

    def _ramp(self, span: slice, length: int, like: Tensor) -> Tensor:
        """Return weights (span,): 1 inside, falling linearly over the overlap towards ends inside the picture."""
        position = torch.arange(span.start, span.stop, device=like.device, dtype=like.dtype)
        width = self.overlap + 1
        rising = (position - span.start + 1) / width if span.start > 0 else torch.ones_like(position)
        falling = (span.stop - position) / width if span.stop < length else torch.ones_like(position)
        return torch.minimum(rising, falling).clamp(max=1)
