"""Linear algebra per sample: dot products, norms, and Krylov solvers for a batch of independent systems.

Every function treats the samples of a batch (B, ...) as separate problems, so that a batch gives the results of single
runs. Coefficients of samples have the shape (B, 1, ..., 1), which broadcasts over the samples.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Shaped
from torch import Tensor

from adhere.errors import InvalidInput

_FILTERED_ENTRIES = 2**20  # larger states are filtered channel by channel, which takes less memory
_KEPT_ENTRIES = 2**25  # limit for the directions of conjugate residuals, per sample: 0.25 GB in float32


def per_sample(values: Shaped[Tensor, " b"], like: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, ..., 1), to scale the samples of `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


@lru_cache(maxsize=64)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values as a tensor (n,), which is cached, so that they are copied to the device only once."""
    with torch.inference_mode(False):  # the cached tensor may later take part in autograd
        return torch.tensor(values, dtype=dtype, device=device)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product <a, b> of each sample, (B, 1, ..., 1)."""
    return per_sample(torch.einsum("bn,bn->b", a.flatten(1), b.flatten(1)), a)


def max_norm(x: Tensor) -> Tensor:
    """Return the largest absolute entry of each sample, (B, 1, ..., 1), at least the smallest normal number."""
    return per_sample(x.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny), x)


def repeat_samples(parts: Sequence[Tensor], repeats: int) -> Tensor:
    """Return a batch of `repeats` samples for each part (1 or repeats, ...), one part after the other."""
    return torch.cat([part.expand(repeats, *part.shape[1:]) for part in parts])


def safe_divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b where b > 0, and 0 elsewhere."""
    return torch.where(b > 0, a / b, 0)


def clip_rms(step: Tensor, max_rms: float) -> Tensor:
    """Return the step (B, ...), each sample scaled down where its root mean square exceeds `max_rms`."""
    if math.isinf(max_rms):
        return step
    rms = dot(step, step).div(step[0].numel()).sqrt()
    return step * (max_rms / rms.clamp_min(max_rms))


def fourier_product(v: Tensor, U: Tensor, S: Tensor, snr: float) -> Tensor:
    """Return U F^-1 S (I + snr S)^-1 F U^T v for v (B, c, H, W), where F is the Fourier transform of each channel.

    Args:
        v: the state.
        U: the basis of the channels, (c, c).
        S: the power spectrum of each channel of this basis, (c, H, W // 2 + 1).
        snr: alpha_t^2 / sigma_t^2.
    """
    if v.numel() <= _FILTERED_ENTRIES:
        return torch.einsum("cd,ndhw->nchw", U, _filtered(torch.einsum("cd,nchw->ndhw", U, v), S, snr))
    total = torch.zeros_like(v)
    for S_d, weights in zip(S, U.mT[..., None, None], strict=True):  # weights (c, 1, 1)
        g = v[:, 0] * weights[0]
        for channel, weight in zip(v.unbind(1)[1:], weights[1:], strict=True):
            g.addcmul_(channel, weight)
        total.addcmul_(weights, _filtered(g, S_d, snr)[:, None])
    return total


def _filtered(g: Tensor, S: Tensor, snr: float) -> Tensor:
    """Return g (..., H, W) with its Fourier transform multiplied by S / (1 + snr S)."""
    return torch.fft.irfft2(torch.fft.rfft2(g).mul_(S / (1 + snr * S)), s=g.shape[-2:])


def conjugate_residuals(
    matrix: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int, tolerance: float = 1e-5
) -> Tensor:
    """Return an approximate solution u of matrix(u) = b for a symmetric positive semi-definite matrix.

    Each step takes the length that minimizes |r|, so |r| never grows, even where an inexact adjoint leaves the matrix
    only nearly symmetric. The number of iterations is fixed, so that nothing is read back from the device.

    Args:
        matrix: the linear map u -> matrix(u), (B, ...) to (B, ...). Its result is modified, so it must be a new tensor.
        b: the right-hand side, (B, ...).
        num_iterations: the number of products with the matrix.
        tolerance: a sample is not changed any more when |r| <= tolerance |b|.

    Returns:
        u, shaped like b.

    Source: Stiefel (1955), in the form of GCR: Eisenstat, Elman and Schultz (1983), equation 2.1. Each direction is
    orthogonalized against those before it. In exact arithmetic, the last direction would be enough. With rounding, ten
    iterations without the others enlarge errors so much that a batch differs from single runs. Therefore all directions
    are kept; for large systems, as many as `_KEPT_ENTRIES` entries allow, and at least two.
    """
    u, r = torch.zeros_like(b), b
    converged = tolerance**2 * dot(b, b)
    kept = kept_directions(b[0].numel())
    directions: list[tuple[Tensor, Tensor, Tensor]] = []  # p, matrix(p), |matrix(p)|^2
    for _ in range(num_iterations):
        directions = directions[-kept + 1 :]
        p, matrix_p = r.clone(), matrix(r)
        for q, matrix_q, qq in directions:
            beta = safe_divide(dot(matrix_p, matrix_q), qq)
            p.addcmul_(beta, q, value=-1)
            matrix_p.addcmul_(beta, matrix_q, value=-1)
        directions.append((p, matrix_p, dot(matrix_p, matrix_p)))
        step = torch.where(dot(r, r) > converged, safe_divide(dot(r, matrix_p), directions[-1][2]), 0)
        u.addcmul_(step, p)
        r = torch.addcmul(r, step, matrix_p, value=-1)
    return u


