"""Every method of METHODS on exact priors, and the closed-form truths they rest on (docs, "the method"); float64.

A new entry of METHODS is picked up by the tests that are parametrised over them.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Loss, Sum, Unconstrained
from adhere.core.denoise import Counted, jacobian_product
from adhere.core.latents import Through
from adhere.core.operators import Blur, Downsample, Mask
from adhere.core.sample import DPMSolver2M, Stochastic, initial_noise, sample
from adhere.core.schedule import Discrete, RectifiedFlow, Trigonometric, log_snr, log_snr_timesteps
from adhere.core.solvers import DEFAULT_METHOD, METHODS, Plain, default_method, method_named
from adhere.core.solvers.ding import DING
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.newton_exact import NewtonExact
from adhere.core.solvers.psld import PSLD
from adhere.core.solvers.repaint import RePaint
from tests.core.exact import (
    Identical,
    Matrix,
    close,
    matrix_of,
    normal,
    random_factors,
    random_gaussian,
    seeded,
)
from tests.core.laws import backward_passes, evaluations

FEW = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
CONSTRAINED = {name: method for name, method in METHODS.items() if name != "plain"}
any_method = pytest.mark.parametrize("method", CONSTRAINED.values(), ids=CONSTRAINED)
MASKS_ONLY = (RePaint, DING)
without_own_noise = pytest.mark.parametrize(
    "method",
    [method for method in CONSTRAINED.values() if not isinstance(method.solver, Stochastic)],
    ids=[name for name, method in CONSTRAINED.items() if not isinstance(method.solver, Stochastic)],
)

SCHEDULE = Trigonometric()
SHAPE = (1, 2, 3)
PRIOR = random_factors(seeded(0))
LEFT = Mask(torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(1, 1, 4, 4))
mask_or_means = pytest.mark.parametrize("operator", [LEFT, Downsample(2)], ids=["mask", "area"])


def gaussian_case(seed, m=3, orthonormal=False, noise=0.0):
    """(prior, A, constraint, x_t, generator) of a Gaussian prior on SHAPE and m random measurements."""
    g = seeded(seed)
    prior, A = random_gaussian(g, SHAPE), normal(g, m, math.prod(SHAPE))
    if orthonormal:
        A = torch.linalg.qr(A.T)[0].T
    operator = Matrix(A, SHAPE)
    y = operator(prior.sample(1, g)) + noise * normal(g, 1, m)
    return prior, A, Linear(operator, y, noise), normal(g, 2, *SHAPE), g


def exact_jacobian(prior, alpha_t, sigma_t):
    """(alpha/sigma^2) Cov[x0 | x_t] of a Gaussian prior, the covariance from Bayes' rule."""
    identity = torch.eye(prior.size, dtype=torch.float64)
    return alpha_t / sigma_t**2 * (prior.covariance.inverse() + (alpha_t / sigma_t) ** 2 * identity).inverse()


def linear_case(operator, count=4):
    """A constraint on a batch of PRIOR's own pictures, with a little noise."""
    y = operator(PRIOR.sample(count, seeded(1)))
    return Linear(operator, y + 0.05 * normal(seeded(2), *y.shape), 0.05)


def brief(method):
    """Three levels, for what holds whatever their number."""
    return replace(method, steps=3)


def asked_of(method, constraint):
    """The constraint as the method takes it: psld's through a decoder, which changes nothing."""
    return Through(constraint, Identical()) if isinstance(method.solver, PSLD) else constraint


def skip_unless_served(method, operator):
    if isinstance(method.solver, MASKS_ONLY) and not isinstance(operator, Mask):
        pytest.skip("for masks only")


def run(method, constraint, generator, denoiser=None, count=4):
    """The method as METHODS has it, from noise drawn by `generator`."""
    constraint = asked_of(method, constraint)
    denoiser = PRIOR.denoiser(SCHEDULE) if denoiser is None else denoiser
    times = method.levels(SCHEDULE, method.steps)
    x_T = initial_noise(SCHEDULE, (count, *PRIOR.shape), times[0], PRIOR.mean, generator)
    return sample(denoiser, constraint, method.solver, x_T, times, method.transition, generator)


