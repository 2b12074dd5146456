"""The files of one request: the pictures, the files that are computed from several of them, and their encoding."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from adhere.apps import _process
from adhere.errors import AdhereError
from adhere.io._atomic import check_writable
from adhere.io._xmp import mark_as_edited
from adhere.io.images import check_output, check_output_size, encode

_DEFAULT_SAMPLES = 8  # of --mean, --contact-sheet and --uncertainty
_THUMBNAIL_PIXELS, _GAP_PIXELS = 384, 4
_QUALITY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # of 16-bit gray
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_Writer = Callable[[IO[bytes]], object]


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that are written, their names and their formats.

    Attributes:
        output: the file of the picture; for several pictures, -1, -2, ... are added to its name.
        json_file: the file of the report.
        save_mask: the file of the mask as it is used, in gray.
        contact_sheet: the file with all pictures side by side.
        uncertainty: the file with the standard deviation of each pixel over all pictures.
        preview: the file with the current state of the run.
        num_images: how many pictures are sampled; None is 1, or 8 where several are needed.
        mean: whether the mean of all pictures is written instead of each.
        quality: the quality of JPEG and WebP files, 1 to 100; None is the default of the format.
        mark_edited: whether the metadata say that a model has changed the picture.
        force: whether existing files may be replaced.
    """

    output: Path
    json_file: Path | None = None
    save_mask: Path | None = None
    contact_sheet: Path | None = None
    uncertainty: Path | None = None
    preview: Path | None = None
    num_images: int | None = None
    mean: bool = False
    quality: int | None = None
    mark_edited: bool = False
    force: bool = False

    @property
    def count(self) -> int:
        """The number of samples."""
        needs_several = self.mean or self.contact_sheet is not None or self.uncertainty is not None
        return self.num_images or (_DEFAULT_SAMPLES if needs_several else 1)

    @property
    def outputs(self) -> list[Path]:
        """The names of the pictures."""
        if self.mean or self.count == 1:
            return [self.output]
        return [self.output.with_stem(f"{self.output.stem}-{i + 1}") for i in range(self.count)]

    def check(self, photo: Path | None = None, others: Sequence[Path] = ()) -> None:
        """Check all names and formats before the work.

        Args:
            photo: the picture that is worked on, which a picture may replace.
            others: the other files and the folders that are read, in which nothing may be replaced.

        Raises:
            AdhereError: if a file cannot be written, two files have the same name, or a format cannot hold the content.
        """
        self._check_names(photo, others)
        self._check_formats()
        if self.count == 1 and (self.mean or self.uncertainty is not None):
            flag = "--mean" if self.mean else "--uncertainty"
            raise AdhereError(f"--num-images 1: {flag} needs at least 2 pictures; 8 are usual")
        for path in self.outputs:
            check_output(path, self.force)
        for path in (self.save_mask, self.contact_sheet, self.uncertainty, self.preview):
            if path is not None:
                check_output(path, self.force)
        if self.json_file is not None:
            check_writable(self.json_file, self.force)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise AdhereError if the format of the pictures cannot hold (height, width) pixels."""
        for path in self.outputs:
            check_output_size(path, size)

    def _check_names(self, photo: Path | None, others: Sequence[Path]) -> None:
        read = {real_path(path) for path in others}
        for path in self.outputs:
            _check_not_read("-o", path, read)
        taken = {real_path(path) for path in self.outputs}
        for flag, path in self._others():
            _check_not_read(flag, path, read | {real_path(path) for path in filter(None, [photo])})
            if real_path(path) in taken:
                what = "a file" if flag != "--json" else "the report a file"
                hint = "is one of the pictures" if flag == "--json" else "is the name of another file of this command"
                raise AdhereError(f"{flag} {path}: {hint}; give {what} of its own")
            taken.add(real_path(path))

    def _others(self) -> Iterator[tuple[str, Path]]:
        """Yield the flag and the path of each file that is not a picture of the result."""
        for name in ("save_mask", "contact_sheet", "uncertainty", "preview", "json_file"):
            path = getattr(self, name)
            if path is not None:
                yield f"--{name.removesuffix('_file').replace('_', '-')}", path

    def _check_formats(self) -> None:
        pictures = [path for path in (self.output, self.contact_sheet) if path is not None]
        if self.quality is not None and not any(path.suffix.lower() in _QUALITY_SUFFIXES for path in pictures):
            raise AdhereError(f"--quality {self.quality}: {self.output} is lossless; write a .jpg or .webp file")
        for path in (path for path in pictures if self.mark_edited and path.suffix.lower() == ".bmp"):
            raise AdhereError(f"--mark-edited: {path}: BMP holds no such mark; write a .png, .jpg or .webp file")
        for flag, path, suffixes in (
            ("--uncertainty", self.uncertainty, _DEEP_SUFFIXES),
            ("--save-mask", self.save_mask, _LOSSLESS_SUFFIXES),
        ):
            if path is not None and path.suffix.lower() not in suffixes:
                raise AdhereError(f"{flag} {path}: write {' or '.join(suffixes)}, which keep all values")

    def contents(self, images: Sequence[Image.Image], mask: np.ndarray | None) -> dict[Path, _Writer]:
        """Return, for each file except the report, a function that writes its contents.

        Args:
            images: the samples.
            mask: the mask of an inpainting task, float (H, W) in [0, 1], or None.
        """
        pictures = [_mean(images)] if self.mean else list(images)
        contents: dict[Path, _Writer] = {}
        for path, image in zip(self.outputs, pictures, strict=True):
            contents[path] = partial(self._encode, image, path)
        if self.save_mask is not None and mask is not None:
            gray = Image.fromarray((255 * mask).round().astype(np.uint8))
            contents[self.save_mask] = partial(encode, gray, self.save_mask.suffix)
        if self.contact_sheet is not None:
            contents[self.contact_sheet] = partial(self._encode, _sheet(images), self.contact_sheet)
        if self.uncertainty is not None:
            contents[self.uncertainty] = partial(encode, _deviation(images), self.uncertainty.suffix)
        return contents

    def _encode(self, image: Image.Image, path: Path, file: IO[bytes]) -> None:
        if self.mark_edited:
            image = image.copy()
            image.info["xmp"] = mark_as_edited(image.info.get("xmp"))
        with _process.silenced_stderr():
            quality = self.quality if path.suffix.lower() in _QUALITY_SUFFIXES else None
            encode(image, path.suffix, file, quality)


def _check_not_read(flag: str, path: Path, read: set[str]) -> None:
    """Raise AdhereError if a file to write is one that is read, or an existing one in a folder that is read.

    A link counts as the file that it points to, and as a file of the folder in which it is.
    """
    for name in (real_path(path), os.path.join(real_path(path.parent), path.name)):
        if name in read:
            raise AdhereError(f"{flag} {path}: is read by this command, and would be lost; give another name")
        if os.path.isfile(name) and any(str(folder) in read for folder in Path(name).parents):
            raise AdhereError(f"{flag} {path}: belongs to a model, whose files are never replaced; give another name")


def real_path(path: Path) -> str:
    """Return the absolute path without links and without `~`."""
    try:
        return os.path.realpath(os.path.expanduser(path))
    except FileNotFoundError as error:
        raise AdhereError("the current folder does not exist any more; change to another folder") from error


def _mean(images: Sequence[Image.Image]) -> Image.Image:
    """Return the mean of pictures of one size and mode, rounded, with the metadata of the first."""
    first = np.asarray(images[0])
    total = np.zeros(first.shape, np.float64)
    for image in images:
        total += np.asarray(image)
    mean = (total / len(images)).round().astype(first.dtype)
    result = Image.fromarray(mean)
    result.info.update(images[0].info)
    return result


def _deviation(images: Sequence[Image.Image]) -> Image.Image:
    """Return the standard deviation of each pixel (the RMS over its channels) as 16-bit gray, where 65535 is 1."""
    largest = {"bool": 1, "uint16": 65535}.get(np.asarray(images[0]).dtype.name, 255)
    total, squares = 0.0, 0.0
    for image in images:
        values = np.asarray(image).astype(np.float64)
        if image.mode in ("LA", "RGBA"):
            values = values[..., :-1]  # all have the same alpha
        total, squares = total + values, squares + values**2  # sums of integers below 2^53 are exact
    variance = (squares - total**2 / len(images)) / (len(images) - 1) / largest**2
    variance = np.where(squares * len(images) == total**2, 0, variance)
    mean_square = variance if variance.ndim == 2 else variance.mean(2)
    return Image.fromarray((65535 * np.sqrt(np.maximum(mean_square, 0))).round().clip(0, 65535).astype(np.uint16))


def _sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Return all pictures in one, in about as many rows as columns, each at most 384 pixels wide and high."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = min(1.0, _THUMBNAIL_PIXELS / max(images[0].size))
    width, height = (max(1, round(side * scale)) for side in images[0].size)
    sheet_size = [n * (side + _GAP_PIXELS) - _GAP_PIXELS for n, side in ((columns, width), (rows, height))]
    sheet = Image.new("RGB", (sheet_size[0], sheet_size[1]), "white")
    for i, image in enumerate(images):
        small = _as_rgb(image).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, ((i % columns) * (width + _GAP_PIXELS), i // columns * (height + _GAP_PIXELS)))
    return sheet


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB with 8 bits per channel, with its transparent parts on white."""
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")
