"""The field's methods against their closed forms and limits, on exact priors; float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Loss
from adhere.core.denoise import Counted, pullback
from adhere.core.latents import Through
from adhere.core.operators import Downsample, Mask
from adhere.core.priors import Gaussian
from adhere.core.sample import DDIM, initial_noise, sample, serves
from adhere.core.schedule import RectifiedFlow, Trigonometric
from adhere.core.solvers import METHODS
from adhere.core.solvers.ding import DING, Decoupled
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.freedom import FreeDoM
from adhere.core.solvers.mmps import MMPS
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.newton_exact import NewtonExact, jacobian
from adhere.core.solvers.psld import PSLD
from adhere.core.solvers.repaint import RePaint
from adhere.core.solvers.time_travel import noised
from tests.core.exact import (
    Identical,
    Matrix,
    close,
    normal,
    random_covariance,
    random_factors,
    random_gaussian,
    random_mixture,
    seeded,
)

FEW = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = Trigonometric()
LEFT = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))
MEAN_SQUARE = Loss(lambda x0: x0.square().flatten(1).mean(1))


def masked_case(seed, noise=0.0):
    """(prior, constraint, x_t) of a Gaussian prior of (1, 2, 2) whose left half is known."""
    g = seeded(seed)
    prior = random_gaussian(g)
    y = LEFT(prior.sample(1, g) + noise * normal(g, 1, *prior.shape))
    return prior, Linear(LEFT, y, noise), normal(g, 2, *prior.shape)


def drawn(method, prior, constraint, count=4000):
    """Samples by a method down its own levels."""
    times = method.levels(SCHEDULE, method.steps)
    x_T = initial_noise(SCHEDULE, (count, *prior.shape), times[0], prior.mean, seeded(5))
    return sample(prior.denoiser(SCHEDULE), constraint, method.solver, x_T, times, method.transition, seeded(6))


# Exact Newton --------------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, TIMES)
def test_one_exact_newton_step_zeroes_a_linear_residual(seed, t):
    prior, constraint, x_t = masked_case(seed)
    denoiser = prior.denoiser(SCHEDULE)
    moved, x0, _ = NewtonExact(within_sigma=False)(denoiser, constraint, x_t, t, None)
    assert constraint.error(denoiser(x_t, t)).min() > 1e-4
    close(constraint.error(x0), torch.zeros(2).double(), 1e-6)  # damping and differences, times J's condition number
    close(x0, denoiser(moved, t), 1e-12)
    # The unseen part of x0 stays: e is zero there.
    close((1 - LEFT.known) * x0, (1 - LEFT.known) * denoiser(x_t, t), 1e-6)


@FEW
@given(SEEDS, TIMES)
def test_the_jacobian_is_autograds(seed, t):
    """Each sample's own, columns in order: of a mixture, where J depends on x_t."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser, x_t = prior.denoiser(SCHEDULE), normal(g, 2, *prior.shape)
    J = jacobian(denoiser, x_t, t, denoiser(x_t, t))
    for i in range(2):
        exact = torch.autograd.functional.jacobian(lambda x: denoiser(x, t), x_t[i : i + 1])
        close(J[i], exact.reshape(4, 4), 1e-3)  # first order in h = 1e-5, times the curvature


def test_exact_newton_steps_are_within_sigma_and_for_small_states():
    prior, constraint, x_t = masked_case(0)
    denoiser, t = prior.denoiser(SCHEDULE), 0.2
    far = Linear(LEFT, constraint.y + 100 * LEFT.known)
    moved, _, _ = NewtonExact()(denoiser, far, x_t, t, None)
    close((moved - x_t).flatten(1).abs().amax(1), torch.full((2,), SCHEDULE(t)[1], dtype=torch.float64), 1e-12)
    with pytest.raises(ValueError, match="forms J, 4 x 4: at most 3 x 3; try inexact_newton"):
        NewtonExact(most=3)(denoiser, constraint, x_t, t, None)


# Moment matching by backward passes ----------------------------------------------------------------------------------


