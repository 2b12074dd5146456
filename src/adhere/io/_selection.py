"""The selection of the pixels to inpaint: boxes, colors and masks, united, inverted, filled, enlarged, feathered.

A selection holds a weight w in [0, 1] per pixel, float32 (H, W): 0 = keep, 1 = inpaint. Without soft edges, w is 0
or 1. Distances are Euclidean, between the centers of pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch.nn.functional import max_pool2d

from adhere.errors import AdhereError, AdhereWarning
from adhere.io._crops import Box, _components
from adhere.io.images import Picture

KNOWN_MAX_WEIGHT, UNKNOWN_MIN_WEIGHT = 1 / 16, 15 / 16  # pixels up to the first are kept, from the second on unknown
_Weights = Float[np.ndarray, "H W"]


@dataclass(frozen=True)
class Selection:
    """The steps that make a selection, from a mask or without one; they are applied in the order of the attributes.

    Attributes:
        boxes: (left, top, width, height) in pixels; a part outside the picture is cut off.
        color: red, green and blue, 0 to 255, of pixels that are selected, or None.
        tolerance: the largest difference of a channel from `color`, in levels of 8 bits.
        invert: whether the other pixels are selected instead.
        fill_holes: whether regions that are enclosed by selected pixels are selected, too.
        grow: the radius in pixels of the disc by which the selection is enlarged.
        feather: the width in pixels of a ramp inwards from the edge; the pixel at the edge gets 1 / (feather + 1).

    Raises:
        AdhereError: for values out of range.
    """

    boxes: Sequence[tuple[int, int, int, int]] = ()
    color: tuple[int, int, int] | None = None
    tolerance: int = 10
    invert: bool = False
    fill_holes: bool = False
    grow: int = 0
    feather: int = 0

    def __post_init__(self) -> None:
        for box in self.boxes:
            if len(box) != 4 or not all(isinstance(n, int) for n in box) or min(box) < 0 or min(box[2:]) < 1:
                raise AdhereError(f"box = {box}: give (left, top, width, height) in pixels, such as (10, 20, 64, 48)")
        if self.color is not None and not (len(self.color) == 3 and all(0 <= value <= 255 for value in self.color)):
            raise AdhereError(f"color = {self.color}: give red, green and blue, from 0 to 255")
        for name, largest in (("tolerance", 255), ("grow", 10_000), ("feather", 10_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= largest:
                raise AdhereError(f"{name} = {value!r}: give a whole number from 0 to {largest}")

    @property
    def is_given(self) -> bool:
        """Whether a box or a color says what is selected."""
        return bool(self.boxes) or self.color is not None

    def of(self, picture: Picture, weights: Shaped[np.ndarray, "H W"] | None) -> _Weights:
        """Return the selection in a picture; an `AdhereWarning` says if the soft edge leaves no pixel unknown.

        Args:
            picture: the picture to inpaint.
            weights: of a mask or of the transparent part, bool or float (H, W); None for boxes and a color alone.

        Raises:
            AdhereError: for a box outside the picture, or a selection of everything or nothing.
        """
        selected = np.zeros(picture.size, np.float32) if weights is None else weights.astype(np.float32)
        for box in self.boxes:
            selected[_slices(box, picture.size)] = 1
        if self.color is not None:
            selected[_has_color(picture, self.color, self.tolerance)] = 1
        if self.invert:
            selected = 1 - selected
        if self.fill_holes:
            selected = np.where(_holes(selected < 0.5), np.float32(1), selected)
        if self.grow:
            selected = _grown(selected, self.grow)
        if self.feather:
            largest = float(selected.max())
            selected = _feathered(selected, self.feather)
            _check_feathered(self.feather, largest, float(selected.max()))
        if not (selected > KNOWN_MAX_WEIGHT).any():
            raise AdhereError("nothing to inpaint: nothing is selected; give another mask, box or color")
        if (selected >= UNKNOWN_MIN_WEIGHT).all():
            raise AdhereError("nothing to keep: everything is selected; give another mask, box or color")
        return selected


def _check_feathered(width: int, before: float, after: float) -> None:
    """Raise AdhereError if feathering leaves nothing of a selection; warn if it leaves no unknown pixel.

    Args:
        width: of the ramp, in pixels.
        before: the largest weight before feathering.
        after: the largest weight after it.
    """
    if before > KNOWN_MAX_WEIGHT >= after:
        raise AdhereError(f"feather {width}: is too wide for what is selected; give a smaller width")
    if before >= UNKNOWN_MIN_WEIGHT > after:
        known = f"feather {width}: is too wide to leave a pixel fully unknown, so little or nothing changes"
        warnings.warn(f"{known}; give a smaller width, or enlarge the mask", AdhereWarning, stacklevel=6)


def noise_of(weights: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return the standard deviation of the noise of each pixel, in [-1, 1] units.

    It is 0.5 w / (1 - w) between the limits, and 0 for pixels that are kept and for unknown ones.
    """
    is_soft = (weights > KNOWN_MAX_WEIGHT) & (weights < UNKNOWN_MIN_WEIGHT)
    w = np.where(is_soft, weights, 0)
    return (0.5 * w / (1 - w)).astype(np.float32)


