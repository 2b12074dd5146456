"""What concerns the process of the command: signals, freed memory, and what C libraries print on standard error.

Ctrl-C, SIGTERM and SIGHUP end the process at once, without an exception: libraries swallow exceptions while they are
imported, and C++ code that is called back would abort. A signal that the caller ignores, as nohup does with SIGHUP,
stays ignored. Only modules that cost nothing are imported here, so that the handlers are installed first of all.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from types import FrameType

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _State:
    """What the handlers know: where messages go once the handlers are installed, and whether the files are written."""

    stderr: int | None = None
    is_written = False
    preview: str | None = None  # the file of a preview that is there, if the command stops


def install_handlers() -> None:
    """Make the signals end this process; for the program only, since the handlers never return to a caller."""
    with suppress(OSError):  # standard error may be closed
        _State.stderr = os.dup(2)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def reuse_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors. Otherwise the system takes it back and clears it at each allocation.

    This saves a sixth of the processor time of adhere-photo. Pieces of more than 32 MB, as the states of pictures above
    3 megapixels are, are given back: between such pieces that are still in use, no new one would fit.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def is_program() -> bool:
    """Return whether this process is the command, and not that of a caller of `adhere.apps.cli.main`."""
    return _State.stderr is not None


def stopped() -> str:
    """Return the message of a process that is stopped."""
    if _State.is_written:
        return "stopped; the files are written"
    stays = "" if _State.preview is None else f", but the preview {_State.preview} stays"
    return f"stopped; nothing was written{stays}"


def set_written(is_written: bool) -> None:
    """Note whether the files of this command have their final names."""
    _State.is_written = is_written


def set_preview(path: str | None) -> None:
    """Note which file holds a preview, None for none."""
    _State.preview = path


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Return a context in which the signals have no effect; it does nothing in a thread, which gets no signals."""
    handlers = {}
    with suppress(ValueError):
        for number in _SIGNALS:
            if signal.getsignal(number) is not None:  # otherwise it was installed by C code and cannot be restored
                handlers[number] = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Return a context in which C libraries such as libtiff print nothing, but Python does, if this is the program."""
    if _State.stderr is None:  # other threads of a caller may be printing
        yield
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        with open(_State.stderr, "w", errors="backslashreplace", closefd=False) as stream, redirect_stderr(stream):
            yield
    finally:
        os.dup2(_State.stderr, 2)
        os.close(devnull)


def _stop(number: int, _: FrameType | None) -> None:
    atomic = sys.modules.get("adhere.io._atomic")
    getattr(atomic, "remove_unfinished", lambda: None)()  # the module may not be there yet, or only in part
    if _State.stderr is not None:
        bar = "\n" if os.isatty(_State.stderr) else ""  # a progress bar may be on the line
        with suppress(OSError):
            os.write(_State.stderr, f"{bar}adhere: {stopped()}\n".encode())
    os._exit(128 + number)
