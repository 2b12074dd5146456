"""ConstrainedPipeline: one call for every task, family and solver.

    task --windows--> what is asked of a picture --lift--> constraint of the model's state \\
    model, prompt --denoiser--> E[x0 | x_t]                                                  } trajectory --> x0
    solver, steps, generator ---------------------------------------------------------------/      |
                                   pictures, and what they cost <--task.finish-- pixels <--decode--/

A family (adhere.families) subclasses this together with the matching diffusers pipeline, so loading, devices, prompts
and saving are diffusers' own, and says what its state is: pixels, or the latents of an autoencoder.
"""

import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Generator, Tensor

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.constraints import Constraint
from adhere.core.denoise import Counted, Denoiser, Wrapper
from adhere.core.octaves import Octaves
from adhere.core.sample import Generators, State
from adhere.core.schedule import Schedule
from adhere.core.solvers import Method, default_method, method_named
from adhere.core.tiled import Tiled
from adhere.errors import AdhereError, OutOfMemory
from adhere.families import FAMILIES, family_for
from adhere.families.schedules import noise_schedule
from adhere.loading import load
from adhere.tasks import Task, Window

Pipeline = TypeVar("Pipeline", bound="ConstrainedPipeline")  # not Self: beartype reads no Self in a method
STATES = {"latents": "x_t", "x0": "x0", "error": "error"}  # as callbacks name them -> as State does
StepCallback = Callable[["ConstrainedPipeline", int, float, dict[str, Tensor]], Any]


@dataclass
class ConstrainedOutput(BaseOutput):
    """images: one per sample. error: RMS of what was asked of the pixels, before known ones are put back, in [-1, 1]
    units (for a loss: its value), per sample. nfe: network evaluations, each for the whole batch; under guidance each
    holds two passes. seconds: wall time of sampling and decoding. steps: noise levels run, fewer than asked for when
    some round to the same time of the model's schedule. solver: the method that ran."""

    images: list[Image.Image] | np.ndarray | Tensor
    error: list[float]
    nfe: int
    seconds: float
    steps: int
    solver: str


