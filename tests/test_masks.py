import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from adhere import masks
from adhere.images import Picture, picture_from, read_picture, save_picture
from adhere.masks import check_mask, keep_exactly, mask_from_alpha, read_mask
from tests.picture_files import HEIGHT, SIZE, WIDTH, encoded, hole, image_of, noise, refusal, written

LOSSLESS = [
    *((mode, suffix) for mode in ("L", "RGB", "P") for suffix in (".png", ".tiff", ".webp", ".bmp")),
    *((mode, suffix) for mode in ("RGBA",) for suffix in (".png", ".tiff", ".webp")),
    *((mode, suffix) for mode in ("LA", "I;16") for suffix in (".png", ".tiff")),
    ("1", ".png"),
    ("1", ".bmp"),
]

# --- masks


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_white_is_repainted_in_every_kind_of_mask_file(tmp_path, mode):
    white = Image.fromarray(hole())
    image = Image.fromarray(hole().astype(np.uint16) * 65535) if mode == "I;16" else white.convert("L").convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", SIZE), hole())
    assert np.array_equal(check_mask(image, SIZE), hole())
    assert np.array_equal(check_mask(tmp_path / "mask.png", SIZE), hole())


def test_soft_masks_are_cut_at_half():
    values = np.array([[0, 127, 128, 255]], np.uint8)
    expected = [[False, False, True, True]]
    assert check_mask(Image.fromarray(values), (1, 4)).tolist() == expected
    assert check_mask(values, (1, 4)).tolist() == expected
    assert check_mask(torch.tensor([[0, 0.49, 0.5, 1]]), (1, 4)).tolist() == expected
    assert check_mask(torch.tensor([[0, 0.49, 0.5, 1]], dtype=torch.bfloat16), (1, 4)).tolist() == expected


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_of_one_colour_is_read_by_its_alpha(tmp_path, colour):
    rgba = np.full((*SIZE, 4), colour, np.uint8)
    rgba[..., 3] = np.where(hole(), 100, 200)
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", SIZE), hole())


def test_a_mask_of_two_colours_is_read_by_its_colour_whatever_its_alpha(tmp_path):
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[hole()] = 255  # white strokes on a transparent layer
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", SIZE), hole())


def test_masks_are_turned_as_their_pictures_are(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(hole()).convert("L").save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png", (WIDTH, HEIGHT)), np.rot90(hole(), -1))


def test_mask_files_that_cannot_be_read_are_named_once(tmp_path):
    assert "no such file" in refusal(read_mask, tmp_path / "none.png", SIZE)
    data = encoded(image_of("L"), "PNG")
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    message = refusal(read_mask, tmp_path / "cut.png", SIZE)
    assert message.startswith(f"{tmp_path / 'cut.png'}: damaged or cut short")
    assert message.count("cut.png") == 1


def test_masks_that_make_no_sense(tmp_path):
    image = Image.fromarray(hole())
    image.save(tmp_path / "mask.png")
    message = refusal(read_mask, tmp_path / "mask.png", (48, 62))
    assert "mask is 31 x 24" in message
    assert "picture is 62 x 48" in message
    assert "resize the mask to 62 x 48" in message
    assert "nothing to repaint" in refusal(check_mask, np.zeros(SIZE, bool), SIZE)
    assert "nothing to repaint" in refusal(check_mask, np.ones(SIZE, np.uint8), SIZE)  # 0 and 1 are both dark
    assert "nothing to keep" in refusal(check_mask, np.ones(SIZE, bool), SIZE)
    assert "nothing to keep" in refusal(check_mask, Image.new("RGBA", (WIDTH, HEIGHT), "white"), SIZE)
    assert "(24, 31, 3)" in refusal(check_mask, np.ones((*SIZE, 3), bool), SIZE)
    assert "int64" in refusal(check_mask, torch.ones(SIZE, dtype=torch.int64), SIZE)
    assert "in [0, 1]" in refusal(check_mask, np.full(SIZE, 255.0), SIZE)
    assert "in [0, 1]" in refusal(check_mask, np.full(SIZE, np.nan), SIZE)


@pytest.mark.parametrize("shape", [SIZE, (1, *SIZE), (*SIZE, 1), (1, 1, *SIZE)])
def test_masks_from_python_may_have_axes_of_length_one(shape):
    assert np.array_equal(check_mask(hole().reshape(shape), SIZE), hole())
    assert np.array_equal(check_mask(torch.from_numpy(hole()).reshape(shape), SIZE), hole())


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 6))
def test_masks_as_thin_as_one_pixel_keep_their_shape(height, width):
    mask = np.zeros((1, height, width), bool)
    mask[..., -1] = True
    assert np.array_equal(check_mask(mask, (height, width)), mask[0])


