"""Atomic writing: a file is written completely or not at all, and several files appear together or not at all.

Each file is first written under a temporary name in its own folder and then renamed:

    check_writable(path)                           # before the work: refuse a path that could not be written after it
    with staged_writes({path: write}) as commit:   # after the work: every file is written under its temporary name
        commit()                                   # all files get their final names

A path that begins with `~` is expanded to the user's home folder.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from adhere.errors import AdhereError


def check_writable(path: Path, force: bool = False) -> None:
    """Check that a file can be written, before the work whose result it will hold.

    A temporary file is created in the folder and removed again, because permission bits are not reliable: root, for
    example, may write files whatever they say.

    Args:
        path: The file to write later.
        force: Whether an existing file may be replaced.

    Raises:
        AdhereError: The path is a folder, a device or a pipe, or it exists and `force` is False; or its folder does not
            exist or does not accept a file of this name.
    """
    path = _expand_home(path)
    if os.path.isdir(path):
        raise AdhereError(f"{path}: is a folder; give a file name in it")
    if not os.path.isdir(path.parent):
        raise AdhereError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    try:
        _check_replaceable(path, force)
        _create_and_remove(_temporary_path(path))
    except OSError as error:
        raise AdhereError(f"{path}: cannot be written ({error.strerror}); choose another name or folder") from error


@contextmanager
def staged_writes(contents: Mapping[Path, Callable[[IO[bytes]], Any]]) -> Iterator[Callable[[], None]]:
    """Write files under temporary names and yield the function that renames all of them to their final names.

    When the context ends without a call of that function, no file appears.

    Args:
        contents: For each path, a function that writes the contents to a binary file object.

    Yields:
        A function without arguments. It renames all files, or none if one of them cannot be renamed.

    Raises:
        AdhereError: A file cannot be written or renamed. Every existing file is then as before.
    """
    writers = {_expand_home(path): write for path, write in contents.items()}
    temporary = {path: _temporary_path(path) for path in writers}
    try:
        for path, write in writers.items():
            with _as_adhere_error(path), open(temporary[path], "xb") as file:
                write(file)
        yield partial(_rename_all, temporary)
    finally:
        for part in temporary.values():
            part.unlink(missing_ok=True)  # also after KeyboardInterrupt


def _rename_all(temporary: Mapping[Path, Path]) -> None:
    """Rename each temporary file, `temporary[path]`, to its `path`; undo all renames if one fails."""
    backups = {path: _temporary_path(path) for path in list(temporary)[:-1]}  # nothing can fail after the last rename
    with ExitStack() as undo:
        for path, part in temporary.items():
            with _as_adhere_error(path):
                if path in backups and path.is_file():
                    os.replace(path, backups[path])
                    undo.callback(os.replace, backups[path], path)
                os.replace(part, path)
                undo.callback(os.replace, path, part)
        undo.pop_all()
    for backup in backups.values():
        backup.unlink(missing_ok=True)


def _check_replaceable(path: Path, force: bool) -> None:
    """Raise AdhereError for an existing path that is no regular file or, unless `force`, for any existing path."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AdhereError(f"{path}: is not a regular file; choose another name")
        if not force:
            raise AdhereError(f"{path}: exists; choose another name or add --force")
    if os.path.islink(path) and not force:
        raise AdhereError(f"{path}: is a link to a file that does not exist; choose another name or add --force")


def _create_and_remove(path: Path) -> None:
    try:
        path.touch(exist_ok=False)
    finally:
        path.unlink(missing_ok=True)


def _expand_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, it keeps `~name` if no user has this name


def _temporary_path(path: Path) -> Path:
    """A new name in the same folder, because a rename is atomic only within a file system."""
    return path.with_name(f".adhere-{secrets.token_hex(8)}.part")


@contextmanager
def _as_adhere_error(path: Path) -> Iterator[None]:
    """Convert errors of writing `path` to AdhereError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        hint = "check the free disk space and the largest size that the format allows"
        raise AdhereError(f"nothing was written, as {path} could not be ({reason}); {hint}") from error