@FEW
@given(SEEDS, TIMES, st.integers(1, 4))
def test_mmps_is_moment_matching_and_the_posterior_denoiser_of_a_gaussian(seed, t, m):
    g, noise = seeded(seed), 0.3
    prior, operator = random_gaussian(g, (1, 2, 3)), Matrix(normal(g, m, 6), (1, 2, 3))
    constraint = Linear(operator, operator(prior.sample(1, g)), noise)
    denoiser, x_t = Counted(prior.denoiser(SCHEDULE)), normal(g, 2, 1, 2, 3)
    moved, x0, _ = MMPS(m)(denoiser, constraint, x_t, t, None)
    assert (denoiser.nfe, denoiser.backward) == (1, m)
    assert moved.equal(x_t) and not x0.requires_grad
    close(x0, prior.posterior(operator, constraint.y, noise).denoiser(SCHEDULE)(x_t, t), 1e-9)
    close(x0, MomentMatching(m)(denoiser.denoiser, constraint, x_t, t, None)[1], 1e-7)


@FEW
@given(SEEDS, TIMES)
def test_mmps_multiplies_with_the_transpose(seed, t):
    """On a denoiser whose J is far from symmetric: x0 + J^T A^T u, by a direct solution."""
    g = seeded(seed)
    M = torch.eye(4).double() + 0.3 * normal(g, 4, 4)

    class Skewed:
        schedule, dtype = SCHEDULE, torch.float64

        def __call__(self, x_t, t):
            return (x_t.flatten(1) @ M.T).view_as(x_t)

    A, x_t = normal(g, 2, 4), normal(g, 3, 1, 2, 2)
    constraint = Linear(Matrix(A, (1, 2, 2)), normal(g, 1, 2), 0.5)
    alpha_t, sigma_t = SCHEDULE(t)
    V = sigma_t**2 / alpha_t * M.T
    u = torch.linalg.solve(0.25 * torch.eye(2) + A @ V @ A.T, constraint.residual(Skewed()(x_t, t)).T)
    _, x0, _ = MMPS(m=2)(Skewed(), constraint, x_t, t, None)
    close(x0.flatten(1), x_t.flatten(1) @ M.T + (V @ A.T @ u).T, 1e-6)


# Time travel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULE, RectifiedFlow()], ids=["vp", "flow"])
def test_going_up_is_the_forward_process(schedule):
    """Noised from t to r, x0 has the mean and variance of noise level r; also where r is nothing but noise."""
    t, x0 = 0.3, 2.0
    alpha_t, sigma_t = schedule(t)
    x_t = alpha_t * x0 + sigma_t * normal(seeded(0), 20000, 1)
    for r in (0.5, 1.0):
        alpha_r, sigma_r = schedule(r)
        x_r = noised(schedule, x_t, t, r, seeded(1))
        assert abs(float(x_r.mean()) - alpha_r * x0) < 5 * sigma_r / math.sqrt(20000)
        assert abs(float(x_r.var()) / sigma_r**2 - 1) < 5 * math.sqrt(2 / 20000)


@pytest.mark.parametrize("constraint", [MEAN_SQUARE, Linear(LEFT, LEFT(torch.ones(1, 1, 2, 2).double()))])
def test_freedom_without_repeats_is_dps(constraint):
    prior, _, x_T = masked_case(0)
    denoiser, times = prior.denoiser(SCHEDULE), [0.9, 0.6, 0.3]
    runs = [
        sample(denoiser, constraint, solver, x_T, times, DDIM(1.0), seeded(1))
        for solver in (FreeDoM(repeats=1), DPS(K=1), FreeDoM(repeats=2))
    ]
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_repeats_bring_freedom_nearer_to_a_loss():
    """By moves so short that none goes too far."""
    prior, errors = random_gaussian(seeded(0)), []
    for repeats in (1, 2, 4):
        method = replace(METHODS["freedom"], solver=FreeDoM(repeats, step=DPS(K=1, first=0.1)), steps=10)
        errors.append(float(MEAN_SQUARE.error(drawn(method, prior, MEAN_SQUARE)).mean()))
    assert errors[0] > errors[1] > errors[2]


