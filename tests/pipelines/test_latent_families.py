"""Every latent family with diffusers' real classes, tiny and random: saved, loaded by adhere, compared with diffusers.

Every test that needs no special part of a model runs for each entry of `FAMILIES`; a new family adds a line there.
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
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux.pipeline_flux_inpaint import FluxInpaintPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import StableDiffusion3Img2ImgPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import StableDiffusion3InpaintPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

import adhere
from adhere import AdhereError, ConstrainedPipeline, Custom, Generate, Inpaint, Loss, Upscale
from adhere.core.latents import DecodedConstraint, KnownLatents
from adhere.core.presets import PRESETS
from adhere.pipelines.flux import FluxPipeline
from adhere.pipelines.ldm import UnconditionalLatentPipeline
from adhere.pipelines.prompts import PromptInputs
from adhere.pipelines.sd import SDPipeline
from adhere.pipelines.sd3 import SD3Pipeline
from adhere.pipelines.sdxl import SDXLPipeline
from tests.picture_files import hole, noise
from tests.tiny_latent_models import SCALED_LINEAR, stride, tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl, tiny_vae
from tests.tiny_models import load


@dataclass(frozen=True)
class Family:
    build: Callable[[Path], DiffusionPipeline]
    ours: type[ConstrainedPipeline]
    multiple: int = 8
    reads_text: bool = True


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
    "ldm": Family(lambda _: tiny_ldm(), UnconditionalLatentPipeline, 8, reads_text=False),
    "ldm kl": Family(lambda _: tiny_ldm(tiny_vae()), UnconditionalLatentPipeline, 16, reads_text=False),
}
any_family = pytest.mark.parametrize("name", FAMILIES)
one_per_class = pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "ldm"])
text_families = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.reads_text])
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
    """Return the constrained pipeline of a family, loaded from the saved folder."""
    return cache(lambda name: load(saved(name)))


@pytest.fixture(scope="module")
def diffusers_pipe_of(saved) -> Callable[[str], Any]:
    """Return diffusers' own pipeline of a family, loaded from the same folder."""

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


def prompt(name: str) -> dict[str, str]:
    return {"prompt": "a b"} if FAMILIES[name].reads_text else {}


def inpaint(height: int = 42, width: int = 60) -> Inpaint:
    return Inpaint(noise(height, width, 3), hole(height, width))


def upscale() -> Upscale:
    return Upscale(noise(10, 12, 3), 4)


def darken() -> Custom:
    return Custom(Loss(lambda x: x.square().mean((1, 2, 3))), SIZE)


# --- loading


