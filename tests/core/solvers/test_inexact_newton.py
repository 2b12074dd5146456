"""Inexact Newton against closed forms for Gaussian priors; in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear
from adhere.core.derivatives import jvp
from adhere.core.presets import PRESETS
from adhere.core.schedules import CosineSchedule
from tests.core.exact import assert_close, exact_jacobian, gaussian_case, last_x0, normal, seeded

SCHEDULE = CosineSchedule()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.sampled_from([0.5, 0.95, 1.05]))
def test_constant_steps_along_J_e_contract_the_residual_below_two_over_lambda_max(seed, t, fraction):
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
        x_t = x_t + eta * jvp(denoiser, x_t, t, x0, constraint.neg_grad(x0))
        r = r @ contraction
    residual = constraint.residual(denoiser(x_t, t))
    assert_close(residual, r, 1e-6)
    # Beyond the bound the largest component grows by |1 - 2.1| per step, more than a hundredfold in fifty.
    assert (residual.norm(dim=1) < start.norm(dim=1)).tolist() == [fraction < 1] * 2


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_samples_is_too_small(seed):
    """The total variance of what is not measured is below the posterior's by more than five standard errors."""
    prior, A, constraint, _, _ = gaussian_case(seed, m=2, noise=0.3)
    noise = normal(seeded(5), 4000, *prior.shape)
    states = PRESETS["inexact_newton"].trajectory(prior.denoiser(SCHEDULE), constraint, noise, seeded(6))
    samples, posterior = last_x0(states), prior.posterior(constraint.operator, constraint.y, constraint.noise)
    null_space = torch.linalg.svd(A)[2][len(A) :]  # an orthonormal basis
    squares = ((samples - samples.mean(0)).flatten(1) @ null_space.T).square().sum(1)
    standard_error = squares.std() / math.sqrt(len(squares))
    assert squares.mean() + 5 * standard_error < (null_space @ posterior.covariance @ null_space.T).trace()
    # Samples meet the constraint more closely than those of the posterior, which are off by about the noise.
    assert constraint.residual_norm(samples).mean() < constraint.noise * 2 / 3
