"""Constraints through a decoder: linear ones, where all is exact, smooth ones, and diffusers' own; float64."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Constraint, Linear, Linearisable, Loss, Unconstrained, is_linearisable
from adhere.core.latents import Codec, Recoded, Through
from adhere.core.operators import Downsample, Mask
from adhere.core.schedule import Trigonometric
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.moment_matching import MomentMatching
from tests.core.exact import Matrix, close, normal, random_factors, random_gaussian, seeded

FEW = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = Trigonometric()
LATENT, PICTURE = (1, 2, 2), (1, 4, 4)
both_ways = pytest.mark.parametrize("backward", [True, False], ids=["autograd", "encoder"])


class LinearCodec:
    """decode(z) = W z with injective W (16, 4), encode its pseudo-inverse."""

    dtype = torch.float64

    def __init__(self, W):
        self.W, self.inverse = W, torch.linalg.pinv(W)

    def decode(self, z):
        return (z.flatten(1) @ self.W.T).view(-1, *PICTURE)

    def encode(self, x):
        return (x.flatten(1) @ self.inverse.T).view(-1, *LATENT)


class SmoothCodec(torch.nn.Module):
    """decode and encode are multi-layer perceptrons with tanh; encode inverts nothing."""

    dtype = torch.float64

    def __init__(self, g):
        super().__init__()
        sizes = [(4, 12), (12, 16), (16, 12), (12, 4)]
        self.layers = torch.nn.ParameterList([normal(g, *size) / math.sqrt(size[0]) for size in sizes])

    def decode(self, z):
        return ((z.flatten(1) @ self.layers[0]).tanh() @ self.layers[1]).view(-1, *PICTURE)

    def encode(self, x):
        return ((x.flatten(1) @ self.layers[2]).tanh() @ self.layers[3]).view(-1, *LATENT)


def orthonormal(g):
    return LinearCodec(torch.linalg.qr(normal(g, 16, 4))[0])


def tall(g):
    return LinearCodec(normal(g, 16, 4))


def measurement(g, noise=0.3, m=3):
    """Three random measurements of a picture."""
    return Linear(Matrix(normal(g, m, 16) / 4, PICTURE), normal(g, 1, m), noise)


def lifted(constraint, codec):
    """The same constraint on latents, as one matrix."""
    return Linear(Matrix(constraint.operator.A @ codec.W, LATENT), constraint.y, constraint.noise)


# Linear decoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "backward"), [(tall, True), (orthonormal, True), (orthonormal, False)])
@FEW
@given(seed=SEEDS, t=TIMES)
def test_moment_matching_through_a_linear_decoder_is_the_posterior_denoiser_of_latents(make, backward, seed, t):
    g = seeded(seed)
    prior, codec, constraint = random_gaussian(g, LATENT), make(g), measurement(g)
    z_t = normal(g, 2, *LATENT)
    exact = prior.posterior(lifted(constraint, codec).operator, constraint.y, constraint.noise)
    _, z0, _ = MomentMatching(3)(prior.denoiser(SCHEDULE), Through(constraint, codec, backward), z_t, t, None)
    # As without a decoder: round-off of about 1e-11 in the differences, times a condition number below 1e4.
    close(z0, exact.denoiser(SCHEDULE)(z_t, t), 1e-6)


@pytest.mark.parametrize("solver", [MomentMatching(3), DDNM()], ids=["moment_matching", "ddnm"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@both_ways
def test_solvers_through_an_orthonormal_decoder_are_those_of_the_lifted_constraint(solver, noise, backward):
    """On a mixture, and for a measurement without noise, which is taken for one of noise_floor.

    With all three directions: fewer are other ones, as there is no preconditioner through a decoder.
    """
    g = seeded(0)
    prior, codec, constraint = random_factors(g, shape=LATENT, rank=2), orthonormal(g), measurement(g, noise)
    z_t, denoiser = normal(g, 3, *LATENT), prior.denoiser(SCHEDULE)
    through = Through(constraint, codec, backward, noise_floor=0.1)
    _, z0, _ = solver(denoiser, through, z_t, 0.5, None)
    _, expected, _ = solver(denoiser, lifted(replace(constraint, noise=max(0.1, noise)), codec), z_t, 0.5, None)
    close(z0, expected, 1e-5)
    assert (through.error(z0) < through.error(denoiser(z_t, 0.5))).all()


@FEW
@given(SEEDS)
def test_the_encoders_direction_is_the_gradient_when_columns_are_orthonormal(seed):
    g = seeded(seed)
    codec, constraint, z = orthonormal(g), measurement(g), normal(g, 2, *LATENT)
    e = Through(constraint, codec).direction(z)
    # Differences are exact up to round-off over h = 1e-5.
    close(e, Through(constraint, codec, backward=True).direction(z), 1e-8)
    close(e, lifted(constraint, codec).direction(z), 1e-8)


@FEW
@given(SEEDS)
def test_the_encoders_direction_descends_for_any_injective_decoder(seed):
    g = seeded(seed)
    codec, constraint, z = tall(g), measurement(g), normal(g, 2, *LATENT)
    newton, gradient = (Through(constraint, codec, backward).direction(z) for backward in (False, True))
    close(gradient, lifted(constraint, codec).direction(z), 1e-8)
    assert ((newton * gradient).flatten(1).sum(1) > 0).all()


# Smooth decoders -----------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS)
def test_the_linearised_operator_and_its_transpose_are_the_decoders_derivatives(seed):
    g = seeded(seed)
    codec, constraint = SmoothCodec(g), measurement(g)
    z, v, u = normal(g, 2, *LATENT), normal(g, 2, *LATENT), normal(g, 2, 3)
    operator = Through(constraint, codec, backward=True).linearise(z).operator

    def measure(z):
        return constraint.operator(codec.decode(z))

    with torch.no_grad():
        forward = torch.func.jvp(measure, (z,), (v,))[1]
        transposed = torch.func.vjp(measure, z)[1](u)[0]
        product = operator(v)
    # First order in the difference's step, 1e-5.
    close(product, forward, 1e-3)
    close(operator.adjoint(u), transposed)
    close((product * u).sum(1), (v * operator.adjoint(u)).flatten(1).sum(1), 1e-3)


@both_ways
@torch.no_grad()
def test_the_linearisation_agrees_to_first_order(backward):
    """Its residual is the true one at z; a step of d away it misses by about d^2."""
    g = seeded(0)
    codec, constraint, z = SmoothCodec(g), measurement(g, noise=0.01), normal(g, 2, *LATENT)
    through = Through(constraint, codec, backward, noise_floor=0.05)
    linear = through.linearise(z)
    close(linear.residual(z), constraint.residual(codec.decode(z)), 1e-12)
    close(linear.residual(z.clone()), linear.residual(z), 1e-12)
    close(linear.error(z), through.error(z))
    assert linear.noise == 0.05 and replace(through, noise_floor=0.0).linearise(z).noise == 0.01
    d = normal(g, 2, *LATENT)
    misses = []
    for size in (0.02, 0.01):
        near = z + size * d
        misses.append(float((linear.residual(near) - constraint.residual(codec.decode(near))).norm()))
    assert misses[0] / misses[1] == pytest.approx(4, rel=0.1)


def test_losses_go_through_a_decoder_by_the_chain_rule():
    g = seeded(0)
    codec, z = SmoothCodec(g), normal(g, 2, *LATENT)
    through = Through(Loss(lambda x: x.cosh().log().flatten(1).sum(1)), codec, backward=True)
    leaf = z.clone().requires_grad_()
    cost = codec.decode(leaf).cosh().log().flatten(1).sum(1)
    close(through.direction(z), -torch.autograd.grad(cost.sum(), leaf)[0])
    close(through.error(z), cost.detach())


def test_what_can_be_linearised():
    g = seeded(0)
    codec, z = SmoothCodec(g), normal(g, 1, *LATENT)
    linear, other = Through(measurement(g), codec), Through(Unconstrained(), codec)
    assert isinstance(codec, Codec) and isinstance(linear, Constraint) and isinstance(linear, Linearisable)
    assert is_linearisable(linear) and is_linearisable(Through(linear, orthonormal(g)))
    assert is_linearisable(Through(Loss(lambda x: x.flatten(1).sum(1)), codec))
    assert not is_linearisable(other)
    with pytest.raises(TypeError, match="needs a constraint that can be linearised, not Unconstrained"):
        other.linearise(z)
    for solver in (MomentMatching(), DDNM()):
        with pytest.raises(TypeError, match=r"needs a constraint.*, not Through: try inexact_newton"):
            solver(random_gaussian(g, LATENT).denoiser(SCHEDULE), other, z, 0.5, None)


# What is differentiated ----------------------------------------------------------------------------------------------


class Watched:
    """A codec that notes whether its calls built a graph, and which were made."""

    dtype = torch.float64

    def __init__(self, codec):
        self.codec, self.graphs, self.calls = codec, [], []

    def _note(self, name, out):
        self.calls.append(name)
        self.graphs.append(out.grad_fn is not None)
        return out

    def decode(self, z):
        return self._note("decode", self.codec.decode(z))

    def encode(self, x):
        return self._note("encode", self.codec.encode(x))


@both_ways
def test_graphs_are_built_through_the_decoder_only_and_only_backward(backward):
    g = seeded(0)
    codec = Watched(SmoothCodec(g))  # its parameters require gradients
    through, prior = Through(measurement(g), codec, backward), random_gaussian(g, LATENT)
    with torch.inference_mode():
        z = normal(g, 2, *LATENT)
        solved = MomentMatching(2)(prior.denoiser(SCHEDULE), through, z, 0.5, None)[1]
        results = [through.direction(z), through.error(z), solved]
    assert not any(result.requires_grad for result in results)
    assert any(codec.graphs) == backward
    assert ("encode" in codec.calls) == (not backward)


@both_ways
def test_diffusers_autoencoder(backward):
    """Super-resolution's constraint through a real, tiny AutoencoderKL, in float32 and under inference_mode."""
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 2, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**small, **blocks).eval()

    class Kl:
        dtype = torch.float32

        def decode(self, z):
            return vae.decode(z).sample

        def encode(self, x):
            return vae.encode(x).latent_dist.mode()

    codec, z, target = Kl(), torch.randn(2, 2, 8, 8, generator=seeded(0)), torch.randn(1, 2, 8, 8, generator=seeded(1))
    with torch.inference_mode():
        inner = Linear(Downsample(4), Downsample(4)(codec.decode(target)))
        through = Through(inner, codec, backward)
        z, e = z + 0, through.direction(z + 0)
        linear = through.linearise(z)
        product = linear.operator(e)
        assert e.shape == z.shape and linear.operator.adjoint(product).shape == z.shape
        assert not e.requires_grad and e.isfinite().all() and e.any()
        # A small step along minus the gradient descends, by its length times the gradient's, to first order.
        step = 1e-3 / e.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * e
        drop = 0.5 * (inner.residual(codec.decode(z)).square() - inner.residual(codec.decode(z + step)).square())
    if backward:
        torch.testing.assert_close(drop.flatten(1).sum(1), (step * e).flatten(1).sum(1), rtol=0.05, atol=0)


