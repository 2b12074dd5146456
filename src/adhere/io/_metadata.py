"""Metadata of pictures: what is copied from the input to the result, and what is left out.

Metadata are the entries of a PIL image's `info` that `read_metadata` returns. Their names are:

    icc_profile, exif, xmp, dpi, comment    as in Pillow; `exif` is upright and has no thumbnail
    iptc                                    captions and keywords (IPTC-IIM)
    png_text                                keyword -> text
    png_color                               chunks gAMA, cHRM and sRGB
    geotiff                                 georeference and no-data value: tag -> (type, value)
    tiff_compression                        Pillow's name
    left_out                                names of what cannot be copied to any file

`save_options` turns them into Pillow's options for a format, and returns the names of what the format cannot hold.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from adhere.io._exif import (
    EXIF_IFD,
    GEOTIFF_TAGS,
    GPS_IFD,
    IPTC_TAG,
    PHOTOSHOP_LAYERS_TAG,
    PHOTOSHOP_TAG,
    exif_block,
    exif_of_tiff,
    tags_of_exif,
    upright_exif,
)
from adhere.io._xmp import true_xmp

_TITLES = {
    "icc_profile": "ICC profile",
    "exif": "EXIF",
    "xmp": "XMP",
    "dpi": "resolution (dpi)",
    "comment": "comment",
    "iptc": "IPTC",
    "png_text": "PNG text",
    "png_color": "PNG gamma and primaries",
    "geotiff": "GeoTIFF tags",
}
_HELD_BY = {
    "PNG": {"icc_profile", "exif", "xmp", "dpi", "comment", "png_text", "png_color"},
    "JPEG": {"icc_profile", "exif", "xmp", "dpi", "comment", "iptc"},
    "WEBP": {"icc_profile", "exif", "xmp"},
    "TIFF": {"icc_profile", "exif", "xmp", "dpi", "iptc", "geotiff"},
    "BMP": {"dpi"},
}
_MAX_JPEG_SEGMENT_BYTES = 65_533
_XMP_HEADER, _IPTC_HEADER = b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
_KNOWN_SEGMENTS = (
    b"JFIF",
    b"JFXX",
    b"Exif\0",
    b"http://ns.adobe.com/xap/",
    b"ICC_PROFILE\0",
    b"Photoshop 3.0\0",
    b"Adobe",
    b"MPF\0",
)
_IPTC_RESOURCE = 0x0404
_DEFAULT_DPI = {(72, 72), (96, 96)}  # values that programs write if the resolution is unknown
_LOSSLESS_COMPRESSIONS = {
    "group3",
    "group4",
    "tiff_ccitt",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "packbits",
    "lzma",
    "zstd",
}
_BILEVEL_COMPRESSIONS = {"group3", "group4", "tiff_ccitt"}


def read_metadata(image: Image.Image, size: tuple[int, int]) -> dict[str, Any]:
    """Return the metadata of a PIL image; see the module's docstring.

    Args:
        image: The image as it was opened, after `load`.
        size: (H, W) of the upright picture.
    """
    left_out = [*_parts_left_out(image), *(image.info.get("left_out", ()) if image.format is None else ())]
    found: dict[str, Any] = {"dpi": _dpi(image.info.get("dpi")), "comment": _comment(image.info.get("comment"))}
    profile = image.info.get("icc_profile")
    if image.mode in ("CMYK", "LAB"):
        left_out += [f"{image.mode} (converted to RGB)", *(["ICC profile"] if profile else [])]
    else:
        found["icc_profile"] = profile
    try:
        block = exif_of_tiff(image) if _has_tags(image) else exif_block(image.info)
        found["exif"] = block and upright_exif(block, size)
    except Exception:  # Pillow raises nearly anything for damaged EXIF, and the picture can still be used
        left_out.append("damaged EXIF")
    try:
        found["xmp"], is_whole = true_xmp(image.info.get("xmp"))
        left_out += [] if is_whole else ["XMP of other pictures in the file"]
    except Exception:  # as for EXIF; it may be nested too deeply, for example
        left_out.append("damaged XMP")
    with suppress(Exception):  # as for EXIF
        found |= _format_metadata(image)
    return {name: value for name, value in (found | {"left_out": tuple(left_out)}).items() if value}


def resized(metadata: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the metadata of an enlarged picture, without those that are wrong for its new size (height, width)."""
    new = {name: value for name, value in metadata.items() if name != "geotiff"}
    if "geotiff" in metadata:
        new["left_out"] = (*new.get("left_out", ()), _TITLES["geotiff"])
    if "exif" in metadata:
        new["exif"] = upright_exif(metadata["exif"], size)
    if "xmp" in metadata:
        new["xmp"], is_whole = true_xmp(metadata["xmp"], is_resized=True)
        new["left_out"] = (*new.get("left_out", ()), *([] if is_whole else ["XMP of the panorama"]))
    return new


