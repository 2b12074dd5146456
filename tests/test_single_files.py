"""One .safetensors file in its authors' own layout, and models on the hub."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file

from adhere import AdhereError, ConstrainedPipeline, loading
from adhere.families.sd import RectifiedFlowPipeline, SDPipeline
from adhere.tasks import Generate, Upscale
from tests.picture_files import noise
from tests.single_file import save_single_file
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import edit_json, load

SDXL = "conditioner.embedders.{}.model.transformer.resblocks.9.mlp.c_proj.bias"
SD3 = "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"
LAYOUTS = [  # (the shapes that tell a layout, its class)
    ({"model.diffusion_model.output_blocks.11.0.skip_connection.weight": (4, 4, 1, 1)}, "StableDiffusionPipeline"),
    (
        {"model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024)},
        "StableDiffusionPipeline",
    ),
    ({SDXL.format(1): (4,)}, "StableDiffusionXLPipeline"),
    ({SD3: (9216,), "model.diffusion_model.pos_embed": (1, 36864, 1)}, "StableDiffusion3Pipeline"),
    ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,)}, "FluxPipeline"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    tiny_sd(folder.parent).save_pretrained(folder)
    return folder


@pytest.fixture
def file(folder, tmp_path) -> Path:
    return save_single_file(load(folder), tmp_path / "model.safetensors")


def refusal(model: Any, **options: Any) -> str:
    with pytest.raises(AdhereError) as caught:
        load(model, **options)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
    return str(caught.value)


def same_weights(a: Any, b: Any) -> bool:
    parts = ("unet", "vae", "text_encoder")
    pairs = [(getattr(a, part).state_dict(), getattr(b, part).state_dict()) for part in parts]
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs)


# --- one file


def test_a_single_file_is_the_folder_again(folder, file):
    """The components' configurations come from the folder, every weight from the file."""
    one, many = load(file, config=str(folder)), load(folder)
    assert type(one) is SDPipeline
    assert same_weights(one, many)
    task = Upscale(noise(8, 8, 3), 4)
    ours, expected = (pipe(task, "a", num_inference_steps=1, output_type="latent").images for pipe in (one, many))
    assert torch.equal(ours, expected)


def test_the_configuration_names_the_class(folder, file, tmp_path):
    shutil.copytree(folder, tmp_path / "flow")
    edit_json(tmp_path / "flow" / "model_index.json", _class_name="RectifiedFlowPipeline")
    assert type(load(file, config=str(tmp_path / "flow"))) is RectifiedFlowPipeline


def save_zeros(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    return file


@pytest.mark.parametrize(("shapes", "expected"), LAYOUTS)
def test_without_a_configuration_names_and_shapes_tell_the_class(tmp_path, shapes, expected):
    assert loading._class_of(save_zeros(tmp_path / "model.safetensors", shapes)) == expected


def test_other_layouts_name_the_known(tmp_path):
    message = refusal(save_zeros(tmp_path / "refiner.safetensors", {SDXL.format(0): (4,)}))
    assert "'xl_refiner' is unknown" in message and "StableDiffusionXLPipeline" in message


def test_a_lora_is_no_model(tmp_path):
    lora = save_zeros(tmp_path / "lora.safetensors", {"lora_unet_mid_block.lora_up.weight": (4, 1)})
    assert "load_lora_weights" in refusal(lora)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickled_file_is_refused_unopened(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"not even a pickle")
    assert "must be .safetensors" in refusal(tmp_path / f"model{suffix}")


def test_broken_files(tmp_path, folder, file):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert "cannot be loaded" in refusal(tmp_path / "empty.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cannot be loaded" in refusal(file, config=str(folder))


# --- the hub


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror("no address")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(loading, "getproxies", dict)


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(offline, tmp_path):
    message = refusal("nobody/nothing", cache_dir=str(tmp_path))
    assert "not in the local cache, and the hub cannot be reached" in message


def test_what_is_in_the_local_cache_needs_no_network(offline, folder, tmp_path):
    cached = tmp_path / "models--nobody--tiny"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    pipe = load("nobody/tiny", cache_dir=str(tmp_path))
    assert type(pipe) is SDPipeline
    assert same_weights(pipe, load(folder))
    assert len(pipe(Generate(), num_inference_steps=1).images) == 1


def test_loading_by_the_wrong_family_says_how(folder):
    with pytest.raises(AdhereError, match=r"load it with ConstrainedPipeline.from_pretrained"):
        RectifiedFlowPipeline.from_pretrained(folder)


def test_a_pipeline_of_unknown_class_lists_the_known(folder):
    class Other(DiffusionPipeline):
        pass

    with pytest.raises(AdhereError, match=r"class 'Other' is unknown; known are .*FluxPipeline"):
        ConstrainedPipeline.from_pipe(Other())
