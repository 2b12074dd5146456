"""Checks of the laws that operators and solvers must satisfy, on small random problems."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from adhere.core._linalg import dot, per_sample, safe_divide
from adhere.core.constraints import Constraint, Linear
from adhere.core.denoisers import CountingDenoiser, Denoiser, DenoiserWrapper
from adhere.core.noise import Generators, randn
from adhere.core.operators import LinearOperator, Mask
from adhere.core.presets import get_sampler
from adhere.core.sampling import Sampler, State
from adhere.core.schedules import CosineSchedule
from adhere.core.solvers.base import Solver
from adhere.testing.priors._mixture import Gaussian, Mixture


def check_operator(
    operator: LinearOperator,
    shape: Sequence[int],
    generator: Generator | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
) -> None:
    """Check an operator on two random images.

    - zero: A 0 = 0.
    - shape: A x has a dimension besides the batch, and the batch size and the dtype of x. A^T y has the shape and the
      dtype of x.
    - linearity: A (x + c z) = A x + c A z.
    - batch: a batch gives the results of single images.
    - adjointness: <A x, y> = <x, A^T y>.
    - is_tight: if it is claimed, A A^T is a multiple of the identity on the range of A.
    - solve_normal: u = solve_normal(r, damping) solves (A A^T + damping I) u = r for any r that is zero in entries that
      measure nothing, with one damping or one per sample. Without damping, where there may be no unique solution, the
      residual is at most r.

    Args:
        operator: A.
        shape: the shape (C, H, W) of one image.
        generator: the generator of the random images; by default, one with a fixed seed.
        dtype: the dtype of the images, for example float32 for a function of a network.
        tolerance: the largest relative error, 4096 times the machine epsilon by default; 100 times as much for
            `solve_normal`.

    Raises:
        AssertionError: if a law does not hold.
    """
    generator = generator or Generator().manual_seed(0)
    if tolerance is None:
        tolerance = 4096 * torch.finfo(dtype).eps
    like = torch.empty(0, dtype=dtype, device="cpu")
    x, z = (randn((2, *shape), like, generator) for _ in range(2))
    _check_zero_and_shapes(operator, x)
    y = randn(operator(x).shape, like, generator)
    _check_linearity(operator, x, z, float(randn((1,), like, generator)), tolerance)
    _check_batch_of_operator(operator, x, y, tolerance)
    _check_adjointness(operator, x, y, tolerance)
    if operator.is_tight:
        _check_tightness(operator, operator(z), tolerance)
    _check_solve_normal(operator, y * operator.measurement_support(y), operator(z), tolerance)


def _check_zero_and_shapes(A: LinearOperator, x: Tensor) -> None:
    y = A(torch.zeros_like(x))
    largest = float(y.abs().max()) if y.numel() else 0.0
    if largest != 0:
        raise AssertionError(f"zero: the largest entry of A 0 is {largest:.1e}, not 0")
    if y.ndim < 2:
        raise AssertionError(f"shape: A x is {_describe(y)} for x {_describe(x)}: return (B, 1), one row per sample")
    if y.dtype != x.dtype or y.shape[:1] != x.shape[:1]:
        raise AssertionError(f"shape: A x is {_describe(y)} for x {_describe(x)}")
    back = A.adjoint(y)
    if back.dtype != x.dtype or back.shape != x.shape:
        raise AssertionError(f"shape: A^T y is {_describe(back)} for x {_describe(x)}")


def _check_linearity(A: LinearOperator, x: Tensor, z: Tensor, c: float, tolerance: float) -> None:
    A_x, A_z = A(x), A(z)
    error = _max(A(x + c * z) - (A_x + c * A_z))
    _require("linearity: A (x + c z) is not A x + c A z", error, _max(A_x) + abs(c) * _max(A_z), tolerance)


def _check_adjointness(A: LinearOperator, x: Tensor, y: Tensor, tolerance: float) -> None:
    left, right = A(x) * y, x * A.adjoint(y)
    error = (left.flatten(1).sum(1) - right.flatten(1).sum(1)).abs()  # (B,)
    scale = left.flatten(1).norm(dim=1) + right.flatten(1).norm(dim=1)  # of sums of terms with random signs
    worst = int((error / scale.clamp_min(torch.finfo(x.dtype).tiny)).argmax())
    _require("adjointness: <A x, y> is not <x, A^T y>", float(error[worst]), float(scale[worst]), tolerance)


def _check_batch_of_operator(A: LinearOperator, x: Tensor, y: Tensor, tolerance: float) -> None:
    for name, function, batch in (("A x", A, x), ("A^T y", A.adjoint, y)):
        together = function(batch)
        singles = torch.cat([function(one) for one in batch.split(1)])
        _require(
            f"batch: {name} of a batch is not that of its singles", _max(together - singles), _max(singles), tolerance
        )


def _check_tightness(A: LinearOperator, y: Tensor, tolerance: float) -> None:
    back = A(A.adjoint(y))
    multiple = safe_divide(dot(back, y), dot(y, y))
    _require("is_tight: A A^T y is not a multiple of y", _max(back - multiple * y), _max(back), tolerance)


def _check_solve_normal(A: LinearOperator, r: Tensor, measured: Tensor, tolerance: float) -> None:
    scale = float(safe_divide(A(A.adjoint(r)).norm(), r.norm())) or 1.0
    per_image = per_sample(r.new_tensor([scale, 1e-3 * scale]), r)
    for damping, stated in ((scale, f"{scale:.1e} I"), (1e-3 * scale, f"{1e-3 * scale:.1e} I"), (per_image, "d_i I")):
        error = math.inf
        for num_iterations in (30, 300, 1000):
            if not error <= 100 * tolerance * _max(r):
                u = A.solve_normal(r, damping, num_iterations, tolerance)
                error = _max(A(A.adjoint(u)) + damping * u - r)
        _require(f"solve_normal: (A A^T + {stated}) u is not r", error, _max(r), 100 * tolerance)
    u = A.solve_normal(measured, 0.0)
    residual = float((A(A.adjoint(u)) - measured).norm())
    _require("solve_normal: A A^T u - r is larger than r", residual, float(measured.norm()), 1 + tolerance)


def _require(law: str, error: float, scale: float, tolerance: float) -> None:
    if not error <= tolerance * scale:  # true for NaN
        raise AssertionError(f"{law}: relative error {error / scale if scale else math.inf:.1e} > {tolerance:.1e}")


def _max(x: Tensor) -> float:
    return float(x.abs().max())


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def check_solver(
    solver: Solver | Sampler,
    constraint: Constraint | None = None,
    prior: Mixture | None = None,
    *,
    num_steps: int = 3,
    stops_early: bool = False,
    tolerance: float = 1e-9,
) -> None:
    """Check a solver, or a solver with its transition and timesteps, in short runs on an exact prior.

    - state: x_t and x0 have the shape and the dtype of the noise, are finite and carry no autograd graph. This is
      checked for float32 and float64, under `torch.no_grad` as in `adhere.core.presets.sample`.
    - memory: nothing is kept between calls. Two runs that take turns give the results of one run after the other.
    - evaluations, backward passes: their numbers are those that the solver states, whatever the batch size.
    - batch: with one generator per sample, a batch gives the results of single runs.

    Args:
        solver: a solver, or a sampler. A solver gets the settings of `adhere.core.presets.get_sampler`.
        constraint: a constraint that the solver supports, for a batch of any size. By default, the left half of the
            image is known, with noise. Use float32, since tensors in float64 would change the dtype of a float32 run.
        prior: the distribution of x0; by default, a Gaussian over images of shape (1, 4, 4).
        num_steps: the number of noise levels.
        stops_early: whether fewer evaluations and backward passes than stated are allowed.
        tolerance: the largest difference of a batch from single runs, relative and absolute.

    Raises:
        AssertionError: if a law does not hold.
        TypeError: if the solver does not support the constraint.
    """
    prior = _small_gaussian() if prior is None else prior
    run = _Run(get_sampler(solver), _left_half(prior) if constraint is None else constraint, prior, num_steps)
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            _check_states(run, dtype)
        _check_memory(run)
        for batch_size in (1, 3):
            _check_cost(run, batch_size, stops_early)
        _check_batch_of_solver(run, tolerance)


@dataclass(frozen=True)
class _Run:
    """A sampler, and the problem it is run on."""

    sampler: Sampler
    constraint: Constraint
    prior: Mixture
    num_steps: int

    @property
    def denoiser(self) -> CountingDenoiser:
        """The prior's denoiser, which gives a sample the same result to the last bit in any batch."""
        return CountingDenoiser(_OneByOneDenoiser(self.prior.denoiser(CosineSchedule())))

    def states(
        self, seeds: Sequence[int], dtype: torch.dtype = torch.float64, denoiser: Denoiser | None = None
    ) -> Iterator[State]:
        """Return the states of a run with one sample per seed."""
        generators: Generators = [Generator().manual_seed(seed) for seed in seeds]
        noise = randn((len(seeds), *self.prior.shape), torch.empty(0, dtype=dtype, device="cpu"), generators)
        return self.sampler.trajectory(denoiser or self.denoiser, self.constraint, noise, generators, self.num_steps)


