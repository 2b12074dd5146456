"""A coarse-to-fine denoiser: at high noise, the network sees a smaller version of the picture.

The mean over f x f pixels of x_t keeps its coarse structure and divides the standard deviation of its white noise by f.
Scaled by (sigma_s / sigma_t) f, it is a noisy picture at a time s, whose log-SNR is higher by log f:

    D_f(x_t, t) = up(D((sigma_s / sigma_t) f mean_f(x_t), s)),      alpha_s / sigma_s = f alpha_t / sigma_t

This is E[x0 | x_t] without details finer than f pixels, which cannot be seen at that noise level. In this way, a
network that was trained on pictures at several scales sees an f times wider context at 1/f^2 of the cost. `up` repeats
each value f x f times, which is f^2 times the transpose of the mean, so the Jacobian stays symmetric.

Where f does not divide a side, the network sees the largest part that it divides, once from each end of the side, and
the results are blended: padding would change the standard deviation or the whiteness of the noise at the border.

Source: cascades train one network per scale for the same purpose (Ho et al., *Cascaded diffusion models*, 2022).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core.denoisers import Denoiser, DenoiserWrapper
from adhere.core.schedules import log_snr


@dataclass(frozen=True)
class MultiscaleDenoiser(DenoiserWrapper):
    """Evaluates the network on states (B, C, H, W) that are down-sampled by f, the largest power of two allowed.

    Attributes:
        max_downsamplings: f is at most 2 ** max_downsamplings.
        max_log_snr: the largest log-SNR, in nats, of the down-sampled states that the network sees.
        multiple: the network needs states whose H and W are multiples of this. None: f must divide H and W.
    """

    denoiser: Denoiser
    max_downsamplings: int
    max_log_snr: float
    multiple: int | None = None

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        f = self.factor(x_t, t)
        if f == 1:
            return self.denoiser(x_t, t)
        s = self.schedule.t_from_log_snr(log_snr(self.schedule, t) + math.log(f))
        sigma_t, sigma_s = self.schedule(t)[1], self.schedule(s)[1]
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(x_t.shape[-2:])
        for rows, columns in _parts(x_t.shape[-2:], f * (self.multiple or 1)):
            x0 = self.denoiser(f * sigma_s / sigma_t * avg_pool2d(x_t[..., rows, columns], f), s)
            total[..., rows, columns] += interpolate(x0, scale_factor=f, mode="nearest")
            weights[rows, columns] += 1
        return total.div_(weights)

    def factor(self, x_t: Tensor, t: float) -> int:
        """Return f at time t; 1 is the full size."""
        lambda_t = log_snr(self.schedule, t)
        f = 1
        while f < 2**self.max_downsamplings and lambda_t + math.log(2 * f) <= self.max_log_snr:
            if not all(self._can_divide(side, 2 * f) for side in x_t.shape[-2:]):
                break
            f *= 2
        return f

    def _can_divide(self, side: int, f: int) -> bool:
        return side % f == 0 if self.multiple is None else side >= f * self.multiple


def _parts(size: Sequence[int], unit: int) -> Iterator[tuple[slice, ...]]:
    """Yield (rows, columns) of the largest parts whose sides are multiples of `unit`, from each end of the sides."""
    ends = [{0: slice(0, side - side % unit), side % unit: slice(side % unit, side)} for side in size]
    return product(*(one.values() for one in ends))
