"""The committed masks are reproducible and have the strokes that benchmarks.masks describes."""

import numpy as np
import pytest
from skimage.morphology import disk, opening

from benchmarks import masks


@pytest.mark.parametrize("name", masks.MASKS)
def test_committed_masks_are_the_generated_ones(name):
    committed, drawn = masks.load(name), masks.MASKS[name]()
    assert committed.shape == (256, 256) and committed.dtype == bool
    assert set(np.unique(committed.view(np.uint8))) == {0, 1}  # bytes of 255 with dtype bool crash C code
    np.testing.assert_array_equal(committed, drawn)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("text", 0.12, 0.20), ("strokes", 0.295, 0.305), ("hole", 0.035, 0.036), ("large_hole", 0.0625, 0.0625)],
)
def test_masked_fraction(name, low, high):
    assert low <= masks.load(name).mean() <= high


def fraction_under_brush(mask, brush):
    """The fraction of a mask that a brush of this shape can paint without leaving it."""
    return opening(mask, brush).sum() / mask.sum()


def test_letters_have_strokes_of_two_to_five_pixels():
    mask = masks.load("text")
    assert fraction_under_brush(mask, np.ones((2, 2))) > 0.95
    assert fraction_under_brush(mask, np.ones((6, 6))) < 0.02


def test_letters_cover_the_whole_picture():
    tiles = masks.load("text").reshape(4, 64, 4, 64).mean((1, 3))
    assert tiles.min() > 0.05


def test_strokes_are_eight_pixels_wide():
    mask = masks.load("strokes")
    assert fraction_under_brush(mask, disk(3)) > 0.97  # 7 pixels wide
    assert fraction_under_brush(mask, disk(5)) < 0.30  # 11 pixels wide: only where strokes cross


@pytest.mark.parametrize("fraction", [0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_strokes_cover_the_requested_fraction(fraction, seed):
    mask = masks.strokes(fraction, seed=seed)
    assert fraction <= mask.mean() < fraction + 0.005
    np.testing.assert_array_equal(mask, masks.strokes(fraction, seed=seed))


def test_hole_is_a_centered_square():
    mask = masks.load("hole")
    assert mask.sum() == 48 * 48 and mask[104:152, 104:152].all()


def test_unknown_name():
    with pytest.raises(ValueError, match="text"):
        masks.load("nothing")
