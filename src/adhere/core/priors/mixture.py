"""Mixtures of Gaussians, over images flattened to n numbers: denoiser, density and posterior in closed form.

    p(x0) = sum_k w_k N(mu_k, S_k),                                                                    (1)

so x_t = alpha_t x0 + sigma_t eps is one too, with component covariances C_k = alpha_t^2 S_k + sigma_t^2 I, and

    log p_t(x_t) = logsumexp_k [log w_k + log N(x_t; alpha_t mu_k, C_k)],                              (2)
    E[x0 | x_t, k] = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k),                                   (3)
    E[x0 | x_t] = sum_k p(k | x_t) E[x0 | x_t, k].                                                     (4)

For y = A x0 + noise n the posterior is again (1), by Kalman's update with R_k = A S_k A^T + noise^2 I:

    mu_k + S_k A^T R_k^-1 (y - A mu_k),   S_k - S_k A^T R_k^-1 A S_k,   w_k N(y; A mu_k, R_k) / sum.   (5)

Source: Bishop, *Pattern Recognition and Machine Learning*, section 2.3.
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
IMPOSSIBLE = 1e-40


class Mixture(ABC):
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
        """Of the parameters, and of all arithmetic."""
        return self.means.dtype

    @property
    def weights(self) -> Float[Tensor, "K"]:
        """w_k, of sum one."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """E[x0] of the whole mixture."""
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

    def _white(self, count: int, size: int, generator: Generator) -> Float[Tensor, "count size"]:
        """Draws from N(0, I)."""
        return torch.randn(count, size, generator=generator, dtype=self.dtype, device=self.means.device)

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
        A x0 = y then holds to about 1e-6 of the data's scale. Components less than IMPOSSIBLE times as probable as the
        most probable one are left out.

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
        roots, log_evidence = [], []
        for k, gram in enumerate(grams):
            s2, U = torch.linalg.eigh(gram)
            spread = s2.where(s2 > jitter, 0.0) + variance  # (m,), R = U diag(spread) U^T
            roots.append(U.T / spread.sqrt()[:, None])  # root^T root = R^-1
            distance = (roots[k] @ residuals[k]).square().sum()
            log_evidence.append(self.log_weights[k].to(A) - 0.5 * (distance + spread.log().sum()))
        log_weights, means, eigenvalues, eigenvectors = [], [], [], []
        for k, S in enumerate(priors):
            if log_evidence[k] < max(log_evidence) + math.log(IMPOSSIBLE):
                continue
            G, r = roots[k] @ A @ S, roots[k] @ residuals[k]  # (m, n), (m,)
            log_weights.append(log_evidence[k])
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

    prior: Mixture
    schedule: Schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def __call__(self, x_t: Float[Tensor, "B *shape"], t: float) -> Float[Tensor, "B *shape"]:
        return self.prior.denoise(x_t, *self.schedule(t))


class GaussianMixture(Mixture):
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
        super().__init__(checked_log(weights, means), means)
        check_shape("covariances", covariances, (self.components, self.size, self.size))
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
        Mixture.__init__(mixture, log_weights, means)
        mixture.eigenvalues, mixture.eigenvectors = eigenvalues, eigenvectors
        return mixture

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        V = self.eigenvectors[k]
        return (V * self.eigenvalues[k]) @ V.T

    def _colour(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        return (self._white(count, self.size, generator) * self.eigenvalues[k].sqrt()) @ self.eigenvectors[k].T

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        lam, V = self.eigenvalues[k], self.eigenvectors[k]
        c = positive(alpha_t**2 * lam + sigma_t**2)  # (n,), eigenvalues of C
        z = r @ V  # (B, n)
        return (z * (lam / c)) @ V.T, (z.square() / c).sum(1), c.log().sum()


class Gaussian(GaussianMixture):
    """N(mean, covariance): a mixture of one. `mean` is (*shape), `covariance` (n, n)."""

    def __init__(self, mean: Float[Tensor, "*shape"], covariance: Float[Tensor, "n n"]):
        super().__init__(mean.new_ones(1), mean[None], covariance[None])


def positive(variance: Tensor) -> Tensor:
    """`variance` itself. Raises ValueError unless all of it is above zero."""
    if not variance.min() > 0:
        raise ValueError("a component has no density: its covariance is singular and sigma_t is 0; use sigma_t > 0")
    return variance


def checked_log(weights: Tensor, means: Tensor) -> Tensor:
    """log weights (K,) in the means' dtype. Raises ValueError unless positive, of sum one and as many as means."""
    if not means.is_floating_point():
        raise ValueError(f"means must be floating point; got {means.dtype}")
    if weights.ndim != 1 or len(weights) == 0 or len(weights) != len(means):
        raise ValueError(f"weights must be (K,) for means (K, ...); got {tuple(weights.shape)}, {tuple(means.shape)}")
    total = float(weights.sum())
    if not ((weights > 0).all() and abs(total - 1) < 1e-5):  # float32 weights pass; the rest is normalised away
        raise ValueError(f"weights must be positive and sum to one; got {weights.tolist()}, sum {total:.6g}")
    return weights.to(means.dtype).log()


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}")
