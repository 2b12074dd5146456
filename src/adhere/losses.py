"""Losses of pictures: what no measurement y = A x0 says. Each maps (B, 3, H, W) in [-1, 1] to (B,), for `Loss(fn)`.

    GramDistance      how a picture is painted:   mean over l of |G_l(x) - G_l(ref)|_F / |G_l(ref)|_F,   G = F F^T / N
    SilhouetteLoss    where something is:         cross-entropy of p = sigmoid((d - threshold) / softness) and the mask

with F_l (C, N) the features of layer l, and d the distance of a pixel's colour from the background's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Features = Callable[[Tensor], Sequence[Tensor]]  # pictures (B, 3, H, W) -> of each layer (B, C, N) or (B, C, h, w)


def gram(features: Tensor) -> Float[Tensor, "B C C"]:
    """(B, C, N) or (B, C, h, w) -> the means over positions of the products of channels: places are forgotten.

    Gatys, Ecker and Bethge, *Image style transfer using convolutional neural networks* (2016), eq. 3.
    """
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[-1]


@dataclass(frozen=True, eq=False)
class GramDistance:
    """Frobenius distance of Gram matrices from those of a reference (1 or B, 3, H, W), relative; means over layers.

    0: the same style; about 1: nothing in common. The style loss of Graikos et al., *Fast constrained sampling in
    pre-trained diffusion models*, made relative so that layers count the same. The reference may be of another size.
    """

    features: Features
    reference: Float[Tensor, "n 3 H W"]

    @cached_property
    def _grams(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, G(ref) and its norm; plain tensors, even if asked for under inference mode first."""
        with torch.inference_mode(False), torch.no_grad():
            grams = [gram(layer) for layer in self.features(self.reference)]
            return [(one, torch.linalg.matrix_norm(one).clamp_min(1e-12)) for one in grams]

    def __call__(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        layers = zip(self.features(x), self._grams, strict=True)
        return torch.stack([torch.linalg.matrix_norm(gram(f) - g) / norm for f, (g, norm) in layers]).mean(0)


@dataclass(frozen=True, eq=False)
class SilhouetteLoss:
    """Cross-entropy, in nats, between what stands out from the background and a mask (1 or B, 1, H, W) in [0, 1].

    Inside and outside count the same, however large. background: (1, 3, 1, 1), in [-1, 1]. threshold: the RMS distance
    of a colour from it that is as likely to be inside as outside. softness: that distance over one unit of the logit.
    """

    mask: Float[Tensor, "n 1 H W"]
    background: Float[Tensor, "1 3 1 1"]
    threshold: float = 0.3
    softness: float = 0.1

    def __call__(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        distance = ((x - self.background).square().mean(1, keepdim=True) + 1e-6).sqrt()  # a gradient at 0 too
        logits = (distance - self.threshold) / self.softness
        inside, outside = self.mask, 1 - self.mask
        weight = (inside / inside.sum((1, 2, 3), keepdim=True) + outside / outside.sum((1, 2, 3), keepdim=True)) / 2
        losses = binary_cross_entropy_with_logits(logits, inside.expand_as(logits), reduction="none")
        return (weight * losses).sum((1, 2, 3))
