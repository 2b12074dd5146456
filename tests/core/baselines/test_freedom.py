"""FreeDoM: without repeats it is DPS, and repeats bring it closer to a loss."""

from dataclasses import replace

import pytest
import torch

from adhere.core.baselines.dps import DPS
from adhere.core.baselines.freedom import FreeDoM
from adhere.core.constraints import Linear, Loss
from adhere.core.operators import Mask
from adhere.core.presets import PRESETS
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule
from adhere.core.transitions import DDIM
from tests.core.exact import last_x0, normal, random_gaussian, seeded

SCHEDULE = CosineSchedule()
LEFT_HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))
MEAN_SQUARE = Loss(lambda x0: x0.square().flatten(1).mean(1))


@pytest.mark.parametrize("constraint", [MEAN_SQUARE, Linear(LEFT_HALF, LEFT_HALF(torch.ones(1, 1, 2, 2).double()))])
def test_freedom_without_repeats_is_dps(constraint):
    prior = random_gaussian(seeded(0))
    x_T, denoiser, times = normal(seeded(1), 2, *prior.shape), prior.denoiser(SCHEDULE), [0.9, 0.6, 0.3]
    runs = [
        last_x0(trajectory(denoiser, constraint, solver, x_T, times, DDIM(1.0), seeded(1)))
        for solver in (FreeDoM(repeats=1), DPS(num_iterations=1), FreeDoM(repeats=2))
    ]
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_repeats_bring_samples_closer_to_a_loss():
    """With moves so short that none goes too far."""
    prior, norms = random_gaussian(seeded(0)), []
    for repeats in (1, 2, 4):
        solver = FreeDoM(repeats, step=DPS(num_iterations=1, step_size_start=0.1))
        sampler = replace(PRESETS["freedom"], solver=solver, num_steps=10)
        noise = normal(seeded(5), 4000, *prior.shape)
        samples = last_x0(sampler.trajectory(prior.denoiser(SCHEDULE), MEAN_SQUARE, noise, seeded(6)))
        norms.append(float(MEAN_SQUARE.residual_norm(samples).mean()))
    assert norms[0] > norms[1] > norms[2]
