"""Noise schedules against diffusers and against their own inverses, and x0 from every prediction type."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.denoisers import NetworkDenoiser
from adhere.core.sampling import _is_decreasing_noise
from adhere.core.schedules import (
    CosineSchedule,
    DDPMSchedule,
    FlowSchedule,
    Schedule,
    log_snr,
    log_snr_spacing,
    uniform_spacing,
)
from tests.core.exact import assert_close, normal, seeded

DDPM = DDPMSchedule.from_betas()
CONTINUOUS = [FlowSchedule(), FlowSchedule(scale=1000.0), CosineSchedule()]
SCHEDULES = [DDPM, *CONTINUOUS]
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction", "flow_prediction", "reversed_flow_prediction"]
many_examples = settings(max_examples=25, deadline=None)


def name_of(schedule):
    return type(schedule).__name__


def time_of_fraction(schedule, fraction):
    """Return a time of the schedule, `fraction` of the way from the image to noise."""
    if isinstance(schedule, DDPMSchedule):
        return float(round(999 * fraction))
    return fraction * getattr(schedule, "scale", 1.0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@many_examples
@given(fraction=st.floats(0.001, 0.999), seed=st.integers(0, 2**32 - 1))
def test_a_network_without_error_gives_x0(prediction_type, schedule, fraction, seed):
    """The outputs are those of the papers' definitions, not p x0 + q eps. The network is called at the right time."""
    t = time_of_fraction(schedule, fraction)
    x0, eps = normal(seeded(seed), 2, 2, 3)
    alpha_t, sigma_t = schedule(t)
    out = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha_t * eps - sigma_t * x0,
        "flow_prediction": eps - x0,
        "reversed_flow_prediction": x0 - eps,
    }[prediction_type]

    def network(x_t, times):
        return out if times.tolist() == [t, t] else x_t * math.nan

    denoiser = NetworkDenoiser(network, schedule, prediction_type, torch.float64, torch.float64)
    # Rounding errors in x_t are multiplied by 1 / alpha_t, at most 1e3 here.
    assert_close(denoiser(alpha_t * x0 + sigma_t * eps, t), x0, 1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@many_examples
@given(first=st.floats(0.001, 0.999), second=st.floats(0.001, 0.999))
def test_alpha_and_sigma_are_positive_and_noise_grows_with_t(schedule, first, second):
    s, t = sorted(time_of_fraction(schedule, fraction) for fraction in (first, second))
    alpha_t, sigma_t = schedule(t)
    assert alpha_t > 0 and sigma_t > 0
    total = alpha_t + sigma_t if isinstance(schedule, FlowSchedule) else alpha_t**2 + sigma_t**2
    assert total == pytest.approx(1, abs=1e-12)
    assert log_snr(schedule, t) <= log_snr(schedule, s)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_every_schedule_follows_the_protocol(schedule):
    assert isinstance(schedule, Schedule)


def test_the_default_betas_give_the_table_of_diffusers():
    # diffusers multiplies 1000 factors in float32: up to 1000 half-ulps, 6e-5, from the product in float64.
    ours, theirs = torch.tensor(DDPM.alphas_cumprod), DDIMScheduler().alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=6e-5, atol=0)