# Closed-form truths --------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, TIMES, st.floats(-8, 2))
def test_1_jacobian_of_a_gaussian_is_the_covariance_and_any_difference_is_exact(seed, t, exponent):
    prior, _, _, x_t, g = gaussian_case(seed)
    denoiser, (alpha_t, sigma_t) = prior.denoiser(SCHEDULE), SCHEDULE(t)
    J, x0 = exact_jacobian(prior, alpha_t, sigma_t), denoiser(x_t, t)
    columns = matrix_of(lambda v: jacobian_product(denoiser, x_t[:1], t, x0[:1], v), SHAPE)
    close(columns, J, 1e-8)
    close(J, J.T)
    h, v = 10**exponent, normal(g, *x_t.shape)
    difference = (denoiser(x_t + h * v, t) - x0) / h
    # Exact in real numbers; round-off of about 1e-15 in each of the two is divided by h.
    close(difference.flatten(1), v.flatten(1) @ J, 1e-12 + 1e-13 / h)


@FEW
@given(SEEDS, TIMES, st.sampled_from([0.5, 0.95, 1.05]))
def test_2_constant_steps_along_J_e_contract_the_residual_below_two_over_lambda_max(seed, t, fraction):
    """r' = (I - eta A J J A^T) r, for fifty steps; every component of r is there from the start."""
    prior, A, constraint, x_t, _ = gaussian_case(seed)
    denoiser, J = prior.denoiser(SCHEDULE), exact_jacobian(prior, *SCHEDULE(t))
    M = A @ J @ J @ A.T
    lam, V = torch.linalg.eigh(M)
    eta = fraction * 2 / float(lam[-1])
    constraint = Linear(constraint.operator, constraint.operator(denoiser(x_t, t)) + V.sum(1))
    r = start = constraint.residual(denoiser(x_t, t))
    contraction = torch.eye(len(M), dtype=torch.float64) - eta * M
    for _ in range(50):
        x0 = denoiser(x_t, t)
        x_t = x_t + eta * jacobian_product(denoiser, x_t, t, x0, constraint.direction(x0))
        r = r @ contraction
    residual = constraint.residual(denoiser(x_t, t))
    close(residual, r, 1e-6)
    # Beyond the bound the top component grows by |1 - 2.1| a step, more than a hundredfold in fifty.
    assert (residual.norm(dim=1) < start.norm(dim=1)).tolist() == [fraction < 1] * 2


@FEW
@given(SEEDS, TIMES)
def test_3_the_exact_newton_step_zeroes_a_linear_residual(seed, t):
    """J dx = e moves x0 by e = A^T r, and the residual to (I - A A^T) r: zero for orthonormal rows, as a mask's are."""
    prior, _, constraint, x_t, _ = gaussian_case(seed, orthonormal=True)
    denoiser, J = prior.denoiser(SCHEDULE), exact_jacobian(prior, *SCHEDULE(t))
    e = constraint.direction(denoiser(x_t, t))
    step = torch.linalg.solve(J, e.flatten(1).T).T.view_as(x_t)
    assert constraint.error(denoiser(x_t, t)).min() > 1e-3
    assert constraint.error(denoiser(x_t + step, t)).max() < 1e-9


