"""Colors from hints: the constraints, and the picture that comes back."""

import numpy as np
import pytest
import torch
from PIL import Image

from adhere import AdhereError, Colorize, Gray, Linear
from tests.picture_files import image_of, noise
from tests.tasks.fake_model import FakeModel
from tests.tiny_models import load


def hints_of(color: tuple[int, int, int], box: tuple[slice, slice], size: tuple[int, int] = (24, 32)) -> np.ndarray:
    hints = np.zeros((*size, 4), np.uint8)
    hints[box] = (*color, 255)
    return hints


def luma_of(image: Image.Image) -> np.ndarray:
    """Return 0.299 R + 0.587 G + 0.114 B of the written pixels."""
    return np.asarray(image.convert("RGB")).astype(np.float64) @ [0.299, 0.587, 0.114]


def test_the_luma_is_measured_and_hints_with_the_luma_of_the_picture():
    gray = 60 + noise(24, 30) // 3  # bright and dark enough for the chroma of the hints
    box = slice(3, 9), slice(4, 20)
    task = Colorize(gray, hints_of((200, 40, 90), box, (24, 30)), 0.01)
    (crop,) = task.crops(FakeModel(8))
    linear = crop.constraint
    assert crop.size == (24, 32) and isinstance(linear, Linear) and isinstance(linear.noise, torch.Tensor)
    colors = linear.operator.adjoint(linear.y)
    y = torch.from_numpy(gray) / 127.5 - 1
    torch.testing.assert_close(Gray()(colors)[0, 0, :, :30], y)
    luma_std, chroma_std = linear.noise[0, 0], linear.noise[0, 1]
    assert luma_std.max() <= 0.001 and linear.noise[0, 2].equal(chroma_std)
    assert 0 < chroma_std[box].max() <= 0.01 and chroma_std[box].max() < chroma_std[12:].mean()
    color = torch.tensor([200.0, 40, 90]) / 127.5 - 1
    chroma = color - (color * torch.tensor([0.299, 0.587, 0.114])).sum()
    shown = (colors - Gray()(colors))[0, :, *box]
    torch.testing.assert_close(shown, chroma.view(3, 1, 1).expand_as(shown), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "1"])
def test_the_luma_of_the_written_file_is_the_picture_within_a_level(mode):
    """Also where the colors would leave the range, and for pictures with colors, which become gray first."""
    picture = image_of(mode, 24, 32)
    task = Colorize(picture, hints_of((200, 40, 90), (slice(0, 4), slice(0, 4))))
    (crop,) = task.crops(FakeModel(8))
    sample = torch.randn(3, *crop.size, generator=torch.Generator().manual_seed(0)) * 2
    image = task.postprocess([sample], [crop])
    assert image.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")
    given = np.asarray(picture) / 257 if mode == "I;16" else luma_of(picture)
    visible = task.picture.visible()  # the others may have any color
    assert np.abs(luma_of(image) - given)[visible].max() <= 0.51
    floats = task.postprocess_float([sample], [crop])
    assert floats.shape == (3, 24, 32) and floats.min() >= 0 and floats.max() <= 1
    shown = task.written(sample[None], crop)
    assert np.abs((Gray()(shown)[0, 0].numpy() + 1) * 127.5 - given)[visible].max() <= 0.51


def test_hints_are_colors_that_a_picture_can_have():
    """Of black, white and all between; the luma stays."""
    gray = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    (crop,) = Colorize(gray, hints_of((255, 0, 0), (slice(0, 8), slice(0, 8)), (8, 8))).crops(FakeModel(8))
    assert isinstance(crop.constraint, Linear)
    colors = crop.constraint.operator.adjoint(crop.constraint.y)
    assert colors.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(Gray()(colors)[0, 0], torch.from_numpy(gray) / 127.5 - 1, atol=1e-5, rtol=0)


def test_saturation_is_kept_where_there_is_room():
    task = Colorize(np.full((8, 8), 128, np.uint8))
    x = torch.tensor([0.2, -0.1, 0.05]).view(3, 1, 1).expand(3, 8, 8)
    restored = task.restored(x)
    chroma = x - Gray()(x[None])[0]
    torch.testing.assert_close(restored, chroma + 128 / 127.5 - 1, atol=1e-6, rtol=0)


def test_the_shipped_model_spreads_colors_up_to_edges():
    """Of two flat halves with a small stroke each, both get the color of theirs: red and blue, on average."""
    gray = np.full((64, 64), 100, np.uint8)
    gray[:, 32:] = 160
    hints = hints_of((200, 50, 80), (slice(20, 44), slice(12, 20)), (64, 64))
    hints[20:44, 44:52] = (90, 180, 250, 255)
    out = load(None)(Colorize(gray, hints), generator=torch.Generator().manual_seed(0))
    red, _, blue = np.asarray(out.images[0]).astype(float).transpose(2, 0, 1)
    assert (red - blue)[8:-8, 4:28].mean() > 40
    assert (blue - red)[8:-8, 36:60].mean() > 40


def test_the_shipped_model_respects_the_hints_as_far_as_their_noise_says():
    """A stroke that contradicts the others of its region keeps its color within the noise, and loses it beyond."""
    hints = hints_of((150, 90, 100), (slice(20, 24), slice(4, 60)), (64, 64))
    hints[40:44, 30:34] = (90, 130, 90, 255)
    y = 0.299 * 90 + 0.587 * 130 + 0.114 * 90
    errors = []
    for hint_noise in (0.0, 0.1, 2.0):
        task = Colorize(np.full((64, 64), 116, np.uint8), hints, hint_noise)
        shown = np.asarray(load(None)(task, generator=torch.Generator().manual_seed(0)).images[0]).astype(float)
        error = (shown - 116)[40:44, 30:34] - (np.array([90, 130, 90]) - y)
        errors.append(np.sqrt(np.square(error).mean()))
    assert errors[0] <= 1 and errors[0] <= errors[1] <= 3 * 0.1 * 127.5 and errors[1] < errors[2] / 2


def test_the_shipped_model_leaves_gray_what_has_gray_hints():
    hints = hints_of((100, 100, 100), (slice(4, 8), slice(4, 60)), (64, 64))
    out = load(None)(Colorize(60 + noise(64, 64) // 3, hints), generator=torch.Generator().manual_seed(0))
    assert np.ptp(np.asarray(out.images[0]).astype(int), 2).max() <= 3


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (noise(24, 32, 3), "the hints have no transparency"),
        (noise(24, 30, 4), "the hints have 30x24 pixels, the picture has 32x24"),
        (np.zeros((24, 32, 4), np.uint8), "the hints are transparent everywhere"),
        ("missing.png", "no such file"),
    ],
)
def test_hints_that_are_refused(hints, message):
    with pytest.raises(AdhereError, match=message):
        Colorize(noise(24, 32), hints)


def test_without_hints_only_the_luma_is_measured():
    (crop,) = Colorize(noise(24, 32)).crops(FakeModel(8, is_latent=True))
    assert isinstance(crop.constraint, Linear) and isinstance(crop.constraint.operator, Gray)


def test_a_model_of_pixels_needs_hints():
    with pytest.raises(AdhereError, match=r"the hints are missing \(--hints\): a pixel-space model does not know"):
        Colorize(noise(24, 32)).crops(FakeModel(8))


def test_a_noise_out_of_range_is_refused():
    with pytest.raises(AdhereError, match="hint_noise = 13: give one number from 0 to 2"):
        Colorize(noise(24, 32), hint_noise=13)
