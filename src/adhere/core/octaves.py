"""A denoiser that looks at noise from further away: the noisier the picture, the smaller the network sees it.

Means over f x f pixels keep the outlines of x_t and divide its noise by f, so f times them is a noisy picture again,
of white noise, at a log-SNR that is log f higher:

    D_f(x_t, t) = up(D((sigma_s / sigma_t) f mean_f(x_t), s)),      alpha_s / sigma_s = f alpha_t / sigma_t

That is E[x0 | x_t] but for the details finer than f pixels, of which nothing is known while they are lost in the noise.
Pictures look alike at all scales, so one rule serves every f = 2, 4, ...: the largest at which the network is still
shown a log-SNR of at most `until`. A network that was trained on pictures at several scales then sees outlines with an
f times wider view, at 1/f^2 of the cost; repeating each mean f x f times is f^2 times the transpose of taking means, so
the Jacobian stays symmetric. Cascades (Ho et al., *Cascaded diffusion models*, 2022) and Laplacian pyramids train a
network per scale for the same end.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core.denoise import Denoiser, Wrapper
from adhere.core.schedule import log_snr


@dataclass(frozen=True)
class Octaves(Wrapper):
    """States (B, C, H, W), halved up to `most` times; `until`: a log-SNR, in nats. One call is one network evaluation.

    A state whose sides f does not divide is seen at a larger scale, or as it is.
    """

    denoiser: Denoiser
    most: int
    until: float

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        f = self.factor(x_t, t)
        if f == 1:
            return self.denoiser(x_t, t)
        s = self.schedule.time_at(log_snr(self.schedule, t) + math.log(f))
        sigma_t, sigma_s = self.schedule(t)[1], self.schedule(s)[1]
        x0 = self.denoiser(f * sigma_s / sigma_t * avg_pool2d(x_t, f), s)
        return interpolate(x0, scale_factor=f, mode="nearest")

    def factor(self, x_t: Tensor, t: float) -> int:
        """f at noise level t: 1 = the picture as it is."""
        seen = log_snr(self.schedule, t)
        f = 1
        while f < 2**self.most and seen + math.log(2 * f) <= self.until:
            if any(side % (2 * f) for side in x_t.shape[-2:]):
                break
            f *= 2
        return f
