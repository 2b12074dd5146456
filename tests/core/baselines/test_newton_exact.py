"""Exact Newton steps on Gaussian priors, where one step is enough; in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.newton_exact import NewtonExact, _jacobian
from adhere.core.constraints import Linear
from adhere.core.denoisers import CountingDenoiser
from adhere.core.operators import Mask
from adhere.core.schedules import CosineSchedule
from tests.core.exact import (
    assert_close,
    exact_jacobian,
    gaussian_case,
    normal,
    random_gaussian,
    random_mixture,
    seeded,
)

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()
LEFT_HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))


def left_half_case(seed):
    """Return (prior, constraint, x_t): a Gaussian prior of (1, 2, 2) whose left half is known."""
    g = seeded(seed)
    prior = random_gaussian(g)
    return prior, Linear(LEFT_HALF, LEFT_HALF(prior.sample(1, g))), normal(g, 2, *prior.shape)


@few_examples
@given(SEEDS, TIMES)
def test_a_solution_of_J_dx_equal_to_e_zeroes_the_residual_of_orthonormal_measurements(seed, t):
    """dx moves x0 by e = A^T r, and the residual to (I - A A^T) r, which is zero for orthonormal rows."""
    prior, _, constraint, x_t, _ = gaussian_case(seed, orthonormal=True)
    denoiser, J = prior.denoiser(SCHEDULE), exact_jacobian(prior, *SCHEDULE(t))
    e = constraint.neg_grad(denoiser(x_t, t))
    step = torch.linalg.solve(J, e.flatten(1).T).T.view_as(x_t)
    assert constraint.residual_norm(denoiser(x_t, t)).min() > 1e-3
    assert constraint.residual_norm(denoiser(x_t + step, t)).max() < 1e-9


@few_examples
@given(SEEDS, TIMES)
def test_one_step_of_the_solver_zeroes_the_residual_under_a_mask(seed, t):
    prior, constraint, x_t = left_half_case(seed)
    denoiser = prior.denoiser(SCHEDULE)
    moved, x0, _ = NewtonExact(clip_to_sigma=False)(denoiser, constraint, x_t, t, None)
    assert constraint.residual_norm(denoiser(x_t, t)).min() > 1e-4
    # Damping and differences, times the condition number of J.
    assert_close(constraint.residual_norm(x0), torch.zeros(2).double(), 1e-6)
    assert_close(x0, denoiser(moved, t), 1e-12)
    # The unknown part of x0 does not change, since e is zero there.
    unknown = 1 - LEFT_HALF.known
    assert_close(unknown * x0, unknown * denoiser(x_t, t), 1e-6)


@few_examples
@given(SEEDS, TIMES)
def test_the_jacobian_is_that_of_autograd(seed, t):
    """For each sample of a batch, with its columns in order: on a mixture, where J depends on x_t."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser, x_t = prior.denoiser(SCHEDULE), normal(g, 2, *prior.shape)
    J = _jacobian(denoiser, x_t, t, denoiser(x_t, t))
    for i in range(2):
        exact = torch.autograd.functional.jacobian(lambda x: denoiser(x, t), x_t[i : i + 1])
        assert_close(J[i], exact.reshape(4, 4), 1e-3)  # first order in h = 1e-5, times the curvature


def test_steps_are_within_sigma_and_large_states_are_refused():
    prior, constraint, x_t = left_half_case(0)
    denoiser, t = prior.denoiser(SCHEDULE), 0.2
    far = Linear(LEFT_HALF, constraint.y + 100 * LEFT_HALF.known)
    moved, _, _ = NewtonExact()(denoiser, far, x_t, t, None)
    largest = (moved - x_t).flatten(1).abs().amax(1)
    assert_close(largest, torch.full((2,), SCHEDULE(t)[1], dtype=torch.float64), 1e-12)
    with pytest.raises(ValueError, match="forms J, 4 x 4: at most 3 x 3; try inexact_newton"):
        NewtonExact(max_size=3)(denoiser, constraint, x_t, t, None)


def test_a_noise_level_takes_one_evaluation_for_each_entry_of_the_state_and_one_for_each_mean():
    prior, constraint, x_t = left_half_case(0)
    for solver in (NewtonExact(), NewtonExact(num_iterations=2)):
        counting = CountingDenoiser(prior.denoiser(SCHEDULE))
        solver(counting, constraint, x_t, 0.5, None)
        assert counting.nfe == solver.evaluations([0.0], prior.size) == 1 + 5 * solver.num_iterations
        assert solver.evaluations([0.0, 1.0], prior.size) == 2 * counting.nfe