def test_time_travel_refuses_no_moves_and_asks_for_a_generator():
    with pytest.raises(ValueError, match="repeats = 0: a noise level takes at least 1"):
        RePaint(repeats=0)
    prior, constraint, x_t = masked_case(0)
    with pytest.raises(ValueError, match="RePaint draws noise: run it by trajectory, or give it a generator"):
        RePaint()(prior.denoiser(SCHEDULE), constraint, x_t, 0.5, None)


# RePaint -------------------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, TIMES, TIMES)
def test_repaint_keeps_the_known_part_noised_and_clean(seed, t, r):
    prior, constraint, x_t = masked_case(seed)
    t, r = min(t, r), max(t, r) + 0.05
    alpha_t, sigma_t = SCHEDULE(t)
    solver = RePaint(repeats=3, generator=seeded(seed))
    moved, x0, memory = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, r)
    assert (LEFT(x0) == constraint.y).all()
    assert memory == t
    assert (LEFT(moved - alpha_t * constraint.y).abs() <= 6 * sigma_t).all()
    still, _, _ = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, None)  # no level before: no trips
    assert (still - x_t).abs().mul(1 - LEFT.known).max() == 0


def conditional_case():
    """A Gaussian whose halves say much of each other, and the exact conditional of the right half."""
    covariance = random_covariance(seeded(2), 4)
    prior = Gaussian(normal(seeded(3), 1, 2, 2), covariance)
    constraint = Linear(LEFT, LEFT(prior.sample(1, seeded(4))))
    return prior, constraint, prior.posterior(LEFT, constraint.y, 1e-6)


def test_repaints_resampling_approaches_the_conditional():
    prior, constraint, posterior = conditional_case()
    unseen = ~LEFT.known.bool().flatten()
    truth = posterior.mean.flatten()[unseen]
    errors = []
    for repeats in (1, 4, 32):
        method = replace(METHODS["repaint"], solver=RePaint(repeats=repeats), steps=20)
        samples = drawn(method, prior, constraint).flatten(1)[:, unseen]
        errors.append(float((samples.mean(0) - truth).norm()))
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 0.2 * errors[0]


# PSLD ----------------------------------------------------------------------------------------------------------------


class Squashing:
    """A codec that is not linear, and whose encoder is not the decoder's inverse."""

    dtype = torch.float64

    def encode(self, x):
        return 0.9 * x

    def decode(self, z):
        return z + 0.3 * z.sin()


