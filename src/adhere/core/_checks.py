"""Checks of a measurement against its operator, once before a run, on one random image.

They take a few products with A and with A^T, and no evaluation of the network. Constraints through a decoder are
checked where their pictures are known (`ConstrainedPipeline`), since a decoding would cost as much as an evaluation.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from adhere.core._linalg import dot
from adhere.core.constraints import Constraint, Linear, Linearization, Loss, Sum
from adhere.core.noise import randn
from adhere.core.nonlinear import Nonlinear
from adhere.core.operators import LinearOperator, Mask
from adhere.errors import InvalidInput

_TOLERANCE = 0.01  # relative error of the adjoint, far above rounding errors


_OUT_OF_MEMORY = (  # messages of errors of torch that are not torch.OutOfMemoryError
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "Cannot allocate memory (12)",  # a file that is mapped
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory has run out; messages about the layout of memory do not count."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _OUT_OF_MEMORY)


def check_constraint(constraint: Constraint, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise InvalidInput unless a constraint fits images of a shape, as far as one random image can show.

    - y is finite, has the shape and the device of A x0, and a dtype that A x0 can hold.
    - A 0 = 0.
    - A^T is the transpose of A: <A x, u> = <x, A^T u>.

    Of other constraints, only the shapes of what they return are checked; a `Loss` checks its own.

    Args:
        constraint: the constraint. One through a decoder is not checked.
        shape: of the run's images, (B, ...).
        dtype: of the images.
        device: of the images.

    Raises:
        InvalidInput: if something does not hold, or if A or A^T does not return a tensor.
    """
    if isinstance(constraint, Sum):
        for part in constraint.constraints:
            check_constraint(part, shape, dtype, device)
    elif isinstance(constraint, (Linear, Nonlinear)) and not isinstance(constraint, Linearization):
        y = constraint.y
        _check_finite(y)
        if y.device.type != device.type:
            raise InvalidInput(f"y is on {y.device}, the images are on {device}: write y.to('{device}')")
        samples = len(y) if y.ndim and len(y) in (1, shape[0]) else 1
        generator = Generator(device).manual_seed(0)
        x = randn((samples, *shape[1:]), torch.empty(0, dtype=dtype, device=device), generator).clamp(-1, 1)
        if isinstance(constraint, Nonlinear):
            _check_measurement("f", _apply("f", constraint.f, x), y, shape[0])
        else:
            _check_operator(constraint, x, shape[0], generator)
    elif not constraint.needs_decoding and not isinstance(constraint, (Linear, Loss)):
        like = torch.empty(0, dtype=dtype, device=device)
        _check_returned_shapes(constraint, randn(shape, like, Generator(device).manual_seed(0)).clamp(-1, 1))


