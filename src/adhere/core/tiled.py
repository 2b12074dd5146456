"""A denoiser for large pictures: the network sees one tile at a time, overlapping tiles are blended.

    D(x_t) = sum_i w_i D_i(x_t) / sum_i w_i        w_i a tent over tile i, zero outside

MultiDiffusion (Bar-Tal et al., 2023, eq. 5) for a denoiser's output. The network's activations, by far the largest
memory of a run, no longer grow with the picture. A network that looks no further than the overlap gives the same as in
one piece.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.denoise import Denoiser, Wrapper


@dataclass(frozen=True)
class Tiled(Wrapper):
    """`size` and `overlap`: of the square tiles, in the state's pixels. A smaller state is given whole.

    One call is one network function evaluation, whatever the number of tiles. Raises ValueError unless
    0 <= overlap < size.
    """

    denoiser: Denoiser
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"tiles of {self.size} overlapping by {self.overlap}: the overlap is at least 0 and less")

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        height, width = x_t.shape[-2:]
        if max(height, width) <= self.size:
            return self.denoiser(x_t, t)
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(height, width)
        for rows in self._spans(height):
            for columns in self._spans(width):
                tent = self._tent(rows, height, x_t)[:, None] * self._tent(columns, width, x_t)
                total[..., rows, columns] += tent * self.denoiser(x_t[..., rows, columns], t)
                weights[rows, columns] += tent
        return total / weights

    def _spans(self, length: int) -> list[slice]:
        """Spans of `size` that cover `length`, overlapping by `overlap`, the last by more where it must."""
        if length <= self.size:
            return [slice(0, length)]
        step = self.size - self.overlap
        count = -(-(length - self.size) // step) + 1
        return [slice(i * step, i * step + self.size) for i in range(count - 1)] + [slice(length - self.size, length)]

    def _tent(self, span: slice, length: int, like: Tensor) -> Tensor:
        """1 inside, falling linearly over the overlap towards every end that is not the picture's own: (span,)."""
        position = torch.arange(span.start, span.stop, device=like.device, dtype=like.dtype)
        ramp = self.overlap + 1
        rising = (position - span.start + 1) / ramp if span.start > 0 else torch.ones_like(position)
        falling = (span.stop - position) / ramp if span.stop < length else torch.ones_like(position)
        return torch.minimum(rising, falling).clamp(max=1)
