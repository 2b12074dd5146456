"""Inpainting, from any kind of input to a picture of the same kind; random samples stand in for the model's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, Downsample, Inpaint, Linear, Mask, Restore, Silhouette, Upscale
from adhere.io.images import Picture
from tests.picture_files import hole, image_of, noise
from tests.tasks.fake_model import FakeModel

SIZES = [(37, 53), (24, 31), (1, 2), (3, 3), (5, 100)]
MASKS = {
    "middle": lambda h, w: hole(h, w),
    "one pixel": lambda h, w: at(h, w, h // 2, w // 2),
    "corner": lambda h, w: at(h, w, slice(0, max(1, h // 3)), slice(0, max(1, w // 3))),
    "last row": lambda h, w: at(h, w, -1, slice(0, w - 1)),
    "right border": lambda h, w: at(h, w, slice(None), -1),
    "all but one": lambda h, w: ~at(h, w, 0, 0),
    "two far apart": lambda h, w: at(h, w, 0, 0) | at(h, w, -1, -1),
}


def at(height: int, width: int, rows, columns) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


def repaired(task: Inpaint, multiple: int = 4) -> Image.Image:
    """Return what the pipeline would return for random samples."""
    generator = torch.Generator().manual_seed(0)
    crops = task.crops(FakeModel(multiple))
    return task.postprocess([torch.randn(3, *crop.size, generator=generator) for crop in crops], crops)


def refusal(*args, **kwargs) -> str:
    """Return the message of the AdhereError that `Inpaint` must raise: one line."""
    with pytest.raises(AdhereError) as caught:
        Inpaint(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P", "1"])
@pytest.mark.parametrize(("mask", "size"), [(m, s) for m in MASKS for s in SIZES if 0 < MASKS[m](*s).mean() < 1])
def test_known_pixels_stay_bit_for_bit(mode, mask, size):
    masked = MASKS[mask](*size)
    task = Inpaint(image_of(mode, *size), masked)
    out = np.asarray(repaired(task))
    planes = task.picture.pixels if task.picture.alpha is None else np.dstack([task.picture.pixels, task.picture.alpha])
    given = planes[..., 0] if planes.shape[2] == 1 else planes
    given = given.astype(bool) if mode == "1" else given
    assert out.dtype == given.dtype
    assert out.shape == given.shape
    assert np.array_equal(out[~masked], given[~masked])


def test_masked_pixels_are_repainted():
    picture, masked = noise(37, 53, 3), hole(37, 53)
    assert (np.asarray(repaired(Inpaint(picture, masked)))[masked] != picture[masked]).mean() > 0.9


@pytest.mark.parametrize("context", [1, 7, 96, 10_000])
@pytest.mark.parametrize("mask", MASKS)
def test_any_context_gives_a_picture_of_the_whole_size(mask, context):
    picture, masked = noise(75, 101, 3), MASKS[mask](75, 101)
    out = np.asarray(repaired(Inpaint(picture, masked, context)))
    assert out.shape == picture.shape
    assert np.array_equal(out[~masked], picture[~masked])


def test_the_network_sees_only_the_masked_part_and_its_context():
    task = Inpaint(noise(200, 300, 3), at(200, 300, slice(100, 110), slice(5, 25)), context=8)
    (crop,) = task.crops(FakeModel(4))
    assert crop.size == (28, 36)  # rows 92 ... 118, columns 0 ... 33, padded to multiples of 4
    assert isinstance(crop.constraint, Linear)
    known = torch.from_numpy(~task.mask_array[92:118, 0:33])
    assert torch.equal(crop.constraint.y[..., :26, :33], task.picture.tensor()[..., 92:118, 0:33] * known)


@pytest.mark.parametrize("multiple", [1, 2, 16, 64])
@pytest.mark.parametrize("size", SIZES)
def test_the_constraint_is_met_by_the_picture_itself(size, multiple):
    """This includes the padding, whose pixels repeat the picture's."""
    task = Inpaint(noise(*size, 3), at(size[0], size[1], 0, 0))
    (crop,) = task.crops(FakeModel(multiple))
    assert all(side % multiple == 0 for side in crop.size)
    constraint = crop.constraint
    assert isinstance(constraint, Linear)
    assert constraint.y.shape[-2:] == crop.size
    assert constraint.residual_norm(constraint.y).tolist() == [0.0]
    assert isinstance(constraint.operator, Mask)
    known = constraint.operator.known
    assert known.sum() >= 1
    assert set(known.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("side", "size"), [(64, (202, 212)), (512, (394, 404))])
