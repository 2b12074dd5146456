"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, as functions t -> (alpha_t, sigma_t).

`t` is opaque to everything else: only the schedule (and the network, which receives it untouched) reads it, so the
index slips between alphas_cumprod, network and scheduler cannot happen. Times and coefficients are Python floats:
they are the same for the whole batch, cost no host synchronisation and never fix a dtype.

Sampling goes from high noise to low, evenly in the log-SNR lambda = log(alpha_t / sigma_t) (Lu et al.,
DPM-Solver, 2022).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow", "reversed_flow"]
Spacing = Literal["leading", "trailing", "linspace"]


@runtime_checkable
class Schedule(Protocol):
    """x_t = alpha_t x0 + sigma_t eps."""

    def __call__(self, t: float) -> tuple[float, float]:
        """(alpha_t, sigma_t) at time t."""
        ...

    def time_at(self, log_snr: float) -> float:
        """The time whose log-SNR is nearest to `log_snr`, within the schedule's range."""
        ...

    def evenly(self, steps: int) -> list[float]:
        """`steps` times evenly spaced in t, from high noise to low. Raises ValueError if it has not so many."""
        ...


def check_signal(alpha_t: float, wanted_by: str) -> None:
    """Raises ValueError where alpha_t is 0, in the name of what divides by it."""
    if alpha_t == 0:
        raise ValueError(f"{wanted_by} cannot start from nothing but noise (alpha_t = 0): start at a lower noise level")


def log_snr(schedule: Schedule, t: float) -> float:
    """lambda = log(alpha_t / sigma_t), in nats; -inf where alpha_t = 0 (nothing but noise)."""
    alpha_t, sigma_t = schedule(t)
    return math.log(alpha_t / sigma_t) if alpha_t > 0 else -math.inf


@dataclass(frozen=True)
class Discrete:
    """Variance preserving, tabulated: alpha_t^2 = alphas_cumprod[t] (Ho et al., DDPM, 2020), t = 0, 1, ..., T - 1.

    The table is diffusers' `scheduler.alphas_cumprod`, as floats: the t given to it is the t given to the network. It
    may end in 0 (zero terminal SNR): `time_at` never gives that time unless there is no other.

    spacing, offset: which times `evenly` takes, diffusers' `timestep_spacing` and `steps_offset` (Lin et al., *Common
    diffusion noise schedules and sample steps are flawed*, 2024, table 2). 'trailing' begins at the last time however
    few the steps; 'leading' with offset 1 is the stride of DDIM on Stable Diffusion, which a few steps begin too late.
    """

    alphas_cumprod: tuple[float, ...]
    spacing: Spacing = "trailing"
    offset: int = 0

    @classmethod
    def from_betas(cls, first: float = 1e-4, last: float = 0.02, count: int = 1000) -> "Discrete":
        """DDPM's linear schedule."""
        product, table = 1.0, []
        for i in range(count):
            product *= 1 - (first + (last - first) * i / (count - 1))
            table.append(product)
        return cls(tuple(table))

    def __call__(self, t: float) -> tuple[float, float]:
        index = round(t)
        if index != t or not 0 <= index < len(self.alphas_cumprod):
            raise ValueError(f"timestep {t}: this schedule has the whole numbers 0 to {len(self.alphas_cumprod) - 1}")
        a = self.alphas_cumprod[index]
        return math.sqrt(a), math.sqrt(1 - a)

    def time_at(self, log_snr: float) -> float:
        wanted = 1 / (1 + math.exp(-2 * log_snr))  # alphas_cumprod = sigmoid(2 lambda), decreasing in t
        low, high = 0, len(self.alphas_cumprod) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.alphas_cumprod[middle] > wanted else (low, middle)
        nearest = min((low, high), key=lambda i: abs(_logit(self.alphas_cumprod[i]) - 2 * log_snr))
        return float(nearest)

    def evenly(self, steps: int) -> list[float]:
        """DDIM's times, as diffusers' `DDIMScheduler.set_timesteps` finds them, never outside the table."""
        count = len(self.alphas_cumprod)
        if not 1 <= steps <= count:
            raise ValueError(f"steps = {steps}: from 1 to {count} are possible")
        if self.spacing == "leading":
            stride = count // steps
            offset = min(self.offset, count - 1 - stride * (steps - 1))
            times = [stride * i + offset for i in reversed(range(steps))]
        elif self.spacing == "trailing":
            stride = count - (count - count / steps)  # as NumPy's arange rounds it
            times = [round(count - stride * i) - 1 for i in range(steps)]
        else:
            stride = (count - 1) / max(1, steps - 1)
            times = [round(stride * i) for i in reversed(range(steps))]
        return [float(t) for t in times]


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if p > 0 else -math.inf


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha_t = 1 - t, sigma_t = t (Liu et al., 2022; Lipman et al., 2022), 0 < t <= 1; networks read `scale` * t.

    shift: `evenly` spends more steps at high noise, sigma = shift s / (shift s + 1 - s), the larger the pictures the
    more (Esser et al., *Scaling rectified flow transformers*, 2024, eq. 23). last: the s at which it ends, 1/steps
    where it is None.
    """

    scale: float = 1.0
    shift: float = 1.0
    last: float | None = None

    def __call__(self, t: float) -> tuple[float, float]:
        return 1 - t / self.scale, t / self.scale

    def time_at(self, log_snr: float) -> float:
        return self.scale / (1 + math.exp(log_snr))

    def evenly(self, steps: int) -> list[float]:
        """Times of diffusers' `FlowMatchEulerDiscreteScheduler`, from pure noise (alpha_t = 0) on."""
        _at_least_one(steps)
        last = 1 / steps if self.last is None else self.last
        levels = [1 + (last - 1) * i / max(1, steps - 1) for i in range(steps)]
        return [self.scale * (self.shift * s / (self.shift * s + 1 - s)) for s in levels]


