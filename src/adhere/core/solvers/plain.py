"""Plain sampling, without a constraint."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.solvers.base import Solver


@dataclass(frozen=True)
class Plain(Solver[None]):
    """Returns the denoised image and ignores the constraint. One evaluation per noise level."""

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        return x_t, denoiser(x_t, t), None

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs)