@dataclass(frozen=True)
class _OneByOneDenoiser(DenoiserWrapper):
    """Denoises each sample alone, since products of matrices of other sizes round differently."""

    denoiser: Denoiser

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        return torch.cat([self.denoiser(one, t) for one in x_t.split(1)])


def _small_gaussian() -> Gaussian:
    generator = Generator().manual_seed(0)
    root = torch.randn(16, 16, generator=generator, dtype=torch.float64, device="cpu") / 4
    mean = torch.randn(1, 4, 4, generator=generator, dtype=torch.float64, device="cpu")
    return Gaussian(mean, root @ root.T + 0.05 * torch.eye(16, dtype=torch.float64, device="cpu"))


def _left_half(prior: Mixture) -> Linear:
    """Return the constraint that the left half of a sample is known, with noise 0.05."""
    width = prior.shape[-1]
    known = (torch.arange(width, device="cpu") < width // 2).float().expand(1, *prior.shape).contiguous()
    original = prior.sample(1, Generator().manual_seed(1)).float()
    noise = 0.05 * randn(original.shape, original, Generator().manual_seed(2))
    return Linear(Mask(known), known * (original + noise), 0.05)


def _check_states(run: _Run, dtype: torch.dtype) -> None:
    for state in run.states((0,), dtype):
        _check_state(state, torch.empty(1, *run.prior.shape, dtype=dtype, device="cpu"))


def _check_state(state: State, noise: Tensor) -> None:
    for name, value in (("x_t", state.x_t), ("x0", state.x0)):
        if value.shape != noise.shape or value.dtype != noise.dtype:
            raise AssertionError(f"state: {name} is {_describe(value)} for noise {_describe(noise)}")
        if not value.isfinite().all():
            raise AssertionError(f"state: {name} is not finite at step {state.step}")
        if value.requires_grad:
            raise AssertionError(f"state: {name} carries an autograd graph under torch.no_grad: detach it")


def _check_memory(run: _Run) -> None:
    alone = list(run.states((0,)))
    in_turns = zip(run.states((0,)), run.states((1,)), strict=True)
    for before, (after, _) in zip(alone, in_turns, strict=True):
        for name in ("x_t", "x0"):
            difference = _max(getattr(before, name) - getattr(after, name))
            if difference != 0:
                raise AssertionError(
                    f"memory: {name} at step {before.step} changes by {difference:.1e} beside another run"
                )


def _check_cost(run: _Run, batch_size: int, stops_early: bool) -> None:
    denoiser, schedule = run.denoiser, CosineSchedule()
    list(run.states(range(batch_size), denoiser=denoiser))
    stated = {
        "evaluations": (denoiser.nfe, run.sampler.evaluations(schedule, run.num_steps, run.prior.size)),
        "backward passes": (denoiser.num_backward, run.sampler.backward_passes(schedule, run.num_steps)),
    }
    for name, (made, number) in stated.items():
        if made > number or (made < number and not stops_early):
            raise AssertionError(f"{name}: {number} are stated and {made} are made, for a batch of {batch_size}")


def _check_batch_of_solver(run: _Run, tolerance: float) -> None:
    together = list(run.states((0, 1, 2)))[-1]
    _check_state(together, torch.empty(3, *run.prior.shape, dtype=torch.float64, device="cpu"))
    singles = torch.cat([list(run.states((seed,)))[-1].x0 for seed in (0, 1, 2)])
    if not torch.allclose(together.x0, singles, rtol=tolerance, atol=tolerance):
        raise AssertionError(f"batch: x0 differs from that of single runs by {_max(together.x0 - singles):.1e}")
