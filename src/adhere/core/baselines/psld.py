"""Posterior sampling with latent diffusion: DPS through the decoder, with a term that glues latents to the measurement.

    C(z) = |y - A decode(z)|^2 + gluing |z - encode(A^T y + (I - A^T A) decode(z))|^2

The second term asks that the picture, with its measured part replaced, is encoded to the same latents. x_t moves along
J^T e with e = -grad C(x0) / 2, by autograd through decoder and encoder, in addition to the backward pass of `dps`.

Source: Rout et al., *Solving linear inverse problems provably via posterior sampling with latent diffusion models*
(2023), algorithm 2, which uses 1000 noise levels, gluing 0.1 and one move per noise level.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from adhere.core.baselines.dps import DPS
from adhere.core.constraints import Constraint, Linear, Loss
from adhere.core.denoisers import Denoiser
from adhere.core.latents import DecodedConstraint


@dataclass(frozen=True)
class PSLD(DPS):
    """`DPS` for C, for a `Linear` constraint in a `DecodedConstraint`.

    Attributes:
        gluing: the weight of the second term, at least 0.
    """

    gluing: float = field(default=0.1, kw_only=True)

    def supports(self, constraint: Constraint) -> bool:
        return isinstance(constraint, DecodedConstraint) and isinstance(constraint.inner, Linear)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        assert isinstance(constraint, DecodedConstraint) and isinstance(constraint.inner, Linear)
        loss = Loss(partial(_objective, constraint, constraint.inner, self.gluing))
        return super().__call__(denoiser, loss, x_t, t, memory)


def _objective(decoded: DecodedConstraint, linear: Linear, gluing: float, z: Tensor) -> Tensor:
    """Return C(z) / 2 of each sample, (B,)."""
    x = decoded.autoencoder.decode(z)
    residual = linear.residual(x)
    gap = z - decoded.autoencoder.encode(x + linear.operator.adjoint(residual))
    return (residual.flatten(1).square().sum(1) + gluing * gap.flatten(1).square().sum(1)) / 2
