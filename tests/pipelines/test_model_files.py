"""What the files of a model say: each mistake is one line, and a checkpoint's own word is used."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import load_file, save_file

import adhere
from adhere import AdhereError, Generate
from tests.pipelines.test_loading import SDXL, refusal, save_zeros
from tests.pipelines.test_pixel import with_scheduler
from tests.single_file import save_single_file
from tests.tiny_latent_models import tiny_sd, tiny_sdxl
from tests.tiny_models import edit_json, load


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    tiny_sd(folder.parent).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sd, tmp_path) -> Path:
    """Return a folder of a tiny Stable Diffusion model that the test may change."""
    return Path(shutil.copytree(sd, tmp_path / "sd"))


# --- model_index.json


@pytest.mark.parametrize("value", [None, "high", -1, 0, float("nan"), float("inf"), True, [3.0], 10**400])
@pytest.mark.parametrize("name", ["_guidance_scale", "_temperature"])
def test_a_number_that_is_none_is_named(folder, name, value):
    if (name, value) == ("_temperature", 0):
        pytest.skip("a temperature may be 0")
    edit_json(folder / "model_index.json", **{name: value})
    assert f"'{name}' in model_index.json is" in refusal(folder)


@pytest.mark.parametrize("entry", [["diffusers"], [1, 2], "diffusers", {}, None, ["diffusers", None], []])
@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "tokenizer", "safety_checker"])
def test_an_entry_that_is_not_a_library_and_a_class_is_named(folder, part, entry):
    edit_json(folder / "model_index.json", **{part: entry})
    assert f"'{part}' in model_index.json is {json.dumps(entry)}: it must be [library, class]" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_a_part_that_is_left_out_is_named(folder, part):
    edit_json(folder / "model_index.json", **{part: [None, None]})
    assert f"has no '{part}'" in refusal(folder)


@pytest.mark.parametrize("entry", [[1], ["diffusers"], 3, {"a": 1}])
def test_entries_that_are_no_components_are_not_read(sd, folder, entry):
    edit_json(folder / "model_index.json", _anything=entry)
    pipe = load(folder)
    assert pipe.unet.conv_in.weight.equal(load(sd).unet.conv_in.weight)
    assert not hasattr(pipe, "_anything") and "_anything" not in pipe.components


@pytest.mark.parametrize("start", ["", '{"_class_name": '])
def test_an_index_that_is_nested_deeply_is_refused(tmp_path, start):
    (tmp_path / "model_index.json").write_text(start + "[" * 100_000)
    assert "model_index.json cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("spectrum", [[1], "x", None, {"channel_covariance": "ab"}, {"exponent": 1e999}])
def test_a_prior_spectrum_that_cannot_be_read_is_refused(folder, spectrum):
    edit_json(folder / "model_index.json", _prior_spectrum=spectrum)
    assert "'_prior_spectrum' in model_index.json cannot be read" in refusal(folder)


@pytest.mark.parametrize("parts", [("text_encoder", "tokenizer"), ("text_encoder",), ("tokenizer",)])
def test_without_a_text_encoder_the_prompt_must_be_given_as_embeddings(folder, sd, parts):
    embeds, negative = load(sd).encode_prompt("a b", torch.device("cpu"), 1, True)
    edit_json(folder / "model_index.json", **{key: [None, None] for key in parts})
    pipe = load(folder)
    seed = torch.Generator
    for options in (
        {"prompt": "a b"},
        {},
        {"prompt_embeds": embeds, "negative_prompt": "c"},
        {"prompt_embeds": embeds},
    ):
        with pytest.raises(
            AdhereError, match=f"was loaded without {parts[0]}: load it with one, or give prompt_embeds"
        ):
            pipe(Generate(), num_inference_steps=1, **options)
    options = {"num_inference_steps": 1, "output_type": "pt"}
    ours = pipe(
        Generate(), prompt_embeds=embeds, negative_prompt_embeds=negative, generator=seed().manual_seed(0), **options
    )
    expected = load(sd)(Generate(), "a b", generator=seed().manual_seed(0), **options)
    assert torch.equal(ours.images, expected.images)
    pipe(Generate(), prompt_embeds=embeds, guidance_scale=1.0, num_inference_steps=1)


# --- names of models


@pytest.mark.parametrize("name", ["x" * 5000, "a/" + "b" * 5000, "~nosuchuser/model", "a\0b", "a\nb"])
def test_a_name_that_is_no_path_is_refused_in_one_short_line(name):
    with pytest.raises(AdhereError) as caught:
        adhere.load(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@contextmanager
def without_privileges() -> Iterator[None]:
    """Give up root's right to read everything, where the tests have it."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("part", [".", "unet", "model_index.json", "unet/config.json"])