def kept_directions(entries: int) -> int:
    """Return the number of directions that `conjugate_residuals` keeps, given the number of unknowns per sample."""
    return max(2, _KEPT_ENTRIES // max(1, entries))


def iterations_needed(condition_number: float, tolerance: float, limit: int) -> int:
    """Return the number of conjugate residuals, at most `limit`, after which |r| <= tolerance |b| is certain.

    Source: |r| <= 2 rate^n |b| after n: Saad, *Iterative methods for sparse linear systems* (2003), section 6.11.
    """
    rate = 1 - 2 / (math.sqrt(condition_number) + 1)
    count, bound = 0, 2.0
    while count < limit and bound > tolerance:
        count, bound = count + 1, rate * bound
    return count


def minimal_residual_step(
    A: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    V: Callable[[Tensor], Tensor],
    variance: Tensor,
    residual: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, A^T u and V A^T u for u = c residual, with the c that minimizes |residual - (variance + A V A^T) u|.

    This is one conjugate residual. It takes one product with A, A^T and V each.
    """
    back = adjoint(residual)
    change = V(back)
    product = variance * residual + A(change)
    c = safe_divide(dot(residual, product), dot(product, product)).flatten()
    return per_sample(c, residual) * residual, per_sample(c, back) * back, per_sample(c, back) * change


def bfgs_product(product: Callable[[Tensor], Tensor], pairs: Sequence[tuple[Tensor, Tensor]], v: Tensor) -> Tensor:
    """Return V v, where V is a symmetric positive definite V_0 after the BFGS update with each pair (s, d) in turn.

    V s = d holds for the last pair. It also holds for an earlier pair i if <s_i, d_j> = 0 for all later pairs j. Pairs
    with <s, d> <= 0 are left out, so that V is positive definite, too.

    Args:
        product: v -> V_0 v.
        pairs: (s, d), each (B, ...).
        v: (B, ...).

    Source: the two loops of L-BFGS: Nocedal (1980).
    """
    coefficients = []
    for s, d in reversed(pairs):
        coefficients.append(safe_divide(dot(d, v), dot(s, d)))
        v = v - coefficients[-1] * s
    v = product(v)
    for (s, d), coefficient in zip(pairs, reversed(coefficients), strict=True):
        v = v + (coefficient - safe_divide(dot(s, v), dot(s, d))) * d
    return v


def gmres(
    product: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    damping: float | Tensor,
    residual: Tensor,
    num_iterations: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return product(u), where u solves (damping I + operator product) u = residual approximately.

    u minimizes the norm of the remaining residual over a Krylov space of `num_iterations` dimensions (Arnoldi with
    modified Gram-Schmidt). All samples run at once, each with its own coefficients. A sample whose Krylov space is
    exhausted, or whose residual is zero, gets zero further directions.

    Args:
        product: the linear map q -> V A^T q, from measurements to images.
        operator: the linear map A, from images to measurements.
        damping: the multiple of the identity, or one number for each entry.
        residual: the right-hand side, (B, ...).
        num_iterations: the number of products, at least 1.
        preconditioner: applied from the right; it need not be linear.

    Raises:
        ValueError: if num_iterations < 1.

    Source: Saad and Schultz (1986); flexible preconditioning: Saad (1993).
    """
    if num_iterations < 1:
        raise InvalidInput(f"num_iterations = {num_iterations}: at least one GMRES iteration is needed")
    tiny = torch.finfo(residual.dtype).tiny
    norm_residual = dot(residual, residual).sqrt()  # (B, 1, ..., 1)
    basis = [residual / norm_residual.clamp_min(tiny)]
    products: list[Tensor] = []
    hessenberg = residual.new_zeros(len(residual), num_iterations + 1, num_iterations)
    for j in range(num_iterations):
        v = basis[j] if preconditioner is None else preconditioner(basis[j])
        products.append(product(v))
        w = operator(products[j]) + damping * v
        norm_before = dot(w, w).sqrt()
        for i, q in enumerate(basis):
            h = dot(q, w)
            hessenberg[:, i, j] = h.flatten()
            w = w - h * q
        norm = dot(w, w).sqrt()
        exhausted = norm <= 1e-6 * norm_before
        hessenberg[:, j + 1, j] = torch.where(exhausted, 0, norm).flatten()
        if j + 1 < num_iterations:
            basis.append(w * torch.where(exhausted, 0, 1 / norm.clamp_min(tiny)))
    return _combine(products, _least_squares(hessenberg, norm_residual))


def _least_squares(hessenberg: Tensor, norm_residual: Tensor) -> Tensor:
    """Return the coefficients (B, m) that minimize |norm_residual e_1 - H c| for H (B, m + 1, m)."""
    target = hessenberg.new_zeros(*hessenberg.shape[:2], 1)
    target[:, 0, 0] = norm_residual.flatten()
    # The columns of exhausted directions are zero, so H may not have full rank.
    return (torch.linalg.pinv(hessenberg, rtol=1e-6) @ target)[..., 0]


def _combine(products: list[Tensor], coefficients: Tensor) -> Tensor:
    """Return the sum of c_j products[j] per sample, for coefficients (B, m)."""
    total = per_sample(coefficients[:, 0], products[0]) * products[0]
    for j, part in enumerate(products[1:], 1):
        total = total + per_sample(coefficients[:, j], part) * part
    return total
