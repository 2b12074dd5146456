"""Chroma that spreads from hints: Gaussian process regression on the position and the texture of pixels.

Pixels that are near each other, or look alike, tend to have the same color. With d the distance of two pixels p and q,

    k(p, q) = sum_j s_j / (1 + d^2 / l_j^2 + sum_f (f(p) - f(q))^2 / w_f^2),

where the features f are the luma, its mean at two scales, and its local standard deviation. From hints with the
chroma c at pixels h, the chroma of all pixels is

    m(p) = k(p, h) a / k(p, h) b,    a = (k(h, h) + n I)^-1 c,    b = (k(h, h) + n I)^-1 1,

where n is the variance of the hints' noise over that of chroma.

Because of the denominator, the colors of a hint spread without loss of saturation, while the usual mean would fade to
gray. The variance is 4 v (k(p, p) - k(p, h) (k(h, h) + n I)^-1 k(h, p)), where v is the maximum likelihood estimate.
Without the factor 4, errors were 1.8 times the standard deviation.

Everything is computed on a picture of at most 256 pixels per side. The chroma of a larger picture is a local linear
function of its luma, as in the guided filter. The numbers below were chosen on the ten photographs of
benchmarks.kphotoalbum.

Source: Rasmussen and Williams, *Gaussian processes for machine learning* (2006), section 2.2; He and Sun, *Fast guided
filter* (arXiv 1505.00996).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core.filters import Blur
from adhere.core.operators import LinearOperator
from adhere.io._samples import LUMA_WEIGHTS

_SHARES = (0.6, 0.4)  # s_j
_LENGTHS_PIXELS = (44.0, 410.0)  # l_j
_LUMA, _FINE, _COARSE, _CONTRAST = 0.46, 0.29, 0.48, 0.145  # w_f, for luma in [-1, 1]
_FINE_SIGMA, _COARSE_SIGMA = 2.0, 8.0  # of the means, in pixels
_CHROMA_VARIANCE = 0.1  # in [-1, 1] units, with which n is computed; n = 0.1 for a noise of 0.1 was chosen
_MIN_NUGGET = 1e-3  # of n, for a Cholesky factor in float32
_DEVIATION_SCALE = 2.0  # v is too small, since the likelihood treats the pixels of a stroke as independent
_MAX_SIDE_PIXELS = 256
_MAX_HINTS = 600  # after averaging over the smallest cells for which there are at most so many
_CHUNK_PIXELS = 8192
_GUIDE_FLOOR = 0.004  # a variance of luma below which the chroma hardly depends on it
_MIN_CONFIDENCE = 0.05  # of the denominator of m


@dataclass(frozen=True)
class LumaChroma(LinearOperator):
    """RGB images (B, 3, H, W) in an orthonormal basis: the luma over |w|, where w are its weights, and two of chroma.

    It is the reflection that maps w to the first axis, I - 2 u u^T, so it is its own transpose and inverse.
    """

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        norm = math.hypot(*LUMA_WEIGHTS)
        u = [weight / norm - first for weight, first in zip(LUMA_WEIGHTS, (1, 0, 0), strict=True)]
        u = torch.tensor([one / math.hypot(*u) for one in u], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
        return x - 2 * u * (u * x).sum(1, keepdim=True)

    def adjoint(self, y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self(y)

    @property
    def is_tight(self) -> bool:
        return True


def spread(
    y: Float[Tensor, "1 h w"], chroma: Float[Tensor, "3 h w"], known: Bool[Tensor, "1 h w"], noise: float
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "1 h w"]]:
    """Return the chroma of all pixels and its standard deviation.

    Args:
        y: the luma, in [-1, 1].
        chroma: RGB minus the luma, in the same units.
        known: True where the chroma is a hint, at least at one pixel.
        noise: the standard deviation of the hints' noise, in the same units.
    """
    height, width = y.shape[1:]
    scale = max(1.0, max(height, width) / _MAX_SIDE_PIXELS)
    size = max(1, round(height / scale)), max(1, round(width / scale))
    small_y, share = _reduced(y, size), _reduced(known.to(y), size)
    small_chroma = _reduced(known * chroma, size) / share.clamp_min(torch.finfo(y.dtype).tiny)
    m, std = _regression(small_y, small_chroma, share[0] > 0, max(noise**2 / _CHROMA_VARIANCE, _MIN_NUGGET))
    if size == (height, width):
        return m, std
    return _guided(m, small_y, y), interpolate(std[None], (height, width), mode="bilinear")[0]


def _regression(
    y: Float[Tensor, "1 h w"], chroma: Float[Tensor, "3 h w"], known: Bool[Tensor, "h w"], n: float
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "1 h w"]]:
    """Return m and the standard deviation of all pixels, from all hints."""
    features, cells = _features(y), _cells(known)
    pixels = features.flatten(1).T  # (h w, 2 + F)
    hints, c = (_means(x[:, known].T, cells) for x in (features, chroma))
    K = _kernel(hints, hints)
    factor = torch.linalg.cholesky(K + n * torch.eye(len(K)).to(K))
    a = torch.cholesky_solve(torch.cat([c, torch.ones_like(c[:, :1])], 1), factor)
    v = (c * a[:, :3]).sum() / (2 * len(c))  # chroma has two dimensions
    m, std = torch.empty_like(chroma).flatten(1), torch.empty_like(y).flatten(1)
    for part in torch.arange(len(pixels), device=y.device).split(_CHUNK_PIXELS):
        k = _kernel(pixels[part], hints)
        weighted = k @ a
        m[:, part] = (weighted[:, :3] / weighted[:, 3:].clamp_min(_MIN_CONFIDENCE)).T
        explained = torch.linalg.solve_triangular(factor, k.T, upper=False).square().sum(0)
        std[:, part] = _DEVIATION_SCALE * (v * (sum(_SHARES) - explained).clamp_min(0)).sqrt()
    return m.view_as(chroma), std.view_as(y)


def _features(y: Float[Tensor, "1 h w"]) -> Float[Tensor, "f h w"]:
    """Return the row and the column in pixels, then the features f divided by their w_f."""
    rows, columns = (torch.arange(side, device=y.device).to(y) for side in y.shape[1:])
    fine, coarse = (Blur(sigma)(y[None])[0] for sigma in (_FINE_SIGMA, _COARSE_SIGMA))
    contrast = (Blur(_FINE_SIGMA)(y.square()[None])[0] - fine.square()).clamp_min(0).sqrt()
    scaled = [y / _LUMA, fine / _FINE, coarse / _COARSE, contrast / _CONTRAST]
    return torch.cat([rows[None, :, None].expand_as(y), columns[None, None].expand_as(y), *scaled])


def _kernel(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    distance, difference = (torch.cdist(x, z).square() for x, z in ((a[:, :2], b[:, :2]), (a[:, 2:], b[:, 2:])))
    terms = zip(_SHARES, _LENGTHS_PIXELS, strict=True)
    return sum((share / (1 + distance / length**2 + difference) for share, length in terms), torch.zeros_like(distance))


def _cells(known: Bool[Tensor, "h w"]) -> Int[Tensor, " n"]:
    """Return the number, from 0 on, of the square cell in which each known pixel lies, at most _MAX_HINTS in all."""
    rows, columns = known.nonzero().unbind(1)
    side, cells = 0, torch.arange(len(rows), device=rows.device)
    while side == 0 or int(cells.max()) >= _MAX_HINTS:
        side += 1
        _, cells = ((rows // side) * known.shape[1] + columns // side).unique(return_inverse=True)
    return cells


def _means(x: Float[Tensor, "n c"], cells: Int[Tensor, " n"]) -> Float[Tensor, "m c"]:
    """Return the mean over each cell."""
    total = x.new_zeros(int(cells.max()) + 1, x.shape[1]).index_add_(0, cells, x)
    return total / cells.bincount()[:, None]


def _reduced(x: Float[Tensor, "c H W"], size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    return interpolate(x[None], size, mode="area")[0]


def _guided(m: Float[Tensor, "3 h w"], small_y: Float[Tensor, "1 h w"], y: Float[Tensor, "1 H W"]) -> Tensor:
    """Return m on the grid of y, as a linear function of the luma that is fitted in each square of 5 x 5 pixels."""
    mean = lambda x: avg_pool2d(x[None], 5, 1, 2, count_include_pad=False)[0]  # noqa: E731
    mean_y, mean_m = mean(small_y), mean(m)
    slope = (mean(small_y * m) - mean_y * mean_m) / (mean(small_y**2) - mean_y**2 + _GUIDE_FLOOR)
    slope, offset = (
        interpolate(mean(x)[None], y.shape[1:], mode="bilinear")[0] for x in (slope, mean_m - slope * mean_y)
    )
    return slope * y + offset
