from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, ConstrainedOutput, Inpaint
from adhere.core.solvers import METHODS
from adhere.tasks import Generate
from tests.core.laws import FOR_PICTURES
from tests.picture_files import hole, image_of, noise
from tests.test_tasks import MASKS
from tests.tiny_models import edit_weights, load


@pytest.fixture(scope="module")
def pipe(shared_model):
    return load(shared_model)


@pytest.fixture
def task():
    return Inpaint(noise(21, 30, 3), hole(21, 30))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def linear_pipe(model_with):
    """Its network's output is zero, so that x0 = alpha x_t: no rounding that depends on the batch."""
    folder = model_with(prediction="v_prediction")
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    return load(folder)


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_a_batch_equals_single_runs(linear_pipe, task, solver):
    pipe = linear_pipe
    options = {"solver": solver, "num_inference_steps": 3, "output_type": "latent"}
    batch = pipe(task, batch_size=3, generator=[seeded(s) for s in (4, 5, 6)], **options)
    singles = [pipe(task, generator=seeded(s), **options) for s in (4, 5, 6)]
    torch.testing.assert_close(batch.images, torch.cat([one.images for one in singles]), atol=1e-5, rtol=1e-5)
    assert batch.error == pytest.approx([one.error[0] for one in singles], rel=1e-3, abs=1e-6)
    assert batch.nfe == singles[0].nfe  # an evaluation is of the whole batch
    assert not torch.allclose(batch.images[0], batch.images[1], atol=1e-2)


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_a_batch_through_a_random_network_equals_single_runs_up_to_rounding(pipe, task, solver):
    """Convolutions round differently with the batch, and finite differences enlarge that by 1 / 5e-3."""
    options = {"solver": solver, "num_inference_steps": 2, "output_type": "latent"}
    batch = pipe(task, batch_size=2, generator=[seeded(s) for s in (4, 5)], **options).images
    singles = torch.cat([pipe(task, generator=seeded(s), **options).images for s in (4, 5)])
    assert (batch - singles).abs().max() < 1e-3 * singles.abs().max()
    assert (batch[0] - batch[1]).abs().max() > 1e-2 * singles.abs().max()


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_the_same_seed_gives_the_same_picture_and_zero_is_the_default(pipe, task, solver):
    options = {"solver": solver, "num_inference_steps": 2, "output_type": "pt"}
    default, zero, again, other = (pipe(task, generator=g, **options) for g in (None, seeded(0), seeded(0), seeded(1)))
    assert torch.equal(default.images, zero.images)
    assert torch.equal(zero.images, again.images)
    assert not torch.equal(zero.images, other.images)


def test_the_global_random_state_is_left_alone(pipe, task):
    state = torch.get_rng_state()
    pipe(task, num_inference_steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_output_types_show_the_same_samples(pipe, task):
    pil, array, tensor, states = (
        pipe(task, num_inference_steps=2, batch_size=2, output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    )
    assert all(isinstance(image, Image.Image) for image in pil)
    assert array.shape == (2, 21, 30, 3)
    assert array.dtype == np.uint8
    assert np.array_equal(array, np.stack([np.asarray(image) for image in pil]))
    assert tensor.shape == (2, 3, 21, 30)
    assert np.array_equal((tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), array)
    windows = task.windows(pipe)
    assert states.shape == (2, 3, *windows[0].size)
    assert all(np.array_equal(task.finish([x0], windows), a) for x0, a in zip(states, array, strict=True))


def test_a_plain_tuple_on_request(pipe, task):
    (images,) = pipe(task, num_inference_steps=1, return_dict=False)
    assert images[0].size == (30, 21)


def test_the_output_says_what_it_cost(pipe, task):
    out = pipe(task, solver="ddnm", num_inference_steps=2, batch_size=2)
    assert isinstance(out, ConstrainedOutput)
    assert out["nfe"] == out.nfe == 2
    assert len(out.error) == 2
    assert all(error >= 0 for error in out.error)


def test_the_callback_is_called_once_a_step(pipe, task):
    calls = []
    out = pipe(
        task,
        num_inference_steps=4,
        batch_size=2,
        output_type="latent",
        callback_on_step_end=lambda *call: calls.append(call),
        callback_on_step_end_tensor_inputs=["latents", "x0", "error"],
    )
    givers, steps, times, states = zip(*calls, strict=True)
    assert set(givers) == {pipe}
    assert steps == (0, 1, 2, 3)
    assert list(times) == sorted(times, reverse=True)
    for state in states:
        assert set(state) == {"latents", "x0", "error"}
        assert state["latents"].shape == state["x0"].shape == out.images.shape
        assert state["error"].shape == (2,)
    assert torch.equal(states[-1]["x0"], out.images)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("ddmn", "ddnm"), ("inexact-newton", "inexact_newton"), ("Moment_Matching", "moment_matching")],
)
def test_an_unknown_solver_names_the_nearest(pipe, task, given, nearest):
    with pytest.raises(ValueError, match=f"'{given}': did you mean '{nearest}'.*{', '.join(METHODS)}"):
        pipe(task, solver=given)


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("steps", [0, -3])
def test_steps_below_one(pipe, task, solver, steps):
    with pytest.raises(ValueError, match=f"steps = {steps}"):
        pipe(task, solver=solver, num_inference_steps=steps)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        ("psld", TypeError, "psld needs a Linear constraint through a decoder, not Linear: try dps"),
        ("newton_exact", ValueError, "newton_exact forms J, 1980 x 1980: at most 1024 x 1024; try inexact_newton"),
    ],
)
def test_solvers_that_are_not_for_this_model(pipe, task, solver, error, message):
    with pytest.raises(error, match=message):
        pipe(task, solver=solver)