@pytest.mark.parametrize("steps_offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@settings(max_examples=100, deadline=None)
@given(num_steps=st.integers(1, 1000))
def test_timesteps_of_a_table_are_those_of_the_ddim_scheduler(spacing, steps_offset, num_steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=steps_offset)
    scheduler.set_timesteps(num_steps)
    theirs = scheduler.timesteps.tolist()
    if spacing == "trailing":
        theirs = theirs[:num_steps]  # NumPy's arange can give one more, -1
    if theirs[0] == 1000:
        theirs = [t - 1 for t in theirs]  # beyond the table
    assert replace(DDPM, spacing=spacing, steps_offset=steps_offset).timesteps(num_steps) == theirs


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_a_single_timestep_is_at_high_noise(schedule):
    assert log_snr(schedule, schedule.timesteps(1)[0]) < 1e-9


def test_leading_timesteps_of_few_steps_begin_below_the_last_time():
    schedule = replace(DDPM, spacing="leading", steps_offset=1)
    assert [schedule.timesteps(num_steps)[0] for num_steps in (1, 2, 20)] == [1, 501, 951]


FLOWS = [(1.0, 0.001), (3.0, 0.001), (1.15, None), (3.0, None)]


def flow_scheduler(shift, s_end, num_steps):
    """Return diffusers' scheduler as pipelines set it: with the noise levels given, or with a shift of e^mu."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    end = 1 / num_steps if s_end is None else s_end
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, end, num_steps).double().numpy(), mu=math.log(shift))
    return scheduler


@pytest.mark.parametrize(("shift", "s_end"), FLOWS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 28, 50])
def test_timesteps_of_a_flow_are_those_of_the_flow_match_scheduler(shift, s_end, num_steps):
    theirs = flow_scheduler(shift, s_end, num_steps).timesteps.double()
    ours = FlowSchedule(1000.0, shift, s_end).timesteps(num_steps)
    torch.testing.assert_close(torch.tensor(ours).double(), theirs, rtol=1e-6, atol=0)  # theirs are float32
    assert ours[0] == 1000  # pure noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@pytest.mark.parametrize("num_steps", [1, 2, 20, 999, 1000])
def test_timesteps_are_as_many_as_requested_from_high_noise_to_low(schedule, num_steps):
    times = schedule.timesteps(num_steps)
    assert len(times) == num_steps
    assert _is_decreasing_noise(schedule, times)
    assert uniform_spacing(schedule, num_steps) == times


@many_examples
@given(t=st.integers(0, 999))
def test_t_from_log_snr_inverts_a_table(t):
    assert DDPM.t_from_log_snr(log_snr(DDPM, float(t))) == t


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=name_of)
@many_examples
@given(target=st.floats(-8, 8))
def test_t_from_log_snr_inverts_a_continuous_schedule(schedule, target):
    # 1 - t loses up to e^8 ulps.
    assert log_snr(schedule, schedule.t_from_log_snr(target)) == pytest.approx(target, abs=1e-10)


@many_examples
@given(target=st.floats(-12, 12))
def test_t_from_log_snr_of_a_table_is_the_nearest_time(target):
    distances = [abs(0.5 * math.log(a / (1 - a)) - target) for a in DDPM.alphas_cumprod]
    assert distances[round(DDPM.t_from_log_snr(target))] == pytest.approx(min(distances), abs=1e-12)  # measured: 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@many_examples
@given(num_steps=st.integers(1, 60), start=st.floats(-4, 0), end=st.floats(0.5, 4))
def test_log_snr_spacing_goes_from_one_bound_to_the_other(schedule, num_steps, start, end):
    times = log_snr_spacing(schedule, num_steps, start, end)
    assert _is_decreasing_noise(schedule, times)
    assert times[0] == schedule.t_from_log_snr(start)
    if num_steps > 1:
        assert times[-1] == pytest.approx(schedule.t_from_log_snr(end), rel=1e-11)
    assert len(times) == num_steps or (isinstance(schedule, DDPMSchedule) and len(times) < num_steps)


@pytest.mark.parametrize("schedule", [DDPM, replace(DDPM, alphas_cumprod=(*DDPM.alphas_cumprod, 0.0))])
def test_log_snr_spacing_beyond_a_table_is_uniform_within_it(schedule):
    lambdas = [log_snr(schedule, t) for t in log_snr_spacing(schedule, 9, -40.0, 40.0)]
    table = [log_snr(DDPM, float(t)) for t in (999, 0)]
    assert lambdas[0] == table[0] and lambdas[-1] == table[1]
    step = (table[1] - table[0]) / 8
    assert all(abs(b - a - step) < 0.4 * step for a, b in pairwise(lambdas))  # times are integers


def test_log_snr_spacing_is_uniform_in_log_snr():
    lambdas = [log_snr(CosineSchedule(), t) for t in log_snr_spacing(CosineSchedule(), 9, -2.0, 3.0)]
    assert [b - a for a, b in pairwise(lambdas)] == pytest.approx([5 / 8] * 8, rel=1e-12)


def test_is_decreasing_noise():
    assert _is_decreasing_noise(DDPM, [900.0, 500.0, 1.0])
    assert not _is_decreasing_noise(DDPM, [500.0, 900.0])
    assert not _is_decreasing_noise(DDPM, [500.0, 500.0])


@pytest.mark.parametrize("t", [0.5, -1.0, 1000.0])
def test_a_table_refuses_times_it_does_not_have(t):
    with pytest.raises(ValueError, match=r"timestep .*0 to 999"):
        DDPM(t)


@pytest.mark.parametrize("num_steps", [0, -3])
def test_fewer_than_one_step_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_inference_steps = {num_steps}"):
        log_snr_spacing(DDPM, num_steps, -2.0, 3.0)
    for schedule in SCHEDULES:
        with pytest.raises(ValueError, match=f"num_inference_steps = {num_steps}"):
            schedule.timesteps(num_steps)


def test_more_steps_than_the_table_has_are_refused():
    for timesteps in (DDPM.timesteps, lambda num_steps: log_snr_spacing(DDPM, num_steps, -2.0, 3.0)):
        with pytest.raises(ValueError, match="1 to 1000"):
            timesteps(1001)


def test_zero_terminal_snr_is_minus_infinity_and_never_chosen_by_log_snr():
    table = DDPMSchedule((*DDPM.alphas_cumprod[:-1], 0.0))
    assert log_snr(table, 999.0) == -math.inf
    assert _is_decreasing_noise(table, table.timesteps(1000))
    for target in (-math.inf, -300.0, -6.0, log_snr(table, 998.0)):
        assert table.t_from_log_snr(target) == 998
    assert table.t_from_log_snr(log_snr(table, 500.0)) == 500
    assert DDPMSchedule((0.0,)).t_from_log_snr(-1.0) == 0  # there is no other


@pytest.mark.parametrize("schedule", [FlowSchedule(), DDPMSchedule((0.9, 0.5, 0.0))], ids=name_of)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_from_pure_noise_every_prediction_type_but_epsilon_gives_x0(schedule, prediction_type):
    t = schedule.timesteps(2)[0]
    assert schedule(t) == (0.0, 1.0)
    x0, eps = normal(seeded(0), 2, 2, 3)
    out = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": -x0,
        "flow_prediction": eps - x0,
        "reversed_flow_prediction": x0 - eps,
    }[prediction_type]
    denoiser = NetworkDenoiser(lambda x_t, times: out, schedule, prediction_type, torch.float64)
    if prediction_type == "epsilon":
        with pytest.raises(ValueError, match="predicts epsilon cannot start from pure noise"):
            denoiser(eps, t)
    else:
        assert_close(denoiser(eps, t), x0)
