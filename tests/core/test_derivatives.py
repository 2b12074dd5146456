"""Directional derivatives of denoisers: finite differences against exact Jacobians, and autograd's transpose."""

import copy

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from adhere.core.denoisers import NetworkDenoiser
from adhere.core.derivatives import finite_difference_step, forward_difference, jvp, vjp
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule
from tests.core.exact import (
    assert_close,
    exact_jacobian,
    gaussian_case,
    matrix_of,
    normal,
    random_mixture,
    seeded,
)

HALF_PRECISION = [torch.bfloat16, torch.float16]


class SmoothNetwork(torch.nn.Module):
    """A small random network that is smooth on the scale of unit variance, as a denoiser is at high noise."""

    def __init__(self, seed=0, width=64):
        super().__init__()
        g = seeded(seed)
        self.inner = torch.nn.Parameter(torch.randn(width, width, generator=g) / width**0.5)
        self.outer = torch.nn.Parameter(torch.randn(width, width, generator=g) / width**0.5)

    def forward(self, x_t, t):
        return (torch.tanh(0.3 * x_t.flatten(1) @ self.inner) @ self.outer).view_as(x_t)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.floats(-8, 2))
def test_the_jacobian_of_a_gaussian_is_its_posterior_covariance_and_any_difference_is_exact(seed, t, exponent):
    """J = (alpha/sigma^2) Cov[x0 | x_t], symmetric; a difference with any step h gives J v."""
    prior, _, _, x_t, g = gaussian_case(seed)
    schedule = CosineSchedule()
    denoiser = prior.denoiser(schedule)
    J, x0 = exact_jacobian(prior, *schedule(t)), denoiser(x_t, t)
    columns = matrix_of(lambda v: jvp(denoiser, x_t[:1], t, x0[:1], v), prior.shape)
    assert_close(columns, J, 1e-8)
    assert_close(J, J.T)
    h, v = 10**exponent, normal(g, *x_t.shape)
    difference = (denoiser(x_t + h * v, t) - x0) / h
    # Exact in real numbers; rounding errors of about 1e-15 in each of the two are divided by h.
    assert_close(difference.flatten(1), v.flatten(1) @ J, 1e-12 + 1e-13 / h)


def relative_error(value, exact):
    return float((value - exact).norm() / exact.norm())


def exact_jvp(network, x_t, v):
    """Return J v by forward-mode differentiation in float64."""
    network = network.double().requires_grad_(False)
    return torch.func.jvp(lambda x: network(x, 0.5), (x_t.double(),), (v.double(),))[1].float()


@pytest.mark.parametrize("seed", range(3))
def test_a_difference_in_float32_is_the_derivative(seed):
    network = SmoothNetwork(seed)
    x_t, v = torch.randn(2, 3, 1, 8, 8, generator=seeded(seed + 10))
    denoiser = NetworkDenoiser(network, FlowSchedule(), "sample")
    with torch.no_grad():
        product = jvp(denoiser, x_t, 0.5, denoiser(x_t, 0.5), 100 * v)
    assert product.dtype == torch.float32
    assert relative_error(product, exact_jvp(network, x_t, 100 * v)) < 1e-2


SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}


def unconditional_unet():
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(16, 3, 3, down_block_types=down, up_block_types=up, **SMALL).eval(), {}


def conditional_unet():
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(16, 3, 3, down_block_types=down, up_block_types=up, cross_attention_dim=16, **SMALL)
    return unet.eval(), {"encoder_hidden_states": torch.randn(2, 6, 16, generator=seeded(2))}


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "t"), [(torch.bfloat16, 100.0), (torch.float16, 250.0)], ids=str)
@pytest.mark.parametrize("make", [unconditional_unet, conditional_unet])
@pytest.mark.parametrize("seed", range(2))
def test_differences_of_unets_in_half_precision_are_within_5_percent(make, dtype, t, seed):
    """Small UNets of diffusers with random weights, against autograd in float32 through the same rounded weights.

    The rounding inside the network reaches x0 = (x_t - sigma_t eps) / alpha_t times sigma_t / alpha_t: bfloat16 stays
    within 5 % at low noise, float16 at middle noise too. The paper's step, that of float32, is off by more than 20 %.
    """
    torch.manual_seed(seed)
    unet, context = make()
    half = unet.to(dtype)

    def denoiser(network, dtype, step_dtype=None):
        arguments = {name: value.to(dtype) for name, value in context.items()}

        def run(x_t, times):
            return network(x_t.to(dtype), times, **arguments).sample.float()

        return NetworkDenoiser(run, DDPMSchedule.from_betas(), "epsilon", step_dtype or dtype)

    x_t, v = torch.randn(2, 2, 3, 16, 16, generator=seeded(seed))
    full = denoiser(copy.deepcopy(half).float(), torch.float32)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        exact = torch.autograd.functional.jvp(lambda x: full(x, t), x_t, v)[1]

    def error(denoiser):
        return relative_error(jvp(denoiser, x_t, t, denoiser(x_t, t), v), exact)

    assert error(denoiser(half, dtype)) < 0.05
    assert error(denoiser(half, dtype, step_dtype=torch.float32)) > 0.2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.floats(0.05, 0.95))
