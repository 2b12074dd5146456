"""Damaged files and signals at seeded points, a few of those of benchmarks/faults.py."""

import random
import signal

import pytest

from benchmarks import faults


def test_damaged_files_give_one_line_and_leave_no_file(tmp_path):
    outcome = faults.run_files(40, 215, tmp_path)
    assert outcome.faults == []
    assert sum(outcome.endings.values()) == 40
    assert {code for _, code in outcome.endings} == {0, 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    faults.save_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def points(folder) -> list[int]:
    """Return the first point, one while modules are imported, and one while files are written."""
    events = faults.count_events(folder)
    return [1, *faults.points_of(events, 2, random.Random(1))]


@pytest.mark.parametrize("name", faults.SIGNALS)
def test_a_signal_leaves_no_file_and_one_line(folder, points, name):
    at = points if name in ("INT", "KILL") else points[1:2]
    assert [fault for point in at if (fault := faults.run_signal(name, point, folder))] == []


def test_sighup_is_ignored_under_nohup(folder, points):
    result = faults.command_at(signal.SIGHUP, points[1], folder, "nohup")
    assert result.returncode == 0, result.stderr
    (folder / "report.json").unlink()
    (folder / "out.png").unlink()


def test_faults_are_noticed(tmp_path, monkeypatch):
    """A command that leaves a file, prints a traceback or writes half a picture does not pass."""
    outcome = faults.Outcome()
    ways = {
        "ValueError": ValueError("a bug"),
        "have changed": (2, "adhere: no\n", "left.part"),
        "not one line": (2, "adhere: no\nagain\n", None),
        "exit code 0, no": (0, "", None),
    }
    for message, way in ways.items():

        def command(_, way=way):
            if isinstance(way, Exception):
                raise way
            code, stderr, file = way
            if file is not None:
                (tmp_path / file).write_bytes(b"")
            return code, "", stderr

        monkeypatch.setattr(faults, "run_command", command)
        assert message in faults._fault("photo", [], tmp_path, outcome)
