"""Linear operators A with their adjoints, for measurements y = A x0 of an image.

An operator maps images (B, C, H, W) to measurements sample by sample, and `adjoint` is its exact transpose,
<A x, y> = <x, A^T y> (`adhere.testing.check_operator` tests it). `outer @ inner` is the composition. A new operator is
a subclass of `LinearOperator` with these two methods, or `operator(fn, shape)`, whose adjoint autograd derives.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from numbers import Integral, Real
from operator import add

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn.functional import pad

from adhere.core._linalg import conjugate_residuals, constants, dot, per_sample, repeat_samples
from adhere.core.derivatives import finite_difference_step, forward_difference, vjp
from adhere.errors import InvalidInput


class LinearOperator(ABC):
    """Base of linear maps from images to measurements."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return y = A x for images x (B, C, H, W)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return x = A^T y for measurements y (B, ...)."""

    def __matmul__(self, inner: "LinearOperator") -> "_Composition":
        """Return the operator x -> self(inner(x))."""
        return _Composition(self, inner)

    @property
    def is_tight(self) -> bool:
        """Whether A A^T is known to be a multiple of the identity on the range of A."""
        return False

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        """Return (A A^T + damping I)^-1 r, by conjugate residuals unless the operator has a closed form.

        Args:
            r: a measurement, (B, ...), zero in entries that do not depend on the image.
            damping: a variance, at least 0; a number, or one per sample (B, 1, ..., 1).
            num_iterations: the number of products with A A^T.
            tolerance: a sample is not changed any more when the norm of its residual, relative to r, is at most this.
        """
        if self.is_tight:
            num_iterations = min(num_iterations, 2)  # A A^T has at most two eigenvalues
        return conjugate_residuals(lambda u: self(self.adjoint(u)) + damping * u, r, num_iterations, tolerance)

    def stack(self, others: Sequence["LinearOperator"], repeats: int) -> "LinearOperator | None":
        """Return the operator of a batch with `repeats` samples for self and for each of `others`, or None."""
        return self if all(other is self or _equal_settings(self, other) for other in others) else None

    def restrict(self, y: Tensor) -> Tensor:
        """Return y with zeros in the entries of which the operator knows that they do not depend on the image."""
        return y

    def measurement_support(self, y: Tensor) -> Bool[Tensor, "..."]:
        """Return True for the entries of a measurement shaped like y that depend on the image: their row of A is not 0.

        A is applied to one random image. With probability 1, an entry is then 0 only if its row of A is 0.
        """
        image = self.adjoint(torch.ones_like(y))  # only for its shape
        x = torch.rand(image.shape, generator=Generator().manual_seed(0), dtype=image.dtype, device="cpu")
        return self(x.to(image.device)) != 0


def _equal_settings(a: LinearOperator, b: LinearOperator) -> bool:
    """Return whether two operators of one class have only numbers and names as attributes, and equal ones."""
    settings = (int, float, str, tuple)
    return type(a) is type(b) and all(isinstance(value, settings) for value in vars(a).values()) and a == b


