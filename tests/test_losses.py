"""Losses: values against closed forms, gradients against finite differences."""

import math

import pytest
import torch
from torch.nn.functional import conv2d

from adhere.core.constraints import Loss
from adhere.features import EfficientNetLite0
from adhere.losses import GramDistance, SilhouetteLoss, _gram
from tests.core.exact import assert_close, normal, seeded

KERNEL = normal(seeded(9), 5, 3, 3, 3)


def layers(x):
    """Two layers of smooth features: (B, C, h, w) and (B, C, N)."""
    f = conv2d(x.double(), KERNEL).tanh()
    return [f, f[:, :2, ::2, ::2].flatten(2)]


def disk(size=16):
    y, x = torch.meshgrid(*[torch.arange(size) - size / 2 + 0.5] * 2, indexing="ij")
    return (x**2 + y**2 < (size / 3) ** 2)[None, None].double()


WHITE = torch.ones(1, 3, 1, 1, dtype=torch.float64)
LOSSES = {
    "style": lambda: GramDistance(layers, normal(seeded(1), 1, 3, 12, 20).tanh()),
    "silhouette": lambda: SilhouetteLoss(disk(), WHITE),
}


def pictures(count, seed=0, size=16):
    return 0.8 * normal(seeded(seed), count, 3, size, size).tanh()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_central_differences(name):
    constraint = Loss(LOSSES[name]())
    x, v = pictures(2), normal(seeded(5), 2, 3, 16, 16)
    h = 1e-5
    slope = (constraint.residual_norm(x + h * v) - constraint.residual_norm(x - h * v)) / (2 * h)
    torch.testing.assert_close(-(constraint.neg_grad(x) * v).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_gradient_step_decreases_each_loss_and_a_batch_equals_singles(name):
    constraint = Loss(LOSSES[name]())
    x = pictures(3)
    e = constraint.neg_grad(x)
    step = 0.01 / e.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (constraint.residual_norm(x + step * e) < constraint.residual_norm(x)).all()
    assert_close(e, torch.cat([constraint.neg_grad(one) for one in x.split(1)]))


def test_gram_is_a_mean_over_positions_and_ignores_their_order():
    f = normal(seeded(0), 2, 3, 4, 5)
    shuffled = f.flatten(2)[..., torch.randperm(20, generator=seeded(1))]
    assert_close(_gram(shuffled), _gram(f))
    assert_close(_gram(torch.cat([f, f], dim=2)), _gram(f))  # the same features at twice as many positions
    assert_close(_gram(torch.ones(1, 1, 7)), torch.ones(1, 1, 1))


def test_gram_distance_is_zero_for_the_reference_and_three_for_doubled_features():
    x = pictures(1)
    assert Loss(GramDistance(layers, x)).residual_norm(x).tolist() == [0.0]
    assert Loss(GramDistance(layers, x)).neg_grad(x).abs().max() == 0
    identity = lambda x: [x]  # noqa: E731
    assert_close(GramDistance(identity, x)(2 * x), torch.tensor([3.0], dtype=torch.float64))  # |4G - G| / |G|


def test_gradients_pass_through_efficientnet_first_used_in_inference_mode():
    """The tolerance is large because the network is float32 and piecewise smooth."""
    x = torch.rand(1, 3, 48, 64, generator=seeded(2)) * 2 - 1
    constraint = Loss(GramDistance(EfficientNetLite0(stages=3).features, -x.flip(2)))
    with torch.inference_mode():
        before = constraint.residual_norm(x)
        e = constraint.neg_grad(x)
        v = e / e.norm()
        h = 0.05
        slope = (constraint.residual_norm(x + h * v) - constraint.residual_norm(x - h * v)) / (2 * h)
    assert before > 0
    assert -slope.item() == pytest.approx(float((e * v).sum()), rel=0.05)


def test_silhouette_loss_is_small_for_a_clear_silhouette_and_large_for_its_negative():
    mask = disk().expand(1, 3, -1, -1)
    black_on_white, white_on_black = 1 - 2 * mask, 2 * mask - 1
    loss = SilhouetteLoss(disk(), WHITE)
    outside = math.log1p(math.exp(-3))  # the logit of white is -threshold / softness = -3
    assert loss(black_on_white).item() == pytest.approx(outside / 2, rel=1e-2)
    assert loss(white_on_black) > 5
    assert SilhouetteLoss(disk(), -WHITE)(white_on_black).item() < 0.05


def test_both_sides_of_the_mask_have_the_same_weight_whatever_their_areas():
    """A picture without background is wrong outside the mask, which has one half of the weight."""
    black = -torch.ones(1, 3, 16, 16, dtype=torch.float64)
    small = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    small[..., :2, :2] = 1
    assert_close(SilhouetteLoss(small, WHITE)(black), SilhouetteLoss(1 - small, WHITE)(black))


def test_the_gradient_at_the_background_color_is_finite():
    assert Loss(SilhouetteLoss(disk(), WHITE)).neg_grad(torch.ones(1, 3, 16, 16, dtype=torch.float64)).isfinite().all()


def test_each_sample_of_a_batch_may_have_its_own_reference_and_mask():
    x, masks = pictures(2), torch.cat([disk(), 1 - disk()])
    for loss, given in (
        (lambda one: GramDistance(layers, one), pictures(2, seed=1)),
        (lambda m: SilhouetteLoss(m, WHITE), masks),
    ):
        assert_close(loss(given)(x), torch.cat([loss(given[i : i + 1])(x[i : i + 1]) for i in range(2)]))
