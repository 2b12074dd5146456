"""Constraints on the clean image x0: the negative gradient of a cost C(x0), and how far x0 is from satisfying it.

`Linear` is y = A x0 + noise, `Loss` is any differentiable function of x0, and `Sum` combines several constraints.
`adhere.core.nonlinear.Nonlinear` is y = f(x0) + noise, and `adhere.core.latents.DecodedConstraint` applies a constraint
on pictures to latents. Gradients go through A or the loss only, never through the denoising network.

A new constraint is a subclass of `Constraint` with the methods `neg_grad` and `residual_norm`, and with `linearize` if
it is nearly linear.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core._linalg import clip_rms, dot, max_norm, per_sample, repeat_samples, safe_divide
from adhere.core.operators import (
    InnerProduct,
    LinearOperator,
    Mask,
    _check_measurement,
    _noise_variance,
    _same_noise,
    _solve_normal,
    _Stacked,
)
from adhere.errors import InvalidInput

_MAX_RMS_DISTANCE = 10.0  # above the distance of any two images; bounds Newton's step where a loss is nearly flat


class Constraint(ABC):
    """Base of constraints on a batch of clean images x0 (B, ...)."""

    @abstractmethod
    def neg_grad(self, x0: Tensor, /) -> Tensor:
        """Return e = -grad C(x0), shaped like x0, for a cost C that is 0 where the constraint is satisfied."""

    @abstractmethod
    def residual_norm(self, x0: Tensor, /) -> Float[Tensor, " b"]:
        """Return how far each sample is from satisfying the constraint, at least 0, in the constraint's own units."""

    @property
    def is_linearizable(self) -> bool:
        """Whether `linearize` is implemented, which moment matching and DDNM need."""
        return type(self).linearize is not Constraint.linearize

    @property
    def is_nonlinear(self) -> bool:
        """Whether it is not linear in the picture, so that solvers linearize it several times per noise level."""
        return False

    @property
    def needs_decoding(self) -> bool:
        """Whether x0 is decoded first, so that products with the linearization take a decoding or an encoding."""
        return False

    def linearize(self, x0: Tensor, /) -> "Linear":
        """Return a linear constraint that agrees with this one to first order at x0.

        Raises:
            TypeError: if the constraint cannot be linearized.
        """
        raise InvalidInput(f"{type(self).__name__} cannot be linearized: choose the solver inexact_newton")

    def limit_step(self, x0: Tensor, step: Tensor) -> Tensor:
        """Return the step from x0, shortened where it would increase the distance to a nonlinear constraint."""
        return step

    def update(self, x0: Tensor, log_snr: float) -> "Constraint":
        """Return the constraint for the next noise level; `trajectory` calls this between noise levels.

        Args:
            x0: the denoised image of the current noise level.
            log_snr: the log-SNR of the next noise level, in nats.
        """
        return self

    def stack(self, others: Sequence["Constraint"], repeats: int) -> "Constraint | None":
        """Return the constraint of a batch with `repeats` samples for self and for each of `others`, in this order.

        None is returned if they cannot share a batch, as by default.
        """
        return None if others else self


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """No constraint: sampling with it is plain sampling."""

    def neg_grad(self, x0: Tensor) -> Tensor:
        return torch.zeros_like(x0)

    def residual_norm(self, x0: Tensor) -> Float[Tensor, " b"]:
        return x0.new_zeros(len(x0))

    def stack(self, others: Sequence[Constraint], repeats: int) -> Constraint | None:
        return self if all(isinstance(other, Unconstrained) for other in others) else None


