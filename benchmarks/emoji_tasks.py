"""What benchmarks.emoji asks of the held-out emoji, in batches, and the methods that do it at a given number of NFE."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar, set_verbosity
from torch import Generator, Tensor
from transformers.utils import logging as transformers_logging

from adhere import ConstrainedPipeline
from adhere.conditioning import Conditioning
from adhere.core.constraints import Constraint, Linear, Loss, is_masked
from adhere.core.denoise import Counted
from adhere.core.operators import Downsample, Mask
from adhere.core.sample import end_of, serves
from adhere.core.schedule import Discrete, Schedule, log_snr
from adhere.core.solvers import METHODS, Method
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.descent import Descent
from adhere.core.solvers.ding import DING
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.freedom import FreeDoM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.mmps import MMPS
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.newton_exact import NewtonExact
from adhere.core.solvers.psld import PSLD
from adhere.core.solvers.repaint import RePaint
from adhere.core.solvers.time_travel import TimeTravel
from adhere.features import EfficientNetLite0
from adhere.losses import GramDistance, SilhouetteLoss
from benchmarks.masks import strokes
from training.emoji.data import SIDE


@dataclass(frozen=True, eq=False)
class Asked:
    """A task for a batch: what is asked, what a person would be shown of it, and which pixels are to be made.

    unknown: (1, 1, H, W); None when many results are right, so that none is compared with the original.
    """

    constraint: Constraint
    shown: Tensor  # (B, 3, H, W)
    unknown: Tensor | None


def half() -> np.ndarray:
    """The right half is to be made."""
    return np.arange(SIDE)[None].repeat(SIDE, 0) >= SIDE // 2


def box() -> np.ndarray:
    """A quarter of the picture, in the middle."""
    unknown = np.zeros((SIDE, SIDE), bool)
    unknown[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = True
    return unknown


def free_form() -> np.ndarray:
    """The strokes of benchmarks.masks, thicker for their size: 10 pixels wide of 64."""
    return strokes(width=40)[::4, ::4]


def under(mask: Callable[[], np.ndarray]) -> Callable[[Tensor], Asked]:
    """What a mask (64, 64) leaves, True = to be made."""

    def ask(x: Tensor) -> Asked:
        unknown = torch.from_numpy(mask())[None, None].float()
        seen = (1 - unknown) * x
        return Asked(Linear(Mask(1 - unknown), seen), seen, unknown)

    return ask


def means(factor: int, noise: float = 0.0) -> Callable[[Tensor], Asked]:
    """The means over factor x factor pixels, up to the standard deviation `noise`."""

    def ask(x: Tensor) -> Asked:
        y = Downsample(factor)(x)
        shown = y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return Asked(Linear(Downsample(factor), y, noise), shown, torch.ones(1, 1, *x.shape[-2:]))

    return ask


def silhouette(x: Tensor) -> Asked:
    """Where the emoji differs from white, the background of all."""
    white = torch.ones(1, 3, 1, 1)
    mask = ((x - white).square().mean(1, keepdim=True).sqrt() > 0.3).float()
    return Asked(Loss(SilhouetteLoss(mask, white)), (1 - 2 * mask).expand_as(x), None)


def style(x: Tensor) -> Asked:
    """The colours and textures of the emoji, wherever."""
    return Asked(Loss(GramDistance(EfficientNetLite0(stages=3).features, x)), x, None)


SCHEDULE = Discrete.from_betas()
TASKS = {
    "half": under(half),
    "box": under(box),
    "free_form": under(free_form),
    "x4": means(4),
    "x8": means(8),
    "layout": means(16, noise=0.1),
    "silhouette": silhouette,
    "style": style,
}


# Few moves a level should be longer than the paper's: so many times, the best of 0.3, 1, 3 and 10 over four tasks, on
# the first twenty emoji (docs/lab/adhere-emoji.md).
FEW_MOVES = {"inexact_newton": 10.0, "dps": 10.0, "mpgd": 3.0}


def method_at(name: str, nfe: int, schedule: Schedule = SCHEDULE) -> tuple[Method, int]:
    """A method of METHODS at about `nfe` evaluations, and the work of that, a backward pass counted as 2 evaluations.

    Methods that move x_t spend 220 on the paper's 20 noise levels, 40 on 8; time travel shares them out likewise.
    schedule: the model's; by its log-SNRs moment_matching shares its directions out.
    """
    method = METHODS[name]
    solver, backward = method.solver, 0.0  # backward passes for each evaluation
    first = level = 1  # evaluations of the first level, and of each other
    if isinstance(solver, Descent):
        moves = 5 if nfe >= 100 else 2
        longer = FEW_MOVES.get(name, 1.0) if nfe < 100 else 1.0
        K = moves if isinstance(solver, InexactNewton) else 2 * moves
        solver = replace(solver, K=K, first=longer * solver.first, last=longer * solver.last)
        first = level = 1 + 2 * moves
        backward = solver.K / level if isinstance(solver, DPS) else 0.0
    elif isinstance(solver, TimeTravel):
        if isinstance(solver, RePaint):
            solver = replace(solver, repeats=10 if nfe >= 100 else 5)
        first = 2 if isinstance(solver, FreeDoM) else 1
        level = first * solver.repeats
        backward = 0.5 if isinstance(solver, FreeDoM) else 0.0
    elif isinstance(solver, MomentMatching):
        return _matching_at(method, solver, nfe, schedule)
    elif isinstance(solver, MMPS):
        backward = solver.m
    elif isinstance(solver, DING):
        level = 2
    steps = max(1, round((nfe - first) / level + 1))
    calls = first + (steps - 1) * level
    return replace(method, solver=solver, steps=steps), calls + round(2 * backward * calls)


def _matching_at(method: Method, solver: MomentMatching, nfe: int, schedule: Schedule) -> tuple[Method, int]:
    """As many levels as the budget has directions for, at least one."""

    def cost(steps: int) -> int:
        return sum(1 + solver.directions(log_snr(schedule, t)) for t in method.levels(schedule, steps))

    steps = max((steps for steps in range(1, nfe + 1) if cost(steps) <= nfe), default=1)
    return replace(method, steps=steps), cost(steps)


def can_run(name: str, constraint: Constraint) -> bool:
    """Whether a method is for such a constraint on pictures, at a cost that can be compared.

    Projection is for masks: through a decoder it would decode 30 times a level. psld is for measurements that go
    through one, and known cells do not. newton_exact takes an evaluation for every entry of the latents.
    """
    solver = METHODS[name].solver
    if isinstance(solver, NewtonExact):
        return False
    if isinstance(solver, PSLD):
        return isinstance(constraint, Linear) and not is_masked(constraint)
    return is_masked(constraint) if isinstance(solver, DDNM) else serves(solver, constraint)


def quiet_pipeline(model: str) -> ConstrainedPipeline:
    """The model, without progress bars and without a word on packages that are not needed."""
    set_verbosity(logging.ERROR)
    transformers_logging.set_verbosity(logging.ERROR)
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = ConstrainedPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    return pipe


@torch.no_grad()  # not inference_mode: dps differentiates the network
def run(
    pipe: ConstrainedPipeline,
    constraint: Constraint,
    method: Method,
    conditioning: Conditioning,
    generators: list[Generator],
    decoder_backward: bool = False,
) -> tuple[Tensor, int, float]:
    """Pictures (B, 3, H, W), about [-1, 1], one for each generator; evaluations, and seconds for all of them."""
    begin = time.perf_counter()
    size = (SIDE, SIDE)
    denoiser = Counted(pipe.denoiser(conditioning, size))
    lifted = pipe.lift(constraint, decoder_backward)
    times = method.levels(denoiser.schedule, method.steps)
    shape = (len(generators), *pipe.state_shape(size))
    x0 = end_of(method.states(denoiser, lifted, shape, times, torch.empty(0), generators))
    return pipe.decode(x0), denoiser.nfe, time.perf_counter() - begin
