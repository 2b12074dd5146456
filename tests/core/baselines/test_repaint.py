"""RePaint: the known part keeps the measurement, and resampling approaches the exact conditional."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.repaint import RePaint
from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from adhere.core.presets import PRESETS
from adhere.core.schedules import CosineSchedule
from adhere.testing.priors import Gaussian
from tests.core.exact import last_x0, normal, random_covariance, random_gaussian, seeded

TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()
LEFT_HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), TIMES, TIMES)
def test_the_known_part_is_the_measurement_and_that_of_x_t_is_the_noisy_measurement(seed, t, r):
    g = seeded(seed)
    prior = random_gaussian(g)
    constraint, x_t = Linear(LEFT_HALF, LEFT_HALF(prior.sample(1, g))), normal(g, 2, *prior.shape)
    t, r = min(t, r), max(t, r) + 0.05
    alpha_t, sigma_t = SCHEDULE(t)
    solver = RePaint(repeats=3, generator=seeded(seed))
    moved, x0, memory = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, r)
    assert (LEFT_HALF(x0) == constraint.y).all()
    assert memory == t
    assert (LEFT_HALF(moved - alpha_t * constraint.y).abs() <= 6 * sigma_t).all()
    # At the first noise level there is no time travel, so the unknown part does not move.
    first, _, _ = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    assert (first - x_t).abs().mul(1 - LEFT_HALF.known).max() == 0


def test_resampling_approaches_the_exact_conditional_mean():
    """For a Gaussian whose halves depend strongly on each other."""
    prior = Gaussian(normal(seeded(3), 1, 2, 2), random_covariance(seeded(2), 4))
    constraint = Linear(LEFT_HALF, LEFT_HALF(prior.sample(1, seeded(4))))
    unknown = ~LEFT_HALF.known.bool().flatten()
    exact = prior.posterior(LEFT_HALF, constraint.y, 1e-6).mean.flatten()[unknown]
    errors = []
    for repeats in (1, 4, 32):
        sampler = replace(PRESETS["repaint"], solver=RePaint(repeats=repeats), num_steps=20)
        noise = normal(seeded(5), 4000, *prior.shape)
        samples = last_x0(sampler.trajectory(prior.denoiser(SCHEDULE), constraint, noise, seeded(6)))
        errors.append(float((samples.flatten(1)[:, unknown].mean(0) - exact).norm()))
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.2 * errors[0]
