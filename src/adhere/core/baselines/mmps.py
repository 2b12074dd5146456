"""Moment matching posterior sampling: the conditional mean of a linear constraint, by backward passes.

The mean is that of `adhere.core.solvers.moment_matching`, equation (1), but the products
V_t A^T q = (sigma_t^2 / alpha_t) J^T A^T q are backward passes through one evaluation of the network. Each takes about
the time of two evaluations, and the activations are held in memory. The paper solves by conjugate gradients; GMRES is
used here, since the J of a trained network is not symmetric.

Source: Rozet et al., *Learning diffusion priors from observations by expectation maximization* (2024), section 4.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from adhere.core._linalg import clip_rms, gmres
from adhere.core.constraints import Constraint, Linear, Linearization
from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import vjp
from adhere.core.operators import _at_least, _solve_normal
from adhere.core.schedules import check_signal
from adhere.core.solvers.base import Solver

_PRECONDITIONER_VARIANCE = 0.1  # prior variance of a pixel; a thirtieth of it works as well


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
        return x_t, _conditional_mean(linear, x0, alpha_t, sigma_t, transposed, num_iterations, self.noise_floor), None


def _conditional_mean(
    linear: Linear,
    x0: Tensor,
    alpha_t: float,
    sigma_t: float,
    product: Callable[[Tensor], Tensor],
    num_iterations: int,
    noise_floor: float,
) -> Tensor:
    """Return the conditional mean (1), (B, ...), by GMRES.

    Args:
        linear: the linear constraint y = A x0 + noise.
        x0: the denoised image, (B, ...).
        alpha_t, sigma_t: the coefficients of the noise level.
        product: v -> J v on images.
        num_iterations: the number of products.
        noise_floor: the smallest measurement noise, in image units.
    """
    A, noise = linear.operator, _at_least(linear.noise, noise_floor)
    damping = noise**2 * alpha_t / sigma_t**2  # (1) divided by sigma_t^2 / alpha_t, so that J stands for V_t
    preconditioner = None
    if not (isinstance(linear, Linearization) or A.is_tight):  # the products of a linearization may take a decoding
        variance = 1 / (1 / _PRECONDITIONER_VARIANCE + (alpha_t / sigma_t) ** 2)  # of x0 given x_t, per pixel
        preconditioner = partial(_solve_normal, A, damping=noise**2 / variance, tolerance=0.01)
    covariance_times_u = gmres(
        lambda q: product(A.adjoint(q)), A, damping, linear.residual(x0), num_iterations, preconditioner
    )
    return x0 + clip_rms(covariance_times_u, linear.max_step_rms)
