"""The loop of sampling: what `trajectory` and `Sampler` guarantee for any solver and transition."""

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from adhere.core.constraints import Linear, Unconstrained
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Downsample
from adhere.core.noise import initial_noise
from adhere.core.operators import Mask
from adhere.core.sampling import Sampler, State, trajectory
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, log_snr, log_snr_spacing, uniform_spacing
from adhere.core.solvers.base import Solver
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DDIM, DPMSolver2M
from tests.core.exact import last_x0, normal, random_gaussian, random_mixture, seeded

TRANSITIONS = [DDIM(0.0), DDIM(1.0), DPMSolver2M(0.0), DPMSolver2M(1.0)]
any_transition = pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)

SCHEDULE = CosineSchedule()
PRIOR = random_mixture(seeded(7))
DENOISER = PRIOR.denoiser(SCHEDULE)
TIMES = SCHEDULE.timesteps(5)
HALF = Mask(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]).double())
CONSTRAINT = Linear(HALF, HALF(PRIOR.sample(1, seeded(8))))
X_T = normal(seeded(9), 3, 1, 2, 2)


def plain_sample(x_T, times, transition, generator):
    return last_x0(trajectory(DENOISER, Unconstrained(), Plain(), x_T, times, transition, generator))


# States --------------------------------------------------------------------------------------------------------------


@any_transition
def test_trajectory_yields_one_state_per_noise_level(transition):
    states = list(trajectory(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0)))
    assert [state.step for state in states] == list(range(5))
    assert [state.t for state in states] == TIMES
    assert {state.num_steps for state in states} == {5}
    assert {field.name for field in fields(State)} == {"step", "num_steps", "t", "x_t", "x0", "constraint"}
    for state in states:
        assert state.x_t.shape == state.x0.shape == X_T.shape
        assert state.residual_norm.equal(CONSTRAINT.residual_norm(state.x0))
        assert state.x0.isfinite().all()
    assert states[0].x_t.equal(X_T)
    sample = last_x0(trajectory(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0)))
    assert states[-1].x0.equal(sample)


def test_one_noise_level_is_one_denoising():
    assert plain_sample(X_T, TIMES[:1], DDIM(), seeded(0)).equal(DENOISER(X_T, TIMES[0]))


@any_transition
def test_nothing_is_kept_on_solver_and_transition(transition):
    """Two runs that share both and take turns are the two runs one after the other."""

    def run(x_T, seed):
        return trajectory(DENOISER, CONSTRAINT, DDNM(), x_T, TIMES, transition, seeded(seed))

    one, other = run(X_T, 1), run(-X_T, 2)
    for a, b, in_turns in zip(run(X_T, 1), run(-X_T, 2), zip(one, other, strict=True), strict=True):
        assert a.x_t.equal(in_turns[0].x_t) and b.x_t.equal(in_turns[1].x_t)


@any_transition
def test_the_seed_decides_the_noise_and_matters_only_where_noise_is_added(transition):
    samples = [plain_sample(X_T, TIMES, transition, seeded(seed)) for seed in (1, 1, 2)]
    assert samples[0].equal(samples[1])
    assert samples[0].equal(samples[2]) == (transition.eta == 0)


# Replaced states -----------------------------------------------------------------------------------------------------


@any_transition
def test_a_state_that_is_sent_in_replaces_x_t_and_x0(transition):
    """The next x_t is the step from the replaced state, and the run ends elsewhere."""
    x_t, x0 = normal(seeded(1), *X_T.shape), normal(seeded(2), *X_T.shape)
    states = trajectory(DENOISER, Unconstrained(), Plain(), X_T, TIMES, transition, seeded(0))
    first = next(states)
    second = states.send(replace(first, x_t=x_t, x0=x0))
    expected, _ = transition(SCHEDULE, x_t, x0, TIMES[0], TIMES[1], None, seeded(0))
    assert second.step == 1
    assert second.x_t.equal(expected)
    assert not last_x0(states).equal(plain_sample(X_T, TIMES, transition, seeded(0)))


@any_transition
def test_sending_a_state_back_unchanged_changes_nothing(transition):
    states = trajectory(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0))
    state, sent = next(states), []
    while True:
        sent.append(state)
        try:
            state = states.send(state)
        except StopIteration:
            break
    for a, b in zip(trajectory(DENOISER, CONSTRAINT, DDNM(), X_T, TIMES, transition, seeded(0)), sent, strict=True):
        assert a.x_t.equal(b.x_t) and a.x0.equal(b.x0)