@any_family
def test_a_folder_is_loaded_as_its_family(pipe_of, name):
    pipe, family = pipe_of(name), FAMILIES[name]
    assert type(pipe) is family.ours
    assert pipe.multiple == family.multiple
    assert all(side % pipe.multiple == 0 for side in pipe.native_size)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}
    assert pipe.state_shape(SIZE)[1:] == tuple(side // pipe.vae_scale_factor for side in SIZE)


@any_family
def test_a_folder_saved_by_adhere_is_loaded_by_diffusers(pipe_of, diffusers_pipe_of, tmp_path, name):
    pipe_of(name).save_pretrained(tmp_path)
    assert type(as_diffusers(tmp_path)) is type(diffusers_pipe_of(name))


@any_family
def test_from_pipe_shares_every_component_and_every_setting(diffusers_pipe_of, name):
    theirs = diffusers_pipe_of(name)
    ours: Any = adhere.from_pipe(theirs)
    assert type(ours) is FAMILIES[name].ours
    assert all(ours.components[part] is component for part, component in theirs.components.items())
    settings = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert settings.items() <= dict(ours.config).items()
    assert type(adhere.from_pipe(ours)) is type(ours)  # ours are taken too


# --- without a constraint, diffusers' own sampling

PROMPTS = {
    "prompt": {"prompt": "a b"},
    "no guidance": {"prompt": "a b", "guidance_scale": 1.0},
    "negative prompt": {"prompt": "a b", "negative_prompt": "c d e", "guidance_scale": 2.5},
    "prompts": {"prompt": ["a b", "c"], "negative_prompt": ["d", "e f"]},
}


def options_for_flux(options: dict[str, Any]) -> dict[str, Any]:
    """Return diffusers' arguments for the guidance of adhere: with a negative prompt it is classifier-free."""
    if "negative_prompt" not in options:
        return options
    scale = options.get("guidance_scale", 3.5)
    return options | {"true_cfg_scale": scale, "guidance_scale": 1.0}


@text_families
@pytest.mark.parametrize("case", PROMPTS)
def test_plain_sampling_is_what_diffusers_samples(pipe_of, diffusers_pipe_of, name, case):
    pipe, theirs, options = pipe_of(name), diffusers_pipe_of(name), PROMPTS[case]
    if name == "flux schnell" and case == "no guidance":
        options = {"prompt": "a b"}
    if "distilled" in name:
        options = {key: value for key, value in options.items() if key != "negative_prompt"}
    common = {"num_inference_steps": 4, "output_type": "latent"}
    ours = pipe(Generate(SIZE), generator=seeded(3), **common, **options)
    flux = isinstance(pipe, FluxPipeline)
    options = options_for_flux(options) if flux else options
    height, width = SIZE
    z = theirs(height=height, width=width, generator=seeded(3), **common, **options).images
    z = theirs._unpack_latents(z, height, width, theirs.vae_scale_factor) if flux else z
    assert ours.images.shape == z.shape
    torch.testing.assert_close(ours.images, z, atol=1e-4, rtol=0)
    assert ours.images.std() > 0.1
    assert (ours.nfe, ours.num_steps, ours.solver) == (4, 4, "plain")


@text_families
def test_pictures_are_what_diffusers_decodes(pipe_of, diffusers_pipe_of, name):
    pipe, theirs = pipe_of(name), diffusers_pipe_of(name)
    common = {"prompt": "a", "num_inference_steps": 2}
    ours = pipe(Generate(SIZE), generator=seeded(), output_type="pt", **common).images
    pictures = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), output_type="pt", **common).images
    torch.testing.assert_close(ours, pictures, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.reads_text])
def test_unconditional_sampling_is_what_diffusers_samples(pipe_of, diffusers_pipe_of, name):
    pipe, theirs = pipe_of(name), diffusers_pipe_of(name)
    pictures = theirs(generator=seeded(3), num_inference_steps=4, output_type="np").images
    z = pipe(Generate(), generator=seeded(3), num_inference_steps=4, output_type="latent").images
    ours = (pipe.decode(z).detach() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, pictures, atol=1e-4)
    assert ((ours > 0) & (ours < 1)).mean() > 0.5


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting_is_diffusers_own(diffusers_pipe_of, kind):
    theirs = diffusers_pipe_of("sd3")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    theirs = type(theirs)(**theirs.components | {"scheduler": scheduler})
    theirs.set_progress_bar_config(disable=True)
    ours: Any = adhere.from_pipe(theirs)
    options = {"prompt": "a", "num_inference_steps": 4, "output_type": "latent"}
    z = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), **options).images
    torch.testing.assert_close(ours(Generate(SIZE), generator=seeded(), **options).images, z, atol=1e-4, rtol=0)


# --- with constraints


@any_family
@pytest.mark.parametrize("solver", ["moment_matching", "inexact_newton", "ddnm", "repaint", "ding"])
def test_inpainting_keeps_known_pixels_and_costs_what_the_solver_states(pipe_of, name, solver):
    pipe, task = pipe_of(name), inpaint()
    out = pipe(task, solver=solver, num_inference_steps=2, num_images_per_prompt=2, **prompt(name))
    assert out.nfe == PRESETS[solver].evaluations(pipe.schedule(), 2)
    assert np.isfinite(out.residual).all()
    pictures = [np.asarray(image) for image in out.images]
    for picture in pictures:
        assert picture.shape == task.picture.pixels.shape
        assert np.array_equal(picture[~task.mask_array], task.picture.pixels[~task.mask_array])
    assert not np.array_equal(*pictures)


@any_family
@pytest.mark.parametrize("task", [upscale, darken])
def test_constraints_through_the_decoder_run(pipe_of, name, task):
    solver = "inexact_newton" if task is darken else "moment_matching_posterior"
    pipe = pipe_of(name)
    out = pipe(task(), solver=solver, num_inference_steps=2, output_type="np", **prompt(name))
    assert out.nfe == PRESETS[solver].evaluations(pipe.schedule(), 2)
    assert out.images.shape == (1, *((40, 48) if task is upscale else SIZE), 3)
    assert np.isfinite(out.residual).all()


