"""Pictures: reading and checking files, conversion to tensors, saving.

A `Picture` holds the samples as the file stores them: gray (C = 1) or RGB (C = 3), uint8, or uint16 for 16-bit gray;
alpha is separate. The conversions on reading are:

    16-bit RGB, 16-bit gray + alpha   8 bits per sample
    12-bit gray                       16 bits, v * 65535 / 4095
    1-bit                             0 and 255; `is_bilevel` is True, and a repaired picture has 1 bit again
    CMYK, Lab                         RGB, without the ICC profile
    palette                           RGB
    transparent value of 16-bit gray  ignored
    EXIF orientation                  applied
    several pictures in a file        see `adhere.io._frames`
    metadata                          see `adhere.io._metadata`

Tensors are x = v / (v_max / 2) - 1 in [-1, 1], with v_max = 255 or 65535. Sizes are (H, W); messages say width x
height. A path that begins with `~` is expanded to the user's home folder.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, IOBase
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from adhere._warnings import ignored_library_warnings
from adhere.errors import AdhereError, AdhereWarning
from adhere.io._atomic import check_writable, staged_writes
from adhere.io._crops import Box
from adhere.io._frames import (
    check_not_raw,
    check_one_picture,
    hint_for_unidentified,
    select_frame,
)
from adhere.io._metadata import read_metadata, save_options
from adhere.io._samples import (
    bits_per_sample,
    channels_last,
    convert_for,
    fill_unknown,
    lost_in_conversion,
    samples_of,
    to_float,
    to_pil,
    to_uint8,
)

_MAX_PIXELS = 250_000_000  # larger pictures are refused before they are decoded
_MAX_SIDE_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}
_FAST_PNG_PIXELS = 4_000_000  # larger PNG files are compressed less, because it takes longer than sampling
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
_FORMAT_NAMES = {format for format, _ in _FORMATS.values()}
_WHOLE: Box = slice(None), slice(None)


@dataclass(frozen=True, eq=False)
class Picture:
    """The samples of a picture, upright, and the metadata to copy to the result; see the module's docstring.

    Attributes:
        pixels: (H, W, C), uint8 or uint16; C = 1 for gray, 3 for RGB.
        alpha: (H, W), uint8, 255 = opaque, or None.
        metadata: What `adhere.io._metadata` read: ICC profile, EXIF, resolution and others.
        format: Pillow's name of the file's format, such as "PNG", or None.
        is_bilevel: Whether the file has 1 bit per pixel; the samples are 0 and 255.
    """

    pixels: Shaped[np.ndarray, "H W C"]
    alpha: Shaped[np.ndarray, "H W"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    format: str | None = None
    is_bilevel: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def add_metadata(self, image: Image.Image) -> Image.Image:
        """Return `image` with the picture's metadata in its `info`; both `save_picture` and its own `save` write them.

        Pillow's `save` alone would take the ICC profile from there for PNG and TIFF only, and never EXIF.
        """
        image.info.update(self.metadata)
        image.__class__ = _ImageWithMetadata
        return image

    def visible(self, box: Box = _WHOLE) -> Bool[np.ndarray, "h w"]:
        """Return where alpha is above 0 in a part of the picture; the other pixels may have any color."""
        pixels = self.pixels[box]
        return np.ones(pixels.shape[:2], bool) if self.alpha is None else self.alpha[box] > 0

    def is_gray(self, known: Bool[np.ndarray, "H W"]) -> bool:
        """Return whether all known pixels are gray, and there is one."""
        if self.pixels.shape[2] == 1:
            return True
        red, green, blue = (self.pixels[..., i] for i in range(3))
        return bool(known.any() and not ((red != green) & known).any() and not ((green != blue) & known).any())

    def tensor(self, box: Box = _WHOLE) -> Float[Tensor, "1 3 h w"]:
        """Return the samples of a part of the picture as float32 in [-1, 1]; gray is repeated three times.

        Alpha is left out. Where it is 0, the colors are those of the nearest visible pixels, blurred.
        """
        x = torch.from_numpy(to_float(self.pixels[box]))  # (C, h, w)
        x = x.expand(3, *x.shape[1:]).clone()[None]
        visible = self.visible(box)
        return x if visible.all() else fill_unknown(x, torch.from_numpy(visible)[None, None])


class _ImageWithMetadata(Image.Image):
    """A PIL image whose `save` writes the metadata in its `info`."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        name = getattr(fp, "name", fp)
        suffix = os.path.splitext(name)[1].lower() if isinstance(name, str | Path) else ""
        target = (format or Image.registered_extensions().get(suffix, "")).upper()
        options = _options_for(self.info, self.mode, target) if target in _FORMAT_NAMES else {}
        super().save(fp, format, **options | params)


def _read_picture(path: str | Path, frame: int | None) -> Picture:
    """Return the picture of an image file, read completely so that truncation is detected; see `as_picture`."""
    path = _local_path(path, "download it first (in Python, diffusers.utils.load_image(url) returns a PIL image)")
    _check_readable(path)
    with _as_read_error(path), open(path, "rb") as file:
        return _read_file(file, path, frame)


