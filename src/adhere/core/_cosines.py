"""Cosine transforms, which diagonalize symmetric filters with mirrored edges."""

import math

import torch
from torch import Tensor


def cosine_spectrum(correlation: Tensor, size: int) -> Tensor:
    """Return the eigenvalues (size,) of a filter with mirrored edges, whose taps at the lags m and -m are these."""
    angle = torch.arange(size, dtype=torch.float64)[:, None] * torch.arange(len(correlation)) * (math.pi / size)
    return (2 * angle.cos() @ correlation - correlation[0]).clamp_min(0)


def cosines(x: Tensor) -> Tensor:
    """Return the cosine transform X(k) = sum_n x(n) cos(pi (2n + 1) k / 2N) of each row (DCT-II).

    Source: by an FFT of N numbers: Makhoul (1980).
    """
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    return (torch.fft.fft(v) * _quarter_turn(x)).real


def inverse_cosines(X: Tensor) -> Tensor:
    """Return the rows x whose `cosines` are X."""
    mirrored = torch.cat([torch.zeros_like(X[..., :1]), X[..., 1:].flip(-1)], -1)
    v = torch.fft.ifft(torch.complex(X, -mirrored) * _quarter_turn(X).conj()).real
    even = (X.shape[-1] + 1) // 2
    x = torch.empty_like(X)
    x[..., ::2], x[..., 1::2] = v[..., :even], v[..., even:].flip(-1)
    return x


def _quarter_turn(x: Tensor) -> Tensor:
    """Return exp(-i pi k / 2N) for k = 0, ..., N - 1, N the length of the rows of x."""
    size = x.shape[-1]
    angle = torch.arange(size, dtype=x.dtype, device=x.device) * (-math.pi / (2 * size))
    return torch.polar(torch.ones_like(angle), angle)
