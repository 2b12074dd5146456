"""Losses: their values in closed form, their directions against finite differences."""

import math

import pytest
import torch
from torch.nn.functional import conv2d

from adhere.core.constraints import Loss
from adhere.features import EfficientNetLite0
from adhere.losses import GramDistance, SilhouetteLoss, gram
from tests.core.exact import close, normal, seeded

KERNEL = normal(seeded(9), 5, 3, 3, 3)


def layers(x):
    """Two layers of features, smooth, one flat and one as a picture."""
    f = conv2d(x.double(), KERNEL).tanh()
    return [f, f[:, :2, ::2, ::2].flatten(2)]


def disc(size=16):
    y, x = torch.meshgrid(*[torch.arange(size) - size / 2 + 0.5] * 2, indexing="ij")
    return (x**2 + y**2 < (size / 3) ** 2)[None, None].double()


WHITE = torch.ones(1, 3, 1, 1, dtype=torch.float64)
LOSSES = {
    "style": lambda: GramDistance(layers, normal(seeded(1), 1, 3, 12, 20).tanh()),
    "silhouette": lambda: SilhouetteLoss(disc(), WHITE),
}


def pictures(count, seed=0, size=16):
    return 0.8 * normal(seeded(seed), count, 3, size, size).tanh()


@pytest.mark.parametrize("name", LOSSES)
def test_directions_agree_with_central_differences(name):
    constraint = Loss(LOSSES[name]())
    x, v = pictures(2), normal(seeded(5), 2, 3, 16, 16)
    h = 1e-5
    slope = (constraint.error(x + h * v) - constraint.error(x - h * v)) / (2 * h)
    torch.testing.assert_close(-(constraint.direction(x) * v).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_step_along_the_direction_lowers_the_loss_of_each_sample_alone(name):
    constraint = Loss(LOSSES[name]())
    x = pictures(3)
    e = constraint.direction(x)
    step = 0.01 / e.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (constraint.error(x + step * e) < constraint.error(x)).all()
    close(e, torch.cat([constraint.direction(one) for one in x.split(1)]))


def test_gram_forgets_places_and_counts_means():
    f = normal(seeded(0), 2, 3, 4, 5)
    shuffled = f.flatten(2)[..., torch.randperm(20, generator=seeded(1))]
    close(gram(shuffled), gram(f))
    close(gram(torch.cat([f, f], dim=2)), gram(f))  # a larger picture of the same
    close(gram(torch.ones(1, 1, 7)), torch.ones(1, 1, 1))


def test_the_reference_has_the_style_of_the_reference_and_twice_its_features_are_three_grams_off():
    x = pictures(1)
    assert Loss(GramDistance(layers, x)).error(x).tolist() == [0.0]
    assert Loss(GramDistance(layers, x)).direction(x).abs().max() == 0
    identity = lambda x: [x]  # noqa: E731
    close(GramDistance(identity, x)(2 * x), torch.tensor([3.0], dtype=torch.float64))  # |4G - G| / |G|


def test_gradients_go_through_efficientnet_even_if_it_was_asked_under_inference_mode_first():
    """In float32 of a network of kinks, so only nearly."""
    x = torch.rand(1, 3, 48, 64, generator=seeded(2)) * 2 - 1
    constraint = Loss(GramDistance(EfficientNetLite0(stages=3).features, -x.flip(2)))
    with torch.inference_mode():
        before = constraint.error(x)
        e = constraint.direction(x)
        v = e / e.norm()
        h = 0.05
        slope = (constraint.error(x + h * v) - constraint.error(x - h * v)) / (2 * h)
    assert before > 0
    assert -slope.item() == pytest.approx(float((e * v).sum()), rel=0.05)


def test_a_clear_silhouette_costs_next_to_nothing_and_its_negative_much():
    mask = disc().expand(1, 3, -1, -1)
    black_on_white, white_on_black = 1 - 2 * mask, 2 * mask - 1
    loss = SilhouetteLoss(disc(), WHITE)
    assert loss(black_on_white).item() == pytest.approx(math.log1p(math.exp(-3)) / 2, rel=1e-2)  # white is 3 from half
    assert loss(white_on_black) > 5
    assert SilhouetteLoss(disc(), -WHITE)(white_on_black).item() < 0.05


def test_inside_and_outside_count_the_same_however_large():
    """A picture that is nowhere background is wrong by the whole outside, whose share is one half."""
    inked = -torch.ones(1, 3, 16, 16, dtype=torch.float64)
    small = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    small[..., :2, :2] = 1
    close(SilhouetteLoss(small, WHITE)(inked), SilhouetteLoss(1 - small, WHITE)(inked))


def test_background_colour_itself_has_no_direction_but_no_nan_either():
    assert Loss(SilhouetteLoss(disc(), WHITE)).direction(torch.ones(1, 3, 16, 16, dtype=torch.float64)).isfinite().all()


def test_each_sample_of_a_batch_may_have_its_own_reference_and_mask():
    x, masks = pictures(2), torch.cat([disc(), 1 - disc()])
    for loss, given in (
        (lambda one: GramDistance(layers, one), pictures(2, seed=1)),
        (lambda m: SilhouetteLoss(m, WHITE), masks),
    ):
        close(loss(given)(x), torch.cat([loss(given[i : i + 1])(x[i : i + 1]) for i in range(2)]))
