"""Pictures: read, check, hand to the network, save.

A `Picture` holds the file's own samples: gray (C = 1) or RGB (C = 3), uint8, or uint16 for 16-bit gray; alpha apart.
What Pillow cannot hold is reduced on reading: 16-bit RGB and 16-bit gray + alpha become 8-bit, CMYK and Lab become RGB
(without their ICC profile), the one transparent level of a 16-bit gray PNG is ignored. Palettes become RGB, 1-bit
becomes 8-bit gray, an animation gives its first frame. EXIF orientation is applied. Damaged EXIF is left out, and so is
the EXIF thumbnail, which would still show what is painted over.

Network side: x = v / (top / 2) - 1 in [-1, 1], top = 255 or 65535. Sizes are (H, W), but in messages width x height.
Bad input raises `AdhereError`.
"""

import os
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
from adhere.files import check_writable, staged

MAX_SIDES = {"JPEG": 65_500, "WEBP": 16_383}
MAX_PIXELS = 50_000_000  # larger images are refused, before decoding
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
        x = torch.from_numpy(levels(self.pixels))  # (C, H, W)
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


def pad_to_multiple(x: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C H2 W2"]:
    """Pad at the bottom and the right to a multiple, by reflection (an axis too short for that repeats its edge).

    Raises ValueError for a multiple below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be 1 or more")
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    padded = functional.pad(x, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
    return functional.pad(padded, (0, right, 0, 0), mode="reflect" if right < width else "replicate")


def with_metadata(image: Image.Image, picture: Picture) -> Image.Image:
    """`image`, with the picture's ICC profile and EXIF in its `info`, where `save_picture` finds them.

    Pillow's own save takes the profile from there for PNG and TIFF only, and EXIF never.
    """
    kept = {"icc_profile": picture.icc_profile, "exif": picture.exif}
    image.info.update({name: value for name, value in kept.items() if value})
    return image


def check_output(path: str | Path, force: bool = False) -> None:
    """Refuse before any work is done what `save_picture` would refuse.

    Raises `AdhereError`: as `check_writable`, or an unknown suffix.
    """
    path = Path(path)
    check_writable(path, force)
    if path.suffix.lower() not in FORMATS:
        given = f"the suffix {path.suffix}" if path.suffix else "a name without suffix"
        raise AdhereError(f"{path}: cannot write {given}; use one of {', '.join(FORMATS)}")


def check_output_size(path: Path, size: tuple[int, int]) -> None:
    """Refuse a picture of `size`, (height, width), that could not be saved or read again: MAX_PIXELS, and the format's.

    Raises `AdhereError`.
    """
    kind, _ = FORMATS[path.suffix.lower()]
    given = f"{path}: the result would have {size[1]}x{size[0]} pixels"
    if size[0] * size[1] > MAX_PIXELS:
        raise AdhereError(f"{given}; at most {MAX_PIXELS:,} are allowed: ask for a smaller one")
    if max(size) > (longest := MAX_SIDES.get(kind, max(size))):
        raise AdhereError(f"{given}; {kind} takes at most {longest:,} on a side: write a .png")


def save_picture(image: Image.Image, path: str | Path, *, force: bool = False) -> None:
    """Save as `encode` does, in the format the suffix says; the file appears complete, or not at all.

    Raises `AdhereError`: as `check_output`, or the file could not be written.
    """
    check_output(path, force)
    path = Path(path)
    with staged({path: partial(encode, image, path.suffix)}) as commit:
        commit()


def encode(image: Image.Image, suffix: str, file: IO[bytes]) -> None:
    """Write the image in the format of a suffix in FORMATS, with what it can hold of the `info`'s ICC profile and EXIF.

    JPEG is written at quality 95 without chroma subsampling, WebP lossless. In JPEG and BMP alpha is flattened onto
    white; they and WebP get 8 bits. Raises OSError or ValueError, as Pillow.
    """
    kind, options = FORMATS[suffix.lower()]
    pixels, alpha = _fit(*_planes(image, "the image"), kind)
    to_pil(pixels, alpha).save(file, format=kind, **options, **_metadata(image, kind, gray=pixels.shape[2] == 1))


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
        raise AdhereError(f"{name}: damaged or cut short ({reason}); copy or export it again") from error


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


def to_pil(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """Samples (H, W, 1 or 3) and alpha (H, W) as a PIL image."""
    planes = pixels if alpha is None else np.dstack([pixels, alpha])
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def levels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) samples to (C, H, W) float32 in [-1, 1], through a table computed in float64."""
    top = int(np.iinfo(pixels.dtype).max)
    table = (np.arange(top + 1) / (top / 2) - 1).astype(np.float32)
    return table[np.ascontiguousarray(pixels.transpose(2, 0, 1))]


def _fit(pixels: np.ndarray, alpha: np.ndarray | None, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and alpha reduced to what the format can hold."""
    if kind in ("JPEG", "WEBP", "BMP") and pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind in ("JPEG", "BMP") and alpha is not None:
        weight = alpha[..., None].astype(np.uint32)
        pixels = ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)  # onto white
        alpha = None
    return pixels, alpha


def _metadata(image: Image.Image, kind: str, gray: bool) -> dict[str, bytes]:
    """Pillow's options for what the format can hold of the image's ICC profile and EXIF."""
    icc, exif = image.info.get("icc_profile") or b"", image.info.get("exif") or b""
    if icc[16:20] in (b"CMYK", b"Lab ") or (icc[16:20] == b"GRAY" and (kind == "WEBP" or not gray)):
        icc = b""  # made for other channels than are written; WebP is always RGB
    if kind == "JPEG" and len(exif) > 65533:
        exif = b""  # does not fit into a JPEG segment
    return {name: value for name, value in (("icc_profile", icc), ("exif", exif)) if value and kind != "BMP"}
