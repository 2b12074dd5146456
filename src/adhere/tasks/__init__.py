"""Tasks: frozen requests that a pipeline runs.

    Inpaint("photo.jpg", "mask.png")        repaint a part, keep the rest bit for bit
    Outpaint("photo.jpg", left=200)         continue a picture beyond its edges
    Restore(y, A, noise=0.02)               any linear measurement y = A x0 + noise
    Upscale("small.png", 4)                 a large picture whose area means are the small one
    Colorize("gray.jpg", "strokes.png")     a gray picture with colors that spread from hints
    Deblur("blurred.jpg", "gaussian:2")     a picture whose blur is known
    Denoise("noisy.jpg")                    the mean of all pictures that agree with a noisy one
    Generate((512, 512))                    plain sampling
    Custom(Loss(fn), (512, 512))            any constraint on pictures
    Layout("sketch.png")                    coarse colors of a picture
    Silhouette("shape.png")                 the outline of an object
    Style("painting.jpg")                   colors and textures of a picture

A new task is a subclass of `adhere.tasks.base.Task`.
"""

from adhere.tasks.base import Task
from adhere.tasks.colorize import Colorize
from adhere.tasks.deblur import Deblur
from adhere.tasks.denoise import Denoise
from adhere.tasks.generate import Custom, Generate, Layout, Silhouette
from adhere.tasks.inpaint import Inpaint
from adhere.tasks.outpaint import Outpaint
from adhere.tasks.restore import Restore
from adhere.tasks.style import Style
from adhere.tasks.upscale import Upscale

__all__ = [
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
    "Task",
    "Upscale",
]
