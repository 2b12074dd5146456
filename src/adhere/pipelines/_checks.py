"""Checks of a call's arguments, of the network's output, and of the errors that a call may raise."""

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adhere.core._checks import is_out_of_memory
from adhere.core.denoisers import Denoiser, DenoiserWrapper
from adhere.core.schedules import log_snr
from adhere.errors import AdhereError, InvalidInput, OutOfMemory

_logger = logging.getLogger(__name__)
_HIGH_NOISE = -2.0  # log-SNR in nats: alpha_t < 0.14
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_options(
    num_inference_steps: object, output_type: str, tensor_inputs: Sequence[str], allowed: Sequence[str]
) -> None:
    """Raise TypeError if steps are not an integer, ValueError for an unknown output type or tensors for a callback."""
    if num_inference_steps is not None and type(num_inference_steps) is not int:
        raise InvalidInput(f"num_inference_steps = {num_inference_steps!r}: give an integer, such as 20")
    if output_type not in _OUTPUT_TYPES:
        raise InvalidInput(f"output_type = '{output_type}': choose one of {', '.join(map(repr, _OUTPUT_TYPES))}")
    if unknown := sorted(set(tensor_inputs) - set(allowed)):
        raise InvalidInput(
            f"callback_on_step_end_tensor_inputs: '{unknown[0]}' is unknown; there are {', '.join(allowed)}"
        )


def check_compilation(device: torch.device, options: dict[str, Any]) -> None:
    """Raise AdhereError unless torch.compile can compile a small function on the device with these options."""
    try:
        torch.compile(_small_function, **options)(torch.ones(2, device=device))
    except Exception as error:  # what is raised depends on the backend, the system and the version of torch
        reason = textwrap.shorten(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise AdhereError(
            f"torch.compile does not work here ({reason}): install a C++ compiler such as g++, or do not compile"
        ) from error


def _small_function(x: Tensor) -> Tensor:
    return 2 * x + 1


def execution_device(pipe: Any, network: torch.nn.Module) -> torch.device:
    """Return the device of a diffusers pipeline's states.

    diffusers' own property looks at every module of every component, which takes 8 ms. It is needed only if modules are
    moved by hooks.
    """
    if any(hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in network.modules()):
        return pipe._execution_device
    return next(network.parameters()).device


@dataclass
class FiniteChecks:
    """Raises AdhereError if a part of the model returns NaN or infinity, and names the first such part.

    For each call of a part, the sums of its input and of its output are kept. A sum takes one pass, and sums of finite
    pictures do not overflow.

    Attributes:
        is_deferred: whether only `check` raises. On a GPU, a check at each call would wait for the device.
    """

    is_deferred: bool = False
    _calls: list[tuple[str, str, Tensor, Tensor]] = field(default_factory=list, init=False)

    def record(self, part: str, given: Tensor, returned: Tensor, where: str = "") -> None:
        """Record a call of a part of the model.

        Args:
            part: the name of the part, such as 'network'.
            given: its input.
            returned: its output.
            where: the time of the call, for the message.
        """
        before, after = (x.detach().sum(dtype=torch.float32) for x in (given, returned))
        self._calls.append((part, where, before, after))
        if not self.is_deferred:
            self.check()

    def check(self) -> None:
        """Raise AdhereError if an output since the last check was not finite."""
        if not self._calls:
            return
        is_finite = torch.stack(
            [total for *_, given, returned in self._calls for total in (given, returned)]
        ).isfinite()
        calls, flags = list(self._calls), is_finite.view(-1, 2).tolist()
        self._calls.clear()
        for (part, where, *_), (given, returned) in zip(calls, flags, strict=True):
            if not given:
                raise AdhereError(
                    f"the state at the {part} is NaN or infinity{where}: the solver has diverged, or the constraint or "
                    "a callback returned NaN; check these, or try another solver"
                )
            if not returned:
                raise AdhereError(f"the {part} returned NaN or infinity{where}; try float32, or check the weights")


@dataclass(frozen=True)
class CheckedDenoiser(DenoiserWrapper):
    """Records the outputs of the network in `checks`, and whether they can be what the scheduler states.

    Attributes:
        timesteps: the timesteps of the run, for messages.
        checks: the checks of the call.
    """

    denoiser: Denoiser
    timesteps: Sequence[float]
    checks: FiniteChecks
    _noise: list[Tensor] = field(default_factory=list, init=False)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        x0 = self.denoiser(x_t, t)
        where = f" at t = {t:g}"  # a solver may evaluate between the timesteps
        if t in self.timesteps:
            where = f" at step {self.timesteps.index(t) + 1} of {len(self.timesteps)} (t = {t:g})"
        self.checks.record("network", x_t, x0, where)
        if not self._noise and log_snr(self.schedule, t) < _HIGH_NOISE:
            self._noise.append(self.schedule(t)[0] * (x0.detach().norm() / x_t.detach().norm()))
        return x0

    def check(self, sample: Tensor) -> None:
        """Check the sample of a finished run, and log a warning if the network's first x0 was mostly noise.

        A network that predicts v gives about x_t / alpha_t if its output is read as epsilon.
        """
        self.checks.record("last step", sample, sample)
        self.checks.check()
        if self._noise and self._noise[0] > 0.5:
            _logger.warning(
                "at the highest noise, the network does not predict what its scheduler says: if pictures are only mud, "
                "set prediction_type in scheduler/scheduler_config.json, probably to v_prediction"
            )


@contextmanager
def explain_errors() -> Iterator[None]:
    """Return a context that turns errors of memory and of unsupported half precision into AdhereError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        message = str(error)
        if "not implemented for 'Half'" in message or "not implemented for 'BFloat16'" in message:
            raise AdhereError(
                f"this device does not compute in half precision ({message.splitlines()[0]}): load with "
                "torch_dtype=torch.float32"
            ) from error
        if is_out_of_memory(error):
            raise OutOfMemory(
                "out of memory; cheaper are a smaller batch or picture, pipe.enable_model_cpu_offload(), "
                "pipe.vae.enable_tiling(), torch_dtype=torch.bfloat16"
            ) from error
        raise
