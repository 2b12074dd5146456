"""What the tests of the core share: seeded random numbers, random exact priors and dense operators, all in float64."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from adhere.core.constraints import Linear
from adhere.core.operators import LinearOperator
from adhere.core.sampling import State
from adhere.testing.priors import FactorMixture, Gaussian, GaussianMixture


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def random_covariance(g: Generator, n: int) -> Tensor:
    root = normal(g, n, n) / math.sqrt(n)
    return root @ root.T + 0.05 * torch.eye(n, dtype=torch.float64)


def random_gaussian(g: Generator, shape: tuple[int, ...] = (1, 2, 2)) -> Gaussian:
    return Gaussian(normal(g, *shape), random_covariance(g, math.prod(shape)))


def random_mixture(g: Generator, components: int = 3, shape: tuple[int, ...] = (1, 2, 2)) -> GaussianMixture:
    covariances = torch.stack([random_covariance(g, math.prod(shape)) for _ in range(components)])
    return GaussianMixture(normal(g, components).softmax(0), normal(g, components, *shape), covariances)


def random_factors(
    g: Generator, components: int = 3, shape: tuple[int, ...] = (1, 4, 4), rank: int = 3
) -> FactorMixture:
    loadings = normal(g, components, math.prod(shape), rank) / math.sqrt(rank)
    psi = 0.02 + 0.1 * torch.rand(components, *shape, generator=g, dtype=torch.float64)
    return FactorMixture(normal(g, components).softmax(0), normal(g, components, *shape), loadings, psi)


class Matrix(LinearOperator):
    """The operator of a dense matrix A (m, n) on images of n entries; its adjoint returns images of `shape`."""

    def __init__(self, A: Tensor, shape: tuple[int, ...] = ()):
        self.A, self.shape = A, shape

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.A.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.A).reshape(-1, *self.shape)


def gaussian_case(
    seed: int, m: int = 3, orthonormal: bool = False, noise: float = 0.0, shape: tuple[int, ...] = (1, 2, 3)
) -> tuple[Gaussian, Tensor, Linear, Tensor, Generator]:
    """Return (prior, A, constraint, x_t, generator): a Gaussian prior and m random measurements of one image."""
    g = seeded(seed)
    prior, A = random_gaussian(g, shape), normal(g, m, math.prod(shape))
    if orthonormal:
        A = torch.linalg.qr(A.T)[0].T
    operator = Matrix(A, shape)
    y = operator(prior.sample(1, g)) + noise * normal(g, 1, m)
    return prior, A, Linear(operator, y, noise), normal(g, 2, *shape), g


def exact_jacobian(prior: Gaussian, alpha_t: float, sigma_t: float) -> Tensor:
    """Return (alpha/sigma^2) Cov[x0 | x_t] of a Gaussian prior, the covariance by Bayes' rule."""
    identity = torch.eye(prior.size, dtype=torch.float64)
    return alpha_t / sigma_t**2 * (prior.covariance.inverse() + (alpha_t / sigma_t) ** 2 * identity).inverse()


class IdentityAutoencoder:
    """An autoencoder whose latents are the pictures."""

    dtype = torch.float64

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def matrix_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the dense matrix (m, n) of a linear function of images of `shape`."""
    n = math.prod(shape)
    return function(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1).T


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that each entry of a is that of b, with the same relative and absolute tolerance."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def last_x0(states: Iterator[State]) -> Tensor:
    """Return the sample of a run, the x0 of its last state."""
    *_, last = states
    return last.x0
