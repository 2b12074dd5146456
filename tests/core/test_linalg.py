"""Krylov solvers against direct solutions, and the arithmetic per sample; in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core import _linalg
from adhere.core._linalg import (
    bfgs_product,
    clip_rms,
    conjugate_residuals,
    dot,
    gmres,
    iterations_needed,
    kept_directions,
    max_norm,
    minimal_residual_step,
    per_sample,
    repeat_samples,
    safe_divide,
)
from tests.core.exact import assert_close, normal, random_covariance, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


# Arithmetic per sample -----------------------------------------------------------------------------------------------


def test_products_and_norms_are_per_sample():
    a, b = normal(seeded(0), 2, 3, 2, 2), normal(seeded(1), 2, 3, 2, 2)
    assert_close(dot(a, b), torch.stack([(p * q).sum() for p, q in zip(a, b, strict=True)]).view(2, 1, 1, 1), 1e-12)
    assert max_norm(a).equal(torch.stack([p.abs().max() for p in a]).view(2, 1, 1, 1))
    assert per_sample(torch.tensor([1.0, 2.0]), a).shape == (2, 1, 1, 1)


def test_repeated_samples_are_one_part_after_the_other():
    parts = [torch.tensor([[1.0]]), torch.tensor([[2.0], [3.0]])]
    assert repeat_samples(parts, 2).flatten().tolist() == [1, 1, 2, 3]


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
    assert not u[1].any()


@few_examples
@given(SEEDS, st.integers(1, 12))
def test_conjugate_residuals_of_large_systems_keep_two_directions(seed, n):
    """For a symmetric matrix, the others are orthogonal already."""
    g = seeded(seed)
    S, b = random_covariance(g, n), normal(g, 3, n)
    expected = conjugate_residuals(lambda u: u @ S, b, n // 2 + 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_linalg, "_KEPT_ENTRIES", 1)
        assert kept_directions(n) == 2
        assert_close(conjugate_residuals(lambda u: u @ S, b, n // 2 + 1), expected, 1e-6)


@few_examples
@given(SEEDS, st.integers(1, 12), st.integers(1, 4))
def test_conjugate_residuals_take_as_many_iterations_as_there_are_distinct_eigenvalues(seed, n, distinct):
    g = seeded(seed)
    values = (1.0 + torch.arange(n) % distinct).double()
    Q, b = torch.linalg.qr(normal(g, n, n))[0], normal(g, 2, n)
    u = conjugate_residuals(lambda u: u @ (Q * values) @ Q.T, b, distinct, tolerance=0.0)
    assert_close(u, b @ (Q / values) @ Q.T, 1e-10)


@pytest.mark.parametrize("num_iterations", [1, 2, 10])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_conjugate_residuals_make_exactly_the_stated_number_of_products(num_iterations, scale):
    """Even where all samples have converged, so that nothing is read back from the device."""
    calls, b = [], scale * normal(seeded(0), 3, 4)

    def matrix(u):
        calls.append(u)
        return 2 * u  # solved by one iteration

    u = conjugate_residuals(matrix, b, num_iterations)
    assert len(calls) == num_iterations
    assert_close(u, b / 2, 1e-12)


def test_conjugate_residuals_of_a_right_hand_side_of_zero_are_zero():
    """For a singular matrix and the zero matrix too, without NaN."""
    zero = torch.zeros(2, 3, dtype=torch.float64)
    for M in (torch.eye(3).double(), torch.diag(torch.tensor([1.0, 0.0, 0.0])).double(), torch.zeros(3, 3).double()):
        assert conjugate_residuals(lambda u, M=M: u @ M, zero, 4).equal(zero)
    unsolvable = conjugate_residuals(lambda u: 0 * u, torch.ones(2, 3).double(), 4)
    assert unsolvable.equal(zero)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_more_iterations_than_needed_do_no_harm(dtype, tolerance):
    """At most 100 products for 6 unknowns, where the residual is a rounding error after about 6."""
    S, b = random_covariance(seeded(0), 6).to(dtype), normal(seeded(1), 4, 6).to(dtype)
    bound = max(tolerance, 10 * torch.finfo(dtype).eps * float(torch.linalg.cond(S)))
    for num_iterations in (10, 30, 100):
        u = conjugate_residuals(lambda u: u @ S, b, num_iterations, tolerance)
        assert ((b - u @ S).norm(dim=1) <= bound * b.norm(dim=1)).all()


@few_examples
@given(SEEDS, st.integers(1, 12), st.sampled_from([1.0, 1.1, 2.0, 6.0, 50.0]), st.sampled_from([0.3, 0.02, 1e-6]))
def test_as_many_iterations_as_needed_reach_the_tolerance(seed, n, condition_number, tolerance):
    """For any spectrum with that condition number."""
    g = seeded(seed)
    values = 1 + (condition_number - 1) * torch.rand(n, generator=g).double()
    Q, b = torch.linalg.qr(normal(g, n, n))[0], normal(g, 2, n)
    S = (Q * values) @ Q.T
    count = iterations_needed(condition_number, tolerance, 1000)
    u = conjugate_residuals(lambda u: u @ S, b, count, tolerance=0.0)
    assert ((b - u @ S).norm(dim=1) <= tolerance * b.norm(dim=1) * (1 + 1e-9)).all()


def test_the_iterations_needed_are_at_least_one_and_at_most_the_limit():
    assert iterations_needed(1.0, 0.02, 10) == 1  # a multiple of the identity
    assert iterations_needed(2.0, 0.0, 10) == 10  # no tolerance
    assert iterations_needed(math.inf, 0.02, 10) == 10
    assert iterations_needed(1.0, 0.0, 10) == 1  # exact after one
    assert [iterations_needed(k, 0.02, 10) for k in (1.03, 2.0, 6.0, 20.0)] == [1, 3, 6, 10]


def test_conjugate_residuals_stop_per_sample():
    """A sample that has converged does not change while others iterate: a batch equals its singles."""
    S, b = random_covariance(seeded(0), 6), normal(seeded(1), 8, 6)

    def solved(b, num_iterations=6):
        return conjugate_residuals(lambda u: u @ S, b, num_iterations, tolerance=0.3)

    singles = torch.cat([solved(one) for one in b.split(1)])
    assert_close(solved(b), singles, 1e-12)
    residuals = (b - singles @ S).norm(dim=1) / b.norm(dim=1)
    assert (residuals <= 0.3).all() and (residuals > 1e-3).any()
    assert solved(b, 60).equal(solved(b))  # all have converged
    after = [solved(b, m) for m in range(1, 7)]
    converged = [((b - u @ S).norm(dim=1) <= 0.3 * b.norm(dim=1)) for u in after]
    assert 0 < sum(int(now.sum()) for now in converged[:2]) < 16  # some stop early, and not all
    for (u, now), following in zip(zip(after, converged, strict=True), after[1:], strict=False):
        assert following[now].equal(u[now])


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
    for num_iterations in range(1, 3 * n):
        norms.append((b - conjugate_residuals(lambda u: u @ M, b, num_iterations) @ M).norm(dim=1))
    for before, after in pairwise(norms):
        assert (after <= before * (1 + 1e-9) + 1e-9).all()


# BFGS updates --------------------------------------------------------------------------------------------------------


def updated_matrix(V_0, pairs, sample=0):
    """Return the matrix of the BFGS update of V_0 (n, n) with pairs of (B, n), for one sample of the batch."""
    one = [(s[sample : sample + 1], d[sample : sample + 1]) for s, d in pairs]
    n = len(V_0)
    repeated = [(s.expand(n, -1), d.expand(n, -1)) for s, d in one]
    return bfgs_product(lambda v: v @ V_0, repeated, torch.eye(n, dtype=torch.float64)).T


def update_by_formula(V, s, d):
    """Return the update (I - rho d s^T) V (I - rho s d^T) + rho d d^T with rho = 1 / <s, d>, as a matrix."""
    rho = 1 / (s @ d)
    left = torch.eye(len(V), dtype=torch.float64) - rho * torch.outer(d, s)
    return left @ V @ left.T + rho * torch.outer(d, d)


def random_pairs(g, n, count, batch=2):
    """Return pairs of random vectors, those with <s, d> <= 0 reversed."""
    pairs = []
    for _ in range(count):
        s, d = normal(g, batch, n), normal(g, batch, n)
        pairs.append((s, d * dot(s, d).sign()))
    return pairs


@few_examples
@given(SEEDS, st.integers(1, 8), st.integers(0, 4))
def test_a_bfgs_product_is_that_of_the_updates_one_after_the_other(seed, n, count):
    g = seeded(seed)
    V_0, pairs = random_covariance(g, n), random_pairs(g, n, count)
    for sample in (0, 1):
        expected = V_0
        for s, d in pairs:
            expected = update_by_formula(expected, s[sample], d[sample])
        found = updated_matrix(V_0, pairs, sample)
        # <s, d> may be near 0, where the update is large; rounding errors are relative to its largest entry.
        size = max(1.0, float(expected.abs().max()))
        conditions = max(
            [1.0, *(float(s[sample].norm() * d[sample].norm() / (s[sample] @ d[sample])) for s, d in pairs)]
        )
        assert_close(found / size, expected / size, 1e-13 * conditions**2)


@few_examples
@given(SEEDS, st.integers(1, 8), st.integers(1, 4))
def test_the_update_meets_the_last_pair(seed, n, count):
    g = seeded(seed)
    V_0, pairs = random_covariance(g, n), random_pairs(g, n, count)
    s, d = pairs[-1]
    product = bfgs_product(lambda v: v @ V_0, pairs, s)
    condition = float((s.norm(dim=1) * d.norm(dim=1) / (s * d).sum(1)).max())
    assert_close(product, d, 1e-12 * condition**2)


@few_examples
@given(SEEDS, st.integers(2, 8))
def test_the_update_meets_each_pair_if_the_pairs_are_conjugate(seed, n):
    """<s_i, d_j> = 0, as of conjugate directions s_i and d_i = V s_i: as many pairs as dimensions give V itself."""
    g = seeded(seed)
    V_0, V = random_covariance(g, n), random_covariance(g, n)
    _, Q = torch.linalg.eigh(V)
    pairs = [(q[None], (V @ q)[None]) for q in Q.T]
    assert_close(updated_matrix(V_0, pairs), V, 1e-8)


@few_examples
@given(SEEDS, st.integers(1, 8), st.integers(1, 4))
def test_the_update_is_symmetric_and_positive_definite_for_any_pairs(seed, n, count):
    """Pairs with <s, d> <= 0 are left out: with any d, as of a network, about half of them."""
    g = seeded(seed)
    V_0 = random_covariance(g, n)
    pairs = [
        (s, d * (1 + dot(s, d).abs()).rsqrt()) for s, d in ((normal(g, 2, n), normal(g, 2, n)) for _ in range(count))
    ]
    for sample in (0, 1):
        V = updated_matrix(V_0, pairs, sample)
        size = V.abs().max()
        assert_close(V / size, V.T / size, 1e-10)
        # In exact arithmetic all are positive; rounding errors are relative to the largest.
        assert torch.linalg.eigvalsh((V + V.T) / 2).min() > -1e-12 * size


def test_pairs_without_positive_curvature_are_left_out():
    """Of each sample separately; a direction of zero is left out too, without NaN."""
    g = seeded(0)
    V_0, v, s, d = random_covariance(g, 4), normal(g, 3, 4), normal(g, 3, 4), normal(g, 3, 4)
    d = d * dot(s, d).sign() * torch.tensor([[1.0], [-1.0], [0.0]]).double()  # <s, d> is positive, negative and 0
    product = bfgs_product(lambda v: v @ V_0, [(s, d)], v)
    assert_close(product[1:], v[1:] @ V_0, 1e-14)
    assert not torch.allclose(product[0], v[0] @ V_0)
    zero = torch.zeros_like(s)
    assert bfgs_product(lambda v: v @ V_0, [(zero, zero)], v).equal(v @ V_0)
    alone = bfgs_product(lambda v: v @ V_0, [(s[:1], d[:1])], v[:1])
    assert_close(product[:1], alone, 1e-14)


def test_without_pairs_the_product_is_that_of_the_matrix():
    V_0, v = random_covariance(seeded(0), 4), normal(seeded(1), 3, 4)
    assert bfgs_product(lambda v: v @ V_0, [], v).equal(v @ V_0)


# One step ------------------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, st.floats(0, 2))
def test_a_minimal_residual_step_leaves_a_residual_orthogonal_to_its_direction(seed, variance):
    """Per sample, which is the condition for the least residual; and it returns u, A^T u and V A^T u of one u."""
    g = seeded(seed)
    A, V, residual = normal(g, 3, 5), random_covariance(g, 5), normal(g, 2, 3)
    variances = torch.tensor([[variance], [2 * variance + 0.1]], dtype=torch.float64)
    u, back, change = minimal_residual_step(lambda x: x @ A.T, lambda y: y @ A, lambda v: v @ V, variances, residual)
    direction = variances * residual + residual @ A @ V @ A.T
    remaining = residual - variances * u - change @ A.T
    assert_close((remaining * direction).sum(1) / direction.norm(dim=1), torch.zeros(2).double(), 1e-12)
    assert_close(back, u @ A, 1e-12)
    assert_close(change, back @ V, 1e-12)
    assert (torch.linalg.vecdot(u, residual).abs() - u.norm(dim=1) * residual.norm(dim=1)).abs().max() < 1e-9
