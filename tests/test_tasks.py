"""Tasks, from any kind of input to a picture of the same kind; a fake sample stands in for the model."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, Inpaint
from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from tests.picture_files import hole, image_of, noise

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Model:
    """What a task asks of a model, without one."""

    multiple: int = 1
    native_size: tuple[int, int] = (64, 64)
    execution_device: torch.device = CPU


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
    """As the pipeline does, with noise for samples."""
    generator = torch.Generator().manual_seed(0)
    windows = task.windows(Model(multiple))
    return task.finish([torch.randn(3, *window.size, generator=generator) for window in windows], windows)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(AdhereError) as caught:
        Inpaint(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P", "1"])
@pytest.mark.parametrize(("mask", "size"), [(m, s) for m in MASKS for s in SIZES if 0 < MASKS[m](*s).mean() < 1])
def test_known_pixels_stay_bit_for_bit(mode, mask, size):
    repaint = MASKS[mask](*size)
    task = Inpaint(image_of(mode, *size), repaint)
    out = np.asarray(repaired(task))
    planes = task.picture.pixels if task.picture.alpha is None else np.dstack([task.picture.pixels, task.picture.alpha])
    given = planes[..., 0] if planes.shape[2] == 1 else planes
    assert out.dtype == given.dtype
    assert out.shape == given.shape
    assert np.array_equal(out[~repaint], given[~repaint])


def test_the_hole_is_repainted():
    picture, repaint = noise(37, 53, 3), hole(37, 53)
    assert (np.asarray(repaired(Inpaint(picture, repaint)))[repaint] != picture[repaint]).mean() > 0.9


@pytest.mark.parametrize("context", [1, 7, 96, 10_000])
@pytest.mark.parametrize("mask", MASKS)
def test_a_window_around_the_hole_gives_a_picture_of_the_whole_size(mask, context):
    picture, repaint = noise(75, 101, 3), MASKS[mask](75, 101)
    out = np.asarray(repaired(Inpaint(picture, repaint, context)))
    assert out.shape == picture.shape
    assert np.array_equal(out[~repaint], picture[~repaint])


def test_the_network_sees_the_hole_and_its_context_only():
    task = Inpaint(noise(200, 300, 3), at(200, 300, slice(100, 110), slice(5, 25)), context=8)
    (window,) = task.windows(Model(4))
    assert window.size == (28, 36)  # rows 92 ... 118, columns 0 ... 33, padded to multiples of 4
    assert isinstance(window.constraint, Linear)
    known = torch.from_numpy(~task.repaint[92:118, 0:33])
    assert torch.equal(window.constraint.y[..., :26, :33], task.picture.tensor()[..., 92:118, 0:33] * known)


@pytest.mark.parametrize("multiple", [1, 2, 16, 64])
@pytest.mark.parametrize("size", SIZES)
def test_the_constraint_is_met_by_the_picture_itself(size, multiple):
    """In the padding too, whose pixels repeat the picture's."""
    task = Inpaint(noise(*size, 3), at(size[0], size[1], 0, 0))
    (window,) = task.windows(Model(multiple))
    assert all(side % multiple == 0 for side in window.size)
    constraint = window.constraint
    assert isinstance(constraint, Linear)
    assert constraint.y.shape[-2:] == window.size
    assert constraint.error(constraint.y).tolist() == [0.0]
    assert isinstance(constraint.operator, Mask)
    known = constraint.operator.known
    assert known.sum() >= 1
    assert set(known.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("side", "size"), [(64, (202, 212)), (512, (394, 404))])
def test_by_default_a_small_hole_is_seen_about_as_large_as_the_pictures_the_model_was_made_for(side, size):
    task = Inpaint(noise(600, 700, 3), at(600, 700, slice(300, 310), slice(305, 325)))
    (window,) = task.windows(Model(1, native_size=(side, side)))
    assert window.size == size


@pytest.mark.parametrize("context", [0, -1])
def test_context_that_shows_nothing_known_is_refused(context):
    assert f"context = {context}" in refusal(noise(8, 8, 3), hole(8, 8), context)


def test_every_way_to_give_picture_and_mask_means_the_same(tmp_path):
    picture, repaint = noise(24, 31, 3), hole(24, 31)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(repaint).save(tmp_path / "mask.png")
    first = Inpaint(picture, repaint)
    masks = [
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        Image.fromarray(repaint),
        repaint.astype(np.uint8) * 255,
        repaint.astype(np.float64),
        torch.from_numpy(repaint),
        torch.from_numpy(repaint)[None, None].half(),
    ]
    images = [picture, tmp_path / "picture.png", str(tmp_path / "picture.png"), Image.fromarray(picture), first.picture]
    for image, mask in [(image, repaint) for image in images] + [(picture, mask) for mask in masks]:
        task = Inpaint(image, mask)
        assert np.array_equal(task.picture.pixels, picture)
        assert np.array_equal(task.repaint, repaint)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_without_a_mask_the_transparent_part_is_repainted_and_becomes_opaque(mode):
    image = image_of(mode, 24, 31)
    alpha = np.where(hole(24, 31), 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    task = Inpaint(image)
    assert np.array_equal(task.repaint, hole(24, 31))
    out = np.asarray(repaired(task))
    assert (out[..., -1] == 255).all()
    assert np.array_equal(out[~task.repaint], np.asarray(image)[~task.repaint])


def test_with_a_mask_alpha_stays_as_it_is():
    image = image_of("RGBA", 24, 31)
    assert np.array_equal(np.asarray(repaired(Inpaint(image, hole(24, 31))))[..., 3], np.asarray(image)[..., 3])


def test_bad_requests_are_refused_when_they_are_made(tmp_path):
    picture = noise(24, 31, 3)
    assert "31 x 24" in refusal(picture, hole(31, 24))
    assert "nothing to repaint" in refusal(picture, np.zeros((24, 31), bool))
    assert "nothing to keep" in refusal(picture, np.ones((24, 31), bool))
    assert "no such file" in refusal(tmp_path / "nowhere.png", hole())
    assert "no such file" in refusal(picture, tmp_path / "nowhere.png")
    assert "mask" in refusal(picture)  # no alpha that could stand in for it


def test_a_request_cannot_be_changed():
    task = Inpaint(noise(24, 31, 3), hole())
    with pytest.raises(AttributeError):
        task.context = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_samples_out_of_range_are_cut_not_wrapped():
    task = Inpaint(np.full((24, 31, 3), 128, np.uint8), hole())
    (window,) = task.windows(Model())
    assert np.asarray(task.finish([torch.full((3, *window.size), 7.0)], [window]))[12, 15].tolist() == [255, 255, 255]
