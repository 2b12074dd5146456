"""Measurements that cannot be right are refused before the first evaluation, each with one line."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adhere
from adhere import Blur, Custom, Downsample, Gray, Linear, LinearOperator, Loss, Mask, Nonlinear, Sum, operator
from adhere.core._checks import check_constraint, check_range, is_out_of_memory
from adhere.core.constraints import Constraint, Unconstrained
from adhere.core.denoisers import CountingDenoiser
from adhere.core.schedules import CosineSchedule
from adhere.errors import AdhereError, AdhereWarning
from adhere.testing.priors import Gaussian
from tests.tiny_models import load

SHAPE = (3, 8, 8)
X = torch.linspace(-1, 1, 192).view(1, *SHAPE)
M = torch.linspace(-1, 1, 192 * 20).sin().view(20, 192)
CPU = torch.device("cpu")


def sense(x: Tensor) -> Tensor:
    return x.flatten(1) @ M.T.to(x.dtype)


def unsense(y: Tensor) -> Tensor:
    return (y @ M.to(y.dtype)).view(-1, *SHAPE)


class Given(LinearOperator):
    """An operator of two functions, as users write them."""

    def __init__(self, forward: Callable[[Tensor], Any], adjoint: Callable[[Tensor], Any] = unsense) -> None:
        self.forward, self.transposed = forward, adjoint

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.transposed(y)


class Nearest(Constraint):
    """C = |x0|^2 / 2 by two functions, as users write it."""

    def __init__(
        self,
        gradient: Callable[[Tensor], Any] = torch.neg,
        residual: Callable[[Tensor], Any] = lambda x: x.flatten(1).norm(dim=1),
    ) -> None:
        self.gradient, self.residual = gradient, residual

    def neg_grad(self, x0: Tensor) -> Tensor:
        return self.gradient(x0)

    def residual_norm(self, x0: Tensor) -> Tensor:
        return self.residual(x0)


def without_grad_mode(y: Tensor) -> Tensor:
    leaf = torch.zeros(len(y), *SHAPE, requires_grad=True)
    return torch.autograd.grad(sense(leaf), leaf, y)[0]


Y, A = sense(X), Given(sense)
WRONG: dict[str, tuple[Callable[[], Constraint], str]] = {
    "no batch": (
        lambda: Linear(A, Y[0]),
        r"y has shape \(20,\), A\(x0\) has \(1, 20\): add the batch dimension, y\[None",
    ),
    "no batch of pictures": (
        lambda: Linear(Blur(1.0), X[0]),
        r"y has shape \(3, 8, 8\), A\(x0\) has \(1, 3, 8, 8\): add",
    ),
    "too short": (lambda: Linear(A, Y[:, 1:]), r"y has shape \(1, 19\), A\(x0\) has \(1, 20\)"),
    "transposed": (lambda: Linear(A, Y.T), r"y has shape \(20, 1\), A\(x0\) has \(1, 20\)"),
    "a number": (lambda: Linear(A, torch.tensor(1.0)), r"y has shape \(\), A\(x0\) has \(1, 20\)"),
    "batch": (lambda: Linear(A, Y.repeat(3, 1)), r"give one y for all samples of the batch \(2\), or one for each"),
    "one channel": (lambda: Linear(Downsample(2), torch.zeros(1, 1, 4, 4)), r"A\(x0\) has \(1, 3, 4, 4\)"),
    "another factor": (
        lambda: Linear(Downsample(3), torch.zeros(1, 3, 2, 2)),
        r"A cannot be applied to .*: down-sampling by 3",
    ),
    "mask of another size": (
        lambda: Linear(Mask(torch.ones(1, 1, 4, 4)), torch.zeros(1, 3, 4, 4)),
        r"A cannot be applied to",
    ),
    "mask of one channel": (lambda: Linear(Mask(torch.ones(1, 1, 8, 8)), X[:, :1]), r"y has shape \(1, 1, 8, 8\)"),
    "float64": (lambda: Linear(A, Y.double()), r"y has dtype torch.float64, A\(x0\) has torch.float32: write y.to\("),
    "float16": (lambda: Linear(A, Y.half()), r"y has dtype torch.float16, A\(x0\) has torch.float32: write y.to\("),
    "NaN": (lambda: Linear(A, torch.where(Y.max() == Y, math.nan, Y)), r"y has NaN or infinity in 1 of 20 entries"),
    "infinity": (lambda: Linear(A, Y / 0), r"y has NaN or infinity in 20 of 20 entries"),
    "empty": (lambda: Linear(Given(lambda x: x.flatten(1)[:, :0]), Y[:, :0]), r"is empty"),
    "affine": (
        lambda: Linear(Given(lambda x: sense(x) + 1), Y),
        r"A\(0\) is not 0 \(its largest entry is 1\): subtract",
    ),
    "returns NaN": (lambda: Linear(Given(lambda x: sense(x) * math.nan), Y), r"A returns NaN or infinity"),
    "complex": (
        lambda: Linear(Given(torch.fft.fft2, lambda y: y), X),
        r"A returns complex numbers: measure torch.view_as",
    ),
    "flipped adjoint": (
        lambda: Linear(Given(sense, lambda y: unsense(y).flip(1)), Y),
        r"the adjoint is not the transpose",
    ),
    "adjoint of another size": (
        lambda: Linear(Given(sense, lambda y: 0.9 * unsense(y)), Y),
        r"the adjoint is not the transp",
    ),
    "adjoint of another shape": (lambda: Linear(Given(sense, lambda y: y @ M), Y), r"A\^T of y returns \(1, 192\)"),
    "adjoint of another dtype": (
        lambda: Linear(Given(sense, lambda y: unsense(y).double()), Y),
        r"A\^T of y .*float64",
    ),
    "adjoint without a graph": (
        lambda: Linear(Given(sense, without_grad_mode), Y),
        r"A\^T cannot be applied to \(1, 20\)",
    ),
    "not linear": (lambda: Linear(operator(lambda x: (3 * x).tanh(), SHAPE), X), r"or A is not linear"),
    "nonlinear NaN": (lambda: Nonlinear(torch.square, X / 0), r"y has NaN or infinity"),
    "nonlinear shape": (lambda: Nonlinear(torch.square, X[0]), r"f\(x0\) has \(1, 3, 8, 8\): add the batch dimension"),
    "nonlinear f": (lambda: Nonlinear(torch.log, X), r"f returns NaN or infinity for an image in \[-1, 1\]"),
    "a mean per sample": (
        lambda: Linear(operator(lambda x: x.mean((1, 2, 3)), SHAPE), torch.zeros(1)),
        r"A\(x0\) has shape \(1,\): return \(B, 1\), for example by \.reshape\(len\(x\), -1\)",
    ),
    "a scalar as residual": (
        lambda: Nearest(residual=lambda x: x.square().mean()),
        r"residual_norm of Nearest returns the shape \(\) for x0 \(2, 3, 8, 8\): return \(2,\)",
    ),
    "a residual per pixel": (lambda: Nearest(residual=torch.abs), r"\(2, 3, 8, 8\): return \(2,\)"),
    "a gradient of one sample": (
        lambda: Nearest(gradient=lambda x: -x[:1]),
        r"neg_grad of Nearest returns the shape \(1, 3, 8, 8\) for x0 \(2, 3, 8, 8\): return \(2, 3, 8, 8\)",
    ),
    "a gradient of one channel": (lambda: Nearest(gradient=lambda x: -x[:, :1]), r"returns the shape \(2, 1, 8, 8\)"),
    "a part of a sum with a scalar": (
        lambda: Sum((Linear(A, Y), Nearest(residual=lambda x: x.square().mean())), (1.0, 1.0)),
        r"residual_norm of Nearest returns",
    ),
    "no tensor": (
        lambda: Nearest(residual=lambda x: 0.0),
        r"residual_norm of Nearest returned a float: return",
    ),
    "part of a sum": (lambda: Sum((Linear(A, Y / 0), Linear(A, Y)), (0.0, 1.0)), r"y has NaN or infinity"),
}


def denoiser() -> CountingDenoiser:
    prior = Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 0.1 * torch.eye(192, dtype=torch.float64))
    return CountingDenoiser(prior.denoiser(CosineSchedule()))


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_right_is_refused_before_the_first_evaluation(case):
    make, message = WRONG[case]
    D = denoiser()
    with pytest.raises(ValueError, match=message) as caught:
        adhere.sample(D, make(), (2, *SHAPE))
    assert "\n" not in str(caught.value)
    assert D.nfe == 0


@pytest.mark.parametrize("case", ["no batch", "NaN", "flipped adjoint", "affine", "float64", "nonlinear NaN"])
def test_pipelines_check_the_same(shared_model, case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        load(shared_model)(Custom(make(), (8, 8)), num_images_per_prompt=2)


WRONG_TYPES = """
import torch
from adhere import Gray, Linear, Nonlinear

