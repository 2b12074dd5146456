"""EXIF blocks, b"Exif\\0\\0" and a TIFF file without a picture: upright blocks, and tags for TIFF files."""

import io
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_ORIENTATION, EXIF_IFD, GPS_IFD, _INTEROP_IFD = 274, 34665, 34853, 40965
GEOTIFF_TAGS = {33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113, 50844}
IPTC_TAG, PHOTOSHOP_TAG, PHOTOSHOP_LAYERS_TAG = 33723, 34377, 37724
# TIFF tags that describe the layout of the old file, or have a place of their own here
_LAYOUT_TAGS = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, _ORIENTATION, 277, 278, 279, 280, 281, 284),
    *(288, 289, 290, 291, 292, 293, 301, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 333, 334),
    *(336, 337, 338, 339, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532, 559, 700, 34675, 34665, 34853),
    *(IPTC_TAG, PHOTOSHOP_TAG, PHOTOSHOP_LAYERS_TAG, 50255, *GEOTIFF_TAGS),
}


def exif_block(info: Mapping[Any, Any]) -> Any:
    """Return the block in an image's `info`, or None; some programs write it to PNG files as hexadecimal text."""
    text = info.get("Raw profile type exif", "")
    block = info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:]))
    return block if block.removeprefix(b"Exif\0\0") else None


def _entries(block: bytes | bytearray, order: str, offset: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (position, tag, type, value or offset of the value) of each entry of the directory at `offset`."""
    for i in range(*struct.unpack_from(order + "H", block, offset)):
        position = offset + 2 + 12 * i
        tag, kind, _, value = struct.unpack_from(order + "HHLL", block, position)
        yield position, tag, kind, value


def upright_exif(exif: Any, size: tuple[int, int]) -> bytes | None:
    """Return a block with orientation 1, the size (height, width) and no thumbnail; all other bytes are kept.

    A thumbnail would still show what was inpainted.

    Raises:
        Exception: The block is damaged: struct.error, KeyError, TypeError or AttributeError.
    """
    if not exif:
        return None
    block = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = {b"II": "<", b"MM": ">"}[bytes(block[:2])]
    (first,) = struct.unpack_from(order + "L", block, 4)
    entries = list(_entries(block, order, first))
    sides = {40962: size[1], 40963: size[0]}
    for position, tag, _, value in entries:
        if tag == _ORIENTATION:
            struct.pack_into(order + "HHLHH", block, position, _ORIENTATION, 3, 1, 1, 0)
        if tag == EXIF_IFD:
            for place, name, _, _ in _entries(block, order, value):
                if name in sides:
                    struct.pack_into(order + "HHLL", block, place, name, 4, 1, sides[name])
    next_position = first + 2 + 12 * len(entries)
    (thumbnail,) = struct.unpack_from(order + "L", block, next_position)
    if thumbnail:
        struct.pack_into(order + "L", block, next_position, 0)
        values = {tag: value for _, tag, _, value in _entries(block, order, thumbnail)}
        for start, length in ((513, 514), (273, 279)):  # JPEG; one strip
            begin, end = values.get(start, 0), values.get(start, 0) + values.get(length, 0)
            block[begin:end] = bytes(len(block[begin:end]))
    return b"Exif\0\0" + bytes(block)


def exif_of_tiff(image: Image.Image) -> bytes | None:
    """Return the tags of a TIFF file that do not describe its layout as a block, or None if there are none."""
    old, new = image.getexif(), Image.Exif()
    for tag in set(old) - _LAYOUT_TAGS:
        new[tag] = _exact(old[tag])
    for tag in (EXIF_IFD, GPS_IFD):
        if values := {name: _exact(value) for name, value in old.get_ifd(tag).items() if name != _INTEROP_IFD}:
            new[tag] = values
    if not len(new):
        return None
    new[_ORIENTATION] = 1
    return new.tobytes()


def _exact(value: Any) -> Any:
    """Return a text as the bytes of the file, since Pillow would replace non-ASCII characters by question marks."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def tags_of_exif(exif: bytes) -> ImageFileDirectory_v2:
    """Return the tags of a block for a TIFF file, with the types that they have in the block."""
    file = io.BytesIO(exif.removeprefix(b"Exif\0\0"))
    tags = ImageFileDirectory_v2()
    first = _directory(file, None, None)
    for tag, value in first.items():
        if tag in (EXIF_IFD, GPS_IFD):
            directory = _directory(file, value, tag)
            tags[tag] = {name: _exact(directory[name]) for name in directory if name != _INTEROP_IFD}
        elif tag not in _LAYOUT_TAGS:
            tags.tagtype[tag] = first.tagtype[tag]
            tags[tag] = _exact(value)
    return tags


def _directory(file: io.BytesIO, offset: int | None, group: int | None) -> ImageFileDirectory_v2:
    directory = ImageFileDirectory_v2(file.getvalue()[:8], group=group)
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    return directory
