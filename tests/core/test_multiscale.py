"""The multiscale denoiser: exact for pictures without details, a symmetric Jacobian, and the scale its rule states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from adhere.core.denoisers import CountingDenoiser, NetworkDenoiser
from adhere.core.multiscale import MultiscaleDenoiser
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, log_snr
from adhere.testing.priors import Gaussian
from tests.core.exact import assert_close, matrix_of, normal, random_gaussian, seeded

CONTINUOUS = [CosineSchedule(), FlowSchedule()]


def repeated(coarse: Gaussian, f: int) -> Gaussian:
    """Return the prior over the pictures of `coarse` with every pixel repeated f x f times."""

    def up(x):
        return interpolate(x, scale_factor=f, mode="nearest")

    N = matrix_of(up, tuple(coarse.mean.shape))
    return Gaussian(up(coarse.mean[None])[0], N @ coarse.covariance @ N.T)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@settings(max_examples=20, deadline=None)
@given(downsamplings=st.integers(1, 2), log_snr=st.floats(-3, 3), seed=st.integers(0, 99))
def test_pictures_without_details_are_denoised_exactly(schedule, downsamplings, log_snr, seed):
    g, f, t = seeded(seed), 2**downsamplings, schedule.t_from_log_snr(log_snr)
    coarse = random_gaussian(g, (2, 2, 3))
    x_t = normal(g, 2, 2, 2 * f, 3 * f)
    denoiser = MultiscaleDenoiser(coarse.denoiser(schedule), downsamplings, math.inf)
    assert_close(denoiser(x_t, t), repeated(coarse, f).denoiser(schedule)(x_t, t), 1e-7)


def test_a_side_that_the_factor_does_not_divide_is_covered_from_both_ends():
    """The network sees the largest part from each end, and the mean of the two is taken where they overlap."""
    coarse = random_gaussian(seeded(0), (2, 2, 3)).denoiser(CosineSchedule())
    x_t = normal(seeded(1), 2, 2, 5, 6)
    result = MultiscaleDenoiser(coarse, 1, math.inf, multiple=1)(x_t, 0.7)
    divided = MultiscaleDenoiser(coarse, 1, math.inf)
    first, last = divided(x_t[:, :, :4], 0.7), divided(x_t[:, :, 1:], 0.7)
    assert_close(result[:, :, 0], first[:, :, 0])
    assert_close(result[:, :, 1:4], (first[:, :, 1:] + last[:, :, :3]) / 2)
    assert_close(result[:, :, 4], last[:, :, 3])


def test_the_jacobian_stays_symmetric():
    denoiser = MultiscaleDenoiser(random_gaussian(seeded(0), (1, 2, 2)).denoiser(CosineSchedule()), 1, math.inf)
    origin = denoiser(torch.zeros(1, 1, 4, 4, dtype=torch.float64), 0.7)
    J = matrix_of(lambda x: denoiser(x, 0.7) - origin, (1, 4, 4))
    assert J.abs().max() > 0.01
    assert_close(J, J.T)


@settings(max_examples=50, deadline=None)
@given(max_log_snr=st.floats(-4, 4), log_snr_t=st.floats(-4, 4), max_downsamplings=st.integers(0, 3))
def test_the_network_sees_the_largest_factor_within_max_log_snr(max_log_snr, log_snr_t, max_downsamplings):
    """shown(f) <= max_log_snr < shown(2 f) for the log-SNR shown(f) that the network sees, within the range of f."""
    schedule, shown = CosineSchedule(), []

    def network(x_t, t):
        shown.append((x_t.shape[-1], log_snr(schedule, float(t[0]))))
        return x_t

    network_denoiser = NetworkDenoiser(network, schedule, "sample", torch.float64, torch.float64)
    counting = CountingDenoiser(MultiscaleDenoiser(network_denoiser, max_downsamplings, max_log_snr))
    counting(normal(seeded(0), 1, 1, 8, 8), schedule.t_from_log_snr(log_snr_t))
    ((side, seen),) = shown
    f = 8 // side
    assert counting.nfe == 1
    assert seen == pytest.approx(log_snr_t + math.log(f))
    assert f == 1 or seen <= max_log_snr + 1e-9
    assert f == 2**max_downsamplings or seen + math.log(2) > max_log_snr - 1e-9


def test_sides_that_cannot_be_halved_are_not():
    network = NetworkDenoiser(lambda x_t, t: x_t, CosineSchedule(), "sample", torch.float64)
    denoiser = MultiscaleDenoiser(network, 3, math.inf)
    sides = {(7, 8): 1, (6, 8): 2, (12, 20): 4, (16, 32): 8}
    assert {size: denoiser.factor(torch.zeros(1, 1, *size), 0.5) for size in sides} == sides


def test_the_noise_shown_is_that_of_the_nearest_time_of_a_table():
    """White noise of exactly sigma_s at the time s that the network is given."""
    schedule, seen = DDPMSchedule.from_betas(), []
    network = NetworkDenoiser(lambda x_t, t: seen.append((x_t, t)) or x_t, schedule, "sample", torch.float64)
    noise = normal(seeded(0), 1, 1, 512, 512)
    t = 700.0
    MultiscaleDenoiser(network, 1, math.inf)(schedule(t)[1] * noise, t)
    ((x, s),) = seen
    assert x.std() == pytest.approx(schedule(float(s[0]))[1], rel=0.01)
