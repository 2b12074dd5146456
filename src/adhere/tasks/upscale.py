"""Upscaling: a large picture whose reduction is the small one."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core.constraints import Linear
from adhere.core.filters import Downsample, Resize
from adhere.core.operators import LinearOperator, Unpad
from adhere.errors import AdhereError
from adhere.io._metadata import resized
from adhere.io._samples import luma, quantize, to_float, to_pil
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.tasks._photo import PhotoTask, check_noise
from adhere.tasks._pixels import check_sampled_size, match_means, round_with_means
from adhere.tasks.base import Crop, ImageInput, ModelInfo

_LEAST, _MOST, _DEFAULT_FACTOR = 1.5, 8, 4


@keyword_hints(
    scale="call it factor", sigma="call it noise, which is in [-1, 1] units", height="write size=(height, width)"
)
@dataclass(frozen=True, eq=False)
class Upscale(PhotoTask):
    """Enlarge a picture so that the result, reduced to the size of the input, is the input.

    Gray pictures stay gray, also as RGB. Transparency is enlarged by bicubic interpolation. The colors of pixels with
    alpha 0 are those of the nearest visible ones. Without noise, for an integer factor and the kernel 'area', the means
    over factor x factor pixels of the file are exactly the input. Otherwise they differ only by rounding, except where
    the exact result would need values outside the range.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        factor: from 1.5 to 8, for both sides, which are rounded to pixels; None is 4 unless a size is given.
        noise: the standard deviation of the input's noise, in [-1, 1] units; JPEG files also have noise.
        kernel: how the input was reduced: 'area', the mean over the area of a pixel, or 'bicubic', antialiased.
        size: (height, width) in pixels, instead of the factor, with the input's aspect ratio to within one pixel.

    Raises:
        AdhereError: if the picture cannot be read, or for values out of range.
    """

    image: ImageInput = field(repr=False)
    factor: float | None = None
    noise: float = 0.0
    kernel: Literal["area", "bicubic"] = "area"
    size: tuple[int, int] | None = None
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers("factor", "noise", "size")
        factor = _DEFAULT_FACTOR if self.factor is None else self.factor
        if type(factor) not in (int, float) or not _in_range(float(factor)):
            raise AdhereError(f"factor = {factor!r}: give a number from {_LEAST} to {_MOST}; 2 and 4 are usual")
        if self.factor is not None and self.size is not None:
            raise AdhereError(f"factor = {factor} and size = {self.size!r} are given: give one of them")
        check_noise(self.noise)
        if self.kernel not in ("area", "bicubic"):
            raise AdhereError(f"kernel = {self.kernel!r}: give 'area' or 'bicubic'")
        picture = as_picture(self.image)
        object.__setattr__(self, "picture", picture)
        if self.size is None:
            height, width = (round(factor * side) for side in picture.size)
            object.__setattr__(self, "size", (height, width))
        else:
            _check_size(self.size, picture.size)
        check_sampled_size(self._size)

    @property
    def _size(self) -> tuple[int, int]:
        assert self.size is not None  # see __post_init__
        return self.size

    @property
    def _whole_factor(self) -> int | None:
        """The factor if it is an integer for both sides and the kernel is 'area', which can be exact; else None."""
        (height, width), (small_height, small_width) = self._size, self.picture.size
        factor = height // small_height
        is_whole = (height, width) == (factor * small_height, factor * small_width)
        return factor if is_whole and self.kernel == "area" else None

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return y = A x0 + noise with A the reduction.

        For an integer factor, y is padded by reflection so that x0 fits the model; otherwise A sees a part of x0.
        """
        self._refuse_size(size)
        y = self.picture.tensor().to(model.execution_device)
        if factor := self._whole_factor:
            y = pad_to_multiple(y, model.multiple // math.gcd(model.multiple, factor))
            operator, padded = Downsample(factor), (y.shape[-2] * factor, y.shape[-1] * factor)
        else:
            height, width = (-(-side // model.multiple) * model.multiple for side in self._size)
            padded = height, width
            operator = self._resize if padded == self._size else self._resize @ Unpad(padded, self._size)
        return [Crop(padded, Linear(operator, y, self.noise))]

    @property
    def _resize(self) -> LinearOperator:
        return Resize(self._size, self.picture.size, self.kernel)

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the large picture, with the channels and the bits per channel of the input (8 for 1 bit)."""
        pixels, alpha = self._pixels(samples[0]), self.picture.alpha
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC))
        large = replace(self.picture, metadata=resized(self.picture.metadata, self._size))
        return large.add_metadata(to_pil(pixels, alpha))

    def _pixels(self, x0: Float[Tensor, "3 h w"]) -> np.ndarray:
        """Return the sample as integers (H, W, C)."""
        x, factor = self.restored(x0), self._whole_factor
        if self.noise or factor is None:
            return quantize(x, self.picture.pixels.dtype)
        return round_with_means(x, self._means(), factor)

    def restored(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "C H W"]:
        """Return the sample in [-1, 1], with the channels of the input, and with its means unless it has noise."""
        dtype = torch.float64 if self.picture.pixels.dtype == np.uint16 else torch.float32
        x = self.inside(x0).detach().to("cpu", dtype)
        if self.picture.is_gray(self.picture.visible()):
            x = luma(x).repeat(self.picture.pixels.shape[2], 1, 1)
        if self.noise:
            return x.clamp(-1, 1)
        y = torch.from_numpy(to_float(self._means())).to(x)
        return match_means(x, y, factor) if (factor := self._whole_factor) else _match(x, Linear(self._resize, y[None]))

    def _means(self) -> np.ndarray:
        """Return the input as integers (h, w, C), with visible colors everywhere."""
        pixels = self.picture.pixels
        return quantize(self.picture.tensor()[0, : pixels.shape[2]], pixels.dtype)

    def inside(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        """Return the part of a sample that is not padding, as a view."""
        return x0[:, : self._size[0], : self._size[1]]


def _match(x: Float[Tensor, "C H W"], linear: Linear) -> Float[Tensor, "C H W"]:
    """Return a picture in [-1, 1] near x that meets y = A x, by alternating projection and clipping."""
    for _ in range(10):
        x = linear.project(x.clamp(-1, 1)[None])[0]
        if x.abs().max() <= 1 + 1 / 255:
            break
    return x.clamp(-1, 1)


def _in_range(factor: float) -> bool:
    return _LEAST <= factor <= _MOST


def _check_size(size: object, small: tuple[int, int]) -> None:
    """Raise AdhereError unless a size has the aspect ratio of the small picture, and factors in the range."""
    if not (isinstance(size, tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise AdhereError(f"size = {size!r}: give (height, width) in pixels, such as (1024, 768)")
    (height, width), (small_height, small_width) = size, small
    given = f"the size {width}x{height} (width x height)"
    if not any(_in_range(one) for one in (height / small_height, width / small_width)):
        low, high = (
            f"{math.ceil(one * small_width)}x{math.ceil(one * small_height)}" for one in (float(_LEAST), float(_MOST))
        )
        given = f"{given} is not from {_LEAST} to {_MOST} times {small_width}x{small_height}"
        raise AdhereError(f"{given}: {low} to {high} are allowed")
    if abs(width - height * small_width / small_height) > 1 and abs(height - width * small_height / small_width) > 1:
        near = round(width * small_height / small_width)
        raise AdhereError(f"{given} has another aspect ratio than {small_width}x{small_height}: {width}x{near} has it")
