"""Filters as operators: down-sampling, blur and convolution, most of them with A A^T inverted in closed form."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv1d, conv2d, conv_transpose2d, interpolate, pad

from adhere.core._cosines import cosine_spectrum, cosines, inverse_cosines
from adhere.core._linalg import conjugate_residuals, constants
from adhere.core.operators import LinearOperator
from adhere.errors import InvalidInput

_MAX_DENSE_SIDE = 1024  # of a measurement, for eigenvectors as a matrix
_ENTRIES_AT_ONCE = 2**22  # of the planes that are convolved together


class _SeparableFilter(LinearOperator):
    """Base of operators that filter rows and columns with one kernel at every `stride`-th pixel, edges repeated."""

    stride = 1

    @property
    @abstractmethod
    def kernel(self) -> tuple[float, ...]:
        """The filter's coefficients, which sum to 1."""

    def __call__(self, x: Tensor) -> Tensor:
        return _separable(x, self.kernel, self.stride)

    def adjoint(self, y: Tensor) -> Tensor:
        return _separable_adjoint(y, self.kernel, self.stride)

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        """Return (A A^T + damping I)^-1 r, in closed form unless damping is 0: A A^T is a Kronecker product.

        The damping is at least the machine epsilon of r, since less would amplify rounding errors; zeros in a tensor
        are replaced by it. If a side of r is above 1024, its matrix of eigenvectors would be too large. In that case,
        `num_iterations` conjugate residuals are used instead, preconditioned by the inverse for mirrored edges, which
        takes cosine transforms. A sample no longer changes once its preconditioned residual P (r - (A A^T + damping I)
        u) is at most `tolerance` times P r, where P^2 is that inverse. With the default tolerance and r = A x of white
        noise x, the relative error of u was measured in float32:

            damping                      1e-2    1e-3    1e-4
            bicubic, 6 products          1e-5    1e-5    1e-5
            Blur(1), 6 products          2e-5    2e-5    2e-5
            Blur(2), 10 products         1e-5    1e-3    7e-2
            Blur(2), 30 products         1e-5    2e-5    2e-4
            Blur(4), 10 products         2e-4    2e-2    2e-1
            Blur(4), 30 products         1e-5    2e-5    1e-2
        """
        if self.is_tight:
            return r / (sum(value**2 for value in self.kernel) ** 2 + damping)
        eps = torch.finfo(r.dtype).eps
        if isinstance(damping, Tensor):
            damping = damping.clamp_min(eps)
        elif damping == 0:
            return super().solve_normal(r, damping, num_iterations, tolerance)
        else:
            damping = max(damping, eps)
        if max(r.shape[-2:]) > _MAX_DENSE_SIDE:
            return self._solve_large(r, damping, num_iterations, tolerance)
        spectra = (_spectrum(self.kernel, self.stride, size, r.dtype, r.device) for size in r.shape[-2:])
        (lambda_rows, U_rows), (lambda_columns, U_columns) = spectra
        weights = U_rows.mT @ r @ U_columns / (lambda_rows[:, None] * lambda_columns + damping)
        return U_rows @ weights @ U_columns.mT

    def _solve_large(self, r: Tensor, damping: float | Tensor, num_iterations: int, tolerance: float) -> Tensor:
        taps = torch.tensor(self.kernel, dtype=torch.float64)
        lags = range(0, len(taps), self.stride)
        correlation = torch.stack([(taps[lag:] * taps[: len(taps) - lag]).sum() for lag in lags])
        rows, columns = (cosine_spectrum(correlation, side).to(r) for side in r.shape[-2:])
        scale = (rows[:, None] * columns + damping).rsqrt()
        P = lambda u: inverse_cosines(inverse_cosines(scale * cosines(cosines(u).mT).mT).mT).mT  # noqa: E731

        def matrix(u: Tensor) -> Tensor:
            u = P(u)
            return P(self(self.adjoint(u)) + damping * u)

        return P(conjugate_residuals(matrix, P(r), num_iterations, tolerance))


