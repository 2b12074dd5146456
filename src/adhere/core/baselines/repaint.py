"""RePaint: the known part is replaced by the measurement with the noise of the level, with time travel.

    x_t <- known (alpha_t y + sigma_t eps) + (1 - known) x_t

It supports masks only and assumes a measurement without noise. It takes one evaluation per move and no backward pass.

Source: Lugmayr et al., *RePaint: inpainting using denoising diffusion probabilistic models* (2022), equation 8 and
algorithm 1, which uses 250 noise levels, 10 resamplings and jumps of ten noise levels; here jumps are of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.baselines.time_travel import TimeTravel
from adhere.core.constraints import Constraint, Linear, mask_of
from adhere.core.denoisers import Denoiser
from adhere.core.noise import randn


@dataclass(frozen=True)
class RePaint(TimeTravel):
    """`TimeTravel` whose move is the replacement of the known part, for a `Linear` constraint with a `Mask`."""

    repeats: int = 10

    def supports(self, constraint: Constraint) -> bool:
        return mask_of(constraint) is not None

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return self.num_moves(len(log_snrs))

    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        known = mask_of(constraint)
        assert isinstance(constraint, Linear) and known is not None
        alpha_t, sigma_t = denoiser.schedule(t)
        noisy = alpha_t * constraint.y + sigma_t * randn(x_t.shape, x_t, self.run_generators)
        x_t = known * noisy + (1 - known) * x_t
        return x_t, known * constraint.y + (1 - known) * denoiser(x_t, t)