@FEW
@given(SEEDS, TIMES)
def test_psld_with_a_codec_that_changes_nothing_is_dps(seed, t):
    """Under a mask the glue is the constraint again, and the length of a move does not depend on the loss's."""
    prior, constraint, x_t = masked_case(seed)
    counted = Counted(prior.denoiser(SCHEDULE))
    moved, x0, _ = PSLD(K=3)(counted, Through(constraint, Identical()), x_t, t, None)
    assert (counted.nfe, counted.backward) == (4, 3)
    expected, x0_expected, _ = DPS(K=3)(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    close(moved, expected, 1e-8)
    close(x0, x0_expected, 1e-8)


@FEW
@given(SEEDS, TIMES, st.sampled_from([0.0, 0.1, 2.0]))
def test_psld_moves_down_both_terms(seed, t, gluing):
    """Against gradients by hand, z - Enc(A^T y + (I - A^T A) Dec z) for a mask; without glue it is DPS by autograd."""
    prior, constraint, x_t = masked_case(seed)
    denoiser, codec, known = prior.denoiser(SCHEDULE), Squashing(), LEFT.known
    z, transposed = pullback(lambda x: denoiser(x, t), x_t)
    slope, residual = 1 + 0.3 * z.cos(), constraint.y - known * codec.decode(z)
    gap = z - 0.9 * (constraint.y + (1 - known) * codec.decode(z))
    e = known * slope * residual - gluing * (1 - 0.9 * (1 - known) * slope) * gap
    g = transposed(e)
    expected = x_t + min(0.5, SCHEDULE(t)[1]) * g / g.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    moved, _, _ = PSLD(K=1, gluing=gluing)(denoiser, Through(constraint, codec), x_t, t, None)
    close(moved, expected, 1e-8)
    if gluing == 0:
        through = Through(constraint, codec, backward=True)
        close(moved, DPS(K=1)(denoiser, through, x_t, t, None)[0], 1e-8)


# DING ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULE, RectifiedFlow()], ids=["vp", "flow"])
def test_ding_draws_from_the_product_of_step_and_likelihood(schedule):
    """Given the proxy: N(mu, eta^2) N(y; (x - sigma eps) / alpha, noise^2), by Bayes' rule in precisions."""
    noise, t, s, count = 0.3, 0.7, 0.4, 20000
    prior, constraint, x_t = masked_case(0, noise)
    denoiser = prior.denoiser(schedule)
    last = (x_t[:1], denoiser(x_t[:1], t), t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    eta = sigma_s**2 / (alpha_s + sigma_s)
    mu = alpha_s * last[1] + math.sqrt(sigma_s**2 - eta**2) * (x_t[:1] - alpha_t * last[1]) / sigma_t
    proxy = x_t[1:].expand(count, 1, 2, 2)
    eps = (proxy[:1] - alpha_s * denoiser(proxy[:1], s)) / sigma_s
    step, likelihood = 1 / eta**2, 1 / (alpha_s * noise) ** 2
    seen = (step * mu + likelihood * (alpha_s * constraint.y + sigma_s * eps)) / (step + likelihood)
    known = LEFT.known
    mean = known * seen + (1 - known) * mu
    variance = known / (step + likelihood) + (1 - known) / step
    x_s, x0, memory = DING(generator=seeded(1))(denoiser, constraint, proxy, s, last)
    assert ((x_s.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
    assert ((x_s.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    close(x0, denoiser(x_s, s), 1e-12)
    assert memory[0] is x_s and memory[1] is x0 and memory[2] == s


def test_dings_step_is_the_papers_on_a_flow_and_keeps_the_marginal():
    """eta_s = sigma_s (1 - alpha_s); with the true x0 and noise, x_s is alpha_s x0 + sigma_s white noise."""
    schedule, t, s, count = RectifiedFlow(), 0.7, 0.4, 20000
    x0 = torch.full((count, 1), 2.0).double()
    x_t = 0.3 * x0 + 0.7 * normal(seeded(0), count, 1)
    one, _ = Decoupled()(schedule, x_t, x0, t, s, None, seeded(1))
    assert abs(float((one - 0.6 * x0).mean())) < 5 * 0.4 / math.sqrt(count)
    assert abs(float((one - 0.6 * x0).var()) / 0.16 - 1) < 5 * math.sqrt(2 / count)
    fixed = x_t[:1].expand(count, 1)
    again, _ = Decoupled()(schedule, fixed, x0, t, s, None, seeded(2))
    assert abs(float(again.std()) / (0.4 * (1 - 0.6)) - 1) < 5 / math.sqrt(2 * count)


def test_ding_costs_two_evaluations_a_level_and_one_at_first():
    prior, constraint, x_t = masked_case(0)
    counted = Counted(prior.denoiser(SCHEDULE))
    sample(counted, constraint, DING(), x_t, [0.9, 0.6, 0.3], Decoupled(), seeded(0))
    assert (counted.nfe, counted.backward) == (5, 0)


# What each is for ----------------------------------------------------------------------------------------------------


def constraints():
    """Of each kind, for pictures (1, 4, 4)."""
    x = random_factors(seeded(0)).sample(1, seeded(1))
    mask = Mask(torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(1, 1, 4, 4))
    plain = [MEAN_SQUARE, *(Linear(operator, operator(x), 0.05) for operator in (mask, Downsample(2)))]
    return [*plain, *(Through(one, Identical()) for one in plain)]


@pytest.mark.parametrize("constraint", constraints(), ids=["loss", "mask", "means", *["through"] * 3])
@pytest.mark.parametrize("name", METHODS)
def test_serves_says_what_is_refused(name, constraint):
    denoiser, method = random_factors(seeded(0)).denoiser(SCHEDULE), METHODS[name]

    def run():
        x_T = normal(seeded(0), 2, 1, 4, 4)
        return sample(denoiser, constraint, method.solver, x_T, [0.6, 0.3], method.transition, seeded(0))

    if serves(method.solver, constraint):
        assert run().isfinite().all()
    else:
        with pytest.raises(TypeError, match=rf"^{name.removesuffix('_calm')} needs a .*constraint"):
            run()
