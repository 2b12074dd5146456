"""adhere samples from pre-trained diffusion models under constraints, without training and by forward passes only.

    import adhere

    pipe = adhere.load()                                   # the photograph model that ships
    out = pipe(adhere.Inpaint("photo.jpg", "mask.png"))
    out.images[0].save("repaired.png")

Models:          load, from_pipe, ConstrainedPipeline, ConstrainedOutput
Tasks:           Inpaint, Outpaint, Restore, Upscale, Denoise, Deblur, Colorize, Generate, Custom, Layout,
                 Silhouette, Style
Constraints:     Linear, Nonlinear, Loss, Sum, Constraint, Linearization, Unconstrained
Operators:       Mask, Downsample, Blur, Convolve, Resize, Gray, Identity, operator, LinearOperator
Solvers:         MomentMatching, InexactNewton, DDNM, Plain, Solver, Sampler, PRESETS, DDIM, DPMSolver2M
Any network:     NetworkDenoiser, sample
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from adhere.core.constraints import Constraint, Linear, Linearization, Loss, Sum, Unconstrained
    from adhere.core.denoisers import NetworkDenoiser
    from adhere.core.filters import Blur, Convolve, Downsample, Resize
    from adhere.core.nonlinear import Nonlinear
    from adhere.core.operators import Gray, Identity, LinearOperator, Mask, operator
    from adhere.core.presets import PRESETS, sample
    from adhere.core.sampling import Sampler
    from adhere.core.solvers.base import Solver
    from adhere.core.solvers.ddnm import DDNM
    from adhere.core.solvers.inexact_newton import InexactNewton
    from adhere.core.solvers.moment_matching import MomentMatching
    from adhere.core.solvers.plain import Plain
    from adhere.core.transitions import DDIM, DPMSolver2M
    from adhere.errors import AdhereError
    from adhere.pipelines.base import ConstrainedOutput, ConstrainedPipeline
    from adhere.pipelines.loading import from_pipe, load
    from adhere.tasks import (
        Colorize,
        Custom,
        Deblur,
        Denoise,
        Generate,
        Inpaint,
        Layout,
        Outpaint,
        Restore,
        Silhouette,
        Style,
        Upscale,
    )

__all__ = [
    "DDIM",
    "DDNM",
    "PRESETS",
    "AdhereError",
    "Blur",
    "Colorize",
    "ConstrainedOutput",
    "ConstrainedPipeline",
    "Constraint",
    "Convolve",
    "Custom",
    "DPMSolver2M",
    "Deblur",
    "Denoise",
    "Downsample",
    "Generate",
    "Gray",
    "Identity",
    "InexactNewton",
    "Inpaint",
    "Layout",
    "Linear",
    "LinearOperator",
    "Linearization",
    "Loss",
    "Mask",
    "MomentMatching",
    "NetworkDenoiser",
    "Nonlinear",
    "Outpaint",
    "Plain",
    "Resize",
    "Restore",
    "Sampler",
    "Silhouette",
    "Solver",
    "Style",
    "Sum",
    "Unconstrained",
    "Upscale",
    "__version__",
    "from_pipe",
    "load",
    "operator",
    "sample",
]

_MODULES = {
    "adhere.core.constraints": ("Constraint", "Linear", "Linearization", "Loss", "Sum", "Unconstrained"),
    "adhere.core.denoisers": ("NetworkDenoiser",),
    "adhere.core.filters": ("Blur", "Convolve", "Downsample", "Resize"),
    "adhere.core.nonlinear": ("Nonlinear",),
    "adhere.core.operators": ("Gray", "Identity", "LinearOperator", "Mask", "operator"),
    "adhere.core.presets": ("PRESETS", "sample"),
    "adhere.core.sampling": ("Sampler",),
    "adhere.core.solvers.base": ("Solver",),
    "adhere.core.solvers.ddnm": ("DDNM",),
    "adhere.core.solvers.inexact_newton": ("InexactNewton",),
    "adhere.core.solvers.moment_matching": ("MomentMatching",),
    "adhere.core.solvers.plain": ("Plain",),
    "adhere.core.transitions": ("DDIM", "DPMSolver2M"),
    "adhere.errors": ("AdhereError",),
    "adhere.pipelines.base": ("ConstrainedOutput", "ConstrainedPipeline"),
    "adhere.pipelines.loading": ("from_pipe", "load"),
    "adhere.tasks": (
        "Colorize",
        "Custom",
        "Deblur",
        "Denoise",
        "Generate",
        "Inpaint",
        "Layout",
        "Outpaint",
        "Restore",
        "Silhouette",
        "Style",
        "Upscale",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import on first use, so that `adhere --help` does not wait for torch."""
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'adhere' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
