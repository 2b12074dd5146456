"""Constraints: what is asked of the clean image, as a direction e = -grad C(x0) and an error.

`Linear` is y = A x0 + noise; `Loss` is any differentiable function of x0 (its gradient goes through the function only,
never through the network), to first order one measurement; `Sum` asks for several at once;
`adhere.core.latents.Through` asks it of a decoded image. A newcomer adds a dataclass with the two methods of
`Constraint`, and those of `Linearisable` if it is nearly linear.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core.denoise import largest_entry, per_sample
from adhere.core.operators import Functional, Invertible, Mask, Operator, Stacked, measured

FAR = 10.0  # an RMS that no image is from another: where a loss is nearly flat, its root is taken to be no further


@runtime_checkable
class Constraint(Protocol):
    """What the samplers ask of a constraint, for a batch of clean images x0 (B, ...)."""

    def direction(self, x0: Tensor, /) -> Tensor:
        """e = -grad C(x0), shaped like x0, zero where the constraint is satisfied."""
        ...

    def error(self, x0: Tensor, /) -> Float[Tensor, " b"]:
        """How far each sample is from satisfying it, >= 0, in the units the constraint is stated in."""
        ...


@runtime_checkable
class Linearisable(Constraint, Protocol):
    """A constraint that may have a `Linear` stand-in near any x0: moment matching and projection work on that."""

    @property
    def linearisable(self) -> bool:
        """Whether it has one: what wraps another constraint has one only if that has."""
        ...

    def linearise(self, x0: Tensor) -> "Linear":
        """A linear constraint that agrees with this one to first order at x0. Raises TypeError if there is none."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """A constraint that is known better once the image has taken shape."""

    def renewed(self, x0: Tensor, log_snr: float) -> Constraint:
        """What to ask for at the noise level `log_snr`, now that the level above it gave x0: `trajectory` calls it."""
        ...


def is_linearisable(constraint: Constraint) -> TypeGuard[Linearisable]:
    """Whether the constraint has a linear stand-in."""
    return isinstance(constraint, Linearisable) and constraint.linearisable


def linearise(constraint: Constraint, x0: Tensor, solver: str) -> "Linear":
    """The linear stand-in of a constraint at x0. Raises TypeError, in the name of the solver that needs it."""
    if not is_linearisable(constraint):
        raise TypeError(
            f"{solver} needs a constraint that can be linearised, not {type(constraint).__name__}: try inexact_newton"
        )
    return constraint.linearise(x0)


@dataclass(frozen=True)
class Linear:
    """y = A x0 + noise * n, with n white: C = |y - A x0|^2 / 2 and e = A^T (y - A x0).

    y: (B or 1, ...) in A's measurement space, zero where A sees nothing, images in [-1, 1]. noise: its standard
    deviation in the same units; 0 asks for the measurement exactly. radius: how far solvers may move x0 on its word,
    as an RMS over it; finite where it stands in for something curved. Raises ValueError when noise < 0.
    """

    operator: Operator
    y: Tensor
    noise: float = 0.0
    radius: float = field(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise = {self.noise}: a standard deviation is at least 0")

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x0, in the measurement space."""
        return self.y - self.operator(x0)

    def direction(self, x0: Tensor) -> Tensor:
        return self.operator.adjoint(self.residual(x0))

    @cached_property
    def count(self) -> Float[Tensor, "..."]:
        """How many entries are measured, at least 1, of each sample: (B or 1,)."""
        return measured(self.operator, self.y).flatten(1).sum(1).clamp_min(1).to(self.y)

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        """RMS of the residual over the measured entries; under a mask, over the known ones (0 if none is)."""
        return self.residual(x0).flatten(1).norm(dim=1) / self.count.sqrt()

    @property
    def linearisable(self) -> bool:
        return True

    def linearise(self, x0: Tensor) -> "Linear":
        return self

    def project(self, x0: Tensor, spread: float = 1.0, iterations: int = 30) -> Tensor:
        """E[x0 | y] for x0 ~ N(x0, spread^2 I): x0 + A^T (A A^T + (noise/spread)^2)^-1 (y - A x0).

        Without noise this is the nearest image that meets the measurement, whatever the spread.
        """
        u = self.even_out(self.residual(x0), (self.noise / spread) ** 2, iterations)
        return x0 + within(self.radius, self.operator.adjoint(u))

    def even_out(self, residual: Tensor, variance: float, iterations: int = 30, tolerance: float = 1e-5) -> Tensor:
        """(A A^T + variance I)^-1 residual: by the operator itself, or conjugate residuals, a mask's in one step.

        What the measurement saw weakly is made as strong as the rest, down to `variance`, relative to that of an image.
        """
        if variance > 0 and isinstance(self.operator, Invertible):
            return self.operator.even_out(residual, variance)

        def normal(u: Tensor) -> Tensor:
            return torch.add(self.operator(self.operator.adjoint(u)), u, alpha=variance)

        return conjugate_residuals(normal, residual, iterations, tolerance)


