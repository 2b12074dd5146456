"""Time travel: at every noise level, go back up to the level before and come down again, several times.

    x_r ~ q(x_r | x_t) = N((alpha_r/alpha_t) x_t, sigma_r^2 - (alpha_r sigma_t/alpha_t)^2)        r: the level before t
    x_r, x0 <- move(x_r),      x_t ~ DDIM(x_r, x0), eta = 1

Each round lets what the constraint moved and what it did not come to terms. `repaint` and `freedom` are this loop with
a move each. On arriving at t instead of on leaving r, so that a level needs to know no later one; the first level has
none before it, and no trips.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoise import Denoiser
from adhere.core.sample import DDIM, Generators, Memory, Stochastic, randn
from adhere.core.schedule import Schedule


@dataclass(frozen=True)
class TimeTravel(Stochastic, ABC):
    """`repeats` moves per noise level, with a trip up and down between each and the next: 1 is none.

    Remembers the last time. Raises ValueError when repeats < 1.
    """

    repeats: int = 5

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats = {self.repeats}: a noise level takes at least 1 move")

    @abstractmethod
    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """What the method does at one noise level: (x_t moved, x0)."""
        ...

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        r: float = t if memory is None else memory
        for _ in range(0 if memory is None else self.repeats - 1):
            up = noised(denoiser.schedule, x_t, t, r, self.source)
            x_r, x0 = self.move(denoiser, constraint, up, r)
            x_t, _ = DDIM(eta=1.0)(denoiser.schedule, x_r, x0, r, t, None, self.source)
        return *self.move(denoiser, constraint, x_t, t), t


def noised(schedule: Schedule, x_t: Tensor, t: float, r: float, generator: Generators) -> Tensor:
    """x_r ~ q(x_r | x_t), up to the noisier level r."""
    (alpha_t, sigma_t), (alpha_r, sigma_r) = schedule(t), schedule(r)
    keep = alpha_r / alpha_t
    return torch.add(keep * x_t, randn(x_t.shape, x_t, generator), alpha=math.sqrt(sigma_r**2 - (keep * sigma_t) ** 2))
