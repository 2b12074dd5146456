"""Null-space projection against its closed form."""

import math

import torch

from adhere.core.constraints import Linear, Loss, Unconstrained
from adhere.core.operators import Mask
from adhere.core.schedules import CosineSchedule
from adhere.core.solvers.ddnm import DDNM
from tests.core.exact import assert_close, gaussian_case, normal, random_gaussian, seeded

SCHEDULE = CosineSchedule()
HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))


def test_under_a_mask_without_noise_the_known_part_is_replaced():
    prior = random_gaussian(seeded(0))
    y, x_t = HALF(prior.sample(1, seeded(1))), normal(seeded(2), 2, *prior.shape)
    denoiser = prior.denoiser(SCHEDULE)
    same_x_t, x0, memory = DDNM()(denoiser, Linear(HALF, y), x_t, 0.5, None)
    assert same_x_t is x_t and memory is None
    assert_close(x0, y + (1 - HALF.known) * denoiser(x_t, 0.5), 1e-12)


def test_with_noise_the_measurement_counts_as_far_as_the_uncertainty_of_x0_implies():
    """x0 + A^T (A A^T + (noise / r_t)^2 I)^-1 (y - A x0), for a dense A."""
    noise, t = 0.3, 0.4
    prior, A, constraint, x_t, _ = gaussian_case(0, noise=noise)
    alpha_t, sigma_t = SCHEDULE(t)
    r_t = sigma_t / math.hypot(alpha_t, sigma_t)
    x0 = prior.denoiser(SCHEDULE)(x_t, t).flatten(1)
    u = torch.linalg.solve(A @ A.T + (noise / r_t) ** 2 * torch.eye(len(A)).double(), (constraint.y - x0 @ A.T).T)
    _, projected, _ = DDNM()(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    assert_close(projected.flatten(1), x0 + u.T @ A, 1e-4)  # conjugate residuals stop at 1e-5 of the residual


def test_what_is_supported():
    linear = Linear(HALF, torch.zeros(1, 1, 2, 2).double())
    assert DDNM().supports(linear) and DDNM().supports(Loss(lambda x0: x0.square().sum((1, 2, 3))))
    assert not DDNM().supports(Unconstrained())
