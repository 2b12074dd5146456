import numpy as np
import pytest
import skimage
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from benchmarks.features import STRIDES, FeatureDistance


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
    assert 281 <= distance.classify(small).argmax().item() <= 285  # the five domestic cats of ImageNet


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
