"""Saving pictures: what a format can hold is kept, and no incomplete file appears."""

from contextlib import nullcontext

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

from adhere.errors import AdhereError, AdhereWarning
from adhere.io import images
from adhere.io.images import (
    Picture,
    as_picture,
    check_output,
    save_picture,
)
from tests.picture_files import HEIGHT, SIZE, WIDTH, image_of, noise, refusal, written


def test_the_icc_profile_and_exif_are_saved(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A. Person"
    exif[ExifTags.Base.Orientation] = 6
    profile = bytes(16) + b"RGB " + bytes(108)
    image_of("RGB").save(tmp_path / "in.jpg", exif=exif, icc_profile=profile)
    picture = as_picture(tmp_path / "in.jpg")
    image = picture.add_metadata(Image.fromarray(picture.pixels))
    for suffix in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".PNG"):
        path = tmp_path / f"out-{suffix}{suffix}"
        save_picture(image, path)
        again = as_picture(path)
        assert again.size == (WIDTH, HEIGHT)  # rotated once, not twice
        assert again.metadata["icc_profile"] == profile
        kept = Image.Exif()
        kept.load(again.metadata["exif"])
        assert kept[ExifTags.Base.Artist] == "A. Person"
    with pytest.warns(AdhereWarning, match="not copied to the BMP file: ICC profile, EXIF"):
        save_picture(image, tmp_path / "out.bmp")
    assert "icc_profile" not in as_picture(tmp_path / "out.bmp").metadata


def test_metadata_that_the_format_cannot_hold_is_left_out(tmp_path):
    profile = bytes(16) + b"GRAY" + bytes(108)
    exif = b"Exif\0\0MM\0*" + bytes(70_000)
    picture = Picture(noise(*SIZE, 1), None, {"icc_profile": profile, "exif": exif})
    image = picture.add_metadata(Image.fromarray(picture.pixels[..., 0]))
    save_picture(image, tmp_path / "out.png")
    for suffix, lost in ((".jpg", "JPEG file: EXIF"), (".webp", "WEBP file: ICC profile")):
        with pytest.warns(AdhereWarning, match=f"not copied to the {lost}$"):
            save_picture(image, tmp_path / f"out{suffix}")
    for suffix, kept in ((".png", profile), (".jpg", profile), (".webp", None)):
        with Image.open(tmp_path / f"out{suffix}") as again:
            assert again.info.get("icc_profile") == kept
            assert ("exif" in again.info) == (suffix != ".jpg")


def test_an_icc_profile_for_other_channels_is_left_out(tmp_path):
    for space, kept in ((b"RGB ", True), (b"CMYK", False), (b"GRAY", False)):
        image = image_of("RGB")
        image.info["icc_profile"] = bytes(16) + space + bytes(108)
        with nullcontext() if kept else pytest.warns(AdhereWarning, match="not copied to the PNG file: ICC profile"):
            save_picture(image, tmp_path / "a.png", force=True)
        assert ("icc_profile" in as_picture(tmp_path / "a.png").metadata) == kept


def test_jpeg_is_written_without_chroma_subsampling(tmp_path):
    save_picture(image_of("RGB"), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_flattened_onto_white(tmp_path, suffix, mode):
    color = (0, 0, 0, 0) if mode == "RGBA" else (0, 0)
    with pytest.warns(AdhereWarning, match=r"file: transparency \(flattened onto white\)$"):
        save_picture(Image.new(mode, (8, 8), color), tmp_path / f"a{suffix}")
    picture = as_picture(tmp_path / f"a{suffix}")
    assert picture.alpha is None
    assert (picture.pixels == 255).all()
    half = Image.new(mode, (8, 8), (*color[:-1], 128))
    save_picture(half, tmp_path / f"half{suffix}")
    assert abs(int(as_picture(tmp_path / f"half{suffix}").pixels[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp"])
def test_sixteen_bits_are_reduced_to_eight_if_the_format_needs_it(tmp_path, suffix):
    with pytest.warns(AdhereWarning, match="file: 8 of the 16 bits per sample$"):
        save_picture(Image.fromarray(np.full((8, 8), 257 * 200 - 100, np.uint16)), tmp_path / f"a{suffix}")
    assert (as_picture(tmp_path / f"a{suffix}").pixels == 200).all()


def test_large_png_files_are_compressed_less(tmp_path, monkeypatch):
    levels = []
    for limit in (HEIGHT * WIDTH, HEIGHT * WIDTH - 1):
        monkeypatch.setattr(images, "_FAST_PNG_PIXELS", limit)
        save_picture(image_of("RGB"), tmp_path / "a.png", force=True)
        content = (tmp_path / "a.png").read_bytes()
        levels.append(content[content.index(b"IDAT") + 5] >> 6)  # FLEVEL of the zlib header
    assert levels == [2, 0]  # default; fastest


def test_check_output_and_save_picture_refuse_the_same_paths(tmp_path):
    taken = written(tmp_path, "RGB", ".png")
    before = taken.read_bytes()
    cases = {
        tmp_path: "is a folder",
        tmp_path / "a.xyz": ".png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp",
        tmp_path / "a": "without suffix",
        tmp_path / "none" / "a.png": "does not exist",
        taken / "a.png": "does not exist",
        taken: "exists; choose another name or add --force",
    }
    for path, part in cases.items():
        assert part in refusal(check_output, path)
        assert part in refusal(save_picture, image_of("RGB"), path)
    assert taken.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [taken]
    check_output(taken, force=True)
    save_picture(image_of("L"), taken, force=True)
    assert as_picture(taken).pixels.shape[2] == 1
    assert "is a folder" in refusal(check_output, tmp_path, force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left\non device"), SystemExit])
def test_an_interrupted_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, error):
    path = written(tmp_path, "RGB", ".png")
    before = path.read_bytes()

    def write_half_then_raise(image, file, filename):
        file.write(b"half a file")
        raise error

    monkeypatch.setitem(Image.SAVE, "PNG", write_half_then_raise)
    with pytest.raises((AdhereError, KeyboardInterrupt, SystemExit)) as caught:
        save_picture(image_of("L"), path, force=True)
    if isinstance(error, OSError):
        assert caught.type is AdhereError
        assert "No space left on device" in str(caught.value)
        assert str(path) in str(caught.value)
    else:
        assert caught.type is error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_usual_permissions(tmp_path):
    save_picture(image_of("RGB"), tmp_path / "a.png")
    (tmp_path / "usual").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_picture_too_wide_for_its_format_is_refused(tmp_path):
    message = refusal(save_picture, Image.new("L", (20_000, 1)), tmp_path / "a.webp")
    assert "nothing was written" in message
    assert "a.webp" in message
    assert list(tmp_path.iterdir()) == []


def test_orientation_of_pil_images_agrees_with_pillow(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image_of("RGB").save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(as_picture(image).pixels, np.asarray(ImageOps.exif_transpose(image)))


def test_as_picture_does_not_change_the_pil_image(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageWidth] = WIDTH
    image_of("RGB").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert as_picture(image).size == (WIDTH, HEIGHT)
        assert image.size == (WIDTH, HEIGHT)
        assert dict(image.getexif()) == dict(exif)


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_output("~/a.png")
    save_picture(image_of("RGB"), "~/a.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]
    assert "exists" in refusal(check_output, "~/a.png")
    assert "exists" in refusal(save_picture, image_of("RGB"), "~/a.png")


def test_a_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a URL, not a file" in refusal(check_output, "https://example.com/a.png")
    assert "is a URL, not a file" in refusal(save_picture, image_of("RGB"), "https://example.com/a.png")
