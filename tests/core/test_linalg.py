"""Krylov solvers against direct solutions, and the arithmetic per sample; in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core._linalg import clip_rms, conjugate_residuals, dot, gmres, max_norm, per_sample, safe_divide
from tests.core.exact import assert_close, normal, random_covariance, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


# Arithmetic per sample -----------------------------------------------------------------------------------------------


def test_products_and_norms_are_per_sample():
    a, b = normal(seeded(0), 2, 3, 2, 2), normal(seeded(1), 2, 3, 2, 2)
    assert_close(dot(a, b), torch.stack([(p * q).sum() for p, q in zip(a, b, strict=True)]).view(2, 1, 1, 1), 1e-12)
    assert max_norm(a).equal(torch.stack([p.abs().max() for p in a]).view(2, 1, 1, 1))
    assert per_sample(torch.tensor([1.0, 2.0]), a).shape == (2, 1, 1, 1)


def test_norms_and_quotients_of_zeros_are_finite():
    assert max_norm(torch.zeros(1, 2)) == torch.finfo(torch.float32).tiny
    assert safe_divide(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])).tolist() == [0.0, 1.5]


def test_clip_rms_scales_down_only_the_samples_above_the_bound():
    step = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 2.0), torch.zeros(1, 2, 2)])
    assert_close(clip_rms(step, 0.5), torch.stack([step[0], step[1] / 4, step[2]]), 1e-6)
    assert clip_rms(step, math.inf) is step


# GMRES ---------------------------------------------------------------------------------------------------------------


def non_symmetric_case(seed, m, n, damping=0.1):
    """Return A, V and damping I + A V A^T; V has a positive definite symmetric part and a skew part as large."""
    g = seeded(seed)
    A, skew = normal(g, m, n) / math.sqrt(n), normal(g, n, n) / math.sqrt(n)
    V = random_covariance(g, n) + 0.5 * (skew - skew.T)
    return A, V, damping * torch.eye(m, dtype=torch.float64) + A @ V @ A.T


def gmres_solution(A, V, residual, num_iterations, damping=0.1, preconditioner=None):
    return gmres(lambda q: q @ A @ V.T, lambda x: x @ A.T, damping, residual, num_iterations, preconditioner)


def direct_solution(A, V, system, residual):
    return torch.linalg.solve(system, residual.T).T @ A @ V.T


@few_examples
@given(SEEDS, st.integers(1, 6), st.integers(0, 3))
def test_gmres_with_as_many_iterations_as_measurements_is_a_direct_solution(seed, m, extra):
    """This holds with more iterations too, and where one sample of the batch has a residual of zero."""
    A, V, system = non_symmetric_case(seed, m, m + 2)
    residual = normal(seeded(seed), 3, m)
    residual[1] = 0
    result = gmres_solution(A, V, residual, m + extra)
    # Singular values of the small problem below 1e-6 of the largest count as zero; the condition number here is < 1e3.
    assert_close(result, direct_solution(A, V, system, residual), 1e-7)
    assert not result[1].any()


@few_examples
@given(SEEDS, st.integers(1, 6))
def test_a_preconditioner_does_not_change_the_solution(seed, m):
    """With the inverse as preconditioner, one iteration is enough."""
    A, V, system = non_symmetric_case(seed, m, m + 2)
    residual, P = normal(seeded(seed), 3, m), random_covariance(seeded(seed + 1), m)
    expected = direct_solution(A, V, system, residual)
    assert_close(gmres_solution(A, V, residual, m, preconditioner=lambda q: q @ P), expected, 1e-7)
    inverse = torch.linalg.inv(system).T
    assert_close(gmres_solution(A, V, residual, 1, preconditioner=lambda q: q @ inverse), expected, 1e-7)


@few_examples
@given(SEEDS, st.integers(1, 3))
def test_gmres_stays_at_the_solution_when_the_krylov_space_is_exhausted(seed, rank):
    """Residuals in an invariant subspace of dimension `rank` are solved in `rank` iterations."""
    m = 5
    A = torch.linalg.qr(normal(seeded(seed), m, m))[0]
    V = A.T @ torch.diag_embed(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]).double()) @ A  # A V A^T is diagonal
    system = 0.1 * torch.eye(m, dtype=torch.float64) + A @ V @ A.T
    residual = torch.zeros(2, m, dtype=torch.float64)
    residual[0, :rank] = 1.0
    residual[1, 0] = 1.0  # a batch whose Krylov spaces are exhausted at different times
    for num_iterations in range(rank, m + 2):
        result = gmres_solution(A, V, residual, num_iterations)
        assert_close(result, direct_solution(A, V, system, residual), 1e-8)


@few_examples
@given(SEEDS)
def test_gmres_solves_with_a_covariance_of_rank_one(seed):
    g = seeded(seed)
    A, w = normal(g, 4, 4), normal(g, 4, 1)
    V, residual = w @ w.T, normal(g, 2, 4)
    system = 0.1 * torch.eye(4, dtype=torch.float64) + A @ V @ A.T
    for num_iterations in (2, 3, 4):  # two distinct eigenvalues
        result = gmres_solution(A, V, residual, num_iterations)
        assert_close(result, direct_solution(A, V, system, residual), 1e-6)


@few_examples
@given(SEEDS)
def test_gmres_residuals_never_grow_with_the_number_of_iterations(seed):
    """|r - system u| over growing Krylov spaces; V is invertible, so that A V A^T u can be read off the result."""
    A, V, _ = non_symmetric_case(seed, 5, 5)
    residual = normal(seeded(seed), 3, 5)
    norms = [residual.norm(dim=1)]
    for num_iterations in range(1, 6):
        result = gmres_solution(A, V, residual, num_iterations)  # V A^T u
        u = torch.linalg.solve(V @ A.T, result.T).T
        norms.append((residual - 0.1 * u - result @ A.T).norm(dim=1))
    for before, after in pairwise(norms):
        assert (after <= before + 1e-8).all()


def test_gmres_refuses_no_iterations():
    with pytest.raises(ValueError, match="num_iterations = 0: at least one"):
        gmres_solution(torch.eye(2).double(), torch.eye(2).double(), torch.ones(1, 2).double(), 0)


# Conjugate residuals -------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, st.integers(1, 12))
def test_conjugate_residuals_solve_a_symmetric_system(seed, n):
    g = seeded(seed)
    S, b = random_covariance(g, n), normal(g, 3, n)
    b[1] = 0  # the solution of this sample is zero
    # n iterations are enough in exact arithmetic; rounding may take some more.
    u = conjugate_residuals(lambda u: u @ S, b, 4 * n, tolerance=1e-10)
    assert_close(u, torch.linalg.solve(S, b.T).T, 1e-6)


def test_conjugate_residuals_stop_per_sample():
    """A sample that has converged does not change while others iterate: a batch equals its singles."""
    S, b = random_covariance(seeded(0), 6), normal(seeded(1), 8, 6)

    def solved(b):
        return conjugate_residuals(lambda u: u @ S, b, 6, tolerance=0.3)

    singles = torch.cat([solved(one) for one in b.split(1)])
    assert_close(solved(b), singles, 1e-12)
    residuals = (b - singles @ S).norm(dim=1) / b.norm(dim=1)
    assert (residuals <= 0.3).all() and (residuals > 1e-3).any()


def test_conjugate_residuals_of_a_singular_system_give_the_solution_of_least_norm():
    A = normal(seeded(0), 2, 5)
    S, b = A.T @ A, normal(seeded(1), 1, 2) @ A
    u = conjugate_residuals(lambda u: u @ S, b, 20, tolerance=1e-10)
    assert_close(u, b @ torch.linalg.pinv(S), 1e-8)


@few_examples
@given(SEEDS, st.integers(1, 8), st.floats(0, 3))
def test_residuals_of_conjugate_residuals_never_grow_for_any_matrix(seed, n, skewness):
    """As with an inexact adjoint, up to a matrix that is mostly skew and indefinite."""
    g = seeded(seed)
    skew = normal(g, n, n)
    M, b = random_covariance(g, n) - 0.2 * torch.eye(n).double() + skewness * (skew - skew.T), normal(g, 3, n)
    norms = [b.norm(dim=1)]
    for max_iterations in range(1, 3 * n):
        norms.append((b - conjugate_residuals(lambda u: u @ M, b, max_iterations) @ M).norm(dim=1))
    for before, after in pairwise(norms):
        assert (after <= before * (1 + 1e-9) + 1e-9).all()
