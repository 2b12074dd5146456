"""RePaint: replace what is known by the measurement at the noise of each level, and resample until the rest agrees.

    x_t <- known (alpha_t y + sigma_t eps) + (1 - known) x_t

Lugmayr et al., *RePaint: inpainting using denoising diffusion probabilistic models* (2022), eq. 8 and algorithm 1; its
resampling is `time_travel` with trips of one level. For masks only, whose measurement is taken to be free of noise. The
paper takes 250 levels, 10 resamplings and trips of ten levels. 1 evaluation a move, no backward pass.
"""

from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, is_masked, masked
from adhere.core.denoise import Denoiser
from adhere.core.sample import randn
from adhere.core.solvers.time_travel import TimeTravel


@dataclass(frozen=True)
class RePaint(TimeTravel):
    """`TimeTravel` whose move is replacement. Raises TypeError for a constraint that is not a mask's."""

    repeats: int = 10

    def serves(self, constraint: Constraint) -> bool:
        return is_masked(constraint)

    def move(self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        known, linear = masked(constraint, "repaint")
        alpha_t, sigma_t = denoiser.schedule(t)
        noisy = alpha_t * linear.y + sigma_t * randn(x_t.shape, x_t, self.source)
        x_t = known * noisy + (1 - known) * x_t
        return x_t, known * linear.y + (1 - known) * denoiser(x_t, t)
