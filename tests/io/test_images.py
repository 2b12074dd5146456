"""Reading pictures: every format, mode and orientation; and the files that are refused."""

import io
import os
import struct
import tempfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from adhere.errors import AdhereError, AdhereWarning
from adhere.io import images
from adhere.io.images import Picture, as_picture, pad_to_multiple, save_picture
from adhere.io.masks import as_mask
from tests.picture_files import HEIGHT, OPTIONS, SIZE, WIDTH, encoded, hole, image_of, noise, refusal, written

# --- reading


@pytest.mark.parametrize(
    ("mode", "suffix", "channels", "alpha", "dtype"),
    [
        ("1", ".png", 1, False, "uint8"),
        ("L", ".png", 1, False, "uint8"),
        ("L", ".jpg", 1, False, "uint8"),
        ("LA", ".png", 1, True, "uint8"),
        ("P", ".png", 3, False, "uint8"),
        ("P", ".gif", 3, False, "uint8"),
        ("PA", ".tiff", 3, True, "uint8"),
        ("RGB", ".png", 3, False, "uint8"),
        ("RGB", ".bmp", 3, False, "uint8"),
        ("RGB", ".jpg", 3, False, "uint8"),
        ("RGBA", ".png", 3, True, "uint8"),
        ("RGBA", ".webp", 3, True, "uint8"),
        ("CMYK", ".jpg", 3, False, "uint8"),
        ("CMYK", ".tiff", 3, False, "uint8"),
        ("LAB", ".tiff", 3, False, "uint8"),
        ("I;16", ".png", 1, False, "uint16"),
        ("I;16", ".tiff", 1, False, "uint16"),
        ("I", ".tiff", 1, False, "uint16"),
    ],
)
def test_every_mode_is_read_with_its_channels_and_bit_depth(tmp_path, mode, suffix, channels, alpha, dtype):
    path = written(tmp_path, mode, suffix)
    picture = as_picture(path)
    with Image.open(path) as image:
        assert picture.format == image.format
        if dtype == "uint16":
            expected = np.asarray(image).astype(np.uint16)[..., None]
        else:
            expected_mode = ("L" if channels == 1 else "RGB") + "A" * alpha
            expected = np.asarray(image.convert(expected_mode)).reshape(*SIZE, -1)
    assert picture.size == SIZE
    assert picture.pixels.shape == (*SIZE, channels)
    assert picture.pixels.dtype == dtype
    assert (picture.alpha is not None) == alpha
    planes = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    assert np.array_equal(planes, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_color_becomes_alpha(tmp_path, mode):
    image = image_of(mode)
    key = image.getpixel((3, 5))
    image.save(tmp_path / "keyed.png", transparency=key)
    picture = as_picture(tmp_path / "keyed.png")
    same = (np.asarray(image).reshape(*SIZE, -1) == np.array(key)).all(-1)
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(same, 0, 255))
    assert np.array_equal(picture.pixels, np.asarray(image.convert("L" if mode == "L" else "RGB")).reshape(*SIZE, -1))


def test_twelve_bits_are_scaled_to_sixteen(tmp_path):
    """Pillow returns the 12-bit values, which would look nearly black as 16-bit values."""
    entries = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (279, 4, 1, 3)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    values = bytes([0xFF, 0xF8, 0x00])  # 4095 and 2048
    header = b"II*\0" + struct.pack("<I", 12) + values + b"\0"
    (tmp_path / "a.tif").write_bytes(header + struct.pack("<H", len(entries)) + packed + bytes(4))
    picture = as_picture(tmp_path / "a.tif")
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.ravel().tolist() == [65535, 2048 * 65535 // 4095]


def test_one_bit_is_known(tmp_path):
    image_of("1").save(tmp_path / "a.png")
    picture = as_picture(tmp_path / "a.png")
    assert picture.is_bilevel
    assert set(np.unique(picture.pixels)) == {0, 255}


def test_hidden_colors_are_not_in_the_tensor():
    pixels = noise(9, 14, 3)
    alpha = np.full((9, 14), 255, np.uint8)
    alpha[:, 7:] = 0
    pixels[alpha > 0] = (200, 120, 60)
    x = Picture(pixels, alpha).tensor()
    assert torch.allclose(x, torch.tensor([200.0, 120, 60]).view(1, 3, 1, 1) / 127.5 - 1, atol=1e-5)
    part = Picture(pixels, alpha).tensor((slice(2, 5), slice(3, 9)))
    assert part.shape == (1, 3, 3, 6)
    hidden = Picture(pixels, np.zeros((9, 14), np.uint8))
    assert torch.equal(hidden.tensor(), Picture(pixels).tensor())  # nothing is visible: the colors are all there is


def test_sixteen_bit_color_is_reduced_to_eight(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + bytes([200, 7, 100, 7, 50, 7])))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    picture = as_picture(tmp_path / "deep.png")
    assert picture.pixels.tolist() == [[[200, 100, 50]]]
    assert picture.metadata["left_out"] == ("8 of the 16 bits per sample",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".webp"])
