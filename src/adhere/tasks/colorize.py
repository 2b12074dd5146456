"""Colors for a gray picture, from hints."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from adhere._hints import keyword_hints
from adhere.core.constraints import Linear
from adhere.core.operators import Gray
from adhere.core.presets import PRESETS
from adhere.errors import AdhereError
from adhere.io._samples import luma, quantize, to_float, to_pil
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.tasks._chroma import LumaChroma, spread
from adhere.tasks._photo import PhotoTask, check_noise
from adhere.tasks._pixels import check_sampled_size
from adhere.tasks.base import Crop, ImageInput, ModelInfo

_OPAQUE = 128  # the smallest alpha of a hint
_LEAST_NOISE = 0.001  # of measurements, in [-1, 1] units; the written luma is exact in any case
_NUM_STEPS = 8  # of the default sampler: more do not change the colors


@keyword_hints(noise="call it hint_noise, which is in [-1, 1] units", mask="make the hints transparent where it is 0")
@dataclass(frozen=True, eq=False)
class Colorize(PhotoTask):
    """Color a gray picture: the luma of the result is that of the picture, and its colors spread from hints.

    The luma (ITU-R BT.601) of the written file is that of the picture within one level. A picture with colors is first
    replaced by its luma. Transparency is kept, and the result has 8 bits per channel. Colors spread by regression on
    position, luma and texture, see `adhere.tasks._chroma`; the model gets them with their uncertainty.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        hints: a picture of the same size, whose opaque pixels are hints. Only their chroma is used; it is reduced where
            it would not be possible at the luma of the picture. Pixel-space models need hints.
        hint_noise: the standard deviation of the chroma from the hints, in [-1, 1] units.

    Raises:
        AdhereError: if a picture cannot be read, or the hints have another size, no transparency or nothing opaque.
    """

    image: ImageInput = field(repr=False)
    hints: ImageInput | None = field(default=None, repr=False)
    hint_noise: float = 0.1
    picture: Picture = field(init=False, repr=False)
    hint_picture: Picture | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers("hint_noise")
        check_noise(self.hint_noise, "hint_noise")
        picture = as_picture(self.image)
        check_sampled_size(picture.size)
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "hint_picture", None if self.hints is None else _checked_hints(self.hints, picture))

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return the luma and, where there are hints, the chroma that spreads from them, with its uncertainty."""
        self._refuse_size(size)
        if self.hint_picture is None and not model.is_latent:
            raise AdhereError("the hints are missing (--hints): a pixel-space model does not know the colors of things")
        y = pad_to_multiple(luma(self.picture.tensor()[0])[None], model.multiple)
        size, device = (y.shape[-2], y.shape[-1]), model.execution_device
        if self.hint_picture is None:
            return [Crop(size, Linear(Gray(), y.to(device)))]
        colors, noise = self._spread(self.hint_picture, y[0])
        constraint = Linear(LumaChroma(), LumaChroma()(colors[None]).to(device), noise[None].to(device))
        sampler = None if model.is_latent else replace(PRESETS["moment_matching"], num_steps=_NUM_STEPS)
        return [Crop(size, constraint, sampler=sampler)]

    def _spread(
        self, hint_picture: Picture, y: Float[Tensor, "1 h w"]
    ) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]]:
        """Return colors with the luma y, and the noise of their luma and chroma.

        At a hint, its own chroma and the spread chroma are two observations with different noise, which are combined.
        """
        hints, known = torch.from_numpy(to_float(hint_picture.pixels)), torch.from_numpy(_opaque(hint_picture))
        hints, known = _pad_zeros(hints.expand(3, -1, -1), y), _pad_zeros(known[None], y)
        chroma, std = spread(y, _with_luma(hints, y) - y, known, self.hint_noise)
        variance, hint_variance = std.clamp_min(_LEAST_NOISE).square(), max(self.hint_noise, _LEAST_NOISE) ** 2
        weight = torch.where(known, variance / (variance + hint_variance), 0)  # of the hint
        colors = _with_luma(torch.lerp(y + chroma, _with_luma(hints, y), weight), y)
        noise = (variance * (1 - weight)).sqrt()
        return colors, torch.cat([torch.full_like(y, _LEAST_NOISE), noise, noise])

    def restored(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        """Return the sample with the luma of the picture, less saturated where it would leave the range."""
        x = self.inside(x0).detach().to("cpu", torch.float32)
        return _with_luma(x, luma(self.picture.tensor()[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the colored picture, with 8 bits per channel and without the ICC profile of a gray picture."""
        metadata = dict(self.picture.metadata)
        if self.picture.pixels.shape[2] == 1:
            metadata.pop("icc_profile", None)
        image = to_pil(self._pixels(samples[0]), self.picture.alpha)
        return replace(self.picture, metadata=metadata).add_metadata(image)

    def _pixels(self, x0: Float[Tensor, "3 h w"]) -> np.ndarray:
        return quantize(self.restored(x0), np.dtype(np.uint8))


def _with_luma(x: Float[Tensor, "3 h w"], y: Float[Tensor, "1 h w"]) -> Float[Tensor, "3 h w"]:
    """Return colors with the luma y, less saturated where they would leave [-1, 1]."""
    chroma = x - luma(x)
    allowed = torch.where(chroma > 0, 1 - y, 1 + y) / chroma.abs().clamp_min(1e-6)
    return (y + chroma * allowed.amin(0, keepdim=True).clamp(0, 1)).clamp(-1, 1)


def _checked_hints(hints: ImageInput, picture: Picture) -> Picture:
    hint_picture = as_picture(hints)
    name = f"the hints {hints}" if isinstance(hints, (str, Path)) else "the hints"
    if hint_picture.size != picture.size:
        (height, width), (expected_height, expected_width) = hint_picture.size, picture.size
        given = f"{name} have {width}x{height} pixels, the picture has {expected_width}x{expected_height}"
        raise AdhereError(f"{given}: give both the same size")
    if hint_picture.alpha is None:
        raise AdhereError(f"{name} have no transparency: leave only the strokes of color opaque, in a .png")
    if not _opaque(hint_picture).any():
        raise AdhereError(f"{name} are transparent everywhere: paint strokes of color, opaque")
    return hint_picture


def _opaque(hints: Picture) -> Bool[np.ndarray, "H W"]:
    assert hints.alpha is not None  # see _checked_hints
    return hints.alpha >= _OPAQUE


def _pad_zeros(x: Shaped[Tensor, "c h w"], like: Tensor) -> Shaped[Tensor, "c H W"]:
    return pad(x, (0, like.shape[-1] - x.shape[-1], 0, like.shape[-2] - x.shape[-2]))
