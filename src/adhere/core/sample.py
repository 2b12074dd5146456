"""Sampling under a constraint: one loop for every method.

    x_T --solver--> (x_t, x0) --transition--> x_s --solver--> ... --> x0
          at t                    t -> s

A *solver* works at one noise level: it moves x_t so that its denoised image meets the constraint better, or returns a
conditional mean E[x0 | x_t, y] in place of x0. A *transition* takes (x_t, x0) to the next, lower noise level. What
either remembers between levels (a last x0, Krylov directions) is passed in and returned, never kept on the object, so
one solver serves two runs at once and a run can be resumed. `trajectory` yields a State per level: progress bars,
previews, a stop button and tests all read from it.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from adhere.core.constraints import Constraint, Renewable
from adhere.core.denoise import Denoiser
from adhere.core.schedule import Schedule, check_signal, is_descending, log_snr

Memory = Any  # None at first; each solver and transition defines its own
Generators = Generator | Sequence[Generator]


@runtime_checkable
class Solver(Protocol):
    """The move at one noise level."""

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        """At noise level t: (x_t moved or not, x0 or conditional mean, what to remember)."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A solver that is not for every constraint: it raises TypeError for those it does not serve."""

    def serves(self, constraint: Constraint) -> bool:
        """Whether it can be asked for such a constraint."""
        ...


def serves(solver: Solver, constraint: Constraint) -> bool:
    """Whether a solver, `Selective` or not, can be asked for such a constraint."""
    return not isinstance(solver, Selective) or solver.serves(constraint)


@runtime_checkable
class Transition(Protocol):
    """The step from one noise level to the next."""

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: Memory, generator: Generators
    ) -> tuple[Tensor, Memory]:
        """From noise level t to the lower level s: (x_s, what to remember)."""
        ...


def randn(shape: Sequence[int], like: Tensor, generator: Generators) -> Tensor:
    """White noise in the dtype and on the device of `like`, drawn on the generator's device.

    With a sequence of generators, one per sample, a batch of N draws what N single runs would.
    """
    if isinstance(generator, Generator):
        return torch.randn(*shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}: give one, or one per sample")
    return torch.cat([randn((1, *shape[1:]), like, one) for one in generator])


@dataclass(frozen=True)
class Stochastic:
    """Base of the solvers that draw noise: `trajectory` gives them the generators of its run."""

    generator: Generators | None = field(default=None, kw_only=True)

    @property
    def source(self) -> Generators:
        """What to draw from. Raises ValueError without a generator."""
        if self.generator is None:
            raise ValueError(f"{type(self).__name__} draws noise: run it by trajectory, or give it a generator")
        return self.generator


@dataclass(frozen=True)
class DDIM:
    """First order: x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, with n = eta sigma_s sqrt(1 - exp(-2 h)).

    h = lambda_s - lambda_t. Song et al. (2021), eq. 12 and 16, written in (alpha, sigma): eta = 0 is deterministic,
    and is Euler's method on the rectified-flow ODE; eta = 1 is ancestral sampling (DDPM). Starts at alpha_t = 0 too.
    """

    eta: float = 1.0

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: Memory, generator: Generators
    ) -> tuple[Tensor, Memory]:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        n = self.eta * sigma_s * math.sqrt(1 - (sigma_s * alpha_t / (sigma_t * alpha_s)) ** 2)
        x_s = alpha_s * x0 + math.sqrt(sigma_s**2 - n**2) * (x_t - alpha_t * x0) / sigma_t
        if n > 0:
            x_s = x_s + n * randn(x_t.shape, x_t, generator)
        return x_s, None