y = torch.zeros(1, 1, 8, 8)
for arguments in (
    (Linear, torch.sin, y), (Linear, Gray(), y.numpy()), (Linear, Gray(), (y, y)),
    (Linear, Gray(), y, "0.1"), (Linear, Gray(), y, None), (Nonlinear, torch.sin, y.numpy()),
    (Nonlinear, torch.sin, y, torch.tensor(0.1)),
):
    try:
        arguments[0](*arguments[1:])
    except TypeError as error:
        print(error)
"""


def test_arguments_of_a_wrong_type_are_named():
    """In a process of its own, since in the tests jaxtyping would raise first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lines = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, env=environment).stdout
    expected = [
        "operator is a builtin_function_or_method: give a LinearOperator, such as adhere.operator(fn, (3, H, W))",
        *("y is a ndarray, noise a float", "y is a tuple, noise a float"),
        *("y is a Tensor, noise a str", "y is a Tensor, noise a NoneType", "y is a ndarray, noise a float"),
    ]
    hint = ": give a tensor y, and one number for the standard deviation of its noise"
    last = "y is a Tensor, noise a Tensor: give one number for a nonlinear f"
    assert lines.splitlines() == [expected[0], *(line + hint for line in expected[1:]), last]


def test_a_tuple_of_measurements_is_answered_with_a_sum():
    with pytest.raises(
        TypeError, match=r"A returned a tuple: return one tensor; adhere\.Sum takes several constraints"
    ):
        adhere.sample(denoiser(), Linear(Given(lambda x: (sense(x), x)), Y), (1, *SHAPE))