def test_files_that_may_not_be_read_are_named(sd, part):
    with TemporaryDirectory() as temporary:  # pytest's own folders are for their owner only
        folder = Path(shutil.copytree(sd, Path(temporary, "sd")))
        for path in (folder.parent, folder, *folder.rglob("*")):
            path.chmod(0o755)
        (folder / part).chmod(0)
        with without_privileges():
            message = refusal(folder)
        (folder / part).chmod(0o755)
    assert "ermission" in message or "cannot be read" in message


def test_a_device_is_not_ignored(sd):
    assert "write adhere.load(model).to('cuda:9')" in refusal(sd, device="cuda:9")


# --- weights


def save_variant(sd: Path, folder: Path, variant: str = "fp16") -> Path:
    """Save a variant of a model that differs from it: the first biases of the network and of the encoder are 3."""
    pipe = load(sd)
    pipe.unet.conv_in.bias.data.fill_(3)
    pipe.vae.encoder.conv_in.bias.data.fill_(3)
    pipe.save_pretrained(folder, variant=variant)
    return folder


def test_weights_of_a_variant_are_read_if_it_is_named(sd, tmp_path):
    folder = save_variant(sd, tmp_path / "half")
    assert "has only the variant 'fp16' of its weights: give variant='fp16' (--variant fp16" in refusal(folder)
    assert "has only the variant 'fp16'" in refusal(folder, variant="bf16")
    assert (load(folder, variant="fp16").unet.conv_in.bias == 3).all()


def test_a_part_without_the_variant_is_read_without_it(sd, tmp_path):
    folder = save_variant(sd, tmp_path / "mixed")
    shutil.rmtree(folder / "vae")
    shutil.copytree(sd / "vae", folder / "vae")
    pipe = load(folder, variant="fp16")
    assert (pipe.unet.conv_in.bias == 3).all()
    assert pipe.vae.encoder.conv_in.bias.equal(load(sd).vae.encoder.conv_in.bias)


def test_a_variant_that_does_not_exist_is_refused(sd):
    assert "no weights of the variant 'fp16'" in refusal(sd, variant="fp16")


# --- single files


def file_with(sd: Path, file: Path, entries: tuple[str, ...] = (), header: dict[str, str] | None = None) -> Path:
    weights = load_file(save_single_file(load(sd), file))
    save_file(weights | {name: torch.zeros(0) for name in entries}, file, header)
    return file


@pytest.mark.parametrize(
    ("entries", "header", "expected"),
    [
        ((), None, "epsilon"),
        (("v_pred",), None, "v_prediction"),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction"),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ((), {"modelspec.prediction_type": "unheard of"}, "epsilon"),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, "v_prediction"),
    ],
)
def test_the_prediction_type_that_a_file_states_is_used(sd, tmp_path, entries, header, expected):
    pipe = load(file_with(sd, tmp_path / "m.safetensors", entries, header), config=sd)
    assert pipe.scheduler.config.prediction_type == expected
    assert pipe.scheduler.alphas_cumprod[-1] > 0


def test_a_file_that_says_epsilon_overrules_the_configuration(folder, tmp_path):
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    plain = file_with(folder, tmp_path / "plain.safetensors")
    stated = file_with(folder, tmp_path / "m.safetensors", (), {"modelspec.prediction_type": "epsilon"})
    types = [load(file, config=folder).scheduler.config.prediction_type for file in (plain, stated)]
    assert types == ["v_prediction", "epsilon"]


@pytest.mark.parametrize("scheduler", [None, PNDMScheduler(skip_prk_steps=True), DPMSolverMultistepScheduler()])
def test_zero_terminal_snr_that_a_file_states_is_used(tmp_path, scheduler):
    tiny_sd(tmp_path, scheduler).save_pretrained(tmp_path / "sd")
    pipe = load(file_with(tmp_path / "sd", tmp_path / "m.safetensors", ("v_pred", "ztsnr")), config=tmp_path / "sd")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.alphas_cumprod[-1] < 1e-6
    assert torch.isfinite(pipe(Generate(), "a", num_inference_steps=2, output_type="pt").images).all()


