"""Metrics on pictures: PSNR, and perceptual distances on EfficientNet-Lite0 features.

`FeatureDistance`, of two pictures, is eq. 1 of Zhang et al., 'The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric' (2018), with all channel weights equal to one:

    d(a, b) = mean over stages l of mean over positions of || u_l(a) - u_l(b) ||^2

u_l are the features after stage l, normalized to unit length over the channels at each position.

`frechet_distance`, of two sets of pictures, is eq. 6 of Heusel et al., 'GANs Trained by a Two Time-Scale Update Rule
Converge to a Local Nash Equilibrium' (2017):

    d^2 = ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

m and C are the mean and the covariance of the features of a set.

The values are not comparable with LPIPS or FID, which use other networks; report them as 'EfficientNet-Lite0 features'.
Fréchet distances are comparable only between sets of the same sizes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.features import EfficientNetLite0


class FeatureDistance(EfficientNetLite0):
    """Perceptual distance between pictures; 0 for identical pictures, and symmetric.

    Args:
        stages: How many of the network's five stages to use.

    Raises:
        AdhereError: The packages of the extra `style` are not installed.
        ValueError: `stages` is not in 1 ... 5.
    """

    def forward(self, a: Tensor, b: Tensor) -> Float[Tensor, "B"]:
        """Return the distance of each pair.

        Args:
            a: Pictures (B, 3, H, W) in [-1, 1], H and W at least 32.
            b: As `a`, of the same shape.

        Raises:
            ValueError: The shapes differ, or are not (B, 3, H, W) with H and W at least 32.
        """
        if a.shape != b.shape:
            raise ValueError(f"both pictures need the same shape, but these are {tuple(a.shape)}, {tuple(b.shape)}")
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(_unit(f) - _unit(g)).square().sum(1).mean((1, 2)) for f, g in pairs]).mean(0)  # (B,)

    def pooled(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Return the features after the last stage, averaged over positions: the input of `frechet_distance`."""
        return self.features(x)[-1].mean((2, 3))


def psnr(
    a: Float[Tensor, "B *shape"],
    b: Float[Tensor, "B *shape"],
    mask: Tensor | None = None,
    *,
    data_range: int | float = 2,
) -> Float[Tensor, "B"]:
    """Return the peak signal-to-noise ratio of each pair, 10 log10(data_range^2 / MSE).

    Args:
        a: Pictures (B, ...).
        b: Pictures of the same shape.
        mask: Weights of the squared errors, broadcastable to the pictures, such as (1, 1, H, W); None: all 1.
        data_range: Difference between the largest and the smallest possible value; 2 for pictures in [-1, 1].

    Returns:
        (B,) in dB, infinite for identical pictures.
    """
    squares = (a - b).square()
    weights = torch.ones_like(a) if mask is None else mask.to(a).expand_as(a)
    mse = (weights * squares).flatten(1).sum(1) / weights.flatten(1).sum(1)
    return 10 * torch.log10(data_range**2 / mse)


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Return d^2 between two sets of features, each modeled as a Gaussian.

    Args:
        a: Features (N, D) of the first set, N >= 2.
        b: Features (M, D) of the second set, M >= 2.

    Raises:
        ValueError: A set has fewer than two pictures.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a covariance needs at least 2")
    a, b = a.double(), b.double()
    return _gaussian_frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def _gaussian_frechet_distance(
    mean_a: Float[Tensor, "D"], cov_a: Float[Tensor, "D D"], mean_b: Float[Tensor, "D"], cov_b: Float[Tensor, "D D"]
) -> float:
    """Return d^2 between two Gaussians, whose covariances may be singular.

    tr (C_a C_b)^(1/2) = tr (R C_b R)^(1/2) with R = C_a^(1/2). R C_b R is symmetric, so its eigenvalues are real.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(cov_a)
    root = (eigenvectors * eigenvalues.clamp_min(0).sqrt()) @ eigenvectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def _unit(f: Tensor) -> Tensor:
    return f / f.norm(dim=1, keepdim=True).clamp_min(1e-10)