def test_exif_orientation_is_applied_and_reset(tmp_path, orientation, mode, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "A. Person"
    path = tmp_path / f"rotated{suffix}"
    image_of(mode).save(path, exif=exif, **OPTIONS.get(suffix, {}))
    plain = tmp_path / f"plain{suffix}"
    image_of(mode).save(plain, **OPTIONS.get(suffix, {}))
    v = as_picture(plain).pixels
    transposed = v.swapaxes(0, 1)  # the EXIF standard says where the 0th row and the 0th column are
    upright = [v, v[:, ::-1], v[::-1, ::-1], v[::-1]]
    upright += [transposed, transposed[:, ::-1], transposed[::-1, ::-1], transposed[::-1]]
    picture = as_picture(path)
    assert np.array_equal(picture.pixels, upright[orientation - 1])
    kept = Image.Exif()
    kept.load(picture.metadata["exif"])
    assert (kept[ExifTags.Base.Orientation], kept[ExifTags.Base.Artist]) == (1, "A. Person")


def test_exif_orientation_is_applied_to_sixteen_bit_gray(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image_of("I;16").save(tmp_path / "deep.png", exif=exif)
    deep = np.asarray(image_of("I;16"))
    assert np.array_equal(as_picture(tmp_path / "deep.png").pixels[..., 0], np.rot90(deep, -1))


def test_a_picture_with_damaged_exif_is_read(tmp_path):
    image_of("RGB").save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert np.array_equal(as_picture(tmp_path / "a.png").pixels, np.asarray(image_of("RGB")))


def test_the_exif_thumbnail_is_dropped_and_the_camera_data_kept(tmp_path):
    # big-endian TIFF: IFD0 with an artist and an Exif directory, then IFD1 with a thumbnail
    ifd0 = struct.pack(">HHHI4sHHIII", 2, 0x013B, 2, 4, b"Ann\0", 0x8769, 4, 1, 38, 56)
    exif_ifd = struct.pack(">HHHIHHI", 1, 0x8827, 3, 1, 400, 0, 0)
    ifd1 = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, 86, 0x0202, 4, 1, 9, 0)
    block = b"MM\0*" + struct.pack(">I", 8) + ifd0 + exif_ifd + ifd1 + b"THUMBNAIL"
    block_path = tmp_path / "a.jpg"
    image_of("RGB").save(block_path, exif=b"Exif\0\0" + block)
    assert b"THUMBNAIL" in block_path.read_bytes()
    exif = as_picture(block_path).metadata["exif"]
    assert exif is not None
    assert b"THUMBNAIL" not in exif
    kept = Image.Exif()
    kept.load(exif)
    assert kept[ExifTags.Base.Artist] == "Ann"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400


@pytest.mark.parametrize(("mode", "kept"), [("RGB", True), ("L", True), ("CMYK", False)])
def test_the_icc_profile_is_read_unless_it_is_for_cmyk(tmp_path, mode, kept):
    profile = bytes(16) + b"test" + bytes(108)
    image_of(mode).save(tmp_path / "a.tiff", icc_profile=profile)
    assert as_picture(tmp_path / "a.tiff").metadata.get("icc_profile") == (profile if kept else None)


# --- refused files


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in refusal(as_picture, tmp_path / "none.png")
    assert "is a folder" in refusal(as_picture, tmp_path)


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "RGB", ".png")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)  # a mock, because root may read everything
    assert "permission" in refusal(as_picture, path)


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    message = refusal(as_picture, tmp_path / "a.png")
    assert "not an image" in message
    assert "PNG, JPEG" in message


