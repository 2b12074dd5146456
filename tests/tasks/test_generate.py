"""New pictures: sizes, and the constraints of custom tasks, layouts, silhouettes and styles."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import adhere
from adhere import AdhereError, Custom, Generate, Layout, Linear, Loss, Silhouette, Style
from adhere.core.constraints import Unconstrained
from adhere.errors import AdhereWarning
from tests.picture_files import hole, noise, refusal
from tests.tasks.fake_model import FakeModel
from tests.tiny_latent_models import tiny_sd


def darken() -> Loss:
    return Loss(lambda x: x.square().mean((1, 2, 3)))


TASKS = {
    "generate": lambda size: Generate(size),
    "custom": lambda size: Custom(darken(), size),
    "layout": lambda size: Layout(noise(20, 30, 3), size=size),
    "silhouette": lambda size: Silhouette(hole(20, 30), size=size),
    "style": lambda size: Style(noise(20, 30, 3), size=size, features=lambda x: [x]),
}
every_task = pytest.mark.parametrize("name", TASKS)


def to_tensor(picture: np.ndarray | Image.Image) -> torch.Tensor:
    """Return an RGB picture as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1


@every_task
def test_a_size_is_the_one_given_to_the_call_or_to_the_task_or_the_native_one(name):
    model = FakeModel(8, native_size=(32, 64))
    assert TASKS[name]((16, 24)).crops(model)[0].size == (16, 24)
    assert TASKS[name]((16, 24)).crops(model, (8, 40))[0].size == (8, 40)
    assert TASKS[name](None).crops(model)[0].size == (32, 64)
    (crop,) = TASKS[name](None).crops(model)
    x = torch.rand(2, 3, *crop.size)
    assert crop.constraint.neg_grad(x).shape == x.shape
    assert crop.constraint.residual_norm(x).shape == (2,)


@every_task
def test_a_size_that_the_model_cannot_have_is_answered_with_a_near_one(name):
    with pytest.raises(AdhereError, match="multiples of 8; 64x32 is near"):
        TASKS[name]((33, 64)).crops(FakeModel(8))


@every_task
@pytest.mark.parametrize("size", [(0, 8), (8, -8), (8, 12)])
def test_sizes_that_the_model_cannot_have_are_refused(name, size):
    with pytest.raises(AdhereError, match=r"this model needs multiples of 8; \d+x\d+ is near"):
        TASKS[name](size).crops(FakeModel(8))


@every_task
def test_a_picture_is_the_clamped_sample(name):
    task = TASKS[name]((16, 24))
    sample = torch.linspace(-1.5, 1.5, 3 * 16 * 24).view(3, 16, 24)
    crops = task.crops(FakeModel())
    floats = task.postprocess_float([sample], crops)
    assert (floats.min(), floats.max(), floats.dtype) == (0, 1, torch.float32)
    torch.testing.assert_close(floats, ((sample + 1) / 2).clamp(0, 1))
    image = np.asarray(task.postprocess([sample], crops))
    assert image.shape == (16, 24, 3)
    assert np.array_equal(image, (floats * 255).round().byte().permute(1, 2, 0).numpy())


def test_generate_has_no_constraint_and_custom_has_its_own():
    loss = darken()
    assert Generate((8, 8)).crops(FakeModel())[0].constraint == Unconstrained()
    assert Custom(loss, (8, 8)).crops(FakeModel())[0].constraint is loss


