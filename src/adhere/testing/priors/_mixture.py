"""Mixtures of Gaussians over images of n entries: denoiser, density and posterior in closed form.

    p(x0) = sum_k w_k N(mu_k, S_k)                                                                     (1)

x_t = alpha_t x0 + sigma_t eps is a mixture too, whose components have the covariances
C_k = alpha_t^2 S_k + sigma_t^2 I, and

    log p_t(x_t) = logsumexp_k [log w_k + log N(x_t; alpha_t mu_k, C_k)]                               (2)
    E[x0 | x_t, k] = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k)                                    (3)
    E[x0 | x_t] = sum_k p(k | x_t) E[x0 | x_t, k]                                                      (4)

For y = A x0 + noise n, the posterior has the form (1) again, by Kalman's update with R_k = A S_k A^T + noise^2 I:

    mu_k + S_k A^T R_k^-1 (y - A mu_k),   S_k - S_k A^T R_k^-1 A S_k,   w_k N(y; A mu_k, R_k) / sum    (5)

Source: Bishop, *Pattern Recognition and Machine Learning*, section 2.3.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from adhere.core.schedules import Schedule

_MIN_EVIDENCE_RATIO = 1e-40  # a component this much less probable than the most probable one is dropped


class Mixture(ABC):
    """Base of mixtures: all that does not depend on how the covariances of the components are stored.

    All arithmetic is in the dtype of the parameters, and so are results, except that a denoised x0 has the dtype of
    x_t.

    Attributes:
        log_weights: log w_k, (K,).
        means: mu_k, (K, *shape).
        shape: of one image.
        components: K.
        size: n, the number of entries of one image.
    """

    def __init__(self, log_weights: Float[Tensor, "K"], means: Float[Tensor, "K *shape"]):
        self.log_weights = log_weights.log_softmax(0)
        self.means = means
        self.shape = means.shape[1:]
        self._flat_means = means.flatten(1) if means.ndim > 1 else means[:, None]  # (K, n)
        self.components, self.size = self._flat_means.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.means.dtype

    @property
    def weights(self) -> Float[Tensor, "K"]:
        """w_k, (K,), which sum to 1."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """E[x0] of the whole mixture, (*shape)."""
        return (self.weights @ self._flat_means).reshape(self.shape)

    @property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Cov[x0] of the whole mixture, (n, n): that within the components plus that between them."""
        deviation = self._flat_means - self.mean.flatten()  # (K, n)
        between = deviation.T @ (self.weights[:, None] * deviation)
        return between + sum(w * self.component_covariance(k) for k, w in enumerate(self.weights))

    @abstractmethod
    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        """Return S_k as a dense matrix, (n, n)."""

    @abstractmethod
    def _centered_samples(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        """Return draws from N(0, S_k)."""

    @abstractmethod
    def _update(
        self, k: int, r: Float[Tensor, "B n"], alpha_t: float, sigma_t: float
    ) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, ""]]:
        """Return S_k C^-1 r, r^T C^-1 r and log det C for C = alpha_t^2 S_k + sigma_t^2 I."""

    def _white_noise(self, count: int, size: int, generator: Generator) -> Float[Tensor, "count size"]:
        return torch.randn(count, size, generator=generator, dtype=self.dtype, device=self.means.device)

    def sample(self, count: int, generator: Generator) -> Float[Tensor, "count *shape"]:
        """Return independent exact samples, (count, *shape)."""
        label = torch.multinomial(self.weights, count, replacement=True, generator=generator)  # (count,)
        x0 = self._flat_means[label]  # (count, n), a copy
        for k in label.unique().tolist():
            rows = label == k
            x0[rows] += self._centered_samples(k, int(rows.sum()), generator)
        return x0.reshape(count, *self.shape)

    def log_density(
        self, x: Float[Tensor, "B *shape"], alpha_t: float = 1.0, sigma_t: float = 0.0
    ) -> Float[Tensor, "B"]:
        """Return the log density (2) of alpha_t x0 + sigma_t eps at `x`, (B,), in nats; by default, that of x0.

        Raises:
            ValueError: if sigma_t = 0 and the covariance of a component is singular, as after a noiseless measurement.
        """
        return self._condition(x, alpha_t, sigma_t)[0].logsumexp(1)

    def denoise(self, x_t: Float[Tensor, "B *shape"], alpha_t: float, sigma_t: float) -> Float[Tensor, "B *shape"]:
        """Return E[x0 | x_t] by (3) and (4), shaped like x_t and of its dtype."""
        log_joint, means = self._condition(x_t, alpha_t, sigma_t)
        x0 = torch.einsum("bk,bkn->bn", log_joint.softmax(1), means)
        return x0.reshape(x_t.shape).to(x_t.dtype)

    def denoiser(self, schedule: Schedule) -> "ExactDenoiser":
        """Return the prior as a denoiser under a schedule t -> (alpha_t, sigma_t)."""
        return ExactDenoiser(self, schedule)

    def _condition(
        self, x_t: Float[Tensor, "B *shape"], alpha_t: float, sigma_t: float
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K n"]]:
        """Return log p(k, x_t) and E[x0 | x_t, k] for every component."""
        if x_t.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x_t.shape)}: this prior takes (B, {', '.join(map(str, self.shape))})")
        x_t = x_t.to(self.dtype).reshape(len(x_t), self.size)  # (B, n)
        log_joint, means = [], []
        for k, mean in enumerate(self._flat_means):
            gain, distance, log_det = self._update(k, x_t - alpha_t * mean, alpha_t, sigma_t)
            log_normal = -0.5 * (distance + log_det + self.size * math.log(2 * math.pi))
            log_joint.append(self.log_weights[k] + log_normal)
            means.append(mean + alpha_t * gain)
        return torch.stack(log_joint, 1), torch.stack(means, 1)

    def posterior(
        self, operator: Callable[[Tensor], Tensor], y: Float[Tensor, "*yshape"], noise: float
    ) -> "GaussianMixture":
        """Return p(x0 | y) for y = A x0 + noise n, by (5), computed in float64.

        Noise 0 is allowed. The variance of the noise is at least jitter = m eps max_k |A S_k A^T|, with eps that of
        float64. Eigenvalues of A S_k A^T below the jitter count as 0, as from repeated rows or from rows of a mask that
        measure nothing. Directions that the measurement determines up to rounding get variance 0, so that A x0 = y
        holds to about 1e-6 of the scale of the data. A component that is less than 1e-40 times as probable as the most
        probable one is dropped.

        Args:
            operator: A, linear, from (B, *shape) to (B, *yshape). Its matrix is formed by applying it to the identity.
            y: one measurement, (*yshape) or (1, *yshape).
            noise: the standard deviation of the noise, in units of y, at least 0.

        Raises:
            ValueError: if the noise is negative or not finite, if y has another shape than A x, or if A(0) is not 0.
        """
        if not (noise >= 0 and math.isfinite(noise)):
            raise ValueError(f"noise = {noise}: a standard deviation must be finite and at least 0")
        A = self._matrix(operator, y)  # (m, n)
        residuals = y.to(A).flatten() - self._flat_means.to(A) @ A.T  # (K, m)
        priors = [self.component_covariance(k).to(A) for k in range(self.components)]  # K of (n, n)
        roots, log_evidence = self._evidence([A @ S @ A.T for S in priors], residuals, noise)
        threshold = max(log_evidence) + math.log(_MIN_EVIDENCE_RATIO)
        kept = [k for k in range(self.components) if not log_evidence[k] < threshold]
        log_weights, means, eigenvalues, eigenvectors = [], [], [], []
        for k in kept:
            shift, lam, V = _kalman_update(priors[k], roots[k] @ A @ priors[k], roots[k] @ residuals[k])
            log_weights.append(log_evidence[k])
            means.append(self._flat_means[k].to(A) + shift)
            eigenvalues.append(lam)
            eigenvectors.append(V)
        parts = (torch.stack(part).to(self.dtype) for part in (log_weights, means, eigenvalues, eigenvectors))
        log_weights, means, eigenvalues, eigenvectors = parts
        return GaussianMixture._from_eigen(log_weights, means.reshape(-1, *self.shape), eigenvalues, eigenvectors)

    def _evidence(
        self, grams: list[Tensor], residuals: Float[Tensor, "K m"], noise: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return R_k^-1/2 (m, m), and log w_k + log N(y; A mu_k, R_k) up to a constant, for grams A S_k A^T."""
        jitter = max(float(torch.linalg.matrix_norm(gram, math.inf)) for gram in grams)
        jitter *= len(grams[0]) * torch.finfo(residuals.dtype).eps
        # The variance is the same for all components; otherwise their evidences could not be compared.
        variance = max(noise**2, jitter, torch.finfo(residuals.dtype).tiny)
        roots, log_evidence = [], []
        for k, gram in enumerate(grams):
            s2, U = torch.linalg.eigh(gram)
            total = s2.where(s2 > jitter, 0.0) + variance  # (m,), R = U diag(total) U^T
            roots.append(U.T / total.sqrt()[:, None])  # root^T root = R^-1
            distance = (roots[k] @ residuals[k]).square().sum()
            log_evidence.append(self.log_weights[k].to(residuals) - 0.5 * (distance + total.log().sum()))
        return roots, log_evidence

    def _matrix(self, operator: Callable[[Tensor], Tensor], y: Tensor) -> Float[Tensor, "m n"]:
        """Return the dense matrix of `operator` in float64, after checks of the shape of y and of A(0) = 0."""
        basis = torch.eye(self.size + 1, self.size, dtype=self.dtype, device=self.means.device)  # last row: zero
        columns = operator(basis.reshape(-1, *self.shape))  # (n + 1, *yshape)
        if y.shape not in (columns.shape[1:], (1, *columns.shape[1:])):
            raise ValueError(f"y has shape {tuple(y.shape)}: the operator measures {tuple(columns.shape[1:])}")
        if columns[-1].any():
            raise ValueError("operator(0) is not 0: the operator is not linear; subtract its constant from y instead")
        return columns[:-1].reshape(self.size, -1).T.double()


def _kalman_update(
    S: Float[Tensor, "n n"], G: Float[Tensor, "m n"], r: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Return the shift of the mean, and eigenvalues and eigenvectors of the covariance, for G = R^-1/2 A S."""
    lam, V = torch.linalg.eigh(S - G.T @ G)
    flat = 4 * len(S) * torch.finfo(S.dtype).eps * torch.linalg.matrix_norm(S, math.inf)
    return G.T @ r, lam.where(lam > flat, 0.0), V


@dataclass(frozen=True)
class ExactDenoiser:
    """E[x0 | x_t] of a prior or of a posterior, under a schedule t -> (alpha_t, sigma_t)."""

    prior: Mixture
    schedule: Schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.dtype

    def __call__(self, x_t: Float[Tensor, "B *shape"], t: float) -> Float[Tensor, "B *shape"]:
        return self.prior.denoise(x_t, *self.schedule(t))


class GaussianMixture(Mixture):
    """A mixture of Gaussians with dense covariances, each stored as its eigendecomposition V diag(lambda) V^T.

    Args:
        weights: (K,), positive, with sum 1.
        means: (K, *shape).
        covariances: (K, n, n), symmetric and positive semi-definite; n is the product of `shape`.

    Raises:
        ValueError: for parameters of other shapes or out of range.
    """

    eigenvalues: Float[Tensor, "K n"]
    eigenvectors: Float[Tensor, "K n n"]

    def __init__(
        self,
        weights: Float[Tensor, "K"],
        means: Float[Tensor, "K *shape"],
        covariances: Float[Tensor, "K n n"],
    ):
        super().__init__(_log_weights(weights, means), means)
        _check_shape("covariances", covariances, (self.components, self.size, self.size))
        tolerance = 10 * self.size * torch.finfo(covariances.dtype).eps * covariances.abs().max()
        if not ((covariances - covariances.mT).abs() <= tolerance).all():
            raise ValueError("covariances are not symmetric (or not finite): give (S + S.mT) / 2")
        lam, V = torch.linalg.eigh(covariances.double())
        if lam.min() < -tolerance:
            raise ValueError(f"covariances are not positive semi-definite: an eigenvalue is {lam.min():.3g}")
        self.eigenvalues, self.eigenvectors = lam.clamp_min(0).to(self.dtype), V.to(self.dtype)

    @classmethod
    def _from_eigen(
        cls, log_weights: Tensor, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor
    ) -> "GaussianMixture":
        mixture = cls.__new__(cls)
        Mixture.__init__(mixture, log_weights, means)
        mixture.eigenvalues, mixture.eigenvectors = eigenvalues, eigenvectors
        return mixture

    def component_covariance(self, k: int) -> Float[Tensor, "n n"]:
        V = self.eigenvectors[k]
        return (V * self.eigenvalues[k]) @ V.T

    def _centered_samples(self, k: int, count: int, generator: Generator) -> Float[Tensor, "count n"]:
        noise = self._white_noise(count, self.size, generator)
        return (noise * self.eigenvalues[k].sqrt()) @ self.eigenvectors[k].T

    def _update(self, k: int, r: Tensor, alpha_t: float, sigma_t: float) -> tuple[Tensor, Tensor, Tensor]:
        lam, V = self.eigenvalues[k], self.eigenvectors[k]
        c = _checked_variance(alpha_t**2 * lam + sigma_t**2)  # (n,), eigenvalues of C
        z = r @ V  # (B, n)
        return (z * (lam / c)) @ V.T, (z.square() / c).sum(1), c.log().sum()


class Gaussian(GaussianMixture):
    """N(mean, covariance), a mixture with one component.

    Args:
        mean: (*shape).
        covariance: (n, n), symmetric and positive semi-definite.
    """

    def __init__(self, mean: Float[Tensor, "*shape"], covariance: Float[Tensor, "n n"]):
        super().__init__(mean.new_ones(1), mean[None], covariance[None])


def _checked_variance(variance: Tensor) -> Tensor:
    """Return `variance`; raise ValueError unless it is positive."""
    if not variance.min() > 0:
        raise ValueError("a component has no density: its covariance is singular and sigma_t = 0; use sigma_t > 0")
    return variance


def _log_weights(weights: Tensor, means: Tensor) -> Tensor:
    """Return log weights (K,) in the dtype of the means; raise ValueError unless they are positive, with sum 1."""
    if not means.is_floating_point():
        raise ValueError(f"means have dtype {means.dtype}: a floating-point dtype is needed")
    if weights.ndim != 1 or len(weights) == 0 or len(weights) != len(means):
        raise ValueError(
            f"weights have shape {tuple(weights.shape)} and means {tuple(means.shape)}: give (K,) and (K, ...)"
        )
    total = float(weights.sum())
    if not ((weights > 0).all() and abs(total - 1) < 1e-5):  # weights in float32 pass; they are normalized anyway
        raise ValueError(f"weights = {weights.tolist()}: they must be positive and sum to one, not to {total:.6g}")
    return weights.to(means.dtype).log()


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError for another shape."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}: it must have {tuple(shape)}")
