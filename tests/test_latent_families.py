"""Every latent family with diffusers' real classes, tiny and random: saved, loaded as ours, compared with diffusers'.

What holds for one family must hold for each: a newcomer adds a line to `FAMILIES`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from adhere import AdhereError, ConstrainedPipeline, Inpaint
from adhere.core.constraints import Loss
from adhere.core.latents import Recoded, Through
from adhere.core.solvers import METHODS
from adhere.families.flux import FluxPipeline
from adhere.families.ldm import UnconditionalLatentPipeline
from adhere.families.sd import SDPipeline
from adhere.families.sd3 import SD3Pipeline
from adhere.families.sdxl import SDXLPipeline
from adhere.tasks import Generate, Satisfy, Upscale
from tests.core.laws import evaluations
from tests.picture_files import hole, noise
from tests.test_families import cost
from tests.tiny_latent_models import SCALED_LINEAR, stride, tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl, tiny_vae
from tests.tiny_models import load


@dataclass(frozen=True)
class Family:
    build: Callable[[Path], DiffusionPipeline]
    ours: type[ConstrainedPipeline]
    multiple: int = 8
    reads: bool = True


EULER = EulerDiscreteScheduler(timestep_spacing="leading", **SCALED_LINEAR)
FAMILIES = {
    "sd": Family(tiny_sd, SDPipeline),
    "sd 2 (v)": Family(lambda folder: tiny_sd(folder, stride("v_prediction"), use_linear_projection=True), SDPipeline),
    "sd distilled": Family(lambda folder: tiny_sd(folder, time_cond_proj_dim=16), SDPipeline),
    "sdxl": Family(tiny_sdxl, SDXLPipeline),
    "sdxl euler": Family(lambda folder: tiny_sdxl(folder, EULER), SDXLPipeline),
    "sdxl distilled": Family(lambda folder: tiny_sdxl(folder, time_cond_proj_dim=16), SDXLPipeline),
    "sd3": Family(tiny_sd3, SD3Pipeline, 16),
    "sd3 without t5": Family(lambda folder: tiny_sd3(folder, t5=False), SD3Pipeline, 16),
    "flux": Family(tiny_flux, FluxPipeline, 16),
    "flux schnell": Family(lambda folder: tiny_flux(folder, schnell=True), FluxPipeline, 16),
    "ldm": Family(lambda _: tiny_ldm(), UnconditionalLatentPipeline, 8, reads=False),
    "ldm kl": Family(lambda _: tiny_ldm(tiny_vae()), UnconditionalLatentPipeline, 16, reads=False),
}
any_family = pytest.mark.parametrize("name", FAMILIES)
each_class = pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "ldm"])
readers = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.reads])
SIZE = (48, 64)  # not square: rows and columns must not be confused


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        FAMILIES[name].build(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def pipe_of(saved) -> Callable[[str], Any]:
    """Ours, from the saved folder."""
    return cache(lambda name: load(saved(name)))


@pytest.fixture(scope="module")
def theirs_of(saved) -> Callable[[str], Any]:
    """diffusers' own, from the same folder."""

    @cache
    def loaded(name: str) -> Any:
        pipe = as_diffusers(saved(name))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return loaded


def as_diffusers(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    absent = {part: None for part, entry in index.items() if entry == [None, None]}
    return DiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False, **absent)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(name: str) -> dict[str, str]:
    return {"prompt": "a b"} if FAMILIES[name].reads else {}


def inpaint(height: int = 42, width: int = 60) -> Inpaint:
    return Inpaint(noise(height, width, 3), hole(height, width))


def upscale() -> Upscale:
    return Upscale(noise(10, 12, 3), 4)


def darken() -> Satisfy:
    return Satisfy(Loss(lambda x: x.square().mean((1, 2, 3))), SIZE)


# --- loading


