"""The runs of a call: which samples share a batch, and how their results become pictures.

A call has R requests, one per task and prompt, with n samples each: sample i belongs to request i // n. A task may need
several crops. Each crop of each request is sampled in one run. Crops of the same size whose constraints can be stacked
share a run. With one generator per sample, the results do not depend on which crops share a run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from adhere.core.constraints import Constraint
from adhere.core.denoisers import CountingDenoiser
from adhere.core.noise import Generators, initial_noise, randn
from adhere.core.presets import PRESETS, default_preset, get_sampler
from adhere.core.sampling import Sampler, State, _States, trajectory
from adhere.core.solvers.base import Solver
from adhere.errors import AdhereError, InvalidInput
from adhere.pipelines._checks import CheckedDenoiser
from adhere.pipelines.prompts import PromptInputs
from adhere.tasks.base import Crop, ModelInfo, Task

Images = list[Image.Image] | np.ndarray | Tensor
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@dataclass(frozen=True)
class Batch:
    """The requests of a call.

    Attributes:
        tasks: one per request.
        prompts: one per sample.
        num_images: the samples per request, n.
    """

    tasks: list[Task]
    prompts: PromptInputs
    num_images: int

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.tasks) * self.num_images

    @classmethod
    def of(
        cls,
        task: object,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        embeds: Sequence[Tensor | None],
        guidance_scale: float | None,
        num_images: int,
    ) -> "Batch":
        """Return the batch of a call, whose arguments are those of the pipeline.

        Raises:
            TypeError: if `task` is not a task, or a prompt is not a text.
            ValueError: if the numbers of tasks and prompts do not agree, for fewer than one image, or for a text
                together with its embeddings.
        """
        if type(num_images) is not int or num_images < 1:
            raise InvalidInput(f"num_images_per_prompt = {num_images!r}: give an integer of at least 1")
        tasks = _check_tasks(task)
        texts = [_check_texts("prompt", prompt, embeds[0]), _check_texts("negative_prompt", negative_prompt, embeds[1])]
        given = [*texts, *embeds]
        counts = {len(tasks), *(len(one) for one in given if one is not None)}
        count = max(counts)
        if 0 in counts or not counts <= {1, count}:
            raise InvalidInput(
                f"{len(tasks)} tasks, but prompts for {sorted(counts)}: give one prompt, or one per task"
            )
        positive, negative = (_repeat_texts(text, count, num_images) for text in texts)
        tensors = {
            name: None if x is None else x.expand(count, *x.shape[1:]).repeat_interleave(num_images, 0)
            for name, x in zip(_EMBEDS, embeds, strict=True)
        }
        prompts = PromptInputs(count * num_images, positive, negative, guidance_scale=guidance_scale, **tensors)
        return cls(tasks * count if len(tasks) == 1 else tasks, prompts, num_images)


def _check_tasks(task: object) -> list[Task]:
    tasks: list[Task] = []
    for one in task if isinstance(task, (list, tuple)) else [task]:
        if isinstance(one, Constraint):
            raise InvalidInput("the task is a constraint: write pipe(adhere.Custom(constraint, size=(height, width)))")
        if isinstance(one, type):
            raise InvalidInput(f"the task is the class {one.__name__}: give an object, such as adhere.Generate()")
        if not isinstance(one, Task):
            given = type(one).__name__
            raise InvalidInput(f"the task has the type {given}: give a task, such as adhere.Inpaint(image, mask)")
        tasks.append(one)
    if not tasks:
        raise InvalidInput("the list of tasks is empty: give at least one")
    return tasks


def _check_texts(name: str, texts: object, embeds: Tensor | None) -> list[str] | None:
    """Return one or several texts as a list, or None."""
    if texts is None:
        return None
    if embeds is not None:
        raise InvalidInput(f"{name} and {name}_embeds are given: give one of them")
    checked: list[str] = []
    for text in texts if isinstance(texts, (list, tuple)) else [texts]:
        if not isinstance(text, str):
            raise InvalidInput(f"{name} has the type {type(text).__name__}: give a text, or a list of texts")
        checked.append(text)
    return checked


def _repeat_texts(texts: list[str] | None, count: int, num_images: int) -> list[str] | None:
    if texts is None:
        return None
    texts = texts * count if len(texts) == 1 else texts
    return [text for text in texts for _ in range(num_images)]


def requested_size(model: ModelInfo, height: int | None, width: int | None) -> tuple[int, int] | None:
    """Return (height, width), with the model's native side in place of None; None if both are None."""
    if height is None and width is None:
        return None
    native_height, native_width = model.native_size
    return native_height if height is None else height, native_width if width is None else width


