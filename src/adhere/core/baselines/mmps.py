"""Moment matching posterior sampling: the conditional mean of a linear constraint, by backward passes.

The mean is that of `adhere.core.solvers.moment_matching`, equation (1), but the products
V_t A^T q = (sigma_t^2 / alpha_t) J^T A^T q are backward passes through one evaluation of the network. Each takes about
the time of two evaluations, and the activations are held in memory. The paper solves by conjugate gradients; GMRES is
used here, since the J of a trained network is not symmetric.

Source: Rozet et al., *Learning diffusion priors from observations by expectation maximization* (2024), section 4.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import vjp
from adhere.core.schedules import check_signal
from adhere.core.solvers.base import Solver
from adhere.core.solvers.moment_matching import conditional_mean


@dataclass(frozen=True)
class MMPS(Solver[None]):
    """One evaluation and num_iterations backward passes per noise level, for a constraint that can be linearized.

    Attributes:
        num_iterations: the GMRES iterations per noise level, at least 1.
        noise_floor: the smallest measurement noise in equation (1).
    """

    num_iterations: int = 3
    noise_floor: float = 0.01

    def supports(self, constraint: Constraint) -> bool:
        return constraint.is_linearizable

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs)

    def backward_passes(self, log_snrs: Sequence[float]) -> int:
        return len(log_snrs) * self.num_iterations

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        alpha_t, sigma_t = denoiser.schedule(t)
        check_signal(alpha_t, "mmps")
        x0, transposed = vjp(lambda x: denoiser(x, t), x_t, retain_graph=True)
        linear = constraint.linearize(x0)
        num_iterations = min(self.num_iterations, linear.y[0].numel())  # a loss has one direction
        return x_t, conditional_mean(linear, x0, alpha_t, sigma_t, transposed, num_iterations, self.noise_floor), None
