"""Deblurring: point spread functions, the larger scene, and the picture that comes back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn.functional import pad

from adhere import AdhereError, Convolve, Deblur, Linear, MomentMatching
from adhere.tasks._photo import thorough_sampler
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel
from tests.tiny_models import load


def kernel_of(psf) -> torch.Tensor:
    return Deblur(noise(8, 8, 3), psf).kernel


def moments(kernel: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (x, y) from the middle, y upwards, and the covariance of a kernel as a distribution."""
    height, width = kernel.shape
    y, x = np.meshgrid(height // 2 - np.arange(height), np.arange(width) - width // 2, indexing="ij")
    points, weights = np.stack([x.ravel(), y.ravel()]), kernel.double().numpy().ravel()
    mean = points @ weights
    return mean, (points * weights) @ points.T - np.outer(mean, mean)


def test_a_gaussian_is_that_of_scipy():
    point = np.zeros((33, 33))
    point[16, 16] = 1
    expected = gaussian_filter(point, 2.5, truncate=4)[6:27, 6:27]
    assert kernel_of("gaussian:2.5").shape == (21, 21)
    np.testing.assert_allclose(kernel_of("gaussian:2.5").numpy(), expected, atol=1e-6)


@given(st.floats(2, 30))
@settings(max_examples=20, deadline=None)
def test_a_disk_has_the_variance_of_a_disk(radius):
    """R^2 / 4 per axis, and about 1/12 of a pixel."""
    mean, covariance = moments(kernel_of(f"disk:{radius}"))
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    np.testing.assert_allclose(covariance, np.eye(2) * (radius**2 / 4 + 1 / 12), atol=0.1 + 0.01 * radius)


@given(st.floats(1, 60), st.floats(-360, 360))
@settings(max_examples=20, deadline=None)
def test_a_motion_goes_counter_clockwise_from_the_right(length, angle):
    """The variance of a line is L^2 / 12 along it; interpolation adds at most 1/4 across and along."""
    mean, covariance = moments(kernel_of(f"motion:{length},{angle}"))
    along = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    across = np.array([-along[1], along[0]])
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    assert length**2 / 12 - 1e-2 <= along @ covariance @ along <= length**2 / 12 + 0.3
    assert across @ covariance @ across <= 0.3


def test_a_picture_is_divided_by_its_sum_and_even_sides_are_padded(tmp_path):
    picture = np.zeros((4, 6), np.uint8)
    picture[1:3, 2:4] = (100, 50), (25, 25)
    Image.fromarray(picture).save(tmp_path / "psf.png")
    expected = pad(torch.from_numpy(picture).float() / 200, (0, 1, 0, 1))
    paths, wide = (tmp_path / "psf.png", str(tmp_path / "psf.png")), picture.astype(np.int64)
    for psf in (*paths, picture, picture / 255, torch.from_numpy(picture / 9), wide, wide.tolist(), tuple(wide)):
        torch.testing.assert_close(kernel_of(psf), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_picture_is_the_middle_of_a_larger_scene(multiple):
    """Whose border takes part in the blur: a scene of random pixels meets its measurement, and comes back."""
    scene = noise(30, 41, 3)
    kernel = Deblur(noise(8, 8, 3), "motion:5,20").kernel
    x = torch.from_numpy(scene).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = Convolve(kernel)(x)
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    task = Deblur(((y[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy(), "motion:5,20", 0.01)
    (crop,) = task.crops(FakeModel(multiple))
    assert crop.size == tuple(-(-side // multiple) * multiple for side in (30, 41))
    assert isinstance(crop.constraint, Linear) and crop.constraint.noise == 0.01
    padded = torch.rand(1, 3, *crop.size, generator=torch.Generator().manual_seed(0))
    padded[..., :30, :41] = x
    assert crop.constraint.residual_norm(padded).item() < 1 / 255  # y was rounded to 8 bits
    middle = scene[top:-top, left:-left]
    assert np.array_equal(np.asarray(task.postprocess([padded[0]], [crop])), middle)
    assert crop.constraint.residual_norm(task.written(padded, crop)).item() < 1 / 255
    assert task.postprocess_float([padded[0]], [crop]).shape == (3, *middle.shape[:2])


def test_the_memory_of_conjugate_residuals_is_bounded():
    """Two arrays of three float32 channels per iteration: about 1 GB, or six iterations."""
    for side, expected in ((100, 20), (1800, 12), (7000, 6)):
        solver = thorough_sampler((side, side), 20).solver
        assert isinstance(solver, MomentMatching) and solver.num_iterations == expected
    (crop,) = Deblur(noise(8, 8, 3), "disk:1").crops(FakeModel())
    assert crop.sampler == thorough_sampler(crop.size, 20)
    (crop,) = Deblur(noise(8, 8, 3), "disk:1").crops(FakeModel(is_latent=True))
    assert crop.sampler is None


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_the_result_has_the_mode_of_the_picture(mode):
    task = Deblur(image_of(mode, 8, 12), "disk:1")
    (crop,) = task.crops(FakeModel(8))
    image = task.postprocess([torch.zeros(3, *crop.size)], [crop])
    assert (image.mode, image.size) == (mode, (12, 8))


def test_the_shipped_model_sharpens_up_to_the_border():
    """The error of the outer six pixels of a checkerboard falls as that inside does, within 2 dB, and to a quarter."""
    x = np.arange(76) - 6
    scene = 128 + 90 * np.sign(np.sin(x[:, None] / 5) * np.cos(x / 7)) * np.ones((76, 76))
    blurred = gaussian_filter(scene, 1.5, truncate=4)[6:-6, 6:-6].round().astype(np.uint8)
    out = load(None)(Deblur(blurred, "gaussian:1.5"), generator=torch.Generator().manual_seed(0))
    error = np.square(np.asarray(out.images[0]).astype(float) - scene[6:-6, 6:-6])
    before = np.square(blurred - scene[6:-6, 6:-6])
    rim = np.ones((64, 64), bool)
    rim[6:-6, 6:-6] = False
    assert error.mean() < before.mean() / 4
    assert error[rim].mean() / before[rim].mean() < 10**0.2 * error[~rim].mean() / before[~rim].mean()


@pytest.mark.parametrize(
    ("psf", "message"),
    [
        ("gauss:2", "no such file; give gaussian:SIGMA, motion:LENGTH,ANGLE or disk:RADIUS or a gray picture"),
        ("gaussian:x", "give gaussian:SIGMA, motion:LENGTH,ANGLE or disk:RADIUS, in numbers"),
        ("motion:5", "give gaussian:SIGMA, motion:LENGTH,ANGLE or disk:RADIUS, in numbers"),
        ("disk:1,2", "give gaussian:SIGMA, motion:LENGTH,ANGLE or disk:RADIUS, in numbers"),
        ("gaussian:0", "psf 'gaussian:0': give a SIGMA from 0.1 to 25 pixels"),
        ("gaussian:nan", "psf 'gaussian:nan': give a SIGMA from 0.1 to 25 pixels"),
        ("disk:101", "give a RADIUS from 0.1 to 100 pixels"),
        ("disk:0.05", "give a RADIUS from 0.1 to 100 pixels"),
        ("motion:5,nan", "psf 'motion:5,nan': give a finite ANGLE"),
        ("gaussian", "psf 'gaussian': no such file; give gaussian:SIGMA"),
        ("", "psf '': no such file"),
        ("missing.png", "no such file"),
        (np.zeros((3, 3), np.uint8), "the psf is black everywhere, all values are 0: give the picture of a point"),
        (torch.tensor([[1.0, -0.1]]), "finite numbers of at least 0"),
        (torch.ones(1, 3, 3), "finite numbers of at least 0"),
        ([[1, 2], [3]], "the psf must be numbers"),
        ([1, 2], "the psf must be"),
        (np.ones((300, 2), np.uint8), "the psf has 2x300 pixels: at most 201 per side"),
        (noise(3, 3, 3), "a picture with colors: give a gray one"),
    ],
)
def test_point_spread_functions_that_are_refused(psf, message):
    with pytest.raises(AdhereError, match=message):
        Deblur(noise(8, 8, 3), psf)


def test_the_smallest_disk_is_a_point():
    assert kernel_of("disk:0.1")[1, 1] == 1