# --- runs on a tiny Stable Diffusion


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    pipe = adhere.from_pipe(tiny_sd(tmp_path_factory.mktemp("tokenizer")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["custom", "layout", "silhouette", "style"])
@pytest.mark.parametrize("backward", [False, True])
def test_stable_diffusion_samples_a_batch_through_the_encoder_or_the_decoder(sd, name, backward):
    task = TASKS[name](None)
    out = sd(task, "a cat", num_inference_steps=2, num_images_per_prompt=2, decoder_backward=backward)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    assert len(out.residual) == 2
    assert all(math.isfinite(residual) for residual in out.residual)
    assert out.solver == ("moment_matching" if name == "layout" else "moment_matching_loss")


def test_stable_diffusion_samples_a_style_by_the_default_features(sd):
    out = sd(Style(noise(50, 70, 3)), num_inference_steps=1)
    assert 0 < out.residual[0] < math.inf


# --- layouts


@pytest.mark.parametrize(("size", "cells", "side"), [((64, 64), 8, 8), ((64, 96), 3, 16), ((40, 64), 100, 1)])
def test_a_layout_measures_the_means_over_squares(size, cells, side):
    picture = noise(*size, 3)
    (crop,) = Layout(picture, cells=cells, noise=0.2, size=size).crops(FakeModel(8))
    linear = crop.constraint
    assert isinstance(linear, Linear)
    assert linear.noise == 0.2
    assert linear.y.shape == (1, 3, size[0] // side, size[1] // side)
    assert linear.residual_norm(to_tensor(picture)).item() < 1e-6


def test_a_layout_is_stretched_to_the_size():
    half = np.zeros((10, 30, 3), np.uint8)
    half[:, 15:] = 255
    (crop,) = Layout(half, cells=2).crops(FakeModel(8))
    assert isinstance(crop.constraint, Linear)
    assert crop.constraint.y[0, 0].tolist() == [[-1, 1], [-1, 1]]


# --- silhouettes


def test_a_silhouette_is_where_a_mask_is_true_or_white_or_opaque():
    mask = hole(40, 30)
    transparent = np.dstack([noise(40, 30, 3), mask.astype(np.uint8) * 255])
    for given in (mask, mask.astype(np.uint8) * 255, Image.fromarray(mask), Image.fromarray(transparent), transparent):
        assert np.array_equal(Silhouette(given).object_mask, mask)


def test_a_warning_if_the_object_covers_most_of_the_border(recwarn):
    mask = hole(20, 30)
    with pytest.warns(AdhereWarning, match="the white or opaque part is taken as the object; invert"):
        Silhouette(~mask)
    mask[15:] = True  # less than half of the border
    recwarn.clear()
    Silhouette(mask)
    assert not recwarn.list


def test_a_picture_of_the_silhouette_has_a_lower_loss_than_its_negative():
    mask = hole(64, 64)
    black_on_white = np.where(mask, 0, 255)[..., None].repeat(3, 2).astype(np.uint8)
    (crop,) = Silhouette(mask).crops(FakeModel(8))
    right, wrong = (
        float(crop.constraint.residual_norm(to_tensor(picture))) for picture in (black_on_white, 255 - black_on_white)
    )
    assert right < 0.05
    assert wrong > 5
    (crop,) = Silhouette(mask, background=(0, 0, 0)).crops(FakeModel(8))
    assert float(crop.constraint.residual_norm(to_tensor(255 - black_on_white))) < 0.05


# --- refusals


def test_bad_input_is_refused_when_the_task_is_made(tmp_path):
    picture = noise(24, 31, 3)
    assert "no such file" in refusal(Layout, tmp_path / "missing.png")
    assert "cells = 0" in refusal(Layout, picture, cells=0)
    assert "noise = -1" in refusal(Layout, picture, noise=-1.0)
    assert "noise = nan" in refusal(Layout, picture, noise=math.nan)
    assert "covers nothing" in refusal(Silhouette, np.zeros((8, 8), bool))
    assert "covers everything" in refusal(Silhouette, np.full((8, 8), 255, np.uint8))
    assert "0 to 255" in refusal(Silhouette, hole(), background=(0, 0, 256))
    assert "no such file" in refusal(Silhouette, tmp_path / "missing.png")
    assert "no such file" in refusal(Style, tmp_path / "missing.png")


WRONG_TYPES = """
import numpy as np
from adhere import AdhereError, Generate, Layout, Silhouette

picture = np.eye(16, dtype=np.uint8) * 255
calls = [(Layout, "cells", "a"), (Layout, "cells", 1.5), (Layout, "noise", "a"), (Layout, "noise", None)]
calls += [(Silhouette, "background", value) for value in ((0, 0), "red", 3, ("a", 0, 0))]
calls += [(Generate, "size", value) for value in (2.5, float("nan"), "a", (8,), (8.0, 8))]
for task, name, value in calls:
    try:
        task(*([] if task is Generate else [picture]), **{name: value})
    except AdhereError as error:
        assert str(error).startswith(f"{name} = {value!r}: "), error
    else:
        raise AssertionError((task, name, value))
"""


def test_arguments_of_a_wrong_type_are_named():
    """In a process of its own, without the type checker of the tests."""
    result = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
