"""Moving x_t along J e, J^T e and e: the three directions against exact Jacobians, the lengths, and what they cost."""

from itertools import pairwise

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Loss
from adhere.core.denoise import Counted, Prediction
from adhere.core.operators import Mask
from adhere.core.schedule import Discrete, Trigonometric
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.mpgd import MPGD
from tests.core.exact import close, normal, random_factors, random_mixture, seeded

FEW = settings(max_examples=15, deadline=None)
SCHEDULE = Trigonometric()
PRIOR = random_factors(seeded(0))
DENOISER = PRIOR.denoiser(SCHEDULE)
LEFT = Mask(torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(1, 1, 4, 4))
any_solver = pytest.mark.parametrize("solver", [InexactNewton, DPS, MPGD])


class Watched(Counted):
    """Notes where it is asked."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.visited = []

    def __call__(self, x_t, t):
        self.visited.append(x_t.detach())
        return super().__call__(x_t, t)


class Skewed:
    """A smooth denoiser of (1, 2, 2) whose Jacobian is far from symmetric."""

    schedule, dtype = SCHEDULE, torch.float64

    def __init__(self, seed):
        self.M = normal(seeded(seed), 4, 4)

    def __call__(self, x_t, t):
        return torch.tanh(x_t.flatten(1) @ self.M.T).view_as(x_t)

    def jacobian(self, x_t):
        """(B, 4, 4)."""
        return (1 - torch.tanh(x_t.flatten(1) @ self.M.T).square())[:, :, None] * self.M


def products(J):
    """What each solver multiplies e (B, 4) with."""
    return {InexactNewton: J, DPS: J.mT, MPGD: torch.eye(4).double().expand_as(J)}


@any_solver
@FEW
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.1, 0.9))
def test_one_move_is_along_the_product_that_names_the_method(solver, seed, t):
    """x_t + min(lambda, sigma_t) g / |g|_inf, for g = J e, J^T e, e with J from calculus, not symmetric."""
    denoiser, x_t = Skewed(seed), normal(seeded(seed), 3, 1, 2, 2)
    loss = Loss(lambda x0: x0.exp().flatten(1).sum(1))
    moved, x0, _ = solver(K=1, first=0.3)(denoiser, loss, x_t, t, None)
    e = loss.direction(denoiser(x_t, t)).flatten(1)
    g = torch.einsum("bij,bj->bi", products(denoiser.jacobian(x_t))[solver], e)
    expected = x_t + min(0.3, SCHEDULE(t)[1]) * (g / g.abs().amax(1, keepdim=True)).view_as(x_t)
    close(moved, expected, 1e-3 if solver is InexactNewton else 1e-10)  # its difference is first order in h = 1e-5
    close(x0, denoiser(moved, t), 1e-12)


@FEW
@given(seed=st.integers(0, 2**32 - 1), t=st.floats(0.2, 0.9))
def test_for_an_exact_denoiser_the_gradient_is_the_forward_derivative(seed, t):
    """J is symmetric: dps is what inexact_newton tends to as its difference's step goes to zero."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser, x_t, known = prior.denoiser(SCHEDULE), normal(g, 2, *prior.shape), Mask(torch.eye(2).double()[None, None])
    constraint = Linear(known, known(prior.sample(1, g)))
    forward, backward = (solver(K=2)(denoiser, constraint, x_t, t, None)[0] for solver in (InexactNewton, DPS))
    close(forward, backward, 2e-3)


@pytest.mark.parametrize(("solver", "evaluations", "backward"), [(InexactNewton, 9, 0), (DPS, 5, 4), (MPGD, 5, 0)])
def test_what_four_moves_cost(solver, evaluations, backward):
    counted = Counted(DENOISER)
    solver(K=4)(counted, Loss(lambda x0: x0.square().flatten(1).sum(1)), normal(seeded(0), 3, *PRIOR.shape), 0.5, None)
    assert (counted.nfe, counted.backward) == (evaluations, backward)


@any_solver
def test_tolerance_freezes_the_samples_that_meet_it_and_no_others(solver):
    t, x_t = 0.5, normal(seeded(0), 3, *PRIOR.shape)
    offset = torch.tensor([0.05, 0.2, 1.0]).double().view(3, 1, 1, 1)  # the error of each is its offset
    constraint = Linear(LEFT, LEFT(DENOISER(x_t, t) + offset))
    free, _, _ = solver(K=1)(DENOISER, constraint, x_t, t, None)
    for tolerance, frozen in [(0.0, 0), (0.1, 1), (0.5, 2), (2.0, 3)]:
        counted = Counted(DENOISER)
        moved, _, _ = solver(K=1, tolerance=tolerance)(counted, constraint, x_t, t, None)
        assert moved[:frozen].equal(x_t[:frozen])
        assert moved[frozen:].equal(free[frozen:])
        assert (counted.nfe == 1) == (frozen == 3)  # the level ends when none is left


@pytest.mark.parametrize("within_sigma", [True, False])
@any_solver
def test_the_largest_entry_of_each_move_is_lambda_falling_linearly_within_sigma(solver, within_sigma):
    watched, t, x_t = Watched(DENOISER), SCHEDULE.time_at(1.0), normal(seeded(0), 4, *PRIOR.shape)
    constraint = Linear(LEFT, LEFT(PRIOR.sample(4, seeded(1))))
    solver(K=3, first=0.5, last=0.1, within_sigma=within_sigma)(watched, constraint, x_t, t, None)
    points = watched.visited[:: 2 if solver is InexactNewton else 1]  # the probes are in between
    moves = torch.stack([(b - a).flatten(1).abs().amax(1) for a, b in pairwise(points)])
    sigma_t = SCHEDULE(t)[1]
    assert 0.3 < sigma_t < 0.5
    expected = torch.tensor([sigma_t if within_sigma else 0.5, 0.3, 0.1], dtype=torch.float64)
    close(moves, expected[:, None].expand(3, 4), 1e-10)


@pytest.mark.parametrize("solver", [InexactNewton(K=2), DPS(K=2), MPGD(K=2)], ids=["newton", "dps", "mpgd"])
def test_on_diffusers_unet_under_inference_mode(solver):
    """A real, tiny UNet2DModel: only dps builds a graph, and none survives."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **small).eval()
    graphs = []

    def network(x_t, t):
        out = unet(x_t, torch.tensor(t)).sample
        graphs.append(out.requires_grad)
        return out

    denoiser = Prediction(network, Discrete.from_betas(), "v_prediction")
    with torch.inference_mode():
        x_t, y = torch.randn(2, 2, 3, 8, 8, generator=seeded(0))
        known = Mask((torch.arange(64).view(1, 1, 8, 8) % 2).float())
        constraint = Linear(known, known(y))
        moved, x0, _ = solver(denoiser, constraint, x_t, 500.0, None)
        assert (constraint.error(x0) < constraint.error(denoiser(x_t, 500.0))).all()
    assert not (moved.requires_grad or x0.requires_grad)
    assert graphs[:-1] == [isinstance(solver, DPS)] * (len(graphs) - 1)
    assert all(parameter.grad is None for parameter in unet.parameters())