def test_a_mask_through_a_decoder_counts_its_known_pixels_only():
    codec, known = orthonormal(seeded(0)), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    known[..., :1] = 1
    through = Through(Linear(Mask(known), torch.zeros(1, *PICTURE, dtype=torch.float64)), codec)
    z = normal(seeded(1), 2, *LATENT)
    close(through.error(z), codec.decode(z)[..., 0].square().flatten(1).mean(1).sqrt())
    close(through.linearise(z).error(z), through.error(z))


# --- codes that depend on what stands beside them


class SharedMean:
    """Codes are pixels less the mean of the whole picture; the mean stands in the last one. As a group norm does."""

    dtype = torch.float64

    def encode(self, x):
        mean = x.mean((1, 2, 3), keepdim=True)
        return torch.cat([x - mean, mean.expand(len(x), 1, 1, x.shape[-1])], -2)

    def decode(self, z):
        return z[..., :-1, :] + z[..., -1:, :].mean(-1, keepdim=True)


def half_known(g, refresh=(-1.0, 0.5)):
    """A picture (2, 1, 4, 4), and its upper half coded beside nothing."""
    x, known = normal(g, 2, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    known[..., :2, :] = 1
    cells = torch.cat([known, torch.zeros(1, 1, 1, 4, dtype=torch.float64)], -2)
    codec = SharedMean()
    y = cells * codec.encode(known * x)
    options = {"codec": codec, "picture": known * x, "known": known, "refresh": refresh}
    return x, cells, Recoded(operator=Mask(cells), y=y, **options)


def test_codes_are_those_of_the_whole_picture_once_the_rest_is_known():
    x, cells, constraint = half_known(seeded(0))
    right = cells * constraint.codec.encode(x)
    assert (constraint.y - right).abs().max() > 0.1  # beside nothing they are not
    close(constraint.renewed(constraint.codec.encode(x), -1.0).y, right)


def test_codes_are_taken_anew_at_their_levels_only():
    _, _, constraint = half_known(seeded(0))
    z = normal(seeded(1), 2, 1, 5, 4)
    assert constraint.renewed(z, -1.1) is constraint
    first = constraint.renewed(z, -0.9)
    assert first.refresh == (0.5,)
    assert not torch.equal(first.y, constraint.y)
    assert first.renewed(z, 0.4) is first
    last = constraint.renewed(z, 2.0)  # few steps: both are due at once
    assert last.refresh == ()
    assert torch.equal(last.y, first.y)
    assert last.renewed(z, 3.0) is last


def test_what_is_known_is_coded_from_the_picture_not_from_the_sample():
    x, cells, constraint = half_known(seeded(0))
    z = constraint.codec.encode(torch.where(constraint.known == 1, normal(seeded(2), 2, 1, 4, 4), x))
    close(constraint.renewed(z, 1.0).y, cells * constraint.codec.encode(x))


@FEW
@given(SEEDS)
def test_renewing_a_batch_is_renewing_each(seed):
    _, _, constraint = half_known(seeded(seed))
    z = normal(seeded(seed + 1), 2, 1, 5, 4)
    both = constraint.renewed(z, 0.0)
    for i in range(2):
        one = replace(constraint, y=constraint.y[i : i + 1], picture=constraint.picture[i : i + 1])
        close(one.renewed(z[i : i + 1], 0.0).y, both.y[i : i + 1])
