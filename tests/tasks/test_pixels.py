"""Enlarged pictures whose means are the small one, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from adhere.io._samples import to_float
from adhere.tasks._pixels import match_means, round_with_means
from tests.picture_files import noise


def means_of(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width, channels = pixels.shape
    return pixels.reshape(height // factor, factor, width // factor, factor, channels).astype(float).mean((1, 3))


@settings(deadline=None)
@given(st.integers(2, 8), st.floats(0.01, 100), st.sampled_from(["noise", "black and white"]), st.sampled_from([8, 16]))
def test_the_means_are_exact_whatever_the_sample_is(factor, spread, kind, bits):
    """Black and white can be met by clipped samples only, and most samples are far out of the range."""
    levels = noise(5, 7, 3, dtype=np.uint8 if bits == 8 else np.uint16)
    if kind == "black and white":
        levels = np.where(levels > np.iinfo(levels.dtype).max // 2, np.iinfo(levels.dtype).max, 0).astype(levels.dtype)
    x = torch.randn(3, 5 * factor, 7 * factor, generator=torch.Generator().manual_seed(factor)).double() * spread
    matched = match_means(x, torch.from_numpy(to_float(levels)).double(), factor)
    assert matched.abs().max() <= 1
    pixels = round_with_means(matched, levels, factor)
    assert pixels.dtype == levels.dtype
    assert np.array_equal(means_of(pixels, factor), levels)


def test_a_sample_with_the_right_means_stays_as_it_is():
    x = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) - 0.5
    assert (match_means(x, avg_pool2d(x, 4), 4) - x).abs().max() < 1e-6


@pytest.mark.parametrize("height", [1, 64, 130])
def test_bands_are_joined(height):
    levels = noise(height, 2, 1)
    pixels = round_with_means(
        match_means(torch.zeros(1, 2 * height, 4), torch.from_numpy(to_float(levels)), 2), levels, 2
    )
    assert np.array_equal(means_of(pixels, 2), levels)
