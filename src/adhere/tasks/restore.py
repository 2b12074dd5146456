"""Restoration from a linear measurement y = A x0 + noise: any operator, and upscaling."""

import math
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core._checks import check_constraint, check_range, is_out_of_memory
from adhere.core.constraints import Linear
from adhere.core.filters import Downsample
from adhere.core.operators import LinearOperator, Unpad
from adhere.errors import AdhereError
from adhere.io._metadata import resized
from adhere.io._samples import luma, quantize, to_float, to_pil
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.tasks._pixels import check_sampled_size, match_means, rgb_image, round_with_means, to_unit_range
from adhere.tasks.base import Crop, ImageInput, ModelInfo, Task


@keyword_hints(sigma="call it noise", image="call it y, the measurement")
@dataclass(frozen=True, eq=False)
class Restore(Task):
    """Restore a picture from a measurement y = A x0 + noise.

    Args:
        y: the measurement, (1, ...) as A returns it for pictures (1, 3, H, W) in [-1, 1]; or a picture, which becomes
            (1, 3, H, W) in [-1, 1].
        operator: A. The picture has the size of A^T y; where the model needs a multiple, A sees the top left part.
        noise: the standard deviation of the measurement's noise, in units of y.

    Raises:
        AdhereError: if y and A do not fit together, A is not an operator on RGB pictures, or y is far larger than A
            can give for a picture in [-1, 1].
    """

    y: ImageInput | Tensor = field(repr=False)
    operator: LinearOperator
    noise: float = 0.0
    measurement: Tensor = field(init=False, repr=False)
    size: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.operator, LinearOperator):
            given = type(self.operator).__name__
            raise AdhereError(f"operator is a {given}: give a LinearOperator, such as adhere.operator(fn, (3, H, W))")
        if not isinstance(self.noise, Real) or not self.noise >= 0:
            raise AdhereError(f"noise = {self.noise!r}: give one number, a standard deviation of at least 0")
        if isinstance(self.y, Tensor) and not self.y.is_floating_point():
            raise AdhereError(f"y has dtype {self.y.dtype}: give floating-point numbers; pictures are in [-1, 1]")
        y = self.y.float() if isinstance(self.y, Tensor) else as_picture(self.y).tensor()
        try:
            image = self.operator.adjoint(y)
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            hint = "; add a batch dimension: y[None]" if y.ndim == 3 else ""
            raise AdhereError(f"A^T cannot be applied to y of shape {tuple(y.shape)}: {reason}{hint}") from error
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise AdhereError(f"A^T y has shape {tuple(image.shape)}: y must measure one RGB picture, (1, 3, H, W)")
        for check in (check_constraint, check_range):
            check(Linear(self.operator, y, self.noise), image.shape, y.dtype, y.device)
        object.__setattr__(self, "measurement", y)
        object.__setattr__(self, "size", (image.shape[-2], image.shape[-1]))

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        self._refuse_size(size)
        padded = (math.ceil(self.size[0] / model.multiple), math.ceil(self.size[1] / model.multiple))
        padded = (padded[0] * model.multiple, padded[1] * model.multiple)
        operator = self.operator if padded == self.size else self.operator @ Unpad(padded, self.size)
        return [Crop(padded, Linear(operator, self.measurement.to(model.execution_device), self.noise))]

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "3 H W"]:
        return to_unit_range(self._unpad(samples[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        return rgb_image(self._unpad(samples[0]))

    def _unpad(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        return x0[:, : self.size[0], : self.size[1]]


@keyword_hints(scale="call it factor", sigma="call it noise")
@dataclass(frozen=True, eq=False)
class Upscale(Task):
    """Enlarge a picture; the means of the result over factor x factor pixels are the input.

    Gray pictures stay gray, also as RGB. Transparency is enlarged by bicubic interpolation, and the colors of pixels
    whose alpha is 0 are those of the nearest visible ones. Without noise, the means are exact in the file.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        factor: an integer of at least 2, for both sides.
        noise: the standard deviation of the input's noise, in [-1, 1] units.

    Raises:
        AdhereError: if the picture cannot be read, or for another factor.
    """

    image: ImageInput = field(repr=False)
    factor: int = 4
    noise: float = 0.0
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 2:
            raise AdhereError(f"factor = {self.factor!r}: give an integer of at least 2; 4 and 8 are usual")
        picture = as_picture(self.image)
        check_sampled_size((picture.size[0] * self.factor, picture.size[1] * self.factor))
        object.__setattr__(self, "picture", picture)

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return y = A x0 + noise with A the area means, y padded by reflection so that x0 fits the model."""
        self._refuse_size(size)
        multiple = model.multiple // math.gcd(model.multiple, self.factor)
        y = pad_to_multiple(self.picture.tensor().to(model.execution_device), multiple)
        height, width = (side * self.factor for side in y.shape[-2:])
        return [Crop((height, width), Linear(Downsample(self.factor), y, self.noise))]

    def written(self, samples: Float[Tensor, "B 3 H W"], crop: Crop) -> Float[Tensor, "B 3 H W"]:
        """Return the samples as they are written: within the range, in whole levels and with the means of the input."""
        written = samples.clone()
        for x0, x in zip(samples, written, strict=True):
            self._unpad(x).copy_(torch.from_numpy(to_float(self._pixels(x0))))
        return written

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the large picture, C = 1 if the input is gray."""
        return to_unit_range(self._matched(samples[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the large picture, with as many channels and bits per channel as the input; 8 for 1 bit."""
        pixels, alpha = self._pixels(samples[0]), self.picture.alpha
        size = pixels.shape[0], pixels.shape[1]
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize(size[::-1], Image.Resampling.BICUBIC))
        large = replace(self.picture, metadata=resized(self.picture.metadata, size))
        return large.add_metadata(to_pil(pixels, alpha))

    def _pixels(self, x0: Float[Tensor, "3 h w"]) -> np.ndarray:
        """Return the sample as integers (H, W, C)."""
        x = self._matched(x0)
        if self.noise:
            return quantize(x, self.picture.pixels.dtype)
        return round_with_means(x, self._means(), self.factor)

    def _matched(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "C H W"]:
        """Return the sample in [-1, 1], with the channels of the input, and with its means unless it has noise."""
        dtype = torch.float64 if self.picture.pixels.dtype == np.uint16 else torch.float32
        x = self._unpad(x0).detach().to("cpu", dtype)
        if self.picture.is_gray(self.picture.visible()):
            x = luma(x).repeat(self.picture.pixels.shape[2], 1, 1)
        if self.noise:
            return x.clamp(-1, 1)
        return match_means(x, torch.from_numpy(to_float(self._means())).to(x), self.factor)

    def _means(self) -> np.ndarray:
        """Return the input as integers (h, w, C), with visible colors everywhere."""
        pixels = self.picture.pixels
        return quantize(self.picture.tensor()[0, : pixels.shape[2]], pixels.dtype)

    def _unpad(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        height, width = (side * self.factor for side in self.picture.size)
        return x0[:, :height, :width]
