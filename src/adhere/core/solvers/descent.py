"""Moving x_t until its denoised image meets the constraint: a direction times a step length, K times a noise level.

    x0, product <- the denoiser at x_t
    e = constraint.direction(x0),      g = product(e)
    x_t <- x_t + min(lambda_k, sigma_t) g / |g|_inf           per sample, never over the batch

Solving J dx = e, J = d x0 / d x_t, would be Newton's method. What stands in for J^-1 is the *product*, and makes the
method: J e (`inexact_newton`), J^T e (`dps`), e itself (`mpgd`). The loop is that of Graikos, Jojic and Samaras, *Fast
constrained sampling in pre-trained diffusion models*, algorithm 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoise import Denoiser, largest_entry, per_sample
from adhere.core.sample import Memory


@runtime_checkable
class DirectionProduct(Protocol):
    """How x_t should move for its x0 to move along e."""

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x0 = D(x_t, t), one evaluation, and e -> g, both shaped like x_t."""
        ...


@dataclass(frozen=True)
class Descent:
    """K moves per noise level with lambda falling linearly from `first` to `last`.

    `within_sigma`: no entry moves by more than sigma_t, the noise's own size. The paper's lambda has no such bound, and
    at low noise can leave the data manifold (docs/lab/solvers-on-photographs.md). `tolerance`: a sample whose
    constraint error is at most this is not moved further at that level; when none is left the level ends early.
    """

    product: DirectionProduct = field(kw_only=True)
    K: int = 5
    first: float = 0.5
    last: float = 0.1
    within_sigma: bool = True
    tolerance: float = 0.0

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        bound = denoiser.schedule(t)[1] if self.within_sigma else math.inf
        x0, product = self.product(denoiser, x_t, t)
        for k in range(self.K):
            unmet = constraint.error(x0) > self.tolerance if self.tolerance > 0 else x_t.new_ones(len(x_t))
            moving = per_sample(unmet.to(x_t.dtype), x_t)  # 1 or 0: (B, 1, ..., 1)
            if not moving.any():
                break
            g = product(constraint.direction(x0))
            step = self.first + (self.last - self.first) * k / max(1, self.K - 1)
            x_t = x_t + min(step, bound) * moving / largest_entry(g) * g
            x0, product = self.product(denoiser, x_t, t)
        return x_t, x0, None
