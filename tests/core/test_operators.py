"""The laws of every operator, what each computes according to another library, and operators made from functions."""

import inspect
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from adhere.core import filters
from adhere.core._cosines import cosines, inverse_cosines
from adhere.core._linalg import conjugate_residuals
from adhere.core.filters import Blur, Convolve, Downsample, Resize, _check_sizes
from adhere.core.operators import (
    Gray,
    Identity,
    InnerProduct,
    LinearOperator,
    Mask,
    Unpad,
    _Composition,
    _Stacked,
    operator,
)
from adhere.errors import InvalidInput
from adhere.testing import check_operator
from tests.core.exact import Matrix, assert_close, matrix_of, normal, seeded

few_examples = settings(max_examples=25, deadline=None)
KINDS = ["area", "bicubic"]
OTHERS = [
    "identity",
    "mask",
    "blur",
    "convolve",
    "resize",
    "gray",
    "gray of mask",
    "area of blur",
    "inner product",
    "stacked",
    "unpad",
]
FUNCTIONS = ["channel means", "low-pass filter"]
# Of rounding errors: the laws hold to less than 1e-12 for images whose entries are below 10.
TOLERANCE = 5e-14


def random_mask(g, height, width):
    return Mask((torch.rand(1, 1, height, width, generator=g) < 0.6).double())


def low_pass(x):
    """Return x without its Fourier coefficients above 0.25 cycles per pixel."""
    frequencies = [torch.fft.fftfreq(side, dtype=x.dtype) for side in x.shape[-2:]]
    keep = (frequencies[0][:, None].abs() <= 0.25) & (frequencies[1].abs() <= 0.25)
    return torch.fft.ifft2(torch.fft.fft2(x) * keep).real


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "kind": st.sampled_from([*KINDS, *OTHERS, *FUNCTIONS]),
        "factor": st.integers(1, 5),
        "size": st.tuples(st.integers(1, 6), st.integers(1, 6)),
        "sigma": st.floats(0.3, 3),
    }
)


