"""Tasks of several passes, and soft masks, in whole runs of tiny models."""

from typing import Any

import numpy as np
import pytest
import torch

from adhere import AdhereError, Inpaint, Outpaint, from_pipe
from adhere.pipelines.latent import _noise_of_cells
from tests.core.exact import seeded
from tests.picture_files import noise
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import load, save_model


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """Return a tiny pixel-space model; a side grows by at most half of its native size at once."""
    pipe = load(save_model(tmp_path_factory.mktemp("model") / "model", prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_all_passes_are_run_and_their_cost_is_added(pipe):
    most = min(pipe.native_size) // 2
    picture = noise(11, 13, 3)
    steps = []
    out = pipe(
        Outpaint(picture, right=2 * most + 1),
        num_inference_steps=2,
        generator=seeded(0),
        callback_on_step_end=lambda pipe, step, t, tensors: steps.append(step),
    )
    result = np.asarray(out.images[0])
    assert result.shape == (11, 14 + 2 * most, 3)
    assert np.array_equal(result[:, :13], picture)
    assert steps == [0, 1] * 3
    assert out.nfe == 3 * 2
    assert out.num_steps == 2
    assert len(out.residual) == 1


def test_several_samples_continue_their_own_pass(pipe):
    task = Outpaint(noise(11, 13, 3), left=min(pipe.native_size) // 2 + 3)
    options = {"num_inference_steps": 2, "output_type": "np"}
    both = pipe(task, num_images_per_prompt=2, generator=[seeded(1), seeded(2)], **options).images
    assert not np.array_equal(both[0], both[1])
    for i in range(2):
        alone = pipe(task, generator=[seeded(i + 1)], **options).images[0]
        np.testing.assert_allclose(both[i], alone, atol=1e-4)  # the first pass is rounded to 8 bits


def test_tasks_with_different_numbers_of_passes_are_refused(pipe):
    most = min(pipe.native_size) // 2
    tasks = [Outpaint(noise(11, 13, 3), left=pixels) for pixels in (most, most + 1)]
    with pytest.raises(AdhereError, match="more passes than others"):
        pipe(tasks, num_inference_steps=1)


def test_an_interrupted_run_ends_after_its_pass(pipe):
    def interrupt(pipe, step, t, tensors):
        pipe._interrupt = True

    most = min(pipe.native_size) // 2
    task = Outpaint(noise(11, 13, 3), left=most + 1)
    out = pipe(task, num_inference_steps=3, callback_on_step_end=interrupt)
    assert out.images[0].size == (13 + most, 11)


@pytest.mark.parametrize("solver", ["moment_matching", "moment_matching_fast", "ddnm", "inexact_newton"])
def test_every_solver_takes_soft_masks(pipe, solver):
    picture, weights = noise(24, 31, 3), np.zeros((24, 31), np.float32)
    weights[8:16, 8:16] = 0.5
    weights[10:14, 10:14] = 1
    out = pipe(Inpaint(picture, weights, soft=True), solver=solver, num_inference_steps=2, generator=seeded(0))
    assert np.array_equal(np.asarray(out.images[0])[weights == 0], picture[weights == 0])
    assert out.residual[0] < 1


def test_a_latent_cell_takes_the_largest_noise_of_its_pixels():
    std = torch.zeros(1, 1, 4, 6)
    std[0, 0, 0, 1], std[0, 0, 3, 2], std[0, 0, 3, 3] = 0.5, 0.2, 4.0
    assert _noise_of_cells(std, 2)[0, 0].tolist() == [[0.5, 0, 0], [0, 4.0, 0]]
    assert _noise_of_cells(0.3, 2) == 0.3


def test_soft_masks_through_an_autoencoder(tmp_path):
    pipe: Any = from_pipe(tiny_sd(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    picture, weights = noise(64, 64, 3), np.zeros((64, 64), np.float32)
    weights[16:48, 16:48] = 0.5
    out = pipe(Inpaint(picture, weights, soft=True), prompt="a", num_inference_steps=2, generator=seeded(0))
    assert np.array_equal(np.asarray(out.images[0])[weights == 0], picture[weights == 0])
    assert not np.array_equal(np.asarray(out.images[0])[weights > 0], picture[weights > 0])
