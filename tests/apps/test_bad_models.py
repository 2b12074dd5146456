"""Models that cannot be used: one line, exit code 2, and no file is written."""

import json
import os
from pathlib import Path

import pytest

from adhere.apps._examples import EXAMPLES
from adhere.pipelines._index import SHIPPED_MODELS
from tests.apps.command import error_line, run
from tests.single_file import save_single_file
from tests.tiny_models import WEIGHTS, edit_json, edit_weights, load, with_nan


@pytest.mark.parametrize("verb", EXAMPLES)
def test_a_model_that_does_not_exist(folder, verb_args, verb):
    message = error_line(verb_args(verb, model="adhere-foto"), folder)
    assert "no such folder" in message
    assert message.endswith(f"a shipped model: {', '.join(SHIPPED_MODELS)}\n")
    assert "no model_index.json" in error_line(verb_args(verb, model="."), folder)


@pytest.mark.parametrize(
    ("file", "message"), [("model.ckpt", "must be .safetensors"), ("model.safetensors", "cannot be loaded")]
)
def test_a_single_file_that_is_not_a_checkpoint(folder, inpaint_args, file, message):
    Path(file).write_bytes(b"no weights")
    assert message in error_line(inpaint_args(model=file), folder)


def delete_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def rename_to_bin(model: Path) -> None:
    (model / WEIGHTS).rename(model / "unet" / "diffusion_pytorch_model.bin")


def rename_weights(model: Path) -> None:
    (model / WEIGHTS).rename(model / "unet" / "other.safetensors")


def truncate_weights(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])


def delete_bias(model: Path) -> None:
    edit_weights(model, lambda weights: {n: v for n, v in weights.items() if n != "conv_in.bias"})


def set_unknown_class(model: Path) -> None:
    edit_json(model / "model_index.json", _class_name="AudioLDMPipeline")


def break_index(model: Path) -> None:
    (model / "model_index.json").write_text("{")


def change_channels(model: Path) -> None:
    edit_json(model / "unet" / "config.json", block_out_channels=[12, 16])


def set_nan(model: Path) -> None:
    edit_weights(model, with_nan)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete_weights, "no weights"),
        (rename_to_bin, "pickled"),
        (rename_weights, "diffusion_pytorch_model.safetensors"),
        (truncate_weights, "cannot be loaded"),
        (delete_bias, "conv_in.bias"),
        (set_unknown_class, "known are DDIMPipeline"),
        (break_index, "cannot be read"),
        (change_channels, "conv_in"),
        (set_nan, "NaN or infinity at step 1 of 1"),
    ],
)
def test_damaged_models(folder, inpaint_args, model_with, damage, message):
    model = model_with()
    damage(model)
    assert message in error_line(inpaint_args(model=str(model), json="report.json"), folder)


def test_a_model_of_gray_pictures(folder, inpaint_args, model_with):
    assert "takes 1 channels" in error_line(inpaint_args(model=str(model_with(channels=1))), folder)


def test_weights_of_a_variant(folder, verb_args, text_model):
    load(text_model).save_pretrained("half", variant="fp16")
    assert "(--variant fp16 on the command line)" in error_line(verb_args("generate", model="half"), folder)
    assert "no weights of the variant 'x'" in error_line(
        verb_args("generate", model=str(text_model), variant="x"), folder
    )
    result = run(verb_args("generate", model="half", variant="fp16", json="report.json"))
    assert result.exit_code == 0, result
    assert json.loads(Path("report.json").read_text())["variant"] == "fp16"


def test_the_configuration_of_a_single_file(folder, verb_args, text_model):
    save_single_file(load(text_model), Path("model.safetensors"))
    result = run(verb_args("generate", model="model.safetensors", config=str(text_model), json="report.json"))
    assert result.exit_code == 0, result
    assert json.loads(Path("report.json").read_text())["config"] == str(text_model)
    os.remove("out.png")
    os.remove("report.json")
    assert "leave config out" in error_line(
        verb_args("generate", model=str(text_model), config=str(text_model)), folder
    )


def test_a_very_long_name(folder, verb_args):
    assert len(error_line(verb_args("generate", model="x" * 5000), folder)) < 500
