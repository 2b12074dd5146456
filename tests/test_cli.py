"""The command line: mostly in this process; as a real one where signals, imports or the streams themselves matter."""

import io
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import adhere
from adhere import images
from adhere.cli import EXAMPLES, main
from adhere.core.solvers import METHODS
from adhere.loading import SHIPPED
from tests.picture_files import encoded, hole, image_of
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import WEIGHTS, edit_json, edit_weights, with_nan

LINE = re.compile(r"\d+ NFE, \d+\.\d s, residual \d+\.\d{3}, peak \d+\.\d GB\n")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(autouse=True)
def control_c():
    """A command that has written its files ignores it for good."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a photo and its mask in it."""
    here = tmp_path / "work"
    here.mkdir()
    image_of("RGB").save(here / "photo.png")
    Image.fromarray(hole()).save(here / "mask.png")
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion; read it, do not change it."""
    folder = tmp_path_factory.mktemp("text")
    tiny_sd(folder).save_pretrained(folder / "model")
    return folder / "model"


def spelled(verb: str, *words: str, **options: str | None) -> list[str]:
    """A command's arguments; options that are None are left out."""
    names = {name: f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-") for name in options}
    return [verb, *words, *(x for name, value in options.items() if value is not None for x in (names[name], value))]


@pytest.fixture
def good(folder, shared_model):
    """Arguments that succeed; tests change one thing."""
    options = {"mask": "mask.png", "o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda photo="photo.png", *flags, **changes: spelled("inpaint", photo, *flags, **options | changes)


@pytest.fixture
def verb(folder, shared_model):
    """As `good`, for the verb that is given."""
    words = {"inpaint": ["photo.png", "--mask", "mask.png"], "upscale": ["photo.png", "--factor", "2"], "generate": []}
    options = {"o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda name, *flags, **changes: spelled(name, *words[name], *flags, **options | changes)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str


def run(arguments: list[str], stdout: IO[str] | None = None) -> Ended:
    """As a process does."""
    out, err = stdout or io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, out.getvalue() if isinstance(out, io.StringIO) else "", err.getvalue())


def refusal(arguments: list[str], folder: Path) -> str:
    """The one line the command must end with, everything in the folder as it was."""
    before = contents(folder)
    result = run(arguments)
    assert result.exit_code == 2, result
    assert result.stdout == ""
    assert re.fullmatch(r"adhere: .+\n", result.stderr)
    assert contents(folder) == before
    return result.stderr


# --- what works


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
    assert list(report) == [*figures, "model", *told, "solver", "steps", "seed", "version"]
    expected = dict.fromkeys(told) | {"nfe": 3, "model": str(shared_model), "solver": "ddnm", "steps": 3, "seed": 7}
    assert report | expected | {"version": adhere.__version__} == report
    assert report["seconds"] > 0
    assert report["peak_gb"] > 0
    assert report["residual"] < 1e-3
    assert sorted(contents(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


def test_the_solvers_own_steps_and_seed_zero_are_the_defaults(folder, good):
    assert run(good(steps=None, json="report.json")).exit_code == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["solver"], report["steps"], report["seed"], report["nfe"]) == ("moment_matching_calm", 8, 0, 24)


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


# --- bad input: the command itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inpaint", "Missing argument 'PHOTO'"),
        ("inpaint photo.png", "Missing option '-o' / '--output'"),
        ("inpaint photo.png -o", "Option '-o' requires an argument"),
        ("inpaint photo.png -o out.png mask.png", "(mask.png)"),
        ("inpaint photo.png -o out.png --mode x", "No such option: --mode"),
        ("inpaint photo.png -o out.png --force=yes", "Option '--force' does not take a value"),
        ("paint", "No such command 'paint'"),
        ("upscale -o out.png", "Missing argument 'PHOTO'"),
        ("generate", "Missing option '-o' / '--output'"),
        ("generate photo.png -o out.png", "(photo.png)"),
        ("--verbose", "No such option: --verbose"),
        ("--version=2", "Option '--version' does not take a value"),
    ],
)
def test_usage_errors_are_one_line(folder, arguments, message):
    given = refusal(arguments.split(), folder)
    assert message in given
    verb = arguments.split()[0]
    assert given.endswith(f" (see adhere{f' {verb}' if verb in EXAMPLES else ''} --help)\n")


@pytest.mark.parametrize("option", ["-o", "--mask", "--model", "--json", "photo"])
def test_empty_names(folder, good, option):
    arguments = good("") if option == "photo" else good(**{option.lstrip("-"): ""})
    assert f"{option} '': is empty" in refusal(arguments, folder)


# --- bad input: pictures and masks


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is this large."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    first = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + first + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("argument", ["photo", "mask"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("folder", "is a folder"),
        (b"", "not an image"),
        (b"no picture at all", "not an image"),
        (encoded(image_of("RGB"), "PNG")[:-200], "damaged or cut short"),
        (encoded(image_of("RGB"), "JPEG")[:-200], "damaged or cut short"),
        (png_header(100_000, 100_000), "at most 50,000,000"),
    ],
    ids=["missing", "folder", "empty", "text", "truncated PNG", "truncated JPEG", "100,000 x 100,000"],
)
def test_bad_files(folder, good, argument, content, message):
    if content == "folder":
        Path("bad.png").mkdir()
    elif content is not None:
        Path("bad.png").write_bytes(content)
    given = refusal(good("bad.png") if argument == "photo" else good(mask="bad.png"), folder)
    assert "bad.png" in given
    assert message in given


