"""The families of models, and which class runs a diffusers pipeline of a given class.

A family is imported when it is needed, so that `adhere models` does not wait for torch and diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from adhere.errors import AdhereError
from adhere.pipelines._index import base_class

if TYPE_CHECKING:
    from adhere.pipelines.base import ConstrainedPipeline

# diffusers' class, as in model_index.json -> "module:class"
FAMILIES = {
    "DDIMPipeline": "adhere.pipelines.pixel:PixelPipeline",
    "DDPMPipeline": "adhere.pipelines.pixel:PixelPipeline",
    "LDMPipeline": "adhere.pipelines.ldm:UnconditionalLatentPipeline",
    "StableDiffusionPipeline": "adhere.pipelines.sd:SDPipeline",
    "StableDiffusionXLPipeline": "adhere.pipelines.sdxl:SDXLPipeline",
    "StableDiffusion3Pipeline": "adhere.pipelines.sd3:SD3Pipeline",
    "FluxPipeline": "adhere.pipelines.flux:FluxPipeline",
    "RectifiedFlowPipeline": "adhere.pipelines.sd:RectifiedFlowPipeline",
}


def family_for(class_name: object, source: str) -> "type[ConstrainedPipeline]":
    """Return the family of a diffusers pipeline class.

    Args:
        class_name: as in model_index.json. Pipelines for inpainting and image-to-image are read as text-to-image.
        source: what the name was read from, for the message.

    Raises:
        AdhereError: for an unknown class; the message lists the known ones.
    """
    name = base_class(class_name) if isinstance(class_name, str) else ""
    if name not in FAMILIES:
        raise AdhereError(f"{source}: class '{class_name}' is unknown; known are {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)
