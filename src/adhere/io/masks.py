"""Masks, and pasting a result into a picture so that everything outside the mask stays exactly as it was.

A mask is a bool array (H, W) with True = inpaint, as in diffusers: the white part of a mask image, or the transparent
part of a picture. Soft masks are thresholded at one half. Sizes are (H, W); messages say width x height.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError, AdhereWarning
from adhere.io._crops import Box
from adhere.io._frames import SeveralPictures
from adhere.io._samples import LUMA_WEIGHTS, luma, quantize, to_float, to_pil
from adhere.io.images import Picture, as_picture

_ALPHA_THRESHOLD = 128  # 8-bit alpha below this is transparent
_Results = Sequence[tuple[Box, Float[Tensor, "3 _ _"]]]  # the boxes of a picture with what was sampled for them

_TILE_SIDE_PIXELS = 256  # pasting tile by tile needs little memory, and only tiles near the seam are blended


def as_mask(mask: "np.ndarray | Tensor | Image.Image | str | Path", size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return a mask from a path, a PIL image, an array or a tensor.

    Args:
        mask: In a file or PIL image, white is inpainted: a luma above one half of the range, so 128 and above with 8
            bits. Transparent pixels count as black, whatever their hidden color. If nothing is white then, the part
            whose alpha is below one half is inpainted. An array or tensor is (H, W), with any number of axes of
            length 1 before or after, and bool, uint8 in [0, 255] or float in [0, 1]; True, 128 and above, or 0.5 and
            above = inpaint.
        size: (H, W) of the picture to inpaint.

    Returns:
        A copy: bool (H, W), True = inpaint.

    Raises:
        AdhereError: The file cannot be read (see `as_picture`), the mask has another size, type, shape or range of
            values, or it is True for every pixel or for none.
    """
    white, is_soft = _read(mask, size, _white, _threshold)
    checked = _checked(white, _name(mask))
    if is_soft:
        hint = "if a rim of the object stays, enlarge the mask by 1 or 2 pixels"
        warnings.warn(f"the mask has soft edges, which are cut at one half; {hint}", AdhereWarning, stacklevel=5)
    return checked


def _as_weights(
    mask: "np.ndarray | Tensor | Image.Image | str | Path", size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """Return a soft mask: the values that `as_mask` reads, before they are thresholded at one half.

    Args:
        mask: As for `as_mask`.
        size: (H, W) of the picture to inpaint.

    Returns:
        float32 (H, W): 0 = keep, 1 = inpaint.

    Raises:
        AdhereError: As for `as_mask`, but the mask may be full or empty.
    """
    return _read(mask, size, _white_weights, _plane_weights)[0]


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
    results: _Results,
    mask: Bool[np.ndarray, "H W"],
    blend: int = 4,
    *,
    opaque: bool = False,
) -> Image.Image:
    """Return the picture with results pasted inside the mask; every value outside the mask is kept bit for bit.

    The image has the number of channels and the bit depth of the picture. Its `info` has the picture's metadata, and
    its alpha channel is the picture's. The results become gray if the picture is, outside the mask.

    Args:
        picture: The picture that was inpainted.
        results: For each box of the picture, (3, h, w), nominally in [-1, 1]; clamped. Every masked pixel is in one.
        mask: (H, W), True = inpaint.
        blend: Width of the seam in pixels, at least 0. Inside the mask, the low-frequency difference (picture - result)
            at the seam is added and fades out over this distance. 0 disables blending.
        opaque: Whether to make every pixel opaque. This is for masks that come from alpha, whose semi-transparent edge
            would be visible as a ring around the inpainted part.

    Raises:
        ValueError: The sizes differ, or `blend` is negative.
        AdhereError: A result is not finite.
    """
    pixels = picture.pixels.copy()
    for tile, values in _blended_tiles(picture, results, mask, blend):
        inside = mask[tile]
        pixels[tile][inside] = quantize(values, pixels.dtype)[inside]
    alpha = picture.alpha
    if alpha is not None and opaque:
        alpha = np.full_like(alpha, 255)
    return picture.add_metadata(to_pil(pixels, alpha, picture.is_bilevel))


def paste_known_float(
    picture: Picture, results: _Results, mask: Bool[np.ndarray, "H W"], blend: int = 4
) -> Float[Tensor, "C H W"]:
    """Return what `paste_known` returns before it is rounded to integers.

    Args:
        picture: The picture that was inpainted.
        results: As for `paste_known`.
        mask: (H, W), True = inpaint.
        blend: Width of the seam in pixels, as for `paste_known`.

    Returns:
        float32 (C, H, W) in [-1, 1] on the CPU, C = 1 for a gray picture and 3 for RGB: the blended result inside the
        mask, exactly `to_float(picture.pixels)` outside it. Alpha is left out.

    Raises:
        ValueError: The sizes differ, or `blend` is negative.
        AdhereError: A result is not finite.
    """
    pasted = torch.from_numpy(to_float(picture.pixels))  # (C, H, W)
    for tile, values in _blended_tiles(picture, results, mask, blend):
        inside = torch.from_numpy(mask[tile])
        pasted[:, *tile][:, inside] = values[:, inside]
    return pasted


