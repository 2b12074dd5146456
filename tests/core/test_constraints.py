"""Constraints against autograd and closed forms; in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Constraint, Linear, Linearization, Loss, Sum, Unconstrained, mask_of
from adhere.core.filters import Blur, Convolve, Downsample, Resize
from adhere.core.latents import DecodedConstraint
from adhere.core.nonlinear import Nonlinear
from adhere.core.operators import Gray, Identity, InnerProduct, Mask
from tests.core.exact import IdentityAutoencoder, Matrix, assert_close, matrix_of, normal, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SHAPE = (3, 8, 8)
KNOWN = torch.arange(64, dtype=torch.float64).reshape(1, 1, 8, 8) % 3 < 2  # two pixels of three
OPERATORS = {
    "identity": Identity(),
    "mask": Mask(KNOWN.double()),
    "area": Downsample(4),
    "bicubic": Downsample(2, "bicubic"),
    "blur": Blur(0.7),
    "gray of mask": Gray() @ Mask(KNOWN.double()),
}
any_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def log_cosh(x0):
    return (x0 - 0.3).cosh().log().flatten(1).sum(1)


def satisfied_constraint(operator, g, noise=0.0):
    """Return a constraint, and x_true (2, *SHAPE), which satisfies it."""
    x_true = normal(g, 2, *SHAPE)
    return Linear(operator, operator(x_true), noise), x_true


def gradient(cost, x0):
    leaf = x0.clone().requires_grad_()
    return torch.autograd.grad(cost(leaf).sum(), leaf)[0]


# The base class ------------------------------------------------------------------------------------------------------


class NearestValue(Constraint):
    """C = |x0 - value|^2 / 2, with nothing but the two methods that a constraint must have."""

    def __init__(self, value):
        self.value = value

    def neg_grad(self, x0):
        return self.value - x0

    def residual_norm(self, x0):
        return (x0 - self.value).flatten(1).norm(dim=1)


def test_a_new_constraint_is_not_linearizable_and_is_not_updated():
    constraint, x0 = NearestValue(0.5), normal(seeded(0), 2, *SHAPE)
    assert not constraint.is_linearizable
    with pytest.raises(TypeError, match="NearestValue cannot be linearized: choose the solver inexact_newton"):
        constraint.linearize(x0)
    assert constraint.update(x0, 0.3) is constraint


@pytest.mark.parametrize(
    "constraint", [Unconstrained(), Linear(Identity(), torch.zeros(1, 3, 8, 8)), Loss(log_cosh)], ids=repr
)
def test_update_returns_the_constraint_itself_by_default(constraint):
    assert constraint.update(torch.zeros(1, *SHAPE), 1.0) is constraint


def test_a_constraint_without_its_two_methods_cannot_be_made():
    class Incomplete(Constraint):
        def neg_grad(self, x0):
            return -x0

    with pytest.raises(TypeError, match="residual_norm"):
        Incomplete()


# Linear --------------------------------------------------------------------------------------------------------------


@any_operator
def test_neg_grad_of_linear_is_that_of_half_the_squared_residual(operator):
    g = seeded(0)
    constraint, x_true = satisfied_constraint(operator, g)
    x0 = normal(g, 2, *SHAPE)
    assert_close(constraint.neg_grad(x0), -gradient(lambda x: 0.5 * (constraint.y - operator(x)).square(), x0))
    assert not constraint.neg_grad(x_true).any()
    assert not constraint.residual_norm(x_true).any()
    assert constraint.residual_norm(x0).shape == (2,) and (constraint.residual_norm(x0) > 0.1).all()


@any_operator
def test_residual_norm_of_linear_is_per_sample_in_units_of_the_measurement(operator):
    """Measurements that are off by 0.1 for one sample and 0.2 for the other; one measurement can serve a batch."""
    x0 = normal(seeded(0), 1, *SHAPE)
    offset = operator(torch.ones_like(x0))  # zero where a mask hides it
    offset = offset / offset.abs().amax()
    constraint = Linear(operator, operator(x0))
    y = constraint.y + torch.tensor([0.1, 0.2]).double().view(2, 1, 1, 1) * offset
    norms = Linear(operator, y).residual_norm(x0.expand(2, *SHAPE))
    assert_close(norms, torch.tensor([0.1, 0.2]).double(), 1e-7)
    assert_close(constraint.residual_norm(torch.cat([x0, x0, x0])), torch.zeros(3).double())


def test_residual_norm_under_a_mask_is_over_the_known_pixels_only():
    known = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    known[0, 0, 0, :4] = 1
    constraint = Linear(Mask(known), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    # The first sample is off by 0.5 where it is known. Of the second nothing is known, so its residual is zero.
    norms = constraint.residual_norm(torch.full((2, *SHAPE), 0.5).double())
    assert_close(norms, torch.tensor([0.5, 0.0]).double())


@any_operator
@few_examples
@given(seed=SEEDS, noise=st.floats(0.1, 1), std=st.floats(0.1, 2))
def test_projection_is_the_conditional_mean_of_a_gaussian(operator, seed, noise, std):
    g = seeded(seed)
    constraint, _ = satisfied_constraint(operator, g, noise)
    x0 = normal(g, 2, *SHAPE)
    A = matrix_of(operator, SHAPE)
    system = A @ A.T + (noise / std) ** 2 * torch.eye(len(A), dtype=torch.float64)
    correction = torch.linalg.solve(system, (constraint.y.flatten(1) - x0.flatten(1) @ A.T).T).T @ A
    # Conjugate residuals stop at 1e-5 of a residual of norm about 14; |A^T (A A^T + c^2)^-1| <= 1 / (2 c), c >= 0.05.
    assert_close(constraint.project(x0, std), x0 + correction.view_as(x0), 1.5e-3)


@pytest.mark.parametrize("name", ["identity", "mask", "area", "bicubic", "gray of mask"])
@pytest.mark.parametrize("std", [0.1, 1.0])
def test_projection_without_noise_is_the_nearest_image_that_meets_the_measurement(name, std):
    g = seeded(0)
    constraint, _ = satisfied_constraint(OPERATORS[name], g)
    x0 = normal(g, 2, *SHAPE)
    projected = constraint.project(x0, std)
    # Conjugate residuals stop at 1e-5 of the first residual, which is about 1.
    assert (constraint.residual_norm(projected) <= 2e-5).all()
    A = matrix_of(OPERATORS[name], SHAPE)
    nearest = x0.flatten(1) + constraint.residual(x0).flatten(1) @ torch.linalg.pinv(A).T
    assert_close(projected.flatten(1), nearest, 1e-3)
    assert_close(constraint.project(projected, std), projected, 1e-3)  # projecting once is enough


# Noise per entry -----------------------------------------------------------------------------------------------------


def noise_per_entry(y, g):
    """Return standard deviations from 0.05 to 5, one for each entry of y."""
    return 0.05 * 100 ** torch.rand(y.shape, generator=g, dtype=y.dtype)


@any_operator
@few_examples
@given(seed=SEEDS, std=st.floats(0.1, 2))
def test_projection_with_noise_per_entry_is_the_conditional_mean_of_a_gaussian(operator, seed, std):
    g = seeded(seed)
    y = operator(normal(g, 1, *SHAPE))
    noise, x0 = noise_per_entry(y, g), normal(g, 2, *SHAPE)
    constraint = Linear(operator, y, noise)
    A = matrix_of(operator, SHAPE)
    system = A @ A.T + torch.diag((noise / std).flatten() ** 2)
    correction = torch.linalg.solve(system, (constraint.y.flatten(1) - x0.flatten(1) @ A.T).T).T @ A
    # Conjugate residuals stop at 1e-5 of a residual of norm about 14; |A^T (A A^T + c^2)^-1| <= 1 / (2 c), c >= 0.025;
    # 30 of them leave up to 1e-2 where the condition number is largest, under a bicubic filter.
    assert_close(constraint.project(x0, std), x0 + correction.view_as(x0), 2e-2)


@any_operator
def test_neg_grad_with_noise_per_entry_weighs_each_square_by_its_precision(operator):
    g = seeded(0)
    y = operator(normal(g, 1, *SHAPE))
    constraint, x0 = Linear(operator, y, noise_per_entry(y, g)), normal(g, 2, *SHAPE)
    scale = 2 * constraint.y[operator.measurement_support(y)].square().mean().sqrt()
    weight = 1 / (1 + (constraint.noise / scale) ** 2)
    assert_close(constraint.neg_grad(x0), -gradient(lambda x: 0.5 * weight * (constraint.y - operator(x)).square(), x0))
    mean_square = (weight * constraint.residual(x0).square()).flatten(1).sum(1)
    mean_square = mean_square / (weight * operator.measurement_support(y)).sum()
    assert_close(constraint.residual_norm(x0), mean_square.sqrt())


def test_one_noise_for_all_entries_is_the_same_as_a_number():
    operator, g = OPERATORS["mask"], seeded(0)
    y, x0 = operator(normal(g, 1, *SHAPE)), normal(g, 2, *SHAPE)
    number, tensor = Linear(operator, y, 0.3), Linear(operator, y, torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64))
    assert_close(tensor.project(x0), number.project(x0))
    assert_close(tensor.residual_norm(x0), number.residual_norm(x0))
    assert number.stack([tensor], 2) is None
    assert tensor.stack([Linear(operator, y, tensor.noise.clone())], 2).y.shape == (4, *SHAPE)


@pytest.mark.parametrize("name", ["identity", "mask", "area", "bicubic", "gray of mask"])
def test_entries_without_noise_are_met_by_project_exact_and_others_are_not_used(name):
    operator, g = OPERATORS[name], seeded(0)
    y, x0 = operator(normal(g, 1, *SHAPE)), normal(g, 2, *SHAPE)
    noise = torch.where(torch.rand(y.shape, generator=g) < 0.5, 0.0, 0.4).double()
    constraint = Linear(operator, y, noise)
    exact = constraint.project_exact(x0)
    # Conjugate residuals stop at 1e-5 of the first residual, whose norm is about 14.
    assert_close((noise == 0) * constraint.residual(exact), torch.zeros_like(y).expand(2, *y.shape[1:]), 2e-4)
    elsewhere = Linear(operator, y + noise, noise)
    assert_close(elsewhere.project_exact(x0), exact)
    assert Linear(operator, y, noise + 0.1).project_exact(x0) is x0


@pytest.mark.parametrize(
    "noise", [torch.tensor(-0.1), torch.tensor(float("nan")), torch.ones(1, 1, 8, 7), torch.ones(2, 1), torch.tensor(1)]
)
def test_noise_per_entry_must_be_standard_deviations_that_fit_y(noise):
    with pytest.raises(ValueError, match="noise"):
        Linear(OPERATORS["mask"], torch.zeros(1, *SHAPE, dtype=torch.float64), noise)


def test_a_sum_refuses_noise_per_entry():
    part = Linear(Identity(), torch.zeros(1, *SHAPE), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="noise per entry cannot be part of a Sum"):
        Sum((part,), (1.0,))


def test_linear_takes_any_operator():
    A = normal(seeded(0), 3, math.prod(SHAPE))
    operator = Matrix(A, SHAPE)
    constraint, _ = satisfied_constraint(operator, seeded(1))
    x0 = normal(seeded(2), 2, *SHAPE)
    assert_close(constraint.neg_grad(x0).flatten(1), (constraint.y - x0.flatten(1) @ A.T) @ A)


def test_mask_of_is_the_mask_of_a_linear_constraint_and_of_nothing_else():
    known = KNOWN.double()
    y = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert mask_of(Linear(Mask(known), y)) is known
    others = (Unconstrained(), Loss(log_cosh), Linear(Identity(), y), Linear(Gray() @ Mask(known), y[:, :1]))
    assert all(mask_of(constraint) is None for constraint in others)


# Loss ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_neg_grad_of_a_loss_is_that_of_autograd_under_any_mode(mode):
    x0 = normal(seeded(0), 2, *SHAPE)
    loss = Loss(log_cosh)
    with mode():
        x = x0 + 0  # under inference_mode, an inference tensor
        neg_grad, residual_norm = loss.neg_grad(x), loss.residual_norm(x)
    assert_close(neg_grad, -gradient(log_cosh, x0))
    assert_close(residual_norm, log_cosh(x0))
    assert not neg_grad.requires_grad and not residual_norm.requires_grad


def test_a_loss_is_per_sample():
    x0, loss = normal(seeded(0), 3, *SHAPE), Loss(log_cosh)
    assert_close(loss.neg_grad(x0)[1:2], loss.neg_grad(x0[1:2]))
    assert_close(loss.linearize(x0).residual(x0)[1:2], loss.linearize(x0[1:2]).residual(x0[1:2]))


@few_examples
@given(SEEDS, st.floats(0.1, 100))
def test_a_linearized_loss_measures_the_distance_to_its_root_whatever_its_units(seed, unit):
    """Exactly for an affine function, and to first order for another."""
    g = seeded(seed)
    w, x0, v = normal(g, *SHAPE), normal(g, 2, *SHAPE), normal(g, 2, *SHAPE)
    affine = Loss(lambda x: unit * (x * w).flatten(1).sum(1).abs(), max_step_rms=100.0).linearize(x0)
    nearest = affine.project(x0)  # a step of the default length may be too short for a rare seed
    assert_close((nearest * w).flatten(1).sum(1), torch.zeros(2).double(), 1e-9)
    assert_close((nearest - x0).flatten(1).norm(dim=1), affine.residual_norm(x0), 1e-9)
    nonlinear = Loss(lambda x: unit * log_cosh(x))
    slope = nonlinear.neg_grad(x0).flatten(1).norm(dim=1)
    errors = []
    for size in (2e-3, 1e-3):
        near = x0 + size * v
        predicted = nonlinear.linearize(x0).residual(near).flatten() * slope
        errors.append(float((predicted - nonlinear.residual_norm(near)).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_a_loss_with_zero_gradient_is_linearized_to_no_measurement():
    x0 = torch.full((1, *SHAPE), 0.3, dtype=torch.float64)
    flat = Loss(lambda x: log_cosh(x) + 1).linearize(x0)
    assert not flat.residual(x0).any() and not flat.neg_grad(x0).any()


def test_a_step_that_leads_away_from_a_loss_is_halved_and_one_that_leads_nowhere_nearer_is_not_made():
    """Per sample: to 0.3 from 0.1, from 0.4, and from 0.3 itself; steps of 1, 0.1 and 1."""
    x0 = torch.tensor([0.1, 0.4, 0.3]).double().view(3, 1, 1, 1).expand(3, *SHAPE)
    step = torch.tensor([1.0, -0.1, 1.0]).double().view(3, 1, 1, 1).expand_as(x0)
    limited = Loss(log_cosh).limit_step(x0, step)
    assert_close(limited[:, 0, 0, 0], torch.tensor([0.25, -0.1, 0.0]).double())
    assert limited.equal(limited[:, :1, :1, :1].expand_as(limited))


def test_a_negative_loss_cannot_be_linearized():
    with pytest.raises(ValueError, match=r"returned \[-1.0\].*add a constant"):
        Loss(lambda x0: x0.flatten(1).sum(1) - 1).linearize(torch.zeros(1, *SHAPE))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_a_loss_with_a_gradient_of_any_size_can_be_linearized_in_float32(scale):
    """No square of an entry of the gradient over- or underflows."""
    w, x0 = normal(seeded(0), *SHAPE).float(), normal(seeded(1), 2, *SHAPE).float()
    loss = Loss(lambda x: scale * (x * w).flatten(1).sum(1).abs(), max_step_rms=math.inf)
    near = loss.linearize(x0).project(x0)
    torch.testing.assert_close((near * w).flatten(1).sum(1), torch.zeros(2), atol=1e-3, rtol=0)


def test_a_nearly_flat_loss_moves_x0_by_at_most_max_step_rms():
    linear = Loss(lambda x: 1 + 1e-30 * log_cosh(x)).linearize(normal(seeded(0), 1, *SHAPE).float())
    assert linear.residual(linear.origin).isfinite().all()
    assert float((linear.project(linear.origin) - linear.origin).square().mean().sqrt()) <= 0.3001


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"gradient of the loss is not finite.*square root"):
        Loss(lambda x: x.square().flatten(1).sum(1).sqrt()).neg_grad(torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x0: x0.square().mean(), r"shape \(\): return \(2,\)"),
        (lambda x0: x0.square().mean((2, 3)), r"shape \(2, 3\): return \(2,\)"),
        (lambda x0: 1.0, r"shape float: return \(2,\)"),
        (lambda x0: x0.sum((1, 2, 3)) * math.nan, "nan.*finite"),
    ],
)
def test_a_loss_must_return_a_finite_value_per_sample(fn, message):
    x0 = torch.ones(2, 3, 4, 4)
    for method in (Loss(fn).neg_grad, Loss(fn).residual_norm):
        with pytest.raises(ValueError, match=message):
            method(x0)


def test_a_loss_must_depend_on_x0_differentiably():
    with pytest.raises(ValueError, match="does not depend on x0 differentiably"):
        Loss(lambda x0: torch.ones(len(x0))).neg_grad(torch.ones(2, 3, 4, 4))


# Sum and Unconstrained -----------------------------------------------------------------------------------------------


def test_a_sum_adds_with_weights():
    g = seeded(0)
    first, _ = satisfied_constraint(OPERATORS["mask"], g)
    second, x0 = Loss(log_cosh), normal(g, 2, *SHAPE)
    both = Sum((first, second), (2.0, 0.5))
    assert_close(both.neg_grad(x0), 2 * first.neg_grad(x0) + 0.5 * second.neg_grad(x0))
    assert_close(both.residual_norm(x0), 2 * first.residual_norm(x0) + 0.5 * second.residual_norm(x0))


@few_examples
@given(SEEDS)
def test_the_linearization_of_a_sum_weighs_each_part_by_its_precision(seed):
    """The posterior mean for x0 ~ N(x0, I): precisions add, each times its weight."""
    g = seeded(seed)
    x0 = normal(g, 2, *SHAPE)
    mask, _ = satisfied_constraint(OPERATORS["mask"], g, 0.5)
    area, _ = satisfied_constraint(OPERATORS["area"], g, 0.2)
    precision, information = torch.eye(x0[0].numel()).double(), torch.zeros(2, x0[0].numel()).double()
    for one, weight in ((mask, 1.0), (area, 0.5)):
        A = matrix_of(one.operator, SHAPE)
        precision = precision + weight / one.noise**2 * A.T @ A
        information = information + weight / one.noise**2 * one.residual(x0).flatten(1) @ A
    expected = x0 + torch.linalg.solve(precision, information.T).T.view_as(x0)
    both = Sum((mask, area), (1.0, 0.5)).linearize(x0)
    assert_close(both.project(x0), expected, 1e-4)  # conjugate residuals stop at 1e-5 of a residual of about 40


def test_what_can_be_linearized():
    linear, _ = satisfied_constraint(OPERATORS["area"], seeded(0))
    loss = Loss(log_cosh)
    linearizable = (linear, loss, Sum((linear, loss), (1.0, 1.0)), Sum((loss, Unconstrained()), (1.0, 1.0)))
    assert all(constraint.is_linearizable for constraint in linearizable)
    others = (Unconstrained(), Sum((Unconstrained(), loss), (1.0, 0.0)), Sum((loss, NearestValue(0.0)), (1.0, 1.0)))
    for constraint in others:
        assert not constraint.is_linearizable
        with pytest.raises(TypeError, match="cannot be linearized"):
            constraint.linearize(torch.zeros(1, *SHAPE))


def test_linear_is_its_own_linearization_and_others_have_an_origin():
    linear, x0 = satisfied_constraint(OPERATORS["area"], seeded(0))
    assert linear.linearize(x0) is linear
    for constraint in (Loss(log_cosh), Sum((linear, Loss(log_cosh)), (1.0, 1.0))):
        result = constraint.linearize(x0)
        assert isinstance(result, Linearization) and result.origin is x0
    assert isinstance(Loss(log_cosh).linearize(x0).operator, InnerProduct)


def test_a_sum_of_linear_constraints_is_linear():
    x0 = normal(seeded(0), 2, *SHAPE)
    area, _ = satisfied_constraint(OPERATORS["area"], seeded(1), 0.1)
    half, _ = satisfied_constraint(OPERATORS["mask"], seeded(2), 0.1)
    both = Sum((area, half), (1.0, 1.0)).linearize(x0)
    assert type(both) is Linear
    assert_close(both.neg_grad(x0), area.neg_grad(x0) + half.neg_grad(x0), 1e-10)


def test_only_a_loss_and_what_contains_one_is_nonlinear():
    linear, _ = satisfied_constraint(OPERATORS["area"], seeded(0))
    loss = Loss(log_cosh)
    assert loss.is_nonlinear and Sum((linear, loss), (1.0, 1.0)).is_nonlinear
    assert Nonlinear(torch.tanh, torch.zeros(1, *SHAPE)).is_nonlinear is True
    assert not linear.is_nonlinear and not Sum((linear, loss), (1.0, 0.0)).is_nonlinear


def test_only_a_sum_with_a_decoded_part_needs_decoding():
    linear, _ = satisfied_constraint(OPERATORS["area"], seeded(0))
    decoded = DecodedConstraint(linear, IdentityAutoencoder())
    assert Sum((linear, decoded), (1.0, 1.0)).needs_decoding
    assert not Sum((linear, decoded), (1.0, 0.0)).needs_decoding and not linear.needs_decoding


def test_parts_of_a_sum_without_weight_have_no_influence():
    x0 = normal(seeded(0), 2, *SHAPE)
    linear, _ = satisfied_constraint(OPERATORS["area"], seeded(1), 0.1)
    parts = (linear, Loss(log_cosh, max_step_rms=0.01), Unconstrained())
    with_others = Sum(parts, (1.0, 0.0, 1.0)).linearize(x0)
    assert_close(with_others.project(x0), linear.project(x0), 1e-4)


def test_unconstrained_has_no_gradient_and_no_residual():
    x0 = normal(seeded(0), 2, *SHAPE)
    assert not Unconstrained().neg_grad(x0).any() and Unconstrained().neg_grad(x0).shape == x0.shape
    assert Unconstrained().residual_norm(x0).tolist() == [0, 0]


# Batches of several constraints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "mask", "area", "blur"])
def test_stacked_linear_constraints_equal_the_single_ones(name):
    g = seeded(0)
    constraints = [Linear(OPERATORS[name], OPERATORS[name](normal(g, 1, *SHAPE)), 0.1) for _ in range(2)]
    x0 = normal(g, 4, *SHAPE)
    stacked = constraints[0].stack(constraints[1:], 2)
    singles = [constraint.neg_grad(part) for constraint, part in zip(constraints, x0.split(2), strict=True)]
    assert_close(stacked.neg_grad(x0), torch.cat(singles), 1e-12)
    norms = [constraint.residual_norm(part) for constraint, part in zip(constraints, x0.split(2), strict=True)]
    assert_close(stacked.residual_norm(x0), torch.cat(norms), 1e-12)
    assert stacked.noise == 0.1


BATCHED = OPERATORS | {
    "convolve": Convolve(normal(seeded(1), 3, 2)),
    "resize": Resize(SHAPE[1:], (5, 3), "bicubic"),
}


@pytest.mark.parametrize("operator", BATCHED.values(), ids=BATCHED)
@few_examples
@given(seed=SEEDS, factor=st.floats(-3, 3))
def test_noise_per_entry_keeps_batches_apart_and_projections_linear(operator, seed, factor):
    """A batch is that of single samples, and x0 - P x0 is linear in (x0, y), for any noise above 0 in each entry."""
    g = seeded(seed)
    y, z = (operator(normal(g, 2, *SHAPE)) for _ in range(2))
    x0, v = normal(g, 2, *SHAPE), normal(g, 2, *SHAPE)
    noise = noise_per_entry(y[:1], g)
    together = Linear(operator, y, noise)
    for i in range(2):
        one, x = Linear(operator, y[i : i + 1], noise), x0[i : i + 1]
        assert_close(together.project(x0, 0.5)[i : i + 1], one.project(x, 0.5), 1e-9)
        assert_close(together.residual_norm(x0)[i : i + 1], one.residual_norm(x))
        assert_close(together.neg_grad(x0)[i : i + 1], one.neg_grad(x))
    sum_of_both = Linear(operator, y + factor * z, noise).project(x0 + factor * v, 0.5)
    assert_close(sum_of_both, together.project(x0, 0.5) + factor * Linear(operator, z, noise).project(v, 0.5), 1e-3)


def test_constraints_that_cannot_share_a_batch_are_not_stacked():
    x = normal(seeded(0), 1, *SHAPE)
    linear = Linear(Downsample(2), Downsample(2)(x))
    others = [
        Linear(Downsample(4), Downsample(4)(x)),  # a measurement of another size
        Linear(Downsample(2, "bicubic"), Downsample(2, "bicubic")(x)),
        Linear(Downsample(2), Downsample(2)(x), 0.1),
        Unconstrained(),
        Loss(log_cosh),
    ]
    for other in others:
        assert linear.stack([other], 2) is None and other.stack([linear], 2) is None
    assert Loss(log_cosh).stack([Loss(log_cosh)], 2) is None
    assert Unconstrained().stack([linear, Unconstrained()], 2) is None


@pytest.mark.parametrize("constraint", [Unconstrained(), Loss(log_cosh), Linear(Identity(), torch.zeros(1, 3, 8, 8))])
def test_a_constraint_without_others_is_stacked_to_itself(constraint):
    assert constraint.stack([], 4) is constraint


def test_unconstrained_samples_share_a_batch():
    assert Unconstrained().stack([Unconstrained()], 2) == Unconstrained()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"noise = -0.1.*at least 0"):
        Linear(Identity(), torch.zeros(1), -0.1)
    for constraints, weights in [((), ()), ((Unconstrained(),), ()), ((Unconstrained(),), (1.0, 2.0))]:
        with pytest.raises(ValueError, match="one weight per constraint"):
            Sum(constraints, weights)
    with pytest.raises(ValueError, match=r"weights = \(-1.0,\).*at least 0"):
        Sum((Unconstrained(),), (-1.0,))
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            Sum((Unconstrained(),), (weight,))
    for max_step_rms in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_step_rms"):
            Loss(log_cosh, max_step_rms=max_step_rms)


def test_entries_of_a_measurement_that_a_mask_hides_do_not_matter():
    known = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    x = torch.tensor([0.1, float("nan"), 0.3, 255.0], dtype=torch.float64).view(1, 1, 1, 4)
    constraint = Linear(Mask(known), x)
    assert constraint.y.flatten().tolist() == [0.1, 0.0, 0.3, 0.0]
    assert constraint.residual_norm(constraint.y).tolist() == [0.0]


def test_a_measurement_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"y has dtype torch.uint8: give floating-point numbers"):
        Linear(Identity(), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_a_constraint_can_be_linearized_if_it_implements_linearize():
    class Bounded(Unconstrained):
        def linearize(self, x0, /):
            return Linear(Identity(), x0)

    assert Bounded().is_linearizable
    assert not Unconstrained().is_linearizable


def test_a_mask_of_another_size_than_the_measurement_is_refused():
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 1, 8, 8\), y has \(1, 3, 16, 16\)"):
        Linear(Mask(torch.ones(1, 1, 8, 8)), torch.zeros(1, 3, 16, 16))


# Nonlinear measurements ----------------------------------------------------------------------------------------------


def saturating(x0):
    return torch.tanh(2 * x0)[..., ::2]


def test_the_linearization_of_a_nonlinear_measurement_has_its_value_and_its_derivative():
    """The Jacobian times v is a forward difference; its transpose is by autograd."""
    x0, v = normal(seeded(0), 2, *SHAPE), normal(seeded(1), 2, *SHAPE)
    constraint = Nonlinear(saturating, saturating(normal(seeded(2), 1, *SHAPE)), 0.1)
    linear = constraint.linearize(x0)
    assert linear.origin is x0 and linear.noise == 0.1
    assert_close(linear.residual(x0), constraint.y - saturating(x0), 1e-12)
    exact = torch.func.jvp(saturating, (x0,), (v,))[1]
    assert_close(linear.operator(v), exact, 1e-3)
    w = normal(seeded(3), *exact.shape)
    assert_close((linear.operator.adjoint(w) * v).sum(), (w * exact).sum(), 1e-10)
    assert_close(constraint.neg_grad(x0), linear.operator.adjoint(linear.residual(x0)), 1e-12)


def test_the_residual_norm_of_a_nonlinear_measurement_is_a_root_mean_square():
    x0 = normal(seeded(0), 2, *SHAPE)
    constraint = Nonlinear(saturating, saturating(x0) + 0.5)
    assert_close(constraint.residual_norm(x0), torch.full((2,), 0.5, dtype=x0.dtype), 1e-10)


def test_a_step_that_leads_away_from_a_nonlinear_measurement_is_shortened():
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    constraint = Nonlinear(lambda x: x.square(), torch.full((1, *SHAPE), 0.01, dtype=torch.float64))
    far = torch.ones_like(x0)
    step = constraint.limit_step(x0, far)
    assert (constraint.residual_norm(x0 + step) <= constraint.residual_norm(x0)).all() and (step < far).all()
    near = torch.full_like(x0, 0.05)
    assert constraint.limit_step(x0, near).equal(near)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -0.1}, "noise = -0.1: a standard deviation must be at least 0"),
        ({"noise": math.nan}, "noise = nan: a standard deviation must be at least 0"),
        ({"max_step_rms": 0.0}, "max_step_rms = 0.0: it must be above 0"),
    ],
)
def test_a_nonlinear_measurement_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Nonlinear(saturating, torch.zeros(1, *SHAPE), **settings)


def test_a_nonlinear_measurement_of_another_shape_is_refused():
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"f of x0 \(2, .*they must agree but for the batch"):
        Nonlinear(saturating, torch.zeros(1, *SHAPE)).linearize(x0)


def test_a_gradient_of_a_measurement_that_is_not_finite_is_refused():
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    with pytest.raises(ValueError, match="the gradient of f is not finite"):
        Nonlinear(torch.sqrt, torch.ones(1, *SHAPE)).linearize(x0)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_sum_does_not_depend_on_the_units_of_y(factor):
    """The floor of a part without noise is in image units."""
    x0 = normal(seeded(0), 2, *SHAPE)
    mask, _ = satisfied_constraint(OPERATORS["mask"], seeded(1))
    scaled_mask = Linear(Matrix(factor * matrix_of(OPERATORS["mask"], SHAPE), SHAPE), (factor * mask.y).flatten(1))
    area, _ = satisfied_constraint(OPERATORS["area"], seeded(2), 0.1)
    one, other = (Sum((part, area), (1.0, 1.0)).linearize(x0).project(x0) for part in (mask, scaled_mask))
    assert_close(one, other, 1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_a_sum_moves_a_picture_no_further_than_its_most_cautious_part_allows(order):
    """Both parts alone would move it as far as they may."""
    x0, radii = 3 * normal(seeded(0), 2, *SHAPE), [0.05, 0.5]
    losses = [Loss(log_cosh, max_step_rms=radius) for radius in radii]
    for constraint, radius in [*zip(losses, radii, strict=True), (Sum(tuple(losses[::order]), (1.0, 1.0)), 0.05)]:
        moved = constraint.linearize(x0).project(x0) - x0
        assert_close(moved.square().flatten(1).mean(1).sqrt(), torch.full((2,), radius, dtype=x0.dtype), 1e-9)


def test_parts_of_a_sum_without_noise_have_a_hundredth_of_their_gain_as_noise():
    """By a dense solution. The two contradict each other, so the result depends on how precise each one is."""
    x0 = normal(seeded(0), 2, *SHAPE)
    exact, _ = satisfied_constraint(OPERATORS["area"], seeded(1))
    noisy, _ = satisfied_constraint(OPERATORS["area"], seeded(2), 0.05)
    found = Sum((exact, noisy), (1.0, 1.0)).linearize(x0).project(x0)
    A = matrix_of(OPERATORS["area"], SHAPE).repeat(2, 1)
    floor = 0.01 * 0.25  # means over 16 pixels: A A^T = I / 16
    variances = torch.cat([torch.full((12,), float(noise) ** 2).double() for noise in (floor, 0.05)])
    y = torch.cat([exact.y.flatten(1), noisy.y.flatten(1)], 1)
    u = torch.linalg.solve(A @ A.T + variances.diag(), (y - x0.flatten(1) @ A.T).T)
    assert_close(found.flatten(1), x0.flatten(1) + u.T @ A, 1e-3)  # conjugate residuals stop at 1e-5 of the residual


@pytest.mark.parametrize("count", [2, 3])  # without and with a loss
@few_examples
@given(SEEDS)
def test_the_linearization_of_a_sum_for_a_batch_is_that_of_its_singles(count, seed):
    """Also of a sample at which all residuals of the linear parts are 0: there is no division by them."""
    g = seeded(seed)
    A, x0, y = normal(g, 4, 192), normal(g, 3, *SHAPE), torch.zeros(1, 2, dtype=torch.float64)
    x0[1] = 0
    exact, noisy = Linear(Matrix(A[:2] / 1000, SHAPE), y), Linear(Matrix(100 * A[2:], SHAPE), y, 0.1)
    parts = (exact, noisy, Loss(log_cosh))[:count]
    both = Sum(parts, (1.0, 2.0, 0.5)[:count])
    together = both.linearize(x0).project(x0)
    assert together.isfinite().all()
    for i in range(3):
        one = x0[i : i + 1]
        assert_close(together[i : i + 1], both.linearize(one).project(one), 1e-6)


@pytest.mark.parametrize("gain", [1 / 32, 1.0, 100.0])
def test_a_part_of_a_sum_that_is_satisfied_stays_so(gain):
    """Its residual is 0, from which no gain follows. A distance of 0.01, its noise, would be 0.01 times the gain."""
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    row, other = torch.linalg.qr(normal(seeded(0), 192, 2))[0].T.split(1)
    satisfied = Linear(Matrix(gain * row, SHAPE), torch.zeros(1, 1, dtype=torch.float64))
    violated = Linear(Matrix(row + other, SHAPE), torch.ones(1, 1, dtype=torch.float64))
    linear = Sum((satisfied, violated), (1.0, 1.0)).linearize(x0)
    moved = linear.project(x0)
    assert (satisfied.residual_norm(moved) < 0.001 * gain).all() and (violated.residual_norm(moved) < 0.001).all()


def test_a_sum_of_residuals_of_zero_changes_nothing():
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    nothing = Linear(Matrix(torch.zeros(2, 192, dtype=torch.float64), SHAPE), torch.zeros(1, 2, dtype=torch.float64))
    area = Linear(Downsample(2), Downsample(2)(x0[:1]))
    for parts in ((nothing, area), (area, Loss(lambda x: x.square().flatten(1).mean(1))), (nothing, nothing)):
        assert Sum(parts, (1.0, 1.0)).linearize(x0).project(x0).equal(x0)


@pytest.mark.parametrize("noise_floor", [0.0, -0.1, math.nan, math.inf])
def test_the_noise_floor_of_a_sum_must_be_above_0(noise_floor):
    with pytest.raises(ValueError, match=f"^noise_floor = {noise_floor}: it must be a finite number above 0"):
        Sum((Loss(log_cosh),), (1.0,), noise_floor)
