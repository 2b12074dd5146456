"""Moment matching: the conditional mean E[x0 | x_t, y] of a linear constraint y = A x0 + noise, by forward passes only.

Let D = D(x_t, t) = E[x0 | x_t] be the denoised image and V = Cov[x0 | x_t]. With a Gaussian approximation of x0 given
x_t, which is exact for a Gaussian prior,

    E[x0 | x_t, y] = D + V A^T u,     (noise^2 I + A V A^T) u = y - A D.                                           (1)

V is modeled by the posterior covariance of a Gaussian prior with the power spectrum S of photographs or latents,

    V_w = F^-1 S (I + snr S)^-1 F,     snr = alpha_t^2 / sigma_t^2,     F the Fourier transform,                   (2)

see `adhere.core.covariance`. It takes no evaluation, so that each noise level takes one evaluation. The noise is at
least `noise_floor` in image units, which in units of y is noise_floor |A^T r| / |r|, with the residual r. For a
measurement without noise, m is projected onto A x0 = y. The steps of a noise level follow in the order of the code.

Fusion. At high noise, x_t is compatible with many pictures, of which y selects a few, so the conditional mean m of the
previous noise level says more about x0 than x_t does. While snr is below `fusion_snr`, m is used as an independent
observation of x0 with precision gamma = fusion_snr - snr. Together with x_t it is equivalent to the state

    x = (sigma^2 / alpha) (alpha_t / sigma_t^2 x_t + gamma m)                                                      (6)

at the time of `fusion_snr`, whose coefficients are alpha and sigma. It takes no evaluation. In (3) to (5), x_t, t and
snr are then those of the fused state.

Tilt. Let eta = alpha_t x_t / sigma_t^2, the natural parameter of x_t, which is not the eta of DDIM. Adding A^T u to eta
means to evaluate D at x_t + (sigma_t^2 / alpha_t) A^T u. For any prior, the result is exactly the mean of x0 given x_t,
reweighted by exp(u^T A x0), the part of the likelihood of y that is linear in x0. With a prediction u_0 of u, the
evaluation of the network therefore takes y into account. From m, which belonged to (eta_m, snr_m),

    m' = m + V_w [(eta - eta_m) - (snr - snr_m) m]                        the expected mean at x_t                 (3)
    u_0 = (noise^2 I + A A^T / snr)^-1 (y - A m')                         V = I / snr, for a cautious tilt         (4)
    x0 = D(x_t + (sigma_t^2 / alpha_t) A^T u_0)                           the evaluation
    (noise^2 I + A V_w A^T) u = y - A x0 - noise^2 u_0,     m = x0 + V_w A^T u                                     (5)

To first order, x0 = D + V A^T u_0. With V = V_w, (5) therefore says that u_0 + u solves (1).

The next noise level gets m, eta_m = eta + A^T (u_0 + u) and snr_m = snr. For a Gaussian prior with posterior covariance
V_w, the tilt changes nothing. (4) and (5) are solved in closed form or by a fixed number of conjugate residuals. If
each entry has a noise of its own, (5) is first scaled on both sides by (noise^2 + v)^(-1/2), with v the mean variance
in V_w.

Jacobian products. At some noise levels, d = V s along s = A^T u is measured by a forward difference of the denoiser,
one evaluation each (Tweedie's second-order formula, V = (sigma_t^2 / alpha_t) J). V is then the BFGS update of V_w with
V s = d, and (5) is solved again.

Other constraints. A loss, a nonlinear measurement and any constraint through a decoder are linearized at m' for (4) and
at x0 for (5). The changes V A^T u_0 and V_w A^T u are shortened to a root mean square of at most `max_step_rms` of the
linearization. For the first two, Gauss-Newton steps follow, which linearize them again at the mean.

Source: Gaussian approximation: TMPD (Boys et al., 2023) and MMPS (Rozet et al., 2024), which use J^T by
backpropagation; updates of a covariance during sampling: Free Hunch (arXiv 2410.11149); tilting and factors: Minka,
*Expectation propagation* (2001).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from adhere.core._linalg import (
    bfgs_product,
    clip_rms,
    conjugate_residuals,
    dot,
    iterations_needed,
    minimal_residual_step,
    per_sample,
    safe_divide,
)
from adhere.core.constraints import Constraint, Linear, Linearization
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import jvp
from adhere.core.operators import _noise_variance, _solve_normal, _squared_gain
from adhere.core.schedules import Schedule, check_signal, log_snr
from adhere.core.solvers.base import Solver
from adhere.errors import InvalidInput

_Memory = tuple[Tensor, Tensor, float]  # m, eta_m + A^T (u_0 + u), snr_m
_Product = Callable[[Tensor], Tensor]  # v -> V v
_Products = Sequence[_Product]


@dataclass(frozen=True)
class MomentMatching(Solver[_Memory]):
    """The conditional mean (5) at each noise level.

    Attributes:
        covariance: V_w; that of the model, or `StationaryCovariance.default` for the number of channels, if None.
        fusion_snr: the SNR exp(2 log-SNR) below which the previous mean is fused by (6); 0 never fuses.
        jacobian_products: the number of Jacobian products at each of one half of the noise levels.
        product_center: the log-SNR around which these noise levels are; -infinity for those of highest noise.
        num_iterations: the largest number of conjugate residuals per linear system; it is one for a constraint that is
            linearized, since each product with its operator may take a decoding.
        tolerance: the relative residual of (5) at which fewer conjugate residuals are enough. Where A A^T is a multiple
            of the identity, their number is computed beforehand from the condition number of V_w, which is small at low
            noise.
        nonlinear_steps: further Gauss-Newton steps per noise level for a nonlinear constraint. They take no evaluation.
        tilt_max_log_snr: the log-SNR above which there is no tilt for a constraint through a decoder, where a tilt
            changes little but takes two decodings.
        noise_floor: the smallest measurement noise, in image units.
        product_log_snrs: the log-SNRs of the Jacobian products; `prepare` sets it.

    Raises:
        ValueError: for settings out of range, and if it is called with Jacobian products but without `prepare`.
    """

    covariance: StationaryCovariance | None = None
    fusion_snr: float = 0.1
    jacobian_products: int = 0
    product_center: float = 0.0
    num_iterations: int = 6
    tolerance: float = 0.02
    nonlinear_steps: int = 3
    tilt_max_log_snr: float = 0.5
    noise_floor: float = 0.01
    product_log_snrs: frozenset[float] | None = None

    def __post_init__(self) -> None:
        least = {"fusion_snr": 0.0, "tolerance": 0.0, "noise_floor": 0.0, "jacobian_products": 0, "num_iterations": 1}
        self._check_least(least | {"nonlinear_steps": 0, "product_center": -math.inf, "tilt_max_log_snr": -math.inf})

    def supports(self, constraint: Constraint) -> bool:
        return constraint.is_linearizable

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) + self.jacobian_products * (len(log_snrs) // 2)

    def with_covariance(self, covariance: StationaryCovariance) -> "MomentMatching":
        return replace(self, covariance=covariance) if self.covariance is None else self

    def prepare(self, log_snrs: Sequence[float]) -> "MomentMatching":
        distance = lambda one: abs(one - max(self.product_center, log_snrs[0]))  # noqa: E731
        return replace(self, product_log_snrs=frozenset(sorted(log_snrs, key=distance)[: len(log_snrs) // 2]))

    def fused_state(self, schedule: Schedule, x_t: Tensor, t: float, mean: Tensor | None) -> tuple[Tensor, float]:
        """Return x of equation (6) and its time, or (x_t, t) if there is no mean or snr >= fusion_snr."""
        alpha_t, sigma_t = schedule(t)
        snr_t = (alpha_t / sigma_t) ** 2
        if mean is None or snr_t >= self.fusion_snr:
            return x_t, t
        s = schedule.t_from_log_snr(math.log(self.fusion_snr) / 2)
        alpha, sigma = schedule(s)
        gamma = (alpha / sigma) ** 2 - snr_t  # a discrete schedule has only the nearest time
        return (sigma**2 / alpha) * (alpha_t / sigma_t**2 * x_t + gamma * mean), s  # (6)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: _Memory | None
    ) -> tuple[Tensor, Tensor, _Memory]:
        check_signal(denoiser.schedule(t)[0], "moment_matching")
        if self.jacobian_products and self.product_log_snrs is None:
            raise InvalidInput(
                "jacobian_products without noise levels: call prepare(log_snrs), or run it by trajectory"
            )
        lambda_t = log_snr(denoiser.schedule, t)
        x, s = self.fused_state(denoiser.schedule, x_t, t, None if memory is None else memory[0])
        alpha, sigma = denoiser.schedule(s)
        snr, scale = (alpha / sigma) ** 2, sigma**2 / alpha
        V = partial(self._covariance(x_t).product, snr=snr)  # (2)

        u_0 = 0.0
        if memory is not None and not (constraint.needs_decoding and lambda_t > self.tilt_max_log_snr):
            m, eta_m, snr_m = memory
            expected = V((x / scale).sub_(eta_m).sub_(m, alpha=snr - snr_m)).add_(m)  # (3)
            u_0, tilt = self._tilt(constraint, expected, snr)  # (4)
            x = torch.add(x, tilt, alpha=scale)
            del expected, tilt  # for large pictures, each of them takes much memory
        x0 = denoiser(x, s)

        network_V = lambda v: scale * jvp(denoiser, x, s, x0, v)  # noqa: E731
        products = [network_V] * (self.jacobian_products if lambda_t in (self.product_log_snrs or ()) else 0)
        linear = constraint.linearize(x0)
        if isinstance(linear, Linearization):
            mean, step = self._nonlinear_mean(constraint, linear, x0, u_0, V, products)
        else:
            mean, step = self._linear_mean(linear, x0, u_0, snr, products)
        return x_t, mean, (mean, torch.add(step, x, alpha=1 / scale), snr)

    def _covariance(self, x: Tensor) -> StationaryCovariance:
        return self.covariance or StationaryCovariance.default(x.shape[1])

    def _linear_mean(
        self, linear: Linear, x0: Tensor, u_0: Tensor | float, snr: float, products: _Products
    ) -> tuple[Tensor, Tensor]:
        """Return m and A^T u of (5), where `products` multiply by the network's own V."""
        A, covariance, count = linear.operator, self._covariance(x0), self.num_iterations
        if A.is_tight and not products:  # the condition number of (5) is known
            count = iterations_needed(covariance.condition_number(snr), self.tolerance, count)
        variance, residual = self._variance_and_residual(linear, linear, x0)
        pairs: list[tuple[Tensor, Tensor]] = []
        V = partial(bfgs_product, partial(covariance.product, snr=snr), pairs)
        matrix = lambda u: variance * u + A(V(A.adjoint(u)))  # noqa: E731
        gain = _squared_gain(A, residual) if isinstance(linear.noise, Tensor) else None
        residual = residual - variance * u_0
        solve = partial(conjugate_residuals, matrix, residual, count, tolerance=0.0)
        if gain is not None:  # otherwise precise and imprecise entries need many iterations
            p = (variance + covariance.mean_variance(snr) * gain).rsqrt()
            solve = lambda: p * conjugate_residuals(lambda u: p * matrix(p * u), p * residual, count, 0.0)  # noqa: E731
        step = A.adjoint(solve())
        for product in products:
            pairs.append((step, product(step)))
            step = A.adjoint(solve())
        mean = clip_rms(V(step), linear.max_step_rms).add_(x0)
        return linear.project_exact(mean), step

    def _nonlinear_mean(
        self, constraint: Constraint, linear: Linear, x0: Tensor, u: Tensor | float, V: _Product, products: _Products
    ) -> tuple[Tensor, Tensor]:
        """Return m and A^T u by Gauss-Newton steps from x0; the first use `products` in place of V.

        Each step takes one conjugate residual, since a product with the operator may take a decoding. All but the
        first linearize the constraint again.
        """
        mean, total = x0, torch.zeros_like(x0)
        for i in range(max(len(products), 1 + self.nonlinear_steps * constraint.is_nonlinear)):
            linear = constraint.linearize(mean) if i else linear
            variance, residual = self._variance_and_residual(constraint, linear, mean)
            A, product = linear.operator, products[i] if i < len(products) else V
            du, step, change = minimal_residual_step(A, A.adjoint, product, variance, residual - variance * u)
            mean = mean + constraint.limit_step(mean, clip_rms(change, linear.max_step_rms))
            u, total = u + du, total + step  # the memory gets the steps before they are shortened
        return mean, total

    def _tilt(self, constraint: Constraint, expected: Tensor, snr: float) -> tuple[Tensor, Tensor]:
        """Return u_0 of (4) and A^T u_0."""
        linear = constraint.linearize(expected)
        A, (variance, residual) = linear.operator, self._variance_and_residual(constraint, linear, expected)
        if isinstance(linear, Linearization):
            u_0, tilt, change = minimal_residual_step(A, A.adjoint, lambda v: v / snr, variance, residual)
            shortened = clip_rms(change, linear.max_step_rms)
            fraction = safe_divide(dot(shortened, change), dot(change, change)).flatten()
            return per_sample(fraction, u_0) * u_0, per_sample(fraction, tilt) * tilt
        u_0 = snr * _solve_normal(A, residual, snr * variance, self.num_iterations, tolerance=0.01)
        return u_0, A.adjoint(u_0)

    def _variance_and_residual(self, constraint: Constraint, linear: Linear, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise^2, at least noise_floor^2 in image units, and the residual y - A x0; they broadcast."""
        residual = linear.residual(x0)
        A, floor, decodes = linear.operator, self.noise_floor, constraint.needs_decoding
        return _noise_variance(A, linear.noise, residual, floor, decodes), residual
