"""Distances on EfficientNet-Lite0 features: pictures that look alike are near, whatever their pixels.

Of a pair of pictures, `FeatureDistance`:

    d(a, b) = mean over stages l of mean over positions of || u_l(a) - u_l(b) ||^2

with u_l the features after stage l, their channels scaled to unit length at each position: the construction of Zhang et
al., 'The Unreasonable Effectiveness of Deep Features as a Perceptual Metric' (2018), eq. 1, with all channel weights
one. Of two sets of pictures, `frechet_distance`, after Heusel et al., 'GANs Trained by a Two Time-Scale Update Rule
Converge to a Local Nash Equilibrium' (2017), eq. 6:

    d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

with m, C the mean and covariance of the features of a set. Their numbers compare with their own only: call them
'EfficientNet-Lite0 features'; Fréchet distances also only between sets of the same sizes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.features import EfficientNetLite0


class FeatureDistance(EfficientNetLite0):
    """distance(a, b): (B, 3, H, W) pictures in [-1, 1] -> (B,), zero for identical pictures and symmetric."""

    def forward(self, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distances of a batch of pairs."""
        if a.shape != b.shape:
            raise ValueError(f"the pictures of a pair have one shape, but these are {tuple(a.shape)}, {tuple(b.shape)}")
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(_unit(f) - _unit(g)).square().sum(1).mean((1, 2)) for f, g in pairs]).mean(0)  # (B,)

    def pooled(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """The means over positions of the features after the last stage: what a picture shows, wherever."""
        return self.features(x)[-1].mean((2, 3))


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """d^2 of two sets of features, each taken as a Gaussian. ValueError for fewer than two of either."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a covariance takes at least 2")
    a, b = a.double(), b.double()
    return gaussian_frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def gaussian_frechet_distance(
    mean_a: Float[Tensor, "D"], cov_a: Float[Tensor, "D D"], mean_b: Float[Tensor, "D"], cov_b: Float[Tensor, "D D"]
) -> float:
    """d^2 of two Gaussians; singular covariances are welcome.

    tr (C_a C_b)^(1/2) = tr (R C_b R)^(1/2) with R = C_a^(1/2): symmetric throughout, so eigenvalues stay real.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def _unit(f: Tensor) -> Tensor:
    return f / f.norm(dim=1, keepdim=True).clamp_min(1e-10)
