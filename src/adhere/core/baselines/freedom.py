"""FreeDoM: moves along the gradient of the constraint, as in `dps`, with time travel; for any constraint.

The move is one iteration of `DPS` with its step size. Fresh noise undoes a part of a move, so at low noise the residual
is larger with repeats than without.

Source: Yu et al., *FreeDoM: training-free energy-guided conditional diffusion model* (2023), algorithms 1 and 2, which
uses 100 noise levels and repeats those in the middle; here all but the first are repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from adhere.core.baselines.dps import DPS
from adhere.core.baselines.time_travel import TimeTravel
from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser


@dataclass(frozen=True)
class FreeDoM(TimeTravel):
    """`TimeTravel` whose move is `step`: 2 evaluations and 1 backward pass."""

    step: DPS = field(default_factory=partial(DPS, num_iterations=1))

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return self.num_moves(len(log_snrs)) * self.step.evaluations((0.0,))

    def backward_passes(self, log_snrs: Sequence[float]) -> int:
        return self.num_moves(len(log_snrs)) * self.step.backward_passes((0.0,))

    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        x_t, x0, _ = self.step(denoiser, constraint, x_t, t, None)
        return x_t, x0
