"""Losses on pictures, for constraints that are not a measurement y = A x0.

Each loss maps pictures (B, 3, H, W) in [-1, 1] to (B,) and becomes a constraint as `Loss(fn)`:

    GramDistance      style of a picture:      mean over l of ||G_l(x) - G_l(ref)||_F / ||G_l(ref)||_F,  G = F F^T / N
    SilhouetteLoss    position of an object:   cross-entropy of p = sigmoid((d - threshold) / softness) and the mask

F_l (C, N) are the features of layer l at N positions; d is the RMS distance of a pixel's color from the background's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_Features = Callable[[Tensor], Sequence[Tensor]]  # pictures (B, 3, H, W) -> for each layer (B, C, N) or (B, C, h, w)


@dataclass(frozen=True, eq=False)
class GramDistance:
    """Relative Frobenius distance between the Gram matrices of a picture and of a reference, averaged over layers.

    The value is 0 for the same style and about 1 for unrelated styles. It is the style loss of Graikos et al., 'Fast
    constrained sampling in pre-trained diffusion models' (2024), divided by the norm of the reference's Gram matrix so
    that all layers have the same weight.

    Args:
        features: A differentiable function that returns the features of each layer.
        reference: (1, 3, H, W) or (B, 3, H, W) in [-1, 1]; H and W may differ from those of the pictures.
    """

    features: _Features
    reference: Float[Tensor, "n 3 H W"]

    @cached_property
    def _reference_grams(self) -> list[tuple[Tensor, Tensor]]:
        """G(ref) and its norm for each layer; normal tensors, even when first computed in inference mode."""
        with torch.inference_mode(False), torch.no_grad():
            grams = [_gram(layer) for layer in self.features(self.reference)]
            return [(gram, torch.linalg.matrix_norm(gram).clamp_min(1e-12)) for gram in grams]

    def __call__(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Return the distance of each picture."""
        layers = zip(self.features(x), self._reference_grams, strict=True)
        return torch.stack([torch.linalg.matrix_norm(_gram(f) - g) / norm for f, (g, norm) in layers]).mean(0)


@dataclass(frozen=True, eq=False)
class SilhouetteLoss:
    """Cross-entropy, in nats, between a mask and the part of a picture that differs from the background.

    The inside and the outside of the mask have the same total weight, regardless of their areas.

    Args:
        mask: (1, 1, H, W) or (B, 1, H, W) in [0, 1], 1 = object.
        background: The background's color, (1, 3, 1, 1) in [-1, 1].
        threshold: The RMS color distance at which a pixel is object or background with equal probability.
        softness: The RMS color distance that changes the logit by one.
    """

    mask: Float[Tensor, "n 1 H W"]
    background: Float[Tensor, "1 3 1 1"]
    threshold: float = 0.3
    softness: float = 0.1

    def __call__(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Return the loss of each picture."""
        distance = ((x - self.background).square().mean(1, keepdim=True) + 1e-6).sqrt()  # differentiable at 0
        logits = (distance - self.threshold) / self.softness  # (B, 1, H, W)
        inside, outside = self.mask, 1 - self.mask
        weight = (inside / inside.sum((1, 2, 3), keepdim=True) + outside / outside.sum((1, 2, 3), keepdim=True)) / 2
        losses = binary_cross_entropy_with_logits(logits, inside.expand_as(logits), reduction="none")
        return (weight * losses).sum((1, 2, 3))


def _gram(features: Tensor) -> Float[Tensor, "B C C"]:
    """Return the Gram matrix: the products of channels of (B, C, N) or (B, C, h, w), averaged over positions.

    Gatys, Ecker and Bethge, 'Image style transfer using convolutional neural networks' (2016), eq. 3.
    """
    flat = features.flatten(2)  # (B, C, N)
    return flat @ flat.mT / flat.shape[-1]
