"""Linear operators A with adjoints: what a measurement y = A x0 sees of an image.

An operator maps (B, C, H, W) to its measurement space sample by sample; `adjoint` is the exact transpose (tested by
<A x, y> = <x, A^T y>). Composition is `Compose(outer, inner)`. A newcomer adds one with these two methods.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn.functional import conv1d, conv2d, conv_transpose2d, pad

Images = Float[Tensor, "b c h w"]
Small = Float[Tensor, "b c h_small w_small"]


@runtime_checkable
class Operator(Protocol):
    """A linear map of images, with its transpose."""

    def __call__(self, x: Tensor) -> Tensor:
        """y = A x."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """x = A^T y."""
        ...


@runtime_checkable
class Invertible(Operator, Protocol):
    """An operator that knows the inverse of A A^T, but for a multiple of the identity, in closed form."""

    def even_out(self, y: Tensor, variance: float) -> Tensor:
        """(A A^T + variance I)^-1 y, for a variance above 0."""
        ...


@dataclass(frozen=True)
class Identity:
    """A = I: the image itself is measured (denoising)."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class Mask:
    """Keeps what is known: A x = known * x, with `known` of zeros and ones broadcastable to x. Its own adjoint."""

    known: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.known * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.known * y


@dataclass(frozen=True)
class Functional:
    """A x = <row, x>: one number of each sample, (B, 1, ..., 1). row: (B or 1, ...), shaped like x."""

    row: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (self.row * x).sum(tuple(range(1, x.ndim)), keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.row * y


class Separable(ABC):
    """Base of operators that filter columns and rows with one kernel, at every `stride`-th place, edges repeated."""

    stride = 1

    @property
    @abstractmethod
    def kernel(self) -> tuple[float, ...]:
        """Its entries sum to 1."""

    def __call__(self, x: Tensor) -> Tensor:
        return _separable(x, self.kernel, self.stride)

    def adjoint(self, y: Tensor) -> Tensor:
        return _separable_adjoint(y, self.kernel, self.stride)

    def even_out(self, y: Tensor, variance: float) -> Tensor:
        """(A A^T + variance I)^-1 y by the eigenvectors of the filter of one column and of one row: exact.

        A variance below the rounding of y's dtype counts as that: it would make noise of the rounding.
        """
        variance = max(variance, torch.finfo(y.dtype).eps)
        spectra = (_spectrum(self.kernel, self.stride, size, y.dtype, y.device) for size in y.shape[-2:])
        (down, columns), (across, rows) = spectra
        weights = columns.mT @ y @ rows / (down[:, None] * across + variance)
        return columns @ weights @ rows.mT


@dataclass(frozen=True)
class Downsample(Separable):
    """Down-sampling by a whole `factor` per side, by area means or by an anti-aliased bicubic (Keys, a = -1/2).

    Edges repeat. Height and width must be multiples of `factor`. Shapes: (B, C, H, W) -> (B, C, H/factor, W/factor).
    Raises ValueError when factor < 1.
    """

    factor: int
    kind: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor = {self.factor}: down-sampling takes a whole factor of at least 1")

    @property
    def stride(self) -> int:
        return self.factor

    @property
    def kernel(self) -> tuple[float, ...]:
        if self.kind == "area":
            return (1 / self.factor,) * self.factor
        length = 4 * self.factor - self.factor % 2  # an odd factor has its centre on a pixel
        return _normalised([_keys(abs(i - (length - 1) / 2) / self.factor) for i in range(length)])

    def __call__(self, x: Images) -> Small:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"down-sampling by {self.factor}: {tuple(x.shape[-2:])} is no multiple of it; pad first")
        return super().__call__(x)