def _name(mask: object) -> str:
    return str(mask) if isinstance(mask, str | Path) else "the mask"


def _read(
    mask: "np.ndarray | Tensor | Image.Image | str | Path",
    size: tuple[int, int],
    of_picture: Callable[[Picture], tuple[np.ndarray, bool]],
    of_plane: Callable[[np.ndarray], tuple[np.ndarray, bool]],
) -> tuple[np.ndarray, bool]:
    """Return the mask (H, W) of any input of the size of the picture, and whether soft edges were thresholded."""
    if isinstance(mask, str | Path | Image.Image):
        plane, is_soft = of_picture(_mask_picture(mask, _name(mask)))
    else:
        plane, is_soft = of_plane(_plane(_to_numpy(mask)))
    if plane.shape != tuple(size):
        (height, width), (h, w) = size, plane.shape
        hint = f"resize the mask to {width} x {height}"
        raise AdhereError(f"{_name(mask)}: the mask is {w} x {h}, the picture is {width} x {height}; {hint}")
    return plane, is_soft


def _to_numpy(mask: object) -> np.ndarray:
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise AdhereError(f"the mask is a {type(mask).__name__}; give a path, a PIL image, a numpy array or a tensor")
    return mask


def _plane(mask: np.ndarray) -> np.ndarray:
    """Return the mask without axes of length 1 before or after: (H, W)."""
    plane = mask
    while plane.ndim > 2 and 1 in (plane.shape[0], plane.shape[-1]):
        plane = plane[0] if plane.shape[0] == 1 else plane[..., 0]
    if plane.ndim != 2:
        raise AdhereError(f"the mask has shape {mask.shape}; give (H, W), one value per pixel")
    return plane


def _mask_picture(mask: str | Path | Image.Image, name: str) -> Picture:
    """Return the picture of a mask; a file with several pictures is refused."""
    try:
        return as_picture(mask)
    except SeveralPictures as error:
        raise SeveralPictures(name, error.count, "a mask is one picture: save it as a file of its own") from error


