"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, as functions t -> (alpha_t, sigma_t).

Only the schedule and the network interpret t; everything else passes it on. Times and coefficients are Python floats:
they are the same for the whole batch, so they need no host synchronization and do not change the dtype of a tensor.

This module also holds the rule that turns the output of any network into x0 (`predict_x0`), and the choice of the
timesteps at which a run evaluates the network (`uniform_spacing`, `log_snr_spacing`).
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from adhere.errors import InvalidInput

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "reversed_flow_prediction"]


@runtime_checkable
class Schedule(Protocol):
    """The noise schedule of a model: x_t = alpha_t x0 + sigma_t eps."""

    def __call__(self, t: float) -> tuple[float, float]:
        """Return (alpha_t, sigma_t) at time t."""
        ...

    def t_from_log_snr(self, log_snr: float) -> float:
        """Return the time whose log-SNR is closest to `log_snr`, within the range of the schedule."""
        ...

    def timesteps(self, num_steps: int) -> list[float]:
        """Return `num_steps` times, uniformly spaced in t, from high noise to low.

        Raises:
            ValueError: if the schedule has fewer times than `num_steps`.
        """
        ...


def log_snr(schedule: Schedule, t: float) -> float:
    """Return lambda_t = log(alpha_t / sigma_t) in nats, which is -inf where alpha_t = 0.

    adhere calls this quantity log-SNR, as DPM-Solver does. Some papers use that name for log(alpha_t^2 / sigma_t^2),
    which is twice as large.
    """
    alpha_t, sigma_t = schedule(t)
    return math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf


def check_signal(alpha_t: float, name: str) -> None:
    """Raise ValueError where alpha_t = 0, since `name` divides by it."""
    if alpha_t == 0:
        raise InvalidInput(f"{name} cannot start from pure noise (alpha_t = 0): start at a lower noise level")


_ROUNDING = 1e-6  # schedulers of diffusers that avoid a 0 at the end replace it by 6e-8


@dataclass(frozen=True)
class DDPMSchedule:
    """A variance-preserving table: alpha_t^2 = alphas_cumprod[t] for t = 0, 1, ..., T - 1.

    Attributes:
        alphas_cumprod: the table of diffusers' schedulers, as floats. It may end in 0 (zero terminal SNR).
        spacing: the rule by which `timesteps` chooses times, as diffusers' `timestep_spacing`: 'trailing' begins at the
            last time for any number of steps; 'leading' does not, which matters if there are few steps.
        steps_offset: added to the times of 'leading', as in diffusers.

    Raises:
        ValueError: if the table is empty, increases somewhere, or leaves 0 <= alphas_cumprod < 1.

    Source: Ho et al., *Denoising diffusion probabilistic models* (2020); spacings: Lin et al., *Common diffusion noise
    schedules and sample steps are flawed* (2024), table 2.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if not table or not all(0 <= a < 1 for a in table) or any(b > a + _ROUNDING for a, b in pairwise(table)):
            given = f"{table[0]:g} to {table[-1]:g}" if table else "nothing"
            raise InvalidInput(f"alphas_cumprod holds {given}: it must decrease, from below 1 to 0 at the lowest")

    @classmethod
    def from_betas(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_train_timesteps: int = 1000
    ) -> "DDPMSchedule":
        """Return the schedule of betas that rise linearly from `beta_start` to `beta_end`."""
        product, table = 1.0, []
        for i in range(num_train_timesteps):
            product *= 1 - (beta_start + (beta_end - beta_start) * i / (num_train_timesteps - 1))
            table.append(product)
        return cls(tuple(table))

    def __call__(self, t: float) -> tuple[float, float]:
        index = round(t)
        if index != t or not 0 <= index < len(self.alphas_cumprod):
            raise InvalidInput(f"timestep {t}: this schedule has the integers 0 to {len(self.alphas_cumprod) - 1}")
        a = self.alphas_cumprod[index]
        return math.sqrt(a), math.sqrt(1 - a)

    def t_from_log_snr(self, log_snr: float) -> float:
        target = 1 / (1 + math.exp(-2 * log_snr))  # alphas_cumprod = sigmoid(2 lambda), which decreases in t
        low, high = 0, len(self.alphas_cumprod) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.alphas_cumprod[middle] > target else (low, middle)
        nearest = min((low, high), key=lambda i: abs(_logit(self.alphas_cumprod[i]) - 2 * log_snr))
        return float(nearest)

    def timesteps(self, num_steps: int) -> list[float]:
        """Return the times of diffusers' `DDIMScheduler.set_timesteps`, kept within the table."""
        count = len(self.alphas_cumprod)
        if not 1 <= num_steps <= count:
            raise InvalidInput(f"num_inference_steps = {num_steps}: this schedule allows 1 to {count}")
        if self.spacing == "leading":
            stride = count // num_steps
            offset = min(self.steps_offset, count - 1 - stride * (num_steps - 1))
            times = [stride * i + offset for i in reversed(range(num_steps))]
        elif self.spacing == "trailing":
            stride = count - (count - count / num_steps)  # rounded as numpy.arange does
            times = [round(count - stride * i) - 1 for i in range(num_steps)]
        else:
            stride = (count - 1) / max(1, num_steps - 1)
            times = [round(stride * i) for i in reversed(range(num_steps))]
        return [float(t) for t in times]


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if p > 0 else -math.inf


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: alpha_t = 1 - t / scale, sigma_t = t / scale, for 0 < t <= scale.

    Attributes:
        scale: the time of pure noise, as the network expects it: 1, or 1000 for diffusers' transformers.
        shift: `timesteps` spends more steps at high noise, sigma = shift s / (shift s + 1 - s) for uniform s.
        s_end: the last s of `timesteps`, 1/num_steps if None.

    Source: Liu et al. (2022) and Lipman et al. (2022); shift: Esser et al., *Scaling rectified flow transformers*
    (2024), equation 23.
    """

    scale: float = 1.0
    shift: float = 1.0
    s_end: float | None = None

    def __call__(self, t: float) -> tuple[float, float]:
        return 1 - t / self.scale, t / self.scale

    def t_from_log_snr(self, log_snr: float) -> float:
        return self.scale / (1 + math.exp(log_snr))

    def timesteps(self, num_steps: int) -> list[float]:
        """Return the times of diffusers' `FlowMatchEulerDiscreteScheduler`, beginning with pure noise (alpha_t = 0)."""
        _check_num_steps(num_steps)
        s_end = 1 / num_steps if self.s_end is None else self.s_end
        s = [1 + (s_end - 1) * i / max(1, num_steps - 1) for i in range(num_steps)]
        return [self.scale * (self.shift * u / (self.shift * u + 1 - u)) for u in s]


