"""MMPS against exact posteriors and direct solutions; in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.mmps import MMPS
from adhere.core.constraints import Linear, Loss
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Blur
from adhere.core.schedules import CosineSchedule
from tests.core.exact import Matrix, assert_close, exact_jacobian, gaussian_case, normal, random_gaussian, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()


@few_examples
@given(SEEDS, TIMES, st.integers(1, 4))
def test_mmps_is_the_posterior_denoiser_of_a_gaussian(seed, t, m):
    noise = 0.3
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=noise)
    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    same_x_t, x0, _ = MMPS(m)(counting, constraint, x_t, t, None)
    assert (counting.nfe, counting.num_backward) == (1, m)
    assert same_x_t.equal(x_t) and not x0.requires_grad
    exact = prior.posterior(constraint.operator, constraint.y, noise)
    assert_close(x0, exact.denoiser(SCHEDULE)(x_t, t), 1e-9)


@few_examples
@given(SEEDS, TIMES)
def test_products_are_with_the_transpose_of_the_jacobian(seed, t):
    """On a denoiser whose J is far from symmetric: x0 + J^T A^T u, by a direct solution."""
    g = seeded(seed)
    M = torch.eye(4).double() + 0.3 * normal(g, 4, 4)

    class SkewedDenoiser:
        schedule, dtype = SCHEDULE, torch.float64

        def __call__(self, x_t, t):
            return (x_t.flatten(1) @ M.T).view_as(x_t)

    A, x_t = normal(g, 2, 4), normal(g, 3, 1, 2, 2)
    constraint = Linear(Matrix(A, (1, 2, 2)), normal(g, 1, 2), 0.5)
    alpha_t, sigma_t = SCHEDULE(t)
    V = sigma_t**2 / alpha_t * M.T
    u = torch.linalg.solve(0.25 * torch.eye(2) + A @ V @ A.T, constraint.residual(SkewedDenoiser()(x_t, t)).T)
    _, x0, _ = MMPS(num_iterations=2)(SkewedDenoiser(), constraint, x_t, t, None)
    assert_close(x0.flatten(1), x_t.flatten(1) @ M.T + (V @ A.T @ u).T, 1e-6)


def blur_case(level, noise):
    """Return (prior, constraint, x_t, t, exact conditional mean) of a blurred image of a Gaussian."""
    prior, t = random_gaussian(seeded(0), (1, 8, 8)), SCHEDULE.t_from_log_snr(level)
    alpha_t, sigma_t = SCHEDULE(t)
    original = prior.sample(4, seeded(2))
    x_t = alpha_t * original + sigma_t * normal(seeded(1), *original.shape)
    blurred = Blur(1.2)(original[:1]) + noise * normal(seeded(3), 1, 1, 8, 8)
    exact = prior.posterior(Blur(1.2), blurred, noise).denoiser(SCHEDULE)(x_t, t)
    return prior, blurred, x_t, t, exact


def test_few_iterations_are_enough_under_a_blur():
    """Four of 64 possible ones: the preconditioner, which takes no product, makes up for weak measurements."""
    prior, blurred, x_t, t, exact = blur_case(0.0, 0.02)
    denoiser = prior.denoiser(SCHEDULE)
    _, mean, _ = MMPS(4)(denoiser, Linear(Blur(1.2), blurred, 0.02), x_t, t, None)
    assert (mean - exact).norm() < 0.1 * (denoiser(x_t, t) - exact).norm()


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("level", [0.0, 2.0, 4.0])
def test_the_preconditioner_is_never_worse_than_none(level, noise):
    prior, blurred, x_t, t, exact = blur_case(level, noise)

    class BlurThatIsNotPreconditioned(Blur):
        is_tight = True

    def error(blur):
        _, mean, _ = MMPS(1)(prior.denoiser(SCHEDULE), Linear(blur, blurred, noise), x_t, t, None)
        return (mean - exact).norm()

    assert error(Blur(1.2)) <= 1.05 * error(BlurThatIsNotPreconditioned(1.2))


def test_an_affine_loss_gets_the_conditional_mean_of_its_linearization():
    """x0 + V e (c / e^T V e) for c = fn(x0), which is all there is for an affine loss, by one backward pass."""
    g, t = seeded(0), 0.5
    prior, x_t, w = random_gaussian(g), normal(g, 2, 1, 2, 2), normal(g, 1, 2, 2)
    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    loss = Loss(lambda x0: ((x0 * w).flatten(1).sum(1) - 3).abs(), max_step_rms=math.inf)
    _, x0, _ = MMPS(3, noise_floor=0.0)(counting, loss, x_t, t, None)
    assert (counting.nfe, counting.num_backward) == (1, 1)
    plain = prior.denoiser(SCHEDULE)(x_t, t)
    along = w.flatten() @ exact_jacobian(prior, *SCHEDULE(t))
    error = 3 - (plain * w).flatten(1).sum(1)
    assert_close(x0.flatten(1), plain.flatten(1) + error[:, None] * along / (along @ w.flatten()), 1e-8)
