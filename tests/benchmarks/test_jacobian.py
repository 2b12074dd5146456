"""benchmarks.jacobian on denoisers whose Jacobian is known."""

import torch
from pytest import approx
from torch import Tensor

from adhere.core.priors import Gaussian
from adhere.core.schedule import Discrete, Schedule
from benchmarks.jacobian import Subject, calibration, directions, largest, noised, spectrum, step_rules, whole_jacobian
from tests.core.exact import close


class Matrix:
    """D(x_t, t) = M x_t."""

    schedule: Schedule = Discrete.from_betas()
    dtype = torch.float64

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        return (x_t.flatten(1) @ self.matrix.T).view_as(x_t)


def symmetric_with(*eigenvalues: float) -> Tensor:
    """A symmetric matrix with these eigenvalues, its axes turned at random."""
    n = len(eigenvalues)
    axes, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T


SYMMETRIC = symmetric_with(2.0, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, -0.5)
x_t = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_spectrum_of_a_symmetric_matrix() -> None:
    denoiser = Matrix(SYMMETRIC)
    t = 400.0
    found = spectrum(denoiser, x_t, t)
    assert found["radius"] == approx(2.0 * denoiser.schedule(t)[0], rel=1e-2)
    assert found["negative"] == approx(-0.25, rel=1e-2)
    assert found["skew"] < 1e-4


def test_skew_is_that_of_the_matrix() -> None:
    turn = torch.randn(9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turn = turn - turn.T
    wanted = torch.linalg.eigvals(turn).abs().max() / 2.0
    found = spectrum(Matrix(SYMMETRIC + turn), x_t, 400.0)["skew"]
    assert found == approx(float(wanted), rel=2e-2)


def test_largest_knows_complex_eigenvalues() -> None:
    rotation = torch.block_diag(torch.tensor([[0.0, -3.0], [3.0, 0.0]]), torch.diag(torch.linspace(0.1, 1, 7))).double()
    assert abs(largest(lambda v: (v.flatten() @ rotation.T).view_as(v), x_t)) == approx(3.0, rel=1e-2)


def test_whole_jacobian_is_the_matrix() -> None:
    turned = SYMMETRIC + torch.triu(torch.ones(9, 9, dtype=torch.float64))
    close(whole_jacobian(Matrix(turned), x_t, 400.0), turned, 1e-8)


def gaussian_subject(count: int) -> Subject:
    """An exact denoiser, and draws from its prior: strongly correlated pictures of 6x6."""
    n = 36
    near = torch.exp(-(torch.arange(n)[:, None] - torch.arange(n)[None]).abs().double() / 8)
    prior = Gaussian(torch.zeros(1, 6, 6, dtype=torch.float64), near)
    drawn = prior.sample(count, torch.Generator().manual_seed(3))
    return Subject("gaussian", prior.denoiser(Discrete.from_betas()), drawn)


def test_an_exact_denoiser_is_calibrated() -> None:
    subject = gaussian_subject(400)
    x_t, t = noised(subject, 0.0)
    assert 0.9 < calibration(subject, x_t, t) < 1.1


def test_directions_of_an_exact_denoiser() -> None:
    rows, shown = directions(gaussian_subject(2), levels=(0.0,))
    cosine = {row.method: row.scores["cosine"] for row in rows if row.item == "0"}
    assert cosine["J e"] > 0.2  # symmetric: J e and J^T e are one
    assert cosine["J e"] == approx(cosine["J^T e"], rel=1e-6)
    assert cosine["J^-1 e"] > cosine["J e"]
    assert len(shown[0.0]) == 6


def test_exact_lengths_meet_the_constraint_at_least_as_fast() -> None:
    rows = step_rules(gaussian_subject(2), levels=(0.0,), most=4)
    left = {row.method: row.scores["residual_left"] for row in rows if row.item == "0"}
    lengths = [left[f"exact length @ {1 + 3 * K}"] for K in (1, 2, 3, 4)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 0.5
