"""Models that cannot be used: one line, exit code 2, and nothing written."""

from pathlib import Path

import pytest

from adhere.cli import EXAMPLES
from adhere.loading import SHIPPED
from tests.cli.command import refusal
from tests.tiny_models import WEIGHTS, edit_json, edit_weights, with_nan


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_model_there(folder, verb, name):
    given = refusal(verb(name, model="adhere-foto"), folder)
    assert "no such folder" in given
    assert given.endswith(f"one that ships: {', '.join(SHIPPED)}\n")
    assert "no model_index.json" in refusal(verb(name, model="."), folder)


@pytest.mark.parametrize(
    ("file", "message"), [("model.ckpt", "must be .safetensors"), ("model.safetensors", "cannot be loaded")]
)
def test_a_single_file_that_is_no_checkpoint(folder, good, file, message):
    Path(file).write_bytes(b"no weights")
    assert message in refusal(good(model=file), folder)


def without_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def pickled(model: Path) -> None:
    (model / WEIGHTS).rename(model / "unet" / "diffusion_pytorch_model.bin")


def misnamed(model: Path) -> None:
    (model / WEIGHTS).rename(model / "unet" / "other.safetensors")


def truncated(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])


def incomplete(model: Path) -> None:
    edit_weights(model, lambda weights: {n: v for n, v in weights.items() if n != "conv_in.bias"})


def unknown(model: Path) -> None:
    edit_json(model / "model_index.json", _class_name="AudioLDMPipeline")


def broken(model: Path) -> None:
    (model / "model_index.json").write_text("{")


def mismatched(model: Path) -> None:
    edit_json(model / "unet" / "config.json", block_out_channels=[12, 16])


def diverged(model: Path) -> None:
    edit_weights(model, with_nan)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_weights, "no weights"),
        (pickled, "pickled"),
        (misnamed, "diffusion_pytorch_model.safetensors"),
        (truncated, "cannot be loaded"),
        (incomplete, "conv_in.bias"),
        (unknown, "known are DDIMPipeline"),
        (broken, "cannot be read"),
        (mismatched, "conv_in"),
        (diverged, "NaN or infinity at step 1 of 1"),
    ],
)
def test_bad_models(folder, good, model_with, spoil, message):
    model = model_with()
    spoil(model)
    assert message in refusal(good(model=str(model), json="report.json"), folder)


def test_a_gray_model(folder, good, model_with):
    assert "takes 1 channels" in refusal(good(model=str(model_with(channels=1))), folder)
