"""Standard streams, signals and memory, mostly with the command in a process of its own."""

import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from adhere.apps._examples import EXAMPLES
from adhere.apps.cli import main
from adhere.io import images
from tests.apps.command import ENVIRONMENT, LATENT_VERBS, REPORT_LINE, contents_of, error_line, run
from tests.picture_files import hole, image_of, png_header
from tests.tiny_models import WEIGHTS


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "adhere", *arguments]


@pytest.mark.parametrize(
    ("arguments", "heavy", "shown"),
    [
        (["--help"], ("torch", "diffusers", "numpy", "PIL"), "Examples"),
        (["models"], ("torch", "diffusers", "transformers", "scipy", "PIL"), "adhere-photo  PixelPipeline"),
    ],
)
def test_what_needs_no_network_does_not_import_torch(arguments, heavy, shown):
    code = (
        f"import atexit, sys; from adhere.apps.cli import main; heavy = {heavy}; "
        f"atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr)); main({arguments})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert shown in result.stdout


def test_a_request_that_cannot_be_read_does_not_import_diffusers(tmp_path):
    code = (
        "import atexit, sys; from adhere.apps.cli import main; heavy = ('diffusers', 'transformers', 'scipy'); "
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules])); "
        "main(['upscale', 'none.png', '-o', 'out.png'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "[]\n"), result.stderr


@pytest.mark.parametrize(
    ("redirection", "exit_code", "message"), [("/dev/full", 1, "standard output is lost"), ("&-", 0, "")]
)
def test_the_help_when_standard_output_is_full_or_closed(redirection, exit_code, message):
    arguments = ["sh", "-c", f'exec "$@" >{redirection}', "sh", *command("--help")]
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == exit_code
    assert message in result.stderr
    assert result.stderr.count("\n") == bool(message)


def test_a_process_prints_one_line_and_nothing_on_standard_error(folder, inpaint_args):
    result = subprocess.run(command(*inpaint_args()), capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert REPORT_LINE.fullmatch(result.stdout)
    assert result.stderr.strip() == ""  # no progress bar without a terminal, no warnings of libraries


def test_a_process_says_in_one_line_that_a_network_does_not_predict_what_its_scheduler_says(
    folder, inpaint_args, model_with
):
    arguments = command(*inpaint_args(model=str(model_with(prediction_type="epsilon"))))
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert "set prediction_type in scheduler/scheduler_config.json" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_process_prints_its_notes_while_c_libraries_print_nothing(folder, inpaint_args):
    """The first note is of reading the mask, the second of encoding the result."""
    mask = hole().astype(np.uint8) * 255
    mask[2, 2] = 120
    Image.fromarray(mask).save("mask.png")
    image_of("RGB").save("photo.jpg", comment="a comment")
    arguments = command(*inpaint_args("photo.jpg", o="out.webp"))
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    first, second = result.stderr.splitlines()
    assert first.startswith("adhere: note: the mask has soft edges")
    assert second == "adhere: note: not copied to the WEBP file: comment"


def test_a_process_has_a_limit_of_pixels_of_its_own(folder, inpaint_args):
    """Pillow's is lower. In a process of a caller, it is the caller's."""
    for side, message in ((14_000, "damaged or cut short"), (16_000, "at most 250,000,000 are allowed")):
        Path("photo.png").write_bytes(png_header(side, side))
        result = subprocess.run(command(*inpaint_args()), capture_output=True, text=True, env=ENVIRONMENT)
        assert result.returncode == 2 and message in result.stderr, result


def test_a_process_with_a_prompt_prints_one_line(folder, verb_args, text_model):
    arguments = command(*verb_args("generate", model=str(text_model), prompt="a heart"))
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr.strip()) == (0, "")
    assert REPORT_LINE.fullmatch(result.stdout)


def test_without_transformers_the_error_names_what_to_install(folder, verb_args, text_model):
    without = "import sys; sys.modules['transformers'] = sys.modules['peft'] = None"  # peft imports transformers
    code = f"{without}; from adhere.apps.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, *verb_args("generate", model=str(text_model), prompt="a heart")]
    result = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stdout) == (2, "")
    assert "needs the package transformers" in result.stderr
    assert result.stderr.endswith("pip install 'adhere[text]'\n")
    assert result.stderr.count("\n") == 1


