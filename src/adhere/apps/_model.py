"""The model of a command: loading, LoRAs, device, dtype and offloading."""

import importlib.util
import logging
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adhere.errors import AdhereError, AdhereWarning

if TYPE_CHECKING:
    from adhere.pipelines.base import ConstrainedPipeline

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
_NOTE_LENGTH = 190  # in characters: with 'adhere: note: ' in front, a note is one line of about 200
Lora = tuple[str, float]  # (file, weight)


def check_parts(loras: Sequence[Lora], offload: bool, device: torch.device) -> None:
    """Check LoRAs and offloading as far as possible before a model is loaded.

    Raises:
        AdhereError: if a LoRA is not a safetensors file, a package is missing, or there is no GPU to offload from.
    """
    for file, _ in loras:
        if not Path(file).expanduser().is_file():
            raise AdhereError(f"--lora '{file}': no such file; give a .safetensors file, or FILE:WEIGHT")
        if Path(file).suffix != ".safetensors":
            raise AdhereError(f"--lora '{file}': must be .safetensors; pickled weights can run code when loaded")
    if loras:
        _check_package("--lora", "peft")
    if offload:
        if device.type == "cpu":
            raise AdhereError("--offload: is for a GPU, but the network runs on the CPU; leave it out")
        _check_package("--offload", "accelerate")


def _check_package(flag: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise AdhereError(f"{flag} needs the package {package}, which is not installed: pip install {package}")


def load_model(
    model: str | None,
    device: torch.device,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    offload: bool = False,
    **files: str,
) -> "ConstrainedPipeline":
    """Return the model on the device.

    Args:
        model: as for `adhere.load`.
        device: the device of the network.
        dtype: the dtype of the network.
        loras: (file, weight) of each LoRA to add.
        offload: whether components are on the device only while they compute.
        files: `variant`, `config` and `vae` of `adhere.load`.
    """
    from adhere.pipelines._checks import explain_errors
    from adhere.pipelines.loading import load

    _silence_libraries()
    try:
        pipe = load(model, torch_dtype=dtype, **files)
    except ModuleNotFoundError as error:
        hint = "pip install 'adhere[text]'"
        raise AdhereError(f"model '{model}' needs the package {error.name}, which is not installed: {hint}") from error
    if loras:
        _add_loras(pipe, loras)
    with explain_errors():
        if offload:
            pipe.enable_model_cpu_offload(device=device)  # type: ignore[attr-defined]
        else:
            pipe.to(device)  # type: ignore[attr-defined]
    return pipe


def _add_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Add LoRAs to a pipeline, as diffusers does."""
    from adhere.pipelines._foreign_files import kind_of_file
    from adhere.pipelines._model_files import check_header

    if not hasattr(pipe, "load_lora_weights"):
        raise AdhereError(f"--lora '{loras[0][0]}': fits text-to-image models such as Stable Diffusion; leave it out")
    for i, (file, _) in enumerate(loras):
        source, path = f"--lora '{file}'", Path(file).expanduser()
        check_header(path, source)
        kind = kind_of_file(path)
        if kind != "a LoRA":
            raise AdhereError(f"{source}: is {kind or 'a whole model'}, not a LoRA: give the weights of a LoRA")
        try:
            pipe.load_lora_weights(str(path), adapter_name=f"lora_{i}", use_safetensors=True, local_files_only=True)
            reason = "none of its weights belong to it"
            fits = any(f"lora_{i}" in names for names in pipe.get_list_adapters().values())
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:  # of diffusers or PEFT
            reason, fits = textwrap.shorten(str(error).partition(". ")[0], 250), False
        if not fits:
            raise AdhereError(f"{source}: does not fit this model ({reason}): give a LoRA for its base model")
    pipe.set_adapters([f"lora_{i}" for i in range(len(loras))], [weight for _, weight in loras])


def device_and_dtype(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype of the network.

    Raises:
        AdhereError: if the device or the dtype does not exist on this machine.
    """
    if dtype not in (None, *_DTYPES):
        raise AdhereError(f"--dtype '{dtype}': choose one of {', '.join(_DTYPES)}")
    found = _default_device() if device is None else _usable_device(device)
    return found, _DTYPES[dtype or ("float32" if found.type == "cpu" else "float16")]


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # the device 'meta' exists, but computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise AdhereError(f"--device '{name}': cannot be used here ({reason}); use cpu") from error
    return device


def _silence_libraries() -> None:
    """Switch off log messages and progress bars of libraries; errors that matter are raised as AdhereError.

    Log messages of this package become warnings. So do messages that a prompt was cut or that a LoRA fits only in part.
    """
    from diffusers.utils.logging import disable_progress_bar

    for library in ("huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.WARNING)
    logging.getLogger("diffusers").handlers = [_Notes("was truncated because", "led to unexpected keys")]
    logging.getLogger("adhere").handlers = [_Notes("")]
    with suppress(ImportError):  # only models that read text need transformers
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


class _Notes(logging.Handler):
    """Turns log messages that contain one of the phrases into warnings."""

    def __init__(self, *phrases: str) -> None:
        super().__init__(logging.WARNING)
        self.phrases = phrases

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if any(phrase in message for phrase in self.phrases):
            warnings.warn(textwrap.shorten(message, _NOTE_LENGTH), AdhereWarning, stacklevel=2)
