"""Sampling under a constraint: one loop for all solvers.

    x_T --solver--> (x_t, x0) --transition--> x_s --solver--> ... --> x0
          at t                    t -> s

A solver works at one noise level. A transition takes its result to the next, lower noise level. The memory of both is
returned and passed to the next call. `trajectory` yields a `State` per noise level, which serves progress bars,
previews, interruption and tests.
"""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from adhere.core.constraints import Constraint, Linear, Unconstrained
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import Denoiser
from adhere.core.noise import Generators, initial_noise
from adhere.core.schedules import Schedule, log_snr, log_snr_spacing
from adhere.core.solvers.base import Solver, StochasticSolver
from adhere.core.transitions import DPMSolver2M, Transition
from adhere.errors import InvalidInput

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """One noise level of a run; after the last one, `x0` is the sample.

    Attributes:
        step: from 0 to num_steps - 1.
        num_steps: the number of noise levels of the run.
        t: the time.
        x_t: the state, (B, ...).
        x0: the denoised image or conditional mean, (B, ...).
        constraint: the constraint at this noise level.
    """

    step: int
    num_steps: int
    t: float
    x_t: Tensor
    x0: Tensor
    constraint: Constraint

    @property
    def residual_norm(self) -> Float[Tensor, " b"]:
        """The constraint's residual norm of x0. It is computed at each access, and may take a decoding."""
        return self.constraint.residual_norm(self.x0)


_States = Generator[State, State | None, None]


def trajectory(
    denoiser: Denoiser,
    constraint: Constraint,
    solver: Solver,
    x_T: Tensor,
    timesteps: Sequence[float],
    transition: Transition,
    generator: Generators,
) -> _States:
    """Yield the `State` of each noise level of a run; the x0 of the last one is the sample.

    A state that is sent into the generator replaces the one that it yielded: its x_t and x0 are used from then on, and
    the memory of the solver, which belongs to the old ones, is dropped.

    Args:
        denoiser: D.
        constraint: a constraint that the solver supports.
        solver: the solver that works at each noise level.
        x_T: the noise at time timesteps[0], (B, ...), see `initial_noise`.
        timesteps: from high noise to low.
        transition: the step from one noise level to the next.
        generator: the generators of all noise after x_T.

    Raises:
        ValueError: when timesteps are empty or the noise does not decrease.
        TypeError: when the solver does not support the constraint.
    """
    if not timesteps or not _is_decreasing_noise(denoiser.schedule, timesteps):
        raise InvalidInput(f"timesteps = {list(timesteps)}: give at least one, from high noise to low, each once")
    _check_supported(solver, constraint)
    if isinstance(solver, StochasticSolver):
        solver = replace(solver, generator=generator)
    solver = solver.prepare([log_snr(denoiser.schedule, t) for t in timesteps])
    x_t, solver_memory, transition_memory = x_T, None, None
    del x_T  # large states are freed as early as possible
    for step, t in enumerate(timesteps):
        result = solver(denoiser, constraint, x_t, t, solver_memory)
        if not isinstance(result, tuple) or len(result) != 3:
            raise InvalidInput(f"{type(solver).__name__} must return (x_t, x0, memory)")
        x_t, x0, solver_memory = result
        del result
        replacement = yield State(step, len(timesteps), t, x_t, x0, constraint)
        if replacement is not None:
            x_t, x0, solver_memory = replacement.x_t, replacement.x0, None
        if step + 1 < len(timesteps):
            s = timesteps[step + 1]
            constraint = constraint.update(x0, log_snr(denoiser.schedule, s))
            x_t, transition_memory = transition(denoiser.schedule, x_t, x0, t, s, transition_memory, generator)


def _is_decreasing_noise(schedule: Schedule, timesteps: Sequence[float]) -> bool:
    """Return whether the noise decreases from each timestep to the next."""
    lambdas = [log_snr(schedule, t) for t in timesteps]
    return all(a < b for a, b in pairwise(lambdas))


def _check_supported(solver: Solver, constraint: Constraint) -> None:
    if not solver.supports(constraint):
        if isinstance(constraint, Unconstrained):
            raise InvalidInput(f"{type(solver).__name__} needs a constraint: without one, choose the solver plain")
        given = type(constraint).__name__
        if isinstance(constraint, Linear):
            given += f" constraint with {type(constraint.operator).__name__}"
        raise InvalidInput(f"{type(solver).__name__} does not support {given}: try the solver inexact_newton")


@dataclass(frozen=True)
class Sampler:
    """A solver together with the transition, the timesteps and the number of steps that suit it.

    Attributes:
        solver: the solver that works at each noise level.
        transition: the step from one noise level to the next.
        timesteps: maps (schedule, num_steps) to timesteps, from high noise to low.
        num_steps: the default number of noise levels.
        multiscale_max_log_snr: the log-SNR, in nats, below which models of several scales see a down-sampled picture.
    """

    solver: Solver
    transition: Transition = field(default_factory=DPMSolver2M)
    timesteps: Callable[[Schedule, int], list[float]] = log_snr_spacing
    num_steps: int = 20
    multiscale_max_log_snr: float = -math.inf

    def trajectory(
        self,
        denoiser: Denoiser,
        constraint: Constraint,
        noise: Tensor,
        generator: Generators,
        num_steps: int | None = None,
    ) -> _States:
        """Yield the states of a whole run, see the function `trajectory`.

        Args:
            noise: white noise of unit variance, (B, ...), in the dtype and on the device of the run.
            num_steps: the number of noise levels, the sampler's own by default.
        """
        timesteps = self.timesteps_for(denoiser.schedule, num_steps)
        x_T = initial_noise(denoiser.schedule, timesteps[0], noise)
        return trajectory(denoiser, constraint, self.solver, x_T, timesteps, self.transition, generator)

    def timesteps_for(self, schedule: Schedule, num_steps: int | None = None) -> list[float]:
        """Return the timesteps of a run; a warning is logged if the schedule has fewer than `num_steps`.

        Args:
            schedule: the noise schedule.
            num_steps: the number of noise levels, the sampler's own by default.
        """
        timesteps = self.timesteps(schedule, self.num_steps if num_steps is None else num_steps)
        if num_steps is not None and len(timesteps) < num_steps:
            _logger.warning(
                "num_inference_steps = %d: the noise schedule has only %d such noise levels, which are used",
                num_steps,
                len(timesteps),
            )
        return timesteps

    def for_model(self, temperature: float, covariance: StationaryCovariance | None) -> "Sampler":
        """Return the sampler with the settings of a model in place of its own that are None."""
        solver = self.solver if covariance is None else self.solver.with_covariance(covariance)
        return replace(self, solver=solver, transition=self.transition.with_temperature(temperature))

    def evaluations(self, schedule: Schedule, num_steps: int | None = None, state_size: int = 0) -> int:
        """Return the number of network evaluations of a run, at most."""
        return self.solver.evaluations(self._log_snrs(schedule, num_steps), state_size)

    def backward_passes(self, schedule: Schedule, num_steps: int | None = None) -> int:
        """Return the number of backward passes through the network of a run."""
        return self.solver.backward_passes(self._log_snrs(schedule, num_steps))

    def _log_snrs(self, schedule: Schedule, num_steps: int | None) -> list[float]:
        timesteps = self.timesteps(schedule, self.num_steps if num_steps is None else num_steps)
        return [log_snr(schedule, t) for t in timesteps]
