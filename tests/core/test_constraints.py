"""Constraints against autograd and closed forms; float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Loss, Sum, Unconstrained, conjugate_residuals, is_linearisable
from adhere.core.operators import Blur, Compose, Downsample, Gray, Identity, Mask
from tests.core.exact import Matrix, close, matrix_of, normal, random_covariance, seeded

FEW = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SHAPE = (3, 8, 8)
KNOWN = torch.arange(64, dtype=torch.float64).reshape(1, 1, 8, 8) % 3 < 2  # two pixels of three
OPERATORS = {
    "identity": Identity(),
    "mask": Mask(KNOWN.double()),
    "area": Downsample(4),
    "bicubic": Downsample(2, "bicubic"),
    "blur": Blur(0.7),
    "gray of mask": Compose(Gray(), Mask(KNOWN.double())),
}
any_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def log_cosh(x0):
    return (x0 - 0.3).cosh().log().flatten(1).sum(1)


def measured(operator, g, noise=0.0):
    """A constraint that x_true meets, and x_true (2, *SHAPE)."""
    x_true = normal(g, 2, *SHAPE)
    return Linear(operator, operator(x_true), noise), x_true


def gradient(cost, x0):
    leaf = x0.clone().requires_grad_()
    return torch.autograd.grad(cost(leaf).sum(), leaf)[0]


@any_operator
def test_linear_direction_is_minus_the_gradient_of_half_the_squared_residual(operator):
    g = seeded(0)
    constraint, x_true = measured(operator, g)
    x0 = normal(g, 2, *SHAPE)
    close(constraint.direction(x0), -gradient(lambda x: 0.5 * (constraint.y - operator(x)).square(), x0))
    assert not constraint.direction(x_true).any()
    assert not constraint.error(x_true).any()
    assert constraint.error(x0).shape == (2,) and (constraint.error(x0) > 0.1).all()


@any_operator
def test_linear_error_is_per_sample_in_the_units_of_the_measurement(operator):
    """Measurements that are off by 0.1 on one sample and 0.2 on the other; one measurement can serve a batch."""
    x0 = normal(seeded(0), 1, *SHAPE)
    offset = operator(torch.ones_like(x0))  # zero where a mask hides it
    offset = offset / offset.abs().amax()
    constraint = Linear(operator, operator(x0))
    y = constraint.y + torch.tensor([0.1, 0.2]).double().view(2, 1, 1, 1) * offset
    errors = Linear(operator, y).error(x0.expand(2, *SHAPE))
    close(errors, torch.tensor([0.1, 0.2]).double(), 1e-7)
    close(constraint.error(torch.cat([x0, x0, x0])), torch.zeros(3).double())


def test_error_of_a_mask_is_over_the_known_pixels_only():
    known = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    known[0, 0, 0, :4] = 1
    constraint = Linear(Mask(known), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    # The first sample is off by 0.5 where it is known; of the second nothing is known, so nothing is asked.
    close(constraint.error(torch.full((2, *SHAPE), 0.5).double()), torch.tensor([0.5, 0.0]).double())


@any_operator
@FEW
@given(seed=SEEDS, noise=st.floats(0.1, 1), spread=st.floats(0.1, 2))
def test_projection_is_the_gaussian_conditional_mean(operator, seed, noise, spread):
    g = seeded(seed)
    constraint, _ = measured(operator, g, noise)
    x0 = normal(g, 2, *SHAPE)
    A = matrix_of(operator, SHAPE)
    system = A @ A.T + (noise / spread) ** 2 * torch.eye(len(A), dtype=torch.float64)
    correction = torch.linalg.solve(system, (constraint.y.flatten(1) - x0.flatten(1) @ A.T).T).T @ A
    # Conjugate gradients stop at 1e-5 of a residual of norm about 14; |A^T (A A^T + c^2)^-1| <= 1 / (2 c), c >= 0.05.
    close(constraint.project(x0, spread, iterations=100), x0 + correction.view_as(x0), 1.5e-3)


@pytest.mark.parametrize("name", ["identity", "mask", "area", "bicubic", "gray of mask"])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_noiseless_projection_is_the_nearest_image_that_meets_the_measurement(name, spread):
    g = seeded(0)
    constraint, _ = measured(OPERATORS[name], g)
    x0 = normal(g, 2, *SHAPE)
    projected = constraint.project(x0, spread)
    # Conjugate gradients stop at 1e-5 of the first residual, which is about 1.
    assert (constraint.error(projected) <= 2e-5).all()
    A = matrix_of(OPERATORS[name], SHAPE)
    nearest = x0.flatten(1) + constraint.residual(x0).flatten(1) @ torch.linalg.pinv(A).T
    close(projected.flatten(1), nearest, 1e-3)
    close(constraint.project(projected, spread), projected, 1e-3)  # once is enough


@FEW
@given(SEEDS, st.integers(1, 12))
def test_conjugate_residuals_solve(seed, n):
    g = seeded(seed)
    S, b = random_covariance(g, n), normal(g, 3, n)
    b[1] = 0  # one sample has nothing to solve
    # n iterations are enough in exact arithmetic; round-off may ask for some more.
    u = conjugate_residuals(lambda u: u @ S, b, 4 * n, tolerance=1e-10)
    close(u, torch.linalg.solve(S, b.T).T, 1e-6)


def test_conjugate_residuals_stop_per_sample():
    """A sample that is good enough does not move while others still iterate: a batch is its singles."""
    S, b = random_covariance(seeded(0), 6), normal(seeded(1), 8, 6)

    def solved(b):
        return conjugate_residuals(lambda u: u @ S, b, 6, tolerance=0.3)

    singles = torch.cat([solved(one) for one in b.split(1)])
    close(solved(b), singles, 1e-12)
    residuals = (b - singles @ S).norm(dim=1) / b.norm(dim=1)
    assert (residuals <= 0.3).all() and (residuals > 1e-3).any()


def test_conjugate_residuals_of_a_singular_system_give_the_least_norm_solution():
    A = normal(seeded(0), 2, 5)
    S, b = A.T @ A, normal(seeded(1), 1, 2) @ A
    close(conjugate_residuals(lambda u: u @ S, b, 20, tolerance=1e-10), b @ torch.linalg.pinv(S), 1e-8)


@FEW
@given(SEEDS, st.integers(1, 8), st.floats(0, 3))
def test_residuals_never_grow_whatever_the_matrix(seed, n, skewness):
    """As with an inexact adjoint, up to a matrix that is mostly skew and indefinite."""
    g = seeded(seed)
    skew = normal(g, n, n)
    M, b = random_covariance(g, n) - 0.2 * torch.eye(n).double() + skewness * (skew - skew.T), normal(g, 3, n)
    norms = [b.norm(dim=1)]
    for iterations in range(1, 3 * n):
        norms.append((b - conjugate_residuals(lambda u: u @ M, b, iterations) @ M).norm(dim=1))
    for before, after in pairwise(norms):
        assert (after <= before * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_loss_direction_is_autograds_under_any_mode(mode):
    x0 = normal(seeded(0), 2, *SHAPE)
    loss = Loss(log_cosh)
    with mode():
        x = x0 + 0  # under inference_mode, an inference tensor
        direction, error = loss.direction(x), loss.error(x)
    close(direction, -gradient(log_cosh, x0))
    close(error, log_cosh(x0))
    assert not direction.requires_grad and not error.requires_grad


def test_loss_is_per_sample():
    x0 = normal(seeded(0), 3, *SHAPE)
    close(Loss(log_cosh).direction(x0)[1:2], Loss(log_cosh).direction(x0[1:2]))
    close(Loss(log_cosh).linearise(x0).residual(x0)[1:2], Loss(log_cosh).linearise(x0[1:2]).residual(x0[1:2]))


@FEW
@given(SEEDS, st.floats(0.1, 100))
def test_a_loss_is_one_measurement_whatever_its_units(seed, unit):
    """The distance to fn = 0 along the slope: the true one for an affine fn, and first order for another."""
    g = seeded(seed)
    w, x0, v = normal(g, *SHAPE), normal(g, 2, *SHAPE), normal(g, 2, *SHAPE)
    plane = Loss(lambda x: unit * (x * w).flatten(1).sum(1).abs()).linearise(x0)
    nearest = plane.project(x0)
    close((nearest * w).flatten(1).sum(1), torch.zeros(2).double(), 1e-9)
    close((nearest - x0).flatten(1).norm(dim=1), plane.error(x0), 1e-9)
    curved = Loss(lambda x: unit * log_cosh(x))
    slope = curved.direction(x0).flatten(1).norm(dim=1)
    misses = []
    for size in (2e-3, 1e-3):
        near = x0 + size * v
        predicted = curved.linearise(x0).residual(near).flatten() * slope
        misses.append(float((predicted - curved.error(near)).norm()))
    assert misses[0] / misses[1] == pytest.approx(4, rel=0.1)


def test_where_a_loss_is_flat_nothing_is_asked():
    x0 = torch.full((1, *SHAPE), 0.3, dtype=torch.float64)
    flat = Loss(lambda x: log_cosh(x) + 1).linearise(x0)
    assert not flat.residual(x0).any() and not flat.direction(x0).any()


def test_a_negative_loss_has_no_root_to_go_to():
    with pytest.raises(ValueError, match=r"returned \[-1.0\].*add a constant"):
        Loss(lambda x0: x0.flatten(1).sum(1) - 1).linearise(torch.zeros(1, *SHAPE))


def test_sum_adds_with_weights():
    g = seeded(0)
    first, _ = measured(OPERATORS["mask"], g)
    second, x0 = Loss(log_cosh), normal(g, 2, *SHAPE)
    both = Sum((first, second), (2.0, 0.5))
    close(both.direction(x0), 2 * first.direction(x0) + 0.5 * second.direction(x0))
    close(both.error(x0), 2 * first.error(x0) + 0.5 * second.error(x0))


@FEW
@given(SEEDS)
def test_a_sum_of_measurements_is_measured_as_precisely_as_each(seed):
    """The posterior mean for x0 ~ N(x0, I): precisions add, each times its weight."""
    g = seeded(seed)
    x0 = normal(g, 2, *SHAPE)
    mask, _ = measured(OPERATORS["mask"], g, 0.5)
    area, _ = measured(OPERATORS["area"], g, 0.2)
    precision, information = torch.eye(x0[0].numel()).double(), torch.zeros(2, x0[0].numel()).double()
    for one, weight in ((mask, 1.0), (area, 0.5)):
        A = matrix_of(one.operator, SHAPE)
        precision = precision + weight / one.noise**2 * A.T @ A
        information = information + weight / one.noise**2 * one.residual(x0).flatten(1) @ A
    expected = x0 + torch.linalg.solve(precision, information.T).T.view_as(x0)
    both = Sum((mask, area), (1.0, 0.5)).linearise(x0)
    close(both.project(x0, iterations=200), expected, 1e-4)  # it stops at 1e-5 of a residual of about 40


def test_what_can_be_linearised():
    linear, _ = measured(OPERATORS["area"], seeded(0))
    loss = Loss(log_cosh)
    assert is_linearisable(linear) and is_linearisable(loss) and is_linearisable(Sum((linear, loss), (1.0, 1.0)))
    assert is_linearisable(Sum((loss, Unconstrained()), (1.0, 1.0)))
    assert not is_linearisable(Unconstrained()) and not is_linearisable(Sum((Unconstrained(), loss), (1.0, 0.0)))


def test_parts_of_a_sum_that_ask_for_nothing_have_no_say():
    x0 = normal(seeded(0), 2, *SHAPE)
    linear, _ = measured(OPERATORS["area"], seeded(1), 0.1)
    muted = Sum((linear, Loss(log_cosh, radius=0.01), Unconstrained()), (1.0, 0.0, 1.0)).linearise(x0)
    close(muted.project(x0), linear.project(x0), 1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_slopes_of_any_size(scale):
    """No square of a gradient's entries over- or underflows, in float32 either."""
    w, x0 = normal(seeded(0), *SHAPE).float(), normal(seeded(1), 2, *SHAPE).float()
    near = Loss(lambda x: scale * (x * w).flatten(1).sum(1).abs(), radius=math.inf).linearise(x0).project(x0)
    torch.testing.assert_close((near * w).flatten(1).sum(1), torch.zeros(2), atol=1e-3, rtol=0)


