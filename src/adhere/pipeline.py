"""ConstrainedPipeline: one call for every task, family and solver.

    task --constraint--> y = A x0 \\
    model --denoiser--> E[x0|x_t]  } trajectory --> x0 --task.finish--> pictures, and what they cost
    solver, steps, generator ------/

A family (adhere.families) subclasses this together with the matching diffusers pipeline, so loading, devices and saving
are diffusers' own, and provides `network_class`, `denoiser()` and `multiple`.
"""

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.import_utils import is_accelerate_available
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Generator, Tensor

from adhere.core.denoise import Counted, Denoiser
from adhere.core.sample import initial_noise, trajectory
from adhere.core.schedule import Schedule
from adhere.core.solvers import DEFAULT_METHOD, method_named
from adhere.errors import AdhereError
from adhere.families import SHIPPED, family_of
from adhere.tasks import Inpaint

Pipeline = TypeVar("Pipeline", bound="ConstrainedPipeline")  # not Self: beartype reads no Self in a method
StepCallback = Callable[["ConstrainedPipeline", int, float, dict[str, Tensor]], Any]


@dataclass
class ConstrainedOutput(BaseOutput):
    """images: one per sample. error: RMS over the known pixels before they are put back, in [-1, 1] units, per sample.
    nfe: network evaluations, each for the whole batch. seconds: wall time of the sampling alone. steps: noise levels
    run, fewer than asked for when some round to the same time of the model's schedule."""

    images: list[Image.Image] | np.ndarray | Tensor
    error: list[float]
    nfe: int
    seconds: float
    steps: int


class ConstrainedPipeline:
    """Base of the families; `from_pretrained` finds the right one."""

    network_class: ClassVar[type[ModelMixin]]  # of the family's `unet`

    @classmethod
    def from_pretrained(cls: type[Pipeline], model: str | Path | None = None, **kwargs: Any) -> Pipeline:
        """Load a diffusers folder, or with None the model that ships in the package. Weights are safetensors only.

        Keyword arguments go to diffusers' `from_pretrained` (`torch_dtype`, ...); weights become float32 unless told.
        Raises AdhereError for a folder without usable weights or of an unknown class.
        """
        folder = SHIPPED if model is None else Path(model)
        family = family_of(folder)
        if not issubclass(family, cls):
            raise AdhereError(
                f"model '{folder}' is of {family.__name__}: load it with ConstrainedPipeline.from_pretrained"
            )
        # without accelerate, diffusers would warn and fall back to exactly this
        local = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": is_accelerate_available()}
        arguments = local | kwargs
        try:
            if "unet" not in arguments:
                arguments["unet"] = _whole_network(family.network_class, folder / "unet", arguments)
            pipe = super(ConstrainedPipeline, family).from_pretrained(folder, **arguments)  # type: ignore[misc]
        except AdhereError as error:
            raise AdhereError(f"model '{folder}': {error}") from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = textwrap.shorten(str(error) or type(error).__name__, 300)
            raise AdhereError(f"model '{folder}' cannot be loaded: {reason}") from error
        pipe.unet.to(memory_format=torch.channels_last)  # a third faster on CPUs
        return pipe

    def denoiser(self) -> Denoiser:
        """The network as E[x0 | x_t] on pictures (B, 3, H, W) in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    @property
    def multiple(self) -> int:
        """Heights and widths the network takes are multiples of this."""
        raise TypeError(f"{type(self).__name__} is no model family: load one with ConstrainedPipeline.from_pretrained")

    @torch.inference_mode()
    def __call__(
        self,
        task: Inpaint,
        *,
        solver: str = DEFAULT_METHOD,
        num_inference_steps: int | None = None,
        batch_size: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ConstrainedOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Sample `batch_size` pictures that meet the task.

        solver: a name in `adhere.core.solvers.METHODS`; num_inference_steps: noise levels, the solver's own number by
        default. generator: one, or one per sample (then a batch equals single runs); seed 0 by default. output_type:
        'pil', 'np' (N, H, W, C) or 'pt', the raw samples (N, 3, h, w) in [-1, 1] on the task's window, known pixels not
        put back. callback_on_step_end(pipe, step, t, {'x_t', 'x0', 'error'}) is called at every level, as in diffusers.
        Raises ValueError for an unknown solver, impossible steps or too few generators, AdhereError when the network
        returns NaN or infinity.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type = '{output_type}': 'pil', 'np' or 'pt'")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1 is needed")
        method = method_named(solver)
        network = self.denoiser()
        schedule = network.schedule
        steps = method.steps if num_inference_steps is None else num_inference_steps
        timesteps = method.levels(schedule, steps)
        denoiser = Counted(_Finite(network, timesteps))
        constraint = task.constraint(self.multiple, self.device)  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        shape = (batch_size, *constraint.y.shape[1:])

        begin = time.perf_counter()
        x_T = initial_noise(schedule, shape, timesteps[0], constraint.y, generator)
        run = trajectory(denoiser, constraint, method.solver, x_T, timesteps, method.transition, generator)
        state = None
        with self.progress_bar(total=len(timesteps)) as bar:  # type: ignore[attr-defined]
            for state in run:
                bar.update()
                if callback_on_step_end is not None:
                    tensors = {"x_t": state.x_t, "x0": state.x0, "error": state.error}
                    callback_on_step_end(self, state.step, state.t, tensors)
        assert state is not None
        seconds = time.perf_counter() - begin

        images = state.x0 if output_type == "pt" else [task.finish(x0) for x0 in state.x0]
        if output_type == "np":
            images = np.stack([np.asarray(image) for image in images])
        if not return_dict:
            return (images,)
        return ConstrainedOutput(
            images=images, error=state.error.tolist(), nfe=denoiser.nfe, seconds=seconds, steps=len(timesteps)
        )


@dataclass(frozen=True)
class _Finite:
    """The denoiser, refusing NaN and infinity where they come from: solvers would carry them on, or fail obscurely."""

    denoiser: Denoiser
    timesteps: Sequence[float]

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        x0 = self.denoiser(x_t, t)
        if not torch.isfinite(x0).all():
            raise AdhereError(
                f"the network returned NaN or infinity at step {self.timesteps.index(t) + 1} of {len(self.timesteps)} "
                f"(t = {t:g}); try float32, or check the weights"
            )
        return x0


def _whole_network(network_class: type[ModelMixin], folder: Path, arguments: dict[str, Any]) -> ModelMixin:
    """Load the network; a file that lacks some of its weights is refused: diffusers would only warn."""
    wanted = ("use_safetensors", "local_files_only", "low_cpu_mem_usage", "torch_dtype", "dtype", "variant")
    chosen = {name: arguments[name] for name in wanted if name in arguments}
    loaded: Any = network_class.from_pretrained(folder, output_loading_info=True, **chosen)
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise AdhereError(
            f"its weights lack {len(missing)} of the network's entries, such as '{missing[0]}'; copy or save it again"
        )
    return network