@dataclass(frozen=True)
class Linear(Constraint):
    """y = A x0 + noise n with white n: C = |y - A x0|^2 / 2 and e = A^T (y - A x0).

    If `noise` is a tensor, the square of each entry in C and in the residual norm has the weight 1 / (1 + noise^2/s^2),
    where s is twice the root mean square of y. Up to a factor, this is the precision of y - A x0 for images of variance
    s^2.

    Attributes:
        operator: A.
        y: the measurement, (B or 1, ...) and floating point, as A returns it for images in [-1, 1]. Entries that a mask
            does not measure are set to zero.
        noise: the standard deviation of the measurement's noise, in units of y, at least 0: one number, or a tensor
            that broadcasts to y with one for each entry. Where it is 0, samples meet y exactly.
        max_step_rms: the largest root mean square by which solvers change x0 at once; infinity unless the constraint is
            a linearization.

    Raises:
        ValueError: if noise < 0, or if y does not hold floating-point numbers.
        TypeError: for an operator, a y or a noise of another type.
    """

    operator: LinearOperator
    y: Tensor
    noise: float | Tensor = 0.0
    max_step_rms: float = field(default=math.inf, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.operator, LinearOperator):
            given = type(self.operator).__name__
            raise InvalidInput(f"operator is a {given}: give a LinearOperator, such as adhere.operator(fn, (3, H, W))")
        _check_measurement(self.y, self.noise)
        object.__setattr__(self, "y", self.operator.restrict(self.y))

    def residual(self, x0: Tensor) -> Tensor:
        """Return y - A x0, shaped like a measurement."""
        return self.y - self.operator(x0)

    def neg_grad(self, x0: Tensor) -> Tensor:
        return self.operator.adjoint(self._weight * self.residual(x0))

    @cached_property
    def _weight(self) -> float | Tensor:
        """The weight of each entry in C."""
        if not isinstance(self.noise, Tensor):
            return 1.0
        scale = 2 * (self.y.square().flatten(1).sum(1) / self._num_measured).sqrt()  # of each sample: (B or 1,)
        scale = scale.clamp_min(torch.finfo(self.y.dtype).tiny).view(-1, *[1] * (self.y.ndim - 1))
        return 1 / (1 + (self.noise / scale).square())

    @cached_property
    def _num_measured(self) -> Float[Tensor, "..."]:
        """The number of entries that are measured, at least 1, of each sample: (B or 1,)."""
        return self.operator.measurement_support(self.y).flatten(1).sum(1).clamp_min(1).to(self.y)

    @cached_property
    def _total_weight(self) -> Float[Tensor, "..."]:
        """The sum of the weights of the entries that are measured, above 0, of each sample: (B or 1,)."""
        if not isinstance(self._weight, Tensor):
            return self._num_measured
        total = (self._weight * self.operator.measurement_support(self.y)).flatten(1).sum(1)
        return torch.where(total > 0, total, 1)

    def residual_norm(self, x0: Tensor) -> Float[Tensor, " b"]:
        """Return the root mean square of y - A x0 over the measured entries; under a mask, over the known ones."""
        return (self._weight**0.5 * self.residual(x0)).flatten(1).norm(dim=1) / self._total_weight.sqrt()

    def linearize(self, x0: Tensor) -> "Linear":
        return self

    def stack(self, others: Sequence[Constraint], repeats: int) -> "Linear | None":
        if not others:
            return self
        linear = [other for other in others if isinstance(other, Linear) and type(other) is type(self)]
        if len(linear) < len(others) or not all(_same_noise(other.noise, self.noise) for other in linear):
            return None
        operator = self.operator.stack([other.operator for other in linear], repeats)
        if operator is None:
            return None
        return replace(self, operator=operator, y=repeat_samples([self.y, *(other.y for other in linear)], repeats))

    def project(self, x0: Tensor, std: float = 1.0) -> Tensor:
        """Return the mean of N(x0, std^2 I) given y: x0 + A^T (A A^T + (noise/std)^2 I)^-1 (y - A x0).

        Without noise, this is the nearest image that meets the measurement, for any `std`.
        """
        u = _solve_normal(self.operator, self.residual(x0), (self.noise / std) ** 2)
        return x0 + clip_rms(self.operator.adjoint(u), self.max_step_rms)

    def project_exact(self, x0: Tensor) -> Tensor:
        """Return the nearest image that meets the entries of y without noise, or x0 if all entries have noise."""
        return x0 if self._exact is None else self._exact.project(x0)

    @cached_property
    def _exact(self) -> "Linear | None":
        """The constraint with only those entries of y that have no noise."""
        if not isinstance(self.noise, Tensor):
            return self if self.noise == 0 else None
        exact = (self.noise == 0).to(self.y)
        if not exact.any():
            return None
        A = self.operator
        operator = Mask(exact * A.known) if isinstance(A, Mask) else Mask(exact) @ A
        return Linear(operator, exact * self.y, max_step_rms=self.max_step_rms)


