"""What wraps a network: prediction, dtype boundary, guidance, counting, and the forward directional derivative."""

import copy

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from adhere.core.denoise import Counted, Guided, Prediction, difference_step, jacobian_product
from adhere.core.schedule import Discrete, RectifiedFlow, Trigonometric
from tests.core.exact import close, normal, random_gaussian, random_mixture, seeded

HALVES = [torch.bfloat16, torch.float16]


class Smooth(torch.nn.Module):
    """A small random network, smooth on the scale of its input's unit variance, as a denoiser is at high noise."""

    def __init__(self, seed=0, width=64):
        super().__init__()
        g = seeded(seed)
        self.inner = torch.nn.Parameter(torch.randn(width, width, generator=g) / width**0.5)
        self.outer = torch.nn.Parameter(torch.randn(width, width, generator=g) / width**0.5)

    def forward(self, x_t, t):
        return (torch.tanh(0.3 * x_t.flatten(1) @ self.inner) @ self.outer).view_as(x_t)


def relative_error(value, exact):
    return float((value - exact).norm() / exact.norm())


def exact_product(network, x_t, v):
    """J v by forward-mode differentiation, in float64."""
    network = network.double().requires_grad_(False)
    return torch.func.jvp(lambda x: network(x, 0.5), (x_t.double(),), (v.double(),))[1].float()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_network_sees_its_dtype_and_the_state_keeps_its_own(dtype):
    seen = []

    def network(x_t, t):
        seen.append((x_t.dtype, t))
        return x_t

    x_t = torch.randn(2, 1, 4, 4, generator=seeded(0))
    x0 = Prediction(network, Trigonometric(), "epsilon", dtype)(x_t, 0.5)
    assert seen == [(dtype, 0.5)]  # t reaches it untouched
    assert x0.dtype == torch.float32
    alpha_t, sigma_t = Trigonometric()(0.5)
    torch.testing.assert_close(x0, (x_t - sigma_t * x_t.to(dtype).float()) / alpha_t)


@pytest.mark.parametrize("seed", range(3))
def test_float32_difference_is_the_derivative(seed):
    network = Smooth(seed)
    x_t, v = torch.randn(2, 3, 1, 8, 8, generator=seeded(seed + 10))
    denoiser = Prediction(network, RectifiedFlow(), "sample")
    with torch.no_grad():
        product = jacobian_product(denoiser, x_t, 0.5, denoiser(x_t, 0.5), 100 * v)
    assert product.dtype == torch.float32
    assert relative_error(product, exact_product(network, x_t, 100 * v)) < 1e-2


SIZE = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}


def unconditional():
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(16, 3, 3, down_block_types=down, up_block_types=up, **SIZE).eval(), {}


def conditional():
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(16, 3, 3, down_block_types=down, up_block_types=up, cross_attention_dim=16, **SIZE)
    return unet.eval(), {"encoder_hidden_states": torch.randn(2, 6, 16, generator=seeded(2))}


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "t"), [(torch.bfloat16, 100.0), (torch.float16, 250.0)], ids=str)
@pytest.mark.parametrize("make", [unconditional, conditional])
@pytest.mark.parametrize("seed", range(2))
def test_differences_of_diffusers_networks_in_half_precision(make, dtype, t, seed):
    """Tiny real UNets with random weights, against autograd in float32 through the same rounded weights.

    The rounding inside the network reaches x0 = (x_t - sigma_t eps) / alpha_t times sigma_t: bfloat16 stays within 5 %
    at low noise, float16 at middle noise too.
    """
    torch.manual_seed(seed)
    unet, context = make()
    half = unet.to(dtype)

    def denoiser(network, dtype, step=None):
        inside = {name: value.to(dtype) for name, value in context.items()}

        def run(x_t, t):
            return network(x_t.to(dtype), torch.tensor(t), **inside).sample.float()

        return Prediction(run, Discrete.from_betas(), "epsilon", step or dtype)

    x_t, v = torch.randn(2, 2, 3, 16, 16, generator=seeded(seed))
    full = denoiser(copy.deepcopy(half).float(), torch.float32)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        exact = torch.autograd.functional.jvp(lambda x: full(x, t), x_t, v)[1]

    def error(denoiser):
        return relative_error(jacobian_product(denoiser, x_t, t, denoiser(x_t, t), v), exact)

    assert error(denoiser(half, dtype)) < 0.05
    assert error(denoiser(half, dtype, step=torch.float32)) > 0.2  # the paper's h


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.floats(0.05, 0.95))
def test_jacobian_product_is_homogeneous_and_per_sample(seed, factor, t):
    """The probe's size depends on v's direction alone, sample by sample."""
    g = seeded(seed)
    prior = random_mixture(g)
    denoiser = prior.denoiser(RectifiedFlow())
    x_t, v = normal(g, 3, *prior.shape), normal(g, 3, *prior.shape)
    x0 = denoiser(x_t, t)
    product = jacobian_product(denoiser, x_t, t, x0, v)
    # Round-off of the difference: eps |x0| / h, here about 1e-10.
    close(jacobian_product(denoiser, x_t, t, x0, factor * v) / factor, product, 1e-7)
    for i in range(3):
        one = slice(i, i + 1)
        close(jacobian_product(denoiser, x_t[one], t, x0[one], v[one]), product[one], 1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_a_zero_direction_gives_zero_beside_one_that_is_not(dtype):
    network = Smooth().to(dtype)
    denoiser = Prediction(network, RectifiedFlow(), "sample", dtype)
    x_t = torch.randn(2, 1, 8, 8, generator=seeded(0))
    v = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    with torch.no_grad():
        product = jacobian_product(denoiser, x_t, 0.5, denoiser(x_t, 0.5), v)
    assert not product[0].any()
    assert product[1].isfinite().all() and product[1].any()


def test_coarser_arithmetic_takes_a_larger_step():
    steps = [difference_step(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    assert steps == sorted(steps) and steps[0] < steps[-1]


def test_guidance_extrapolates_from_unconditional_to_conditional():
    g = seeded(0)
    schedule = RectifiedFlow()
    conditional, unconditional = (random_gaussian(g).denoiser(schedule) for _ in range(2))
    x_t, t = normal(g, 2, 1, 2, 2), 0.4

    def both(x, t):
        first, second = x.chunk(2)
        return torch.cat([unconditional(first, t), conditional(second, t)])

    halves = Prediction(both, schedule, "sample", torch.float64)
    guided = {w: Guided(halves, w) for w in (0.0, 0.5, 1.0, 7.5)}
    with_prompt, without = conditional(x_t, t), unconditional(x_t, t)
    close(guided[0.0](x_t, t), without)
    close(guided[1.0](x_t, t), with_prompt)
    close(guided[0.5](x_t, t), (with_prompt + without) / 2)
    close(guided[7.5](x_t, t), without + 7.5 * (with_prompt - without))
    assert guided[7.5].schedule is schedule and guided[7.5].dtype == torch.float64


def test_counting():
    denoiser = random_gaussian(seeded(0)).denoiser(RectifiedFlow())
    counted = Counted(denoiser)
    x_t = normal(seeded(1), 5, 1, 2, 2)
    assert counted.nfe == 0
    x0 = counted(x_t, 0.5)
    assert counted.nfe == 1  # whatever the batch
    assert x0.equal(denoiser(x_t, 0.5))
    jacobian_product(counted, x_t, 0.5, x0, x_t)
    assert counted.nfe == 2
    assert counted.schedule is denoiser.schedule and counted.dtype == denoiser.dtype
