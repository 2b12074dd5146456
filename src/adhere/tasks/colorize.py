"""Colors for a gray picture, from hints."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core.constraints import Constraint, Linear, Sum
from adhere.core.operators import Gray, Mask
from adhere.errors import AdhereError
from adhere.io._samples import luma, quantize, to_float, to_pil
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.tasks._photo import PhotoTask, check_noise, thorough_sampler
from adhere.tasks._pixels import check_sampled_size
from adhere.tasks.base import Crop, ImageInput, ModelInfo

_OPAQUE = 128  # the alpha from which on a color is a hint


@keyword_hints(noise="call it hint_noise, which is in [-1, 1] units", mask="make the hints transparent where it is 0")
@dataclass(frozen=True, eq=False)
class Colorize(PhotoTask):
    """Color a gray picture: the luma of the result is the picture, and its colors spread from hints.

    The luma (ITU-R BT.601) of the written file is the picture within one level. A picture with colors is replaced by
    its luma first. Transparency is kept, and the result has 8 bits per channel.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]).
        hints: a picture of the same size, whose colors are hints where it is opaque. Only their chroma counts, less
            saturated where the brightness of the picture does not allow it. Without hints, a model of colors is needed,
            which adhere-photo is not.
        hint_noise: how far the chroma may be from the hints, as a standard deviation in [-1, 1] units.

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
        """Return the luma and, where there are hints, the colors of these hints with the luma of the picture."""
        self._refuse_size(size)
        y = pad_to_multiple(luma(self.picture.tensor()[0])[None].to(model.execution_device), model.multiple)
        constraint: Constraint = Linear(Gray(), y)
        if self.hint_picture is not None:
            known = torch.from_numpy(_opaque(self.hint_picture))[None, None].float()
            colors = torch.from_numpy(to_float(self.hint_picture.pixels)).expand(3, -1, -1)[None]
            colors, known = (_pad_zeros(x.to(y), y) for x in (colors, known))
            colors = _with_luma(colors[0], y[0])[None]
            constraint = Sum((constraint, Linear(Mask(known), known * colors, self.hint_noise)), (1.0, 1.0))
        size = y.shape[-2], y.shape[-1]
        return [Crop(size, constraint, sampler=None if model.is_latent else thorough_sampler(size, 40))]

    def restored(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        """Return the sample with the luma of the picture, less saturated where it would leave the range."""
        x = self.inside(x0).detach().to("cpu", torch.float32)
        return _with_luma(x, luma(self.picture.tensor()[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the colored picture, with 8 bits per channel; a profile of gray values is left out."""
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


def _pad_zeros(x: Float[Tensor, "1 c h w"], like: Tensor) -> Float[Tensor, "1 c H W"]:
    return torch.nn.functional.pad(x, (0, like.shape[-1] - x.shape[-1], 0, like.shape[-2] - x.shape[-2]))
