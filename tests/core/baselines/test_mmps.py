"""MMPS against exact posteriors and direct solutions; in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.mmps import MMPS
from adhere.core.constraints import Linear
from adhere.core.denoisers import CountingDenoiser
from adhere.core.schedules import CosineSchedule
from adhere.core.solvers.moment_matching import MomentMatching
from tests.core.exact import Matrix, assert_close, gaussian_case, normal, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()


@few_examples
@given(SEEDS, TIMES, st.integers(1, 4))
def test_mmps_is_moment_matching_and_the_posterior_denoiser_of_a_gaussian(seed, t, m):
    noise = 0.3
    prior, _, constraint, x_t, _ = gaussian_case(seed, m, noise=noise)
    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    same_x_t, x0, _ = MMPS(m)(counting, constraint, x_t, t, None)
    assert (counting.nfe, counting.num_backward) == (1, m)
    assert same_x_t.equal(x_t) and not x0.requires_grad
    exact = prior.posterior(constraint.operator, constraint.y, noise)
    assert_close(x0, exact.denoiser(SCHEDULE)(x_t, t), 1e-9)
    forward = MomentMatching(m, fusion_snr=0.0)(counting.denoiser, constraint, x_t, t, None)[1]
    assert_close(x0, forward, 1e-7)


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
