"""The posterior mean of a noisy image, E[x0 | y] for y = x0 + noise n, by one evaluation.

A noisy image is a state of the diffusion: x_t = alpha_t y at the time t with sigma_t / alpha_t = noise. There the
denoiser is the posterior mean. By Tweedie's formula, D - y = noise^2 grad log p(y). The gradient changes little with
the noise where the noise is small. Below the smallest noise of a schedule, therefore,

    x0 = y + (noise alpha_t / sigma_t)^2 (D(alpha_t y, t) - y)                                                      (1)

with t the last time; for noise 0, this is y itself.

Source: Robbins (1956), Efron, *Tweedie's formula and selection bias* (2011).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, Linear
from adhere.core.denoisers import Denoiser
from adhere.core.operators import Identity
from adhere.core.solvers.base import Solver


@dataclass(frozen=True)
class PosteriorMean(Solver[None]):
    """Returns E[x0 | y] for a `Linear` constraint with one noise and the operator `Identity`; ignores x_t and t."""

    def supports(self, constraint: Constraint) -> bool:
        if not isinstance(constraint, Linear) or isinstance(constraint.noise, Tensor):
            return False
        return isinstance(constraint.operator, Identity)

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        assert isinstance(constraint, Linear) and not isinstance(constraint.noise, Tensor)  # see `supports`
        y, noise = constraint.y.to(x_t).expand_as(x_t), constraint.noise
        s = denoiser.schedule.t_from_log_snr(-math.log(max(noise, 1e-6)))
        alpha, sigma = denoiser.schedule(s)
        fraction = min(1.0, (noise * alpha / sigma) ** 2)
        return x_t, y + fraction * (denoiser(alpha * y, s) - y), None  # (1)