@one_per_class
def test_an_exact_gradient_lowers_a_loss(pipe_of, name):
    """With decoder_backward, e is the exact gradient through a random decoder, and mpgd moves along it."""
    pipe, options = pipe_of(name), {"num_inference_steps": 4, "output_type": "latent"} | prompt(name)
    plain = pipe(Generate(SIZE), generator=seeded(), **options).images
    moved = pipe(darken(), solver="mpgd", decoder_backward=True, generator=seeded(), **options).images
    with torch.no_grad():
        before, after = (pipe.autoencoder.decode(z).square().mean() for z in (plain, moved))
    assert after < before


@one_per_class
def test_no_graph_is_built(pipe_of, monkeypatch, name):
    """No tensor is saved for a backward pass, and no part of the model runs with gradients switched on."""
    pipe, calls = pipe_of(name), []

    def refuse(_):
        raise AssertionError("a tensor was saved for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda packed: packed):
        pipe(inpaint(), num_inference_steps=1, **prompt(name))
        for solver in ("moment_matching_posterior", "inexact_newton", "ddnm", "plain"):
            pipe(upscale(), solver=solver, num_inference_steps=1, **prompt(name))

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
        out = pipe(darken(), num_inference_steps=1, output_type="latent", **prompt(name))
    assert calls and not any(calls)
    assert not out.images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@one_per_class
@pytest.mark.parametrize("solver", ["dps", "mmps", "freedom", "psld"])
def test_baselines_take_gradients_through_the_network(pipe_of, name, solver):
    saved, task = [], upscale() if solver == "psld" else inpaint()  # a constraint through the decoder
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(1) or t, lambda packed: packed):
        out = pipe_of(name)(task, solver=solver, num_inference_steps=1, **prompt(name))
    assert saved
    assert np.isfinite(out.residual).all()
    assert all(parameter.grad is None for parameter in getattr(pipe_of(name), pipe_of(name).network).parameters())


@one_per_class
def test_scattered_pixels_are_constrained_through_the_decoder_and_whole_cells_as_latents(pipe_of, name):
    pipe, kinds = pipe_of(name), {}
    for kind, mask in {"hole": hole(64, 64), "scattered": np.random.default_rng(0).random((64, 64)) < 0.3}.items():
        (crop,) = Inpaint(noise(64, 64, 3), mask).crops(pipe)
        with torch.no_grad():
            kinds[kind] = type(pipe.to_latent_constraint(crop.constraint))
    assert kinds == {"hole": KnownLatents, "scattered": DecodedConstraint}


# --- batches, dtypes


@one_per_class
def test_a_batch_equals_single_runs(pipe_of, name):
    """They differ by rounding, which depends on the batch and is divided by the difference step of 5e-3."""
    options = {"solver": "moment_matching_posterior", "num_inference_steps": 2, "output_type": "latent"} | prompt(name)
    pipe, task = pipe_of(name), inpaint()
    batch = pipe(task, num_images_per_prompt=2, generator=[seeded(4), seeded(5)], **options).images
    singles = torch.cat([pipe(task, generator=seeded(s), **options).images for s in (4, 5)])
    assert (batch - singles).abs().max() < 1e-2 * singles.abs().max()
    assert (batch[0] - batch[1]).abs().max() > 0.1 * singles.abs().max()


@text_families
def test_each_sample_has_its_own_prompt(pipe_of, name):
    options = {"num_inference_steps": 2, "output_type": "latent"}
    pipe, prompts = pipe_of(name), ["a b", "c d e"]
    batch = pipe(Generate(SIZE), prompts, generator=[seeded(), seeded()], **options).images
    singles = torch.cat([pipe(Generate(SIZE), prompt, generator=seeded(), **options).images for prompt in prompts])
    torch.testing.assert_close(batch, singles, atol=1e-4, rtol=0)
    without = pipe(Generate(SIZE), generator=seeded(), **options).images
    assert (batch[0] - batch[1]).abs().max() > 1e-5  # the prompt is read
    assert (batch[0] - without[0]).abs().max() > 1e-5


