"""Windows around holes: laws, by hypothesis and on a large photograph."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adhere.windows import windows_around

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: arrays(bool, size, elements=st.sampled_from([False] * 30 + [True])).filter(lambda mask: mask.any())
)


@settings(max_examples=100, deadline=None)
@given(repaint=MASKS, context=st.integers(1, 12))
def test_each_hole_with_its_context_and_no_other_hole(repaint, context):
    height, width = repaint.shape
    seen = np.zeros(repaint.shape, int)
    for rows, columns in windows_around(repaint, context):
        own = repaint[rows, columns]
        seen[rows, columns] += own
        ys, xs = np.nonzero(own)
        assert rows == slice(max(0, rows.start + ys.min() - context), min(height, rows.start + ys.max() + 1 + context))
        assert columns == slice(
            max(0, columns.start + xs.min() - context), min(width, columns.start + xs.max() + 1 + context)
        )
    assert np.array_equal(seen, repaint)  # every pixel to repaint in exactly one window


@given(context=st.integers(1, 30), gap=st.integers(0, 100), along=st.booleans())
def test_two_specks_are_one_window_only_when_near(context, gap, along):
    repaint = np.zeros((3, gap + 2), bool)
    repaint[1, [0, -1]] = True
    count = len(windows_around(repaint if along else repaint.T, context))
    if gap < context:
        assert count == 1
    if gap > 2 * context:
        assert count == 2


def test_windows_come_from_the_top_left_to_the_bottom_right():
    repaint = np.zeros((100, 100), bool)
    repaint[[5, 5, 90], [90, 5, 50]] = True
    starts = [(rows.start, columns.start) for rows, columns in windows_around(repaint, 4)]
    assert starts == [(1, 1), (1, 86), (86, 46)]


def test_dust_on_a_large_photograph():
    """300 specks on 4000 x 3000: windows are a small part of the picture."""
    rng = np.random.default_rng(0)
    repaint = np.zeros((3000, 4000), bool)
    for y, x in zip(rng.integers(0, 2990, 300), rng.integers(0, 3990, 300), strict=True):
        repaint[y : y + 8, x : x + 8] = True
    windows = windows_around(repaint, 24)
    assert 200 < len(windows) <= 300
    assert sum(repaint[window].sum() for window in windows) == repaint.sum()
    assert sum(repaint[window].size for window in windows) < 0.15 * repaint.size
