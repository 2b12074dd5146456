"""Inexact Newton: moves of x_t along J e, a forward directional derivative of the denoiser, without a backward pass.

    g = [D(x_t + delta e) - x0] / delta          the paper's finite difference, one evaluation

Newton's method for the constraint would solve J dx = e. J is nearly a covariance, so J e is a descent direction. The
method approaches the constraint, but does not sample the exact posterior: the variance of its samples is too small
(`python -m benchmarks.posterior`).

Source: Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models* (2025), algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import jvp
from adhere.core.solvers.descent import Descent


@dataclass(frozen=True)
class InexactNewton(Descent):
    """`Descent` along J e: 1 + 2 num_iterations evaluations per noise level."""

    def product(self, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        x0 = denoiser(x_t, t)
        return x0, lambda e: jvp(denoiser, x_t, t, x0, e)

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) * (1 + 2 * self.num_iterations)
