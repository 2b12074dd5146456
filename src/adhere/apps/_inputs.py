"""The picture that a verb works on: a file, or standard input."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adhere.errors import AdhereError

if TYPE_CHECKING:
    from adhere.io.images import Picture

STREAM = "-"  # as a file name: standard input or output


def input_file(photo: str) -> Path | None:
    """Return the file of the argument PHOTO, if it is one."""
    return None if photo == STREAM else Path(photo)


def read_photo(photo: str, frame: int | None) -> "Picture":
    """Return the picture of the argument PHOTO.

    Raises:
        AdhereError: if it cannot be read.
    """
    from adhere.io.images import as_picture

    if photo != STREAM:
        return as_picture(photo, frame)
    if sys.stdin is None or sys.stdin.isatty():
        raise AdhereError("photo '-': standard input is not a picture; add < photo.jpg, or give the name of a file")
    return as_picture(sys.stdin.buffer, frame)  # pyright: ignore[reportArgumentType]  # a BufferedReader