def test_a_nearly_flat_loss_does_not_throw_its_picture_away():
    tangent = Loss(lambda x: 1 + 1e-30 * log_cosh(x)).linearise(normal(seeded(0), 1, *SHAPE).float())
    assert tangent.residual(tangent.origin).isfinite().all()
    assert float((tangent.project(tangent.origin) - tangent.origin).square().mean().sqrt()) <= 0.3001


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"gradient is not finite.*square root"):
        Loss(lambda x: x.square().flatten(1).sum(1).sqrt()).direction(torch.zeros(1, *SHAPE))


def test_unconstrained_asks_for_nothing():
    x0 = normal(seeded(0), 2, *SHAPE)
    assert not Unconstrained().direction(x0).any() and Unconstrained().direction(x0).shape == x0.shape
    assert Unconstrained().error(x0).tolist() == [0, 0]


def test_linear_takes_any_pair_of_callables():
    A = normal(seeded(0), 3, math.prod(SHAPE))
    operator = Matrix(A, SHAPE)
    constraint, _ = measured(operator, seeded(1))
    x0 = normal(seeded(2), 2, *SHAPE)
    close(constraint.direction(x0).flatten(1), (constraint.y - x0.flatten(1) @ A.T) @ A)


def test_refusals():
    with pytest.raises(ValueError, match=r"noise = -0.1.*at least 0"):
        Linear(Identity(), torch.zeros(1), -0.1)
    for constraints, weights in [((), ()), ((Unconstrained(),), ()), ((Unconstrained(),), (1.0, 2.0))]:
        with pytest.raises(ValueError, match="one weight each"):
            Sum(constraints, weights)
    with pytest.raises(ValueError, match=r"weights = \(-1.0,\).*at least 0"):
        Sum((Unconstrained(),), (-1.0,))
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            Sum((Unconstrained(),), (weight,))
    for radius in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="radius"):
            Loss(log_cosh, radius=radius)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x0: x0.square().mean(), r"shape \(\): return \(2,\)"),
        (lambda x0: x0.square().mean((2, 3)), r"shape \(2, 3\): return \(2,\)"),
        (lambda x0: 1.0, r"shape float: return \(2,\)"),
        (lambda x0: x0.sum((1, 2, 3)) * math.nan, "nan.*finite"),
    ],
)
def test_a_loss_is_a_finite_value_for_each_sample(fn, said):
    x0 = torch.ones(2, 3, 4, 4)
    for asked in (Loss(fn).direction, Loss(fn).error):
        with pytest.raises(ValueError, match=said):
            asked(x0)


def test_a_loss_must_depend_on_the_picture():
    with pytest.raises(ValueError, match="autograd"):
        Loss(lambda x0: torch.ones(len(x0))).direction(torch.ones(2, 3, 4, 4))
