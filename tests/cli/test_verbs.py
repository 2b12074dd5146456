"""What the verbs write and report."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import adhere
from adhere.cli import EXAMPLES
from tests.cli.command import LINE, contents, refusal, run, spelled
from tests.picture_files import hole, image_of


def test_a_repair_is_written_and_reported_in_one_line(folder, good):
    result = run(good())
    assert result.exit_code == 0, result
    assert LINE.fullmatch(result.stdout)
    assert result.stdout.startswith("3 NFE")
    out = np.asarray(Image.open("out.png"))
    photo = np.asarray(Image.open("photo.png"))
    assert np.array_equal(out[~hole()], photo[~hole()])
    assert not np.array_equal(out, photo)
    assert sorted(contents(folder)) == ["mask.png", "out.png", "photo.png"]


def test_the_report_as_json(folder, good, shared_model):
    result = run(good(json="report.json", solver="ddnm", steps="3", seed="7"))
    assert result.exit_code == 0, result
    report = json.loads(Path("report.json").read_text())
    figures, told = ["nfe", "seconds", "residual", "peak_gb"], ["prompt", "negative_prompt", "guidance_scale"]
    assert list(report) == [*figures, "model", *told, "solver", "steps", "seed", "device", "dtype", "version"]
    expected = {"nfe": 3, "model": str(shared_model), "solver": "ddnm", "steps": 3, "seed": 7, "dtype": "float32"}
    assert report | dict.fromkeys(told) | expected | {"version": adhere.__version__} == report
    assert report["seconds"] > 0
    assert report["peak_gb"] > 0
    assert report["residual"] < 1e-3
    assert sorted(contents(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


def test_the_solvers_own_steps_and_seed_zero_are_the_defaults(folder, good):
    assert run(good(steps=None, json="report.json")).exit_code == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["solver"], report["steps"], report["seed"], report["nfe"]) == ("moment_matching_calm", 10, 0, 24)


def test_half_precision_is_the_networks_only(folder, good):
    for name in ("float32", "bfloat16"):
        assert run(good(o=f"{name}.png", dtype=name, device="cpu", json=f"{name}.json")).exit_code == 0
        report = json.loads(Path(f"{name}.json").read_text())
        assert (report["device"], report["dtype"]) == ("cpu", name)
    whole, half = (np.asarray(Image.open(f"{name}.png")) for name in ("float32", "bfloat16"))
    assert np.array_equal(half[~hole()], whole[~hole()])
    assert not np.array_equal(half, whole)


def test_the_seed_decides(folder, good):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert run(good(o=f"{name}.png", seed=seed)).exit_code == 0
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_transparent_part_is_the_mask(folder, good):
    image = image_of("RGB")
    image.putalpha(Image.fromarray(np.where(hole(), 0, 255).astype(np.uint8)))
    image.save("cutout.png")
    assert run(good("cutout.png", mask=None)).exit_code == 0
    out = np.asarray(Image.open("out.png"))
    assert (out[..., 3] == 255).all()
    assert np.array_equal(out[~hole()], np.asarray(image)[~hole()])


def test_force_overwrites_both_files(folder, good):
    Path("out.png").write_text("old")
    Path("report.json").write_text("old")
    assert run(good("photo.png", "--force", json="report.json")).exit_code == 0
    assert Image.open("out.png").size == (31, 24)
    assert json.loads(Path("report.json").read_text())["nfe"] == 3


def test_force_can_repair_in_place(folder, good):
    before = np.asarray(Image.open("photo.png"))
    assert run(good("photo.png", "--force", o="photo.png")).exit_code == 0
    after = np.asarray(Image.open("photo.png"))
    assert np.array_equal(after[~hole()], before[~hole()])
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("name", "size"), [("inpaint", (24, 31)), ("upscale", (48, 62))])
def test_exif_and_colour_profile_are_kept(folder, verb, name, size, suffix):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Artist] = "Someone"
    exif[ExifTags.Base.Orientation] = 6  # stored lying on its side
    image_of("RGB").save("photo.png", suffix[1:].replace("jpg", "jpeg"), exif=exif, icc_profile=icc)
    Image.fromarray(hole(31, 24)).save("mask.png")  # as the photo is seen
    result = run(verb(name, o=f"out{suffix}"))
    assert result.exit_code == 0, result
    with Image.open(f"out{suffix}") as out:
        kept = out.getexif()
        assert out.size == size
        assert out.info["icc_profile"] == icc
        assert (kept[ExifTags.Base.Make], kept[ExifTags.Base.Artist]) == ("Camera", "Someone")
        assert kept[ExifTags.Base.Orientation] == 1


# --- upscale and generate, and what is said to models that read text


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_an_enlarged_picture_has_the_means_asked_for(folder, verb, mode):
    image_of(mode).save("photo.png")
    result = run(verb("upscale", factor="3", json="report.json"))
    assert result.exit_code == 0, result
    assert LINE.fullmatch(result.stdout)
    assert json.loads(Path("report.json").read_text())["residual"] < 1e-3
    with Image.open("out.png") as out:
        assert (out.size, out.mode) == ((93, 72), mode)


def test_factor_four_is_the_default(folder, shared_model):
    assert run(spelled("upscale", "photo.png", o="out.png", model=str(shared_model), steps="1")).exit_code == 0
    assert Image.open("out.png").size == (124, 96)


@pytest.mark.parametrize(("size", "expected"), [(None, (16, 16)), ("24x8", (24, 8))])
def test_a_picture_from_nothing(folder, verb, size, expected):
    result = run(verb("generate", size=size))
    assert result.exit_code == 0, result
    assert LINE.fullmatch(result.stdout)
    assert Image.open("out.png").size == expected


@pytest.mark.parametrize("name", ["inpaint", "upscale", "generate"])
def test_every_verb_tells_the_model(folder, verb, text_model, name):
    told = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 3.5}
    result = run(verb(name, model=str(text_model), json="report.json", **{n: str(v) for n, v in told.items()}))
    assert result.exit_code == 0, result
    report = json.loads(Path("report.json").read_text())
    assert report | told == report


@pytest.mark.parametrize("change", [{"prompt": "c"}, {"negative_prompt": "c"}, {"guidance_scale": "2"}])
def test_what_the_model_is_told_decides(folder, verb, text_model, change):
    told = {"model": str(text_model), "prompt": "a", "negative_prompt": "b", "guidance_scale": "3.5"}
    for file, options in (("a", told), ("b", told), ("c", told | change)):
        assert run(verb("generate", **options | {"o": f"{file}.png"})).exit_code == 0
    a, b, c = (Path(f"{file}.png").read_bytes() for file in "abc")
    assert a == b
    assert a != c


def test_version():
    result = run(["--version"])
    assert (result.exit_code, result.stdout) == (0, f"adhere {adhere.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_shows_an_example_of_every_verb_and_nothing_alone_is_a_call_for_help(arguments):
    result = run(arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(examples[0] in result.stdout for examples in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_of_a_verb_shows_its_examples(name):
    result = run([name, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    assert all(re.sub(r"\[/?dim\]", "", example) in said for example in EXAMPLES[name])


@pytest.mark.parametrize("example", [example for name in ("inpaint", "upscale") for example in EXAMPLES[name]])
def test_the_examples_are_possible(folder, example):
    """But for the files they name."""
    Path("mask.png").unlink()
    Path("photo.png").unlink()
    arguments = shlex.split(re.sub(r" \[dim\].*", "", example))[1:]
    assert f"{arguments[1]}: no such file" in refusal(arguments, folder)


@pytest.mark.parametrize("example", EXAMPLES["generate"])
def test_the_examples_without_files_work(folder, text_model, example):
    arguments = re.sub("organisation/name|checkpoint.safetensors", str(text_model), example)
    result = run([*shlex.split(arguments)[1:], "--steps", "1"])
    assert result.exit_code == 0, result