def test_a_checked_mask_is_a_copy():
    mask = hole()
    checked = check_mask(mask, SIZE)
    mask[:] = False
    assert checked.any()


def test_transparency_as_mask():
    pixels = noise(2, 2, 3)
    alpha = np.array([[0, 127], [128, 255]], np.uint8)
    assert mask_from_alpha(Picture(pixels, alpha)).tolist() == [[True, True], [False, False]]
    assert "--mask" in refusal(mask_from_alpha, Picture(pixels))
    assert "nothing to repaint" in refusal(mask_from_alpha, Picture(pixels, np.full((2, 2), 255, np.uint8)))
    assert "nothing to keep" in refusal(mask_from_alpha, Picture(pixels, np.zeros((2, 2), np.uint8)))


# --- putting known pixels back


@pytest.mark.parametrize(("mode", "suffix"), LOSSLESS)
@pytest.mark.parametrize("blend", [0, 4])
def test_known_pixels_are_kept_bit_for_bit_through_files(tmp_path, mode, suffix, blend):
    picture = read_picture(written(tmp_path, mode, suffix))
    result = torch.rand(3, *SIZE) * 2 - 1
    save_picture(keep_exactly(picture, result, hole(), blend), tmp_path / f"out{suffix}")
    out = read_picture(tmp_path / f"out{suffix}")
    assert out.pixels.dtype == picture.pixels.dtype
    assert out.pixels.shape == picture.pixels.shape
    assert np.array_equal(out.pixels[~hole()], picture.pixels[~hole()])
    assert not np.array_equal(out.pixels[hole()], picture.pixels[hole()])
    if picture.alpha is not None:
        assert out.alpha is not None
        assert np.array_equal(out.alpha, picture.alpha)


@settings(deadline=None)
@given(st.data(), st.sampled_from([1, 3, 4]), st.integers(0, 6))
def test_only_the_hole_changes(data, channels, blend):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    repaint = np.array(bits).reshape(height, width)
    picture = picture_from(noise(height, width, channels))
    for opaque in (False, True):
        out = picture_from(keep_exactly(picture, torch.zeros(3, height, width), repaint, blend, opaque=opaque))
        assert np.array_equal(out.pixels[~repaint], picture.pixels[~repaint])
        if picture.alpha is not None and out.alpha is not None:
            assert np.array_equal(out.alpha, np.full_like(picture.alpha, 255) if opaque else picture.alpha)


def test_a_feathered_hole_comes_out_opaque_and_known_colours_stay():
    alpha = np.tile(np.array([0, 60, 127, 128, 200, 255], np.uint8), (4, 1))
    picture = picture_from(np.dstack([noise(4, 6, 3), alpha]))
    repaint = mask_from_alpha(picture)
    assert repaint[0].tolist() == [True, True, True, False, False, False]
    out = picture_from(keep_exactly(picture, torch.ones(3, 4, 6), repaint, blend=0, opaque=True))
    assert out.alpha is not None
    assert (out.alpha == 255).all()
    assert (out.pixels[:, :3] == 255).all()
    assert np.array_equal(out.pixels[:, 3:], picture.pixels[:, 3:])