@dataclass(frozen=True)
class RunPlan:
    """One batch to sample.

    Attributes:
        size: (height, width) of its pictures in pixels.
        constraint: the constraint on states (B, ...).
        parts: (request, index of the crop) of each part of the batch, which has n samples.
        num_images: n.
        sampler: the sampler that is used if the call names no solver; None is the default for the constraint.
    """

    size: tuple[int, int]
    constraint: Constraint
    parts: list[tuple[int, int]]
    num_images: int
    sampler: Sampler | None = None

    @property
    def samples(self) -> list[int]:
        """The indices of its samples in the call, B of them."""
        n = self.num_images
        return [request * n + i for request, _ in self.parts for i in range(n)]


def plan_runs(
    crops: list[list[Crop]], to_latent_constraint: Callable[[Constraint], Constraint], num_images: int
) -> list[RunPlan]:
    """Return the runs that sample all crops.

    Args:
        crops: the crops of each request.
        to_latent_constraint: maps a constraint on pictures to one on states.
        num_images: the samples per request.
    """
    groups: list[list[RunPlan]] = []
    for request, parts in enumerate(crops):
        for index, crop in enumerate(parts):
            constraint = to_latent_constraint(crop.constraint)
            plan = RunPlan(crop.size, constraint, [(request, index)], num_images, crop.sampler)
            group = next((group for group in groups if _may_join(group, plan)), None)
            if group is None:
                groups.append([plan])
            else:
                group.append(plan)
    return [run for group in groups for run in _merge(group)]


def _may_join(group: list[RunPlan], plan: RunPlan) -> bool:
    """Return whether a plan fits into a group; crops of one request never share a run."""
    first = group[0]
    same_kind = first.size == plan.size and type(first.constraint) is type(plan.constraint)
    same_kind = same_kind and first.sampler == plan.sampler
    return same_kind and all(other.parts[0][0] != plan.parts[0][0] for other in group)


def _merge(group: list[RunPlan]) -> list[RunPlan]:
    first, *others = group
    constraint = first.constraint.stack([other.constraint for other in others], first.num_images)
    if constraint is None:
        return group
    return [replace(first, constraint=constraint, parts=[part for plan in group for part in plan.parts])]