def test_the_default_context_of_a_small_mask_gives_crops_of_about_the_native_size(side, size):
    task = Inpaint(noise(600, 700, 3), at(600, 700, slice(300, 310), slice(305, 325)))
    (crop,) = task.crops(FakeModel(1, native_size=(side, side)))
    assert crop.size == size


@pytest.mark.parametrize("context", [0, -1, 1.5, "a", math.nan])
def test_a_context_that_is_no_number_of_pixels_is_refused(context):
    assert f"context = {context!r}: at least 1 pixel" in refusal(noise(8, 8, 3), hole(8, 8), context)


def test_every_way_to_give_a_picture_and_a_mask_means_the_same(tmp_path):
    picture, masked = noise(24, 31, 3), hole(24, 31)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(masked).save(tmp_path / "mask.png")
    first = Inpaint(picture, masked)
    masks = [
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        Image.fromarray(masked),
        masked.astype(np.uint8) * 255,
        masked.astype(np.float64),
        torch.from_numpy(masked),
        torch.from_numpy(masked)[None, None].half(),
    ]
    images = [picture, tmp_path / "picture.png", str(tmp_path / "picture.png"), Image.fromarray(picture), first.picture]
    for image, mask in [(image, masked) for image in images] + [(picture, mask) for mask in masks]:
        task = Inpaint(image, mask)
        assert np.array_equal(task.picture.pixels, picture)
        assert np.array_equal(task.mask_array, masked)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_without_a_mask_the_transparent_part_is_repainted_and_becomes_opaque(mode):
    image = image_of(mode, 24, 31)
    alpha = np.where(hole(24, 31), 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    task = Inpaint(image)
    assert np.array_equal(task.mask_array, hole(24, 31))
    out = np.asarray(repaired(task))
    assert (out[..., -1] == 255).all()
    assert np.array_equal(out[~task.mask_array], np.asarray(image)[~task.mask_array])


def test_with_a_mask_alpha_is_kept():
    image = image_of("RGBA", 24, 31)
    assert np.array_equal(np.asarray(repaired(Inpaint(image, hole(24, 31))))[..., 3], np.asarray(image)[..., 3])


def test_bad_input_is_refused_when_the_task_is_made(tmp_path):
    picture = noise(24, 31, 3)
    assert "31 x 24" in refusal(picture, hole(31, 24))
    assert "nothing to inpaint" in refusal(picture, np.zeros((24, 31), bool))
    assert "nothing to keep" in refusal(picture, np.ones((24, 31), bool))
    assert "no such file" in refusal(tmp_path / "missing.png", hole())
    assert "no such file" in refusal(picture, tmp_path / "missing.png")
    assert "mask" in refusal(picture)  # there is no alpha either


def test_a_task_cannot_be_changed():
    task = Inpaint(noise(24, 31, 3), hole())
    with pytest.raises(AttributeError):
        task.context = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_samples_out_of_range_are_clamped():
    task = Inpaint(np.full((24, 31, 3), 128, np.uint8), hole())
    (crop,) = task.crops(FakeModel())
    assert np.asarray(task.postprocess([torch.full((3, *crop.size), 7.0)], [crop]))[12, 15].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P", "1"])
def test_float_pictures_are_the_pictures_before_rounding_and_known_pixels_are_exact(mode):
    task = Inpaint(image_of(mode, 24, 31), hole())
    (crop,) = task.crops(FakeModel(4))
    sample = torch.randn(3, *crop.size, generator=torch.Generator().manual_seed(0)) / 2
    x = task.postprocess_float([sample], [crop])
    pixels = task.picture.pixels
    largest = np.iinfo(pixels.dtype).max
    assert x.dtype == torch.float32
    assert x.shape == (pixels.shape[2], 24, 31)
    exact = (pixels / largest).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(x.numpy()[:, ~hole()], exact[:, ~hole()])
    image = np.asarray(task.postprocess([sample], [crop])).reshape(24, 31, -1)[..., : pixels.shape[2]]
    rounded = x.numpy().astype(np.float64).transpose(1, 2, 0) * largest
    if mode == "1":
        assert np.array_equal(image, rounded.round() >= 128)
    else:
        assert np.abs(rounded - image).max() <= 0.5 + largest * 2**-23  # of float32


def test_height_and_width_are_those_of_the_picture():
    with pytest.raises(AdhereError, match="Inpaint has the size of its input"):
        Inpaint(noise(24, 31, 3), hole()).crops(FakeModel(), (64, 64))


def test_colors_hidden_under_transparency_are_not_known():
    image = noise(24, 31, 4)
    image[..., 3] = 255
    image[:, :12, 3] = 0
    task = Inpaint(image, hole(24, 31))
    (crop,) = task.crops(FakeModel(4))
    assert isinstance(crop.constraint, Linear)
    assert isinstance(crop.constraint.operator, Mask)
    known = crop.constraint.operator.known[0, 0, :24, :31].numpy() > 0
    assert np.array_equal(known, ~hole(24, 31) & (image[..., 3] > 0))
    assert (crop.constraint.y[0, :, :24, :31].numpy()[:, ~known] == 0).all()


def test_only_the_crops_of_a_large_picture_become_tensors(monkeypatch):
    """A photograph of 60 megapixels takes the memory of its bytes, not of floats."""
    image = noise(3000, 4000, 3)
    task = Inpaint(image, at(3000, 4000, slice(1000, 1020), slice(1000, 1020)))
    seen = []
    original = Picture.tensor

    def tensor(self, *arguments):
        x = original(self, *arguments)
        seen.append(x.shape)
        return x

    monkeypatch.setattr(Picture, "tensor", tensor)
    out = np.asarray(repaired(task))
    assert seen == [(1, 3, 212, 212)]
    assert np.array_equal(out[~task.mask_array], image[~task.mask_array])


@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_the_global_dtype_and_device_are_not_used(kind):
    tasks = [Inpaint(noise(24, 31, 3), hole()), Upscale(noise(8, 12), 2), Silhouette(hole())]
    y = torch.rand(1, 3, 8, 8)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64) if kind == "dtype" else torch.set_default_device("meta")
    try:
        Restore(y, Downsample(2))
        for task in tasks:
            crops = task.crops(FakeModel(4))
            samples = [torch.zeros(3, *crop.size, dtype=torch.float32, device="cpu") for crop in crops]
            assert np.asarray(task.postprocess(samples, crops)).shape
            assert task.postprocess_float(samples, crops).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def test_a_hole_in_an_invisible_part_is_filled():
    """Nothing is known near it."""
    image = noise(24, 31, 4)
    image[..., 3] = 0
    out = np.asarray(repaired(Inpaint(image, hole(24, 31))))
    assert np.array_equal(out[~hole(24, 31)], image[~hole(24, 31)])


