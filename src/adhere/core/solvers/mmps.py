"""Moment matching posterior sampling: the conditional mean of a linear constraint, by backward passes.

Rozet et al., *Learning diffusion priors from observations by expectation maximization* (2024), section 4.2: the mean
(1) of `moment_matching`, E[x0 | x_t, y] = x0 + V_t A^T u with (noise^2 I + A V_t A^T) u = y - A x0, whose products
V_t A^T q = (sigma_t^2 / alpha_t) J^T A^T q are backward passes through one evaluation of the network: per noise level 1
evaluation and m backward passes, each of about two evaluations' time, with every activation held in memory. The paper
solves by conjugate gradients, a few iterations; here it is GMRES, as the J of a trained network is not symmetric.
"""

from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, is_linearisable, linearise
from adhere.core.denoise import Denoiser, pullback
from adhere.core.sample import Memory
from adhere.core.schedule import check_signal
from adhere.core.solvers.moment_matching import conditional_mean


@dataclass(frozen=True)
class MMPS:
    """`m` GMRES iterations per noise level; `noise_floor`, and what it raises, as in `MomentMatching`."""

    m: int = 3
    noise_floor: float = 0.01

    def serves(self, constraint: Constraint) -> bool:
        return is_linearisable(constraint)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        alpha_t, sigma_t = denoiser.schedule(t)
        check_signal(alpha_t, "mmps")
        x0, transposed = pullback(lambda x: denoiser(x, t), x_t, reuse=True)
        linear = linearise(constraint, x0, "mmps")
        m = min(self.m, linear.y[0].numel())  # a loss has one direction
        return x_t, conditional_mean(linear, x0, alpha_t, sigma_t, transposed, m, self.noise_floor), None