@dataclass(frozen=True)
class RunOptions:
    """The options of a call that concern its runs; see `ConstrainedPipeline.__call__`."""

    solver: str | Solver | Sampler | None
    num_inference_steps: int | None
    generator: Generators
    latents: Tensor | None
    callback: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None] | None
    callback_inputs: Sequence[str]
    num_samples: int

    def sampler_for(self, plan: RunPlan) -> tuple[str, Sampler]:
        """Return the name and the sampler for a run."""
        solver = self.solver or plan.sampler or default_preset(plan.constraint)
        if isinstance(solver, Sampler):
            names = [name for name, preset in PRESETS.items() if preset == solver]
            return names[0] if names else type(solver.solver).__name__, solver
        return solver if isinstance(solver, str) else type(solver).__name__, get_sampler(solver)

    def generator_for(self, samples: list[int]) -> Generators:
        """Return the generators of some samples."""
        return self.generator if isinstance(self.generator, Generator) else [self.generator[i] for i in samples]

    def generator_states(self) -> list[Tensor]:
        """Return the states of all generators."""
        return [one.get_state() for one in self._generators]

    def restore_generators(self, states: list[Tensor]) -> None:
        """Set the states of all generators."""
        for one, state in zip(self._generators, states, strict=True):
            one.set_state(state)

    @property
    def _generators(self) -> Sequence[Generator]:
        return [self.generator] if isinstance(self.generator, Generator) else self.generator

    def noise_for(self, samples: list[int], shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
        """Return the initial noise of unit variance: the given latents, or new noise."""
        if self.latents is None:
            return randn(shape, like, generator)
        if not isinstance(self.latents, Tensor):
            raise InvalidInput(f"latents have the type {type(self.latents).__name__}: give a torch tensor")
        expected = (self.num_samples, *shape[1:])
        if self.latents.shape != expected:
            raise InvalidInput(f"latents have shape {tuple(self.latents.shape)}: this call needs {expected}")
        return self.latents[samples].to(like)

    def call_back(self, pipe: object, state: State) -> State | None:
        """Call the callback, and return the state with the tensors that it returned, or None."""
        if self.callback is None:
            return None
        attributes = {"latents": "x_t", "x0": "x0", "residual": "residual_norm"}
        tensors = {name: getattr(state, attributes[name]) for name in self.callback_inputs}
        returned = self.callback(pipe, state.step, state.t, tensors) or {}
        x_t, x0 = returned.get("latents", state.x_t), returned.get("x0", state.x0)
        if x_t is state.x_t and x0 is state.x0:
            return None
        if state.step + 1 == state.num_steps and x0 is state.x0:
            x0 = x_t  # after the last step, the latents are the result, as in diffusers
        return State(state.step, state.num_steps, state.t, x_t, x0, state.constraint)


@dataclass(frozen=True)
class Run:
    """A run that is ready to start."""

    plan: RunPlan
    name: str
    sampler: Sampler
    denoiser: CountingDenoiser
    timesteps: list[float]
    checked: CheckedDenoiser

    def states(self, options: RunOptions, shape: tuple[int, ...], like: Tensor) -> _States:
        """Yield the states of the run, in the dtype and on the device of `like`."""
        generator = options.generator_for(self.plan.samples)
        noise = options.noise_for(self.plan.samples, shape, like, generator)
        x_T = initial_noise(self.denoiser.schedule, self.timesteps[0], noise)
        solver, transition = self.sampler.solver, self.sampler.transition
        return trajectory(self.denoiser, self.plan.constraint, solver, x_T, self.timesteps, transition, generator)


@dataclass(frozen=True)
class Results:
    """The samples of a call.

    Attributes:
        batch: the requests of the call.
        crops: the crops of each request.
        plans: the plan of each run.
        pictures: the pictures of each run, (B, 3, H, W) in about [-1, 1].
    """

    batch: Batch
    crops: list[list[Crop]]
    plans: list[RunPlan]
    pictures: list[Tensor]

    def residual(self) -> list[float]:
        """Return the residual norm of each sample; for several crops, their root mean square."""
        parts = self._by_crop(self.pictures)
        norms = [
            torch.stack(
                [crop.constraint.residual_norm(task.written(parts[i, j], crop)) for j, crop in enumerate(crops)]
            )
            for i, (task, crops) in enumerate(zip(self.batch.tasks, self.crops, strict=True))
        ]
        return torch.cat([one.square().mean(0).sqrt() for one in norms]).tolist()

    def latents(self, samples: list[Tensor]) -> Tensor:
        """Return the states of all samples, (N, ...), for requests with one crop each.

        Raises:
            AdhereError: if the states differ in size.
        """
        parts = self._by_crop(samples)
        states = [parts[request, 0] for request in range(len(self.crops))]
        if len({x.shape for x in states}) > 1:
            raise AdhereError("output_type = 'latent': the latents differ in size; use output_type='pil'")
        return torch.cat(states)

    def images(self, output_type: str) -> Images:
        """Return the pictures of all samples.

        Raises:
            AdhereError: if pictures of different sizes are to be in one array.
        """
        if output_type == "pil":
            return [task.postprocess(x, crops) for task, x, crops in self.samples()]
        floats = [task.postprocess_float(x, crops) for task, x, crops in self.samples()]
        if len({x.shape for x in floats}) > 1:
            raise AdhereError(f"output_type = '{output_type}': the pictures differ in size; use output_type='pil'")
        images = torch.stack(floats)
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()

    def samples(self) -> list[tuple[Task, list[Tensor], list[Crop]]]:
        """Return (task, one sample (3, H, W) per crop, crops) of each sample."""
        parts, n = self._by_crop(self.pictures), self.batch.num_images
        return [
            (task, [parts[request, index][i] for index in range(len(crops))], crops)
            for request, (task, crops) in enumerate(zip(self.batch.tasks, self.crops, strict=True))
            for i in range(n)
        ]

    def _by_crop(self, tensors: list[Tensor]) -> dict[tuple[int, int], Tensor]:
        """Return the n samples of each (request, crop), from the batches of all runs."""
        n = self.batch.num_images
        return {
            part: tensor[i * n : (i + 1) * n]
            for plan, tensor in zip(self.plans, tensors, strict=True)
            for i, part in enumerate(plan.parts)
        }
