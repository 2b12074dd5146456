"""Diffusion posterior sampling: moves of x_t along J^T e, the gradient of the constraint, by backward passes.

Source: Chung et al., *Diffusion posterior sampling for general noisy inverse problems* (2023), algorithm 1, whose
gradient of |y - A x0(x_t)|^2 / 2 is -J^T e; here with several moves per noise level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import vjp
from adhere.core.solvers.descent import Descent


@dataclass(frozen=True)
class DPS(Descent):
    """`Descent` along J^T e.

    Each noise level takes 1 + num_iterations evaluations and num_iterations backward passes, each of which takes about
    the time of two evaluations and holds the network's activations in memory.
    """

    def product(self, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return vjp(lambda x: denoiser(x, t), x_t)

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) * (1 + self.num_iterations)

    def backward_passes(self, log_snrs: Sequence[float]) -> int:
        return len(log_snrs) * self.num_iterations
