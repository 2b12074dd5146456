"""Latent pipelines with LoRAs, other autoencoders and schedulers, offloading and flows; known parts of latents."""

import json
import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d

import adhere
from adhere import AdhereError, Generate, Inpaint
from adhere.core.latents import KnownLatents
from adhere.core.presets import PRESETS
from adhere.core.schedules import DDPMSchedule, FlowSchedule, log_snr, log_snr_spacing
from adhere.pipelines import schedulers
from adhere.pipelines.latent import DiffusersVAE, _fill_unknown, _fully_known_cells, _hole_wider_than
from adhere.pipelines.schedulers import noise_schedule
from adhere.pipelines.sd import RectifiedFlowPipeline
from tests.picture_files import hole, noise
from tests.pipelines.test_latent_families import SIZE, darken, inpaint, seeded, upscale
from tests.tiny_latent_models import (
    SCALED_LINEAR,
    tinier_vae,
    tiny_flux,
    tiny_ldm,
    tiny_sd,
    tiny_sd3,
    tiny_sdxl,
    tiny_vae,
)
from tests.tiny_models import edit_json, load

BUILDERS = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux}
FEW: dict[str, Any] = {"prompt": "a b", "num_inference_steps": 2, "output_type": "latent"}


def built(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Return diffusers' pipeline and the constrained one with the same components."""
    theirs: Any = BUILDERS[name](folder, **options)
    ours: Any = adhere.from_pipe(theirs)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


# --- LoRA


@pytest.mark.parametrize("name", BUILDERS)
def test_a_lora_is_loaded_and_unloaded_as_in_diffusers(tmp_path, name):
    donor = built(name, tmp_path)[1]
    network = getattr(donor, donor.network)
    torch.manual_seed(0)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(donor).save_lora_weights(tmp_path, **{f"{donor.network}_lora_layers": get_peft_model_state_dict(network)})

    theirs, ours = built(name, tmp_path)
    plain = ours(Generate(SIZE), generator=seeded(3), **FEW).images
    ours.load_lora_weights(tmp_path)
    adapted = ours(Generate(SIZE), generator=seeded(3), **FEW).images
    assert (adapted - ours(Generate(SIZE), generator=seeded(4), **FEW).images).abs().max() > 0
    z = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(3), **FEW).images  # it shares the adapted network
    z = theirs._unpack_latents(z, *SIZE, theirs.vae_scale_factor) if name == "flux" else z
    torch.testing.assert_close(adapted, z, atol=1e-4, rtol=0)
    assert (adapted - plain).abs().max() > 1e-4
    assert np.isfinite(ours(inpaint(), "a", num_inference_steps=1).residual).all()
    ours.unload_lora_weights()
    assert torch.equal(ours(Generate(SIZE), generator=seeded(3), **FEW).images, plain)


# --- autoencoders


def test_the_tiny_autoencoder_decodes_as_in_diffusers(tmp_path):
    theirs, ours = built("sd", tmp_path)
    theirs.vae = ours.vae = tinier_vae()
    common = {**FEW, "output_type": "pt"}
    expected = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), **common).images
    pictures = ours(Generate(SIZE), generator=seeded(), **common).images
    torch.testing.assert_close(pictures, expected, atol=1e-4, rtol=0)
    for task in (inpaint(), upscale(), darken()):
        assert np.isfinite(ours(task, "a", num_inference_steps=1).residual).all()


def test_slicing_changes_nothing_and_tiling_little(tmp_path):
    pipe = built("sd", tmp_path)[1]
    options = FEW | {"num_images_per_prompt": 2, "solver": "ddnm"}
    task, whole = inpaint(), pipe(inpaint(), generator=seeded(), **options).images
    pipe.vae.enable_slicing()
    torch.testing.assert_close(pipe(task, generator=seeded(), **options).images, whole, atol=1e-4, rtol=0)
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 4
    tiled = pipe(task, generator=seeded(), **options).images
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).square().mean().sqrt() < 0.2 * whole.std()