@dataclass(frozen=True)
class Linearization(Linear):
    """y = A (x0 - origin) + noise n: the first-order approximation of a nonlinear constraint near `origin`.

    y is the residual of the nonlinear constraint at the origin, and A its derivative there.
    """

    origin: Tensor = field(kw_only=True)

    def residual(self, x0: Tensor) -> Tensor:
        return self.y if x0 is self.origin else self.y - self.operator(x0 - self.origin)


def mask_of(constraint: Constraint) -> Tensor | None:
    """Return the mask (1 = known) of a `Linear` constraint whose operator is a `Mask`, and None for any other."""
    if isinstance(constraint, Linear) and isinstance(constraint.operator, Mask):
        return constraint.operator.known
    return None


@dataclass(frozen=True)
class Loss(Constraint):
    """Any differentiable loss of the clean image; e = -grad fn, by autograd through fn.

    Attributes:
        fn: maps x0 (B, ...) to one finite value per sample, (B,). For the default solver, it is at least 0, and 0 where
            the constraint is satisfied.
        max_step_rms: solvers change x0 (through a decoder, the latents) by at most this root mean square at once. The
            default allows one or two such steps per noise level.

    Raises:
        ValueError: unless max_step_rms > 0; if fn does not return (B,) finite values; if the values do not depend on x0
            differentiably.
    """

    fn: Callable[[Tensor], Float[Tensor, " b"]]
    max_step_rms: float = 0.3

    def __post_init__(self) -> None:
        if not self.max_step_rms > 0:
            raise InvalidInput(f"max_step_rms = {self.max_step_rms}: it must be above 0; 0.3 is usual")

    @property
    def is_nonlinear(self) -> bool:
        return True

    def neg_grad(self, x0: Tensor) -> Tensor:
        return self._values_and_neg_grad(x0)[1]

    def linearize(self, x0: Tensor) -> Linearization:
        """Return fn = 0 to first order: <e, x - x0> / |e| = fn(x0) / |e|, one measurement per sample.

        This is Newton's method for a root of fn, with Polyak's step length. Division by |e| makes the measurement a
        distance of images, so the units of fn do not matter.

        Raises:
            ValueError: when fn is negative.
        """
        values, e = self._values_and_neg_grad(x0)
        if (values < 0).any():
            raise InvalidInput(
                f"the loss returned {values.tolist()}: it must be at least 0, and 0 where it is satisfied; add a "
                "constant, or choose the solver inexact_newton"
            )
        largest = max_norm(e)  # division by it prevents overflow and underflow of the squares
        norm = dot(e / largest, e / largest).sqrt()
        distance = safe_divide(per_sample(values, x0) / largest, norm)
        distance = distance.clamp_max(_MAX_RMS_DISTANCE * math.sqrt(e[0].numel()))
        row = safe_divide(e / largest, norm)
        return Linearization(InnerProduct(row), distance, origin=x0, max_step_rms=self.max_step_rms)

    def limit_step(self, x0: Tensor, step: Tensor) -> Tensor:
        return _backtrack(self, x0, step)

    def _values_and_neg_grad(self, x0: Tensor) -> tuple[Float[Tensor, " b"], Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().clone().requires_grad_()
            values = self._values(leaf)
            if not values.requires_grad:
                raise InvalidInput(
                    "the loss does not depend on x0 differentiably: compute it from x0 with torch functions"
                )
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        if not gradient.isfinite().all():
            raise InvalidInput("the gradient of the loss is not finite (a square root at 0?): add a small constant")
        return values.detach(), -gradient

    def residual_norm(self, x0: Tensor) -> Float[Tensor, " b"]:
        with torch.no_grad():
            return self._values(x0)

    def _values(self, x0: Tensor) -> Float[Tensor, " b"]:
        values = self.fn(x0)
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != tuple(x0.shape[:1]):
            raise InvalidInput(
                f"the loss of x0 {tuple(x0.shape)} has shape {shape}: return {tuple(x0.shape[:1])}, one value per "
                "sample, such as a mean over all but the first dimension"
            )
        if not values.isfinite().all():
            raise InvalidInput(f"the loss returned {values.tolist()}: it must be finite for any picture")
        return values


def _backtrack(constraint: Constraint, x0: Tensor, step: Tensor, max_halvings: int = 4) -> Tensor:
    """Return the step, halved per sample until x0 + step is no further from the constraint than x0, or zero."""
    before = constraint.residual_norm(x0)
    for _ in range(max_halvings):
        is_worse = constraint.residual_norm(x0 + step) > before
        step = torch.where(per_sample(is_worse, step), step / 2, step)
    return torch.where(per_sample(constraint.residual_norm(x0 + step) > before, step), 0, step)


@dataclass(frozen=True)
class Sum(Constraint):
    """Several constraints at once: negative gradients and residual norms are weighted sums.

    The linearization stacks the measurements, each with the precision that its noise and its weight imply, so that the
    units of a loss do not matter. Its `max_step_rms` is the smallest of the parts.

    Attributes:
        constraints: at least one.
        weights: one for each constraint, finite and at least 0.
        noise_floor: the smallest noise of a part in the linearization, in image units, above 0; otherwise a part
            without noise would outweigh all others.

    Raises:
        ValueError: unless each constraint has such a weight, and for a noise floor out of range.
    """

    constraints: tuple[Constraint, ...]
    weights: tuple[float, ...]
    noise_floor: float = 0.01

    def __post_init__(self) -> None:
        if len(self.constraints) != len(self.weights) or not self.constraints:
            raise InvalidInput(
                f"{len(self.constraints)} constraints and {len(self.weights)} weights: give one weight per constraint"
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise InvalidInput(f"weights = {self.weights}: each must be finite and at least 0, one of them above 0")
        if not 0 < self.noise_floor < math.inf:
            raise InvalidInput(f"noise_floor = {self.noise_floor}: it must be a finite number above 0; 0.01 is usual")
        if any(isinstance(one, Linear) and isinstance(one.noise, Tensor) for one in self.constraints):
            raise InvalidInput(
                "a constraint with noise per entry cannot be part of a Sum: give one number as its noise"
            )

    def neg_grad(self, x0: Tensor) -> Tensor:
        return reduce(add, [w * c.neg_grad(x0) for c, w in zip(self.constraints, self.weights, strict=True)])

    def residual_norm(self, x0: Tensor) -> Float[Tensor, " b"]:
        return reduce(add, [w * c.residual_norm(x0) for c, w in zip(self.constraints, self.weights, strict=True)])

    @property
    def is_linearizable(self) -> bool:
        return bool(self._active) and all(constraint.is_linearizable for constraint, _ in self._active)

    @property
    def is_nonlinear(self) -> bool:
        return any(constraint.is_nonlinear for constraint, _ in self._active)

    @property
    def needs_decoding(self) -> bool:
        return any(constraint.needs_decoding for constraint, _ in self._active)

    @property
    def _active(self) -> list[tuple[Constraint, float]]:
        """The constraints with a positive weight, without `Unconstrained`."""
        parts = zip(self.constraints, self.weights, strict=True)
        return [(c, weight) for c, weight in parts if weight > 0 and not isinstance(c, Unconstrained)]

    def linearize(self, x0: Tensor) -> Linear:
        if not self.is_linearizable:
            return super().linearize(x0)
        parts = [constraint.linearize(x0) for constraint, _ in self._active]
        residuals = [part.residual(x0) for part in parts]
        noise = max(self.noise_floor, *(float(part.noise) for part in parts))  # of all entries, after the scaling
        variances = [
            _noise_variance(part.operator, part.noise, residual, self.noise_floor, constraint.needs_decoding)
            for (constraint, _), part, residual in zip(self._active, parts, residuals, strict=True)
        ]
        scales = [noise * (w / v).sqrt().reshape(-1, 1) for (_, w), v in zip(self._active, variances, strict=True)]
        is_linear = not any(isinstance(part, Linearization) for part in parts)
        measured = [part.y.expand_as(r) for part, r in zip(parts, residuals, strict=True)] if is_linear else residuals
        shapes, limit = tuple(tuple(r.shape[1:]) for r in residuals), min(part.max_step_rms for part in parts)
        operator = _Stacked(tuple(part.operator for part in parts), tuple(scales), shapes)
        y = operator.concatenate(measured)
        if is_linear:
            return Linear(operator, y, noise, max_step_rms=limit)
        return Linearization(operator, y, noise, origin=x0, max_step_rms=limit)