def save_options(info: Mapping[Any, Any], format: str, mode: str) -> tuple[dict[str, Any], list[str]]:
    """Return Pillow's options for the metadata that a format can hold, and the names of those that it cannot hold.

    Args:
        info: The metadata, for example the `info` of a PIL image.
        format: Pillow's name of one of the formats that can be written.
        mode: Pillow's mode of the image to write.
    """
    given = _valid(info)
    held = {name: value for name, value in given.items() if _fits(name, value, format, mode)}
    options = {name: held[name] for name in ("icc_profile", "dpi") if name in held}
    options |= _WRITERS[format](held) if format in _WRITERS else {}
    left_out = [title for name, title in _TITLES.items() if name in given and name not in held]
    if tuple(map(round, given.get("dpi", ()))) in _DEFAULT_DPI or "exif" in held:  # EXIF has the resolution, too
        left_out = [title for title in left_out if title != _TITLES["dpi"]]
    if format == "TIFF":
        has_directories = {EXIF_IFD, GPS_IFD} & set(options.get("tiffinfo", ()))
        if not has_directories:  # Pillow cannot write both
            options["compression"] = _compression(info.get("tiff_compression", ""), mode)
        elif info.get("tiff_compression", "raw") != "raw":
            left_out.append("TIFF compression")
    return options, [*info.get("left_out", ()), *left_out]


# --- Reading.


def _has_tags(image: Image.Image) -> bool:
    return image.format == "TIFF" and hasattr(image, "tag_v2")


def _dpi(dpi: Any) -> tuple[float, float] | None:
    with suppress(TypeError, ValueError, ZeroDivisionError):
        x, y = (float(value) for value in dpi)
        if 1 < x < 65_000 and 1 < y < 65_000:  # Pillow returns 1 for TIFF files without a resolution
            return x, y
    return None


def _comment(comment: Any) -> bytes | None:
    comment = comment.encode("utf-8", "replace") if isinstance(comment, str) else comment
    return comment if isinstance(comment, bytes) else None


def _format_metadata(image: Image.Image) -> dict[str, Any]:
    """Return the metadata that only some formats have; an image that was not read from a file has them in `info`."""
    if image.format is None:
        names = ("iptc", "png_text", "png_color", "geotiff", "tiff_compression")
        return {name: image.info[name] for name in names if name in image.info}
    if _has_tags(image):
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        return {
            "iptc": _iptc_of_tags(tags),
            "geotiff": {tag: (tags.tagtype[tag], tags[tag]) for tag in GEOTIFF_TAGS & set(tags)},
            "tiff_compression": image.info["compression"],
        }
    if image.format == "PNG":
        return {"png_text": _png_text(image), "png_color": _png_color(image.info), "comment": None}
    resources = image.info.get("photoshop")
    return {"iptc": resources.get(_IPTC_RESOURCE) if isinstance(resources, dict) else None}


def _parts_left_out(image: Image.Image) -> Iterator[str]:
    """Yield the names of the parts of a JPEG, TIFF or PNG file that are neither picture nor copied metadata."""
    segments = [(name, data) for name, data in getattr(image, "applist", ()) if name != "COM"]
    chunks = {chunk[0].decode("latin-1") for chunk in getattr(image, "private_chunks", ())}
    if "caBX" in chunks or any(name == "APP11" and b"jumb" in data[:32] for name, data in segments):
        yield "content credentials (C2PA)"
    other = {
        f"JPEG segment {name}" for name, data in segments if not data.startswith(_KNOWN_SEGMENTS) and name != "APP11"
    }
    yield from sorted(other | {f"PNG chunk {name}" for name in chunks - {"caBX"}})
    if any(data.startswith(b"MPF\0") for _, data in segments):
        yield "other pictures in the file (such as a gain map)"
    resources = image.info.get("photoshop")
    tags = getattr(image, "tag_v2", {}) if _has_tags(image) else {}
    if PHOTOSHOP_TAG in tags or (isinstance(resources, dict) and set(resources) - {_IPTC_RESOURCE}):
        yield "Photoshop settings"
    if PHOTOSHOP_LAYERS_TAG in tags:
        yield "Photoshop layers"


def _iptc_of_tags(tags: ImageFileDirectory_v2) -> bytes | None:
    value = tags.get(IPTC_TAG)
    if isinstance(value, int):
        value = (value,)
    if isinstance(value, tuple):  # some programs declare the bytes as 32-bit numbers
        value = struct.pack(f"{'<' if tags.prefix == b'II' else '>'}{len(value)}L", *value)
    return value if isinstance(value, bytes) else None


