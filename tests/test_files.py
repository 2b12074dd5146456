import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adhere.errors import AdhereError
from adhere.files import check_writable, staged
from tests.picture_files import refusal


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(data: bytes):
    return lambda file: file.write(data)


def fails(error: type[BaseException] | BaseException, file: object) -> None:
    file.write(b"half a file")  # pyright: ignore[reportAttributeAccessIssue]
    raise error


def test_nothing_appears_before_the_commit_and_everything_after_it(tmp_path):
    (tmp_path / "b").write_bytes(b"old")
    with staged({tmp_path / "a": put(b"1"), tmp_path / "b": put(b"2")}) as commit:
        visible = {name: data for name, data in contents(tmp_path).items() if not name.startswith(".")}
        assert visible == {"b": b"old"}
        commit()
    assert contents(tmp_path) == {"a": b"1", "b": b"2"}


def test_without_a_commit_nothing_appears(tmp_path):
    with staged({tmp_path / "a": put(b"1")}):
        pass
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no\nway"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["a", "b"])
def test_a_file_that_cannot_be_written_leaves_all_as_it_was(tmp_path, error, at):
    (tmp_path / "a").write_bytes(b"old")
    writers = {tmp_path / name: partial(fails, error) if name == at else put(b"new") for name in ("a", "b")}
    with pytest.raises((AdhereError, KeyboardInterrupt)) as caught, staged(writers):
        raise AssertionError("it was staged")
    if not isinstance(error, KeyboardInterrupt):
        reason = "No space left on device" if isinstance(error, OSError) else "no way"
        assert str(caught.value).startswith(f"nothing was written, as {tmp_path / at} could not be ({reason}); ")
    assert contents(tmp_path) == {"a": b"old"}


@given(st.sets(st.sampled_from("abc")), st.integers(0, 2))
def test_a_file_that_cannot_be_renamed_takes_the_others_back(tmp_path_factory, existing, at):
    folder = tmp_path_factory.mktemp("folder")
    for name in existing:
        (folder / name).write_bytes(b"old")
    blocked = folder / "abc"[at]
    with staged({folder / name: put(name.encode()) for name in "abc"}) as commit:
        blocked.unlink(missing_ok=True)
        blocked.mkdir()  # no file can be renamed to a folder's name
        (blocked / "full").touch()
        with pytest.raises(AdhereError, match="nothing was written"):
            commit()
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path != blocked}
    assert left == dict.fromkeys(existing - {blocked.name}, b"old")
    assert (blocked / "full").exists()


def test_what_could_not_be_written_is_refused_before_and_nothing_is_left(tmp_path):
    taken = tmp_path / "taken"
    taken.write_bytes(b"precious")
    assert "is a folder" in refusal(check_writable, tmp_path, force=True)
    assert "does not exist" in refusal(check_writable, tmp_path / "none" / "a")
    assert "does not exist" in refusal(check_writable, taken / "a")
    assert "exists; choose another name or add --force" in refusal(check_writable, taken)
    assert "File name too long" in refusal(check_writable, tmp_path / ("n" * 300))
    check_writable(taken, force=True)
    check_writable(tmp_path / "new")
    assert contents(tmp_path) == {"taken": b"precious"}


def test_permissions_are_not_believed(tmp_path, monkeypatch):
    if os.access("/proc", os.W_OK):  # as for root: nothing can be created there all the same
        assert "cannot be written" in refusal(check_writable, Path("/proc/new"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # and the other way round
    check_writable(tmp_path / "new")


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in refusal(check_writable, tmp_path / "pipe", force=True)