@text_families
def test_each_task_has_its_own_prompt_and_several_samples(pipe_of, name):
    """Pictures, masks and prompts differ; the samples of a task follow each other."""
    pipe, prompts, seeds = pipe_of(name), ["a b", "c d e"], (4, 5, 6, 7)
    tasks = [inpaint(), Inpaint(noise(42, 60, 3, seed=1), hole(42, 60)[:, ::-1].copy() | hole(42, 60))]
    options = {"num_inference_steps": 2, "output_type": "latent", "solver": "ddnm"}
    batch = pipe(tasks, prompts, num_images_per_prompt=2, generator=[seeded(s) for s in seeds], **options)
    samples = zip([tasks[0], tasks[0], tasks[1], tasks[1]], [prompts[0]] * 2 + [prompts[1]] * 2, seeds, strict=True)
    singles = [pipe(task, prompt, generator=seeded(seed), **options) for task, prompt, seed in samples]
    expected = torch.cat([one.images for one in singles])
    torch.testing.assert_close(batch.images, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3)
    assert batch.nfe == singles[0].nfe


@text_families
def test_one_prompt_serves_several_tasks(pipe_of, name):
    pipe, tasks = pipe_of(name), [Generate(SIZE), Generate(SIZE)]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    one, each = (
        pipe(tasks, prompt, generator=[seeded(4), seeded(5)], **options).images for prompt in ("a b", ["a b", "a b"])
    )
    assert torch.equal(one, each)


# --- embeddings


def encode(pipe, name: str, prompt: str, negative_prompt: str) -> dict[str, torch.Tensor]:
    """Return the arguments by which diffusers' own `encode_prompt` replaces two texts."""
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    with torch.no_grad():
        if name.startswith("flux"):
            embeds, pooled, _ = pipe.encode_prompt(prompt, None)
            negative, negative_pooled, _ = pipe.encode_prompt(negative_prompt, None)
            return dict(zip(names, (embeds, negative, pooled, negative_pooled), strict=True))
        if name.startswith("sd3"):
            given = pipe.encode_prompt(prompt, None, None, negative_prompt=negative_prompt)
        elif name.startswith("sdxl"):
            given = pipe.encode_prompt(prompt, negative_prompt=negative_prompt)
        else:
            given = pipe.encode_prompt(prompt, torch.device("cpu"), 1, True, negative_prompt)
    return dict(zip(names, given, strict=False))


@text_families
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_embeddings_give_the_pictures_of_their_texts(pipe_of, name, scale):
    pipe = pipe_of(name)
    is_guided = scale > 1 and "distilled" not in name  # otherwise a negative prompt is refused
    embeds = encode(pipe, name, "a b", "c d e")
    embeds = {key: value for key, value in embeds.items() if is_guided or not key.startswith("negative")}
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": scale, "num_images_per_prompt": 2}
    texts, embedded = (
        pipe(Generate(SIZE), generator=seeded(3), **options, **given).images
        for given in ({"prompt": "a b"} | ({"negative_prompt": "c d e"} if is_guided else {}), embeds)
    )
    torch.testing.assert_close(embedded, texts, atol=1e-5, rtol=0)
    other = pipe(
        Generate(SIZE), "c", generator=seeded(3), **options, **({"negative_prompt": "d"} if is_guided else {})
    ).images
    assert (other - texts).abs().max() > 1e-5


