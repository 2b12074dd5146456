"""Moment matching against exact posteriors, and its details: fusion, preconditioner, losses; in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Loss, Unconstrained
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Blur
from adhere.core.noise import initial_noise
from adhere.core.operators import Mask
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, log_snr, log_snr_spacing
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.transitions import DPMSolver2M
from tests.core.exact import (
    assert_close,
    exact_jacobian,
    gaussian_case,
    last_x0,
    normal,
    random_factors,
    random_gaussian,
    seeded,
)

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()
SHAPE = (1, 2, 3)
PRIOR = random_factors(seeded(0))
LEFT_HALF = Mask(torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(1, 1, 4, 4))


def without_fusion(num_iterations=3, noise_floor=0.01):
    return MomentMatching(num_iterations, noise_floor, fusion_snr=0.0)


def left_half_case(count=4):
    """Return a constraint on a batch of images of PRIOR, with noise 0.05."""
    x = PRIOR.sample(count, seeded(1))
    return Linear(LEFT_HALF, LEFT_HALF(x + 0.05 * normal(seeded(2), *x.shape)), 0.05)


# Linear constraints --------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, TIMES, st.integers(1, 4))
def test_as_many_iterations_as_measurements_give_the_posterior_denoiser_of_a_gaussian(seed, t, m):
    noise = 0.3
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=noise)
    exact = prior.posterior(constraint.operator, constraint.y, noise).denoiser(SCHEDULE)(x_t, t)
    same_x_t, x0, memory = without_fusion(m)(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    # Differences with h = 1e-5 leave rounding errors of 1e-11, times the condition number of the small system, < 1e4.
    assert_close(x0, exact, 1e-7)
    assert same_x_t is x_t and memory is x0


@pytest.mark.parametrize("seed", range(3))
def test_samples_have_mean_and_covariance_of_the_posterior(seed):
    """Within five standard errors of 4000 samples, with steps enough that the errors of discretization are smaller."""
    prior, _, constraint, _, _ = gaussian_case(seed, m=2, noise=0.3)
    times = log_snr_spacing(SCHEDULE, 100, -5.0, 6.0)
    x_T = initial_noise(SCHEDULE, times[0], normal(seeded(5), 4000, *SHAPE))
    solver, transition = without_fusion(2), DPMSolver2M(eta=1.0)
    samples = last_x0(trajectory(prior.denoiser(SCHEDULE), constraint, solver, x_T, times, transition, seeded(6)))
    posterior = prior.posterior(constraint.operator, constraint.y, constraint.noise)
    x = samples.flatten(1) - posterior.mean.flatten()
    products = x[:, :, None] * x[:, None, :]
    for values, expected in [(x, torch.zeros_like(x[0])), (products, posterior.covariance)]:
        standard_error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - expected).abs() <= 5 * standard_error).all()


def test_a_measurement_without_noise_is_met_exactly():
    exact = Linear(LEFT_HALF, LEFT_HALF(PRIOR.sample(2, seeded(1))), 0.0)
    x_t = normal(seeded(2), 2, *PRIOR.shape)
    _, x0, _ = without_fusion(2)(PRIOR.denoiser(SCHEDULE), exact, x_t, 0.5, None)
    assert (exact.residual_norm(x0) < 1e-9).all()


@pytest.mark.parametrize("m", [1, 2, 7])
def test_one_measurement_with_noise_is_used_once(m):
    prior, _, constraint, x_t, _ = gaussian_case(0, m=1, noise=0.5)
    exact = prior.posterior(constraint.operator, constraint.y, 0.5).denoiser(SCHEDULE)(x_t, 0.5)
    assert_close(without_fusion(m)(prior.denoiser(SCHEDULE), constraint, x_t, 0.5, None)[1], exact, 1e-7)


@pytest.mark.parametrize("schedule", [FlowSchedule(), FlowSchedule(1000.0)], ids=["flow", "flow of 1000"])
def test_the_result_does_not_depend_on_the_schedule(schedule):
    """At equal log-SNR, x_t / alpha_t is the same for every schedule, and so is the conditional mean."""
    constraint, level = left_half_case(), -0.5
    x = normal(seeded(0), 4, *PRIOR.shape)
    means = []
    for one in (SCHEDULE, schedule):
        t = one.t_from_log_snr(level)
        means.append(without_fusion()(PRIOR.denoiser(one), constraint, one(t)[0] * x, t, None)[1])
    assert_close(means[0], means[1], 1e-4)  # the steps of the differences differ: first order in h, over the noise


# Number of iterations ------------------------------------------------------------------------------------------------


def test_the_number_of_iterations_is_interpolated_between_noise_levels():
    solver = MomentMatching(num_iterations=((-3.0, 3), (-1.5, 7), (4.5, 1)))
    levels = (-9.0, -2.25, -1.5, 1.5, 4.5, 9.0)
    assert [solver.iterations_at(level) for level in levels] == [3, 5, 7, 4, 1, 1]
    assert {MomentMatching(7).iterations_at(level) for level in (-9.0, 9.0)} == {7}
    assert solver.evaluations(levels) == 3 + 5 + 7 + 4 + 1 + 1 + len(levels)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 0},
        {"num_iterations": ()},
        {"num_iterations": True},
        {"num_iterations": ((math.nan, 2), (1.0, 1))},
        {"num_iterations": ((0.0, 2), (1.0, 0))},
        {"num_iterations": ((1.0, 2), (1.0, 1))},
        {"num_iterations": ((3.0, 2), (-1.5, 1))},
        {"noise_floor": -0.1},
        {"fusion_snr": -0.1},
        {"fusion_snr": math.inf},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MomentMatching(**settings)


# Fusion of the previous mean -----------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, TIMES, st.integers(1, 4), st.floats(0.01, 10))
def test_fusing_the_conditional_mean_of_a_gaussian_changes_nothing(seed, t, m, fusion_snr):
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=0.3)
    exact = prior.posterior(constraint.operator, constraint.y, 0.3).denoiser(SCHEDULE)(x_t, t)
    solver = MomentMatching(m, fusion_snr=fusion_snr)
    assert_close(solver(prior.denoiser(SCHEDULE), constraint, x_t, t, exact)[1], exact, 1e-6)


@pytest.mark.parametrize("schedule", [SCHEDULE, DDPMSchedule.from_betas(), FlowSchedule()])
def test_the_previous_mean_is_fused_below_fusion_snr_and_nowhere_else(schedule):
    """The natural parameters of the fused state are those of x_t plus those of an observation of the mean."""
    solver, x_t = MomentMatching(fusion_snr=0.2), normal(seeded(0), 1, *PRIOR.shape)
    noisy, clean = (schedule.t_from_log_snr(level) for level in (-2.0, 0.0))
    x, t = solver.fuse_previous_mean(schedule, x_t, noisy, torch.ones_like(x_t))
    assert log_snr(schedule, t) == pytest.approx(math.log(0.2) / 2, abs=0.01)
    (a, s), (a_t, s_t) = schedule(t), schedule(noisy)
    mean_and_x_t = (a / s) ** 2 - (a_t / s_t) ** 2 + a_t / s_t**2 * x_t  # of a mean of ones and of x_t
    assert_close(a / s**2 * x, mean_and_x_t, 1e-9)
    for time, mean in ((clean, x_t + 1), (noisy, None)):
        unchanged = solver.fuse_previous_mean(schedule, x_t, time, mean)
        assert unchanged[0] is x_t and unchanged[1] == time
    assert MomentMatching(fusion_snr=0.0).fuse_previous_mean(schedule, x_t, noisy, x_t + 1)[0] is x_t


def test_fusion_halves_the_error_of_the_conditional_mean_of_a_mixture_at_high_noise():
    """There a Gaussian approximation is poor; the previous mean is the conditional mean without fusion."""
    prior, t, noise = PRIOR, SCHEDULE.t_from_log_snr(-1.0), 0.1
    original = prior.sample(64, seeded(1))
    y = LEFT_HALF(original) + noise * LEFT_HALF(normal(seeded(2), *original.shape))
    alpha_t, sigma_t = SCHEDULE(t)
    x_t = alpha_t * original + sigma_t * normal(seeded(3), *original.shape)
    exact = torch.cat(
        [
            prior.posterior(LEFT_HALF, one, noise).denoiser(SCHEDULE)(noisy, t)
            for one, noisy in zip(y.split(1), x_t.split(1), strict=True)
        ]
    )
    linear, m = Linear(LEFT_HALF, y, noise), int(LEFT_HALF.known.sum())
    previous = without_fusion(m)(prior.denoiser(SCHEDULE), linear, x_t, t, None)[1]
    fused = MomentMatching(m, fusion_snr=2.0)(prior.denoiser(SCHEDULE), linear, x_t, t, previous)[1]
    assert (fused - exact).square().mean() < (previous - exact).square().mean() / 2


# Preconditioner ------------------------------------------------------------------------------------------------------


def test_few_iterations_are_enough_under_a_blur():
    """Four of 64 possible ones: the preconditioner, which takes no evaluation, makes up for weak measurements."""
    prior, noise = random_gaussian(seeded(0), (1, 8, 8)), 0.02
    x_t, original = normal(seeded(1), 4, 1, 8, 8), prior.sample(1, seeded(2))
    blurred = Blur(1.2)(original) + noise * normal(seeded(3), 1, 1, 8, 8)
    exact = prior.posterior(Blur(1.2), blurred, noise).denoiser(SCHEDULE)(x_t, 0.5)
    denoiser = CountingDenoiser(prior.denoiser(SCHEDULE))
    _, mean, _ = without_fusion(4)(denoiser, Linear(Blur(1.2), blurred, noise), x_t, 0.5, None)
    assert denoiser.nfe == 5
    assert (mean - exact).norm() < 0.1 * (denoiser(x_t, 0.5) - exact).norm()


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("level", [0.0, 2.0, 4.0])
def test_the_preconditioner_is_never_worse_than_none(level, noise):
    prior, t = random_gaussian(seeded(0), (1, 8, 8)), SCHEDULE.t_from_log_snr(level)
    alpha_t, sigma_t = SCHEDULE(t)
    original = prior.sample(4, seeded(2))
    x_t = alpha_t * original + sigma_t * normal(seeded(1), *original.shape)
    blurred = Blur(1.2)(original[:1]) + noise * normal(seeded(3), 1, 1, 8, 8)
    exact = prior.posterior(Blur(1.2), blurred, noise).denoiser(SCHEDULE)(x_t, t)

    class BlurThatIsNotPreconditioned(Blur):
        is_tight = True

    def error(blur):
        _, mean, _ = without_fusion(1)(prior.denoiser(SCHEDULE), Linear(blur, blurred, noise), x_t, t, None)
        return (mean - exact).norm()

    assert error(Blur(1.2)) <= 1.05 * error(BlurThatIsNotPreconditioned(1.2))


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3])
def test_an_affine_loss_gets_the_conditional_mean_of_its_linearization(m):
    """x0 + V e (c / e^T V e) for c = fn(x0), which is all there is for an affine loss; steps are limited in length."""
    g = seeded(0)
    prior, t = random_gaussian(g, SHAPE), 0.5
    x_t, w = normal(g, 2, *SHAPE), normal(g, *SHAPE)

    def fn(x0):
        return ((x0 * w).flatten(1).sum(1) - 3).abs()

    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    _, x0, _ = without_fusion(m, 0.0)(counting, Loss(fn, max_step_rms=math.inf), x_t, t, None)
    assert counting.nfe == 1 + m
    plain = prior.denoiser(SCHEDULE)(x_t, t)
    along = w.flatten() @ exact_jacobian(prior, *SCHEDULE(t))
    error = 3 - (plain * w).flatten(1).sum(1)
    assert_close(x0.flatten(1), plain.flatten(1) + error[:, None] * along / (along @ w.flatten()), 1e-6)
    _, near, _ = without_fusion(1, 0.0)(counting, Loss(fn, max_step_rms=0.1), x_t, t, None)
    distance = (x0 - plain).flatten(1).norm(dim=1)
    limited = distance.clamp(max=0.1 * math.sqrt(plain[0].numel()))
    assert_close((near - plain).flatten(1).norm(dim=1), limited, 1e-6)
    assert (distance > 0.3).any()


def test_further_iterations_are_newton_steps_on_a_nonlinear_loss():
    """For fn(x) = (w . x)^2, each linearization halves w . x, a double root."""
    g = seeded(0)
    prior, x_t, w = random_gaussian(g, SHAPE), normal(g, 2, *SHAPE), normal(g, *SHAPE)

    def root(x0):
        return (x0 * w).flatten(1).sum(1)

    loss = Loss(lambda x0: root(x0).square(), max_step_rms=math.inf)
    plain = root(prior.denoiser(SCHEDULE)(x_t, 0.5))
    for m in (1, 2, 5):
        _, x0, _ = without_fusion(m, 0.0)(prior.denoiser(SCHEDULE), loss, x_t, 0.5, None)
        assert_close(root(x0), plain / 2**m, 1e-6)


def test_a_loss_is_refined_at_low_noise_without_evaluations(monkeypatch):
    """For fn(x) = |x - y|^2, where a step along V_t e alone does not reach y."""
    t, y = SCHEDULE.t_from_log_snr(2.5), normal(seeded(1), *PRIOR.shape)
    counting, x_t = CountingDenoiser(PRIOR.denoiser(SCHEDULE)), normal(seeded(0), 2, *PRIOR.shape)
    loss = Loss(lambda x0: (x0 - y).square().flatten(1).sum(1), max_step_rms=math.inf)
    _, x0, _ = without_fusion(1)(counting, loss, x_t, t, None)
    assert counting.nfe == 2
    monkeypatch.setattr("adhere.core.solvers.moment_matching._LOSS_REFINE_MIN_LOG_SNR", math.inf)
    _, not_refined, _ = without_fusion(1)(counting, loss, x_t, t, None)
    # Each of the two steps halves the distance to a double root.
    assert_close(loss.residual_norm(x0), loss.residual_norm(not_refined) / 16, 1e-9)


def test_what_is_supported():
    assert MomentMatching().supports(left_half_case()) and MomentMatching().supports(Loss(lambda x0: x0.sum((1, 2, 3))))
    assert not MomentMatching().supports(Unconstrained())