def _check_readable(path: str) -> None:
    """Raise AdhereError unless a path is that of a file; opening a pipe could wait without end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise AdhereError(f"{path}: no such file; check the name") from error
    except (OSError, ValueError) as error:
        raise AdhereError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the name") from error
    if stat.S_ISDIR(mode):
        raise AdhereError(f"{path}: is a folder; give an image file")
    if not stat.S_ISREG(mode):
        raise AdhereError(f"{path}: is a pipe or a device; give an image file, or - as PHOTO for standard input")


def _read_file(file: Any, name: str, frame: int | None) -> Picture:
    """Return the picture of a binary file, read completely; see `as_picture`."""
    with _as_read_error(name), ignored_library_warnings():  # damaged EXIF is dropped
        file = file if file.seekable() else BytesIO(file.read())
        if file.seek(0, os.SEEK_END) == 0:
            raise AdhereError(f"{name}: is empty (0 bytes); copy or export it again")
        image = Image.open(file)
        _check_size(image.height, image.width, name)
        return _from_pil(image, name, select_frame(image, name, frame))


def as_picture(
    image: "Picture | Image.Image | np.ndarray | Tensor | str | Path | IOBase", frame: int | None = None
) -> Picture:
    """Return a `Picture` from a path, a binary file, a PIL image, an array, a tensor or a `Picture`.

    Args:
        image: A binary file may be a pipe, such as `sys.stdin.buffer`. An array is uint8 (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4), uint16 (H, W) or (H, W, 1), or float in [0, 1] of the shapes of uint8; it is copied. A tensor
            is float in [0, 1], (C, H, W) or (1, C, H, W). Floats are rounded to 8 bits. Of a PIL image with several
            frames, the current one is meant.
        frame: The number of the picture in a file, from 0; None is the only picture, or the main one.

    Raises:
        AdhereError: The path is a URL or a folder; the file does not exist, is not readable, is not an image, is a raw
            file or is damaged; it holds several pictures and `frame` is None; the picture has more than _MAX_PIXELS
            pixels; or the argument has another type or shape.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return _read_picture(image, frame)
    if isinstance(image, IOBase):
        return _read_file(image, str(getattr(image, "name", "the image")), frame)
    if isinstance(image, Image.Image):
        with _as_read_error("the image"):  # it may not be decoded yet
            check_not_raw(image, "the image")
            return _from_pil(image, "the image")
    return _from_array(image)


