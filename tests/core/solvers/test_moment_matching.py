"""Moment matching against exact conditional means, and what it promises for any network; in float64.

`gaussian_case` of this module has a prior whose covariance is that of the solver's V_w, for which the conditional mean
is exact whatever the tilt and the fusion.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from adhere.core._linalg import bfgs_product
from adhere.core.constraints import Linear, Loss, Sum, Unconstrained
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Blur, Downsample
from adhere.core.latents import DecodedConstraint
from adhere.core.noise import initial_noise
from adhere.core.nonlinear import Nonlinear
from adhere.core.operators import Gray, Identity, InnerProduct, LinearOperator, Mask, operator
from adhere.core.presets import PRESETS, sample
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, log_snr, log_snr_spacing
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DPMSolver2M
from adhere.testing import check_solver
from adhere.testing.priors import Gaussian
from tests.core.exact import (
    IdentityAutoencoder,
    assert_close,
    last_x0,
    matrix_of,
    normal,
    random_factors,
    random_gaussian,
    seeded,
)

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
LEVELS = st.floats(-3.5, 3.75)  # log-SNRs, in nats
SCHEDULE = CosineSchedule()
SOLVER = "adhere.core.solvers.moment_matching"

SHAPE = (3, 4, 6)
KNOWN = (torch.rand(1, 1, 4, 6, generator=seeded(1)) < 0.5).double()
OPERATORS = {
    "mask": Mask(KNOWN),
    "mask of channels": Mask((torch.rand(1, *SHAPE, generator=seeded(2)) < 0.4).double()),
    "area": Downsample(2),
    "bicubic": Downsample(2, "bicubic"),
    "blur": Blur(0.8),
    "gray": Gray(),
    "identity": Identity(),
    "inner product": InnerProduct(normal(seeded(3), 1, *SHAPE) / math.sqrt(72)),
    "gray of blur": Gray() @ Blur(0.8),
    "area of mask": Downsample(2) @ Mask(KNOWN),
}
any_operator = pytest.mark.parametrize("A", OPERATORS.values(), ids=OPERATORS)

MIXTURE = random_factors(seeded(0), shape=(3, 8, 8))
HALF = Mask(torch.cat([torch.ones(1, 1, 8, 4), torch.zeros(1, 1, 8, 4)], -1).double())
SCALED = {"mask": HALF, "area": Downsample(2), "bicubic": Downsample(2, "bicubic"), "blur": Blur(1.0)}


def gaussian_case(A, noise, seed=0, model=None):
    """Return (solver, prior, constraint, x0): a stationary Gaussian prior, and y of one image x0 of it."""
    model = StationaryCovariance.default(SHAPE[0]) if model is None else model
    S = matrix_of(lambda v: model.product(v, 0.0), SHAPE)
    prior = Gaussian(0.3 * normal(seeded(seed), *SHAPE), (S + S.T) / 2)
    x0 = prior.sample(1, seeded(seed + 1))
    # 10 iterations leave up to 0.1 under a blur; as many as there are measurements solve the systems.
    solver = MomentMatching(model, fusion_snr=0.0, num_iterations=100, tolerance=0.0)
    return solver, prior, measured(A, x0, noise, seed + 2), x0


def measured(A, x0, noise, seed=0):
    y = A(x0)
    return Linear(A, y + noise * normal(seeded(seed), *y.shape).to(y) * A.measurement_support(y), noise)


def noisy(x0, t, seed=0, count=2):
    alpha_t, sigma_t = SCHEDULE(t)
    return alpha_t * x0 + sigma_t * normal(seeded(seed), count, *x0.shape[1:])


def posterior_denoiser(prior, constraint):
    return prior.posterior(constraint.operator, constraint.y, constraint.noise).denoiser(SCHEDULE)


# Gaussian priors -----------------------------------------------------------------------------------------------------

# Measured: 2e-13 at most over these cases, in units of pixels whose standard deviation is 0.45.
ROUND_OFF = 2e-12


@pytest.mark.parametrize("noise", [0.05, 0.3])
@any_operator
def test_the_mean_of_a_stationary_gaussian_is_exact_at_the_first_noise_level(A, noise):
    solver, prior, constraint, original = gaussian_case(A, noise)
    exact = posterior_denoiser(prior, constraint)
    for level in (-3.0, -1.0, 1.0, 3.0):
        t = SCHEDULE.t_from_log_snr(level)
        x_t = noisy(original, t)
        same_x_t, mean, _ = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
        assert same_x_t is x_t
        assert_close(mean, exact(x_t, t), ROUND_OFF)


def with_noise_per_entry(constraint, seed=0):
    """Return the constraint with standard deviations from 0.03 to 7 per entry, those of a soft mask."""
    y = constraint.y
    return replace(constraint, noise=0.03 * 250 ** torch.rand(y.shape, generator=seeded(seed), dtype=y.dtype))


def exact_mean(prior, constraint, x_t, t):
    """Return E[x0 | x_t, y] of a Gaussian prior, for noise per entry."""
    alpha_t, sigma_t = SCHEDULE(t)
    A, V = matrix_of(constraint.operator, SHAPE), prior.eigenvectors[0]
    S = V @ torch.diag(prior.eigenvalues[0]) @ V.T
    precision = torch.linalg.inv(S) + (alpha_t / sigma_t) ** 2 * torch.eye(len(S)).double()
    weights = constraint.noise.flatten() ** -2
    information = torch.linalg.solve(S, prior.means[0].flatten()) + alpha_t / sigma_t**2 * x_t.flatten(1)
    information = information + (constraint.y.flatten(1) * weights) @ A
    return torch.linalg.solve(precision + A.T @ (weights[:, None] * A), information.T).T.view_as(x_t)


@any_operator
def test_with_noise_per_entry_the_mean_of_a_stationary_gaussian_is_exact(A):
    solver, prior, constraint, original = gaussian_case(A, 0.1)
    constraint = with_noise_per_entry(constraint)
    denoiser, memory = prior.denoiser(SCHEDULE), None
    for level in (-3.0, -1.0, 1.0, 3.0):
        t = SCHEDULE.t_from_log_snr(level)
        x_t = noisy(original, t)
        _, mean, memory = solver(denoiser, constraint, x_t, t, memory)
        assert_close(mean, exact_mean(prior, constraint, x_t, t), 1e-8)


@pytest.mark.parametrize("operator", ["mask", "identity"])
def test_the_default_number_of_iterations_is_enough_for_a_soft_mask(operator):
    """The default number leaves an error of at most 10 % of the correction, at every level; measured: 6 %."""
    _, prior, constraint, original = gaussian_case(OPERATORS[operator], 0.1)
    constraint = with_noise_per_entry(constraint)
    solver, denoiser = MomentMatching(StationaryCovariance.default(3), fusion_snr=0.0), prior.denoiser(SCHEDULE)
    for level in (-3.0, -1.0, 1.0, 3.0):
        t = SCHEDULE.t_from_log_snr(level)
        x_t = noisy(original, t)
        _, mean, _ = solver(denoiser, constraint, x_t, t, None)
        exact = exact_mean(prior, constraint, x_t, t)
        assert (mean - exact).norm() < 0.1 * (exact - denoiser(x_t, t)).norm()


@pytest.mark.parametrize("noise", [0.05, 0.3])
@any_operator
def test_the_tilt_does_not_change_the_mean_of_a_stationary_gaussian(A, noise):
    """At the following noise levels, whatever was remembered: that of the last level, or any other memory."""
    solver, prior, constraint, original = gaussian_case(A, noise)
    exact, denoiser = posterior_denoiser(prior, constraint), prior.denoiser(SCHEDULE)
    x_t, t = noisy(original, 0.95), 0.95
    _, _, memory = solver(denoiser, constraint, x_t, t, None)
    anything = (normal(seeded(7), 2, *SHAPE), normal(seeded(8), 2, *SHAPE), 0.7)
    for i, level in enumerate((-2.0, 0.0, 2.0)):
        t = SCHEDULE.t_from_log_snr(level)
        x_t = noisy(original, t, seed=10 + i)
        _, other_mean, _ = solver(denoiser, constraint, x_t, t, anything)
        _, mean, memory = solver(denoiser, constraint, x_t, t, memory)
        assert_close(mean, exact(x_t, t), ROUND_OFF)
        assert_close(other_mean, exact(x_t, t), ROUND_OFF)


@pytest.mark.parametrize("fusion_snr", [0.1, 0.5, 4.0])
@any_operator
def test_with_fusion_the_mean_of_a_stationary_gaussian_is_that_of_the_fused_state(A, fusion_snr):
    solver, prior, constraint, original = gaussian_case(A, 0.1)
    solver = replace(solver, fusion_snr=fusion_snr)
    exact, denoiser = posterior_denoiser(prior, constraint), prior.denoiser(SCHEDULE)
    t = SCHEDULE.t_from_log_snr(-3.0)
    _, mean, memory = solver(denoiser, constraint, noisy(original, t), t, None)
    for level in (-2.0, -1.3, 0.0, 1.0):  # below fusion_snr first, above it at the end
        t = SCHEDULE.t_from_log_snr(level)
        x_t = noisy(original, t, seed=3)
        fused = solver.fused_state(SCHEDULE, x_t, t, mean)
        assert (fused[1] != t) == (math.exp(2 * level) < fusion_snr)
        same_x_t, mean, memory = solver(denoiser, constraint, x_t, t, memory)
        assert same_x_t is x_t
        assert_close(mean, exact(*fused), ROUND_OFF)


@few_examples
@given(SEEDS, LEVELS, st.sampled_from(list(OPERATORS.values())), st.floats(0.01, 10))
def test_fusing_the_exact_mean_of_a_stationary_gaussian_changes_nothing(seed, level, A, fusion_snr):
    """x_t and the exact mean, as an independent observation, have that mean again."""
    solver, prior, constraint, original = gaussian_case(A, 0.1, seed)
    t = SCHEDULE.t_from_log_snr(level)
    x_t = noisy(original, t, seed)
    exact = posterior_denoiser(prior, constraint)(x_t, t)
    fused = replace(solver, fusion_snr=fusion_snr)
    memory = (exact, normal(seeded(seed), 2, *SHAPE), 1.0)
    assert_close(fused(prior.denoiser(SCHEDULE), constraint, x_t, t, memory)[1], exact, 1e-10)


@pytest.mark.parametrize("jacobian_products", [1, 2])
@any_operator
def test_jacobian_products_do_not_change_the_mean_of_a_stationary_gaussian(A, jacobian_products):
    """V s = d is met already. Differences with h = 1e-5 are exact up to rounding errors of about 1e-11."""
    solver, prior, constraint, original = gaussian_case(A, 0.1)
    t = SCHEDULE.t_from_log_snr(-0.5)
    solver = replace(solver, jacobian_products=jacobian_products, product_log_snrs=frozenset({log_snr(SCHEDULE, t)}))
    x_t, counting = noisy(original, t), CountingDenoiser(prior.denoiser(SCHEDULE))
    _, mean, _ = solver(counting, constraint, x_t, t, None)
    assert counting.nfe == 1 + jacobian_products
    assert_close(mean, posterior_denoiser(prior, constraint)(x_t, t), 1e-8)


def test_as_many_jacobian_products_as_measurements_correct_a_wrong_covariance():
    """One measurement of a Gaussian with any covariance: V A^T is all that matters, and one product gives it."""
    prior = random_gaussian(seeded(0), (1, 3, 3))
    A, t = InnerProduct(normal(seeded(1), 1, 1, 3, 3)), SCHEDULE.t_from_log_snr(0.0)
    constraint = measured(A, prior.sample(1, seeded(2)), 0.2)
    x_t = normal(seeded(3), 2, 1, 3, 3)
    exact = posterior_denoiser(prior, constraint)(x_t, t)
    for jacobian_products, tolerance in ((0, None), (1, 1e-8)):
        levels = frozenset({log_snr(SCHEDULE, t)})
        solver = MomentMatching(jacobian_products=jacobian_products, product_log_snrs=levels)
        mean = solver(prior.denoiser(SCHEDULE), constraint, x_t, t, None)[1]
        if tolerance is None:
            assert (mean - exact).abs().max() > 1e-3
        else:
            assert_close(mean, exact, tolerance)


@pytest.mark.parametrize("schedule", [FlowSchedule(), FlowSchedule(1000.0)], ids=["flow", "flow of 1000"])
def test_the_result_does_not_depend_on_the_schedule(schedule):
    """At equal log-SNR, x_t / alpha_t is the same for every schedule, and so is the conditional mean."""
    constraint, means = measured(HALF, MIXTURE.sample(4, seeded(1)), 0.05), []
    for one in (SCHEDULE, schedule):
        x = [normal(seeded(seed), 4, *MIXTURE.shape) for seed in (0, 1)]
        memory, solver = None, MomentMatching(fusion_snr=0.0, jacobian_products=1).prepare([])
        for level, state in zip((-0.5, 0.5), x, strict=True):
            t = one.t_from_log_snr(level)
            _, mean, memory = solver(MIXTURE.denoiser(one), constraint, one(t)[0] * state, t, memory)
        means.append(mean)
    assert_close(means[0], means[1], 1e-10)


@pytest.mark.parametrize("operator", ["mask", "area"])
def test_samples_have_mean_and_covariance_of_the_posterior(operator):
    """Of a stationary Gaussian, within five standard errors of 1000 samples, with steps enough for the errors of
    discretization to be smaller."""
    solver, prior, constraint, _ = gaussian_case(OPERATORS[operator], 0.3)
    times = log_snr_spacing(SCHEDULE, 40, -5.0, 5.0)
    x_T = initial_noise(SCHEDULE, times[0], normal(seeded(5), 1000, *SHAPE))
    solver = replace(solver, num_iterations=10, tolerance=0.0)
    samples = last_x0(trajectory(prior.denoiser(SCHEDULE), constraint, solver, x_T, times, DPMSolver2M(), seeded(6)))
    posterior = prior.posterior(constraint.operator, constraint.y, constraint.noise)
    directions = normal(seeded(7), 72, 24)  # of 72 dimensions
    x = (samples.flatten(1) - posterior.mean.flatten()) @ directions
    products = x[:, :, None] * x[:, None, :]
    expected = directions.T @ posterior.covariance @ directions
    for values, exact in [(x, torch.zeros_like(x[0])), (products, expected)]:
        standard_error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - exact).abs() <= 5 * standard_error).all()


# The tilt ------------------------------------------------------------------------------------------------------------


class RecordingDenoiser(CountingDenoiser):
    """Records the states and times it is called with."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.calls = []

    def __call__(self, x_t, t):
        self.calls.append((x_t, t))
        return super().__call__(x_t, t)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@any_operator
