"""The script of the full-size benchmark, rehearsed with tiny models, and the sizes of the published ones."""

import math
import sys

import pytest
import torch
from diffusers.utils.logging import get_verbosity, set_verbosity

from benchmarks import full_size
from benchmarks.full_size import MODELS, Settings, build, measure, merge, reason_not_built, skipped, trainings_paused
from benchmarks.tables import Row, load

TINY = Settings("cpu", tiny=True, steps=1)
any_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def keep_verbosity():
    verbosity = get_verbosity()
    yield
    set_verbosity(verbosity)


@pytest.mark.parametrize(
    ("name", "network", "vae"),
    [
        ("sd15", 859_520_964, 83_653_863),
        ("sdxl", 2_567_463_684, 83_653_863),
        ("sd3", 2_243_171_520, 83_819_683),  # and 226 M in the table of positions
        ("flux", 11_901_408_320, 83_819_683),
    ],
)
def test_the_published_numbers_of_weights(name, network, vae):
    with torch.device("meta"):
        modules = MODELS[name].build_network(), MODELS[name].build_vae()
    assert [sum(p.numel() for p in module.parameters()) for module in modules] == [network, vae]


@any_model
def test_every_model_is_built_in_half_precision(name, monkeypatch):
    monkeypatch.setattr(Settings, "dtype", lambda self, model: torch.bfloat16)
    pipe = build(MODELS[name], TINY)
    assert {p.dtype for part in (pipe.vae, getattr(pipe, pipe.network)) for p in part.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    rows = list(measure(name, ["plain", "moment_matching"], TINY))
    assert [row.method for row in rows] == ["plain @ 1", f"moment_matching @ {rows[1].nfe}"]


def test_the_script(tmp_path, monkeypatch, capsys):
    path = tmp_path / "out.json"
    monkeypatch.setattr(full_size, "measure_in_new_process", measure)
    monkeypatch.setattr(sys, "argv", ["full_size", "--json", str(path), "--device", "cpu", "--tiny", "--steps", "1"])
    full_size.main()
    rows, _ = load(path)
    tasks = {name: TINY.title(model) for name, model in MODELS.items()}
    assert {row.task for row in rows} == set(tasks.values())
    assert all(row.peak_mb is not None and row.peak_mb > 0 and row.seconds > 0 for row in rows)
    for name, task in tasks.items():
        found = {row.method.split(" @ ")[0]: row for row in rows if row.task == task and not row.method.endswith("x8")}
        assert set(found) == set(full_size.RUNS) - ({"x8"} if name == "sd15" else {"x8", "dps"})
        assert sum(row.method.endswith(", x8") for row in rows if row.task == task) == 1
        own, newton = (found[method].scores["times_plain"] for method in ("moment_matching", "inexact_newton"))
        assert found["moment_matching"].scores["times_newton"] == pytest.approx(own / newton)
        assert ("times_dps" in found["moment_matching"].scores) == (name == "sd15")
    assert "| times inexact_newton |" in capsys.readouterr().out


def test_a_model_that_does_not_fit_is_one_row_with_the_reason(monkeypatch):
    monkeypatch.setattr(full_size, "free_bytes", lambda device: 8e9)
    assert reason_not_built(MODELS["sd15"], Settings("cuda")) is None
    (row,) = measure("flux", ["plain"], Settings("cpu"))
    assert row.method.startswith("all methods: skipped, needs 56.")
    assert row.method.endswith(" GB, 8.0 GB are free")
    assert math.isnan(row.seconds)


def test_rows_that_were_skipped_are_replaced():
    plain = Row("a", "noise", "plain @ 20", 0, 20, 1.0)
    old = [skipped("a", "all methods", "no memory"), skipped("b", "all methods", "no memory"), plain]
    new = Row("a", "noise", "ddnm @ 50", 0, 50, 2.0, scores={"times_plain": 2.0})
    assert merge(old, [new]) == [new, old[1], plain]


def test_trainings_are_paused_and_a_pause_of_somebody_else_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "PAUSE_SECONDS", 0)
    pauses = [tmp_path / "photo" / name / "PAUSE" for name in ("one", "two")]
    for pause in pauses:
        pause.parent.mkdir(parents=True)
        pause.with_name("log.jsonl").touch()
    pauses[1].touch()
    with pytest.raises(KeyboardInterrupt), trainings_paused(tmp_path):
        assert all(pause.exists() for pause in pauses)
        raise KeyboardInterrupt
    assert [pause.exists() for pause in pauses] == [False, True]