@dataclass(frozen=True)
class Tangent(Linear):
    """y = A (x - origin) + noise: what a curved constraint is near x = origin; y is the residual there."""

    origin: Tensor = field(kw_only=True)

    def residual(self, x0: Tensor) -> Tensor:
        return self.y if x0 is self.origin else self.y - self.operator(x0 - self.origin)


def is_masked(constraint: Constraint) -> bool:
    """Whether it is `Linear` under a `Mask`."""
    return isinstance(constraint, Linear) and isinstance(constraint.operator, Mask)


def masked(constraint: Constraint, solver: str) -> tuple[Tensor, Linear]:
    """The mask and the constraint, if that is `Linear` under a `Mask`. Raises TypeError, in the name of the solver."""
    if isinstance(constraint, Linear) and isinstance(constraint.operator, Mask):
        return constraint.operator.known, constraint
    given = type(constraint.operator if isinstance(constraint, Linear) else constraint).__name__
    raise TypeError(f"{solver} needs a Linear constraint under a Mask, not {given}: try inexact_newton")


@dataclass(frozen=True)
class Loss:
    """Any differentiable loss of the clean image: `fn` maps x0 (B, ...) to (B,).

    e = -grad fn, by autograd through fn. radius: how far x0 (through a decoder: latents) may be moved in one step on
    the word of fn's slope, as an RMS; the default takes one or two a noise level. Raises ValueError when fn returns
    anything but B finite values, or values that do not depend on x0 differentiably, and unless radius > 0.
    """

    fn: Callable[[Tensor], Float[Tensor, " b"]]
    radius: float = 0.3

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius = {self.radius}: how far x0 may be moved, above 0; 0.3 is usual")

    def direction(self, x0: Tensor) -> Tensor:
        return self._values_and_direction(x0)[1]

    @property
    def linearisable(self) -> bool:
        return True

    def linearise(self, x0: Tensor) -> Tangent:
        """fn = 0 to first order: <e, x - x0> / |e| = fn(x0) / |e|, one measurement of each sample.

        That is Newton's method for a root (Polyak's step length), so fn should be at least 0 and small where it is
        satisfied. Divided by |e|, the measurement is a distance of images, whatever the units of fn. Raises ValueError
        when fn is negative.
        """
        values, e = self._values_and_direction(x0)
        if (values < 0).any():
            raise ValueError(
                f"the loss returned {values.tolist()}: a loss is at least 0, and 0 where it is satisfied; add a "
                "constant, or choose the solver inexact_newton"
            )
        largest = largest_entry(e)  # first, so that no square over- or underflows
        length = dot(e / largest, e / largest).sqrt()
        far = ratio(per_sample(values, x0) / largest, length).clamp_max(FAR * math.sqrt(e[0].numel()))
        return Tangent(Functional(ratio(e / largest, length)), far, origin=x0, radius=self.radius)

    def _values_and_direction(self, x0: Tensor) -> tuple[Float[Tensor, " b"], Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().clone().requires_grad_()
            values = self._of(leaf)
            if not values.requires_grad:
                raise ValueError("the loss does not depend on x0 in a way that autograd can follow")
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        if not gradient.isfinite().all():
            raise ValueError("the loss's gradient is not finite, as a square root's is not at 0: add a little inside")
        return values.detach(), -gradient

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        with torch.no_grad():
            return self._of(x0)

    def _of(self, x0: Tensor) -> Float[Tensor, " b"]:
        values = self.fn(x0)
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != tuple(x0.shape[:1]):
            raise ValueError(
                f"the loss of x0 {tuple(x0.shape)} has shape {shape}: return {tuple(x0.shape[:1])}, a value for each "
                "sample, such as a mean over all but the first dimension"
            )
        if not values.isfinite().all():
            raise ValueError(f"the loss returned {values.tolist()}: it must be finite for any picture")
        return values


@dataclass(frozen=True)
class Sum:
    """Several constraints at once: directions and errors add, each times its weight.

    Linearised, their measurements are stacked, each as precise as its noise and its weight say (a loss's unit does not
    matter then), within the least radius of any. noise_floor: the least noise of a part that is assumed then, so that
    an exact one does not leave the others without a say. Raises ValueError unless each has a weight, finite and at
    least 0.
    """

    constraints: tuple[Constraint, ...]
    weights: tuple[float, ...]
    noise_floor: float = 0.01

    def __post_init__(self) -> None:
        if len(self.constraints) != len(self.weights) or not self.constraints:
            raise ValueError(
                f"{len(self.constraints)} constraints and {len(self.weights)} weights: give one weight each"
            )
        if not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"weights = {self.weights}: each is finite and at least 0")

    def direction(self, x0: Tensor) -> Tensor:
        return sum_of([w * c.direction(x0) for c, w in zip(self.constraints, self.weights, strict=True)])

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        return sum_of([w * c.error(x0) for c, w in zip(self.constraints, self.weights, strict=True)])

    @property
    def linearisable(self) -> bool:
        return bool(self._asked) and all(is_linearisable(one) for one, _ in self._asked)

    @property
    def _asked(self) -> list[tuple[Constraint, float]]:
        """The parts that ask for something."""
        parts = zip(self.constraints, self.weights, strict=True)
        return [(one, weight) for one, weight in parts if weight > 0 and not isinstance(one, Unconstrained)]

    def linearise(self, x0: Tensor) -> Tangent:
        parts = [linearise(one, x0, "a sum of constraints") for one, _ in self._asked]
        residuals = [part.residual(x0) for part in parts]
        noises = [max(part.noise, self.noise_floor) for part in parts]
        scales = [max(noises) / n * math.sqrt(w) for n, (_, w) in zip(noises, self._asked, strict=True)]
        shapes = tuple(tuple(r.shape[1:]) for r in residuals)
        operator = Stacked(tuple(part.operator for part in parts), tuple(scales), shapes)
        radius = min(part.radius for part in parts)
        return Tangent(operator, operator.stack(residuals), max(noises), origin=x0, radius=radius)


