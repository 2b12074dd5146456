"""Each law that `check_operator` and `check_solver` check is broken on purpose, and the break is named."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from adhere.core.baselines.dps import DPS
from adhere.core.constraints import Constraint, Linear, Loss
from adhere.core.derivatives import vjp
from adhere.core.filters import Blur, Downsample
from adhere.core.latents import DecodedConstraint
from adhere.core.noise import randn
from adhere.core.operators import Gray, Identity, LinearOperator, Mask, operator
from adhere.core.presets import PRESETS
from adhere.core.sampling import Sampler
from adhere.core.solvers.base import Solver, StochasticSolver
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DDIM, Transition
from adhere.testing import check_operator, check_solver
from adhere.testing.priors import Gaussian
from tests.core.exact import IdentityAutoencoder, random_mixture, seeded

SHAPE = (3, 4, 6)


def message_of(check, *arguments, **options):
    """Return the one line that a check fails with."""
    with pytest.raises(AssertionError) as failure:
        check(*arguments, **options)
    assert "\n" not in str(failure.value)
    return str(failure.value)


# Operators -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyOperator(LinearOperator):
    """Two functions as an operator, which need not be each other's adjoint."""

    forward: Callable
    backward: Callable = lambda y: y

    def __call__(self, x):
        return self.forward(x)

    def adjoint(self, y):
        return self.backward(y)


@dataclass(frozen=True)
class ClaimedTight(Blur):
    @property
    def is_tight(self):
        return True


@dataclass(frozen=True)
class ForgetsDamping(Identity):
    def solve_normal(self, r, damping, num_iterations=30, tolerance=1e-5):
        return r


@dataclass(frozen=True)
class DividesByDamping(Mask):
    def solve_normal(self, r, damping, num_iterations=30, tolerance=1e-5):
        return self.known * r / (1 + damping) + (1 - self.known) * r / torch.as_tensor(damping, dtype=r.dtype)


@dataclass(frozen=True)
class OneDampingForAll(Identity):
    def solve_normal(self, r, damping, num_iterations=30, tolerance=1e-5):
        return r / (1 + (damping.flatten()[0] if isinstance(damping, torch.Tensor) else damping))