# Constraints during a run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordingConstraint(Unconstrained):
    """Records what it is called with at each update."""

    calls: tuple[tuple[Tensor, float], ...] = ()

    def update(self, x0: Tensor, log_snr: float) -> "RecordingConstraint":
        return replace(self, calls=(*self.calls, (x0, log_snr)))


def test_the_constraint_is_updated_between_noise_levels():
    """With x0 of the noise level before, and the log-SNR of the next one."""
    prior = random_gaussian(seeded(0))
    denoiser, times = prior.denoiser(SCHEDULE), [0.9, 0.6, 0.3]
    x_T = normal(seeded(1), 2, *prior.shape)
    states = list(trajectory(denoiser, RecordingConstraint(), Plain(), x_T, times, DDIM(), seeded(2)))
    assert [len(state.constraint.calls) for state in states] == [0, 1, 2]
    for before, after in pairwise(states):
        x0, level = after.constraint.calls[-1]
        assert torch.equal(x0, before.x0)
        assert level == log_snr(denoiser.schedule, after.t)


def test_the_constraint_is_updated_with_the_replaced_x0():
    states = trajectory(DENOISER, RecordingConstraint(), Plain(), X_T, TIMES, DDIM(), seeded(0))
    replaced = replace(next(states), x0=torch.zeros_like(X_T))
    ((x0, _),) = states.send(replaced).constraint.calls
    assert x0 is replaced.x0


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Unconstrained(), "needs a constraint: without one, choose the solver plain"),
        (
            Linear(Downsample(2), torch.zeros(1, 1, 1, 1).double()),
            "does not support Linear constraint with Downsample: try the solver inexact_newton",
        ),
    ],
)
def test_a_constraint_that_the_solver_does_not_support_is_refused_before_the_first_evaluation(constraint, message):
    class MaskSolver(DDNM):
        def supports(self, constraint):
            return isinstance(constraint, Linear) and isinstance(constraint.operator, Mask)

    denoiser = CountingDenoiser(DENOISER)
    with pytest.raises(TypeError, match=f"^MaskSolver {message}$"):
        next(trajectory(denoiser, constraint, MaskSolver(), X_T, TIMES, DDIM(), seeded(0)))
    assert denoiser.nfe == 0


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [[], [0.2, 0.8], [0.8, 0.5, 0.5], [0.8, 0.2, 0.5]])
def test_timesteps_whose_noise_does_not_decrease_are_refused(timesteps):
    with pytest.raises(ValueError, match="from high noise to low"):
        next(trajectory(DENOISER, Unconstrained(), Plain(), X_T, timesteps, DDIM(), seeded(0)))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_wrong_number_of_generators_is_refused(count):
    with pytest.raises(ValueError, match="one per sample"):
        plain_sample(X_T, TIMES, DDIM(), [seeded(i) for i in range(count)])


def test_moment_matching_refuses_pure_noise():
    with pytest.raises(ValueError, match="moment_matching cannot start from pure noise"):
        MomentMatching()(PRIOR.denoiser(FlowSchedule()), CONSTRAINT, X_T, 1.0, None)


# Samplers ------------------------------------------------------------------------------------------------------------


def test_a_sampler_runs_its_solver_over_its_timesteps():
    spacing = partial(log_snr_spacing, log_snr_min=-1.0, log_snr_max=2.0)
    sampler, noise = Sampler(DDNM(), DDIM(), spacing, num_steps=4), normal(seeded(0), 2, 1, 2, 2)
    flow = FlowSchedule()
    for num_steps in (None, 6):
        states = list(sampler.trajectory(PRIOR.denoiser(flow), CONSTRAINT, noise, seeded(1), num_steps))
        times = log_snr_spacing(flow, num_steps or 4, -1.0, 2.0)
        assert [state.t for state in states] == times
        x_T = initial_noise(flow, times[0], noise)
        assert states[0].x_t.equal(x_T)
        expected = last_x0(trajectory(PRIOR.denoiser(flow), CONSTRAINT, DDNM(), x_T, times, DDIM(), seeded(1)))
        assert states[-1].x0.equal(expected)


def test_a_sampler_has_defaults_for_all_but_the_solver():
    sampler = Sampler(InexactNewton())
    assert sampler.transition == DPMSolver2M() and sampler.num_steps == 20
    assert sampler.timesteps is log_snr_spacing and sampler.multiscale_max_log_snr == -math.inf


def test_a_sampler_states_its_cost():
    """By the default number of steps or another one, over the noise levels of the schedule."""
    sampler = Sampler(InexactNewton(num_iterations=2), DDIM(), uniform_spacing, num_steps=7)
    assert sampler.evaluations(SCHEDULE) == 7 * 5
    assert sampler.evaluations(SCHEDULE, 3) == 3 * 5
    assert sampler.backward_passes(SCHEDULE) == 0
    by_level = Sampler(MomentMatching(jacobian_products=3), DDIM(), log_snr_spacing)
    assert by_level.evaluations(SCHEDULE, 7) == 7 + 3 * 3


