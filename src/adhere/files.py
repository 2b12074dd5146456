"""Files written whole or not at all, several together or none: under temporary names beside their own, then renamed.

    check_writable(path)                    before the work: refuse what would fail after it
    with staged({path: write}) as commit:   after it: every file is written, under its temporary name
        commit()                            all appear

Both raise `AdhereError`.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from adhere.errors import AdhereError


def check_writable(path: Path, force: bool = False) -> None:
    """Refuse what could not be written later. A file is made and removed, as permissions lie (to root, say).

    Raises `AdhereError`: a folder, no folder to be in or one that takes no files, an impossible name, a device, or the
    file exists (unless `force`).
    """
    if os.path.isdir(path):
        raise AdhereError(f"{path}: is a folder; give a file name in it")
    if not os.path.isdir(path.parent):
        raise AdhereError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    trial = _beside(path)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise AdhereError(f"{path}: is no ordinary file; choose another name")
            if not force:
                raise AdhereError(f"{path}: exists; choose another name or add --force")
        if os.path.islink(path) and not force:
            raise AdhereError(f"{path}: is a link to a file that does not exist; choose another name or add --force")
        try:
            trial.touch(exist_ok=False)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise AdhereError(f"{path}: cannot be written ({error.strerror}); choose another name or folder") from error


@contextmanager
def staged(contents: Mapping[Path, Callable[[IO[bytes]], Any]]) -> Iterator[Callable[[], None]]:
    """Write every file under a temporary name. What is yielded makes all of them appear; without it, none does.

    Raises `AdhereError` when one cannot be written or renamed; then all is as it was.
    """
    parts = {path: _beside(path) for path in contents}
    olds = {path: _beside(path) for path in list(contents)[:-1]}  # after the last one nothing can fail

    def commit() -> None:
        with ExitStack() as undo:
            for path, part in parts.items():
                with _explained(path):
                    if path in olds and path.is_file():
                        os.replace(path, olds[path])
                        undo.callback(os.replace, olds[path], path)
                    os.replace(part, path)
                    undo.callback(os.replace, path, part)
            undo.pop_all()
        for old in olds.values():
            old.unlink(missing_ok=True)

    try:
        for path, write in contents.items():
            with _explained(path), open(parts[path], "xb") as file:
                write(file)
        yield commit
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)  # also after KeyboardInterrupt


def _beside(path: Path) -> Path:
    """A new name in the same folder, where a rename is atomic."""
    return path.with_name(f".adhere-{secrets.token_hex(8)}.part")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        mend = "check the space left and the size its format allows"
        raise AdhereError(f"nothing was written, as {path} could not be ({reason}); {mend}") from error
