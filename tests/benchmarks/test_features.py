import numpy as np
import pytest
import skimage
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from adhere.features import STRIDES, _prepare
from benchmarks.features import FeatureDistance, frechet_distance, gaussian_frechet_distance
from tests.core.exact import seeded


@pytest.fixture(scope="module")
def distance():
    return FeatureDistance()


@pytest.fixture(scope="module")
def chelsea():
    """The head of the cat, (1, 3, 256, 256) in [-1, 1]."""
    picture = torch.from_numpy(skimage.data.chelsea()[:256, 100:356].copy()).permute(2, 0, 1)[None]
    return picture / 127.5 - 1


def test_chelsea_is_a_cat(distance, chelsea):
    """Wrong weights, channel order or scaling would not survive this."""
    small = interpolate(chelsea, (224, 224), mode="bilinear", antialias=True)
    assert 281 <= distance.network(_prepare(small)).argmax().item() <= 285  # the five domestic cats of ImageNet


def test_features_halve_in_size(distance, chelsea):
    shapes = [tuple(f.shape[2:]) for f in distance.features(chelsea)]
    assert shapes == [(256 // s, 256 // s) for s in STRIDES]


def test_zero_for_identical_pictures_and_symmetric(distance, chelsea):
    other = chelsea.flip(3)
    assert distance(chelsea, chelsea).item() == 0
    torch.testing.assert_close(distance(chelsea, other), distance(other, chelsea))
    assert distance(chelsea, other).item() > 0.05


def test_each_pair_of_a_batch_counts_alone(distance, chelsea):
    a, b = torch.cat([chelsea, chelsea]), torch.cat([chelsea.flip(3), chelsea])
    distance.train()  # must not bring batch statistics in
    torch.testing.assert_close(distance(a, b), torch.stack([distance(chelsea, chelsea.flip(3))[0], torch.tensor(0.0)]))


def grows(values):
    return values[0] > 0 and all(np.diff(values) > 0)


def test_grows_with_blur(distance, chelsea):
    blurred = [torch.from_numpy(gaussian_filter(chelsea.numpy(), (0, 0, s, s))) for s in (0.5, 1, 2, 4, 8)]
    assert grows([distance(chelsea, b).item() for b in blurred])


def test_grows_with_noise(distance, chelsea):
    noise = torch.randn(chelsea.shape, generator=torch.Generator().manual_seed(0))
    assert grows([distance(chelsea, chelsea + s * noise).item() for s in (0.02, 0.05, 0.1, 0.3, 0.6)])


def test_any_size_and_a_gradient(distance):
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


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """In one dimension (m - n)^2 + (s - t)^2; for commuting covariances the same in each of their directions."""
    one = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    assert gaussian_frechet_distance(one(1.0), one(4.0)[None], one(3.0), one(9.0)[None]) == pytest.approx(4 + 1)
    generator = seeded(0)
    basis = torch.linalg.qr(covariance(5, generator)).Q
    s, t = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    s[0] = 0  # singular
    m, n = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    found = gaussian_frechet_distance(m, (basis * s**2) @ basis.T, n, (basis * t**2) @ basis.T)
    assert found == pytest.approx(float((m - n).square().sum() + (s - t).square().sum()))


@pytest.mark.parametrize("rank", [2, 6])
def test_frechet_distance_is_a_distance(rank):
    """Also of covariances of less than full rank, as those of few pictures are."""
    generator = seeded(1)
    zero = torch.zeros(6, dtype=torch.float64)
    a, b = covariance(6, generator, rank), covariance(6, generator, rank)
    there, back = gaussian_frechet_distance(zero, a, zero, b), gaussian_frechet_distance(zero, b, zero, a)
    assert there == pytest.approx(back)
    assert there > 0.1
    assert gaussian_frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_samples_nears_that_of_their_gaussians():
    generator = seeded(2)
    sets = [
        torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, scale]) + shift
        for scale, shift in ((1, 0), (3, 2))
    ]
    assert frechet_distance(*sets) == pytest.approx(2 * 2**2 + (3 - 1) ** 2, rel=0.05)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(sets[0], sets[1][:1])


def test_frechet_distance_grows_with_noise_on_pictures(distance, chelsea):
    patches = chelsea.unfold(2, 64, 32).unfold(3, 64, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 64)
    noise = torch.randn(patches.shape, generator=seeded(3))
    truth = distance.pooled(patches)
    assert truth.shape == (49, 320)
    assert grows([frechet_distance(distance.pooled(patches + s * noise), truth) for s in (0.05, 0.2, 0.8)])