def test_jvp_is_homogeneous_and_per_sample(seed, factor, t):
    """The size of the perturbation depends on the direction of v alone, sample by sample."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser = prior.denoiser(FlowSchedule())
    x_t, v = normal(g, 3, *prior.shape), normal(g, 3, *prior.shape)
    x0 = denoiser(x_t, t)
    product = jvp(denoiser, x_t, t, x0, v)
    # The rounding error of the difference is eps |x0| / h, here about 1e-10.
    assert_close(jvp(denoiser, x_t, t, x0, factor * v) / factor, product, 1e-7)
    for i in range(3):
        one = slice(i, i + 1)
        assert_close(jvp(denoiser, x_t[one], t, x0[one], v[one]), product[one], 1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF_PRECISION])
def test_a_zero_direction_gives_zero_beside_one_that_is_not(dtype):
    network = SmoothNetwork().to(dtype)
    denoiser = NetworkDenoiser(network, FlowSchedule(), "sample", dtype)
    x_t = torch.randn(2, 1, 8, 8, generator=seeded(0))
    v = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    with torch.no_grad():
        product = jvp(denoiser, x_t, 0.5, denoiser(x_t, 0.5), v)
    assert not product[0].any()
    assert product[1].isfinite().all() and product[1].any()


def test_less_precise_dtypes_take_a_larger_step():
    steps = [finite_difference_step(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    assert steps == sorted(steps) and steps[0] < steps[-1]


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_a_step_half_or_twice_as_long_in_half_precision_is_not_better_by_more_than_a_tenth(dtype):
    """Of a function as nonlinear as a denoiser at middle noise. Rounding errors fall with the step, the others grow.

    The function itself is computed in float64, and its argument and its result are rounded as a network's are.
    """

    def rounded(x):
        return (2 * x.to(dtype).double()).sin().to(dtype).double()

    x, v = normal(seeded(0), 2, 4, 1, 32, 32)
    h, size = finite_difference_step(dtype), v.abs().amax()

    def error(step):
        difference = (rounded(x + step / size * v) - rounded(x)) * size / step
        return float((difference - v * 2 * (2 * x).cos()).norm())

    assert error(h) < 1.1 * min(error(h / 2), error(2 * h))


def test_one_direction_serves_a_whole_batch():
    x, v = normal(seeded(0), 3, 2, 2), normal(seeded(1), 1, 2, 2)
    difference = forward_difference(lambda x: x.square(), x, x.square(), v, 1e-6)
    assert_close(difference, 2 * x * v, 1e-5)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_vjp_is_the_transpose_under_any_mode(mode):
    """<J v, u> = <v, J^T u> for the exact J, with nothing left of the graph."""
    M = normal(seeded(0), 4, 6)
    x, v, u = (normal(seeded(seed), 2, size) for seed, size in ((1, 6), (2, 6), (3, 4)))

    def function(x):
        return torch.tanh(x @ M.T)

    with mode():
        y, transposed = vjp(function, x + 0, retain_graph=True)  # under inference_mode, x + 0 is an inference tensor
        product = transposed(u + 0)
        again = transposed(u + 0)
    assert_close(y, function(x), 1e-12)
    forward = (1 - function(x).square()) * (v @ M.T)
    assert_close((forward * u).sum(1), (v * product).sum(1), 1e-12)
    assert product.equal(again)
    assert not (y.requires_grad or product.requires_grad)
