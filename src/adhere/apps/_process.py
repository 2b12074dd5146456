"""The process of the command: signals, freed memory, and the messages of C libraries on standard error.

Ctrl-C, SIGTERM and SIGHUP end the process at once, without an exception: libraries swallow exceptions while they are
imported, and C++ code that is called back would abort. A signal that the caller ignores, as nohup does with SIGHUP,
stays ignored. Only modules that load quickly are imported here, so that the handlers are installed early.
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
    """The state that the handlers read: the file for messages, once they are installed, and what has been written."""

    stderr: int | None = None
    is_written = False
    preview: str | None = None  # the file of the preview, if one was written


def install_handlers() -> None:
    """Make the signals end this process. This is for the program only, since the handlers never return to a caller."""
    with suppress(OSError):  # standard error may be closed
        _State.stderr = os.dup(2)
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def reuse_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors. Otherwise the system takes it back and clears it at each allocation.

    This saves a sixth of the processor time of adhere-photo. Blocks of more than 32 MB, such as the states of pictures
    above 3 megapixels, are still returned to the system, because they would fragment the memory.
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
    """Record whether the files of this command have their final names."""
    _State.is_written = is_written


def set_preview(path: str | None) -> None:
    """Record the file that holds a preview, or None."""
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
    """Return a context in which C libraries such as libtiff cannot print, but Python can; only for the program."""
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
