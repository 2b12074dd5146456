"""Chroma that spreads from hints: closed forms, scales and uncertainty."""

import numpy as np
import pytest
import torch

from adhere.core.operators import Gray
from adhere.tasks._chroma import LumaChroma, spread
from adhere.testing import check_operator

RED = torch.tensor([0.3, -0.12, -0.18]).view(3, 1, 1)
BLUE = torch.tensor([-0.2, -0.05, 0.31]).view(3, 1, 1)


def luma_noise(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, height, width, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def hints(size: tuple[int, int], *boxes: tuple[slice, slice, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the chroma and where it is known."""
    chroma, known = torch.zeros(3, *size), torch.zeros(1, *size, dtype=torch.bool)
    for rows, columns, color in boxes:
        chroma[:, rows, columns], known[:, rows, columns] = color, True
    return chroma, known


def test_the_basis_is_orthonormal_and_its_first_axis_is_the_luma():
    check_operator(LumaChroma(), (3, 5, 6))
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LumaChroma()(LumaChroma()(x)), x)
    norm = (0.299**2 + 0.587**2 + 0.114**2) ** 0.5
    torch.testing.assert_close(LumaChroma()(x)[:, :1] * norm, Gray()(x))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 64), (300, 500)])
def test_one_color_spreads_everywhere_undiminished(size):
    """For any luma: m = k a / k b, and a = b c."""
    chroma, known = hints(size, (slice(0, 1), slice(0, 1), RED))
    m, std = spread(luma_noise(*size), chroma, known, 0.1)
    assert m.shape == (3, *size) and std.shape == (1, *size) and bool((std >= 0).all())
    torch.testing.assert_close(m, RED.expand(3, *size), atol=1e-3, rtol=0)


def test_gray_hints_leave_the_picture_gray_with_certainty():
    m, std = spread(luma_noise(20, 30), *hints((20, 30), (slice(2, 4), slice(3, 9), torch.zeros(3, 1, 1))), 0.1)
    assert m.abs().max() == 0 and std.max() == 0


def test_two_flat_regions_get_the_colors_of_their_hints():
    """Up to a seventh, also far from the hints and nearer to the other one, where the edge is not near."""
    y = torch.full((1, 64, 64), -0.4)
    y[..., 32:] = 0.4
    chroma, known = hints((64, 64), (slice(4, 8), slice(4, 8), RED), (slice(56, 60), slice(56, 60), BLUE))
    m, _ = spread(y, chroma, known, 0.1)
    for part, color in ((m[:, :, :24], RED), (m[:, :, 40:], BLUE)):
        assert (part - color).abs().max() < (RED - BLUE).abs().max() / 7


def test_the_uncertainty_grows_with_the_distance_from_hints_and_in_other_textures():
    y = torch.zeros(1, 64, 64)
    y[:, 40:] = luma_noise(24, 64)
    _, std = spread(y, *hints((64, 64), (slice(0, 4), slice(0, 4), RED)), 0.1)
    along = std[0, 2, 4:]
    assert bool((along[1:] >= along[:-1]).all())
    assert std[0, 50:, :16].mean() > 1.2 * std[0, 24:30, :16].mean()


def test_a_large_picture_gets_the_colors_of_the_same_picture_made_smaller():
    """Of which each pixel is repeated in 2 x 2; the guided filter blurs the luma's own detail."""
    y = torch.nn.functional.interpolate(luma_noise(32, 32)[None], (256, 256), mode="bicubic")[0]
    chroma, known = hints((256, 256), (slice(20, 40), slice(30, 60), RED), (slice(200, 230), slice(90, 170), BLUE))
    small, small_std = spread(y, chroma, known, 0.1)
    repeat = lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)  # noqa: E731
    large, std = spread(repeat(y), repeat(chroma), repeat(known), 0.1)
    assert (large - repeat(small)).square().mean().sqrt() < 0.05 * small.std()
    torch.testing.assert_close(std, repeat(small_std), atol=0.03, rtol=0)


def test_all_pixels_may_be_hints_and_a_lone_one_counts():
    """Of many hints, the means over cells are used; one pixel far from them keeps its color."""
    y = torch.zeros(1, 200, 200)
    chroma, known = hints((200, 200), (slice(0, 100), slice(0, 200), RED), (slice(199, 200), slice(199, 200), BLUE))
    m, _ = spread(y, chroma, known, 0.1)
    torch.testing.assert_close(m[:, :90], RED.expand(3, 90, 200), atol=0.05, rtol=0)
    assert (m[:, 190:, 190:] - BLUE).abs().mean() < 0.2 * (RED - BLUE).abs().mean()
    everywhere, _ = spread(y, *hints((200, 200), (slice(0, 200), slice(0, 200), RED)), 0.1)
    torch.testing.assert_close(everywhere, RED.expand(3, 200, 200), atol=1e-3, rtol=0)


def test_double_precision_gives_the_same():
    y, (chroma, known) = luma_noise(20, 24), hints((20, 24), (slice(2, 5), slice(3, 9), RED))
    chroma[:, 15:, 15:], known[:, 15:, 15:] = BLUE, True
    m, std = spread(y, chroma, known, 0.1)
    m64, std64 = spread(y.double(), chroma.double(), known, 0.1)
    assert m64.dtype == std64.dtype == torch.float64
    np.testing.assert_allclose(m.numpy(), m64.numpy(), atol=1e-4)
    np.testing.assert_allclose(std.numpy(), std64.numpy(), atol=1e-3)