def test_a_scheduler_that_is_given_is_kept(sd, tmp_path):
    given = PNDMScheduler(steps_offset=1)
    file = file_with(sd, tmp_path / "m.safetensors", ("v_pred",))
    assert load(file, config=sd, scheduler=given).scheduler is given


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet", {"sample_size": "x"}, "sample_size = 'x' in the network's config.json: give a whole number above 0"),
        ("unet", {"sample_size": [1, 2, 3]}, "sample_size = [1, 2, 3]"),
        ("unet", {"sample_size": -4}, "sample_size = -4"),
        ("unet", {"sample_size": 1.5}, "sample_size = 1.5"),
        ("unet", {"block_out_channels": []}, "cannot be loaded"),
        ("scheduler", {"beta_start": -1, "beta_schedule": "linear"}, "alphas_cumprod holds 2 to"),
        ("scheduler", {"beta_start": 2.0}, "alphas_cumprod holds -1 to"),
        ("scheduler", {"beta_end": math.nan}, "alphas_cumprod holds"),
        ("scheduler", {"trained_betas": [0.0] * 1000}, "alphas_cumprod holds 1 to 1: it must decrease, from below 1"),
        ("scheduler", {"trained_betas": []}, "alphas_cumprod holds nothing"),
        ("scheduler", {"num_train_timesteps": 0}, "alphas_cumprod holds nothing"),
    ],
)
@pytest.mark.parametrize("family", ["pixel", "sd"])
def test_configurations_that_cannot_be_are_refused_when_a_model_is_loaded(
    folder, model_with, file, changes, message, family
):
    model = folder if family == "sd" else model_with()
    edit_json(model / file / ("config.json" if file == "unet" else "scheduler_config.json"), **changes)
    assert message in refusal(model)


@pytest.mark.parametrize(("size", "native"), [(None, 256), (0, 256), ([16, 8], (16, 8)), (8, 8)])
def test_the_native_size_of_a_pixel_model_is_a_side_or_two(model_with, size, native):
    folder = model_with()
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert load(folder).native_size == (native if isinstance(native, tuple) else (native, native))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "unet/config.json"])
def test_a_configuration_without_a_part_is_named(folder, tmp_path, part):
    file = file_with(folder, tmp_path / "m.safetensors")
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    assert f"has no configuration of '{part.split('/')[0]}'" in refusal(file, config=folder)


@pytest.mark.parametrize("config", ["missing", "m.safetensors"])
def test_a_configuration_that_is_no_folder_is_refused(sd, tmp_path, config):
    assert "cannot be loaded" in refusal(file_with(sd, tmp_path / "m.safetensors"), config=str(tmp_path / config))


def test_a_configuration_for_a_folder_is_refused(sd):
    assert "leave config out" in refusal(sd, config=sd)


# --- models that cannot serve


@pytest.mark.parametrize(
    "scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler, IPNDMScheduler, FlowMatchEulerDiscreteScheduler]
)
def test_schedulers_whose_noise_levels_are_unknown_get_one_truthful_message(model_with, caplog, scheduler):
    folder = model_with()
    made: Any = scheduler(invert_sigmas=True) if scheduler is FlowMatchEulerDiscreteScheduler else scheduler()
    message = refusal(with_scheduler(folder, made))
    assert f"scheduler {scheduler.__name__}: a network that was trained" in message
    assert ("EDM's preconditioning" in message) == scheduler.__name__.startswith("EDM")
    assert "save" not in message  # another scheduler's noise levels would be wrong for the network
    assert not caplog.records


def make_refiner(tmp_path: Path) -> Any:
    base: Any = tiny_sdxl(tmp_path)
    parts = base.components | {"text_encoder": None, "tokenizer": None}
    from diffusers import StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)


REFINERS: dict[str, Callable[[Path], str]] = {
    "folder": lambda path: refusal(save(make_refiner(path), path / "refiner")),
    "file": lambda path: refusal(save_zeros(path / "refiner.safetensors", {SDXL.format(0): (4,)})),
}


def save(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", REFINERS)
def test_the_refiner_of_sdxl_is_called_so(tmp_path, kind):
    message = REFINERS[kind](tmp_path)
    assert "the refiner of Stable Diffusion XL" in message
    assert "use the base model" in message


def test_the_refiner_in_memory_is_called_so(tmp_path):
    with pytest.raises(AdhereError, match="the refiner of Stable Diffusion XL"):
        adhere.from_pipe(make_refiner(tmp_path))
