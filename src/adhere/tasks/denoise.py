"""Denoising: the mean of all pictures that agree with a noisy one, or a sample of them."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from adhere._hints import keyword_hints
from adhere.core.constraints import Linear
from adhere.core.operators import Identity
from adhere.core.sampling import Sampler
from adhere.core.schedules import Schedule
from adhere.core.solvers._posterior_mean import PosteriorMean
from adhere.errors import AdhereError
from adhere.io._samples import LUMA_WEIGHTS, to_float
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.tasks._photo import PhotoTask, check_noise
from adhere.tasks._pixels import check_sampled_size
from adhere.tasks.base import Crop, ImageInput, ModelInfo


def _one_time(schedule: Schedule, num_steps: int) -> list[float]:
    """Return one time, so that a run has one step; `PosteriorMean` computes its own time from the noise."""
    return [schedule.t_from_log_snr(0.0)]


_POSTERIOR_MEAN = Sampler(PosteriorMean(), timesteps=_one_time, num_steps=1)
_CORRELATED = 1.25  # ratio of the estimates: 1 if the noise is independent, 1.5 if it is equal in all channels


@keyword_hints(sigma="call it noise, which is in [-1, 1] units: twice the --sigma of the command line")
@dataclass(frozen=True, eq=False)
class Denoise(PhotoTask):
    """Remove white Gaussian noise from a picture: E[x0 | y] for y = x0 + noise n, by one evaluation.

    Gray pictures stay gray, also as RGB. Transparency is kept. The reported residual is the RMS of the removed noise:
    about `noise`, or about sqrt(3) `noise` for gray pictures; see `crops`.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        noise: the standard deviation of the noise, in [-1, 1] units; None estimates it from the picture.
        sample: whether the solver of the call draws a sample of the pictures that agree with y, instead of returning
            their mean.

    Raises:
        AdhereError: if the picture cannot be read, or for a noise out of range.
    """

    image: ImageInput = field(repr=False)
    noise: float | None = None
    sample: bool = False
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers("noise")
        if self.noise is not None:
            check_noise(self.noise)
        picture = as_picture(self.image)
        check_sampled_size(picture.size)
        object.__setattr__(self, "picture", picture)
        if self.noise is None:
            object.__setattr__(self, "noise", _estimated_noise(picture))

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return y = x0 + noise n, padded by reflection.

        The noise n of a gray picture is the same in all three channels, which is noise of sqrt(3) n along the gray axis
        of color space. A model of RGB pictures expects noise along all axes, so it is added along the other two.
        """
        self._refuse_size(size)
        if model.is_latent:
            raise AdhereError("Denoise needs a pixel-space model, as an autoencoder would blur: use adhere-photo")
        assert self.noise is not None  # see __post_init__
        x, noise = self.picture.tensor(), self.noise
        if self.picture.is_gray(self.picture.visible()):
            noise = noise * math.sqrt(3)
            n = noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            x = x + n - n.mean(1, keepdim=True)
        y = pad_to_multiple(x.to(model.execution_device), model.multiple)
        linear = Linear(Identity(), y, noise)
        return [Crop((y.shape[-2], y.shape[-1]), linear, sampler=None if self.sample else _POSTERIOR_MEAN)]


def _estimated_noise(picture: Picture) -> float:
    """Return the standard deviation of a picture's white noise, in [-1, 1] units.

    It is estimated from the finest diagonal Haar band of red, green and blue. In a JPEG file with subsampled chroma,
    only the luma has noise of high frequencies, so the estimate from the luma is about 1.5 times as large: noise that
    is independent in the channels has sqrt(0.299^2 + 0.587^2 + 0.114^2) = 0.668 of its standard deviation in the luma.
    Gray noise gives the same two estimates. The estimate from the luma is then returned.
    """
    height, width = (side - side % 2 for side in picture.size)
    x = to_float(picture.pixels[:height, :width])
    visible = picture.visible()[:height, :width].reshape(height // 2, 2, width // 2, 2).all((1, 3))
    bands = _diagonal_haar(x)[:, visible]  # (C, N)
    sigma = _robust_std(bands)
    if picture.is_gray(picture.visible()):
        return sigma
    of_luma = _robust_std(np.array(LUMA_WEIGHTS, np.float32) @ bands) / math.hypot(*LUMA_WEIGHTS)
    return of_luma if of_luma > _CORRELATED * sigma else sigma


def _robust_std(band: Float[np.ndarray, "..."]) -> float:
    """Return the median absolute value divided by 0.6745, its value for a standard Gaussian; 0 without values.

    Edges and textures affect only a minority of the values.

    Source: Donoho and Johnstone, *Ideal spatial adaptation by wavelet shrinkage* (1994).
    """
    return float(np.median(np.abs(band))) / 0.6745 if band.size else 0.0


def _diagonal_haar(x: Float[np.ndarray, "C H W"]) -> Float[np.ndarray, "C h w"]:
    return (x[:, ::2, ::2] - x[:, 1::2, ::2] - x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 2
