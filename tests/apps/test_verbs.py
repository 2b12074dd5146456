"""What the verbs write and report, and their help."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, get_origin

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from safetensors import safe_open
from typer.models import OptionInfo

import adhere
from adhere.apps import _options, _verbs, cli
from adhere.apps._examples import EXAMPLES
from adhere.pipelines._index import MODELS
from adhere.pipelines.base import ConstrainedPipeline
from tests.apps.command import LATENT_VERBS, REPORT_LINE, arguments_for, contents_of, error_line, run
from tests.picture_files import hole, image_of


def test_inpaint_writes_the_picture_and_prints_one_line(folder, inpaint_args):
    result = run(inpaint_args())
    assert result.exit_code == 0, result
    assert REPORT_LINE.fullmatch(result.stdout)
    assert result.stdout.startswith("1 NFE")
    out = np.asarray(Image.open("out.png"))
    photo = np.asarray(Image.open("photo.png"))
    assert np.array_equal(out[~hole()], photo[~hole()])
    assert not np.array_equal(out, photo)
    assert sorted(contents_of(folder)) == ["mask.png", "out.png", "photo.png"]


def test_the_report_in_json(folder, inpaint_args, shared_model):
    result = run(inpaint_args(json="report.json", solver="ddnm", steps="3", seed="7"))
    assert result.exit_code == 0, result
    report = json.loads(Path("report.json").read_text())
    figures = ["nfe", "seconds", "residual", "peak_gb", "repainted"]
    prompts = ["prompt", "negative_prompt", "guidance_scale"]
    settings = ["solver", "steps", "seed", "num_images", "device", "dtype", "compile", "version"]
    parts = ["model", "variant", "config", "vae", "loras", "offload"]
    assert list(report) == [*figures, "task", *parts, *prompts, *settings]
    expected = {"nfe": 3, "model": str(shared_model), "solver": "ddnm", "steps": 3, "seed": 7, "dtype": "float32"}
    assert report | dict.fromkeys(prompts) | expected | {"version": adhere.__version__} == report
    assert report["seconds"] > 0
    assert report["peak_gb"] > 0
    assert report["residual"] < 1e-3
    assert sorted(contents_of(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


def test_the_default_solver_steps_and_seed(folder, inpaint_args):
    assert run(inpaint_args(steps=None, json="report.json")).exit_code == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["solver"], report["steps"], report["seed"], report["nfe"]) == ("moment_matching", 12, 0, 12)


def test_compile_calls_the_method_of_the_pipeline(folder, verb_args, monkeypatch):
    compiled = []
    monkeypatch.setattr(ConstrainedPipeline, "compile", lambda pipe: compiled.append(pipe))
    for flags in ([], ["--compile"]):
        assert run(verb_args("generate", "--force", *flags, json="report.json")).exit_code == 0
        assert len(compiled) == len(flags)
        assert json.loads(Path("report.json").read_text())["compile"] == bool(flags)


def test_half_precision_does_not_change_known_pixels(folder, inpaint_args):
    for name in ("float32", "bfloat16"):
        assert run(inpaint_args(o=f"{name}.png", dtype=name, device="cpu", json=f"{name}.json")).exit_code == 0
        report = json.loads(Path(f"{name}.json").read_text())
        assert (report["device"], report["dtype"]) == ("cpu", name)
    full, half = (np.asarray(Image.open(f"{name}.png")) for name in ("float32", "bfloat16"))
    assert np.array_equal(half[~hole()], full[~hole()])
    assert not np.array_equal(half, full)


def test_the_result_depends_on_the_seed_only(folder, inpaint_args):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert run(inpaint_args(o=f"{name}.png", seed=seed)).exit_code == 0
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_without_a_mask_the_transparent_part_is_inpainted(folder, inpaint_args):
    image = image_of("RGB")
    image.putalpha(Image.fromarray(np.where(hole(), 0, 255).astype(np.uint8)))
    image.save("cutout.png")
    assert run(inpaint_args("cutout.png", mask=None)).exit_code == 0
    out = np.asarray(Image.open("out.png"))
    assert (out[..., 3] == 255).all()
    assert np.array_equal(out[~hole()], np.asarray(image)[~hole()])


def test_force_replaces_both_files(folder, inpaint_args):
    Path("out.png").write_text("old")
    Path("report.json").write_text("old")
    assert run(inpaint_args("photo.png", "--force", json="report.json")).exit_code == 0
    assert Image.open("out.png").size == (31, 24)
    assert json.loads(Path("report.json").read_text())["nfe"] == 1


def test_force_allows_the_output_to_be_the_input(folder, inpaint_args):
    before = np.asarray(Image.open("photo.png"))
    assert run(inpaint_args("photo.png", "--force", o="photo.png")).exit_code == 0
    after = np.asarray(Image.open("photo.png"))
    assert np.array_equal(after[~hole()], before[~hole()])
    assert not np.array_equal(after, before)


def test_a_leading_tilde_is_the_home_folder(folder, inpaint_args, monkeypatch, shared_model):
    """Shells expand it too, but not in quotes."""
    assert run(inpaint_args(o="expected.png")).exit_code == 0
    monkeypatch.setenv("HOME", str(folder))
    model = f"~/{os.path.relpath(shared_model, folder)}"
    result = run(inpaint_args("~/photo.png", mask="~/mask.png", o="~/out.png", model=model, json="~/report.json"))
    assert result.exit_code == 0, result
    assert sorted(contents_of(folder)) == ["expected.png", "mask.png", "out.png", "photo.png", "report.json"]
    assert Path("out.png").read_bytes() == Path("expected.png").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("verb", "size"), [("inpaint", (24, 31)), ("upscale", (48, 62))])
def test_exif_and_color_profile_are_kept(folder, verb_args, verb, size, suffix):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Artist] = "Someone"
    exif[ExifTags.Base.Orientation] = 6  # the stored pixels are rotated by 90 degrees
    image_of("RGB").save("photo.png", suffix[1:].replace("jpg", "jpeg"), exif=exif, icc_profile=icc)
    Image.fromarray(hole(31, 24)).save("mask.png")  # as the upright photo
    result = run(verb_args(verb, o=f"out{suffix}"))
    assert result.exit_code == 0, result
    with Image.open(f"out{suffix}") as out:
        kept = out.getexif()
        assert out.size == size
        assert out.info["icc_profile"] == icc
        assert (kept[ExifTags.Base.Make], kept[ExifTags.Base.Artist]) == ("Camera", "Someone")
        assert kept[ExifTags.Base.Orientation] == 1


# --- upscale and generate, and prompts


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_means_of_an_enlarged_picture_are_the_input(folder, verb_args, mode):
    image_of(mode).save("photo.png")
    result = run(verb_args("upscale", factor="3", json="report.json"))
    assert result.exit_code == 0, result
    assert REPORT_LINE.fullmatch(result.stdout)
    assert json.loads(Path("report.json").read_text())["residual"] < 1e-3
    with Image.open("out.png") as out:
        assert (out.size, out.mode) == ((93, 72), mode)


def test_the_default_factor_is_four(folder, shared_model):
    assert run(arguments_for("upscale", "photo.png", o="out.png", model=str(shared_model), steps="1")).exit_code == 0
    assert Image.open("out.png").size == (124, 96)


@pytest.mark.parametrize(("size", "expected"), [(None, (16, 16)), ("24x8", (24, 8))])
def test_generate_writes_a_picture_of_the_requested_size(folder, verb_args, size, expected):
    result = run(verb_args("generate", size=size))
    assert result.exit_code == 0, result
    assert REPORT_LINE.fullmatch(result.stdout)
    assert Image.open("out.png").size == expected


@pytest.mark.parametrize("verb", ["inpaint", "upscale", "generate"])
def test_every_verb_takes_prompts(folder, verb_args, text_model, verb):
    options = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 3.5}
    texts = {name: str(value) for name, value in options.items()}
    result = run(verb_args(verb, model=str(text_model), json="report.json", **texts))
    assert result.exit_code == 0, result
    report = json.loads(Path("report.json").read_text())
    assert report | options == report


@pytest.mark.parametrize("change", [{"prompt": "c"}, {"negative_prompt": "c"}, {"guidance_scale": "2"}])
def test_the_result_depends_on_prompts_and_guidance(folder, verb_args, text_model, change):
    options = {"model": str(text_model), "prompt": "a", "negative_prompt": "b", "guidance_scale": "3.5"}
    for file, changed in (("a", options), ("b", options), ("c", options | change)):
        assert run(verb_args("generate", **changed | {"o": f"{file}.png"})).exit_code == 0
    a, b, c = (Path(f"{file}.png").read_bytes() for file in "abc")
    assert a == b
    assert a != c


def test_the_shipped_text_model_reads_a_prompt_under_every_version_of_transformers(folder, verb_args):
    """`make test-min` runs this with the lowest version, which does not know the names of weights that 5.6 writes."""
    with safe_open(MODELS / "adhere-emoji" / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118  # it is no dict
    for name, prompt in (("red", "a red heart"), ("blue", "a blue car")):
        assert run(verb_args("generate", model="adhere-emoji", prompt=prompt, o=f"{name}.png")).exit_code == 0
    assert Path("red.png").read_bytes() != Path("blue.png").read_bytes()


def test_version():
    result = run(["--version"])
    assert (result.exit_code, result.stdout) == (0, f"adhere {adhere.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_help_shows_an_example_of_each_verb_also_without_arguments(arguments):
    result = run(arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(examples[0] in result.stdout for examples in EXAMPLES.values())


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_help_of_a_verb_shows_its_examples(verb):
    result = run([verb, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert all(re.sub(r"\[/?dim\]", "", example) in text for example in EXAMPLES[verb])


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_help_of_a_verb_explains_every_option(verb):
    text = run([verb, "--help"]).stdout
    names = "output model prompt negative-prompt guidance-scale solver steps seed device dtype json force"
    names += " num-images mean contact-sheet uncertainty preview quality mark-edited dry-run"
    own = {
        "inpaint": "mask box color tolerance invert fill-holes grow feather soft save-mask",
        "outpaint": "left right top bottom aspect",
        "upscale": "factor size kernel noise",
        "denoise": "sigma",
        "deblur": "psf noise",
        "colorize": "hints hint-noise",
        "generate": "size",
    }
    for name in [*names.split(), *own.get(verb, "reference size").split()]:
        assert re.search(rf" --{name} .*[A-Z][a-z]* [a-z]+", text), name  # the flag, and the beginning of a sentence
    for solver in ("moment_matching", "moment_matching_posterior", "inexact_newton"):
        assert re.search(rf"\b{solver}\b", text)


def test_every_option_names_its_flag():
    """Otherwise typer 0.27.0 to 0.27.3 make a flag of the metavar: --MODEL."""
    annotations = [
        one for module in (cli, _verbs, _options) for one in vars(module).values() if get_origin(one) is Annotated
    ]
    options = [info for one in annotations for info in one.__metadata__ if isinstance(info, OptionInfo)]
    assert len(options) >= 40
    for info in options:
        assert str(info.default).startswith("-"), info  # the first argument, which typer takes for a flag


@pytest.mark.parametrize(
    "example", [one for verb in EXAMPLES if verb not in ("generate", *LATENT_VERBS) for one in EXAMPLES[verb]]
)
def test_the_examples_are_valid_except_for_missing_files(folder, example, monkeypatch):
    Path("mask.png").unlink()
    Path("photo.png").unlink()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    arguments = shlex.split(re.sub(r" (\[dim\]|< photo).*", "", example))[1:]
    problem = "the image: is empty" if arguments[1] == "-" else f"{arguments[1]}: no such file"
    assert problem in error_line(arguments, folder)


@pytest.mark.parametrize("example", EXAMPLES["generate"])
def test_the_examples_of_generate_work(folder, text_model, example):
    arguments = re.sub("adhere-emoji|checkpoint.safetensors", str(text_model), example)
    result = run([*shlex.split(arguments)[1:], "--steps", "1"])
    assert result.exit_code == 0, result
