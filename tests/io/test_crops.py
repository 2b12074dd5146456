"""Crops around the regions of a mask: their properties, by hypothesis and on a large photograph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from adhere.io import _crops
from adhere.io._crops import crops_around

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: arrays(bool, size, elements=st.sampled_from([False] * 30 + [True])).filter(lambda mask: mask.any())
)


@settings(max_examples=100, deadline=None)
@given(mask=MASKS, context=st.integers(1, 12))
def test_each_crop_is_its_region_plus_context_and_every_masked_pixel_is_in_one_crop(mask, context):
    height, width = mask.shape
    count = np.zeros(mask.shape, int)
    for rows, columns in crops_around(mask, context):
        region = mask[rows, columns]
        count[rows, columns] += region
        ys, xs = np.nonzero(region)
        assert rows == slice(max(0, rows.start + ys.min() - context), min(height, rows.start + ys.max() + 1 + context))
        assert columns == slice(
            max(0, columns.start + xs.min() - context), min(width, columns.start + xs.max() + 1 + context)
        )
    assert np.array_equal(count, mask)


@given(context=st.integers(1, 30), gap=st.integers(0, 100), horizontal=st.booleans())
def test_two_pixels_share_a_crop_only_when_they_are_close(context, gap, horizontal):
    mask = np.zeros((3, gap + 2), bool)
    mask[1, [0, -1]] = True
    count = len(crops_around(mask if horizontal else mask.T, context))
    if gap < context:
        assert count == 1
    if gap > 2 * context:
        assert count == 2


def test_crops_are_sorted_by_row_then_by_column():
    mask = np.zeros((100, 100), bool)
    mask[[5, 5, 90], [90, 5, 50]] = True
    starts = [(rows.start, columns.start) for rows, columns in crops_around(mask, 4)]
    assert starts == [(1, 1), (1, 86), (86, 46)]


def test_a_large_mask_is_reduced_to_cells_before_regions_are_found(monkeypatch):
    sizes, components = [], _crops._components
    monkeypatch.setattr(_crops, "_components", lambda cells: sizes.append(cells.size) or components(cells))
    mask = np.ones((2000, 3000), bool)
    mask[:100] = False
    assert crops_around(mask, 96) == [(slice(4, 2000), slice(0, 3000))]
    assert sizes == [21 * 32]


@pytest.mark.parametrize("seed", range(3))
def test_cells_are_one_component_if_they_touch_at_a_side_or_a_corner(seed):
    cells = np.random.default_rng(seed).random((40, 40)) < 0.3
    labels, count = ndimage.label(cells, np.ones((3, 3)))
    found = np.zeros(cells.shape, int)
    components = _crops._components(cells)
    for label, runs in enumerate(components, 1):
        for row, start, stop in runs:
            found[row, start:stop] = label
    assert len(components) == count
    assert len(set(zip(labels.ravel().tolist(), found.ravel().tolist(), strict=True))) == count + 1


def test_crops_around_300_specks_cover_a_small_part_of_a_large_photograph():
    rng = np.random.default_rng(0)
    mask = np.zeros((3000, 4000), bool)
    for y, x in zip(rng.integers(0, 2990, 300), rng.integers(0, 3990, 300), strict=True):
        mask[y : y + 8, x : x + 8] = True
    crops = crops_around(mask, 24)
    assert 200 < len(crops) <= 300
    assert sum(mask[crop].sum() for crop in crops) == mask.sum()
    assert sum(mask[crop].size for crop in crops) < 0.15 * mask.size
