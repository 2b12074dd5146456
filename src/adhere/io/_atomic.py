"""Atomic writing: a file is written completely or not at all, and several files appear together or not at all.

Each file is first written under a temporary name in its own folder and then renamed:

    check_writable(path)                           # before the work: refuse a path that could not be written after it
    with staged_writes({path: write}) as commit:   # after the work: every file is written under its temporary name
        commit()                                   # all files get their final names

A process that is killed leaves temporary files. Each is locked by the process that writes it, so that the next
`check_writable` in the folder can remove those that no running process holds. A path that begins with `~` is expanded
to the user's home folder. A file that is replaced keeps its mode, and a link keeps pointing to it.
"""

import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from adhere.errors import AdhereError

if sys.platform != "win32":
    import fcntl

_TEMPORARY_NAME = re.compile(r"\.adhere-[0-9a-f]{16}\.part")
_unfinished: set[Path] = set()  # temporary files of this process


def check_writable(path: Path, force: bool = False) -> None:
    """Check that a file can be written, before the work whose result it will hold.

    A temporary file is created in the folder and removed again, because permission bits are not reliable: root, for
    example, may write files regardless of them. Temporary files that killed processes have left there are removed.

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
        target = _target(path, force)
        _remove_leftovers(target.parent)
        with _temporary_file(target):
            pass
    except OSError as error:
        raise AdhereError(f"{path}: cannot be written ({error.strerror}); choose another name or folder") from error


@contextmanager
def staged_writes(
    contents: Mapping[Path, Callable[[IO[bytes]], Any]], force: bool = False
) -> Iterator[Callable[[], None]]:
    """Write files under temporary names and yield the function that renames all of them to their final names.

    When the context ends without a call of that function, no file appears.

    Args:
        contents: For each path, a function that writes the contents to a binary file object. They are called in order.
        force: Whether existing files may be replaced.

    Yields:
        A function without arguments. It renames all files, or none if one of them cannot be renamed.

    Raises:
        AdhereError: A file cannot be written or renamed, or it exists by now and `force` is False. Every existing file
            is then as before.
    """
    temporary: dict[Path, Path] = {}
    with ExitStack() as files:
        for path, write in contents.items():
            target = _target(path, force)
            with _as_write_error(target):
                part, file = files.enter_context(_temporary_file(target))
                if force:
                    with suppress(OSError):  # the target is new, or the file system has no modes
                        shutil.copymode(target, part)
                write(file)
                file.flush()
                os.fsync(file.fileno())  # some file systems notice only here that the disk is full
                if sys.platform == "win32":
                    file.close()  # Windows renames no open files
            temporary[target] = part
        yield partial(_rename_all, temporary, force)


def remove_unfinished() -> None:
    """Remove the temporary files of this process, which is about to end without unwinding."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink()


def _rename_all(temporary: Mapping[Path, Path], force: bool) -> None:
    """Rename each temporary file, `temporary[path]`, to its `path`; undo all renames if one fails."""
    *_, last = temporary  # no rename can fail after the last one
    with ExitStack() as backups, ExitStack() as undo:
        for path, part in temporary.items():
            with _as_write_error(path):
                restore = partial(path.unlink, missing_ok=True)
                if not force:
                    _rename_to_new_name(part, path)
                else:
                    if path.is_file() and path != last:
                        restore = partial(os.replace, backups.enter_context(_backup(path)), path)
                    os.replace(part, path)
                undo.callback(restore)
        undo.pop_all()


def _rename_to_new_name(part: Path, path: Path) -> None:
    """Rename a file; raise AdhereError if the new name exists, even if another process has made it just now."""
    try:
        os.link(part, path)  # unlike a rename, it never replaces a file
    except FileExistsError as error:
        raise _exists_by_now(path) from error
    except OSError:  # the file system has no hard links
        if os.path.lexists(path):
            raise _exists_by_now(path) from None
        os.replace(part, path)


def _exists_by_now(path: Path) -> AdhereError:
    return AdhereError(f"nothing was written, as {path} exists by now; choose another name or add --force")


@contextmanager
def _backup(path: Path) -> Iterator[Path]:
    """Yield a second name of a file, or a copy where the file system has no hard links; removed at the end."""
    with ExitStack() as stack:
        with suppress(OSError):  # a file that is not readable cannot be locked
            _lock(stack.enter_context(open(path, "rb")), wait=False)  # else another process may remove the second name
        backup = stack.enter_context(_temporary_name(path))
        try:
            os.link(path, backup)
        except OSError:
            shutil.copy2(path, backup)
        yield backup


@contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new file in the folder of `path`, locked by this process, and its name; removed at the end."""
    with _temporary_name(path) as part, ExitStack() as stack:
        while True:
            file = open(part, "x+b")  # noqa: SIM115
            stack.callback(_close, file)
            _lock(file)
            if part.exists():
                break  # otherwise another process has removed it as a leftover before it was locked
        yield part, file


def _close(file: IO[bytes]) -> None:
    """Close a file, and ignore the error of a full disk, which was reported when the file was flushed."""
    with suppress(OSError):
        file.close()


@contextmanager
def _temporary_name(path: Path) -> Iterator[Path]:
    """Yield a new name in the folder of `path`, as renames are atomic only within a file system; removed at the end."""
    part = path.with_name(f".adhere-{secrets.token_hex(8)}.part")
    _unfinished.add(part)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)  # also after KeyboardInterrupt
        _unfinished.discard(part)


def _lock(file: IO[bytes], wait: bool = True) -> None:
    """Lock a file until it is closed, so that `_remove_leftovers` of another process does not remove it."""
    if sys.platform != "win32":
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that no running process has locked."""
    if sys.platform == "win32":
        return
    for part in filter(_TEMPORARY_NAME.fullmatch, os.listdir(folder)):
        with suppress(OSError), open(folder / part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another process writes the file
            (folder / part).unlink()


def _check_replaceable(path: Path, force: bool) -> None:
    """Raise AdhereError for an existing path that is no regular file or, unless `force`, for any existing path."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AdhereError(f"{path}: is not a regular file; choose another name")
        if not force:
            raise AdhereError(f"{path}: exists; choose another name or add --force")
    if os.path.islink(path) and not force:
        raise AdhereError(f"{path}: is a link to a file that does not exist; choose another name or add --force")


def _target(path: Path, force: bool) -> Path:
    """Return the file to write; if the path is a link and `force` is set, this is the file that the link points to."""
    path = _expand_home(path)
    return Path(os.path.realpath(path)) if force and path.is_symlink() else path


def _expand_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, it keeps `~name` if no user has this name


@contextmanager
def _as_write_error(path: Path) -> Iterator[None]:
    """Return a context that converts errors of writing `path` to AdhereError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        hint = "check the free disk space and the largest size that the format allows"
        raise AdhereError(f"nothing was written, as {path} could not be ({reason}); {hint}") from error