@dataclass(frozen=True)
class Trigonometric:
    """Variance preserving and continuous: alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2), 0 < t < 1."""

    def __call__(self, t: float) -> tuple[float, float]:
        return math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)

    def time_at(self, log_snr: float) -> float:
        return 2 / math.pi * math.atan(math.exp(-log_snr))

    def evenly(self, steps: int) -> list[float]:
        """Fractions that divide 0 to 1 evenly, both ends left out."""
        _at_least_one(steps)
        return [(steps - i) / (steps + 1) for i in range(steps)]


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps = {steps}: at least 1 is needed")


def x0_from(prediction: PredictionType, out: Tensor, x_t: Tensor, alpha_t: float, sigma_t: float) -> Tensor:
    """x0 from a network's output, by one rule for all.

    out = p x0 + q eps gives x0 = (q x_t - sigma_t out) / (alpha_t q - sigma_t p).
    epsilon: (p, q) = (0, 1); sample: (1, 0); v_prediction: (-sigma_t, alpha_t); flow, eps - x0: (-1, 1);
    reversed_flow, x0 - eps: (1, -1).
    Raises ValueError for epsilon where alpha_t = 0: all noise, it says nothing of x0.
    """
    p, q = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma_t, alpha_t),
        "flow": (-1.0, 1.0),
        "reversed_flow": (1.0, -1.0),
    }[prediction]
    scale = alpha_t * q - sigma_t * p
    check_signal(scale, f"a network that predicts {prediction}")  # for epsilon, scale is alpha_t
    return torch.sub((q / scale) * x_t, out, alpha=sigma_t / scale)


OUTERMOST = 50.0  # a log-SNR further out than any network is trained at


def log_snr_timesteps(schedule: Schedule, steps: int, first: float, last: float) -> list[float]:
    """`steps` times, evenly spaced in log-SNR, from `first` (noise) to `last` (nearly clean), as far as there are any.

    Times that a discrete schedule rounds to the same index appear once, so fewer than `steps` may come back. Raises
    ValueError if it has not so many at all.
    """
    schedule.evenly(steps)  # refuses impossible numbers of steps
    noisiest, cleanest = (log_snr(schedule, schedule.time_at(end)) for end in (-OUTERMOST, OUTERMOST))
    first, last = max(first, noisiest), min(last, cleanest)  # else levels beyond a table's ends would crowd there
    times = [schedule.time_at(first + (last - first) * (i / max(1, steps - 1))) for i in range(steps)]
    return list(dict.fromkeys(times))


def is_descending(schedule: Schedule, timesteps: Sequence[float]) -> bool:
    """Whether the noise falls from each time to the next, as sampling needs."""
    lam = [log_snr(schedule, t) for t in timesteps]
    return all(a < b for a, b in pairwise(lam))
