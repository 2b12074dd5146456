"""Exact Newton: moves of x_t by the solution of J dx = e, for states of a few hundred entries.

The products of `adhere.core.solvers.descent` replace this solution. If the rows of A are orthonormal and J is constant,
as for a Gaussian prior, one step meets y = A x0. J is formed column by column, by one forward difference each. In
directions in which the prior has little variance, J is nearly singular and dx is long, so samples are poor.

Source: Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models* (2025), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core._linalg import max_norm
from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.derivatives import jvp
from adhere.core.solvers.base import Solver
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class NewtonExact(Solver[None]):
    """Newton steps: 1 + num_iterations (1 + n) evaluations per noise level for states of n entries.

    Attributes:
        num_iterations: the steps per noise level.
        clip_to_sigma: whether a step with an entry above sigma_t is scaled down to it.
        damping: added to the diagonal of J, as a multiple of its largest entry, so that a singular J can be solved.
        max_size: the largest number of entries of a state.

    Raises:
        ValueError: for states of more than `max_size` entries.
    """

    num_iterations: int = 1
    clip_to_sigma: bool = True
    damping: float = 1e-9
    max_size: int = 1024

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) * (1 + self.num_iterations * (1 + state_size))

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        n, limit = x_t[0].numel(), self.max_size
        if n > limit:
            raise InvalidInput(f"newton_exact forms J, {n} x {n}: at most {limit} x {limit}; try inexact_newton")
        x0 = denoiser(x_t, t)
        for _ in range(self.num_iterations):
            J = _jacobian(denoiser, x_t, t, x0)
            diagonal = self.damping * J.abs().amax((1, 2), keepdim=True) * torch.eye(n, dtype=J.dtype, device=J.device)
            e = constraint.neg_grad(x0).flatten(1)
            step = torch.linalg.solve(J + diagonal, e).view_as(x_t)
            if self.clip_to_sigma:
                step = step * (denoiser.schedule(t)[1] / max_norm(step)).clamp_max(1)
            x_t = x_t + step
            x0 = denoiser(x_t, t)
        return x_t, x0, None


def _jacobian(denoiser: Denoiser, x_t: Tensor, t: float, x0: Tensor) -> Tensor:
    """Return J of each sample, (B, n, n), by one evaluation per column; x0 is D(x_t, t)."""
    unit = torch.eye(x_t[0].numel(), dtype=x_t.dtype, device=x_t.device).view(-1, 1, *x_t.shape[1:])  # (n, 1, ...)
    return torch.stack([jvp(denoiser, x_t, t, x0, v.expand_as(x_t)).flatten(1) for v in unit], 2)
