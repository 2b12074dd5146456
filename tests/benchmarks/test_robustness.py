"""The problems, scores and table of benchmarks.robustness."""

import sys

import pytest
import torch

from adhere.core.constraints import Linear
from adhere.core.operators import Identity, Mask
from adhere.core.presets import PRESETS
from adhere.core.schedules import DDPMSchedule
from adhere.testing import check_operator
from benchmarks import robustness
from benchmarks.robustness import (
    CHEAP,
    FILL_SEEDS,
    NAMES,
    SCALES,
    Benchmark,
    BlockDCT,
    Scaled,
    chelsea,
    fill_problems,
    linear_problems,
    nonlinear_problems,
    scaled,
    table,
)
from benchmarks.tables import Row, load

X = chelsea()
PROBLEMS = [*linear_problems(X), *nonlinear_problems(X)]


class GrayDenoiser:
    """Returns mid gray, 0."""

    schedule, dtype = DDPMSchedule.from_betas(), torch.float32

    def __call__(self, x_t, t):
        return torch.zeros_like(x_t)


class GrayPipe:
    """A model whose denoiser returns mid gray."""

    temperature, prior_covariance, max_downsamplings = 1.0, None, 0

    def make_denoiser(self):
        return GrayDenoiser()


@pytest.fixture
def benchmark(tmp_path):
    return Benchmark(GrayPipe(), tmp_path / "robustness.json")  # type: ignore[arg-type]


def test_methods_need_no_backward_pass_and_the_presets_are_among_them():
    assert {"moment_matching", "moment_matching_fast", "moment_matching_posterior", "inexact_newton"} <= set(NAMES)
    assert not {"dps", "psld", "mmps", "freedom", "plain", "newton_exact"} & set(NAMES)
    assert CHEAP == ("moment_matching", "moment_matching_fast", "moment_matching_posterior")


@pytest.mark.parametrize("problem", PROBLEMS, ids=[problem.task for problem in PROBLEMS])
def test_the_original_is_close_to_each_measurement(problem):
    original, other = (float(problem.constraint.residual_norm(x)) for x in (X, X.flip(-1)))
    assert original < 0.4 and original < 0.7 * other
    assert PRESETS["moment_matching"].solver.supports(problem.constraint)


def test_signs_that_are_not_determined_do_not_count():
    flipped = X * torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    coded = [problem for problem in PROBLEMS if problem.task.startswith("coded")]
    assert [float(problem.constraint.residual_norm(flipped)) for problem in coded] == pytest.approx(
        [float(problem.constraint.residual_norm(X)) for problem in coded], rel=1e-3
    )
    assert all(problem.psnr(flipped) == torch.inf for problem in coded)
    assert PROBLEMS[0].psnr(flipped) < 20


def test_titles_are_unique():
    titles = [problem.task for problem in PROBLEMS]
    assert len(set(titles)) == len(titles)


def test_operators_have_the_adjoint():
    check_operator(Scaled(Identity(), 3.0), (1, 3, 16, 16))
    steps = 1 + torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_operator(BlockDCT(steps), (1, 3, 16, 24))


def test_the_cosine_transform_is_orthonormal():
    transform = BlockDCT(torch.ones(8, 8))
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(transform.adjoint(transform(x)), x, atol=1e-5)
    flat = transform(torch.ones(1, 3, 8, 8))
    assert flat[0, 0, 0, 0, 0, 0] == pytest.approx(8) and flat.square().sum() == pytest.approx(3 * 64)


def test_a_scaled_measurement_has_a_scaled_residual():
    constraint = next(linear_problems(X)).constraint
    assert isinstance(constraint, Linear)
    many = scaled(constraint, 10.0)
    assert many.noise == pytest.approx(10 * constraint.noise)
    assert float(many.residual_norm(X)) == pytest.approx(10 * float(constraint.residual_norm(X)), rel=1e-4)


def test_offsets_are_in_levels(benchmark):
    """ddnm with a denoiser that returns mid gray fills a disc with mid gray, 127.5."""
    item, problem = next(found for found in fill_problems() if found[1].task == "plain area")
    assert isinstance(problem.constraint, Linear) and isinstance(problem.constraint.operator, Mask)
    benchmark.measure_offset(item, problem, ["ddnm"])
    assert [row.seed for row in benchmark.rows] == list(FILL_SEEDS)
    assert all(row.scores["offset"] == pytest.approx(0.5, abs=0.01) for row in benchmark.rows)  # the area has 127
    benchmark.measure_offset(item, problem, ["ddnm"])
    assert len(benchmark.rows) == len(FILL_SEEDS)


def test_changes_and_scores_are_saved_and_not_repeated(benchmark):
    problem = PROBLEMS[0]
    benchmark.measure_change(problem, ["moment_matching_fast"])
    benchmark.measure_psnr(problem, ["moment_matching_fast", "ddnm"], [0])
    rows = load(benchmark.path)[0]
    assert [row.task for row in rows[: len(SCALES)]] == [f"{problem.task}, times {factor:g}" for factor in SCALES]
    assert all(row.scores["change"] < 1e-3 for row in rows[: len(SCALES)])
    assert [row.method for row in rows[len(SCALES) :]] == ["moment_matching_fast", "ddnm"]
    again = Benchmark(GrayPipe(), benchmark.path)  # type: ignore[arg-type]
    again.measure_change(problem, ["moment_matching_fast"])
    again.measure_psnr(problem, ["moment_matching_fast", "ddnm"], [0])
    assert again.rows == rows


def test_the_table_names_the_best_preset_and_the_distance_of_the_default():
    def row(task, method, **scores):
        return Row(task, "chelsea", method, 0, 12, 1.0, scores=scores)

    text = table(
        [
            row("a", "moment_matching", psnr=30.0),
            row("a", "inexact_newton", psnr=31.5),
            row("b", "moment_matching", psnr=20.0),
            row("c", "moment_matching", offset=-1.0),
            row("c", "ddnm", offset=3.0),
        ]
    )
    assert "| a | 30.00 | **31.50** | inexact_newton | 1.50 |" in text
    assert "| b | **20.00** | – | moment_matching | 0.00 |" in text
    assert "| c | **-1.0** | +3.0 |" in text


def test_the_command_embeds_its_tables(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- robustness -->\n<!-- /robustness -->\n")
    monkeypatch.setattr(robustness.adhere, "load", GrayPipe)
    out = tmp_path / "robustness.json"
    options = ["--json", str(out), "--methods", "moment_matching_fast", "--parts", "change", "--embed", str(page)]
    monkeypatch.setattr(sys, "argv", ["robustness", *options])
    robustness.main()
    assert "RMS change" in page.read_text()