def test_the_second_evaluation_is_at_the_state_of_equations_3_and_4(A, noise):
    """u_0 by a dense solution; noise 0 is taken as 0.01 times the gain |A^T r| / |r|.

    Compositions have no closed form: (4) is solved to a residual e of 0.01 |r|, which changes A^T u_0 by A^T K^-1 e.
    """
    model = StationaryCovariance.default(3)
    solver, prior, constraint, original = gaussian_case(A, noise)
    recording = RecordingDenoiser(prior.denoiser(SCHEDULE))
    times = [SCHEDULE.t_from_log_snr(level) for level in (-1.0, 0.4)]
    states = [noisy(original, t, seed) for seed, t in enumerate(times)]
    _, m, memory = solver(recording, constraint, states[0], times[0], None)
    assert recording.calls[0][0] is states[0] or recording.calls[0][0].equal(states[0])  # the first one is not tilted
    solver(recording, constraint, states[1], times[1], memory)
    x, t = recording.calls[1]
    assert t == times[1] and m.equal(memory[0])
    alpha, sigma = SCHEDULE(t)
    snr, eta = (alpha / sigma) ** 2, alpha / sigma**2 * states[1]
    expected = m + model.product((eta - memory[1]) - (snr - memory[2]) * m, snr)  # (3)
    M = matrix_of(A, SHAPE)
    for i in (0, 1):
        r = (constraint.y - A(expected[i : i + 1])).flatten()
        variance = max(noise**2, 0.01**2 * float((M.T @ r).square().sum() / r.square().sum()))
        K = variance * torch.eye(len(M)).double() + M @ M.T / snr
        exact = M.T @ torch.linalg.solve(K, r)  # A^T u_0 of (4)
        tilt = alpha / sigma**2 * (x[i] - states[1][i]).flatten()
        bound = 1e-8 * exact.norm()
        if isinstance(A, type(Gray() @ Gray())):
            bound = 0.01 * torch.linalg.matrix_norm(M.T @ torch.linalg.inv(K), 2) * r.norm()
        assert (tilt - exact).norm() <= bound