def test_means_and_deviations_per_latent_channel_are_used_as_in_diffusers(tmp_path):
    """Fine-tuned SDXL autoencoders have them."""
    means, stds = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]
    theirs, ours = built("sdxl", tmp_path, vae=tiny_vae(latents_mean=means, latents_std=stds))
    common = {**FEW, "output_type": "pt"}
    expected = theirs(height=SIZE[0], width=SIZE[1], generator=seeded(), **common).images
    pictures = ours(Generate(SIZE), generator=seeded(), **common).images
    torch.testing.assert_close(pictures, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"shift_factor": 0.3}, {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}],
)
def test_decoding_undoes_the_scaling_of_encoding(options):
    """The autoencoder gets its own latents back, whatever scale and shift the denoiser's latents have."""
    vae = tiny_vae(**options)
    autoencoder, x = DiffusersVAE.from_config(vae), torch.rand(2, 3, 16, 24, generator=seeded()) * 2 - 1
    expected = vae.decode(vae.encode(x).latent_dist.mode()).sample
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("force", "kept"), [(True, False), (False, True)])
def test_a_half_precision_autoencoder_that_overflows_is_float32_for_the_run(tmp_path, monkeypatch, force, kept):
    pipe = built("sdxl", tmp_path, vae=tiny_vae(force_upcast=force))[1].to(torch.float16)
    seen, decode = set(), pipe.vae.decode

    def watched(z, **options):
        seen.add(z.dtype)
        return decode(z, **options)

    monkeypatch.setattr(pipe.vae, "decode", watched)
    pipe(upscale(), "a", solver="ddnm", num_inference_steps=1)
    assert seen == {torch.float16 if kept else torch.float32}
    assert pipe.vae.dtype == torch.float16
    pipe(upscale(), "a", num_inference_steps=1, decoder_backward=True)  # weights that were moved still take gradients

    def fail(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(pipe.unet, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        pipe(Generate(SIZE), "a")
    assert pipe.vae.dtype == torch.float16  # put back after an error too


def test_only_finished_pictures_are_quantized_to_the_code_book(monkeypatch):
    pipe: Any = adhere.from_pipe(tiny_ldm())
    pipe.set_progress_bar_config(disable=True)
    quantized, forward = [], pipe.vqvae.quantize.forward
    monkeypatch.setattr(pipe.vqvae.quantize, "forward", lambda z: quantized.append(1) or forward(z))
    pipe(upscale(), num_inference_steps=2)
    assert len(quantized) == 1


# --- known parts of latents


def test_a_cell_is_known_when_all_its_pixels_are():
    known = torch.ones(1, 1, 16, 24)
    known[..., 3, 9] = 0
    assert _fully_known_cells(known, 8).tolist() == [[[[1, 0, 1], [1, 1, 1]]]]


@pytest.mark.parametrize(("across", "is_wide"), [(32, False), (33, True)])
def test_a_hole_is_wide_if_its_middle_is_far_from_known_pixels_whatever_narrow_lines_there_are(across, is_wide):
    known = torch.ones(1, 1, 80, 192)
    known[..., 20 : 20 + across, 10:90] = 0
    known[..., ::2, 100:] = 0  # most of what is missing
    assert _hole_wider_than(known, 16) == is_wide


@pytest.mark.parametrize(("across", "encodings"), [(32, 1), (40, 2)])
def test_only_known_latents_beside_a_wide_hole_are_encoded_again(tmp_path, monkeypatch, across, encodings):
    """The middle of a wide hole is further than two cells of 8 pixels from known pixels."""
    pipe, calls = built("sd", tmp_path)[1], []
    encode = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: calls.append(1) or encode(x))
    mask = np.zeros((64, 128), bool)
    mask[:, 40 : 40 + across] = True
    pipe(Inpaint(noise(64, 128, 3), mask), num_inference_steps=3, generator=seeded())
    assert len(calls) == encodings


def test_known_latents_are_encoded_again_at_the_first_noise_level_from_log_snr_minus_2_on(tmp_path, monkeypatch):
    """Where it was measured to help (docs/experiments/adhere-emoji.md). Here, levels are 0.1 apart."""
    pipe, calls, counts = built("sd", tmp_path)[1], [], []
    encode = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: calls.append(1) or encode(x))
    mask = np.zeros((64, 128), bool)
    mask[:, 40:80] = True
    spacing = partial(log_snr_spacing, log_snr_min=-2.55, log_snr_max=-1.55)
    sampler = replace(PRESETS["ddnm"], timesteps=spacing, num_steps=11)

    def count(pipe, step, timestep, tensors):
        counts.append((log_snr(pipe.schedule(), float(timestep)), len(calls)))
        return tensors

    pipe(Inpaint(noise(64, 128, 3), mask), solver=sampler, callback_on_step_end=count, generator=seeded())
    before = [level for level, encodings in counts if encodings == 1]
    assert len(counts) == 11 and calls == [1, 1]
    assert max(before) == pytest.approx(-2.05, abs=0.06)