def test_a_picture_over_the_limit(folder, good, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 700)
    assert "31 x 24" in refusal(good(), folder)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (hole(31, 24), "the mask is 24 x 31, the picture is 31 x 24"),
        (np.zeros((24, 31), bool), "nothing to repaint"),
        (np.ones((24, 31), bool), "nothing to keep"),
    ],
)
def test_masks_that_do_not_fit(folder, good, mask, message):
    Image.fromarray(mask).save("mask.png")
    assert message in refusal(good(), folder)


def test_no_mask_and_no_transparency(folder, good):
    assert "mask" in refusal(good(mask=None), folder)


# --- bad input: options


@pytest.mark.parametrize(("given", "nearest"), [("ddmn", "ddnm"), ("newton", "inexact_newton")])
def test_an_unknown_solver_names_the_nearest(folder, good, given, nearest):
    assert f"'{given}': did you mean '{nearest}'" in refusal(good(solver=given), folder)


@pytest.mark.parametrize("given", ["", "?"])
def test_an_unknown_solver_lists_them_all(folder, good, given):
    assert f"'{given}': there are {', '.join(METHODS)}" in refusal(good(solver=given), folder)


@pytest.mark.parametrize("steps", ["0", "-3", "1001", "100000", "abc", "2.5", ""])
def test_steps_that_cannot_be(folder, good, steps):
    assert f"--steps '{steps}': give a whole number from 1 to 1000" in refusal(good(steps=steps), folder)


def test_more_steps_than_the_model_has(folder, good, model_with):
    model = model_with()
    edit_json(model / "scheduler" / "scheduler_config.json", num_train_timesteps=100)
    assert "from 1 to 100" in refusal(good(model=str(model), steps="101", solver="inexact_newton"), folder)


@pytest.mark.parametrize("factor", ["1", "0", "17", "2.5", "abc", ""])
def test_factors_that_cannot_be(folder, verb, factor):
    assert f"--factor '{factor}': give a whole number from 2 to 16" in refusal(verb("upscale", factor=factor), folder)


@pytest.mark.parametrize(
    "size", ["64", "64x", "x64", "0x64", "-8x8", "64x64x3", "64 x 64", "64X64", "10000x8", "²x8", ""]
)
def test_sizes_that_cannot_be(folder, verb, size):
    assert f"--size '{size}': give WIDTHxHEIGHT" in refusal(verb("generate", size=size), folder)


def test_a_size_the_model_does_not_take(folder, verb):
    assert "size 31x8 (width x height): this model takes multiples of 2; 32x8 is near" in refusal(
        verb("generate", size="31x8"), folder
    )


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "abc", ""])
@pytest.mark.parametrize("name", EXAMPLES)
def test_guidance_that_cannot_be(folder, verb, name, scale):
    given = refusal(verb(name, guidance_scale=scale), folder)
    assert f"--guidance-scale '{scale}': give a number above 0" in given


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prompt": "a heart"}, "this model reads no text"),
        ({"negative_prompt": "a heart"}, "this model reads no text"),
        ({"guidance_scale": "3"}, "this model reads no prompt"),
    ],
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_prompt_for_a_model_without_text(folder, verb, name, told, message):
    assert message in refusal(verb(name, model="adhere-photo", **told), folder)


def test_guidance_without_a_prompt(folder, verb, text_model):
    assert "without a prompt" in refusal(verb("generate", model=str(text_model), guidance_scale="3"), folder)


