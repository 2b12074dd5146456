"""The verbs that restore a whole photograph: their units, and bad input for each of them."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adhere
from adhere.apps.job import _check_fit
from adhere.errors import AdhereWarning
from adhere.tasks import Task
from tests.apps.command import arguments_for, error_line, run
from tests.tiny_models import load


def python_result(model: Path, task: Task) -> np.ndarray:
    """Return the picture of a task with the seed and the steps of the commands below."""
    out = load(model)(task, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    return np.asarray(out.images[0])


def test_the_command_takes_units_of_0_to_1_and_python_of_minus_1_to_1(folder, verb_args, shared_model):
    assert run(verb_args("denoise", sigma="0.07")).exit_code == 0
    expected = python_result(shared_model, adhere.Denoise("photo.png", noise=0.14))
    assert np.array_equal(np.asarray(Image.open("out.png")), expected)


def test_the_estimated_noise_is_printed(folder, shared_model):
    result = run(arguments_for("denoise", "photo.png", o="out.png", model=str(shared_model)))
    assert result.exit_code == 0 and result.stdout.startswith("1 NFE, ")
    printed = re.fullmatch(r"adhere: note: the noise was estimated as --sigma (\d\.\d{4})\n", result.stderr)
    noise = adhere.Denoise("photo.png").noise
    assert printed and noise and float(printed[1]) == pytest.approx(noise / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("verb", "options", "settings"),
    [
        ("denoise", {"sigma": "0.07"}, {"name": "Denoise", "noise": 0.14, "sample": False}),
        ("deblur", {"noise": "0.01"}, {"name": "Deblur", "psf": "disk:1", "noise": 0.02}),
        ("upscale", {}, {"name": "Upscale", "factor": 2.0, "noise": 0.0, "kernel": "area", "size": [48, 62]}),
        ("outpaint", {}, {"name": "Outpaint", "left": 4, "growth": [4, 0, 0, 0]}),
        ("inpaint", {"box": "1,2,3,4", "grow": "1"}, {"mask": "mask.png", "boxes": [[1, 2, 3, 4]], "grow": 1}),
        ("colorize", {"hint_noise": "0.1"}, {"name": "Colorize", "hint_noise": 0.2}),
    ],
)
def test_the_report_has_the_settings_of_the_verb(folder, verb_args, verb, options, settings):
    assert run(verb_args(verb, json="report.json", **options)).exit_code == 0
    task = json.loads(Path("report.json").read_text())["task"]
    assert task | settings == task


def test_the_report_has_the_estimated_noise(folder, shared_model):
    assert run(arguments_for("denoise", "photo.png", o="o.png", json="r.json", model=str(shared_model))).exit_code == 0
    assert json.loads(Path("r.json").read_text())["task"]["noise"] == adhere.Denoise("photo.png").noise


def test_without_noise_the_picture_is_returned(folder, verb_args):
    assert run(verb_args("denoise", sigma="0")).exit_code == 0
    assert np.array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open("photo.png")))


NOISE_FLAGS = [("denoise", "--sigma"), ("deblur", "--noise"), ("upscale", "--noise"), ("colorize", "--hint-noise")]


@pytest.mark.parametrize(("verb", "flag"), NOISE_FLAGS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("25", "is above 1; divide a number of 8-bit levels by 255, such as 0.098 for 25 levels"),
        ("1.01", "is above 1; divide a number of 8-bit levels by 255"),
        ("inf", "give a standard deviation from 0 to 1"),
        ("-0.1", "give a standard deviation from 0 to 1"),
        ("nan", "give a standard deviation from 0 to 1"),
        ("", "give a standard deviation from 0 to 1"),
        ("much", "give a standard deviation from 0 to 1"),
    ],
)
def test_the_units_of_noise(folder, verb_args, verb, flag, value, message):
    line = error_line(verb_args(verb, **{flag.removeprefix("--").replace("-", "_"): value}), folder)
    assert f"{flag} '{value}': {message}" in line


def test_steps_are_for_samples_and_the_mean_has_one(folder, verb_args):
    line = error_line(verb_args("denoise", steps="4"), folder)
    assert "--steps 4: the mean takes one evaluation; leave it out, or give --solver to sample" in line
    assert run(verb_args("denoise", steps="4", solver="ddnm")).stdout.startswith("4 NFE")


def test_denoise_needs_a_model_of_pixels(folder, verb_args, text_model):
    assert "Denoise needs a pixel-space model" in error_line(verb_args("denoise", model=str(text_model)), folder)


def test_deblur_takes_units_of_0_to_1_and_a_shape_or_a_picture(folder, verb_args, shared_model):
    Image.fromarray(np.array([[0, 9, 0], [9, 9, 9], [0, 9, 0]], np.uint8)).save("psf.png")
    for psf in ("disk:1.5", "psf.png"):
        assert run(verb_args("deblur", "--force", psf=psf, noise="0.02")).exit_code == 0
        expected = python_result(shared_model, adhere.Deblur("photo.png", psf, noise=0.04))
        assert np.array_equal(np.asarray(Image.open("out.png")), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"psf": "gauss:2"}, "psf 'gauss:2': no such file; give gaussian:SIGMA"),
        ({"psf": "disk:0.05"}, "psf 'disk:0.05': give a RADIUS from 0.1 to 100"),
        ({"psf": "disk:0"}, "psf 'disk:0': give a RADIUS from 0.1 to 100 pixels"),
        ({"psf": ""}, "--psf '': is empty; give gaussian:SIGMA"),
        ({"psf": "missing.png"}, "psf 'missing.png': no such file; give gaussian:SIGMA"),
        ({"psf": "photo.png"}, "the psf photo.png is a picture with colors"),
        ({"psf": "disk:1", "json": "photo.png"}, "is read by this command"),
        ({"psf": "psf.png", "json": "psf.png"}, "is read by this command"),
    ],
)
def test_bad_input_of_deblur(folder, verb_args, options, message):
    Image.fromarray(np.ones((1, 1), np.uint8)).save("psf.png")
    assert message in error_line(verb_args("deblur", **options), folder)


@pytest.mark.parametrize("options", [{"size": "62x48", "factor": None}, {"factor": "1.7", "kernel": "bicubic"}])
def test_upscale_by_a_size_and_by_any_factor(folder, verb_args, shared_model, options):
    result = run(
        arguments_for("upscale", "photo.png", o="out.png", model=str(shared_model), steps="1", noise="0.01", **options)
    )
    assert result.exit_code == 0, result
    size = (48, 62) if options.get("size") else None
    factor = float(options["factor"]) if options["factor"] else None
    task = adhere.Upscale("photo.png", factor, 0.02, options.get("kernel", "area"), size)
    assert np.array_equal(np.asarray(Image.open("out.png")), python_result(shared_model, task))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": "1.2"}, "--factor '1.2': give a number from 1.5 to 8"),
        ({"factor": "9"}, "--factor '9': give a number from 1.5 to 8"),
        ({"factor": "nan"}, "--factor 'nan': give a number from 1.5 to 8"),
        ({"factor": "2", "size": "62x48"}, "--size '62x48' and --factor '2' are given: give one of them"),
        ({"factor": None, "size": "62x62"}, "has another aspect ratio than 31x24"),
        ({"factor": None, "size": "31x24"}, "is not from 1.5 to 8 times 31x24: 47x36 to 248x192 are allowed"),
        ({"factor": None, "size": "62"}, "--size '62': give WIDTHxHEIGHT"),
        ({"kernel": "lanczos"}, "--kernel 'lanczos': give area or bicubic"),
    ],
)
def test_bad_input_of_upscale(folder, shared_model, options, message):
    arguments = arguments_for("upscale", "photo.png", o="out.png", model=str(shared_model), **options)
    assert message in error_line(arguments, folder)


@pytest.fixture
def hints(folder):
    """Write hints.png, a stroke on a transparent layer."""
    strokes = np.zeros((24, 31, 4), np.uint8)
    strokes[5:9, 5:25] = (200, 40, 90, 255)
    Image.fromarray(strokes).save("hints.png")


def test_colorize_keeps_the_luma_and_says_that_colors_were_replaced(folder, hints, verb_args, shared_model):
    for name in ("color", "gray"):
        if name == "gray":
            Image.open("photo.png").convert("L").save("photo.png")
        result = run(verb_args("colorize", hints="hints.png", hint_noise="0.1", o=f"{name}.png"))
        assert result.exit_code == 0, result
        note = "adhere: note: PHOTO has colors, which were replaced by its luma\n"
        assert result.stderr == (note if name == "color" else "")
        expected = python_result(shared_model, adhere.Colorize("photo.png", "hints.png", hint_noise=0.2))
        assert np.array_equal(np.asarray(Image.open(f"{name}.png")), expected)
    difference = np.asarray(Image.open("gray.png").convert("L")).astype(int) - np.asarray(Image.open("photo.png"))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hints": "missing.png"}, "missing.png: no such file"),
        ({"hints": "photo.png"}, "the hints photo.png have no transparency"),
        ({"hints": ""}, "--hints '': is empty"),
        ({"hints": "hints.png", "json": "hints.png"}, "is read by this command"),
    ],
)
def test_bad_input_of_colorize(folder, hints, verb_args, options, message):
    assert message in error_line(verb_args("colorize", **options), folder)


@pytest.mark.parametrize("model", [None, str(Path(adhere.__file__).with_name("models") / "adhere-photo")])
def test_the_shipped_model_needs_hints_to_colorize(folder, model):
    line = error_line(arguments_for("colorize", "photo.png", o="out.png", model=model), folder)
    assert "the hints are missing (--hints): a pixel-space model does not know the colors of things" in line


def test_a_picture_that_is_not_blurred_as_stated_is_noted():
    """A network may fit any picture, so the residuals are given here."""
    task = adhere.Deblur(np.zeros((8, 8, 3), np.uint8), "motion:7,30", noise=0.02)
    with pytest.warns(AdhereWarning, match="not blurred by --psf .residual 0.200, noise 0.020"):
        _check_fit(task, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_fit(task, 0.05)
        _check_fit(adhere.Denoise(np.zeros((8, 8, 3), np.uint8), noise=0.2), 1.0)
