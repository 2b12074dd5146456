"""A context in which warnings of libraries that do not concern the user are ignored.

The filters of warnings belong to the process. If two threads saved and restored them in overlapping order, the filters
would stay changed. The threads that are in the context therefore share one change.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    """The number of threads in the context, and the object that restores the filters after the last one."""

    lock = threading.Lock()
    count = 0
    saved = warnings.catch_warnings()


@contextmanager
def ignored_library_warnings() -> Iterator[None]:
    """Return a context without the warnings of Pillow, which concern damaged metadata, and without one of diffusers.

    Warnings of this package, and of others, are shown as before.
    """
    with _State.lock:
        _State.count += 1
        if _State.count == 1:
            _State.saved = warnings.catch_warnings()
            _State.saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            # Newer versions of diffusers prefer `dtype`, which older ones do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
    try:
        yield
    finally:
        with _State.lock:
            _State.count -= 1
            if not _State.count:
                _State.saved.__exit__(None, None, None)
