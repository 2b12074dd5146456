"""Inexact Newton: move x_t along J e, a forward directional derivative of the denoiser, never a backward pass.

Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models*, algorithm 1. Solving J dx = e
would be Newton's method on the constraint; J is nearly a covariance, and J e itself already points the right way:

    e = constraint.direction(x0)
    g = [D(x_t + delta e) - x0] / delta          the paper's finite difference, one evaluation
    x_t <- x_t + lambda_k g / |g|_inf            per sample, never over the batch
    x0 <- D(x_t)                                 one evaluation, also the next difference's base

1 + 2K evaluations a noise level. It approaches the constraint but does not sample the exact posterior: in closed
form the samples vary too little (docs, and `python -m benchmarks.truth`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoise import Denoiser, jacobian_product, largest_entry, per_sample
from adhere.core.sample import Memory


@dataclass(frozen=True)
class InexactNewton:
    """K moves per noise level with lambda falling linearly from `first` to `last`.

    `scale_by_sigma` multiplies lambda by sigma_t: the paper's values suit Stable Diffusion's latents, but in pixel
    space at low noise they exceed sigma_t and leave the data manifold. `tolerance`: a sample whose constraint error is
    at most this is not moved further at that level; when none is left the level ends early.
    """

    K: int = 5
    first: float = 0.5
    last: float = 0.1
    scale_by_sigma: bool = True
    tolerance: float = 0.0

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        scale = denoiser.schedule(t)[1] if self.scale_by_sigma else 1.0
        x0 = denoiser(x_t, t)
        for k in range(self.K):
            moving = x_t.new_ones(1, dtype=torch.bool)
            if self.tolerance > 0:
                moving = per_sample(constraint.error(x0) > self.tolerance, x_t)  # (B, 1, ..., 1)
                if not moving.any():
                    break
            g = jacobian_product(denoiser, x_t, t, x0, constraint.direction(x0))
            step = self.first + (self.last - self.first) * k / max(1, self.K - 1)
            x_t = x_t + torch.where(moving, scale * step * g / largest_entry(g), 0)
            x0 = denoiser(x_t, t)
        return x_t, x0, None
