"""Transitions against exact solutions and diffusers' schedulers, and what the loop promises."""

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adhere.core.constraints import Linear, Unconstrained
from adhere.core.denoise import Prediction
from adhere.core.operators import Mask
from adhere.core.sample import DDIM, DPMSolver2M, State, initial_noise, randn, sample, trajectory
from adhere.core.schedule import Discrete, RectifiedFlow, Trigonometric, log_snr, log_snr_timesteps
from adhere.core.solvers import DDNM, Plain
from adhere.core.solvers.moment_matching import MomentMatching
from tests.core.exact import close, normal, random_gaussian, random_mixture, seeded

TRANSITIONS = [DDIM(0.0), DDIM(1.0), DPMSolver2M(0.0), DPMSolver2M(1.0)]
SCHEDULES = [RectifiedFlow(), Trigonometric()]


def plain_states(denoiser, x_T, timesteps, transition, generator=None):
    generator = seeded(1) if generator is None else generator
    return list(trajectory(denoiser, Unconstrained(), Plain(), x_T, timesteps, transition, generator))


# Exact solutions -----------------------------------------------------------------------------------------------------


def exact_flow(prior, x_t, t, s, schedule):
    """The probability-flow ODE of a Gaussian prior: x_s - alpha_s mu = C_s^1/2 C_t^-1/2 (x_t - alpha_t mu)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    lam, V = torch.linalg.eigh(prior.covariance)
    ratio = ((alpha_s**2 * lam + sigma_s**2) / (alpha_t**2 * lam + sigma_t**2)).sqrt()
    moved = ((x_t - alpha_t * prior.mean).flatten(1) @ V * ratio) @ V.T
    return alpha_s * prior.mean + moved.view_as(x_t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["flow", "vp"])
@pytest.mark.parametrize(("transition", "order"), [(DDIM(0.0), 1), (DPMSolver2M(0.0), 2)], ids=["DDIM", "2M"])
def test_observed_order_on_the_probability_flow(transition, order, schedule):
    """Halving the steps in log-SNR divides the error at the last level by 2^order."""
    prior = random_gaussian(seeded(0))
    first, last = -2.0, 2.0
    t, s = schedule.time_at(first), schedule.time_at(last)
    x_T = normal(seeded(1), 4, *prior.shape)
    exact = exact_flow(prior, x_T, t, s, schedule)
    errors = []
    for steps in (40, 80, 160):
        times = log_snr_timesteps(schedule, steps + 1, first, last)
        errors.append(float((plain_states(prior.denoiser(schedule), x_T, times, transition)[-1].x_t - exact).norm()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # The next term of the error is one order higher: at 40 steps of h = 0.1 it shifts the observed order by about h.
    assert orders == pytest.approx([order, order], abs=0.15), errors


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_ddim_without_noise_is_eulers_step_on_the_rectified_flow(a, b):
    s, t = sorted((a, b))
    x_t, x0 = normal(seeded(0), 2, 2, 1, 2, 2)
    eps = (x_t - (1 - t) * x0) / t
    x_s, memory = DDIM(0.0)(RectifiedFlow(), x_t, x0, t, s, None, seeded(0))
    close(x_s, x_t + (s - t) * (eps - x0))
    assert memory is None


@pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["flow", "vp"])
def test_a_known_x0_keeps_the_marginal(transition, schedule):
    """For a point prior x_t - alpha_t x0 is N(0, sigma_t^2) at every level, whatever the noise of the transition."""
    x0 = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    times, g = log_snr_timesteps(schedule, 4, -1.0, 1.0), seeded(0)
    alpha_t, sigma_t = schedule(times[0])
    x_t, memory = alpha_t * x0 + sigma_t * normal(g, *x0.shape), None
    for t, s in pairwise(times):
        x_t, memory = transition(schedule, x_t, x0, t, s, memory, g)
        alpha_s, sigma_s = schedule(s)
        z = (x_t - alpha_s * x0) / sigma_s
        # Five standard errors of the mean and variance of 20,000 standard normals.
        assert abs(z.mean()) < 5 / math.sqrt(len(z))
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))


# diffusers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    return UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **small).eval()


def as_denoiser(unet, scheduler, prediction):
    return Prediction(
        lambda x_t, t: unet(x_t, t).sample, Discrete(tuple(scheduler.alphas_cumprod.tolist())), prediction
    )


def their_states(unet, scheduler, x_T, **options):
    """x_t before each step, and after the last, stepping diffusers' own scheduler."""
    states = [x_T]
    for t in scheduler.timesteps:
        states.append(scheduler.step(unet(states[-1], t).sample, t, states[-1], **options).prev_sample)
    return states