def _png_text(image: Image.Image) -> dict[str, str]:
    """Return the texts without raw profiles, which repeat EXIF and XMP with the old orientation."""
    text: dict[str, str] = getattr(image, "text", {})
    return {k: v for k, v in text.items() if k != "XML:com.adobe.xmp" and not k.startswith("Raw profile type")}


def _png_color(info: Mapping[Any, Any]) -> dict[bytes, bytes]:
    chunks = {}
    if "gamma" in info:
        chunks[b"gAMA"] = struct.pack(">I", round(info["gamma"] * 100_000))
    if "chromaticity" in info:
        chunks[b"cHRM"] = struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"]))
    if "srgb" in info:
        chunks[b"sRGB"] = bytes([info["srgb"]])
    return chunks


# --- Writing.


def _valid(info: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the valid metadata of any `info`; other programs may use the same names for other things."""
    checked = dict(info) | {"dpi": _dpi(info.get("dpi")), "comment": _comment(info.get("comment"))}
    types = {"dpi": tuple, "png_text": Mapping, "png_color": Mapping, "geotiff": Mapping}
    return {
        name: checked[name]
        for name in _TITLES
        if checked.get(name) and isinstance(checked[name], types.get(name, bytes))
    }


def _fits(name: str, value: Any, format: str, mode: str) -> bool:
    """Return whether an entry is valid for the image, and small enough for the format."""
    if name not in _HELD_BY[format]:
        return False
    if name == "icc_profile":  # a profile for other channels than those written; WebP is always RGB
        space, is_gray = value[16:20], mode in ("1", "L", "LA", "I;16") and format != "WEBP"
        return space not in (b"CMYK", b"Lab ") and (space != b"GRAY" or is_gray)
    sizes = {"exif": 0, "xmp": len(_XMP_HEADER), "iptc": len(_IPTC_HEADER) + 13, "comment": 0}
    return format != "JPEG" or name not in sizes or len(value) + sizes[name] <= _MAX_JPEG_SEGMENT_BYTES


def _jpeg_options(held: Mapping[str, Any]) -> dict[str, Any]:
    extra = b""
    if "xmp" in held:
        extra += _segment(0xE1, _XMP_HEADER + held["xmp"])
    if iptc := held.get("iptc"):
        resource = b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
        extra += _segment(0xED, _IPTC_HEADER + resource)
    return {"exif": held.get("exif", b""), "extra": extra, "comment": held.get("comment", b"")}


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _png_options(held: Mapping[str, Any]) -> dict[str, Any]:
    chunks = PngInfo()
    for name, data in held.get("png_color", {}).items():
        chunks.add(name, data)
    if "xmp" in held:
        chunks.add_itxt("XML:com.adobe.xmp", held["xmp"].decode("utf-8", "replace"))
    text = dict(held.get("png_text", {}))
    if "comment" in held:
        text.setdefault("Comment", held["comment"].decode("utf-8", "replace"))
    for keyword, value in text.items():
        (chunks.add_text if value.isascii() else chunks.add_itxt)(keyword, value)
    return {"pnginfo": chunks} | ({"exif": held["exif"]} if "exif" in held else {})


def _webp_options(held: Mapping[str, Any]) -> dict[str, Any]:
    return {name: held[name] for name in ("exif", "xmp") if name in held}


def _tiff_options(held: Mapping[str, Any]) -> dict[str, Any]:
    tags = tags_of_exif(held["exif"]) if "exif" in held else ImageFileDirectory_v2()
    extra = {700: (1, held.get("xmp")), IPTC_TAG: (7, held.get("iptc")), **held.get("geotiff", {})}
    for tag, (kind, value) in extra.items():
        if value is not None:
            tags.tagtype[tag] = kind
            tags[tag] = value
    return {"tiffinfo": tags}


_WRITERS = {"JPEG": _jpeg_options, "PNG": _png_options, "WEBP": _webp_options, "TIFF": _tiff_options}


def _compression(old: str, mode: str) -> str:
    """Return the compression of the old file, or another one if that would change pixels or cannot hold them."""
    old = {"tiff_deflate": "tiff_adobe_deflate", "tiff_zstd": "zstd", "tiff_lzma": "lzma"}.get(old, old)
    is_usable = old == "raw" or (old in _LOSSLESS_COMPRESSIONS and (mode == "1" or old not in _BILEVEL_COMPRESSIONS))
    return old if is_usable else "tiff_adobe_deflate"
