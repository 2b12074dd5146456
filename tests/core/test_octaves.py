"""Octaves: exact where pictures have no details, a symmetric Jacobian, and the scale its rule says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from adhere.core.denoise import Counted, Prediction
from adhere.core.octaves import Octaves
from adhere.core.priors import Gaussian
from adhere.core.schedule import Discrete, RectifiedFlow, Trigonometric, log_snr
from tests.core.exact import close, matrix_of, normal, random_gaussian, seeded

CONTINUOUS = [Trigonometric(), RectifiedFlow()]


def repeated(coarse: Gaussian, f: int) -> Gaussian:
    """The prior of `coarse`'s pictures with every pixel repeated f x f times."""
    up = lambda x: interpolate(x, scale_factor=f, mode="nearest")  # noqa: E731
    N = matrix_of(up, tuple(coarse.mean.shape))
    return Gaussian(up(coarse.mean[None])[0], N @ coarse.covariance @ N.T)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@settings(max_examples=20, deadline=None)
@given(octaves=st.integers(1, 2), log_snr=st.floats(-3, 3), seed=st.integers(0, 99))
def test_pictures_without_details_are_denoised_exactly(schedule, octaves, log_snr, seed):
    g, f, t = seeded(seed), 2**octaves, schedule.time_at(log_snr)
    coarse = random_gaussian(g, (2, 2, 3))
    x_t = normal(g, 2, 2, 2 * f, 3 * f)
    octaves_of = Octaves(coarse.denoiser(schedule), octaves, math.inf)
    close(octaves_of(x_t, t), repeated(coarse, f).denoiser(schedule)(x_t, t), 1e-7)


def test_the_jacobian_stays_symmetric():
    schedule = Trigonometric()
    denoiser = Octaves(random_gaussian(seeded(0), (1, 2, 2)).denoiser(schedule), 1, math.inf)
    origin = denoiser(torch.zeros(1, 1, 4, 4, dtype=torch.float64), 0.7)
    J = matrix_of(lambda x: denoiser(x, 0.7) - origin, (1, 4, 4))
    assert J.abs().max() > 0.01
    close(J, J.T)


@settings(max_examples=50, deadline=None)
@given(until=st.floats(-4, 4), log_snr_t=st.floats(-4, 4), most=st.integers(0, 3))
def test_the_smallest_picture_whose_noise_still_drowns_details(until, log_snr_t, most):
    """f doubles while the network is shown at most `until`: shown(f) <= until < shown(2 f), but for the ends."""
    schedule, shown = Trigonometric(), []

    def network(x_t, t):
        shown.append((x_t.shape[-1], log_snr(schedule, t)))
        return x_t

    counted = Counted(Octaves(Prediction(network, schedule, "sample", torch.float64), most, until))
    counted(normal(seeded(0), 1, 1, 8, 8), schedule.time_at(log_snr_t))
    ((side, seen),) = shown
    f = 8 // side
    assert counted.nfe == 1
    assert seen == pytest.approx(log_snr_t + math.log(f))
    assert f == 1 or seen <= until + 1e-9
    assert f == 2**most or seen + math.log(2) > until - 1e-9


def test_sides_that_cannot_be_halved_are_left():
    schedule = Trigonometric()
    denoiser = Octaves(Prediction(lambda x_t, t: x_t, schedule, "sample", torch.float64), 3, math.inf)
    sides = {(7, 8): 1, (6, 8): 2, (12, 20): 4, (16, 32): 8}
    assert {size: denoiser.factor(torch.zeros(1, 1, *size), 0.5) for size in sides} == sides


def test_a_table_of_times_shows_the_noise_it_says():
    """The nearest time's noise, not the wanted log-SNR's: white noise of sigma_s exactly."""
    schedule, seen = Discrete.from_betas(), []
    network = Prediction(lambda x_t, t: seen.append((x_t, t)) or x_t, schedule, "sample", torch.float64)
    noise = normal(seeded(0), 1, 1, 512, 512)
    t = 700.0
    Octaves(network, 1, math.inf)(schedule(t)[1] * noise, t)
    ((x, s),) = seen
    assert x.std() == pytest.approx(schedule(s)[1], rel=0.01)
