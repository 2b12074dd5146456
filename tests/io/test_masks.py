"""Masks, and pasting a result so that everything outside the mask stays exactly the same."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from adhere.errors import AdhereWarning
from adhere.io import masks
from adhere.io._crops import Box
from adhere.io._samples import to_float
from adhere.io.images import Picture, as_picture, save_picture
from adhere.io.masks import as_mask, mask_from_alpha, paste_known, paste_known_float
from tests.picture_files import HEIGHT, SIZE, WIDTH, encoded, hole, image_of, noise, refusal, written

LOSSLESS = [
    *((mode, suffix) for mode in ("L", "RGB", "P") for suffix in (".png", ".tiff", ".webp", ".bmp")),
    *((mode, suffix) for mode in ("RGBA",) for suffix in (".png", ".tiff", ".webp")),
    *((mode, suffix) for mode in ("LA", "I;16") for suffix in (".png", ".tiff")),
    ("1", ".png"),
    ("1", ".bmp"),
]


def whole(result: torch.Tensor) -> list[tuple[Box, torch.Tensor]]:
    """Return a result for the whole picture, as `paste_known` takes it."""
    return [((slice(0, result.shape[1]), slice(0, result.shape[2])), result)]


# --- reading masks


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_white_is_true_in_mask_files_of_every_mode(tmp_path, mode):
    white = Image.fromarray(hole())
    image = Image.fromarray(hole().astype(np.uint16) * 65535) if mode == "I;16" else white.convert("L").convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(as_mask(tmp_path / "mask.png", SIZE), hole())
    assert np.array_equal(as_mask(image, SIZE), hole())
    assert np.array_equal(as_mask(tmp_path / "mask.png", SIZE), hole())


def test_soft_masks_are_thresholded_at_one_half():
    values = np.array([[0, 127, 128, 255]], np.uint8)
    expected = [[False, False, True, True]]
    assert as_mask(Image.fromarray(values), (1, 4)).tolist() == expected
    assert as_mask(values, (1, 4)).tolist() == expected
    assert as_mask(torch.tensor([[0, 0.49, 0.5, 1]]), (1, 4)).tolist() == expected
    assert as_mask(torch.tensor([[0, 0.49, 0.5, 1]], dtype=torch.bfloat16), (1, 4)).tolist() == expected


def test_soft_edges_are_only_named_of_a_mask_that_is_accepted():
    soft = np.full(SIZE, 128, np.uint8)
    for mask in (soft, Image.fromarray(soft), soft / np.float32(255)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "nothing to keep" in refusal(as_mask, mask, SIZE)
            assert "the mask is" in refusal(as_mask, mask, (8, 8))


@pytest.mark.parametrize("hidden", [0, 255])
def test_white_strokes_on_a_transparent_layer_are_inpainted_whatever_color_is_hidden(tmp_path, hidden):
    rgba = np.full((*SIZE, 4), hidden, np.uint8)
    rgba[..., 3] = 0
    rgba[hole()] = 255
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert np.array_equal(as_mask(tmp_path / "mask.png", SIZE), hole())


@pytest.mark.parametrize("hidden", [0, 255])
def test_if_nothing_visible_is_white_the_transparent_part_is_inpainted(tmp_path, hidden):
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[hole()] = (hidden, hidden, hidden, 0)  # erased from a black layer
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert np.array_equal(as_mask(tmp_path / "mask.png", SIZE), hole())


def test_a_mask_with_soft_edges_gets_a_hint():
    hard = np.zeros(SIZE, np.uint8)
    hard[hole()] = 250  # as in a JPEG file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_mask(hard, SIZE)
        as_mask(Image.fromarray(hard), SIZE)
    soft = hard.copy()
    soft[3, 3] = 100
    for mask in (soft, soft / 255, torch.from_numpy(soft), Image.fromarray(soft)):
        with pytest.warns(AdhereWarning, match="soft edges.*enlarge the mask by 1 or 2 pixels"):
            assert np.array_equal(as_mask(mask, SIZE), hole())


def test_exif_orientation_is_applied_to_masks(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(hole()).convert("L").save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(as_mask(tmp_path / "mask.png", (WIDTH, HEIGHT)), np.rot90(hole(), -1))


def test_the_message_about_an_unreadable_mask_names_the_file_once(tmp_path):
    assert "no such file" in refusal(as_mask, tmp_path / "none.png", SIZE)
    data = encoded(image_of("L"), "PNG")
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    message = refusal(as_mask, tmp_path / "cut.png", SIZE)
    assert message.startswith(f"{tmp_path / 'cut.png'}: damaged or cut short")
    assert message.count("cut.png") == 1


def test_masks_of_wrong_size_shape_type_range_or_content_are_refused(tmp_path):
    image = Image.fromarray(hole())
    image.save(tmp_path / "mask.png")
    message = refusal(as_mask, tmp_path / "mask.png", (48, 62))
    assert "mask is 31 x 24" in message
    assert "picture is 62 x 48" in message
    assert "resize the mask to 62 x 48" in message
    assert "nothing to inpaint" in refusal(as_mask, np.zeros(SIZE, bool), SIZE)
    assert "nothing to inpaint" in refusal(as_mask, np.ones(SIZE, np.uint8), SIZE)  # 0 and 1 are both dark
    assert "nothing to keep" in refusal(as_mask, np.ones(SIZE, bool), SIZE)
    assert "nothing to keep" in refusal(as_mask, Image.new("RGBA", (WIDTH, HEIGHT), "white"), SIZE)
    assert "(24, 31, 3)" in refusal(as_mask, np.ones((*SIZE, 3), bool), SIZE)
    assert "int64" in refusal(as_mask, torch.ones(SIZE, dtype=torch.int64), SIZE)
    assert "in [0, 1]" in refusal(as_mask, np.full(SIZE, 255.0), SIZE)
    assert "in [0, 1]" in refusal(as_mask, np.full(SIZE, np.nan), SIZE)


@pytest.mark.parametrize("shape", [SIZE, (1, *SIZE), (*SIZE, 1), (1, 1, *SIZE)])
def test_masks_may_have_axes_of_length_one(shape):
    assert np.array_equal(as_mask(hole().reshape(shape), SIZE), hole())
    assert np.array_equal(as_mask(torch.from_numpy(hole()).reshape(shape), SIZE), hole())


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 6))
def test_masks_one_pixel_high_keep_their_shape(height, width):
    mask = np.zeros((1, height, width), bool)
    mask[..., -1] = True
    assert np.array_equal(as_mask(mask, (height, width)), mask[0])


def test_as_mask_returns_a_copy():
    array = hole()
    mask = as_mask(array, SIZE)
    array[:] = False
    assert mask.any()


def test_mask_from_alpha_is_true_below_one_half():
    pixels = noise(2, 2, 3)
    alpha = np.array([[0, 127], [128, 255]], np.uint8)
    assert mask_from_alpha(Picture(pixels, alpha)).tolist() == [[True, True], [False, False]]
    assert "give a mask" in refusal(mask_from_alpha, Picture(pixels))
    assert "nothing to inpaint" in refusal(mask_from_alpha, Picture(pixels, np.full((2, 2), 255, np.uint8)))
    assert "nothing to keep" in refusal(mask_from_alpha, Picture(pixels, np.zeros((2, 2), np.uint8)))


# --- pasting results


@pytest.mark.parametrize(("mode", "suffix"), LOSSLESS)
@pytest.mark.parametrize("blend", [0, 4])
def test_pixels_outside_the_mask_are_kept_bit_for_bit_through_files(tmp_path, mode, suffix, blend):
    picture = as_picture(written(tmp_path, mode, suffix))
    result = torch.rand(3, *SIZE) * 2 - 1
    save_picture(paste_known(picture, whole(result), hole(), blend), tmp_path / f"out{suffix}")
    out = as_picture(tmp_path / f"out{suffix}")
    assert out.pixels.dtype == picture.pixels.dtype
    assert out.pixels.shape == picture.pixels.shape
    assert np.array_equal(out.pixels[~hole()], picture.pixels[~hole()])
    assert not np.array_equal(out.pixels[hole()], picture.pixels[hole()])
    if picture.alpha is not None:
        assert out.alpha is not None
        assert np.array_equal(out.alpha, picture.alpha)


@settings(deadline=None)
@given(st.data(), st.sampled_from([1, 3, 4]), st.integers(0, 6))
def test_only_pixels_inside_the_mask_change(data, channels, blend):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    picture = as_picture(noise(height, width, channels))
    for opaque in (False, True):
        out = as_picture(paste_known(picture, whole(torch.zeros(3, height, width)), mask, blend, opaque=opaque))
        assert np.array_equal(out.pixels[~mask], picture.pixels[~mask])
        if picture.alpha is not None and out.alpha is not None:
            assert np.array_equal(out.alpha, np.full_like(picture.alpha, 255) if opaque else picture.alpha)


def test_opaque_removes_a_semi_transparent_edge_and_keeps_its_colors():
    alpha = np.tile(np.array([0, 60, 127, 128, 200, 255], np.uint8), (4, 1))
    picture = as_picture(np.dstack([noise(4, 6, 3), alpha]))
    mask = mask_from_alpha(picture)
    assert mask[0].tolist() == [True, True, True, False, False, False]
    out = as_picture(paste_known(picture, whole(torch.ones(3, 4, 6)), mask, blend=0, opaque=True))
    assert out.alpha is not None
    assert (out.alpha == 255).all()
    assert (out.pixels[:, :3] == 255).all()
    assert np.array_equal(out.pixels[:, 3:], picture.pixels[:, 3:])


def test_the_image_has_the_metadata_of_the_picture():
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A. Person"
    picture = Picture(noise(*SIZE, 3), metadata={"icc_profile": b"profile", "exif": exif.tobytes()})
    image = paste_known(picture, whole(torch.zeros(3, *SIZE)), hole())
    assert image.info["icc_profile"] == b"profile"
    assert image.getexif()[ExifTags.Base.Artist] == "A. Person"
    assert paste_known(Picture(picture.pixels), whole(torch.zeros(3, *SIZE)), hole()).info == {}


def test_the_hidden_color_of_invisible_pixels_does_not_show_at_the_seam():
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:, :10] = 0
    mask = np.zeros(SIZE, bool)
    mask[8:16, 10:18] = True  # it touches the invisible part
    result = torch.rand(3, *SIZE) - 0.5
    pasted = []
    for hidden in (0, 255):
        pixels = np.full((*SIZE, 3), 120, np.uint8)
        pixels[alpha == 0] = hidden
        pasted.append(as_picture(paste_known(Picture(pixels, alpha), whole(result), mask)).pixels)
        assert np.array_equal(pasted[-1][~mask], pixels[~mask])
    assert np.array_equal(pasted[0][mask], pasted[1][mask])


def test_a_gray_picture_stored_as_rgb_stays_gray_if_what_is_known_is_gray():
    pixels = noise(*SIZE).repeat(3).reshape(*SIZE, 3)
    pixels[hole()] = noise(*SIZE, 3)[hole()]  # a colored scribble to remove
    result = torch.rand(3, *SIZE) * 2 - 1
    out = as_picture(paste_known(as_picture(pixels), whole(result), hole())).pixels
    assert out.shape == (*SIZE, 3)
    assert np.ptp(out, axis=2).max() == 0
    pixels[0, 0] = (10, 10, 11)
    out = as_picture(paste_known(as_picture(pixels), whole(result), hole())).pixels
    assert np.ptp(out[hole()], axis=1).max() > 0


def test_results_for_boxes_are_pasted_at_their_places():
    picture, result = as_picture(noise(*SIZE, 3)), as_picture(noise(*SIZE, 3, seed=1))
    mask = np.zeros(SIZE, bool)
    mask[2:4, 3:6] = mask[20:22, 25:28] = True
    boxes = [(slice(0, 9), slice(1, 10)), (slice(12, 24), slice(17, 31))]
    parts = [(box, result.tensor()[0][:, *box]) for box in boxes]
    out = as_picture(paste_known(picture, parts, mask, blend=0)).pixels
    assert np.array_equal(out, np.where(mask[..., None], result.pixels, picture.pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_picture_itself_as_result_gives_the_picture(dtype):
    picture = as_picture(noise(*SIZE, dtype=dtype))
    for blend in (0, 4):
        out = as_picture(paste_known(picture, whole(picture.tensor()[0]), hole(), blend))
        assert np.array_equal(out.pixels, picture.pixels)


def test_without_blending_the_masked_pixels_are_the_result():
    picture, result = as_picture(noise(*SIZE, 3)), as_picture(noise(*SIZE, 3, seed=1))
    out = as_picture(paste_known(picture, whole(result.tensor()[0]), hole(), blend=0))
    assert np.array_equal(out.pixels, np.where(hole()[..., None], result.pixels, picture.pixels))


def test_results_outside_the_range_are_clamped():
    picture = as_picture(np.full((*SIZE, 3), 100, np.uint8))
    out = as_picture(paste_known(picture, whole(torch.full((3, *SIZE), 7.0)), hole(), blend=0))
    assert (out.pixels[hole()] == 255).all()


def test_gray_pictures_get_the_luma_of_the_result():
    result = torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, *SIZE)  # red
    out = as_picture(paste_known(as_picture(noise(*SIZE)), whole(result), hole(), blend=0))
    assert (out.pixels[hole()] == np.asarray(Image.new("RGB", (1, 1), "red").convert("L"))[0, 0]).all()


@settings(deadline=None)
@given(st.floats(-0.4, 0.4), st.integers(1, 6))
def test_blending_removes_the_step_at_the_seam_and_fades_out_linearly(offset, blend):
    height, width = 40, 40
    ramp = np.linspace(90, 160, width)[None, :, None].repeat(height, 0).repeat(3, 2).round().astype(np.uint8)
    picture, mask = as_picture(ramp), hole(height, width)
    out = as_picture(paste_known(picture, whole(picture.tensor()[0] + offset), mask, blend)).pixels.astype(int)
    error = np.abs(out - ramp)[..., 0]
    assert (error[~mask] == 0).all()
    top, left = np.argwhere(mask)[0]
    assert error[top, left:-left].max() <= 1  # no step next to the seam
    middle = mask[blend:-blend, blend:-blend] & mask[: -2 * blend, : -2 * blend] & mask[2 * blend :, 2 * blend :]
    far = error[blend:-blend, blend:-blend][middle]
    assert np.abs(far - abs(offset) * 127.5).max() <= 1  # the unchanged result in the middle
    fade = error[top : top + blend, width // 2]
    assert np.abs(fade - abs(offset) * 127.5 * np.arange(blend) / blend).max() <= 1  # linear in between


def test_blending_follows_differences_along_the_seam():
    """A Gaussian of 1.5 pixels keeps exp(-2 (1.5 pi / 16)^2) = 84 % of a wave of 16 pixels, so that 16 % are left."""
    picture, mask = as_picture(np.full((64, 64, 3), 128, np.uint8)), np.zeros((64, 64), bool)
    mask[32:] = True
    wave = 0.2 * torch.sin(torch.arange(64) * 2 * math.pi / 16).expand(3, 64, 64)
    out = as_picture(paste_known(picture, whole(picture.tensor()[0] + wave), mask)).pixels.astype(int)
    assert np.abs(out[32, 8:-8] - 128).max() <= 0.16 * 0.2 * 127.5 + 1


@pytest.mark.parametrize("tile", [1, 5, 16])
def test_the_tile_size_does_not_change_the_picture(monkeypatch, tile):
    picture, result = as_picture(noise(*SIZE, 3)), torch.rand(3, *SIZE) * 2 - 1
    mask = hole() | (noise(*SIZE) > 200)
    untiled = as_picture(paste_known(picture, whole(result), mask, blend=2)).pixels.astype(int)
    monkeypatch.setattr(masks, "_TILE_SIDE_PIXELS", tile)
    tiled = as_picture(paste_known(picture, whole(result), mask, blend=2)).pixels
    assert np.abs(untiled - tiled).max() <= 1  # rounding of sums in another order
    assert np.array_equal(tiled[~mask], picture.pixels[~mask])


def test_results_with_nan_and_negative_blend_are_refused():
    result = torch.full((3, *SIZE), torch.nan)
    assert "not finite" in refusal(paste_known, as_picture(noise(*SIZE)), whole(result), hole())
    with pytest.raises(ValueError, match="blend -1"):
        paste_known(as_picture(noise(*SIZE)), whole(torch.zeros(3, *SIZE)), hole(), blend=-1)


# --- pasting without rounding


@pytest.mark.parametrize(
    ("shape", "dtype"), [(SIZE, np.uint8), ((*SIZE, 3), np.uint8), ((*SIZE, 4), np.uint8), (SIZE, np.uint16)]
)
@pytest.mark.parametrize("blend", [0, 4])
def test_paste_known_rounds_paste_known_float(shape, dtype, blend):
    picture, result = as_picture(noise(*shape, dtype=dtype)), torch.rand(3, *SIZE) * 3 - 1.5
    x = paste_known_float(picture, whole(result), hole(), blend).numpy()
    assert x.dtype == np.float32
    assert x.shape == (picture.pixels.shape[2], *SIZE)
    assert x.min() >= -1
    assert x.max() <= 1
    assert np.array_equal(x[:, ~hole()], to_float(picture.pixels)[:, ~hole()])
    rounded = np.rint((x.transpose(1, 2, 0) + 1) * np.float32(np.iinfo(dtype).max / 2)).astype(dtype)
    assert np.array_equal(rounded, as_picture(paste_known(picture, whole(result), hole(), blend)).pixels)


@pytest.mark.parametrize("tile", [5, 256])
def test_paste_known_float_without_blending_is_the_result_inside_the_mask(monkeypatch, tile):
    monkeypatch.setattr(masks, "_TILE_SIDE_PIXELS", tile)
    picture, result = as_picture(noise(*SIZE, 3)), torch.rand(3, *SIZE) * 2 - 1
    x = paste_known_float(picture, whole(result), hole(), blend=0)
    assert torch.equal(x[:, torch.from_numpy(hole())], result[:, torch.from_numpy(hole())])
    with torch.inference_mode():
        assert torch.equal(paste_known_float(picture, whole(result.clone()), hole(), blend=0), x)


def test_paste_known_float_refuses_nan_and_negative_blend():
    picture = as_picture(noise(*SIZE))
    assert "not finite" in refusal(paste_known_float, picture, whole(torch.full((3, *SIZE), torch.nan)), hole())
    with pytest.raises(ValueError, match="blend -1"):
        paste_known_float(picture, whole(torch.zeros(3, *SIZE)), hole(), blend=-1)
