"""Every command and every Python block of docs/your-own-model.md, run on tiny models in the places that it names."""

import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from adhere.cli import main
from adhere.core.solvers import METHODS
from tests.picture_files import hole, image_of
from tests.single_file import save_single_file
from tests.tiny_latent_models import stride, tinier_vae, tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_models import edit_json

PAGE = (Path(__file__).parents[1] / "docs" / "your-own-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^adhere .*(?:\n    .*)*", PAGE, re.M)
NO_GPU = {'"cuda"': '"cpu"', "cpu_offload()": 'cpu_offload(device="cpu")'}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("place")
    sd: Any = tiny_sd(here)
    sd.save_pretrained(here / "stable-diffusion-v1-5/stable-diffusion-v1-5")
    save_single_file(sd, here / "checkpoint.safetensors")
    sd.save_pretrained(flow := here / "XCLiu/instaflow_0_9B_from_sd_1_5")
    edit_json(flow / "model_index.json", _class_name="RectifiedFlowPipeline")
    tiny_sd(here, stride("v_prediction")).save_pretrained(here / "models/stable-diffusion-2-1")
    for variant in (None, "fp16"):
        tiny_sdxl(here).save_pretrained(here / "stabilityai/stable-diffusion-xl-base-1.0", variant=variant)
    for name in ("3.5-medium", "3-medium-diffusers"):
        tiny_sd3(here).save_pretrained(here / f"stabilityai/stable-diffusion-{name}")
    tiny_flux(here).save_pretrained(here / "black-forest-labs/FLUX.1-dev")
    tiny_ldm().save_pretrained(here / "models/ldm-celebahq-256")
    tinier_vae().save_pretrained(here / "madebyollin/taesd")
    sd.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    sd.save_lora_weights(here, get_peft_model_state_dict(sd.unet), weight_name="lora.safetensors")
    for name, size in {"photo.jpg": 48, "small.png": 16, "sketch.png": 20, "painting.jpg": 64}.items():
        image_of("RGB", size, size).save(here / name)
    for name in ("mask.png", "shape.png"):
        Image.fromarray(hole(48, 48)).save(here / name)
    return here


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_the_python_blocks_run_one_after_another(place, monkeypatch):
    monkeypatch.chdir(place)
    few = replace(METHODS["inexact_newton"], steps=2)  # each level is like the others
    monkeypatch.setitem(METHODS, "inexact_newton", few)
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S), 1):
        for words, here in NO_GPU.items():
            block = block.replace(words, here)
        exec(compile(block, f"block {number}", "exec"), names)
    assert len(names["out"].images) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(place, monkeypatch, command):
    monkeypatch.chdir(place)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Ctrl-C is left as it was
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command.replace("\\\n", ""))[1:])
    assert end.value.code == 0
