"""A denoiser for large pictures: the network sees overlapping tiles, whose results are blended.

    D(x_t) = sum_i w_i D_i(x_t) / sum_i w_i        w_i: linear ramps over the overlaps, zero outside tile i

The memory of the network's activations no longer grows with the picture. A network whose receptive field is within the
overlap gives the same result as on the whole picture.

Source: Bar-Tal et al., *MultiDiffusion* (2023), equation 5, for a denoiser's output.
"""

from dataclasses import dataclass

from torch import Tensor

from adhere.core._tiles import in_tiles
from adhere.core.denoisers import Denoiser, DenoiserWrapper
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class TiledDenoiser(DenoiserWrapper):
    """Evaluates the network tile by tile on states (B, C, H, W); a state within one tile is evaluated whole.

    Attributes:
        tile_size: the side of the tiles, which are squares, in entries of the state.
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
        return in_tiles(lambda tile: self.denoiser(tile, t), x_t, self.tile_size, self.overlap)
