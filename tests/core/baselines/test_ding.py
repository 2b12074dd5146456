"""DING: its posterior by Bayes' rule, its transition, and its cost; in float64."""

import math

import pytest
import torch

from adhere.core.baselines.ding import DING, Decoupled
from adhere.core.constraints import Linear
from adhere.core.denoisers import CountingDenoiser
from adhere.core.operators import Mask
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule, FlowSchedule
from tests.core.exact import assert_close, last_x0, normal, random_gaussian, seeded

SCHEDULE = CosineSchedule()
LEFT_HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))


def left_half_case(noise=0.0):
    """Return (prior, constraint, x_t): a Gaussian prior of (1, 2, 2) whose left half is known."""
    g = seeded(0)
    prior = random_gaussian(g)
    y = LEFT_HALF(prior.sample(1, g) + noise * normal(g, 1, *prior.shape))
    return prior, Linear(LEFT_HALF, y, noise), normal(g, 2, *prior.shape)


@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule()], ids=["cosine", "flow"])
def test_x_s_is_drawn_from_the_product_of_step_and_likelihood(schedule):
    """Given z: N(mu, eta^2) N(y; (x - sigma eps) / alpha, noise^2), by Bayes' rule in precisions."""
    noise, t, s, count = 0.3, 0.7, 0.4, 20000
    prior, constraint, x_t = left_half_case(noise)
    denoiser = prior.denoiser(schedule)
    previous = (x_t[:1], denoiser(x_t[:1], t), t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    eta = sigma_s**2 / (alpha_s + sigma_s)
    mu = alpha_s * previous[1] + math.sqrt(sigma_s**2 - eta**2) * (x_t[:1] - alpha_t * previous[1]) / sigma_t
    z = x_t[1:].expand(count, 1, 2, 2)
    eps = (z[:1] - alpha_s * denoiser(z[:1], s)) / sigma_s
    step, likelihood = 1 / eta**2, 1 / (alpha_s * noise) ** 2
    posterior = (step * mu + likelihood * (alpha_s * constraint.y + sigma_s * eps)) / (step + likelihood)
    known = LEFT_HALF.known
    mean = known * posterior + (1 - known) * mu
    variance = known / (step + likelihood) + (1 - known) / step
    x_s, x0, memory = DING(generator=seeded(1))(denoiser, constraint, z, s, previous)
    assert ((x_s.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
    assert ((x_s.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    assert_close(x0, denoiser(x_s, s), 1e-12)
    assert memory[0] is x_s and memory[1] is x0 and memory[2] == s


def test_the_transition_is_that_of_the_paper_on_a_flow_and_keeps_the_marginal():
    """eta_s = sigma_s (1 - alpha_s); with the true x0 and noise, x_s is alpha_s x0 + sigma_s white noise."""
    schedule, t, s, count = FlowSchedule(), 0.7, 0.4, 20000
    x0 = torch.full((count, 1), 2.0).double()
    x_t = 0.3 * x0 + 0.7 * normal(seeded(0), count, 1)
    one, _ = Decoupled()(schedule, x_t, x0, t, s, None, seeded(1))
    assert abs(float((one - 0.6 * x0).mean())) < 5 * 0.4 / math.sqrt(count)
    assert abs(float((one - 0.6 * x0).var()) / 0.16 - 1) < 5 * math.sqrt(2 / count)
    fixed = x_t[:1].expand(count, 1)
    again, _ = Decoupled()(schedule, fixed, x0, t, s, None, seeded(2))
    assert abs(float(again.std()) / (0.4 * (1 - 0.6)) - 1) < 5 / math.sqrt(2 * count)


def test_a_noise_level_takes_two_evaluations_and_the_first_takes_one():
    prior, constraint, x_t = left_half_case()
    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    last_x0(trajectory(counting, constraint, DING(), x_t, [0.9, 0.6, 0.3], Decoupled(), seeded(0)))
    assert (counting.nfe, counting.num_backward) == (5, 0)