@FEW
@given(SEEDS, TIMES, st.integers(1, 4))
def test_4_moment_matching_with_a_full_krylov_space_is_the_posterior_denoiser(seed, t, m):
    noise = 0.3
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=noise)
    exact = prior.posterior(constraint.operator, constraint.y, noise).denoiser(SCHEDULE)(x_t, t)
    moved, x0, _ = MomentMatching(m)(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    # Differences with h = 1e-5 leave 1e-11 of round-off, times the small system's condition number, below 1e4 here.
    close(x0, exact, 1e-7)
    assert moved.equal(x_t)


# 5 is in test_sample.py, 6 in test_priors.py.


def posterior_run(seed, method):
    """4000 samples by (solver, transition, times) of a Gaussian prior with two measurements: with the posterior."""
    prior, A, constraint, _, _ = gaussian_case(seed, m=2, noise=0.3)
    solver, transition, times = method
    x_T = initial_noise(SCHEDULE, (4000, *SHAPE), times[0], prior.mean, seeded(5))
    samples = sample(prior.denoiser(SCHEDULE), constraint, solver, x_T, times, transition, seeded(6))
    return samples, prior.posterior(constraint.operator, constraint.y, constraint.noise), constraint, A


@pytest.mark.parametrize("seed", range(3))
def test_7_inexact_newton_varies_too_little(seed):
    """The total variance of what is not measured is below the posterior's by more than five standard errors."""
    paper = METHODS["inexact_newton"]
    times = paper.levels(SCHEDULE, paper.steps)
    samples, posterior, constraint, A = posterior_run(seed, (paper.solver, paper.transition, times))
    unseen = torch.linalg.svd(A)[2][len(A) :]  # an orthonormal basis of A's null space
    squares = ((samples - samples.mean(0)).flatten(1) @ unseen.T).square().sum(1)
    standard_error = squares.std() / math.sqrt(len(squares))
    assert squares.mean() + 5 * standard_error < (unseen @ posterior.covariance @ unseen.T).trace()
    # It does meet the constraint, and closer than the posterior would, whose samples miss it by about the noise.
    assert constraint.error(samples).mean() < constraint.noise * 2 / 3


@pytest.mark.parametrize("seed", range(3))
def test_7_moment_matching_samples_the_posterior(seed):
    """Mean and covariance within five standard errors, with steps enough that those of discretisation are smaller."""
    times = log_snr_timesteps(SCHEDULE, 100, -5.0, 6.0)
    samples, posterior, _, _ = posterior_run(seed, (MomentMatching(m=2), DPMSolver2M(eta=1.0), times))
    x = samples.flatten(1) - posterior.mean.flatten()
    products = x[:, :, None] * x[:, None, :]
    for values, expected in [(x, torch.zeros_like(x[0])), (products, posterior.covariance)]:
        standard_error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - expected).abs() <= 5 * standard_error).all()


# Laws of every method ------------------------------------------------------------------------------------------------


@any_method
def test_evaluations_and_backward_passes_follow_the_law_whatever_the_batch(method):
    method = brief(method)
    for count in (1, 3):
        counted = Counted(PRIOR.denoiser(SCHEDULE))
        run(method, linear_case(LEFT, count), seeded(0), counted, count)
        assert counted.nfe == evaluations(method, 3, PRIOR.size)
        assert counted.backward == backward_passes(method.solver, 3)


def test_directions_follow_the_noise():
    solver = MomentMatching(m=((-3.0, 3), (-1.5, 7), (4.5, 1)))
    assert [solver.directions(log_snr) for log_snr in (-9.0, -2.25, -1.5, 1.5, 4.5, 9.0)] == [3, 5, 7, 4, 1, 1]
    assert {MomentMatching(m=7).directions(log_snr) for log_snr in (-9.0, 9.0)} == {7}


