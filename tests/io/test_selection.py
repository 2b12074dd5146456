"""Selections against definitions by brute force, on small pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adhere.errors import AdhereError, AdhereWarning
from adhere.io._selection import Selection, noise_of
from adhere.io.images import Picture

examples = settings(max_examples=40, deadline=None)
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(2, 11))).filter(
    lambda mask: mask.any() and not mask.all()
)
RADII = st.integers(1, 6)


def picture(height: int = 12, width: int = 16) -> Picture:
    return Picture(np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8))


def selected(mask: np.ndarray, **options) -> np.ndarray:
    return Selection(**options).of(picture(*mask.shape), mask)


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the nearest one of the mask."""
    rows, columns = np.indices(mask.shape)
    return np.min([np.hypot(rows - y, columns - x) for y, x in zip(*np.nonzero(mask), strict=True)], axis=0)


@examples
@given(MASKS, RADII)
def test_grow_adds_the_pixels_within_the_radius(mask, radius):
    expected = distance_to(mask) <= radius
    if expected.all():
        with pytest.raises(AdhereError, match="nothing to keep"):
            selected(mask, grow=radius)
    else:
        assert np.array_equal(selected(mask, grow=radius), expected.astype(np.float32))


@examples
@given(arrays(np.float32, (7, 9), elements=st.sampled_from([0, 0.25, 0.5, 0.75])), RADII)
def test_grow_of_a_soft_mask_takes_the_largest_weight_within_the_radius(weights, radius):
    weights[0, 0], weights[3, 3] = 0, 0.5
    rows, columns = np.indices(weights.shape)
    near = lambda y, x: np.hypot(rows - y, columns - x) <= radius  # noqa: E731
    expected = [[weights[near(y, x)].max() for x in range(9)] for y in range(7)]
    assert np.array_equal(selected(weights, grow=radius), np.array(expected, np.float32))


@examples
@given(MASKS, RADII)
@pytest.mark.filterwarnings("ignore:feather")
def test_feather_is_a_ramp_inwards_from_the_edge(mask, width):
    expected = np.where(mask, np.minimum(1, distance_to(~mask) / (width + 1)), 0)
    np.testing.assert_allclose(selected(mask, feather=width), expected, atol=1e-6)


@pytest.mark.parametrize(("side", "width"), [(5, 3), (5, 10), (1, 1), (16, 8)])
def test_a_feather_that_leaves_no_pixel_unknown_is_noted(side, width):
    mask = np.zeros((side + 4, side + 4), bool)
    mask[2:-2, 2:-2] = True  # the pixel in the middle is (side + 1) // 2 from the edge
    with pytest.warns(AdhereWarning, match=f"feather {width}: is too wide to leave a pixel fully unknown"):
        weights = selected(mask, feather=width)
    assert weights.max() < 15 / 16


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("side", "width"), [(5, 2), (16, 7)])
def test_a_feather_that_leaves_an_unknown_pixel_is_not_noted(side, width):
    mask = np.zeros((side + 4, side + 4), bool)
    mask[2:-2, 2:-2] = True
    assert selected(mask, feather=width).max() == 1
    soft = np.where(mask, np.float32(0.5), np.float32(0))  # nothing is unknown before
    assert selected(soft, feather=width).max() == 0.5


@examples
@given(MASKS)
def test_fill_holes_selects_what_no_path_through_sides_connects_with_the_edge(mask):
    reached = ~mask
    reached[1:-1, 1:-1] = False
    for _ in range(mask.size):
        padded = np.pad(reached, 1)
        reached = ~mask & (reached | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:])
    if reached.any():
        assert np.array_equal(selected(mask, fill_holes=True) == 1, ~reached)
    else:
        with pytest.raises(AdhereError, match="nothing to keep"):
            selected(mask, fill_holes=True)


def test_boxes_a_color_and_a_mask_are_united_and_then_inverted():
    image = picture()
    image.pixels[5, 6] = (200, 30, 40)
    image.pixels[5, 7] = (210, 20, 50)  # every channel differs by 10
    image.pixels[5, 8] = (211, 30, 40)
    mask = np.zeros((12, 16), bool)
    mask[0, 0] = True
    options = {"boxes": [(2, 3, 4, 5), (14, 10, 9, 9)], "color": (200, 30, 40)}
    expected = mask.copy()
    expected[3:8, 2:6], expected[10:, 14:], expected[5, 6:8] = True, True, True
    assert np.array_equal(Selection(**options).of(image, mask) == 1, expected)
    assert np.array_equal(Selection(**options, invert=True).of(image, mask) == 0, expected)
    expected[5, 7] = False
    assert np.array_equal(Selection(**options, tolerance=9).of(image, mask) == 1, expected)


def test_a_color_is_compared_in_levels_of_8_bits_and_with_visible_pixels_only():
    gray = np.array([[100, 110, 111, 100]], np.uint16) * 257
    alpha = np.array([[255, 255, 255, 0]], np.uint8)
    selection = Selection(color=(100, 100, 100)).of(Picture(gray[..., None], alpha), None)
    assert selection.tolist() == [[1, 1, 0, 0]]


def test_the_noise_of_soft_pixels():
    weights = np.array([[0, 1 / 16, 0.2, 0.5, 0.9, 15 / 16, 1]], np.float32)
    np.testing.assert_allclose(noise_of(weights), [[0, 0, 0.125, 0.5, 4.5, 0, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": [(16, 0, 2, 2)]}, "box 16,0,2,2: is outside the picture, which has 16 x 12 pixels"),
        ({"boxes": [(0, 0, 0, 2)]}, r"box = \(0, 0, 0, 2\): give \(left, top, width, height\)"),
        ({"boxes": [(0, 0, 16, 12)]}, "nothing to keep"),
        ({"color": (1, 9, 3), "tolerance": 0}, "nothing to inpaint"),
        ({"color": (1, 2, 300)}, "from 0 to 255"),
        ({"boxes": [(0, 0, 1, 1)], "grow": -1}, "grow = -1: give a whole number from 0 to 10000"),
        ({"boxes": [(0, 0, 1, 1)], "tolerance": 256}, "tolerance = 256"),
    ],
)
def test_bad_selections_are_refused_in_one_line(options, message):
    with pytest.raises(AdhereError, match=message) as caught:
        Selection(**options).of(picture(), None)
    assert "\n" not in str(caught.value)
