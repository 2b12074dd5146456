"""Posterior sampling with latent diffusion: DPS through the decoder, plus a term that glues latents to the measurement.

    C(z) = |y - A decode(z)|^2 + gluing |z - encode(A^T y + (I - A^T A) decode(z))|^2

Rout et al., *Solving linear inverse problems provably via posterior sampling with latent diffusion models* (2023),
algorithm 2: the picture with what is known of it put in must encode to the latents again, so that parts known and made
up meet without a seam. x_t moves along J^T e, e = -grad C(x0) / 2 by autograd through decoder and encoder: the cost of
`dps`, and a backward pass through both halves of the autoencoder besides. The paper takes 1000 levels, gluing 0.1 and
a move a level.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from adhere.core.constraints import Constraint, Linear, Loss
from adhere.core.denoise import Denoiser
from adhere.core.latents import Through
from adhere.core.sample import Memory
from adhere.core.solvers.dps import DPS


@dataclass(frozen=True)
class PSLD(DPS):
    """`DPS` down C. Raises TypeError unless the constraint is a `Linear` one `Through` a decoder."""

    gluing: float = field(default=0.1, kw_only=True)

    def serves(self, constraint: Constraint) -> bool:
        return isinstance(constraint, Through) and isinstance(constraint.inner, Linear)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        if not (isinstance(constraint, Through) and isinstance(constraint.inner, Linear)):
            inner = constraint.inner if isinstance(constraint, Through) else constraint
            raise TypeError(f"psld needs a Linear constraint through a decoder, not {type(inner).__name__}: try dps")
        glued = Loss(partial(objective, constraint, constraint.inner, self.gluing))
        return super().__call__(denoiser, glued, x_t, t, memory)


def objective(through: Through, linear: Linear, gluing: float, z: Tensor) -> Tensor:
    """C(z) / 2 of each sample, (B,)."""
    x = through.codec.decode(z)
    residual = linear.residual(x)
    gap = z - through.codec.encode(x + linear.operator.adjoint(residual))
    return (residual.flatten(1).square().sum(1) + gluing * gap.flatten(1).square().sum(1)) / 2
