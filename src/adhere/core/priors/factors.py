"""Mixtures of factor analysers: the exact prior for many dimensions, and its fit to examples.

    x0 = mu_k + W_k z + psi_k^(1/2) n,    z, n ~ N(0, I),    so    S_k = W_k W_k^T + diag(psi_k)

Each S_k has rank r plus a diagonal, so its inverse and determinant cost O(n r) by Woodbury's identity.

Sources: Ghahramani and Hinton, *The EM algorithm for mixtures of factor analyzers* (CRG-TR-96-1); k-means++: Arthur and
Vassilvitskii, SODA 2007.
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from adhere.core.priors.mixture import Mixture, check_shape, checked_log, positive


class FactorMixture(Mixture):
    """Mixture of factor analysers: S_k = W_k W_k^T + diag(psi_k), handled in O(n r) by Woodbury's identity.

    Args:
        weights: (K,), positive, summing to one.
        means: (K, *shape).
        loadings: W, (K, n, r); n is the product of `shape`.
        noise_variance: psi > 0, (K, *shape).
    """

    def __init__(
        self,
        weights: Float[Tensor, "K"],
        means: Float[Tensor, "K *shape"],
        loadings: Float[Tensor, "K n r"],
        noise_variance: Float[Tensor, "K *shape"],
    ):
        super().__init__(checked_log(weights, means), means)
        check_shape("loadings", loadings, (self.components, self.size, *loadings.shape[2:3]))
        check_shape("noise_variance", noise_variance, means.shape)
        if not (noise_variance > 0).all():
            raise ValueError("noise_variance must be > 0; use a GaussianMixture for singular covariances")
        self.loadings = loadings.to(self.dtype)
        self.noise_variance = noise_variance.to(self.dtype).reshape(self._flat_means.shape)  # (K, n)

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        return self.loadings[k] @ self.loadings[k].T + self.noise_variance[k].diag()

    def _colour(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        W = self.loadings[k]
        factors = self._white(count, W.shape[1], generator) @ W.T
        return factors + self.noise_variance[k].sqrt() * self._white(count, self.size, generator)

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        # C = D + a^2 W W^T, M = I + a^2 W^T D^-1 W: h = W^T C^-1 r = M^-1 W^T D^-1 r, and C^-1 r = D^-1 (r - a^2 W h).
        W, psi, a2 = self.loadings[k], self.noise_variance[k], alpha_t**2
        D = positive(a2 * psi + sigma_t**2)  # (n,)
        h, log_det_M = _factors(W, D, r, a2)  # (B, rank)
        rest = r - a2 * h @ W.T  # (B, n)
        gain = h @ W.T + psi / D * rest  # S C^-1 r
        # A sum of squares: no cancellation, unlike r^T D^-1 r minus a correction.
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
        """Fit to N examples: k-means++, principal components of each cluster, then `em_steps` steps of EM.

        Args:
            x: examples, (N, *shape), at least `components` distinct ones.
            components: number of components K.
            rank: columns of each W_k, less than n.
            minimum_std: floor of psi_k's square root, in x's units: what keeps the densities well conditioned.

        Raises:
            ValueError: for components, rank or minimum_std out of range.
        """
        data = x.reshape(len(x), -1)  # (N, n)
        if not 1 <= components <= len(data):
            raise ValueError(f"components must be in 1..{len(data)}, the number of examples; got {components}")
        if not 1 <= rank < data.shape[1]:
            raise ValueError(f"rank must be in 1..{data.shape[1] - 1}; got {rank}")
        if not minimum_std > 0:
            raise ValueError(f"minimum_std must be > 0; got {minimum_std}")
        floor = minimum_std**2
        label = _kmeans(data, components, generator)
        clusters = [data[label == k] for k in label.unique()]  # an empty cluster is left out
        weights = torch.tensor([len(c) for c in clusters]).to(data) / len(data)
        means = torch.stack([c.mean(0) for c in clusters])
        W, psi = map(torch.stack, zip(*(_principal(c - c.mean(0), rank, floor) for c in clusters), strict=True))
        mixture = cls(weights, means.reshape(-1, *x.shape[1:]), W, psi.reshape(-1, *x.shape[1:]))
        for _ in range(em_steps):
            mixture = mixture._em_step(x, floor)
        return mixture

    def _em_step(self, x: Float[Tensor, "N *shape"], floor: float) -> "FactorMixture":
        """One step of expectation conditional maximisation: the means first, then W and psi given the means."""
        responsibility = torch.cat([self._condition(part, 1.0, 0.0)[0].softmax(1) for part in x.split(256)])  # (N, K)
        data = x.reshape(len(x), -1)  # (N, n)
        mass = responsibility.sum(0)  # (K,)
        means, loadings, psis = [], [], []
        for k, W in enumerate(self.loadings):
            rho = responsibility[:, k] / mass[k].clamp_min(torch.finfo(data.dtype).tiny)  # (N,)
            mean = rho @ data
            centred = data - mean
            h, _ = _factors(W, self.noise_variance[k], centred, 1.0)  # E[z | x, k], (N, rank)
            cross = centred.T @ (rho[:, None] * h)  # E[x z^T], (n, rank)
            spread, _ = _factors(W, self.noise_variance[k], W.T, 1.0)  # beta W = I - Cov[z | x, k]
            second = torch.eye(W.shape[1]).to(W) - spread + h.T @ (rho[:, None] * h)  # E[z z^T]
            W_new = torch.linalg.solve(second, cross.T).T
            means.append(mean)
            loadings.append(W_new)
            psis.append((rho @ centred.square() - (W_new * cross).sum(1)).clamp_min(floor))
        weights = (mass + 1) / (mass + 1).sum()  # one pseudo-count each: no component dies
        new_means, new_psi = (torch.stack(part).reshape(self.means.shape) for part in (means, psis))
        return FactorMixture(weights, new_means, torch.stack(loadings), new_psi)


def _factors(W: Tensor, D: Tensor, r: Float[Tensor, "B n"], a2: float) -> tuple[Float[Tensor, "B rank"], Tensor]:
    """M^-1 W^T D^-1 r and log det M, M = I + a2 W^T D^-1 W."""
    scaled = W / D[:, None]  # (n, rank)
    L = torch.linalg.cholesky(torch.eye(W.shape[1]).to(W) + a2 * W.T @ scaled)
    return torch.cholesky_solve((r @ scaled).T, L).T, 2 * L.diagonal().log().sum()


def _kmeans(data: Float[Tensor, "N n"], components: int, generator: Generator, iterations: int = 30) -> Tensor:
    """Labels (N,) by Lloyd's algorithm from k-means++ seeds."""
    first = torch.randint(len(data), (1,), generator=generator, device=data.device)
    centres, distance = data[first], data.new_tensor(math.inf)  # (1, n); squared, to the nearest centre
    for _ in range(components - 1):
        distance = distance.minimum((data - centres[-1]).square().sum(1))  # (N,)
        if not distance.any():
            raise ValueError(f"x has only {len(centres)} distinct examples; ask for fewer than {components} components")
        centres = torch.cat([centres, data[torch.multinomial(distance, 1, generator=generator)]])
    label = torch.cdist(data, centres).argmin(1)
    for _ in range(iterations):
        for k in label.unique():
            centres[k] = data[label == k].mean(0)
        previous, label = label, torch.cdist(data, centres).argmin(1)
        if label.equal(previous):
            break
    return label


def _principal(centred: Float[Tensor, "N n"], rank: int, floor: float) -> tuple[Tensor, Tensor]:
    """Loadings (n, rank) by probabilistic PCA (Tipping and Bishop, 1999), and what they leave of variances, (n,)."""
    N, n = centred.shape
    _, s, Vh = torch.linalg.svd(centred / math.sqrt(N), full_matrices=False)
    lam = s.square()  # the covariance's eigenvalues, largest first
    excess = (lam[:rank] - lam[rank:].sum() / (n - rank)).clamp_min(0)  # over the mean of those left out
    W = centred.new_zeros(n, rank)  # columns beyond the cluster's own rank stay zero
    W[:, : len(excess)] = Vh[:rank].T * excess.sqrt()
    return W, (centred.square().mean(0) - W.square().sum(1)).clamp_min(floor)
