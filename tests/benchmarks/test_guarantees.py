"""The figures of benchmarks.guarantees on pictures for which they are known."""

import math

import numpy as np
import pytest

from benchmarks import guarantees
from benchmarks.guarantees import chroma, figure_of, guarantees_table, inpainted, ring_of, seam_ratio, share_changed
from benchmarks.tables import ALL, METRICS, Row

MASK = guarantees.disc(64, (32, 32), 10)
RAMP = np.broadcast_to(3 * np.arange(64)[None, :, None], (64, 64, 3)).astype(np.uint8)


def test_the_ring_is_three_pixels_wide():
    square = np.zeros((20, 20), bool)
    square[8:12, 8:12] = True
    ring = ring_of(square)
    assert not (ring & square).any()
    np.testing.assert_array_equal(np.flatnonzero(ring[10]), [5, 6, 7, 12, 13, 14])
    assert ring[5, 9] and ring[7, 7] and not ring[5, 5]


def test_the_seam_ratio_of_a_ramp_is_that_of_its_columns_and_rows():
    """Differences are 3 between columns and 0 between rows, so the ratio is that of the shares of pairs of columns."""

    def share(pairs_of_rows, pairs_of_columns):
        return pairs_of_columns.sum() / (pairs_of_rows.sum() + pairs_of_columns.sum())

    ring = ring_of(MASK)
    across = share(MASK[1:] != MASK[:-1], MASK[:, 1:] != MASK[:, :-1])
    inside = share(ring[1:] & ring[:-1], ring[:, 1:] & ring[:, :-1])
    assert seam_ratio([RAMP, RAMP], [MASK, MASK]) == pytest.approx(across / inside)


def test_a_step_at_the_edge_raises_the_seam_ratio_and_noise_alone_does_not():
    noise = np.random.default_rng(0).normal(0, 8, (512, 512, 3))
    mask = np.any([guarantees.disc(512, (y, x), 20) for y in range(32, 512, 64) for x in range(32, 512, 64)], 0)
    natural = (128 + noise).round().astype(np.uint8)
    stepped = (128 + noise + 30 * mask[..., None]).round().astype(np.uint8)
    flat = np.where(mask[..., None], 128, natural).astype(np.uint8)
    assert seam_ratio([natural], [mask]) == pytest.approx(1, abs=0.02)  # 3 standard errors of 22,000 differences
    assert seam_ratio([stepped], [mask]) > 2
    # A fill without noise has differences of one Gaussian instead of two, which are smaller by the root of two.
    assert seam_ratio([flat], [mask]) == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_pixels_that_change_count_once_and_only_outside_the_mask():
    result = RAMP.copy()
    result[MASK] = 0
    assert share_changed(result, RAMP, MASK) == 0
    result[0, 0, 1] ^= 1
    assert share_changed(result, RAMP, MASK) == pytest.approx(1 / (~MASK).sum())


def test_chroma_is_the_largest_difference_of_channels():
    gray = np.full((4, 4), 7, np.uint8)
    assert chroma(gray) == 0 and chroma(np.dstack([gray] * 3)) == 0
    assert chroma(np.dstack([gray, gray + 2, gray - 3])) == 5


def test_a_fill_that_returns_the_original_changes_nothing_and_has_its_seam_ratio():
    pictures = {"ramp": RAMP, "other": RAMP[:, ::-1].copy()}
    fills = {"perfect": lambda damaged, mask: RAMP if damaged[0, 0, 0] == 0 else pictures["other"]}
    rows = list(inpainted(fills, pictures, {"disc": MASK}, "emoji"))
    value = {(row.task, row.method): next(iter(row.scores.values())) for row in rows}
    assert value["known pixels changed, emoji", "perfect"] == 0
    for task in ("seam ratio, emoji, disc", "seam ratio, emoji, all masks"):
        assert value[task, "perfect"] == value[task, "original"]
    assert all(figure_of(row) == "emoji" for row in rows)


def test_the_table_has_means_and_largest_values():
    rows = [
        Row("mean offset, plain areas", "a", "adhere", 0, 0, 1.0, scores={"offset": -3.0}),
        Row("mean offset, plain areas", "b", "adhere", 0, 0, 1.0, scores={"offset": 1.0}),
        Row("chroma of gray photographs, RGB", "a", "adhere", 0, 0, 1.0, scores={"chroma": 0.0}),
        Row("chroma of gray photographs, RGB", "b", "adhere", 0, 0, 1.0, scores={"chroma": 9.0}),
        Row("known pixels changed, emoji", ALL, "diffusers", 0, 0, 1.0, scores={"changed": 0.5}),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in guarantees_table(rows).splitlines()]
    assert lines[0] == ["figure", "aim", "adhere", "diffusers"]
    assert lines[2:] == [
        ["mean offset, plain areas", "-1 to 1", "-1.0", "–"],
        ["mean offset, plain areas, largest of one picture", "–", "+3.0", "–"],
        ["chroma of gray photographs, RGB", "at most 1", "9", "–"],
        ["known pixels changed, emoji", "0", "–", "50.0%"],
    ]
    assert [figure_of(row) for row in rows] == ["offset", "offset", "gray", "gray", "emoji"]
    assert {"changed", "seam", "chroma", "band", "offset"} <= set(METRICS)


@pytest.mark.slow
def test_bands_lie_along_the_borders_of_tiles():
    near = guarantees.bands(384)  # tiles from 0, 112, 224 and 256 on
    np.testing.assert_array_equal(near, near.T)
    expected = np.zeros(384, bool)
    for border in (112, 128, 224, 240, 256, 352):
        expected[border - 4 : border + 4] = True
    np.testing.assert_array_equal(near[10], expected)
    assert near[border].all()
