"""The posterior mean of a noisy image against exact priors."""

import pytest
import torch

from adhere.core.constraints import Linear
from adhere.core.operators import Identity, Mask
from adhere.core.schedules import CosineSchedule, DDPMSchedule
from adhere.core.solvers._posterior_mean import PosteriorMean
from adhere.testing import check_solver
from tests.core.exact import assert_close, normal, random_gaussian, seeded


@pytest.mark.parametrize("noise", [0.01, 0.2, 2.0])
def test_it_is_the_exact_posterior_mean(noise):
    """Whatever the state is, and for one y per sample."""
    prior = random_gaussian(seeded(0))
    y = normal(seeded(1), 3, *prior.shape)
    x_t = normal(seeded(2), 3, *prior.shape)
    same_x_t, x0, memory = PosteriorMean()(
        prior.denoiser(CosineSchedule()), Linear(Identity(), y, noise), x_t, 0.7, None
    )
    assert same_x_t is x_t and memory is None
    for i in range(3):
        exact = prior.posterior(Identity(), y[i : i + 1], noise).mean
        assert_close(x0[i], exact.view(prior.shape), 1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.005])
def test_below_the_smallest_noise_of_a_schedule(noise):
    """Its first noise level is 0.01; without noise, y itself is returned."""
    prior = random_gaussian(seeded(0))
    y = normal(seeded(1), 1, *prior.shape)
    _, x0, _ = PosteriorMean()(
        prior.denoiser(DDPMSchedule.from_betas()), Linear(Identity(), y, noise), 0 * y, 0.0, None
    )
    if noise == 0:
        assert x0.equal(y)
        return
    exact = prior.posterior(Identity(), y, noise).mean.view(y.shape)
    assert (x0 - exact).norm() <= 0.05 * (y - exact).norm()  # the score changes by a fraction noise^2 / variance


def test_the_laws_of_solvers():
    check_solver(PosteriorMean(), Linear(Identity(), torch.zeros(1, 1, 4, 4), 0.1))


def test_what_is_supported():
    y = torch.zeros(1, 1, 2, 2)
    assert PosteriorMean().supports(Linear(Identity(), y, 0.1))
    assert not PosteriorMean().supports(Linear(Mask(torch.ones(1, 1, 2, 2)), y, 0.1))
