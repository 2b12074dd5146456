"""The tasks of benchmarks.emoji, and the settings of each method for a budget of network evaluations."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar, set_verbosity
from torch import Generator, Tensor
from transformers.utils import logging as transformers_logging

import adhere
from adhere.core.constraints import Constraint, Linear, Loss, mask_of
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Downsample
from adhere.core.noise import randn
from adhere.core.operators import Mask
from adhere.core.presets import PRESETS
from adhere.core.sampling import Sampler
from adhere.core.schedules import DDPMSchedule, Schedule
from adhere.core.solvers.base import Solver
from adhere.features import EfficientNetLite0
from adhere.losses import GramDistance, SilhouetteLoss
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.prompts import PromptInputs
from benchmarks.held_out import SIZE_PIXELS
from benchmarks.masks import strokes


@dataclass(frozen=True, eq=False)
class EmojiTask:
    """A task for a batch of pictures.

    Attributes:
        constraint: The constraint on the pictures.
        given: What is known of the pictures, for display, (B, 3, H, W).
        mask: The pixels to compare with the original, (1, 1, H, W), 1 = inpaint; None if many results are right.
    """

    constraint: Constraint
    given: Tensor
    mask: Tensor | None


def half() -> np.ndarray:
    """Return the mask of the right half, bool (64, 64), True = inpaint."""
    return np.arange(SIZE_PIXELS)[None].repeat(SIZE_PIXELS, 0) >= SIZE_PIXELS // 2


def box() -> np.ndarray:
    """Return the mask of a quarter of the picture, in the middle."""
    mask = np.zeros((SIZE_PIXELS, SIZE_PIXELS), bool)
    mask[SIZE_PIXELS // 4 : -SIZE_PIXELS // 4, SIZE_PIXELS // 4 : -SIZE_PIXELS // 4] = True
    return mask


def free_form() -> np.ndarray:
    """Return the mask of strokes that are 10 pixels wide."""
    return strokes(width=40)[::4, ::4]


def inpainting(make_mask: Callable[[], np.ndarray]) -> Callable[[Tensor], EmojiTask]:
    """Return the task in which the pixels outside a mask (64, 64) are known; True = inpaint."""

    def task(x: Tensor) -> EmojiTask:
        mask = torch.from_numpy(make_mask())[None, None].float()
        given = (1 - mask) * x
        return EmojiTask(Linear(Mask(1 - mask), given), given, mask)

    return task


def downsampling(factor: int, noise: float = 0.0) -> Callable[[Tensor], EmojiTask]:
    """Return the task in which the means over factor x factor pixels are known, with standard deviation `noise`."""

    def task(x: Tensor) -> EmojiTask:
        y = Downsample(factor)(x)
        given = y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return EmojiTask(Linear(Downsample(factor), y, noise), given, torch.ones(1, 1, *x.shape[-2:]))

    return task


def silhouette(x: Tensor) -> EmojiTask:
    """Return the task in which the part that differs from the white background is known."""
    white = torch.ones(1, 3, 1, 1)
    foreground = ((x - white).square().mean(1, keepdim=True).sqrt() > 0.3).float()
    return EmojiTask(Loss(SilhouetteLoss(foreground, white)), (1 - 2 * foreground).expand_as(x), None)


def style(x: Tensor) -> EmojiTask:
    """Return the task in which the colors and textures are known, but not their positions."""
    return EmojiTask(Loss(GramDistance(EfficientNetLite0(stages=3).features, x)), x, None)


TASKS = {
    "half": inpainting(half),
    "box": inpainting(box),
    "free_form": inpainting(free_form),
    "x4": downsampling(4),
    "x8": downsampling(8),
    "layout": downsampling(16, noise=0.1),
    "silhouette": silhouette,
    "style": style,
}

SCHEDULE = DDPMSchedule.from_betas()
SMALL_BUDGET_NFE = 100  # below it, noise levels are cheaper and the step sizes of STEP_SIZE_FACTORS apply
MAX_LEVEL_NFE = 5  # the largest number of evaluations per noise level at small budgets
# Factors on the paper's step sizes at small budgets, where a noise level has few steps: the best of 0.3, 1, 3 and 10
# over four tasks on the first twenty emoji (docs/experiments/adhere-emoji.md).
STEP_SIZE_FACTORS = {"inexact_newton": 10.0, "dps": 10.0, "mpgd": 3.0}

# Methods that support a constraint but are not run, with the reason. In latents, a constraint on pictures is either
# 'known', known latents under a mask, or 'decoded', applied to the decoded picture.
NOT_RUN = {
    ("ddnm", "decoded"): "its projection would use the decoder 30 times per noise level",
    ("newton_exact", "known"): "it takes one evaluation per entry of the latents",
    ("newton_exact", "decoded"): "it takes one evaluation per entry of the latents",
}


def reason_not_run(name: str, constraint: Constraint) -> str | None:
    """Return why a method is not run with a constraint on latents, None if it is run."""
    if not PRESETS[name].solver.supports(constraint):
        return "the solver does not support this constraint"
    return NOT_RUN.get((name, "decoded" if mask_of(constraint) is None else "known"))


def own_nfe(name: str, schedule: Schedule = SCHEDULE) -> int:
    """Return the number of evaluations that a preset takes by itself."""
    return PRESETS[name].evaluations(schedule)


def sampler_for_budget(name: str, nfe: int, schedule: Schedule = SCHEDULE) -> tuple[Sampler, int]:
    """Return a preset with the settings that take about `nfe` network evaluations.

    A preset is unchanged at its own number of evaluations. Otherwise, at small budgets, the number of iterations or
    repeats per noise level is reduced until a noise level takes at most MAX_LEVEL_NFE evaluations. Then the number of
    noise levels is chosen.

    Args:
        name: The name of the preset.
        nfe: The budget.
        schedule: The schedule of the model.

    Returns:
        The sampler, and its work: the number of evaluations plus two for each backward pass.
    """
    sampler = PRESETS[name]
    if nfe != own_nfe(name, schedule):
        if nfe < SMALL_BUDGET_NFE:
            sampler = replace(sampler, solver=_cheaper(sampler.solver, STEP_SIZE_FACTORS.get(name)))
        sampler = replace(sampler, num_steps=_num_steps(sampler, nfe, schedule))
    return sampler, sampler.evaluations(schedule) + 2 * sampler.backward_passes(schedule)


def _cheaper(solver: Solver, step_size_factor: float | None) -> Solver:
    """The solver with at most MAX_LEVEL_NFE evaluations per noise level, if its number of iterations is a setting."""
    for setting in ("num_iterations", "repeats"):
        while type(number := getattr(solver, setting, None)) is int and _level_nfe(solver) > MAX_LEVEL_NFE:
            solver = replace(solver, **{setting: number - 1})  # pyright: ignore[reportArgumentType]
    if step_size_factor is not None:
        sizes = {name: step_size_factor * getattr(solver, name) for name in ("step_size_start", "step_size_end")}
        solver = replace(solver, **sizes)  # pyright: ignore[reportArgumentType]
    return solver


def _level_nfe(solver: Solver) -> int:
    """The evaluations of each noise level but the first."""
    return solver.evaluations((0.0, 0.0)) - solver.evaluations((0.0,))


def _num_steps(sampler: Sampler, nfe: int, schedule: Schedule) -> int:
    """The number of noise levels whose evaluations are as close to the budget as possible; an even one, if two are."""
    evaluations = {steps: sampler.evaluations(schedule, steps) for steps in range(1, nfe + 1)}
    return min(evaluations, key=lambda steps: (abs(evaluations[steps] - nfe), steps % 2, -steps))


def quiet_pipeline(model: str) -> ConstrainedPipeline:
    """Load a model; progress bars and warnings about packages that are not needed are switched off."""
    set_verbosity(logging.ERROR)
    transformers_logging.set_verbosity(logging.ERROR)
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = adhere.load(model)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    return pipe


@torch.no_grad()  # not inference_mode: dps differentiates the network
def run(
    pipe: ConstrainedPipeline,
    constraint: Constraint,
    sampler: Sampler,
    prompts: PromptInputs,
    generators: list[Generator],
    decoder_backward: bool = False,
) -> tuple[Tensor, int, float]:
    """Sample one picture of 64x64 pixels per generator.

    Args:
        pipe: The model.
        constraint: A constraint on pictures (B, 3, 64, 64).
        sampler: The sampler.
        prompts: The prompts and the guidance scale.
        generators: One per sample.
        decoder_backward: Whether gradients of the decoder are taken by autograd.

    Returns:
        Pictures (B, 3, 64, 64), about in [-1, 1]; the network evaluations; the seconds for the whole batch.
    """
    begin = time.perf_counter()
    size = (SIZE_PIXELS, SIZE_PIXELS)
    denoiser = CountingDenoiser(pipe.make_denoiser(prompts, size))
    latent_constraint = pipe.to_latent_constraint(constraint, decoder_backward)
    sampler = sampler.for_model(pipe.temperature, pipe.prior_covariance)
    noise = randn((len(generators), *pipe.state_shape(size)), torch.empty(0), generators)
    sampler = sampler.for_model(pipe.temperature, pipe.prior_covariance)
    *_, last = sampler.trajectory(denoiser, latent_constraint, noise, generators)
    x0 = last.x0
    return pipe.decode(x0), denoiser.nfe, time.perf_counter() - begin
