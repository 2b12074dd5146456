"""Manifold-preserving guidance: moves of x_t along e itself, as if J were the identity.

Where the measurement does not depend on x0, e is zero; only the next evaluation propagates a move to that part.

Source: He et al., *Manifold preserving guided diffusion* (2024); for flows, Patel et al., *FlowChef* (2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.core.solvers.descent import Descent


@dataclass(frozen=True)
class MPGD(Descent):
    """`Descent` along e: 1 + num_iterations evaluations per noise level."""

    def product(self, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return denoiser(x_t, t), lambda e: e

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) * (1 + self.num_iterations)
