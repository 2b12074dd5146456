"""The scores of benchmarks.jacobian for denoisers whose Jacobian is known."""

import torch
from pytest import approx
from torch import Tensor

from adhere.core.schedules import DDPMSchedule, Schedule
from adhere.testing.priors import Gaussian
from benchmarks.jacobian import (
    Subject,
    add_noise,
    calibration,
    directions,
    extreme_eigenvalue,
    spectrum,
    step_rules,
    whole_jacobian,
)


class MatrixDenoiser:
    """D(x_t, t) = M x_t."""

    schedule: Schedule = DDPMSchedule.from_betas()
    dtype = torch.float64

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        return (x_t.flatten(1) @ self.matrix.T).view_as(x_t)


def symmetric_matrix(*eigenvalues: float) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    axes, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T


SYMMETRIC = symmetric_matrix(2.0, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, -0.5)
x_t = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_spectrum_of_a_symmetric_matrix() -> None:
    denoiser = MatrixDenoiser(SYMMETRIC)
    t = 400.0
    found = spectrum(denoiser, x_t, t)
    assert found["radius"] == approx(2.0 * denoiser.schedule(t)[0], rel=1e-2)
    assert found["negative"] == approx(-0.25, rel=1e-2)
    assert found["skew"] < 1e-4


def test_skew_is_that_of_the_matrix() -> None:
    skew = torch.randn(9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    skew = skew - skew.T
    expected = torch.linalg.eigvals(skew).abs().max() / 2.0
    found = spectrum(MatrixDenoiser(SYMMETRIC + skew), x_t, 400.0)["skew"]
    assert found == approx(float(expected), rel=2e-2)


def test_extreme_eigenvalue_may_be_complex() -> None:
    rotation = torch.block_diag(torch.tensor([[0.0, -3.0], [3.0, 0.0]]), torch.diag(torch.linspace(0.1, 1, 7))).double()
    assert abs(extreme_eigenvalue(lambda v: (v.flatten() @ rotation.T).view_as(v), x_t)) == approx(3.0, rel=1e-2)


def test_whole_jacobian_is_the_matrix() -> None:
    matrix = SYMMETRIC + torch.triu(torch.ones(9, 9, dtype=torch.float64))
    torch.testing.assert_close(whole_jacobian(MatrixDenoiser(matrix), x_t, 400.0), matrix, rtol=1e-8, atol=1e-8)


def gaussian_subject(count: int) -> Subject:
    """An exact denoiser and draws of its prior: strongly correlated pictures of 6x6 pixels."""
    n = 36
    covariance = torch.exp(-(torch.arange(n)[:, None] - torch.arange(n)[None]).abs().double() / 8)
    prior = Gaussian(torch.zeros(1, 6, 6, dtype=torch.float64), covariance)
    x0 = prior.sample(count, torch.Generator().manual_seed(3))
    return Subject("gaussian", prior.denoiser(DDPMSchedule.from_betas()), x0)


def test_an_exact_denoiser_is_calibrated() -> None:
    subject = gaussian_subject(400)
    x_t, t = add_noise(subject, 0.0)
    assert 0.9 < calibration(subject, x_t, t) < 1.1


def test_directions_of_an_exact_denoiser() -> None:
    rows, images = directions(gaussian_subject(2), log_snrs=(0.0,))
    cosine = {row.method: row.scores["cosine"] for row in rows if row.item == "0"}
    assert cosine["J e"] > 0.2  # J is symmetric, so J e = J^T e
    assert cosine["J e"] == approx(cosine["J^T e"], rel=1e-6)
    assert cosine["J^-1 e"] > cosine["J e"]
    assert len(images[0.0]) == 6


def test_exact_step_sizes_reduce_the_residual() -> None:
    rows = step_rules(gaussian_subject(2), log_snrs=(0.0,), max_iterations=4)
    remaining = {row.method: row.scores["remaining_residual"] for row in rows if row.item == "0"}
    ratios = [remaining[f"exact step size @ {1 + 3 * k}"] for k in (1, 2, 3, 4)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.5