@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur of `sigma` pixels, edges repeated. Raises ValueError unless sigma > 0."""

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma = {self.sigma}: a blur is wider than 0 pixels")

    @property
    def kernel(self) -> tuple[float, ...]:
        reach = max(1, math.ceil(3 * self.sigma))
        return _normalised([math.exp(-0.5 * (i / self.sigma) ** 2) for i in range(-reach, reach + 1)])


@dataclass(frozen=True)
class Gray:
    """RGB to one luma channel, ITU-R BT.601 weights: (B, 3, H, W) -> (B, 1, H, W)."""

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        return (x * x.new_tensor(self.weights).view(1, 3, 1, 1)).sum(1, keepdim=True)

    def adjoint(self, y: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        return y * y.new_tensor(self.weights).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Compose:
    """A x = outer(inner(x)): `Compose(Gray(), Mask(known))` sees the gray values of the known pixels."""

    outer: Operator
    inner: Operator

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


@dataclass(frozen=True)
class Stacked:
    """Several measurements as one: A x = (w_1 A_1 x, w_2 A_2 x, ...), (B, n). shapes: of each A_i x, without B."""

    operators: tuple[Operator, ...]
    weights: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stack([operator(x) for operator in self.operators])

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """Measurements of each as one of all."""
        return torch.cat([w * part.flatten(1) for w, part in zip(self.weights, parts, strict=True)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        parts = y.split([math.prod(shape) for shape in self.shapes], 1)
        terms = zip(self.operators, self.weights, self.shapes, parts, strict=True)
        return reduce(add, [w * operator.adjoint(part.reshape(-1, *shape)) for operator, w, shape, part in terms])


def is_even(operator: Operator) -> bool:
    """Whether A A^T is known to be a multiple of the identity where it is not zero: to no measurement it is another."""
    if isinstance(operator, Downsample):
        return operator.kind == "area"
    return isinstance(operator, (Identity, Mask, Gray, Functional))


def measured(operator: Operator, y: Tensor) -> Bool[Tensor, "..."]:
    """Which entries of a measurement shaped like y see anything: those whose row of A is not zero.

    A x of one random image x tells: zero where the row is, and elsewhere only by a chance that does not occur.
    """
    image = operator.adjoint(torch.ones_like(y))  # for its shape
    x = torch.rand(image.shape, generator=Generator().manual_seed(0), dtype=image.dtype)
    return operator(x.to(image.device)) != 0


def _keys(x: float) -> float:
    """Keys' cubic convolution kernel, a = -1/2 (Keys, 1981, eq. 15)."""
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _normalised(kernel: list[float]) -> tuple[float, ...]:
    return tuple(value / sum(kernel) for value in kernel)


def _separable(x: Tensor, kernel: Sequence[float], stride: int) -> Tensor:
    """Correlate rows and columns with `kernel`, edges repeated, at every `stride`-th place."""
    margin = (len(kernel) - stride) // 2
    flat = x.reshape(-1, 1, *x.shape[-2:])  # (B C, 1, H, W)
    taps = x.new_tensor(kernel)
    flat = conv2d(pad(flat, (margin, margin, margin, margin), "replicate"), taps.view(1, 1, -1, 1), stride=(stride, 1))
    flat = conv2d(flat, taps.view(1, 1, 1, -1), stride=(1, stride))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def _separable_adjoint(y: Tensor, kernel: Sequence[float], stride: int) -> Tensor:
    """The transpose of `_separable`: spread, then fold the repeated margins back onto the edge they repeat."""
    margin = (len(kernel) - stride) // 2
    flat = y.reshape(-1, 1, *y.shape[-2:])
    taps = y.new_tensor(kernel)
    flat = conv_transpose2d(flat, taps.view(1, 1, 1, -1), stride=(1, stride))
    flat = conv_transpose2d(flat, taps.view(1, 1, -1, 1), stride=(stride, 1))
    for dim in (-1, -2):
        flat = _fold_margin(flat, margin, dim)
    return flat.view(*y.shape[:-2], *flat.shape[-2:])


def _fold_margin(x: Tensor, margin: int, dim: int) -> Tensor:
    if margin == 0:
        return x
    size = x.shape[dim] - 2 * margin
    inner = x.narrow(dim, margin, size).clone()
    inner.narrow(dim, 0, 1).add_(x.narrow(dim, 0, margin).sum(dim, keepdim=True))
    inner.narrow(dim, size - 1, 1).add_(x.narrow(dim, size + margin, margin).sum(dim, keepdim=True))
    return inner


@lru_cache(maxsize=32)
def _spectrum(
    kernel: tuple[float, ...], stride: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (size,) and eigenvectors (size, size) of K K^T, where K filters one row of size * stride pixels."""
    with torch.inference_mode(False):  # it is kept, and later runs may want gradients
        margin = (len(kernel) - stride) // 2
        pixels = torch.eye(size * stride, dtype=torch.float64)[:, None]  # each alone in a row
        taps = torch.tensor(kernel, dtype=torch.float64).view(1, 1, -1)
        K_T = conv1d(pad(pixels, (margin, margin), "replicate"), taps, stride=stride)[:, 0]
        values, vectors = torch.linalg.eigh(K_T.mT @ K_T)
        return values.clamp_min(0).to(device, dtype), vectors.to(device, dtype)