@any_family
def test_the_folder_is_loaded_as_its_family(pipe_of, name):
    pipe, family = pipe_of(name), FAMILIES[name]
    assert type(pipe) is family.ours
    assert pipe.multiple == family.multiple
    assert all(side % pipe.multiple == 0 for side in pipe.native_size)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}
    assert pipe.state_shape(SIZE)[1:] == tuple(side // pipe.vae_scale_factor for side in SIZE)


@any_family
def test_saved_by_us_it_is_diffusers_again(pipe_of, theirs_of, tmp_path, name):
    pipe_of(name).save_pretrained(tmp_path)
    assert type(as_diffusers(tmp_path)) is type(theirs_of(name))


@any_family
def test_from_pipe_shares_every_component_and_every_setting(theirs_of, name):
    theirs = theirs_of(name)
    ours: Any = ConstrainedPipeline.from_pipe(theirs)
    assert type(ours) is FAMILIES[name].ours
    assert all(ours.components[part] is component for part, component in theirs.components.items())
    settings = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert settings.items() <= dict(ours.config).items()
    assert type(ConstrainedPipeline.from_pipe(ours)) is type(ours)  # ours are taken too


# --- without a constraint, diffusers' own sampling

TOLD = {
    "prompt": {"prompt": "a b"},
    "no guidance": {"prompt": "a b", "guidance_scale": 1.0},
    "negative prompt": {"prompt": "a b", "negative_prompt": "c d e", "guidance_scale": 2.5},
    "prompts": {"prompt": ["a b", "c"], "negative_prompt": ["d", "e f"]},
}


def as_flux_says(options: dict[str, Any]) -> dict[str, Any]:
    """Guidance without a negative prompt is embedded, with one it is classifier-free and the embedded one 1."""
    if "negative_prompt" not in options:
        return options
    scale = options.get("guidance_scale", 3.5)
    return options | {"true_cfg_scale": scale, "guidance_scale": 1.0}


@readers
@pytest.mark.parametrize("told", TOLD)
def test_plain_sampling_is_what_diffusers_samples(pipe_of, theirs_of, name, told):
    pipe, theirs, options = pipe_of(name), theirs_of(name), TOLD[told]
    if name == "flux schnell" and told == "no guidance":
        options = {"prompt": "a b"}
    common = {"num_inference_steps": 4, "output_type": "latent"}
    ours = pipe(Generate(SIZE), generator=seeded(3), **common, **options)
    flux = isinstance(pipe, FluxPipeline)
    options = as_flux_says(options) if flux else options
    height, width = SIZE
    z = theirs(height=height, width=width, generator=seeded(3), **common, **options).images
    z = theirs._unpack_latents(z, height, width, theirs.vae_scale_factor) if flux else z
    assert ours.images.shape == z.shape
    torch.testing.assert_close(ours.images, z, atol=1e-4, rtol=0)
    assert ours.images.std() > 0.1
    assert (ours.nfe, ours.steps, ours.solver) == (4, 4, "plain")


@readers
def test_pictures_are_what_diffusers_decodes(pipe_of, theirs_of, name):
    pipe, theirs = pipe_of(name), theirs_of(name)
    common = {"prompt": "a", "num_inference_steps": 2}
    ours = pipe(Generate(SIZE), generator=seeded(), output_type="pt", **common).images
    pictures = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), output_type="pt", **common).images
    torch.testing.assert_close(ours, pictures, atol=0.5 / 255 + 1e-4, rtol=0)  # ours are rounded to 8 bits


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.reads])
def test_unconditional_sampling_is_what_diffusers_samples(pipe_of, theirs_of, name):
    pipe, theirs = pipe_of(name), theirs_of(name)
    pictures = theirs(generator=seeded(3), num_inference_steps=4, output_type="np").images
    z = pipe(Generate(), generator=seeded(3), num_inference_steps=4, output_type="latent").images
    ours = (pipe.decode(z).detach() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, pictures, atol=1e-4)
    assert ((ours > 0) & (ours < 1)).mean() > 0.5


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting_is_diffusers_own(theirs_of, kind):
    theirs = theirs_of("sd3")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    theirs = type(theirs)(**theirs.components | {"scheduler": scheduler})
    theirs.set_progress_bar_config(disable=True)
    ours: Any = ConstrainedPipeline.from_pipe(theirs)
    options = {"prompt": "a", "num_inference_steps": 4, "output_type": "latent"}
    z = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), **options).images
    torch.testing.assert_close(ours(Generate(SIZE), generator=seeded(), **options).images, z, atol=1e-4, rtol=0)


# --- with constraints


@any_family
@pytest.mark.parametrize("solver", ["moment_matching_calm", "inexact_newton", "ddnm", "repaint", "ding"])
def test_inpainting_keeps_what_is_known_and_costs_what_the_law_says(pipe_of, name, solver):
    task = inpaint()
    out = pipe_of(name)(task, solver=solver, num_inference_steps=2, batch_size=2, **text(name))
    assert out.nfe == cost(solver, 2)
    assert np.isfinite(out.error).all()
    pictures = [np.asarray(image) for image in out.images]
    for picture in pictures:
        assert picture.shape == task.picture.pixels.shape
        assert np.array_equal(picture[~task.repaint], task.picture.pixels[~task.repaint])
    assert not np.array_equal(*pictures)


@any_family
@pytest.mark.parametrize("task", [upscale, darken])
def test_constraints_through_the_decoder_run(pipe_of, name, task):
    solver = "inexact_newton" if task is darken else "moment_matching"
    pipe = pipe_of(name)
    out = pipe(task(), solver=solver, num_inference_steps=2, output_type="np", **text(name))
    assert out.nfe == evaluations(METHODS[solver], 2, schedule=pipe.schedule())
    assert out.images.shape == (1, *((40, 48) if task is upscale else SIZE), 3)
    assert np.isfinite(out.error).all()