@pytest.mark.parametrize(
    "settings",
    [
        {"m": 0},
        {"m": ()},
        {"m": True},
        {"m": ((math.nan, 2), (1.0, 1))},
        {"m": ((0.0, 2), (1.0, 0))},
        {"m": ((1.0, 2), (1.0, 1))},
        {"m": ((3.0, 2), (-1.5, 1))},
        {"noise_floor": -0.1},
        {"snr_floor": -0.1},
        {"snr_floor": math.inf},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MomentMatching(**settings)


@FEW
@given(SEEDS, TIMES, st.integers(1, 4), st.floats(0.01, 10))
def test_the_conditional_mean_of_a_gaussian_about_itself_is_itself(seed, t, m, snr_floor):
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=0.3)
    exact = prior.posterior(constraint.operator, constraint.y, 0.3).denoiser(SCHEDULE)(x_t, t)
    close(MomentMatching(m, snr_floor=snr_floor)(prior.denoiser(SCHEDULE), constraint, x_t, t, exact)[1], exact, 1e-6)


@pytest.mark.parametrize("schedule", [SCHEDULE, Discrete.from_betas(), RectifiedFlow()])
def test_a_last_mean_is_looked_at_at_the_floor_and_nowhere_else(schedule):
    solver, x_t = MomentMatching(snr_floor=0.2), normal(seeded(0), 1, *PRIOR.shape)
    noisy, clean = (schedule.time_at(lam) for lam in (-2.0, 0.0))
    x, t = solver.informed(schedule, x_t, noisy, torch.ones_like(x_t))
    assert log_snr(schedule, t) == pytest.approx(math.log(0.2) / 2, abs=0.01)
    (a, s), (a_t, s_t) = schedule(t), schedule(noisy)
    mean_and_x_t = (a / s) ** 2 - (a_t / s_t) ** 2 + a_t / s_t**2 * x_t  # natural parameters of a mean of ones and x_t
    close(a / s**2 * x, mean_and_x_t, 1e-9)
    for untouched in (solver.informed(schedule, x_t, clean, x_t + 1), solver.informed(schedule, x_t, noisy, None)):
        assert untouched[0] is x_t


def test_the_conditional_mean_of_a_mixture_is_better_about_a_guess():
    """At much noise, where a Gaussian does not tell what y leaves open; the guess is the conditional mean without."""
    prior, t, noise = PRIOR, SCHEDULE.time_at(-1.0), 0.1
    truth = prior.sample(64, seeded(1))
    operator = Mask(LEFT.known)
    y = operator(truth) + noise * operator(normal(seeded(2), *truth.shape))
    alpha_t, sigma_t = SCHEDULE(t)
    x_t = alpha_t * truth + sigma_t * normal(seeded(3), *truth.shape)
    exact = torch.cat(
        [
            prior.posterior(operator, one, noise).denoiser(SCHEDULE)(noisy, t)
            for one, noisy in zip(y.split(1), x_t.split(1), strict=True)
        ]
    )
    linear, m = Linear(operator, y, noise), int(LEFT.known.sum())
    guess = MomentMatching(m)(prior.denoiser(SCHEDULE), linear, x_t, t, None)[1]
    about = MomentMatching(m, snr_floor=2.0)(prior.denoiser(SCHEDULE), linear, x_t, t, guess)[1]
    assert (about - exact).square().mean() < (guess - exact).square().mean() / 2


def test_a_few_directions_are_enough_under_a_blur():
    """Of 64 that there are: what a blur sees weakly is made as strong as the rest, without an evaluation."""
    prior, noise = random_gaussian(seeded(0), (1, 8, 8)), 0.02
    x_t, truth = normal(seeded(1), 4, 1, 8, 8), prior.sample(1, seeded(2))
    blurred = Blur(1.2)(truth) + noise * normal(seeded(3), 1, 1, 8, 8)
    exact = prior.posterior(Blur(1.2), blurred, noise).denoiser(SCHEDULE)(x_t, 0.5)
    denoiser = Counted(prior.denoiser(SCHEDULE))
    _, mean, _ = MomentMatching(4)(denoiser, Linear(Blur(1.2), blurred, noise), x_t, 0.5, None)
    assert denoiser.nfe == 5
    assert (mean - exact).norm() < 0.1 * (denoiser(x_t, 0.5) - exact).norm()


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("level", [0.0, 2.0, 4.0])
def test_the_preconditioner_is_nowhere_worse_than_none(monkeypatch, level, noise):
    prior, t = random_gaussian(seeded(0), (1, 8, 8)), SCHEDULE.time_at(level)
    alpha_t, sigma_t = SCHEDULE(t)
    truth = prior.sample(4, seeded(2))
    x_t = alpha_t * truth + sigma_t * normal(seeded(1), *truth.shape)
    blurred = Blur(1.2)(truth[:1]) + noise * normal(seeded(3), 1, 1, 8, 8)
    exact = prior.posterior(Blur(1.2), blurred, noise).denoiser(SCHEDULE)(x_t, t)

    def miss():
        _, mean, _ = MomentMatching(1)(prior.denoiser(SCHEDULE), Linear(Blur(1.2), blurred, noise), x_t, t, None)
        return (mean - exact).norm()

    with_it = miss()
    monkeypatch.setattr("adhere.core.solvers.moment_matching.is_even", lambda _: True)
    assert with_it <= 1.05 * miss()


def test_moment_matching_meets_a_measurement_without_noise_exactly():
    exact = Linear(LEFT, LEFT(PRIOR.sample(2, seeded(1))), 0.0)
    x_t = normal(seeded(2), 2, *PRIOR.shape)
    _, x0, _ = MomentMatching(m=2)(PRIOR.denoiser(SCHEDULE), exact, x_t, 0.5, None)
    assert (exact.error(x0) < 1e-9).all()


@pytest.mark.parametrize("m", [1, 3])
def test_moment_matching_gives_a_loss_the_conditional_mean_of_its_tangent(m):
    """x0 + V e (c / e^T V e), c being fn(x0): all that there is for an affine loss, and within its radius a step."""
    g = seeded(0)
    prior, t = random_gaussian(g, SHAPE), 0.5
    x_t, w = normal(g, 2, *SHAPE), normal(g, *SHAPE)

    def fn(x0):
        return ((x0 * w).flatten(1).sum(1) - 3).abs()

    counted = Counted(prior.denoiser(SCHEDULE))
    solver = MomentMatching(m, noise_floor=0.0)
    _, x0, _ = solver(counted, Loss(fn, radius=math.inf), x_t, t, None)
    assert counted.nfe == 1 + m
    plain = prior.denoiser(SCHEDULE)(x_t, t)
    along = w.flatten() @ exact_jacobian(prior, *SCHEDULE(t))
    miss = 3 - (plain * w).flatten(1).sum(1)
    close(x0.flatten(1), plain.flatten(1) + miss[:, None] * along / (along @ w.flatten()), 1e-6)
    _, near, _ = MomentMatching(1, noise_floor=0.0)(counted, Loss(fn, radius=0.1), x_t, t, None)
    far = (x0 - plain).flatten(1).norm(dim=1)
    close((near - plain).flatten(1).norm(dim=1), far.clamp(max=0.1 * math.sqrt(plain[0].numel())), 1e-6)
    assert (far > 0.3).any()


@pytest.mark.parametrize("m", [1, 2, 7])
def test_one_noisy_number_is_counted_once(m):
    prior, _, constraint, x_t, _ = gaussian_case(0, m=1, noise=0.5)
    exact = prior.posterior(constraint.operator, constraint.y, 0.5).denoiser(SCHEDULE)(x_t, 0.5)
    close(MomentMatching(m)(prior.denoiser(SCHEDULE), constraint, x_t, 0.5, None)[1], exact, 1e-7)


def test_further_evaluations_are_newton_steps_on_a_curved_loss():
    """fn(x) = (w . x)^2: each tangent halves w . x, a double root."""
    g = seeded(0)
    prior, x_t, w = random_gaussian(g, SHAPE), normal(g, 2, *SHAPE), normal(g, *SHAPE)

    def root(x0):
        return (x0 * w).flatten(1).sum(1)

    loss = Loss(lambda x0: root(x0).square(), radius=math.inf)
    plain = root(prior.denoiser(SCHEDULE)(x_t, 0.5))
    for m in (1, 2, 5):
        _, x0, _ = MomentMatching(m, noise_floor=0.0)(prior.denoiser(SCHEDULE), loss, x_t, 0.5, None)
        close(root(x0), plain / 2**m, 1e-6)


def test_a_loss_is_met_where_little_noise_is_left(monkeypatch):
    """By tangents that ask the network nothing: fn(x) = |x - y|^2, whose V_t e alone does not reach y."""
    t, y = SCHEDULE.time_at(2.5), normal(seeded(1), *PRIOR.shape)
    counted = Counted(PRIOR.denoiser(SCHEDULE))
    x_t, loss = (
        normal(seeded(0), 2, *PRIOR.shape),
        Loss(lambda x0: (x0 - y).square().flatten(1).sum(1), radius=math.inf),
    )
    _, x0, _ = MomentMatching(1)(counted, loss, x_t, t, None)
    assert counted.nfe == 2
    monkeypatch.setattr("adhere.core.solvers.moment_matching.LITTLE_NOISE", math.inf)
    _, once, _ = MomentMatching(1)(counted, loss, x_t, t, None)
    close(loss.error(x0), loss.error(once) / 16, 1e-9)  # each of the two halves the distance to a double root


class OneByOne(Counted):
    """Denoises each sample alone: products of other sizes round otherwise, and a difference divides that by h."""

    def __call__(self, x_t, t):
        return torch.cat([super(OneByOne, self).__call__(one, t) for one in x_t.split(1)])


@any_method
@mask_or_means
def test_a_batch_is_its_singles(method, operator):
    skip_unless_served(method, operator)
    method = brief(method)
    constraint, denoiser = linear_case(operator), OneByOne(PRIOR.denoiser(SCHEDULE))
    together = run(method, constraint, [seeded(i) for i in range(4)], denoiser)
    for i in range(4):
        one = Linear(operator, constraint.y[i : i + 1], constraint.noise)
        close(together[i : i + 1], run(method, one, [seeded(i)], denoiser, count=1), 1e-9)


@any_method
def test_the_seed_decides(method):
    constraint = linear_case(LEFT)
    ends = [run(brief(method), constraint, seeded(seed)) for seed in (1, 1, 2)]
    assert ends[0].equal(ends[1])
    assert not ends[0].equal(ends[2])


@any_method
@mask_or_means
def test_the_constraint_is_met_at_the_end(method, operator):
    """To a tenth of what plain sampling leaves, which is about 1; the measurement's own noise is 0.05."""
    skip_unless_served(method, operator)
    if isinstance(method.solver, NewtonExact):
        pytest.skip("exact steps miss where J changes along them: see test_baselines.py for where it does not")
    constraint = linear_case(operator, 16)
    samples = run(method, constraint, seeded(0), count=16)
    plain = run(replace(method, solver=Plain()), constraint, seeded(0), count=16)
    assert samples.isfinite().all()
    assert constraint.error(samples).mean() < 0.1 * constraint.error(plain).mean()


@without_own_noise
def test_nothing_asked_is_plain_sampling(method):
    """A mask that knows nothing leaves a residual of zero at every level: no division by it, and no other effect.

    Of moment matching, without its floor: what is known of the last mean does not ask how that was come by.
    """
    if isinstance(method.solver, MomentMatching):
        method = replace(method, solver=replace(method.solver, snr_floor=0.0))
    nothing = Linear(Mask(torch.zeros(1, 1, 4, 4).double()), torch.zeros(1, *PRIOR.shape).double())
    plain = run(replace(method, solver=Plain()), Unconstrained(), seeded(0))
    close(run(method, nothing, seeded(0)), plain, 1e-12)


@without_own_noise
def test_a_satisfied_sample_stays_beside_one_that_is_not(method):
    """One level: the sample whose denoised image meets the measurement keeps it, without NaN; the other changes."""
    denoiser, t = PRIOR.denoiser(SCHEDULE), 0.5
    x_t = normal(seeded(0), 2, *PRIOR.shape)
    x0 = denoiser(x_t, t)
    y = LEFT(x0) + torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1) * LEFT(torch.ones_like(x0))
    constraint = asked_of(method, Linear(LEFT, y, 0.05))
    moved, after, _ = method.solver(denoiser, constraint, x_t, t, None)
    close(moved[0], x_t[0], 1e-12)
    close(after[0], x0[0], 1e-12)
    assert after[1].isfinite().all() and not after[1].equal(x0[1])


