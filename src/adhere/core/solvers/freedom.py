"""FreeDoM: the constraint's gradient through the network, as in `dps`, with time travel.

Yu et al., *FreeDoM: training-free energy-guided conditional diffusion model* (2023), algorithms 1 and 2: x_t moves
along J^T e by a backward pass through the network, and every noise level is gone through several times, up and down
again with fresh noise (`time_travel`); for any constraint. The move is `DPS` with K = 1, step length included, which is
FreeDoM without repeats: 2 evaluations and 1 backward pass. The paper takes 100 levels and repeats the middle ones; here
all but the first are. Fresh noise undoes part of a move, so repeats at low noise leave a larger error than none.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoise import Denoiser
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.time_travel import TimeTravel


@dataclass(frozen=True)
class FreeDoM(TimeTravel):
    """`TimeTravel` whose move is `step`."""

    step: DPS = field(default_factory=partial(DPS, K=1))

    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        x_t, x0, _ = self.step(denoiser, constraint, x_t, t, None)
        return x_t, x0
