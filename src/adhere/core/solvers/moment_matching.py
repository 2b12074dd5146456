"""Moment matching, forward only: the conditional mean E[x0 | x_t, y] of a linear constraint y = A x0 + noise, by GMRES.

With V_t = Cov[x0 | x_t] = (sigma_t^2 / alpha_t) J (Tweedie's second-order formula) and a Gaussian approximation of
x0 given x_t (exact for a Gaussian prior),

    E[x0 | x_t, y] = x0 + V_t A^T u,     (noise^2 I + A V_t A^T) u = y - A x0            (1)

as in TMPD (Boys et al., 2023) and MMPS (Rozet et al., 2024), which apply J^T by backpropagation. Here every product
V_t A^T q is one forward difference of the denoiser, J A^T q, legitimate because J of the exact denoiser is symmetric.
A trained network's J is only nearly so, hence GMRES (Saad & Schultz, 1986), which needs no symmetry, and not conjugate
gradients. m iterations cost m evaluations, and their products already give V_t A^T u for free: 1 + m per noise level.

A Gaussian is a poor account of what is open where there is much noise: x_t leaves many kinds of picture, y but one or
two of them. There the last level's mean r says more of x0 than x_t does. So while snr_t = alpha_t^2 / sigma_t^2 is
below `snr_floor`, (1) is taken about r: of x_t and r together, as if r were x0 + n / gamma^(1/2), which are what

    x = (sigma^2 / alpha) (alpha_t / sigma_t^2 x_t + gamma r),     gamma = snr_floor - snr_t                      (2)

is at the time of `snr_floor`. It costs no evaluation, and where r is E[x0 | x_t, y] of a Gaussian prior, so is what
comes out. Otherwise it is pulled towards r, all the more the less y says; with nothing asked, a run settles early and
varies too little, and x has less noise than the network is told. With a mixture that is the lesser evil (in runs on
exact priors, docs/lab/solvers-on-exact-priors.md, errors of the mean fall from 1.7 to 1.3 times the floor, from 2.9 to
2.1 times); with trained networks only a little of it is. Factors that look alike are expectation propagation's (Minka,
2001).

Where the directions go matters more than how many levels there are (same page): V_t is far from a multiple of I where
the picture is decided, and nearly one at the end. So `m` can vary with the noise.

An operator that sees some of the image much more weakly than the rest, as a blur does, needs many directions. They
are fewer by a preconditioner that costs no evaluation: the system of an image of independent pixels, solved in closed
form for `Invertible` operators, by some thirty products with A and A^T for others. Stand-ins of curved constraints and
of sums are not preconditioned.

A loss is a single measurement, <e, x0' - x0> / |e| = C(x0) / |e|, and has no second direction: further evaluations
take its tangent anew at the last mean and go on from there: Newton's method for C = 0 along V_t e. (With noise that
would count the measurement several times.) Where little noise is left V_t is nearly a multiple of I, and two tangents
more go along e itself: no evaluation, though through a decoder a decoding and an encoding each.

A measurement without noise fixes what it sees: there the conditional mean is y itself, whatever V_t. So the result is
projected onto y at the end, which costs no evaluation; the few Krylov directions tell the unseen part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from adhere.core.constraints import Constraint, Linear, Tangent, dot, is_linearisable, linearise, ratio, sum_of, within
from adhere.core.denoise import Denoiser, jacobian_product, per_sample
from adhere.core.operators import is_even
from adhere.core.sample import Memory
from adhere.core.schedule import Schedule, check_signal

LITTLE_NOISE = 2.0  # a log-SNR
USUAL_VARIANCE = 0.1  # of an image, for the preconditioner: thirty times less does as well


@dataclass(frozen=True)
class MomentMatching:
    """`m` GMRES iterations per noise level: as many at all, or pairs (log-SNR, m), between which m is interpolated.

    `noise_floor`: the least measurement noise assumed in (1), in units of the image; it keeps the small system well
    conditioned when the constraint is exact. `snr_floor`: see (2); a ratio of variances, exp(2 log-SNR); 0 never
    looks at the last mean. Raises ValueError for settings that mean nothing, TypeError for a constraint that is not
    `Linearisable`.
    """

    m: int | tuple[tuple[float, int], ...] = 3
    noise_floor: float = 0.01
    snr_floor: float = 0.0

    def __post_init__(self) -> None:
        pairs = self.m if isinstance(self.m, tuple) else ((0.0, self.m),)
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"m = {self.m!r}: a number of directions, or a tuple of pairs (log-SNR, directions)")
        if not all(type(m) is int and m >= 1 for _, m in pairs):
            raise ValueError(f"m = {self.m!r}: whole numbers of directions, at least one GMRES iteration is needed")
        if not all(a < b for (a, _), (b, _) in pairwise((*pairs, (math.inf, 1)))):
            raise ValueError(f"m = {self.m!r}: pairs (log-SNR, directions), with rising log-SNR")
        if not self.noise_floor >= 0:
            raise ValueError(f"noise_floor = {self.noise_floor}: a standard deviation is at least 0")
        if not 0 <= self.snr_floor < math.inf:
            raise ValueError(f"snr_floor = {self.snr_floor}: a finite ratio of variances is needed, 0 or more")

    def directions(self, log_snr: float) -> int:
        """How many at this noise level."""
        if isinstance(self.m, int):
            return self.m
        (left, m), *rest = self.m
        for right, n in rest:
            if log_snr < right:
                return round(m + (n - m) * max(0.0, log_snr - left) / (right - left))
            left, m = right, n
        return m

    def informed(self, schedule: Schedule, x_t: Tensor, t: float, mean: Tensor | None) -> tuple[Tensor, float]:
        """(2) and its time; x_t and t where there is no last mean, or less noise than `snr_floor` has."""
        alpha_t, sigma_t = schedule(t)
        snr_t = (alpha_t / sigma_t) ** 2
        if mean is None or snr_t >= self.snr_floor:
            return x_t, t
        floor = schedule.time_at(math.log(self.snr_floor) / 2)
        alpha, sigma = schedule(floor)
        gamma = (alpha / sigma) ** 2 - snr_t  # a discrete schedule has only the nearest
        return (sigma**2 / alpha) * (alpha_t / sigma_t**2 * x_t + gamma * mean), floor

    def serves(self, constraint: Constraint) -> bool:
        return is_linearisable(constraint)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        alpha_t, sigma_t = denoiser.schedule(t)
        check_signal(alpha_t, "moment_matching")
        level = math.log(alpha_t / sigma_t)
        m = self.directions(level)
        x, t = self.informed(denoiser.schedule, x_t, t, memory)
        alpha_t, sigma_t = denoiser.schedule(t)
        x0 = denoiser(x, t)
        linear = linearise(constraint, x0, "moment_matching")
        product = partial(jacobian_product, denoiser, x, t, x0)  # J v, one evaluation
        most = linear.y[0].numel()  # directions there are: of a loss, one
        mean = conditional_mean(linear, x0, alpha_t, sigma_t, product, min(m, most), self.noise_floor)
        if most == 1 and linear is not constraint and linear.noise <= self.noise_floor:
            for _ in range(m - 1):
                linear = linearise(constraint, mean, "moment_matching")
                mean = conditional_mean(linear, mean, alpha_t, sigma_t, product, 1, self.noise_floor)
            for _ in range(2 if level > LITTLE_NOISE else 0):
                linear = linearise(constraint, mean, "moment_matching")
                residual = linear.residual(mean)
                step = linear.operator.adjoint(residual)
                gain = ratio(dot(residual, linear.operator(step)), dot(residual, residual))  # 1 for a bare loss
                mean = mean + within(linear.radius, step / gain.clamp_min(1))
        exact = linear is constraint and linear.noise == 0
        mean = linear.project(mean) if exact else mean
        return x_t, mean, mean


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
    noise = max(linear.noise, noise_floor)
    variance = noise**2 * alpha_t / sigma_t**2  # of (1), all divided by V_t / J
    along = lambda q: product(linear.operator.adjoint(q))  # noqa: E731
    precondition = None
    if not (isinstance(linear, Tangent) or is_even(linear.operator)):  # a tangent's products may take a decoder
        usual = 1 / (1 / USUAL_VARIANCE + (alpha_t / sigma_t) ** 2)
        precondition = partial(linear.even_out, variance=noise**2 / usual, tolerance=0.01)
    step = gmres_correction(along, linear.operator, variance, linear.residual(x0), m, precondition)
    return x0 + within(linear.radius, step)


def gmres_correction(
    product: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    variance: float,
    residual: Tensor,
    m: int,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """J A^T u for the u that minimises |residual - (variance I + A J A^T) u| over the m-dimensional Krylov space.

    product: q -> J A^T q. Arnoldi with modified Gram-Schmidt, all samples at once, each with its own coefficients. A
    sample whose Krylov space is exhausted (or whose residual is zero) gets zero further directions and stops changing.
    precondition: from the right, and need not be linear (flexible GMRES: Saad, 1993).
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
        v = basis[j] if precondition is None else precondition(basis[j])
        products.append(product(v))
        w = torch.add(operator(products[j]), v, alpha=variance)
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
