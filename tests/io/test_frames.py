"""Files with several pictures, and raw files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from adhere.errors import AdhereWarning
from adhere.io.images import as_picture, check_output, save_picture
from adhere.io.masks import as_mask
from tests.picture_files import image_of, noise, refusal

COLORS = ["red", "lime", "blue"]


def file_with_frames(folder: Path, suffix: str) -> Path:
    """Write a file with a red, a green and a blue picture."""
    path = folder / f"frames{suffix}"
    frames = [Image.new("RGB", (8, 6), color) for color in COLORS]
    options = {".webp": {"lossless": True}, ".mpo": {"quality": 95}}.get(suffix, {})
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_a_frame_must_be_chosen(tmp_path, suffix):
    path = file_with_frames(tmp_path, suffix)
    assert f"{path}: holds 3 pictures; choose one of PHOTO with --frame N" in refusal(as_picture, path)
    for frame, color in enumerate(COLORS):
        expected = np.asarray(Image.new("RGB", (1, 1), color))[0, 0]
        assert (as_picture(path, frame).pixels == expected).all()
    assert "has no frame 3; give 0 to 2" in refusal(as_picture, path, 3)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_a_mask_with_several_pictures_has_no_frame_to_choose(tmp_path, suffix):
    path = file_with_frames(tmp_path, suffix)
    message = refusal(as_mask, path, (6, 8))
    assert message == f"{path}: holds 3 pictures; a mask is one picture: save it as a file of its own"


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_each_picture_of_an_mpo_file_is_read_and_the_others_are_named(tmp_path, frame):
    picture = as_picture(file_with_frames(tmp_path, ".mpo"), frame)
    expected = np.asarray(Image.new("RGB", (1, 1), COLORS[frame]))[0, 0]
    assert abs(picture.pixels.astype(int) - expected).max() < 8  # JPEG
    assert len(picture.metadata["left_out"]) == 1
    assert "other pictures in the file" in picture.metadata["left_out"][0]


def test_a_file_with_one_picture_has_frame_0(tmp_path):
    image_of("RGB").save(tmp_path / "a.png")
    assert np.array_equal(as_picture(tmp_path / "a.png", 0).pixels, np.asarray(image_of("RGB")))
    assert "has no frame 1; give 0, its only picture" in refusal(as_picture, tmp_path / "a.png", 1)


def test_the_current_frame_of_a_pil_image_is_read(tmp_path):
    with Image.open(file_with_frames(tmp_path, ".tif")) as image:
        image.seek(1)
        assert (as_picture(image).pixels == (0, 255, 0)).all()


@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp", ".mpo"])
def test_no_picture_is_lost_by_replacing_a_file(tmp_path, suffix):
    path = file_with_frames(tmp_path, suffix)
    path = path.rename(path.with_suffix(".jpg")) if suffix == ".mpo" else path
    before = path.read_bytes()
    for check in (check_output, lambda path, force: save_picture(image_of("RGB"), path, force=force)):
        message = refusal(check, path, force=True)
        assert "holds 3 pictures, and all but one would be lost; choose another name" in message
    assert path.read_bytes() == before


def test_the_main_picture_of_an_mpo_file_is_read_and_the_others_are_named(tmp_path):
    picture = as_picture(file_with_frames(tmp_path, ".mpo"))
    assert abs(picture.pixels.astype(int) - (255, 0, 0)).max() < 8  # JPEG
    with pytest.warns(AdhereWarning, match="not copied to the PNG file: other pictures in the file"):
        picture.add_metadata(Image.fromarray(picture.pixels)).save(tmp_path / "out.png")


def test_reduced_copies_in_a_tiff_file_are_no_pictures_of_their_own(tmp_path):
    """As in a pyramid, such as a cloud-optimized GeoTIFF."""
    path, copy = tmp_path / "pyramid.tif", TiffImagePlugin.ImageFileDirectory_v2()
    copy[254] = 1
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as file:
        image_of("RGB", 8, 10).save(file, "TIFF")
        file.newFrame()
        image_of("RGB", 4, 5).save(file, "TIFF", tiffinfo=copy)
        file.newFrame()
    for picture in (as_picture(path), as_picture(path, 0)):
        assert picture.size == (8, 10)
        assert picture.metadata["left_out"] == ("reduced copies and masks in the file",)
    check_output(path, force=True)


# --- raw files


def tiff_directory(entries: list[tuple[int, int, int, int]]) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + packed + bytes(4)


def raw_file(path: Path, *extra: tuple[int, int, int, int], magic: bytes = b"") -> Path:
    """Write a TIFF file whose first picture is a preview of 4 x 4 gray pixels, with other tags."""
    entries = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (277, 3, 1, 1), (279, 4, 1, 16)]
    entries += [(273, 4, 1, 16), *([] if any(tag == 262 for tag, *_ in extra) else [(262, 3, 1, 1)]), *extra]
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 32) + magic.ljust(8, b"\0") + bytes(range(16)) + tiff_directory(entries)
    )
    return path


def test_the_file_without_marks_of_a_raw_file_is_read(tmp_path):
    assert as_picture(raw_file(tmp_path / "a.tif")).pixels.ravel().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("name", "tags", "magic"),
    [
        ("a.tif", [(50706, 1, 4, 0x0401)], b""),  # DNG
        ("a.tif", [(254, 4, 1, 1), (330, 4, 1, 8)], b""),  # NEF, ARW: a reduced copy of what is in another directory
        ("a.tif", [(262, 3, 1, 32803)], b""),  # a color filter array
        ("a.tif", [], b"CR\2\0"),  # CR2
        ("a.NEF", [], b""),
    ],
)
def test_the_preview_of_a_raw_file_is_not_taken_for_the_picture(tmp_path, name, tags, magic):
    path = raw_file(tmp_path / name, *tags, magic=magic)
    if (262, 3, 1, 32803) in tags:  # Pillow cannot open it
        assert str(path) in refusal(as_picture, path)
        return
    assert f"{path}: is a raw file" in refusal(as_picture, path)
    with Image.open(path) as image:
        if name == "a.tif":
            assert "the image: is a raw file" in refusal(as_picture, image)


@pytest.mark.parametrize("name", ["a.heic", "a.nef", "a.dng", "a.cr3"])
def test_other_files_than_tiff_are_read_whatever_their_suffix_is(tmp_path, name):
    image_of("RGB").save(tmp_path / name, "PNG")
    assert np.array_equal(as_picture(tmp_path / name).pixels, np.asarray(image_of("RGB")))


@pytest.mark.parametrize(
    ("name", "hint"), [("a.cr3", "is a raw file; develop it"), ("a.heic", "HEIC cannot be read; export it as JPEG")]
)
def test_what_to_do_with_files_that_pillow_cannot_read(tmp_path, name, hint):
    (tmp_path / name).write_bytes(noise(100).tobytes())
    assert hint in refusal(as_picture, tmp_path / name)
