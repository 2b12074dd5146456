"""Moves along J e, J^T e and e: their directions against exact Jacobians, their lengths, and their cost."""

from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.dps import DPS
from adhere.core.baselines.mpgd import MPGD
from adhere.core.constraints import Linear, Loss
from adhere.core.denoisers import CountingDenoiser, NetworkDenoiser
from adhere.core.operators import Mask
from adhere.core.schedules import CosineSchedule, DDPMSchedule
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.testing import check_solver
from tests.core.exact import assert_close, normal, random_factors, random_mixture, seeded

few_examples = settings(max_examples=15, deadline=None)
SCHEDULE = CosineSchedule()
PRIOR = random_factors(seeded(0))
DENOISER = PRIOR.denoiser(SCHEDULE)
LEFT_HALF = Mask(torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(1, 1, 4, 4))
any_solver = pytest.mark.parametrize("solver", [InexactNewton, DPS, MPGD])


class RecordingDenoiser(CountingDenoiser):
    """Records every x_t it is evaluated at."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.visited = []

    def __call__(self, x_t, t):
        self.visited.append(x_t.detach())
        return super().__call__(x_t, t)


class SkewedDenoiser:
    """A smooth denoiser of (1, 2, 2) whose Jacobian is far from symmetric."""

    schedule, dtype = SCHEDULE, torch.float64

    def __init__(self, seed):
        self.M = normal(seeded(seed), 4, 4)

    def __call__(self, x_t, t):
        return torch.tanh(x_t.flatten(1) @ self.M.T).view_as(x_t)

    def jacobian(self, x_t):
        """Return J, (B, 4, 4)."""
        return (1 - torch.tanh(x_t.flatten(1) @ self.M.T).square())[:, :, None] * self.M


def matrices(J):
    """Return the matrix that each solver multiplies e (B, 4) with."""
    return {InexactNewton: J, DPS: J.mT, MPGD: torch.eye(4).double().expand_as(J)}


@any_solver
@few_examples
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.1, 0.9))
def test_one_move_is_along_the_product_that_defines_the_solver(solver, seed, t):
    """x_t + min(step size, sigma_t) g / |g|_inf for g = J e, J^T e or e, with an exact J that is not symmetric."""
    denoiser, x_t = SkewedDenoiser(seed), normal(seeded(seed), 3, 1, 2, 2)
    loss = Loss(lambda x0: x0.exp().flatten(1).sum(1))
    moved, x0, _ = solver(num_iterations=1, step_size_start=0.3)(denoiser, loss, x_t, t, None)
    e = loss.neg_grad(denoiser(x_t, t)).flatten(1)
    g = torch.einsum("bij,bj->bi", matrices(denoiser.jacobian(x_t))[solver], e)
    expected = x_t + min(0.3, SCHEDULE(t)[1]) * (g / g.abs().amax(1, keepdim=True)).view_as(x_t)
    assert_close(moved, expected, 1e-3 if solver is InexactNewton else 1e-10)  # a difference: first order in h = 1e-5
    assert_close(x0, denoiser(moved, t), 1e-12)


@few_examples
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.2, 0.9))
def test_for_an_exact_denoiser_the_gradient_is_the_forward_derivative(seed, t):
    """J is symmetric, so dps is the limit of inexact_newton as the step of its difference goes to zero."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser, x_t, known = prior.denoiser(SCHEDULE), normal(g, 2, *prior.shape), Mask(torch.eye(2).double()[None, None])
    constraint = Linear(known, known(prior.sample(1, g)))
    forward, backward = (
        solver(num_iterations=2)(denoiser, constraint, x_t, t, None)[0] for solver in (InexactNewton, DPS)
    )
    assert_close(forward, backward, 2e-3)


