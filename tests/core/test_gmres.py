"""Moment matching's linear solver against direct solutions; float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.solvers.moment_matching import gmres_correction
from tests.core.exact import close, normal, random_covariance, seeded

FEW = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def non_symmetric(seed, m, n, variance=0.1):
    """(A, V, system): V's symmetric part is positive definite, its skew part as large."""
    g = seeded(seed)
    A, skew = normal(g, m, n) / math.sqrt(n), normal(g, n, n) / math.sqrt(n)
    V = random_covariance(g, n) + 0.5 * (skew - skew.T)
    return A, V, variance * torch.eye(m, dtype=torch.float64) + A @ V @ A.T


def correction(A, V, residual, iterations, variance=0.1, precondition=None):
    return gmres_correction(lambda q: q @ A @ V.T, lambda x: x @ A.T, variance, residual, iterations, precondition)


def direct(A, V, system, residual):
    return torch.linalg.solve(system, residual.T).T @ A @ V.T


@FEW
@given(SEEDS, st.integers(1, 6), st.integers(0, 3))
def test_gmres_with_a_full_krylov_space_is_a_direct_solution(seed, m, extra):
    """Also with more iterations than dimensions, and with one sample of the batch that has nothing to solve."""
    A, V, system = non_symmetric(seed, m, m + 2)
    residual = normal(seeded(seed), 3, m)
    residual[1] = 0
    result = correction(A, V, residual, m + extra)
    # Singular values of the small problem below 1e-6 of the largest count as zero; the condition number here is < 1e3.
    close(result, direct(A, V, system, residual), 1e-7)
    assert not result[1].any()


@FEW
@given(SEEDS, st.integers(1, 6))
def test_a_preconditioner_changes_the_way_and_not_the_end(seed, m):
    A, V, system = non_symmetric(seed, m, m + 2)
    residual, P = normal(seeded(seed), 3, m), random_covariance(seeded(seed + 1), m)
    close(correction(A, V, residual, m, precondition=lambda q: q @ P), direct(A, V, system, residual), 1e-7)
    inverse = torch.linalg.inv(system).T
    close(correction(A, V, residual, 1, precondition=lambda q: q @ inverse), direct(A, V, system, residual), 1e-7)


@FEW
@given(SEEDS, st.integers(1, 3))
def test_gmres_stops_where_the_krylov_space_does(seed, rank):
    """Residuals in an invariant subspace of dimension `rank` are solved in `rank` iterations, and stay solved."""
    m = 5
    A = torch.linalg.qr(normal(seeded(seed), m, m))[0]
    V = A.T @ torch.diag_embed(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]).double()) @ A  # A V A^T is diagonal
    system = 0.1 * torch.eye(m, dtype=torch.float64) + A @ V @ A.T
    residual = torch.zeros(2, m, dtype=torch.float64)
    residual[0, :rank] = 1.0
    residual[1, 0] = 1.0  # a batch whose Krylov spaces end at different times
    for iterations in range(rank, m + 2):
        close(correction(A, V, residual, iterations), direct(A, V, system, residual), 1e-8)


@FEW
@given(SEEDS)
def test_gmres_with_a_singular_covariance(seed):
    """A V A^T of rank one, as when one direction is all that the prior leaves open."""
    g = seeded(seed)
    A, w = normal(g, 4, 4), normal(g, 4, 1)
    V, residual = w @ w.T, normal(g, 2, 4)
    system = 0.1 * torch.eye(4, dtype=torch.float64) + A @ V @ A.T
    for iterations in (2, 3, 4):  # two distinct eigenvalues
        close(correction(A, V, residual, iterations), direct(A, V, system, residual), 1e-6)


@FEW
@given(SEEDS)
def test_gmres_residuals_never_grow_with_iterations(seed):
    """|r - system u| over growing Krylov spaces, with V invertible so that A V A^T u can be read off the correction."""
    A, V, _ = non_symmetric(seed, 5, 5)
    residual = normal(seeded(seed), 3, 5)
    norms = [residual.norm(dim=1)]
    for iterations in range(1, 6):
        result = correction(A, V, residual, iterations)  # V A^T u
        u = torch.linalg.solve(V @ A.T, result.T).T
        norms.append((residual - 0.1 * u - result @ A.T).norm(dim=1))
    for before, after in pairwise(norms):
        assert (after <= before + 1e-8).all()


def test_gmres_refuses_no_iterations():
    with pytest.raises(ValueError, match="m = 0: at least one"):
        correction(torch.eye(2).double(), torch.eye(2).double(), torch.ones(1, 2).double(), 0)