def two_tasks(mask: np.ndarray, other_mask: np.ndarray) -> list[Inpaint]:
    """Return tasks with different pictures."""
    return [Inpaint(noise(*one.shape, 3, seed=i), one) for i, one in enumerate((mask, other_mask))]


@pytest.mark.parametrize("kind", ["wide hole", "scattered"])
def test_tasks_that_encode_again_or_decode_share_a_batch_and_equal_single_runs(tmp_path, kind):
    """Known latents beside wide holes are encoded again; scattered pixels are constrained through the decoder."""
    pipe = built("sd", tmp_path)[1]
    if kind == "wide hole":
        masks = [np.zeros((64, 128), bool) for _ in range(2)]
        masks[0][:, 40:90] = masks[1][:, 60:120] = True
    else:
        masks = [np.random.default_rng(seed).random((64, 64)) < 0.3 for seed in (0, 1)]
    tasks, seeds = two_tasks(masks[0], masks[1]), (4, 5)
    latents = torch.randn(2, 4, *(side // 8 for side in masks[0].shape), generator=seeded(3))

    def run(tasks, latents, seeds):
        return pipe(tasks, latents=latents, generator=[seeded(seed) for seed in seeds], **FEW)

    batch = run(tasks, latents, seeds)
    singles = [run(tasks[i], latents[i : i + 1], seeds[i : i + 1]) for i in range(2)]
    assert batch.nfe == singles[0].nfe
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-2)
    nudged = run(tasks, latents.nextafter(-latents.sign() * torch.inf), seeds)  # by one unit in the last place
    difference, rounding = (
        (other - batch.images).square().mean((1, 2, 3)).sqrt()
        for other in (torch.cat([one.images for one in singles]), nudged.images)
    )
    assert (difference <= 10 * rounding.max()).all()
    assert rounding.max() < 0.05 * (batch.images[0] - batch.images[1]).square().mean().sqrt()


@torch.no_grad()
def test_known_cells_hold_the_encoded_picture(tmp_path):
    pipe = built("sd", tmp_path)[1]
    known = torch.from_numpy(~hole(64, 64))[None, None].float()
    x = torch.from_numpy(noise(64, 64, 3)).permute(2, 0, 1)[None] / 127.5 - 1
    (crop,) = inpaint(64, 64).crops(pipe)
    latents = pipe.to_latent_constraint(crop.constraint)
    assert isinstance(latents, KnownLatents)
    cells = _fully_known_cells(known, 8)
    assert torch.equal(latents.y, cells * latents.y)
    far = torch.zeros(8, 8, dtype=torch.bool)
    far[0, 0] = True  # the encoder of 8 pixels a cell hardly sees the hole from the corner
    torch.testing.assert_close(latents.y[..., far], pipe.autoencoder.encode(x)[..., far], atol=0.2, rtol=0)


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (1, 5)])
def test_filling_keeps_known_pixels_and_a_constant_picture(size):
    known = (torch.rand(1, 1, *size, generator=seeded()) < 0.3).float()
    known[..., 0, 0] = 1
    y = torch.rand(2, 3, *size, generator=seeded(1))
    picture = _fill_unknown(known * y, known)
    torch.testing.assert_close(known * picture, known * y)
    torch.testing.assert_close(_fill_unknown(known * 0.7, known), torch.full((1, 1, *size), 0.7))
    assert picture.min() >= (y * known)[y * known > 0].min() and picture.max() <= (y * known).max()