@dataclass(frozen=True)
class DPMSolver2M:
    """Second-order multistep (SDE-)DPM-Solver++ (Lu et al., 2022, algorithm 2).

    The SDE form is the appendix's equation for SDE-DPM-Solver++ 2M:
    x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s (1 - e^{-(1+eta) h}) D + sigma_s sqrt(1 - e^{-2 eta h}) z, where
    D = x0 + (x0 - previous x0) h / (2 h_previous) extrapolates the data prediction. eta = 1 is the stochastic solver,
    eta = 0 the ODE's. `temperature` scales z: 1 samples the model, less gives calmer pictures, nearer to what is most
    likely and less varied, which hides the grain of a weak prior. Remembers (previous x0, previous h).
    """

    eta: float = 1.0
    temperature: float = 1.0

    def __call__(
        self, schedule: Schedule, x_t: Tensor, x0: Tensor, t: float, s: float, memory: Memory, generator: Generators
    ) -> tuple[Tensor, Memory]:
        alpha_t, sigma_t = schedule(t)
        alpha_s, sigma_s = schedule(s)
        check_signal(alpha_t, "DPMSolver2M")
        lambda_s = math.log(alpha_s / sigma_s)
        h = lambda_s - math.log(alpha_t / sigma_t)
        data = x0
        if memory is not None:
            previous_x0, previous_h = memory
            data = torch.lerp(previous_x0, x0, 1 + h / (2 * previous_h))
        decay = math.exp(-self.eta * h)
        x_s = torch.sub((sigma_s / sigma_t * decay) * x_t, data, alpha=alpha_s * math.expm1(-(1 + self.eta) * h))
        if self.eta > 0:
            spread = self.temperature * sigma_s * math.sqrt(1 - decay**2)
            x_s = x_s.add(randn(x_t.shape, x_t, generator), alpha=spread)
        return x_s, (x0, h)


@dataclass(frozen=True)
class State:
    """One noise level of a run. After the last, `x0` is the sample."""

    step: int  # from 0
    steps: int
    t: float
    x_t: Tensor  # (B, ...)
    x0: Tensor  # (B, ...), the denoised image, or the conditional mean
    constraint: Constraint

    @property
    def error(self) -> Float[Tensor, " b"]:
        """The constraint's error of x0; computed when asked for, as it may take a decoder."""
        return self.constraint.error(self.x0)


def trajectory(
    denoiser: Denoiser,
    constraint: Constraint,
    solver: Solver,
    x_T: Tensor,
    timesteps: Sequence[float],
    transition: Transition,
    generator: Generators,
) -> Iterator[State]:
    """Sample from x_T, noise at level timesteps[0], down the levels: yields a State at each; the last x0 is the sample.

    Raises ValueError when `timesteps` is empty or the noise does not fall from each time to the next.
    """
    if not timesteps or not is_descending(denoiser.schedule, timesteps):
        raise ValueError(f"timesteps {list(timesteps)}: give at least one, from high noise to low, none twice")
    if isinstance(solver, Stochastic):
        solver = replace(solver, generator=generator)
    x_t, solver_memory, transition_memory = x_T, None, None
    for step, t in enumerate(timesteps):
        x_t, x0, solver_memory = solver(denoiser, constraint, x_t, t, solver_memory)
        yield State(step, len(timesteps), t, x_t, x0, constraint)
        if step + 1 < len(timesteps):
            s = timesteps[step + 1]
            if isinstance(constraint, Renewable):
                constraint = constraint.renewed(x0, log_snr(denoiser.schedule, s))
            x_t, transition_memory = transition(denoiser.schedule, x_t, x0, t, s, transition_memory, generator)


def initial_noise(schedule: Schedule, shape: Sequence[int], t: float, like: Tensor, generator: Generators) -> Tensor:
    """x_T for a run that starts at time t: sigma_t times white noise, plus the spread that a unit-variance x0 leaves.

    That is N(0, 1) for a variance-preserving schedule and N(0, alpha^2 + sigma^2) for a flow.
    """
    alpha_t, sigma_t = schedule(t)
    return math.sqrt(alpha_t**2 + sigma_t**2) * randn(shape, like, generator)


def sample(
    denoiser: Denoiser,
    constraint: Constraint,
    solver: Solver,
    x_T: Tensor,
    timesteps: Sequence[float],
    transition: Transition,
    generator: Generators,
) -> Tensor:
    """`end_of` the `trajectory`."""
    return end_of(trajectory(denoiser, constraint, solver, x_T, timesteps, transition, generator))


def end_of(states: Iterator[State]) -> Tensor:
    """The sample of a run: x0 of its last level, shaped like x_T; earlier levels are let go."""
    (last,) = deque(states, maxlen=1)  # trajectory yields at least once or raises
    return last.x0
