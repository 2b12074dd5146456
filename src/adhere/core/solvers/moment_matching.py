"""Moment matching: the conditional mean E[x0 | x_t, y] of a constraint y = A x0 + noise n, by forward passes only.

Let D = D(x_t, t) be the denoised image, J the Jacobian of the denoiser, and V_t = Cov[x0 | x_t] = (sigma_t^2 / alpha_t)
J (Tweedie's second-order formula). With a Gaussian approximation of x0 given x_t, which is exact for a Gaussian prior,

    E[x0 | x_t, y] = D + V_t A^T u,     (noise^2 I + A V_t A^T) u = y - A D.              (1)

The system is solved by k iterations of GMRES. Each takes one product J A^T q, a forward difference of the denoiser, and
the products also give V_t A^T u, so a noise level takes 1 + k evaluations. With few iterations the system is solved
only roughly, so unmeasured pixels follow y less than they should. The exact J is symmetric, so J replaces the J^T of
TMPD and MMPS; the J of a trained network is only nearly symmetric, hence GMRES and not conjugate gradients.

At high noise, a Gaussian is a poor approximation: x_t is compatible with many pictures, of which y selects a few. There
the previous conditional mean says more of x0 than x_t does. While snr_t = alpha_t^2 / sigma_t^2 is below `fusion_snr`,
it is used as an independent observation of x0 with precision gamma = fusion_snr - snr_t. Together with x_t it is
equivalent to the state

    x_fused = (sigma^2 / alpha) (alpha_t / sigma_t^2 x_t + gamma mean)                    (2)

at the time t_fused of `fusion_snr`, whose coefficients are alpha and sigma. This takes no evaluation. It draws x0
towards the mean, which reduces the variance of samples. For a Gaussian prior and the mean of the current noise level,
it would change nothing.

One noise level of the default preset, in short (lambda_t = log(alpha_t / sigma_t) is called log-SNR):

    x_fused, t_fused = (2) if snr_t < 0.05 and there is a previous mean, else x_t, t
    x0   = D(x_fused, t_fused)                      1 evaluation
    step = V A^T u of (1) by GMRES                  2 evaluations up to lambda_t = -2, 1 from 0.2 on, rounded between
    mean = x0 + step, projected onto A x0 = y if noise = 0
    return x_t, mean                                the transition goes on from these

The preset (`adhere.core.presets`) has 10 noise levels with lambda from -3.5 to 4: 10 denoisings and 14 products make 24
evaluations. Its transition adds noise of half the standard deviation (temperature 0.5), hence less grain and variety.

Details:
- The number of iterations may depend on the noise level, since V_t is far from a multiple of the identity at middle
  noise levels and nearly one at low noise (docs/experiments/solvers-on-exact-priors.md).
- An operator that is not tight (A A^T is no multiple of the identity), such as a blur, gets a preconditioner that takes
  no evaluation: the system (1) for V_t = v I.
- The linearization of a loss has one measurement, so GMRES has one direction, V_t e with e = -grad of the loss.
  Further iterations linearize it again at the current mean, as Newton's method does.
- A measurement without noise is met exactly: the mean is projected onto it.

Source: TMPD: Boys et al. (2023); MMPS: Rozet et al. (2024); GMRES: Saad and Schultz (1986); observations as factors:
Minka, *Expectation propagation* (2001).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from adhere.core._linalg import clip_rms, dot, gmres, safe_divide
from adhere.core.constraints import Constraint, Linear, Linearization
from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import jvp
from adhere.core.schedules import Schedule, check_signal, log_snr
from adhere.core.solvers.base import Solver

_PRECONDITIONER_VARIANCE = 0.1  # prior variance of a pixel; the result depends little on it
_LOSS_REFINE_MIN_LOG_SNR = 2.0  # above it V_t is nearly a multiple of the identity, so a step along e needs no product


@dataclass(frozen=True)
class MomentMatching(Solver[Tensor]):
    """The conditional mean (1) at each noise level; its memory is the mean of the previous one.

    Attributes:
        num_iterations: GMRES iterations per noise level, at least 1: one number, or pairs (log-SNR, number) with
            increasing log-SNR, between which the number is interpolated.
        noise_floor: the smallest measurement noise in (1), in image units. It keeps the system well conditioned.
        fusion_snr: the SNR exp(2 log-SNR) below which the previous mean is fused by (2); 0 never fuses.

    Raises:
        ValueError: for settings out of range.
    """

    num_iterations: int | tuple[tuple[float, int], ...] = ((-2.0, 2), (0.2, 1))
    noise_floor: float = 0.01
    fusion_snr: float = 0.05

    def __post_init__(self) -> None:
        pairs = self._pairs
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"num_iterations = {self.num_iterations!r}: give an integer, or pairs (log-SNR, integer)")
        if not all(type(number) is int and number >= 1 for _, number in pairs):
            raise ValueError(f"num_iterations = {self.num_iterations!r}: each must be an integer of at least 1")
        if not all(a < b for (a, _), (b, _) in pairwise((*pairs, (math.inf, 1)))):
            raise ValueError(f"num_iterations = {self.num_iterations!r}: the log-SNRs of the pairs must increase")
        if not self.noise_floor >= 0:
            raise ValueError(f"noise_floor = {self.noise_floor}: a standard deviation must be at least 0")
        if not 0 <= self.fusion_snr < math.inf:
            raise ValueError(f"fusion_snr = {self.fusion_snr}: a ratio of variances must be finite and at least 0")

    @property
    def _pairs(self) -> tuple[tuple[float, int], ...]:
        return self.num_iterations if isinstance(self.num_iterations, tuple) else ((0.0, self.num_iterations),)

    def iterations_at(self, log_snr: float) -> int:
        """Return the number of GMRES iterations at a noise level."""
        (left, k), *rest = self._pairs
        for right, n in rest:
            if log_snr < right:
                return round(k + (n - k) * max(0.0, log_snr - left) / (right - left))
            left, k = right, n
        return k

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return sum(1 + self.iterations_at(one) for one in log_snrs)

    def supports(self, constraint: Constraint) -> bool:
        return constraint.is_linearizable

    def fuse_previous_mean(
        self, schedule: Schedule, x_t: Tensor, t: float, mean: Tensor | None
    ) -> tuple[Tensor, float]:
        """Return (x_fused, t_fused) of equation (2), or (x_t, t) if there is no mean or snr_t >= fusion_snr."""
        alpha_t, sigma_t = schedule(t)
        snr_t = (alpha_t / sigma_t) ** 2
        if mean is None or snr_t >= self.fusion_snr:
            return x_t, t
        t_fused = schedule.t_from_log_snr(math.log(self.fusion_snr) / 2)
        alpha_f, sigma_f = schedule(t_fused)
        gamma = (alpha_f / sigma_f) ** 2 - snr_t  # a discrete schedule has only the nearest time
        return (sigma_f**2 / alpha_f) * (alpha_t / sigma_t**2 * x_t + gamma * mean), t_fused

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        lambda_t = log_snr(denoiser.schedule, t)
        check_signal(denoiser.schedule(t)[0], "moment_matching")
        num_iterations = self.iterations_at(lambda_t)

        x_fused, t_fused = self.fuse_previous_mean(denoiser.schedule, x_t, t, memory)
        x0 = denoiser(x_fused, t_fused)
        linear = constraint.linearize(x0)
        product = partial(jvp, denoiser, x_fused, t_fused, x0)  # v -> J v, one evaluation
        alpha_f, sigma_f = denoiser.schedule(t_fused)
        solve = partial(
            conditional_mean, alpha_t=alpha_f, sigma_t=sigma_f, product=product, noise_floor=self.noise_floor
        )

        measurement_size = linear.y[0].numel()
        mean = solve(linear, x0, num_iterations=min(num_iterations, measurement_size))
        if not isinstance(linear, Linearization):
            mean = linear.project(mean) if linear.noise == 0 else mean
        elif measurement_size == 1 and linear.noise <= self.noise_floor:
            for _ in range(num_iterations - 1):
                linear = constraint.linearize(mean)
                mean = solve(linear, mean, num_iterations=1)
            if lambda_t > _LOSS_REFINE_MIN_LOG_SNR:
                mean = _refine_loss(constraint, mean)
        return x_t, mean, mean


def conditional_mean(
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
        product: v -> J v on images; `mmps` passes J^T v.
        num_iterations: the number of products.
        noise_floor: the smallest measurement noise, in image units.
    """
    A, noise = linear.operator, max(linear.noise, noise_floor)
    damping = noise**2 * alpha_t / sigma_t**2  # (1) divided by sigma_t^2 / alpha_t, so that J stands for V_t
    preconditioner = None
    if not (isinstance(linear, Linearization) or A.is_tight):  # the products of a linearization may take a decoding
        variance = 1 / (1 / _PRECONDITIONER_VARIANCE + (alpha_t / sigma_t) ** 2)  # of x0 given x_t, per pixel
        preconditioner = partial(A.solve_normal, damping=noise**2 / variance, tolerance=0.01)
    covariance_times_u = gmres(
        lambda q: product(A.adjoint(q)), A, damping, linear.residual(x0), num_iterations, preconditioner
    )
    return x0 + clip_rms(covariance_times_u, linear.max_step_rms)


def _refine_loss(constraint: Constraint, mean: Tensor) -> Tensor:
    """Return the mean after two Newton steps along the negative gradient, which take no evaluation."""
    for _ in range(2):
        linear = constraint.linearize(mean)
        residual = linear.residual(mean)
        step = linear.operator.adjoint(residual)
        gain = safe_divide(dot(residual, linear.operator(step)), dot(residual, residual))  # 1 without a decoder
        mean = mean + clip_rms(step / gain.clamp_min(1), linear.max_step_rms)
    return mean
