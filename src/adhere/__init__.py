"""adhere: sample from a pre-trained diffusion model under a constraint nobody trained it for, by forward passes only.

from adhere import ConstrainedPipeline, Inpaint
pipe = ConstrainedPipeline.from_pretrained(None)      # the small model that ships inside
out = pipe(Inpaint("photo.jpg", "mask.png"))
out.images[0].save("repaired.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adhere.errors import AdhereError
    from adhere.pipeline import ConstrainedOutput, ConstrainedPipeline
    from adhere.tasks import Generate, Inpaint, Layout, Satisfy, Silhouette, Style, Upscale

__all__ = [
    "AdhereError",
    "ConstrainedOutput",
    "ConstrainedPipeline",
    "Generate",
    "Inpaint",
    "Layout",
    "Satisfy",
    "Silhouette",
    "Style",
    "Upscale",
    "__version__",
]

_HOMES = {
    "AdhereError": "adhere.errors",
    "ConstrainedOutput": "adhere.pipeline",
    "ConstrainedPipeline": "adhere.pipeline",
    "Generate": "adhere.tasks",
    "Inpaint": "adhere.tasks",
    "Layout": "adhere.tasks",
    "Satisfy": "adhere.tasks",
    "Silhouette": "adhere.tasks",
    "Style": "adhere.tasks",
    "Upscale": "adhere.tasks",
}


def __getattr__(name: str) -> object:
    """Import on first use: `adhere --help` must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adhere' has no attribute '{name}'")
