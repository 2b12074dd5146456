"""Priors whose denoiser, density and posterior are known in closed form.

Every sampler can be judged against them exactly. Each is a mixture of Gaussians over images flattened to n numbers,

    p(x0) = sum_k w_k N(mu_k, S_k),                                                                    (1)

so x_t = alpha_t x0 + sigma_t eps is one too, with component covariances C_k = alpha_t^2 S_k + sigma_t^2 I, and

    log p_t(x_t) = logsumexp_k [log w_k + log N(x_t; alpha_t mu_k, C_k)],                              (2)
    E[x0 | x_t, k] = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k),                                   (3)
    E[x0 | x_t] = sum_k p(k | x_t) E[x0 | x_t, k].                                                     (4)

For y = A x0 + noise n the posterior is again (1), by Kalman's update with R_k = A S_k A^T + noise^2 I:

    mu_k + S_k A^T R_k^-1 (y - A mu_k),   S_k - S_k A^T R_k^-1 A S_k,   w_k N(y; A mu_k, R_k) / sum.   (5)

Sources: Bishop, *Pattern Recognition and Machine Learning*, section 2.3; mixtures of factor analysers and their EM:
Ghahramani and Hinton, CRG-TR-96-1; k-means++: Arthur and Vassilvitskii, SODA 2007.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from adhere.core.schedule import Schedule

LinearMap = Callable[[Tensor], Tensor]  # (B, *shape) -> (B, *yshape)


class _Mixture(ABC):
    """Everything that does not depend on how the component covariances are stored.

    All arithmetic is in the parameters' dtype, and so are results; only a denoised x0 comes back in the dtype of x_t.
    """

    def __init__(self, log_weights: Float[Tensor, "K"], means: Float[Tensor, "K *shape"]):
        self.log_weights = log_weights.log_softmax(0)
        self.means = means
        self.shape = means.shape[1:]
        self._flat_means = means.flatten(1) if means.ndim > 1 else means[:, None]  # (K, n)
        self.components, self.size = self._flat_means.shape  # K, n

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    @property
    def weights(self) -> Float[Tensor, "K"]:
        return self.log_weights.exp()

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        return (self.weights @ self._flat_means).reshape(self.shape)

    @property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Covariance of the whole mixture: within plus between its components."""
        spread = self._flat_means - self.mean.flatten()  # (K, n)
        between = spread.T @ (self.weights[:, None] * spread)
        return between + sum(w * self.component_covariance(k) for k, w in enumerate(self.weights))

    @abstractmethod
    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        """S_k as a dense matrix."""

    @abstractmethod
    def _colour(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        """Draws from N(0, S_k)."""

    @abstractmethod
    def _update(
        self, k: int, r: Float[Tensor, "B n"], alpha_t: float, sigma_t: float
    ) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, ""]]:
        """With C = alpha_t^2 S_k + sigma_t^2 I: S_k C^-1 r, r^T C^-1 r and log det C."""

    def sample(self, count: int, generator: Generator) -> Float[Tensor, "count *shape"]:
        """Independent exact draws."""
        label = torch.multinomial(self.weights, count, replacement=True, generator=generator)  # (count,)
        x0 = self._flat_means[label]  # (count, n), a copy
        for k in label.unique().tolist():
            rows = label == k
            x0[rows] += self._colour(k, int(rows.sum()), generator)
        return x0.reshape(count, *self.shape)

    def log_density(
        self, x: Float[Tensor, "B *shape"], alpha_t: float = 1.0, sigma_t: float = 0.0
    ) -> Float[Tensor, "B"]:
        """Log density of alpha_t x0 + sigma_t eps at `x`, in nats, equation (2); of x0 itself as it stands.

        Raises:
            ValueError: if sigma_t is 0 and a component is flat in some direction, as after a noiseless measurement.
        """
        return self._condition(x, alpha_t, sigma_t)[0].logsumexp(1)

    def denoise(self, x_t: Float[Tensor, "B *shape"], alpha_t: float, sigma_t: float) -> Float[Tensor, "B *shape"]:
        """E[x0 | x_t] for x_t = alpha_t x0 + sigma_t eps, equations (3) and (4)."""
        log_joint, means = self._condition(x_t, alpha_t, sigma_t)
        x0 = torch.einsum("bk,bkn->bn", log_joint.softmax(1), means)
        return x0.reshape(x_t.shape).to(x_t.dtype)

    def denoiser(self, schedule: Schedule) -> "ExactDenoiser":
        """This prior as a denoiser under `schedule`: t -> (alpha_t, sigma_t)."""
        return ExactDenoiser(self, schedule)

    def _condition(
        self, x_t: Float[Tensor, "B *shape"], alpha_t: float, sigma_t: float
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K n"]]:
        """log p(k, x_t) and E[x0 | x_t, k] of every component."""
        if x_t.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x_t.shape)}; this prior takes (B, {', '.join(map(str, self.shape))})")
        x_t = x_t.to(self.dtype).reshape(len(x_t), self.size)  # (B, n)
        log_joint, means = [], []
        for k, mean in enumerate(self._flat_means):
            gain, distance, log_det = self._update(k, x_t - alpha_t * mean, alpha_t, sigma_t)
            log_normal = -0.5 * (distance + log_det + self.size * math.log(2 * math.pi))
            log_joint.append(self.log_weights[k] + log_normal)
            means.append(mean + alpha_t * gain)
        return torch.stack(log_joint, 1), torch.stack(means, 1)

    def posterior(self, operator: LinearMap, y: Float[Tensor, "*yshape"], noise: float) -> "GaussianMixture":
        """p(x0 | y) for y = A x0 + noise n, a `GaussianMixture`, equation (5).

        Computed in float64. noise = 0 is allowed: the noise's variance is never taken below jitter = m eps times the
        largest ||A S_k A^T||, eps float64's. Eigenvalues of A S_k A^T below it count as zero (rows of a mask that see
        nothing, repeated rows), and directions that the measurement pins down to round-off get variance zero;
        A x0 = y then holds to about 1e-6 of the data's scale.

        Args:
            operator: linear A, (B, *shape) to (B, *yshape); its matrix is built by pushing the identity through it.
            y: one measurement, (*yshape) or (1, *yshape).
            noise: standard deviation of the measurement's noise, in y's units, >= 0.
        """
        if not (noise >= 0 and math.isfinite(noise)):
            raise ValueError(f"noise is a standard deviation, finite and >= 0; got {noise}")
        A = self._matrix(operator, y)  # (m, n)
        residuals = y.to(A).flatten() - self._flat_means.to(A) @ A.T  # (K, m)
        priors = [self.component_covariance(k).to(A) for k in range(self.components)]  # K of (n, n)
        grams = [A @ S @ A.T for S in priors]  # K of (m, m)
        eps = torch.finfo(A.dtype).eps
        # The same for every component, or their evidences could not be compared.
        jitter = len(A) * eps * max(float(torch.linalg.matrix_norm(gram, math.inf)) for gram in grams)
        variance = max(noise**2, jitter, torch.finfo(A.dtype).tiny)
        log_weights, means, eigenvalues, eigenvectors = [], [], [], []
        for k, (S, gram) in enumerate(zip(priors, grams, strict=True)):
            s2, U = torch.linalg.eigh(gram)
            spread = s2.where(s2 > jitter, 0.0) + variance  # (m,), R = U diag(spread) U^T
            root = U.T / spread.sqrt()[:, None]  # root^T root = R^-1
            G, r = root @ A @ S, root @ residuals[k]  # (m, n), (m,)
            log_weights.append(self.log_weights[k].to(A) - 0.5 * (r.square().sum() + spread.log().sum()))
            means.append(self._flat_means[k].to(A) + G.T @ r)
            lam, V = torch.linalg.eigh(S - G.T @ G)
            flat = 4 * self.size * eps * torch.linalg.matrix_norm(S, math.inf)
            eigenvalues.append(lam.where(lam > flat, 0.0))
            eigenvectors.append(V)
        parts = (torch.stack(part).to(self.dtype) for part in (log_weights, means, eigenvalues, eigenvectors))
        log_weights, means, eigenvalues, eigenvectors = parts
        return GaussianMixture._from_eigen(log_weights, means.reshape(-1, *self.shape), eigenvalues, eigenvectors)

    def _matrix(self, operator: LinearMap, y: Tensor) -> Float[Tensor, "m n"]:
        """The dense float64 matrix of `operator`, checked against y and for A(0) = 0."""
        basis = torch.eye(self.size + 1, self.size, dtype=self.dtype, device=self.means.device)  # last row: zero
        columns = operator(basis.reshape(-1, *self.shape))  # (n + 1, *yshape)
        if y.shape not in (columns.shape[1:], (1, *columns.shape[1:])):
            raise ValueError(f"y has shape {tuple(y.shape)}; the operator measures {tuple(columns.shape[1:])}")
        if columns[-1].any():
            raise ValueError("operator(0) is not 0: the operator is not linear; move its constant into y")
        return columns[:-1].reshape(self.size, -1).T.double()