@contextmanager
def _explained() -> Iterator[None]:
    """Running out of memory, and half precision where there is none, as one line that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        said = str(error)
        if "not implemented for 'Half'" in said or "not implemented for 'BFloat16'" in said:
            raise AdhereError(
                f"this device does not compute in half precision ({said.splitlines()[0]}): load with "
                "torch_dtype=torch.float32"
            ) from error
        short = ("out of memory", "not enough memory", "allocate memory")
        if isinstance(error, MemoryError) or any(words in said for words in short):
            raise OutOfMemory(
                "out of memory; cheaper are a smaller batch or picture, pipe.enable_model_cpu_offload(), "
                "pipe.vae.enable_tiling(), torch_dtype=torch.bfloat16"
            ) from error
        raise


class ConstrainedPipeline:
    """Base of the families; `from_pretrained` and `from_pipe` find the right one."""

    network: ClassVar[str] = "unet"  # the component that denoises
    saved_as: ClassVar[str | None] = None  # the class in model_index.json; diffusers' own unless a family has another
    tile: int | None = None  # the largest side of the state the network sees at once; None: all of it
    octaves: int = 0  # how often the state may be halved for the network

    @classmethod
    def from_pretrained(cls: type[Pipeline], model: str | Path | None = None, **kwargs: Any) -> Pipeline:
        """Load a diffusers folder, a hub id, one .safetensors file, or with None the photo model in the package.

        'adhere-photo' and 'adhere-emoji' name the shipped models. Weights are safetensors only and become float32
        unless told. Keyword arguments go to diffusers (`torch_dtype`, `variant`, ...). Raises AdhereError for a model
        without usable weights or of an unknown class.
        """
        return load(cls, model, kwargs)

    @classmethod
    def from_pipe(cls: type[Pipeline], pipeline: DiffusionPipeline, **kwargs: Any) -> Pipeline:
        """The constrained pipeline over the components of a diffusers pipeline in memory; nothing is copied.

        Keyword arguments replace components. Raises AdhereError for a class of unknown family.
        """
        given = type(pipeline).__name__
        name = next((c.__name__ for c in type(pipeline).__mro__ if c.__name__ in FAMILIES), given)
        family: Any = family_for(name, f"pipeline {given}")
        if not issubclass(family, cls):
            raise AdhereError(f"{given} is of {family.__name__}: call ConstrainedPipeline.from_pipe")
        noise_schedule(pipeline.components["scheduler"])
        components = pipeline.components | kwargs
        settings = inspect.signature(family.__init__).parameters.keys() - components.keys()
        return family(**components, **{name: pipeline.config[name] for name in settings & pipeline.config.keys()})

    @property
    def execution_device(self) -> torch.device:
        """Where states live: the network's device, also while diffusers offloads it."""
        return self._execution_device  # type: ignore[attr-defined]

    # What a family says of itself.

    @property
    def multiple(self) -> int:
        """Heights and widths of pictures the model takes are multiples of this."""
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) of the pictures the model was made for."""
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        """The network as E[x0 | x_t], told what is to be seen; takes states of any size, its schedule is of `size`.

        Raises AdhereError for what the model cannot be told.
        """
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The noise levels for pictures of `size`, native by default; the denoiser's, but for how they are spaced."""
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    def running(self) -> AbstractContextManager[None]:
        """Around a whole run: what must be so meanwhile."""
        return nullcontext()

    def state_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the state of a picture of `size`; pixels, unless a family says otherwise."""
        return (3, *size)

    def lift(self, constraint: Constraint, backward: bool = False) -> Constraint:
        """A constraint on pictures as one on states. backward: gradients through a decoder may use autograd."""
        return constraint

    def decode(self, x0: Tensor) -> Tensor:
        """States -> pictures (B, 3, H, W), about [-1, 1]."""
        return x0

    @torch.no_grad()  # inference_mode would leave weights that move meanwhile (offloading) without gradients for ever
    @_explained()
    def __call__(
        self,
        task: Task,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        guidance_scale: float | None = None,
        solver: str | None = None,
        num_inference_steps: int | None = None,
        batch_size: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        decoder_backward: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "x0"),
    ) -> ConstrainedOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Sample `batch_size` pictures that meet the task.

        prompt, negative_prompt: for models that read text; a list is one for each sample. guidance_scale: above 0;
        up to 1 guidance is off, as in diffusers; the model's or its family's own by default. solver: a name in
        `adhere.core.solvers.METHODS`; num_inference_steps: noise levels, the solver's own number by default. generator:
        one, or one per sample (then a batch equals single runs); seed 0 by default. decoder_backward: take pixel
        constraints through the decoder by autograd instead of by the encoder, forward only. output_type: 'pil', 'np'
        uint8 (N, H, W, C), 'pt' (N, C, H, W) in [0, 1], or 'latent': the raw samples, states of the one window.
        callback_on_step_end(pipe, step, t, tensors) is called at every level, as in diffusers, with those tensors that
        callback_on_step_end_tensor_inputs names: 'latents', 'x0', and 'error', which may take a decoding each time.
        What it returns is ignored; `pipe._interrupt = True` ends the run early.

        Raises ValueError for an unknown solver or name, impossible steps or too few generators, TypeError when the
        solver cannot run the task, AdhereError for a prompt the model cannot read, when the network returns NaN, and
        OutOfMemory.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type = '{output_type}': 'pil', 'np', 'pt' or 'latent'")
        if unknown := sorted(set(callback_on_step_end_tensor_inputs) - STATES.keys()):
            raise ValueError(f"callback_on_step_end_tensor_inputs: '{unknown[0]}': there are {', '.join(STATES)}")
        conditioning = Conditioning.of(prompt, negative_prompt, guidance_scale, batch_size)
        batch = conditioning.batch_size
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._interrupt = False

        windows = task.windows(self)
        if output_type == "latent" and len(windows) > 1:
            raise ValueError(f"output_type = 'latent': the task has {len(windows)} windows, each with its own samples")
        begin = time.perf_counter()
        with self.running():
            denoiser = self.denoiser(conditioning, windows[0].size)
            runs = [
                self._prepare(window, denoiser, batch, solver, num_inference_steps, decoder_backward)
                for window in windows
            ]
            samples = self._sample(runs, generator, callback_on_step_end, callback_on_step_end_tensor_inputs)
            pictures = [self.decode(x0) for x0 in samples]
            errors = [window.constraint.error(x) for window, x in zip(windows, pictures, strict=True)]
        seconds = time.perf_counter() - begin
        if output_type == "latent":
            images = samples[0]
        else:
            images = _typed([task.finish([x[i] for x in pictures], windows) for i in range(batch)], output_type)
        self.maybe_free_model_hooks()  # type: ignore[attr-defined]
        if not return_dict:
            return (images,)
        return ConstrainedOutput(
            images=images,
            error=torch.stack(errors).square().mean(0).sqrt().tolist(),
            nfe=sum(run.denoiser.nfe for run in runs),
            seconds=seconds,
            steps=len(runs[0].timesteps),
            solver=runs[0].name,
        )

    def _prepare(
        self,
        window: Window,
        denoiser: Denoiser,
        batch: int,
        solver: str | None,
        steps: int | None,
        decoder_backward: bool,
    ) -> "_Run":
        constraint = self.lift(window.constraint, decoder_backward)
        name = solver or default_method(constraint)
        method = method_named(name)
        timesteps = method.levels(self.schedule(window.size), method.steps if steps is None else steps)
        if self.tile is not None:
            denoiser = Tiled(denoiser, self.tile, self.tile // 8)
        if self.octaves:
            denoiser = Octaves(denoiser, self.octaves, method.coarse_until)
        shape = (batch, *self.state_shape(window.size))
        return _Run(name, method, constraint, Counted(_Finite(denoiser, timesteps)), shape, timesteps)

    def _sample(
        self, runs: "list[_Run]", generator: Generators, callback: StepCallback | None, wanted: Sequence[str]
    ) -> list[Tensor]:
        """The samples of each run, one after another, under one progress bar.

        Each begins with the generators as they were given, so that no hole's repair depends on the other holes.
        """
        generators = [generator] if isinstance(generator, Generator) else generator
        given = [one.get_state() for one in generators]
        like = torch.empty(0, device=self.execution_device)
        samples: list[Tensor] = []
        with self.progress_bar(total=sum(len(run.timesteps) for run in runs)) as bar:  # type: ignore[attr-defined]
            for run in runs:
                for one, beginning in zip(generators, given, strict=True):
                    one.set_state(beginning)
                state = None
                for state in run.states(like, generator):
                    bar.update()
                    if callback is not None:
                        callback(self, state.step, state.t, {name: getattr(state, STATES[name]) for name in wanted})
                    if self._interrupt:
                        break
                assert state is not None  # a trajectory has at least one level
                samples.append(state.x0)
        return samples

    def to_json_string(self) -> str:
        """The configuration as saved: under the diffusers class, so that plain diffusers loads the folder too."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        theirs = next(c.__name__ for c in type(self).__mro__ if not issubclass(c, ConstrainedPipeline))
        config["_class_name"] = self.saved_as or theirs
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class _Run:
    """One window's sampling, ready to start."""

    name: str
    method: Method
    constraint: Constraint
    denoiser: Counted
    shape: tuple[int, ...]
    timesteps: list[float]

    def states(self, like: Tensor, generator: Generators) -> Iterator[State]:
        """From noise on; tensors in the dtype and on the device of `like`."""
        return self.method.states(self.denoiser, self.constraint, self.shape, self.timesteps, like, generator)


@dataclass(frozen=True)
class _Finite(Wrapper):
    """The denoiser, refusing NaN and infinity where they come from: solvers would carry them on, or fail obscurely."""

    denoiser: Denoiser
    timesteps: Sequence[float]

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        x0 = self.denoiser(x_t, t)
        if not x0.sum().isfinite():  # a sum is one pass, and sums of finite pictures do not overflow
            where = f"t = {t:g}"  # a solver may look at a time between the levels
            if t in self.timesteps:
                where = f"step {self.timesteps.index(t) + 1} of {len(self.timesteps)} ({where})"
            raise AdhereError(f"the network returned NaN or infinity at {where}; try float32, or check the weights")
        return x0


def _typed(images: list[Image.Image], output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "pil":
        return images
    arrays = np.stack([np.asarray(image) for image in images])
    if output_type == "np":
        return arrays
    top = 255 if arrays.dtype == np.uint8 else 65535
    arrays = arrays if arrays.ndim == 4 else arrays[..., None]
    return torch.from_numpy(arrays.astype(np.float32) / top).permute(0, 3, 1, 2)
