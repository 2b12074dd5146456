"""Programs may set torch's default dtype and device, as scientific ones do: a run gives the same picture to the bit."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import adhere
from adhere import Blur, Custom, Downsample, Generate, Inpaint, Layout, Loss, Restore, Silhouette, Style, Upscale
from adhere.core.operators import Gray, operator
from adhere.core.presets import PRESETS
from adhere.testing import check_operator, check_solver
from adhere.testing.priors import FactorMixture
from tests.picture_files import hole, image_of, noise
from tests.tiny_latent_models import tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_models import PIXEL_PRESETS, load

DTYPES = [torch.float64, torch.bfloat16, torch.float16]
TASKS: dict[str, Callable[[], adhere.tasks.Task]] = {
    "inpaint": lambda: Inpaint(noise(21, 30, 3), hole(21, 30)),
    "inpaint gray": lambda: Inpaint(image_of("L", 21, 30), hole(21, 30)),
    "upscale": lambda: Upscale(noise(8, 8, 3), 4),
    "restore": lambda: Restore(noise(8, 8, 3), Downsample(2) @ Blur(1.0), 0.1),
    "gray": lambda: Restore(Gray()(torch.zeros(1, 3, 16, 16, dtype=torch.float32, device="cpu")), Gray()),
    "function": lambda: Restore(noise(8, 8, 3), operator(lambda x: x[..., ::2, ::2], (3, 16, 16))),
    "generate": lambda: Generate((32, 32)),
    "layout": lambda: Layout(noise(32, 32, 3), size=32),
    "silhouette": lambda: Silhouette(hole(32, 32), size=32),
    "style": lambda: Style(noise(32, 32, 3), size=32),
    "loss": lambda: Custom(Loss(lambda x: x.square().mean((1, 2, 3))), 32),
}
FAMILIES = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux, "ldm": lambda folder: tiny_ldm()}


@pytest.fixture(autouse=True)
def restore_defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def picture(pipe: Any, task: adhere.tasks.Task, **options: Any) -> torch.Tensor:
    options = {"num_inference_steps": 2, "output_type": "pt"} | options
    return pipe(task, generator=torch.Generator("cpu").manual_seed(0), **options).images


def test_loading_says_nothing_about_the_default_dtype(model_with, caplog):
    folder = model_with()
    torch.set_default_dtype(torch.float64)
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)  # it does not propagate
    try:
        pipes = [load(folder), adhere.load("adhere-photo"), adhere.load("adhere-emoji")]
    finally:
        diffusers_logger.removeHandler(caplog.handler)
    assert not caplog.messages
    models = [part for pipe in pipes for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {model.dtype for model in models} == {torch.float32}


@pytest.mark.parametrize("name", TASKS)
def test_no_tensor_of_a_task_takes_the_default_dtype_or_device(shared_model, name):
    pipe = load(shared_model)
    expected = picture(pipe, TASKS[name]())
    for dtype in DTYPES:
        torch.set_default_dtype(dtype)
        assert torch.equal(picture(pipe, TASKS[name]()), expected)
    torch.set_default_dtype(torch.float32)
    if name not in ("style", "function", "loss"):  # their functions are the user's, or those of another package
        torch.set_default_device("meta")
        assert torch.equal(picture(pipe, TASKS[name]()), expected)


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_no_tensor_of_a_solver_takes_the_default_dtype_or_device(shared_model, solver):
    pipe, task = load(shared_model), TASKS["inpaint"]()
    expected = picture(pipe, task, solver=solver)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(picture(pipe, task, solver=solver), expected)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("meta")
    assert torch.equal(picture(pipe, task, solver=solver), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_tensor_of_a_family_takes_the_default_dtype(tmp_path, name):
    pipe: Any = adhere.from_pipe(FAMILIES[name](tmp_path))
    pipe.set_progress_bar_config(disable=True)
    options = {} if name == "ldm" else {"prompt": "a b"}
    expected = picture(pipe, TASKS["inpaint"](), **options)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(picture(pipe, TASKS["inpaint"](), **options), expected)


def test_a_model_is_loaded_in_float32_whatever_the_default_dtype_is(shared_model):
    torch.set_default_dtype(torch.float64)
    pipe = load(shared_model)
    assert pipe.unet.dtype == torch.float32
    assert torch.isfinite(picture(pipe, TASKS["inpaint"]())).all()


def test_the_checks_and_the_priors_take_no_default():
    x = torch.randn(40, 1, 3, 3, dtype=torch.float64)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    check_operator(Downsample(2), (3, 8, 8))
    check_solver(PRESETS["newton_exact"].solver)
    prior = FactorMixture.fit(x, 2, 2, generator=torch.Generator("cpu").manual_seed(0))
    assert prior.means.dtype == torch.float64
    assert prior.means.device.type == "cpu"
