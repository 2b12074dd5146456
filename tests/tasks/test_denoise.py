"""Denoising: the constraint, the estimate of the noise, and the picture that comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adhere import AdhereError, Denoise, Linear
from adhere.core.operators import Identity
from benchmarks.two_networks import other_picture
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel
from tests.tiny_models import load


def linear_of(task: Denoise, multiple: int = 8) -> tuple[Linear, tuple[int, int]]:
    (crop,) = task.crops(FakeModel(multiple))
    assert isinstance(crop.constraint, Linear) and isinstance(crop.constraint.operator, Identity)
    return crop.constraint, crop.size


def test_the_measurement_is_the_picture_padded_to_the_models_multiple():
    picture = noise(21, 30, 3)
    linear, size = linear_of(Denoise(picture, 0.1))
    assert (size, linear.noise) == ((24, 32), 0.1)
    torch.testing.assert_close(linear.y[0, :, :21, :30], torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1)


def test_gray_noise_becomes_noise_of_equal_strength_along_all_axes_of_color():
    """The gray axis has noise sqrt(3) n, and so have the two others, with means of 0."""
    linear, _ = linear_of(Denoise(np.full((128, 128), 100, np.uint8), 0.1))
    assert linear.noise == pytest.approx(0.1 * 3**0.5)
    torch.testing.assert_close(linear.y.mean(1), torch.full((1, 128, 128), 100 / 127.5 - 1), atol=1e-6, rtol=0)
    chroma = linear.y - linear.y.mean(1, keepdim=True)
    per_axis = chroma.square().sum(1).mean() / 2
    assert float(per_axis.sqrt()) == pytest.approx(linear.noise, rel=0.02)  # of 32,768 numbers: 0.4 % each


@settings(max_examples=20, deadline=None)
@given(st.floats(1, 40), st.integers(0, 1000))
def test_the_estimate_of_the_noise(sigma, seed):
    """On a ramp; the standard error of the median is 1.4 %, and the band has only whole and half levels."""
    ramp = np.linspace(100, 150, 128)[:, None] + np.linspace(0, 20, 128)
    noisy = ramp[..., None] + np.random.default_rng(seed).normal(0, sigma, (128, 128, 3))
    task = Denoise(noisy.clip(0, 255).round().astype(np.uint8))
    assert task.noise == pytest.approx(sigma / 127.5, rel=0.07, abs=(0.5 / 0.6745 + 0.1) / 127.5)


@pytest.mark.parametrize("name", ["retina.jpg", "ihc.png", "brick.png", "moon.png"])
@pytest.mark.parametrize(("quality", "subsampling", "sigma"), [(95, 0, 25), (95, 2, 25), (85, 2, 25), (95, 2, 15)])
def test_the_estimate_from_a_jpeg_file(tmp_path, name, quality, subsampling, sigma):
    """Chroma that is subsampled (2) leaves two thirds of the noise in each channel; compression adds up to a tenth."""
    noisy = other_picture(name) + np.random.default_rng(0).normal(0, sigma, (256, 256, 3))
    file = tmp_path / "noisy.jpg"
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, quality=quality, subsampling=subsampling)
    assert Denoise(file).noise == pytest.approx(sigma / 127.5, rel=0.15)


@pytest.mark.parametrize("offset", [0, 1])
def test_the_estimate_of_gray_noise(offset):
    """In a gray picture, it is that of one channel; in a colored one, that of the gray axis, as the model needs it.

    Noise n in all channels is noise of 1 n in the luma, which independent noise of n / 0.668 has as well.
    """
    noisy = (np.full((128, 128, 1), 100) + np.random.default_rng(0).normal(0, 20, (128, 128, 1))).round()
    task = Denoise((noisy + offset * np.array([0, 10, 20])).astype(np.uint8))
    assert task.noise == pytest.approx((20 / 0.668 if offset else 20) / 127.5, rel=0.05)


def test_a_flat_picture_and_one_pixel_have_no_noise():
    assert Denoise(np.full((9, 9), 7, np.uint8)).noise == 0
    assert Denoise(np.full((1, 1), 7, np.uint8)).noise == 0


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "L"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "LA"), ("P", "RGB"), ("I;16", "I;16")]
)
def test_the_result_has_the_mode_of_the_picture(mode, expected):
    task = Denoise(image_of(mode, 8, 12), 0.1)
    (crop,) = task.crops(FakeModel(8))
    sample = torch.rand(3, *crop.size, generator=torch.Generator().manual_seed(0))
    image = task.postprocess([sample], [crop])
    assert (image.mode, image.size) == (expected, (12, 8))
    assert task.postprocess_float([sample], [crop]).shape == (1 if mode[0] in "LI" else 3, 8, 12)
    largest = 65535 if mode == "I;16" else 255
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32)).reshape(8, 12, -1)
    shown = pixels[..., : 1 if mode[0] in "LI" else 3].permute(2, 0, 1) / (largest / 2) - 1
    torch.testing.assert_close(
        task.written(sample[None], crop)[0, :, :8, :12], shown.expand(3, 8, 12), atol=1e-6, rtol=0
    )


def test_gray_pictures_stored_as_rgb_stay_gray():
    task = Denoise(noise(8, 12).repeat(3).reshape(8, 12, 3), 0.1)
    (crop,) = task.crops(FakeModel())
    assert np.ptp(np.asarray(task.postprocess([torch.rand(3, *crop.size)], [crop])), axis=2).max() == 0


def test_one_evaluation_for_the_mean_and_a_whole_run_for_a_sample():
    """The mean depends on no seed, samples do; the mean has less noise than the input and than a sample."""
    pipe = load(None)
    original = np.asarray(Image.linear_gradient("L").resize((64, 64)))
    original = np.stack([original, original[::-1], original.T], 2)
    noisy = original + np.random.default_rng(0).normal(0, 25, original.shape)
    noisy = noisy.clip(0, 255).round().astype(np.uint8)

    def result(task, seed, **options):
        return pipe(task, generator=torch.Generator().manual_seed(seed), output_type="np", **options)

    def error(out) -> float:
        return float(np.sqrt(np.square(255 * out.images[0] - original).mean()))

    mean, again = (result(Denoise(noisy, 50 / 255), seed) for seed in (0, 1))
    assert mean.nfe == 1 and np.array_equal(mean.images, again.images)
    assert error(mean) < 10 < 20 < np.sqrt(np.square(noisy.astype(float) - original).mean())
    samples = [result(Denoise(noisy, 50 / 255, sample=True), seed, num_inference_steps=4) for seed in (0, 1)]
    assert samples[0].nfe == 4 and not np.array_equal(samples[0].images, samples[1].images)
    chosen = result(Denoise(noisy, 50 / 255), 0, solver="ddnm", num_inference_steps=3)
    assert (chosen.nfe, chosen.solver) == (3, "ddnm")
    batch = result([Denoise(noisy, 50 / 255), Denoise(noisy, 50 / 255, sample=True)], 0, num_inference_steps=4)
    assert batch.nfe == 5 and np.abs(batch.images[0] - mean.images[0]).max() < 1e-5


@pytest.mark.parametrize("value", [-0.1, float("nan"), 25.0, "0.1", True])
def test_noise_out_of_range_is_refused(value):
    with pytest.raises(AdhereError, match=r"noise = .*: give one number from 0 to 2"):
        Denoise(noise(8, 8, 3), value)


def test_latent_models_and_a_size_are_refused():
    with pytest.raises(AdhereError, match="Denoise needs a pixel-space model"):
        Denoise(noise(8, 8, 3), 0.1).crops(FakeModel(is_latent=True))
    with pytest.raises(AdhereError, match="Denoise has the size of its input"):
        Denoise(noise(8, 8, 3), 0.1).crops(FakeModel(), (16, 16))
    with pytest.raises(TypeError, match="twice the --sigma of the command line"):
        Denoise(noise(8, 8, 3), sigma=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
