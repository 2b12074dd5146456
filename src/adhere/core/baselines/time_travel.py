"""Time travel: at each noise level, noise is added back to the level before and removed again, several times.

    x_r ~ q(x_r | x_t) = N((alpha_r/alpha_t) x_t, sigma_r^2 - (alpha_r sigma_t/alpha_t)^2)        r: the level before t
    x_r, x0 <- move(x_r),      x_t ~ DDIM(x_r, x0), eta = 1

Each repeat makes the constrained and the unconstrained part of x_t agree better. `repaint` and `freedom` are this loop
with different moves. The repeats are made after the step to t and not before the step from r, so that a noise level
does not need to know the next one. The first noise level has no repeats.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.noise import Generators, randn
from adhere.core.schedules import Schedule
from adhere.core.solvers.base import StochasticSolver
from adhere.core.transitions import DDIM
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class TimeTravel(StochasticSolver[float]):
    """Base of solvers with `repeats` moves per noise level; its memory is the time of the level before.

    Attributes:
        repeats: the number of moves per noise level, at least 1; 1 is without time travel.

    Raises:
        ValueError: if repeats < 1.
    """

    repeats: int = 5

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InvalidInput(f"repeats = {self.repeats}: a noise level takes at least 1 move")

    @abstractmethod
    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return (x_t, x0) after one move at time t."""

    def num_moves(self, num_steps: int) -> int:
        """Return the number of moves of a run over `num_steps` noise levels."""
        return self.repeats * (num_steps - 1) + 1

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: float | None
    ) -> tuple[Tensor, Tensor, float]:
        r = t if memory is None else memory
        for _ in range(0 if memory is None else self.repeats - 1):
            noisier = _add_noise(denoiser.schedule, x_t, t, r, self.run_generators)
            x_r, x0 = self.move(denoiser, constraint, noisier, r)
            x_t, _ = DDIM(eta=1.0)(denoiser.schedule, x_r, x0, r, t, None, self.run_generators)
        return *self.move(denoiser, constraint, x_t, t), t


def _add_noise(schedule: Schedule, x_t: Tensor, t: float, r: float, generator: Generators) -> Tensor:
    """Return a draw of x_r ~ q(x_r | x_t) at the higher noise level r."""
    (alpha_t, sigma_t), (alpha_r, sigma_r) = schedule(t), schedule(r)
    scale = alpha_r / alpha_t
    return torch.add(
        scale * x_t, randn(x_t.shape, x_t, generator), alpha=math.sqrt(sigma_r**2 - (scale * sigma_t) ** 2)
    )