@dataclass(frozen=True)
class ExactDenoiser:
    """E[x0 | x_t] of a prior, or of a posterior, under a schedule t -> (alpha_t, sigma_t)."""

    prior: _Mixture
    schedule: Schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def __call__(self, x_t: Float[Tensor, "B *shape"], t: float) -> Float[Tensor, "B *shape"]:
        return self.prior.denoise(x_t, *self.schedule(t))


class GaussianMixture(_Mixture):
    """Mixture of Gaussians with dense covariances, each kept as its eigendecomposition V diag(lambda) V^T.

    Args:
        weights: (K,), positive, summing to one.
        means: (K, *shape).
        covariances: (K, n, n), symmetric, positive semi-definite; n is the product of `shape`.
    """

    eigenvalues: Float[Tensor, "K n"]
    eigenvectors: Float[Tensor, "K n n"]

    def __init__(
        self,
        weights: Float[Tensor, "K"],
        means: Float[Tensor, "K *shape"],
        covariances: Float[Tensor, "K n n"],
    ):
        super().__init__(_checked_log(weights, means), means)
        _check_shape("covariances", covariances, (self.components, self.size, self.size))
        tolerance = 10 * self.size * torch.finfo(covariances.dtype).eps * covariances.abs().max()
        if not ((covariances - covariances.mT).abs() <= tolerance).all():
            raise ValueError("covariances are not symmetric (or not finite); pass (S + S.mT) / 2")
        lam, V = torch.linalg.eigh(covariances.double())
        if lam.min() < -tolerance:
            raise ValueError(f"covariances are not positive semi-definite: an eigenvalue is {lam.min():.3g}")
        self.eigenvalues, self.eigenvectors = lam.clamp_min(0).to(self.dtype), V.to(self.dtype)

    @classmethod
    def _from_eigen(cls, log_weights: Tensor, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor):
        mixture = cls.__new__(cls)
        _Mixture.__init__(mixture, log_weights, means)
        mixture.eigenvalues, mixture.eigenvectors = eigenvalues, eigenvectors
        return mixture

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        V = self.eigenvectors[k]
        return (V * self.eigenvalues[k]) @ V.T

    def _colour(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        return (_normal(count, self.size, self.means, generator) * self.eigenvalues[k].sqrt()) @ self.eigenvectors[k].T

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        lam, V = self.eigenvalues[k], self.eigenvectors[k]
        c = _positive(alpha_t**2 * lam + sigma_t**2)  # (n,), eigenvalues of C
        z = r @ V  # (B, n)
        return (z * (lam / c)) @ V.T, (z.square() / c).sum(1), c.log().sum()


class Gaussian(GaussianMixture):
    """N(mean, covariance): a mixture of one. `mean` is (*shape), `covariance` (n, n)."""

    def __init__(self, mean: Float[Tensor, "*shape"], covariance: Float[Tensor, "n n"]):
        super().__init__(mean.new_ones(1), mean[None], covariance[None])


class FactorMixture(_Mixture):
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
        super().__init__(_checked_log(weights, means), means)
        _check_shape("loadings", loadings, (self.components, self.size, *loadings.shape[2:3]))
        _check_shape("noise_variance", noise_variance, means.shape)
        if not (noise_variance > 0).all():
            raise ValueError("noise_variance must be > 0; use a GaussianMixture for singular covariances")
        self.loadings = loadings.to(self.dtype)
        self.noise_variance = noise_variance.to(self.dtype).reshape(self._flat_means.shape)  # (K, n)

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        return self.loadings[k] @ self.loadings[k].T + self.noise_variance[k].diag()

    def _colour(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        W = self.loadings[k]
        factors = _normal(count, W.shape[1], W, generator) @ W.T
        return factors + self.noise_variance[k].sqrt() * _normal(count, self.size, W, generator)

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        # C = D + a^2 W W^T, M = I + a^2 W^T D^-1 W: h = W^T C^-1 r = M^-1 W^T D^-1 r, and C^-1 r = D^-1 (r - a^2 W h).
        W, psi, a2 = self.loadings[k], self.noise_variance[k], alpha_t**2
        D = _positive(a2 * psi + sigma_t**2)  # (n,)
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


def _normal(count: int, size: int, like: Tensor, generator: Generator) -> Float[Tensor, "count size"]:
    return torch.randn(count, size, generator=generator, dtype=like.dtype, device=like.device)


def _positive(variance: Tensor) -> Tensor:
    if not variance.min() > 0:
        raise ValueError("a component has no density: its covariance is singular and sigma_t is 0; use sigma_t > 0")
    return variance


def _checked_log(weights: Tensor, means: Tensor) -> Tensor:
    """log weights in the means' dtype."""
    if not means.is_floating_point():
        raise ValueError(f"means must be floating point; got {means.dtype}")
    if weights.ndim != 1 or len(weights) == 0 or len(weights) != len(means):
        raise ValueError(f"weights must be (K,) for means (K, ...); got {tuple(weights.shape)}, {tuple(means.shape)}")
    total = float(weights.sum())
    if not ((weights > 0).all() and abs(total - 1) < 1e-5):  # float32 weights pass; the rest is normalised away
        raise ValueError(f"weights must be positive and sum to one; got {weights.tolist()}, sum {total:.6g}")
    return weights.to(means.dtype).log()


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}")
