"""The tiled denoiser: equal to the whole for independent pixels, weights that sum to one, one evaluation per call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core._tiles import in_tiles
from adhere.core.denoisers import CountingDenoiser, NetworkDenoiser
from adhere.core.schedules import FlowSchedule
from adhere.core.tiling import TiledDenoiser
from adhere.testing.priors import Gaussian
from tests.core.exact import assert_close, normal, seeded

FLOW = FlowSchedule()
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def tiles() -> st.SearchStrategy[tuple[int, int]]:
    """Draw (tile_size, overlap)."""
    return st.integers(2, 16).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def denoiser_of(function):
    return NetworkDenoiser(function, FLOW, "sample", torch.float64, torch.float64)


PIXEL = Gaussian(torch.full((1, 1, 1), 0.25).double(), torch.full((1, 1), 0.5).double()).denoiser(FLOW)
# E[x0 | x_t] for x0 ~ N(1/4, I/2), an exact prior over pictures of any size, pixel by pixel
WHITE = denoiser_of(lambda x_t, t: PIXEL(x_t.reshape(-1, 1, 1, 1), float(t[0])).reshape(x_t.shape))


@settings(max_examples=30, deadline=None)
@given(size=SIZES, tile=tiles(), t=st.floats(0.05, 0.95))
def test_an_exact_prior_of_independent_pixels_is_the_same_in_tiles(size, tile, t):
    x_t = normal(seeded(0), 2, 3, *size)
    assert_close(TiledDenoiser(WHITE, *tile)(x_t, t), WHITE(x_t, t))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, tile=tiles())
def test_weights_sum_to_one_at_every_pixel(size, tile):
    ones = denoiser_of(lambda x_t, t: torch.ones_like(x_t))
    assert_close(TiledDenoiser(ones, *tile)(normal(seeded(0), 1, 1, *size), 0.5), torch.ones(1, 1, *size).double())


@settings(max_examples=30, deadline=None)
@given(size=SIZES, tile=tiles())
def test_the_network_never_sees_more_than_a_tile_and_one_call_is_one_evaluation(size, tile):
    seen = []

    def network(x_t, t):
        seen.append(tuple(x_t.shape[-2:]))
        return x_t

    counting = CountingDenoiser(TiledDenoiser(denoiser_of(network), *tile))
    counting(normal(seeded(0), 1, 1, *size), 0.5)
    assert counting.nfe == 1
    assert max(max(shape) for shape in seen) <= tile[0]
    assert (len(seen) == 1) == (max(size) <= tile[0])


def test_a_network_with_a_receptive_field_agrees_inside_and_has_no_seams():
    """A blur of 5 pixels in tiles that overlap by 8. At the ends of a tile, where it errs, the weights are small."""
    blur = denoiser_of(lambda x_t, t: avg_pool2d(x_t, 5, 1, 2, count_include_pad=False))
    x_t = normal(seeded(0), 1, 1, 50, 70)
    whole, tiled = blur(x_t, 0.5), TiledDenoiser(blur, 24, 8)(x_t, 0.5)
    assert (whole - tiled).square().mean() < 0.02 * whole.square().mean()
    ramp = torch.linspace(-1, 1, 70).double().expand(1, 1, 50, 70)
    steps = TiledDenoiser(blur, 24, 8)(ramp, 0.5).diff(dim=-1)
    assert steps.min() > 0 and steps.max() < 1.2 * (ramp[..., 1] - ramp[..., 0]).max()


def test_schedule_and_dtype_are_those_of_the_wrapped_denoiser():
    tiled = TiledDenoiser(WHITE, 8, 2)
    assert tiled.schedule is FLOW and tiled.dtype == torch.float64


@pytest.mark.parametrize(("tile_size", "overlap"), [(8, 8), (8, 9), (8, -1), (0, 0)])
def test_an_overlap_out_of_range_is_refused(tile_size, overlap):
    with pytest.raises(ValueError, match=f"overlap = {overlap}: .* below tile_size = {tile_size}"):
        TiledDenoiser(WHITE, tile_size, overlap)


# Encoders and decoders -----------------------------------------------------------------------------------------------

CELL = 4


def enlarged(z):
    return interpolate(z, scale_factor=CELL, mode="nearest")


@settings(max_examples=30, deadline=None)
@given(size=SIZES, tile=tiles())
def test_a_decoder_and_an_encoder_of_single_cells_are_the_same_in_tiles(size, tile):
    z = normal(seeded(0), 2, 3, *size)
    assert_close(in_tiles(enlarged, z, *tile, 1, CELL), enlarged(z))
    x = normal(seeded(0), 2, 3, *(CELL * side for side in size))
    assert_close(in_tiles(lambda part: avg_pool2d(part, CELL), x, *tile, CELL, 1), avg_pool2d(x, CELL))


@settings(max_examples=30, deadline=None)
@given(tile=st.integers(2, 12), share=st.floats(0, 0.5), counts=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_the_seams_of_a_decoder_are_ramps_over_the_overlap(tile, share, counts):
    """Each tile is decoded as a constant c_i in [0, 1]. Where two tiles overlap, the weights are w and 1 - w, with a w
    that is linear over the overlap: so neighboring pixels differ by at most max |c_i - c_j| / (pixels of it + 1).
    """
    g, overlap = seeded(0), int(share * tile)
    size = [tile + (count - 1) * (tile - overlap) for count in counts]  # then at most two tiles meet along each axis
    constant = lambda part: torch.rand(1, generator=g).double().expand_as(enlarged(part))  # noqa: E731
    out = in_tiles(constant, normal(g, 1, 1, *size), tile, overlap, 1, CELL)
    assert out.min() >= 0 and out.max() <= 1
    for dim in (-1, -2):
        assert (out.diff(dim=dim).abs() <= 1 / (CELL * overlap + 1) + 1e-12).all()