@each_class
def test_an_exact_gradient_lowers_a_loss(pipe_of, name):
    """decoder_backward differentiates a random decoder exactly; e itself (mpgd) then is a descent direction."""
    pipe, options = pipe_of(name), {"num_inference_steps": 4, "output_type": "latent"} | text(name)
    plain = pipe(Generate(SIZE), **options).images
    moved = pipe(darken(), solver="mpgd", decoder_backward=True, **options).images
    with torch.no_grad():
        before, after = (pipe.codec.decode(z).square().mean() for z in (plain, moved))
    assert after < before


@each_class
def test_no_graph_is_built(pipe_of, monkeypatch, name):
    """No tensor is saved for a backward pass, no part of the model sees gradients switched on, whatever the solver."""
    pipe, calls = pipe_of(name), []

    def refuse(_):
        raise AssertionError("a tensor was saved for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda packed: packed):
        pipe(inpaint(), num_inference_steps=1, **text(name))
        for method in ("moment_matching", "inexact_newton", "ddnm", "plain"):
            pipe(upscale(), solver=method, num_inference_steps=1, **text(name))

    def watched(function):
        def call(*args, **kwargs):
            calls.append(torch.is_grad_enabled())
            return function(*args, **kwargs)

        return call

    network = getattr(pipe, pipe.network)
    monkeypatch.setattr(network, "forward", watched(network.forward))
    for part in ("encode", "decode"):
        monkeypatch.setattr(pipe.vae, part, watched(getattr(pipe.vae, part)))
    with torch.enable_grad():
        out = pipe(darken(), num_inference_steps=1, output_type="latent", **text(name))
    assert calls and not any(calls)
    assert not out.images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@each_class
@pytest.mark.parametrize("solver", ["dps", "mmps", "freedom", "psld"])
def test_some_take_gradients_through_the_network(pipe_of, name, solver):
    saved, task = [], upscale() if solver == "psld" else inpaint()  # a constraint through the decoder
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(1) or t, lambda packed: packed):
        out = pipe_of(name)(task, solver=solver, num_inference_steps=1, **text(name))
    assert saved
    assert np.isfinite(out.error).all()
    assert all(parameter.grad is None for parameter in getattr(pipe_of(name), pipe_of(name).network).parameters())


@each_class
def test_scattered_pixels_are_asked_of_the_decoder_and_whole_cells_of_the_latents(pipe_of, name):
    pipe, kinds = pipe_of(name), {}
    for kind, repaint in {"hole": hole(64, 64), "scattered": np.random.default_rng(0).random((64, 64)) < 0.3}.items():
        (window,) = Inpaint(noise(64, 64, 3), repaint).windows(pipe)
        with torch.no_grad():
            kinds[kind] = type(pipe.lift(window.constraint))
    assert kinds == {"hole": Recoded, "scattered": Through}


# --- batches, dtypes


@each_class
def test_a_batch_equals_single_runs(pipe_of, name):
    """Up to rounding, which depends on the batch and is divided by the difference step of 5e-3."""
    options = {"solver": "moment_matching", "num_inference_steps": 2, "output_type": "latent"} | text(name)
    pipe, task = pipe_of(name), inpaint()
    batch = pipe(task, batch_size=2, generator=[seeded(4), seeded(5)], **options).images
    singles = torch.cat([pipe(task, generator=seeded(s), **options).images for s in (4, 5)])
    assert (batch - singles).abs().max() < 1e-2 * singles.abs().max()
    assert (batch[0] - batch[1]).abs().max() > 0.1 * singles.abs().max()


@readers
def test_each_sample_has_its_own_prompt(pipe_of, name):
    options = {"num_inference_steps": 2, "output_type": "latent"}
    pipe, prompts = pipe_of(name), ["a b", "c d e"]
    batch = pipe(Generate(SIZE), prompts, generator=[seeded(), seeded()], **options).images
    singles = torch.cat([pipe(Generate(SIZE), prompt, generator=seeded(), **options).images for prompt in prompts])
    torch.testing.assert_close(batch, singles, atol=1e-4, rtol=0)
    without = pipe(Generate(SIZE), generator=seeded(), **options).images
    assert (batch[0] - batch[1]).abs().max() > 1e-5  # the prompt is read
    assert (batch[0] - without[0]).abs().max() > 1e-5


@each_class
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_keeps_a_float32_state(saved, name, dtype):
    pipe = load(saved(name), torch_dtype=dtype)
    assert getattr(pipe, pipe.network).dtype == pipe.vae.dtype == dtype
    for task in (inpaint(), upscale()):
        out = pipe(task, solver="moment_matching", num_inference_steps=2, output_type="latent", **text(name))
        assert out.images.dtype == torch.float32
        assert out.images.isfinite().all() and np.isfinite(out.error).all()
    assert pipe.vae.dtype == dtype


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.reads])
def test_a_model_without_text_reads_none(pipe_of, name):
    for told in ({"prompt": "a"}, {"negative_prompt": "a"}, {"guidance_scale": 3.0}):
        with pytest.raises(AdhereError, match="this model reads no"):
            pipe_of(name)(Generate(), **told)
