"""A model of the posterior covariance Cov[x0 | x_t] that takes no evaluation of the network.

Photographs and the latents of autoencoders have about the power spectrum of a stationary field whose power falls with
the frequency k. For a Gaussian prior with that spectrum, Cov[x0 | x_t] is

    V_w = F^-1 S (I + snr S)^-1 F,    S(k) = (1 - w) f(k) C + w (tr C / c) I,    f ~ (k0^2 + |k|^2)^(-p/2)        (2)

where F is the Fourier transform, snr = alpha_t^2 / sigma_t^2, C the covariance of the c channels of one pixel, f has
mean 1, and w is the fraction of the variance that is white. A product with V_w takes a pair of FFTs.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from adhere.core._linalg import fourier_product
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class StationaryCovariance:
    """V_w of equation (2), for states (B, c, H, W) of any height and width.

    Attributes:
        channel_covariance: C, c rows of c numbers.
        exponent: p.
        white_fraction: w, in (0, 1]. It keeps V_w from being too small at high frequencies.
        min_frequency: k0, in cycles per longer side.

    Raises:
        ValueError: for a channel covariance that is not square, symmetric and finite, and for settings out of range.
    """

    channel_covariance: tuple[tuple[float, ...], ...]
    exponent: float
    white_fraction: float = 0.1
    min_frequency: float = 0.5

    def __post_init__(self) -> None:
        rows = self.channel_covariance
        if not rows or any(len(row) != len(rows) for row in rows):
            raise InvalidInput(f"channel_covariance has rows of {[len(row) for row in rows]}: it must be square")
        variance = self._mean_variance
        is_symmetric = all(abs(a[j] - rows[j][i]) <= 1e-6 * variance for i, a in enumerate(rows) for j in range(len(a)))
        if not (0 < variance < math.inf and is_symmetric):  # False for NaN, too
            raise InvalidInput(f"channel_covariance = {rows}: it must be finite and symmetric, with a positive trace")
        if not (0 < self.white_fraction <= 1 and 0 <= self.exponent < math.inf and 0 < self.min_frequency < math.inf):
            raise InvalidInput(f"{self}: white_fraction must be in (0, 1], exponent at least 0, min_frequency above 0")

    @property
    def _mean_variance(self) -> float:
        return sum(row[i] for i, row in enumerate(self.channel_covariance)) / len(self.channel_covariance)

    @classmethod
    def isotropic(cls, channels: int, variance: float = 1.0, exponent: float = 2.0) -> "StationaryCovariance":
        """Return the covariance of independent channels of equal variance, such as those of latents."""
        return cls(tuple(tuple(variance * (i == j) for j in range(channels)) for i in range(channels)), exponent)

    @classmethod
    @cache
    def default(cls, channels: int) -> "StationaryCovariance":
        """Return the covariance for states of c channels of a model that states none.

        3 channels are RGB photographs in [-1, 1], 1 channel is gray; others are latents of about unit variance.
        """
        if channels == 3:
            return cls(((0.202, 0.144, 0.126), (0.144, 0.186, 0.170), (0.126, 0.170, 0.210)), exponent=2.6)
        return cls.isotropic(1, variance=0.2, exponent=2.6) if channels == 1 else cls.isotropic(channels)

    def mean_variance(self, snr: float) -> float:
        """Return approximately the mean of the eigenvalues of V_w; it is exact if all eigenvalues of S are equal."""
        return self._mean_variance / (1 + snr * self._mean_variance)

    def condition_number(self, snr: float) -> float:
        """Return an upper bound of the condition number of V_w.

        Its eigenvalues lie below 1 / snr and above those of the white part of S. If A A^T is a multiple of the
        identity, this bounds the condition number of noise^2 I + A V_w A^T, too.
        """
        return 1 + 1 / (snr * self.white_fraction * self._mean_variance)

    @classmethod
    def fit(cls, x0: Tensor, white_fraction: float = 0.2) -> "StationaryCovariance":
        """Return the covariance of examples (N, c, H, W): C by moments, p by a line through the log power over log |k|.

        The line is weighted by 1 / |k|, since low frequencies hold most of the variance. If a white part is visible
        at high frequencies, p comes out too small.
        """
        x0 = x0 - x0.mean((0, 2, 3), keepdim=True)
        C = torch.einsum("nchw,ndhw->cd", x0, x0) / (x0.numel() / x0.shape[1])
        k = _frequencies(x0.shape[-2], x0.shape[-1]).to(x0)
        power = torch.fft.rfft2(x0, norm="ortho").abs().square().mean((0, 1))
        inside = (k > 0) & (k <= 0.5)
        log_k, log_power, weight = k[inside].log(), power[inside].log(), 1 / k[inside]
        log_k = log_k - (weight * log_k).sum() / weight.sum()
        exponent = max(0.0, -float((weight * log_k * log_power).sum() / (weight * log_k.square()).sum()))
        return cls(tuple(tuple(row) for row in C.tolist()), exponent, white_fraction)

    def product(self, v: Tensor, snr: float) -> Tensor:
        """Return V_w v for v (B, c, H, W).

        Raises:
            ValueError: if v is not (B, c, H, W), or has another number of channels than the covariance.
        """
        if v.ndim != 4:
            given = f"states have the shape {tuple(v.shape)}: moment matching needs (B, C, H, W)"
            raise InvalidInput(f"{given}; reshape them, or choose another solver, such as ddnm")
        if v.shape[1] != len(self.channel_covariance):
            raise InvalidInput(f"states have {v.shape[1]} channels, the covariance has {len(self.channel_covariance)}")
        S, U = _spectrum(self, v.shape[-2:], v.dtype, v.device)
        return fourier_product(v, U, S, snr)


@lru_cache(maxsize=16)
def _spectrum(
    model: StationaryCovariance, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return S (c, H, W // 2 + 1) in the basis U (c, c) of the channels' eigenvectors."""
    with torch.inference_mode(False):  # the cached tensors may later take part in autograd
        values, U = torch.linalg.eigh(torch.tensor(model.channel_covariance, dtype=torch.float64, device="cpu"))
        k = _frequencies(*size)
        f = ((model.min_frequency / max(size)) ** 2 + k**2) ** (-model.exponent / 2)
        total = f.sum() + f[:, 1 : (size[1] + 1) // 2].sum()  # over the whole plane: these columns appear twice
        f = f * (math.prod(size) / total)
        S = (1 - model.white_fraction) * values.clamp_min(0)[:, None, None] * f + model.white_fraction * values.mean()
        return S.to(device, dtype), U.to(device, dtype)


def _frequencies(height: int, width: int) -> Tensor:
    """Return |k| of `rfft2`, (H, W // 2 + 1), in cycles per pixel."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device="cpu")[:, None]
    return torch.hypot(rows, torch.fft.rfftfreq(width, dtype=torch.float64, device="cpu"))
