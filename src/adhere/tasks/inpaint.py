"""Inpainting: repaint the masked part of a picture; every other pixel stays bit for bit the same."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from adhere.errors import AdhereError
from adhere.io._crops import Box, crops_around
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.io.masks import as_mask, mask_from_alpha, paste_known, paste_known_float
from adhere.tasks._pixels import to_unit_range
from adhere.tasks.base import Crop, ImageInput, ModelInfo, Task


@keyword_hints(
    mask_image="call it mask",
    strength="there is no strength: the mask decides what changes",
    prompt="give it to the pipeline: pipe(task, prompt=...)",
)
@dataclass(frozen=True, eq=False)
class Inpaint(Task):
    """Repaint the masked part of a picture.

    The network sees each masked region with `context` pixels around it, not the whole of a large photograph. Regions
    that are within each other's context share a crop.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]). Gray pictures stay gray, also as RGB.
        mask: of the same size; white (or True) is repainted, as in diffusers. None: the transparent part of the picture
            is repainted.
        context: in pixels, at least 1. None: three eighths of the side of the model's native size, and at least 96.

    Attributes:
        picture: the picture as it was read.
        mask_array: bool (H, W), True = repainted.

    Raises:
        AdhereError: if the picture or the mask cannot be read, sizes differ, or everything or nothing is masked.
    """

    image: ImageInput = field(repr=False)
    mask: str | Path | Image.Image | np.ndarray | Tensor | None = field(default=None, repr=False)
    context: int | None = None
    picture: Picture = field(init=False, repr=False)
    mask_array: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.context is not None and (not isinstance(self.context, int) or self.context < 1):
            raise AdhereError(f"context = {self.context!r}: at least 1 pixel around the mask is needed")
        picture = as_picture(self.image)
        mask = mask_from_alpha(picture) if self.mask is None else as_mask(self.mask, picture.size)
        if self.mask is not None and _is_black_and_white(picture.pixels) and _is_photograph(self.mask):
            raise AdhereError(
                "the image is black and white and the mask has many shades: they seem to be swapped; write "
                "Inpaint(image, mask)"
            )
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "mask_array", mask)

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return the crops with y = known * x0 on each, padded by reflection to the model's multiple.

        Pixels whose alpha is 0 are not known, as their color is arbitrary.
        """
        self._refuse_size(size)
        context = self.context or max(96, 3 * min(model.native_size) // 8)
        crops = []
        for box in crops_around(self.mask_array, context):
            known = torch.from_numpy(~self.mask_array[box] & self.picture.visible(box))[None, None].float()
            x = pad_to_multiple(self.picture.tensor(box).to(model.execution_device), model.multiple)
            known = pad_to_multiple(known.to(x.device), model.multiple)
            crops.append(Crop((x.shape[-2], x.shape[-1]), Linear(Mask(known), known * x), box))
        return crops

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the repaired picture, whose known pixels are exactly value / 255, or value / 65535 with 16 bits."""
        pasted = to_unit_range(paste_known_float(self.picture, _results(samples, crops), self.mask_array))
        pixels = self.picture.pixels
        exact = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)  # (C, H, W)
        return torch.where(torch.from_numpy(self.mask_array), pasted, exact)

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the repaired picture, of the input's size and mode."""
        return paste_known(self.picture, _results(samples, crops), self.mask_array, opaque=self.mask is None)


def _results(samples: list[Tensor], crops: list[Crop]) -> list[tuple[Box, Tensor]]:
    """Return the box of each crop with its sample in [-1, 1], without the padding."""
    results = []
    for crop, x0 in zip(crops, samples, strict=True):
        assert crop.box is not None
        rows, columns = crop.box
        unpadded = x0[:, : rows.stop - rows.start, : columns.stop - columns.start]
        results.append((crop.box, unpadded.clamp(-1, 1)))
    return results


def _is_black_and_white(pixels: np.ndarray) -> bool:
    """Return whether nearly all pixels are black or white, as those of a mask."""
    return bool((np.abs(_shares(pixels) - 0.5) > 0.45).mean() > 0.98)


def _is_photograph(mask: str | Path | Image.Image | np.ndarray | Tensor) -> bool:
    """Return whether most pixels of what was given as mask are neither dark nor light; a soft edge has few of them."""
    pixels = as_picture(mask).pixels if isinstance(mask, (str, Path, Image.Image)) else np.asarray(mask)
    return bool((np.abs(_shares(pixels) - 0.5) < 0.4).mean() > 0.5)


def _shares(pixels: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return pixels as shares of the largest value of their type, from 0 to 1; floats are shares already."""
    largest = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return pixels.astype(np.float32) / largest