def test_an_image_without_pixels_is_refused(tmp_path):
    data = bytearray(encoded(image_of("RGB"), "BMP"))
    data[18:22] = bytes(4)  # the width
    (tmp_path / "a.bmp").write_bytes(data)
    assert str(tmp_path / "a.bmp") in refusal(as_picture, tmp_path / "a.bmp")
    assert "is empty (0 x 5 pixels)" in refusal(as_picture, Image.new("RGB", (0, 5)))
    assert "is empty (5 x 0 pixels)" in refusal(as_picture, np.zeros((0, 5), np.uint8))


def test_a_vector_drawing_is_refused_before_it_is_decoded(tmp_path):
    image_of("RGB").save(tmp_path / "a.eps")
    assert "EPS is a drawing" in refusal(as_picture, tmp_path / "a.eps")


FILES = {
    "PNG": encoded(image_of("RGB"), "PNG"),
    "JPEG": encoded(image_of("RGB"), "JPEG"),
    "WEBP": encoded(image_of("RGB"), "WEBP", lossless=True),
    "TIFF": encoded(image_of("RGB"), "TIFF"),
    "BMP": encoded(image_of("RGB"), "BMP"),
    "GIF": encoded(image_of("P"), "GIF"),
}


@pytest.mark.parametrize("format", FILES)
def test_a_file_cut_in_half_is_refused(tmp_path, format):
    (tmp_path / "cut").write_bytes(FILES[format][: len(FILES[format]) // 2])
    assert "damaged" in refusal(as_picture, tmp_path / "cut")


@settings(deadline=None)  # files and a busy machine
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_truncated_file_is_refused_or_read_completely(format, data):
    whole = FILES[format]
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cut")
        path.write_bytes(cut)
        try:
            pixels = as_picture(path).pixels
        except AdhereError as error:
            assert "\n" not in str(error)
        else:
            assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))


@settings(deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_raises_no_other_exception(format, data):
    damaged = bytearray(FILES[format])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 200) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged")
        path.write_bytes(damaged)
        try:
            as_picture(path)
        except AdhereError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("side", [16_000, 30_000])  # above our limit; far above it
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side, monkeypatch):
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    assert "too large; Pillow allows 178,956,970 pixels: make it smaller" in refusal(as_picture, tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    message = refusal(as_picture, tmp_path / "bomb.png")
    assert "at most 250,000,000 are allowed: make it smaller" in message


def test_the_limit_of_pillow_is_the_callers_and_is_obeyed(tmp_path, monkeypatch):
    path = written(tmp_path, "RGB", ".png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2)  # Pillow warns above it, and raises above twice
    as_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "Pillow allows 200 pixels: make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS" in refusal(as_picture, path)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_that_read_pictures_leave_the_process_as_it_was(tmp_path, monkeypatch):
    """Pillow's limit and the filters of warnings, during the reading and after it; the reader is held while it opens.

    The threads enter one after the other and leave in the same order, which would restore the filters wrongly.
    """
    path, opened, filters = written(tmp_path, "RGB", ".png"), Image.open, list(warnings.filters)
    entered, leave, limits = [Event(), Event()], [Event(), Event()], []

    def held(file, *args, **kwargs):
        number = len(limits)
        limits.append(Image.MAX_IMAGE_PIXELS)
        entered[number].set()
        assert leave[number].wait(60)
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "a.py", 1, module="PIL.TiffImagePlugin")
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345)
    monkeypatch.setattr(Image, "open", held)
    with ThreadPoolExecutor(2) as pool:
        readers = []
        for one in entered:
            readers.append(pool.submit(as_picture, path))
            assert one.wait(60)
        with pytest.warns(AdhereWarning, match="soft"):  # what other threads warn of is shown
            as_mask(np.full(SIZE, 128, np.uint8) * hole(), SIZE)
        for one, reader in zip(leave, readers, strict=True):
            one.set()
            assert reader.result(60).size == SIZE
    assert limits == [12_345, 12_345] and Image.MAX_IMAGE_PIXELS == 12_345
    assert warnings.filters == filters


