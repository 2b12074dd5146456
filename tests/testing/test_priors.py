"""The exact priors against closed forms, quadrature, autograd and their own samples; in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from adhere.core.denoisers import Denoiser
from adhere.core.operators import Identity
from adhere.core.schedules import CosineSchedule, FlowSchedule
from adhere.testing.priors import FactorMixture, GaussianMixture
from tests.core.exact import (
    Matrix,
    assert_close,
    normal,
    random_factors,
    random_gaussian,
    random_mixture,
    seeded,
)

SEEDS = st.integers(0, 2**32 - 1)
NOISE_LEVELS = st.floats(0.05, 0.95)
few_examples = settings(max_examples=15, deadline=None)
flow = FlowSchedule()
COSINE = CosineSchedule()


def as_dense(prior):
    """Return the same prior with dense covariances."""
    covariances = torch.stack([prior.component_covariance(k) for k in range(prior.components)])
    return GaussianMixture(prior.weights, prior.means, covariances)


def jacobian_at(prior, x_t, alpha_t, sigma_t):
    n = x_t.numel()
    return jacobian(lambda x: prior.denoise(x, alpha_t, sigma_t), x_t).reshape(n, n)


# Denoisers -----------------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, NOISE_LEVELS)
def test_the_denoiser_of_a_gaussian_is_the_closed_form_and_its_jacobian_is_the_covariance(seed, t):
    g = seeded(seed)
    prior, (alpha_t, sigma_t) = random_gaussian(g), flow(t)
    x_t, S, identity = normal(g, 3, *prior.shape), prior.covariance, torch.eye(4, dtype=torch.float64)
    precision = S.inverse() + alpha_t**2 / sigma_t**2 * identity
    information = prior.mean.flatten() @ S.inverse() + alpha_t / sigma_t**2 * x_t.flatten(1)
    assert_close(prior.denoiser(flow)(x_t, t).flatten(1), information @ precision.inverse())
    J = jacobian_at(prior, x_t[:1], alpha_t, sigma_t)
    assert_close(J, alpha_t / sigma_t**2 * precision.inverse())
    assert_close(J, J.T)


@pytest.mark.parametrize("t", [0.1, 0.4, 0.7, 0.95])
def test_denoiser_and_density_of_a_mixture_match_quadrature_in_one_dimension(t):
    prior = GaussianMixture(*(torch.tensor(v).double() for v in ([0.3, 0.7], [-1.0, 0.8], [[[0.04]], [[0.3]]])))
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)  # trapezoids: exact to rounding for a smooth integrand
    alpha_t, sigma_t = flow(t)
    x_t = torch.tensor([-1.5, -0.2, 0.1, 1.3]).double()
    eps = (x_t[:, None] - alpha_t * grid) / sigma_t  # (B, grid)
    normals = [
        w / math.sqrt(2 * math.pi * v) * (-0.5 * (grid - m) ** 2 / v).exp()
        for w, m, v in [(0.3, -1.0, 0.04), (0.7, 0.8, 0.3)]
    ]
    prior_density = normals[0] + normals[1]
    joint = (-0.5 * eps**2).exp() / math.sqrt(2 * math.pi) / sigma_t * prior_density  # p(x_t | x0) p(x0)
    marginal = torch.trapezoid(joint, grid)
    assert_close(prior.denoiser(flow)(x_t, t), torch.trapezoid(joint * grid, grid) / marginal, 1e-7)
    assert_close(prior.log_density(x_t, alpha_t, sigma_t), marginal.log(), 1e-7)
    assert_close(prior.log_density(grid[::1000]), prior_density[::1000].log(), 1e-6)


def test_denoiser_and_posterior_of_a_mixture_match_quadrature_in_two_dimensions():
    prior = random_mixture(seeded(0), shape=(2,))
    axis = torch.linspace(-12, 12, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)  # (501^2, 2)
    log_prior = prior.log_density(grid)
    assert_close(log_prior.exp().sum() * (axis[1] - axis[0]) ** 2, torch.tensor(1.0).double(), 1e-7)
    x_t, (alpha_t, sigma_t) = torch.tensor([[0.3, -0.6]]).double(), flow(0.4)
    log_noise = -0.5 * ((x_t - alpha_t * grid) / sigma_t).square().sum(1)
    assert_close(prior.denoiser(flow)(x_t, 0.4)[0], (log_prior + log_noise).softmax(0) @ grid, 1e-7)
    A, y, noise = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([0.4]).double(), 0.3
    posterior = prior.posterior(Matrix(A), y, noise)
    log_likelihood = -0.5 * ((y - grid @ A.T) / noise).square().sum(1)
    weight = (log_prior + log_likelihood).softmax(0)
    assert_close(posterior.mean, weight @ grid, 1e-7)
    assert_close(posterior.covariance, (grid - posterior.mean).T @ (weight[:, None] * (grid - posterior.mean)), 1e-7)
    weight = (log_prior + log_likelihood + log_noise).softmax(0)
    assert_close(posterior.denoiser(flow)(x_t, 0.4)[0], weight @ grid, 1e-7)


@few_examples
@given(SEEDS, NOISE_LEVELS, st.sampled_from([random_gaussian, random_mixture, random_factors]))
def test_the_denoiser_follows_from_the_score_by_tweedies_formula(seed, t, make):
    g = seeded(seed)
    prior, (alpha_t, sigma_t) = make(g), flow(t)
    x_t = normal(g, 3, *prior.shape).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x_t, alpha_t, sigma_t).sum(), x_t)
    assert_close(prior.denoiser(flow)(x_t, t), (x_t + sigma_t**2 * score) / alpha_t, 1e-8)


@few_examples
@given(SEEDS, NOISE_LEVELS, st.sampled_from([random_mixture, random_factors]))
def test_the_jacobian_of_a_mixture_is_symmetric_and_positive_semi_definite(seed, t, make):
    g = seeded(seed)
    prior = make(g)
    J = jacobian_at(prior, normal(g, 1, *prior.shape), *flow(t))
    assert_close(J, J.T)
    assert torch.linalg.eigvalsh(J).min() >= -1e-10


def test_the_error_of_a_finite_difference_of_a_mixture_is_of_first_order():
    g = seeded(0)
    prior = random_mixture(g)
    x_t, v, (alpha_t, sigma_t) = normal(g, 1, *prior.shape), normal(g, 1, *prior.shape), flow(0.5)
    exact = (jacobian_at(prior, x_t, alpha_t, sigma_t) @ v.flatten()).reshape(v.shape)
    base = prior.denoise(x_t, alpha_t, sigma_t)
    steps = [1e-2, 5e-3, 2.5e-3]
    errors = [((prior.denoise(x_t + h * v, alpha_t, sigma_t) - base) / h - exact).norm().item() for h in steps]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.05), errors


@pytest.mark.parametrize("make", [random_gaussian, random_mixture, random_factors])
def test_without_noise_the_denoiser_returns_x_t_and_without_signal_the_mean(make):
    g = seeded(0)
    prior = make(g)
    x_t = normal(g, 2, *prior.shape)
    assert_close(prior.denoiser(flow)(x_t, 0.0), x_t)
    assert_close(prior.denoiser(flow)(x_t, 1.0), prior.mean.expand_as(x_t))


def test_the_denoiser_keeps_the_dtype_of_the_state():
    prior = random_mixture(seeded(0))
    denoiser = prior.denoiser(flow)
    x_t = normal(seeded(1), 2, *prior.shape)
    assert isinstance(denoiser, Denoiser)
    assert denoiser.schedule is flow and denoiser.dtype == torch.float64
    single = denoiser(x_t.float(), 0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, denoiser(x_t.float().double(), 0.5).float())


# Posteriors ----------------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, NOISE_LEVELS, st.sampled_from([random_gaussian, random_mixture, random_factors]))
def test_the_conditional_denoiser_is_the_posterior_mean_given_both_measurements(seed, t, make):
    g = seeded(seed)
    prior, (alpha_t, sigma_t), noise = make(g), flow(t), 0.3
    A, x0 = normal(g, 3, prior.size), prior.sample(1, g)
    y = Matrix(A)(x0)[0] + noise * normal(g, 3)
    x_t = alpha_t * x0 + sigma_t * normal(g, *x0.shape)
    identity = torch.eye(prior.size, dtype=torch.float64)
    both = Matrix(torch.cat([alpha_t / sigma_t * identity, A / noise]))
    stacked = prior.posterior(both, torch.cat([x_t.flatten() / sigma_t, y / noise]), 1.0)
    conditional = prior.posterior(Matrix(A), y, noise).denoiser(flow)(x_t, t)
    assert_close(conditional[0], stacked.mean, 1e-8)


@few_examples
@given(SEEDS, st.sampled_from([random_gaussian, random_mixture, random_factors]))
def test_the_posterior_density_follows_bayes_rule(seed, make):
    """log p(x0 | y) - log p(x0) - log p(y | x0) is the same at every x0."""
    g = seeded(seed)
    prior, noise = make(g), 0.4
    A, y, x0 = normal(g, 2, prior.size), normal(g, 2), prior.sample(5, g)
    log_likelihood = -0.5 * ((y - Matrix(A)(x0)) / noise).square().sum(1)
    evidence = prior.log_density(x0) + log_likelihood - prior.posterior(Matrix(A), y, noise).log_density(x0)
    assert_close(evidence, evidence[:1].expand(5), 1e-8)


@pytest.mark.parametrize("make", [random_gaussian, random_mixture, random_factors])
def test_a_mask_without_noise_determines_the_known_pixels_and_conditions_the_rest(make):
    g = seeded(3)
    prior = make(g)
    known = (torch.arange(prior.size) % 2 == 0).double().reshape(prior.shape)
    x0 = prior.sample(1, g)
    y = known * x0  # rows of zeros where nothing is known, so A S A^T is singular
    posterior = prior.posterior(lambda x: known * x, y, 0.0)
    samples = posterior.sample(50, g)
    assert_close(known * samples, y.expand_as(samples), 1e-6)
    assert (samples.std(0).flatten()[1::2] > 0.01).all()
    # The textbook conditional N(x_u | x_k) of a component, for the first one that is kept.
    found = posterior.means[0].flatten()[1::2]

    def conditional(k):
        S, mean = prior.component_covariance(k), prior.means[k].flatten()
        gain = S[1::2, ::2] @ S[::2, ::2].inverse()
        return mean[1::2] + gain @ (x0.flatten() - mean)[::2], S[1::2, 1::2] - gain @ S[::2, 1::2]

    mean, covariance = min(map(conditional, range(prior.components)), key=lambda pair: (pair[0] - found).norm())
    assert_close(found, mean, 1e-7)
    assert_close(posterior.component_covariance(0)[1::2, 1::2], covariance, 1e-7)
    with pytest.raises(ValueError, match="singular"):
        posterior.log_density(x0)
    assert posterior.log_density(x0, 1.0, 0.1).isfinite().all()


def test_the_posterior_without_noise_is_the_limit_of_small_noise():
    g = seeded(4)
    prior = random_mixture(g)
    A = normal(g, 1, 4).expand(2, 4)  # the same row twice
    y = normal(g, 1).expand(2)
    exact, nearly = prior.posterior(Matrix(A), y, 0.0), prior.posterior(Matrix(A), y, 1e-5)
    assert_close(exact.weights, nearly.weights, 1e-6)
    assert_close(exact.mean, nearly.mean, 1e-6)
    assert_close(exact.covariance, nearly.covariance, 1e-6)


# Factor mixtures -----------------------------------------------------------------------------------------------------


@few_examples
@given(SEEDS, NOISE_LEVELS)
def test_a_factor_mixture_equals_the_dense_mixture(seed, t):
    g = seeded(seed)
    prior = random_factors(g)
    dense, x = as_dense(prior), normal(g, 4, *prior.shape)
    assert_close(prior.log_density(x), dense.log_density(x))
    assert_close(prior.log_density(x, *flow(t)), dense.log_density(x, *flow(t)))
    assert_close(prior.denoiser(flow)(x, t), dense.denoiser(flow)(x, t))
    assert_close(prior.mean, dense.mean)
    assert_close(prior.covariance, dense.covariance)
    A, y = normal(g, 2, prior.size), normal(g, 2)
    ours, theirs = prior.posterior(Matrix(A), y, 0.2), dense.posterior(Matrix(A), y, 0.2)
    assert_close(ours.weights, theirs.weights, 1e-8)
    assert_close(ours.mean, theirs.mean, 1e-8)
    assert_close(ours.covariance, theirs.covariance, 1e-8)


def separated_mixture(g):
    """Return a mixture of four clusters about six standard deviations apart, over images of (2, 4)."""
    means = 8 * torch.eye(4, 8, dtype=torch.float64).reshape(4, 2, 4)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    return FactorMixture(weights, means, normal(g, 4, 8, 2), torch.full((4, 2, 4), 0.05).double())


def test_fit_recovers_a_mixture_of_separated_clusters():
    g = seeded(0)
    original = separated_mixture(g)
    train, held_out = original.sample(2000, g), original.sample(1000, g)
    fitted = FactorMixture.fit(train, 4, 2, g, em_steps=100)
    excess = (original.log_density(held_out) - fitted.log_density(held_out)).mean()
    # A maximum-likelihood fit with p parameters loses about p / (2 N) nats per held-out sample (Wilks).
    parameters = 4 * (8 + 8 * 2 + 8) + 3
    assert -0.01 < excess < 3 * parameters / (2 * len(train))


def test_em_steps_raise_the_likelihood_and_the_variance_stays_above_the_minimum():
    g = seeded(1)
    x = separated_mixture(g).sample(300, g)
    x[:, 0, 0] = 1.0  # a constant pixel would have zero variance
    fits = [FactorMixture.fit(x, 6, 2, seeded(2), minimum_std=0.1, em_steps=steps) for steps in (0, 1, 3, 10)]
    likelihoods = [fit.log_density(x).mean().item() for fit in fits]
    assert likelihoods == sorted(likelihoods), likelihoods
    assert all(fit.noise_variance.min() >= 0.1**2 for fit in fits)
    assert fits[-1].shape == (2, 4)


def test_fit_works_with_a_rank_above_the_size_of_a_cluster():
    x = torch.cat([normal(seeded(0), 30, 6), 50 + normal(seeded(1), 2, 6)])
    fitted = FactorMixture.fit(x, 2, 4, seeded(2))
    assert fitted.log_density(x).isfinite().all()


# Samples -------------------------------------------------------------------------------------------------------------


def assert_moments(samples, mean, covariance):
    """Assert that mean and covariance are within 5 standard errors, which are estimated from the samples."""
    x = samples.flatten(1) - mean.flatten()
    products = x[:, :, None] * x[:, None, :]  # (N, n, n)
    for values, expected in [(x, torch.zeros_like(mean.flatten())), (products, covariance)]:
        error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - expected).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("make", [random_gaussian, random_mixture, random_factors])
@pytest.mark.parametrize("noise", [None, 0.0, 0.3], ids=["prior", "noiseless", "noisy"])
def test_samples_have_the_mean_and_the_covariance_of_the_mixture(make, noise):
    g = seeded(5)
    mixture = make(g)
    if noise is not None:
        mixture = mixture.posterior(Matrix(normal(g, 2, mixture.size)), normal(g, 2), noise)
    samples = mixture.sample(20_000, g)
    assert samples.shape == (20_000, *mixture.shape) and samples.dtype == torch.float64
    assert_moments(samples, mixture.mean, mixture.covariance)


def test_components_are_drawn_in_proportion_to_their_weights():
    original, count = separated_mixture(seeded(0)), 20_000
    samples = original.sample(count, seeded(1))
    responsibility = original._condition(samples, 1.0, 0.0)[0].softmax(1)  # (N, K); its expectation is the weights
    error = responsibility.std(0) / math.sqrt(count)
    assert ((responsibility.mean(0) - original.weights).abs() <= 5 * error).all()


def test_the_generator_decides_samples_and_fits():
    prior = random_factors(seeded(0))
    assert prior.sample(7, seeded(1)).equal(prior.sample(7, seeded(1)))
    x = prior.sample(50, seeded(2))
    fits = [FactorMixture.fit(x, 3, 1, seeded(3)) for _ in range(2)]
    assert fits[0].means.equal(fits[1].means)


# Refusals ------------------------------------------------------------------------------------------------------------

ONES = torch.ones(2, dtype=torch.float64)
MEANS = torch.zeros(2, 3, dtype=torch.float64)
EYES = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONES, MEANS, EYES), "sum to one"),
        ((ONES * torch.tensor([1.5, -0.5]).double(), MEANS, EYES), "positive"),
        ((ONES / 2, MEANS, EYES[:, :2, :2]), "covariances has shape"),
        ((ONES / 2, MEANS, EYES + torch.ones(3, 3).triu(1)), "not symmetric"),
        ((ONES / 2, MEANS, EYES * math.nan), "not finite"),
        ((ONES / 2, MEANS, -EYES), "positive semi-definite"),
    ],
)
def test_parameters_of_a_mixture_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_parameters_of_a_factor_mixture_out_of_range_are_refused():
    with pytest.raises(ValueError, match="loadings has shape"):
        FactorMixture(ONES / 2, MEANS, torch.ones(2, 4, 1).double(), MEANS + 1)
    with pytest.raises(ValueError, match="noise_variance must be > 0"):
        FactorMixture(ONES / 2, MEANS, torch.ones(2, 3, 1).double(), MEANS)
    x = normal(seeded(0), 10, 3)
    for components, rank, message in [(11, 1, "components"), (0, 1, "components"), (2, 3, "rank"), (2, 0, "rank")]:
        with pytest.raises(ValueError, match=message):
            FactorMixture.fit(x, components, rank, seeded(0))
    with pytest.raises(ValueError, match="minimum_std"):
        FactorMixture.fit(x, 2, 1, seeded(0), minimum_std=0.0)
    with pytest.raises(ValueError, match="distinct"):
        FactorMixture.fit(x[:1].expand(10, 3), 2, 1, seeded(0))


def test_inputs_of_another_shape_and_operators_that_are_not_linear_are_refused():
    prior = GaussianMixture(ONES / 2, MEANS, EYES)
    with pytest.raises(ValueError, match="this prior takes"):
        prior.log_density(torch.zeros(3).double())
    with pytest.raises(ValueError, match="this prior takes"):
        prior.denoiser(flow)(torch.zeros(1, 4).double(), 0.5)
    with pytest.raises(ValueError, match="noise"):
        prior.posterior(lambda x: x, torch.zeros(3).double(), -0.1)
    with pytest.raises(ValueError, match="the operator measures"):
        prior.posterior(lambda x: x, torch.zeros(2).double(), 0.1)
    with pytest.raises(ValueError, match="not linear"):
        prior.posterior(lambda x: x + 1, torch.zeros(3).double(), 0.1)


def tilted_mean(mixture, b):
    """Return the mean (1, n) of a Gaussian mixture reweighted by exp(<b, x>): a mixture with other weights."""
    log_weights, means = [], []
    for k in range(mixture.components):
        S, mean = mixture.component_covariance(k), mixture.means[k].flatten()
        log_weights.append(mixture.log_weights[k] + b @ mean + 0.5 * b @ S @ b)
        means.append(mean + S @ b)
    return torch.stack(log_weights).softmax(0) @ torch.stack(means)


@few_examples
@given(SEEDS, st.floats(-2.0, 2.5))
def test_the_denoiser_at_a_tilted_state_is_the_mean_of_the_reweighted_distribution(seed, level):
    """D at eta + A^T u is E[x0 exp(u^T A x0)] / E[exp(u^T A x0)] under x0 given x_t, for any mixture."""
    g, t = seeded(seed), COSINE.t_from_log_snr(level)
    prior, (alpha_t, sigma_t) = random_mixture(g, shape=(1, 2, 3)), COSINE(t)
    x_t = alpha_t * prior.sample(1, g) + sigma_t * normal(g, 1, 1, 2, 3)
    A, u = normal(g, 2, 6), normal(g, 2)
    given_x_t = prior.posterior(Identity(), x_t / alpha_t, sigma_t / alpha_t)
    tilted_state = x_t + sigma_t**2 / alpha_t * (u @ A).view_as(x_t)
    found = prior.denoiser(COSINE)(tilted_state, t)
    assert_close(found.flatten(), tilted_mean(given_x_t, u @ A), 1e-9)
