"""Notes: our own warnings as one line each on standard error."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from adhere.errors import AdhereWarning


@contextmanager
def printed_notes() -> Iterator[None]:
    """A context in which our own warnings are printed as one line each, and those of libraries are not printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AdhereWarning)
        warnings.showwarning = lambda message, *_: print("adhere: note:", message, file=sys.stderr)
        yield