def test_the_largest_allowed_picture_is_read(tmp_path, monkeypatch):
    path = written(tmp_path, "RGB", ".png")
    monkeypatch.setattr(images, "_MAX_PIXELS", HEIGHT * WIDTH)
    as_picture(path)
    monkeypatch.setattr(images, "_MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert f"is {WIDTH} x {HEIGHT}" in refusal(as_picture, path)
    assert f"is {WIDTH} x {HEIGHT}" in refusal(as_picture, noise(HEIGHT, WIDTH))


def test_values_that_do_not_fit_into_16_bits_are_refused(tmp_path):
    image_of("F").save(tmp_path / "a.tiff")
    assert "floating-point" in refusal(as_picture, tmp_path / "a.tiff")
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "b.tiff")
    assert "0 to 70000" in refusal(as_picture, tmp_path / "b.tiff")


@pytest.mark.parametrize("name", ["a.ppm", "a.xbm", "a.tga", "a.pcx", "a.sgi", "a.dds", "a.jp2"])
def test_formats_that_are_only_read(tmp_path, name):
    """What Pillow keeps about the samples of a file that is not decoded yet differs between them."""
    image = image_of("1" if name == "a.xbm" else "RGB")
    image.save(tmp_path / name)  # JPEG 2000 is lossless by default
    expected = np.asarray(image.convert("L"))[..., None] if name == "a.xbm" else np.asarray(image)
    assert np.array_equal(as_picture(tmp_path / name).pixels, expected)


def test_what_is_no_regular_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    assert "is a pipe or a device; give an image file" in refusal(as_picture, tmp_path / "pipe")
    assert "is a pipe or a device" in refusal(as_picture, "/dev/zero")
    assert "cannot be read (Too many levels of symbolic links)" in refusal(as_picture, tmp_path / "loop")
    assert "cannot be read (File name too long)" in refusal(as_picture, "x" * 5000)
    assert "cannot be read (embedded null byte)" in refusal(as_picture, "a\0b")
    for path in (tmp_path / "dangling", tmp_path / "none", tmp_path / "none" / "a.png"):
        assert f"{path}: no such file; check the name" in refusal(as_picture, path)


@pytest.mark.parametrize("name", ["a.tiff", "a.pgm"])
def test_that_32_bits_become_16_is_named(tmp_path, name):
    """A PGM file has 16 bits; Pillow has one mode for both."""
    values = np.array([[0, 40_000]], np.int32)
    Image.fromarray(values).save(tmp_path / name)
    expected = ("16 of the 32 bits per sample",) if name == "a.tiff" else ()
    for picture in (as_picture(tmp_path / name), as_picture(Image.open(tmp_path / name))):
        assert np.array_equal(picture.pixels[..., 0], values)
        assert picture.metadata.get("left_out", ()) == expected
    with warnings.catch_warnings(record=True) as notes:
        save_picture(picture.add_metadata(Image.fromarray(picture.pixels[..., 0])), tmp_path / "out.jpg")
    named = ", ".join([*expected, "8 of the 16 bits per sample"])
    assert [str(note.message) for note in notes] == [f"not copied to the JPEG file: {named}"]


@pytest.mark.parametrize("url", ["https://example.com/a.png", "HTTP://example.com/a.png"])
@pytest.mark.parametrize("read", [as_picture, lambda url: as_mask(url, SIZE)])
@pytest.mark.parametrize("path_type", [str, Path])
def test_a_url_is_refused_and_the_message_says_how_to_download_it(url, read, path_type):
    message = refusal(read, path_type(url))
    assert message.startswith(f"{url}: is a URL, not a file; download it first")
    assert "diffusers.utils.load_image(url)" in message


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written(tmp_path, "RGB", ".png")
    for name in (f"~/{path.name}", Path(f"~/{path.name}")):
        assert np.array_equal(as_picture(name).pixels, as_picture(path).pixels)
    Image.fromarray(hole()).save(tmp_path / "mask.png")
    assert np.array_equal(as_mask("~/mask.png", SIZE), hole())
    assert str(tmp_path / "none.png") in refusal(as_picture, "~/none.png")


