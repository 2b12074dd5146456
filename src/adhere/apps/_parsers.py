"""Parsers of the options' values; their errors name the flag, the value and what is allowed."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adhere.errors import AdhereError

Parser = Callable[[str, Any], Any]  # (flag, text or default) -> value


def parse_text(flag: str, text: str) -> str:
    """The text of an option, which must not be empty."""
    if not text:
        raise AdhereError(f"{flag} '': is empty; give a name")
    return text


def parse_path(flag: str, text: str) -> Path:
    """The path of an option."""
    return Path(parse_text(flag, text))  # Path("") would be the current folder


def integer_parser(low: int, high: int) -> Parser:
    """A parser of integers from low to high. Typer also passes the default through it, which is an int."""

    def parse(flag: str, value: str | int) -> int:
        with suppress(ValueError):
            if low <= int(value) <= high:
                return int(value)
        raise AdhereError(f"{flag} '{value}': give a whole number from {low} to {high}")

    return parse


def parse_guidance_scale(flag: str, text: str) -> float:
    """A number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise AdhereError(f"{flag} '{text}': give a number above 0; 1 switches guidance off, 3 to 8 are usual")


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT."""
    if sides := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII):
        return int(sides[2]), int(sides[1])
    raise AdhereError(f"--size '{text}': give WIDTHxHEIGHT in pixels, such as 256x128, at most 9999x9999")
