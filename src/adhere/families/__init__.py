"""Model families: one short file each turns a diffusers pipeline into one of ours. One registry line each."""

from importlib import import_module
from typing import TYPE_CHECKING

from adhere.errors import AdhereError

if TYPE_CHECKING:
    from adhere.pipeline import ConstrainedPipeline

# diffusers' class, as in model_index.json -> "module:class"
FAMILIES = {
    "DDIMPipeline": "adhere.families.pixel:PixelPipeline",
    "DDPMPipeline": "adhere.families.pixel:PixelPipeline",
    "LDMPipeline": "adhere.families.ldm:UnconditionalLatentPipeline",
    "StableDiffusionPipeline": "adhere.families.sd:SDPipeline",
    "StableDiffusionXLPipeline": "adhere.families.sdxl:SDXLPipeline",
    "StableDiffusion3Pipeline": "adhere.families.sd3:SD3Pipeline",
    "FluxPipeline": "adhere.families.flux:FluxPipeline",
    "RectifiedFlowPipeline": "adhere.families.sd:RectifiedFlowPipeline",
}


def family_for(name: object, what: str) -> "type[ConstrainedPipeline]":
    """The family of a diffusers class; AdhereError says what was given and the known classes."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise AdhereError(f"{what}: class '{name}' is unknown; known are {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)