@dataclass(frozen=True)
class CosineSchedule:
    """Variance preserving and continuous: alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2), for 0 < t < 1."""

    def __call__(self, t: float) -> tuple[float, float]:
        return math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)

    def t_from_log_snr(self, log_snr: float) -> float:
        return 2 / math.pi * math.atan(math.exp(-log_snr))

    def timesteps(self, num_steps: int) -> list[float]:
        """Return times that divide (0, 1) into equal parts, without the ends of the interval."""
        _check_num_steps(num_steps)
        return [(num_steps - i) / (num_steps + 1) for i in range(num_steps)]


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise InvalidInput(f"num_inference_steps = {num_steps}: at least 1 is needed")


def predict_x0(prediction_type: PredictionType, out: Tensor, x_t: Tensor, alpha_t: float, sigma_t: float) -> Tensor:
    """Return x0 from a network's output.

    Every network predicts out = p x0 + q eps for some (p, q), which gives

        x0 = (q x_t - sigma_t out) / (alpha_t q - sigma_t p).

    | prediction type            | out                        | (p, q)              |
    |----------------------------|----------------------------|---------------------|
    | 'epsilon'                  | eps                        | (0, 1)              |
    | 'sample'                   | x0                         | (1, 0)              |
    | 'v_prediction'             | alpha_t eps - sigma_t x0   | (-sigma_t, alpha_t) |
    | 'flow_prediction'          | eps - x0                   | (-1, 1)             |
    | 'reversed_flow_prediction' | x0 - eps                   | (1, -1)             |

    Args:
        out: the network's output, (B, ...).
        x_t: the state it was given, (B, ...).

    Raises:
        ValueError: for 'epsilon' where alpha_t = 0, since x_t then contains nothing of x0.
    """
    p, q = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma_t, alpha_t),
        "flow_prediction": (-1.0, 1.0),
        "reversed_flow_prediction": (1.0, -1.0),
    }[prediction_type]
    denominator = alpha_t * q - sigma_t * p
    check_signal(denominator, f"a network that predicts {prediction_type}")  # for epsilon, this is alpha_t
    return torch.sub((q / denominator) * x_t, out, alpha=sigma_t / denominator)


def uniform_spacing(schedule: Schedule, num_steps: int) -> list[float]:
    """Return `num_steps` timesteps, uniformly spaced in t: `schedule.timesteps(num_steps)`."""
    return schedule.timesteps(num_steps)


def log_snr_spacing(
    schedule: Schedule, num_steps: int, log_snr_min: float = -2.7, log_snr_max: float = 3.5
) -> list[float]:
    """Return timesteps uniformly spaced in log-SNR, from `log_snr_min` (noise) to `log_snr_max` (nearly clean).

    A discrete schedule may round several of them to the same time, which then appears once. The list may therefore be
    shorter than `num_steps`.

    Args:
        schedule: the noise schedule. The range is clipped to that of the schedule.
        num_steps: the number of timesteps, at least 1.
        log_snr_min: the first log-SNR, in nats.
        log_snr_max: the last log-SNR, in nats.

    Raises:
        ValueError: if the schedule has fewer times than `num_steps`.

    Source: Lu et al., *DPM-Solver* (2022).
    """
    schedule.timesteps(num_steps)  # raises ValueError for an impossible number
    # Times beyond the ends of a table would all be rounded to its ends.
    start, end = (log_snr(schedule, schedule.t_from_log_snr(bound)) for bound in (-50.0, 50.0))
    start, end = max(log_snr_min, start), min(log_snr_max, end)
    times = [schedule.t_from_log_snr(start + (end - start) * (i / max(1, num_steps - 1))) for i in range(num_steps)]
    return list(dict.fromkeys(times))