def test_a_solver_that_cannot_run_the_task(folder, verb):
    assert "ddnm needs a Linear constraint" in refusal(verb("generate", solver="ddnm"), folder)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "seven", ""])
def test_seeds_that_cannot_be(folder, good, seed):
    assert f"--seed '{seed}': give a whole number from 0 to {2**63 - 1}" in refusal(good(seed=seed), folder)


def test_the_output_exists(folder, good):
    Path("out.png").write_text("precious")
    assert "--force" in refusal(good(), folder)


@pytest.mark.parametrize("target", ["photo.png", "mask.png", "./photo.png"])
def test_the_output_is_an_input(folder, good, target):
    assert "--force" in refusal(good(o=target), folder)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/out.png", "does not exist"),
        ("photo.png/out.png", "does not exist"),
        ("out.gif", ".png"),
        ("out", "without suffix"),
        (".", "is a folder"),
    ],
)
def test_outputs_that_cannot_be(folder, good, output, message):
    assert message in refusal(good(o=output), folder)


def unusable(task: object) -> None:
    raise AssertionError("it was computed")


@pytest.mark.parametrize("name", ["o", "json"])
def test_folders_that_take_no_files(folder, good, monkeypatch, name):
    """/proc refuses root too, though its permissions say otherwise; found before anything is computed."""
    monkeypatch.setattr("adhere.run.Run.finish", unusable)
    suffix = "png" if name == "o" else "json"
    assert "cannot be written" in refusal(good(**{name: f"/proc/new.{suffix}"}), folder)
    assert "cannot be written" in refusal(good(**{name: f"{'n' * 300}.{suffix}"}), folder)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("old.json", "--force"),
        ("photo.png", "one of the pictures"),
        ("mask.png", "one of the pictures"),
        ("./out.png", "one of the pictures"),
        ("nowhere/report.json", "does not exist"),
        (".", "is a folder"),
    ],
)
def test_reports_that_cannot_be(folder, good, report, message):
    Path("old.json").write_text("precious")
    assert message in refusal(good(json=report), folder)
    if report != "old.json":
        assert message in refusal(good("photo.png", "--force", json=report), folder)


def test_a_pipe_or_device_is_not_replaced_by_a_report(folder, good):
    os.mkfifo("pipe")
    assert "no ordinary file" in refusal(good("photo.png", "--force", json="pipe"), folder)


@pytest.mark.parametrize("name", ["out.png", "report.json"])
@pytest.mark.parametrize("force", [False, True])
def test_both_files_or_none(folder, good, monkeypatch, name, force):
    replace, left = os.replace, [name]

    def fails_once(source: Path, target: Path) -> None:
        if target.name in left:
            left.clear()
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    if force:
        Path("out.png").write_text("old")
        Path("report.json").write_text("old")
    given = refusal(good("photo.png", *["--force"] * force, json="report.json"), folder)
    assert f"nothing was written, as {name} could not be (No space left on device)" in given


def test_a_name_with_a_line_break_stays_one_line(folder, good):
    assert "no such file" in refusal(good("two\nlines.png"), folder)


# --- bad input: models


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


# --- as a real process


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adhere", *arguments]


