"""The figures of benchmarks.truth on samples whose distance from the posterior is known."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from pytest import approx
from torch import Generator

from adhere.core.constraints import Linear
from adhere.core.operators import Identity, Mask
from adhere.core.priors import FactorMixture
from benchmarks.rows import Row, load
from benchmarks.truth import Problem, emoji_prior, energy_distance, problems, sliced_w2

SAMPLES = 400


def asked(prior: FactorMixture, known: torch.Tensor | None = None) -> Problem:
    """One draw of the prior, measured under a mask or everywhere, with noise 0.3."""
    x0 = prior.sample(1, Generator().manual_seed(0))
    operator = Identity() if known is None else Mask(known)
    constraint = Linear(operator, operator(x0), 0.3)
    posterior = prior.posterior(operator, constraint.y[0], 0.3)
    return Problem(constraint, posterior, posterior.sample(SAMPLES, Generator().manual_seed(1)))


def test_a_second_exact_draw_is_near_on_every_figure() -> None:
    prior = emoji_prior()
    problem = asked(prior)
    scores = problem.measure(problem.posterior.sample(SAMPLES, Generator().manual_seed(2)), prior)
    assert scores["mean_error"] < 0.02
    assert scores["cov_error"] < 0.15
    assert scores["spread"] == approx(1, abs=0.03)
    assert scores["sw2"] < 0.03
    assert scores["energy"] < 0.1


def test_a_shift_is_the_error_of_the_mean_and_the_distance() -> None:
    prior = emoji_prior()
    problem = asked(prior)
    scores = problem.measure(problem.exact + 0.5, prior)
    assert scores["mean_error"] == approx(0.5, rel=0.02)
    assert scores["sw2"] == approx(0.5, rel=0.2)  # of 256 random directions
    assert scores["spread"] == approx(1, abs=0.03)


def test_halved_deviations_are_seen_as_spread_and_covariance() -> None:
    prior = emoji_prior()
    problem = asked(prior)
    mean = problem.posterior.mean
    scores = problem.measure(mean + (problem.exact - mean) / 2, prior)
    assert scores["spread"] == approx(0.5, abs=0.02)
    assert scores["cov_error"] == approx(0.75, rel=0.15)  # 1 - 1/4 of every variance, where all were alike


def test_under_a_mask_known_entries_do_not_count() -> None:
    prior = emoji_prior()
    known = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    known[..., :8] = 1
    problem = asked(prior, known)
    scores = problem.measure(problem.exact, prior)
    moved = problem.measure(problem.exact + 5 * known, prior)
    for name in ("mean_error", "cov_error", "sw2", "energy", "spread"):
        assert moved[name] == scores[name]


def test_energy_distance_is_nought_for_one_law_and_grows_with_a_shift() -> None:
    draw = lambda seed: torch.randn(300, 5, generator=Generator().manual_seed(seed), dtype=torch.float64)  # noqa: E731
    far = [energy_distance(draw(0), draw(1) + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert far[0] < 0.2
    assert far == sorted(far)


def test_sliced_w2_of_a_shift_along_ones() -> None:
    a = torch.randn(200, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
    assert sliced_w2(a, a) == 0
    assert sliced_w2(a, a + 2.0, projections=4000) == approx(2.0, rel=0.05)


def test_another_seed_asks_about_other_images() -> None:
    prior = emoji_prior()
    first = {task.split(",")[0]: found for task, found in problems(prior, 0.02, 1, 1)}
    second = {task.split(",")[0]: found for task, found in problems(prior, 0.02, 1, 1, seed=2)}
    assert list(first) == list(second) == ["left half", "down-sampling x4", "25 % of pixels", "blur 1.2 px", "gray"]
    assert not torch.equal(first["left half"][0].constraint.y, second["left half"][0].constraint.y)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed after the first of five tasks, and again after the second: that was the only one run. Sizes never mix."""
    out = tmp_path / "truth.json"
    command = [sys.executable, "-u", "-m", "benchmarks.truth", "--json", str(out), "--images", "1", "--noises", "0.05"]
    command += ["--methods", "moment_matching", "--samples"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # small matrices: two threads wait for each other

    def killed_after(title: str) -> list[Row]:
        with subprocess.Popen([*command, "3"], stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert any(line.startswith(f"### {title}") for line in process.stdout)
            process.kill()
        return load(out)[0]

    first, second = killed_after("left half"), killed_after("down-sampling")
    assert len(first) == 2 and second[:2] == first
    assert [row.method for row in second] == ["exact", "moment_matching"] * 2
    other = subprocess.run([*command, "4"], capture_output=True, text=True, env=environment)
    assert other.returncode == 2 and "'samples': 3" in other.stderr and load(out)[0] == second