def test_a_process_that_fails_prints_one_line(folder, inpaint_args, model_with):
    model = model_with()
    (model / WEIGHTS).rename(model / "unet" / "other.safetensors")
    before = contents_of(folder)
    result = subprocess.run(command(*inpaint_args(model=str(model))), capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert contents_of(folder) == before


def read_until(descriptor: int, pattern: bytes) -> bytes:
    """Return the output of a terminal until the pattern matches, or until the process ends."""
    output = b""
    while not re.search(pattern, output):
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # on Linux, after the other end is closed
            data = b""
        if not data:
            break
        output += data
    return output


def pipe_without_reader() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_device() -> IO[str]:
    return Path("/dev/full").open("w")


@pytest.mark.parametrize(
    ("make_stdout", "message"),
    [(pipe_without_reader, ""), (full_device, "standard output is lost: No space left on device")],
)
def test_the_files_are_complete_when_standard_output_is_lost(folder, inpaint_args, make_stdout, message):
    with make_stdout() as stdout:
        result = run(inpaint_args(json="report.json"), stdout)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == bool(message)
    assert Image.open("out.png").size == (31, 24)
    assert json.loads(Path("report.json").read_text())["nfe"] == 1


def test_standard_output_may_be_closed(folder, inpaint_args, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        main(inpaint_args("photo.png"))
    assert caught.value.code == 0
    assert Image.open("out.png").size == (31, 24)


def with_interrupt(function, name: str):
    """Return the function, which sends Ctrl-C after a call with a file of this name among its arguments."""

    def wrapper(*arguments, **options):
        result = function(*arguments, **options)
        if any(Path(str(argument)).name == name for argument in arguments):
            os.kill(os.getpid(), signal.SIGINT)
        return result

    return wrapper


@pytest.mark.parametrize("name", ["out.png", "report.json"])
def test_control_c_is_ignored_while_files_are_renamed(folder, inpaint_args, monkeypatch, name):
    monkeypatch.setattr(os, "replace", with_interrupt(os.replace, name))
    result = run(inpaint_args(json="report.json"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert REPORT_LINE.fullmatch(result.stdout)
    assert sorted(contents_of(folder)) == ["mask.png", "out.png", "photo.png", "report.json"]


def test_control_c_while_writing_leaves_no_file(folder, inpaint_args, monkeypatch):
    before = contents_of(folder)
    interrupted = with_interrupt(images.convert_for, "PNG")  # while the second file is written
    monkeypatch.setattr(images, "convert_for", interrupted)
    result = run(inpaint_args(json="report.json"))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "adhere: stopped; nothing was written\n")
    assert contents_of(folder) == before


def test_control_c_while_sampling_leaves_no_file(folder, inpaint_args):
    before = contents_of(folder)
    terminal, stderr = pty.openpty()  # the progress bar needs a terminal
    termios.tcsetwinsize(stderr, (24, 80))
    arguments = command(*inpaint_args(steps="900", solver="inexact_newton", json="report.json"))
    environment = ENVIRONMENT | {"TERM": "xterm"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, env=environment) as process:
        os.close(stderr)
        output = read_until(terminal, rb"[1-9]\d*%")  # at least one percent of the steps
        assert b"sampling" in output
        process.send_signal(signal.SIGINT)
        rest = read_until(terminal, rb"(?!)")
        assert process.wait() == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(terminal)
    assert b"adhere: stopped; nothing was written" in rest
    assert b"Traceback" not in output + rest
    assert contents_of(folder) == before


def test_one_of_several_processes_that_write_one_name_wins(folder, inpaint_args):
    processes = [
        subprocess.Popen(command(*inpaint_args(seed=str(i))), stdout=-1, stderr=-1, text=True, env=ENVIRONMENT)
        for i in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2, 2]
    assert all(
        "out.png" in stderr and "exists" in stderr for code, (_, stderr) in zip(codes, outputs, strict=True) if code
    )
    written = Path("out.png").read_bytes()
    assert run(inpaint_args(o="again.png", seed=str(codes.index(0)))).exit_code == 0
    assert Path("again.png").read_bytes() == written
    assert sorted(contents_of(folder)) == ["again.png", "mask.png", "out.png", "photo.png"]


def test_pictures_in_another_folder_than_the_working_folder(folder, inpaint_args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(inpaint_args("work/photo.png", mask="work/mask.png", o="work/out.png")).exit_code == 0
    assert Image.open(folder / "out.png").size == (31, 24)


def test_the_report_has_the_number_of_noise_levels_that_were_run(folder, inpaint_args):
    """Some of 300 log-SNRs round to the same timestep; ddnm evaluates the network once per timestep."""
    assert run(inpaint_args(json="report.json", solver="ddnm", steps="300")).exit_code == 0
    report = json.loads(Path("report.json").read_text())
    assert report["steps"] == report["nfe"] < 300


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if verb not in LATENT_VERBS])
@pytest.mark.parametrize("method", ["crops", "postprocess"])
def test_the_error_for_lack_of_memory_is_one_line(folder, verb_args, monkeypatch, verb, method, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(f"adhere.tasks.{verb.capitalize()}.{method}", fail)
    assert "out of memory; nothing was written" in error_line(verb_args(verb), folder)


def test_the_error_for_lack_of_memory_while_reading_is_one_line(folder, inpaint_args, monkeypatch):
    def fail(*_args):
        raise MemoryError

    monkeypatch.setattr(images, "samples_of", fail)
    assert "out of memory; nothing was written" in error_line(inpaint_args(), folder)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory of other C libraries is not changed")
def test_the_memory_of_freed_tensors_is_reused():
    """50 rounds of three tensors of 1,536 pages need new pages for two rounds at most; by default, for about five."""
    code = (
        "import resource, torch; from adhere.apps import _process; _process.reuse_freed_memory()\n"
        "def rounds(n):\n"
        "    for _ in range(n): x = torch.ones(6 * 2**18); y = x + 1; z = 2 * y\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(-(rounds(50) - rounds(50)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert int(result.stdout) <= 2 * 3 * 1536
