"""Masks, and pasting a result into a picture so that everything outside the mask stays exactly as it was.

A mask is a bool array (H, W) with True = inpaint, as in diffusers: the white part of a mask image, or the transparent
part of a picture. Soft masks are thresholded at one half. Sizes are (H, W); messages say width x height.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError
from adhere.io._crops import Box
from adhere.io.images import Picture, as_picture, to_float, to_pil

_ALPHA_THRESHOLD = 128  # 8-bit alpha below this is transparent
_LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as in Pillow's convert("L")
_TILE_SIDE_PIXELS = 256  # pasting tile by tile needs little memory, and only tiles near the seam are blended


def as_mask(mask: "np.ndarray | Tensor | Image.Image | str | Path", size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return a mask from a path, a PIL image, an array or a tensor.

    Args:
        mask: In a file or PIL image, white is inpainted: a luma above one half of the range, so 128 and above with 8
            bits. If all its pixels have the same color and its transparency varies, the part whose alpha is below one
            half is inpainted. An array or tensor is (H, W), with any number of axes of
            length 1 before or after, and bool, uint8 in [0, 255] or float in [0, 1]; True, 128 and above, or 0.5 and
            above = inpaint.
        size: (H, W) of the picture to inpaint.

    Returns:
        A copy: bool (H, W), True = inpaint.

    Raises:
        AdhereError: The file cannot be read (see `as_picture`), the mask has another size, type, shape or range of
            values, or it is True for every pixel or for none.
    """
    if isinstance(mask, str | Path):
        return _checked(_white(as_picture(mask)), size, str(mask))
    if isinstance(mask, Image.Image):
        return _checked(_white(as_picture(mask)), size, "the mask")
    return _checked(_threshold(_plane(_to_numpy(mask))), size, "the mask")


def mask_from_alpha(picture: Picture) -> Bool[np.ndarray, "H W"]:
    """Return the transparent part of a picture as a mask: True where alpha is below one half.

    Semi-transparent pixels with alpha of one half or above are not inpainted and keep their colors. `paste_known` with
    `opaque=True` makes them opaque.

    Raises:
        AdhereError: The picture has no alpha channel, or the mask is True for every pixel or for none.
    """
    if picture.alpha is None:
        raise AdhereError("the picture has no transparency that says what to inpaint; give a mask")
    mask = picture.alpha < _ALPHA_THRESHOLD
    if not mask.any():
        raise AdhereError("nothing to inpaint: no pixel is transparent; erase what should change, or give a mask")
    if mask.all():
        raise AdhereError("nothing to keep: every pixel is transparent; leave something to keep, or give a mask")
    return mask


def paste_known(
    picture: Picture,
    result: Float[Tensor, "3 H W"],
    mask: Bool[np.ndarray, "H W"],
    blend: int = 4,
    *,
    opaque: bool = False,
) -> Image.Image:
    """Return the picture with `result` pasted inside the mask; every value outside the mask is kept bit for bit.

    The image has the number of channels and the bit depth of the picture. Its `info` has the picture's ICC profile and
    EXIF, and its alpha channel is the picture's.

    Args:
        picture: The picture that was inpainted.
        result: (3, H, W), nominally in [-1, 1]; clamped. It is converted to luma if the picture is gray.
        mask: (H, W), True = inpaint.
        blend: Width of the seam in pixels, at least 0. Inside the mask, the low-frequency difference (picture - result)
            at the seam is added and fades out over this distance. 0 disables blending.
        opaque: Whether to make every pixel opaque. For a mask that comes from alpha: its semi-transparent edge would
            be visible as a ring around the inpainted part.

    Raises:
        ValueError: The sizes differ, or `blend` is negative.
        AdhereError: `result` is not finite.
    """
    pixels = picture.pixels.copy()
    for tile, values in _blended_tiles(picture, result, mask, blend):
        inside = mask[tile]
        pixels[tile][inside] = _quantize(values, pixels.dtype)[inside]
    alpha = picture.alpha
    if alpha is not None and opaque:
        alpha = np.full_like(alpha, 255)
    return picture.add_metadata(to_pil(pixels, alpha))


def paste_known_float(
    picture: Picture, result: Float[Tensor, "3 H W"], mask: Bool[np.ndarray, "H W"], blend: int = 4
) -> Float[Tensor, "C H W"]:
    """Return what `paste_known` returns before it is rounded to integers.

    Args:
        picture: The picture that was inpainted.
        result: (3, H, W), nominally in [-1, 1]; clamped.
        mask: (H, W), True = inpaint.
        blend: Width of the seam in pixels, as for `paste_known`.

    Returns:
        float32 (C, H, W) in [-1, 1] on the CPU, C = 1 for a gray picture and 3 for RGB: the blended result inside the
        mask, exactly `to_float(picture.pixels)` outside it. Alpha is left out.

    Raises:
        ValueError: The sizes differ, or `blend` is negative.
        AdhereError: `result` is not finite.
    """
    pasted = torch.from_numpy(to_float(picture.pixels))  # (C, H, W)
    for tile, values in _blended_tiles(picture, result, mask, blend):
        inside = torch.from_numpy(mask[tile])
        pasted[:, *tile][:, inside] = values[:, inside]
    return pasted


def _to_numpy(mask: object) -> np.ndarray:
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise AdhereError(f"the mask is a {type(mask).__name__}; give a path, a PIL image, a numpy array or a tensor")
    return mask


