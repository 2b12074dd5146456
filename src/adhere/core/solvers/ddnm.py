"""Null-space projection: replace what the measurement sees of x0, keep the network's word on the rest.

    x0 <- x0 + A^T (A A^T + (noise/r_t)^2)^-1 (y - A x0),     r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2)

Wang, Yu and Zhang, *Zero-shot image restoration using denoising diffusion null-space model* (2023), eq. 13; under a
mask without noise it is the replacement trick. With noise, the projection trusts the measurement only as far as
Cov[x0 | x_t] = r_t^2 I allows (Song et al., *Pseudoinverse-guided diffusion models*, 2023, eq. 7). One evaluation per
noise level: the cheapest method, and the baseline of every table. The unseen part never learns of the constraint except
through the next denoising.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, is_linearisable, linearise
from adhere.core.denoise import Denoiser
from adhere.core.sample import Memory


@dataclass(frozen=True)
class DDNM:
    """Raises TypeError for a constraint that is not `Linearisable`."""

    def serves(self, constraint: Constraint) -> bool:
        return is_linearisable(constraint)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        alpha_t, sigma_t = denoiser.schedule(t)
        spread = sigma_t / math.hypot(alpha_t, sigma_t)
        x0 = denoiser(x_t, t)
        return x_t, linearise(constraint, x0, "ddnm").project(x0, spread), None