@dataclass(frozen=True)
class Downsample(_SeparableFilter):
    """Down-samples both sides by an integer factor: (B, C, H, W) -> (B, C, H/factor, W/factor).

    Attributes:
        factor: at least 1; it must divide H and W.
        kind: 'area' for means over factor x factor pixels, or 'bicubic' for the antialiased kernel of Keys (1981) with
            a = -1/2 and repeated edges.

    Raises:
        ValueError: if factor < 1, or for images whose sides it does not divide.
    """

    factor: int
    kind: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise InvalidInput(f"factor = {self.factor}: down-sampling takes an integer of at least 1")

    @property
    def stride(self) -> int:
        return self.factor

    @property
    def kernel(self) -> tuple[float, ...]:
        if self.kind == "area":
            return (1 / self.factor,) * self.factor
        length = 4 * self.factor - self.factor % 2  # the kernel of an odd factor is centered on a pixel
        return _normalized([_keys(abs(i - (length - 1) / 2) / self.factor) for i in range(length)])

    @property
    def is_tight(self) -> bool:
        return self.kind == "area"

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_small w_small"]:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise InvalidInput(
                f"down-sampling by {self.factor}: {tuple(x.shape[-2:])} is not a multiple of it; pad first"
            )
        return avg_pool2d(x, self.factor) if self.kind == "area" else super().__call__(x)

    def adjoint(self, y: Float[Tensor, "b c h_small w_small"]) -> Float[Tensor, "b c h w"]:
        if self.kind == "area":
            return interpolate(y / self.factor**2, scale_factor=self.factor, mode="nearest")
        return super().adjoint(y)


@dataclass(frozen=True)
class Blur(_SeparableFilter):
    """Gaussian blur, edges repeated.

    Attributes:
        sigma: the standard deviation in pixels, above 0.

    Raises:
        ValueError: unless sigma > 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InvalidInput(f"sigma = {self.sigma}: the standard deviation of a blur must be above 0 pixels")

    @property
    def kernel(self) -> tuple[float, ...]:
        radius = max(1, math.ceil(3 * self.sigma))
        return _normalized([math.exp(-0.5 * (i / self.sigma) ** 2) for i in range(-radius, radius + 1)])


@dataclass(frozen=True, eq=False)
class Convolve(LinearOperator):
    """Convolution at the positions where the kernel is inside: (B, C, H, W) -> (B, C, H - h + 1, W - w + 1).

        y(p) = sum_u k(u) x(p - u)

    A blurred photograph is such a part of a larger scene: the values near its border depend on the scene outside. The
    products take FFTs of the size of x.

    Attributes:
        kernel: k, (h, w), with any sum.

    Raises:
        ValueError: for a kernel that is not finite or has another number of dimensions, or for images smaller than it.
    """

    kernel: Float[Tensor, "h w"]

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2 or not self.kernel.numel() or not bool(self.kernel.isfinite().all()):
            raise InvalidInput(f"the kernel has shape {tuple(self.kernel.shape)}: give finite numbers (h, w)")

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_valid w_valid"]:
        height, width = self.kernel.shape
        if x.shape[-2] < height or x.shape[-1] < width:
            raise InvalidInput(f"convolution by {height} x {width}: an image of {tuple(x.shape[-2:])} is smaller")
        return self._filter(x, self._spectrum(x))[..., height - 1 :, width - 1 :]

    def adjoint(self, y: Float[Tensor, "b c h_valid w_valid"]) -> Float[Tensor, "b c h w"]:
        height, width = self.kernel.shape
        x = pad(y, (width - 1, 0, height - 1, 0))
        return self._filter(x, self._spectrum(x).conj())

    def _spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(self.kernel.to(x), s=x.shape[-2:])

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Return x with its Fourier transform multiplied by the spectrum: a periodic convolution."""
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=x.shape[-2:])


