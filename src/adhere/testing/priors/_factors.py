"""Mixtures of factor analyzers: an exact prior in many dimensions, and its fit to examples.

    x0 = mu_k + W_k z + psi_k^(1/2) n,    z, n ~ N(0, I),    so    S_k = W_k W_k^T + diag(psi_k)

Each S_k is of rank r plus a diagonal, so its inverse and its determinant take O(n r^2) operations by Woodbury's
identity.

Sources: Ghahramani and Hinton, *The EM algorithm for mixtures of factor analyzers* (CRG-TR-96-1); k-means++: Arthur and
Vassilvitskii, SODA 2007.
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from adhere.testing.priors._mixture import Mixture, _check_shape, _checked_variance, _log_weights


class FactorMixture(Mixture):
    """A mixture of factor analyzers, S_k = W_k W_k^T + diag(psi_k).

    Args:
        weights: (K,), positive, with sum 1.
        means: (K, *shape).
        loadings: W, (K, n, r); n is the product of `shape`.
        noise_variance: psi, (K, *shape), positive.

    Raises:
        ValueError: for parameters of other shapes or out of range.
    """

    def __init__(
        self,
        weights: Float[Tensor, "K"],
        means: Float[Tensor, "K *shape"],
        loadings: Float[Tensor, "K n r"],
        noise_variance: Float[Tensor, "K *shape"],
    ):
        super().__init__(_log_weights(weights, means), means)
        _check_shape("loadings", loadings, (self.components, self.size, *loadings.shape[2:3]))
        _check_shape("noise_variance", noise_variance, means.shape)
        if not (noise_variance > 0).all():
            raise ValueError("noise_variance must be > 0; use a GaussianMixture for singular covariances")
        self.loadings = loadings.to(self.dtype)
        self.noise_variance = noise_variance.to(self.dtype).reshape(self._flat_means.shape)  # (K, n)

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        return self.loadings[k] @ self.loadings[k].T + self.noise_variance[k].diag()

    def _centered_samples(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        W = self.loadings[k]
        factors = self._white_noise(count, W.shape[1], generator) @ W.T
        return factors + self.noise_variance[k].sqrt() * self._white_noise(count, self.size, generator)

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        # C = D + a^2 W W^T, M = I + a^2 W^T D^-1 W: h = W^T C^-1 r = M^-1 W^T D^-1 r, and C^-1 r = D^-1 (r - a^2 W h).
        W, psi, a2 = self.loadings[k], self.noise_variance[k], alpha_t**2
        D = _checked_variance(a2 * psi + sigma_t**2)  # (n,)
        h, log_det_M = _factors(W, D, r, a2)  # (B, r)
        rest = r - a2 * h @ W.T  # (B, n)
        gain = h @ W.T + psi / D * rest  # S C^-1 r
        # A sum of squares has no cancellation, unlike r^T D^-1 r minus a correction.
        distance = (rest.square() / D).sum(1) + a2 * h.square().sum(1)
        return gain, distance, D.log().sum() + log_det_M

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "N *shape"],
        components: int,
        rank: int,
        generator: Generator,
        *,
        minimum_std: float = 0.02,
        em_steps: int = 10,
    ) -> "FactorMixture":
        """Return a mixture that is fitted to examples by k-means++, principal components of each cluster, and EM.

        Args:
            x: examples, (N, *shape), at least `components` distinct ones.
            components: the number of components K. A cluster that becomes empty is left out.
            rank: the number of columns of each W_k, less than n.
            generator: for the choice of the first centers.
            minimum_std: the smallest square root of psi_k, in units of x, above 0. It keeps densities well conditioned.
            em_steps: the number of steps of EM.

        Raises:
            ValueError: for components, rank or minimum_std out of range.
        """
        data = x.reshape(len(x), -1)  # (N, n)
        if not 1 <= components <= len(data):
            raise ValueError(f"components = {components}: it must be in 1..{len(data)}, the number of examples")
        if not 1 <= rank < data.shape[1]:
            raise ValueError(f"rank = {rank}: it must be in 1..{data.shape[1] - 1}")
        if not minimum_std > 0:
            raise ValueError(f"minimum_std = {minimum_std}: it must be above 0")
        min_variance = minimum_std**2
        label = _kmeans(data, components, generator)
        clusters = [data[label == k] for k in label.unique()]
        weights = data.new_tensor([len(c) for c in clusters]) / len(data)
        means = torch.stack([c.mean(0) for c in clusters])
        fits = (_principal_components(c - c.mean(0), rank, min_variance) for c in clusters)
        W, psi = map(torch.stack, zip(*fits, strict=True))
        mixture = cls(weights, means.reshape(-1, *x.shape[1:]), W, psi.reshape(-1, *x.shape[1:]))
        for _ in range(em_steps):
            mixture = mixture._em_step(x, min_variance)
        return mixture

    def _em_step(self, x: Float[Tensor, "N *shape"], min_variance: float) -> "FactorMixture":
        """Return the mixture after one step of expectation conditional maximization."""
        responsibility = torch.cat([self._condition(part, 1.0, 0.0)[0].softmax(1) for part in x.split(256)])  # (N, K)
        data = x.reshape(len(x), -1)  # (N, n)
        mass = responsibility.sum(0)  # (K,)
        fits = []
        for W, psi, column, total in zip(self.loadings, self.noise_variance, responsibility.T, mass, strict=True):
            rho = column / total.clamp_min(torch.finfo(data.dtype).tiny)  # (N,)
            fits.append(_maximize(W, psi, data, rho, min_variance))
        means, loadings, noise_variance = map(torch.stack, zip(*fits, strict=True))
        weights = (mass + 1) / (mass + 1).sum()  # one pseudo-count each, so that no component vanishes
        shape = self.means.shape
        return FactorMixture(weights, means.reshape(shape), loadings, noise_variance.reshape(shape))


def _maximize(
    W: Float[Tensor, "n rank"], psi: Tensor, data: Float[Tensor, "N n"], rho: Float[Tensor, " N"], min_variance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, then W and psi given that mean, for weights rho of the examples, which sum to 1."""
    mean = rho @ data
    centered = data - mean
    h, _ = _factors(W, psi, centered, 1.0)  # E[z | x, k], (N, rank)
    cross = centered.T @ (rho[:, None] * h)  # E[x z^T], (n, rank)
    explained, _ = _factors(W, psi, W.T, 1.0)  # I - Cov[z | x, k]
    second = torch.eye(W.shape[1], dtype=W.dtype, device=W.device) - explained + h.T @ (rho[:, None] * h)  # E[z z^T]
    W_new = torch.linalg.solve(second, cross.T).T
    return mean, W_new, (rho @ centered.square() - (W_new * cross).sum(1)).clamp_min(min_variance)


