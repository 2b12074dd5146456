"""Layout, Silhouette and Style: the constraint each states, what it refuses, and a tiny Stable Diffusion running it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, ConstrainedPipeline
from adhere.core.constraints import Linear
from adhere.tasks import Layout, Silhouette, Style
from tests.picture_files import hole, noise
from tests.test_tasks import Model
from tests.tiny_latent_models import tiny_sd

NATIVE = Model(multiple=8)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    pipe = ConstrainedPipeline.from_pipe(tiny_sd(tmp_path_factory.mktemp("tokenizer")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tensor(image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def refusal(task, *args, **kwargs) -> str:
    with pytest.raises(AdhereError) as caught:
        task(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TASKS = {
    "layout": lambda size=None: Layout(noise(40, 30, 3), size=size),
    "silhouette": lambda size=None: Silhouette(hole(40, 30), size=size),
    "style": lambda size=None: Style(noise(40, 30, 3), size=size, features=lambda x: [x]),
}


@pytest.mark.parametrize("task", TASKS)
def test_size_is_the_models_own_unless_told(task):
    for size in (None, (32, 64)):
        (window,) = TASKS[task](size).windows(NATIVE)
        assert window.size == (size or (64, 64))
        x = torch.rand(2, 3, *window.size)
        assert window.constraint.direction(x).shape == x.shape
        assert window.constraint.error(x).shape == (2,)
    with pytest.raises(AdhereError, match="multiples of 8; 64x32 is near"):
        TASKS[task]((33, 64)).windows(NATIVE)


@pytest.mark.parametrize("task", TASKS)
def test_finish_gives_the_sample_as_it_is(task):
    x = tensor(noise(64, 64, 3))[0]
    image = TASKS[task]().finish([x], [])
    assert image.mode == "RGB"
    torch.testing.assert_close(tensor(image)[0], x)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("backward", [False, True])
def test_stable_diffusion_runs_it(sd, task, backward):
    """Under inference mode, through the encoder or the decoder, a batch with a prompt."""
    out = sd(TASKS[task](), "a cat", num_inference_steps=2, batch_size=2, decoder_backward=backward)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    assert len(out.error) == 2
    assert all(math.isfinite(error) for error in out.error)
    assert out.solver == "moment_matching_calm"


def test_stable_diffusion_runs_style_by_efficientnet(sd):
    out = sd(Style(noise(50, 70, 3)), num_inference_steps=1)
    assert 0 < out.error[0] < math.inf


@pytest.mark.parametrize(("size", "cells", "side"), [((64, 64), 8, 8), ((64, 96), 3, 16), ((40, 64), 100, 1)])
def test_layout_asks_for_the_means_over_squares(size, cells, side):
    picture = noise(*size, 3)
    (window,) = Layout(picture, cells=cells, noise=0.2, size=size).windows(NATIVE)
    linear = window.constraint
    assert isinstance(linear, Linear)
    assert linear.noise == 0.2
    assert linear.y.shape == (1, 3, size[0] // side, size[1] // side)
    assert linear.error(tensor(picture)).item() < 1e-6


def test_layout_is_stretched_to_the_size():
    half = np.zeros((10, 30, 3), np.uint8)
    half[:, 15:] = 255
    (window,) = Layout(half, cells=2).windows(NATIVE)
    assert window.constraint.y[0, 0].tolist() == [[-1, 1], [-1, 1]]


def test_silhouettes_from_all_that_can_say_inside():
    inside = hole(40, 30)
    clear = np.dstack([noise(40, 30, 3), inside.astype(np.uint8) * 255])
    given = [inside, inside.astype(np.uint8) * 255, Image.fromarray(inside), Image.fromarray(clear)]
    for mask in given:
        assert np.array_equal(Silhouette(mask).inside, inside)


def test_a_picture_of_the_silhouette_costs_less_than_any_other():
    inside = hole(64, 64)
    shape = np.where(inside, 0, 255)[..., None].repeat(3, 2).astype(np.uint8)
    (window,) = Silhouette(inside).windows(NATIVE)
    right, wrong = (float(window.constraint.error(tensor(picture))) for picture in (shape, 255 - shape))
    assert right < 0.05
    assert wrong > 5
    (window,) = Silhouette(inside, background=(0, 0, 0)).windows(NATIVE)
    assert float(window.constraint.error(tensor(255 - shape))) < 0.05


def test_style_brings_the_reference_to_the_pictures_scale():
    shapes = []

    def features(x):
        shapes.append(tuple(x.shape))
        return [x]

    (window,) = Style(noise(200, 100, 3), size=(32, 64), features=features).windows(NATIVE)
    window.constraint.error(torch.zeros(1, 3, 32, 64))
    assert shapes == [(1, 3, 32, 64), (1, 3, 64, 32)]


def test_style_prefers_its_own_pattern_moved_to_its_mean_colour():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, np.arange(64) % 8 < 4] = 255
    (window,) = Style(stripes).windows(NATIVE)
    moved, mean = (
        float(window.constraint.error(tensor(picture)))
        for picture in (np.roll(stripes, 4, axis=1), np.full_like(stripes, 127))
    )
    assert moved < 0.3 * mean


def test_bad_requests_are_refused_when_they_are_made(tmp_path):
    picture = noise(24, 31, 3)
    assert "no such file" in refusal(Layout, tmp_path / "none.png")
    assert "cells = 0" in refusal(Layout, picture, cells=0)
    assert "noise = -1" in refusal(Layout, picture, noise=-1.0)
    assert "noise = nan" in refusal(Layout, picture, noise=math.nan)
    assert "nothing inside" in refusal(Silhouette, np.zeros((8, 8), bool))
    assert "everything inside" in refusal(Silhouette, np.full((8, 8), 255, np.uint8))
    assert "0 to 255" in refusal(Silhouette, hole(), background=(0, 0, 256))
    assert "no such file" in refusal(Style, tmp_path / "none.png")
