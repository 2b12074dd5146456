"""Atomic writing: files appear complete and together, or not at all."""

import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adhere.errors import AdhereError
from adhere.io import _atomic
from adhere.io._atomic import check_writable, staged_writes
from tests.picture_files import refusal


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def writer(data: bytes):
    return lambda file: file.write(data)


def write_half_then_raise(error: BaseException, file: object) -> None:
    file.write(b"half a file")  # pyright: ignore[reportAttributeAccessIssue]
    raise error


def test_no_file_appears_before_the_commit_and_all_after_it(tmp_path):
    (tmp_path / "b").write_bytes(b"old")
    with staged_writes({tmp_path / "a": writer(b"1"), tmp_path / "b": writer(b"2")}, force=True) as commit:
        visible = {name: data for name, data in contents_of(tmp_path).items() if not name.startswith(".")}
        assert visible == {"b": b"old"}
        commit()
    assert contents_of(tmp_path) == {"a": b"1", "b": b"2"}


def test_no_file_appears_without_a_commit(tmp_path):
    with staged_writes({tmp_path / "a": writer(b"1")}):
        pass
    assert contents_of(tmp_path) == {}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("two\nlines"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("at", ["a", "b"])
def test_existing_files_are_unchanged_when_one_file_cannot_be_written(tmp_path, error, at):
    (tmp_path / "a").write_bytes(b"old")
    writers = {
        tmp_path / name: partial(write_half_then_raise, error) if name == at else writer(b"new") for name in ("a", "b")
    }
    with pytest.raises((AdhereError, KeyboardInterrupt)) as caught, staged_writes(writers):
        raise AssertionError("the files were staged")
    if not isinstance(error, KeyboardInterrupt):
        reason = "No space left on device" if isinstance(error, OSError) else "two lines"
        assert str(caught.value).startswith(f"nothing was written, as {tmp_path / at} could not be ({reason}); ")
    assert contents_of(tmp_path) == {"a": b"old"}


@given(st.sets(st.sampled_from("abc")), st.integers(0, 2))
def test_all_renames_are_undone_when_one_fails(tmp_path_factory, existing, at):
    folder = tmp_path_factory.mktemp("folder")
    for name in existing:
        (folder / name).write_bytes(b"old")
    blocked = folder / "abc"[at]
    with staged_writes({folder / name: writer(name.encode()) for name in "abc"}, force=True) as commit:
        blocked.unlink(missing_ok=True)
        blocked.mkdir()  # no file can be renamed to a folder's name
        (blocked / "full").touch()
        with pytest.raises(AdhereError, match="nothing was written"):
            commit()
    remaining = {path.name: path.read_bytes() for path in folder.iterdir() if path != blocked}
    assert remaining == dict.fromkeys(existing - {blocked.name}, b"old")
    assert (blocked / "full").exists()


def test_check_writable_refuses_unusable_paths_and_leaves_no_file(tmp_path):
    taken = tmp_path / "taken"
    taken.write_bytes(b"old")
    assert "is a folder" in refusal(check_writable, tmp_path, force=True)
    assert "does not exist" in refusal(check_writable, tmp_path / "none" / "a")
    assert "does not exist" in refusal(check_writable, taken / "a")
    assert "exists; choose another name or add --force" in refusal(check_writable, taken)
    assert "File name too long" in refusal(check_writable, tmp_path / ("n" * 300))
    check_writable(taken, force=True)
    check_writable(tmp_path / "new")
    assert contents_of(tmp_path) == {"taken": b"old"}


def test_check_writable_does_not_rely_on_permission_bits(tmp_path, monkeypatch):
    if os.access("/proc", os.W_OK):  # for root, although no file can be created there
        assert "cannot be written" in refusal(check_writable, Path("/proc/new"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # the opposite case
    check_writable(tmp_path / "new")


def test_check_writable_refuses_pipes_even_with_force(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(check_writable, tmp_path / "pipe", force=True)


@pytest.fixture(params=["hard links", "no hard links"])
def hard_links(request, monkeypatch):
    """Run a test also as on a file system without hard links."""

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("hard_links")
def test_a_file_that_another_process_has_made_meanwhile_is_not_replaced(tmp_path):
    with staged_writes({tmp_path / "a": writer(b"1"), tmp_path / "b": writer(b"2")}) as commit:
        (tmp_path / "b").write_bytes(b"theirs")
        message = refusal(commit)
    assert f"nothing was written, as {tmp_path / 'b'} exists by now; choose another name or add --force" in message
    assert contents_of(tmp_path) == {"b": b"theirs"}


@pytest.mark.usefixtures("hard_links")
def test_a_file_exists_under_its_name_at_any_moment_while_it_is_replaced(tmp_path):
    """A process that is killed between two system calls leaves the old file or the new one."""
    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    seen: list[tuple[bytes, bytes]] = []
    is_watching = False

    def watch(event: str, _: object) -> None:  # a hook cannot be removed
        nonlocal is_watching
        if is_watching and event.startswith(("os.", "open")):
            is_watching = False  # reading raises events, too
            seen.append(((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()))
            is_watching = True

    sys.addaudithook(watch)
    with staged_writes({tmp_path / name: writer(b"new") for name in "ab"}, force=True) as commit:
        is_watching = True
        commit()
        is_watching = False
    assert seen[0] == (b"old", b"old")
    assert (b"new", b"old") in seen
    assert contents_of(tmp_path) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    with staged_writes({tmp_path / "a": writer(b"new")}, force=True) as commit:
        commit()
    assert contents_of(tmp_path) == {"a": b"new"}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_with_force(tmp_path, exists):
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other/target")
    if exists:
        (tmp_path / "other" / "target").write_bytes(b"old")
    check_writable(tmp_path / "link", force=True)
    with staged_writes({tmp_path / "link": writer(b"new")}, force=True) as commit:
        commit()
    assert os.readlink(tmp_path / "link") == "other/target"
    assert contents_of(tmp_path / "other") == {"target": b"new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from adhere.io._atomic import staged_writes

def stop(file):
    file.write(b"half a file")
    print(flush=True)
    sys.stdin.read(1)

with staged_writes({Path(sys.argv[1]): stop}):
    pass
"""


def test_files_that_a_killed_process_has_left_are_removed_unless_another_process_writes_them(tmp_path):
    commands = [[sys.executable, "-c", KILLED, str(tmp_path / name)] for name in "ab"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(commands[0], **streams) as running, subprocess.Popen(commands[1], **streams) as killed:
        for process in (running, killed):
            assert process.stdout is not None
            process.stdout.readline()  # it has begun to write
        (tmp_path / ".adhere-notes.part").write_bytes(b"not ours")
        assert len(contents_of(tmp_path)) == 3
        check_writable(tmp_path / "c")
        assert len(contents_of(tmp_path)) == 3
        killed.kill()
        killed.wait()
        assert len(contents_of(tmp_path)) == 3
        check_writable(tmp_path / "c")
        assert len(contents_of(tmp_path)) == 2
        running.communicate(b"\n")
        assert running.returncode == 0
    assert contents_of(tmp_path) == {".adhere-notes.part": b"not ours"}


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, removed = _atomic._lock, []

    def lock_too_late(file, *options):
        if not removed:
            removed.append(Path(file.name).unlink())
        lock(file, *options)

    monkeypatch.setattr(_atomic, "_lock", lock_too_late)
    with staged_writes({tmp_path / "a": writer(b"1")}) as commit:
        commit()
    assert removed
    assert contents_of(tmp_path) == {"a": b"1"}


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_writable(Path("~/new"))
    with staged_writes({Path("~/new"): writer(b"1")}) as commit:
        commit()
    assert contents_of(tmp_path) == {"new": b"1"}
    assert str(tmp_path / "new") in refusal(check_writable, Path("~/new"))


def test_a_tilde_that_names_no_user_is_part_of_the_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged_writes({Path("~no-such-user.png"): writer(b"1")}) as commit:
        commit()
    assert contents_of(tmp_path) == {"~no-such-user.png": b"1"}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are those of POSIX")
@pytest.mark.parametrize("size", [100, 100_000])  # below the size of a buffer, which fails once more when it is closed
def test_a_file_that_does_not_fit_is_one_error_and_leaves_nothing(tmp_path, size):
    """Files of this process are limited to 50 bytes meanwhile, which writing to a full disk looks like."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "a").write_bytes(b"old")

    def stage() -> None:
        with staged_writes({tmp_path / "a": lambda file: file.write(b"x" * size)}, force=True) as commit:
            commit()

    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        message = refusal(stage)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"nothing was written, as {tmp_path / 'a'} could not be (File too large)")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
