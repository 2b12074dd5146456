"""Custom, Layout, Silhouette and Style: on a tiny Stable Diffusion, and what their constraints ask of a picture."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import adhere
from adhere import Custom, Layout, Linear, Loss, Silhouette, Style
from tests.picture_files import hole, noise, refusal
from tests.tasks.fake_model import FakeModel
from tests.tiny_latent_models import tiny_sd

TASKS = {
    "custom": lambda: Custom(Loss(lambda x: x.square().mean((1, 2, 3)))),
    "layout": lambda: Layout(noise(40, 30, 3)),
    "silhouette": lambda: Silhouette(hole(40, 30)),
    "style": lambda: Style(noise(40, 30, 3), features=lambda x: [x]),
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    pipe = adhere.from_pipe(tiny_sd(tmp_path_factory.mktemp("tokenizer")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_tensor(image) -> torch.Tensor:
    """Return a picture as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("backward", [False, True])
def test_stable_diffusion_runs_a_batch_with_a_prompt(sd, task, backward):
    out = sd(TASKS[task](), "a cat", num_inference_steps=2, num_images_per_prompt=2, decoder_backward=backward)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    assert len(out.residual) == 2
    assert all(math.isfinite(residual) for residual in out.residual)
    assert out.solver == "moment_matching"


def test_stable_diffusion_runs_style_by_efficientnet(sd):
    out = sd(Style(noise(50, 70, 3)), num_inference_steps=1)
    assert 0 < out.residual[0] < math.inf


@pytest.mark.parametrize(("size", "cells", "side"), [((64, 64), 8, 8), ((64, 96), 3, 16), ((40, 64), 100, 1)])
def test_layout_gives_the_means_over_squares(size, cells, side):
    picture = noise(*size, 3)
    (crop,) = Layout(picture, cells=cells, noise=0.2, size=size).crops(FakeModel(8))
    linear = crop.constraint
    assert isinstance(linear, Linear)
    assert linear.noise == 0.2
    assert linear.y.shape == (1, 3, size[0] // side, size[1] // side)
    assert linear.residual_norm(to_tensor(picture)).item() < 1e-6


def test_layout_is_stretched_to_the_size():
    half = np.zeros((10, 30, 3), np.uint8)
    half[:, 15:] = 255
    (crop,) = Layout(half, cells=2).crops(FakeModel(8))
    assert isinstance(crop.constraint, Linear)
    assert crop.constraint.y[0, 0].tolist() == [[-1, 1], [-1, 1]]


def test_every_kind_of_mask_gives_the_same_silhouette():
    inside = hole(40, 30)
    cut_out = np.dstack([noise(40, 30, 3), inside.astype(np.uint8) * 255])
    given = [inside, inside.astype(np.uint8) * 255, Image.fromarray(inside), Image.fromarray(cut_out)]
    for mask in given:
        assert np.array_equal(Silhouette(mask).object_mask, inside)


def test_a_picture_of_the_silhouette_has_the_least_loss():
    inside = hole(64, 64)
    shape = np.where(inside, 0, 255)[..., None].repeat(3, 2).astype(np.uint8)
    (crop,) = Silhouette(inside).crops(FakeModel(8))
    right, wrong = (float(crop.constraint.residual_norm(to_tensor(picture))) for picture in (shape, 255 - shape))
    assert right < 0.05
    assert wrong > 5
    (crop,) = Silhouette(inside, background=(0, 0, 0)).crops(FakeModel(8))
    assert float(crop.constraint.residual_norm(to_tensor(255 - shape))) < 0.05


def test_the_reference_of_a_style_has_the_scale_of_the_picture():
    shapes = []

    def features(x):
        shapes.append(tuple(x.shape))
        return [x]

    (crop,) = Style(noise(200, 100, 3), size=(32, 64), features=features).crops(FakeModel(8))
    crop.constraint.residual_norm(torch.zeros(1, 3, 32, 64))
    assert shapes == [(1, 3, 32, 64), (1, 3, 64, 32)]


def test_the_reference_moved_has_less_loss_than_its_mean_color():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, np.arange(64) % 8 < 4] = 255
    (crop,) = Style(stripes).crops(FakeModel(8))
    moved, mean = (
        float(crop.constraint.residual_norm(to_tensor(picture)))
        for picture in (np.roll(stripes, 4, axis=1), np.full_like(stripes, 127))
    )
    assert moved < 0.3 * mean


def test_files_that_do_not_exist_are_refused_when_the_request_is_made(tmp_path):
    for task in (Layout, Silhouette, Style):
        assert "no such file" in refusal(task, tmp_path / "none.png")


def test_a_layout_with_noise_out_of_range_is_refused():
    for value in (-1.0, math.nan):
        assert f"noise = {value:g}" in refusal(Layout, noise(24, 31, 3), noise=value)
