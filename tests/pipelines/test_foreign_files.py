"""What belongs to diffusion models but is none: each is refused with one line that says what to give, or works."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel  # pyright: ignore[reportPrivateImportUsage]
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor

import adhere
from adhere import AdhereError, Generate
from tests.tiny_latent_models import tiny_conditional_unet, tiny_flux, tiny_sd, tiny_sd3
from tests.tiny_models import edit_json, load

UNQUANTIZED = "give the folder with the unquantized weights, in half precision, and --offload if they do not fit"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Return a folder with a tiny Stable Diffusion, Stable Diffusion 3 and Flux."""
    folder = tmp_path_factory.mktemp("models")
    for name, build in {"sd": tiny_sd, "sd3": tiny_sd3, "flux": tiny_flux}.items():
        build(folder).save_pretrained(folder / name)
    return folder


def quantized(method: str | None, part: str = "transformer", model: str = "flux") -> Callable[[Path, Path], Path]:
    """Return a function that makes a model whose component says that it is quantized."""

    def make(models: Path, folder: Path) -> Path:
        copy = Path(shutil.copytree(models / model, folder / model))
        settings = {"quant_method": method} if method else {"bits": 4}
        edit_json(copy / part / "config.json", quantization_config=settings)
        return copy

    return make


def gguf_part(models: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(models / "flux", folder / "flux"))
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(copy / "transformer" / "flux-Q4_K_S.gguf")
    return copy


def gguf_file(_: Path, folder: Path) -> Path:
    (folder / "flux-Q4_K_S.gguf").write_bytes(b"GGUF")
    return folder / "flux-Q4_K_S.gguf"


def control_net(_: Path, folder: Path) -> Path:
    ControlNetModel.from_unet(tiny_conditional_unet()).save_pretrained(folder / "canny")
    return folder / "canny"


def t2i_adapter(_: Path, folder: Path) -> Path:
    (folder / "config.json").write_text('{"_class_name": "T2IAdapter"}')
    return folder


def component(part: str) -> Callable[[Path, Path], Path]:
    return lambda models, _: models / part


def file_of(*names: str, shape: tuple[int, ...] = (2, 2)) -> Callable[[Path, Path], Path]:
    """Return a function that makes a .safetensors file of zeros with these names."""

    def make(_: Path, folder: Path) -> Path:
        save_file({name: torch.zeros(shape) for name in names}, folder / "file.safetensors")
        return folder / "file.safetensors"

    return make


