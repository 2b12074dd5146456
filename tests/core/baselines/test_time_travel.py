"""Time travel: the way up is the forward process, and the number of moves is in range."""

import math

import pytest
import torch

from adhere.core.baselines.repaint import RePaint
from adhere.core.baselines.time_travel import _add_noise
from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from adhere.core.schedules import CosineSchedule, FlowSchedule
from tests.core.exact import normal, random_gaussian, seeded

SCHEDULE = CosineSchedule()


@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule()], ids=["cosine", "flow"])
def test_added_noise_is_that_of_the_forward_process(schedule):
    """From t to r, the mean and the variance are those of noise level r, also where r is pure noise."""
    t, x0 = 0.3, 2.0
    alpha_t, sigma_t = schedule(t)
    x_t = alpha_t * x0 + sigma_t * normal(seeded(0), 20000, 1)
    for r in (0.5, 1.0):
        alpha_r, sigma_r = schedule(r)
        x_r = _add_noise(schedule, x_t, t, r, seeded(1))
        assert abs(float(x_r.mean()) - alpha_r * x0) < 5 * sigma_r / math.sqrt(20000)
        assert abs(float(x_r.var()) / sigma_r**2 - 1) < 5 * math.sqrt(2 / 20000)


def test_the_first_noise_level_has_one_move_and_the_others_have_repeats():
    assert [RePaint(repeats=3).num_moves(num_steps) for num_steps in (1, 2, 5)] == [1, 4, 13]


def test_no_moves_are_refused_and_a_generator_is_needed():
    with pytest.raises(ValueError, match="repeats = 0: a noise level takes at least 1"):
        RePaint(repeats=0)
    assert RePaint(repeats=1).num_moves(5) == 5
    prior, half = random_gaussian(seeded(0)), Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))
    constraint, x_t = Linear(half, half(prior.sample(1, seeded(1)))), normal(seeded(2), 2, *prior.shape)
    with pytest.raises(ValueError, match="RePaint draws noise: run it by trajectory, or give it a generator"):
        RePaint()(prior.denoiser(SCHEDULE), constraint, x_t, 0.5, None)