@text_families
def test_embeddings_of_two_tasks_are_theirs(pipe_of, name):
    pipe, tasks = pipe_of(name), [Generate(SIZE), Generate(SIZE)]
    first, second = (encode(pipe, name, prompt, "") for prompt in ("a b", "c d e"))
    options = {"num_inference_steps": 2, "output_type": "latent"}
    embeds = {key: torch.cat([first[key], second[key]]) for key in first if not key.startswith("negative")}
    generators = [[seeded(4), seeded(5)] for _ in range(2)]
    embedded = pipe(tasks, generator=generators[0], **options, **embeds).images
    texts = pipe(tasks, ["a b", "c d e"], generator=generators[1], **options).images
    torch.testing.assert_close(embedded, texts, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_embeddings_without_their_pooled_ones_are_refused(pipe_of, name):
    pipe = pipe_of(name)
    embeds = encode(pipe, name, "a", "b")
    with pytest.raises(AdhereError, match="prompt_embeds and pooled_prompt_embeds: give both"):
        pipe(Generate(SIZE), prompt_embeds=embeds["prompt_embeds"])
    del embeds["negative_pooled_prompt_embeds"]
    with pytest.raises(AdhereError, match="negative_prompt_embeds and negative_pooled_prompt_embeds: give both"):
        pipe(Generate(SIZE), **embeds)


def test_a_text_and_its_embeddings_together_are_refused(pipe_of):
    embeds = encode(pipe_of("sd"), "sd", "a", "b")
    with pytest.raises(ValueError, match="prompt and prompt_embeds are given: give one of them"):
        pipe_of("sd")(Generate(SIZE), "a", **embeds)
    del embeds["prompt_embeds"]
    with pytest.raises(ValueError, match="negative_prompt and negative_prompt_embeds are given: give one of them"):
        pipe_of("sd")(Generate(SIZE), "a", "b", **embeds)


# --- latents


@one_per_class
def test_the_noise_that_a_generator_would_draw_gives_the_same_picture(pipe_of, name):
    pipe, task = pipe_of(name), inpaint()
    options = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "latent"} | prompt(name)
    expected = pipe(task, generator=seeded(3), **options).images
    generator = seeded(3)
    latents = torch.randn(2, *pipe.state_shape(task.crops(pipe)[0].size), generator=generator)
    assert torch.equal(pipe(task, generator=generator, latents=latents, **options).images, expected)
    with pytest.raises(ValueError, match=rf"latents have shape .*: this call needs \(2, {latents.shape[1]}, "):
        pipe(task, latents=latents[..., :-1], **options)


# --- half precision


@one_per_class
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_keeps_a_float32_state(saved, name, dtype):
    pipe = load(saved(name), torch_dtype=dtype)
    assert getattr(pipe, pipe.network).dtype == pipe.vae.dtype == dtype
    for task in (inpaint(), upscale()):
        out = pipe(
            task, solver="moment_matching_posterior", num_inference_steps=2, output_type="latent", **prompt(name)
        )
        assert out.images.dtype == torch.float32
        assert out.images.isfinite().all() and np.isfinite(out.residual).all()
    assert pipe.vae.dtype == dtype


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.reads_text])
def test_a_model_that_reads_no_text_refuses_prompts_and_guidance(pipe_of, name):
    embeds = torch.zeros(1, 4, 16)
    for options in ({"prompt": "a"}, {"negative_prompt": "a"}, {"guidance_scale": 3.0}, {"prompt_embeds": embeds}):
        with pytest.raises(AdhereError, match="this model reads no"):
            pipe_of(name)(Generate(), **options)


@text_families
def test_a_negative_prompt_without_effect_is_refused(pipe_of, name):
    pipe, options = pipe_of(name), {"num_inference_steps": 1, "prompt": "a"}
    match = "this model is distilled" if "distilled" in name else "at guidance_scale = 1: leave it out, or give a scale"
    for negative in ("b", ["b"]):
        with pytest.raises(AdhereError, match=f"negative_prompt has no effect.*{match}"):
            pipe(Generate(SIZE), negative_prompt=negative, guidance_scale=1.0, **options)
    pipe(Generate(SIZE), negative_prompt="", guidance_scale=1.0, **options)
    if "distilled" not in name:
        pipe(Generate(SIZE), negative_prompt="b", guidance_scale=1.5, **options)


# --- callbacks, by the contracts of diffusers' PipelineTesterMixin


@text_families
def test_a_callback_may_change_the_guidance_scale(pipe_of, name):
    """As `test_callback_cfg`; from the next step on, the scale is the new one, unless it is embedded once."""
    pipe, scales = pipe_of(name), []

    def change(pipe, step, t, tensors):
        scales.append(pipe.guidance_scale)
        pipe._guidance_scale += 3.0
        return tensors

    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent", "prompt": "a b"}
    options |= {"negative_prompt": "c"} if isinstance(pipe, FluxPipeline) else {}
    fixed = pipe(Generate(SIZE), generator=seeded(), **options).images
    assert pipe.guidance_scale == (1.0 if "distilled" in name else 2.0)
    changed = pipe(Generate(SIZE), generator=seeded(), callback_on_step_end=change, **options).images
    assert pipe.num_timesteps == 3
    assert scales == ([1.0, 4.0, 7.0] if "distilled" in name else [2.0, 5.0, 8.0])
    assert torch.equal(changed, fixed) == ("distilled" in name)
    assert torch.equal(pipe(Generate(SIZE), generator=seeded(), **options).images, fixed)