@dataclass(frozen=True)
class Resize(LinearOperator):
    """Makes images smaller by any factors: (B, C, *size) -> (B, C, *small).

    A pixel of the result covers a rectangle of the image. 'area' is the mean over it, in which pixels count by the
    share that is inside. 'bicubic' is the antialiased kernel of Keys (1981) with a = -1/2, whose weights are normalized
    at the edges, as in Pillow and in torch's `interpolate`. Each axis is a sparse matrix with at most 4 factor + 2
    entries per row.

    Attributes:
        size: (H, W) of the images.
        small: (h, w) of the results, at most `size`.
        kind: the kernel.

    Raises:
        ValueError: for sizes out of range, another kernel, or images of another size.
    """

    size: tuple[int, int]
    small: tuple[int, int]
    kind: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        if self.kind not in ("area", "bicubic"):
            raise InvalidInput(f"kind = {self.kind!r}: give 'area' or 'bicubic'")
        _check_sizes(self.size, self.small)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_small w_small"]:
        if x.shape[-2:] != self.size:
            raise InvalidInput(f"resizing from {self.size}: the image is of {tuple(x.shape[-2:])}")
        return self._apply(x, is_transposed=False)

    def adjoint(self, y: Float[Tensor, "b c h_small w_small"]) -> Float[Tensor, "b c h w"]:
        return self._apply(y, is_transposed=True)

    def solve_normal(
        self, r: Tensor, damping: float | Tensor, num_iterations: int = 30, tolerance: float = 1e-5
    ) -> Tensor:
        """Return (A A^T + damping I)^-1 r by conjugate residuals.

        At factors of 1.5 and above, A A^T is well-conditioned, and 10 iterations reach the default tolerance.
        """
        is_well_conditioned = all(2 * side >= 3 * small for side, small in zip(self.size, self.small, strict=True))
        if is_well_conditioned and tolerance >= 1e-5:
            num_iterations = min(num_iterations, 10)
        return super().solve_normal(r, damping, num_iterations, tolerance)

    def _apply(self, x: Tensor, is_transposed: bool) -> Tensor:
        for dim in (-2, -1):  # rows, then columns as the rows of the transpose: copies of whole rows are fast
            taps = _taps(self.kind, self.size[dim], self.small[dim], is_transposed)
            columns, values = (part.to(x.device) for part in taps)
            x = _sparse_product(columns, values, x).mT.contiguous()
        return x


def _check_sizes(size: tuple[object, ...], small: tuple[object, ...]) -> None:
    """Raise unless both sizes are (height, width) in whole numbers, and the second is not larger."""
    pairs = [(a, b) for a, b in zip(size, small, strict=False) if isinstance(a, int) and isinstance(b, int)]
    if not len(size) == len(small) == len(pairs) == 2 or not all(1 <= b <= a for a, b in pairs):
        given = f"from {size} to {small}"
        raise InvalidInput(f"{given}: give (height, width) twice, in whole numbers of at least 1 that do not grow")


@lru_cache(maxsize=16)
def _taps(kind: str, size: int, small: int, is_transposed: bool) -> tuple[Tensor, Tensor]:
    """Return the columns (n, L) and the values (n, L) of the entries in each row of one axis's matrix, (small, size).

    Rows with fewer than L entries are filled with zeros.
    """
    with torch.inference_mode(False):  # the cached tensors may later take part in autograd
        scale = size / small
        start = torch.arange(small, dtype=torch.float64, device="cpu")[:, None] * scale
        reach = 0.0 if kind == "area" else 1.5 * scale  # of the kernel beyond the square
        first = (start - reach).floor()
        count = math.ceil(scale + 2 * reach) + 1
        columns = first + torch.arange(count, dtype=torch.float64, device="cpu")  # (small, L)
        if kind == "area":
            values = (torch.minimum(columns + 1, start + scale) - torch.maximum(columns, start)).clamp_min(0)
        else:
            values = ((columns + 0.5 - start) / scale - 0.5).abs().apply_(_keys)
        values = values * ((columns >= 0) & (columns < size))
        columns, values = columns.clamp(0, size - 1).long(), values / values.sum(1, keepdim=True)
        return _transposed(columns, values, size) if is_transposed else (columns, values)


