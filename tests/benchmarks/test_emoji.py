"""The emoji benchmark on a tiny Stable Diffusion: its tasks and budgets, and that batches and resumed runs agree."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from adhere.core import sampling
from adhere.core.presets import PRESETS
from adhere.pipelines.prompts import PromptInputs
from benchmarks import emoji, held_out, peak
from benchmarks.emoji import ALL, Benchmark, Results
from benchmarks.emoji_tasks import (
    SCHEDULE,
    TASKS,
    own_nfe,
    quiet_pipeline,
    reason_not_run,
    run,
    sampler_for_budget,
)
from benchmarks.grids import grid, label, split, to_tensor, to_uint8
from benchmarks.tables import Row, load, save
from tests.tiny_latent_models import tiny_sd
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
    return Benchmark(pipe, Results(path, [item.name for item in held_out.load(items)[0]]), items, guidance_scale=3.0)


def seeds(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


# --- the data


def test_items_are_held_out_and_the_first_ten_are_of_ten_kinds():
    items, pictures = held_out.load()
    assert len(items) == len({item.name for item in items}) == held_out.COUNT
    assert pictures.shape == (held_out.COUNT, 64, 64, 3)
    assert {base_of(item.code) for item in items} <= held_out_bases()
    assert {item.license for item in items} == set(held_out.LICENSES.values())
    lines = held_out.HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    kind = {line.split()[0]: line[line.rindex("(") :] for line in lines if not line.startswith("#")}
    assert len({kind[base_of(item.code)] for item in items[:10]}) == 10
    with pytest.raises(ValueError, match="1 to 100"):
        held_out.load(101)


def test_selection_alternates_vendors_and_takes_the_shortest_code():
    bases = [text.split()[0] for text in held_out.HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()[1:]]
    rows = [
        {"base": base, "vendor": vendor, "code": code}
        for base in bases
        for vendor in held_out.LICENSES
        for code in (f"{base}-1f3fb", base)
    ]
    selected = [rows[i] for i in held_out.select(rows)]
    assert sorted(row["base"] for row in selected) == sorted(bases)
    assert all(row["code"] == row["base"] for row in selected)
    assert [row["vendor"] for row in selected[:3]] == sorted(held_out.LICENSES)


def test_grids_can_be_split():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    image = grid([pictures[:3], pictures[3:]])
    assert image.size == (24, 16)
    assert np.array_equal(split(image, 8, 5), pictures)
    assert (split(image, 8, 6)[5] == 255).all()
    assert grid([[label("two words", 8, 30), *pictures[:2]]], scale=2).size == (92, 16)


# --- the tasks and the budgets


@pytest.mark.parametrize("task", TASKS)
def test_the_original_satisfies_each_constraint(task, x):
    emoji_task = TASKS[task](x)
    assert emoji_task.given.shape == x.shape
    assert (emoji_task.constraint.residual_norm(x) < 0.1).all()
    assert (emoji_task.constraint.residual_norm(-x) > emoji_task.constraint.residual_norm(x)).all()


@pytest.mark.parametrize("nfe", [40, 220])
@pytest.mark.parametrize("name", ["inexact_newton", "ddnm", "dps", "mpgd"])
def test_runs_take_the_budget(pipe, x, name, nfe):
    """The evaluations are counted in a run with fewer noise levels, each of which takes the same number."""
    sampler, work = sampler_for_budget(name, nfe)
    levels = math.gcd(sampler.num_steps, 2)
    constraint = TASKS["half"](x).constraint
    _, calls, _ = run(pipe, constraint, replace(sampler, num_steps=levels), PromptInputs(2), seeds(2))
    assert calls * sampler.num_steps / levels == pytest.approx(nfe, rel=0.05)
    assert (work > nfe) == (name == "dps")


@pytest.mark.parametrize(
    ("name", "nfe"), [("moment_matching", 12), ("moment_matching_fast", 8), ("moment_matching_posterior", 16)]
)
@pytest.mark.parametrize("task", ["half", "silhouette"])
def test_presets_run_unchanged_at_their_own_evaluations(pipe, x, name, nfe, task):
    assert own_nfe(name, pipe.schedule()) == nfe
    sampler, work = sampler_for_budget(name, nfe, pipe.schedule())
    assert sampler is PRESETS[name]
    assert run(pipe, TASKS[task](x).constraint, sampler, PromptInputs(2), seeds(2))[1] == work == nfe


def test_without_a_budget_the_own_evaluations_are_in_the_method(pipe, tmp_path):
    one = benchmark(pipe, tmp_path / "out.json", 1)
    one.measure("half", "moment_matching_fast", None, prompted=False, batch=1)
    assert [(row.method, row.nfe) for row in one.results.rows] == [("moment_matching_fast @ 8", 8)]


def test_the_temperature_of_the_model_is_used(pipe, x, monkeypatch):
    """A preset leaves its temperature to the model, so another temperature of the model changes the samples."""
    sampler, constraint = PRESETS["moment_matching_fast"], TASKS["half"](x).constraint
    samples = []
    for temperature in (1.0, 1.0, 0.5):
        monkeypatch.setattr(pipe, "temperature", temperature)
        samples.append(run(pipe, constraint, sampler, PromptInputs(2), seeds(2))[0])
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("nfe", [24, 40, 220])
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"newton_exact"}))
def test_budgets_are_met_by_the_stated_costs(name, nfe):
    sampler, work = sampler_for_budget(name, nfe)
    calls = sampler.evaluations(SCHEDULE)
    assert calls == pytest.approx(nfe, rel=0.1)
    assert work == calls + 2 * sampler.backward_passes(SCHEDULE)


@pytest.mark.parametrize(
    ("name", "nfe", "num_steps", "settings"),
    [
        ("moment_matching", 12, 12, {}),
        ("moment_matching", 40, 40, {}),
        ("moment_matching_fast", 8, 8, {}),
        ("moment_matching_posterior", 16, 8, {"jacobian_products": 2}),
        ("inexact_newton", 40, 8, {"num_iterations": 2, "step_size_start": 5.0, "step_size_end": 1.0}),
        ("inexact_newton", 100, 9, {"num_iterations": 5, "step_size_start": 0.5, "step_size_end": 0.1}),
        ("inexact_newton", 220, 20, {"num_iterations": 5, "step_size_start": 0.5, "step_size_end": 0.1}),
        ("dps", 40, 8, {"num_iterations": 4, "step_size_start": 5.0, "step_size_end": 1.0}),
        ("dps", 220, 20, {"num_iterations": 10, "step_size_start": 0.5, "step_size_end": 0.1}),
        ("mpgd", 40, 8, {"num_iterations": 4, "step_size_start": 1.5, "step_size_end": 0.3}),
        ("ddnm", 40, 40, {}),
        ("plain", 20, 20, {}),
    ],
)
def test_settings_are_those_of_the_published_tables(name, nfe, num_steps, settings):
    sampler, _ = sampler_for_budget(name, nfe)
    assert sampler.num_steps == num_steps
    assert {key: getattr(sampler.solver, key) for key in settings} == pytest.approx(settings)


def test_the_methods_of_each_task(pipe, x):
    constraints = {task: pipe.to_latent_constraint(TASKS[task](x).constraint) for task in TASKS}
    methods = {task: {name for name in PRESETS if not reason_not_run(name, c)} for task, c in constraints.items()}
    most = set(PRESETS) - {"newton_exact"}
    assert methods["silhouette"] == methods["style"] == most - {"ddnm", "repaint", "ding", "psld"}
    assert methods["x4"] == methods["layout"] == most - {"ddnm", "repaint", "ding"}
    assert methods["half"] == methods["box"] == methods["free_form"] == most - {"psld"}


# --- the runs

# On all code paths that were tried, a batch and single runs differ by 0.5 to 2 times the effect of `perturbed`. If the
# samples of a batch interact, they differ by at least 13 times.
MAX_RATIO = 6.0


def perturbed(initial_noise, seed):
    """Return the function `initial_noise` with each entry of its result moved to the next float32 above or below."""

    def perturbed_noise(*args):
        x = initial_noise(*args)
        signs = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
        return torch.nextafter(x, signs * torch.inf)

    return perturbed_noise


def measure(pipe, path, monkeypatch, task, batch, seed=None):
    """Return the rows and the unquantized samples (3, 3, 64, 64) of three items, in batches.

    A seed perturbs the initial noise.
    """
    one, outputs = benchmark(pipe, path), []
    with monkeypatch.context() as patch:
        patch.setattr(emoji, "run", lambda *args: outputs.append(run(*args)) or outputs[-1])
        if seed is not None:
            patch.setattr(sampling, "initial_noise", perturbed(sampling.initial_noise, seed))
        one.measure(task, "inexact_newton", 10, prompted=True, batch=batch)
    return one.results.rows, torch.cat([samples for samples, _, _ in outputs])


@pytest.mark.parametrize("task", ["half", "x8", "style"])
def test_a_batch_equals_singles(pipe, tmp_path, monkeypatch, task):
    """A batch and single runs differ by rounding only.

    Kernels round differently for different batch sizes. The effect on the samples depends on the task (a loss amplifies
    it twenty times more than a measurement does) and on the processor, so a fixed bound fails on some machines. A
    change of the initial noise by one unit in the last place changes the rounding of the whole run, and its effect is
    the unit of the bound.
    """
    rows, batch = measure(pipe, tmp_path / "batch.json", monkeypatch, task, 3)
    single_rows, singles = measure(pipe, tmp_path / "singles.json", monkeypatch, task, 1)
    for a, b in zip(rows, single_rows, strict=True):
        assert (a.task, a.item, a.method) == (b.task, b.item, b.method)
        assert a.scores == pytest.approx(b.scores, rel=1e-2)

    def distance(other):
        return (other - batch).square().mean((1, 2, 3)).sqrt().max()  # of the item with the largest

    others = [measure(pipe, tmp_path / f"{seed}.json", monkeypatch, task, 3, seed)[1] for seed in (0, 1)]
    assert distance(singles) <= MAX_RATIO * max(distance(other) for other in others)


def test_finished_runs_are_not_repeated(pipe, tmp_path, monkeypatch):
    path = tmp_path / "out.json"

    def measure_items(items):
        benchmark(pipe, path, items).measure("half", "ddnm", 2, prompted=False, batch=2)

    measure_items(2)
    first = load(path)[0]
    measure_items(3)
    assert load(path)[0][:2] == first
    assert [row.item for row in load(path)[0]] == [item.name for item in held_out.load(3)[0]]
    monkeypatch.setattr(emoji, "run", None)
    measure_items(3)


def test_summaries_without_pictures_are_kept(pipe, tmp_path):
    """The pictures are not under version control, so the Fréchet distance of earlier runs cannot be computed again."""
    path = tmp_path / "out.json"
    one = benchmark(pipe, path, 2)
    one.measure("half", "ddnm", 2, prompted=False, batch=2)
    one.summarize()
    (before,) = [row for row in load(path)[0] if row.item == ALL]
    for picture in (tmp_path / "out").iterdir():
        picture.unlink()
    again = benchmark(pipe, path, 2)
    again.measure("half", "mpgd", 5, prompted=False, batch=2)
    again.summarize()
    after = [row for row in load(path)[0] if row.item == ALL]
    assert [row.method for row in after] == ["ddnm @ 2", "mpgd @ 5"] and after[0] == before
    assert again.contact_sheet({}).height == 3 * 64  # what is given, one method and the original


def test_known_pixels_are_pasted_back_before_scoring(pipe, tmp_path, x):
    one = benchmark(pipe, tmp_path / "out.json", 2)
    task = TASKS["half"](x)
    result = torch.where(task.mask == 1, x, -x)  # right in the masked region and wrong elsewhere
    pictures, scores = one.score(task, x, result)
    assert np.array_equal(pictures, to_uint8(x))
    assert scores[0]["residual"] > 0.5
    assert scores[0]["psnr"] == math.inf
    assert scores[0]["feature_distance"] == 0
    _, scores = one.score(task, x, x + 0.2 * (task.mask - 0.5).sign() * (1 - 2 * (x > 0).float()))
    assert scores[0]["psnr"] == pytest.approx(20, abs=0.2)  # off by a tenth of the range


def test_the_nearest_training_picture_depends_on_the_masked_region_only():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (2100, 8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    pictures = train[[2050, 3]].copy()
    pictures[:, ~mask] = 0
    pictures[0, 0, 7] ^= 1
    assert emoji.nearest_pictures(pictures, train, mask) == [2050, 3]


def test_the_command_writes_rows_summaries_and_a_grid(folder, tmp_path, monkeypatch, capsys):
    out, picture = tmp_path / "out.json", tmp_path / "grid.png"
    options = ["--items", "2", "--tasks", "half", "silhouette", "--methods", "ddnm", "mpgd", "--nfe", "5"]
    arguments = ["emoji", "--json", str(out), "--grid", str(picture), *options, "--model", str(folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    emoji.main()
    printed = capsys.readouterr().out
    assert "### silhouette" in printed
    assert "silhouette: ddnm is not run, because its projection" in printed
    rows, _ = load(out)
    summaries = [(row.task, row.method) for row in rows if row.item == ALL]
    assert summaries == [("half", "ddnm @ 5"), ("half", "mpgd @ 5"), ("silhouette", "mpgd @ 5")]
    assert all(row.scores["frechet"] > 0 for row in rows if row.item == ALL)
    assert len(rows) == 2 * 3 + 3
    with Image.open(picture) as image:
        assert image.size == (180 + 2 * 64, (4 + 3) * 64)
    emoji.main()  # nothing is left to run
    assert [row for row in load(out)[0] if row.item != ALL] == [row for row in rows if row.item != ALL]


def test_peaks_are_measured_in_a_new_process(folder):
    row = peak.in_new_process(peak.measure, str(folder), "t", "half", "inexact_newton", 5, 1, False, 1)
    assert row.nfe == 5
    assert 0 < row.scores["working_mb"] < row.peak_mb < 4000
    assert row.scores["residual"] > 0


def test_the_command_measures_presets_at_their_own_evaluations_and_keeps_other_rows(tmp_path, monkeypatch):
    path = tmp_path / "peak.json"
    kept = Row("half, 1 at once", "1 at once", "moment_matching, GMRES @ 24", 0, 24, 1.0)
    save(path, [kept, replace(kept, method="moment_matching @ 12")], {})

    def measure(function, model, title, task, name, nfe, batch, decoder_backward, threads):
        return Row(title, f"{batch} at once", name, 0, nfe, 2.0)

    monkeypatch.setattr(peak, "in_new_process", measure)
    monkeypatch.setattr(sys, "argv", ["peak", "--json", str(path), "--batches", "1", "--methods", "moment_matching"])
    peak.main()
    rows = load(path)[0]
    assert [(row.task, row.method, row.seconds) for row in rows] == [
        ("half, 1 at once", "plain @ 20", 2.0),
        ("half, 1 at once", "moment_matching @ 12", 2.0),
        ("x8, 1 at once", "moment_matching @ 12", 2.0),
        ("x4, 1 at once", "moment_matching @ 12, encoder", 2.0),
        ("x4, 1 at once", "moment_matching @ 12, decoder autograd", 2.0),
        ("half, 1 at once", "moment_matching, GMRES @ 24", 1.0),
    ]
