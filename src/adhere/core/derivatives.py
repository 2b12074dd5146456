"""Directional derivatives of a denoiser: J v by a finite difference, J^T v by autograd.

J = d D(x_t, t) / d x_t is the Jacobian of the denoiser. J v takes one forward pass and no graph; J^T v takes one
backward pass and holds every activation in memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from adhere.core._linalg import max_norm, per_sample
from adhere.core.denoisers import Denoiser


def finite_difference_step(dtype: torch.dtype) -> float:
    """Return h, the largest entry of the perturbation h v / |v|_inf, for a network that computes in `dtype`.

    A larger h is less affected by rounding in the network and more by its curvature. About the square root of the
    machine epsilon is best (docs/experiments/solvers-on-photographs.md). The value for float32 is that of Graikos et
    al., section 4. In bfloat16 that value would leave 67 % of the entries of x_t unchanged.

    Args:
        dtype: float64, float32, float16 or bfloat16. States are assumed to have about unit variance.
    """
    return {torch.float64: 1e-5, torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}[dtype]


def forward_difference(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, v: Tensor, h: float) -> Tensor:
    """Return (d function / dx) v by one forward difference, [function(x + delta v) - y] / delta, delta = h / |v|_inf.

    Args:
        function: maps (B, ...) to (B, ...), sample by sample. It is called once.
        x: where to differentiate, (B, ...).
        y: function(x), which is already known.
        v: the direction, shaped like x or with a batch of 1. Each sample has its own delta; a zero direction gives 0.
        h: the largest entry of the perturbation, above 0.
    """
    size = max_norm(v) / h
    return (function(x + v / size) - y) * per_sample(size.flatten(), y)


def jvp(denoiser: Denoiser, x_t: Tensor, t: float, x0: Tensor, v: Tensor) -> Tensor:
    """Return J v by a forward difference of the denoiser, which takes one evaluation.

    Args:
        denoiser: D.
        x_t: the noisy state, (B, ...), at time t.
        x0: D(x_t, t), which is already known.
        v: the direction, (B, ...).

    Source: Graikos et al., equation 9.
    """
    return forward_difference(lambda x: denoiser(x, t), x_t, x0, v, finite_difference_step(denoiser.dtype))


def vjp(
    function: Callable[[Tensor], Tensor], x: Tensor, retain_graph: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return function(x), and the map v -> (d function / dx)^T v by autograd.

    Works under `torch.inference_mode` too, if the tensors inside the function were made outside of it.

    Args:
        function: differentiable, (B, ...) to (B, ...).
        x: where to differentiate, (B, ...).
        retain_graph: whether the returned map may be called more than once.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)

    def transposed(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (gradient,) = torch.autograd.grad(y, leaf, v.clone(), retain_graph=retain_graph)
        return gradient

    return y.detach(), transposed
