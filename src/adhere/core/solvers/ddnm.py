"""Null-space projection: the measured part of x0 is replaced by the measurement, the rest is the network's.

    x0 <- x0 + A^T (A A^T + (noise/r_t)^2 I)^-1 (y - A x0),     r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2)

With noise, the projection trusts the measurement as far as Cov[x0 | x_t] = r_t^2 I implies. The unmeasured part depends
on the constraint only through the next evaluation. With one evaluation per noise level, it is the cheapest baseline.

Source: Wang, Yu and Zhang, *Zero-shot image restoration using denoising diffusion null-space model* (2023), equation
13; r_t: Song et al., *Pseudoinverse-guided diffusion models* (2023), equation 7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.solvers.base import Solver


@dataclass(frozen=True)
class DDNM(Solver[None]):
    """Projects x0 onto a constraint that can be linearized."""

    def supports(self, constraint: Constraint) -> bool:
        return constraint.is_linearizable

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        alpha_t, sigma_t = denoiser.schedule(t)
        x0 = denoiser(x_t, t)
        return x_t, constraint.linearize(x0).project(x0, std=sigma_t / math.hypot(alpha_t, sigma_t)), None
