"""Diffusion posterior sampling: move x_t along J^T e, the gradient of the constraint, by a backward pass.

Chung et al., *Diffusion posterior sampling for general noisy inverse problems* (2023), algorithm 1, whose gradient of
|y - A x0(x_t)|^2 / 2 is -J^T e; with several moves a level, like the repeats of FreeDoM (Yu et al., 2023). The rival
that inexact Newton does without: 1 + K evaluations a noise level, but K backward passes on top, each of about two
evaluations' time, which hold every activation of the network in memory. An evaluation serves both as the x0 of its
level and as the graph of the next move.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from adhere.core.denoise import Denoiser, pullback
from adhere.core.solvers.descent import Descent, DirectionProduct


def gradient_along(denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x0, and e -> J^T e by autograd through the network, once."""
    return pullback(lambda x: denoiser(x, t), x_t)


@dataclass(frozen=True)
class DPS(Descent):
    """`Descent` along J^T e."""

    product: DirectionProduct = field(default=gradient_along, kw_only=True)