SWAPPED = {
    "arrays": lambda mask, photo: (mask, photo),
    "bool and tensor": lambda mask, photo: (mask.astype(np.uint8) * 255, torch.from_numpy(photo)),
    "floats": lambda mask, photo: (mask, photo.astype(np.float32) / 255),
    "images": lambda mask, photo: (Image.fromarray(mask), Image.fromarray(photo)),
    "color": lambda mask, photo: (Image.fromarray(mask), Image.fromarray(np.stack([photo] * 3, 2))),
}


@pytest.mark.parametrize("kind", SWAPPED)
def test_an_image_and_a_mask_that_are_swapped_are_refused(kind):
    mask = hole(40, 60).astype(np.uint8) * 255
    photo = (noise(40, 60) // 2 + 64).astype(np.uint8)
    assert "they seem to be swapped; write Inpaint(image, mask)" in refusal(*SWAPPED[kind](mask, photo))


def test_swapped_files_are_refused(tmp_path):
    Image.fromarray(hole(40, 60)).save(tmp_path / "mask.png")
    Image.fromarray(hole(40, 60).astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=60)
    Image.fromarray((noise(40, 60, 3) // 2 + 64).astype(np.uint8)).save(tmp_path / "photo.jpg")
    for mask in ("mask.png", "mask.jpg"):
        assert "swapped" in refusal(tmp_path / mask, tmp_path / "photo.jpg")


def test_a_black_and_white_picture_and_a_soft_mask_are_not_suspected():
    picture = (noise(40, 60) > 128).astype(np.uint8) * 255
    soft = np.clip(np.linspace(-1, 2, 60), 0, 1)[None].repeat(40, 0).astype(np.float32)
    assert Inpaint(picture, soft).mask_array.any()
    assert Inpaint(picture, hole(40, 60)).mask_array.any()
    assert Inpaint(noise(40, 60, 3), soft).mask_array.any()


# --- selections and soft masks


def test_boxes_and_a_color_replace_a_mask():
    picture = noise(24, 31, 3)
    picture[20, 30] = (1, 2, 250)
    task = Inpaint(picture, boxes=[(3, 4, 5, 6)], color=(1, 2, 250), tolerance=0, grow=1)
    expected = np.zeros((24, 31), bool)
    expected[4:10, 2:9] = expected[3:11, 3:8] = expected[19:22, 30] = expected[20, 29] = True
    assert np.array_equal(task.mask_array, expected)
    assert np.array_equal(np.asarray(repaired(task))[~expected], picture[~expected])


def test_a_soft_mask_has_known_noisy_and_unknown_pixels():
    weights = np.zeros((24, 31), np.float32)
    weights[5, 5:12] = [0.03, 1 / 16, 0.2, 0.5, 0.9, 15 / 16, 1]
    task = Inpaint(noise(24, 31, 3), weights, soft=True, context=40)
    (crop,) = task.crops(FakeModel())
    assert isinstance(crop.constraint, Linear)
    assert isinstance(crop.constraint.operator, Mask)
    known, std = crop.constraint.operator.known[0, 0].numpy(), np.asarray(crop.constraint.noise)[0, 0]
    assert known[5, 5:12].tolist() == [1, 1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(std[5, 5:10], [0, 0, 0.125, 0.5, 4.5], rtol=1e-5)
    assert known.sum() == known.size - 2
    assert (std > 0).sum() == 3
    assert np.array_equal(task.mask_array, weights > 1 / 16)


def test_inside_a_soft_mask_the_result_is_the_sample():
    picture, weights = noise(24, 31, 3), np.zeros((24, 31), np.float32)
    weights[4:20, 6:25] = 0.5
    task = Inpaint(picture, weights, soft=True)
    crops = task.crops(FakeModel())
    samples = [torch.rand(3, *crop.size) * 2 - 1 for crop in crops]
    out = np.asarray(task.postprocess(samples, crops)).astype(np.float32)
    rows, columns = crops[0].box
    expected = np.asarray((samples[0] * 127.5 + 127.5).permute(1, 2, 0))
    assert np.array_equal(out[weights == 0], picture[weights == 0])
    np.testing.assert_allclose(
        out[rows, columns][weights[rows, columns] > 0], expected[weights[rows, columns] > 0], atol=0.51
    )


def test_without_soft_a_mask_is_cut_at_half_and_its_crops_have_no_noise():
    weights = np.zeros((24, 31), np.float32)
    weights[5, 5:8] = [0.3, 0.5, 0.9]
    with pytest.warns(UserWarning, match="cut at one half"):
        task = Inpaint(noise(24, 31, 3), weights)
    assert task.mask_array.sum() == 2
    assert all(crop.constraint.noise == 0.0 for crop in task.crops(FakeModel()))


def test_transparency_as_a_soft_mask():
    pixels = np.dstack([noise(24, 31, 3), np.full((24, 31), 255, np.uint8)])
    pixels[5, 5:8, 3] = [0, 128, 250]
    task = Inpaint(pixels, soft=True)
    np.testing.assert_allclose(task.weights[5, 5:8], [1, 127 / 255, 5 / 255], rtol=1e-5)
    assert (np.asarray(repaired(task))[..., 3] == 255).all()
    inverted = Inpaint(pixels, invert=True)
    assert np.array_equal(np.asarray(repaired(inverted))[..., 3], pixels[..., 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": [(40, 0, 2, 2)]}, "box 40,0,2,2: is outside the picture"),
        ({"boxes": [(0, 0, 31, 24)]}, "nothing to keep"),
        ({"color": (3, 4, 256)}, "from 0 to 255"),
        ({"grow": -1}, "grow = -1"),
        ({"feather": 20_000}, "feather = 20000"),
    ],
)
def test_bad_selections_are_refused(options, message):
    options = {"boxes": [(0, 0, 2, 2)]} | options
    assert message in refusal(noise(24, 31, 3), **options)


def test_a_masked_part_with_more_pixels_than_are_sampled_is_refused_and_a_small_one_of_a_large_picture_is_not(
    monkeypatch,
):
    """The limit holds for what is sampled, not for the file."""
    monkeypatch.setattr("adhere.tasks._pixels.MAX_SAMPLED_PIXELS", 200_000)
    pixels, mask = noise(600, 900, 3), np.zeros((600, 900), bool)
    mask[300, 450] = True
    assert [crop.size for crop in Inpaint(pixels, mask).crops(FakeModel(4))] == [(196, 196)]
    with pytest.raises(AdhereError, match=r"masked part with its context would have 900x600 pixels; at most 200,000"):
        Inpaint(pixels, ~mask).crops(FakeModel(4))
