"""Schedules against diffusers and their own inverses, and the one rule that turns every network's output into x0."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.denoise import Prediction
from adhere.core.schedule import (
    Discrete,
    RectifiedFlow,
    Trigonometric,
    is_descending,
    log_snr,
    log_snr_timesteps,
)
from tests.core.exact import close, normal, seeded

DDPM = Discrete.from_betas()
CONTINUOUS = [RectifiedFlow(), RectifiedFlow(scale=1000.0), Trigonometric()]
SCHEDULES = [DDPM, *CONTINUOUS]
MANY = settings(max_examples=25, deadline=None)


def name_of(schedule):
    return type(schedule).__name__


def time_of(schedule, fraction):
    """A time of the schedule, `fraction` of the way from the image to noise."""
    return (
        float(round(999 * fraction)) if isinstance(schedule, Discrete) else fraction * getattr(schedule, "scale", 1.0)
    )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "reversed_flow"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@MANY
@given(fraction=st.floats(0.001, 0.999), seed=st.integers(0, 2**32 - 1))
def test_a_perfect_network_gives_x0_back(prediction, schedule, fraction, seed):
    """The outputs as their papers define them, not as p x0 + q eps."""
    t = time_of(schedule, fraction)
    x0, eps = normal(seeded(seed), 2, 2, 3)
    alpha_t, sigma_t = schedule(t)
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": alpha_t * eps - sigma_t * x0}
    out = {**outputs, "flow": eps - x0, "reversed_flow": x0 - eps}[prediction]
    denoiser = Prediction(lambda x_t, time: out if time == t else x_t * math.nan, schedule, prediction, torch.float64)
    # Round-off in x_t is multiplied by 1 / alpha_t, at most 1e3 here.
    close(denoiser(alpha_t * x0 + sigma_t * eps, t), x0, 1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@MANY
@given(first=st.floats(0.001, 0.999), second=st.floats(0.001, 0.999))
def test_alpha_and_sigma_are_what_the_schedule_promises(schedule, first, second):
    s, t = sorted(time_of(schedule, fraction) for fraction in (first, second))
    alpha_t, sigma_t = schedule(t)
    assert alpha_t > 0 and sigma_t > 0
    total = alpha_t + sigma_t if isinstance(schedule, RectifiedFlow) else alpha_t**2 + sigma_t**2
    assert total == pytest.approx(1, abs=1e-12)
    assert log_snr(schedule, t) <= log_snr(schedule, s)  # noise grows with t


def test_the_default_table_is_diffusers():
    # diffusers multiplies 1000 factors in float32: up to 1000 half-ulps, 6e-5, from the float64 product.
    ours, theirs = torch.tensor(DDPM.alphas_cumprod), DDIMScheduler().alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=6e-5, atol=0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 1000))
def test_discrete_evenly_is_ddims(spacing, offset, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()
    if spacing == "trailing":
        theirs = theirs[:steps]  # NumPy's arange can give one more, -1
    if theirs[0] == 1000:
        theirs = [t - 1 for t in theirs]  # beyond the table
    assert replace(DDPM, spacing=spacing, offset=offset).evenly(steps) == theirs


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_a_single_step_begins_in_noise(schedule):
    assert log_snr(schedule, schedule.evenly(1)[0]) < 1e-9


def test_leading_strides_begin_late():
    assert [replace(DDPM, spacing="leading", offset=1).evenly(steps)[0] for steps in (1, 2, 20)] == [1, 501, 951]


FLOWS = [(1.0, 0.001), (3.0, 0.001), (1.15, None), (3.0, None)]


def flow_scheduler(shift, last, steps):
    """Its grid as pipelines set it: with the noise levels given, or with a shift of e^mu."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    end = 1 / steps if last is None else last
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, end, steps).double().numpy(), mu=math.log(shift))
    return scheduler


@pytest.mark.parametrize(("shift", "last"), FLOWS)
@pytest.mark.parametrize("steps", [1, 2, 7, 28, 50])
def test_flow_times_are_diffusers(shift, last, steps):
    theirs = flow_scheduler(shift, last, steps).timesteps.double()
    ours = RectifiedFlow(1000.0, shift, last).evenly(steps)
    torch.testing.assert_close(torch.tensor(ours).double(), theirs, rtol=1e-6, atol=0)  # theirs are float32
    assert ours[0] == 1000  # pure noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@pytest.mark.parametrize("steps", [1, 2, 20, 999, 1000])
def test_evenly_gives_that_many_levels_from_noise_to_image(schedule, steps):
    times = schedule.evenly(steps)
    assert len(times) == steps
    assert is_descending(schedule, times)