def _threshold(plane: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return a bool copy of a mask of bool, uint8 or float, and whether it has soft edges."""
    if plane.dtype == bool:
        return plane.copy(), False
    if plane.dtype == np.uint8:
        return plane >= 128, _is_soft(plane, 255)
    _check_float(plane)
    return plane >= 0.5, _is_soft(plane, 1)


def _plane_weights(plane: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the values of a mask of bool, uint8 or float as float32 in [0, 1], without a threshold."""
    if plane.dtype == np.uint8:
        return plane / np.float32(255), False
    if plane.dtype != bool:
        _check_float(plane)
    return plane.astype(np.float32), False


def _check_float(plane: np.ndarray) -> None:
    if not np.issubdtype(plane.dtype, np.floating):
        raise AdhereError(f"the mask is of {plane.dtype}; give bool, uint8 (0 or 255) or float in [0, 1]")
    if plane.size and not (plane.min() >= 0 and plane.max() <= 1):  # also true of NaN
        raise AdhereError(f"the mask's values go from {plane.min()} to {plane.max()}; floats must be in [0, 1]")


def _is_soft(values: np.ndarray, largest: float | int) -> bool:
    """Return whether some values are near one half, so that the soft edge of an object is only partly in the mask."""
    return bool(((values > largest / 4) & (values < 3 * largest / 4)).any())


def _white(picture: Picture) -> tuple[np.ndarray, bool]:
    """Return the mask (H, W) of a mask image, and whether it has soft edges.

    The mask is the white part of the image on black, or its transparent part if nothing is white; see `as_mask`.
    """
    gray, largest = _luma_on_black(picture)
    white = gray > largest / 2
    if picture.alpha is not None and not white.any():
        return picture.alpha < _ALPHA_THRESHOLD, False
    return white, _is_soft(gray, largest)


def _white_weights(picture: Picture) -> tuple[np.ndarray, bool]:
    """Return the values that `_white` thresholds at one half, as float32 (H, W) in [0, 1]."""
    gray, largest = _luma_on_black(picture)
    if picture.alpha is not None and not (gray > largest / 2).any():
        return 1 - picture.alpha / np.float32(255), False
    return (gray / np.float32(largest)).astype(np.float32), False


def _luma_on_black(picture: Picture) -> tuple[np.ndarray, int]:
    """Return the luma (H, W) of a picture on a black background, and the largest value that it can have."""
    pixels, alpha = picture.pixels, picture.alpha
    gray = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ np.array(LUMA_WEIGHTS, np.float32)
    gray = gray if alpha is None else gray * (alpha / np.float32(255))
    return gray, int(np.iinfo(pixels.dtype).max)


def _checked(mask: np.ndarray, name: str) -> np.ndarray:
    """Return the mask; raise AdhereError if it is empty or full."""
    if not mask.any():
        raise AdhereError(f"{name}: nothing to inpaint: no pixel is white; paint white (255, not 1) what should change")
    if mask.all():
        raise AdhereError(f"{name}: nothing to keep: the mask covers every pixel; paint black what should stay")
    return mask


def _blended_tiles(picture: Picture, results: _Results, mask: np.ndarray, blend: int) -> Iterator[tuple[Box, Tensor]]:
    """Yield each tile that has masked pixels, with the blended result (C, h, w) in [-1, 1]."""
    if mask.shape != picture.size or blend < 0:
        raise ValueError(f"picture {picture.size}, mask {mask.shape}, blend {blend}: give equal sizes and blend >= 0")
    known = ~mask if picture.alpha is None else ~mask & picture.visible()
    is_gray = picture.is_gray(known)
    for box, result in results:
        pixels = picture.pixels[box]
        if tuple(result.shape) != (3, *pixels.shape[:2]):
            raise ValueError(f"result {tuple(result.shape)}: its box has {pixels.shape[:2]} pixels")
        for tile in _tiles(mask[box]):
            values = _blended(pixels, result, mask[box], known[box], tile, blend, is_gray)
            rows, columns = (slice(p.start + q.start, p.start + q.stop) for p, q in zip(box, tile, strict=True))
            yield (rows, columns), values


def _tiles(mask: np.ndarray) -> Iterator[Box]:
    """Yield the tiles that have masked pixels."""
    side = _TILE_SIDE_PIXELS
    for top, left in product(range(0, mask.shape[0], side), range(0, mask.shape[1], side)):
        tile = slice(top, min(top + side, mask.shape[0])), slice(left, min(left + side, mask.shape[1]))
        if mask[tile].any():
            yield tile


def _blended(
    pixels: np.ndarray, result: Tensor, mask: np.ndarray, known: np.ndarray, tile: Box, blend: int, is_gray: bool
) -> Tensor:
    """Return the result (C, h, w) in one tile, blended using the 2 * blend pixels around the tile."""
    margin = 2 * blend
    box = tuple(slice(max(0, span.start - margin), span.stop + margin) for span in tile)
    inner = tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(tile, box, strict=True))
    values = result[:, *box].detach().to("cpu", torch.float32)  # (3, h + margins, w + margins)
    if not values.isfinite().all():
        raise AdhereError("the model's result is not finite (NaN or infinity); compute in float32 or bfloat16")
    if is_gray:
        values = luma(values).expand(pixels.shape[2], -1, -1)
    if blend and known[box].any():
        difference = torch.from_numpy(to_float(pixels[box])) - values
        values = values + _seam_correction(difference, torch.from_numpy(mask[box]), torch.from_numpy(known[box]), blend)
    return values[:, *inner].clamp(-1, 1)


def _seam_correction(difference: Tensor, mask: Tensor, known: Tensor, blend: int) -> Tensor:
    """Return the correction (C, h, w) of the result in the mask: the blurred difference at the seam, times a ramp.

    The blur is a normalized convolution over the known pixels, blur(known * difference) / blur(known), with a Gaussian
    whose standard deviation is 3/8 of `blend`. A wider one leaves steps at the seam where an autoencoder blurs edges.
    Invisible pixels outside the mask are not known.
    """
    weight = known.float()[None]  # (1, h, w)
    planes = _blur(torch.cat([difference * weight, weight]), blend)  # (C + 1, h, w)
    return planes[:-1] / planes[-1:].clamp_min(1e-6) * _ramp((~mask).float()[None], blend)


def _ramp(outside: Tensor, width: int) -> Tensor:
    """Return weights: 1 next to `outside`, decreasing linearly to 0 beyond `width` pixels (chessboard distance).

    It is the mean of `outside` dilated by 1, 2, ..., width pixels.
    """
    dilated, ramp = outside, torch.zeros_like(outside)
    for _ in range(width):
        dilated = functional.max_pool2d(dilated, 3, stride=1, padding=1)
        ramp += dilated / width
    return ramp


def _blur(planes: Tensor, blend: int) -> Tensor:
    """Return each plane (h, w) convolved with a Gaussian of 3/8 `blend`, cut off at 2 `blend` and not normalized."""
    radius = 2 * blend
    steps = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
    kernel = torch.exp(-0.5 * (steps / (0.375 * blend)) ** 2).expand(len(planes), 1, 1, -1)
    planes = functional.conv2d(planes, kernel, padding=(0, radius), groups=len(planes))
    return functional.conv2d(planes, kernel.mT, padding=(radius, 0), groups=len(planes))
