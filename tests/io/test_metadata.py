"""Metadata: kept where the format can hold them and they stay true, named where not."""

import io
import struct
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, IptcImagePlugin, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from adhere.errors import AdhereError, AdhereWarning
from adhere.io._metadata import resized
from adhere.io.images import Picture, as_picture, save_picture
from tests.picture_files import image_of

SUFFIXES = [".jpg", ".png", ".webp", ".tif"]
RATING = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5" %s/></rdf:RDF></x:xmpmeta>'  # noqa: E501
XMP = RATING % b""
IPTC = b"\x1c\x02\x19\x00\x05beach\x1c\x02\x78\x00\x08A sunset"  # keyword, caption
ICC = bytes(16) + b"RGB " + bytes(108)


def exif_block(order: str = ">") -> bytes:
    """Return an EXIF block with orientation 6, names that are not ASCII, and a maker note."""
    mark = b"II" if order == "<" else b"MM"
    artist, author = "Zoë".encode() + b"\0", "Zoë".encode("utf-16le") + b"\0\0"  # 5 and 8 bytes
    ifd = struct.pack(order + "HHHIHH", 4, 274, 3, 1, 6, 0)
    ifd += struct.pack(order + "HHII", 315, 2, len(artist), 62)
    ifd += struct.pack(order + "HHII", 34665, 4, 1, 80)
    ifd += struct.pack(order + "HHII", 40093, 1, len(author), 68) + bytes(4)  # Windows' author
    camera = struct.pack(order + "HHHII", 3, 37500, 7, 10, 122)  # the maker note, which may have offsets in it
    camera += struct.pack(order + "HHIHH", 40962, 3, 1, 10, 0) + struct.pack(order + "HHIHH", 40963, 3, 1, 7, 0)
    block = mark + struct.pack(order + "HI", 42, 8) + ifd + artist.ljust(6, b"\0") + author.ljust(12, b"\0") + camera
    return b"Exif\0\0" + block + bytes(4) + b"maker note"


def jpeg_file(path: Path) -> Path:
    """Write a JPEG file with every kind of metadata."""
    buffer = io.BytesIO()
    options = {"exif": exif_block(), "xmp": XMP, "icc_profile": ICC, "dpi": (300, 300), "comment": "Grüße".encode()}
    image_of("RGB", 7, 10).save(buffer, "JPEG", **options)
    resource = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
    segment = b"\xff\xed" + struct.pack(">H", len(resource) + 2) + resource
    path.write_bytes(buffer.getvalue()[:2] + segment + buffer.getvalue()[2:])
    return path


def repaired(picture: Picture) -> Image.Image:
    """Return what a repair returns: the pixels with the metadata."""
    return picture.add_metadata(Image.fromarray(picture.pixels.squeeze()))


def saved(image: Image.Image, path: Path) -> tuple[Image.Image, list[str]]:
    """Save in both ways, and return the file with the names of what was left out."""
    names = []
    for save in (lambda: save_picture(image, path, force=True), lambda: image.save(path)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save()
        names.append([str(one.message).partition("file: ")[2] for one in caught])
        assert all(one.category is AdhereWarning for one in caught), caught
    assert names[0] == names[1]
    with Image.open(path) as again:
        again.load()
    return again, names[0][0].split(", ") if names[0] else []


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [
        (".jpg", []),
        (".png", ["IPTC"]),
        (".webp", ["comment", "IPTC"]),
        (".tif", ["comment"]),
        (".bmp", ["ICC profile", "EXIF", "XMP", "comment", "IPTC"]),
    ],
)
def test_everything_is_kept_or_named(tmp_path, suffix, lost):
    picture = as_picture(jpeg_file(tmp_path / "in.jpg"))
    assert picture.size == (10, 7)
    again, left_out = saved(repaired(picture), tmp_path / f"out{suffix}")
    assert left_out == lost
    exif = again.getexif()
    if "EXIF" not in lost:
        assert (exif.get(274, 1), exif.get_ifd(34665)[37500]) == (1, b"maker note")
        assert exif.get(315).encode("latin-1") == "Zoë".encode()
        assert exif.get(40093) == "Zoë".encode("utf-16le") + b"\0\0"
        assert (exif.get_ifd(34665)[40962], exif.get_ifd(34665)[40963]) == (7, 10)  # the upright size
    if "XMP" not in lost:
        assert again.info["xmp"] == XMP
        assert again.info["icc_profile"] == ICC
    if "comment" not in lost:
        comment = again.info["comment" if suffix == ".jpg" else "Comment"]
        assert (comment.decode() if isinstance(comment, bytes) else comment) == "Grüße"
    if "IPTC" not in lost:
        assert IptcImagePlugin.getiptcinfo(again) == {(2, 25): b"beach", (2, 120): b"A sunset"}
    if suffix != ".webp":
        assert [round(value) for value in again.info["dpi"]] == [300, 300]