@MANY
@given(t=st.integers(0, 999))
def test_time_at_inverts_a_table(t):
    assert DDPM.time_at(log_snr(DDPM, float(t))) == t


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=name_of)
@MANY
@given(lam=st.floats(-8, 8))
def test_time_at_inverts_a_function(schedule, lam):
    # 1 - t loses up to e^8 ulps.
    assert log_snr(schedule, schedule.time_at(lam)) == pytest.approx(lam, abs=1e-10)


@MANY
@given(lam=st.floats(-12, 12))
def test_time_at_of_a_table_is_the_nearest_index(lam):
    distances = [abs(0.5 * math.log(a / (1 - a)) - lam) for a in DDPM.alphas_cumprod]
    assert distances[round(DDPM.time_at(lam))] == pytest.approx(min(distances), abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
@MANY
@given(steps=st.integers(1, 60), first=st.floats(-4, 0), last=st.floats(0.5, 4))
def test_log_snr_timesteps_descend_from_end_to_end(schedule, steps, first, last):
    times = log_snr_timesteps(schedule, steps, first, last)
    assert is_descending(schedule, times)
    assert times[0] == schedule.time_at(first)
    if steps > 1:
        assert times[-1] == pytest.approx(schedule.time_at(last))
    assert len(times) == steps or (isinstance(schedule, Discrete) and len(times) < steps)


@pytest.mark.parametrize("schedule", [DDPM, replace(DDPM, alphas_cumprod=(*DDPM.alphas_cumprod, 0.0))])
def test_log_snr_timesteps_beyond_a_table_are_even_within_it(schedule):
    lam = [log_snr(schedule, t) for t in log_snr_timesteps(schedule, 9, -40.0, 40.0)]
    table = [log_snr(DDPM, float(t)) for t in (999, 0)]
    assert lam[0] == table[0] and lam[-1] == table[1]
    step = (table[1] - table[0]) / 8
    assert all(abs(b - a - step) < 0.4 * step for a, b in pairwise(lam))  # indices are whole numbers


def test_log_snr_timesteps_are_even():
    lam = [log_snr(Trigonometric(), t) for t in log_snr_timesteps(Trigonometric(), 9, -2.0, 3.0)]
    assert [b - a for a, b in pairwise(lam)] == pytest.approx([5 / 8] * 8)


def test_is_descending():
    assert is_descending(DDPM, [900.0, 500.0, 1.0])
    assert not is_descending(DDPM, [500.0, 900.0])
    assert not is_descending(DDPM, [500.0, 500.0])


@pytest.mark.parametrize("t", [0.5, -1.0, 1000.0])
def test_a_table_refuses_times_it_does_not_have(t):
    with pytest.raises(ValueError, match=r"timestep .*0 to 999"):
        DDPM(t)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps = {steps}"):
        log_snr_timesteps(DDPM, steps, -2.0, 3.0)
    for schedule in SCHEDULES:
        with pytest.raises(ValueError, match=f"steps = {steps}"):
            schedule.evenly(steps)


def test_more_steps_than_the_table_has_are_refused():
    for levels in (DDPM.evenly, lambda steps: log_snr_timesteps(DDPM, steps, -2.0, 3.0)):
        with pytest.raises(ValueError, match="1 to 1000"):
            levels(1001)


def test_zero_terminal_snr_is_minus_infinity_and_never_chosen_by_log_snr():
    table = Discrete((*DDPM.alphas_cumprod[:-1], 0.0))
    assert log_snr(table, 999.0) == -math.inf
    assert is_descending(table, table.evenly(1000))
    for lam in (-math.inf, -300.0, -6.0, log_snr(table, 998.0)):
        assert table.time_at(lam) == 998
    assert table.time_at(log_snr(table, 500.0)) == 500
    assert Discrete((0.0,)).time_at(-1.0) == 0  # there is no other


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Discrete((0.9, 0.5, 0.0))], ids=name_of)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow", "reversed_flow", "epsilon"])
def test_from_nothing_but_noise_all_but_epsilon_know_x0(schedule, prediction):
    t = schedule.evenly(2)[0]
    assert schedule(t) == (0.0, 1.0)
    x0, eps = normal(seeded(0), 2, 2, 3)
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": -x0, "flow": eps - x0, "reversed_flow": x0 - eps}
    denoiser = Prediction(lambda x_t, time: outputs[prediction], schedule, prediction, torch.float64)
    if prediction == "epsilon":
        with pytest.raises(ValueError, match="predicts epsilon cannot start from nothing but noise"):
            denoiser(eps, t)
    else:
        close(denoiser(eps, t), x0)