def test_help_imports_nothing_heavy():
    code = (
        "import atexit, sys; from adhere.cli import main; heavy = ('torch', 'diffusers', 'numpy', 'PIL'); "
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr)); main(['--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert "Examples" in result.stdout


@pytest.mark.parametrize(("redirection", "code", "said"), [("/dev/full", 1, "standard output is lost"), ("&-", 0, "")])
def test_a_process_whose_output_is_full_or_closed(redirection, code, said):
    arguments = ["sh", "-c", f'exec "$@" >{redirection}', "sh", *command("--help")]
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == code
    assert said in result.stderr
    assert result.stderr.count("\n") == bool(said)


def test_a_process_says_one_line_and_nothing_on_standard_error(folder, good):
    result = subprocess.run(command(*good()), capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert LINE.fullmatch(result.stdout)
    assert result.stderr.strip() == ""  # progress is for terminals; warnings of libraries are not the user's


def test_a_process_with_text_says_one_line_too(folder, verb, text_model):
    arguments = command(*verb("generate", model=str(text_model), prompt="a heart"))
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr.strip()) == (0, "")
    assert LINE.fullmatch(result.stdout)


def test_a_process_without_the_extra_text_says_what_to_install(folder, verb, text_model):
    without = "import sys; sys.modules['transformers'] = sys.modules['peft'] = None"  # peft needs transformers itself
    code = f"{without}; from adhere.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, *verb("generate", model=str(text_model), prompt="a heart")]
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stdout) == (2, "")
    assert "needs the package transformers" in result.stderr
    assert result.stderr.endswith("pip install 'adhere[text]'\n")
    assert result.stderr.count("\n") == 1


def test_a_process_fails_in_one_line(folder, good, model_with):
    model = model_with()
    misnamed(model)
    before = contents(folder)
    result = subprocess.run(command(*good(model=str(model))), capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert contents(folder) == before


def read_until(descriptor: int, pattern: bytes) -> bytes:
    """What a terminal has shown by the time it shows the pattern, or at the end."""
    shown = b""
    while not re.search(pattern, shown):
        try:
            more = os.read(descriptor, 4096)
        except OSError:  # Linux: the other end is closed
            more = b""
        if not more:
            break
        shown += more
    return shown


def gone() -> IO[str]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full() -> IO[str]:
    return Path("/dev/full").open("w")


@pytest.mark.parametrize(("lose", "said"), [(gone, ""), (full, "standard output is lost: No space left on device")])
def test_the_files_are_whole_when_standard_output_is_lost(folder, good, lose, said):
    with lose() as stdout:
        result = run(good(json="report.json"), stdout)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == bool(said)
    assert Image.open("out.png").size == (31, 24)
    assert json.loads(Path("report.json").read_text())["nfe"] == 3


def test_standard_output_may_be_closed(folder, good, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        main(good("photo.png"))
    assert ended.value.code == 0
    assert Image.open("out.png").size == (31, 24)


def interrupting(function, name: str):
    """As the function, with Ctrl-C pressed after the call that has a file of that name among its arguments."""

    def wrapper(*arguments, **options):
        result = function(*arguments, **options)
        if any(Path(str(argument)).name == name for argument in arguments):
            os.kill(os.getpid(), signal.SIGINT)
        return result

    return wrapper


@pytest.mark.parametrize("name", ["out.png", "report.json"])
def test_control_c_comes_too_late_for_the_last_instant(folder, good, monkeypatch, name):
    monkeypatch.setattr(os, "replace", interrupting(os.replace, name))
    result = run(good(json="report.json"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert LINE.fullmatch(result.stdout)
    assert sorted(contents(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


def test_control_c_while_writing_leaves_nothing(folder, good, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(images, "_fit", interrupting(images._fit, "PNG"))  # in the midst of the second file
    result = run(good(json="report.json"))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "adhere: stopped; nothing was written\n")
    assert contents(folder) == before


def test_control_c_while_sampling_leaves_nothing(folder, good):
    before = contents(folder)
    ours, theirs = pty.openpty()  # progress is shown on terminals only
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = command(*good(steps="900", solver="inexact_newton", json="report.json"))
    environment = ENVIRONMENT | {"TERM": "xterm"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_until(ours, rb"[1-9]\d*%")  # one step in a hundred is done
        assert b"sampling" in shown
        process.send_signal(signal.SIGINT)
        rest = read_until(ours, rb"(?!)")
        assert process.wait() == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(ours)
    assert b"adhere: stopped; nothing was written" in rest
    assert b"Traceback" not in shown + rest
    assert contents(folder) == before


def test_the_photograph_is_not_needed_to_be_in_the_working_folder(folder, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(good("work/photo.png", mask="work/mask.png", o="work/out.png")).exit_code == 0
    assert Image.open(folder / "out.png").size == (31, 24)


def test_the_report_says_the_levels_that_were_run(folder, good):
    """Of 300 levels even in log-SNR, some round to the same time of the schedule; ddnm makes one call a level."""
    assert run(good(json="report.json", solver="ddnm", steps="300")).exit_code == 0
    report = json.loads(Path("report.json").read_text())
    assert report["steps"] == report["nfe"] < 300


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("when", ["windows", "finish"])
def test_running_out_of_memory_is_one_line(folder, verb, monkeypatch, name, when, error):
    def fail(*_args, **_options):
        raise error

    task = {"inpaint": "Inpaint", "upscale": "Upscale", "generate": "Generate"}[name]
    monkeypatch.setattr(f"adhere.tasks.{task}.{when}", fail)
    assert "out of memory; nothing was written" in refusal(verb(name), folder)


def test_running_out_of_memory_while_reading_is_one_line(folder, good, monkeypatch):
    def fail(*_args):
        raise MemoryError

    monkeypatch.setattr(images, "_planes", fail)
    assert "out of memory; nothing was written" in refusal(good(), folder)
