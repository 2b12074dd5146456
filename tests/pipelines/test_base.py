"""The call of a pipeline: batches, seeds, output types, callbacks, costs and refusals, on tiny pixel-space models."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, ConstrainedOutput, Generate, Inpaint
from adhere.core.presets import PRESETS
from tests.picture_files import hole, image_of, noise
from tests.tasks.test_inpaint import MASKS
from tests.tiny_models import PIXEL_PRESETS, edit_weights, load


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
    """A model whose network returns zero, so that x0 = alpha x_t and rounding does not depend on the batch."""
    folder = model_with(prediction_type="v_prediction")
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    return load(folder)


# --- batches


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_a_batch_equals_single_runs(linear_pipe, task, solver):
    """Products with matrices round differently with the batch; Jacobian products enlarge that by 1 / 5e-3."""
    pipe = linear_pipe
    options = {"solver": solver, "num_inference_steps": 3, "output_type": "latent"}
    batch = pipe(task, num_images_per_prompt=3, generator=[seeded(s) for s in (4, 5, 6)], **options)
    singles = [pipe(task, generator=seeded(s), **options) for s in (4, 5, 6)]
    torch.testing.assert_close(batch.images, torch.cat([one.images for one in singles]), atol=1e-4, rtol=1e-4)
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3, abs=1e-6)
    assert batch.nfe == singles[0].nfe  # an evaluation is of the whole batch
    assert not torch.allclose(batch.images[0], batch.images[1], atol=1e-2)


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_a_batch_through_a_random_network_equals_single_runs_up_to_rounding(pipe, task, solver):
    """Convolutions round differently with the batch, and finite differences enlarge that by 1 / 5e-3."""
    options = {"solver": solver, "num_inference_steps": 2, "output_type": "latent"}
    batch = pipe(task, num_images_per_prompt=2, generator=[seeded(s) for s in (4, 5)], **options).images
    singles = torch.cat([pipe(task, generator=seeded(s), **options).images for s in (4, 5)])
    assert (batch - singles).abs().max() < 1e-3 * singles.abs().max()
    assert (batch[0] - batch[1]).abs().max() > 1e-2 * singles.abs().max()


def single_runs(pipe, tasks, seeds, **options):
    return [pipe(task, generator=seeded(seed), **options) for task, seed in zip(tasks, seeds, strict=True)]


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_tasks_with_different_pictures_and_masks_of_one_size_share_a_batch_and_equal_single_runs(linear_pipe, solver):
    """The masks differ in shape and in their number of known pixels."""
    mask_b = np.zeros((21, 30), bool)
    mask_b[3:6, 20:29] = True
    tasks = [Inpaint(noise(21, 30, 3), hole(21, 30)), Inpaint(noise(21, 30, 3, seed=1), mask_b)]
    options = {"solver": solver, "num_inference_steps": 2}
    batch = linear_pipe(tasks, generator=[seeded(4), seeded(5)], output_type="latent", **options)
    singles = single_runs(linear_pipe, tasks, (4, 5), output_type="latent", **options)
    torch.testing.assert_close(batch.images, torch.cat([one.images for one in singles]), atol=1e-4, rtol=1e-4)
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3, abs=1e-6)
    assert batch.nfe == singles[0].nfe
    pictures = linear_pipe(tasks, generator=[seeded(4), seeded(5)], output_type="pil", **options).images
    for task, picture in zip(tasks, pictures, strict=True):
        known = ~task.mask_array
        assert np.array_equal(np.asarray(picture)[known], task.picture.pixels[known])


def test_tasks_of_different_sizes_equal_single_runs(linear_pipe):
    tasks = [Inpaint(noise(21, 30, 3), hole(21, 30)), Inpaint(noise(10, 12, 3), hole(10, 12)), Generate((8, 8))]
    batch = linear_pipe(tasks, generator=[seeded(s) for s in (4, 5, 6)], num_inference_steps=2)
    singles = single_runs(linear_pipe, tasks, (4, 5, 6), num_inference_steps=2)
    assert [image.size for image in batch.images] == [(30, 21), (12, 10), (8, 8)]
    for image, one in zip(batch.images, singles, strict=True):
        difference = np.asarray(image).astype(int) - np.asarray(one.images[0])
        assert np.abs(difference).max() <= 1  # a value near one half may be rounded up or down
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3, abs=1e-6)
    assert batch.nfe == sum(one.nfe for one in singles)


def test_several_samples_of_several_tasks_are_ordered_by_task(linear_pipe):
    tasks = [Inpaint(noise(21, 30, 3), hole(21, 30)), Inpaint(noise(21, 30, 3, seed=1), hole(21, 30))]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    seeds = (4, 5, 6, 7)
    batch = linear_pipe(tasks, num_images_per_prompt=2, generator=[seeded(s) for s in seeds], **options)
    singles = single_runs(linear_pipe, [tasks[0], tasks[0], tasks[1], tasks[1]], seeds, **options)
    torch.testing.assert_close(batch.images, torch.cat([one.images for one in singles]), atol=1e-4, rtol=1e-4)
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_pictures_of_different_sizes_cannot_be_one_array(linear_pipe, output_type):
    with pytest.raises(AdhereError, match="differ in size; use output_type='pil'"):
        linear_pipe([Generate((8, 8)), Generate((8, 12))], num_inference_steps=1, output_type=output_type)


# --- seeds


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_the_same_seed_gives_the_same_picture(pipe, task, solver):
    options = {"solver": solver, "num_inference_steps": 2, "output_type": "pt"}
    one, again, other = (pipe(task, generator=seeded(s), **options).images for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_without_a_generator_the_seed_is_drawn_from_the_global_generator(pipe, task):
    options = {"num_inference_steps": 2, "output_type": "pt"}
    torch.manual_seed(3)
    first, second = (pipe(task, **options).images for _ in range(2))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(pipe(task, **options).images, first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    for _ in range(2):
        torch.randint(2**62, (1,))
    assert torch.equal(torch.get_rng_state(), state)  # each run draws its seed and nothing else


def test_with_a_generator_the_global_random_state_is_left_alone(pipe, task):
    state = torch.get_rng_state()
    pipe(task, num_inference_steps=2, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


# --- what is returned


@pytest.mark.parametrize(
    ("mode", "channels", "largest"), [("RGB", 3, 255), ("L", 1, 255), ("I;16", 1, 65535), ("RGBA", 3, 255)]
)
def test_output_types_show_the_same_samples(pipe, mode, channels, largest):
    task = Inpaint(image_of(mode, 21, 30), hole(21, 30))
    pil, array, tensor, states = (
        pipe(task, num_inference_steps=2, num_images_per_prompt=2, generator=seeded(0), output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    )
    assert all(isinstance(image, Image.Image) for image in pil)
    assert array.shape == (2, 21, 30, channels)
    assert array.dtype == np.float32
    assert array.min() >= 0
    assert array.max() <= 1
    assert tensor.shape == (2, channels, 21, 30)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    integers = np.stack([np.asarray(image) for image in pil]).reshape(2, 21, 30, -1)[..., :channels]
    assert np.abs(array.astype(np.float64) * largest - integers).max() <= 0.5 + largest * 2**-23  # of float32
    masked = array[:, task.mask_array]
    unclipped = masked[(masked > 0) & (masked < 1)] * largest
    assert len(unclipped) > 10
    assert (unclipped % 1 != 0).mean() > 0.9  # inside the mask, nothing is rounded to integers
    expected = task.picture.pixels.astype(np.float32) / largest
    assert np.array_equal(array[:, ~task.mask_array], np.stack([expected[~task.mask_array]] * 2))
    crops = task.crops(pipe)
    assert states.shape == (2, 3, *crops[0].size)
    assert all(
        np.array_equal(np.asarray(task.postprocess([x0], crops)), np.asarray(image))
        for x0, image in zip(states, pil, strict=True)
    )


def test_return_dict_false_gives_a_tuple_of_the_images(pipe, task):
    out = pipe(task, num_inference_steps=1, return_dict=False)
    assert type(out) is tuple
    (images,) = out
    assert images[0].size == (30, 21)


def test_the_output_says_what_it_cost(pipe, task):
    out = pipe(task, solver="ddnm", num_inference_steps=2, num_images_per_prompt=2)
    assert isinstance(out, ConstrainedOutput)
    assert out["nfe"] == out.nfe == 2
    assert (out.num_steps, out.solver) == (2, "ddnm")
    assert len(out.residual) == 2
    assert all(residual >= 0 for residual in out.residual)
    assert out.seconds > 0


# --- callbacks


def test_the_callback_is_called_once_a_step(pipe, task):
    calls = []
    out = pipe(
        task,
        num_inference_steps=4,
        num_images_per_prompt=2,
        output_type="latent",
        callback_on_step_end=lambda *call: calls.append(call),
        callback_on_step_end_tensor_inputs=["latents", "x0", "residual"],
    )
    callers, steps, times, states = zip(*calls, strict=True)
    assert set(callers) == {pipe}
    assert steps == (0, 1, 2, 3)
    assert list(times) == sorted(times, reverse=True)
    for state in states:
        assert set(state) == {"latents", "x0", "residual"}
        assert state["latents"].shape == state["x0"].shape == out.images.shape
        assert state["residual"].shape == (2,)
    assert torch.equal(states[-1]["x0"], out.images)


def test_a_callback_that_returns_what_it_got_changes_nothing(pipe, task):
    options = {"num_inference_steps": 3, "output_type": "latent"}
    plain = pipe(task, generator=seeded(0), **options).images
    same = pipe(task, generator=seeded(0), callback_on_step_end=lambda *call: call[-1], **options).images
    assert torch.equal(plain, same)


def test_latents_that_a_callback_returns_replace_the_state(pipe):
    """Plain sampling continues from the state: replaced by that of another run, it ends where that one ends."""
    options = {"num_inference_steps": 4, "output_type": "latent", "solver": "plain"}
    states: list[dict[str, torch.Tensor]] = []
    other = pipe(
        Generate((8, 8)), generator=seeded(1), callback_on_step_end=lambda *call: states.append(call[-1]), **options
    ).images

    def replace(pipe, step, t, tensors):
        return states[1] if step == 1 else {}

    mixed = pipe(Generate((8, 8)), generator=seeded(0), callback_on_step_end=replace, **options).images
    assert torch.equal(mixed, other)
    assert not torch.equal(pipe(Generate((8, 8)), generator=seeded(0), **options).images, other)


def test_an_x0_that_a_callback_returns_replaces_the_sample(pipe):
    def gray(pipe, step, t, tensors):
        return {"x0": torch.zeros_like(tensors["x0"])}

    options = {"num_inference_steps": 3, "solver": "plain", "callback_on_step_end": gray}
    assert (np.asarray(pipe(Generate((8, 8)), **options).images[0]) == 128).all()


def test_a_residual_is_not_computed_unless_it_is_asked_for(pipe, task):
    """It may take a decoding."""
    given = []
    pipe(task, num_inference_steps=1, callback_on_step_end=lambda *call: given.append(set(call[-1])))
    assert given == [{"latents", "x0"}]


def test_unknown_callback_tensors_are_refused(pipe, task):
    with pytest.raises(ValueError, match="'loss' is unknown; there are latents, x0, residual"):
        pipe(task, callback_on_step_end_tensor_inputs=["loss"])


def test_callback_tensors_are_checked_against_the_list_of_the_class(pipe, task, monkeypatch):
    monkeypatch.setattr(type(pipe), "_callback_tensor_inputs", ["x0"])
    with pytest.raises(ValueError, match="'latents' is unknown; there are x0"):
        pipe(task, callback_on_step_end_tensor_inputs=["latents"])


def test_an_interrupted_run_ends_with_what_there_is_and_the_next_run_is_whole(pipe, task):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 1

    whole = pipe(task, num_inference_steps=4).nfe
    out = pipe(task, num_inference_steps=4, callback_on_step_end=stop)
    assert pipe.interrupt
    assert out.images[0].size == (30, 21)
    assert 2 <= out.nfe < whole
    assert out.num_steps == 2  # those that ran
    assert pipe(task, num_inference_steps=4).nfe == whole
    assert not pipe.interrupt


def test_an_interrupted_call_with_several_crops_fills_all_of_them(pipe):
    mask = np.zeros((70, 90), bool)
    mask[2:6, 2:6] = mask[-6:-2, -6:-2] = True

    def stop(pipe, step, t, tensors):
        pipe._interrupt = True

    picture = noise(70, 90, 3)
    out = pipe(Inpaint(picture, mask, context=4), num_inference_steps=4, callback_on_step_end=stop)
    assert (np.asarray(out.images[0])[mask] != picture[mask]).mean() > 0.9
    assert out.num_steps == 1


# --- latents and sizes


def test_the_noise_that_a_generator_would_draw_gives_the_same_picture(pipe, task):
    """The generator goes on from there, as it does when it has drawn the noise."""
    options = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "pt"}
    expected = pipe(task, generator=seeded(3), **options).images
    generator = seeded(3)
    latents = torch.randn(2, *pipe.state_shape(task.crops(pipe)[0].size), generator=generator)
    assert torch.equal(pipe(task, generator=generator, latents=latents, **options).images, expected)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 8, 9), (2, 1, 8, 8), (2, 3, 8)])
def test_latents_of_a_wrong_shape_are_refused(pipe, shape):
    with pytest.raises(ValueError, match=r"latents have shape .*: this call needs \(2, 3, 8, 8\)"):
        pipe(Generate((8, 8)), num_inference_steps=1, num_images_per_prompt=2, latents=torch.zeros(shape))


def test_height_and_width_are_those_of_the_picture(pipe):
    for size, options in {
        (24, 12): {"height": 12, "width": 24},
        (16, 12): {"height": 12},
        (24, 16): {"width": 24},
        (16, 16): {},
    }.items():
        assert pipe(Generate(), num_inference_steps=1, **options).images[0].size == size
    assert pipe(Generate((8, 8)), num_inference_steps=1, height=12, width=24).images[0].size == (24, 12)


def test_height_and_width_that_the_model_or_the_task_cannot_have_are_refused(pipe, task):
    with pytest.raises(AdhereError, match="this model needs multiples of 2; 20x12 is near"):
        pipe(Generate(), height=13, width=20)
    with pytest.raises(AdhereError, match="Inpaint has the size of its input: leave out height and width"):
        pipe(task, height=16)


def test_latents_of_several_crops_are_refused(pipe):
    mask = np.zeros((70, 90), bool)
    mask[2, 2] = mask[-2, -2] = True
    task = Inpaint(noise(70, 90, 3), mask, context=4)
    for options in ({"output_type": "latent"}, {"latents": torch.zeros(1, 3, 8, 8)}):
        with pytest.raises(ValueError, match="a task has several crops, each with its own latents"):
            pipe(task, **options)


# --- refusals


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("ddmn", "ddnm"), ("inexact-newton", "inexact_newton"), ("Moment_Matching", "moment_matching")],
)
def test_an_unknown_solver_names_the_nearest(pipe, task, given, nearest):
    with pytest.raises(ValueError, match=f"'{given}': did you mean '{nearest}'.* one of moment_matching, .*, plain"):
        pipe(task, solver=given)


def test_the_old_name_of_the_default_solver_is_answered_with_the_new_one(pipe, task):
    with pytest.raises(ValueError, match="'moment_matching_calm' is now called 'moment_matching'"):  # retired
        pipe(task, solver="moment_matching_calm")  # retired


@pytest.mark.parametrize("solver", PRESETS)
@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_steps_than_one_are_refused(pipe, task, solver, steps):
    with pytest.raises(ValueError, match=f"num_inference_steps = {steps}"):
        pipe(task, solver=solver, num_inference_steps=steps)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        ("psld", TypeError, "PSLD does not support Linear constraint with Mask: try the solver inexact_newton"),
        ("newton_exact", ValueError, "1980 x 1980.*1024 x 1024.*inexact_newton"),
    ],
)
def test_solvers_that_are_not_for_this_model_are_refused(pipe, task, solver, error, message):
    with pytest.raises(error, match=message):
        pipe(task, solver=solver)


def test_more_steps_than_the_schedule_has_are_refused(pipe, task):
    with pytest.raises(ValueError, match="this schedule allows 1 to 1000"):
        pipe(task, solver="inexact_newton", num_inference_steps=1001)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_wrong_number_of_generators_is_refused(pipe, task, count):
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 3"):
        pipe(task, num_images_per_prompt=3, generator=[seeded(s) for s in range(count)])


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_images_than_one_are_refused(pipe, task, count):
    with pytest.raises(ValueError, match=f"num_images_per_prompt = {count}"):
        pipe(task, num_images_per_prompt=count)


def test_an_empty_list_of_tasks_is_refused(pipe):
    with pytest.raises(ValueError, match="the list of tasks is empty"):
        pipe([])


def test_an_unknown_output_type_is_refused(pipe, task):
    with pytest.raises(ValueError, match="'pil', 'np', 'pt', 'latent'"):
        pipe(task, output_type="jpeg")


# --- pixels


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
@pytest.mark.parametrize(
    ("mask", "size"),
    [
        *product(["middle", "one pixel", "corner"], [(37, 53)]),
        *product(["one pixel", "corner", "all but one"], [(1, 3)]),
    ],
)
def test_known_pixels_come_through_the_model_bit_for_bit(pipe, mode, mask, size):
    masked = MASKS[mask](*size)
    task = Inpaint(image_of(mode, *size), masked)
    out = np.asarray(pipe(task, num_inference_steps=1).images[0])
    expected = (
        task.picture.pixels if task.picture.alpha is None else np.dstack([task.picture.pixels, task.picture.alpha])
    )
    assert np.array_equal(out.reshape(*size, -1)[~masked], expected[~masked])


def test_ddnm_meets_the_constraint_and_the_residual_says_so(pipe, task):
    out = pipe(task, solver="ddnm", num_inference_steps=3, output_type="latent")
    assert out.residual[0] < 1e-6
    assert task.crops(pipe)[0].constraint.residual_norm(out.images)[0] == pytest.approx(out.residual[0], abs=1e-6)


def test_one_pipeline_serves_pictures_of_any_size(pipe):
    for height, width in ((4, 50), (33, 8), (16, 16)):
        (image,) = pipe(Inpaint(noise(height, width, 3), hole(height, width)), num_inference_steps=1).images
        assert image.size == (width, height)


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_a_hole_is_repaired_the_same_whatever_other_holes_there_are(pipe, solver):
    """Crops are sampled separately, each from the generator as it was given."""
    picture, first, second = noise(70, 90, 3), np.zeros((70, 90), bool), np.zeros((70, 90), bool)
    first[5:12, 6:15], second[50:66, 70:85] = True, True
    options = {"solver": solver, "num_inference_steps": 2}
    both, one, other = (
        pipe(Inpaint(picture, mask, context=8), generator=seeded(7), **options)
        for mask in (first | second, first, second)
    )
    both_pixels, one_pixels, other_pixels = (np.asarray(out.images[0]) for out in (both, one, other))
    assert np.array_equal(both_pixels[first], one_pixels[first])
    assert np.array_equal(both_pixels[second], other_pixels[second])
    assert both.nfe == one.nfe + other.nfe
    assert both.residual[0] == pytest.approx(np.hypot(one.residual[0], other.residual[0]) / np.sqrt(2))


def test_the_network_sees_no_more_than_a_tile(shared_model, monkeypatch):
    """Neither its memory nor the number of evaluations grows with the picture."""
    pipe, seen = load(shared_model), set()
    forward = pipe.unet.forward

    def watched(x, *args, **options):
        seen.add(tuple(x.shape[-2:]))
        return forward(x, *args, **options)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    pipe.tile_size = 16
    tiled = pipe(Generate((40, 56)), num_inference_steps=2)
    assert seen == {(16, 16)}
    assert tiled.nfe == 2
    assert tiled.images[0].size == (56, 40)


def test_what_a_network_gets_wrong_at_the_border_of_a_tile_is_blended_with_what_its_neighbor_sees(
    shared_model, monkeypatch
):
    """A picture of 3 x 4 tiles, and a network that is right but for the outermost pixels of what it is given."""
    pipe = load(shared_model)
    pipe.tile_size = 16

    def border(x):
        out = torch.ones_like(x)
        out[..., 1:-1, 1:-1] = 0
        return out

    def x0(network):
        monkeypatch.setattr(pipe.unet, "forward", lambda x, *args, **options: (network(x),))
        options = {"num_inference_steps": 1, "solver": "plain", "output_type": "latent"}
        return pipe(Generate((40, 56)), generator=seeded(0), **options).images

    right, wrong = x0(torch.zeros_like), x0(torch.ones_like)
    share = (x0(border) - right) / (wrong - right)  # of what is wrong, pixel by pixel
    torch.testing.assert_close(share[..., 0, :], torch.ones(1, 3, 56))
    assert 0.1 < share[..., 1:-1, 1:-1].max() < 0.6  # 1 - (2 / 3)^2 where four tiles meet


# --- what the machine cannot do


def message_of_failing_network(pipe, monkeypatch, error: BaseException) -> str:
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
    message = message_of_failing_network(load(shared_model), monkeypatch, error)
    assert message.startswith("out of memory")
    assert "smaller" in message
    assert "enable_model_cpu_offload" in message


def test_half_precision_where_there_is_none_says_what_to_load(shared_model, monkeypatch):
    error = RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")
    assert "torch_dtype=torch.float32" in message_of_failing_network(load(shared_model), monkeypatch, error)


def test_other_errors_of_the_network_are_not_hidden(shared_model, monkeypatch):
    pipe = load(shared_model)
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(Generate(), num_inference_steps=1)


def test_fewer_noise_levels_than_were_asked_for_are_reported(pipe, task, caplog):
    out = pipe(task, num_inference_steps=1000, callback_on_step_end=lambda pipe, *_: setattr(pipe, "_interrupt", True))
    assert out.num_steps == 1  # interrupted after the first
    assert re.search(r"num_inference_steps = 1000: the noise schedule has only \d+ such", caplog.text)
    caplog.clear()
    pipe(task, callback_on_step_end=lambda pipe, *_: setattr(pipe, "_interrupt", True))
    assert "num_inference_steps" not in caplog.text
