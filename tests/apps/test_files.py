"""Several pictures and what is made of them, masks, previews, dry runs, marks, and bad input of the verbs."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.apps.command import ENVIRONMENT, arguments_for, contents_of, error_line, run
from tests.picture_files import hole

SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def successful(arguments):
    result = run(arguments)
    assert result.exit_code == 0, result
    return result


# --- several pictures


def test_several_pictures_are_numbered_and_have_the_next_seeds(folder, inpaint_args):
    successful(inpaint_args(num_images="3", seed="5", json="report.json"))
    assert sorted(contents_of(folder)) == [
        *("mask.png", "out-1.png", "out-2.png", "out-3.png"),
        *("photo.png", "report.json"),
    ]
    report = json.loads(Path("report.json").read_text())
    assert (report["num_images"], report["nfe"], report["seed"]) == (3, 3, 5)
    for i in range(3):
        successful(inpaint_args(o=f"single-{i}.png", seed=str(5 + i)))
        assert np.array_equal(pixels(f"out-{i + 1}.png"), pixels(f"single-{i}.png"))
    assert not np.array_equal(pixels("out-1.png"), pixels("out-2.png"))


def test_the_mean_and_the_standard_deviation_are_those_of_the_pictures(folder, inpaint_args):
    successful(inpaint_args("photo.png", num_images="4"))
    several = np.stack([pixels(f"out-{i + 1}.png") for i in range(4)]).astype(float)
    successful(inpaint_args("photo.png", "--mean", num_images="4", o="mean.png", uncertainty="deviation.png"))
    assert np.array_equal(pixels("mean.png"), several.mean(0).round())
    deviation = pixels("deviation.png")
    assert deviation.dtype == np.uint16
    expected = 65535 * np.sqrt((several / 255).var(0, ddof=1).mean(2))
    assert np.abs(deviation - expected).max() <= 0.51
    assert not deviation[~hole()].any()
    assert deviation[hole()].any()


def test_the_contact_sheet_holds_all_pictures_and_eight_are_the_default(folder, inpaint_args):
    successful(inpaint_args(contact_sheet="all.png"))
    assert len([name for name in contents_of(folder) if name.startswith("out-")]) == 8
    sheet = Image.open("all.png")
    assert sheet.size == (3 * 31 + 2 * 4, 3 * 24 + 2 * 4)
    assert np.array_equal(np.asarray(sheet)[:24, 35:66], pixels("out-2.png"))


def test_if_one_of_the_files_exists_none_is_written(folder, inpaint_args):
    Path("out-2.png").write_text("old")
    assert "out-2.png: exists" in error_line(inpaint_args(num_images="2"), folder)
    successful(inpaint_args("photo.png", "--force", num_images="2"))
    assert pixels("out-2.png").shape == (24, 31, 3)


# --- masks


def test_the_saved_mask_is_the_one_that_is_used(folder, inpaint_args):
    arguments = ["--box", "1,2,3,4", "--box", "20,10,5,6", "--grow", "1", "--save-mask", "used.png"]
    successful(inpaint_args("photo.png", *arguments, mask=None))
    used = pixels("used.png") == 255
    assert used.sum() == 3 * 4 + 2 * (3 + 4) + 5 * 6 + 2 * (5 + 6)
    assert np.array_equal(pixels("out.png")[~used], pixels("photo.png")[~used])
    successful(inpaint_args("photo.png", mask="used.png", o="same.png"))
    assert np.array_equal(pixels("same.png"), pixels("out.png"))


def test_a_color_selects_pixels(folder, inpaint_args):
    image = Image.new("RGB", (31, 24), (10, 20, 30))
    image.paste((200, 0, 0), (4, 5, 9, 9))
    image.save("photo.png")
    successful(inpaint_args("photo.png", "--color", "#c80000", "--save-mask", "used.png", mask=None))
    assert np.array_equal(pixels("used.png") == 255, pixels("photo.png")[..., 0] == 200)


def test_a_feathered_mask_is_saved_in_gray_and_keeps_pixels_outside(folder, inpaint_args):
    successful(inpaint_args("photo.png", "--feather", "3", "--save-mask", "used.png"))
    used = pixels("used.png")
    assert set(np.unique(used)) > {0, 64, 255}
    assert np.array_equal(pixels("out.png")[used == 0], pixels("photo.png")[used == 0])


# --- formats and marks


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_picture_is_marked_as_edited_in_every_format(folder, inpaint_args, suffix):
    successful(inpaint_args("photo.png", "--mark-edited", o=f"out{suffix}"))
    assert SOURCE_TYPE in Path(f"out{suffix}").read_bytes()
    assert SOURCE_TYPE in Image.open(f"out{suffix}").info["xmp"]


def test_without_the_option_there_is_no_mark(folder, inpaint_args):
    successful(inpaint_args())
    assert SOURCE_TYPE not in Path("out.png").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_lower_quality_gives_a_smaller_file(folder, inpaint_args, suffix):
    successful(inpaint_args(o=f"default{suffix}"))
    successful(inpaint_args(o=f"small{suffix}", quality="20"))
    assert Path(f"small{suffix}").stat().st_size < Path(f"default{suffix}").stat().st_size


# --- cost, previews


def test_a_dry_run_prints_the_cost_and_writes_nothing(folder, inpaint_args):
    before = contents_of(folder)
    result = successful(inpaint_args("photo.png", "--dry-run", steps="7", num_images="2"))
    assert result.stdout.startswith("dry run: 14 NFE, about ")
    assert result.stdout.endswith("; nothing was written\n")
    result = successful(inpaint_args("photo.png", "--dry-run", steps="7", json="-"))
    figures = json.loads(result.stdout)
    assert list(figures) == ["nfe", "seconds", "peak_gb", "weights_gb", "bytes_per_pixel", "size"]
    assert figures["nfe"] == 7
    assert figures["seconds"] > 0
    assert figures["bytes_per_pixel"] > 0
    assert contents_of(folder) == before


def test_a_dry_run_counts_all_passes(folder, verb_args):
    options = {"steps": "3", "json": "report.json"}
    successful(verb_args("outpaint", "--right", "40", **options))
    nfe = json.loads(Path("report.json").read_text())["nfe"]
    result = successful(verb_args("outpaint", "--right", "40", "--dry-run", steps="3", o="other.png"))
    assert nfe > 3
    assert result.stdout.startswith(f"dry run: {nfe} NFE")


def test_the_preview_stays_after_control_c_and_the_message_says_so(folder, inpaint_args):
    arguments = inpaint_args("photo.png", steps="900", solver="inexact_newton", preview="now.png")
    command = [sys.executable, "-m", "adhere", *arguments]
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))
    environment = ENVIRONMENT | {"TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment) as process:
        os.close(stderr)
        output = b""
        while b"residual" not in output or not Path("now.png").exists():
            output += os.read(terminal, 1000)
        output += os.read(terminal, 1000)  # of the step after the preview
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed
            while chunk := os.read(terminal, 1000):
                output += chunk
        assert process.wait() == 130
    os.close(terminal)
    assert b"adhere: stopped; nothing was written, but the preview now.png stays" in output
    assert sorted(contents_of(folder)) == ["mask.png", "now.png", "photo.png"]
    assert Image.open("now.png").size == (32, 24)  # the crop, padded


def test_the_last_preview_is_the_sample(folder, inpaint_args):
    successful(inpaint_args(preview="now.png", steps="2"))
    assert sorted(contents_of(folder)) == ["mask.png", "now.png", "out.png", "photo.png"]


# --- other verbs


def test_outpaint_keeps_the_own_pixels(folder, verb_args):
    successful(verb_args("outpaint", "--top", "25%", "--right", "9"))
    assert np.array_equal(pixels("out.png")[6:, 4:35], pixels("photo.png"))
    assert pixels("out.png").shape == (30, 44, 3)


@pytest.mark.parametrize("verb", ["layout", "silhouette"])
def test_a_reference_gives_a_picture_of_a_latent_model(folder, verb_args, text_model, verb):
    successful(verb_args(verb, model=str(text_model), prompt="a heart", size="16x16", solver="ddnm"))
    assert pixels("out.png").shape == (16, 16, 3)


def test_models_are_listed(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run(["models"])
    assert (result.exit_code, result.stderr) == (0, "")
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["MODEL", "FAMILY", "SIZE", "LICENSE", "GOOD", "FOR"]
    assert [row.split()[:2] for row in rows][:2] == [["adhere-emoji", "SDPipeline"], ["adhere-photo", "PixelPipeline"]]


# --- bad input of every verb


BAD = [
    ("inpaint", ["--box", "1,2,3"], "--box '1,2,3': give X,Y,W,H"),
    ("inpaint", ["--box", "99,0,2,2"], "box 99,0,2,2: is outside the picture"),
    ("inpaint", ["--color", "red"], "--color 'red': give #RRGGBB"),
    ("inpaint", ["--color", "#ff00zz"], "give #RRGGBB"),
    ("inpaint", ["--tolerance", "256"], "--tolerance '256': give a whole number from 0 to 255"),
    ("inpaint", ["--grow", "-1"], "--grow '-1': give a whole number"),
    ("inpaint", ["--feather", "1.5"], "--feather '1.5': give a whole number"),
    ("inpaint", ["--grow", "100"], "nothing to keep: everything is selected"),
    ("inpaint", ["--save-mask", "used.jpg"], "--save-mask used.jpg: write .png"),
    ("inpaint", ["--save-mask", "mask.png"], "--save-mask mask.png: is read by this command, and would be lost"),
    ("outpaint", ["--left", "-5"], "--left '-5': give a whole number of pixels"),
    ("outpaint", ["--top", "5.5%"], "--top '5.5%': give a whole number of pixels, or a share"),
    ("outpaint", ["--left", "0"], "PHOTO would not grow"),
    ("outpaint", ["--aspect", "16x9"], "--aspect '16x9': give W:H"),
    ("outpaint", ["--aspect", "16:9"], "give one of them"),
    ("outpaint", ["--left", "90000", "--top", "90000"], "at most 250,000,000 are allowed"),
    ("style", [], "style needs a latent model, not one of pixels"),
    ("layout", [], "layout needs a latent model, not one of pixels"),
    ("silhouette", [], "silhouette needs a latent model, not one of pixels"),
    ("layout", ["--reference", "none.png"], "none.png: no such file"),
    ("layout", ["--size", "64"], "--size '64': give WIDTHxHEIGHT"),
    ("inpaint", ["--num-images", "0"], "--num-images '0': give a whole number from 1 to 1000"),
    ("inpaint", ["--num-images", "1", "--mean"], "--num-images 1: --mean needs at least 2 pictures"),
    ("inpaint", ["--num-images", "1", "--uncertainty", "u.png"], "--uncertainty needs at least 2 pictures"),
    ("inpaint", ["--uncertainty", "u.jpg"], "--uncertainty u.jpg: write .png or .tif or .tiff"),
    ("inpaint", ["--contact-sheet", "out-1.png"], "--contact-sheet out-1.png: is the name of another file"),
    ("inpaint", ["--preview", "photo.png"], "--preview photo.png: is read by this command"),
    ("inpaint", ["--preview", "now.xyz"], "cannot write the suffix .xyz"),
    ("inpaint", ["--quality", "101"], "--quality '101': give a whole number from 1 to 100"),
    ("inpaint", ["--quality", "50"], "--quality 50: out.png is lossless"),
    ("inpaint", ["--dry-run", "--json", "report.json"], "a dry run writes no file; write --json -"),
]


@pytest.mark.parametrize(("verb", "flags", "message"), BAD)
def test_bad_input_of_a_verb_is_answered_by_one_line(folder, verb_args, verb, flags, message):
    assert message in error_line(verb_args(verb, *flags), folder)


def test_a_format_that_holds_no_mark(folder, inpaint_args):
    message = "--mark-edited: out.bmp: BMP holds no such mark"
    assert message in error_line(inpaint_args("photo.png", "--mark-edited", o="out.bmp"), folder)


def test_the_format_of_the_contact_sheet_counts(folder, inpaint_args):
    successful(inpaint_args("photo.png", "--num-images", "1", contact_sheet="sheet.jpg", quality="50"))
    line = error_line(inpaint_args("photo.png", "--mark-edited", o="new.png", contact_sheet="sheet.bmp"), folder)
    assert "--mark-edited: sheet.bmp: BMP holds no such mark" in line


def test_the_verbs_with_a_photo_refuse_one_that_is_not_there(folder):
    for verb in ("inpaint", "outpaint"):
        assert "none.png: no such file" in error_line(arguments_for(verb, "none.png", o="out.png"), folder)
