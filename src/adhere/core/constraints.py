"""Constraints: what is asked of the clean image, as a direction e = -grad C(x0) and an error.

`Linear` is y = A x0 + noise; `Loss` is any differentiable function of x0 (its gradient goes through the function only,
never through the network); `Sum` asks for several at once. A newcomer adds a dataclass with the two methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core.denoise import per_sample
from adhere.core.operators import Mask, Operator


@runtime_checkable
class Constraint(Protocol):
    """What the samplers ask of a constraint, for a batch of clean images x0 (B, ...)."""

    def direction(self, x0: Tensor) -> Tensor:
        """e = -grad C(x0), shaped like x0, zero where the constraint is satisfied."""
        ...

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        """How far each sample is from satisfying it, >= 0, in the units the constraint is stated in."""
        ...


@dataclass(frozen=True)
class Linear:
    """y = A x0 + noise * n, with n white: C = |y - A x0|^2 / 2 and e = A^T (y - A x0).

    y: (B or 1, ...) in A's measurement space, images in [-1, 1]. noise: its standard deviation in the same units; 0
    asks for the measurement exactly. Raises ValueError when noise < 0.
    """

    operator: Operator
    y: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise = {self.noise}: a standard deviation is at least 0")

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x0, in the measurement space."""
        return self.y - self.operator(x0)

    def direction(self, x0: Tensor) -> Tensor:
        return self.operator.adjoint(self.residual(x0))

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        """RMS of the residual over the measured entries; under a mask, over the known ones (0 if none is)."""
        squares = self.residual(x0).square()
        if isinstance(self.operator, Mask):
            known = self.operator.known.expand_as(squares)
            return (squares.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)).sqrt()
        return squares.flatten(1).mean(1).sqrt()

    def project(self, x0: Tensor, spread: float = 1.0, iterations: int = 30) -> Tensor:
        """E[x0 | y] for x0 ~ N(x0, spread^2 I): x0 + A^T (A A^T + (noise/spread)^2)^-1 (y - A x0).

        Without noise this is the nearest image that meets the measurement, whatever the spread. Solved by conjugate
        gradients on A A^T (symmetric, and cheap: no network); a mask or area means end in one step.
        """

        def normal(u: Tensor) -> Tensor:
            return self.operator(self.operator.adjoint(u)) + (self.noise / spread) ** 2 * u

        u = conjugate_gradients(normal, self.residual(x0), iterations)
        return x0 + self.operator.adjoint(u)


@dataclass(frozen=True)
class Loss:
    """Any differentiable loss of the clean image: `fn` maps x0 (B, ...) to (B,).

    e = -grad fn, by autograd through fn.
    """

    fn: Callable[[Tensor], Float[Tensor, " b"]]

    def direction(self, x0: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.fn(leaf).sum(), leaf)
        return -gradient

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        with torch.no_grad():
            return self.fn(x0)


@dataclass(frozen=True)
class Sum:
    """Several constraints at once: directions and errors add, each times its weight."""

    constraints: tuple[Constraint, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.constraints) != len(self.weights) or not self.constraints:
            raise ValueError(
                f"{len(self.constraints)} constraints and {len(self.weights)} weights: give one weight each"
            )

    def direction(self, x0: Tensor) -> Tensor:
        return sum_of([w * c.direction(x0) for c, w in zip(self.constraints, self.weights, strict=True)])

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        return sum_of([w * c.error(x0) for c, w in zip(self.constraints, self.weights, strict=True)])


@dataclass(frozen=True)
class Unconstrained:
    """Asks for nothing: sampling with it is plain sampling."""

    def direction(self, x0: Tensor) -> Tensor:
        return torch.zeros_like(x0)

    def error(self, x0: Tensor) -> Float[Tensor, " b"]:
        return x0.new_zeros(len(x0))


def sum_of(terms: list[Tensor]) -> Tensor:
    """The sum of at least one tensor, all of one shape."""
    return torch.stack(terms).sum(0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, shaped (B, 1, ..., 1)."""
    return per_sample((a * b).flatten(1).sum(1), a)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """Solve matrix(u) = b per sample for a symmetric PSD matrix; a sample stops at |r| <= tolerance |b|."""
    u, r = torch.zeros_like(b), b
    p, rr = r, dot(r, r)
    enough = tolerance**2 * rr
    for _ in range(iterations):
        active = rr > enough
        if not active.any():
            break
        m = matrix(p)
        curvature = dot(p, m)
        step = torch.where(active & (curvature > 0), rr / curvature, 0)
        u, r = u + step * p, r - step * m
        rr_next = dot(r, r)
        p, rr = r + torch.where(active, rr_next / rr, 0) * p, rr_next
    return u
