"""Model families: one short file each turns a diffusers folder into a pipeline of ours. One registry line each."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from adhere.errors import AdhereError

if TYPE_CHECKING:
    from adhere.pipeline import ConstrainedPipeline

# `_class_name` in model_index.json -> "module:class"
FAMILIES = {
    "DDIMPipeline": "adhere.families.pixel:PixelPipeline",
    "DDPMPipeline": "adhere.families.pixel:PixelPipeline",
    "PixelPipeline": "adhere.families.pixel:PixelPipeline",
}
SHIPPED = Path(__file__).parents[1] / "models" / "adhere-photo"


def family_of(folder: Path) -> "type[ConstrainedPipeline]":
    """The pipeline class for a diffusers folder, checked as far as can be done without loading weights.

    Raises AdhereError when there is no such folder, it is no diffusers pipeline, its class is not among ours, or the
    network's weights are missing or pickled only.
    """
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise AdhereError(f"model '{folder}': no such folder; give a diffusers pipeline folder, or leave --model out")
    if not index.is_file():
        raise AdhereError(
            f"model '{folder}': no model_index.json in it; save the pipeline with diffusers' save_pretrained"
        )
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
        name = components["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AdhereError(f"model '{folder}': model_index.json cannot be read ({type(error).__name__})") from error
    if not isinstance(name, str) or name not in FAMILIES:
        raise AdhereError(f"model '{folder}': class '{name}' is unknown; known are {', '.join(FAMILIES)}")
    _check_weights(folder, components)
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)


def _check_weights(folder: Path, components: dict[str, object]) -> None:
    if "unet" not in components:
        raise AdhereError(f"model '{folder}': model_index.json names no 'unet'; give a complete diffusers pipeline")
    unet = folder / "unet"
    if not (unet / "config.json").is_file():
        raise AdhereError(f"model '{folder}': unet/config.json is missing; save the pipeline with save_pretrained")
    if any(unet.glob("*.safetensors")):
        return
    if any(unet.glob("*.bin")) or any(unet.glob("*.pt")) or any(unet.glob("*.ckpt")):
        raise AdhereError(
            f"model '{folder}': its weights are pickled, which can run code when loaded; "
            "convert them with diffusers' save_pretrained(safe_serialization=True)"
        )
    raise AdhereError(f"model '{folder}': no weights (*.safetensors) in {unet.name}/")
