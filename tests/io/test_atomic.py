"""Atomic writing: files appear complete and together, or not at all."""

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adhere.errors import AdhereError
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
