"""What the base classes of solvers provide."""

from dataclasses import dataclass

import pytest
import torch

from adhere.core.baselines.repaint import RePaint
from adhere.core.constraints import Unconstrained
from adhere.core.noise import randn
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule
from adhere.core.solvers.base import StochasticSolver
from adhere.core.transitions import DDIM
from tests.core.exact import normal, random_gaussian, seeded

DENOISER = random_gaussian(seeded(0)).denoiser(CosineSchedule())


@dataclass(frozen=True)
class NoisySolver(StochasticSolver[None]):
    """Adds white noise to x_t."""

    def evaluations(self, log_snrs, state_size=0):
        return len(log_snrs)

    def __call__(self, denoiser, constraint, x_t, t, memory):
        x_t = x_t + randn(x_t.shape, x_t, self.run_generators)
        return x_t, denoiser(x_t, t), None


def test_a_solver_supports_every_constraint_and_takes_no_backward_pass_by_default():
    assert NoisySolver().supports(Unconstrained())
    assert NoisySolver().backward_passes([0.0, 1.0]) == 0


def test_a_stochastic_solver_needs_a_generator_when_it_is_called_alone():
    x_t = normal(seeded(1), 2, 1, 2, 2)
    with pytest.raises(ValueError, match="NoisySolver draws noise: run it by trajectory, or give it a generator"):
        NoisySolver()(DENOISER, Unconstrained(), x_t, 0.5, None)
    moved, _, _ = NoisySolver(generator=seeded(2))(DENOISER, Unconstrained(), x_t, 0.5, None)
    assert moved.equal(x_t + normal(seeded(2), 2, 1, 2, 2))


def test_a_stochastic_solver_draws_from_the_generator_of_its_run():
    x_T = normal(seeded(1), 2, 1, 2, 2)
    solver = NoisySolver()
    for generator in (seeded(2), [seeded(2), seeded(3)]):
        (state,) = trajectory(DENOISER, Unconstrained(), solver, x_T, [0.5], DDIM(), generator)
        again = seeded(2) if isinstance(generator, torch.Generator) else [seeded(2), seeded(3)]
        assert state.x_t.equal(x_T + randn(x_T.shape, x_T, again))
    assert solver.generator is None


def test_the_generator_is_not_among_the_positional_settings():
    assert RePaint(3) == RePaint(repeats=3)
    with pytest.raises(TypeError, match="positional"):
        RePaint(3, seeded(0))  # pyright: ignore[reportCallIssue]