# --- conversion from Python objects and to tensors


@pytest.mark.parametrize("v_max", [255, 65535])
def test_the_tensor_is_the_nearest_float32(v_max):
    dtype = np.uint8 if v_max == 255 else np.uint16
    values = np.arange(v_max + 1, dtype=dtype).reshape(16, -1)
    x = as_picture(values).tensor()
    assert x.dtype == torch.float32
    assert x.shape == (1, 3, *values.shape)
    assert x.is_contiguous()
    assert (x.min(), x.max()) == (-1, 1)
    expected = (values / (v_max / 2) - 1).astype(np.float32)
    for channel in x[0].numpy():
        assert np.array_equal(channel, expected)
    assert np.array_equal(np.rint((x[0, 0].double().numpy() + 1) * (v_max / 2)), values)


def test_the_tensor_keeps_the_order_of_channels():
    pixels = noise(5, 7, 3)
    assert np.array_equal(as_picture(pixels).tensor()[0, 2].numpy(), (pixels[..., 2] / 127.5 - 1).astype(np.float32))


def test_as_picture_takes_arrays_pil_images_paths_and_pictures(tmp_path):
    rgba, deep = noise(4, 6, 4), noise(4, 6, dtype=np.uint16)
    from_array, from_pil = as_picture(rgba), as_picture(Image.fromarray(rgba))
    for picture in (from_array, from_pil):
        assert np.array_equal(picture.pixels, rgba[..., :3])
        assert picture.size == (4, 6)
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, rgba[..., 3])
    assert np.array_equal(as_picture(deep).pixels[..., 0], deep)
    assert np.array_equal(as_picture(rgba[..., :1]).pixels, rgba[..., :1])
    assert as_picture(from_array) is from_array
    path = written(tmp_path, "RGB", ".png")
    assert np.array_equal(as_picture(str(path)).pixels, as_picture(path).pixels)
    rgba[:] = 0
    assert from_array.pixels.any()  # the picture holds a copy


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), int), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.uint16)]
)
def test_arrays_of_another_type_or_shape_are_refused(array):
    message = refusal(as_picture, array)
    assert str(array.dtype) in message
    assert "give uint8" in message


def test_a_truncated_pil_image_is_refused(tmp_path):
    (tmp_path / "cut.png").write_bytes(FILES["PNG"][:1000])
    with Image.open(tmp_path / "cut.png") as image:
        assert "cut short" in refusal(as_picture, image)


# --- padding


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 16))
def test_padding_then_cropping_is_the_identity(height, width, multiple):
    x = torch.arange(2.0 * height * width).reshape(1, 2, height, width)
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    assert padded.shape[2] - height < multiple
    assert padded.shape[3] - width < multiple
    assert torch.equal(padded[..., :height, :width], x)
    assert set(padded.unique().tolist()) == set(x.unique().tolist())  # no new values


def test_padding_reflects_and_repeats_the_edge_of_a_short_axis():
    padded = pad_to_multiple(torch.tensor([[[[1.0, 2, 3]]]]), 5)
    assert padded[0, 0, 0].tolist() == [1, 2, 3, 2, 1]
    assert torch.equal(padded[0, 0], padded[0, 0, :1].expand(5, 5))  # one row cannot be reflected
    with pytest.raises(ValueError, match="1 or more"):
        pad_to_multiple(torch.zeros(1, 1, 2, 2), 0)


def test_float_arrays_and_tensors_in_the_unit_interval_are_rounded_to_8_bits():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    floats = pixels / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1).float()
    for image in (floats, floats.astype(np.float32), tensor, tensor[None]):
        assert np.array_equal(as_picture(image).pixels, pixels)
    assert "from 0 to 47" in refusal(as_picture, pixels.astype(np.float32))
    assert "give float in [0, 1] of shape (C, H, W)" in refusal(as_picture, torch.zeros(2, 3, 4, 4))
    assert "give float in [0, 1] of shape (C, H, W)" in refusal(as_picture, torch.zeros(3, 4, 4, dtype=torch.uint8))