KNOWN = torch.tensor([1.0, 0.0]).repeat(3).expand(1, 1, 4, 6)
BROKEN_OPERATORS = {
    "constant added": (AnyOperator(lambda x: x + 0.5), r"^zero: the largest entry of A 0 is 5.0e-01, not 0$"),
    "NaN": (AnyOperator(lambda x: x / x), r"^zero: .* is nan"),
    "batch dropped": (AnyOperator(lambda x: x.mean(0, keepdim=True)), r"^shape: A x is \(1, 3, 4, 6\) float64"),
    "one number": (AnyOperator(lambda x: x.sum()), r"^shape: A x is \(\) float64"),
    "one number per sample": (AnyOperator(lambda x: x.mean((1, 2, 3))), r"^shape: A x is \(2,\) .*: return \(B, 1\)"),
    "other dtype": (AnyOperator(lambda x: x.float()), r"^shape: A x is \(2, 3, 4, 6\) float32 for x .* float64$"),
    "adjoint of other shape": (
        AnyOperator(lambda x: x[..., :2]),
        r"^shape: A\^T y is \(2, 3, 4, 2\) float64 for x \(2,",
    ),
    "adjoint of other dtype": (AnyOperator(lambda x: x, lambda y: y.float()), r"^shape: A\^T y is .* float32"),
    "absolute value": (AnyOperator(torch.abs), r"^linearity: .*: relative error .* > 9.1e-13$"),
    "square": (AnyOperator(torch.square), r"^linearity: "),
    "batches mixed": (AnyOperator(lambda x: x - x.mean(0)), r"^batch: A x of a batch is not that of its singles"),
    "batches mixed by the adjoint": (
        AnyOperator(lambda x: x, lambda y: y - y.mean(0)),
        r"^batch: A\^T y of a batch is not that of its singles",
    ),
    "adjoint times two": (AnyOperator(lambda x: x, lambda y: 2 * y), r"^adjointness: <A x, y> is not <x, A\^T y>: rel"),
    "adjoint not reversed": (AnyOperator(lambda x: x.roll(1, -1), lambda y: y.roll(1, -1)), r"^adjointness: "),
    "not tight": (ClaimedTight(1.0), r"^is_tight: A A\^T y is not a multiple of y: relative error"),
    "damping ignored": (
        ForgetsDamping(),
        r"^solve_normal: \(A A\^T \+ 1.0e\+00 I\) u is not r: relative error 1.0e\+00",
    ),
    "damping of another sample": (OneDampingForAll(), r"^solve_normal: \(A A\^T \+ d_i I\) u is not r: relative error"),
    "division by zero": (DividesByDamping(KNOWN), r"^solve_normal: A A\^T u - r is larger than r: relative error nan"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN_OPERATORS.values(), ids=BROKEN_OPERATORS)
def test_every_law_of_operators_is_checked(broken, message):
    found = message_of(check_operator, broken, SHAPE)
    assert re.search(message, found), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correct_operators_pass_in_both_dtypes(dtype):
    for A in (Identity(), Mask(KNOWN), Gray(), Downsample(2), Downsample(2, "bicubic"), Blur(0.8), Gray() @ Blur(0.8)):
        check_operator(A, SHAPE, dtype=dtype)


def test_an_operator_with_weights_in_float32_is_checked_in_float32():
    weights = torch.randn(2, 3, 3, 3, generator=seeded(0))
    A = operator(lambda x: torch.nn.functional.conv2d(x, weights), SHAPE)
    check_operator(A, SHAPE, dtype=torch.float32)


def test_an_operator_on_nothing_passes():
    """All entries unknown: every residual is zero, and there is no division by it."""
    check_operator(Mask(torch.zeros(1, 1, 4, 6)), SHAPE)


def test_the_tolerance_of_an_operator_can_be_changed():
    """An adjoint that is off by one part in a million is found, unless that is allowed."""
    nearly = AnyOperator(lambda x: x, lambda y: (1 + 1e-6) * y)
    message_of(check_operator, nearly, SHAPE)
    check_operator(nearly, SHAPE, tolerance=1e-4)


def test_the_generator_decides_the_images():
    calls = []
    for seed in (1, 1, 2):
        recorded = []
        check_operator(AnyOperator(lambda x, to=recorded: to.append(x) or x), SHAPE, seeded(seed))
        calls.append(recorded[1])
    assert calls[0].equal(calls[1]) and not calls[0].equal(calls[2])


# Solvers -------------------------------------------------------------------------------------------------------------


class OneEvaluation(Solver):
    """Base of the solvers below: plain sampling, with one evaluation per noise level."""

    def change(self, x0):
        return x0

    def __call__(self, denoiser, constraint, x_t, t, memory):
        return x_t, self.change(denoiser(x_t, t)), None

    def evaluations(self, log_snrs, state_size=0):
        return len(log_snrs)


class LosesAColumn(OneEvaluation):
    def change(self, x0):
        return x0[..., 1:]


class ChangesDtype(OneEvaluation):
    def change(self, x0):
        return x0.double()


class DividesByZero(OneEvaluation):
    def change(self, x0):
        return x0 / 0


class KeepsTheGraph(OneEvaluation):
    def __call__(self, denoiser, constraint, x_t, t, memory):
        with torch.enable_grad():
            return x_t, denoiser(x_t.requires_grad_(), t), None


class KeepsTheLastX0(OneEvaluation):
    """Averages with the x0 of its last call, which may be of another run."""

    last = None

    def change(self, x0):
        before, self.last = self.last, x0
        return x0 if before is None else (x0 + before) / 2


class DrawsFromTheGlobalGenerator(OneEvaluation):
    def change(self, x0):
        return x0 + 0.1 * torch.randn_like(x0)


class EvaluatesTwice(OneEvaluation):
    def __call__(self, denoiser, constraint, x_t, t, memory):
        denoiser(x_t, t)
        return super().__call__(denoiser, constraint, x_t, t, memory)


class StatesTooMany(OneEvaluation):
    def evaluations(self, log_snrs, state_size=0):
        return 2 * len(log_snrs)


class EvaluatesEachSampleAlone(OneEvaluation):
    def __call__(self, denoiser, constraint, x_t, t, memory):
        return x_t, torch.cat([denoiser(one, t) for one in x_t.split(1)]), None


class HidesABackwardPass(OneEvaluation):
    def __call__(self, denoiser, constraint, x_t, t, memory):
        x0, transposed = vjp(lambda x: denoiser(x, t), x_t)
        return x_t + 0.01 * transposed(x0), x0, None


class StatesTooManyBackwardPasses(OneEvaluation):
    def backward_passes(self, log_snrs):
        return 1


class MixesTheBatch(OneEvaluation):
    def change(self, x0):
        return x0 - 0.1 * x0.mean(0)


class DropsTheBatch(OneEvaluation):
    def change(self, x0):
        return x0.mean(0, keepdim=True)


@dataclass(frozen=True)
class DrawsFromOneGenerator(StochasticSolver[None]):
    def __call__(self, denoiser, constraint, x_t, t, memory):
        source = self.run_generators if isinstance(self.run_generators, torch.Generator) else self.run_generators[0]
        x_t = x_t + 0.1 * randn(x_t.shape, x_t, source)
        return x_t, denoiser(x_t, t), None

    def evaluations(self, log_snrs, state_size=0):
        return len(log_snrs)


BROKEN_SOLVERS = [
    (LosesAColumn(), r"^state: x0 is \(1, 1, 4, 3\) float32 for noise \(1, 1, 4, 4\) float32$"),
    (ChangesDtype(), r"^state: x0 is \(1, 1, 4, 4\) float64 for noise \(1, 1, 4, 4\) float32$"),
    (DividesByZero(), r"^state: x0 is not finite at step 0$"),
    (KeepsTheGraph(), r"^state: x_t carries an autograd graph under torch.no_grad: detach it$"),
    (KeepsTheLastX0(), r"^memory: x0 at step 0 changes by .* beside another run$"),
    (DrawsFromTheGlobalGenerator(), r"^memory: x0 at step 0 changes by .* beside another run$"),
    (EvaluatesTwice(), r"^evaluations: 3 are stated and 6 are made, for a batch of 1$"),
    (StatesTooMany(), r"^evaluations: 6 are stated and 3 are made, for a batch of 1$"),
    (EvaluatesEachSampleAlone(), r"^evaluations: 3 are stated and 9 are made, for a batch of 3$"),
    (HidesABackwardPass(), r"^backward passes: 0 are stated and 3 are made, for a batch of 1$"),
    (StatesTooManyBackwardPasses(), r"^backward passes: 1 are stated and 0 are made, for a batch of 1$"),
    (MixesTheBatch(), r"^batch: x0 differs from that of single runs by "),
    (DropsTheBatch(), r"^state: x0 is \(1, 1, 4, 4\) float64 for noise \(3, 1, 4, 4\) float64$"),
    (DrawsFromOneGenerator(), r"^batch: x0 differs from that of single runs by "),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN_SOLVERS, ids=[type(one).__name__ for one, _ in BROKEN_SOLVERS])
def test_every_law_of_solvers_is_checked(broken, message):
    sampler = Sampler(broken, DDIM(eta=0.0))
    found = message_of(check_solver, sampler)
    assert re.search(message, found), found


def test_a_transition_is_checked_too():
    @dataclass
    class KeepsTheLastStep(Transition):
        last: float = 0.0

        def __call__(self, schedule, x_t, x0, t, s, memory, generator):
            x_s, _ = DDIM(0.0)(schedule, x_t, x0, t, s, None, generator)
            before, self.last = self.last, float(x0.mean())
            return x_s + 0.1 * before, None

    assert message_of(check_solver, Sampler(Plain(), KeepsTheLastStep())).startswith("memory: x_t at step 1 changes by")


def test_fewer_evaluations_than_stated_are_allowed_on_request_and_more_are_not():
    check_solver(StatesTooMany(), stops_early=True)
    check_solver(StatesTooManyBackwardPasses(), stops_early=True)
    assert message_of(check_solver, EvaluatesTwice(), stops_early=True).startswith("evaluations: 3 are stated")


def test_correct_solvers_and_samplers_pass():
    check_solver(OneEvaluation())
    check_solver(InexactNewton(num_iterations=2), num_steps=2)
    check_solver(Sampler(DPS(num_iterations=1), DDIM()))
    check_solver(replace(PRESETS["repaint"], transition=DDIM(0.0)))


@pytest.mark.parametrize(
    "constraint",
    [
        Loss(lambda x0: x0.square().flatten(1).sum(1)),
        Linear(Downsample(2), torch.zeros(1, 1, 2, 2), 0.1),
        DecodedConstraint(Linear(Identity(), torch.zeros(1, 1, 4, 4), 0.1), IdentityAutoencoder()),
    ],
    ids=["loss", "down-sampling", "through a decoder"],
)
def test_a_solver_is_checked_with_a_constraint_of_its_author(constraint):
    check_solver(DDNM(), constraint, tolerance=1e-6)


def test_a_solver_is_checked_on_a_prior_of_its_author():
    """Of other shapes and kinds; the constraint on the left half follows the shape."""
    check_solver(DDNM(), prior=random_mixture(seeded(0), shape=(2, 2, 6)))
    check_solver(InexactNewton(1), prior=Gaussian(torch.zeros(3, 2, 2), torch.eye(12)))


def test_a_constraint_that_the_solver_does_not_support_is_refused():
    class NotLinear(Constraint):
        def neg_grad(self, x0):
            return -x0

        def residual_norm(self, x0):
            return x0.flatten(1).norm(dim=1)

    with pytest.raises(TypeError, match="DDNM does not support NotLinear"):
        check_solver(DDNM(), NotLinear())