def peft_folder(_: Path, folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    return folder


FOREIGN = {  # what it is -> (a function that makes it, the message)
    "bitsandbytes": (
        quantized("bitsandbytes"),
        f"transformer/ is quantized (quant_method 'bitsandbytes'), which is not supported: {UNQUANTIZED}",
    ),
    "torchao": (quantized("torchao"), "transformer/ is quantized (quant_method 'torchao'), which is not supported"),
    "quanto, sd3": (quantized("quanto", model="sd3"), "transformer/ is quantized (quant_method 'quanto')"),
    "quantized T5": (quantized("bitsandbytes", "text_encoder_3", "sd3"), "text_encoder_3/ is quantized (quant_method"),
    "quantized UNet": (quantized("torchao", "unet", "sd"), "unet/ is quantized (quant_method 'torchao')"),
    "unknown method": (quantized(None), "transformer/ is quantized (quant_method 'unknown')"),
    "fp8 with scales": (
        file_of("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "scaled_fp8"),
        f"is quantized ('scaled_fp8'), which is not supported: {UNQUANTIZED}",
    ),
    "GGUF in a folder": (gguf_part, "the weights in transformer/ are GGUF, which is not supported: give a folder with"),
    "GGUF file": (gguf_file, f"is a GGUF file, whose quantized weights are not supported: {UNQUANTIZED}"),
    "ControlNet folder": (control_net, "is a ControlNet, not a model: it is not supported: give its base model"),
    "ControlNet, diffusers": (file_of("controlnet_cond_embedding.conv_in.bias"), "is a ControlNet, not a model"),
    "ControlNet, authors": (file_of("control_model.input_hint_block.0.weight"), "is a ControlNet, not a model"),
    "IP-Adapter": (
        file_of("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
        "is an IP-Adapter, not a model: it is not supported: give its base model, and use adhere style",
    ),
    "textual inversion": (file_of("<cat-toy>", shape=(16,)), "is a textual inversion, not a model: give its"),
    "embedding, A1111": (file_of("emb_params", shape=(4, 16)), "and add it by pipe.load_textual_inversion(file)"),
    "embedding, SDXL": (file_of("clip_l", "clip_g", shape=(4, 16)), "is a textual inversion, not a model"),
    "LoRA, kohya": (file_of("lora_unet_mid_block.lora_up.weight"), "is a LoRA, not a model: give its base model"),
    "LoRA, diffusers": (file_of("unet.mid_block.to_q.lora_A.weight"), "by --lora FILE on the command line, or pipe."),
    "LoRA, PEFT folder": (peft_folder, "is a LoRA, not a model"),
    "LoHa": (file_of("lycoris_unet.hada_w1_a", "x.hada_w1_a"), "is a LoRA, not a model"),
    "autoencoder file": (
        file_of("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"),
        "is an autoencoder, not a model: give a whole model, and add it by --vae on the command line, or adhere.load(",
    ),
    "autoencoder folder": (component("sd/vae"), "is an autoencoder, not a model"),
    "UNet file": (
        component("sd/unet/diffusion_pytorch_model.safetensors"),
        "is a UNet alone, not a model: give a whole model in the diffusers layout",
    ),
    "T2I-Adapter folder": (t2i_adapter, "is a T2I-Adapter, not a model: it is not supported"),
    "UNet folder": (component("sd/unet"), "is a UNet alone, not a model: give a whole model in the diffusers layout"),
    "transformer folder": (component("flux/transformer"), "is a transformer alone, not a model: give a whole model"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_model_is_named_in_one_line(models, tmp_path, name):
    make, message = FOREIGN[name]
    given = make(models, tmp_path)
    with pytest.raises(AdhereError) as caught:
        adhere.load(given)
    assert str(caught.value).startswith(f"model '{given}': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantized_autoencoder_is_refused(models, tmp_path):
    vae = Path(shutil.copytree(models / "sd" / "vae", tmp_path / "vae"))
    edit_json(vae / "config.json", quantization_config={"quant_method": "torchao"})
    with pytest.raises(AdhereError, match="is quantized"):
        adhere.load(models / "sd", vae=vae)


def test_a_control_net_pipeline_is_refused_with_the_known_ones(models, tmp_path):
    copy = Path(shutil.copytree(models / "sd", tmp_path / "sd"))
    edit_json(copy / "model_index.json", _class_name="StableDiffusionControlNetPipeline")
    with pytest.raises(AdhereError, match="'StableDiffusionControlNetPipeline' is unknown; known are DDIMPipeline, "):
        adhere.load(copy)


def generated(pipe: Any, prompt: str = "a") -> np.ndarray:
    g = torch.Generator().manual_seed(0)
    return pipe(Generate(), prompt, num_inference_steps=1, generator=g, output_type="np").images


def test_a_textual_inversion_works_as_in_diffusers(models, tmp_path):
    torch.manual_seed(0)
    save_file({"<toy>": torch.randn(16)}, tmp_path / "toy.safetensors")
    pipe = load(models / "sd")
    before = generated(pipe, "a <toy>")
    pipe.load_textual_inversion(str(tmp_path / "toy.safetensors"), token="<toy>")
    after = generated(pipe, "a <toy>")
    assert not np.array_equal(after, before)
    assert np.array_equal(generated(pipe), generated(load(models / "sd")))


def test_an_ip_adapter_that_is_loaded_is_refused_until_it_is_unloaded(models):
    pipe = load(models / "sd")
    before = generated(pipe)
    pipe.unet.encoder_hid_proj = torch.nn.Identity()  # where diffusers keeps an adapter's projection
    with pytest.raises(AdhereError, match=r"an IP-Adapter is loaded, which is not supported: call pipe\.unload_ip_ad"):
        generated(pipe)
    pipe.unet.encoder_hid_proj = None
    assert np.array_equal(generated(pipe), before)


@pytest.fixture
def checked(models, tmp_path) -> Path:
    """Return a model with a safety checker in its folder, as Stable Diffusion 1.5 is published."""
    pipe: Any = tiny_sd(tmp_path)
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tiny | {"vocab_size": 54}, vision_config=tiny | {"image_size": 32}, projection_dim=8
    )
    pipe.register_modules(safety_checker=StableDiffusionSafetyChecker(config), feature_extractor=CLIPImageProcessor())
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(tmp_path / "checked")
    return tmp_path / "checked"


def test_a_safety_checker_in_the_folder_is_not_loaded(models, checked, caplog):
    pipe = load(checked)
    assert pipe.safety_checker is None
    assert "safety checker" not in caplog.text
    assert np.array_equal(generated(pipe), generated(load(models / "sd")))


@pytest.mark.parametrize("damage", ["missing", "pickled"])
def test_a_safety_checker_that_cannot_be_read_does_no_harm(models, checked, damage):
    if damage == "missing":
        shutil.rmtree(checked / "safety_checker")
    else:
        weights = checked / "safety_checker" / "model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
    assert np.array_equal(generated(load(checked)), generated(load(models / "sd")))


def test_a_safety_checker_that_is_given_is_kept(checked):
    checker = StableDiffusionSafetyChecker.from_pretrained(checked / "safety_checker")
    pipe = load(checked, safety_checker=checker)
    assert pipe.safety_checker is checker and pipe.feature_extractor is not None