def test_a_result_may_be_the_input_of_another_task(tmp_path):
    for path in (jpeg_file(tmp_path / "in.jpg"), geotiff(tmp_path / "in.tif")):
        picture = as_picture(path)
        picture = replace(picture, metadata={**picture.metadata, "left_out": ("something",)})
        assert as_picture(repaired(picture)).metadata == picture.metadata


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_exif_block_changes_in_its_orientation_only(tmp_path, order):
    block = exif_block(order)
    image_of("RGB", 10, 7).save(tmp_path / "in.png", exif=block)  # of this size when it is upright, too
    exif = as_picture(tmp_path / "in.png").metadata["exif"]
    upright = block.replace(struct.pack(order + "HHIH", 274, 3, 1, 6), struct.pack(order + "HHIH", 274, 3, 1, 1))
    start = exif.index(struct.pack(order + "HH", 40962, 4))
    assert exif[:start] == upright[:start]
    assert exif.endswith(b"maker note")
    assert len(exif) == len(block)


@pytest.mark.parametrize("source", [".tif", ".png", ".webp"])
@pytest.mark.parametrize("target", SUFFIXES)
def test_metadata_survive_from_every_format_to_every_other(tmp_path, source, target):
    saved(repaired(as_picture(jpeg_file(tmp_path / "in.jpg"))), tmp_path / f"middle{source}")
    again, left_out = saved(repaired(as_picture(tmp_path / f"middle{source}")), tmp_path / f"out{target}")
    assert set(left_out) <= {"IPTC", "comment", "PNG text"}
    assert again.getexif().get(315).encode("latin-1") == "Zoë".encode()
    assert again.getexif().get_ifd(34665)[37500] == b"maker note"
    assert (again.info["xmp"], again.info["icc_profile"]) == (XMP, ICC)


def test_text_gamma_and_primaries_of_png_files(tmp_path):
    chunks = PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100_000))
    chunks.add(b"cHRM", struct.pack(">8I", *range(31_000, 31_008)))
    chunks.add_text("Title", "a title")
    chunks.add_itxt("parameters", "Grüße, steps: 20")
    image_of("RGB").save(tmp_path / "in.png", pnginfo=chunks)
    image = repaired(as_picture(tmp_path / "in.png"))
    again, left_out = saved(image, tmp_path / "out.png")
    assert left_out == []
    assert again.info["gamma"] == 1
    assert again.info["chromaticity"] == pytest.approx([x / 100_000 for x in range(31_000, 31_008)])
    assert (again.info["Title"], again.info["parameters"]) == ("a title", "Grüße, steps: 20")
    assert saved(image, tmp_path / "out.jpg")[1] == ["PNG text", "PNG gamma and primaries"]


def geotiff(path: Path) -> Path:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in (
        (33550, 12, (0.5, 0.5, 0.0)),
        (33922, 12, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)),
        (34735, 3, (1, 1, 0, 1, 1024, 0, 1, 1)),
        (42113, 2, "-9999"),
        (65000, 2, "private"),
    ):
        tags.tagtype[tag] = kind
        tags[tag] = value
    image_of("I;16").save(path, tiffinfo=tags, compression="tiff_lzw")
    return path


def test_georeferenced_pictures(tmp_path):
    picture = as_picture(geotiff(tmp_path / "in.tif"))
    again, left_out = saved(repaired(picture), tmp_path / "out.tif")
    assert left_out == []
    tags = again.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    assert tags[33550] == (0.5, 0.5, 0.0)
    assert tags[33922] == (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)
    assert tags[34735] == (1, 1, 0, 1, 1024, 0, 1, 1)
    assert (tags[42113], tags[65000], tags[259]) == ("-9999", "private", 5)
    assert saved(repaired(picture), tmp_path / "out.png")[1] == ["GeoTIFF tags"]
    enlarged = picture.add_metadata(Image.new("L", (62, 48)))
    enlarged.info = resized(picture.metadata, (48, 62))
    assert saved(enlarged, tmp_path / "large.tif")[1] == ["GeoTIFF tags"]


@pytest.mark.parametrize(
    ("mode", "compression", "kept"),
    [
        ("1", "group4", "group4"),
        ("1", "group3", "group3"),
        ("1", "packbits", "packbits"),
        ("L", "tiff_lzw", "tiff_lzw"),
        ("RGB", "tiff_adobe_deflate", "tiff_adobe_deflate"),
        ("RGB", "jpeg", "tiff_adobe_deflate"),  # it would change known pixels
        ("RGB", None, "raw"),
    ],
)
def test_the_compression_of_a_tiff_file_is_kept(tmp_path, mode, compression, kept):
    image_of(mode).save(tmp_path / "in.tif", compression=compression)
    picture = as_picture(tmp_path / "in.tif")
    image = repaired(picture) if mode != "1" else picture.add_metadata(image_of("1"))
    again, left_out = saved(image, tmp_path / "out.tif")
    assert (again.mode, again.info["compression"], left_out) == (mode, kept, [])
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_a_compressed_tiff_file_with_camera_data_is_written_without_compression(tmp_path):
    """Pillow writes one or the other."""
    image_of("RGB").save(tmp_path / "in.tif", compression="tiff_lzw")
    picture = as_picture(tmp_path / "in.tif")
    image = repaired(picture)
    image.info["exif"] = as_picture(jpeg_file(tmp_path / "in.jpg")).metadata["exif"]
    again, left_out = saved(image, tmp_path / "out.tif")
    assert left_out == ["TIFF compression"]
    assert again.getexif().get_ifd(34665)[37500] == b"maker note"


