"""Pictures and masks: read, check, put known pixels back exactly, save.

A `Picture` holds the file's own samples: gray (C = 1) or RGB (C = 3), uint8, or uint16 for 16-bit gray; alpha apart.
What Pillow cannot hold is reduced on reading: 16-bit RGB and 16-bit gray + alpha become 8-bit, CMYK and Lab become RGB
(without their ICC profile), the one transparent level of a 16-bit gray PNG is ignored. Palettes become RGB, 1-bit
becomes 8-bit gray, an animation gives its first frame. EXIF orientation is applied. Damaged EXIF is left out, and so is
the EXIF thumbnail, which would still show what is painted over.

Network side: x = v / (top / 2) - 1 in [-1, 1], top = 255 or 65535. Masks: bool (H, W), True = repaint (white, as in
diffusers). Sizes are (H, W), but in messages width x height. Bad input raises `AdhereError`.
"""

import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError

MAX_PIXELS = 50_000_000  # larger images are refused, before decoding
TILE = 256  # pixels painted at a time: little memory, and only tiles near the seam cost time
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")
FORMATS = {  # suffix: Pillow's format and how to write it; WebP lossless, so that known pixels stay exact
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}
# EXIF tags that describe the photograph, not the old file's layout: description, make, model, orientation, x and y
# resolution and unit, software, date, artist, host, copyright, and the camera's and the GPS directories
KEPT_EXIF = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853}


@dataclass(frozen=True, eq=False)
class Picture:
    """What was read: samples as stored (upright, see the module's docstring), and what to carry to the result."""

    pixels: Shaped[np.ndarray, "H W C"]  # uint8 or uint16; C = 1 gray, 3 RGB
    alpha: Shaped[np.ndarray, "H W"] | None = None  # uint8, 255 = opaque
    icc_profile: bytes | None = None
    exif: bytes | None = None  # orientation 1
    format: str | None = None  # Pillow's name of the file's format, such as "PNG"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def tensor(self) -> Float[Tensor, "1 3 H W"]:
        """The float32 nearest to v / (top / 2) - 1, in [-1, 1]; gray is repeated three times, alpha is left out."""
        x = torch.from_numpy(_levels(self.pixels))  # (C, H, W)
        return x.expand(3, *self.size).clone()[None]


def read_picture(path: str | Path) -> Picture:
    """Read a picture completely, so that a file cut short is noticed here.

    Raises `AdhereError`: no such file, a folder, not readable, not an image, damaged, or above MAX_PIXELS.
    """
    if os.path.isdir(path):
        raise AdhereError(f"{path}: is a folder; give an image file")
    if not os.path.isfile(path):
        raise AdhereError(f"{path}: no such file; check the name")
    with _explained(str(path)), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit is lower than Pillow's, and damaged EXIF is left out
        return _from_pil(Image.open(file), str(path))


