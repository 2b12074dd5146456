"""Transitions against exact solutions and against the schedulers of diffusers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Unconstrained
from adhere.core.denoisers import NetworkDenoiser
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, log_snr_spacing
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DDIM, DPMSolver2M
from tests.core.exact import assert_close, normal, random_gaussian, seeded

TRANSITIONS = [DDIM(0.0), DDIM(1.0), DPMSolver2M(0.0), DPMSolver2M(1.0)]
SCHEDULES = [FlowSchedule(), CosineSchedule()]


def plain_states(denoiser, x_T, timesteps, transition, generator=None):
    generator = seeded(1) if generator is None else generator
    return list(trajectory(denoiser, Unconstrained(), Plain(), x_T, timesteps, transition, generator))


# Exact solutions -----------------------------------------------------------------------------------------------------


def exact_flow(prior, x_t, t, s, schedule):
    """Solve the probability-flow ODE of a Gaussian: x_s - alpha_s mu = C_s^1/2 C_t^-1/2 (x_t - alpha_t mu)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    lam, V = torch.linalg.eigh(prior.covariance)
    ratio = ((alpha_s**2 * lam + sigma_s**2) / (alpha_t**2 * lam + sigma_t**2)).sqrt()
    moved = ((x_t - alpha_t * prior.mean).flatten(1) @ V * ratio) @ V.T
    return alpha_s * prior.mean + moved.view_as(x_t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["flow", "cosine"])
@pytest.mark.parametrize(("transition", "order"), [(DDIM(0.0), 1), (DPMSolver2M(0.0), 2)], ids=["DDIM", "2M"])
def test_the_observed_order_on_the_probability_flow_is_the_stated_one(transition, order, schedule):
    """Halving the steps in log-SNR divides the error at the last noise level by 2^order."""
    prior = random_gaussian(seeded(0))
    start, end = -2.0, 2.0
    t, s = schedule.t_from_log_snr(start), schedule.t_from_log_snr(end)
    x_T = normal(seeded(1), 4, *prior.shape)
    exact = exact_flow(prior, x_T, t, s, schedule)
    errors = []
    for num_steps in (40, 80, 160):
        times = log_snr_spacing(schedule, num_steps + 1, start, end)
        errors.append(float((plain_states(prior.denoiser(schedule), x_T, times, transition)[-1].x_t - exact).norm()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # The next term of the error is one order higher: at 40 steps of h = 0.1 it shifts the observed order by about h.
    assert orders == pytest.approx([order, order], abs=0.15), errors


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_ddim_without_noise_is_eulers_method_on_the_rectified_flow(a, b):
    s, t = sorted((a, b))
    x_t, x0 = normal(seeded(0), 2, 2, 1, 2, 2)
    eps = (x_t - (1 - t) * x0) / t
    x_s, memory = DDIM(0.0)(FlowSchedule(), x_t, x0, t, s, None, seeded(0))
    assert_close(x_s, x_t + (s - t) * (eps - x0))
    assert memory is None


@pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["flow", "cosine"])
def test_a_known_x0_keeps_the_marginal(transition, schedule):
    """For a point prior, x_t - alpha_t x0 is N(0, sigma_t^2) at every noise level, whatever noise is added."""
    x0 = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    times, g = log_snr_spacing(schedule, 4, -1.0, 1.0), seeded(0)
    alpha_t, sigma_t = schedule(times[0])
    x_t, memory = alpha_t * x0 + sigma_t * normal(g, *x0.shape), None
    for t, s in pairwise(times):
        x_t, memory = transition(schedule, x_t, x0, t, s, memory, g)
        alpha_s, sigma_s = schedule(s)
        z = (x_t - alpha_s * x0) / sigma_s
        # Five standard errors of the mean and variance of 20,000 standard normals.
        assert abs(z.mean()) < 5 / math.sqrt(len(z))
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))


