"""The command, run as a process would be, and what it must leave behind."""

import io
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from adhere.cli import main

LINE = re.compile(r"\d+ NFE, \d+\.\d s, residual \d+\.\d{3}, peak \d+\.\d GB\n")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def spelled(verb: str, *words: str, **options: str | None) -> list[str]:
    """A command's arguments; options that are None are left out."""
    names = {name: f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-") for name in options}
    return [verb, *words, *(x for name, value in options.items() if value is not None for x in (names[name], value))]


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