def pad_to_multiple(x: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C H2 W2"]:
    """Return x padded at the bottom and at the right, by reflection, so that both sides are multiples of `multiple`.

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


def check_output(path: str | Path, force: bool = False) -> None:
    """Check, before the work, that `save_picture` will accept a path.

    Args:
        path: The file to write later.
        force: Whether an existing file may be replaced.

    Raises:
        AdhereError: Where `check_writable` raises it; also if the path is a URL, the suffix is unknown, or the existing
            file holds several pictures.
    """
    path = Path(_local_path(path, "give a file name"))
    check_writable(path, force)
    if path.suffix.lower() not in _FORMATS:
        given = f"the suffix {path.suffix}" if path.suffix else "a name without suffix"
        raise AdhereError(f"{path}: cannot write {given}; use one of {', '.join(_FORMATS)}")
    check_one_picture(path)


def check_output_size(path: Path, size: tuple[int, int]) -> None:
    """Check, before the work, that a format can hold a picture of (H, W) pixels.

    Args:
        path: The file to write later, as `check_output` accepts it.
        size: (H, W).

    Raises:
        AdhereError: The picture would have a side longer than the format allows.
    """
    format, _ = _FORMATS[path.suffix.lower()]
    if max(size) > (max_side := _MAX_SIDE_PIXELS.get(format, max(size))):
        given = f"{path}: the result would have {size[1]}x{size[0]} pixels"
        raise AdhereError(f"{given}; {format} takes at most {max_side:,} on a side: write a .png")


def save_picture(image: Image.Image, path: str | Path, *, force: bool = False) -> None:
    """Save an image as `encode` does, in the format of the suffix; the file appears complete or not at all.

    Args:
        image: Any PIL image; the metadata in its `info` are written too.
        path: The file; one of the suffixes .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp.
        force: Whether an existing file may be replaced.

    Raises:
        AdhereError: As for `check_output`, or the file could not be written.
    """
    check_output(path, force)
    path = Path(path)
    with staged_writes({path: partial(encode, image, path.suffix)}, force) as commit:
        commit()


def encode(image: Image.Image, suffix: str, file: IO[bytes], quality: int | None = None) -> None:
    """Write an image to a binary file object, with as much of its metadata as the format can hold.

    JPEG is written with quality 95 and without chroma subsampling, WebP lossless. JPEG, WebP and BMP get 8 bits per
    sample. For JPEG and BMP, alpha is flattened onto white. An `AdhereWarning` names the metadata that are left out.

    Args:
        image: Any PIL image.
        suffix: The suffix of a file name, such as ".png"; it selects the format.
        file: The file object.
        quality: Of JPEG, or of WebP, which is then not lossless; 1 to 100. Other formats ignore it.

    Raises:
        OSError, ValueError: Pillow could not write the image.
    """
    format, options = _FORMATS[suffix.lower()]
    info = image.info
    if image.mode == "1" and format not in ("JPEG", "WEBP"):
        plain = image.copy()
        plain.info = {}  # Pillow would take options of another format from there
    else:
        pixels, alpha = samples_of(image, "the image")
        plain = to_pil(*convert_for(format, pixels, alpha))
        lost = _lost_in_format(plain, pixels, alpha)
        info = info | {"left_out": (*info.get("left_out", ()), *lost)}
    if quality is not None and format in ("JPEG", "WEBP"):
        options = options | {"quality": quality, "lossless": False}
    if format == "PNG":
        options = {"compress_level": 1 if plain.width * plain.height > _FAST_PNG_PIXELS else 6}
    metadata = _options_for(info, plain.mode, format)
    plain.save(file, format=format, **options, **metadata)


def _lost_in_format(plain: Image.Image, pixels: np.ndarray, alpha: np.ndarray | None) -> Iterator[str]:
    """Yield the names of what is lost of samples and alpha if they are written as `plain`."""
    if pixels.dtype == np.uint16 and plain.mode != "I;16":
        yield "8 of the 16 bits per sample"
    if alpha is not None and not plain.has_transparency_data and alpha.min() < 255:
        yield "transparency (flattened onto white)"


def _options_for(info: Mapping[Any, Any], mode: str, format: str) -> dict[str, Any]:
    """Return Pillow's options for the metadata in an image's `info`; a warning names what is left out."""
    try:
        options, left_out = save_options(info, format, mode)
        Image.new(mode, (1, 1)).save(io.BytesIO(), format, **options)
    except Exception:  # as on reading; damaged metadata must not lose the picture
        options, left_out = {}, [*info.get("left_out", ()), "damaged metadata"]
    if left_out:
        warnings.warn(f"not copied to the {format} file: {', '.join(left_out)}", AdhereWarning, stacklevel=3)
    return options


def _local_path(path: str | Path, hint: str) -> str:
    """Return the path with `~` expanded; raise AdhereError with a hint for a URL."""
    if match := re.match(r"(https?):/+(.*)", str(path), re.IGNORECASE | re.DOTALL):  # Path("https://a") is "https:/a"
        raise AdhereError(f"{match[1]}://{match[2]}: is a URL, not a file; {hint}")
    return os.path.expanduser(path)


@contextmanager
def _as_read_error(name: str) -> Iterator[None]:
    """Return a context that converts any error of reading the image `name` to AdhereError."""
    try:
        yield
    except (AdhereError, MemoryError):
        raise
    except PermissionError as error:
        raise AdhereError(f"{name}: no permission to read it; change its permissions") from error
    except Image.DecompressionBombError as error:
        allowed = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # the limit of the caller is obeyed
        hint = "make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS = None"
        raise AdhereError(f"{name}: too large; Pillow allows {allowed:,} pixels: {hint}") from error
    except UnidentifiedImageError as error:
        raise AdhereError(f"{name}: {hint_for_unidentified(name)}") from error
    except Exception as error:  # for damaged files Pillow raises nearly anything: SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AdhereError(f"{name}: damaged or cut short ({reason}); copy or export it again") from error


def _from_pil(image: Image.Image, name: str, left_out: Sequence[str] = ()) -> Picture:
    _check_size(image.height, image.width, name)
    if image.format in ("EPS", "WMF"):  # decoding these would start another program
        raise AdhereError(f"{name}: {image.format} is a drawing, not a photograph; export it as PNG")
    format, is_bilevel = image.format, image.mode == "1"
    left_out = (*left_out, *lost_in_conversion(image))
    image.load()
    upright = image
    with suppress(Exception):  # a picture with damaged EXIF can still be used
        upright = ImageOps.exif_transpose(image)
    metadata = read_metadata(image, (upright.height, upright.width))
    if left_out:
        metadata["left_out"] = (*left_out, *metadata.get("left_out", ()))
    pixels, alpha = samples_of(upright, name)
    if image.mode == "I;16" and bits_per_sample(image) == (12,):
        pixels = (pixels.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    return Picture(pixels, alpha, metadata, format, is_bilevel)


def _from_array(image: object) -> Picture:
    if isinstance(image, Tensor):
        image = channels_last(image)
    if not isinstance(image, np.ndarray):
        given = type(image).__name__
        raise AdhereError(f"the image is a {given}; give a path, a PIL image, a numpy array or a tensor")
    if np.issubdtype(image.dtype, np.floating):
        image = to_uint8(image)
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


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise AdhereError(f"{name}: is empty ({width} x {height} pixels); give at least one pixel")
    if height * width > _MAX_PIXELS:
        given = f"is {width} x {height}, {height * width:,} pixels"
        raise AdhereError(f"{name}: {given}; at most {_MAX_PIXELS:,} are allowed: make it smaller")
