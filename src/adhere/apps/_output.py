"""Output of the command: notes and errors, each in one line, and errors of standard output itself."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adhere.errors import AdhereWarning


class OutputLost(Exception):
    """Standard output is closed or full. The message is empty if the reader of a pipe has ended, such as `head`."""


@contextmanager
def stream_errors() -> Iterator[None]:
    """Return a context for code that only prints, whose errors are those of standard output and raise `OutputLost`."""
    try:
        yield
    except OSError as error:
        # The rest goes to the null device; otherwise the flush at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        is_pipe = isinstance(error, BrokenPipeError)
        raise OutputLost("" if is_pipe else f"standard output is lost: {error.strerror}") from error


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Return a context that prints the warnings of adhere at its end, one per line; those of libraries are ignored.

    After an error, no warning is printed, since the warnings concern a result that does not exist.
    """
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AdhereWarning)
        warnings.showwarning = lambda message, *_: notes.append(str(message))
        yield
    for note in notes:
        print_line(f"note: {note}")


def print_line(message: str) -> None:
    """Print a message as one line on standard error."""
    with suppress(OSError):
        print("adhere:", " ".join(message.splitlines()), file=sys.stderr)
