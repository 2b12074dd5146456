"""Denoisers: E[x0 | x_t] from a network, and wrappers denoiser -> denoiser for whatever cuts across all methods.

A network reaches the samplers only as a `Denoiser`: prompt, guidance, dtype and prediction type are bound already. The
one thing a forward-only method asks beyond a call is the directional derivative J v, by `jacobian_product`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from adhere.core.schedule import PredictionType, Schedule, x0_from


@runtime_checkable
class Denoiser(Protocol):
    """D(x_t, t) = E[x0 | x_t], for a batch at one noise level."""

    @property
    def schedule(self) -> Schedule:
        """What t means."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of the network, from which the finite-difference step is chosen (not the state's dtype)."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """x_t (B, ...) -> x0 of the same shape and dtype."""
        ...


@dataclass(frozen=True)
class Prediction:
    """A network out = network(x_t, t) of any prediction type, as a denoiser.

    The state keeps its dtype; the network is called in `dtype`, and its output comes back in the state's: the
    dtype boundary.
    """

    network: Callable[[Tensor, float], Tensor]
    schedule: Schedule
    prediction: PredictionType = "epsilon"
    dtype: torch.dtype = torch.float32

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        out = self.network(x_t.to(self.dtype), t).to(x_t.dtype)
        return x0_from(self.prediction, out, x_t, *self.schedule(t))


class Wrapper:
    """A denoiser around another, of the same schedule and arithmetic."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype


@dataclass
class Counted(Wrapper):
    """Counts network function evaluations, one a call whatever the batch, and backward passes through it."""

    denoiser: Denoiser
    nfe: int = field(default=0, init=False)
    backward: int = field(default=0, init=False)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        self.nfe += 1
        x0 = self.denoiser(x_t, t)
        if x0.requires_grad:
            x0.register_hook(self._count_backward)
        return x0

    def _count_backward(self, _: Tensor) -> None:
        self.backward += 1


@dataclass(frozen=True)
class Guided(Wrapper):
    """Classifier-free guidance (Ho & Salimans, 2022): uncond + guidance_scale (cond - uncond).

    `denoiser` takes both halves as one batch (2B, ...): first those without the condition, then those with it.
    """

    denoiser: Denoiser
    guidance_scale: float

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        unconditional, conditional = self.denoiser(torch.cat([x_t, x_t]), t).chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def difference_step(dtype: torch.dtype) -> float:
    """h, the largest entry of the probe h v/|v|_inf, for a network computing in `dtype` and states of unit variance.

    A larger one drowns less in the network's rounding, and errs more by its curvature: about sqrt(machine epsilon) is
    best, measured on the shipped network (docs/lab/solvers-on-photographs.md). float32's is the paper's (Graikos et
    al., section 4); in bfloat16 that one leaves 67 % of the entries of x_t unmoved.
    """
    return {torch.float64: 1e-5, torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}[dtype]


def per_sample(values: Shaped[Tensor, " b"], like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to scale the samples of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def largest_entry(x: Tensor) -> Tensor:
    """|x|_inf of each sample, floored away from zero so that it can divide: (B, 1, ..., 1)."""
    return per_sample(x.flatten(1).abs().amax(1).clamp_min(torch.finfo(x.dtype).tiny), x)


def forward_difference(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, v: Tensor, h: float) -> Tensor:
    """(d function / dx) v by one forward difference, [function(x + delta v) - y] / delta, delta = h / |v|_inf.

    y is function(x), already at hand; v has x's shape, or a batch of 1. Each sample has its own delta; zero directions
    give zero. Costs one call.
    """
    size = largest_entry(v) / h
    return (function(x + v / size) - y) * per_sample(size.flatten(), y)


def pullback(
    function: Callable[[Tensor], Tensor], x: Tensor, reuse: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """function(x), and v -> (d function / dx)^T v by autograd, once, or with `reuse` as often as asked.

    Works under `torch.inference_mode` too, provided that the tensors inside the function were made outside of it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)

    def transposed(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (gradient,) = torch.autograd.grad(y, leaf, v.clone(), retain_graph=reuse)
        return gradient

    return y.detach(), transposed


def jacobian_product(denoiser: Denoiser, x_t: Tensor, t: float, x0: Tensor, v: Tensor) -> Tensor:
    """J v by a forward difference of the denoiser (paper, eq. 9); x0 is D(x_t, t). Costs one evaluation."""
    return forward_difference(lambda x: denoiser(x, t), x_t, x0, v, difference_step(denoiser.dtype))