@text_families
def test_guidance_may_be_limited_to_high_noise(pipe_of, name, monkeypatch):
    """Where it is off, the network sees the conditional half alone, with its embeddings."""
    pipe, sizes = pipe_of(name), []
    if isinstance(pipe, FluxPipeline) or "distilled" in name:
        pytest.skip("the network reads the scale itself")
    monkeypatch.setattr(pipe, "guidance_max_log_snr", 0.0)
    hook = getattr(pipe, pipe.network).register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    limited = pipe(Generate(SIZE), "a b", generator=seeded(), guidance_scale=4.0, output_type="latent").images
    hook.remove()
    assert set(sizes) == {1, 2} and sizes == sorted(sizes, reverse=True) and limited.isfinite().all()


def test_the_embedded_guidance_of_flux_may_change_too(pipe_of):
    def change(pipe, step, t, tensors):
        pipe._guidance_scale += 3.0

    pipe, options = pipe_of("flux"), {"num_inference_steps": 3, "output_type": "latent", "prompt": "a b"}
    fixed = pipe(Generate(SIZE), generator=seeded(), **options).images
    assert pipe.guidance_scale == 3.5
    assert not torch.equal(
        pipe(Generate(SIZE), generator=seeded(), callback_on_step_end=change, **options).images, fixed
    )


def test_denoisers_that_are_made_outside_of_a_call_keep_their_own_scale(pipe_of):
    pipe, z_t = pipe_of("sd"), torch.ones(1, 4, 6, 8)
    weak, strong = (pipe.make_denoiser(PromptInputs(1, ["a b"], guidance_scale=scale), SIZE) for scale in (2.0, 9.0))
    expected = weak(z_t, 500.0)
    strong(z_t, 500.0)
    pipe(Generate(SIZE), "a", num_inference_steps=1, guidance_scale=5.0)
    assert torch.equal(weak(z_t, 500.0), expected)


@any_family
def test_latents_that_a_callback_returns_at_the_last_step_are_the_result(pipe_of, name):
    """As `test_callback_inputs`."""

    def blank(pipe, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    options = {"num_inference_steps": 2, "output_type": "latent", "callback_on_step_end": blank}
    assert pipe_of(name)(Generate(), **options, **prompt(name)).images.abs().sum() == 0


# --- diffusers' inpainting and image-to-image pipelines

VARIANTS = [
    ("sd", StableDiffusionImg2ImgPipeline),
    ("sd", StableDiffusionInpaintPipeline),
    ("sdxl", StableDiffusionXLImg2ImgPipeline),
    ("sdxl", StableDiffusionXLInpaintPipeline),
    ("sd3", StableDiffusion3Img2ImgPipeline),
    ("sd3", StableDiffusion3InpaintPipeline),
    ("flux", FluxImg2ImgPipeline),
    ("flux", FluxInpaintPipeline),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_an_inpainting_or_image_to_image_pipeline_works_as_its_base_model_does(
    pipe_of, diffusers_pipe_of, tmp_path, name, variant
):
    theirs = variant.from_pipe(diffusers_pipe_of(name))
    ours: Any = adhere.from_pipe(theirs)
    ours.set_progress_bar_config(disable=True)
    assert type(ours) is FAMILIES[name].ours
    theirs.save_pretrained(tmp_path)
    options = {"num_inference_steps": 2, "output_type": "pt", **prompt(name)}
    expected = pipe_of(name)(inpaint(), generator=seeded(), **options).images
    for pipe in (ours, load(tmp_path)):
        pictures = pipe(inpaint(), generator=seeded(), **options).images
        torch.testing.assert_close(pictures, expected, atol=1e-3, rtol=0)  # other memory formats round differently


def test_an_inpainting_network_is_refused_when_it_is_loaded(tmp_path):
    theirs: Any = tiny_sd(tmp_path, in_channels=9)
    with pytest.raises(AdhereError, match="takes 9 channels, the latents have 4: use a base model"):
        adhere.from_pipe(StableDiffusionInpaintPipeline(**theirs.components, requires_safety_checker=False))
    theirs.save_pretrained(tmp_path / "model")
    with pytest.raises(AdhereError, match="takes 9 channels, the latents have 4: use a base model"):
        load(tmp_path / "model")
