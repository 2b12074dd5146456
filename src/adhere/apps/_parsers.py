"""Parsers of the options' values; their errors name the flag, the value and what is allowed."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adhere.errors import AdhereError

Parser = Callable[[str, Any], Any]  # (flag, text or default) -> value


def with_flag(flag: str, parser: Parser) -> Callable[[Any], Any]:
    """Return a parser of values whose errors name the flag."""

    def parse(value: Any) -> Any:
        return parser(flag, value)

    return parse


def parse_text(flag: str, text: str) -> str:
    """Return the text of an option, which must not be empty."""
    if not text:
        raise AdhereError(f"{flag} '': is empty; give a name")
    return text


def parse_psf(flag: str, text: str) -> str:
    """Return the shape or the file of a point spread function, which must not be empty."""
    if not text:
        raise AdhereError(f"{flag} '': is empty; give gaussian:SIGMA, motion:LENGTH,ANGLE, disk:RADIUS or a file")
    return text


def parse_path(flag: str, text: str) -> Path:
    """Return the path of an option."""
    return Path(parse_text(flag, text))  # Path("") would be the current folder


def integer_parser(low: int, high: int) -> Parser:
    """Return a parser of integers from low to high. Typer also passes it the default value, which is an int."""

    def parse(flag: str, value: str | int) -> int:
        with suppress(ValueError):
            if low <= int(value) <= high:
                return int(value)
        raise AdhereError(f"{flag} '{value}': give a whole number from {low} to {high}")

    return parse


def parse_guidance_scale(flag: str, text: str) -> float:
    """Return a number above 0."""
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise AdhereError(f"{flag} '{text}': give a number above 0; 1 switches guidance off, 3 to 8 are usual")


def parse_noise(flag: str, value: str | float) -> float:
    """Return a standard deviation from 0 to 1, in units of [0, 1]. Typer also passes the default value, a float."""
    with suppress(ValueError):
        if 0 <= (noise := float(value)) <= 1:
            return noise
        if 1 < noise <= 255:
            hint = f", such as {noise / 255:.3g} for {noise:g} levels"
            raise AdhereError(f"{flag} '{value}': is above 1; divide a number of 8-bit levels by 255{hint}")
    raise AdhereError(f"{flag} '{value}': give a standard deviation from 0 to 1, where 1 is from black to white")


def parse_sigma(flag: str, text: str) -> float | None:
    """Return a standard deviation from 0 to 1, or None for 'auto'."""
    return None if text == "auto" else parse_noise(flag, text)


def parse_factor(flag: str, text: str) -> float:
    """Return a number from 1.5 to 8."""
    with suppress(ValueError):
        if 1.5 <= float(text) <= 8:
            return float(text)
    raise AdhereError(f"{flag} '{text}': give a number from 1.5 to 8; 2 and 4 are usual")


def parse_kernel(flag: str, text: str) -> str:
    """Return the name of a kernel of reduction."""
    if text in ("area", "bicubic"):
        return text
    raise AdhereError(f"{flag} '{text}': give area or bicubic")


def parse_lora(flag: str, text: Any) -> tuple[str, float]:
    """Return (file, weight) from FILE or FILE:WEIGHT."""
    file, colon, weight = str(text).rpartition(":")
    if not colon or not re.fullmatch(
        r"[\d.+-]*(\d[eE][+-]?\d+)?", weight
    ):  # a colon in the name of the file or of a drive
        return parse_text(flag, str(text)), 1.0
    with suppress(ValueError):
        if file and -100 <= float(weight) <= 100:
            return file, float(weight)
    raise AdhereError(f"{flag} '{text}': give FILE or FILE:WEIGHT, such as lora.safetensors:0.8")


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) from WIDTHxHEIGHT."""
    if sides := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII):
        return int(sides[2]), int(sides[1])
    raise AdhereError(f"--size '{text}': give WIDTHxHEIGHT in pixels, such as 256x128, at most 9999x9999")


def parse_box(flag: str, text: Any) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) from X,Y,W,H."""
    if found := re.fullmatch(r"(\d{1,6}),(\d{1,6}),([1-9]\d{0,5}),([1-9]\d{0,5})", str(text), re.ASCII):
        return int(found[1]), int(found[2]), int(found[3]), int(found[4])
    raise AdhereError(f"{flag} '{text}': give X,Y,W,H in pixels, the left and top edge, width and height: 10,20,64,48")


def parse_color(flag: str, text: Any) -> tuple[int, int, int]:
    """Return (red, green, blue) from #RRGGBB."""
    if found := re.fullmatch(r"#?([\da-f]{2})([\da-f]{2})([\da-f]{2})", str(text), re.ASCII | re.IGNORECASE):
        return int(found[1], 16), int(found[2], 16), int(found[3], 16)
    raise AdhereError(f"{flag} '{text}': give #RRGGBB, two hexadecimal digits for red, green and blue: '#ff0000'")


def parse_growth(flag: str, text: Any) -> tuple[int, float]:
    """Return (pixels, 0) from N, or (0, share) from N%."""
    if found := re.fullmatch(r"(\d{1,5})(%?)", str(text), re.ASCII):
        return (0, int(found[1]) / 100) if found[2] else (int(found[1]), 0.0)
    raise AdhereError(f"{flag} '{text}': give a whole number of pixels, or a share such as 25%")


def parse_aspect(flag: str, text: Any) -> tuple[int, int]:
    """Return (width, height) from W:H."""
    if found := re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", str(text), re.ASCII):
        return int(found[1]), int(found[2])
    raise AdhereError(f"{flag} '{text}': give W:H, two whole numbers, such as 16:9")
