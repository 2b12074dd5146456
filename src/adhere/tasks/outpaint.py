"""Outpainting: the canvas grows, and the photograph keeps its pixels bit for bit."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.errors import AdhereError
from adhere.io._metadata import resized
from adhere.io.images import Picture, as_picture
from adhere.tasks.base import Crop, ImageInput, ModelInfo, Task
from adhere.tasks.inpaint import Inpaint

_MAX_PIXELS = 250_000_000
_MAX_PASSES = 16  # in one direction; more would take hours, and only continue parts that the model has generated
_SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class _PassCrop(Crop):
    """A crop of one pass, with the inpainting task of that pass."""

    inpaint: Inpaint = field(kw_only=True)


@keyword_hints(
    mask="leave it out: all that is outside the picture is painted",
    size="write left=, right=, top= and bottom=, in pixels, or aspect=(width, height)",
    prompt="give it to the pipeline: pipe(task, prompt=...)",
)
@dataclass(frozen=True, eq=False)
class Outpaint(Task):
    """Continue a picture beyond its edges; its own pixels stay bit for bit the same.

    In one pass, a side grows by at most half of the model's native size; the result is the picture of the next pass. If
    the canvas is larger than twice the native size, columns are added first, and rows in separate passes, so that only
    the new part and its context are sampled.

    Args:
        image: as for `Inpaint`.
        left, right, top, bottom: the pixels to add, at least 0.
        aspect: (width, height) of the aspect ratio of the result, instead of the sides. The picture is centered.
        context: as for `Inpaint`.

    Attributes:
        picture: the picture as it was read.
        growth: the pixels to add at the left, right, top and bottom.

    Raises:
        AdhereError: if the picture cannot be read, does not grow, or grows by a negative number of pixels. `crops`
            raises it for a side that takes more than 16 passes with the model.
    """

    image: ImageInput = field(repr=False)
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    aspect: tuple[int, int] | None = None
    context: int | None = None
    picture: Picture = field(init=False, repr=False)
    growth: tuple[int, int, int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plain_numbers(*_SIDES, "aspect", "context")
        picture = as_picture(self.image)
        growth = (self.left, self.right, self.top, self.bottom)
        for side, pixels in zip(_SIDES, growth, strict=True):
            if type(pixels) is not int or pixels < 0:
                raise AdhereError(f"{side} = {pixels!r}: give a whole number of pixels, at least 0")
        if self.aspect is not None:
            if any(growth):
                raise AdhereError("aspect and left, right, top or bottom are given: give one of them")
            growth = _growth_to(self.aspect, picture.size)
        if not any(growth):
            raise AdhereError("the picture would not grow; give left, right, top or bottom, or another aspect")
        height, width = _grown(picture.size, growth)
        if height * width > _MAX_PIXELS:
            raise AdhereError(f"the result would have {width}x{height} pixels; at most {_MAX_PIXELS:,} are allowed")
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "growth", growth)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result in pixels."""
        return _grown(self.picture.size, self.growth)

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return the crops of the first pass; see `next_pass` for the others."""
        self._refuse_size(size)
        self._check_passes(model)
        inpaint = _inpaint(self.picture, self._first_growth(model), self.context)
        return [_PassCrop(crop.size, crop.constraint, crop.box, inpaint=inpaint) for crop in inpaint.crops(model)]

    def next_pass(self, model: ModelInfo, image: Image.Image) -> "Outpaint | None":
        done = self._first_growth(model)
        left, right, top, bottom = (whole - part for whole, part in zip(self.growth, done, strict=True))
        if not left + right + top + bottom:
            return None
        picture = replace(as_picture(image), metadata=self.picture.metadata)
        return Outpaint(picture, left, right, top, bottom, context=self.context)

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the picture after this pass, whose own pixels are exactly value / 255, or value / 65535."""
        return _task_of(crops).postprocess_float(samples, crops)

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the picture after this pass, of the input's mode."""
        return _task_of(crops).postprocess(samples, crops)

    def _check_passes(self, model: ModelInfo) -> None:
        most = min(model.native_size) // 2
        side, pixels = max(zip(_SIDES, self.growth, strict=True), key=lambda one: one[1])
        if pixels > _MAX_PASSES * most:
            given = f"{side} = {pixels}: takes {-(-pixels // most)} passes with this model"
            raise AdhereError(f"{given}; at most {_MAX_PASSES} are allowed: add at most {_MAX_PASSES * most} pixels")

    def _first_growth(self, model: ModelInfo) -> tuple[int, int, int, int]:
        """Return the growth of the first pass."""
        most = min(model.native_size) // 2
        left, right, top, bottom = (min(pixels, most) for pixels in self.growth)
        is_large = max(_grown(self.picture.size, (left, right, top, bottom))) > 2 * min(model.native_size)
        return (left, right, 0, 0) if is_large and left + right else (left, right, top, bottom)


def _grown(size: tuple[int, int], growth: tuple[int, int, int, int]) -> tuple[int, int]:
    left, right, top, bottom = growth
    return size[0] + top + bottom, size[1] + left + right


def _growth_to(aspect: object, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the growth that gives a picture of (height, width) an aspect ratio, to the nearest pixel."""
    if not isinstance(aspect, tuple) or len(aspect) != 2 or not all(type(part) is int and part > 0 for part in aspect):
        raise AdhereError(f"aspect = {aspect!r}: give (width, height), two whole numbers above 0, such as (16, 9)")
    height, width = size
    columns = max(0, round(height * aspect[0] / aspect[1]) - width)
    rows = 0 if columns else max(0, round(width * aspect[1] / aspect[0]) - height)
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _inpaint(picture: Picture, growth: tuple[int, int, int, int], context: int | None) -> Inpaint:
    """Return the task that inpaints the part that is added to a picture."""
    left, right, top, bottom = growth
    sides = ((top, bottom), (left, right))
    mask = np.pad(np.zeros(picture.size, bool), sides, constant_values=True)
    pixels = np.pad(picture.pixels, (*sides, (0, 0)), mode="edge")
    alpha = None if picture.alpha is None else np.pad(picture.alpha, sides, constant_values=255)
    metadata = resized(picture.metadata, mask.shape)
    return Inpaint(replace(picture, pixels=pixels, alpha=alpha, metadata=metadata), mask, context)


def _task_of(crops: list[Crop]) -> Inpaint:
    assert isinstance(crops[0], _PassCrop)
    return crops[0].inpaint