def make_case(seed, kind, factor, size, sigma):
    """Return an operator, the shape of one image, and a generator."""
    g = seeded(seed)
    height, width = (factor * side for side in size)
    shape = (3, height, width)
    mask, blur = random_mask(g, height, width), Blur(sigma)
    inner_product, area = InnerProduct(normal(g, 1, *shape)), Downsample(factor)
    shapes = ((3, height // factor, width // factor), (1, 1, 1))
    one = {
        "identity": Identity(),
        "mask": mask,
        "area": Downsample(factor, "area"),
        "bicubic": Downsample(factor, "bicubic"),
        "blur": blur,
        "resize": Resize((height, width), size, "bicubic" if seed % 2 else "area"),
        "convolve": Convolve(normal(g, min(height, factor), min(width, 2))),
        "gray": Gray(),
        "gray of mask": Gray() @ mask,
        "area of blur": area @ blur,
        "inner product": inner_product,
        "stacked": _Stacked((area, inner_product), (0.5, 2.0), shapes),
        "unpad": Unpad((height, width), (max(1, height - 2), max(1, width - 3))),
        "channel means": operator(lambda x: x.mean((2, 3)), shape),
        "low-pass filter": operator(low_pass, shape),
    }[kind]
    return one, shape, g


def solved(A, r, damping):
    """Return solve_normal(r, damping) to a relative residual of 1e-11."""
    for num_iterations in (20, 100, 500):
        u = A.solve_normal(r, damping, num_iterations, tolerance=1e-12)
        if (A(A.adjoint(u)) + damping * u - r).norm() <= 1e-11 * r.norm():
            break
    return u


# Laws ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(CASES)
def test_every_operator_keeps_the_laws(case):
    """Linearity, adjointness, batches, tightness where it is claimed, and the solution of the normal equations."""
    check_operator(*make_case(**case), tolerance=TOLERANCE)


@few_examples
@given(CASES, st.floats(1e-3, 10.0))
def test_solve_normal_solves_the_normal_equations_for_any_damping(case, damping):
    """For any measurement r, which is zero in entries that measure nothing, and with a damping per sample too."""
    A, shape, g = make_case(**case)
    r = normal(g, *A(normal(g, 2, *shape)).shape)
    r = r * A.measurement_support(r)
    per_image = torch.tensor([damping, 3 * damping]).double().view(2, *[1] * (r.ndim - 1))
    for one in (damping, per_image):
        u = solved(A, r, one)
        assert_close(A(A.adjoint(u)) + one * u, r, 1e-9)


@few_examples
@given(CASES, st.floats(1e-3, 10.0))
def test_a_damping_per_sample_gives_the_solutions_of_single_samples(case, damping):
    A, shape, g = make_case(**case)
    r = A(normal(g, 2, *shape))
    dampings = torch.tensor([damping, damping / 7]).double().view(2, *[1] * (r.ndim - 1))
    together = solved(A, r, dampings)
    for i, one in enumerate((damping, damping / 7)):
        assert_close(together[i : i + 1], solved(A, r[i : i + 1], one), 1e-7)


@pytest.mark.parametrize(
    "damping", [0.0, 0.3, torch.tensor([0.0, 0.3]).double().view(2, 1, 1, 1)], ids=["0", "0.3", "2"]
)
def test_identity_and_mask_are_solved_in_closed_form(damping):
    """(1 + damping)^-1 r, exactly, in known entries, and 0 in the others."""
    r, mask = normal(seeded(0), 2, 3, 4, 4), random_mask(seeded(1), 4, 4)
    assert Identity().solve_normal(r, damping).equal(r / (1 + damping))
    solved = mask.solve_normal(mask(r), damping)
    assert solved.equal(mask.known * (r / (1 + damping)))
    assert_close(mask(mask.adjoint(solved)) + damping * solved, mask(r), 1e-15)


@pytest.mark.parametrize("kind", [Blur(3.0), Downsample(2, "bicubic"), Downsample(2), Identity(), Gray()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_damping_of_zero_in_a_tensor_gives_no_nan(kind, dtype):
    """As of a residual of zero without noise; a wide blur has eigenvalues of zero."""
    y = kind(normal(seeded(0), 2, 3, 16, 16).to(dtype))
    y[0] = 0
    u = kind.solve_normal(y, torch.zeros(2, 1, 1, 1, dtype=dtype))
    assert u.isfinite().all() and not u[0].any()


@few_examples
@given(CASES, st.floats(-3, 3))
def test_operators_are_linear_and_zero_at_zero(case, factor):
    A, shape, g = make_case(**case)
    x, z = normal(g, 2, *shape), normal(g, 2, *shape)
    assert_close(A(x + factor * z), A(x) + factor * A(z), 1e-12)
    assert not A(torch.zeros_like(x)).any()


def test_a_spectrum_cached_without_gradients_serves_a_run_with_gradients():
    """No inference tensor is cached."""
    y = torch.rand(1, 3, 5, 7)
    with torch.inference_mode():
        Blur(1.234).solve_normal(y, 0.1)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(Blur(1.234).solve_normal(y, 0.1).square().sum(), y)
    assert gradient.abs().max() > 0


def test_solve_normal_does_not_amplify_rounding_errors():
    """For any damping, what a blur hides is not restored from the last digits of the measurement."""
    x = torch.rand(1, 1, 32, 32, generator=seeded(3)) * 2 - 1
    blur = Blur(2.0)
    y = blur(x)
    for damping in (1e-8, 1e-12, 1e-20):
        assert blur.adjoint(blur.solve_normal(y, damping)).abs().max() < 2


@pytest.mark.parametrize(
    "A", [Gray(), Downsample(2), Unpad((8, 8), (5, 6)), InnerProduct(torch.ones(1, 3, 8, 8).double())]
)
def test_tight_operators_are_solved_by_two_products_with_a_a_transposed(A):
    """A A^T has at most two eigenvalues; a number of iterations as given would be made to no effect."""
    y, calls = A(normal(seeded(0), 2, 3, 8, 8)), []
    original = type(A).__call__
    counting = type("Counting", (type(A),), {"__call__": lambda self, x: calls.append(x) or original(self, x)})
    counted = counting(**vars(A))
    for damping in (0.0, 0.7):
        calls.clear()
        u = counted.solve_normal(y, damping)
        assert len(calls) <= 2
        assert_close(A(A.adjoint(u)) + damping * u, y, 1e-12)


LARGE_FILTERS = [Blur(0.8), Blur(2.0), Downsample(2, "bicubic"), Downsample(3, "bicubic")]


@pytest.mark.parametrize("A", LARGE_FILTERS, ids=repr)
def test_of_large_sides_solve_normal_makes_counted_products_without_a_matrix(A, monkeypatch):
    """It agrees with the closed form of small sides."""
    y = normal(seeded(0), 2, 3, 21, 40)
    expected = A.solve_normal(y, 0.01)
    monkeypatch.setattr(filters, "_MAX_DENSE_SIDE", 20)
    monkeypatch.setattr(filters, "_spectrum", None)  # the matrix of eigenvectors
    original, calls = type(A).__call__, []
    monkeypatch.setattr(type(A), "__call__", lambda self, x: calls.append(x) or original(self, x))
    assert_close(A.solve_normal(y, 0.01, 20), expected, 1e-3)
    assert len(calls) == 20
    assert_close(A.solve_normal(y, torch.tensor([0.01, 0.5]).double().view(2, 1, 1, 1), 20)[:1], expected[:1], 1e-3)


@pytest.mark.parametrize(
    ("A", "damping", "num_iterations", "error"),
    [
        *((A, damping, 6, 2e-5) for A in (Downsample(2, "bicubic"), Blur(1.0)) for damping in (1e-2, 1e-3, 1e-4)),
        *((Blur(2.0), damping, 30, error) for damping, error in ((1e-2, 1e-5), (1e-3, 2e-5), (1e-4, 2e-4))),
        *((Blur(4.0), damping, 30, error) for damping, error in ((1e-2, 1e-5), (1e-3, 2e-5), (1e-4, 1e-2))),
    ],
    ids=str,
)
def test_of_large_sides_solve_normal_is_as_accurate_as_its_docstring_says(
    A, damping, num_iterations, error, monkeypatch
):
    """With twice the error that it states, since the noise is another."""
    r = A(torch.randn(1, 3, 192, 192, generator=seeded(0)))
    expected = A.solve_normal(r.double(), damping)
    monkeypatch.setattr(filters, "_MAX_DENSE_SIDE", 64)
    u = A.solve_normal(r, damping, num_iterations)
    assert (u - expected).norm() <= 2 * error * expected.norm()


@given(st.integers(1, 9), st.integers(1, 9))
def test_cosine_transforms_are_inverse_and_have_their_definition(height, width):
    x = normal(seeded(0), 2, height, width)
    n = torch.arange(width).double()
    matrix = torch.cos(torch.pi * (2 * n + 1) * n[:, None] / (2 * width))
    assert_close(cosines(x), x @ matrix.T, 1e-10)
    assert_close(inverse_cosines(cosines(x)), x, 1e-10)


@pytest.mark.parametrize("A", [*LARGE_FILTERS, Downsample(2)], ids=repr)
def test_large_planes_are_filtered_one_by_one_to_the_same_result(A, monkeypatch):
    x = normal(seeded(0), 2, 3, 12, 18)
    y = A(x)
    back = A.adjoint(y)
    monkeypatch.setattr(filters, "_ENTRIES_AT_ONCE", 1)
    assert_close(A(x), y, 1e-12)
    assert_close(A.adjoint(y), back, 1e-12)


@pytest.mark.parametrize("kind", [Blur(0.8), Downsample(2, "bicubic")], ids=["blur", "bicubic"])
def test_solve_normal_without_damping_is_that_of_conjugate_residuals(kind):
    y = kind(normal(seeded(0), 2, 3, 8, 8))
    expected = conjugate_residuals(lambda u: kind(kind.adjoint(u)), y, 30)
    assert_close(kind.solve_normal(y, 0.0), expected, 1e-12)


def test_which_operators_are_tight():
    inner_product, mask = InnerProduct(torch.ones(1, 3, 2, 2)), Mask(torch.ones(1, 1, 2, 2))
    tight = (Identity(), mask, Gray(), Downsample(2, "area"), inner_product, Unpad((4, 4), (3, 2)))
    assert all(A.is_tight for A in tight)
    others = (Blur(1.0), Downsample(2, "bicubic"), Gray() @ Blur(1.0), operator(lambda x: x, (1, 2, 2)))
    assert not any(A.is_tight for A in others)


@few_examples
@given(CASES)
def test_the_measurement_support_is_where_rows_are_not_zero(case):
    A, shape, g = make_case(**case)
    y = A(normal(g, 2, *shape))
    rows = matrix_of(A, shape).abs().amax(1) > 1e-12
    support = A.measurement_support(y[:1]).flatten()
    assert support.equal(rows)


def test_the_measurement_support_of_a_mask_is_its_known_pixels():
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(1, 1, 2, 2)
    assert Mask(known).measurement_support(torch.zeros(1, 3, 2, 2)).equal(known.bool().expand(1, 3, 2, 2))


# What they compute ---------------------------------------------------------------------------------------------------


@few_examples
@given(
    st.one_of(
        st.builds(Downsample, st.integers(1, 6), st.sampled_from(KINDS)),
        st.builds(Blur, st.floats(0.3, 4)),
        st.just(Gray()),
    )
)
def test_constants_are_kept_up_to_the_edge(A):
    y = A(torch.full((1, 3, 60, 60), 0.7, dtype=torch.float64))
    assert_close(y, torch.full_like(y, 0.7), 1e-12)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_area_is_the_mean_of_each_block(factor):
    x = normal(seeded(0), 2, 3, 24, 48)
    assert_close(Downsample(factor, "area")(x), avg_pool2d(x, factor), 1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_is_that_of_torch_away_from_the_edge(factor):
    """Keys' kernel with a = -1/2, stretched by the factor. At the edge torch cuts it off; here the edge is repeated."""
    x = normal(seeded(0), 1, 3, 8 * factor, 10 * factor)
    theirs = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False)
    inside = (..., slice(2, -2), slice(2, -2))  # the kernel reaches two output pixels
    assert_close(Downsample(factor, "bicubic")(x)[inside], theirs[inside], 1e-6)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))


@few_examples
@given(SIZES, st.integers(0, 1000))
def test_resizing_by_any_factor(sizes, seed):
    """The area is the mean over the squares of a finer grid; bicubic is torch's, also at the edges."""
    height, width, *shares = sizes
    small = tuple(max(1, round(share * side)) for share, side in zip(shares, (height, width), strict=True))
    x = normal(seeded(seed), 2, 3, height, width)
    fine = x.repeat_interleave(small[0], 2).repeat_interleave(small[1], 3)
    squares = fine.view(2, 3, small[0], height, small[1], width)
    assert_close(Resize((height, width), small)(x), squares.mean((3, 5)), 1e-12)
    if min(small) > 1:  # torch 2.13 crashes for a side of 1 pixel
        bicubic = interpolate(x, small, mode="bicubic", antialias=True)
        assert_close(Resize((height, width), small, "bicubic")(x), bicubic, 1e-12)


@few_examples
@given(SIZES, st.sampled_from(KINDS), st.floats(1e-6, 1.0))
def test_ten_conjugate_residuals_invert_any_resizing(sizes, kind, damping):
    """The condition number of A A^T is at most 2.1^2, so the residual is at most 2 (1 - 2 / 3.1)^10 < 7e-5 of r."""
    height, width, *shares = sizes
    small = tuple(max(1, round(share * side)) for share, side in zip(shares, (height, width), strict=True))
    A, r = Resize((height, width), small, kind), normal(seeded(0), 1, 2, *small)
    u = A.solve_normal(r, damping)
    assert (A(A.adjoint(u)) + damping * u - r).norm() <= 7e-5 * r.norm()


def test_sizes_that_grow_or_do_not_fit_are_refused():
    with pytest.raises(InvalidInput, match=r"from \(4, 4\) to \(5, 2\): give \(height, width\) twice"):
        Resize((4, 4), (5, 2))
    for size, small in (((10,), (4, 4)), ((10, 10), (4.0, 4.0)), ((10, 10, 10), (4, 4, 4))):
        with pytest.raises(InvalidInput, match=r"give \(height, width\) twice, in whole numbers"):
            _check_sizes(size, small)  # of Resize, whose types are checked before in the test run
    with pytest.raises(InvalidInput, match=r"resizing from \(4, 4\): the image is of \(4, 5\)"):
        Resize((4, 4), (2, 2))(torch.zeros(1, 3, 4, 5))


def test_convolution_is_that_of_torch():
    x, kernel = normal(seeded(0), 2, 3, 9, 11), normal(seeded(1), 3, 4)
    expected = conv2d(x.view(-1, 1, 9, 11), kernel.flip(0, 1)[None, None]).view(2, 3, 7, 8)
    assert_close(Convolve(kernel)(x), expected, 1e-13)


def test_kernels_that_do_not_fit_are_refused():
    for kernel in (torch.ones(0, 3), torch.tensor([[math.nan]])):
        with pytest.raises(InvalidInput, match=r"the kernel has shape .*: give finite numbers \(h, w\)"):
            Convolve(kernel)
    with pytest.raises(InvalidInput, match=r"convolution by 3 x 1: an image of \(2, 5\) is smaller"):
        Convolve(torch.ones(3, 1))(torch.zeros(1, 3, 2, 5))


def test_the_blur_of_a_point_has_the_stated_width():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = Blur(2.5)(point)[0, 0]
    offsets = torch.arange(41, dtype=torch.float64) - 20
    # Cut off at three sigma: the variance of a normal truncated there is 0.973 sigma^2.
    for marginal in (spread.sum(0), spread.sum(1)):
        assert marginal @ offsets.square() == pytest.approx(0.973 * 2.5**2, rel=0.02)
    assert_close(spread, spread.T)
    assert_close(spread, spread.flip(0))


def test_gray_is_bt_601():
    primaries = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    assert_close(Gray()(primaries).flatten(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))


def test_unpad_keeps_the_top_left_part_and_its_adjoint_pads_with_zeros():
    x = normal(seeded(0), 2, 3, 5, 6)
    unpad = Unpad((5, 6), (3, 4))
    assert unpad(x).equal(x[..., :3, :4])
    back = unpad.adjoint(x[..., :3, :4])
    assert back.shape == x.shape
    assert back[..., :3, :4].equal(x[..., :3, :4])
    assert not back[..., 3:, :].any() and not back[..., 4:].any()


@few_examples
@given(st.integers(0, 2**32 - 1))
def test_composition_is_the_product_of_the_matrices(seed):
    g = seeded(seed)
    outer, inner = Matrix(normal(g, 2, 4), (1, 2, 2)), Matrix(normal(g, 4, 9), (1, 3, 3))
    composed = outer @ inner
    assert isinstance(composed, _Composition)
    assert_close(matrix_of(composed, (1, 3, 3)), outer.A @ inner.A, 1e-12)
    three = Matrix(normal(g, 3, 2)) @ outer @ inner
    assert_close(matrix_of(three, (1, 3, 3)), three.outer.outer.A @ outer.A @ inner.A, 1e-12)


def test_a_composition_of_padding_and_downsampling_keeps_the_laws():
    """What super-resolution of a size that the factor does not divide is made of."""
    check_operator(Unpad((2, 3), (2, 2)) @ Downsample(4, "bicubic"), (3, 8, 12), tolerance=TOLERANCE)


@pytest.mark.parametrize(
    "A", [Blur(2.0), Downsample(3, "bicubic"), Downsample(3), Gray(), Gray() @ Unpad((6, 9), (5, 7))]
)
def test_padding_that_is_removed_leaves_the_solution_as_it_is(A):
    """A U U^T A^T = A A^T for U that removes padding, so a closed form stays one."""
    r = A(normal(seeded(0), 2, 3, 6, 9))
    composed = A @ Unpad((8, 16), (6, 9))
    assert composed.is_tight == A.is_tight
    assert composed.solve_normal(r, 0.01, num_iterations=1).equal(A.solve_normal(r, 0.01, num_iterations=1))
    check_operator(composed, (3, 8, 16), tolerance=TOLERANCE)


def test_equal_operators_serve_a_batch_together_and_others_do_not():
    """Numbers and names are compared; functions, tensors and inner operators must be the same object."""
    flip = operator(lambda x: x.flip(-1), (3, 4, 4))
    for A, equal in [(Blur(1.0), Blur(1.0)), (Identity(), Identity()), (Unpad((4, 4), (3, 2)), Unpad((4, 4), (3, 2)))]:
        assert A.stack([equal], 2) == A
    for A, other in [
        (Blur(1.0), Blur(2.0)),
        (Downsample(2), Downsample(4)),
        (Downsample(2), Downsample(2, "bicubic")),
        (Gray(), Identity()),
        (Mask(torch.ones(1, 1, 4, 4)), Identity()),
        (flip, operator(lambda x: x.flip(-1), (3, 4, 4))),
        (Gray() @ Blur(1.0), Gray() @ Blur(1.0)),
    ]:
        assert A.stack([other], 2) is None
    assert flip.stack([flip], 2) is flip


def test_masks_of_a_batch_are_repeated_one_after_the_other():
    first, second = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    stacked = Mask(first).stack([Mask(second)], 2)
    assert stacked.known.equal(torch.cat([first, first, second, second]))


# Operators from functions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean((2, 3)),
        low_pass,
        lambda x: torch.view_as_real(torch.fft.rfft2(x, norm="ortho")),
        lambda x: x[..., ::2, 1:].flip(-1).cumsum(-2),
    ],
    ids=["channel means", "low-pass filter", "Fourier coefficients", "indexing"],
)
def test_the_adjoint_of_a_function_is_derived_under_any_mode(function, dtype, mode):
    shape = (3, 6, 8)
    A = operator(function, shape)
    with mode():
        check_operator(A, shape, dtype=dtype)
        y = A(torch.ones(2, *shape, dtype=dtype))
        back = A.adjoint(y)
    assert back.dtype == dtype and back.shape == (2, *shape)
    assert not back.requires_grad


