"""Standard input, standard output and standard error: `-` as a file, notes, and lines of libraries."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adhere.apps.cli import main
from adhere.core.solvers.ddnm import DDNM
from tests.apps.command import ENVIRONMENT, REPORT_LINE, arguments_for, contents_of, error_line, run
from tests.picture_files import hole, image_of


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adhere", *arguments]


@pytest.mark.parametrize("seekable", [True, False])
def test_a_photo_from_standard_input(folder, inpaint_args, seekable):
    assert run(inpaint_args(o="expected.png")).exit_code == 0
    arguments = command(*inpaint_args("-"))
    data = Path("photo.png").read_bytes()
    if seekable:
        with Path("photo.png").open("rb") as file:
            result = subprocess.run(arguments, stdin=file, capture_output=True, env=ENVIRONMENT)
    else:
        result = subprocess.run(arguments, input=data, capture_output=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, b"")
    assert Path("out.png").read_bytes() == Path("expected.png").read_bytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty (0 bytes)"), (b"no picture", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image")],
)
def test_standard_input_that_is_no_picture(folder, inpaint_args, monkeypatch, data, reason):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert reason in error_line(inpaint_args("-"), folder)


def test_standard_input_that_is_closed_or_a_terminal(folder, inpaint_args, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "photo '-': standard input is not a picture; add < photo.jpg" in error_line(inpaint_args("-"), folder)
    _, terminal = os.openpty()
    with open(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "photo '-': standard input is not a picture" in error_line(inpaint_args("-"), folder)


def test_a_file_whose_name_is_a_hyphen(folder, inpaint_args):
    Path("photo.png").rename("-")
    assert run(inpaint_args("./-", json="./-.json")).exit_code == 0
    assert json.loads(Path("-.json").read_text())["nfe"] == 1


def test_the_report_on_standard_output(folder, inpaint_args):
    result = run(inpaint_args(json="-"))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["nfe"] == 1
    assert REPORT_LINE.fullmatch(result.stderr)
    assert sorted(contents_of(folder)) == ["mask.png", "out.png", "photo.png"]


def test_a_mask_of_most_of_the_picture_gets_a_hint(folder, inpaint_args):
    Image.fromarray(~hole(24, 31)).save("mask.png")
    assert REPORT_LINE.fullmatch(run(inpaint_args()).stdout)
    mask = np.ones((24, 31), bool)
    mask[:2] = False
    Image.fromarray(mask).save("mask.png")
    line = run(inpaint_args("photo.png", "--force", json="report.json")).stdout
    assert line.endswith("; 91.7 % is repainted: invert the mask if that part was to stay\n")
    assert json.loads(Path("report.json").read_text())["repainted"] == pytest.approx(22 / 24, abs=1e-6)


def test_the_time_of_encoding_is_reported(folder, inpaint_args, monkeypatch):
    """The clock is ahead by 1000 seconds while the picture is encoded."""
    from adhere.apps import _files, job

    now, encode = job.time.perf_counter, _files.encode
    ahead = []
    monkeypatch.setattr(job.time, "perf_counter", lambda: now() + sum(ahead))
    monkeypatch.setattr(_files, "encode", lambda *arguments: (encode(*arguments), ahead.append(1000)))
    result = run(inpaint_args(json="report.json"))
    assert 1000 <= json.loads(Path("report.json").read_text())["seconds"] < 2000
    assert REPORT_LINE.fullmatch(result.stdout)
    assert float(result.stdout.split()[2]) >= 1000


def corrupt_tiff() -> bytes:
    """Return a TIFF file whose LZW data are damaged, of which libtiff complains on standard error."""
    buffer = io.BytesIO()
    image_of("RGB").save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[100:400] = b"\xff" * 300
    return bytes(data)


def test_lines_of_libraries_do_not_appear(folder, inpaint_args):
    Path("photo.tif").write_bytes(corrupt_tiff())
    code = "import sys; from PIL import Image; Image.open('photo.tif').load()"
    raw = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert "code not yet in table" in raw.stderr  # otherwise this test shows nothing
    result = subprocess.run(command(*inpaint_args("photo.tif")), capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 2
    assert result.stderr.startswith("adhere: photo.tif: ")
    assert result.stderr.count("\n") == 1


def test_a_prompt_that_is_cut_is_noted(folder, verb_args, text_model):
    options = {"model": str(text_model), "json": "report.json"}
    short = run(verb_args("generate", prompt="a b", **options))
    assert (short.exit_code, short.stderr) == (0, "")
    long = run(verb_args("generate", "--force", prompt=" ".join(100 * "abcdefghijklmnopqrstuvwxyz"), **options))
    assert long.exit_code == 0
    assert long.stderr.startswith("adhere: note: ")
    assert "truncated" in long.stderr
    assert long.stderr.count("\n") == 1 and len(long.stderr) < 210


def test_the_command_runs_in_a_thread(folder, inpaint_args):
    codes = []

    def work() -> None:
        with pytest.raises(SystemExit) as caught:
            main([*inpaint_args(), "--json", "report.json"])
        codes.append(caught.value.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0]
    assert sorted(contents_of(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), OSError(5, "a bug"), KeyError("a bug")])
def test_an_error_that_is_not_of_our_checks_keeps_its_traceback(folder, inpaint_args, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(DDNM, "__call__", fail)
    before = contents_of(folder)
    with pytest.raises(type(error)) as caught:
        main(inpaint_args(solver="ddnm"))
    assert caught.value is error
    assert contents_of(folder) == before


def test_the_current_folder_does_not_exist_any_more(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = run(arguments_for("inpaint", "photo.png", mask="mask.png", o="out.png"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "the current folder does not exist any more" in result.stderr
