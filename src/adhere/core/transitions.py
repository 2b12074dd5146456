"""Transitions: the step of x_t from one noise level to the next, given the denoised image or conditional mean x0."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from adhere.core.noise import Generators, randn
from adhere.core.schedules import Schedule, check_signal

_Memory = TypeVar("_Memory")


class Transition(ABC, Generic[_Memory]):
    """Base of transitions; the type parameter is that of `memory`, what is kept from one noise level to the next."""

    @abstractmethod
    def __call__(
        self,
        schedule: Schedule,
        x_t: Tensor,
        x0: Tensor,
        t: float,
        s: float,
        memory: _Memory | None,
        generator: Generators,
    ) -> tuple[Tensor, _Memory | None]:
        """Return (x_s, memory) at the lower noise level s.

        Args:
            schedule: the noise schedule.
            x_t: the state at time t, (B, ...).
            x0: the denoised image or conditional mean, (B, ...).
            memory: the memory that the last call returned; None in the first call.
            generator: the generators of the noise that is added.
        """

    def with_temperature(self, temperature: float) -> "Transition[_Memory]":
        """Return the transition with the temperature of a model, if its own is None."""
        return self


@dataclass(frozen=True)
class DDIM(Transition[None]):
    """First order: x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, with n = eta sigma_s sqrt(1 - exp(-2 h)).

    h = lambda_s - lambda_t is the step in log-SNR, and eps = (x_t - alpha_t x0) / sigma_t. With eta = 0 this is Euler's
    method on the rectified-flow ODE. It may start from pure noise (alpha_t = 0).

    Attributes:
        eta: 0 is deterministic, 1 is ancestral sampling (DDPM).

    Source: Song et al., *Denoising diffusion implicit models* (2021), equations 12 and 16, in terms of (alpha, sigma).
    """

    eta: float = 1.0

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: None, generator: Generators
    ) -> tuple[Tensor, None]:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        n = self.eta * sigma_s * math.sqrt(1 - (sigma_s * alpha_t / (sigma_t * alpha_s)) ** 2)
        x_s = alpha_s * x0 + math.sqrt(sigma_s**2 - n**2) * (x_t - alpha_t * x0) / sigma_t
        if n > 0:
            x_s = x_s + n * randn(x_t.shape, x_t, generator)
        return x_s, None


@dataclass(frozen=True)
class DPMSolver2M(Transition[tuple[Tensor, float]]):
    """Second-order multistep SDE-DPM-Solver++:

        x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s (1 - e^{-(1+eta) h}) D
              + temperature sigma_s sqrt(1 - e^{-2 eta h}) z

    where D = x0 + (x0 - previous x0) h / (2 previous h) extrapolates the data prediction and h = lambda_s - lambda_t.

    Attributes:
        eta: 1 is the stochastic solver, 0 that of the ODE.
        temperature: the factor of the noise z. 1 samples the model. Lower values give samples of lower variance, with
            less of the grain of a weak prior. None is that of the model, or 1 if the model has none.

    Source: Lu et al., *DPM-Solver++* (2022), algorithm 2 and, for the SDE, the appendix.
    """

    eta: float = 1.0
    temperature: float | None = 1.0

    def with_temperature(self, temperature: float) -> "DPMSolver2M":
        return replace(self, temperature=temperature) if self.temperature is None else self

    def __call__(
        self,
        schedule: Schedule,
        x_t: Tensor,
        x0: Tensor,
        t: float,
        s: float,
        memory: tuple[Tensor, float] | None,
        generator: Generators,
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        check_signal(alpha_t, "DPMSolver2M")
        h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
        D = x0
        if memory is not None:
            previous_x0, previous_h = memory
            D = torch.lerp(previous_x0, x0, 1 + h / (2 * previous_h))
        decay = math.exp(-self.eta * h)
        x_s = ((sigma_s / sigma_t * decay) * x_t).sub_(D, alpha=alpha_s * math.expm1(-(1 + self.eta) * h))
        if self.eta > 0:
            temperature = 1.0 if self.temperature is None else self.temperature
            std = temperature * sigma_s * math.sqrt(1 - decay**2)
            x_s.add_(randn(x_t.shape, x_t, generator), alpha=std)
        return x_s, (x0, h)