def picture_from(image: "Picture | Image.Image | np.ndarray | str | Path") -> Picture:
    """A `Picture` from a path, a PIL image, or an array: uint8 (H, W) or (H, W, 1 | 3 | 4), uint16 (H, W[, 1]).

    Raises `AdhereError`: as `read_picture`, or an array of another shape or type.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Image.Image):
        with _explained("the image"):  # it may not be decoded yet
            return _from_pil(image, "the image")
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise AdhereError(f"the image is a {kind}; give a path, a PIL image, or a uint8 or uint16 numpy array")
    planes = image[..., None] if image.ndim == 2 else image
    channels = {"uint8": (1, 3, 4), "uint16": (1,)}.get(image.dtype.name, ())
    if planes.ndim != 3 or planes.shape[2] not in channels:
        raise AdhereError(
            f"the image is an array of {image.dtype} {image.shape}; give uint8 (0 to 255) of shape (H, W), (H, W, 3) "
            "or (H, W, 4), or uint16 of shape (H, W): 16-bit colour must be reduced to uint8"
        )
    _check_size(planes.shape[0], planes.shape[1], "the image")
    if planes.shape[2] == 4:
        return Picture(planes[..., :3].copy(), planes[..., 3].copy())
    return Picture(planes.copy())


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
    """Repaint the transparent part, alpha below half. Raises `AdhereError`: no alpha, nothing or all to repaint."""
    if picture.alpha is None:
        raise AdhereError("the picture has no transparency that says what to repaint; give --mask")
    repaint = picture.alpha < 128
    if not repaint.any():
        raise AdhereError("nothing to repaint: no pixel is transparent; erase what should change, or give --mask")
    if repaint.all():
        raise AdhereError("nothing to keep: every pixel is transparent; leave something to keep, or give --mask")
    return repaint


def pad_to_multiple(x: Float[Tensor, "B C H W"], multiple: int) -> tuple[Float[Tensor, "B C H2 W2"], tuple]:
    """Pad at the bottom and the right to a multiple, by reflection (an axis too short for that repeats its edge).

    Returns the padded tensor and `crop`, with `padded[crop]` equal to `x`.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be 1 or more")
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    padded = functional.pad(x, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
    padded = functional.pad(padded, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return padded, (..., slice(height), slice(width))


def keep_exactly(
    picture: Picture,
    result: Float[Tensor, "3 H W"],
    repaint: Bool[np.ndarray, "H W"],
    blend: int = 4,
    *,
    opaque: bool = False,
) -> Image.Image:
    """The picture with `result`, in [-1, 1], painted in where `repaint` is True; every other sample is the input's own.

    The output has the picture's kind: gray by luma, 16 bits stay 16 bits, alpha is kept; with `opaque` (for a mask that
    came from alpha) repainted pixels become opaque. Within `blend` pixels of the border, inside the repainted region
    only, the low-frequency difference (known - result) at the seam is added and faded out; 0 switches that off.

    Raises ValueError when the arguments do not fit together, `AdhereError` when `result` is not finite.
    """
    size = picture.size
    if tuple(result.shape) != (3, *size) or repaint.shape != size or blend < 0:
        given = f"picture {size}, result {tuple(result.shape)}, mask {repaint.shape}, blend {blend}"
        raise ValueError(f"{given}: give result (3, H, W) and mask (H, W) of the picture's size, and blend >= 0")
    pixels = picture.pixels.copy()
    alpha = None if picture.alpha is None else picture.alpha.copy()
    for top, left in product(range(0, size[0], TILE), range(0, size[1], TILE)):
        tile = (slice(top, top + TILE), slice(left, left + TILE))
        hole = repaint[tile]
        if hole.any():
            pixels[tile][hole] = _paint(picture.pixels, result, repaint, tile, blend)[hole]
    if alpha is not None and opaque:
        alpha[repaint] = 255
    image = _to_pil(pixels, alpha)
    if picture.icc_profile:
        image.info["icc_profile"] = picture.icc_profile  # so that PIL's own save keeps the colours
    return image


def check_output(path: str | Path, force: bool = False) -> None:
    """What `save_picture` would refuse, before any work is done; writes nothing.

    Raises `AdhereError`: unknown suffix, a folder, the file exists (unless `force`), folder missing or read-only.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise AdhereError(f"{path}: is a folder; give a file name in it, such as {path / 'result.png'}")
    if path.suffix.lower() not in FORMATS:
        given = f"the suffix {path.suffix}" if path.suffix else "a name without suffix"
        raise AdhereError(f"{path}: cannot write {given}; use one of {', '.join(FORMATS)}")
    if not os.path.isdir(path.parent):
        raise AdhereError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    if os.path.exists(path) and not force:
        raise AdhereError(f"{path}: exists; choose another name or add --force")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise AdhereError(f"{path}: the folder {path.parent} cannot be written to; choose another")


def save_picture(image: Image.Image, path: str | Path, *, force: bool = False, picture: Picture | None = None) -> None:
    """Save in the format the suffix says; the file appears complete, or not at all.

    The ICC profile and EXIF of `picture` (without it: the image's own profile) are carried over where the format can
    hold them. JPEG is written at quality 95
    without chroma subsampling, WebP lossless. In JPEG and BMP alpha is flattened onto white; they and WebP get 8 bits.

    Raises `AdhereError`: as `check_output`, or the file could not be written.
    """
    check_output(path, force)
    path = Path(path)
    kind, options = FORMATS[path.suffix.lower()]
    pixels, alpha = _fit(*_planes(image, "the image"), kind)
    picture = picture or Picture(pixels, icc_profile=image.info.get("icc_profile"))
    options = options | _metadata(picture, kind, gray=pixels.shape[2] == 1)
    temporary = path.parent / f".adhere-{secrets.token_hex(8)}.tmp"  # same folder: os.replace is atomic there
    try:
        with open(temporary, "xb") as file:
            _to_pil(pixels, alpha).save(file, format=kind, **options)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AdhereError(f"{path}: not written ({reason}); check the space left and the image's size") from error
    finally:
        temporary.unlink(missing_ok=True)  # also after KeyboardInterrupt


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever reading raises into an `AdhereError`."""
    try:
        yield
    except (AdhereError, MemoryError):
        raise
    except PermissionError as error:
        raise AdhereError(f"{name}: no permission to read it; change its permissions") from error
    except Image.DecompressionBombError as error:
        raise AdhereError(f"{name}: too large; at most {MAX_PIXELS:,} pixels are allowed: make it smaller") from error
    except UnidentifiedImageError as error:
        what = "not an image that can be read, or its beginning is damaged"
        raise AdhereError(f"{name}: {what}; give a PNG, JPEG, WebP, TIFF, BMP or GIF file") from error
    except Exception as error:  # on damaged files Pillow raises nearly anything: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AdhereError(f"{name}: the image is damaged or cut short ({reason}); copy or export it again") from error


def _from_pil(image: Image.Image, name: str) -> Picture:
    _check_size(image.height, image.width, name)
    if image.format in ("EPS", "WMF"):  # decoding these would start another program
        raise AdhereError(f"{name}: {image.format} is a drawing, not a photograph; export it as PNG")
    kind = image.format
    image.load()
    exif = None
    with suppress(Exception):  # damaged EXIF must not cost the picture
        old = image.getexif()
        image = ImageOps.exif_transpose(image)
        exif = _upright_exif(old) if len(old) else None
    pixels, alpha = _planes(image, name)
    icc = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")
    return Picture(pixels, alpha, icc or None, exif, kind)


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise AdhereError(f"{name}: is empty ({width} x {height} pixels); give at least one pixel")
    if height * width > MAX_PIXELS:
        given = f"is {width} x {height}, {height * width:,} pixels"
        raise AdhereError(f"{name}: {given}; at most {MAX_PIXELS:,} are allowed: make it smaller")


def _upright_exif(old: Image.Exif) -> bytes:
    """The tags worth keeping, orientation 1; building it anew leaves the thumbnail out and `old` as it is."""
    new = Image.Exif()
    for tag in KEPT_EXIF & set(old):
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):  # directories; Interop would point into the old file
            new[tag] = {name: value for name, value in old.get_ifd(tag).items() if name != ExifTags.IFD.Interop}
        else:
            new[tag] = old[tag]
    new[ExifTags.Base.Orientation] = 1
    return new.tobytes()


def _planes(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples (H, W, C) and alpha (H, W) of any PIL image."""
    if image.mode == "F":
        raise AdhereError(f"{name}: holds floating-point values; export it with 8 or 16 bits per sample")
    if image.mode.startswith("I"):  # I;16, or 32-bit integers
        values = np.asarray(image)  # (H, W)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise AdhereError(f"{name}: its values go from {low} to {high}; export it with 8 or 16 bits per sample")
        return values.astype(np.uint16)[..., None], None
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        samples = np.array(image.convert(kind))  # (H, W) or (H, W, 3)
        return samples.reshape(image.height, image.width, -1), None
    samples = np.array(image.convert(kind + "A"))  # (H, W, 2 or 4)
    return samples[..., :-1].copy(), samples[..., -1].copy()


def _to_pil(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    planes = pixels if alpha is None else np.dstack([pixels, alpha])
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def _levels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) samples to (C, H, W) float32 in [-1, 1], through a table computed in float64."""
    top = int(np.iinfo(pixels.dtype).max)
    table = (np.arange(top + 1) / (top / 2) - 1).astype(np.float32)
    return table[np.ascontiguousarray(pixels.transpose(2, 0, 1))]


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
        paint = paint + _seam(torch.from_numpy(_levels(pixels[box])) - paint, torch.from_numpy(repaint[box]), blend)
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


def _fit(pixels: np.ndarray, alpha: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and alpha reduced to what the format can hold."""
    if kind in ("JPEG", "WEBP", "BMP") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind in ("JPEG", "BMP") and alpha is not None:
        weight = alpha[..., None].astype(np.uint32)
        pixels = ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)  # onto white
        alpha = None
    return pixels, alpha


def _metadata(picture: Picture, kind: str, gray: bool) -> dict[str, bytes]:
    """Pillow's options for what the format can hold of the picture's ICC profile and EXIF."""
    icc, exif = picture.icc_profile or b"", picture.exif or b""
    if icc[16:20] in (b"CMYK", b"Lab ") or (icc[16:20] == b"GRAY" and (kind == "WEBP" or not gray)):
        icc = b""  # made for other channels than are written; WebP is always RGB
    if kind == "JPEG" and len(exif) > 65533:
        exif = b""  # does not fit into a JPEG segment
    return {name: value for name, value in (("icc_profile", icc), ("exif", exif)) if value and kind != "BMP"}
