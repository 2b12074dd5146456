"""Inexact Newton: move x_t along J e, a forward directional derivative of the denoiser, never a backward pass.

Graikos, Jojic and Samaras, *Fast constrained sampling in pre-trained diffusion models*, algorithm 1. Solving J dx = e
would be Newton's method on the constraint; J is nearly a covariance, and J e itself already points the right way:

    g = [D(x_t + delta e) - x0] / delta          the paper's finite difference, one evaluation

The loop around it is `Descent`: 1 + 2K evaluations a noise level. It approaches the constraint but does not sample the
exact posterior: in closed form the samples vary too little (docs, and `python -m benchmarks.truth`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from adhere.core.denoise import Denoiser, jacobian_product
from adhere.core.solvers.descent import Descent, DirectionProduct


def derivative_along(denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x0, and e -> J e by a forward difference, one evaluation each."""
    x0 = denoiser(x_t, t)
    return x0, lambda e: jacobian_product(denoiser, x_t, t, x0, e)


@dataclass(frozen=True)
class InexactNewton(Descent):
    """`Descent` along J e."""

    product: DirectionProduct = field(default=derivative_along, kw_only=True)
