"""Metrics: PSNR and distances on EfficientNet-Lite0 features."""

import math

import numpy as np
import pytest
import skimage
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from adhere.features import _normalize
from adhere.metrics import FeatureDistance, _gaussian_frechet_distance, frechet_distance, psnr


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def distance():
    return FeatureDistance()


@pytest.fixture(scope="module")
def chelsea():
    """The head of the cat, (1, 3, 256, 256) in [-1, 1]."""
    picture = torch.from_numpy(skimage.data.chelsea()[:256, 100:356].copy()).permute(2, 0, 1)[None]
    return picture / 127.5 - 1


def test_the_network_classifies_a_cat_as_a_cat(distance, chelsea):
    """This fails for wrong weights, channel order or scaling."""
    small = interpolate(chelsea, (224, 224), mode="bilinear", antialias=True)
    assert 281 <= distance.network(_normalize(small)).argmax().item() <= 285  # the five domestic cats of ImageNet


def test_each_stage_halves_the_resolution(distance, chelsea):
    shapes = [tuple(f.shape[2:]) for f in distance.features(chelsea)]
    assert shapes == [(256 // s, 256 // s) for s in distance.strides]


def test_the_distance_is_zero_for_identical_pictures_and_symmetric(distance, chelsea):
    other = chelsea.flip(3)
    assert distance(chelsea, chelsea).item() == 0
    torch.testing.assert_close(distance(chelsea, other), distance(other, chelsea))
    assert distance(chelsea, other).item() > 0.05


def test_each_pair_of_a_batch_equals_a_single_pair(distance, chelsea):
    a, b = torch.cat([chelsea, chelsea]), torch.cat([chelsea.flip(3), chelsea])
    distance.train()  # must not enable batch statistics
    torch.testing.assert_close(distance(a, b), torch.stack([distance(chelsea, chelsea.flip(3))[0], torch.tensor(0.0)]))


def is_increasing(values):
    return values[0] > 0 and all(np.diff(values) > 0)


def test_the_distance_increases_with_blur(distance, chelsea):
    blurred = [torch.from_numpy(gaussian_filter(chelsea.numpy(), (0, 0, s, s))) for s in (0.5, 1, 2, 4, 8)]
    assert is_increasing([distance(chelsea, b).item() for b in blurred])


def test_the_distance_increases_with_noise(distance, chelsea):
    noise = torch.randn(chelsea.shape, generator=seeded(0))
    assert is_increasing([distance(chelsea, chelsea + s * noise).item() for s in (0.02, 0.05, 0.1, 0.3, 0.6)])


def test_any_size_works_and_has_a_gradient(distance):
    a, b = torch.rand(2, 1, 3, 45, 70) * 2 - 1
    a.requires_grad_()
    distance(a, b).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 16, 64)])
def test_wrong_shapes_are_refused(distance, shape):
    with pytest.raises(ValueError, match="B, 3, H, W"):
        distance(torch.zeros(shape), torch.zeros(shape))


def covariance(size, generator, rank=None):
    root = torch.randn(size, rank or size, generator=generator, dtype=torch.float64)
    return root @ root.T


def test_frechet_distance_of_gaussians_has_its_closed_form():
    """(m - n)^2 + (s - t)^2 in one dimension, and along each common eigenvector of commuting covariances."""
    one = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    assert _gaussian_frechet_distance(one(1.0), one(4.0)[None], one(3.0), one(9.0)[None]) == pytest.approx(4 + 1)
    generator = seeded(0)
    basis = torch.linalg.qr(covariance(5, generator)).Q
    s, t = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    s[0] = 0  # singular
    m, n = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    distance = _gaussian_frechet_distance(m, (basis * s**2) @ basis.T, n, (basis * t**2) @ basis.T)
    assert distance == pytest.approx(float((m - n).square().sum() + (s - t).square().sum()))


@pytest.mark.parametrize("rank", [2, 6])
def test_frechet_distance_is_symmetric_positive_and_zero_for_equal_gaussians(rank):
    """Also for covariances of less than full rank, as of few pictures."""
    generator = seeded(1)
    zero = torch.zeros(6, dtype=torch.float64)
    a, b = covariance(6, generator, rank), covariance(6, generator, rank)
    a_to_b, b_to_a = _gaussian_frechet_distance(zero, a, zero, b), _gaussian_frechet_distance(zero, b, zero, a)
    assert a_to_b == pytest.approx(b_to_a)
    assert a_to_b > 0.1
    assert _gaussian_frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_samples_is_close_to_that_of_their_gaussians():
    generator = seeded(2)
    sets = [
        torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, scale]) + shift
        for scale, shift in ((1, 0), (3, 2))
    ]
    assert frechet_distance(*sets) == pytest.approx(2 * 2**2 + (3 - 1) ** 2, rel=0.05)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(sets[0], sets[1][:1])


def test_frechet_distance_increases_with_noise_on_pictures(distance, chelsea):
    patches = chelsea.unfold(2, 64, 32).unfold(3, 64, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 64)
    noise = torch.randn(patches.shape, generator=seeded(3))
    reference = distance.pooled(patches)
    assert reference.shape == (49, 320)
    assert is_increasing([frechet_distance(distance.pooled(patches + s * noise), reference) for s in (0.05, 0.2, 0.8)])


def test_psnr_of_a_constant_difference_and_of_identical_pictures():
    a = torch.zeros(3, 3, 8, 8)
    b = a + torch.tensor([0.0, 0.2, 2.0]).view(3, 1, 1, 1)
    assert psnr(a, b).tolist() == [math.inf, pytest.approx(20, abs=1e-5), 0]
    assert psnr(a, a + 255, data_range=255).tolist() == [0, 0, 0]
    assert psnr(a[0, :1].flatten()[None], b[1, :1].flatten()[None]).item() == pytest.approx(20, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_psnr_counts_only_pixels_inside_the_mask(dtype):
    a, b = torch.rand(2, 2, 3, 8, 8, generator=seeded(4))
    mask = torch.zeros(1, 1, 8, 8, dtype=dtype)
    mask[..., 2:5, 3:7] = 1
    torch.testing.assert_close(psnr(a, b, mask), psnr(a[..., 2:5, 3:7], b[..., 2:5, 3:7]))
