"""Moves of x_t until the denoised image meets the constraint, along a direction that defines the method.

    x0, product <- the denoiser at x_t
    e = -grad C(x0),      g = product(e)
    x_t <- x_t + min(step_size_k, sigma_t) g / |g|_inf           per sample

Newton's method for the constraint would solve J dx = e, where J = d x0 / d x_t. The `product` replaces J^-1: J e in
`inexact_newton`, J^T e in `dps`, e itself in `mpgd`.

Source of the loop: Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models* (2025),
algorithm 1.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adhere.core._linalg import max_norm, per_sample
from adhere.core.constraints import Constraint
from adhere.core.denoisers import Denoiser
from adhere.core.solvers.base import Solver


@dataclass(frozen=True)
class Descent(Solver[None]):
    """Base of solvers that move x_t several times per noise level.

    Attributes:
        num_iterations: the number of moves per noise level.
        step_size_start: the largest entry of the first move.
        step_size_end: the largest entry of the last move; it changes linearly in between.
        clip_to_sigma: whether no entry moves by more than sigma_t. The paper has no such bound; without it, moves at
            low noise can leave the data manifold (docs/experiments/solvers-on-photographs.md).
        tolerance: a sample whose residual norm is at most this is not moved further at that noise level.
    """

    num_iterations: int = 5
    step_size_start: float = 0.5
    step_size_end: float = 0.1
    clip_to_sigma: bool = True
    tolerance: float = 0.0

    @abstractmethod
    def product(self, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return x0 = D(x_t, t), which takes one evaluation, and the map e -> g."""

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        max_step = denoiser.schedule(t)[1] if self.clip_to_sigma else math.inf
        x0, product = self.product(denoiser, x_t, t)
        for k in range(self.num_iterations):
            active = self._active(constraint, x0)  # (B, 1, ..., 1), 1 or 0
            if not active.any():
                break
            g = product(constraint.neg_grad(x0))
            x_t = x_t + min(self._step_size(k), max_step) * active / max_norm(g) * g
            x0, product = self.product(denoiser, x_t, t)
        return x_t, x0, None

    def _step_size(self, k: int) -> float:
        return self.step_size_start + (self.step_size_end - self.step_size_start) * k / max(1, self.num_iterations - 1)

    def _active(self, constraint: Constraint, x0: Tensor) -> Tensor:
        """Return 1 for the samples that are still moved and 0 for the others, (B, 1, ..., 1)."""
        if self.tolerance == 0:
            return per_sample(x0.new_ones(len(x0)), x0)
        return per_sample((constraint.residual_norm(x0) > self.tolerance).to(x0.dtype), x0)
