"""Files and folders that are not a complete diffusion model: what they are, and what to give instead.

A file is recognized by the names of its tensors, in the layouts of diffusers, kohya, PEFT and the original authors; a
folder by its configuration. Quantized weights are refused: no test of this package covers their layers.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adhere.errors import AdhereError

_HINTS = {
    "a LoRA": "give its base model, and add it by --lora FILE on the command line, or pipe.load_lora_weights(file)",
    "an IP-Adapter": "it is not supported: give its base model, and use adhere style for the look of a picture",
    "a ControlNet": "it is not supported: give its base model; adhere layout and silhouette take sketches",
    "a T2I-Adapter": "it is not supported: give its base model; adhere layout and silhouette take sketches",
    "a textual inversion": "give its base model, and add it by pipe.load_textual_inversion(file) in Python",
    "an autoencoder": "give a whole model, and add it by --vae on the command line, or adhere.load(model, vae=...)",
    "a transformer alone": "give a whole model in the diffusers layout",
    "a UNet alone": "give a whole model in the diffusers layout",
}
_CLASSES = {  # the beginning of diffusers' class in config.json -> what it is
    "ControlNet": "a ControlNet",
    "T2IAdapter": "a T2I-Adapter",
    "Autoencoder": "an autoencoder",
    "VQModel": "an autoencoder",
    "UNet": "a UNet alone",
}
_LORA_MARKS = ("lora_", "_lora.", ".lora.", ".hada_", ".lokr_")
_UNQUANTIZED = "give the folder with the unquantized weights, in half precision, and --offload if they do not fit"


def kind_of_file(file: Path) -> str | None:
    """Return the kind of a .safetensors file that is only a part of a model, such as 'a LoRA'; None for a checkpoint.

    None is also returned for a file that cannot be read.
    """
    with suppress(SafetensorError), safe_open(file, "pt") as weights:
        names = list(weights.keys())
        if any(mark in name for name in names for mark in _LORA_MARKS):
            return "a LoRA"
        if any(name.startswith(("image_proj.", "ip_adapter.")) for name in names):
            return "an IP-Adapter"
        if any("control_model." in name or "controlnet_" in name or "input_hint_block" in name for name in names):
            return "a ControlNet"
        if _is_embedding(weights, names):
            return "a textual inversion"
        if names and all(name.startswith(("encoder.", "decoder.", "quant", "post_quant", "loss.")) for name in names):
            return "an autoencoder"
        if {"conv_in.weight", "time_embedding.linear_1.weight"} <= set(names):
            return "a UNet alone"
    return None


def _is_embedding(weights: Any, names: list[str]) -> bool:
    """Return whether all tensors are rows for a text encoder, named as the placeholder or 'clip_l'."""
    if not 1 <= len(names) <= 3 or any("." in name for name in names):
        return False
    return all(len(weights.get_slice(name).get_shape()) in (1, 2) for name in names)


def refuse_file(file: Path, source: str) -> None:
    """Raise AdhereError if a file that is given as a model is only a part of one, or is quantized."""
    if (kind := kind_of_file(file)) is not None:
        raise AdhereError(f"{source}: is {kind}, not a model: {_HINTS[kind]}")
    with safe_open(file, "pt") as weights:
        if scaled := [name for name in weights.keys() if "scaled_fp8" in name or ".quant_state." in name]:  # noqa: SIM118
            raise AdhereError(f"{source}: is quantized ('{scaled[0]}'), which is not supported: {_UNQUANTIZED}")


def refuse_folder(folder: Path, source: str) -> None:
    """Raise AdhereError if a folder without model_index.json holds one component, or a LoRA."""
    settings = _json(folder / "config.json")
    name = str(settings.get("_class_name", ""))
    kind = next((kind for start, kind in _CLASSES.items() if name.startswith(start)), None)
    if kind is None and "Transformer" in name:
        kind = "a transformer alone"
    if (folder / "adapter_config.json").is_file():
        kind = "a LoRA"
    kinds = {kind_of_file(file) for file in folder.glob("*.safetensors")} - {None} if kind is None else {kind}
    if kinds:
        found = min(map(str, kinds))
        raise AdhereError(f"{source}: is {found}, not a model: {_HINTS[found]}")


def refuse_format(file: Path, source: str) -> None:
    """Raise AdhereError for a file of a model that is not safetensors."""
    if file.suffix.lower() == ".gguf":
        raise AdhereError(f"{source}: is a GGUF file, whose quantized weights are not supported: {_UNQUANTIZED}")
    if file.suffix != ".safetensors":
        raise AdhereError(f"{source}: a single file must be .safetensors; pickled weights can run code when loaded")


def refuse_quantized(config: Path, part: str, source: str) -> None:
    """Raise AdhereError if the config.json of a component says that its weights are quantized."""
    settings = _json(config).get("quantization_config")
    if settings:
        method = settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else settings
        raise AdhereError(
            f"{source}: {part}/ is quantized (quant_method '{method}'), which is not supported: {_UNQUANTIZED}"
        )


def _json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(file.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}
