"""Deblurring: a photograph that was blurred by a known point spread function."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from adhere._hints import keyword_hints
from adhere.core.filters import Convolve
from adhere.errors import AdhereError
from adhere.io.images import Picture, as_picture
from adhere.tasks._photo import PhotoTask, check_noise, thorough_sampler
from adhere.tasks._pixels import check_sampled_size
from adhere.tasks.base import Crop, ImageInput, ModelInfo
from adhere.tasks.restore import Restore

_MAX_RADIUS_PIXELS = 100  # of a point spread function
_MIN_PIXELS = 0.1  # below it, no subpixel is inside a disk
_FORMS = "gaussian:SIGMA, motion:LENGTH,ANGLE or disk:RADIUS"
_SUBPIXELS = 8  # per side of a pixel, for the shares of a disk


@keyword_hints(sigma="call it noise, which is in [-1, 1] units", kernel="call it psf")
@dataclass(frozen=True, eq=False)
class Deblur(PhotoTask):
    """Sharpen a picture that was blurred by a known point spread function: y = k * x0 + noise n.

    x0 is larger than the picture, since the blur has brought in values from outside; so the border is sharpened, too.
    Gray pictures stay gray, also as RGB. Transparency is kept.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        psf: the point spread function k: 'gaussian:SIGMA', 'motion:LENGTH,ANGLE' or 'disk:RADIUS', in pixels and in
            degrees counter-clockwise from the direction to the right; or a gray picture; or numbers (h, w) as an
            array, a tensor or lists, which are divided by their sum.
        noise: the standard deviation of the picture's noise, in [-1, 1] units.

    Raises:
        AdhereError: if a picture cannot be read, the psf is not understood or too large, or the noise is out of range.
    """

    image: ImageInput = field(repr=False)
    psf: str | Path | Image.Image | np.ndarray | Tensor | Sequence[Sequence[float]]
    noise: float = 0.004
    picture: Picture = field(init=False, repr=False)
    kernel: Float[Tensor, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers("noise")
        check_noise(self.noise)
        object.__setattr__(self, "kernel", _kernel(self.psf))
        picture = as_picture(self.image)
        check_sampled_size(picture.size)
        object.__setattr__(self, "picture", picture)

    @cached_property
    def _restore(self) -> Restore:
        """The task on the larger scene."""
        return Restore(self.picture.tensor(), Convolve(self.kernel), self.noise)

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return y = k * x0 + noise n, with x0 larger than the picture by the radius of k on each side."""
        self._refuse_size(size)
        (crop,) = self._restore.crops(model)
        return [crop if model.is_latent else replace(crop, sampler=thorough_sampler(crop.size, 20))]

    def inside(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        top, left = (side // 2 for side in self.kernel.shape)
        return super().inside(x0[:, top:, left:])


def _kernel(psf: str | Path | Image.Image | np.ndarray | Tensor | Sequence[object]) -> Float[Tensor, "h w"]:
    """Return a point spread function with odd sides and sum 1."""
    if isinstance(psf, str) and (match := re.fullmatch(r"(gaussian|motion|disk):(.*)", psf)):
        kernel = _shape(match[1], match[2], psf)
    elif isinstance(psf, (Tensor, list, tuple)) or (isinstance(psf, np.ndarray) and psf.ndim == 2):
        kernel = _array(psf)
    elif isinstance(psf, str) and not os.path.exists(os.path.expanduser(psf)):
        raise AdhereError(f"psf '{psf}': no such file; give {_FORMS} or a gray picture of a point")
    else:
        picture = as_picture(psf)  # pyright: ignore[reportArgumentType]  # lists are arrays, above
        if not picture.is_gray(picture.visible()):
            raise AdhereError(f"{_name(psf)} is a picture with colors: give a gray one, the picture of a point")
        kernel = picture.tensor()[0, 0] / 2 + 0.5
    return _checked_kernel(kernel, _name(psf))


def _name(psf: object) -> str:
    return f"the psf {psf}" if isinstance(psf, (str, Path)) else "the psf"


def _array(psf: Tensor | np.ndarray | Sequence[object]) -> Tensor:
    try:
        values = psf.detach().cpu() if isinstance(psf, Tensor) else np.asarray(psf, np.float32)
    except (ValueError, TypeError):
        raise AdhereError("the psf must be numbers (h, w), with rows of one length") from None
    return torch.as_tensor(values, dtype=torch.float32)


def _checked_kernel(kernel: Tensor, name: str) -> Float[Tensor, "h w"]:
    if kernel.ndim == 2 and not bool(kernel.any()):
        raise AdhereError(f"{name} is black everywhere, all values are 0: give the picture of a point, in gray")
    if kernel.ndim != 2 or not bool(kernel.isfinite().all()) or kernel.min() < 0 or kernel.sum() <= 0:
        raise AdhereError(f"{name} must be (h, w), of finite numbers of at least 0")
    if max(kernel.shape) > 2 * _MAX_RADIUS_PIXELS + 1:
        given = f"{name} has {kernel.shape[1]}x{kernel.shape[0]} pixels"
        raise AdhereError(f"{given}: at most {2 * _MAX_RADIUS_PIXELS + 1} per side are allowed; cut its black margin")
    height, width = kernel.shape
    kernel = pad(kernel, (0, 1 - width % 2, 0, 1 - height % 2))
    return kernel / kernel.sum()


def _shape(name: str, text: str, psf: str) -> Float[Tensor, "h w"]:
    """Return a sampled Gaussian, or the share of a line or a disk in each pixel, before normalization."""
    try:
        numbers = [float(number) for number in text.split(",")]
        size, angle = (*numbers, 0.0) if name != "motion" else numbers
    except ValueError:
        raise AdhereError(f"psf '{psf}': give {_FORMS}, in numbers") from None
    extent = {"gaussian": 4 * size, "motion": size / 2, "disk": size}[name]
    if not (size >= _MIN_PIXELS and extent <= _MAX_RADIUS_PIXELS):
        limit = {"gaussian": _MAX_RADIUS_PIXELS / 4, "motion": 2 * _MAX_RADIUS_PIXELS, "disk": _MAX_RADIUS_PIXELS}[name]
        what = {"gaussian": "a SIGMA", "motion": "a LENGTH", "disk": "a RADIUS"}[name]
        raise AdhereError(f"psf '{psf}': give {what} from {_MIN_PIXELS} to {limit:g} pixels")
    if not math.isfinite(angle):
        raise AdhereError(f"psf '{psf}': give a finite ANGLE, in degrees")
    if name == "motion":
        return _line(size, math.radians(angle))
    radius = math.ceil(extent)
    if name == "gaussian":
        profile = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * size**2))
        return profile[:, None] * profile
    steps = (torch.arange((2 * radius + 1) * _SUBPIXELS) + 0.5) / _SUBPIXELS - radius - 0.5
    fine = (steps[:, None] ** 2 + steps**2 <= size**2).float()
    return fine.unflatten(0, (-1, _SUBPIXELS)).unflatten(2, (-1, _SUBPIXELS)).mean((1, 3))


def _line(length: float, angle: float) -> Float[Tensor, "h w"]:
    """Return a line of this length in pixels; the angle is in radians, counter-clockwise from the right."""
    radius = math.ceil(length / 2)
    count = math.ceil(64 * length)
    along = ((torch.arange(count) + 0.5) / count - 0.5) * length
    x, y = along * math.cos(angle) + radius, -along * math.sin(angle) + radius  # rows go down
    kernel = torch.zeros(2 * radius + 2, 2 * radius + 2)
    for right in (0, 1):
        for down in (0, 1):  # each point is shared by the four nearest pixels
            weight = (1 - (x - x.floor() - right).abs()) * (1 - (y - y.floor() - down).abs())
            kernel.index_put_((y.floor().long() + down, x.floor().long() + right), weight, accumulate=True)
    return kernel[:-1, :-1]
