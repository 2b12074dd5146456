"""Bad input: one line, exit code 2, and nothing written."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adhere import images
from adhere.cli import EXAMPLES
from adhere.core.solvers import METHODS
from tests.cli.command import refusal
from tests.picture_files import encoded, hole, image_of
from tests.tiny_models import edit_json

# --- the command itself


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


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:1:2", "cuda:77", ""])
def test_devices_that_are_not_there(folder, good, device):
    assert f"--device '{device}': cannot be used here" in refusal(good(device=device), folder)


def test_unknown_dtype(folder, good):
    assert "--dtype 'int8': there are float32, float16, bfloat16" in refusal(good(dtype="int8"), folder)


def test_plain_sampling_repairs_nothing(folder, good):
    assert "--solver 'plain': ignores what is known" in refusal(good(solver="plain"), folder)


# --- pictures and masks


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


# --- options


@pytest.mark.parametrize(("given", "nearest"), [("ddmn", "ddnm"), ("inexactnewton", "inexact_newton")])
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
    assert "ddnm needs a constraint that can be linearised" in refusal(verb("generate", solver="ddnm"), folder)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "seven", ""])
def test_seeds_that_cannot_be(folder, good, seed):
    assert f"--seed '{seed}': give a whole number from 0 to {2**63 - 1}" in refusal(good(seed=seed), folder)


@pytest.mark.parametrize("option", ["photo", "mask", "o", "json"])
def test_links_in_a_circle(folder, good, option):
    Path("loop.png").symlink_to("loop.png")
    arguments = good("loop.png") if option == "photo" else good(**{option: "loop.png"})
    assert "loop.png" in refusal(arguments, folder)


def test_a_link_to_nothing_is_not_replaced_unasked(folder, good):
    Path("link.png").symlink_to("nothing.png")
    assert "link.png: is a link to a file that does not exist" in refusal(good(o="link.png"), folder)
    assert Path("link.png").is_symlink()


def test_results_too_large_for_the_format_or_for_anyone(folder, verb):
    Image.new("RGB", (17_000, 4)).save("photo.png")
    message = refusal(verb("upscale", o="out.webp"), folder)
    assert "out.webp: the result would have 34000x8 pixels; WEBP takes at most 16,383 on a side" in message
    Image.new("RGB", (4000, 4000)).save("photo.png")
    assert "8000x8000 pixels; at most 50,000,000 are allowed" in refusal(verb("upscale"), folder)
    assert "9984x9984 pixels; at most 50,000,000 are allowed" in refusal(verb("generate", size="9984x9984"), folder)


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
