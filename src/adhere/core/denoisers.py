"""Denoisers D(x_t, t) = E[x0 | x_t]: a network as a denoiser, and denoisers that wrap denoisers.

Samplers know a network only as a `Denoiser`: prompt, guidance, dtype and prediction type are bound to it beforehand.
Features that all solvers share (counting, guidance, tiling, several scales) are denoisers that wrap another one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core.schedules import DDPMSchedule, PredictionType, Schedule, log_snr, predict_x0
from adhere.errors import InvalidInput

_name_the_prediction = keyword_hints(prediction="call it prediction_type", model="call it network")


@runtime_checkable
class Denoiser(Protocol):
    """D(x_t, t) = E[x0 | x_t], for a batch at one noise level."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule, which defines t."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in, which decides the step of finite differences. States may have another."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """Return x0 for x_t (B, ...), of the same shape and dtype."""
        ...


@_name_the_prediction
@dataclass(frozen=True)
class NetworkDenoiser:
    """A network of any prediction type as a denoiser.

    Attributes:
        network: called as network(x_t, t) with x_t (B, ...) in `dtype` and t (B,) in `t_dtype`; returns a tensor
            shaped like x_t.
        schedule: the noise schedule.
        prediction_type: what the network predicts, see `predict_x0`.
        dtype: the dtype of the network's input. States keep their own dtype.
        t_dtype: the dtype of the network's t.

    Raises:
        ValueError: for an unknown prediction type.
        TypeError: for a schedule of another type, and in a call if the network does not return a tensor.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    prediction_type: PredictionType = "epsilon"
    dtype: torch.dtype = torch.float32
    t_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check_prediction_type(self.prediction_type)
        if not isinstance(self.schedule, Schedule):
            given = type(self.schedule).__name__
            raise InvalidInput(
                f"schedule is a {given}: use NetworkDenoiser.from_alphas_cumprod(network, alphas_cumprod)"
            )

    @classmethod
    @_name_the_prediction
    def from_alphas_cumprod(
        cls,
        network: Callable[[Tensor, Tensor], Tensor],
        alphas_cumprod: Tensor | Sequence[float],
        prediction_type: PredictionType = "epsilon",
        dtype: torch.dtype = torch.float32,
    ) -> "NetworkDenoiser":
        """Return the denoiser of a network that was trained under a discrete schedule.

        Args:
            network: called as network(x_t, t) with x_t (B, ...) and integer t (B,) in 0, ..., T - 1.
            alphas_cumprod: (T,), decreasing, in [0, 1], as diffusers' `scheduler.alphas_cumprod`.
            prediction_type: what the network predicts, see `predict_x0`.
            dtype: the dtype of the network's input.

        Raises:
            ValueError: for an unknown prediction type, or a table that does not decrease within [0, 1].
        """
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").tolist()
        if not all(1 >= a >= b >= 0 for a, b in pairwise(table)):
            raise InvalidInput("alphas_cumprod must decrease within [0, 1]: of betas, give torch.cumprod(1 - betas, 0)")
        return cls(network, DDPMSchedule(tuple(table)), prediction_type, dtype, torch.long)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        times = torch.full((len(x_t),), t, dtype=self.t_dtype, device=x_t.device)
        out = self.network(x_t.to(self.dtype), times)
        if not isinstance(out, Tensor):
            given = type(out).__name__
            raise InvalidInput(f"the network returned a {given}, not a tensor: give lambda x, t: net(x, t).sample")
        if out.shape != x_t.shape:
            raise InvalidInput(
                f"the network returned shape {tuple(out.shape)} for {tuple(x_t.shape)}: they must agree; if it also "
                "predicts variances, give lambda x, t: net(x, t)[:, :3]"
            )
        return predict_x0(self.prediction_type, out.to(x_t.dtype), x_t, *self.schedule(t))


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in get_args(PredictionType):
        allowed = ", ".join(f"'{name}'" for name in get_args(PredictionType))
        raise InvalidInput(f"prediction_type = '{prediction_type}': it must be one of {allowed}")


class DenoiserWrapper:
    """Base of denoisers that wrap `self.denoiser`: they have its schedule and dtype."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype


@dataclass
class CountingDenoiser(DenoiserWrapper):
    """Counts network function evaluations and backward passes, each once per batch.

    Attributes:
        nfe: the number of calls so far.
        num_backward: the number of backward passes so far.
    """

    denoiser: Denoiser
    nfe: int = field(default=0, init=False)
    num_backward: int = field(default=0, init=False)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        self.nfe += 1
        x0 = self.denoiser(x_t, t)
        if x0.requires_grad:
            x0.register_hook(self._count_backward)
        return x0

    def _count_backward(self, _: Tensor) -> None:
        self.num_backward += 1


@dataclass(frozen=True)
class CFGDenoiser(DenoiserWrapper):
    """Classifier-free guidance: x0 = uncond + guidance_scale (cond - uncond).

    Attributes:
        denoiser: takes both halves as one batch (2B, ...), the unconditional half first.
        guidance_scale: the scale, or a function that returns it at each evaluation; 1 is without guidance.
        max_log_snr: in nats; above this, only the conditional half (B, ...) is evaluated, without guidance.

    Source: Ho and Salimans, *Classifier-free diffusion guidance* (2022); limited to some noise levels: Kynkäänniemi et
    al., *Applying guidance in a limited interval improves sample and distribution quality in diffusion models* (2024).
    """

    denoiser: Denoiser
    guidance_scale: float | Callable[[], float]
    max_log_snr: float = math.inf

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        if log_snr(self.schedule, t) > self.max_log_snr:
            return self.denoiser(x_t, t)
        uncond, cond = self.denoiser(torch.cat([x_t, x_t]), t).chunk(2)
        scale = self.guidance_scale() if callable(self.guidance_scale) else self.guidance_scale
        return uncond + scale * (cond - uncond)


@dataclass(frozen=True)
class ExpertDenoiser(DenoiserWrapper):
    """One denoiser at high noise, and another one, the expert, at low noise.

    Attributes:
        denoiser: the denoiser below the boundary.
        expert: the denoiser at the boundary and above it, with the same schedule.
        boundary_log_snr: the log-SNR of the boundary, in nats.

    Raises:
        ValueError: if the schedules differ.

    Source: Balaji et al., *eDiff-I: Text-to-image diffusion models with an ensemble of expert denoisers* (2022).
    """

    denoiser: Denoiser
    expert: Denoiser
    boundary_log_snr: float

    def __post_init__(self) -> None:
        if self.expert.schedule != self.denoiser.schedule:
            raise InvalidInput("the schedule of the expert differs from the denoiser's: t must mean the same for both")

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        is_low_noise = log_snr(self.schedule, t) >= self.boundary_log_snr
        return self.expert(x_t, t) if is_low_noise else self.denoiser(x_t, t)