def _transposed(columns: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the rows and the values of the entries in each of `size` columns, as `_taps` does for rows."""
    rows = torch.arange(len(columns), device="cpu")[:, None].expand_as(columns)[values != 0]
    column, value = columns[values != 0], values[values != 0]
    order = column.argsort(stable=True)
    rows, column, value = rows[order], column[order], value[order]
    counts = column.bincount(minlength=size)
    position = torch.arange(len(column), device="cpu") - (counts.cumsum(0) - counts)[column]
    shape = (size, int(counts.max()))
    index, weights = torch.zeros(shape, dtype=torch.long, device="cpu"), value.new_zeros(shape)
    index[column, position], weights[column, position] = rows, value
    return index, weights


def _sparse_product(columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Return the product of a sparse matrix (n, size) with x (..., size, m), (..., n, m)."""
    total = x.new_zeros(*x.shape[:-2], len(columns), x.shape[-1])
    for column, value in zip(columns.unbind(1), values.to(x.dtype).unbind(1), strict=True):
        total.addcmul_(x.index_select(-2, column), value[:, None])
    return total


def _keys(x: float) -> float:
    """Return the cubic convolution kernel with a = -1/2 at x >= 0 (Keys, 1981, equation 15)."""
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _normalized(kernel: list[float]) -> tuple[float, ...]:
    return tuple(value / sum(kernel) for value in kernel)


def _separable(x: Tensor, kernel: Sequence[float], stride: int) -> Tensor:
    """Return x (..., H, W) correlated with the kernel along both axes at every `stride`-th pixel, edges repeated."""
    margin = (len(kernel) - stride) // 2
    taps = constants(tuple(kernel), x.dtype, x.device)

    def filtered(planes: Tensor) -> Tensor:  # (N, 1, H, W)
        planes = pad(planes, (margin, margin, margin, margin), "replicate")
        planes = conv2d(planes, taps.view(1, 1, -1, 1), stride=(stride, 1))
        return conv2d(planes, taps.view(1, 1, 1, -1), stride=(1, stride))

    return _by_planes(filtered, x)


def _separable_adjoint(y: Tensor, kernel: Sequence[float], stride: int) -> Tensor:
    """Return the transpose of `_separable` at y: it spreads y, then adds the margins to the edges that they repeat."""
    margin = (len(kernel) - stride) // 2
    taps = constants(tuple(kernel), y.dtype, y.device)

    def spread(planes: Tensor) -> Tensor:
        planes = conv_transpose2d(planes, taps.view(1, 1, 1, -1), stride=(1, stride))
        planes = conv_transpose2d(planes, taps.view(1, 1, -1, 1), stride=(stride, 1))
        return _fold_margin(_fold_margin(planes, margin, -1), margin, -2)

    return _by_planes(spread, y)


def _by_planes(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x) for x (..., H, W) as planes (N, 1, H, W); large planes are processed one by one.

    On CPUs, a convolution pads one channel to eight or sixteen, which multiplies the memory by that number.
    """
    planes = x.reshape(-1, 1, *x.shape[-2:])
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, planes[0].numel()))
    out = torch.cat([function(part) for part in planes.split(at_once)]) if len(planes) > at_once else function(planes)
    return out.view(*x.shape[:-2], *out.shape[-2:])


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
    """Return eigenvalues (size,) and eigenvectors (size, size) of K K^T, where K filters size * stride pixels."""
    with torch.inference_mode(False):  # the cached tensors may later take part in autograd
        margin = (len(kernel) - stride) // 2
        pixels = torch.eye(size * stride, dtype=torch.float64, device="cpu")[:, None]  # rows with a single pixel of 1
        taps = torch.tensor(kernel, dtype=torch.float64, device="cpu").view(1, 1, -1)
        K_T = conv1d(pad(pixels, (margin, margin), "replicate"), taps, stride=stride)[:, 0]
        values, vectors = torch.linalg.eigh(K_T.mT @ K_T)
        return values.clamp_min(0).to(device, dtype), vectors.to(device, dtype)
