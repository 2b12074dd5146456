"""Masks: what is repainted, read and checked; and putting back exactly what is not.

A mask is bool (H, W), True = repaint: what is white, as in diffusers, or transparent. Soft masks are cut at half. Sizes
are (H, W), but in messages width x height. Bad input raises `AdhereError`.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError
from adhere.images import Picture, levels, picture_from, read_picture, to_pil, with_metadata

TILE = 256  # pixels painted at a time: little memory, and only tiles near the seam cost time
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


def read_mask(path: str | Path, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Read a mask file for a picture of `size` (H, W); True = repaint.

    White is repainted: luma above half (8 bits: 128 and more); soft edges are cut there. A file of one colour whose
    transparency varies is read by its alpha instead: below half, transparent, is repainted.

    Raises `AdhereError`: as `read_picture`, another size, nothing to repaint, or everything.
    """
    return _check_mask(_white(read_picture(path)), size, str(path))


def check_mask(
    mask: "np.ndarray | Tensor | Image.Image | str | Path", size: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """As `read_mask`, for a mask given from Python.

    An array or tensor is (H, W), with any axes of length 1 before or after; bool, uint8 in 0..255, or float in [0, 1].
    """
    if isinstance(mask, str | Path):
        return read_mask(mask, size)
    if isinstance(mask, Image.Image):
        return _check_mask(_white(picture_from(mask)), size, "the mask")
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise AdhereError(f"the mask is a {type(mask).__name__}; give a path, a PIL image, a numpy array or a tensor")
    plane = mask
    while plane.ndim > 2 and 1 in (plane.shape[0], plane.shape[-1]):
        plane = plane[0] if plane.shape[0] == 1 else plane[..., 0]
    if plane.ndim != 2:
        raise AdhereError(f"the mask has shape {mask.shape}; give (H, W), one value per pixel")
    if plane.dtype == bool:
        white = plane.copy()
    elif plane.dtype == np.uint8:
        white = plane >= 128
    elif np.issubdtype(plane.dtype, np.floating):
        if plane.size and not (plane.min() >= 0 and plane.max() <= 1):  # also true of NaN
            raise AdhereError(f"the mask's values go from {plane.min()} to {plane.max()}; floats must be in [0, 1]")
        white = plane >= 0.5
    else:
        raise AdhereError(f"the mask is of {plane.dtype}; give bool, uint8 (0 or 255) or float in [0, 1]")
    return _check_mask(white, size, "the mask")


def mask_from_alpha(picture: Picture) -> Bool[np.ndarray, "H W"]:
    """Repaint the transparent part: alpha below half, as soft masks are cut there.

    What is known under the feathered rest keeps its colour; `keep_exactly(..., opaque=True)` makes that opaque too.

    Raises `AdhereError`: no alpha, nothing to repaint, or everything.
    """
    if picture.alpha is None:
        raise AdhereError("the picture has no transparency that says what to repaint; give --mask")
    repaint = picture.alpha < 128
    if not repaint.any():
        raise AdhereError("nothing to repaint: no pixel is transparent; erase what should change, or give --mask")
    if repaint.all():
        raise AdhereError("nothing to keep: every pixel is transparent; leave something to keep, or give --mask")
    return repaint


def keep_exactly(
    picture: Picture,
    result: Float[Tensor, "3 H W"],
    repaint: Bool[np.ndarray, "H W"],
    blend: int = 4,
    *,
    opaque: bool = False,
) -> Image.Image:
    """The picture with `result`, in [-1, 1], painted in where `repaint` is True; every other sample is the input's own.

    The output has the picture's kind: gray by luma, 16 bits stay 16 bits; the ICC profile and EXIF are in its `info`.
    Alpha is kept; with `opaque`, for a mask that came from alpha, every pixel becomes opaque: alpha has said its piece,
    and its feathered edge would show as a ring around the repair. Within `blend` pixels of the border, inside the
    repainted region only, the low-frequency difference (known - result) at the seam is added and faded out; 0 switches
    that off.

    Raises ValueError when the arguments do not fit together, `AdhereError` when `result` is not finite.
    """
    size = picture.size
    if tuple(result.shape) != (3, *size) or repaint.shape != size or blend < 0:
        given = f"picture {size}, result {tuple(result.shape)}, mask {repaint.shape}, blend {blend}"
        raise ValueError(f"{given}: give result (3, H, W) and mask (H, W) of the picture's size, and blend >= 0")
    pixels = picture.pixels.copy()
    for top, left in product(range(0, size[0], TILE), range(0, size[1], TILE)):
        tile = (slice(top, top + TILE), slice(left, left + TILE))
        hole = repaint[tile]
        if hole.any():
            pixels[tile][hole] = _paint(picture.pixels, result, repaint, tile, blend)[hole]
    alpha = picture.alpha
    if alpha is not None and opaque:
        alpha = np.full_like(alpha, 255)
    return with_metadata(to_pil(pixels, alpha), picture)


def _white(picture: Picture) -> np.ndarray:
    """What a mask image asks to repaint, (H, W); see `read_mask`."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is not None and alpha.min() < 255 and (pixels == pixels[0, 0]).all():
        return alpha < 128
    luma = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ np.array(LUMA, np.float32)
    return luma > np.iinfo(pixels.dtype).max / 2


def _check_mask(repaint: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    if repaint.shape != tuple(size):
        (height, width), (h, w) = size, repaint.shape
        mend = f"resize the mask to {width} x {height}"
        raise AdhereError(f"{name}: the mask is {w} x {h}, the picture is {width} x {height}; {mend}")
    if not repaint.any():
        raise AdhereError(f"{name}: nothing to repaint: no pixel is white; paint white (255, not 1) what should change")
    if repaint.all():
        raise AdhereError(f"{name}: nothing to keep: the mask repaints every pixel; paint black what should stay")
    return repaint


def _paint(
    pixels: np.ndarray, result: Tensor, repaint: np.ndarray, tile: tuple[slice, slice], blend: int
) -> np.ndarray:
    """One tile of the result in the picture's kind, (h, w, C), blended from 2 * blend pixels around it."""
    start = [max(0, side.start - 2 * blend) for side in tile]
    box = tuple(slice(s, side.stop + 2 * blend) for s, side in zip(start, tile, strict=True))
    paint = result[:, *box].detach().to("cpu", torch.float32)  # (3, h, w)
    if not paint.isfinite().all():
        raise AdhereError("the model's result is not finite (NaN or infinity); compute in float32 or bfloat16")
    if pixels.shape[2] == 1:
        paint = (paint * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)  # (1, h, w)
    if blend and not repaint[box].all():
        paint = paint + _seam(torch.from_numpy(levels(pixels[box])) - paint, torch.from_numpy(repaint[box]), blend)
    inner = tuple(slice(side.start - s, side.stop - s) for s, side in zip(start, tile, strict=True))
    paint = ((paint[:, *inner].clamp(-1, 1) + 1) * (np.iinfo(pixels.dtype).max / 2)).round()
    return paint.permute(1, 2, 0).numpy().astype(pixels.dtype)


def _seam(difference: Tensor, hole: Tensor, blend: int) -> Tensor:
    """What to add in the hole, (C, h, w): the blurred difference of the known pixels, times a ramp.

    Normalised convolution: blur(known * difference) / blur(known), a Gaussian of sigma = blend. The ramp is 1 next to
    the known pixels and 0 more than `blend` pixels away (chessboard distance): the mean of `known` dilated 1 ... blend
    times.
    """
    known = (~hole).float()[None]  # (1, h, w)
    reach, ramp = known, torch.zeros_like(known)
    for _ in range(blend):
        reach = functional.max_pool2d(reach, 3, stride=1, padding=1)
        ramp += reach / blend
    steps = torch.arange(-2 * blend, 2 * blend + 1.0)
    kernel = torch.exp(-0.5 * (steps / blend) ** 2).expand(len(difference) + 1, 1, 1, -1)
    planes = torch.cat([difference * known, known])  # (C + 1, h, w)
    planes = functional.conv2d(planes, kernel, padding=(0, 2 * blend), groups=len(planes))
    planes = functional.conv2d(planes, kernel.mT, padding=(2 * blend, 0), groups=len(planes))
    return planes[:-1] / planes[-1:].clamp_min(1e-6) * ramp
