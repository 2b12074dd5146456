"""The methods by name: a solver, the transition and the noise levels that suit it. One file a solver; one entry here.

A newcomer's solver needs its file and an entry in `METHODS`: the command line, the benchmarks and the tests against
exact priors read this table.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from adhere.core.constraints import Constraint, Unconstrained
from adhere.core.denoise import Denoiser
from adhere.core.sample import (
    DDIM,
    DPMSolver2M,
    Generators,
    Memory,
    Solver,
    State,
    Transition,
    initial_noise,
    serves,
    trajectory,
)
from adhere.core.schedule import Schedule, log_snr_timesteps
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.ding import DING, Decoupled
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.freedom import FreeDoM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.mmps import MMPS
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.mpgd import MPGD
from adhere.core.solvers.newton_exact import NewtonExact
from adhere.core.solvers.psld import PSLD
from adhere.core.solvers.repaint import RePaint


@dataclass(frozen=True)
class Plain:
    """No constraint: the denoised image as it is. One evaluation a level."""

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        return x_t, denoiser(x_t, t), None


@dataclass(frozen=True)
class LogSNR:
    """Noise levels evenly spaced in log-SNR from `first` to `last`; see `log_snr_timesteps`."""

    first: float = -2.7
    last: float = 3.5

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        return log_snr_timesteps(schedule, steps, self.first, self.last)


@dataclass(frozen=True)
class Even:
    """Noise levels evenly spaced in t: DDIM's stride."""

    def __call__(self, schedule: Schedule, steps: int) -> list[float]:
        return schedule.evenly(steps)


@dataclass(frozen=True)
class Method:
    """A solver with the transition, the noise levels and the number of steps that suit it.

    coarse_until: `until` of `Octaves`, for models of several scales; -inf shows them every picture as it is.
    """

    solver: Solver
    transition: Transition
    levels: LogSNR | Even
    steps: int
    coarse_until: float = -math.inf

    def states(
        self,
        denoiser: Denoiser,
        constraint: Constraint,
        shape: Sequence[int],
        timesteps: Sequence[float],
        like: Tensor,
        generator: Generators,
    ) -> Iterator[State]:
        """A whole run: `trajectory` down `timesteps` from noise of `shape`, in the dtype and on the device of like."""
        x_T = initial_noise(denoiser.schedule, shape, timesteps[0], like, generator)
        return trajectory(denoiser, constraint, self.solver, x_T, timesteps, self.transition, generator)


METHODS: dict[str, Method] = {
    # Nearest to the exact posterior (benchmarks.truth): varied samples, as good as the prior. About 40 evaluations.
    "moment_matching": Method(
        MomentMatching(m=((-3.2, 4), (-1.0, 7), (0.2, 8), (2.0, 1)), snr_floor=0.2),
        DPMSolver2M(eta=1.0),
        LogSNR(first=-3.2, last=4.5),
        steps=8,
        coarse_until=1.0,
    ),
    # Best with small trained priors (benchmarks.photo and .emoji, docs/lab): half the noise, so less grain and less
    # variety; a second direction only at high noise, whose outlines are decided from further away. 24 evaluations.
    "moment_matching_calm": Method(
        MomentMatching(m=((-2.0, 2), (0.2, 1)), snr_floor=0.05),
        DPMSolver2M(temperature=0.5),
        LogSNR(first=-3.5, last=4.0),
        steps=10,
        coarse_until=1.0,
    ),
    "inexact_newton": Method(InexactNewton(K=5), DDIM(eta=1.0), Even(), steps=20),
    # The same number of evaluations as inexact_newton; dps adds 200 backward passes.
    "dps": Method(DPS(K=10), DDIM(eta=1.0), Even(), steps=20),
    "mpgd": Method(MPGD(K=10), DDIM(eta=1.0), Even(), steps=20),
    # As dps, through the decoder of a latent model.
    "psld": Method(PSLD(K=10), DDIM(eta=1.0), Even(), steps=20),
    # About as many evaluations again, shared out over levels, moves and time travel.
    "freedom": Method(FreeDoM(repeats=2), DDIM(eta=1.0), Even(), steps=50),
    "repaint": Method(RePaint(repeats=10), DDIM(eta=1.0), Even(), steps=20),
    # The mean of moment_matching: m backward passes a level in place of m evaluations.
    "mmps": Method(MMPS(m=3), DPMSolver2M(eta=1.0), LogSNR(), steps=20),
    "ding": Method(DING(), Decoupled(), Even(), steps=25),
    # An evaluation for every entry of the state: for priors of a few hundred.
    "newton_exact": Method(NewtonExact(), DDIM(eta=1.0), Even(), steps=20),
    "ddnm": Method(DDNM(), DDIM(eta=0.85), LogSNR(), steps=50),
    "plain": Method(Plain(), DDIM(eta=0.0), Even(), steps=20),
}
DEFAULT_METHOD = "moment_matching_calm"


def default_method(constraint: Constraint) -> str:
    """The name of the method that suits a constraint when nothing else is said."""
    if isinstance(constraint, Unconstrained):
        return "plain"
    return DEFAULT_METHOD if serves(METHODS[DEFAULT_METHOD].solver, constraint) else "inexact_newton"


def method_named(name: str) -> Method:
    """The entry of METHODS; ValueError names the nearest and all of them."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown solver '{name}': {hint}there are {', '.join(METHODS)}")
    return METHODS[name]
