"""Laws that every operator keeps, and what each of them is by another library's word."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core.operators import (
    Blur,
    Compose,
    Downsample,
    Functional,
    Gray,
    Identity,
    Invertible,
    Mask,
    Stacked,
    is_even,
)
from tests.core.exact import close, normal, seeded

FEW = settings(max_examples=25, deadline=None)
KINDS = ["area", "bicubic"]
COMPOSED = ["gray of mask", "area of blur"]


def random_mask(g, height, width):
    return Mask((torch.rand(1, 1, height, width, generator=g) < 0.6).double())


@st.composite
def cases(draw):
    """(operator, x of two samples, generator): any kind, factor and size, edges and all."""
    g = seeded(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["identity", "mask", *KINDS, "blur", "gray", *COMPOSED, "functional", "stacked"]))
    factor = draw(st.integers(1, 5))
    height, width = (factor * draw(st.integers(1, 6)) for _ in range(2))
    mask, blur = random_mask(g, height, width), Blur(draw(st.floats(0.3, 3)))
    functional, area = Functional(normal(g, 1, 3, height, width)), Downsample(factor)
    shapes = ((3, height // factor, width // factor), (1, 1, 1))
    operator = {
        "identity": Identity(),
        "mask": mask,
        "area": Downsample(factor, "area"),
        "bicubic": Downsample(factor, "bicubic"),
        "blur": blur,
        "gray": Gray(),
        "gray of mask": Compose(Gray(), mask),
        "area of blur": Compose(area, blur),
        "functional": functional,
        "stacked": Stacked((area, functional), (0.5, 2.0), shapes),
    }[kind]
    return operator, normal(g, 2, 3, height, width), g


@FEW
@given(cases())
def test_adjoint_is_the_transpose(case):
    operator, x, g = case
    y = normal(g, *operator(x).shape)
    assert operator.adjoint(y).shape == x.shape
    close((operator(x) * y).sum(), (x * operator.adjoint(y)).sum(), 1e-10)


@FEW
@given(cases())
def test_even_operators_have_rows_of_one_length_at_right_angles(case):
    """A A^T y is a multiple of y, for y that were measured."""
    operator, x, g = case
    y = operator(normal(g, *x.shape))
    if is_even(operator):
        back = operator(operator.adjoint(y))
        close(back, y * (back.norm() / y.norm().clamp_min(1e-300)), 1e-9)


@FEW
@given(cases(), st.floats(1e-3, 10.0))
def test_an_inverse_in_closed_form_is_the_inverse(case, variance):
    operator, x, g = case
    if isinstance(operator, Invertible):
        y = normal(g, *operator(x).shape)
        u = operator.even_out(y, variance)
        close(operator(operator.adjoint(u)) + variance * u, y, 1e-9)


def test_an_inverse_of_a_run_without_gradients_serves_one_with_them():
    """What is kept between the two is no inference tensor."""
    y = torch.rand(1, 3, 5, 7)
    with torch.inference_mode():
        Blur(1.234).even_out(y, 0.1)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(Blur(1.234).even_out(y, 0.1).square().sum(), y)
    assert gradient.abs().max() > 0


def test_an_inverse_does_not_make_noise_of_rounding():
    """For any variance, what a blur hides is not restored from its last digits."""
    x = torch.rand(1, 1, 32, 32, generator=seeded(3)) * 2 - 1
    operator = Blur(2.0)
    y = operator(x)
    for variance in (1e-8, 1e-12, 1e-20):
        assert operator.adjoint(operator.even_out(y, variance)).abs().max() < 2


def test_which_operators_are_even():
    functional, mask = Functional(torch.ones(1, 3, 2, 2)), Mask(torch.ones(1, 1, 2, 2))
    assert all(map(is_even, (Identity(), mask, Gray(), Downsample(2, "area"), functional)))
    assert not any(map(is_even, (Blur(1.0), Downsample(2, "bicubic"), Compose(Gray(), Blur(1.0)))))


@FEW
@given(cases(), st.floats(-3, 3))
def test_operators_are_linear(case, factor):
    operator, x, g = case
    z = normal(g, *x.shape)
    close(operator(x + factor * z), operator(x) + factor * operator(z), 1e-12)
    assert not operator(torch.zeros_like(x)).any()


@FEW
@given(cases())
def test_a_batch_is_its_singles(case):
    operator, x, _ = case
    y = operator(x)
    for i in range(len(x)):
        close(y[i : i + 1], operator(x[i : i + 1]), 1e-12)
        close(operator.adjoint(y)[i : i + 1], operator.adjoint(y[i : i + 1]), 1e-12)


@FEW
@given(
    st.one_of(
        st.builds(Downsample, st.integers(1, 6), st.sampled_from(KINDS)),
        st.builds(Blur, st.floats(0.3, 4)),
        st.just(Gray()),
    )
)
def test_constants_are_kept_up_to_the_edge(operator):
    y = operator(torch.full((1, 3, 60, 60), 0.7, dtype=torch.float64))
    close(y, torch.full_like(y, 0.7), 1e-12)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_area_is_the_mean_of_each_block(factor):
    x = normal(seeded(0), 2, 3, 24, 48)
    close(Downsample(factor, "area")(x), avg_pool2d(x, factor), 1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_is_torchs_away_from_the_edge(factor):
    """Keys' kernel with a = -1/2, stretched by the factor; at the edge torch cuts it off where we repeat the edge."""
    x = normal(seeded(0), 1, 3, 8 * factor, 10 * factor)
    theirs = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False)
    inside = (..., slice(2, -2), slice(2, -2))  # the kernel reaches two output pixels
    close(Downsample(factor, "bicubic")(x)[inside], theirs[inside], 1e-6)


def test_blur_of_a_point_has_the_stated_width():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = Blur(2.5)(point)[0, 0]
    offsets = torch.arange(41, dtype=torch.float64) - 20
    # Cut off at three sigma: the variance of a normal truncated there is 0.973 sigma^2.
    for marginal in (spread.sum(0), spread.sum(1)):
        assert marginal @ offsets.square() == pytest.approx(0.973 * 2.5**2, rel=0.02)
    close(spread, spread.T)
    close(spread, spread.flip(0))


def test_gray_is_bt_601():
    primaries = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    close(Gray()(primaries).flatten(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(9, 8), (8, 9)])
def test_a_size_the_factor_does_not_divide_is_refused(kind, size):
    with pytest.raises(ValueError, match=r"down-sampling by 4.*pad"):
        Downsample(4, kind)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.ones(1, 3, 8, 8, dtype=dtype)
    for operator in [Identity(), Downsample(2), Downsample(2, "bicubic"), Blur(1.0), Gray()]:
        assert operator(x).dtype == operator.adjoint(operator(x)).dtype == dtype
        assert math.isfinite(operator(x).sum())


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_blur_without_width_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma = "):
        Blur(sigma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_below_one_is_refused(kind, factor):
    with pytest.raises(ValueError, match=f"factor = {factor}"):
        Downsample(factor, kind)