def _plane(mask: np.ndarray) -> np.ndarray:
    """The mask without axes of length 1 before or after: (H, W)."""
    plane = mask
    while plane.ndim > 2 and 1 in (plane.shape[0], plane.shape[-1]):
        plane = plane[0] if plane.shape[0] == 1 else plane[..., 0]
    if plane.ndim != 2:
        raise AdhereError(f"the mask has shape {mask.shape}; give (H, W), one value per pixel")
    return plane


def _threshold(plane: np.ndarray) -> np.ndarray:
    """A bool copy of a mask of bool, uint8 or float."""
    if plane.dtype == bool:
        return plane.copy()
    if plane.dtype == np.uint8:
        return plane >= 128
    if not np.issubdtype(plane.dtype, np.floating):
        raise AdhereError(f"the mask is of {plane.dtype}; give bool, uint8 (0 or 255) or float in [0, 1]")
    if plane.size and not (plane.min() >= 0 and plane.max() <= 1):  # also true of NaN
        raise AdhereError(f"the mask's values go from {plane.min()} to {plane.max()}; floats must be in [0, 1]")
    return plane >= 0.5


def _white(picture: Picture) -> np.ndarray:
    """The white part (H, W) of a mask image, or its transparent part; see `as_mask`."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is not None and alpha.min() < 255 and (pixels == pixels[0, 0]).all():
        return alpha < _ALPHA_THRESHOLD
    luma = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ np.array(_LUMA_WEIGHTS, np.float32)
    return luma > np.iinfo(pixels.dtype).max / 2


def _checked(mask: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask, if it has the picture's size and is neither empty nor full."""
    if mask.shape != tuple(size):
        (height, width), (h, w) = size, mask.shape
        hint = f"resize the mask to {width} x {height}"
        raise AdhereError(f"{name}: the mask is {w} x {h}, the picture is {width} x {height}; {hint}")
    if not mask.any():
        raise AdhereError(f"{name}: nothing to inpaint: no pixel is white; paint white (255, not 1) what should change")
    if mask.all():
        raise AdhereError(f"{name}: nothing to keep: the mask covers every pixel; paint black what should stay")
    return mask


def _blended_tiles(picture: Picture, result: Tensor, mask: np.ndarray, blend: int) -> Iterator[tuple[Box, Tensor]]:
    """Each tile that has masked pixels, with the blended result there: (C, h, w) in [-1, 1]."""
    height, width = size = picture.size
    if tuple(result.shape) != (3, *size) or mask.shape != size or blend < 0:
        given = f"picture {size}, result {tuple(result.shape)}, mask {mask.shape}, blend {blend}"
        raise ValueError(f"{given}: give result (3, H, W) and mask (H, W) of the picture's size, and blend >= 0")
    side = _TILE_SIDE_PIXELS
    for top, left in product(range(0, height, side), range(0, width, side)):
        tile = slice(top, top + side), slice(left, left + side)
        if mask[tile].any():
            yield tile, _blended(picture.pixels, result, mask, tile, blend)


def _blended(pixels: np.ndarray, result: Tensor, mask: np.ndarray, tile: Box, blend: int) -> Tensor:
    """The result (C, h, w) in one tile, blended using the 2 * blend pixels around the tile."""
    margin = 2 * blend
    box = tuple(slice(max(0, span.start - margin), span.stop + margin) for span in tile)
    inner = tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(tile, box, strict=True))
    values = result[:, *box].detach().to("cpu", torch.float32)  # (3, h + margins, w + margins)
    if not values.isfinite().all():
        raise AdhereError("the model's result is not finite (NaN or infinity); compute in float32 or bfloat16")
    if pixels.shape[2] == 1:
        values = (values * torch.tensor(_LUMA_WEIGHTS).view(3, 1, 1)).sum(0, keepdim=True)
    if blend and not mask[box].all():
        difference = torch.from_numpy(to_float(pixels[box])) - values
        values = values + _seam_correction(difference, torch.from_numpy(mask[box]), blend)
    return values[:, *inner].clamp(-1, 1)


def _seam_correction(difference: Tensor, mask: Tensor, blend: int) -> Tensor:
    """What to add to the result inside the mask, (C, h, w): the blurred difference at the seam, times a ramp.

    The blur is a normalized convolution over the pixels outside the mask, blur(outside * difference) / blur(outside),
    with a Gaussian whose standard deviation is `blend` pixels.
    """
    outside = (~mask).float()[None]  # (1, h, w)
    planes = _blur(torch.cat([difference * outside, outside]), blend)  # (C + 1, h, w)
    return planes[:-1] / planes[-1:].clamp_min(1e-6) * _ramp(outside, blend)


def _ramp(outside: Tensor, width: int) -> Tensor:
    """1 next to `outside`, decreasing linearly to 0 beyond `width` pixels (chessboard distance).

    It is the mean of `outside` dilated by 1, 2, ..., width pixels.
    """
    dilated, ramp = outside, torch.zeros_like(outside)
    for _ in range(width):
        dilated = functional.max_pool2d(dilated, 3, stride=1, padding=1)
        ramp += dilated / width
    return ramp


def _blur(planes: Tensor, sigma: int) -> Tensor:
    """Convolve each plane (h, w) with a Gaussian that is cut off at 2 sigma and not normalized."""
    radius = 2 * sigma
    steps = torch.arange(-radius, radius + 1.0)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2).expand(len(planes), 1, 1, -1)
    planes = functional.conv2d(planes, kernel, padding=(0, radius), groups=len(planes))
    return functional.conv2d(planes, kernel.mT, padding=(radius, 0), groups=len(planes))


def _quantize(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """(C, h, w) in [-1, 1] to integer samples (h, w, C)."""
    samples = ((values + 1) * (np.iinfo(dtype).max / 2)).round()
    return samples.permute(1, 2, 0).numpy().astype(dtype)