def test_the_result_carries_what_the_picture_does():
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A. Person"
    picture = Picture(noise(*SIZE, 3), icc_profile=b"profile", exif=exif.tobytes())
    image = keep_exactly(picture, torch.zeros(3, *SIZE), hole())
    assert image.info["icc_profile"] == b"profile"
    assert image.getexif()[ExifTags.Base.Artist] == "A. Person"
    assert keep_exactly(Picture(picture.pixels), torch.zeros(3, *SIZE), hole()).info == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_perfect_result_gives_the_picture_back(dtype):
    picture = picture_from(noise(*SIZE, dtype=dtype))
    for blend in (0, 4):
        out = picture_from(keep_exactly(picture, picture.tensor()[0], hole(), blend))
        assert np.array_equal(out.pixels, picture.pixels)


def test_without_blending_the_hole_is_the_result():
    picture, result = picture_from(noise(*SIZE, 3)), picture_from(noise(*SIZE, 3, seed=1))
    out = picture_from(keep_exactly(picture, result.tensor()[0], hole(), blend=0))
    assert np.array_equal(out.pixels, np.where(hole()[..., None], result.pixels, picture.pixels))


def test_results_outside_the_range_are_clipped():
    picture = picture_from(np.full((*SIZE, 3), 100, np.uint8))
    out = picture_from(keep_exactly(picture, torch.full((3, *SIZE), 7.0), hole(), blend=0))
    assert (out.pixels[hole()] == 255).all()


def test_gray_pictures_take_the_luma_of_the_result():
    result = torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, *SIZE)  # red
    out = picture_from(keep_exactly(picture_from(noise(*SIZE)), result, hole(), blend=0))
    assert (out.pixels[hole()] == np.asarray(Image.new("RGB", (1, 1), "red").convert("L"))[0, 0]).all()


@settings(deadline=None)
@given(st.floats(-0.4, 0.4), st.integers(1, 6))
def test_blending_closes_the_step_at_the_seam(offset, blend):
    height, width = 40, 40
    ramp = np.linspace(90, 160, width)[None, :, None].repeat(height, 0).repeat(3, 2).round().astype(np.uint8)
    picture, repaint = picture_from(ramp), hole(height, width)
    out = picture_from(keep_exactly(picture, picture.tensor()[0] + offset, repaint, blend)).pixels.astype(int)
    error = np.abs(out - ramp)[..., 0]
    assert (error[~repaint] == 0).all()
    top, left = np.argwhere(repaint)[0]
    assert error[top, left:-left].max() <= 1  # the step is gone next to the seam ...
    deep = repaint[blend:-blend, blend:-blend] & repaint[: -2 * blend, : -2 * blend] & repaint[2 * blend :, 2 * blend :]
    inner = error[blend:-blend, blend:-blend][deep]
    assert np.abs(inner - abs(offset) * 127.5).max() <= 1  # ... and the middle is the result, untouched
    fade = error[top : top + blend, width // 2]
    assert np.abs(fade - abs(offset) * 127.5 * np.arange(blend) / blend).max() <= 1  # in between, linear


@pytest.mark.parametrize("tile", [1, 5, 16])
def test_painting_in_tiles_changes_nothing(monkeypatch, tile):
    picture, result = picture_from(noise(*SIZE, 3)), torch.rand(3, *SIZE) * 2 - 1
    repaint = hole() | (noise(*SIZE) > 200)
    whole = picture_from(keep_exactly(picture, result, repaint, blend=2)).pixels.astype(int)
    monkeypatch.setattr(masks, "TILE", tile)
    tiled = picture_from(keep_exactly(picture, result, repaint, blend=2)).pixels
    assert np.abs(whole - tiled).max() <= 1  # sums in another order
    assert np.array_equal(tiled[~repaint], picture.pixels[~repaint])


def test_a_result_that_is_not_a_number_is_refused():
    result = torch.full((3, *SIZE), torch.nan)
    assert "not finite" in refusal(keep_exactly, picture_from(noise(*SIZE)), result, hole())
    with pytest.raises(ValueError, match="blend -1"):
        keep_exactly(picture_from(noise(*SIZE)), torch.zeros(3, *SIZE), hole(), blend=-1)
