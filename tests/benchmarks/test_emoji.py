"""The emoji benchmark on a tiny Stable Diffusion: what it counts, that batches and resumed runs change nothing."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import examples.demo
from adhere.core.solvers import METHODS
from adhere.pipeline import Conditioning
from benchmarks import emoji, held_out, peak
from benchmarks.emoji import ALL, Benchmark, Results
from benchmarks.emoji_tasks import TASKS, can_run, method_at, quiet_pipeline, run
from benchmarks.tables import load
from benchmarks.sheets import cut, label, sheet
from tests.core.laws import backward_passes, evaluations
from tests.tiny_latent_models import tiny_sd
from training.emoji.autoencoder import to_pictures, to_tensor
from training.emoji.data import base_of, held_out_bases


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_sd(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return quiet_pipeline(str(folder))


@pytest.fixture(scope="module")
def x():
    return to_tensor(held_out.load(2)[1])


def benchmark(pipe, path, items=3):
    return Benchmark(pipe, Results(path, [item.name for item in held_out.load(items)[0]]), items, guidance=3.0)


# --- the data


def test_items_were_held_out_and_the_first_ten_are_of_ten_kinds():
    items, pictures = held_out.load()
    assert len(items) == len({item.name for item in items}) == held_out.COUNT
    assert pictures.shape == (held_out.COUNT, 64, 64, 3)
    assert {base_of(item.code) for item in items} <= held_out_bases()
    assert {item.licence for item in items} == set(held_out.LICENCES.values())
    lines = held_out.HELD_OUT.read_text(encoding="utf-8").splitlines()
    kind = {line.split()[0]: line[line.rindex("(") :] for line in lines if not line.startswith("#")}
    assert len({kind[base_of(item.code)] for item in items[:10]}) == 10
    with pytest.raises(ValueError, match="1 to 100"):
        held_out.load(101)


def test_choosing_takes_turns_over_vendors_and_the_plainest_drawing():
    line = lambda base: {"base": base}  # noqa: E731
    bases = [text.split()[0] for text in held_out.HELD_OUT.read_text(encoding="utf-8").splitlines()[1:]]
    rows = [
        line(base) | {"vendor": vendor, "code": code}
        for base in bases
        for vendor in held_out.LICENCES
        for code in (f"{base}-1f3fb", base)
    ]
    taken = [rows[i] for i in held_out.chosen(rows)]
    assert sorted(row["base"] for row in taken) == sorted(bases)
    assert all(row["code"] == row["base"] for row in taken)
    assert [row["vendor"] for row in taken[:3]] == sorted(held_out.LICENCES)


def test_sheets_can_be_cut_again():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    image = sheet([pictures[:3], pictures[3:]])
    assert image.size == (24, 16)
    assert np.array_equal(cut(image, 8, 5), pictures)
    assert (cut(image, 8, 6)[5] == 255).all()
    assert sheet([[label("two words", 8, 30), *pictures[:2]]], scale=2).size == (92, 16)


MATCHING = ("moment_matching", "moment_matching_calm")  # whose levels cost more where there is more noise

# --- the tasks and the methods


@pytest.mark.parametrize("task", TASKS)
def test_the_original_meets_what_is_asked_of_it(task, x):
    asked = TASKS[task](x)
    assert asked.shown.shape == x.shape
    assert (asked.constraint.error(x) < 0.1).all()
    assert (asked.constraint.error(-x) > asked.constraint.error(x)).all()


@pytest.mark.parametrize("nfe", [40, 220])
@pytest.mark.parametrize("name", sorted(set(emoji.DEFAULT_METHODS) - set(MATCHING)))
def test_methods_at_a_budget_cost_it(pipe, x, name, nfe):
    """Counted on a run of fewer levels, which cost the same each."""
    method, work = method_at(name, nfe)
    levels = math.gcd(method.steps, 2)
    _, calls, _ = run(pipe, TASKS["half"](x).constraint, replace(method, steps=levels), Conditioning(2), seeds(2))
    assert calls * method.steps / levels == pytest.approx(nfe, rel=0.05)
    assert (work > nfe) == (name == "dps")


@pytest.mark.parametrize("name", MATCHING)
@pytest.mark.parametrize(("task", "nfe"), [("half", 24), ("half", 40), ("silhouette", 24)])
def test_levels_of_unequal_cost_fill_the_budget(pipe, x, name, task, nfe):
    """No evaluation more, and no room for another level."""
    constraint = TASKS[task](x).constraint
    method, work = method_at(name, nfe, pipe.schedule())
    more = replace(method, steps=method.steps + 1)
    calls = [run(pipe, constraint, each, Conditioning(2), seeds(2))[1] for each in (method, more)]
    assert calls[0] == work <= nfe < calls[1]


@pytest.mark.parametrize("nfe", [24, 40, 220])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"newton_exact"}))
def test_budgets_follow_the_laws(name, nfe):
    method, work = method_at(name, nfe)
    calls = evaluations(method, method.steps)
    assert calls == pytest.approx(nfe, rel=0.1)
    assert work == calls + 2 * backward_passes(method.solver, method.steps)


def seeds(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_projection_is_for_masks_and_moment_matching_for_measurements(x):
    able = {task: {name for name in METHODS if can_run(name, TASKS[task](x).constraint)} for task in TASKS}
    measurable = set(METHODS) - {"newton_exact"}
    assert able["silhouette"] == able["style"] == measurable - {"ddnm", "repaint", "ding", "psld"}
    assert able["x4"] == able["layout"] == measurable - {"ddnm", "repaint", "ding"}
    assert able["half"] == able["box"] == able["free_form"] == measurable - {"psld"}


# --- the runs


@pytest.mark.parametrize("task", ["half", "x8", "style"])
def test_a_batch_equals_singles(pipe, tmp_path, task):
    together, alone = benchmark(pipe, tmp_path / "a.json"), benchmark(pipe, tmp_path / "b.json")
    together.measure(task, "inexact_newton", 10, prompted=True, batch=3)
    alone.measure(task, "inexact_newton", 10, prompted=True, batch=1)
    for a, b in zip(together.results.rows, alone.results.rows, strict=True):
        assert (a.task, a.item, a.method) == (b.task, b.item, b.method)
        assert a.scores == pytest.approx(b.scores, rel=1e-2)
    pictures = [one.results.pictures(f"{task}, prompt", "inexact_newton @ 10").astype(int) for one in (together, alone)]
    assert abs(pictures[0] - pictures[1]).max() <= 2


def test_what_is_there_is_not_run_again(pipe, tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    measure = lambda items: benchmark(pipe, path, items).measure("half", "ddnm", 2, prompted=False, batch=2)  # noqa: E731
    measure(2)
    first = load(path)[0]
    measure(3)
    assert load(path)[0][:2] == first
    assert [row.item for row in load(path)[0]] == [item.name for item in held_out.load(3)[0]]
    monkeypatch.setattr(emoji, "run", None)
    measure(3)


def test_known_pixels_are_put_back_before_scoring(pipe, tmp_path, x):
    one = benchmark(pipe, tmp_path / "out.json", 2)
    asked = TASKS["half"](x)
    pictures, scores = one.score(
        asked, x, torch.where(asked.unknown == 1, x, -x)
    )  # right where unknown, wrong elsewhere
    assert np.array_equal(pictures, to_pictures(x))
    assert scores[0]["residual"] > 0.5
    assert scores[0]["psnr"] == math.inf
    assert scores[0]["feature_distance"] == 0
    _, scores = one.score(asked, x, x + 0.2 * (asked.unknown - 0.5).sign() * (1 - 2 * (x > 0).float()))
    assert scores[0]["psnr"] == pytest.approx(20, abs=0.2)  # off by a tenth of the range


def test_the_nearest_training_picture_is_found_by_the_unknown_region_alone():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (2100, 8, 8, 3), np.uint8)
    where = np.zeros((8, 8), bool)
    where[:, 4:] = True
    made = train[[2050, 3]].copy()
    made[:, ~where] = 0
    made[0, 0, 7] ^= 1
    assert emoji.nearest_pictures(made, train, where) == [2050, 3]


def test_the_command_writes_rows_summaries_and_a_sheet(folder, tmp_path, monkeypatch, capsys):
    out, picture = tmp_path / "out.json", tmp_path / "sheet.png"
    options = ["--items", "2", "--tasks", "half", "silhouette", "--methods", "ddnm", "mpgd", "--nfe", "5"]
    arguments = ["emoji", "--json", str(out), "--sheet", str(picture), *options, "--model", str(folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    emoji.main()
    assert "### silhouette" in capsys.readouterr().out
    rows, _ = load(out)
    summaries = [(row.task, row.method) for row in rows if row.item == ALL]
    assert summaries == [("half", "ddnm @ 5"), ("half", "mpgd @ 5"), ("silhouette", "mpgd @ 5")]  # ddnm: no losses
    assert all(row.scores["frechet"] > 0 for row in rows if row.item == ALL)
    assert len(rows) == 2 * 3 + 3
    with Image.open(picture) as image:
        assert image.size == (150 + 2 * 64, (4 + 3) * 64)
    emoji.main()  # nothing is left to run
    assert [row for row in load(out)[0] if row.item != ALL] == [row for row in rows if row.item != ALL]


def test_peaks_are_measured_in_a_process_of_their_own(folder):
    row = peak.in_a_fresh_process(peak.measure, str(folder), "t", "half", "inexact_newton", 5, 1, False, 1)
    assert row.nfe == 5
    assert 0 < row.scores["working_mb"] < row.peak_mb < 4000
    assert row.scores["residual"] > 0


def test_the_demo_shows_given_completed_and_original(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(examples.demo, "EMOJI", 2)
    examples.demo.emoji(tmp_path, str(folder))
    image = np.asarray(Image.open(tmp_path / "emoji.png"))[::2, ::2]
    originals = np.concatenate(held_out.load(2)[1], axis=1)
    given, completed, original = (image[64 * i : 64 * i + 64, :128] for i in range(3))
    assert np.array_equal(original, originals)
    assert np.array_equal(completed[:, :32], originals[:, :32])  # known pixels, bit for bit
    assert not np.array_equal(completed, originals)
    assert (given[:, 32:64] == 200).all()
