"""Exact Newton: move x_t by the solution of J dx = e, J = d x0 / d x_t, for states of a few hundred entries.

What the cheap products of `descent` stand in for (Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained
diffusion models*, section 4). Near x_t, x0 moves by J dx = e: for y = A x0 with orthonormal rows A, and J constant as a
Gaussian prior's is, one step meets the measurement. J is formed a column at a time, by a forward difference each, so a
state of n entries costs 1 + K (1 + n) evaluations a noise level. Where the prior leaves a direction no room J is nearly
singular and dx huge: the directions that are no data get the longest moves, so the exact step makes poor samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoise import Denoiser, jacobian_product, largest_entry
from adhere.core.sample import Memory


@dataclass(frozen=True)
class NewtonExact:
    """K Newton steps per noise level.

    `within_sigma`: a step with an entry above sigma_t is shortened to it. `damping`: J gets this much of its largest
    entry on the diagonal, so that a singular one can be solved. Raises ValueError for states of more than `most`
    entries.
    """

    K: int = 1
    within_sigma: bool = True
    damping: float = 1e-9
    most: int = 1024

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        n = x_t[0].numel()
        if n > self.most:
            raise ValueError(f"newton_exact forms J, {n} x {n}: at most {self.most} x {self.most}; try inexact_newton")
        x0 = denoiser(x_t, t)
        for _ in range(self.K):
            J = jacobian(denoiser, x_t, t, x0)
            diagonal = self.damping * J.abs().amax((1, 2), keepdim=True) * torch.eye(n).to(J)
            e = constraint.direction(x0).flatten(1)
            step = torch.linalg.solve(J + diagonal, e).view_as(x_t)
            if self.within_sigma:
                step = step * (denoiser.schedule(t)[1] / largest_entry(step)).clamp_max(1)
            x_t = x_t + step
            x0 = denoiser(x_t, t)
        return x_t, x0, None


def jacobian(denoiser: Denoiser, x_t: Tensor, t: float, x0: Tensor) -> Tensor:
    """J of each sample, (B, n, n), at one evaluation a column; x0 is D(x_t, t)."""
    unit = torch.eye(x_t[0].numel()).to(x_t).view(-1, 1, *x_t.shape[1:])  # (n, 1, ...)
    return torch.stack([jacobian_product(denoiser, x_t, t, x0, v.expand_as(x_t)).flatten(1) for v in unit], 2)