@dataclass(frozen=True)
class Identity(LinearOperator):
    """A x = x: the image itself is measured (denoising)."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        return r / (1 + damping)

    @property
    def is_tight(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """A x = known * x, where `known` is 1 for measured pixels and 0 for the others (diffusers' mask, inverted).

    Attributes:
        known: zeros and ones, broadcastable to x (B, C, H, W).
    """

    known: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.known * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.known * y

    def restrict(self, y: Tensor) -> Tensor:
        if any(a != b and 1 not in (a, b) for a, b in zip(self.known.shape[::-1], y.shape[::-1], strict=False)):
            raise InvalidInput(f"the mask has shape {tuple(self.known.shape)}, y has {tuple(y.shape)}: they must agree")
        return torch.where(self.known == 0, 0, y)

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        return self.known * r / (1 + damping)  # y is zero in unknown entries

    @property
    def is_tight(self) -> bool:
        return True

    def stack(self, others: Sequence[LinearOperator], repeats: int) -> "Mask | None":
        masks = [other.known for other in (self, *others) if isinstance(other, Mask)]
        alike = len(masks) == 1 + len(others) and all(mask.shape == self.known.shape for mask in masks)
        return Mask(repeat_samples(masks, repeats)) if alike and self.known.ndim == 4 else None


@dataclass(frozen=True, eq=False)
class InnerProduct(LinearOperator):
    """A x = <row, x>: one number per sample, (B, 1, ..., 1).

    Attributes:
        row: (B or 1, ...), shaped like x.
    """

    row: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (self.row * x).sum(tuple(range(1, x.ndim)), keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.row * y

    @property
    def is_tight(self) -> bool:
        return True


@dataclass(frozen=True)
class _FunctionOperator(LinearOperator):
    """A linear function as an operator on images (B, *shape)."""

    fn: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.fn(x)

    def adjoint(self, y: Tensor) -> Tensor:
        zero, transposed = vjp(self.fn, y.new_zeros(len(y), *self.shape))
        if zero.is_complex():
            raise InvalidInput("fn returns complex numbers: measure torch.view_as_real of them")
        if zero.shape != y.shape:
            raise InvalidInput(f"y has shape {tuple(y.shape)}, but the operator returns {tuple(zero.shape)}")
        return transposed(y)


def operator(fn: Callable[[Tensor], Tensor], shape: Sequence[int]) -> LinearOperator:
    """Return a linear function as an operator, whose adjoint is derived by autograd.

    Args:
        fn: maps images (B, *shape) to measurements (B, ...), sample by sample; linear and differentiable.
        shape: the shape (C, H, W) of one image, without the batch.

    Raises:
        TypeError: for a shape with other entries than positive integers, or with a batch.
    """
    if isinstance(shape, int) or not all(isinstance(side, Integral) and int(side) > 0 for side in shape):
        raise InvalidInput(f"shape = {shape!r}: give that of one image, such as (3, 64, 64)")
    if len(shape) == 4 and shape[0] == 1:
        raise InvalidInput(f"shape = {tuple(shape)}: leave out the batch, {tuple(shape[1:])}")
    return _FunctionOperator(fn, tuple(shape))


@dataclass(frozen=True)
class Unpad(LinearOperator):
    """Keeps the top left part of padded images: (B, C, H, W) -> (B, C, height, width).

    Attributes:
        padded: (H, W).
        size: (height, width), at most (H, W).
    """

    padded: tuple[int, int]
    size: tuple[int, int]

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        return x[..., : self.size[0], : self.size[1]]

    def adjoint(self, y: Float[Tensor, "b c h w"]) -> Tensor:
        (height, width), (bottom, right) = self.padded, self.size
        return pad(y, (0, width - right, 0, height - bottom))

    @property
    def is_tight(self) -> bool:
        return True


@dataclass(frozen=True)
class Gray(LinearOperator):
    """The luma of RGB images, (B, 3, H, W) -> (B, 1, H, W).

    Attributes:
        weights: of red, green and blue; those of ITU-R BT.601 by default.
    """

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        return (x * constants(self.weights, x.dtype, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)

    def adjoint(self, y: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        return y * constants(self.weights, y.dtype, y.device).view(1, 3, 1, 1)

    @property
    def is_tight(self) -> bool:
        return True


@dataclass(frozen=True)
class _Composition(LinearOperator):
    """A x = outer(inner(x)), written outer @ inner: `Gray() @ Mask(known)` measures the luma of the known pixels."""

    outer: LinearOperator
    inner: LinearOperator

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    @property
    def is_tight(self) -> bool:
        return isinstance(self.inner, Unpad) and self.outer.is_tight

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        """Return (A A^T + damping I)^-1 r, with A A^T = outer outer^T where `inner` only removes padding."""
        A = self.outer if isinstance(self.inner, Unpad) else super()
        return A.solve_normal(r, damping, num_iterations, tolerance)


@dataclass(frozen=True)
class _Stacked(LinearOperator):
    """Several measurements as one vector: A x = (w_1 A_1 x, w_2 A_2 x, ...), (B, n).

    Attributes:
        operators: A_i.
        weights: w_i, one number or one for each sample, (B or 1, 1).
        shapes: the shape of each A_i x, without the batch dimension.
    """

    operators: tuple[LinearOperator, ...]
    weights: tuple[float | Tensor, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.concatenate([A(x) for A in self.operators])

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the measurements y_i (B, ...) of all A_i as one vector, (B, n)."""
        return torch.cat([w * part.flatten(1) for w, part in zip(self.weights, parts, strict=True)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        parts = y.split([math.prod(shape) for shape in self.shapes], 1)
        terms = zip(self.operators, self.weights, self.shapes, parts, strict=True)
        return reduce(add, [A.adjoint((w * part).reshape(-1, *shape)) for A, w, shape, part in terms])


@dataclass(frozen=True, eq=False)
class _Jacobian(LinearOperator):
    """J = df/dx at x, by a finite difference of f, with J^T by autograd."""

    f: Callable[[Tensor], Tensor]
    x: Tensor
    measured: Tensor  # f(x)
    transposed: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return forward_difference(self.f, self.x, self.measured, x, finite_difference_step(self.x.dtype))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.transposed(y)


def _at_least(noise: float | Tensor, floor: float) -> float | Tensor:
    """Return the standard deviations of a measurement's noise, raised to `floor` where they are smaller."""
    return noise.clamp_min(floor) if isinstance(noise, Tensor) else max(noise, floor)


def _same_noise(noise: float | Tensor, other: float | Tensor) -> bool:
    """Return whether the noise of two constraints is the same; a number and a tensor are never the same."""
    if isinstance(noise, Tensor) and isinstance(other, Tensor):
        return noise is other or torch.equal(noise, other)
    return not isinstance(noise, Tensor) and not isinstance(other, Tensor) and noise == other


def _squared_gain(A: LinearOperator, y: Tensor) -> Tensor:
    """Return |A^T y|^2 / |y|^2 of each sample, which broadcasts with a measurement y; for y = 0, that of ones.

    It is above 0: 1 where A^T y is 0.
    """
    y = torch.where(dot(y, y) > 0, y, 1)
    gain = A.adjoint(y).flatten(1).square().sum(1) / y.flatten(1).square().sum(1)
    return per_sample(torch.where(gain > 0, gain, 1), y)


def _noise_variance(
    A: LinearOperator, noise: float | Tensor, residual: Tensor, floor: float, needs_decoding: bool = False
) -> Tensor:
    """Return noise^2, at least floor^2 in image units, above 0 if the floor is; it broadcasts with a measurement.

    A measurement is in image units after division by its gain |A^T r| / |r|, so the units of A do not matter.

    Args:
        A: the operator.
        noise: the standard deviation of the measurement's noise.
        residual: r = y - A x0, (B, ...).
        floor: a standard deviation, in image units; through a decoder, in units of the measurement.
        needs_decoding: whether A is through a decoder: its noise has a floor of its own, and A^T takes an encoding.
    """
    if needs_decoding:
        return torch.as_tensor(_at_least(noise, floor) ** 2).to(residual)
    return (floor**2 * _squared_gain(A, residual)).clamp_min(noise**2)


def _solve_normal(
    A: LinearOperator, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
) -> Tensor:
    """Return what `A.solve_normal` returns, where damping may also have one number for each entry of r."""
    per_entry = isinstance(damping, Tensor) and damping.numel() > (len(damping) if damping.ndim == r.ndim else 1)
    if not per_entry or isinstance(A, (Identity, Mask)):
        return A.solve_normal(r, damping, num_iterations, tolerance)
    p = (damping + _squared_gain(A, r)).rsqrt()  # otherwise precise and imprecise entries need many iterations
    matrix = lambda u: p * (A(A.adjoint(p * u)) + damping * (p * u))  # noqa: E731
    return p * conjugate_residuals(matrix, p * r, num_iterations, tolerance)


def _check_noise(y: Tensor, noise: Tensor) -> None:
    """Raise unless a tensor holds a standard deviation for each entry of y."""
    if not noise.is_floating_point() or not bool((noise >= 0).all() and noise.isfinite().all()):
        raise InvalidInput("noise: standard deviations must be floating-point numbers of at least 0, and finite")
    try:
        fits = torch.broadcast_shapes(noise.shape, y.shape)[1:] == y.shape[1:]
    except RuntimeError:
        fits = False
    if not fits or noise.device != y.device:
        raise InvalidInput(
            f"noise has shape {tuple(noise.shape)} on {noise.device}, y has {tuple(y.shape)} on {y.device}: give one "
            "number, or a tensor that broadcasts to y"
        )


def _check_measurement(y: Tensor, noise: float | Tensor) -> None:
    """Raise unless y is a floating-point tensor and its noise is one standard deviation or a tensor of them."""
    if not isinstance(y, Tensor) or not isinstance(noise, (Real, Tensor)):
        given = f"y is a {type(y).__name__}, noise a {type(noise).__name__}"
        raise InvalidInput(f"{given}: give a tensor y, and one number for the standard deviation of its noise")
    if not y.is_floating_point():
        raise InvalidInput(f"y has dtype {y.dtype}: give floating-point numbers; pictures are in [-1, 1]")
    if isinstance(noise, Tensor):
        _check_noise(y, noise)
    elif not 0 <= noise < math.inf:
        raise InvalidInput(f"noise = {noise}: a standard deviation must be at least 0, and finite")
