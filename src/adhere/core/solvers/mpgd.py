"""Manifold-preserving guidance: move x_t along e itself, as if J were the identity.

He et al., *Manifold preserving guided diffusion* (2024), and FlowChef (Patel et al., 2024) on flows: the constraint's
gradient at x0, taken for the one at x_t. The cheapest product: 1 + K evaluations a noise level. Where the constraint
sees nothing e is zero, so only the denoiser's next word carries a move there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from adhere.core.denoise import Denoiser
from adhere.core.solvers.descent import Descent, DirectionProduct


def as_it_is(denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x0, and e -> e."""
    return denoiser(x_t, t), lambda e: e


@dataclass(frozen=True)
class MPGD(Descent):
    """`Descent` along e."""

    product: DirectionProduct = field(default=as_it_is, kw_only=True)