def test_filling_is_smooth_far_from_known_pixels():
    known = torch.zeros(1, 1, 32, 32)
    known[..., :2, :] = 1
    picture = _fill_unknown(known * torch.rand(1, 1, 32, 32, generator=seeded()), known)
    assert avg_pool2d(picture[..., 16:, :], 4).std() < 0.1


def test_filling_goes_from_one_known_side_to_the_other_without_steps():
    """Blocks of one value, from 1 to 8 pixels wide, would have steps of up to 0.5 to 2."""
    known = torch.zeros(1, 1, 32, 32)
    known[..., 0] = known[..., -1] = 1
    y = torch.cat([-torch.ones(1, 1, 32, 16), torch.ones(1, 1, 32, 16)], -1)
    picture = _fill_unknown(known * y, known)
    assert torch.equal(known * picture, known * y)
    steps = picture.diff(dim=-1)
    assert steps.min() > -1e-6
    assert steps[..., 1:-1].max() < 0.35


# --- offloading


def test_model_offloading_runs_the_hooks_and_changes_nothing(tmp_path, monkeypatch):
    """No accelerator here: models are 'offloaded' from the CPU to the CPU, but the hooks are accelerate's own."""
    pipe, loaded = built("sd", tmp_path)[1], []
    options = {"prompt": "a", "num_inference_steps": 2, "solver": "moment_matching_posterior", "output_type": "latent"}
    expected = pipe(upscale(), generator=seeded(), **options).images
    pipe.enable_model_cpu_offload(device="cpu")
    assert pipe.execution_device == torch.device("cpu:0")
    before = CpuOffload.pre_forward

    def watched(hook, module, *args, **kwargs):
        loaded.append(module)
        return before(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", watched)
    torch.testing.assert_close(pipe(upscale(), generator=seeded(), **options).images, expected)
    assert {id(module) for module in loaded} == {id(part) for part in (pipe.text_encoder, pipe.unet, pipe.vae)}


# --- schedulers


@pytest.fixture(autouse=True)
def log_again():
    schedulers._log_multistep.cache_clear()


@pytest.mark.parametrize("kind", [PNDMScheduler, UniPCMultistepScheduler, LMSDiscreteScheduler])
def test_only_the_noise_levels_of_a_multistep_scheduler_are_used_and_the_log_says_so_once(tmp_path, caplog, kind):
    ours = built("sd", tmp_path, scheduler=kind(**SCALED_LINEAR))[1]
    run(ours)
    run(ours)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert kind.__name__ in record.getMessage() and "\n" not in record.getMessage()
    schedule = noise_schedule(ours.scheduler)[0]
    assert isinstance(schedule, DDPMSchedule)
    assert schedule.alphas_cumprod == pytest.approx(DDPMScheduler(**without_offset()).alphas_cumprod.tolist(), abs=1e-6)


def run(ours: Any) -> None:
    ours(Generate(SIZE), "a", num_inference_steps=1)


def without_offset() -> dict[str, Any]:
    return {key: value for key, value in SCALED_LINEAR.items() if key != "steps_offset"}


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DDPMScheduler])
def test_a_single_step_scheduler_logs_nothing(tmp_path, caplog, kind):
    run(built("sd", tmp_path, scheduler=kind(**SCALED_LINEAR))[1])
    assert not caplog.records


def test_schedulers_that_cannot_be_read_are_refused_before_anything_runs(tmp_path):
    for scheduler in (ScoreSdeVeScheduler(), FlowMatchEulerDiscreteScheduler(invert_sigmas=True)):
        with pytest.raises(AdhereError, match=f"noise levels of {type(scheduler).__name__} is not supported"):
            built("sd", tmp_path, scheduler=scheduler)
    ours = built("sd", tmp_path)[1]
    ours.scheduler = ScoreSdeVeScheduler()  # or where it is put in later
    with pytest.raises(AdhereError, match="is not supported"):
        run(ours)


