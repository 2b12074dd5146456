"""PSLD: the gradients of both terms, and its limits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adhere.core.baselines.dps import DPS
from adhere.core.baselines.psld import PSLD
from adhere.core.constraints import Linear, Loss
from adhere.core.denoisers import CountingDenoiser
from adhere.core.derivatives import vjp
from adhere.core.latents import DecodedConstraint
from adhere.core.operators import Mask
from adhere.core.schedules import CosineSchedule
from tests.core.exact import IdentityAutoencoder, assert_close, normal, random_gaussian, seeded

few_examples = settings(max_examples=15, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
TIMES = st.floats(0.1, 0.9)
SCHEDULE = CosineSchedule()
LEFT_HALF = Mask(torch.tensor([1.0, 0.0]).double().expand(1, 1, 2, 2))


class NonlinearAutoencoder:
    """A decoder that is not linear, with an encoder that is not its inverse."""

    dtype = torch.float64

    def encode(self, x):
        return 0.9 * x

    def decode(self, z):
        return z + 0.3 * z.sin()


def left_half_case(seed):
    """Return (prior, constraint, x_t): a Gaussian prior of (1, 2, 2) whose left half is known."""
    g = seeded(seed)
    prior = random_gaussian(g)
    return prior, Linear(LEFT_HALF, LEFT_HALF(prior.sample(1, g))), normal(g, 2, *prior.shape)


@few_examples
@given(SEEDS, TIMES)
def test_psld_with_an_identity_as_autoencoder_is_dps(seed, t):
    """Under a mask the second term is the constraint again, and the length of a move does not depend on the loss's."""
    prior, constraint, x_t = left_half_case(seed)
    counting = CountingDenoiser(prior.denoiser(SCHEDULE))
    decoded = DecodedConstraint(constraint, IdentityAutoencoder())
    moved, x0, _ = PSLD(num_iterations=3)(counting, decoded, x_t, t, None)
    assert (counting.nfe, counting.num_backward) == (4, 3)
    expected, expected_x0, _ = DPS(num_iterations=3)(prior.denoiser(SCHEDULE), constraint, x_t, t, None)
    assert_close(moved, expected, 1e-8)
    assert_close(x0, expected_x0, 1e-8)


@few_examples
@given(SEEDS, TIMES, st.sampled_from([0.0, 0.1, 2.0]))
def test_psld_moves_along_the_gradients_of_both_terms(seed, t, gluing):
    """Gradients by hand of z - encode(A^T y + (I - A^T A) decode(z)) for a mask; without gluing it is DPS."""
    prior, constraint, x_t = left_half_case(seed)
    denoiser, autoencoder, known = prior.denoiser(SCHEDULE), NonlinearAutoencoder(), LEFT_HALF.known
    z, transposed = vjp(lambda x: denoiser(x, t), x_t)
    slope, residual = 1 + 0.3 * z.cos(), constraint.y - known * autoencoder.decode(z)
    gap = z - 0.9 * (constraint.y + (1 - known) * autoencoder.decode(z))
    e = known * slope * residual - gluing * (1 - 0.9 * (1 - known) * slope) * gap
    g = transposed(e)
    expected = x_t + min(0.5, SCHEDULE(t)[1]) * g / g.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    decoded = DecodedConstraint(constraint, autoencoder)
    moved, _, _ = PSLD(num_iterations=1, gluing=gluing)(denoiser, decoded, x_t, t, None)
    assert_close(moved, expected, 1e-8)
    if gluing == 0:
        decoded = DecodedConstraint(constraint, autoencoder, backward=True)
        assert_close(moved, DPS(num_iterations=1)(denoiser, decoded, x_t, t, None)[0], 1e-8)


def test_psld_supports_linear_constraints_through_a_decoder_only():
    linear = left_half_case(0)[1]
    loss = DecodedConstraint(Loss(lambda x: x.square().sum((1, 2, 3))), IdentityAutoencoder())
    assert PSLD().supports(DecodedConstraint(linear, IdentityAutoencoder()))
    assert not PSLD().supports(linear) and not PSLD().supports(loss)
