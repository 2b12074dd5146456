"""NaN in any part of a model is an error that names the part, never a black picture."""

import logging
from typing import Any

import pytest
import torch

import adhere
from adhere import AdhereError, Custom, Generate, Inpaint, Layout, Loss, Upscale
from adhere.core.schedules import CosineSchedule
from adhere.pipelines._checks import CheckedDenoiser, FiniteChecks
from adhere.pipelines._index import SHIPPED_MODELS
from adhere.testing.priors import Gaussian
from tests.picture_files import hole, noise
from tests.tiny_latent_models import tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_models import edit_json, edit_weights, load

FAMILIES = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux, "ldm": lambda folder: tiny_ldm()}
TASKS = {
    "generate": lambda: Generate((32, 32)),
    "inpaint": lambda: Inpaint(noise(32, 32, 3), hole(32, 32)),
    "upscale": lambda: Upscale(noise(8, 8, 3), 4),
    "layout": lambda: Layout(noise(32, 32, 3), size=32),
    "loss": lambda: Custom(Loss(lambda x: x.square().mean((1, 2, 3))), 32),
}


def spoil(module: Any) -> None:
    """Make the output of a module NaN, as an overflow in float16 does."""
    with torch.no_grad():
        list(module.parameters())[-1].fill_(float("nan"))


def refusal(pipe: Any, task: Any, **options: Any) -> str:
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(AdhereError) as caught:
        pipe(task, num_inference_steps=2, **options)
    return str(caught.value)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nan_in_the_decoder_is_named(tmp_path, family, task):
    pipe: Any = adhere.from_pipe(FAMILIES[family](tmp_path))
    spoil(pipe.vae.decoder)
    options = {} if family == "ldm" else {"prompt": "a b"}
    assert "the decoder of the VAE returned NaN or infinity" in refusal(pipe, TASKS[task](), **options)


@pytest.mark.parametrize("task", ["inpaint", "upscale", "layout", "loss"])
def test_nan_in_the_encoder_is_named(tmp_path, task):
    pipe: Any = adhere.from_pipe(tiny_sd(tmp_path))
    spoil(pipe.vae.encoder)
    assert "the encoder of the VAE returned NaN or infinity" in refusal(pipe, TASKS[task](), prompt="a b")


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_nan_in_the_text_encoder_is_named(tmp_path, family):
    pipe: Any = adhere.from_pipe(FAMILIES[family](tmp_path))
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipe, name, None) is not None:
            with torch.no_grad():
                for parameter in getattr(pipe, name).parameters():
                    parameter.fill_(float("nan"))
    assert "check them, or the text encoder" in refusal(pipe, Generate((32, 32)), prompt="a b")


@pytest.mark.parametrize("task", TASKS)
def test_nan_in_the_network_is_named(tmp_path, task):
    pipe: Any = adhere.from_pipe(tiny_sd(tmp_path))
    spoil(pipe.unet)
    message = refusal(pipe, TASKS[task](), prompt="a b")
    assert "the network returned NaN or infinity at step 1 of 2" in message


@pytest.mark.parametrize("name", ["latents", "x0"])
def test_a_state_that_is_not_finite_does_not_blame_the_network(shared_model, name):
    def spoiled(pipe: Any, step: int, t: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensors[name] * float("nan")} if step == 0 else {}

    message = refusal(load(shared_model), TASKS["inpaint"](), callback_on_step_end=spoiled)
    assert message.startswith("the state at the network is NaN or infinity at step 2 of 2")
    assert "the solver has diverged, or the constraint or a callback returned NaN" in message


@pytest.mark.parametrize("broken", ["network", "decoder"])
def test_where_checks_are_deferred_the_first_part_is_named(broken):
    """On a GPU a check at each call would wait for the device; what comes after the first NaN is NaN, too."""
    checks, good = FiniteChecks(is_deferred=True), torch.ones(2, 3)
    bad = good * float("inf")
    checks.record("encoder", good, good)
    checks.record("network", good, bad if broken == "network" else good)
    checks.record("decoder", bad if broken == "network" else good, bad)
    with pytest.raises(AdhereError, match=f"the {broken} returned NaN or infinity"):
        checks.check()
    checks.check()  # it starts again


def test_after_a_call_nothing_is_recorded(tmp_path):
    pipe: Any = adhere.from_pipe(tiny_sd(tmp_path))
    spoil(pipe.vae.decoder)
    refusal(pipe, Generate((32, 32)))
    assert pipe.decode(torch.zeros(1, 4, 4, 4)).isnan().all()


# --- a network that does not predict what its scheduler says


class Blobs:
    """A trained network of some prediction type: the exact one for a Gaussian prior."""

    def __init__(self, stated: str) -> None:
        prior = Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), 0.1 * torch.eye(16, dtype=torch.float64))
        self.schedule, self.dtype, self.stated = CosineSchedule(), torch.float32, stated
        self.exact = prior.denoiser(self.schedule)

    def __call__(self, x_t: torch.Tensor, t: float) -> torch.Tensor:
        x0 = self.exact(x_t.double(), t).float()
        if self.stated == "v_prediction":
            return x0
        alpha, sigma = self.schedule(t)
        v = (alpha * x_t - x0) / sigma
        return (x_t - sigma * v) / alpha  # v read as epsilon


@pytest.mark.parametrize("stated", ["v_prediction", "epsilon"])
def test_v_that_is_read_as_epsilon_is_noticed(caplog, stated):
    denoiser = CheckedDenoiser(Blobs(stated), [0.97, 0.5], FiniteChecks())
    x_t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = denoiser(x_t, 0.97)
    denoiser.check(x0)
    assert ("set prediction_type" in caplog.text) == (stated == "epsilon")


def test_at_low_noise_nothing_can_be_said(caplog):
    denoiser = CheckedDenoiser(Blobs("epsilon"), [0.5], FiniteChecks())
    denoiser.check(denoiser(torch.ones(1, 1, 4, 4), 0.5))
    assert not caplog.records


def test_a_model_that_lost_its_prediction_type_is_noticed(model_with, caplog):
    """A network that returns zero predicts v = 0 for pictures of zeros, but no noise."""
    folder = model_with(prediction_type="v_prediction")
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    load(folder)(Generate((8, 8)), num_inference_steps=4)
    assert not caplog.records
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    load(folder)(Generate((8, 8)), num_inference_steps=4)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_models_that_ship_are_not_suspected(name, caplog):
    pipe = load(name)
    for solver in ("plain", None, "moment_matching_posterior"):
        pipe(Upscale(noise(8, 8, 3), 4), num_inference_steps=2, solver=solver)
    assert not [record for record in caplog.records if "prediction_type" in record.getMessage()]