@any_method
def test_a_constraint_it_cannot_serve_is_refused_with_an_alternative(method):
    loss = Loss(lambda x0: x0.square().flatten(1).sum(1))
    try:
        samples = run(method, loss, seeded(0))
    except TypeError as error:
        said = re.fullmatch(r"\w+ needs a .*constraint.*, not Loss: try (\w+)", str(error))
        assert said
        samples = run(METHODS[said[1]], loss, seeded(0))
    plain = run(METHODS["inexact_newton"], Unconstrained(), seeded(0))
    assert loss.error(samples).mean() < loss.error(plain).mean()


def test_the_default_method_suits_the_constraint():
    loss = Loss(lambda x0: x0.square().flatten(1).sum(1))
    assert default_method(Unconstrained()) == "plain"
    for constraint in (linear_case(LEFT), loss, Sum((loss, linear_case(LEFT)), (1.0, 1.0))):
        assert default_method(constraint) == DEFAULT_METHOD

    class Other:
        """A newcomer's, with no linear stand-in."""

        def direction(self, x0):
            return -x0

        def error(self, x0):
            return x0.flatten(1).norm(dim=1)

    assert default_method(Other()) == "inexact_newton"


def test_methods_by_name():
    assert DEFAULT_METHOD in METHODS
    assert all(method_named(name) is method for name, method in METHODS.items())
    with pytest.raises(ValueError, match=f"did you mean 'inexact_newton'.*{', '.join(METHODS)}"):
        method_named("inexact-newton")


@pytest.mark.parametrize("schedule", [RectifiedFlow(), RectifiedFlow(1000.0)], ids=["flow", "flow of 1000"])
def test_methods_do_not_ask_which_schedule_it_is(schedule):
    """At equal log-SNR, x_t / alpha_t is the same for every schedule, and so is the conditional mean."""
    constraint, lam = linear_case(LEFT), -0.5
    x = normal(seeded(0), 4, *PRIOR.shape)
    means = []
    for one in (SCHEDULE, schedule):
        t = one.time_at(lam)
        means.append(MomentMatching()(PRIOR.denoiser(one), constraint, one(t)[0] * x, t, None)[1])
    close(means[0], means[1], 1e-4)  # the differences' steps are not the same: first order in h, over the noise
