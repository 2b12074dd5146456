"""Pictures: reading and checking files, conversion to tensors, saving.

A `Picture` holds the samples as the file stores them: gray (C = 1) or RGB (C = 3), uint8, or uint16 for 16-bit gray;
alpha is separate. The conversions on reading are:

    16-bit RGB, 16-bit gray + alpha   8 bits per sample
    CMYK, Lab                         RGB, without the ICC profile
    palette                           RGB
    1-bit                             8-bit gray
    animation                         its first frame
    transparent value of 16-bit gray  ignored
    EXIF orientation                  applied
    damaged EXIF, EXIF thumbnail      dropped; the thumbnail would still show what is inpainted

Tensors are x = v / (v_max / 2) - 1 in [-1, 1], with v_max = 255 or 65535. Sizes are (H, W); messages say width x
height. A path that begins with `~` is expanded to the user's home folder.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from adhere.errors import AdhereError
from adhere.io._atomic import check_writable, staged_writes

_MAX_PIXELS = 50_000_000  # larger pictures are refused before they are decoded
_MAX_SIDE_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}
_MAX_JPEG_EXIF_BYTES = 65_533  # one JPEG segment
# suffix: Pillow's format and the options for saving; WebP is lossless so that known pixels stay exact
_FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}
# EXIF tags that describe the photograph and not the layout of the old file: description, make, model, orientation, x
# and y resolution and unit, software, date, artist, host, copyright, and the directories of the camera and of the GPS
_KEPT_EXIF_TAGS = {270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853}


@dataclass(frozen=True, eq=False)
class Picture:
    """The samples of a picture, upright, and the metadata to copy to the result; see the module's docstring.

    Attributes:
        pixels: (H, W, C), uint8 or uint16; C = 1 for gray, 3 for RGB.
        alpha: (H, W), uint8, 255 = opaque, or None.
        icc_profile: The color profile, or None.
        exif: The EXIF block with orientation 1, or None.
        format: Pillow's name of the file's format, such as "PNG", or None.
    """

    pixels: Shaped[np.ndarray, "H W C"]
    alpha: Shaped[np.ndarray, "H W"] | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def add_metadata(self, image: Image.Image) -> Image.Image:
        """Return `image` with the picture's ICC profile and EXIF in its `info`, where `save_picture` finds them.

        Pillow's own save takes the profile from there for PNG and TIFF only, and never EXIF.
        """
        metadata = {"icc_profile": self.icc_profile, "exif": self.exif}
        image.info.update({name: value for name, value in metadata.items() if value})
        return image

    def tensor(self) -> Float[Tensor, "1 3 H W"]:
        """Return the samples as float32 in [-1, 1]; gray is repeated three times and alpha is left out."""
        x = torch.from_numpy(to_float(self.pixels))  # (C, H, W)
        return x.expand(3, *self.size).clone()[None]


def _read_picture(path: str | Path) -> Picture:
    """Read an image file completely, so that a truncated file is detected here; see `as_picture`."""
    hint = "download it first, for example with diffusers.utils.load_image(url), which returns a PIL image"
    path = _local_path(path, hint)
    if os.path.isdir(path):
        raise AdhereError(f"{path}: is a folder; give an image file")
    if not os.path.isfile(path):
        raise AdhereError(f"{path}: no such file; check the name")
    with _as_adhere_error(path), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _MAX_PIXELS is lower than Pillow's limit, and damaged EXIF is dropped
        return _from_pil(Image.open(file), path)


def as_picture(image: "Picture | Image.Image | np.ndarray | Tensor | str | Path") -> Picture:
    """Return a `Picture` from a path, a PIL image, an array, a tensor or a `Picture`.

    Args:
        image: An array is uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint16 (H, W) or (H, W, 1), or float in
            [0, 1] of the shapes of uint8; it is copied. A tensor is float in [0, 1], (C, H, W) or (1, C, H, W). Floats
            are rounded to 8 bits.

    Raises:
        AdhereError: The path is a URL or a folder; the file does not exist, is not readable, is not an image or is
            damaged; the picture has more than _MAX_PIXELS pixels; or the argument has another type or shape.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return _read_picture(image)
    if isinstance(image, Image.Image):
        with _as_adhere_error("the image"):  # it may not be decoded yet
            return _from_pil(image, "the image")
    return _from_array(image)