def test_temperature_scales_the_noise_of_the_stochastic_solver():
    """x_s is the step without noise plus temperature times the same noise."""
    schedule, x_t, x0 = CosineSchedule(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def step(temperature: float):
        return DPMSolver2M(temperature=temperature)(schedule, x_t, x0, 0.8, 0.5, None, seeded(3))[0]

    without, half, full = step(0.0), step(0.5), step(1.0)
    torch.testing.assert_close(half, (without + full) / 2)
    assert (full - without).abs().max() > 0.1


def test_dpm_solver_refuses_pure_noise():
    x_t = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="DPMSolver2M cannot start from pure noise"):
        DPMSolver2M()(FlowSchedule(), x_t, x_t, 1.0, 0.5, None, seeded(0))


# diffusers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    return UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **small).eval()


def denoiser_of(unet, scheduler, prediction_type):
    return NetworkDenoiser.from_alphas_cumprod(
        lambda x_t, t: unet(x_t, t).sample, scheduler.alphas_cumprod, prediction_type
    )


def states_of_diffusers(unet, scheduler, x_T, **options):
    """Return x_t before each step and after the last one, by the steps of diffusers' own scheduler."""
    states = [x_T]
    for t in scheduler.timesteps:
        states.append(scheduler.step(unet(states[-1], t).sample, t, states[-1], **options).prev_sample)
    return states


def assert_same_states(ours, theirs):
    """To 1e-4 of each state's largest entry: float32, and an epsilon network's x0 is divided by a small alpha_t."""
    for state, x_t in zip([*(state.x_t for state in ours), ours[-1].x0], theirs, strict=True):
        torch.testing.assert_close(state, x_t, rtol=0, atol=1e-4 * max(1.0, float(x_t.abs().max())))


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_plain_ddim_is_that_of_diffusers(unet, prediction_type, eta):
    """All states; the last step of theirs, to alpha = 1, returns the x0 that ends ours."""
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = states_of_diffusers(unet, scheduler, x_T, eta=eta, generator=seeded(1))
    denoiser = denoiser_of(unet, scheduler, prediction_type)
    ours = plain_states(denoiser, x_T, denoiser.schedule.timesteps(10), DDIM(eta), seeded(1))
    assert_same_states(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("algorithm", "eta"), [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_plain_dpm_solver_is_that_of_diffusers(unet, prediction_type, algorithm, eta):
    """Steps that are not uniform in log-SNR, so that the ratio of two steps matters. Their last step too is x0."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=prediction_type, algorithm_type=algorithm, solver_order=2, solver_type="midpoint"
    )
    times = [999, 900, 750, 640, 500, 300, 180, 90, 20, 1]
    scheduler.set_timesteps(timesteps=times)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = states_of_diffusers(unet, scheduler, x_T, generator=seeded(1))
    denoiser = denoiser_of(unet, scheduler, prediction_type)
    ours = plain_states(denoiser, x_T, [float(t) for t in times], DPMSolver2M(eta), seeded(1))
    assert_same_states(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_plain_ddim_on_a_flow_is_the_euler_scheduler_of_diffusers(unet, shift, num_steps):
    """From pure noise, where alpha = 0: all states and the end."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = states_of_diffusers(unet, scheduler, x_T)
    schedule = FlowSchedule(1000.0, shift, s_end=scheduler.sigma_min)
    denoiser = NetworkDenoiser(lambda x_t, t: unet(x_t, t).sample, schedule, "flow_prediction")
    ours = plain_states(denoiser, x_T, schedule.timesteps(num_steps), DDIM(0.0))
    for state, x_t in zip([*(state.x_t for state in ours), ours[-1].x0], theirs, strict=True):
        torch.testing.assert_close(state, x_t, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_that_of_diffusers(unet, prediction_type):
    """Without noise, since with it theirs is NaN."""
    scheduler = DDIMScheduler(
        prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    scheduler.set_timesteps(10)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = states_of_diffusers(unet, scheduler, x_T)
    denoiser = denoiser_of(unet, scheduler, prediction_type)
    assert isinstance(denoiser.schedule, DDPMSchedule)
    times = denoiser.schedule.timesteps(10)
    assert denoiser.schedule(times[0])[0] == 0
    assert_same_states(plain_states(denoiser, x_T, times, DDIM(0.0)), theirs)