def assert_same_states(ours, theirs):
    """To 1e-4 of each state's largest entry: float32, and an epsilon network's x0 is divided by a small alpha_t."""
    for state, x_t in zip([*(state.x_t for state in ours), ours[-1].x0], theirs, strict=True):
        torch.testing.assert_close(state, x_t, rtol=0, atol=1e-4 * max(1.0, float(x_t.abs().max())))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_unconstrained_ddim_is_diffusers(unet, prediction, eta):
    """All states; their last step (to alpha = 1) returns the x0 that ends ours."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = their_states(unet, scheduler, x_T, eta=eta, generator=seeded(1))
    denoiser = as_denoiser(unet, scheduler, prediction)
    ours = plain_states(denoiser, x_T, denoiser.schedule.evenly(10), DDIM(eta), seeded(1))
    assert_same_states(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("algorithm", "eta"), [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_unconstrained_dpm_solver_is_diffusers(unet, prediction, algorithm, eta):
    """Uneven steps in log-SNR, so that the ratio of two steps counts; their last step too is x0."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=prediction, algorithm_type=algorithm, solver_order=2, solver_type="midpoint"
    )
    times = [999, 900, 750, 640, 500, 300, 180, 90, 20, 1]
    scheduler.set_timesteps(timesteps=times)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = their_states(unet, scheduler, x_T, generator=seeded(1))
    denoiser = as_denoiser(unet, scheduler, prediction)
    ours = plain_states(denoiser, x_T, [float(t) for t in times], DPMSolver2M(eta), seeded(1))
    assert_same_states(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_unconstrained_ddim_on_a_flow_is_diffusers_euler(unet, shift, steps):
    """From pure noise, where alpha = 0: all states and the end."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = their_states(unet, scheduler, x_T)
    schedule = RectifiedFlow(1000.0, shift, last=scheduler.sigma_min)
    denoiser = Prediction(lambda x_t, t: unet(x_t, torch.tensor(t)).sample, schedule, "flow")
    ours = plain_states(denoiser, x_T, schedule.evenly(steps), DDIM(0.0))
    for state, x_t in zip([*(state.x_t for state in ours), ours[-1].x0], theirs, strict=True):
        torch.testing.assert_close(state, x_t, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_diffusers(unet, prediction):
    """Without noise: with it, theirs is NaN."""
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    scheduler.set_timesteps(10)
    x_T = torch.randn(2, 3, 8, 8, generator=seeded(0))
    theirs = their_states(unet, scheduler, x_T)
    denoiser = as_denoiser(unet, scheduler, prediction)
    times = denoiser.schedule.evenly(10)
    assert denoiser.schedule(times[0])[0] == 0
    assert_same_states(plain_states(denoiser, x_T, times, DDIM(0.0)), theirs)


def test_what_divides_by_alpha_refuses_pure_noise():
    x_t, flow = torch.ones(1, 1, 2, 2), RectifiedFlow()
    with pytest.raises(ValueError, match="DPMSolver2M cannot start from nothing but noise"):
        DPMSolver2M()(flow, x_t, x_t, 1.0, 0.5, None, seeded(0))
    with pytest.raises(ValueError, match="moment_matching cannot start from nothing but noise"):
        MomentMatching()(PRIOR.denoiser(flow), CONSTRAINT, X_T, 1.0, None)


# The loop ------------------------------------------------------------------------------------------------------------

PRIOR = random_mixture(seeded(7))
DENOISER = PRIOR.denoiser(Trigonometric())
TIMES = Trigonometric().evenly(5)
HALF = Mask(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]).double())
CONSTRAINT = Linear(HALF, HALF(PRIOR.sample(1, seeded(8))))
X_T = normal(seeded(9), 3, 1, 2, 2)


@pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)
def test_trajectory_yields_a_state_per_level_and_sample_its_end(transition):
    states = list(trajectory(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0)))
    assert [state.step for state in states] == list(range(5))
    assert [state.t for state in states] == TIMES
    assert {state.steps for state in states} == {5}
    assert {field.name for field in fields(State)} == {"step", "steps", "t", "x_t", "x0", "constraint"}
    for state in states:
        assert state.x_t.shape == state.x0.shape == X_T.shape
        assert state.error.equal(CONSTRAINT.error(state.x0))
        assert state.x0.isfinite().all()
    assert states[0].x_t.equal(X_T)
    assert states[-1].x0.equal(sample(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0)))


def test_one_level_is_one_denoising():
    assert sample(DENOISER, Unconstrained(), Plain(), X_T, TIMES[:1], DDIM(), seeded(0)).equal(DENOISER(X_T, TIMES[0]))


@pytest.mark.parametrize("timesteps", [[], [0.2, 0.8], [0.8, 0.5, 0.5], [0.8, 0.2, 0.5]])
def test_levels_that_do_not_fall_are_refused(timesteps):
    with pytest.raises(ValueError, match="from high noise to low"):
        next(trajectory(DENOISER, Unconstrained(), Plain(), X_T, timesteps, DDIM(), seeded(0)))


@pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)
def test_nothing_is_kept_on_the_objects(transition):
    """Two runs that share solver and transition, step by step in turn, are the two runs one after the other."""

    def run(x_T, seed):
        return trajectory(DENOISER, CONSTRAINT, DDNM(), x_T, TIMES, transition, seeded(seed))

    one, other = run(X_T, 1), run(-X_T, 2)
    for a, b, together in zip(run(X_T, 1), run(-X_T, 2), zip(one, other, strict=True), strict=True):
        assert a.x_t.equal(together[0].x_t) and b.x_t.equal(together[1].x_t)


@pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)
def test_noise_is_drawn_only_when_asked_for_and_the_seed_decides_it(transition):
    ends = [sample(DENOISER, Unconstrained(), Plain(), X_T, TIMES, transition, seeded(seed)) for seed in (1, 1, 2)]
    assert ends[0].equal(ends[1])
    assert ends[0].equal(ends[2]) == (transition.eta == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_list_of_generators_draws_what_singles_would(dtype):
    like = torch.zeros(1, dtype=dtype)
    batch = randn((3, 2, 4), like, [seeded(i) for i in range(3)])
    assert batch.dtype == dtype and batch.shape == (3, 2, 4)
    assert batch.equal(torch.cat([randn((1, 2, 4), like, seeded(i)) for i in range(3)]))
    assert randn((2, 4), like, seeded(0)).equal(torch.randn(2, 4, generator=seeded(0), dtype=dtype))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_wrong_number_of_generators_is_refused(count):
    generators = [seeded(i) for i in range(count)]
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 3: give one, or one per sample"):
        randn((3, 2), torch.zeros(1), generators)
    with pytest.raises(ValueError, match="one per sample"):
        sample(DENOISER, Unconstrained(), Plain(), X_T, TIMES, DDIM(), generators)


def test_initial_noise_has_the_spread_of_unit_variance_data():
    like, white = X_T, normal(seeded(0), 3, 4)
    close(initial_noise(Trigonometric(), (3, 4), 0.9, like, seeded(0)), white)
    close(initial_noise(RectifiedFlow(), (3, 4), 0.9, like, seeded(0)), math.sqrt(0.1**2 + 0.9**2) * white)


def test_temperature_scales_the_noise_of_the_stochastic_solver():
    """x_s is the noise-free step plus temperature times the same draw."""
    schedule, x_t, x0 = Trigonometric(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def step(temperature: float):
        transition = DPMSolver2M(temperature=temperature)
        return transition(schedule, x_t, x0, 0.8, 0.5, None, torch.Generator().manual_seed(3))[0]

    cold, half, warm = step(0.0), step(0.5), step(1.0)
    torch.testing.assert_close(half, (cold + warm) / 2)
    assert (warm - cold).abs().max() > 0.1


@dataclass(frozen=True)
class Asking(Unconstrained):
    """Remembers what it was told at each renewal."""

    told: tuple[tuple[Tensor, float], ...] = ()

    def renewed(self, x0: Tensor, log_snr: float) -> "Asking":
        return replace(self, told=(*self.told, (x0, log_snr)))


def test_a_renewable_constraint_hears_of_each_level_before_the_next():
    prior = random_gaussian(seeded(0))
    denoiser, times = prior.denoiser(Trigonometric()), [0.9, 0.6, 0.3]
    x_T = normal(seeded(1), 2, *prior.shape)
    states = list(trajectory(denoiser, Asking(), Plain(), x_T, times, DDIM(), seeded(2)))
    assert [len(state.constraint.told) for state in states] == [0, 1, 2]
    for before, after in pairwise(states):
        x0, level = after.constraint.told[-1]
        assert torch.equal(x0, before.x0)
        assert level == log_snr(denoiser.schedule, after.t)
