"""Constraints through a decoder: a linear one, where all is exact, a smooth one, and that of diffusers; in float64."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.constraints import Linear, Linearization, Loss, Sum, Unconstrained
from adhere.core.covariance import StationaryCovariance
from adhere.core.filters import Blur, Downsample
from adhere.core.latents import Autoencoder, DecodedConstraint, KnownLatents
from adhere.core.nonlinear import Nonlinear
from adhere.core.operators import Mask
from adhere.core.sampling import trajectory
from adhere.core.schedules import CosineSchedule
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.transitions import DDIM
from adhere.testing.priors import Gaussian
from tests.core.exact import Matrix, assert_close, matrix_of, normal, random_factors, random_gaussian, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()
LATENT, PICTURE = (1, 2, 2), (1, 4, 4)
both_ways = pytest.mark.parametrize("backward", [True, False], ids=["autograd", "encoder"])


class LinearAutoencoder:
    """decode(z) = W z with injective W (16, 4); encode is its pseudo-inverse."""

    dtype = torch.float64

    def __init__(self, W):
        self.W, self.inverse = W, torch.linalg.pinv(W)

    def decode(self, z):
        return (z.flatten(1) @ self.W.T).view(-1, *PICTURE)

    def encode(self, x):
        return (x.flatten(1) @ self.inverse.T).view(-1, *LATENT)


class SmoothAutoencoder(torch.nn.Module):
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
    return LinearAutoencoder(torch.linalg.qr(normal(g, 16, 4))[0])


def injective(g):
    return LinearAutoencoder(normal(g, 16, 4))


def random_measurement(g, noise=0.3, m=3):
    """Return the constraint of m random measurements of a picture."""
    return Linear(Matrix(normal(g, m, 16) / 4, PICTURE), normal(g, 1, m), noise)


def on_latents(constraint, autoencoder):
    """Return the same constraint on latents, with one matrix."""
    return Linear(Matrix(constraint.operator.A @ autoencoder.W, LATENT), constraint.y, constraint.noise)


# Linear decoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "backward"), [(injective, True), (orthonormal, True), (orthonormal, False)])
@few_examples
@given(seed=SEEDS, t=TIMES)
def test_moment_matching_through_a_linear_decoder_is_the_posterior_denoiser_of_latents(make, backward, seed, t):
    """For one measurement, which is solved by the one iteration that is made through a decoder."""
    g = seeded(seed)
    model = StationaryCovariance.isotropic(1)
    prior = Gaussian(normal(g, *LATENT), matrix_of(lambda v: model.product(v, 0.0), LATENT))
    autoencoder, constraint = make(g), random_measurement(g, m=1)
    exact = prior.posterior(on_latents(constraint, autoencoder).operator, constraint.y, constraint.noise)
    decoded = DecodedConstraint(constraint, autoencoder, backward)
    solver, memory = MomentMatching(model, fusion_snr=0.0), None
    for time in (t, 0.9 * t):  # the tilt changes nothing
        z_t = normal(g, 2, *LATENT)
        _, z0, memory = solver(prior.denoiser(SCHEDULE), decoded, z_t, time, memory)
        # Rounding errors of about 1e-11 in the differences, over the noise.
        assert_close(z0, exact.denoiser(SCHEDULE)(z_t, time), 1e-6)


@few_examples
@given(seed=SEEDS, level=st.floats(1.0, 3.5))
def test_a_measurement_without_noise_has_a_noise_of_a_hundredth_through_any_linear_decoder(seed, level):
    """By the exact posterior, at low noise and through a decoder whose columns are not orthonormal."""
    g, t = seeded(seed), SCHEDULE.t_from_log_snr(level)
    model = StationaryCovariance.isotropic(1)
    prior = Gaussian(normal(g, *LATENT), matrix_of(lambda v: model.product(v, 0.0), LATENT))
    autoencoder, constraint = injective(g), random_measurement(g, 0.0, m=1)
    exact = prior.posterior(on_latents(constraint, autoencoder).operator, constraint.y, 0.01)
    z_t = normal(g, 2, *LATENT)
    decoded = DecodedConstraint(constraint, autoencoder, backward=True)
    _, z0, _ = MomentMatching(model)(prior.denoiser(SCHEDULE), decoded, z_t, t, None)
    # Rounding errors of about 1e-11 in the differences, over the square of the noise.
    assert_close(z0, exact.denoiser(SCHEDULE)(z_t, t), 1e-5)


@torch.no_grad()
def constraints_on_pictures(g, autoencoder):
    """Return one constraint of each kind, met by the picture of one latent, with noise 0.02 or none."""
    x = autoencoder.decode(normal(g, 1, *LATENT))
    half = Mask(torch.cat([torch.ones(4, 2), torch.zeros(4, 2)], 1).double().view(1, *PICTURE))
    mask, area, blur = (Linear(A, A(x), noise) for A, noise in ((half, 0.02), (Downsample(2), 0.0), (Blur(1.0), 0.02)))
    loss = Loss(lambda picture: (picture.mean((1, 2, 3)) - x.mean()).square())
    return {
        "mask": mask,
        "area": area,
        "blur": blur,
        "loss": loss,
        "nonlinear": Nonlinear(lambda picture: torch.tanh(picture)[..., ::2], torch.tanh(x)[..., ::2], 0.02),
        "sum": Sum((area, mask), (1.0, 2.0)),
        "sum with a loss": Sum((area, loss), (1.0, 1.0)),
    }


@pytest.mark.parametrize("kind", constraints_on_pictures(seeded(0), injective(seeded(1))))
@pytest.mark.parametrize("make", [injective, SmoothAutoencoder], ids=["linear", "smooth"])
def test_every_constraint_is_closer_to_being_met_at_low_noise_through_a_decoder_that_is_not_orthonormal(make, kind):
    """At three noise levels in turn, after each of them, for every sample; by backpropagation through the decoder."""
    g = seeded(5)
    autoencoder, prior = make(g), random_factors(seeded(2), shape=LATENT, rank=2)
    decoded = DecodedConstraint(constraints_on_pictures(g, autoencoder)[kind], autoencoder, backward=True)
    denoiser, solver, memory = prior.denoiser(SCHEDULE), MomentMatching(), None
    for level in (0.5, 2.0, 3.5):
        t = SCHEDULE.t_from_log_snr(level)
        alpha_t, sigma_t = SCHEDULE(t)
        z_t = alpha_t * prior.sample(4, seeded(3)) + sigma_t * normal(seeded(4), 4, *LATENT)
        _, z0, memory = solver(denoiser, decoded, z_t, t, memory)
        assert z0.isfinite().all()
        assert (decoded.residual_norm(z0) < decoded.residual_norm(denoiser(z_t, t))).all()


@pytest.mark.parametrize("solver", [MomentMatching(fusion_snr=0.0), DDNM()], ids=["moment_matching", "ddnm"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@both_ways
def test_solvers_through_an_orthonormal_decoder_equal_those_on_latents(solver, noise, backward):
    """On a mixture; a measurement without noise is taken to have that of noise_floor.

    There is one measurement, which one iteration solves.
    """
    g = seeded(0)
    prior, autoencoder = random_factors(g, shape=LATENT, rank=2), orthonormal(g)
    constraint = random_measurement(g, noise, m=1)
    z_t, denoiser = normal(g, 3, *LATENT), prior.denoiser(SCHEDULE)
    decoded = DecodedConstraint(constraint, autoencoder, backward, noise_floor=0.1)
    _, z0, _ = solver(denoiser, decoded, z_t, 0.5, None)
    direct = on_latents(replace(constraint, noise=max(0.1, noise)), autoencoder)
    _, expected, _ = solver(denoiser, direct, z_t, 0.5, None)
    assert_close(z0, expected, 1e-5)
    assert (decoded.residual_norm(z0) < decoded.residual_norm(denoiser(z_t, 0.5))).all()


@few_examples
@given(SEEDS)
def test_the_encoder_gives_the_gradient_when_the_decoder_has_orthonormal_columns(seed):
    g = seeded(seed)
    autoencoder, constraint, z = orthonormal(g), random_measurement(g), normal(g, 2, *LATENT)
    e = DecodedConstraint(constraint, autoencoder).neg_grad(z)
    # Differences are exact up to rounding errors divided by h = 1e-5.
    assert_close(e, DecodedConstraint(constraint, autoencoder, backward=True).neg_grad(z), 1e-8)
    assert_close(e, on_latents(constraint, autoencoder).neg_grad(z), 1e-8)


@few_examples
@given(SEEDS)
def test_the_encoder_gives_a_descent_direction_for_any_injective_decoder(seed):
    g = seeded(seed)
    autoencoder, constraint, z = injective(g), random_measurement(g), normal(g, 2, *LATENT)
    newton, gradient = (DecodedConstraint(constraint, autoencoder, way).neg_grad(z) for way in (False, True))
    assert_close(gradient, on_latents(constraint, autoencoder).neg_grad(z), 1e-8)
    assert ((newton * gradient).flatten(1).sum(1) > 0).all()


# Smooth decoders -----------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS)
def test_the_linearized_operator_and_its_transpose_are_the_derivatives_of_the_decoder(seed):
    g = seeded(seed)
    autoencoder, constraint = SmoothAutoencoder(g), random_measurement(g)
    z, v, u = normal(g, 2, *LATENT), normal(g, 2, *LATENT), normal(g, 2, 3)
    operator = DecodedConstraint(constraint, autoencoder, backward=True).linearize(z).operator

    def measure(z):
        return constraint.operator(autoencoder.decode(z))

    with torch.no_grad():
        forward = torch.func.jvp(measure, (z,), (v,))[1]
        transposed = torch.func.vjp(measure, z)[1](u)[0]
        product = operator(v)
    # First order in the step of the difference, 1e-5.
    assert_close(product, forward, 1e-3)
    assert_close(operator.adjoint(u), transposed)
    assert_close((product * u).sum(1), (v * operator.adjoint(u)).flatten(1).sum(1), 1e-3)


@both_ways
@torch.no_grad()
def test_the_linearization_agrees_to_first_order(backward):
    """Its residual is the exact one at z, and at a distance d from z it is off by about d^2."""
    g = seeded(0)
    autoencoder, constraint = SmoothAutoencoder(g), random_measurement(g, noise=0.01)
    z = normal(g, 2, *LATENT)
    decoded = DecodedConstraint(constraint, autoencoder, backward, noise_floor=0.05)
    linear = decoded.linearize(z)
    assert isinstance(linear, Linearization) and linear.origin is z
    assert_close(linear.residual(z), constraint.residual(autoencoder.decode(z)), 1e-12)
    assert_close(linear.residual(z.clone()), linear.residual(z), 1e-12)
    assert_close(linear.residual_norm(z), decoded.residual_norm(z))
    assert linear.noise == 0.05 and replace(decoded, noise_floor=0.0).linearize(z).noise == 0.01
    d = normal(g, 2, *LATENT)
    errors = []
    for size in (0.02, 0.01):
        near = z + size * d
        errors.append(float((linear.residual(near) - constraint.residual(autoencoder.decode(near))).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_the_gradient_of_a_loss_follows_the_chain_rule_through_the_decoder():
    g = seeded(0)
    autoencoder, z = SmoothAutoencoder(g), normal(g, 2, *LATENT)
    decoded = DecodedConstraint(Loss(lambda x: x.cosh().log().flatten(1).sum(1)), autoencoder, backward=True)
    leaf = z.clone().requires_grad_()
    cost = autoencoder.decode(leaf).cosh().log().flatten(1).sum(1)
    assert_close(decoded.neg_grad(z), -torch.autograd.grad(cost.sum(), leaf)[0])
    assert_close(decoded.residual_norm(z), cost.detach())


def test_a_decoded_constraint_can_be_linearized_if_its_inner_one_can():
    g = seeded(0)
    autoencoder, z = SmoothAutoencoder(g), normal(g, 1, *LATENT)
    assert isinstance(autoencoder, Autoencoder)
    linear = DecodedConstraint(random_measurement(g), autoencoder)
    other = DecodedConstraint(Unconstrained(), autoencoder)
    assert linear.is_linearizable and DecodedConstraint(linear, orthonormal(g)).is_linearizable
    assert DecodedConstraint(Loss(lambda x: x.flatten(1).sum(1)), autoencoder).is_linearizable
    assert not other.is_linearizable
    with pytest.raises(TypeError, match="Unconstrained cannot be linearized"):
        other.linearize(z)
    denoiser = random_gaussian(g, LATENT).denoiser(SCHEDULE)
    for solver in (MomentMatching(), DDNM()):
        assert solver.supports(linear) and not solver.supports(other)
        with pytest.raises(TypeError, match=r"does not support DecodedConstraint: try the solver inexact_newton"):
            next(trajectory(denoiser, other, solver, z, [0.5], DDIM(), seeded(0)))


# What is differentiated ----------------------------------------------------------------------------------------------


class RecordingAutoencoder:
    """Records which of its functions are called, and whether a call builds a graph."""

    dtype = torch.float64

    def __init__(self, autoencoder):
        self.autoencoder, self.graphs, self.calls = autoencoder, [], []

    def _record(self, name, out):
        self.calls.append(name)
        self.graphs.append(out.grad_fn is not None)
        return out

    def decode(self, z):
        return self._record("decode", self.autoencoder.decode(z))

    def encode(self, x):
        return self._record("encode", self.autoencoder.encode(x))


@both_ways
def test_a_graph_is_built_through_the_decoder_only_and_only_with_backward(backward):
    g = seeded(0)
    autoencoder = RecordingAutoencoder(SmoothAutoencoder(g))  # its parameters require gradients
    decoded, prior = DecodedConstraint(random_measurement(g), autoencoder, backward), random_gaussian(g, LATENT)
    with torch.inference_mode():
        z = normal(g, 2, *LATENT)
        solved = MomentMatching(fusion_snr=0.0)(prior.denoiser(SCHEDULE), decoded, z, 0.5, None)[1]
        results = [decoded.neg_grad(z), decoded.residual_norm(z), solved]
    assert not any(result.requires_grad for result in results)
    assert any(autoencoder.graphs) == backward
    assert ("encode" in autoencoder.calls) == (not backward)


@both_ways
def test_super_resolution_through_an_autoencoder_of_diffusers(backward):
    """A small AutoencoderKL, in float32 and under inference_mode."""
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 2, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**small, **blocks).eval()

    class SmallVAE:
        dtype = torch.float32

        def decode(self, z):
            return vae.decode(z).sample

        def encode(self, x):
            return vae.encode(x).latent_dist.mode()

    autoencoder = SmallVAE()
    z, target = torch.randn(2, 2, 8, 8, generator=seeded(0)), torch.randn(1, 2, 8, 8, generator=seeded(1))
    with torch.inference_mode():
        inner = Linear(Downsample(4), Downsample(4)(autoencoder.decode(target)))
        decoded = DecodedConstraint(inner, autoencoder, backward)
        z, e = z + 0, decoded.neg_grad(z + 0)
        linear = decoded.linearize(z)
        product = linear.operator(e)
        assert e.shape == z.shape and linear.operator.adjoint(product).shape == z.shape
        assert not e.requires_grad and e.isfinite().all() and e.any()
        # A small step along the negative gradient descends by its length times that of the gradient, to first order.
        step = 1e-3 / e.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * e
        before, after = (inner.residual(autoencoder.decode(one)).square() for one in (z, z + step))
        descent = 0.5 * (before - after)
    if backward:
        torch.testing.assert_close(descent.flatten(1).sum(1), (step * e).flatten(1).sum(1), rtol=0.05, atol=0)


def test_the_residual_norm_of_a_decoded_mask_is_over_its_known_pixels_only():
    autoencoder, known = orthonormal(seeded(0)), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    known[..., :1] = 1
    decoded = DecodedConstraint(Linear(Mask(known), torch.zeros(1, *PICTURE, dtype=torch.float64)), autoencoder)
    z = normal(seeded(1), 2, *LATENT)
    expected = autoencoder.decode(z)[..., 0].square().flatten(1).mean(1).sqrt()
    assert_close(decoded.residual_norm(z), expected)
    assert_close(decoded.linearize(z).residual_norm(z), decoded.residual_norm(z))


# Latents that depend on what is beside them --------------------------------------------------------------------------


class MeanAutoencoder:
    """Latents are pixels minus the mean of the whole picture, as after a group norm; the last row holds the mean."""

    dtype = torch.float64

    def encode(self, x):
        mean = x.mean((1, 2, 3), keepdim=True)
        return torch.cat([x - mean, mean.expand(len(x), 1, 1, x.shape[-1])], -2)

    def decode(self, z):
        return z[..., :-1, :] + z[..., -1:, :].mean(-1, keepdim=True)


def half_known(g, reencode_at=(-1.0, 0.5)):
    """Return a picture (2, 1, 4, 4), the mask of known latents, and its upper half encoded beside nothing."""
    x, known = normal(g, 2, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    known[..., :2, :] = 1
    known_latents = torch.cat([known, torch.zeros(1, 1, 1, 4, dtype=torch.float64)], -2)
    autoencoder = MeanAutoencoder()
    y = known_latents * autoencoder.encode(known * x)
    constraint = KnownLatents(
        operator=Mask(known_latents),
        y=y,
        autoencoder=autoencoder,
        picture=known * x,
        known=known,
        reencode_at=reencode_at,
    )
    return x, known_latents, constraint


def test_latents_become_those_of_the_whole_picture_once_the_rest_is_known():
    x, known_latents, constraint = half_known(seeded(0))
    expected = known_latents * constraint.autoencoder.encode(x)
    assert (constraint.y - expected).abs().max() > 0.1  # beside nothing they are others
    assert_close(constraint.update(constraint.autoencoder.encode(x), -1.0).y, expected)


def test_latents_are_reencoded_at_the_stated_noise_levels_only():
    _, _, constraint = half_known(seeded(0))
    z = normal(seeded(1), 2, 1, 5, 4)
    assert constraint.update(z, -1.1) is constraint
    first = constraint.update(z, -0.9)
    assert first.reencode_at == (0.5,)
    assert not torch.equal(first.y, constraint.y)
    assert first.update(z, 0.4) is first
    last = constraint.update(z, 2.0)  # with few steps, both are due at once
    assert last.reencode_at == ()
    assert torch.equal(last.y, first.y)
    assert last.update(z, 3.0) is last


def test_the_known_part_is_encoded_from_the_picture_and_not_from_the_sample():
    x, known_latents, constraint = half_known(seeded(0))
    z = constraint.autoencoder.encode(torch.where(constraint.known == 1, normal(seeded(2), 2, 1, 4, 4), x))
    assert_close(constraint.update(z, 1.0).y, known_latents * constraint.autoencoder.encode(x))


@few_examples
@given(SEEDS)
def test_updating_a_batch_is_updating_its_singles(seed):
    _, _, constraint = half_known(seeded(seed))
    z = normal(seeded(seed + 1), 2, 1, 5, 4)
    both = constraint.update(z, 0.0)
    for i in range(2):
        one = replace(constraint, y=constraint.y[i : i + 1], picture=constraint.picture[i : i + 1])
        assert_close(one.update(z[i : i + 1], 0.0).y, both.y[i : i + 1])


# Batches of several constraints --------------------------------------------------------------------------------------


def test_stacked_decoded_constraints_equal_the_single_ones():
    g = seeded(0)
    autoencoder = orthonormal(g)
    operator = Downsample(2)
    parts = [DecodedConstraint(Linear(operator, normal(g, 1, 1, 2, 2)), autoencoder) for _ in range(2)]
    z = normal(g, 4, *LATENT)
    stacked = parts[0].stack(parts[1:], 2)
    singles = [part.neg_grad(one) for part, one in zip(parts, z.split(2), strict=True)]
    assert_close(stacked.neg_grad(z), torch.cat(singles), 1e-8)


def test_decoded_constraints_with_other_settings_are_not_stacked():
    g = seeded(0)
    autoencoder, linear = orthonormal(g), Linear(Downsample(2), normal(g, 1, 1, 2, 2))
    decoded = DecodedConstraint(linear, autoencoder)
    for other in (
        linear,
        replace(decoded, backward=True),
        replace(decoded, noise_floor=0.1),
        replace(decoded, autoencoder=orthonormal(g)),
        replace(decoded, inner=replace(linear, noise=0.1)),
    ):
        assert decoded.stack([other], 2) is None
    assert decoded.stack([], 2) == decoded


def test_stacked_known_latents_are_reencoded_as_the_single_ones():
    parts = []
    for seed in (0, 1):
        _, _, constraint = half_known(seeded(seed))
        parts.append(replace(constraint, y=constraint.y[:1], picture=constraint.picture[:1]))
    parts[1] = replace(parts[1], autoencoder=parts[0].autoencoder)
    z = normal(seeded(2), 4, 1, 5, 4)
    stacked = parts[0].stack(parts[1:], 2)
    assert isinstance(stacked, KnownLatents)
    singles = [part.update(one, 0.0).neg_grad(one) for part, one in zip(parts, z.split(2), strict=True)]
    assert_close(stacked.update(z, 0.0).neg_grad(z), torch.cat(singles), 1e-12)
    assert parts[0].stack([replace(parts[1], reencode_at=(0.0,))], 2) is None
