"""The problems of benchmarks.tasks, without a model."""

import argparse

import numpy as np
import pytest
from skimage import data

from benchmarks import baselines, tasks
from benchmarks.tables import Row

ROCKET = data.rocket()


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_original_has_a_small_residual_and_the_baselines_return_pictures(task):
    one = tasks.problem(task, ROCKET)
    # 8-bit rounding is 0.002, the blur's noise 0.004; that of denoising is 2 * 25 / 255 or less, as it is clipped
    assert one.residual(one.original) < (0.2 if task == "denoise" else 0.006)
    quick = [name for name in one.methods if name in ("input", "telea", "repeated edge", "Lanczos")]
    for name in quick:
        result = one.methods[name]()
        assert result.picture.shape == (256, 256, 3) and result.picture.dtype == np.uint8


def test_only_new_pixels_are_scored_and_known_ones_are_kept():
    inpaint, outpaint = (tasks.problem(task, ROCKET) for task in ("inpaint", "outpaint"))
    assert outpaint.new.sum() == 256 * 48 and 0.1 < inpaint.new.mean() < 0.2
    for one, name in ((inpaint, "telea"), (outpaint, "repeated edge")):
        result = one.methods[name]().picture
        assert one.residual(result) == 0
        assert not (result == one.original)[one.new].all()
    assert tasks.problem("denoise", ROCKET).new.all()


def test_a_difference_of_one_level_has_its_residual():
    one = tasks.problem("upscale x2", ROCKET)
    darker = one.original.astype(int) + np.where(one.original > 127, -2, 2)
    assert one.residual(darker.astype(np.uint8)) == pytest.approx(2 * 2 / 255, rel=0.2)


def test_strokes_have_the_colors_of_the_original():
    hints = tasks.strokes(ROCKET[:256, :256])
    assert 0.01 < (hints[..., 3] > 0).mean() < 0.03
    np.testing.assert_array_equal(hints[..., :3], ROCKET[:256, :256])


def test_chroma_spreads_in_areas_of_one_luma_and_not_beyond():
    gray = np.full((24, 24), 90, np.uint8)
    gray[:, 12:] = 200
    hints = np.zeros((24, 24, 4), np.uint8)
    hints[11:13, 2:4] = (120, 80, 65, 255)  # luma 90
    hints[11:13, 20:22] = (200, 200, 200, 255)
    result = baselines.levin(gray, hints).astype(int)
    assert np.abs(result[:, :11] - (120, 80, 65)).max() <= 3
    assert np.abs(result[:, 13:] - 200).max() <= 3


def test_methods_are_those_of_a_task():
    assert tasks.method_names("inpaint") == ["biharmonic", "telea", "ns", "adhere"]
    assert tasks.method_names("upscale x4") == ["Lanczos", "bicubic", "Real-ESRGAN", "adhere", "adhere, mean of 8"]
    assert {"FFDNet", "BM3D", "non-local means"} < set(tasks.method_names("denoise"))


def test_rows_are_chosen_by_task_photograph_and_method():
    row = Row("denoise", "coffee", "adhere", 0, 1, 1.0)

    def chosen(**given):
        return tasks.is_chosen(row, argparse.Namespace(**dict(tasks=["denoise"], methods=None, items=None) | given))

    assert chosen() and chosen(methods=["adhere"]) and chosen(items=["coffee"])
    assert not chosen(tasks=["inpaint"]) and not chosen(methods=["BM3D"]) and not chosen(items=["china"])


def test_tables_have_the_four_photographs_in_a_column_of_their_own():
    rows = [
        Row("denoise", "coffee", "adhere", 0, 1, 1.0, scores={"psnr": 30.0}),
        Row("denoise", "china", "adhere", 0, 1, 1.0, scores={"psnr": 34.0}),
        Row("denoise", "coffee", "input", 0, 0, 0.0, scores={"psnr": 40.0}),
    ]
    lines = tasks.tables(rows, ["inpaint", "denoise"]).splitlines()
    assert lines[0] == "### denoise"
    assert lines[4].startswith("| input (1 of 2 items) | 40.00 | 40.00 |")
    assert lines[5].startswith("| adhere | **32.00** ± 25.42 | **30.00** |")
