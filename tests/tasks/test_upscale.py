"""Upscaling by any factor and by other kernels; whole factors are in `test_restore`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adhere import AdhereError, Linear, Resize, Upscale
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel
from tests.tiny_models import load

KERNELS = ["area", "bicubic"]


def residual_levels(written: np.ndarray, task: Upscale) -> float:
    """Return the RMS difference of the reduced picture from the small one, over the largest value."""
    largest = np.iinfo(written.dtype).max
    x = torch.from_numpy(written.astype(np.float64)).reshape(*written.shape[:2], -1).permute(2, 0, 1)[None]
    small = Resize((x.shape[-2], x.shape[-1]), task.picture.size, task.kernel)(x)[0].permute(1, 2, 0).numpy()
    return float(np.sqrt(np.square(small - task.picture.pixels).mean()) / largest)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1.5, 8), st.sampled_from(["area", "bicubic"]), st.sampled_from(["L", "RGB", "I;16"]), st.integers(1, 16)
)
def test_the_written_file_reduces_to_the_input(factor, kernel, mode, multiple):
    """Within 1/255 RMS for a sample near the range. The small picture is smooth, since bicubic weights are negative."""
    smooth = np.asarray(image_of("L" if mode == "I;16" else mode, 5, 6).resize((7, 9), Image.Resampling.BILINEAR))
    smooth = smooth.astype(np.uint16) * 257 if mode == "I;16" else smooth
    task = Upscale(smooth, factor, kernel=kernel)
    assert task.size == (round(9 * factor), round(7 * factor))
    (crop,) = task.crops(FakeModel(multiple))
    assert all(side % multiple == 0 for side in crop.size)
    assert isinstance(crop.constraint, Linear)
    sample = crop.constraint.project(0.1 * torch.randn(1, 3, *crop.size, generator=torch.Generator().manual_seed(0)))
    assert crop.constraint.residual_norm(sample).item() < 1e-3
    image = task.postprocess([sample[0]], [crop])
    assert (image.size, image.mode) == (task._size[::-1], mode)
    assert residual_levels(np.asarray(image), task) <= 1 / 255
    assert crop.constraint.residual_norm(task.written(sample, crop)).item() <= 2 / 255
    assert task.postprocess_float([sample[0]], [crop]).shape == (1 if mode != "RGB" else 3, *task._size)


@pytest.mark.parametrize(("factor", "kernel"), [(1.5, "area"), (2.7, "area"), (2, "bicubic"), (4, "bicubic")])
def test_the_shipped_model_meets_its_measurement(factor, kernel):
    """In the file, on a picture with black and white, where the range limits what the result can be."""
    picture = np.asarray(image_of("L", 6, 8).resize((32, 24), Image.Resampling.BICUBIC))
    task = Upscale(np.stack([picture, picture[::-1], picture[:, ::-1]], 2), factor, kernel=kernel)
    out = load(None)(task, generator=torch.Generator().manual_seed(0), num_inference_steps=4)
    assert residual_levels(np.asarray(out.images[0]), task) <= 1 / 255
    assert out.residual[0] <= 2 / 255


def test_a_size_instead_of_a_factor():
    """Its aspect ratio may be off by a pixel."""
    assert Upscale(noise(20, 30, 3), size=(50, 75)).size == (50, 75)
    assert Upscale(noise(20, 30, 3), size=(50, 76)).size == (50, 76)
    whole = Upscale(noise(20, 30, 3), size=(40, 60))
    (crop,) = whole.crops(FakeModel(16))
    assert crop.size == (48, 64) and whole._whole_factor == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.49}, "factor = 1.49: give a number from 1.5 to 8"),
        ({"factor": 8.5}, "factor = 8.5: give a number from 1.5 to 8"),
        ({"factor": float("nan")}, "factor = nan: give a number from 1.5 to 8"),
        ({"factor": True}, "factor = True: give a number from 1.5 to 8"),
        ({"kernel": "lanczos"}, "kernel = 'lanczos': give 'area' or 'bicubic'"),
        ({"size": (40, 65)}, r"the size 65x40 \(width x height\) has another aspect ratio than 30x20: 65x43 has it"),
        ({"size": (22, 33)}, r"the size 33x22 \(width x height\) is not from 1.5 to 8 times 30x20"),
        ({"size": (200, 300)}, "is not from 1.5 to 8 times 30x20"),
        ({"size": (40.0, 60)}, r"size = \(40.0, 60\): give \(height, width\) in pixels"),
        ({"factor": 4, "size": (40, 60)}, r"factor = 4 and size = \(40, 60\) are given: give one of them"),
        ({"noise": 5}, "noise = 5: give one number from 0 to 2"),
    ],
)
def test_other_values_are_refused(options, message):
    with pytest.raises(AdhereError, match=message):
        Upscale(noise(20, 30, 3), **options)


def test_numbers_of_numpy_are_numbers():
    picture = noise(20, 30, 3)
    assert Upscale(picture).size == Upscale(picture, np.int64(4), np.float32(0.5)).size == (80, 120)  # type: ignore[arg-type]
    assert Upscale(picture, size=(np.int64(40), np.int64(60))).size == (40, 60)  # type: ignore[arg-type]