def check_range(constraint: Constraint, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless a constraint may measure pictures in [-1, 1]; the arguments are those of `check_constraint`.

    Raises:
        InvalidInput: if y is far larger than A x for any picture x in [-1, 1]; see `excess_of_range`.
    """
    if reason := excess_of_range(constraint, shape, dtype, device):
        raise InvalidInput(reason)


@torch.no_grad()
def excess_of_range(
    constraint: Constraint, shape: Sequence[int], dtype: torch.dtype, device: torch.device, factor: float = 2.0
) -> str | None:
    """Return one line that says that y is too large for images in [-1, 1], for example 8-bit levels; otherwise None.

    With n entries that A sees and m measurements, |A x| <= |A| sqrt(n), and the noise adds about noise sqrt(m). The
    operator norm |A| is only estimated, by power iteration, if y is large beside A of two images.

    Args:
        constraint: `Linear`, or a `Sum` with such parts, that `check_constraint` accepts; others are not checked.
        shape: of the run's images, (B, ...).
        dtype: of the images.
        device: of the images.
        factor: how far beyond the bound y may be.
    """
    if isinstance(constraint, Sum):
        parts = (excess_of_range(part, shape, dtype, device, factor) for part in constraint.constraints)
        return next(filter(None, parts), None)
    if not isinstance(constraint, Linear) or isinstance(constraint, Linearization):
        return None
    A, y, noise = constraint.operator, constraint.y.detach(), constraint.noise
    noise = float(noise.max()) if isinstance(noise, Tensor) else noise
    x = torch.ones((1 if len(y) == 1 else shape[0], *shape[1:]), dtype=dtype, device=device)
    signs = randn(x.shape, x, Generator(device).manual_seed(0)).sign()
    allowed = factor * max(float(A(x).abs().max()), float(A(signs).abs().max()))
    if float(y.abs().max()) <= allowed + factor * noise:
        return None
    largest = math.sqrt(x[0].numel() * float((A.adjoint(A(signs)) != 0).double().mean()))  # |x|, as far as A sees it
    bound = _operator_norm(A, signs) * largest + noise * math.sqrt(y[0].numel())
    if float(y.flatten(1).norm(dim=1).max()) <= factor * bound:
        return None
    return (
        f"y goes from {float(y.min()):.4g} to {float(y.max()):.4g}, which is far more than A gives for images in "
        f"[-1, 1] (about {allowed / factor:.2g} at most): measure images in [-1, 1], such as bytes / 127.5 - 1"
    )


def _operator_norm(A: LinearOperator, x: Tensor, num_iterations: int = 10) -> float:
    """Return a lower estimate of the largest singular value of A, by power iteration from x."""
    norm = 0.0
    for _ in range(num_iterations):
        u = A(x / x.norm())
        norm, x = float(u.norm()), A.adjoint(u)
        if not norm:
            break
    return norm


def _check_finite(y: Tensor) -> None:
    if y.numel() == 0:
        raise InvalidInput(f"y of shape {tuple(y.shape)} is empty: give at least one number")
    if not bool(y.isfinite().all()):
        wrong = int((~y.isfinite()).sum())
        raise InvalidInput(
            f"y has NaN or infinity in {wrong} of {y.numel()} entries: leave them out of the measurement, for example "
            "by a Mask"
        )


def _check_operator(constraint: Linear, x: Tensor, batch_size: int, generator: Generator) -> None:
    A, y = constraint.operator, constraint.y
    if isinstance(A, Mask) and not bool(((A.known == 0) | (A.known == 1)).all()):
        raise InvalidInput("the mask has values between 0 and 1: round it, for example by (mask > 0.5).float()")
    A_x = _apply("A", A, x)
    _check_measurement("A", A_x, y, batch_size)
    largest, at_zero = float(A_x.abs().max()), float(_apply("A", A, torch.zeros_like(x)).abs().max())
    if not at_zero <= 1e-4 * largest:
        raise InvalidInput(f"A(0) is not 0 (its largest entry is {at_zero:.2g}): subtract A(0) from y and from A")
    u = randn(A_x.shape, A_x, generator)
    back = _apply("A^T", A.adjoint, u)
    if back.shape != x.shape or back.dtype != x.dtype:
        given = f"{tuple(back.shape)} {back.dtype}"
        raise InvalidInput(f"A^T of y returns {given} for images {tuple(x.shape)} {x.dtype}: they must agree")
    left, right = A_x * u, x * back
    error = float((left.sum() - right.sum()).abs())
    scale = float(dot(left, left).sum().sqrt() + dot(right, right).sum().sqrt())
    if not error <= max(_TOLERANCE, 8 * torch.finfo(x.dtype).eps) * scale:
        raise InvalidInput(
            f"the adjoint is not the transpose of A, or A is not linear: <A x, u> is {float(left.sum()):.3g}, and "
            f"<x, A^T u> is {float(right.sum()):.3g}; adhere.operator(fn, shape) derives the adjoint of a function"
        )


def _check_returned_shapes(constraint: Constraint, x0: Tensor) -> None:
    """Raise unless neg_grad and residual_norm return tensors shaped like x0 (B, ...) and (B,)."""
    parts = (("neg_grad", constraint.neg_grad, x0.shape), ("residual_norm", constraint.residual_norm, x0.shape[:1]))
    for name, method, allowed in parts:
        given = _apply(f"{name} of {type(constraint).__name__}", method, x0).shape
        if given != allowed:
            raise InvalidInput(
                f"{name} of {type(constraint).__name__} returns the shape {tuple(given)} for x0 {tuple(x0.shape)}: "
                f"return {tuple(allowed)}"
            )


def _apply(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x); an error of the user's code becomes one line that names the function."""
    try:
        out = function(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"{name} cannot be applied to {tuple(x.shape)} {x.dtype}: {reason}") from error
    if not isinstance(out, Tensor):
        raise InvalidInput(
            f"{name} returned a {type(out).__name__}: return one tensor; adhere.Sum takes several constraints"
        )
    return out


def _check_measurement(name: str, measured: Tensor, y: Tensor, batch_size: int) -> None:
    if measured.is_complex():
        raise InvalidInput(f"{name} returns complex numbers: measure torch.view_as_real of them")
    if measured.ndim < 2:
        given = tuple(measured.shape)
        raise InvalidInput(f"{name}(x0) has shape {given}: return (B, 1), for example by .reshape(len(x), -1)")
    if measured.shape != y.shape:
        hint = ""
        if y.shape == measured.shape[1:]:
            hint = ": add the batch dimension, y[None]"
        elif y.shape[1:] == measured.shape[1:]:
            hint = f": give one y for all samples of the batch ({batch_size}), or one for each"
        raise InvalidInput(f"y has shape {tuple(y.shape)}, {name}(x0) has {tuple(measured.shape)}{hint}")
    if y.dtype != measured.dtype and (y.dtype, measured.dtype) != (torch.float32, torch.float64):
        raise InvalidInput(f"y has dtype {y.dtype}, {name}(x0) has {measured.dtype}: write y.to({measured.dtype})")
    if not bool(measured.isfinite().all()):
        raise InvalidInput(f"{name} returns NaN or infinity for an image in [-1, 1]")
