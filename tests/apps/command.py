"""Running the command in this process, and checking what it prints and leaves behind."""

import io
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from adhere.apps.cli import main

LATENT_VERBS = ("style", "layout", "silhouette")  # they refuse pixel-space models
REPORT_LINE = re.compile(r"\d+ NFE, \d+\.\d s, residual \d+\.\d{3}, peak \d+\.\d GB\n")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}  # of child processes


def arguments_for(verb: str, *words: str, **options: str | None) -> list[str]:
    """Return the arguments of a command, such as arguments_for("upscale", "a.png", o="b.png"); None is left out."""
    flags = {name: f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-") for name in options}
    values = ((flags[name], value) for name, value in options.items() if value is not None)
    return [verb, *words, *(text for pair in values for text in pair)]


def contents_of(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of each file in a folder by relative path, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass(frozen=True)
class Result:
    """The exit code of a command, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


def run(arguments: list[str], stdout: IO[str] | None = None) -> Result:
    """Run the command in this process."""
    out, err = stdout or io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return Result(caught.value.code, out.getvalue() if isinstance(out, io.StringIO) else "", err.getvalue())


def error_line(arguments: list[str], folder: Path) -> str:
    """Return the one line of an invalid command, after checking that the exit code is 2 and no file has changed."""
    before = contents_of(folder)
    result = run(arguments)
    assert result.exit_code == 2, result
    assert result.stdout == ""
    assert re.fullmatch(r"adhere: .+\n", result.stderr)
    assert contents_of(folder) == before
    return result.stderr