def _factors(W: Tensor, D: Tensor, r: Float[Tensor, "B n"], a2: float) -> tuple[Float[Tensor, "B rank"], Tensor]:
    """Return M^-1 W^T D^-1 r and log det M for M = I + a2 W^T D^-1 W."""
    scaled = W / D[:, None]  # (n, rank)
    L = torch.linalg.cholesky(torch.eye(W.shape[1], dtype=W.dtype, device=W.device) + a2 * W.T @ scaled)
    return torch.cholesky_solve((r @ scaled).T, L).T, 2 * L.diagonal().log().sum()


def _kmeans(data: Float[Tensor, "N n"], components: int, generator: Generator, max_iterations: int = 30) -> Tensor:
    """Return labels (N,) by Lloyd's algorithm, which starts from centers by k-means++."""
    start = torch.randint(len(data), (1,), generator=generator, device=data.device)
    centers, distance = data[start], data.new_tensor(math.inf)  # (1, n); squared distance to the nearest center
    for _ in range(components - 1):
        distance = distance.minimum((data - centers[-1]).square().sum(1))  # (N,)
        if not distance.any():
            raise ValueError(f"components = {components}: x has only {len(centers)} distinct examples")
        centers = torch.cat([centers, data[torch.multinomial(distance, 1, generator=generator)]])
    label = torch.cdist(data, centers).argmin(1)
    for _ in range(max_iterations):
        for k in label.unique():
            centers[k] = data[label == k].mean(0)
        previous, label = label, torch.cdist(data, centers).argmin(1)
        if label.equal(previous):
            break
    return label


def _principal_components(centered: Float[Tensor, "N n"], rank: int, min_variance: float) -> tuple[Tensor, Tensor]:
    """Return W (n, rank) by probabilistic PCA (Tipping and Bishop, 1999), and the remaining variances, (n,)."""
    N, n = centered.shape
    _, s, Vh = torch.linalg.svd(centered / math.sqrt(N), full_matrices=False)
    lam = s.square()  # eigenvalues of the covariance, largest first
    excess = (lam[:rank] - lam[rank:].sum() / (n - rank)).clamp_min(0)  # over the mean of those left out
    W = centered.new_zeros(n, rank)  # columns beyond the rank of the cluster stay zero
    W[:, : len(excess)] = Vh[:rank].T * excess.sqrt()
    return W, (centered.square().mean(0) - W.square().sum(1)).clamp_min(min_variance)
