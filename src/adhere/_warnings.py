"""Warnings of libraries that say nothing to the user, ignored for a while.

The filters of warnings belong to the process. Threads that were to save and restore them one across the other would
leave them changed, so the threads that are in the context share one change of them.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _State:
    """How many threads are in the context, and what restores the filters after the last one."""

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
