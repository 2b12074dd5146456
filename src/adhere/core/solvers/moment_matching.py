"""Moment matching, forward only: the conditional mean E[x0 | x_t, y] of a linear constraint y = A x0 + noise, by GMRES.

With V_t = Cov[x0 | x_t] = (sigma_t^2 / alpha_t) J (Tweedie's second-order formula) and a Gaussian approximation of
x0 given x_t (exact for a Gaussian prior),

    E[x0 | x_t, y] = x0 + V_t A^T u,     (noise^2 I + A V_t A^T) u = y - A x0            (1)

as in TMPD (Boys et al., 2023) and MMPS (Rozet et al., 2024), which apply J^T by backpropagation. Here every product
V_t A^T q is one forward difference of the denoiser, J A^T q, legitimate because J of the exact denoiser is symmetric.
A trained network's J is only nearly so, hence GMRES (Saad & Schultz, 1986), which needs no symmetry, and not conjugate
gradients. m iterations cost m evaluations, and their products already give V_t A^T u for free: 1 + m per noise level.

Where the directions go matters more than how many levels there are (docs/lab/solvers-on-exact-priors.md): V_t is far
from a multiple of I where the picture is decided, at high noise, and nearly one at the end. So m can `fall`, linearly
in log-SNR, to one.

A loss is a single measurement, <e, x0' - x0> / |e| = C(x0) / |e|, and has no second direction: further evaluations
take its tangent anew at the last mean and go on from there: Newton's method for C = 0 along V_t e. (With noise that
would count the measurement several times.)

A measurement without noise fixes what it sees: there the conditional mean is y itself, whatever V_t. So the result is
projected onto y at the end, which costs no evaluation; the few Krylov directions tell the unseen part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adhere.core.constraints import Constraint, Linear, dot, is_linearisable, linearise, sum_of, within
from adhere.core.denoise import Denoiser, jacobian_product, per_sample
from adhere.core.sample import Memory
from adhere.core.schedule import check_signal


@dataclass(frozen=True)
class MomentMatching:
    """`m` GMRES iterations per noise level; with `fall`, m up to its first log-SNR, from there fewer, 1 at its second.

    `noise_floor`: the least measurement noise assumed in (1), in units of the image; it keeps the small system well
    conditioned when the constraint is exact. Raises ValueError for settings that mean nothing, TypeError for a
    constraint that is not `Linearisable`.
    """

    m: int = 3
    fall: tuple[float, float] | None = None
    noise_floor: float = 0.01

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"m = {self.m}: at least one GMRES iteration is needed")
        if self.fall is not None and not self.fall[0] < self.fall[1]:
            raise ValueError(f"fall = {self.fall}: two log-SNRs, from that of m rising to that of one direction")
        if not self.noise_floor >= 0:
            raise ValueError(f"noise_floor = {self.noise_floor}: a standard deviation is at least 0")

    def directions(self, log_snr: float) -> int:
        """How many at this noise level."""
        if self.fall is None:
            return self.m
        full, one = self.fall
        return round(1 + (self.m - 1) * min(1.0, max(0.0, (one - log_snr) / (one - full))))

    def serves(self, constraint: Constraint) -> bool:
        return is_linearisable(constraint)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        alpha_t, sigma_t = denoiser.schedule(t)
        check_signal(alpha_t, "moment_matching")
        x0 = denoiser(x_t, t)
        linear = linearise(constraint, x0, "moment_matching")
        product = partial(jacobian_product, denoiser, x_t, t, x0)  # J v, one evaluation
        m = self.directions(math.log(alpha_t / sigma_t))
        most = linear.y[0].numel()  # directions there are: of a loss, one
        mean = conditional_mean(linear, x0, alpha_t, sigma_t, product, min(m, most), self.noise_floor)
        again = most == 1 and linear is not constraint and linear.noise <= self.noise_floor
        for _ in range(m - 1 if again else 0):
            linear = linearise(constraint, mean, "moment_matching")
            mean = conditional_mean(linear, mean, alpha_t, sigma_t, product, 1, self.noise_floor)
        exact = linear is constraint and linear.noise == 0
        return x_t, linear.project(mean) if exact else mean, None


def conditional_mean(
    linear: Linear,
    x0: Tensor,
    alpha_t: float,
    sigma_t: float,
    product: Callable[[Tensor], Tensor],
    m: int,
    noise_floor: float,
) -> Tensor:
    """(1) by m GMRES iterations; product: v -> J v, image space to image space, for which `mmps` has J^T v."""
    variance = max(linear.noise, noise_floor) ** 2 * alpha_t / sigma_t**2  # of (1), all divided by V_t / J
    along = lambda q: product(linear.operator.adjoint(q))  # noqa: E731
    step = gmres_correction(along, linear.operator, variance, linear.residual(x0), m)
    return x0 + within(linear.radius, step)


def gmres_correction(
    product: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    variance: float,
    residual: Tensor,
    m: int,
) -> Tensor:
    """J A^T u for the u that minimises |residual - (variance I + A J A^T) u| over the m-dimensional Krylov space.

    product: q -> J A^T q. Arnoldi with modified Gram-Schmidt, all samples at once, each with its own coefficients. A
    sample whose Krylov space is exhausted (or whose residual is zero) gets zero further directions and stops changing.
    """
    if m < 1:
        raise ValueError(f"m = {m}: at least one GMRES iteration is needed")
    tiny = torch.finfo(residual.dtype).tiny
    beta = dot(residual, residual).sqrt()  # (B, 1, ..., 1)
    basis = [residual / beta.clamp_min(tiny)]
    products: list[Tensor] = []
    batch = len(residual)
    hessenberg = residual.new_zeros(batch, m + 1, m)
    for j in range(m):
        products.append(product(basis[j]))
        w = torch.add(operator(products[j]), basis[j], alpha=variance)
        scale = dot(w, w).sqrt()
        for i, q in enumerate(basis):
            h = dot(q, w)
            hessenberg[:, i, j] = h.flatten()
            w = w - h * q
        norm = dot(w, w).sqrt()
        exhausted = norm <= 1e-6 * scale
        hessenberg[:, j + 1, j] = torch.where(exhausted, 0, norm).flatten()
        if j + 1 < m:
            basis.append(w * torch.where(exhausted, 0, 1 / norm.clamp_min(tiny)))
    target = residual.new_zeros(batch, m + 1, 1)
    target[:, 0, 0] = beta.flatten()
    coefficients = torch.linalg.pinv(hessenberg, rtol=1e-6) @ target  # (B, m, 1); pinv, as exhausted columns are zero
    return sum_of([per_sample(coefficients[:, j, 0], part) * part for j, part in enumerate(products)])
