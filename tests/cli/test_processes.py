"""The command as a real process: streams, signals, memory."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from adhere import images
from adhere.cli import EXAMPLES, main
from tests.cli.command import ENVIRONMENT, LINE, contents, refusal, run
from tests.tiny_models import WEIGHTS


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
    (model / WEIGHTS).rename(model / "unet" / "other.safetensors")
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