def _slices(box: tuple[int, int, int, int], size: tuple[int, int]) -> Box:
    left, top, width, height = box
    if left >= size[1] or top >= size[0]:
        given = f"box {left},{top},{width},{height}"
        raise AdhereError(f"{given}: is outside the picture, which has {size[1]} x {size[0]} pixels")
    return slice(top, top + height), slice(left, left + width)


def _has_color(picture: Picture, color: tuple[int, int, int], tolerance: int) -> Bool[np.ndarray, "H W"]:
    """Return the visible pixels whose channels are all near those of the color."""
    per_level = np.iinfo(picture.pixels.dtype).max // 255
    near = picture.visible()
    for channel, value in zip(
        np.broadcast_to(picture.pixels, (*picture.size, 3)).transpose(2, 0, 1), color, strict=True
    ):
        near &= np.abs(channel.astype(np.int32) - value * per_level) <= tolerance * per_level
    return near


def _holes(outside: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Return the regions of `outside` that do not touch the edge of the picture."""
    height, width = outside.shape
    holes = np.zeros_like(outside)
    for runs in _components(outside, by_corners=False):
        if not any(row in (0, height - 1) or start == 0 or stop == width for row, start, stop in runs):
            for row, start, stop in runs:
                holes[row, start:stop] = True
    return holes


def _grown(weights: _Weights, radius: int) -> _Weights:
    """Return the largest weight within the radius of each pixel."""
    box = _around(weights > 0, radius)
    part = weights[box]
    if np.isin(part, (0, 1)).all():
        grown = (_squared_distance(part == 1, radius) <= radius**2).astype(np.float32)
    else:
        grown = _largest_within(torch.from_numpy(np.ascontiguousarray(part)), radius).numpy()
    weights = weights.copy()
    weights[box] = grown
    return weights


def _feathered(weights: _Weights, width: int) -> _Weights:
    """Return the weights times a ramp inwards from the edge of the selection; the edge of the picture has no ramp."""
    box = _around(weights > KNOWN_MAX_WEIGHT, 1)
    distance = np.sqrt(_squared_distance(weights[box] <= KNOWN_MAX_WEIGHT, width + 1))
    weights = weights.copy()
    weights[box] *= np.minimum(1, distance / (width + 1)).astype(np.float32)
    return weights


def _around(selected: Bool[np.ndarray, "H W"], margin: int) -> Box:
    """Return the bounding box of the selected pixels with a margin, cut at the picture's edges."""
    spans = []
    for axis in (0, 1):
        lines = np.flatnonzero(selected.any(1 - axis))
        first, last = (int(lines[0]), int(lines[-1])) if len(lines) else (0, 0)
        spans.append(slice(max(0, first - margin), last + margin + 1))
    return spans[0], spans[1]


def _squared_distance(targets: Bool[np.ndarray, "h w"], limit: int) -> np.ndarray:
    """Return the squared distance of each pixel to the nearest target, int64 (h, w); above limit^2 it is not exact."""
    height, width = targets.shape
    far = limit + 1
    columns = np.arange(width)
    left = np.maximum.accumulate(np.where(targets, columns, -far), axis=1)
    right = np.minimum.accumulate(np.where(targets, columns, width + far)[:, ::-1], axis=1)[:, ::-1]
    in_row = np.minimum(np.minimum(columns - left, right - columns), far).astype(np.int64) ** 2
    squared = in_row.copy()
    for dy in range(1, min(limit, height - 1) + 1):
        squared[dy:] = np.minimum(squared[dy:], in_row[:-dy] + dy**2)
        squared[:-dy] = np.minimum(squared[:-dy], in_row[dy:] + dy**2)
    return squared


def _largest_within(weights: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the largest of the weights (h, w) within a disc around each pixel."""
    largest = weights.clone()
    for dy in range(min(radius, len(weights) - 1) + 1):
        reach = int((radius**2 - dy**2) ** 0.5)
        rows = max_pool2d(weights[None, None], (1, 2 * reach + 1), stride=1, padding=(0, reach))[0, 0]
        largest[dy:] = torch.maximum(largest[dy:], rows[: len(rows) - dy])
        largest[: len(rows) - dy] = torch.maximum(largest[: len(rows) - dy], rows[dy:])
    return largest
