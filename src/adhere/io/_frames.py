"""Files that hold several pictures, and raw files: the choice of the picture to read, and checks that refuse files.

Pages (TIFF) and animations (GIF, APNG, WebP, AVIF) are read only if a frame is chosen. The other formats, such as MPO,
have a main picture. Smaller copies and masks in a TIFF file are not pictures of their own.
"""

import os
from contextlib import suppress

from PIL import Image

from adhere._warnings import ignored_library_warnings
from adhere.errors import AdhereError

_FORMATS_WITH_FRAMES = {"TIFF", "GIF", "PNG", "WEBP", "AVIF"}
_SUBFILE_TYPE, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 254, 262, 330, 50706
_REDUCED_OR_MASK = 0b101  # bits of _SUBFILE_TYPE
_SENSOR_DATA = {32803, 34892}  # values of _PHOTOMETRIC: color filter array, linear raw
_RAW_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
_HEIF_SUFFIXES = {".heic", ".heif", ".hif"}


class SeveralPictures(AdhereError):
    """A file holds several pictures, and none was chosen.

    Attributes:
        count: How many there are.
    """

    def __init__(self, name: str, count: int, hint: str = "") -> None:
        hint = hint or (
            "choose one of PHOTO with --frame N (in Python, adhere.io.images.as_picture(path, frame=N)), counted from "
            "0, or save it as a file of its own"
        )
        super().__init__(f"{name}: holds {count} pictures; {hint}")
        self.count = count


def select_frame(image: Image.Image, name: str, frame: int | None) -> list[str]:
    """Make a frame of an opened file the current one, and return the names of the other contents of the file.

    Args:
        image: The file as Pillow opened it, before it is decoded.
        name: The file's name, for messages.
        frame: The number of the frame, from 0; None is the only picture, or the main one.

    Raises:
        SeveralPictures: The file holds several pictures, and no frame was chosen.
        AdhereError: The file is a raw file, or there is no such frame.
    """
    check_not_raw(image, name)
    total, count = getattr(image, "n_frames", 1), count_pictures(image)
    if frame is None and count > 1 and image.format in _FORMATS_WITH_FRAMES:
        raise SeveralPictures(name, count)
    if frame is not None and frame >= total:
        allowed = f"0 to {total - 1}" if total > 1 else "0, its only picture"
        raise AdhereError(f"{name}: has no frame {frame}; give {allowed}")
    if frame:
        image.seek(frame)
    if total > count:
        return ["reduced copies and masks in the file"]
    is_known = image.format in _FORMATS_WITH_FRAMES  # the frame was chosen
    is_in_metadata = image.format == "MPO" and not frame  # the first picture names the others
    return [] if count == 1 or is_known or is_in_metadata else ["other pictures in the file"]


def check_not_raw(image: Image.Image, name: str) -> None:
    """Check that an opened TIFF file is not a raw file, of which Pillow would read the preview.

    Raises:
        AdhereError: It is a raw file.
    """
    if image.format == "TIFF" and _is_raw(image, name):
        raise AdhereError(f"{name}: is a raw file, of which only the preview could be read; develop it to TIFF or PNG")


def count_pictures(image: Image.Image) -> int:
    """Return the number of pictures in an opened file, without reduced copies, masks and damaged pictures."""
    total = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or total == 1:
        return total
    count = 0
    for frame in range(total):
        image.seek(frame)
        count += not _subfile_type(image) & _REDUCED_OR_MASK
    image.seek(0)
    return count


def check_one_picture(path: str | os.PathLike[str]) -> None:
    """Check that an existing file does not hold several pictures, which would be lost if one picture replaced it.

    Raises:
        AdhereError: The file holds several pictures.
    """
    count = 1
    with suppress(Exception), ignored_library_warnings(), open(path, "rb") as file:  # any file may be replaced
        count = count_pictures(Image.open(file))
    if count > 1:
        raise AdhereError(f"{path}: holds {count} pictures, and all but one would be lost; choose another name")


def hint_for_unidentified(name: str) -> str:
    """Return a hint for a file that Pillow cannot read."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _RAW_SUFFIXES:
        return "is a raw file; develop it to TIFF or PNG"
    if suffix in _HEIF_SUFFIXES:
        return "HEIC cannot be read; export it as JPEG or PNG"
    return "not an image that can be read, or its beginning is damaged; give a PNG, JPEG, WebP, TIFF, BMP or GIF file"


def _is_raw(image: Image.Image, name: str) -> bool:
    """Return whether a TIFF file is a raw file."""
    tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    return (
        os.path.splitext(name)[1].lower() in _RAW_SUFFIXES
        or _DNG_VERSION in tags
        or tags.get(_PHOTOMETRIC) in _SENSOR_DATA
        or (_SUB_IFDS in tags and bool(_subfile_type(image) & _REDUCED_OR_MASK))
        or _is_cr2(image)
    )


def _is_cr2(image: Image.Image) -> bool:
    file = image.fp  # pyright: ignore[reportAttributeAccessIssue]
    if file is None or file.closed:
        return False
    position = file.tell()
    file.seek(8)
    marker = file.read(2)
    file.seek(position)
    return marker == b"CR"


def _subfile_type(image: Image.Image) -> int:
    value = image.tag_v2.get(_SUBFILE_TYPE, 0)  # pyright: ignore[reportAttributeAccessIssue]
    return value if isinstance(value, int) else 0
