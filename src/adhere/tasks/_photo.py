"""The base of tasks whose result has the size, the channels and the bit depth of the input."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere.core.presets import PRESETS
from adhere.core.sampling import Sampler
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.errors import AdhereError
from adhere.io._samples import luma, quantize, to_float, to_pil
from adhere.io.images import Picture
from adhere.tasks._pixels import to_unit_range
from adhere.tasks.base import Crop, Task


def check_noise(noise: object, name: str = "noise") -> None:
    """Raise AdhereError unless a standard deviation is a number from 0 to 2, in [-1, 1] units."""
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise <= 2:
        raise AdhereError(
            f"{name} = {noise!r}: give one number from 0 to 2, a standard deviation in [-1, 1] units; 8-bit levels are "
            "divided by 127.5"
        )


def thorough_sampler(size: tuple[int, int], num_iterations: int) -> Sampler:
    """Return the default sampler with more than 6 conjugate residuals, for constraints that are ill-conditioned.

    Each conjugate residual keeps two arrays of the size of the picture. For large pictures their number is reduced, so
    that the arrays take about 1 GB.

    Args:
        size: (height, width) of the sample in pixels.
        num_iterations: the number of conjugate residuals for pictures below 1 megapixel.
    """
    count = max(6, min(num_iterations, 40_000_000 // (size[0] * size[1])))
    return replace(PRESETS["moment_matching"], solver=MomentMatching(num_iterations=count))


class PhotoTask(Task):
    """Base of tasks that restore `self.picture`; gray pictures stay gray, also as RGB, and transparency is kept."""

    picture: Picture

    def inside(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        """Return the part of a sample that belongs to the picture, without padding, as a view."""
        height, width = self.picture.size
        return x0[:, :height, :width]

    def restored(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "C H W"]:
        """Return a sample on the CPU, in [-1, 1], without the padding and with the channels of the picture."""
        x = self.inside(x0).detach().to("cpu", torch.float32)
        if self.picture.is_gray(self.picture.visible()):
            x = luma(x).repeat(self.picture.pixels.shape[2], 1, 1)
        return x.clamp(-1, 1)

    def written(self, samples: Float[Tensor, "B 3 H W"], crop: Crop) -> Float[Tensor, "B 3 H W"]:
        """Return the samples as they are written: rounded to levels, with the channels of the picture."""
        written = samples.clone()
        for x0, x in zip(samples, written, strict=True):
            self.inside(x).copy_(torch.from_numpy(to_float(self._pixels(x0))))
        return written

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the restored picture, C = 1 if the input is gray."""
        return to_unit_range(self.restored(samples[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the restored picture, with the channels and the bits per channel of the input (8 for 1 bit)."""
        return self.picture.add_metadata(to_pil(self._pixels(samples[0]), self.picture.alpha))

    def _pixels(self, x0: Float[Tensor, "3 h w"]) -> np.ndarray:
        """Return the sample as integers (H, W, C)."""
        return quantize(self.restored(x0), self.picture.pixels.dtype)
