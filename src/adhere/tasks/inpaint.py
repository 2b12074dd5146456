"""Inpainting: repaint the masked part of a picture; every other pixel stays bit for bit the same."""

from collections.abc import Sequence
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
from adhere.io._selection import KNOWN_MAX_WEIGHT, UNKNOWN_MIN_WEIGHT, Selection, noise_of
from adhere.io.images import Picture, as_picture, pad_to_multiple
from adhere.io.masks import _as_weights, as_mask, mask_from_alpha, paste_known, paste_known_float
from adhere.tasks._pixels import check_sampled_size, to_unit_range
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

    The mask, the boxes and the pixels of the color are united. Then `invert`, `fill_holes`, `grow` and `feather` change
    the result, in this order. Without mask, boxes and color, the transparent part of the picture is repainted.

    A soft mask has a weight w per pixel. A pixel is kept if w is at most 1/16, and unknown if w is at least 15/16. In
    between, it is known with noise of standard deviation 0.5 w / (1 - w), in [-1, 1] units, and its new value is that
    of the sample.

    Args:
        image: a path, a PIL image, or a uint8 or uint16 array (H, W[, C]). Gray pictures stay gray, also as RGB.
        mask: of the same size; white (or True) is repainted, as in diffusers.
        context: the width in pixels, at least 1. None: three eighths of the side of the model's native size, and at
            least 96.
        boxes: (left, top, width, height) in pixels of each rectangle that is repainted.
        color: red, green and blue, 0 to 255, of pixels that are repainted.
        tolerance: the largest difference of a channel from `color`, in levels of 8 bits.
        invert: whether the selected pixels are kept and all others are repainted.
        fill_holes: whether pixels that are enclosed by selected ones are repainted, too.
        grow: the radius in pixels of the disc by which the mask is enlarged.
        feather: the width in pixels of a soft edge, inwards from the edge of the mask.
        soft: whether the mask's values between black and white are used; otherwise the mask is thresholded at one half.
            `feather` implies it.

    Attributes:
        picture: the picture as it was read.
        weights: float32 (H, W), the soft mask w; 0 and 1 if it is not soft.
        mask_array: bool (H, W), True = repainted, or partly repainted in a soft mask.

    Raises:
        AdhereError: if the picture or the mask cannot be read, sizes differ, a number is out of range, or everything or
            nothing is masked.
    """

    image: ImageInput = field(repr=False)
    mask: str | Path | Image.Image | np.ndarray | Tensor | None = field(default=None, repr=False)
    context: int | None = None
    boxes: Sequence[tuple[int, int, int, int]] = field(default=(), kw_only=True)
    color: tuple[int, int, int] | None = field(default=None, kw_only=True)
    tolerance: int = field(default=10, kw_only=True)
    invert: bool = field(default=False, kw_only=True)
    fill_holes: bool = field(default=False, kw_only=True)
    grow: int = field(default=0, kw_only=True)
    feather: int = field(default=0, kw_only=True)
    soft: bool = field(default=False, kw_only=True)
    picture: Picture = field(init=False, repr=False)
    weights: Float[np.ndarray, "h w"] = field(init=False, repr=False)
    mask_array: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers("context", "boxes", "color", "tolerance", "grow", "feather")
        if self.context is not None and (not isinstance(self.context, int) or self.context < 1):
            raise AdhereError(f"context = {self.context!r}: at least 1 pixel around the mask is needed")
        options = (self.tolerance, self.invert, self.fill_holes, self.grow, self.feather)
        selection = Selection(self.boxes, self.color, *options)
        picture = as_picture(self.image)
        weights = selection.of(picture, self._given_weights(picture, selection))
        if self.mask is not None and _is_black_and_white(picture.pixels) and _is_photograph(self.mask):
            raise AdhereError(
                "the image is black and white and the mask has many shades: they seem to be swapped; write "
                "Inpaint(image, mask)"
            )
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "mask_array", weights > KNOWN_MAX_WEIGHT)

    def _given_weights(self, picture: Picture, selection: Selection) -> np.ndarray | None:
        """Return the given mask or else the transparent part; None if only boxes and a color are given."""
        if self.mask is None and selection.is_given:
            return None
        if self.mask is None:
            mask = mask_from_alpha(picture)
            return 1 - picture.alpha / np.float32(255) if self.soft and picture.alpha is not None else mask
        return _as_weights(self.mask, picture.size) if self.soft else as_mask(self.mask, picture.size)

    @property
    def _fills_transparency(self) -> bool:
        return self.mask is None and not self.boxes and self.color is None and not self.invert

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return the crops, padded by reflection to the model's multiple, with the constraint y = known * x0 (+ noise).

        Pixels whose alpha is 0 are not known, as their color is arbitrary.
        """
        self._refuse_size(size)
        context = self.context or max(96, 3 * min(model.native_size) // 8)
        boxes = crops_around(self.mask_array, context)
        for rows, columns in boxes:
            check_sampled_size((rows.stop - rows.start, columns.stop - columns.start), "a masked part with its context")
        return [self._crop(box, model) for box in boxes]

    def _crop(self, box: Box, model: ModelInfo) -> Crop:
        padded = lambda plane: pad_to_multiple(plane.to(model.execution_device), model.multiple)  # noqa: E731
        x = padded(self.picture.tensor(box))
        is_known = (self.weights[box] < UNKNOWN_MIN_WEIGHT) & self.picture.visible(box)
        known = padded(torch.from_numpy(is_known)[None, None].float())
        std = noise_of(self.weights[box])
        noise = padded(torch.from_numpy(std)[None, None]) if std.any() else 0.0
        return Crop((x.shape[-2], x.shape[-1]), Linear(Mask(known), known * x, noise), box)

    @property
    def _blend(self) -> int:
        """The width of the seam in pixels; 0 for soft masks, whose pixels have the values of the sample."""
        return 0 if self.soft or self.feather else 4

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the repaired picture, whose known pixels are exactly value / 255, or value / 65535 with 16 bits."""
        results = _results(samples, crops)
        pasted = to_unit_range(paste_known_float(self.picture, results, self.mask_array, self._blend))
        pixels = self.picture.pixels
        exact = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)  # (C, H, W)
        return torch.where(torch.from_numpy(self.mask_array), pasted, exact)

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the repaired picture, of the input's size and mode."""
        results, opaque = _results(samples, crops), self._fills_transparency
        return paste_known(self.picture, results, self.mask_array, self._blend, opaque=opaque)


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
