"""Bad input: one line, exit code 2, and no file is written."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adhere.apps import job
from adhere.apps._examples import EXAMPLES
from adhere.io import images
from tests.apps.command import LATENT_VERBS, error_line, run
from tests.picture_files import encoded, hole, image_of, png_header
from tests.tiny_models import edit_json

# --- the command itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inpaint", "'PHOTO': write, for example, adhere inpaint photo.jpg --mask mask.png -o out.png"),
        ("inpaint photo.png", "Missing option '-o' / '--output': write, for example, adhere inpaint photo.jpg --mask"),
        ("inpaint photo.png -o", "Option '-o' requires an argument"),
        (
            "inpaint photo.png -o out.png mask.png",
            "(mask.png): give a mask as --mask mask.png",
        ),
        (
            "inpaint photo.png -o out.png --num-inference-steps 0",
            "--num-inference-steps. Call it --steps",
        ),
        ("generate -o out.png --num-images-per-prompt=2", "--num-images-per-prompt. Call it --num-images"),
        ("inpaint photo.png -o out.png --mode x", "No such option: --mode"),
        ("inpaint photo.png -o out.png --force=yes", "Option '--force' does not take a value"),
        ("denoise photo.png -o out.png --noise 0.1", "No such option: --noise. Call it --sigma"),
        ("deblur photo.png -o out.png --psf disk:1 --sigma 0.1", "No such option: --sigma. Call it --noise"),
        ("upscale photo.png -o out.png --sigma=0.1", "No such option: --sigma. Call it --noise"),
        ("paint", "No such command 'paint'"),
        ("upscale -o out.png", "Missing argument 'PHOTO'"),
        ("generate", "Missing option '-o' / '--output'"),
        ("generate photo.png -o out.png", "(photo.png): name each option, such as -o out.png"),
        ("--verbose", "No such option: --verbose"),
        ("--version=2", "Option '--version' does not take a value"),
    ],
)
def test_usage_errors_are_one_line(folder, arguments, message):
    line = error_line(arguments.split(), folder)
    assert message in line
    verb = arguments.split()[0]
    assert line.endswith(f" (see adhere{f' {verb}' if verb in EXAMPLES else ''} --help)\n")


@pytest.mark.parametrize("option", ["-o", "--mask", "--model", "--json", "photo"])
def test_empty_names(folder, inpaint_args, option):
    arguments = inpaint_args("") if option == "photo" else inpaint_args(**{option.lstrip("-"): ""})
    assert f"{option} '': is empty" in error_line(arguments, folder)


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:1:2", "cuda:77", ""])
def test_devices_that_do_not_exist(folder, inpaint_args, device):
    assert f"--device '{device}': cannot be used here" in error_line(inpaint_args(device=device), folder)


def test_an_unknown_dtype(folder, inpaint_args):
    assert "--dtype 'int8': choose one of float32, float16, bfloat16" in error_line(inpaint_args(dtype="int8"), folder)


def test_compile_without_a_compiler(folder, inpaint_args, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("No working C++ compiler found\nin a long trace")

    monkeypatch.setattr(torch, "compile", no_compiler)
    line = error_line(inpaint_args("photo.png", "--compile"), folder)
    assert "torch.compile does not work here (No working C++ compiler found): install a C++ compiler" in line


def test_plain_sampling_is_for_generate_only(folder, inpaint_args):
    assert "--solver 'plain': ignores all constraints" in error_line(inpaint_args(solver="plain"), folder)


# --- pictures and masks


@pytest.mark.parametrize("argument", ["photo", "mask"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("folder", "is a folder"),
        (b"", "is empty (0 bytes)"),
        (b"no picture at all", "not an image"),
        (encoded(image_of("RGB"), "PNG")[:-200], "damaged or cut short"),
        (encoded(image_of("RGB"), "JPEG")[:-200], "damaged or cut short"),
        (png_header(100_000, 100_000), "too large; Pillow allows 178,956,970 pixels"),
    ],
    ids=["missing", "folder", "empty", "text", "truncated PNG", "truncated JPEG", "100,000 x 100,000"],
)
def test_bad_files(folder, inpaint_args, argument, content, message):
    if content == "folder":
        Path("bad.png").mkdir()
    elif content is not None:
        Path("bad.png").write_bytes(content)
    line = error_line(inpaint_args("bad.png") if argument == "photo" else inpaint_args(mask="bad.png"), folder)
    assert "bad.png" in line
    assert message in line


def test_a_picture_with_too_many_pixels(folder, inpaint_args, monkeypatch):
    monkeypatch.setattr(images, "_MAX_PIXELS", 700)
    assert "31 x 24" in error_line(inpaint_args(), folder)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (hole(31, 24), "the mask is 24 x 31, the picture is 31 x 24"),
        (np.zeros((24, 31), bool), "nothing to inpaint"),
        (np.ones((24, 31), bool), "nothing to keep"),
    ],
)
def test_masks_that_do_not_fit(folder, inpaint_args, mask, message):
    Image.fromarray(mask).save("mask.png")
    assert message in error_line(inpaint_args(), folder)


def test_notes_are_not_printed_before_an_error(folder, inpaint_args):
    """Of the mask, and of the run: neither is about a result, as there is none."""
    soft = hole().astype(np.uint8) * 255
    soft[2, 2] = 120
    Image.fromarray(soft).save("mask.png")
    assert "no such folder" in error_line(inpaint_args(model="adhere-foto"), folder)
    result = run(inpaint_args())
    assert result.exit_code == 0 and "note: the mask has soft edges" in result.stderr
    Path("out.png").unlink()
    Image.fromarray(soft * 0 + 128).save("mask.png")
    assert "nothing to keep" in error_line(inpaint_args(), folder)


def test_a_mask_with_several_pictures(folder, inpaint_args):
    Image.fromarray(hole()).save("mask.tif", save_all=True, append_images=[Image.fromarray(hole())])
    line = error_line(inpaint_args(mask="mask.tif"), folder)
    assert "a mask is one picture: save it as a file of its own" in line and "--frame" not in line


def test_neither_a_mask_nor_transparency(folder, inpaint_args):
    assert "give --mask, --box or --color" in error_line(inpaint_args(mask=None), folder)


def test_a_feather_that_leaves_nothing(folder, inpaint_args):
    assert "feather 5000: is too wide for what is selected" in error_line(inpaint_args(feather="5000"), folder)


def test_a_feather_that_leaves_no_unknown_pixel(folder, inpaint_args):
    result = run(inpaint_args(feather="30"))
    assert result.exit_code == 0
    assert result.stderr.startswith("adhere: note: feather 30: is too wide to leave a pixel fully unknown")
    assert result.stderr.count("\n") == 1


def test_outpaint_without_growth(folder, verb_args):
    for flags in ((), ("--left", "0"), ("--left", "0%")):
        arguments = verb_args("outpaint", *flags)
        del arguments[2:4]
        assert "give --left, --right, --top or --bottom, or --aspect" in error_line(arguments, folder)


def test_outpaint_by_hours_of_passes(folder, verb_args):
    line = error_line(verb_args("outpaint", "--right", "99999"), folder)
    assert "right = 99999: takes " in line and "at most 16 are allowed" in line


# --- options


@pytest.mark.parametrize(("name", "nearest"), [("ddmn", "ddnm"), ("inexactnewton", "inexact_newton")])
def test_the_error_for_an_unknown_solver_names_the_nearest(folder, inpaint_args, name, nearest):
    assert f"'{name}': did you mean '{nearest}'" in error_line(inpaint_args(solver=name), folder)


@pytest.mark.parametrize("name", ["", "?"])
def test_the_error_for_an_unknown_solver_lists_all_but_baselines(folder, inpaint_args, name):
    usual = "moment_matching, moment_matching_fast, moment_matching_loss, moment_matching_posterior, inexact_newton, "
    assert f"'{name}': choose one of {usual}ddnm, plain\n" in error_line(inpaint_args(solver=name), folder)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_error_for_a_renamed_solver_has_the_new_name(folder, verb_args, verb):
    line = error_line(verb_args(verb, solver="moment_matching_calm"), folder)  # retired
    assert "'moment_matching_calm' is now called 'moment_matching'" in line  # retired


@pytest.mark.parametrize("steps", ["0", "-3", "1001", "100000", "abc", "2.5", ""])
def test_invalid_steps(folder, inpaint_args, steps):
    assert f"--steps '{steps}': give a whole number from 1 to 1000" in error_line(inpaint_args(steps=steps), folder)


def test_more_steps_than_the_schedule_has(folder, inpaint_args, model_with):
    model = model_with()
    edit_json(model / "scheduler" / "scheduler_config.json", num_train_timesteps=100)
    assert "allows 1 to 100" in error_line(inpaint_args(model=str(model), steps="101", solver="inexact_newton"), folder)


@pytest.mark.parametrize("factor", ["1", "0", "8.5", "nan", "abc", ""])
def test_invalid_factors(folder, verb_args, factor):
    assert f"--factor '{factor}': give a number from 1.5 to 8" in error_line(
        verb_args("upscale", factor=factor), folder
    )


@pytest.mark.parametrize(
    "size", ["64", "64x", "x64", "0x64", "-8x8", "64x64x3", "64 x 64", "64X64", "10000x8", "²x8", ""]
)
def test_invalid_sizes(folder, verb_args, size):
    assert f"--size '{size}': give WIDTHxHEIGHT" in error_line(verb_args("generate", size=size), folder)


def test_a_size_that_is_not_a_multiple(folder, verb_args):
    assert "size 31x8 (width x height): this model needs multiples of 2; 32x8 is near" in error_line(
        verb_args("generate", size="31x8"), folder
    )


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "abc", ""])
@pytest.mark.parametrize("verb", EXAMPLES)
def test_invalid_guidance_scales(folder, verb_args, verb, scale):
    line = error_line(verb_args(verb, guidance_scale=scale), folder)
    assert f"--guidance-scale '{scale}': give a number above 0" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prompt": "a heart"}, "this model reads no text"),
        ({"negative_prompt": "a heart"}, "this model reads no text"),
        ({"guidance_scale": "3"}, "this model reads no prompt"),
    ],
)
@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if verb not in LATENT_VERBS])
def test_a_prompt_for_a_model_that_reads_no_text(folder, verb_args, verb, option, message):
    assert message in error_line(verb_args(verb, model="adhere-photo", **option), folder)


def test_a_guidance_scale_without_a_prompt(folder, verb_args, text_model):
    assert "without a prompt" in error_line(verb_args("generate", model=str(text_model), guidance_scale="3"), folder)


def test_a_solver_that_does_not_support_the_task(folder, verb_args):
    for solver in ("ddnm", "moment_matching_fast"):
        assert "choose the solver plain" in error_line(verb_args("generate", solver=solver), folder)
    assert "RePaint does not support" in error_line(verb_args("upscale", solver="repaint"), folder)


def test_a_negative_prompt_without_effect(folder, verb_args, text_model):
    options = {"model": str(text_model), "prompt": "a", "negative_prompt": "b", "guidance_scale": "1"}
    assert "negative_prompt has no effect at guidance_scale = 1" in error_line(verb_args("generate", **options), folder)


@pytest.mark.parametrize("seed", ["-1", str(2**63), "seven", ""])
def test_invalid_seeds(folder, inpaint_args, seed):
    assert f"--seed '{seed}': give a whole number from 0 to {2**63 - 1}" in error_line(inpaint_args(seed=seed), folder)


@pytest.mark.parametrize("option", ["photo", "mask", "o", "json"])
def test_a_link_to_itself(folder, inpaint_args, option):
    Path("loop.png").symlink_to("loop.png")
    arguments = inpaint_args("loop.png") if option == "photo" else inpaint_args(**{option: "loop.png"})
    assert "loop.png" in error_line(arguments, folder)


def test_a_broken_link_is_not_replaced_without_force(folder, inpaint_args):
    Path("link.png").symlink_to("missing.png")
    assert "link.png: is a link to a file that does not exist" in error_line(inpaint_args(o="link.png"), folder)
    assert Path("link.png").is_symlink()


def test_results_that_are_too_large(folder, verb_args):
    Image.new("RGB", (17_000, 4)).save("photo.png")
    message = error_line(verb_args("upscale", o="out.webp"), folder)
    assert "out.webp: the result would have 34000x8 pixels; WEBP takes at most 16,383 on a side" in message
    Image.new("RGB", (4000, 4000)).save("photo.png")
    assert "8000x8000 pixels; at most 50,000,000 are allowed" in error_line(verb_args("upscale"), folder)
    message = error_line(verb_args("generate", size="9984x9984"), folder)
    assert "9984x9984 pixels; at most 50,000,000 are allowed" in message


def test_an_output_that_exists(folder, inpaint_args):
    Path("out.png").write_text("old")
    assert "--force" in error_line(inpaint_args(), folder)


@pytest.mark.parametrize("target", ["photo.png", "./photo.png"])
def test_an_output_that_is_the_photo_needs_force(folder, inpaint_args, target):
    assert "--force" in error_line(inpaint_args(o=target), folder)


@pytest.mark.parametrize(
    ("verb", "flag"), [("inpaint", "mask"), ("colorize", "hints"), ("deblur", "psf"), ("style", "reference")]
)
@pytest.mark.parametrize("target", ["b:c.png", "./b:c.png", "~/b:c.png"])
def test_an_output_that_is_another_input_is_refused_with_force(folder, verb_args, monkeypatch, verb, flag, target):
    monkeypatch.setenv("HOME", str(folder))
    image_of("RGBA").save("b:c.png")
    line = error_line(verb_args(verb, "--force", **{flag: "b:c.png"}, o=target), folder)
    assert "b:c.png: is read by this command, and would be lost; give another name" in line


OUTPUT_OPTIONS = {
    "o": ".png",
    "json": ".json",
    "save-mask": ".png",
    "contact-sheet": ".png",
    "uncertainty": ".png",
    "preview": ".png",
}


@pytest.mark.parametrize("option", OUTPUT_OPTIONS)
def test_no_option_replaces_a_file_without_force(folder, inpaint_args, option):
    name = f"old{OUTPUT_OPTIONS[option]}"
    Path(name).write_bytes(b"old")
    line = error_line(inpaint_args(**{option: name}), folder)
    assert f"{name}: exists; choose another name or add --force" in line


@pytest.mark.parametrize("option", OUTPUT_OPTIONS)
@pytest.mark.parametrize("part", ["model", "vae", "config"])
@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_no_option_replaces_a_file_of_a_model(folder, inpaint_args, option, part, flags):
    kept = Path(f"folder/unet/kept{OUTPUT_OPTIONS[option]}")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    os.symlink(kept.resolve(), f"link{kept.suffix}")
    for name in (str(kept), f"folder/unet/../unet/kept{kept.suffix}", f"link{kept.suffix}"):
        line = error_line(inpaint_args("photo.png", *flags, **{part: "folder", option: name}), folder)
        assert f"{name}: belongs to a model, whose files are never replaced; give another name" in line


def test_neither_a_link_in_the_folder_of_a_model_nor_a_shipped_file_is_replaced(folder, inpaint_args, monkeypatch):
    Path("elsewhere.json").write_text("{}")
    Path("folder").mkdir()
    Path("folder/config.json").symlink_to(Path("elsewhere.json").resolve())  # as in the cache of the hub
    assert (job._SHIPPED_MODELS / "adhere-photo" / "model_index.json").is_file()
    monkeypatch.setattr(job, "_SHIPPED_MODELS", Path("shipped"))  # a failure must not damage the real ones
    Path("shipped").mkdir()
    Path("shipped/model_index.json").write_text("{}")
    for name, model in (("folder/config.json", "folder"), ("shipped/model_index.json", "adhere-photo")):
        before = Path(name).read_bytes()
        line = error_line(inpaint_args("photo.png", "--force", model=model, json=name), folder)
        assert "belongs to a model" in line
        assert Path(name).read_bytes() == before


def test_a_new_file_may_be_written_to_the_folder_of_a_model(folder, inpaint_args, shared_model):
    shutil.copytree(shared_model, "model")
    assert run(inpaint_args(model="model", o="model/out.png")).exit_code == 0
    assert Path("model/out.png").exists()


def test_a_numbered_output_that_is_the_mask(folder, inpaint_args):
    Path("mask.png").rename("out-2.png")
    line = error_line(inpaint_args("photo.png", "--force", mask="out-2.png", num_images="2"), folder)
    assert "-o out-2.png: is read by this command" in line


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/out.png", "does not exist"),
        ("photo.png/out.png", "does not exist"),
        ("out.gif", ".png"),
        ("out", "without suffix"),
        (".", "is a folder"),
    ],
)
def test_invalid_outputs(folder, inpaint_args, output, message):
    assert message in error_line(inpaint_args(o=output), folder)


def fail_to_run(*_: object) -> None:
    raise AssertionError("the job ran")


@pytest.mark.parametrize("name", ["o", "json"])
def test_folders_without_write_access(folder, inpaint_args, monkeypatch, name):
    """/proc accepts no files even from root. The error is found before the job runs."""
    monkeypatch.setattr("adhere.apps.job.Job.run", fail_to_run)
    suffix = "png" if name == "o" else "json"
    assert "cannot be written" in error_line(inpaint_args(**{name: f"/proc/new.{suffix}"}), folder)
    assert "cannot be written" in error_line(inpaint_args(**{name: f"{'n' * 300}.{suffix}"}), folder)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("old.json", "--force"),
        ("photo.png", "is read by this command, and would be lost"),
        ("mask.png", "is read by this command, and would be lost"),
        ("./out.png", "one of the pictures"),
        ("missing/report.json", "does not exist"),
        (".", "is a folder"),
    ],
)
def test_invalid_reports(folder, inpaint_args, report, message):
    Path("old.json").write_text("old")
    assert message in error_line(inpaint_args(json=report), folder)
    if report != "old.json":
        assert message in error_line(inpaint_args("photo.png", "--force", json=report), folder)


@pytest.mark.parametrize("report", ["~/photo.png", "~/mask.png", "~/out.png"])
def test_a_report_that_is_one_of_the_pictures_by_another_name(folder, inpaint_args, monkeypatch, report):
    monkeypatch.setenv("HOME", str(folder))
    message = "is one of the pictures" if "out" in report else "is read by this command"
    assert message in error_line(inpaint_args("photo.png", "--force", json=report), folder)
    arguments = inpaint_args("~/photo.png", mask="~/mask.png", o="~/out.png", json=str(folder / report[2:]))
    assert message in error_line([*arguments, "--force"], folder)


def test_a_pipe_or_device_is_not_replaced_by_a_report(folder, inpaint_args):
    os.mkfifo("pipe")
    assert "is not a regular file" in error_line(inpaint_args("photo.png", "--force", json="pipe"), folder)


@pytest.mark.parametrize("name", ["out.png", "report.json"])
@pytest.mark.parametrize("force", [False, True])
def test_both_files_are_written_or_none(folder, inpaint_args, monkeypatch, name, force):
    """The file system has no hard links."""
    replace, failing = os.replace, [name]

    def fail(*_: Path) -> None:
        raise OSError(1, "Operation not permitted")

    def fail_once(source: Path, target: Path) -> None:
        if target.name in failing:
            failing.clear()
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    monkeypatch.setattr(os, "link", fail)
    if force:
        Path("out.png").write_text("old")
        Path("report.json").write_text("old")
    line = error_line(inpaint_args("photo.png", *["--force"] * force, json="report.json"), folder)
    assert f"nothing was written, as {name} could not be (No space left on device)" in line


def test_the_error_for_a_name_with_a_line_break_is_one_line(folder, inpaint_args):
    assert "no such file" in error_line(inpaint_args("two\nlines.png"), folder)