def test_the_tilt_and_the_fusion_bring_the_mean_of_a_mixture_closer_to_the_exact_one():
    """In a run on a mixture, at its last noise level but three, against the exact posterior mean of the same x_t."""
    prior, noise = MIXTURE, 0.1
    constraint = measured(HALF, prior.sample(1, seeded(1)), noise)
    exact = posterior_denoiser(prior, constraint)

    def error(solver, forget):
        times = log_snr_spacing(SCHEDULE, 8, -3.0, 2.0)
        x_T = initial_noise(SCHEDULE, times[0], normal(seeded(2), 64, *prior.shape))
        states = trajectory(prior.denoiser(SCHEDULE), constraint, solver, x_T, times, DPMSolver2M(), seeded(3))
        state, errors = next(states), []
        while True:
            errors.append((state.x0 - exact(state.x_t, state.t)).square().mean().sqrt())
            try:
                state = states.send(state if forget else None)  # a state that is sent in clears the memory
            except StopIteration:
                return float(torch.stack(errors[2:]).mean())

    solver = MomentMatching(fusion_snr=0.1)
    assert error(solver, forget=False) < 0.9 * error(solver, forget=True)


# Fusion of the previous mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULE, DDPMSchedule.from_betas(), FlowSchedule()])
def test_the_previous_mean_is_fused_below_fusion_snr_and_nowhere_else(schedule):
    """The natural parameters of the fused state are those of x_t plus those of an observation of the mean."""
    solver, x_t = MomentMatching(fusion_snr=0.2), normal(seeded(0), 1, *MIXTURE.shape)
    noisy_time, clean = (schedule.t_from_log_snr(level) for level in (-2.0, 0.0))
    x, t = solver.fused_state(schedule, x_t, noisy_time, torch.ones_like(x_t))
    assert log_snr(schedule, t) == pytest.approx(math.log(0.2) / 2, abs=0.01)
    (a, s), (a_t, s_t) = schedule(t), schedule(noisy_time)
    mean_and_x_t = (a / s) ** 2 - (a_t / s_t) ** 2 + a_t / s_t**2 * x_t  # of a mean of ones and of x_t
    assert_close(a / s**2 * x, mean_and_x_t, 1e-9)
    for time, mean in ((clean, x_t + 1), (noisy_time, None)):
        unchanged = solver.fused_state(schedule, x_t, time, mean)
        assert unchanged[0] is x_t and unchanged[1] == time
    assert MomentMatching(fusion_snr=0.0).fused_state(schedule, x_t, noisy_time, x_t + 1)[0] is x_t