def pad_to_multiple(x: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C H2 W2"]:
    """Pad at the bottom and at the right, by reflection, so that both sides are multiples of `multiple`.

    An axis that is too short for reflection is padded by repeating its last value.

    Raises:
        ValueError: `multiple` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be 1 or more")
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    padded = functional.pad(x, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
    return functional.pad(padded, (0, right, 0, 0), mode="reflect" if right < width else "replicate")


def check_output(path: str | Path, force: bool = False, size: tuple[int, int] | None = None) -> None:
    """Check a path before the work that `save_picture` would refuse after it.

    Args:
        path: The file to write later.
        force: Whether an existing file may be replaced.
        size: (H, W) of the picture in pixels, if it is known.

    Raises:
        AdhereError: As for `check_writable`; the path is a URL; the suffix is unknown; or the picture would have more
            than _MAX_PIXELS pixels, or a side longer than the format allows.
    """
    path = Path(_local_path(path, "give a file name"))
    check_writable(path, force)
    if path.suffix.lower() not in _FORMATS:
        given = f"the suffix {path.suffix}" if path.suffix else "a name without suffix"
        raise AdhereError(f"{path}: cannot write {given}; use one of {', '.join(_FORMATS)}")
    if size is not None:
        _check_output_size(path, size)


def _check_output_size(path: Path, size: tuple[int, int]) -> None:
    format, _ = _FORMATS[path.suffix.lower()]
    given = f"{path}: the result would have {size[1]}x{size[0]} pixels"
    if size[0] * size[1] > _MAX_PIXELS:
        raise AdhereError(f"{given}; at most {_MAX_PIXELS:,} are allowed: request a smaller one")
    if max(size) > (max_side := _MAX_SIDE_PIXELS.get(format, max(size))):
        raise AdhereError(f"{given}; {format} takes at most {max_side:,} on a side: write a .png")


def save_picture(image: Image.Image, path: str | Path, *, force: bool = False) -> None:
    """Save an image as `encode` does, in the format of the suffix; the file appears complete or not at all.

    Args:
        image: Any PIL image; the ICC profile and EXIF in its `info` are written too.
        path: The file; one of the suffixes .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp.
        force: Whether an existing file may be replaced.

    Raises:
        AdhereError: As for `check_output`, or the file could not be written.
    """
    check_output(path, force)
    path = Path(path)
    with staged_writes({path: partial(encode, image, path.suffix)}) as commit:
        commit()


def encode(image: Image.Image, suffix: str, file: IO[bytes]) -> None:
    """Write an image to a binary file object, with as much of its ICC profile and EXIF as the format can hold.

    JPEG is written with quality 95 and without chroma subsampling, WebP lossless. JPEG, WebP and BMP get 8 bits per
    sample. For JPEG and BMP, alpha is flattened onto white.

    Args:
        image: Any PIL image.
        suffix: The suffix of a file name, such as ".png"; it selects the format.
        file: The file object.

    Raises:
        OSError, ValueError: Pillow could not write the image.
    """
    format, options = _FORMATS[suffix.lower()]
    pixels, alpha = _convert_for(format, *_samples(image, "the image"))
    metadata = _metadata(image, format, gray=pixels.shape[2] == 1)
    to_pil(pixels, alpha).save(file, format=format, **options, **metadata)


def to_pil(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Return samples (H, W, 1) or (H, W, 3), and alpha (H, W) if there is any, as a PIL image."""
    planes = pixels if alpha is None else np.dstack([pixels, alpha])
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Return integer samples (H, W, C) as float32 (C, H, W) in [-1, 1].

    Each value is the float32 nearest to v / (v_max / 2) - 1: the lookup table is computed in float64.
    """
    v_max = int(np.iinfo(pixels.dtype).max)
    table = (np.arange(v_max + 1) / (v_max / 2) - 1).astype(np.float32)
    return table[np.ascontiguousarray(pixels.transpose(2, 0, 1))]


def _local_path(path: str | Path, hint: str) -> str:
    """The path with `~` expanded; AdhereError with a hint for a URL."""
    if match := re.match(r"(https?):/+(.*)", str(path), re.IGNORECASE | re.DOTALL):  # Path("https://a") is "https:/a"
        raise AdhereError(f"{match[1]}://{match[2]}: is a URL, not a file; {hint}")
    return os.path.expanduser(path)


@contextmanager
def _as_adhere_error(name: str) -> Iterator[None]:
    """Convert any error of reading the image `name` to AdhereError."""
    try:
        yield
    except (AdhereError, MemoryError):
        raise
    except PermissionError as error:
        raise AdhereError(f"{name}: no permission to read it; change its permissions") from error
    except Image.DecompressionBombError as error:
        raise AdhereError(f"{name}: too large; at most {_MAX_PIXELS:,} pixels are allowed: make it smaller") from error
    except UnidentifiedImageError as error:
        problem = "not an image that can be read, or its beginning is damaged"
        raise AdhereError(f"{name}: {problem}; give a PNG, JPEG, WebP, TIFF, BMP or GIF file") from error
    except Exception as error:  # for damaged files Pillow raises nearly anything: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AdhereError(f"{name}: damaged or cut short ({reason}); copy or export it again") from error


def _from_pil(image: Image.Image, name: str) -> Picture:
    _check_size(image.height, image.width, name)
    if image.format in ("EPS", "WMF"):  # decoding these would start another program
        raise AdhereError(f"{name}: {image.format} is a drawing, not a photograph; export it as PNG")
    format = image.format
    image.load()
    exif = None
    with suppress(Exception):  # a picture with damaged EXIF can still be used
        old = image.getexif()
        image = ImageOps.exif_transpose(image)
        exif = _upright_exif(old) if len(old) else None
    pixels, alpha = _samples(image, name)
    icc_profile = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")
    return Picture(pixels, alpha, icc_profile or None, exif, format)


def _from_array(image: object) -> Picture:
    if isinstance(image, Tensor):
        image = _channels_last(image)
    if not isinstance(image, np.ndarray):
        given = type(image).__name__
        raise AdhereError(f"the image is a {given}; give a path, a PIL image, a numpy array or a tensor")
    if np.issubdtype(image.dtype, np.floating):
        image = _to_uint8(image)
    planes = image[..., None] if image.ndim == 2 else image  # (H, W, C)
    channels = {"uint8": (1, 3, 4), "uint16": (1,)}.get(image.dtype.name, ())
    if planes.ndim != 3 or planes.shape[2] not in channels:
        raise AdhereError(
            f"the image is an array of {image.dtype} {image.shape}; give uint8 (0 to 255) or float (0 to 1) of shape "
            "(H, W), (H, W, 3) or (H, W, 4), or uint16 of shape (H, W): 16-bit color must be reduced to uint8"
        )
    _check_size(planes.shape[0], planes.shape[1], "the image")
    if planes.shape[2] == 4:
        return Picture(planes[..., :3].copy(), planes[..., 3].copy())
    return Picture(planes.copy())


def _channels_last(image: Tensor) -> np.ndarray:
    """Return a tensor (C, H, W) or (1, C, H, W) as an array (H, W, C)."""
    planes = image[0] if image.ndim == 4 and len(image) == 1 else image
    if planes.ndim != 3 or not planes.is_floating_point():
        raise AdhereError(
            f"the image is a tensor of {image.dtype} {tuple(image.shape)}; give float in [0, 1] of shape (C, H, W)"
        )
    return planes.detach().permute(1, 2, 0).to("cpu", torch.float32).numpy()


def _to_uint8(image: np.ndarray) -> np.ndarray:
    if image.size and not (image.min() >= 0 and image.max() <= 1):  # also for NaN
        raise AdhereError(f"the image has values from {image.min():g} to {image.max():g}; give float values in [0, 1]")
    return (image * 255).round().astype(np.uint8)


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise AdhereError(f"{name}: is empty ({width} x {height} pixels); give at least one pixel")
    if height * width > _MAX_PIXELS:
        given = f"is {width} x {height}, {height * width:,} pixels"
        raise AdhereError(f"{name}: {given}; at most {_MAX_PIXELS:,} are allowed: make it smaller")


def _upright_exif(old: Image.Exif) -> bytes:
    """A new EXIF block with the kept tags and orientation 1. The thumbnail is left out and `old` is not changed."""
    new = Image.Exif()
    for tag in _KEPT_EXIF_TAGS & set(old):
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):  # directories; Interop would point into the old file
            new[tag] = {name: value for name, value in old.get_ifd(tag).items() if name != ExifTags.IFD.Interop}
        else:
            new[tag] = old[tag]
    new[ExifTags.Base.Orientation] = 1
    return new.tobytes()


def _samples(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples (H, W, C) and alpha (H, W) of a PIL image of any mode."""
    if image.mode == "F":
        raise AdhereError(f"{name}: holds floating-point values; export it with 8 or 16 bits per sample")
    if image.mode.startswith("I"):
        return _integer_samples(image, name), None
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        samples = np.array(image.convert(mode))  # (H, W) or (H, W, 3)
        return samples.reshape(image.height, image.width, -1), None
    samples = np.array(image.convert(mode + "A"))  # (H, W, 2 or 4)
    return samples[..., :-1].copy(), samples[..., -1].copy()


def _integer_samples(image: Image.Image, name: str) -> np.ndarray:
    """The samples (H, W, 1) of a PIL image of mode I;16, or of 32-bit integers that fit into 16 bits."""
    values = np.asarray(image)  # (H, W)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise AdhereError(f"{name}: its values go from {low} to {high}; export it with 8 or 16 bits per sample")
    return values.astype(np.uint16)[..., None]


def _convert_for(format: str, pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and alpha reduced to what the format can hold."""
    if format in ("JPEG", "WEBP", "BMP") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if format in ("JPEG", "BMP") and alpha is not None:
        weight = alpha[..., None].astype(np.uint32)
        pixels = ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)  # onto white
        alpha = None
    return pixels, alpha


def _metadata(image: Image.Image, format: str, gray: bool) -> dict[str, bytes]:
    """Pillow's options for the parts of the image's ICC profile and EXIF that the format can hold."""
    icc, exif = image.info.get("icc_profile") or b"", image.info.get("exif") or b""
    if icc[16:20] in (b"CMYK", b"Lab ") or (icc[16:20] == b"GRAY" and (format == "WEBP" or not gray)):
        icc = b""  # the profile is for other channels than those written; WebP is always RGB
    if format == "JPEG" and len(exif) > _MAX_JPEG_EXIF_BYTES:
        exif = b""
    return {name: value for name, value in (("icc_profile", icc), ("exif", exif)) if value and format != "BMP"}