RIGHT: dict[str, Callable[[], Constraint]] = {
    "one for all": lambda: Linear(A, Y, 0.1),
    "one for each": lambda: Linear(A, Y.repeat(2, 1), 0.1),
    "mask of each": lambda: Linear(Mask((torch.rand(2, 1, 8, 8) > 0.5).float()), X),
    "NaN where nothing is measured": lambda: Linear(Mask((X > 0).float()), torch.where(X > 0, X, math.nan)),
    "nothing measured": lambda: Linear(Mask(torch.zeros(1, 1, 8, 8)), X),
    "A = 0": lambda: Linear(Given(lambda x: 0 * x, lambda y: 0 * y), 0 * X),
    "units": lambda: Linear(Given(lambda x: 1e3 * sense(x), lambda y: 1e3 * unsense(y)), 1e3 * Y),
    "small units": lambda: Linear(Given(lambda x: 1e-6 * sense(x), lambda y: 1e-6 * unsense(y)), 1e-6 * Y),
    "composition": lambda: Linear(Gray() @ Downsample(2) @ Blur(1.0), torch.zeros(1, 1, 4, 4), 0.1),
    "nonlinear": lambda: Nonlinear(torch.square, X.square(), 0.1),
    "loss": lambda: Loss(lambda x: x.square().mean((1, 2, 3))),
    "unconstrained": lambda: Unconstrained(),
    "a class of its own": lambda: Nearest(),
    "sum": lambda: Sum((Linear(A, Y, 0.1), Linear(Gray(), Gray()(X), 0.1)), (1.0, 0.0)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_can_be_right_passes(case):
    for check in (check_constraint, check_range):
        check(RIGHT[case](), (2, *SHAPE), torch.float32, CPU)


WAVE = torch.cos(math.pi * (torch.arange(8) + 0.5) / 8).expand(1, *SHAPE)  # noise hardly has any of it
KNOWN = (torch.arange(8) == 3).float().expand(1, 1, 8, 8).contiguous()
OPERATORS: dict[str, LinearOperator] = {
    "image": adhere.Identity(),
    "means": Downsample(2),
    "blur": Blur(1.0),
    "luma": Gray(),
    "some pixels": Mask(KNOWN),
    "sums": operator(lambda x: 1e4 * x.sum(1), SHAPE),
    "differences": operator(lambda x: x.diff(dim=3), SHAPE),
    "one wave": operator(lambda x: (x * WAVE).sum((1, 2, 3), keepdim=True), SHAPE),
    "random": A,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_measurements_of_every_image_in_the_range_are_accepted(name):
    """Of the brightest one, of one that this operator amplifies most, of noise; also with noise that was not stated."""
    A = OPERATORS[name]
    adjoint = A.adjoint(A(X.sign()))
    for x in (torch.ones_like(X), -torch.ones_like(X), X, adjoint.sign(), WAVE.sign(), torch.zeros_like(X)):
        noise = 0.2 * torch.randn(A(x).shape, generator=torch.Generator().manual_seed(0)) * A(torch.ones_like(X)).abs()
        check_range(Linear(A, A(x) + noise), (1, *SHAPE), torch.float32, CPU)
        check_range(Linear(A, A(x).repeat(2, *[1] * (A(x).ndim - 1))), (2, *SHAPE), torch.float32, CPU)
    hot = A(X).index_fill(A(X).ndim - 1, torch.tensor([0]), 3.0 * float(A(X).abs().max()))
    check_range(Linear(A, hot, 3.0 * float(A(X).abs().max())), (1, *SHAPE), torch.float32, CPU)


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - {"one wave"}))  # of which an image may have much or little
def test_measurements_of_bytes_are_refused(name, shared_model):
    """By a task and by a pipeline; `sample` only warns, since its states may have any range."""
    y = OPERATORS[name]((torch.linspace(0, 192, 192) % 7 * 40).view(1, *SHAPE))
    constraint = Linear(OPERATORS[name], y.requires_grad_())
    with pytest.raises(ValueError, match=r"^y goes from \S+ to \S+, which is far more than A gives for images in \["):
        adhere.Restore(y, OPERATORS[name])
    for refused in (constraint, Sum((Linear(Blur(1.0), X), constraint), (1.0, 1.0))):
        with pytest.raises(ValueError, match="measure images in"):
            load(shared_model)(Custom(refused, (8, 8)))
    with pytest.warns(AdhereWarning, match=r"^if the denoiser is of images in \[-1, 1\]: y goes from"):
        adhere.sample(denoiser(), constraint, (1, *SHAPE), num_inference_steps=1)


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("unsupported memory format option Preserve"), False),
        (RuntimeError("only 2 of 3 memory cells fit: out of memory cells"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_only_lack_of_memory_is_taken_for_it(error, is_lack):
    def fail(_: Tensor) -> Tensor:
        raise error

    assert is_out_of_memory(error) == is_lack
    expected = type(error) if is_lack else ValueError
    for failing in (lambda: Linear(Given(fail), Y), lambda: Linear(Given(sense, fail), Y)):
        with pytest.raises(expected, match=None if is_lack else "cannot be applied to"):
            check_constraint(failing(), (1, *SHAPE), torch.float32, CPU)


def test_torch_says_that_memory_is_lacking_as_we_read_it():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


def test_float32_measurements_serve_runs_in_float64():
    check_constraint(Linear(Downsample(2), Downsample(2)(X)), (2, *SHAPE), torch.float64, CPU)


def test_the_check_takes_two_products_and_one_with_the_adjoint_and_leaves_the_random_state_alone():
    calls = []
    A = Given(lambda x: calls.append("A") or sense(x), lambda y: calls.append("A^T") or unsense(y))
    state = torch.get_rng_state()
    check_constraint(Linear(A, Y, 0.1), (5, *SHAPE), torch.float32, CPU)
    assert sorted(calls) == ["A", "A", "A^T"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 0.0)])
