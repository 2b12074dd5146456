"""Outpainting: own pixels, passes, and what is refused; random samples stand in for the model's."""

import numpy as np
import pytest
import torch

from adhere import AdhereError, Outpaint
from adhere.io.images import Picture
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel

MODEL = FakeModel(multiple=4, native_size=(16, 16))  # a side grows by at most 8 pixels at once


def passes(task, model=MODEL):
    """Yield the picture and the sizes of the crops of each pass."""
    generator = torch.Generator().manual_seed(0)
    while task is not None:
        crops = task.crops(model)
        image = task.postprocess([torch.randn(3, *crop.size, generator=generator) for crop in crops], crops)
        yield image, [crop.size for crop in crops]
        task = task.next_pass(model, image)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P", "1"])
def test_the_own_pixels_stay_bit_for_bit_through_all_passes(mode):
    image = image_of(mode, 11, 13)
    task = Outpaint(image, left=20, top=3, bottom=9)
    out = np.asarray([*passes(task)][-1][0])
    picture = task.picture
    planes = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    given = planes[..., 0] if planes.shape[2] == 1 else planes
    assert out.shape[:2] == (23, 33) == task.size
    assert np.array_equal(out[3:14, 20:], given.astype(out.dtype) if mode != "1" else given > 0)


def test_new_pixels_are_painted_and_opaque():
    pixels = np.dstack([noise(11, 13, 3), np.full((11, 13), 100, np.uint8)])
    out = np.asarray([*passes(Outpaint(pixels, right=5))][-1][0])
    assert (out[:, 13:, 3] == 255).all()
    assert (out[:, :13, 3] == 100).all()
    assert len(np.unique(out[:, 13:, :3])) > 20


@pytest.mark.parametrize(
    ("growth", "sizes"),
    [
        ({"left": 8}, [(10, 18)]),
        ({"left": 9}, [(10, 18), (10, 19)]),
        ({"left": 20, "bottom": 3}, [(13, 18), (13, 26), (13, 30)]),
        ({"left": 8, "top": 8, "right": 8, "bottom": 8}, [(26, 26)]),
        ({"left": 30, "top": 8}, [(18, 18), (18, 26), (18, 34), (18, 40)]),
    ],
)
def test_a_side_grows_by_at_most_half_of_the_native_size_at_once(growth, sizes):
    result = [image.size[::-1] for image, _ in passes(Outpaint(noise(10, 10, 3), **growth))]
    assert result == sizes


def test_of_a_large_picture_only_the_new_part_and_its_context_are_sampled():
    sizes = [crops for _, crops in passes(Outpaint(noise(400, 600, 3), left=4, right=8, top=4, context=12))]
    assert sizes == [[(400, 16), (400, 20)], [(16, 612)]]


@pytest.mark.parametrize(
    ("aspect", "size"), [((2, 1), (30, 60)), ((1, 1), (40, 40)), ((16, 9), (30, 53)), ((1, 2), (80, 40))]
)
def test_the_aspect_is_reached_by_growing_the_shorter_way(aspect, size):
    task = Outpaint(noise(30, 40, 3), aspect=aspect)
    assert task.size == size
    left, right, top, bottom = task.growth
    assert abs(left - right) <= 1
    assert abs(top - bottom) <= 1


def test_floats_keep_the_exact_values():
    picture = noise(9, 10, 3)
    task = Outpaint(picture, right=6)
    crops = task.crops(MODEL)
    out = task.postprocess_float([torch.zeros(3, *crop.size) for crop in crops], crops)
    assert np.array_equal(out[:, :, :10].permute(1, 2, 0).numpy(), picture.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the picture would not grow"),
        ({"aspect": (4, 3)}, "the picture would not grow"),
        ({"aspect": (0, 3)}, r"aspect = \(0, 3\): give \(width, height\)"),
        ({"aspect": 1.5}, r"aspect = 1.5: give \(width, height\)"),
        ({"aspect": "16:9"}, r"aspect = '16:9': give \(width, height\)"),
        ({"aspect": (16, 9), "left": 1}, "give one of them"),
        ({"left": -1}, "left = -1: give a whole number of pixels"),
        ({"top": -15}, "top = -15: give a whole number of pixels"),
        ({"left": 90_000, "top": 90_000}, "at most 250,000,000 are allowed"),
    ],
)
def test_what_cannot_be_grown_is_refused_in_one_line(options, message):
    with pytest.raises(AdhereError, match=message) as caught:
        Outpaint(noise(30, 40, 3), **options)
    assert "\n" not in str(caught.value)


def test_more_than_sixteen_passes_are_refused_before_the_first():
    picture = noise(9, 10, 3)
    Outpaint(picture, left=16 * 8).crops(MODEL)
    with pytest.raises(AdhereError, match="top = 129: takes 17 passes with this model; at most 16 are allowed: add at"):
        Outpaint(picture, left=1, top=16 * 8 + 1).crops(MODEL)


def test_numbers_of_numpy_are_numbers():
    picture = noise(9, 10, 3)
    assert Outpaint(picture, left=np.int64(3), context=np.int32(8)).growth == (3, 0, 0, 0)  # type: ignore[arg-type]
    assert Outpaint(picture, aspect=(np.int64(2), np.int64(1))).size == (9, 18)  # type: ignore[arg-type]


def test_metadata_are_those_of_the_new_size():
    picture = Picture(noise(9, 10, 3), metadata={"dpi": (300, 300)})
    image, _ = next(passes(Outpaint(picture, left=4)))
    assert image.info["dpi"] == (300, 300)