@pytest.mark.parametrize(("solver", "evaluations", "backward"), [(InexactNewton, 9, 0), (DPS, 5, 4), (MPGD, 5, 0)])
def test_the_cost_of_four_moves(solver, evaluations, backward):
    counting, loss = CountingDenoiser(DENOISER), Loss(lambda x0: x0.square().flatten(1).sum(1))
    four = solver(num_iterations=4)
    four(counting, loss, normal(seeded(0), 3, *PRIOR.shape), 0.5, None)
    assert (counting.nfe, counting.num_backward) == (evaluations, backward)
    assert (four.evaluations([0.0]), four.backward_passes([0.0])) == (evaluations, backward)


@any_solver
def test_a_solver_with_a_tolerance_makes_at_most_the_evaluations_it_states(solver):
    check_solver(solver(tolerance=0.2), stops_early=True)


@any_solver
def test_tolerance_freezes_the_samples_that_meet_it_and_no_others(solver):
    t, x_t = 0.5, normal(seeded(0), 3, *PRIOR.shape)
    offset = torch.tensor([0.05, 0.2, 1.0]).double().view(3, 1, 1, 1)  # the residual norm of each is its offset
    constraint = Linear(LEFT_HALF, LEFT_HALF(DENOISER(x_t, t) + offset))
    free, _, _ = solver(num_iterations=1)(DENOISER, constraint, x_t, t, None)
    for tolerance, frozen in [(0.0, 0), (0.1, 1), (0.5, 2), (2.0, 3)]:
        counting = CountingDenoiser(DENOISER)
        moved, _, _ = solver(num_iterations=1, tolerance=tolerance)(counting, constraint, x_t, t, None)
        assert moved[:frozen].equal(x_t[:frozen])
        assert moved[frozen:].equal(free[frozen:])
        assert (counting.nfe == 1) == (frozen == 3)  # the noise level ends when all samples meet the tolerance


@pytest.mark.parametrize("clip_to_sigma", [True, False])
@any_solver
def test_the_largest_entry_of_each_move_decreases_linearly_and_is_within_sigma(solver, clip_to_sigma):
    recording, t = RecordingDenoiser(DENOISER), SCHEDULE.t_from_log_snr(1.0)
    x_t = normal(seeded(0), 4, *PRIOR.shape)
    constraint = Linear(LEFT_HALF, LEFT_HALF(PRIOR.sample(4, seeded(1))))
    solver(3, step_size_start=0.5, step_size_end=0.1, clip_to_sigma=clip_to_sigma)(recording, constraint, x_t, t, None)
    points = recording.visited[:: 2 if solver is InexactNewton else 1]  # finite differences are in between
    moves = torch.stack([(b - a).flatten(1).abs().amax(1) for a, b in pairwise(points)])
    sigma_t = SCHEDULE(t)[1]
    assert 0.3 < sigma_t < 0.5
    expected = torch.tensor([sigma_t if clip_to_sigma else 0.5, 0.3, 0.1], dtype=torch.float64)
    assert_close(moves, expected[:, None].expand(3, 4), 1e-10)


@any_solver
def test_on_a_unet_of_diffusers_under_inference_mode(solver):
    """A small UNet2DModel: only dps builds a graph, and none remains."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **small).eval()
    graphs = []

    def network(x_t, t):
        out = unet(x_t, t).sample
        graphs.append(out.requires_grad)
        return out

    denoiser = NetworkDenoiser(network, DDPMSchedule.from_betas(), "v_prediction")
    with torch.inference_mode():
        x_t, y = torch.randn(2, 2, 3, 8, 8, generator=seeded(0))
        known = Mask((torch.arange(64).view(1, 1, 8, 8) % 2).float())
        constraint = Linear(known, known(y))
        moved, x0, _ = solver(num_iterations=2)(denoiser, constraint, x_t, 500.0, None)
        assert (constraint.residual_norm(x0) < constraint.residual_norm(denoiser(x_t, 500.0))).all()
    assert not (moved.requires_grad or x0.requires_grad)
    assert graphs[:-1] == [solver is DPS] * (len(graphs) - 1)
    assert all(parameter.grad is None for parameter in unet.parameters())
