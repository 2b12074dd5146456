"""Checks of a call's arguments, of the network's output, and of the errors that a call may raise."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adhere.core.denoisers import Denoiser, DenoiserWrapper
from adhere.errors import AdhereError, OutOfMemory

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_names(output_type: str, tensor_inputs: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ValueError for an unknown output type, or unknown tensors for a callback."""
    if output_type not in _OUTPUT_TYPES:
        raise ValueError(f"output_type = '{output_type}': choose one of {', '.join(map(repr, _OUTPUT_TYPES))}")
    if unknown := sorted(set(tensor_inputs) - set(allowed)):
        raise ValueError(
            f"callback_on_step_end_tensor_inputs: '{unknown[0]}' is unknown; there are {', '.join(allowed)}"
        )


def check_steps(num_inference_steps: object) -> int | None:
    """Return the number of steps; raise TypeError if it is not an integer."""
    if num_inference_steps is None or type(num_inference_steps) is int:
        return num_inference_steps
    raise TypeError(f"num_inference_steps = {num_inference_steps!r}: give an integer, such as 20")


def check_compilation(device: torch.device, options: dict[str, Any]) -> None:
    """Raise AdhereError unless torch.compile works on the device with these options; a small function is compiled."""
    try:
        torch.compile(_small_function, **options)(torch.ones(2, device=device))
    except Exception as error:  # what is raised depends on the backend, the system and the version of torch
        reason = textwrap.shorten(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise AdhereError(
            f"torch.compile does not work here ({reason}): install a C++ compiler such as g++, or do not compile"
        ) from error


def _small_function(x: Tensor) -> Tensor:
    return 2 * x + 1


@dataclass(frozen=True)
class FiniteDenoiser(DenoiserWrapper):
    """Raises AdhereError where the network returns NaN or infinity, which solvers would pass on.

    Attributes:
        timesteps: of the run, for the message.
        is_deferred: whether only `check` raises, since a check at each evaluation would wait for the device.
    """

    denoiser: Denoiser
    timesteps: Sequence[float]
    is_deferred: bool = False
    sums: list[tuple[float, Tensor]] = field(default_factory=list, init=False)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        x0 = self.denoiser(x_t, t)
        self.sums.append((t, x0.sum()))  # a sum takes one pass, and sums of finite pictures do not overflow
        if not self.is_deferred:
            self.check()
        return x0

    def check(self) -> None:
        """Raise AdhereError if an evaluation since the last check returned NaN or infinity."""
        for t, total in self.sums:
            if not total.isfinite():
                where = f"t = {t:g}"  # a solver may evaluate between the timesteps
                if t in self.timesteps:
                    where = f"step {self.timesteps.index(t) + 1} of {len(self.timesteps)} ({where})"
                raise AdhereError(f"the network returned NaN or infinity at {where}; try float32, or check the weights")
        self.sums.clear()


@contextmanager
def explain_errors() -> Iterator[None]:
    """Raise AdhereError with one line of advice for lack of memory, and for half precision where there is none."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        message = str(error)
        if "not implemented for 'Half'" in message or "not implemented for 'BFloat16'" in message:
            raise AdhereError(
                f"this device does not compute in half precision ({message.splitlines()[0]}): load with "
                "torch_dtype=torch.float32"
            ) from error
        phrases = ("out of memory", "not enough memory", "allocate memory")
        if isinstance(error, MemoryError) or any(phrase in message for phrase in phrases):
            raise OutOfMemory(
                "out of memory; cheaper are a smaller batch or picture, pipe.enable_model_cpu_offload(), "
                "pipe.vae.enable_tiling(), torch_dtype=torch.bfloat16"
            ) from error
        raise
