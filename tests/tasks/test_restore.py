"""Restoration and upscaling: the constraint on a model's sizes, and the picture that comes back."""

import numpy as np
import pytest
import torch
from PIL import Image

import adhere
from adhere import AdhereError, Blur, Downsample, Generate, Gray, Linear, Mask, Restore, Upscale
from adhere.core.operators import Identity
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Return a picture uint8 (H, W, 3) as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def pad(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return x (1, 3, H, W) with random pixels at the bottom and the right, which a measurement must not see."""
    padded = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    padded[..., : x.shape[-2], : x.shape[-1]] = x
    return padded


OPERATORS = {
    "identity": Identity(),
    "blur": Blur(1.5),
    "gray": Gray(),
    "downsample": Downsample(3),
    "mask": Mask((torch.arange(30) % 2).float()),
    "function": adhere.operator(lambda x: x.flip(3)[:, :1] + x[:, 1:2], (3, 21, 30)),
    "composition": Gray() @ Blur(1.0),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("multiple", [1, 2, 8, 64])
def test_the_picture_meets_its_measurement_whatever_the_model_needs(name, multiple):
    """Sides of 21 and 30 pixels are odd for most models, which sample a padded picture."""
    picture, A = noise(21, 30, 3), OPERATORS[name]
    x = to_tensor(picture)
    task = Restore(A(x), A, noise=0.02)
    assert task.size == (21, 30)
    (crop,) = task.crops(FakeModel(multiple))
    assert crop.size == tuple(-(-side // multiple) * multiple for side in (21, 30))
    assert isinstance(crop.constraint, Linear)
    assert crop.constraint.noise == 0.02
    padded = pad(x, crop.size)
    assert crop.constraint.residual_norm(padded).item() < 1e-6
    assert np.array_equal(np.asarray(task.postprocess([padded[0]], [crop])), picture)
    floats = task.postprocess_float([padded[0]], [crop])
    assert floats.shape == (3, 21, 30)
    torch.testing.assert_close(floats, (x[0] + 1) / 2, atol=1e-6, rtol=0)


def test_a_measurement_may_be_a_picture_or_in_float64(tmp_path):
    picture = noise(21, 30, 3)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    for y in (picture, tmp_path / "picture.png", Image.fromarray(picture), to_tensor(picture).double()):
        task = Restore(y, Identity())
        assert task.measurement.dtype == torch.float32
        torch.testing.assert_close(task.measurement, to_tensor(picture))


def test_measurements_that_do_not_fit_the_operator_are_refused():
    with pytest.raises(AdhereError, match="operator is a function: give a LinearOperator"):
        Restore(torch.zeros(1, 3, 8, 8), lambda x: x)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(AdhereError, match=r"noise = -1(.0)?: give one number, a standard deviation of at least 0"):
        Restore(torch.zeros(1, 3, 8, 8), Identity(), noise=-1.0)
    with pytest.raises(AdhereError, match=r"A\^T y has shape \(2, 3, 8, 8\): y must measure one RGB picture"):
        Restore(torch.zeros(2, 3, 8, 8), Identity())
    with pytest.raises(AdhereError, match=r"A\^T y has shape \(3, 8, 8\)"):
        Restore(torch.zeros(3, 8, 8), Identity())
    with pytest.raises(AdhereError, match="Restore has the size of its input"):
        Restore(torch.zeros(1, 3, 8, 8), Identity()).crops(FakeModel(), (16, 16))


def test_a_measurement_of_another_size_than_the_function_returns_is_refused():
    A = adhere.operator(lambda x: x[..., ::2, ::2], (3, 8, 8))
    with pytest.raises(AdhereError, match=r"y has shape \(1, 3, 5, 5\), but the operator returns \(1, 3, 4, 4\)"):
        Restore(torch.zeros(1, 3, 5, 5), A)
    with pytest.raises(AdhereError, match=r"A\^T cannot be applied to y of shape \(1, 3, 8, 9\): .* must match"):
        Restore(torch.zeros(1, 3, 8, 9), Mask(torch.ones(1, 1, 8, 8)))


@pytest.mark.parametrize("multiple", [1, 2, 8, 16])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_area_means_of_an_enlarged_picture_are_the_small_one(multiple, factor):
    task = Upscale(noise(7, 10, 3), factor)
    (crop,) = task.crops(FakeModel(multiple))
    assert all(side % multiple == 0 for side in crop.size)
    large = task.picture.tensor().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert isinstance(crop.constraint, Linear)
    means = crop.constraint.operator(pad(large, crop.size))
    torch.testing.assert_close(means[..., :7, :10], crop.constraint.y[..., :7, :10])
    image = task.postprocess([pad(large, crop.size)[0]], [crop])
    assert np.array_equal(np.asarray(image), task.picture.pixels.repeat(factor, 0).repeat(factor, 1))
    assert task.postprocess_float([pad(large, crop.size)[0]], [crop]).shape == (3, 7 * factor, 10 * factor)


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "L"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "LA"), ("P", "RGB")]
)
def test_gray_stays_gray_and_transparency_is_enlarged(mode, expected):
    task = Upscale(image_of(mode, 8, 12), 2)
    (crop,) = task.crops(FakeModel(4))
    image = task.postprocess([torch.zeros(3, *crop.size)], [crop])
    assert image.mode == expected
    assert image.size == (24, 16)


@pytest.mark.parametrize(("mode", "largest"), [("L", 255), ("RGB", 255), ("I;16", 65535)])
def test_the_means_of_the_written_picture_are_the_input_and_so_says_the_residual(mode, largest):
    """Also where clipping and rounding move the sample's own means."""
    task = Upscale(image_of(mode, 8, 12), 4)
    (crop,) = task.crops(FakeModel(16))
    sample = torch.randn(3, *crop.size, generator=torch.Generator().manual_seed(0)) * 2
    pixels = np.asarray(task.postprocess([sample], [crop])).reshape(8, 4, 12, 4, -1)
    assert pixels.dtype == task.picture.pixels.dtype
    assert np.array_equal(pixels.mean((1, 3)), task.picture.pixels)
    floats = task.postprocess_float([sample], [crop]).numpy()
    assert len(floats) == task.picture.pixels.shape[2]
    means = floats.reshape(-1, 8, 4, 12, 4).mean((2, 4)) * largest
    assert np.abs(means.transpose(1, 2, 0) - task.picture.pixels).max() < largest * 1e-5
    written = task.written(sample[None], crop)
    assert crop.constraint.residual_norm(written).item() < crop.constraint.residual_norm(sample[None]).item()
    assert written.shape == sample[None].shape
    shown = (written[0, :, :32, :48].permute(1, 2, 0).double().numpy() + 1) * largest / 2
    given = np.asarray(task.postprocess([sample], [crop])).reshape(32, 48, -1)
    assert np.abs(shown - given).max() < largest * 1e-6


@pytest.mark.parametrize(
    ("multiple", "factor", "size"), [(16, 4, (32, 48)), (16, 3, (48, 48)), (8, 2, (16, 24)), (1, 4, (28, 44))]
)
def test_no_more_is_padded_than_the_model_needs(multiple, factor, size):
    """The sides are the smallest multiples of the model's and of the factor that hold 7 x 11 enlarged pixels."""
    (crop,) = Upscale(noise(7, 11, 3), factor).crops(FakeModel(multiple))
    assert crop.size == size


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_noise_of_a_small_picture_is_that_of_its_measurement(sigma):
    """So the constraint keeps the mean of a sample and of the picture, each as precise as it is."""
    (crop,) = Upscale(noise(8, 12, 3), 4, noise=sigma).crops(FakeModel(4))
    linear = crop.constraint
    assert isinstance(linear, Linear) and linear.noise == sigma
    x0 = torch.zeros(1, 3, *crop.size)
    means = Downsample(4)(linear.project(x0, std=0.1))  # A A^T = 1/16
    torch.testing.assert_close(means, linear.y / (1 + 16 * (sigma / 0.1) ** 2), atol=1e-5, rtol=1e-4)


def test_transparency_is_enlarged_smoothly():
    """As by Pillow's bicubic filter: an edge falls over several pixels and stays where it was."""
    image = np.full((8, 12, 4), 255, np.uint8)
    image[:, 6:, 3] = 0
    task = Upscale(image, 4)
    (crop,) = task.crops(FakeModel(4))
    alpha = np.asarray(task.postprocess([torch.zeros(3, *crop.size)], [crop]))[:, :, 3]
    assert (alpha == alpha[0]).all()
    row = alpha[0].astype(int)
    assert row[0] == 255 and row[-1] == 0
    between = np.flatnonzero((row > 5) & (row < 250))
    assert len(between) >= 4 and between.min() < 24 <= between.max()
    assert -np.diff(row).min() < 100


def test_with_noise_the_means_of_the_sample_are_kept():
    task = Upscale(image_of("RGB", 8, 12), 4, noise=0.1)
    (crop,) = task.crops(FakeModel(16))
    image = task.postprocess([torch.zeros(3, *crop.size)], [crop])
    assert (np.asarray(image) == 128).all()


@pytest.mark.parametrize("hidden", [0, 255])
def test_colors_hidden_under_transparency_do_not_reach_the_outline(hidden):
    image = np.full((8, 12, 4), (200, 120, 60, 255), np.uint8)
    image[:, 6:] = (hidden, hidden, hidden, 0)
    task = Upscale(image, 4)
    (crop,) = task.crops(FakeModel(1))
    assert isinstance(crop.constraint, Linear)
    color = torch.tensor([200.0, 120, 60]).view(1, 3, 1, 1) / 127.5 - 1
    assert torch.allclose(crop.constraint.y, color, atol=1e-5)


def test_gray_pictures_stored_as_rgb_stay_gray():
    gray = noise(8, 12).repeat(3).reshape(8, 12, 3)
    task = Upscale(gray, 2)
    (crop,) = task.crops(FakeModel(1))
    out = np.asarray(task.postprocess([torch.rand(3, *crop.size)], [crop]))
    assert out.shape == (16, 24, 3)
    assert np.ptp(out, axis=2).max() == 0


def test_results_with_too_many_pixels_are_refused():
    with pytest.raises(AdhereError, match="8000x8000 pixels; at most 50,000,000 are allowed"):
        Upscale(np.zeros((2000, 2000), np.uint8), 4)
    with pytest.raises(AdhereError, match="9000x8000 pixels; at most 50,000,000 are allowed"):
        Generate((8000, 9000))


@pytest.mark.parametrize("factor", [1, 0, -2])
def test_a_factor_below_two_is_refused(factor):
    with pytest.raises(AdhereError, match=f"factor = {factor}: give a number from 1.5 to 8"):
        Upscale(noise(7, 10, 3), factor)


def test_a_function_that_is_not_linear_is_refused():
    y = torch.rand(1, 3, 8, 8)
    for fn, message in ((lambda x: 0.5 * x + 0.3, r"A\(0\) is not 0"), (lambda x: x**3, "or A is not linear")):
        with pytest.raises(AdhereError, match=message):
            Restore(y, adhere.operator(fn, (3, 8, 8)))


def test_an_operator_that_returns_no_tensor_is_refused_in_one_line():
    with pytest.raises(AdhereError, match=r"A\^T cannot be applied to y of shape \(1, 3, 8, 8\)"):
        Restore(torch.zeros(1, 3, 8, 8), adhere.operator(lambda x: None, (3, 8, 8)))