@dataclass(frozen=True)
class Unconstrained:
    """Asks for nothing: sampling with it is plain sampling."""

    def direction(self, x0: Tensor) -> Tensor:
        return torch.zeros_like(x0)

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        return x0.new_zeros(len(x0))


def within(radius: float, step: Tensor) -> Tensor:
    """The step, shortened where its RMS over a sample is above the radius."""
    if math.isinf(radius):
        return step
    rms = dot(step, step).div(step[0].numel()).sqrt()
    return step * (radius / rms.clamp_min(radius))


def sum_of(terms: list[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return reduce(add, terms)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, shaped (B, 1, ..., 1)."""
    return per_sample(torch.einsum("bn,bn->b", a.flatten(1), b.flatten(1)), a)


def conjugate_residuals(
    matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """Solve matrix(u) = b per sample for a symmetric PSD matrix; a sample stops at |r| <= tolerance |b|.

    Conjugate residuals (Stiefel, 1955) in the form of Eisenstat, Elman and Schultz's GCR(1) (1983), eq. 2.5: every step
    takes the length that makes |r| least, so |r| never grows, even where an inexact adjoint leaves the matrix only
    nearly symmetric.
    """
    u, r = torch.zeros_like(b), b
    p, matrix_p = b, matrix(b)
    enough = tolerance**2 * dot(b, b)
    active = enough > 0
    for _ in range(iterations):
        pp = dot(matrix_p, matrix_p)
        step = torch.where(active, ratio(dot(r, matrix_p), pp), 0)
        u, r = u + step * p, r - step * matrix_p
        active = dot(r, r) > enough
        if not active.any():
            break
        matrix_r = matrix(r)
        back = ratio(dot(matrix_r, matrix_p), pp)
        p, matrix_p = r - back * p, matrix_r - back * matrix_p
    return u


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0)
