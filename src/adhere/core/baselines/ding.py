"""Decoupled inpainting guidance: the known part is sampled from its exact posterior, given a guess of its noise.

A step of DDIM from t to s has mean mu and standard deviation eta_s. The method draws z from it, evaluates the noise
eps(z) predicted by the network, and uses y ~ N((x_s - sigma_s eps(z)) / alpha_s, noise^2) on the known part as the
likelihood of x_s. The network is evaluated at z and not at x_s, so the likelihood is linear in x_s and the posterior is
Gaussian, exactly:

    known:    x_s = (1 - gamma) mu + gamma (alpha_s y + sigma_s eps(z)) + alpha_s noise sqrt(gamma) n
    unknown:  x_s = mu + eta_s n,                    gamma = eta_s^2 / (eta_s^2 + alpha_s^2 noise^2)

It takes two evaluations per noise level (one at the first) and no backward pass. It supports masks only. `Decoupled`
draws z. The paper's eta_s = sigma_s (1 - alpha_s) for flows is sigma_s^2 / (alpha_s + sigma_s) on any schedule.

Source: Moufad et al., *Efficient zero-shot inpainting with decoupled diffusion guidance* (2025).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, Linear, mask_of
from adhere.core.denoisers import Denoiser
from adhere.core.noise import Generators, randn
from adhere.core.operators import _at_least
from adhere.core.schedules import Schedule
from adhere.core.solvers.base import StochasticSolver
from adhere.core.transitions import Transition


@dataclass(frozen=True)
class DING(StochasticSolver[tuple[Tensor, Tensor, float]]):
    """For a `Linear` constraint with a `Mask`; needs the transition `Decoupled`. Its memory is (x_t, x0, t).

    Attributes:
        noise_floor: the smallest measurement noise; the default is the paper's 0.01.
    """

    noise_floor: float = 0.01

    def supports(self, constraint: Constraint) -> bool:
        return mask_of(constraint) is not None

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return 2 * len(log_snrs) - 1

    def __call__(
        self,
        denoiser: Denoiser,
        constraint: Constraint,
        x_t: Tensor,
        t: float,
        memory: tuple[Tensor, Tensor, float] | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, float]]:
        known = mask_of(constraint)
        assert isinstance(constraint, Linear) and known is not None
        if memory is not None:
            mu, eta = _step(denoiser.schedule, *memory, t)
            alpha_t, _ = denoiser.schedule(t)
            predicted_noise = x_t - alpha_t * denoiser(x_t, t)  # sigma_t eps(z)
            std = alpha_t * _at_least(constraint.noise, self.noise_floor)
            gamma = eta**2 / (eta**2 + std**2)
            n = randn(x_t.shape, x_t, self.run_generators)
            posterior = (1 - gamma) * mu + gamma * (alpha_t * constraint.y + predicted_noise) + std * gamma**0.5 * n
            x_t = known * posterior + (1 - known) * (mu + eta * n)
        x0 = denoiser(x_t, t)
        return x_t, x0, (x_t, x0, t)


@dataclass(frozen=True)
class Decoupled(Transition[None]):
    """x_s ~ N(mu, eta_s^2): DDIM whose noise decreases faster than that of ancestral sampling."""

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: None, generator: Generators
    ) -> tuple[Tensor, None]:
        mu, eta = _step(schedule, x_t, x0, t, s)
        return mu + eta * randn(x_t.shape, x_t, generator), None


def _step(schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """Return mu and eta_s of the step from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    eta = sigma_s**2 / (alpha_s + sigma_s)
    return alpha_s * x0 + math.sqrt(sigma_s**2 - eta**2) * (x_t - alpha_t * x0) / sigma_t, eta
