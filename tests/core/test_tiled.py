"""Tiles: equal to the whole where the network looks at single pixels, a partition of unity, one evaluation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from adhere.core.denoise import Counted, Prediction
from adhere.core.priors import Gaussian
from adhere.core.schedule import RectifiedFlow
from adhere.core.tiled import Tiled
from tests.core.exact import close, normal, seeded

FLOW = RectifiedFlow()
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def tiles() -> st.SearchStrategy[tuple[int, int]]:
    """(size, overlap)."""
    return st.integers(2, 16).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


PIXEL = Gaussian(torch.full((1, 1, 1), 0.25).double(), torch.full((1, 1), 0.5).double()).denoiser(FLOW)
# E[x0 | x_t] of x0 ~ N(1/4, I/2), an exact prior of pictures of any size: pixel by pixel
WHITE = Prediction(lambda x_t, t: PIXEL(x_t.reshape(-1, 1, 1, 1), t).reshape(x_t.shape), FLOW, "sample", torch.float64)


@settings(max_examples=30, deadline=None)
@given(size=SIZES, tile=tiles(), t=st.floats(0.05, 0.95))
def test_an_exact_prior_of_independent_pixels_is_the_same_in_tiles(size, tile, t):
    x_t = normal(seeded(0), 2, 3, *size)
    close(Tiled(WHITE, *tile)(x_t, t), WHITE(x_t, t))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, tile=tiles())
def test_weights_are_a_partition_of_unity(size, tile):
    ones = Prediction(lambda x_t, t: torch.ones_like(x_t), FLOW, "sample", torch.float64)
    close(Tiled(ones, *tile)(normal(seeded(0), 1, 1, *size), 0.5), torch.ones(1, 1, *size).double())


@settings(max_examples=30, deadline=None)
@given(size=SIZES, tile=tiles())
def test_the_network_never_sees_more_than_a_tile_and_one_call_is_one_evaluation(size, tile):
    seen = []

    def network(x_t, t):
        seen.append(tuple(x_t.shape[-2:]))
        return x_t

    counted = Counted(Tiled(Prediction(network, FLOW, "sample", torch.float64), *tile))
    counted(normal(seeded(0), 1, 1, *size), 0.5)
    assert counted.nfe == 1
    assert max(max(shape) for shape in seen) <= tile[0]
    assert (len(seen) == 1) == (max(size) <= tile[0])


def test_a_network_that_looks_around_agrees_inside_and_has_no_seams():
    """A blur of 5 pixels in tiles that overlap by 8: at their ends it sees nothing, where the tent is small."""
    blur = Prediction(lambda x_t, t: avg_pool2d(x_t, 5, 1, 2, count_include_pad=False), FLOW, "sample", torch.float64)
    x_t = normal(seeded(0), 1, 1, 50, 70)
    whole, tiled = blur(x_t, 0.5), Tiled(blur, 24, 8)(x_t, 0.5)
    assert (whole - tiled).square().mean() < 0.02 * whole.square().mean()
    ramp = torch.linspace(-1, 1, 70).double().expand(1, 1, 50, 70)
    steps = Tiled(blur, 24, 8)(ramp, 0.5).diff(dim=-1)
    assert steps.min() > 0 and steps.max() < 1.2 * (ramp[..., 1] - ramp[..., 0]).max()


def test_schedule_and_dtype_are_the_denoisers():
    tiled = Tiled(WHITE, 8, 2)
    assert tiled.schedule is FLOW and tiled.dtype == torch.float64


@pytest.mark.parametrize(("size", "overlap"), [(8, 8), (8, 9), (8, -1), (0, 0)])
def test_impossible_overlaps(size, overlap):
    with pytest.raises(ValueError, match=f"tiles of {size} overlapping by {overlap}"):
        Tiled(WHITE, size, overlap)
