"""The seconds of a dry run, on a clock that only the network, the encoder and the decoder advance."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import adhere
from adhere.apps import _estimate
from tests.picture_files import image_of
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import load, save_model


@pytest.fixture
def clock(monkeypatch):
    """Return a clock for `estimate`; `clock.watch(module)` lets each call of the module take one second per entry."""
    clock, hooks = SimpleNamespace(now=0.0), []

    def advance(module, args, kwargs, output):
        clock.now += args[0].numel()

    clock.watch = lambda module: hooks.append(module.register_forward_hook(advance, with_kwargs=True))
    monkeypatch.setattr(_estimate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    yield clock
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def latent_pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    tiny_sd(folder).save_pretrained(folder / "model")
    return load(folder / "model")


@pytest.fixture(scope="module")
def pixel_pipe(tmp_path_factory):
    return load(save_model(tmp_path_factory.mktemp("pixel") / "model", prediction_type="v_prediction"))


def estimated(pipe, task, solver=None, steps=None):
    prompts: dict[str, str | None] = {"prompt": None, "negative_prompt": None}
    return _estimate.estimate(pipe, task, prompts, 1, guidance_scale=None, solver=solver, num_inference_steps=steps)


def real_seconds(clock, pipe, task, **options):
    begin = clock.now
    pipe(task, generator=torch.Generator().manual_seed(0), **options)
    return clock.now - begin


def large_hole(side):
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    return adhere.Inpaint(image_of("RGB", side, side), mask, context=side)


LATENT_TASKS = {
    "no constraint": lambda: adhere.Generate(),
    "a linear constraint on pictures": lambda: adhere.Upscale(image_of("RGB", 16, 16), 2),
    "a loss": lambda: adhere.Layout(image_of("RGB", 32, 32)),
    "known latents": lambda: large_hole(32),
}


@pytest.mark.parametrize("name", LATENT_TASKS)
@pytest.mark.parametrize("solver", [None, "inexact_newton", "dps"])
def test_all_evaluations_encodings_and_decodings_are_counted(clock, latent_pipe, name, solver):
    if name == "no constraint" and solver is not None:
        pytest.skip("these solvers need a constraint")
    for part in (latent_pipe.unet, latent_pipe.vae.encoder, latent_pipe.vae.decoder):
        clock.watch(part)
    task, steps = LATENT_TASKS[name](), 4
    expected = real_seconds(clock, latent_pipe, task, solver=solver, num_inference_steps=steps)
    assert estimated(latent_pipe, task, solver, steps).seconds == pytest.approx(expected)


def test_evaluations_of_a_smaller_picture_are_cheaper(clock, pixel_pipe):
    clock.watch(pixel_pipe.unet)
    pixel_pipe.max_downsamplings = 2
    task = large_hole(64)
    expected = real_seconds(clock, pixel_pipe, task)
    assert expected < 12 * 3 * 64 * 64
    assert estimated(pixel_pipe, task).seconds == pytest.approx(expected)
