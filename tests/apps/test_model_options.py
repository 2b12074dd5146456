"""What is added to a model on the command line: LoRAs, an autoencoder, offloading; and how much context is sampled."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import adhere
from adhere.apps import _model, job
from adhere.apps._examples import EXAMPLES
from tests.apps.command import LATENT_VERBS, error_line, run
from tests.picture_files import image_of
from tests.single_file import save_single_file
from tests.tiny_latent_models import tinier_vae, tiny_sd, tiny_vae
from tests.tiny_models import load

pytest.importorskip("accelerate")
pytest.importorskip("peft")
from accelerate.hooks import CpuOffload
from peft import LoraConfig, get_peft_model_state_dict

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_"
PACKAGES = {"--lora": "peft", "--offload": "accelerate"}


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """Return a folder with LoRAs in the layouts of diffusers and of kohya, and autoencoders."""
    folder = tmp_path_factory.mktemp("parts")
    sd = tiny_sd(folder)
    torch.manual_seed(0)
    sd.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    sd.save_lora_weights(folder, get_peft_model_state_dict(sd.unet), weight_name="lora.safetensors")
    kohya = {}
    for layer in ("q", "v"):
        kohya[f"{KOHYA}{layer}.lora_down.weight"] = torch.randn(2, 16)
        kohya[f"{KOHYA}{layer}.lora_up.weight"] = torch.randn(16, 2)
        kohya[f"{KOHYA}{layer}.alpha"] = torch.tensor(2.0)
    save_file(kohya, folder / "kohya.safetensors")
    wide = {name: w.repeat(2, 2) if w.ndim else w for name, w in kohya.items()}
    save_file(wide, folder / "wide.safetensors")
    save_file({name.replace("down_blocks", "no_blocks"): w for name, w in kohya.items()}, folder / "other.safetensors")
    save_file({"ip_adapter.1.to_k_ip.weight": torch.zeros(2, 2)}, folder / "ip.safetensors")
    (folder / "lora.bin").write_bytes(b"not even a pickle")
    (folder / "cut.safetensors").write_bytes((folder / "lora.safetensors").read_bytes()[:100])
    tinier_vae().save_pretrained(folder / "taesd")
    tiny_vae(16).save_pretrained(folder / "sixteen")
    return folder


@pytest.fixture
def generated(folder, verb_args, text_model):
    """Return a function that returns the picture of `adhere generate` with some options."""

    def generate(*flags: str, **options: str) -> np.ndarray:
        result = run(verb_args("generate", *flags, "--force", **{"model": str(text_model), "steps": "2"} | options))
        assert result.exit_code == 0, result
        return np.asarray(Image.open("out.png"))

    return generate


def from_python(pipe, **options) -> np.ndarray:
    out = pipe(adhere.Generate(), num_inference_steps=2, generator=torch.Generator().manual_seed(0), **options)
    return np.asarray(out.images[0])


# --- LoRA


def test_loras_are_those_of_diffusers(generated, text_model, parts):
    first, second = str(parts / "lora.safetensors"), str(parts / "kohya.safetensors")
    picture = generated("--lora", f"{first}:0.5", "--lora", second, json="report.json")
    assert json.loads(Path("report.json").read_text())["loras"] == [[first, 0.5], [second, 1.0]]
    pipe = load(text_model)
    plain = from_python(pipe)
    pipe.load_lora_weights(first, adapter_name="a")
    pipe.load_lora_weights(second, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    assert np.array_equal(picture, from_python(pipe))
    assert not np.array_equal(picture, plain)


def test_the_weight_of_a_lora(generated, parts):
    lora = str(parts / "lora.safetensors")
    plain, full = generated(), generated("--lora", lora)
    assert np.array_equal(generated("--lora", f"{lora}:0"), plain)
    assert np.array_equal(generated("--lora", f"{lora}:10e-1"), full)
    assert not np.array_equal(full, plain)


def test_a_colon_in_the_name_of_a_lora(generated, parts):
    shutil.copy(parts / "lora.safetensors", "style:b.safetensors")
    assert np.array_equal(generated("--lora", "style:b.safetensors"), generated("--lora", "style:b.safetensors:1"))


def test_a_lora_that_fits_in_part_is_noted(folder, verb_args, text_model, parts):
    weights = load_file(parts / "lora.safetensors")
    name = next(iter(weights))
    weights[name.replace("to_q", "to_x").replace("to_v", "to_x")] = weights[name].clone()
    save_file(weights, "partly.safetensors")
    result = run(verb_args("generate", model=str(text_model), lora="partly.safetensors"))
    assert result.exit_code == 0, result
    assert result.stderr.startswith("adhere: note: ") and "unexpected keys" in result.stderr


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.safetensors", "no such file; give a .safetensors file, or FILE:WEIGHT"),
        ("missing.safetensors:0.5", "no such file"),
        ("lora.safetensors:1e3", "give FILE or FILE:WEIGHT"),
        ("lora.bin", "must be .safetensors; pickled weights can run code"),
        ("cut.safetensors", "damaged or cut short"),
        ("lora.safetensors:1000", "give FILE or FILE:WEIGHT, such as lora.safetensors:0.8"),
        ("lora.safetensors:1.2.3", "give FILE or FILE:WEIGHT"),
        ("lora.safetensors:", "give FILE or FILE:WEIGHT"),
        ("wide.safetensors", "does not fit this model (Error(s) in loading state_dict"),
        ("other.safetensors", "does not fit this model (Target modules"),
        ("ip.safetensors", "is an IP-Adapter, not a LoRA"),
    ],
)
def test_bad_loras(folder, verb_args, text_model, parts, file, message):
    line = error_line(verb_args("generate", model=str(text_model), lora=str(parts / file)), folder)
    assert f"--lora '{parts}/" in line and message in line


def test_a_checkpoint_is_no_lora(folder, verb_args, text_model):
    save_single_file(load(text_model), folder.parent / "model.safetensors")
    line = error_line(verb_args("generate", model=str(text_model), lora="../model.safetensors"), folder)
    assert "is a whole model, not a LoRA" in line


@pytest.mark.parametrize("verb", EXAMPLES)
def test_a_lora_needs_a_model_that_it_can_fit(folder, verb_args, parts, verb):
    line = error_line(verb_args(verb, lora=str(parts / "lora.safetensors")), folder)
    assert "fits text-to-image models such as Stable Diffusion; leave it out" in line


@pytest.mark.parametrize("option", ["lora", "vae", "model", "config"])
def test_the_report_does_not_replace_a_part_of_the_model(folder, verb_args, parts, option):
    shutil.copy(parts / "lora.safetensors", "part.safetensors")
    options = {option: "part.safetensors", "json": "./part.safetensors"}
    line = error_line(verb_args("generate", "--force", **options), folder)
    assert "--json part.safetensors: is read by this command, and would be lost; give another name" in line


@pytest.mark.parametrize("flag", PACKAGES)
@pytest.mark.parametrize("verb", EXAMPLES)
def test_a_package_that_is_not_installed(folder, verb_args, parts, monkeypatch, flag, verb):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(job, "device_and_dtype", lambda *_: (torch.device("cuda"), torch.float16))
    flags = [flag, *([str(parts / "lora.safetensors")] if flag == "--lora" else [])]
    package = PACKAGES[flag]
    line = error_line(verb_args(verb, *flags), folder)
    assert line == f"adhere: {flag} needs the package {package}, which is not installed: pip install {package}\n"


# --- autoencoders


@pytest.mark.parametrize("place", ["taesd", "whole model", "file"])
def test_another_autoencoder(generated, text_model, parts, place):
    other = tiny_sd(parts)
    other.vae = tiny_vae()
    with torch.no_grad():
        other.vae.decoder.conv_out.bias += 0.5
    other.save_pretrained("other")
    save_single_file(other, Path("other.safetensors"))
    vae = {name: w for name, w in load_file("other.safetensors").items() if name.startswith("first_stage_model.")}
    save_file({name.removeprefix("first_stage_model."): w for name, w in vae.items()}, "vae.safetensors")
    given = {"taesd": str(parts / "taesd"), "whole model": "other", "file": "vae.safetensors"}[place]
    picture = generated(vae=given, json="report.json")
    assert json.loads(Path("report.json").read_text())["vae"] == given
    pipe = load(text_model)
    plain = from_python(pipe)
    pipe.vae = tinier_vae() if place == "taesd" else other.vae
    assert np.array_equal(picture, from_python(pipe))
    assert np.array_equal(picture, from_python(load(text_model, vae=given)))
    assert not np.array_equal(picture, plain)


def test_another_autoencoder_for_a_single_file(generated, text_model, parts):
    save_single_file(load(text_model), Path("model.safetensors"))
    picture = generated(model="model.safetensors", config=str(text_model), vae=str(parts / "taesd"))
    assert np.array_equal(picture, generated(vae=str(parts / "taesd")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sixteen", "the network takes 4 channels, the latents have 16: use a base model with an autoencoder"),
        ("missing", "no such folder or file; give the folder or the .safetensors file of an autoencoder"),
        ("lora.safetensors", "is a LoRA, not an autoencoder"),
        ("lora.bin", "a single file must be .safetensors; pickled weights"),
        ("cut.safetensors", "cannot be loaded: damaged or cut short"),
        (".", "no config.json in it; give the folder of an autoencoder, or of a model that has one"),
        ("../parts-of-nothing:0", "no such folder or file"),
    ],
)
def test_bad_autoencoders(folder, verb_args, text_model, parts, given, message):
    assert message in error_line(verb_args("generate", model=str(text_model), vae=str(parts / given)), folder)


def test_parts_of_a_model_as_autoencoder(folder, verb_args, text_model):
    for part, message in (
        ("unet", "is a UNet2DConditionModel, not an autoencoder: give one of AutoencoderKL"),
        ("vae/diffusion_pytorch_model.safetensors", "is in the layout of diffusers: give the folder"),
    ):
        line = error_line(verb_args("generate", model=str(text_model), vae=str(text_model / part)), folder)
        assert f"vae '{text_model / part}': {message}" in line


def without(prefix: str, pipe, file: str) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint without those of one component; the file is overwritten with them."""
    weights = load_file(save_single_file(pipe, Path(file)))
    kept = {name: w for name, w in weights.items() if not name.startswith(prefix)}
    save_file(kept, file)
    return kept


