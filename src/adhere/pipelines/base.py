"""The constrained pipeline: one call for all tasks, families and solvers.

    task --crops--> constraint on pictures --to_latent_constraint--> constraint on states --\\
    model, prompts --make_denoiser--> E[x0 | x_t] ------------------------------------------- trajectory --> x0
    solver, steps, generator ---------------------------------------------------------------/               |
                            pictures, and what they cost <--postprocess-- pixels <--decode------------------/

A family subclasses this class together with the matching diffusers pipeline, so that loading, devices, prompts and
saving are diffusers' own. It defines what its states are: pixels, or the latents of an autoencoder.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Unpack, overload

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from torch import Generator, Tensor

from adhere._hints import keyword_hints
from adhere.core._checks import check_constraint, check_range
from adhere.core.constraints import Constraint
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import CountingDenoiser, Denoiser
from adhere.core.multiscale import MultiscaleDenoiser
from adhere.core.noise import check_generator
from adhere.core.sampling import Sampler, State, _States
from adhere.core.schedules import Schedule
from adhere.core.solvers.base import Solver
from adhere.core.tiling import TiledDenoiser
from adhere.errors import InvalidInput
from adhere.pipelines import _checks
from adhere.pipelines._call import CallOptions
from adhere.pipelines._checks import CheckedDenoiser, FiniteChecks, check_compilation, check_options, explain_errors
from adhere.pipelines._model_files import copy_statements, statements_of
from adhere.pipelines._passes import with_next_passes
from adhere.pipelines._runs import Batch, Images, Results, Run, RunOptions, RunPlan, plan_runs, requested_size
from adhere.pipelines.prompts import PromptInputs
from adhere.tasks.base import Task


@dataclass
class ConstrainedOutput(BaseOutput):
    """The pictures of one call, and what they cost.

    Attributes:
        images: one per sample: PIL images, an array (N, H, W, C), a tensor (N, C, H, W), or the latents.
        residual: for each sample, the root mean square of y - A x0 in [-1, 1] units. For `Upscale`, it is that of the
            returned picture; for `Inpaint`, that before known pixels are pasted back. For a loss, it is its value.
        nfe: the number of network evaluations, each for a whole batch; with classifier-free guidance, an evaluation has
            two passes.
        seconds: the wall time of sampling and decoding.
        num_steps: the number of noise levels that were run. A discrete schedule may have fewer than requested.
        solver: the name of the preset, or of the solver's class.
    """

    images: Any  # list[Image], ndarray or Tensor, by output_type
    residual: list[float]
    nfe: int
    seconds: float
    num_steps: int
    solver: str


class ConstrainedPipeline(DiffusionPipeline):
    """Base of the model families; `adhere.load` and `adhere.from_pipe` return the right one."""

    network: ClassVar[str] = "unet"  # the name of the component that denoises
    saved_as: ClassVar[str | None] = None  # the class in model_index.json, if it is not diffusers' own
    tile_size: int | None = None  # side of the tiles that the network sees, in entries of the state; None: no tiles
    temperature: float = 1.0  # `_temperature` in model_index.json; used by samplers whose own temperature is None
    prior_spectrum: StationaryCovariance | None = None  # `_prior_spectrum` in model_index.json
    max_downsamplings: int = 0  # the network may see the state down-sampled by 2 up to this many times
    _callback_tensor_inputs = ["latents", "x0", "residual"]  # noqa: RUF012  # as in diffusers
    _interrupt = False
    _checks: FiniteChecks | None = None  # the checks of the current call

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the family's pipeline, as in diffusers; `adhere.load` finds the family of a model.

        Raises:
            TypeError: for this base class.
        """
        if cls is ConstrainedPipeline:
            raise InvalidInput("ConstrainedPipeline is the base of all families: use adhere.load(model)")
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_pipe(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the family's pipeline with the components of another, as in diffusers; see also `adhere.from_pipe`.

        Raises:
            TypeError: for this base class.
        """
        if cls is ConstrainedPipeline:
            raise InvalidInput("ConstrainedPipeline is the base of all families: use adhere.from_pipe(pipeline)")
        return copy_statements(args[0] if args else kwargs["pipeline"], super().from_pipe(*args, **kwargs))

    # --- What a family defines.

    @property
    def multiple(self) -> int:
        """Heights and widths of pictures must be multiples of this, in pixels."""
        raise InvalidInput(f"{type(self).__name__} is not a model family: use adhere.load")

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model was trained on."""
        raise InvalidInput(f"{type(self).__name__} is not a model family: use adhere.load")

    @property
    def is_latent(self) -> bool:
        """Whether the states are the latents of an autoencoder, and not pixels."""
        return False

    @property
    def reads_text(self) -> bool:
        """Whether prompts are accepted: by default, whether the diffusers pipeline has `encode_prompt`."""
        return hasattr(self, "encode_prompt")

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        """Return the network as E[x0 | x_t], with prompts and guidance bound to it.

        Args:
            prompts: the prompts of the batch, none by default; not used by families that read no text.
            size: (height, width) of the pictures in pixels, on which the schedule may depend; native by default.

        Raises:
            AdhereError: for prompts that the model cannot read.
        """
        raise InvalidInput(f"{type(self).__name__} is not a model family: use adhere.load")

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """Return the noise schedule for pictures of (height, width), native by default."""
        raise InvalidInput(f"{type(self).__name__} is not a model family: use adhere.load")

    def vae_in_float32(self) -> AbstractContextManager[None]:
        """Return a context in which the autoencoder computes in float32 if it would overflow in float16."""
        return nullcontext()

    def check_network(self) -> None:
        """Raise AdhereError if the network takes more than the state, such as a mask; `adhere.load` calls this."""
        return

    @property
    def prior_covariance(self) -> StationaryCovariance | None:
        """The covariance model of the states; None is the default for their number of channels."""
        return self.prior_spectrum

    def state_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of the state of a picture of (height, width) pixels."""
        return (3, *size)

    def to_latent_constraint(self, constraint: Constraint, backward: bool = False) -> Constraint:
        """Return a constraint on pictures as a constraint on states.

        Args:
            constraint: a constraint on pictures (B, 3, H, W) in [-1, 1].
            backward: whether gradients through a decoder are taken by autograd.
        """
        return constraint

    def decode(self, x0: Tensor) -> Tensor:
        """Return the pictures (B, 3, H, W), in about [-1, 1], of states."""
        return x0

    def _tiles(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return (side, overlap) of the network's tiles for pictures of (height, width), or None."""
        return None if self.tile_size is None else (self.tile_size, self.tile_size // 8)

    def _scales(self, size: tuple[int, int], sampler: Sampler) -> tuple[int, float, int | None] | None:
        """Return (max_downsamplings, max_log_snr, multiple) of `MultiscaleDenoiser`, or None for a single scale."""
        return (self.max_downsamplings, sampler.multiscale_max_log_snr, None) if self.max_downsamplings else None

    @property
    def _compiled_modules(self) -> list[torch.nn.Module]:
        """The modules that `compile` compiles: the network."""
        return [getattr(self, self.network)]

    # --- What all families share.

    def compile(self, **options: Any) -> None:
        """Compile the network, and the encoder and the decoder of latent families, with `torch.compile`, in place.

        In diffusers, this is `pipe.unet = torch.compile(pipe.unet)` or `pipe.transformer.compile()`.
        The modules stay the same objects, so saving, LoRA and `adhere.from_pipe` work as before. The code is generated
        during the first call, which takes a minute or more, and again for another size, batch size or dtype.

        Args:
            options: keyword arguments of `torch.compile`, such as `mode="max-autotune"`.

        Raises:
            AdhereError: if `torch.compile` does not work on this machine, for example without a C++ compiler.
        """
        check_compilation(self.execution_device, options)
        for module in self._compiled_modules:
            module.compile(**options)

    @property
    def execution_device(self) -> torch.device:
        """The device of the states, which is that of the network even while diffusers offloads the network."""
        return _checks.execution_device(self, getattr(self, self.network))

    @property
    def interrupt(self) -> bool:
        """Whether the current run ends after this step; set `pipe._interrupt = True` in a callback, as in diffusers."""
        return self._interrupt

    @overload
    def __call__(
        self,
        task: Task | Sequence[Task],
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        return_dict: Literal[True] = True,
        **options: Unpack[CallOptions],
    ) -> ConstrainedOutput: ...
    @overload
    def __call__(
        self,
        task: Task | Sequence[Task],
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        return_dict: Literal[False],
        **options: Unpack[CallOptions],
    ) -> tuple[Images]: ...
    @torch.no_grad()  # under inference_mode, weights that are moved meanwhile could not take part in autograd later
    @explain_errors()
    @keyword_hints(
        image="write pipe(adhere.Inpaint(image, mask))",
        mask_image="write pipe(adhere.Inpaint(image, mask))",
        mask="write pipe(adhere.Inpaint(image, mask))",
        strength="there is no strength: the task's constraint decides what changes",
        seed="write generator=torch.Generator().manual_seed(seed)",
        batch_size="write num_images_per_prompt=",
        num_samples="write num_images_per_prompt=",
        steps="write num_inference_steps=",
        size="write height= and width=",
        callback="write callback_on_step_end=",
    )
    def __call__(
        self,
        task: Task | Sequence[Task],
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        solver: str | Solver | Sampler | None = None,
        decoder_backward: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "x0"),
    ) -> ConstrainedOutput | tuple[Images]:
        """Sample pictures that meet the constraint of a task.

        The arguments that diffusers also has mean what they mean there.

        Args:
            task: the task, or several tasks. Tasks whose crops have the same size share a batch.
            prompt, negative_prompt: for models that read text; one, or one per task. One task with several prompts is
                sampled for each of them.
            height, width: the size in pixels, for tasks whose input does not define it.
            num_inference_steps: the number of noise levels, the solver's own by default.
            guidance_scale: above 0; up to 1, guidance is off. The default is that of the model or its family.
            num_images_per_prompt: the number of samples for each task and prompt.
            generator: one, or one per sample; then a batch gives the pictures of single runs. By default the seed is
                drawn from torch's global generator, so that `torch.manual_seed` makes runs reproducible.
            latents: the initial noise of unit variance, (N, ...), for tasks with one crop.
            prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds: as diffusers'
                `encode_prompt` returns them, instead of texts.
            solver: a name in `adhere.PRESETS`, a solver or a `Sampler`.
            decoder_backward: whether gradients through the decoder are taken by autograd instead of by differences of
                the encoder.
            output_type: 'pil'; 'np', float (N, H, W, C) in [0, 1]; 'pt', float (N, C, H, W) in [0, 1], not quantized;
                or 'latent', the states.
            return_dict: whether a `ConstrainedOutput` is returned instead of a tuple of the images.
            callback_on_step_end: called as f(pipe, step, t, tensors) at each noise level. If it returns 'latents' or
                'x0', these replace those of the run; at the last noise level, either of them is the result.
            callback_on_step_end_tensor_inputs: the tensors that the callback gets: 'latents', 'x0', and 'residual',
                which may take a decoding.

        Raises:
            ValueError: for an unknown solver or name, an impossible number of steps or generators, or a measurement
                that does not fit its operator or the picture.
            TypeError: for arguments of a wrong type, or if the solver does not support the task.
            AdhereError: for a prompt or a size that the model cannot use, or if the network returns NaN.
            OutOfMemory: if the picture or the batch is too large.
        """
        tensor_inputs = callback_on_step_end_tensor_inputs
        check_options(num_inference_steps, output_type, tensor_inputs, self._callback_tensor_inputs)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        batch = Batch.of(task, prompt, negative_prompt, embeds, guidance_scale, num_images_per_prompt)
        options = RunOptions(
            solver,
            num_inference_steps,
            check_generator(generator, batch.size),
            latents,
            callback_on_step_end,
            tensor_inputs,
            batch.size,
        )
        crops = [one.crops(self, requested_size(self, height, width)) for one in batch.tasks]
        for crop in (crop for parts in crops for crop in parts):
            shape = (num_images_per_prompt, 3, *crop.size)
            for check in (check_constraint, check_range):
                check(crop.constraint, shape, torch.float32, self.execution_device)
        if (output_type == "latent" or latents is not None) and any(len(parts) > 1 for parts in crops):
            raise InvalidInput("a task has several crops, each with its own latents: use output_type='pil', no latents")
        self._interrupt, begin = False, time.perf_counter()
        with self.vae_in_float32(), self._finite_checks() as checks:
            to_latent_constraint = partial(self.to_latent_constraint, backward=decoder_backward)
            plans = plan_runs(crops, to_latent_constraint, batch.num_images)
            runs = self._prepare(plans, batch, options, checks)
            states = self._sample(runs, options)
            samples = [state.x0 for state in states]
            pictures = [self.decode(x0) for x0 in samples]
            checks.check()
            results = Results(batch, crops, [run.plan for run in runs], pictures)
            residual = results.residual()
        seconds = time.perf_counter() - begin
        images = results.latents(samples) if output_type == "latent" else results.images(output_type)
        nfe = sum(run.denoiser.nfe for run in runs)
        num_steps = max(state.step for state in states) + 1
        out = ConstrainedOutput(images, residual, nfe, seconds, num_steps, runs[0].name)
        if not self._interrupt:
            out = with_next_passes(self, out, results, options, output_type, decoder_backward)
        self.maybe_free_model_hooks()
        return out if return_dict else (out.images,)

    @contextmanager
    def _finite_checks(self) -> Iterator[FiniteChecks]:
        """Return a context in which the outputs of the model's parts are checked, see `FiniteChecks`."""
        self._checks = FiniteChecks(is_deferred=self.execution_device.type != "cpu")
        try:
            yield self._checks
        finally:
            self._checks = None

    def _prepare(self, plans: list[RunPlan], batch: Batch, options: RunOptions, checks: FiniteChecks) -> list[Run]:
        if not self.reads_text:
            batch.prompts.refuse_text()
        denoisers: dict[tuple[int, ...], Denoiser] = {}  # prompts are encoded once per set of samples
        runs = []
        for plan in plans:
            key = tuple(plan.samples)
            if key not in denoisers:
                denoisers[key] = self.make_denoiser(batch.prompts.select(plan.samples), plan.size)
            name, sampler = options.sampler_for(plan)
            sampler = sampler.for_model(self.temperature, self.prior_covariance)
            timesteps = sampler.timesteps_for(self.schedule(plan.size), options.num_inference_steps)
            denoiser = denoisers[key]
            tiles = self._tiles(plan.size)
            if tiles is not None:
                denoiser = TiledDenoiser(denoiser, *tiles)
            scales = self._scales(plan.size, sampler)
            if scales is not None:
                denoiser = MultiscaleDenoiser(denoiser, *scales)
            checked = CheckedDenoiser(denoiser, timesteps, checks)
            runs.append(Run(plan, name, sampler, CountingDenoiser(checked), timesteps, checked))
        return runs

    def _sample(self, runs: list[Run], options: RunOptions) -> list[State]:
        """Return the last state of each run; every run begins with the generators as they were given."""
        initial_states = options.generator_states()
        last = []
        with self.progress_bar(total=sum(len(run.timesteps) for run in runs)) as bar:  # pyright: ignore[reportCallIssue]
            for run in runs:
                options.restore_generators(initial_states)
                self._num_timesteps = len(run.timesteps)  # for callbacks, as in diffusers
                shape = (len(run.plan.samples), *self.state_shape(run.plan.size))
                states = run.states(options, shape, torch.empty(0, dtype=torch.float32, device=self.execution_device))
                last.append(self._last_state(states, options, bar.update))
                run.checked.check(last[-1].x0)
        return last

    def _last_state(self, states: _States, options: RunOptions, update: Callable[[], object]) -> State:
        """Return the state at the last noise level, with the callback called at each one."""
        replacement = None
        while True:
            state = states.send(replacement)
            update()
            replacement = options.call_back(self, state)
            state = replacement or state
            if self._interrupt or state.step + 1 == state.num_steps:
                return state
            del state  # a large one is not kept during the next step

    def to_json_string(self) -> str:
        """Return the configuration as it is saved: under the diffusers class, so that diffusers loads the folder."""
        config = json.loads(super().to_json_string())
        diffusers_class = next(c.__name__ for c in type(self).__mro__ if not issubclass(c, ConstrainedPipeline))
        config["_class_name"] = self.saved_as or diffusers_class
        return json.dumps(config | statements_of(self), indent=2, sort_keys=True) + "\n"