def test_the_adjoint_of_a_mean_spreads_it():
    A = operator(lambda x: x.mean((2, 3)), (3, 4, 5))
    assert_close(A.adjoint(torch.ones(2, 3)), torch.full((2, 3, 4, 5), 1 / 20), 1e-7)


def test_a_function_is_the_same_operator_as_its_class():
    g, blur = seeded(0), Blur(1.0)
    same = operator(blur, (3, 6, 7))
    x, y = normal(g, 2, 3, 6, 7), normal(g, 2, 3, 6, 7)
    assert same(x).equal(blur(x))
    assert_close(same.adjoint(y), blur.adjoint(y), 1e-12)
    assert_close(same.solve_normal(y, 0.1, 500, 1e-12), blur.solve_normal(y, 0.1), 1e-9)


def test_an_operator_from_a_function_can_be_composed():
    A = Gray() @ operator(lambda x: x.flip(-1), (3, 4, 4))
    check_operator(A, (3, 4, 4), tolerance=TOLERANCE)


def test_a_measurement_of_another_shape_is_refused():
    A = operator(lambda x: x.mean((2, 3)), (3, 4, 4))
    with pytest.raises(ValueError, match=r"y has shape \(2, 4\), but the operator returns \(2, 3\)"):
        A.adjoint(torch.zeros(2, 4))