def test_files_without_an_autoencoder(folder, verb_args, text_model, parts):
    without("first_stage_model.", load(text_model), "novae.safetensors")
    shutil.copy(text_model / "unet" / "diffusion_pytorch_model.safetensors", "unet.safetensors")
    shutil.copy(parts / "taesd" / "diffusion_pytorch_model.safetensors", "taesd.safetensors")
    for file, message in (
        ("novae.safetensors", "holds no autoencoder: give the folder or the .safetensors file of one"),
        ("unet.safetensors", "is a UNet alone, not an autoencoder: give the folder or"),
        ("taesd.safetensors", "is in the layout of diffusers: give the folder that holds it and its config.json"),
    ):
        line = error_line(verb_args("generate", model=str(text_model), vae=file), folder)
        assert line.startswith(f"adhere: vae '{file}': {message}")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("first_stage_model.", "no weights of its AutoencoderKL: give a complete checkpoint, or add an autoencoder by"),
        ("cond_stage_model.", "no weights of its CLIPTextModel: give a complete checkpoint\n"),
    ],
)
def test_a_checkpoint_without_a_component(folder, verb_args, text_model, parts, prefix, message):
    without(prefix, load(text_model), "pruned.safetensors")
    arguments = verb_args("generate", model="pruned.safetensors", config=str(text_model))
    line = error_line(arguments, folder)
    assert line.startswith("adhere: model 'pruned.safetensors': the file has ") and message in line
    if "autoencoder" in message:
        assert run([*arguments, "--vae", str(parts / "taesd")]).exit_code == 0