# Jacobian products under any network ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomNetwork:
    """A multi-layer perceptron whose Jacobian is neither symmetric nor positive."""

    seed: int
    gain: float
    shape: tuple = (1, 3, 4)
    schedule: CosineSchedule = SCHEDULE
    dtype: torch.dtype = torch.float64

    def __call__(self, x_t, t):
        n, g = math.prod(self.shape), seeded(self.seed)
        first, second = normal(g, n, 2 * n) / math.sqrt(n), normal(g, 2 * n, n) / math.sqrt(2 * n)
        return self.gain * ((x_t.flatten(1) @ first).tanh() @ second).view_as(x_t)


@few_examples
@given(SEEDS, LEVELS, st.floats(0.1, 10), st.integers(1, 3), st.sampled_from([Blur(0.7), Mask(KNOWN[..., :3, :4])]))
def test_the_updated_covariance_is_symmetric_and_positive_definite_under_any_network(seed, level, gain, count, A):
    network = RandomNetwork(seed, gain)
    t, used = SCHEDULE.t_from_log_snr(level), []
    constraint = Linear(A, A(normal(seeded(seed), 1, *network.shape)), 0.05)
    solver = MomentMatching(jacobian_products=count, product_log_snrs=frozenset({log_snr(SCHEDULE, t)}))

    def recording(product, pairs, v):
        used.append((product, list(pairs)))
        return bfgs_product(product, pairs, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{SOLVER}.bfgs_product", recording)
        x_t = normal(seeded(seed + 1), 2, *network.shape)
        _, mean, _ = solver(network, constraint, x_t, t, None)
    assert mean.isfinite().all()
    V_0, pairs = used[-1]
    assert len(pairs) == count
    for i in (0, 1):
        repeated = [(s[i].expand(12, 1, 3, 4), d[i].expand(12, 1, 3, 4)) for s, d in pairs]
        V = matrix_of(lambda v, pairs=repeated: bfgs_product(V_0, pairs, v), network.shape)
        size = V.abs().max()
        assert_close(V / size, V.T / size, 1e-9)
        assert torch.linalg.eigvalsh((V + V.T) / 2).min() > -1e-12 * size  # positive, up to rounding of the largest
        s, d = (part[i].flatten() for part in pairs[-1])
        if s @ d > 1e-3 * s.norm() * d.norm():
            assert_close(V @ s / d.norm(), d / d.norm(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_random_networks_are_finite(dtype):
    """In whole runs of every preset of this solver, with an indefinite and skew Jacobian."""
    for seed in range(3):
        for name in ("moment_matching", "moment_matching_fast", "moment_matching_posterior"):
            network = RandomNetworkOf(RandomNetwork(seed, 3.0, (1, 8, 8)))
            y = HALF(normal(seeded(seed), 1, 1, 8, 8)).to(dtype)
            constraint = Linear(Mask(HALF.known.to(dtype)), y, 0.05)
            x0 = sample(network, constraint, (2, 1, 8, 8), solver=name, generator=seeded(seed), dtype=dtype)
            assert x0.isfinite().all() and x0.abs().max() < 100


@dataclass(frozen=True)
class RandomNetworkOf:
    """The same network for states of any dtype."""

    network: RandomNetwork
    schedule: CosineSchedule = SCHEDULE
    dtype: torch.dtype = torch.float64

    def __call__(self, x_t, t):
        return self.network(x_t.double(), t).to(x_t.dtype)


# Units ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled(LinearOperator):
    """The operator in other units: A x is multiplied by `factor`."""

    inner: LinearOperator
    factor: float

    def __call__(self, x):
        return self.factor * self.inner(x)

    def adjoint(self, y):
        return self.factor * self.inner.adjoint(y)


def samples_in_units(A, factor, noise, dtype, name="moment_matching"):
    constraint = measured(A, MIXTURE.sample(1, seeded(1)).to(dtype), noise)
    scaled = Linear(Scaled(A, factor), factor * constraint.y, factor * noise)
    return sample(
        MIXTURE.denoiser(SCHEDULE), scaled, (4, *MIXTURE.shape), solver=name, generator=seeded(2), dtype=dtype
    )


@pytest.mark.parametrize("name", ["moment_matching", "moment_matching_posterior"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("operator", SCALED)
def test_units_of_a_power_of_two_change_no_bit_of_the_samples(operator, noise, name):
    """All roundings are the same then, so any difference would come from an absolute constant."""
    A = SCALED[operator]
    reference = samples_in_units(A, 1.0, noise, torch.float64, name)
    assert reference.isfinite().all()
    for factor in (1 / 128, 64.0):
        assert samples_in_units(A, factor, noise, torch.float64, name).equal(reference)


# The largest RMS difference in float64 and float32 that was measured over factors of 0.01, 0.1, 3 and 100 is 3e-4,
# except under a blur without noise, which is inverted as far as conjugate residuals get in 30 iterations: 2e-3.
# Before they converge, conjugate residuals amplify a rounding error by up to 1e11 in ten iterations.
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("operator", SCALED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_the_units_of_the_measurement(dtype, operator, noise):
    """A, y and noise times 0.01 to 100: below 1e-3 RMS."""
    A = SCALED[operator]
    A = Mask(A.known.to(dtype)) if isinstance(A, Mask) else A
    bound = 5e-3 if operator == "blur" and noise == 0 else 1e-3
    reference = samples_in_units(A, 1.0, noise, dtype)
    for factor in (0.01, 3.0, 100.0):
        assert (samples_in_units(A, factor, noise, dtype) - reference).square().mean().sqrt() < bound


@pytest.mark.parametrize("operator", SCALED)
@pytest.mark.parametrize("name", ["moment_matching", "inexact_newton", "ddnm"])
def test_units_of_a_power_of_two_change_nothing_with_noise_per_entry(operator, name):
    A, denoiser = SCALED[operator], MIXTURE.denoiser(SCHEDULE)
    constraint = with_noise_per_entry(measured(A, MIXTURE.sample(1, seeded(1)), 0.1))
    samples = [
        sample(
            denoiser,
            scaled,
            (2, *MIXTURE.shape),
            solver=name,
            num_inference_steps=4,
            generator=seeded(2),
            dtype=torch.float64,
        )
        for factor in (1.0, 1 / 128, 64.0)
        for scaled in [Linear(Scaled(A, factor), factor * constraint.y, factor * constraint.noise)]
    ]
    assert all(other.equal(samples[0]) for other in samples[1:])


@pytest.mark.parametrize("operator", SCALED)
def test_one_step_in_other_units_is_the_same_up_to_round_off(operator):
    """With few enough iterations for rounding errors not to be amplified."""
    A, solver, t = SCALED[operator], MomentMatching(num_iterations=3), SCHEDULE.t_from_log_snr(-0.5)
    constraint, denoiser = measured(A, MIXTURE.sample(1, seeded(1)), 0.05), MIXTURE.denoiser(SCHEDULE)
    x_t, memory = normal(seeded(2), 2, *MIXTURE.shape), (*normal(seeded(3), 2, 2, *MIXTURE.shape), 0.1)
    means = []
    for factor in (1.0, 0.01, 0.1, 3.0, 100.0):
        scaled = Linear(Scaled(A, factor), factor * constraint.y, factor * 0.05)
        means.append(solver(denoiser, scaled, x_t, t, memory)[1])
    for mean in means[1:]:
        assert_close(mean, means[0], 1e-11)


# Evaluations and operator calls --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HalfDenoiser:
    """D(x_t) = x_t / 2 under any schedule, without host synchronization."""

    schedule: object
    dtype: torch.dtype = torch.float64

    def __call__(self, x_t, t):
        return 0.5 * x_t


def ending_at(max_log_snr):
    """Return a discrete schedule whose least noise is at this log-SNR."""
    table = DDPMSchedule.from_betas().alphas_cumprod
    kept = tuple(a for a in table if 0.5 * math.log(a / (1 - a)) <= max_log_snr)
    return DDPMSchedule(kept)


SCHEDULES = {
    "cosine": SCHEDULE,
    "flow": FlowSchedule(),
    "ddpm": DDPMSchedule.from_betas(),
    "ends at 1.75": ending_at(1.75),
    "ends at -1": ending_at(-1.0),
}
BUDGETS = {
    "fast": (PRESETS["moment_matching_fast"], 8),
    "default": (PRESETS["moment_matching"], 12),
    "posterior": (PRESETS["moment_matching_posterior"], 16),
    "posterior, one product": (
        replace(PRESETS["moment_matching_posterior"], solver=MomentMatching(fusion_snr=0.5, jacobian_products=1)),
        12,
    ),
    "posterior, no product": (
        replace(PRESETS["moment_matching_posterior"], solver=MomentMatching(fusion_snr=0.5, jacobian_products=0)),
        8,
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("sampler", "budget"), BUDGETS.values(), ids=BUDGETS)
def test_the_number_of_evaluations_holds_for_any_schedule(sampler, budget, schedule):
    counting = CountingDenoiser(HalfDenoiser(schedule))
    constraint = measured(HALF, MIXTURE.sample(1, seeded(1)), 0.05)
    last_x0(sampler.trajectory(counting, constraint, normal(seeded(0), 2, *MIXTURE.shape), seeded(1)))
    assert counting.nfe == sampler.evaluations(schedule) == budget


def test_jacobian_products_are_taken_at_the_levels_closest_to_log_snr_0():
    """At half of them, rounded down."""
    solver = MomentMatching(jacobian_products=2)
    for levels, expected in (
        ([-3.0, -2.0, -1.0, 0.5, 1.5, 3.0], {-1.0, 0.5, 1.5}),
        ([-3.0, -1.0, 2.0], {-1.0}),
        ([1.0], set()),
        ([], set()),
    ):
        assert solver.prepare(levels).product_log_snrs == expected
        assert solver.evaluations(levels) == len(levels) + 2 * len(expected)
    assert solver.product_log_snrs is None  # the solver itself does not change


def test_jacobian_products_without_noise_levels_are_refused():
    constraint, x_t = measured(HALF, MIXTURE.sample(1, seeded(1)), 0.1), normal(seeded(0), 1, *MIXTURE.shape)
    counting = CountingDenoiser(MIXTURE.denoiser(SCHEDULE))
    with pytest.raises(ValueError, match=r"^jacobian_products without noise levels: call prepare"):
        MomentMatching(jacobian_products=2)(counting, constraint, x_t, 0.5, None)
    assert counting.nfe == 0
    MomentMatching(jacobian_products=2).prepare([1.0])(counting, constraint, x_t, 0.5, None)
    assert counting.nfe == 1


@dataclass(frozen=True)
class CountedOperator(LinearOperator):
    """Counts the products with A and A^T, those of a generic `solve_normal` too."""

    inner: LinearOperator
    has_closed_form: bool
    calls: dict = field(default_factory=lambda: {"A": 0, "A^T": 0})

    def __call__(self, x):
        self.calls["A"] += 1
        return self.inner(x)

    def adjoint(self, y):
        self.calls["A^T"] += 1
        return self.inner.adjoint(y)

    @property
    def is_tight(self):
        return self.inner.is_tight

    def solve_normal(self, r, damping, num_iterations=30, tolerance=1e-5):
        if self.has_closed_form:
            return self.inner.solve_normal(r, damping, num_iterations, tolerance)
        return super().solve_normal(r, damping, num_iterations, tolerance)


@pytest.mark.parametrize("jacobian_products", [0, 1, 2])
@pytest.mark.parametrize("has_closed_form", [True, False])
def test_the_number_of_operator_calls_is_bounded(has_closed_form, jacobian_products):
    """Per evaluation, num_iterations products with A A^T for (5), as many for (4) without a closed form, and 4 more."""
    m, levels = 10, 8
    solver = MomentMatching(jacobian_products=jacobian_products, num_iterations=m, tolerance=0.0)
    sampler = replace(PRESETS["moment_matching_posterior"], solver=solver)
    operator = CountedOperator(Blur(1.0), has_closed_form)
    constraint = measured(operator, MIXTURE.sample(1, seeded(1)), 0.05)
    operator.calls.update({"A": 0, "A^T": 0})
    counting = CountingDenoiser(HalfDenoiser(SCHEDULE))
    last_x0(sampler.trajectory(counting, constraint, normal(seeded(0), 2, *MIXTURE.shape), seeded(1)))
    systems = levels + 4 * jacobian_products
    tilts = 0 if has_closed_form else levels - 1
    assert counting.nfe == systems
    assert operator.calls["A"] == m * (systems + tilts) + levels + (levels - 1)
    assert operator.calls["A^T"] == m * (systems + tilts) + systems + levels + 2 * (levels - 1)
    assert max(operator.calls.values()) <= (2 * m + 4) * counting.nfe


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [("mask", -3.0, 10), ("mask", 2.0, 3), ("mask", 5.0, 1), ("area", 2.0, 3), ("blur", 5.0, 10)],
)
def test_fewer_iterations_are_made_where_the_condition_number_is_known_and_small(name, level, expected):
    """The error of the mean is then at most tolerance * condition number * |y - A x0|."""
    solver, prior, constraint, x0 = gaussian_case(OPERATORS[name], 0.05)
    t = SCHEDULE.t_from_log_snr(level)
    denoiser, x_t = prior.denoiser(SCHEDULE), noisy(x0, t)
    _, exact, _ = solver(denoiser, constraint, x_t, t, None)
    counted = CountedOperator(constraint.operator, has_closed_form=True)
    few = replace(solver, num_iterations=10, tolerance=0.02)
    _, mean, _ = few(denoiser, replace(constraint, operator=counted), x_t, t, None)
    assert counted.calls["A"] == expected + 1  # one for y - A x0
    condition_number = StationaryCovariance.default(SHAPE[0]).condition_number(math.exp(2 * level))
    residual = constraint.residual(denoiser(x_t, t)).flatten(1).norm(dim=1)
    assert ((mean - exact).flatten(1).norm(dim=1) <= 0.02 * condition_number * residual).all()


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jacobian_products", [0, 2])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("operator", SCALED)
def test_a_batch_with_a_generator_per_sample_equals_its_singles(operator, noise, jacobian_products):
    """And the other laws of `check_solver`, over enough noise levels for the tilt and the fusion."""
    A = SCALED[operator]
    A = Mask(A.known.float()) if isinstance(A, Mask) else A
    constraint = measured(A, MIXTURE.sample(1, seeded(1)).float(), noise)
    solver = MomentMatching(jacobian_products=jacobian_products)
    check_solver(replace(PRESETS["moment_matching"], solver=solver), constraint, MIXTURE, num_steps=4, tolerance=1e-7)


@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_a_measurement_per_sample_is_used_by_that_sample(level):
    # Before they converge, conjugate residuals amplify rounding errors tenfold per iteration.
    solver, t = MomentMatching(num_iterations=4), SCHEDULE.t_from_log_snr(level)
    constraint = measured(Blur(1.0), MIXTURE.sample(3, seeded(1)), 0.05)
    x_t, denoiser = normal(seeded(2), 3, *MIXTURE.shape), MIXTURE.denoiser(SCHEDULE)
    memory = (normal(seeded(3), 3, *MIXTURE.shape), normal(seeded(4), 3, *MIXTURE.shape), 0.1)
    _, together, _ = solver(denoiser, constraint, x_t, t, memory)
    for i in range(3):
        one = slice(i, i + 1)
        single = solver(
            denoiser, replace(constraint, y=constraint.y[one]), x_t[one], t, (memory[0][one], memory[1][one], 0.1)
        )[1]
        assert_close(together[one], single, 1e-10)


# Measurements without noise, and residuals of zero -------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["mask", "mask of channels", "area", "gray", "identity", "inner product"])
def test_a_measurement_without_noise_is_met_exactly_at_every_level(operator):
    solver, prior, constraint, original = gaussian_case(OPERATORS[operator], 0.0)
    solver, memory = replace(solver, fusion_snr=0.1), None
    for level in (-3.0, 0.0, 3.0):
        t = SCHEDULE.t_from_log_snr(level)
        _, mean, memory = solver(prior.denoiser(SCHEDULE), constraint, noisy(original, t), t, memory)
        assert (constraint.residual_norm(mean) < 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@any_operator
def test_a_residual_of_zero_changes_nothing(A, noise, dtype):
    """With and without a tilt: there is no division by it."""
    t, x_t = SCHEDULE.t_from_log_snr(0.5), normal(seeded(0), 2, *SHAPE).to(dtype)
    A = Mask(A.known.to(dtype)) if isinstance(A, Mask) else A
    A = InnerProduct(A.row.to(dtype)) if isinstance(A, InnerProduct) else A
    if A is OPERATORS["area of mask"]:
        A = Downsample(2) @ Mask(KNOWN.to(dtype))
    zero = torch.zeros_like(x_t)
    constraint = Linear(A, torch.zeros_like(A(x_t)[:1]), noise)
    denoiser = HalfDenoiser(SCHEDULE)
    for memory in (None, (zero, zero, 0.5)):
        _, mean, memory = MomentMatching()(denoiser, constraint, zero, t, memory)
        assert mean.equal(zero) and memory[1].equal(zero)


# Losses, sums and decoders -------------------------------------------------------------------------------------------


def mean_square():
    return Loss(lambda x0: x0.square().flatten(1).mean(1))


def other_constraints():
    """Return constraints that are linearized, each with a bound on the residual relative to plain sampling's.

    The bounds are about 1.5 times the largest of 15 measured ones (three presets and five seeds): .001, .43, .062,
    .037, .093 and .001. No picture meets both the mask and the loss.
    """
    x = MIXTURE.sample(1, seeded(1))
    mask, area = measured(HALF, x, 0.05), measured(Downsample(2), x, 0.05)
    return {
        "loss": (mean_square(), 0.005),
        "mask and loss": (Sum((mask, mean_square()), (1.0, 1.0)), 0.6),
        "nonlinear": (Nonlinear(lambda x: torch.tanh(2 * x), torch.tanh(2 * x), 0.05), 0.1),
        "mask and area": (Sum((mask, area), (1.0, 1.0)), 0.1),
        "decoded mask": (DecodedConstraint(mask, IdentityAutoencoder()), 0.06),
        "decoded area, autograd": (DecodedConstraint(area, IdentityAutoencoder(), backward=True), 0.14),
        "decoded loss": (DecodedConstraint(mean_square(), IdentityAutoencoder()), 0.005),
    }


def relative_residual(constraint, name, seed):
    """Return the residual norm of samples, over that of plain sampling."""
    options = {"shape": (8, *MIXTURE.shape), "dtype": torch.float64}
    samples = sample(MIXTURE.denoiser(SCHEDULE), constraint, solver=name, generator=seeded(seed), **options)
    plain = sample(
        MIXTURE.denoiser(SCHEDULE),
        Unconstrained(),
        solver=replace(PRESETS[name], solver=Plain()),
        generator=seeded(seed),
        **options,
    )
    assert samples.isfinite().all() and samples.abs().max() < 10
    return float(constraint.residual_norm(samples).mean() / constraint.residual_norm(plain).mean())


@pytest.mark.parametrize(
    "name", ["moment_matching_fast", "moment_matching", "moment_matching_loss", "moment_matching_posterior"]
)
@pytest.mark.parametrize("key", other_constraints())
def test_losses_sums_and_decoded_constraints_are_met(key, name):
    constraint, bound = other_constraints()[key]
    assert relative_residual(constraint, name, seed=0) < bound


@pytest.mark.parametrize("gain", [1 / 32, 1.0, 100.0])
@pytest.mark.parametrize("name", ["moment_matching_fast", "moment_matching", "moment_matching_posterior"])
def test_a_sum_of_means_and_a_loss_meets_both_whatever_the_gain(name, gain):
    """The noise of each part is a distance of 0.01, or 0.01 / sqrt(n) in a mean of n entries: 0.0025 in the means of 16
    pixels, 0.0014 in that of 48 entries. The bound is four and seven times as much; measured: 0.0025 and 0.0035."""

    def colors(x):
        return x[..., 4:, 2:6].mean((2, 3))

    def darkness(x):
        return x[:, :, :2].mean((1, 2, 3)) + 0.8

    target = torch.tensor([[0.5, -0.5, -0.5]], dtype=torch.float64)
    A = operator(lambda x: 4 * gain * colors(x), MIXTURE.shape)  # A A^T = gain^2 I
    both = Sum((Linear(A, 4 * gain * target), Loss(lambda x: darkness(x).square())), (1.0, 1.0))
    options = {"solver": name, "generator": seeded(1), "dtype": torch.float64}
    x0 = sample(MIXTURE.denoiser(SCHEDULE), both, (4, *MIXTURE.shape), **options)
    assert (colors(x0) - target).abs().max() < 0.01
    assert darkness(x0).abs().max() < 0.01


@pytest.mark.parametrize("level", [-2.0, 0.0, 2.0])
def test_an_affine_loss_gets_the_conditional_mean_of_its_linearization(level):
    """x0 + V w (c / w^T V w) for c the value to be reached, up to the noise floor; a step is limited in length."""
    g, t = seeded(0), SCHEDULE.t_from_log_snr(level)
    model, w, x_t = StationaryCovariance.default(1), normal(g, 1, 1, 3, 4), normal(g, 2, 1, 3, 4)

    def fn(x0):
        return ((x0 * w).flatten(1).sum(1) - 3).abs()

    denoiser = HalfDenoiser(SCHEDULE)
    exactly = MomentMatching(noise_floor=0.0, nonlinear_steps=0)
    _, x0, _ = exactly(denoiser, Loss(fn, max_step_rms=math.inf), x_t, t, None)
    plain, snr = denoiser(x_t, t), math.exp(2 * level)
    along = model.product(w, snr)
    error = (3 - (plain * w).flatten(1).sum(1)).view(2, 1, 1, 1)
    assert_close(x0, plain + error * along / (along * w).sum(), 1e-10)
    _, near, _ = exactly(denoiser, Loss(fn, max_step_rms=0.1), x_t, t, None)
    distance = (x0 - plain).flatten(1).norm(dim=1)
    assert_close((near - plain).flatten(1).norm(dim=1), distance.clamp(max=0.1 * math.sqrt(12)), 1e-10)
    assert (distance > 0.4).any()


@pytest.mark.parametrize("max_step_rms", [0.1, math.inf])
def test_the_tilt_under_a_loss_is_a_step_of_limited_length_to_its_root(max_step_rms):
    """Of an affine loss with V = I / snr, from an expected mean m' that is the remembered one: x_t + alpha_t step."""
    g, t = seeded(0), SCHEDULE.t_from_log_snr(0.3)
    w, x_t, m = normal(g, 1, 1, 3, 4), normal(g, 2, 1, 3, 4), normal(g, 2, 1, 3, 4)
    loss = Loss(lambda x0: ((x0 * w).flatten(1).sum(1) - 5).abs(), max_step_rms)
    alpha_t, sigma_t = SCHEDULE(t)
    memory = (m, alpha_t / sigma_t**2 * x_t, (alpha_t / sigma_t) ** 2)
    recording = RecordingDenoiser(HalfDenoiser(SCHEDULE))
    MomentMatching(fusion_snr=0.0, noise_floor=0.0)(recording, loss, x_t, t, memory)
    step = (5 - (m * w).flatten(1).sum(1)).view(2, 1, 1, 1) * w / w.square().sum()
    rms = step.square().flatten(1).mean(1).sqrt().view(2, 1, 1, 1)
    assert (rms > 0.2).all()
    assert_close(recording.calls[0][0], x_t + alpha_t * step * (max_step_rms / rms).clamp(max=1), 1e-10)


@pytest.mark.parametrize("power", [0.3, 0.4])
def test_a_loss_whose_newton_steps_always_overshoot_is_not_increased(power):
    """The root mean square to the power p: a Newton step leads from r to r (1 / p - 1) on the far side of the root."""
    loss = Loss(lambda x0: x0.square().flatten(1).mean(1) ** (power / 2))
    x_t, t = 0.2 * normal(seeded(0), 4, *MIXTURE.shape), SCHEDULE.t_from_log_snr(0.0)
    denoiser = HalfDenoiser(SCHEDULE)
    _, x0, _ = MomentMatching()(denoiser, loss, x_t, t, None)
    assert (loss.residual_norm(x0) <= loss.residual_norm(denoiser(x_t, t))).all()


# Host synchronization ------------------------------------------------------------------------------------------------


class _WithoutSynchronization(TorchDispatchMode):
    """Refuses operations whose result the host must wait for."""

    REFUSED = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_assert_async")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.REFUSED or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise AssertionError(f"{name} synchronizes with the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def without_host_synchronization():
    """Refuse reading from tensors, and making tensors of Python numbers, which waits for the copy on a GPU."""

    def refuse(*_, **__):
        raise AssertionError("a tensor is read by the host, or made from Python numbers")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "cpu", "new_tensor"):
            patch.setattr(torch.Tensor, name, refuse)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, refuse)
        with _WithoutSynchronization():
            yield


def test_synchronizations_are_found():
    x = torch.ones(2)
    for read in (
        lambda: bool(x.sum() > 0),
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: x.tolist(),
        lambda: x.new_tensor([1.0]),
        lambda: torch.equal(x, x),
        lambda: math.sqrt(x.sum()),
    ):
        with without_host_synchronization(), pytest.raises(AssertionError):
            read()


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("name", ["moment_matching_fast", "moment_matching", "moment_matching_posterior"])
@pytest.mark.parametrize("operator", [*SCALED, "gray", "gray of blur"])
def test_a_run_does_not_wait_for_the_device(operator, name, noise):
    """Under a linear constraint, after a first run that fills the caches of spectra and kernels."""
    A = (OPERATORS | SCALED)[operator]
    constraint, denoiser = measured(A, MIXTURE.sample(1, seeded(1)), noise), HalfDenoiser(SCHEDULE)
    x_T, sampler = normal(seeded(2), 2, *MIXTURE.shape), PRESETS[name]
    first = last_x0(sampler.trajectory(denoiser, constraint, x_T, seeded(3)))
    with without_host_synchronization():
        second = last_x0(sampler.trajectory(denoiser, constraint, x_T, seeded(3)))
    assert second.equal(first)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "range_"),
    [
        ("fusion_snr", -0.1, "at least 0"),
        ("fusion_snr", math.inf, "finite"),
        ("fusion_snr", math.nan, "finite"),
        ("noise_floor", -0.1, "at least 0"),
        ("tolerance", -0.1, "at least 0"),
        ("product_center", math.nan, "number"),
        ("tilt_max_log_snr", math.nan, "number"),
        ("noise_floor", math.nan, "at least 0"),
        ("jacobian_products", -1, "integer of at least 0"),
        ("jacobian_products", True, "integer of at least 0"),
        ("num_iterations", 0, "integer of at least 1"),
        ("num_iterations", True, "integer of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_with_name_value_and_range(setting, value, range_):
    with pytest.raises(ValueError, match=rf"^{setting} = {value}: .*{range_}"):
        MomentMatching(**{setting: value})


def test_pure_noise_is_refused():
    schedule, constraint = FlowSchedule(), measured(HALF, MIXTURE.sample(1, seeded(1)), 0.1)
    x_t = normal(seeded(0), 1, *MIXTURE.shape)
    with pytest.raises(ValueError, match=r"moment_matching cannot start from pure noise \(alpha_t = 0\)"):
        MomentMatching()(HalfDenoiser(schedule), constraint, x_t, 1.0, None)


def test_what_is_supported():
    constraint = measured(HALF, MIXTURE.sample(1, seeded(1)), 0.1)
    for supported in (constraint, mean_square(), Sum((constraint, mean_square()), (1.0, 2.0))):
        assert MomentMatching().supports(supported)
        assert MomentMatching().supports(DecodedConstraint(supported, IdentityAutoencoder()))
    assert not MomentMatching().supports(Unconstrained())


def test_the_covariance_is_that_of_the_number_of_channels_unless_one_is_given():
    constraint, x_t, t = measured(HALF, MIXTURE.sample(1, seeded(1)), 0.1), normal(seeded(2), 1, 3, 8, 8), 0.5

    def mean(solver):
        return solver(HalfDenoiser(SCHEDULE), constraint, x_t, t, None)[1]

    assert mean(MomentMatching()).equal(mean(MomentMatching(StationaryCovariance.default(3))))
    default = StationaryCovariance.default(3)
    white = StationaryCovariance(default.channel_covariance, exponent=0.5)
    assert not torch.allclose(mean(MomentMatching()), mean(MomentMatching(white)))
    assert MomentMatching().with_covariance(white) == MomentMatching(white)
    assert MomentMatching(default).with_covariance(white) == MomentMatching(default)


@pytest.mark.parametrize("name", ["fusion_snr", "noise_floor", "product_center", "tilt_max_log_snr"])
def test_no_setting_may_be_nan(name):
    with pytest.raises(ValueError, match=name):
        MomentMatching(**{name: math.nan})
