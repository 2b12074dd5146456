"""The stationary covariance V_w against dense matrices, in float64 unless a test says otherwise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core import _linalg
from adhere.core.covariance import StationaryCovariance
from tests.core.exact import assert_close, matrix_of, normal, seeded

few_examples = settings(max_examples=20, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 6)
CHANNELS = st.sampled_from([1, 3, 4])
SNRS = st.sampled_from([0.0, 1e-4, 0.03, 1.0, 40.0, 2e3])
# f varies by a factor of at most 1e4 over these sizes, S by 1e5, and a rounding error is relative to the largest S.
ROUND_OFF = 1e-12


def random_model(seed, channels):
    """Return a model whose parameters are drawn, with a dense C."""
    g = seeded(seed)
    root = normal(g, channels, channels)
    C = root @ root.T / channels + 0.01 * torch.eye(channels, dtype=torch.float64)
    p, w, k0 = torch.rand(3, generator=g, dtype=torch.float64).tolist()
    colors = tuple(tuple(row) for row in C.tolist())
    return StationaryCovariance(colors, exponent=1 + 3 * p, white_fraction=0.02 + 0.9 * w, min_frequency=0.2 + k0)


def spectrum(model, height, width):
    """Return S(k) of equation (2), (height, width, c, c), frequency by frequency."""
    C, w = torch.tensor(model.channel_covariance, dtype=torch.float64), model.white_fraction

    def cycles(i, side):  # of the i-th coefficient of a Fourier transform, per pixel, in [-1/2, 1/2]
        return (i if i <= side // 2 else i - side) / side

    k0 = model.min_frequency / max(height, width)
    f = torch.tensor(
        [
            [(k0**2 + cycles(i, height) ** 2 + cycles(j, width) ** 2) ** (-model.exponent / 2) for j in range(width)]
            for i in range(height)
        ],
        dtype=torch.float64,
    )
    f = f / f.mean()
    white = w * C.trace() / len(C) * torch.eye(len(C), dtype=torch.float64)
    return (1 - w) * f[..., None, None] * C + white


def dense_covariance(model, channels, height, width, snr):
    """Return F^-1 S (I + snr S)^-1 F as a matrix (n, n), with F the dense matrix of the Fourier transform."""
    S = spectrum(model, height, width)
    identity = torch.eye(channels, dtype=torch.float64)
    blocks = (S @ torch.linalg.inv(identity + snr * S)).reshape(-1, channels, channels)  # (H W, c, c)

    def fourier(side):
        i = torch.arange(side, dtype=torch.float64)
        return torch.polar(torch.ones(side, side).double(), -2 * math.pi * torch.outer(i, i) / side) / math.sqrt(side)

    F = torch.kron(fourier(height), fourier(width))  # (H W, H W), unitary
    V = torch.einsum("kp,kcd,kq->cpdq", F.conj(), blocks.to(F), F)
    assert V.imag.abs().max() < ROUND_OFF * V.abs().max()
    n = channels * height * width
    return V.real.reshape(n, n)


def product_matrix(model, shape, snr):
    return matrix_of(lambda v: model.product(v, snr), shape)


# The matrix ----------------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES, SNRS)
def test_the_product_is_that_with_the_dense_matrix_of_equation_2(seed, channels, height, width, snr):
    model = random_model(seed, channels)
    V = product_matrix(model, (channels, height, width), snr)
    expected = dense_covariance(model, channels, height, width, snr)
    assert_close(V / expected.abs().max(), expected / expected.abs().max(), ROUND_OFF)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 5), (1, 1), (1, 8)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_default_covariances_equal_their_dense_matrices_for_odd_and_even_sides(channels, size):
    model = StationaryCovariance.default(channels)
    V = product_matrix(model, (channels, *size), 0.7)
    assert_close(V, dense_covariance(model, channels, *size, 0.7), ROUND_OFF)


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES, SNRS)
def test_it_is_symmetric_and_positive_definite(seed, channels, height, width, snr):
    """The eigenvalues lie between those of the white part and the largest of S, and below 1 / snr."""
    model = random_model(seed, channels)
    V = product_matrix(model, (channels, height, width), snr)
    largest = V.abs().max()
    assert_close(V / largest, V.T / largest, ROUND_OFF)
    white = model.white_fraction * torch.tensor(model.channel_covariance).double().trace() / channels
    eigenvalues = torch.linalg.eigvalsh(V)
    assert eigenvalues.min() >= white / (1 + snr * white) * (1 - 1e-9)
    assert snr == 0 or eigenvalues.max() <= 1 / snr * (1 + 1e-9)


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES, st.sampled_from([1e-4, 0.03, 1.0, 40.0, 2e3]))
def test_the_condition_number_is_an_upper_bound(seed, channels, height, width, snr):
    """And it falls to 1 at low noise, where V_w is about I / snr."""
    model = random_model(seed, channels)
    eigenvalues = torch.linalg.eigvalsh(product_matrix(model, (channels, height, width), snr))
    assert eigenvalues.max() <= model.condition_number(snr) * eigenvalues.min() * (1 + 1e-9)
    assert 1 < model.condition_number(1e6 / model.white_fraction) < 1 + 1e-3


# The prior -----------------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES)
def test_without_signal_it_is_the_covariance_of_the_prior(seed, channels, height, width):
    """Each pixel has the covariance (1 - w) C + w (tr C / c) I of its channels, since f has mean 1."""
    model = random_model(seed, channels)
    V = product_matrix(model, (channels, height, width), 0.0).reshape(channels, height * width, channels, -1)
    C, w = torch.tensor(model.channel_covariance, dtype=torch.float64), model.white_fraction
    expected = (1 - w) * C + w * C.trace() / channels * torch.eye(channels, dtype=torch.float64)
    for pixel in range(height * width):
        assert_close(V[:, pixel, :, pixel], expected, 1e-10)


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES, st.floats(1e-3, 1e3))
def test_it_is_the_conditional_covariance_of_the_prior_given_x_t(seed, channels, height, width, snr):
    """(S^-1 + snr I)^-1 for a Gaussian prior of covariance S."""
    model, shape = random_model(seed, channels), (channels, height, width)
    S, V = product_matrix(model, shape, 0.0), product_matrix(model, shape, snr)
    identity = torch.eye(len(S), dtype=torch.float64)
    # S is inverted, whose condition number is below 1e6 here.
    assert_close(V @ (torch.linalg.inv(S) + snr * identity), identity, 1e-8)


def test_it_is_stationary():
    """A shifted image has the shifted product, edges wrapped around."""
    model, v = random_model(0, 3), normal(seeded(1), 2, 3, 5, 6)
    assert_close(model.product(v.roll((1, 2), (-2, -1)), 0.3), model.product(v, 0.3).roll((1, 2), (-2, -1)), ROUND_OFF)


def test_coarse_structure_has_more_variance_than_fine_structure():
    """By the power law: of two plane waves of one half and one quarter cycle per pixel and a constant."""
    model = StationaryCovariance.default(1)
    x = torch.arange(16, dtype=torch.float64)
    waves = [(2 * math.pi * k * x).cos().expand(1, 1, 16, 16) for k in (0.0, 0.25, 0.5)]
    variances = [float((wave * model.product(wave, 0.0)).sum() / wave.square().sum()) for wave in waves]
    power = [((0.5 / 16) ** 2 + k**2) ** -1.3 for k in (0.0, 0.25, 0.5)]
    white = 0.1 * 0.2
    assert (variances[0] - white) / (variances[2] - white) == pytest.approx(power[0] / power[2], rel=1e-9)
    assert (variances[1] - white) / (variances[2] - white) == pytest.approx(power[1] / power[2], rel=1e-9)


# Batches and dtypes --------------------------------------------------------------------------------------------------


def test_a_batch_gives_the_products_of_its_singles():
    model, v = StationaryCovariance.default(3), normal(seeded(0), 4, 3, 7, 6)
    singles = torch.cat([model.product(one, 0.5) for one in v.split(1)])
    assert_close(model.product(v, 0.5), singles, ROUND_OFF)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_float32_is_float64_up_to_rounding(channels):
    model, v = StationaryCovariance.default(channels), normal(seeded(0), 2, channels, 32, 33)
    for snr in (0.0, 0.05, 100.0):
        single, double = model.product(v.float(), snr), model.product(v, snr)
        assert single.dtype == torch.float32 and double.dtype == torch.float64
        # FFTs of n entries lose about eps sqrt(log n) relative to the norm of the result.
        assert (single - double).norm() < 1e-6 * double.norm()


def test_a_spectrum_cached_without_gradients_serves_a_run_with_gradients():
    """No inference tensor is cached."""
    model, v = StationaryCovariance(((0.123,),), exponent=2.0), torch.ones(1, 1, 4, 5)
    with torch.inference_mode():
        model.product(v, 0.1)
    v.requires_grad_()
    (gradient,) = torch.autograd.grad(model.product(v, 0.1).square().sum(), v)
    assert gradient.abs().max() > 0


# Defaults ------------------------------------------------------------------------------------------------------------


def test_the_default_for_photographs_has_correlated_colors():
    model = StationaryCovariance.default(3)
    C = torch.tensor(model.channel_covariance, dtype=torch.float64)
    stated = 0.2 * torch.tensor([[1.01, 0.72, 0.63], [0.72, 0.93, 0.85], [0.63, 0.85, 1.05]]).double()
    assert_close(C, stated, 1e-7)
    assert (model.exponent, model.white_fraction, model.min_frequency) == (2.6, 0.1, 0.5)
    assert torch.linalg.eigvalsh(C).min() > 0


def test_the_default_for_gray_pictures_has_the_variance_of_photographs():
    assert StationaryCovariance.default(1) == StationaryCovariance(((0.2,),), exponent=2.6)


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_the_default_for_latents_has_unit_variance_and_independent_channels(channels):
    model = StationaryCovariance.default(channels)
    assert torch.tensor(model.channel_covariance).equal(torch.eye(channels))
    assert (model.exponent, model.white_fraction, model.min_frequency) == (2.0, 0.1, 0.5)
    v = torch.zeros(1, channels, 4, 4).double()
    v[:, 0] = normal(seeded(0), 4, 4)
    assert not model.product(v, 0.2)[:, 1:].any()


def test_the_isotropic_covariance_has_independent_channels_of_equal_variance():
    model = StationaryCovariance.isotropic(2, variance=0.3, exponent=1.5)
    assert model == StationaryCovariance(((0.3, 0.0), (0.0, 0.3)), exponent=1.5)


@pytest.mark.parametrize("size", [(32, 32), (24, 33)])
@pytest.mark.parametrize("p", [1.5, 2.6])
def test_a_fit_finds_the_covariance_of_the_channels_and_the_exponent(p, size):
    """Of 500 draws, about their mean color. The white part and the minimal frequency are not fitted."""
    C = torch.tensor(StationaryCovariance.default(3).channel_covariance, dtype=torch.float64)
    white = normal(seeded(0), 500, 3, *size)
    f = spectrum(StationaryCovariance(((1.0,),), p, 1e-9, 0.1), *size)[..., 0, 0]
    f[0, 0] = 0  # the mean color of each image is not fitted
    root = torch.linalg.cholesky(C)
    x0 = 0.3 + torch.einsum("cd,ndhw->nchw", root, torch.fft.ifft2(torch.fft.fft2(white) * f.sqrt()).real)
    fitted = StationaryCovariance.fit(x0, white_fraction=0.2)
    assert (fitted.white_fraction, fitted.min_frequency) == (0.2, 0.5)
    assert fitted.exponent == pytest.approx(p, abs=0.02)  # measured: 0.008
    assert_close(torch.tensor(fitted.channel_covariance).double(), C * f.mean(), 0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel_covariance": ((1.0, 0.0),)}, "must be square"),
        ({"channel_covariance": ()}, "must be square"),
        ({"channel_covariance": ((1.0, 0.5), (0.0, 1.0))}, "symmetric"),
        ({"channel_covariance": ((float("nan"),),)}, "finite"),
        ({"channel_covariance": ((0.0,),)}, "positive trace"),
        ({"white_fraction": 0.0}, r"white_fraction must be in \(0, 1\]"),
        ({"white_fraction": 1.5}, r"white_fraction must be in \(0, 1\]"),
        ({"exponent": -1.0}, "exponent at least 0"),
        ({"exponent": math.inf}, "exponent at least 0"),
        ({"min_frequency": math.inf}, "min_frequency above 0"),
        ({"min_frequency": 0.0}, "min_frequency above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StationaryCovariance(**({"channel_covariance": ((1.0,),), "exponent": 2.0} | settings))


def test_examples_of_white_noise_have_an_exponent_of_at_least_0():
    """The slope of their spectrum is 0 up to an error of either sign."""
    exponents = [StationaryCovariance.fit(normal(seeded(seed), 8, 3, 16, 16)).exponent for seed in range(8)]
    assert min(exponents) == 0 and max(exponents) < 0.1


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="states have 4 channels, the covariance has 3"):
        StationaryCovariance.default(3).product(torch.zeros(1, 4, 8, 8), 1.0)


@pytest.mark.parametrize("shape", [(3, 8), (3, 3, 8), (1, 3, 2, 8, 8)])
def test_states_that_are_not_batches_of_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"states have the shape \(.*\): moment matching needs \(B, C, H, W\)"):
        StationaryCovariance.default(3).product(torch.zeros(shape), 1.0)


def test_an_exponent_of_zero_is_white_noise():
    model, v = StationaryCovariance(((0.5,),), exponent=0.0), normal(seeded(0), 2, 1, 4, 6)
    assert_close(model.product(v, 3.0), v / (1 / 0.5 + 3.0), 1e-12)


@few_examples
@given(SEEDS, CHANNELS, SIDES, SIDES)
def test_large_states_are_filtered_channel_by_channel_to_the_same_product(seed, channels, height, width):
    model, v = random_model(seed, channels), normal(seeded(seed), 2, channels, height, width)
    expected = model.product(v, 0.7)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_linalg, "_FILTERED_ENTRIES", 1)
        assert_close(model.product(v, 0.7), expected, 1e-12)