def test_a_new_operator_takes_ten_lines():
    class Flip(LinearOperator):
        def __call__(self, x):
            return x.flip(-1)

        def adjoint(self, y):
            return y.flip(-1)

    check_operator(Flip(), (3, 4, 5))


# Types and refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    x = torch.ones(1, 3, 8, 8, dtype=dtype)
    for A in [Identity(), Downsample(2), Downsample(2, "bicubic"), Blur(1.0), Gray(), Unpad((8, 8), (5, 6))]:
        assert A(x).dtype == A.adjoint(A(x)).dtype == dtype
        assert math.isfinite(A(x).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(9, 8), (8, 9)])
def test_a_size_that_the_factor_does_not_divide_is_refused(kind, size):
    with pytest.raises(ValueError, match=r"down-sampling by 4.*pad"):
        Downsample(4, kind)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_blur_without_width_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma = "):
        Blur(sigma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0, -2])
def test_a_factor_below_one_is_refused(kind, factor):
    with pytest.raises(ValueError, match=f"factor = {factor}"):
        Downsample(factor, kind)


def test_the_adjoint_of_a_function_that_returns_complex_numbers_says_what_to_measure():
    fourier = operator(torch.fft.rfft2, (1, 4, 4))
    with pytest.raises(ValueError, match=r"fn returns complex numbers: measure torch\.view_as_real"):
        fourier.adjoint(torch.zeros(1, 1, 4, 3))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 8), r"shape = (1, 3, 8, 8): leave out the batch, (3, 8, 8)"),
        ((3, 0, 8), "shape = (3, 0, 8): give that of one image, such as (3, 64, 64)"),
        ((3, 8.0, 8), "shape = (3, 8.0, 8): give that of one image"),
        (64, "shape = 64: give that of one image"),
    ],
)
def test_the_shape_of_an_operator_is_that_of_one_image(shape, message):
    unchecked = inspect.unwrap(operator)  # without the type checker of the tests
    with pytest.raises(TypeError, match=re.escape(message)):
        unchecked(lambda x: x, shape)


def test_operators_with_tensors_are_equal_to_themselves_only():
    for A, B in ((Convolve(torch.ones(3, 3)), Convolve(torch.ones(3, 3))), (Mask(torch.ones(4)), Mask(torch.ones(4)))):
        assert A == A and A != B