def test_the_solver_is_prepared_once_for_the_noise_levels_of_a_run():
    """The run uses what `prepare` returns, and the sampler's own solver stays as it is."""
    calls = []

    @dataclass(frozen=True)
    class Prepared(Plain):
        levels: tuple[float, ...] = ()

        def prepare(self, log_snrs):
            calls.append(log_snrs)
            return replace(self, levels=tuple(log_snrs))

        def __call__(self, denoiser, constraint, x_t, t, memory):
            assert log_snr(denoiser.schedule, t) in self.levels
            return super().__call__(denoiser, constraint, x_t, t, memory)

    solver = Prepared()
    states = list(trajectory(DENOISER, Unconstrained(), solver, X_T, TIMES, DDIM(), seeded(0)))
    assert calls == [[log_snr(SCHEDULE, t) for t in TIMES]]
    assert solver.levels == () and len(states) == len(TIMES)
    assert states[-1].x0.equal(plain_sample(X_T, TIMES, DDIM(), seeded(0)))
    assert Plain().prepare([0.0]) == Plain()  # by default nothing is prepared


def test_the_settings_of_a_model_are_used_where_a_sampler_has_none():
    covariance = StationaryCovariance.default(4)
    sampler = Sampler(MomentMatching(), DPMSolver2M(temperature=None))
    assert sampler.for_model(0.5, covariance) == Sampler(MomentMatching(covariance), DPMSolver2M(temperature=0.5))
    assert sampler.for_model(1.0, None) == Sampler(MomentMatching(), DPMSolver2M(temperature=1.0))
    own = Sampler(MomentMatching(StationaryCovariance.default(1)), DPMSolver2M(temperature=0.7))
    assert own.for_model(0.5, covariance) == own
    assert Sampler(Plain(), DDIM()).for_model(0.5, covariance) == Sampler(Plain(), DDIM())
    # A sampler that is run without a model has temperature 1.
    x_T = normal(seeded(0), 2, 1, 2, 2)
    runs = [plain_sample(x_T, TIMES, DPMSolver2M(temperature=one), seeded(1)) for one in (None, 1.0, 0.5)]
    assert runs[0].equal(runs[1]) and not runs[0].equal(runs[2])


@pytest.mark.parametrize("num_steps", [0, -1])
def test_a_sampler_refuses_fewer_than_one_step(num_steps):
    sampler = Sampler(Plain())
    with pytest.raises(ValueError, match=f"num_inference_steps = {num_steps}"):
        sampler.trajectory(DENOISER, Unconstrained(), X_T, seeded(0), num_steps)
    with pytest.raises(ValueError, match=f"num_inference_steps = {num_steps}"):
        sampler.evaluations(SCHEDULE, num_steps)


def test_a_solver_must_state_its_evaluations():
    class Incomplete(Solver):
        def __call__(self, denoiser, constraint, x_t, t, memory):
            return x_t, denoiser(x_t, t), None

    with pytest.raises(TypeError, match="evaluations"):
        Incomplete()


def test_a_solver_that_returns_two_values_is_answered_with_what_it_must_return():
    class Short(Plain):
        def __call__(self, denoiser, constraint, x_t, t, memory):
            return x_t, x_t

    states = trajectory(DENOISER, Unconstrained(), Short(), X_T, TIMES, DDIM(), seeded(0))
    with pytest.raises(TypeError, match=r"Short must return \(x_t, x0, memory\)"):
        next(states)


@pytest.mark.parametrize("solver", [MomentMatching(), DDNM()])
def test_sampling_without_a_constraint_is_answered_with_the_solver_for_it(solver):
    name = type(solver).__name__
    with pytest.raises(TypeError, match=f"{name} needs a constraint: without one, choose the solver plain"):
        list(trajectory(DENOISER, Unconstrained(), solver, X_T, TIMES, DDIM(), seeded(0)))


def test_fewer_noise_levels_than_were_asked_for_are_reported(caplog):
    table = DDPMSchedule.from_betas()
    sampler = Sampler(Plain(), timesteps=log_snr_spacing)
    assert len(sampler.timesteps_for(table, 20)) == 20
    assert len(sampler.timesteps_for(SCHEDULE, 1000)) == 1000
    assert not caplog.records
    levels = len(sampler.timesteps_for(table, 1000))
    assert levels < 1000
    assert f"num_inference_steps = 1000: the noise schedule has only {levels} such noise levels" in caplog.text
