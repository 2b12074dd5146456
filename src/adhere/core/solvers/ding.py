"""Decoupled inpainting guidance: sample the known part from its exact posterior, given a guess of the noise in it.

A step of DDIM from t to s has mean mu and standard deviation eta_s. Draw a proxy z from it, ask the network for the
noise eps(z) in it, and take y ~ N((x_s - sigma_s eps(z)) / alpha_s, noise^2), on the known part, for the likelihood of
x_s: linear in x_s, as the network is asked at z and not at x_s, so that the posterior is Gaussian, and exactly

    known:    x_s = (1 - gamma) mu + gamma (alpha_s y + sigma_s eps(z)) + alpha_s noise sqrt(gamma) n
    unknown:  x_s = mu + eta_s n,                    gamma = eta_s^2 / (eta_s^2 + alpha_s^2 noise^2)

Moufad et al., *Efficient zero-shot inpainting with decoupled diffusion guidance* (2025), for masks: 2 evaluations a
noise level, the proxy's and its own (the first: 1), and no backward pass. Its eta_s = sigma_s (1 - alpha_s), for flows,
is sigma_s^2 / (alpha_s + sigma_s) on any schedule; its noise is 0.01. `Decoupled`, the transition, draws the proxy.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, is_masked, masked
from adhere.core.denoise import Denoiser
from adhere.core.sample import Generators, Memory, Stochastic, randn
from adhere.core.schedule import Schedule


@dataclass(frozen=True)
class DING(Stochastic):
    """Remembers the last (x_t, x0, t), of which mu is made. Needs the transition `Decoupled`.

    `noise_floor`: the least measurement noise assumed. Raises TypeError for a constraint that is not a mask's.
    """

    noise_floor: float = 0.01

    def serves(self, constraint: Constraint) -> bool:
        return is_masked(constraint)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        known, linear = masked(constraint, "ding")
        if memory is not None:
            last_x_t, last_x0, last_t = memory
            mu, eta = step(denoiser.schedule, last_x_t, last_x0, last_t, t)
            alpha_t, _ = denoiser.schedule(t)
            proxy_noise = x_t - alpha_t * denoiser(x_t, t)  # sigma_t eps(z)
            spread = alpha_t * max(linear.noise, self.noise_floor)
            gamma = eta**2 / (eta**2 + spread**2)
            n = randn(x_t.shape, x_t, self.source)
            seen = (1 - gamma) * mu + gamma * (alpha_t * linear.y + proxy_noise) + spread * math.sqrt(gamma) * n
            x_t = known * seen + (1 - known) * (mu + eta * n)
        x0 = denoiser(x_t, t)
        return x_t, x0, (x_t, x0, t)


@dataclass(frozen=True)
class Decoupled:
    """x_s ~ N(mu, eta_s^2): DDIM whose noise falls faster than the ancestral, as the signal comes up."""

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: Memory, generator: Generators
    ) -> tuple[Tensor, Memory]:
        mu, eta = step(schedule, x_t, x0, t, s)
        return mu + eta * randn(x_t.shape, x_t, generator), None


def step(schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float) -> tuple[Tensor, float]:
    """mu and eta_s of the step from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    eta = sigma_s**2 / (alpha_s + sigma_s)
    return alpha_s * x0 + math.sqrt(sigma_s**2 - eta**2) * (x_t - alpha_t * x0) / sigma_t, eta