def test_more_steps_than_the_schedule_has(pipe, task):
    with pytest.raises(ValueError, match="from 1 to"):
        pipe(task, solver="inexact_newton", num_inference_steps=1001)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_wrong_number_of_generators(pipe, task, count):
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 3"):
        pipe(task, batch_size=3, generator=[seeded(s) for s in range(count)])


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_batch(pipe, task, size):
    with pytest.raises(ValueError, match=f"batch_size = {size}"):
        pipe(task, batch_size=size)


def test_an_unknown_output_type(pipe, task):
    with pytest.raises(ValueError, match="'pil', 'np', 'pt' or 'latent'"):
        pipe(task, output_type="jpeg")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
@pytest.mark.parametrize(
    ("mask", "size"),
    [
        *product(["middle", "one pixel", "corner"], [(37, 53)]),
        *product(["one pixel", "corner", "all but one"], [(1, 3)]),
    ],
)
def test_known_pixels_come_through_the_model_bit_for_bit(pipe, mode, mask, size):
    repaint = MASKS[mask](*size)
    task = Inpaint(image_of(mode, *size), repaint)
    out = np.asarray(pipe(task, num_inference_steps=1).images[0])
    expected = (
        task.picture.pixels if task.picture.alpha is None else np.dstack([task.picture.pixels, task.picture.alpha])
    )
    assert np.array_equal(out.reshape(*size, -1)[~repaint], expected[~repaint])


def test_ddnm_meets_the_constraint_and_the_error_says_so(pipe, task):
    out = pipe(task, solver="ddnm", num_inference_steps=3, output_type="latent")
    assert out.error[0] < 1e-6
    assert task.windows(pipe)[0].constraint.error(out.images)[0] == pytest.approx(out.error[0], abs=1e-6)


def test_one_pipeline_serves_pictures_of_any_size(pipe):
    for height, width in ((4, 50), (33, 8), (16, 16)):
        (image,) = pipe(Inpaint(noise(height, width, 3), hole(height, width)), num_inference_steps=1).images
        assert image.size == (width, height)


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_a_hole_is_repaired_the_same_whatever_other_holes_there_are(pipe, solver):
    """Windows are sampled apart, each from the generator as it was given."""
    picture, first, second = noise(70, 90, 3), np.zeros((70, 90), bool), np.zeros((70, 90), bool)
    first[5:12, 6:15], second[50:66, 70:85] = True, True
    options = {"solver": solver, "num_inference_steps": 2, "output_type": "np"}
    both, one, other = (
        pipe(Inpaint(picture, mask, context=8), generator=seeded(7), **options)
        for mask in (first | second, first, second)
    )
    assert np.array_equal(both.images[0][first], one.images[0][first])
    assert np.array_equal(both.images[0][second], other.images[0][second])
    assert both.nfe == one.nfe + other.nfe
    assert both.error[0] == pytest.approx(np.hypot(one.error[0], other.error[0]) / np.sqrt(2))


def test_latents_of_several_windows_are_refused(pipe):
    mask = np.zeros((70, 90), bool)
    mask[2, 2] = mask[-2, -2] = True
    with pytest.raises(ValueError, match="the task has 2 windows"):
        pipe(Inpaint(noise(70, 90, 3), mask, context=4), output_type="latent")


def test_the_network_sees_no_more_than_a_tile(shared_model, monkeypatch):
    """So that its memory does not grow with the picture; the evaluations do not either."""
    pipe, seen = load(shared_model), set()
    forward = pipe.unet.forward

    def watched(x, *args, **options):
        seen.add(tuple(x.shape[-2:]))
        return forward(x, *args, **options)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    pipe.tile = 16
    tiled = pipe(Generate((40, 56)), num_inference_steps=2)
    assert seen == {(16, 16)}
    assert tiled.nfe == 2
    assert tiled.images[0].size == (56, 40)


def test_interrupted_it_ends_with_what_there_is(pipe, task):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 1

    whole = pipe(task, num_inference_steps=4).nfe
    out = pipe(task, num_inference_steps=4, callback_on_step_end=stop)
    assert out.images[0].size == (30, 21) and 2 <= out.nfe < whole
    assert pipe(task, num_inference_steps=4).nfe == whole  # the next run is whole again


def test_an_error_is_not_computed_unless_asked_for(pipe, task):
    """It may take a decoding."""
    given = []
    pipe(task, num_inference_steps=1, callback_on_step_end=lambda *call: given.append(set(call[-1])))
    assert given == [{"latents", "x0"}]
    with pytest.raises(ValueError, match="'loss': there are latents, x0, error"):
        pipe(task, callback_on_step_end_tensor_inputs=["loss"])


# --- what the machine cannot do


def failing(pipe, monkeypatch, error: BaseException) -> str:
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(pipe.unet, "forward", fail)
    with pytest.raises(AdhereError) as caught:
        pipe(Generate(), num_inference_steps=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to"),
    ],
)
def test_out_of_memory_says_what_is_cheaper(shared_model, monkeypatch, error):
    message = failing(load(shared_model), monkeypatch, error)
    assert message.startswith("out of memory")
    assert "smaller" in message and "enable_model_cpu_offload" in message


def test_half_precision_where_there_is_none_says_what_to_load(shared_model, monkeypatch):
    error = RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")
    assert "torch_dtype=torch.float32" in failing(load(shared_model), monkeypatch, error)


def test_other_errors_of_the_network_are_not_hidden(shared_model, monkeypatch):
    pipe = load(shared_model)
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(Generate(), num_inference_steps=1)
