"""Loading a model: a diffusers folder, one .safetensors file, an entry of the local hub cache, a pipeline in memory."""

import json
import os
import pickle
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler
from safetensors.torch import save_file

import adhere
from adhere import AdhereError, ConstrainedPipeline, Generate, Upscale
from adhere.pipelines import _components, _model_files, loading
from adhere.pipelines.pixel import PixelPipeline
from adhere.pipelines.registry import FAMILIES
from adhere.pipelines.sd import RectifiedFlowPipeline, SDPipeline
from tests.picture_files import noise
from tests.pipelines.test_pixel import LAYOUTS, task, with_scheduler
from tests.single_file import save_single_file
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import WEIGHTS, edit_json, edit_weights, load, tiny_unet

SDXL = "conditioner.embedders.{}.model.transformer.resblocks.9.mlp.c_proj.bias"
SD3 = "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias"
SINGLE_FILES = [  # (the shapes that tell a layout, its class)
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
    """Return the message of the AdhereError that loading must raise: one line that names the model."""
    with pytest.raises(AdhereError) as caught:
        load(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(model) in message
    return message


def same_weights(a: Any, b: Any) -> bool:
    parts = ("unet", "vae", "text_encoder")
    pairs = [(getattr(a, part).state_dict(), getattr(b, part).state_dict()) for part in parts]
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs)


# --- folders


def test_weights_saved_in_half_precision_are_computed_in_float32(model_with):
    folder = model_with()
    edit_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    assert load(folder).unet.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_is_saved_again_samples_the_same(model_with, tmp_path, layout):
    pipe = load(model_with(**LAYOUTS[layout]))
    pipe.save_pretrained(tmp_path / "again")
    ours, expected = (
        p(task(), num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        for p in (load(tmp_path / "again"), pipe)
    )
    assert torch.equal(ours.images, expected.images)


def test_loading_logs_and_warns_nothing(shared_model, caplog, recwarn):
    load(shared_model)
    assert not caplog.records
    assert not [str(w.message) for w in recwarn]


def test_a_family_can_be_loaded_by_its_own_name(shared_model):
    assert isinstance(PixelPipeline.from_pretrained(shared_model), PixelPipeline)


def test_a_component_that_is_given_is_used(shared_model):
    unet = tiny_unet(seed=5)
    assert load(shared_model, unet=unet).unet is unet


def test_the_base_class_is_no_model_and_says_what_to_use(shared_model):
    with pytest.raises(TypeError, match=r"use adhere\.load"):
        ConstrainedPipeline().make_denoiser()
    with pytest.raises(TypeError, match=r"use adhere\.load"):
        _ = ConstrainedPipeline().multiple
    with pytest.raises(TypeError, match=r"use adhere\.load\(model\)"):
        ConstrainedPipeline.from_pretrained(shared_model)  # retired
    with pytest.raises(TypeError, match=r"use adhere\.from_pipe\(pipeline\)"):
        ConstrainedPipeline.from_pipe(load(shared_model))  # retired


@pytest.mark.parametrize("entry", [name for name, family in FAMILIES.items() if family.endswith("PixelPipeline")])
def test_the_registry_names_real_classes(model_with, entry):
    folder = model_with()
    edit_json(folder / "model_index.json", _class_name=entry)
    assert isinstance(load(folder), PixelPipeline)


# --- bad folders


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    assert "no such folder" in refusal(tmp_path / "missing")


def test_a_folder_without_an_index_is_refused(tmp_path):
    assert "no model_index.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "null", "{}", "\xff\xfe"])
def test_an_unreadable_index_is_refused(tmp_path, text):
    (tmp_path / "model_index.json").write_bytes(text.encode("latin-1"))
    assert "model_index.json cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["KandinskyPipeline", ["mine", "DDIMPipeline"], None, 3])
def test_an_unknown_class_lists_the_known_ones(model_with, name):
    folder = model_with()
    edit_json(folder / "model_index.json", _class_name=name)
    message = refusal(folder)
    assert "is unknown" in message
    assert "DDIMPipeline, DDPMPipeline" in message


def test_an_index_without_a_network_is_refused(model_with):
    folder = model_with()
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "has no 'unet'" in refusal(folder)


def test_missing_weights_are_refused(model_with):
    folder = model_with()
    (folder / WEIGHTS).unlink()
    assert "no weights (*.safetensors)" in refusal(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "unet", "scheduler"])
def test_a_missing_part_is_named(model_with, part):
    folder = model_with()
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert part.split("/")[0] in refusal(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_broken_configuration_is_named(model_with, part):
    folder = model_with()
    (folder / part).write_text("{")
    assert Path(part).name in refusal(folder)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_unopened(model_with, tmp_path, name):
    folder = model_with()
    (folder / WEIGHTS).unlink()
    (folder / "unet" / name).write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    assert "pickled" in refusal(folder)
    assert not (tmp_path / "executed").exists()


def test_pickled_weights_beside_a_stray_safetensors_file_are_not_opened(model_with, tmp_path):
    folder = model_with()
    (folder / WEIGHTS).rename(folder / "unet" / "other.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    assert "diffusion_pytorch_model.safetensors" in refusal(folder)
    assert not (tmp_path / "executed").exists()


def test_code_in_the_folder_is_not_run(model_with, tmp_path):
    folder = model_with()
    edit_json(folder / "model_index.json", scheduler=["mine", "Mine"])
    (folder / "scheduler" / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: pass\n")
    refusal(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5, 0.999])
def test_truncated_weights_are_refused(model_with, kept):
    folder = model_with()
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert f"{WEIGHTS} cannot be loaded: damaged or cut short (" in refusal(folder)


def test_a_pointer_of_git_lfs_is_named(model_with):
    folder = model_with()
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "damaged or cut short (a pointer of git lfs); download" in refusal(folder)


def test_damaged_weights_of_a_variant_that_is_not_read_do_no_harm(model_with):
    folder = model_with()
    (folder / WEIGHTS).with_suffix(".fp16.safetensors").write_bytes(b"damaged")
    load(folder)
    assert "fp16.safetensors cannot be loaded: damaged" in refusal(folder, variant="fp16")


def test_weights_of_another_shape_name_the_entry(model_with):
    folder = model_with()
    edit_json(folder / "unet" / "config.json", block_out_channels=[12, 16])
    assert "conv_in" in refusal(folder)


def test_weights_that_lack_an_entry_name_it_and_are_not_left_random(model_with):
    folder = model_with()
    edit_weights(folder, lambda weights: {n: v for n, v in weights.items() if n != "conv_out.weight"})
    assert "conv_out.weight" in refusal(folder)


@pytest.mark.parametrize("channels", [1, 4, 5, 27])
def test_networks_of_other_channels_say_what_is_understood(model_with, channels):
    message = refusal(model_with(channels=channels))
    assert f"takes {channels} channels" in message
    assert "3 (RGB) or 12" in message


@pytest.mark.parametrize("out_channels", [1, 4, 12])
def test_networks_that_return_other_channels_are_refused(model_with, out_channels):
    assert f"returns {out_channels}" in refusal(model_with(out_channels=out_channels))


def test_networks_that_need_class_labels_are_refused(model_with):
    assert "class labels" in refusal(model_with(num_class_embeds=10))


def test_a_scheduler_whose_noise_levels_cannot_be_read_is_refused(model_with):
    """diffusers would silently make a DDIMScheduler with default betas of it."""
    message = refusal(with_scheduler(model_with(), ScoreSdeVeScheduler()))
    assert "trained for the noise levels of ScoreSdeVeScheduler is not supported" in message


def test_an_unknown_prediction_type_is_refused(model_with):
    folder = model_with()
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="score")
    message = refusal(folder)
    assert "'score'" in message
    assert "v_prediction" in message


# --- one file


def test_a_single_file_gives_the_same_pipeline_as_its_folder(folder, file):
    """The components' configurations come from the folder, every weight from the file."""
    one, many = load(file, config=str(folder)), load(folder)
    assert type(one) is SDPipeline
    assert same_weights(one, many)
    task = Upscale(noise(8, 8, 3), 4)
    ours, expected = (
        pipe(task, "a", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="latent").images
        for pipe in (one, many)
    )
    assert torch.equal(ours, expected)


def test_the_configuration_of_a_single_file_decides_the_class(folder, file, tmp_path):
    shutil.copytree(folder, tmp_path / "flow")
    edit_json(tmp_path / "flow" / "model_index.json", _class_name="RectifiedFlowPipeline")
    assert type(load(file, config=str(tmp_path / "flow"))) is RectifiedFlowPipeline


def save_zeros(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    return file


@pytest.mark.parametrize(("shapes", "expected"), SINGLE_FILES)
def test_without_a_configuration_names_and_shapes_of_weights_decide_the_class(tmp_path, shapes, expected):
    assert _model_files.class_of(save_zeros(tmp_path / "model.safetensors", shapes)) == expected


def test_an_unknown_layout_lists_the_known_ones(tmp_path):
    entry = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    shapes = {entry: (8, 768), "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    message = refusal(save_zeros(tmp_path / "inpaint.safetensors", shapes))
    assert "'inpainting' is unknown" in message and "StableDiffusionXLPipeline" in message


def test_a_lora_is_answered_with_the_way_to_load_it(tmp_path):
    lora = save_zeros(tmp_path / "lora.safetensors", {"lora_unet_mid_block.lora_up.weight": (4, 1)})
    assert "load_lora_weights" in refusal(lora)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickled_file_is_refused_unopened(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"not even a pickle")
    assert "must be .safetensors" in refusal(tmp_path / f"model{suffix}")


def test_broken_single_files_are_refused(tmp_path, folder, file):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert "the file cannot be loaded: damaged or cut short (header" in refusal(tmp_path / "empty.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "the file cannot be loaded: damaged or cut short" in refusal(file, config=str(folder))


@pytest.mark.parametrize("url", ["https://huggingface.co/a/b", "https:/huggingface.co/a/b", "hf://a/b"])
def test_a_url_is_to_be_downloaded_first(file, url):
    assert refusal(url).startswith(f"model '{url}': is a URL; download the model first")
    assert f": config '{url}': is a URL; download the model first" in refusal(file, config=url)


# --- the hub


@pytest.fixture
def offline(monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror("no address")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(_components, "getproxies", dict)


def test_a_hub_that_cannot_be_reached_is_reported_at_once_in_one_line(offline, tmp_path):
    message = refusal("nobody/nothing", cache_dir=str(tmp_path))
    assert "not in the local cache, and the hub cannot be reached" in message


@pytest.fixture
def snapshot(offline, folder, tmp_path) -> Path:
    """Return the folder of the model nobody/tiny in the local cache of the hub."""
    cached = tmp_path / "models--nobody--tiny"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    return cached / "snapshots" / ("0" * 40)


def test_errors_of_a_hub_id_are_those_of_a_folder(snapshot, tmp_path):
    """Weights that are damaged, and weights of a variant only."""
    cache, file = {"cache_dir": str(tmp_path)}, snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert refusal("nobody/tiny", **cache).startswith(f"model 'nobody/tiny': vae/{file.name} cannot be loaded: damaged")
    file.write_bytes(whole)
    for file in list(snapshot.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    for variant in ({}, {"variant": "bf16"}):
        message = refusal("nobody/tiny", **cache, **variant)
        assert re.search(r"^model 'nobody/tiny': \w+/ has only the variant 'fp16'.*--variant fp16", message)
        assert message == refusal(snapshot, **variant).replace(str(snapshot), "nobody/tiny")
    load("nobody/tiny", **cache, variant="fp16")


def test_a_hub_that_is_reached_lists_its_files(snapshot, tmp_path, monkeypatch):
    """Of a variant that is not downloaded, the cache has no file."""
    for file in snapshot.rglob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(loading, "load_component", lambda *_: exec("raise OSError('no weights')"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(snapshot / "model_index.json"))
    names = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    assert "unet/ has only the variant 'fp16'" in refusal("nobody/tiny", cache_dir=str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: exec("raise OSError('no network')"))
    assert "cannot be loaded: no weights" in refusal("nobody/tiny", cache_dir=str(tmp_path))


def test_a_model_in_the_local_cache_needs_no_network(snapshot, folder, tmp_path):
    pipe = load("nobody/tiny", cache_dir=str(tmp_path))
    assert type(pipe) is SDPipeline
    assert same_weights(pipe, load(folder))
    assert len(pipe(Generate(), num_inference_steps=1).images) == 1


def test_an_autoencoder_on_the_hub_is_read_at_the_revision_that_is_given(snapshot, folder, tmp_path, monkeypatch):
    """From the cache alone, though the hub can be reached."""
    cached = snapshot.parents[1]
    shutil.copytree(folder / "vae", cached / "snapshots" / ("1" * 40))
    (cached / "refs" / "old").write_text("1" * 40)
    monkeypatch.setattr(_components, "hub_is_reachable", lambda: True)
    options = {"vae": "nobody/tiny", "revision": "old", "cache_dir": str(tmp_path), "local_files_only": True}
    assert same_weights(load(folder, **options), load(folder))


def test_a_pipeline_of_an_unknown_class_lists_the_known_ones(folder):
    class Other(DiffusionPipeline):
        pass

    with pytest.raises(AdhereError, match=r"class 'Other' is unknown; known are .*FluxPipeline"):
        adhere.from_pipe(Other())