@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if verb not in LATENT_VERBS])
def test_a_model_of_pixels_has_no_autoencoder(folder, verb_args, parts, verb):
    line = error_line(verb_args(verb, vae=str(parts / "taesd")), folder)
    assert "has no autoencoder: leave vae out (--vae on the command line)" in line


# --- offloading


@pytest.mark.parametrize("verb", EXAMPLES)
def test_on_a_cpu_there_is_nothing_to_offload_from(folder, verb_args, verb):
    assert "--offload: is for a GPU, but the network runs on the CPU" in error_line(
        verb_args(verb, "--offload"), folder
    )


def test_offloading_runs_the_hooks_and_changes_nothing(generated, monkeypatch):
    """No accelerator here: models are 'offloaded' from the CPU to the CPU, but the hooks are accelerate's own."""
    plain, calls, before = generated(), [], CpuOffload.pre_forward
    monkeypatch.setattr(job, "check_parts", lambda *_: None)
    monkeypatch.setattr(CpuOffload, "pre_forward", lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs))
    assert np.array_equal(generated("--offload", json="report.json"), plain)
    assert calls and json.loads(Path("report.json").read_text())["offload"] is True


# --- context


@pytest.mark.parametrize("verb", ["inpaint", "outpaint"])
def test_the_context_decides_how_much_is_sampled(folder, verb_args, verb):
    image_of("RGB", 300, 400).save("photo.png")
    mask = np.zeros((300, 400), bool)
    mask[140:160, 190:210] = True
    Image.fromarray(mask).save("mask.png")
    sizes = {}
    for context in (None, "8", "32"):
        result = run(verb_args(verb, "--dry-run", json="-", context=context))
        assert result.exit_code == 0, result
        sizes[context] = json.loads(result.stdout)["size"]
    if verb == "inpaint":
        assert sizes == {None: [20 + 2 * 96] * 2, "8": [36, 36], "32": [84, 84]}
    else:  # 4 columns are added at the left
        assert sizes == {None: [300, 100], "8": [300, 12], "32": [300, 36]}


@pytest.mark.parametrize("verb", ["inpaint", "outpaint"])
@pytest.mark.parametrize("value", ["0", "-1", "10001", "1.5", "all", ""])
def test_an_impossible_context(folder, verb_args, verb, value):
    assert f"--context '{value}': give a whole number from 1 to 10000" in error_line(
        verb_args(verb, context=value), folder
    )


@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if verb not in ("inpaint", "outpaint")])
def test_other_verbs_have_no_context(folder, verb_args, verb):
    assert "No such option: --context" in error_line(verb_args(verb, context="8"), folder)


def test_the_parts_are_checked_before_a_picture_is_read(folder):
    with pytest.raises(adhere.AdhereError, match=r"--lora 'a.safetensors': no such file"):
        _model.check_parts([("a.safetensors", 1.0)], False, torch.device("cpu"))