def test_xmp_that_becomes_false_is_removed(tmp_path):
    gain_map = b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    size = b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="A"'
    for extra, names in ((gain_map, ["XMP of other pictures in the file"]), (size, [])):
        image_of("RGB").save(tmp_path / "in.png", pnginfo=None)
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", (RATING % extra).decode())
        image_of("RGB").save(tmp_path / "in.png", pnginfo=chunks)
        again, left_out = saved(repaired(as_picture(tmp_path / "in.png")), tmp_path / "out.png")
        assert left_out == names
        xmp = again.info["xmp"]
        assert b'xmp:Rating="5"' in xmp
        assert b"hdrgm:Version" not in xmp
        assert b"Orientation" not in xmp
        assert (b'tiff:Make="A"' in xmp) == (extra is size)


def test_an_enlarged_picture_has_exif_of_its_size_and_no_geometry_of_a_panorama():
    panorama = RATING % b'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:FullPanoWidthPixels="10"'
    metadata = resized({"exif": exif_block(), "xmp": panorama, "dpi": (300.0, 300.0)}, (40, 28))
    exif = Image.Exif()
    exif.load(metadata["exif"])
    assert (exif.get_ifd(34665)[40962], exif.get_ifd(34665)[40963]) == (28, 40)
    assert b"FullPano" not in metadata["xmp"]
    assert metadata["left_out"] == ("XMP of the panorama",)
    assert metadata["dpi"] == (300.0, 300.0)


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        (b"\xff\xeb\0\x22JP\0\1\0\0\0\1\0\0\0\x18jumb" + bytes(16), "content credentials (C2PA)"),
        (b"\xff\xe2\0\x08MPF\0zz", "other pictures in the file (such as a gain map)"),
        (b"\xff\xe9\0\x08secret", "JPEG segment APP9"),
        (b"\xff\xed\0\x1cPhotoshop 3.0\x008BIM\x04\x0b\0\0\0\0\0\0", "Photoshop settings"),
    ],
)
def test_other_parts_of_a_jpeg_file_are_named(tmp_path, segment, name):
    buffer = io.BytesIO()
    image_of("RGB").save(buffer, "JPEG")
    (tmp_path / "in.jpg").write_bytes(buffer.getvalue()[:2] + segment + buffer.getvalue()[2:])
    assert saved(repaired(as_picture(tmp_path / "in.jpg")), tmp_path / "out.jpg")[1] == [name]


def test_bits_and_colors_that_are_lost_on_reading_are_named(tmp_path):
    image_of("CMYK").save(tmp_path / "in.tif", icc_profile=bytes(16) + b"CMYK" + bytes(108))
    left_out = saved(repaired(as_picture(tmp_path / "in.tif")), tmp_path / "out.png")[1]
    assert left_out == ["CMYK (converted to RGB)", "ICC profile"]
    image_of("I;16").save(tmp_path / "in.png", transparency=7)
    assert saved(repaired(as_picture(tmp_path / "in.png")), tmp_path / "out.png")[1] == ["the transparent value"]


@pytest.mark.parametrize(
    "info", [{"dpi": (float("nan"), 0)}, {"dpi": 72}, {"xmp": "text"}, {"exif": 3}, {"comment": 5}]
)
def test_an_info_that_means_something_else_is_ignored(tmp_path, info):
    image = image_of("RGB")
    image.info.update(info)
    save_picture(image, tmp_path / "out.jpg")
    assert as_picture(tmp_path / "out.jpg").size == image.size[::-1]


@pytest.mark.parametrize("damage", [b"", b"Exif\0\0", b"Exif\0\0XX*\0\0\0\0\x08", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_is_named(tmp_path, damage):
    image_of("RGB").save(tmp_path / "in.jpg", exif=damage)
    left_out = saved(repaired(as_picture(tmp_path / "in.jpg")), tmp_path / "out.jpg")[1]
    assert left_out == (["damaged EXIF"] if len(damage) > 6 else [])


@settings(deadline=None)
@given(st.sampled_from([".jpg", ".png", ".webp", ".tif"]), st.data())
def test_damaged_metadata_lose_no_picture(suffix, data):
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        original = repaired(as_picture(jpeg_file(folder / "in.jpg")))
        save_picture(original, folder / f"damaged{suffix}")
        content = bytearray((folder / f"damaged{suffix}").read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(st.integers(0, 255))
        (folder / f"damaged{suffix}").write_bytes(content)
        try:
            picture = as_picture(folder / f"damaged{suffix}")
        except AdhereError as error:
            assert "\n" not in str(error)
            return
        if max(picture.size) < 1000:  # WebP has a limit
            for target in (*SUFFIXES, ".bmp"):
                save_picture(repaired(picture), folder / f"out{target}", force=True)