def test_a_sum_whose_weights_are_all_zero_is_refused(weights):
    parts = tuple(Linear(A, Y) for _ in weights)
    with pytest.raises(ValueError, match="one of them above 0"):
        Sum(parts, weights)


@pytest.mark.parametrize("package", ["core", "pipelines"])
def test_checks_of_arguments_raise_what_the_command_prints_in_one_line(package):
    """Other errors are faults of the program, whose tracebacks are printed."""
    for path in Path(adhere.__file__).parent.joinpath(package).rglob("*.py"):
        assert not re.findall(r"raise (?:Value|Type)Error\b", path.read_text(encoding="utf-8")), path


def sampled(network, constraint=None):
    """Return four samples of a raw network under a mask."""
    D = adhere.NetworkDenoiser.from_alphas_cumprod(network, torch.linspace(0.999, 0.01, 1000))
    known = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    constraint = constraint or adhere.Linear(adhere.Mask(known), 0.5 * known.expand(1, 3, 8, 8))
    return adhere.sample(D, constraint, shape=(4, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def test_samples_that_are_not_finite_are_an_error():
    with pytest.raises(AdhereError, match="the samples are NaN or infinite"):
        sampled(lambda x, t: x * float("nan"))


@pytest.mark.parametrize("network", [lambda x, t: x[:, :1], lambda x, t: torch.cat([x, x], 1), lambda x, t: x.sum()])
def test_a_network_must_return_the_shape_of_its_input(network):
    with pytest.raises(ValueError, match=r"the network returned shape .* for \(4, 3, 8, 8\): they must agree"):
        sampled(network)


def test_a_mask_holds_zeros_and_ones():
    with pytest.raises(ValueError, match="the mask has values between 0 and 1: round it"):
        sampled(
            lambda x, t: 0.1 * x, adhere.Linear(adhere.Mask(torch.full((1, 1, 8, 8), 0.5)), torch.zeros(1, 3, 8, 8))
        )


@pytest.mark.parametrize("shape", [(4, 7), (2, 1, 2, 3, 4)])
def test_moment_matching_refuses_states_that_are_no_pictures_and_another_solver_takes_them(shape):
    prior = Gaussian(torch.zeros(shape[1:], dtype=torch.float64), torch.eye(math.prod(shape[1:]), dtype=torch.float64))
    D, constraint = prior.denoiser(CosineSchedule()), Linear(adhere.Identity(), torch.zeros(1, *shape[1:]), 0.1)
    given = re.escape(f"states have the shape {shape}: ")
    with pytest.raises(ValueError, match=rf"^{given}.*needs \(B, C, H, W\); reshape them, or choose .* such as ddnm$"):
        adhere.sample(D, constraint, shape)
    assert adhere.sample(D, constraint, shape, solver="ddnm", num_inference_steps=2).shape == shape
