"""Style: the loss on the features of a reference."""

import numpy as np
import pytest
import torch

from adhere import Style
from tests.picture_files import noise
from tests.tasks.fake_model import FakeModel


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Return an RGB picture as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_the_reference_itself_has_the_style_and_other_pictures_do_not(size):
    picture = noise(*size, 3)
    (crop,) = Style(picture, features=lambda x: [x, x[..., ::2, ::2].square()]).crops(FakeModel(16, size))
    x = to_tensor(picture)
    assert crop.size == size
    assert crop.constraint.residual_norm(x).item() < 1e-5
    assert crop.constraint.residual_norm(0.3 * x).item() > 0.1
    assert crop.constraint.neg_grad(0.3 * x).abs().max() > 0


def test_the_reference_is_resized_to_the_scale_of_the_picture():
    shapes = []

    def features(x):
        shapes.append(tuple(x.shape))
        return [x]

    (crop,) = Style(noise(200, 100, 3), size=(32, 64), features=features).crops(FakeModel(8))
    crop.constraint.residual_norm(torch.zeros(1, 3, 32, 64))
    assert shapes == [(1, 3, 32, 64), (1, 3, 64, 32)]


def test_a_shifted_pattern_is_nearer_to_the_style_than_its_mean_color():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, np.arange(64) % 8 < 4] = 255
    (crop,) = Style(stripes).crops(FakeModel(8))
    shifted, mean = (
        float(crop.constraint.residual_norm(to_tensor(picture)))
        for picture in (np.roll(stripes, 4, axis=1), np.full_like(stripes, 127))
    )
    assert shifted < 0.3 * mean


def test_the_default_features_have_gradients_even_if_the_task_is_made_in_inference_mode():
    with torch.inference_mode():
        (crop,) = Style(noise(48, 64, 3), (32, 32)).crops(FakeModel())
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert crop.constraint.neg_grad(x).abs().max() > 0