@pytest.mark.parametrize("prediction", ["flow_prediction", "score"])
def test_unknown_predictions_are_refused(tmp_path, prediction):
    with pytest.raises(AdhereError, match=f"'{prediction}'.* epsilon, sample, v_prediction are understood"):
        built("sd", tmp_path, scheduler=UniPCMultistepScheduler(prediction_type=prediction))


# --- rectified flows in Stable Diffusion's layout


@torch.no_grad()
def euler(unet: Any, embeds: torch.Tensor, x: torch.Tensor, times: list[float], sign: float) -> torch.Tensor:
    """Euler's method on dx = sign network(x, 1000 sigma) d sigma, from noise to picture."""
    for time, after in zip(times, [*times[1:], 0.0], strict=True):
        x = x + sign * (after - time) / 1000 * unet(x, torch.tensor(time), encoder_hidden_states=embeds).sample
    return x


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_a_stable_diffusion_with_a_flow_scheduler_predicts_a_flow(tmp_path, kind):
    """The network of such a fine-tuned model predicts eps - x0."""
    theirs, ours = built("sd", tmp_path, scheduler=kind(shift=2.0))
    z = ours(Generate(SIZE), generator=seeded(3), guidance_scale=1.0, **FEW).images
    schedule = ours.schedule(SIZE)
    assert schedule == FlowSchedule(1000.0, 2.0, s_end=2 / 1001)
    with torch.no_grad():
        embeds = theirs.encode_prompt("a b", torch.device("cpu"), 1, False)[0]
    x_T = torch.randn(z.shape, generator=seeded(3))
    torch.testing.assert_close(z, euler(theirs.unet, embeds, x_T, schedule.timesteps(2), 1.0), atol=1e-4, rtol=0)


def test_instaflow_is_recognized_by_its_class_and_sampled_as_by_its_authors(tmp_path):
    """Their loop is z <- z + network(z, 1000 (1 - i/n)) / n. The scheduler in their folder is not used."""
    theirs = tiny_sd(tmp_path)
    theirs.save_pretrained(tmp_path / "flow")
    edit_json(tmp_path / "flow" / "model_index.json", _class_name="RectifiedFlowPipeline")
    ours = load(tmp_path / "flow")
    assert type(ours) is RectifiedFlowPipeline
    options = FEW | {"num_inference_steps": 5, "guidance_scale": 1.0}
    z = ours(Generate(SIZE), generator=seeded(3), **options).images
    with torch.no_grad():
        embeds = theirs.encode_prompt("a b", torch.device("cpu"), 1, False)[0]
        expected = torch.randn(z.shape, generator=seeded(3))
        for i in range(5):
            time = torch.tensor(1000 * (1 - i / 5))
            expected = expected + theirs.unet(expected, time, encoder_hidden_states=embeds).sample / 5
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=0)
    for task in (inpaint(), upscale(), darken()):
        assert np.isfinite(ours(task, "a", num_inference_steps=1).residual).all()
    ours.save_pretrained(tmp_path / "again")
    assert type(load(tmp_path / "again")) is RectifiedFlowPipeline


# --- folders


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_parts_that_lack_a_weight_are_refused_and_not_left_random(tmp_path, name, part):
    folder = tmp_path / "saved"
    built(name, tmp_path)[0].save_pretrained(folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    gone = next(key for key in weights if key.endswith("fc1.weight") or key.startswith("decoder.conv_in"))
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(AdhereError, match=f"{part}/ lack 1 entries, such as '.*{re.escape(gone.split('.')[-2])}"):
        adhere.load(folder)


def test_the_guidance_scale_in_a_folder_is_the_default(tmp_path):
    folder = tmp_path / "saved"
    built("sd", tmp_path)[0].save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_guidance_scale": 2.5}))
    pipe = adhere.load(folder)
    given, weaker, default = (
        pipe(Generate(SIZE), generator=seeded(), **FEW, **options).images
        for options in ({"guidance_scale": 2.5}, {"guidance_scale": 1.5}, {})
    )
    assert torch.equal(default, given)
    assert not torch.equal(default, weaker)
