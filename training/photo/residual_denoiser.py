"""A residual convolutional denoiser of photographs: the low-noise expert of adhere-photo.

The network F works at half resolution, on 2x2 pixel-unshuffled RGB with the noise level as three further input
channels. The denoiser is preconditioned as in Karras et al. (EDM, 2022, equation 7 and table 1), about mid-gray:

    D(x, sigma) = 1/2 + c_skip (x - 1/2) + c_out F(c_in (x - 1/2), c_noise),
    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / (2 sqrt(sigma^2 + s^2)),  c_noise = log(sigma / s) / 2,

with s = `SIGMA_DATA`, the standard deviation of pixel values in [0, 1].
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

SIGMA_DATA = 0.25
NOISE_CHANNELS = 3  # as FFDNet has


def conv3x3(in_channels: int, out_channels: int, gain: float = math.sqrt(2)) -> nn.Conv2d:
    """Return a 3x3 convolution with zero padding.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        gain: The weights are drawn from N(0, gain^2 / fan_in). The default keeps the variance before a ReLU
            (He et al., 2015).

    Returns:
        The convolution, its bias zero.
    """
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=gain / math.sqrt(9 * in_channels))
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv


class ResidualBlock(nn.Module):
    """h + conv2(relu(conv1(h))), without normalization."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels, gain=0.3)  # a stack of blocks begins close to the identity

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv2(relu(self.conv1(hidden)))


class ResidualDenoiser(nn.Module):
    """The denoiser E[x0 | x_t] for x_t = x0 + sigma eps.

    Args:
        channels: Number of hidden channels.
        num_blocks: Number of residual blocks.
    """

    def __init__(self, channels: int = 96, num_blocks: int = 5):
        super().__init__()
        self.conv_in = conv3x3(12 + NOISE_CHANNELS, channels)
        self.blocks = nn.ModuleList([ResidualBlock(channels) for _ in range(num_blocks)])
        self.conv_out = conv3x3(channels, 12, gain=0.1)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Denoise pictures.

        Args:
            x_t: Noisy RGB pictures, (B, 3, H, W) with H and W even, where black is 0 and white is 1.
            sigma: Standard deviation of the noise of each picture, (B,), in the same units, greater than 0.

        Returns:
            The posterior mean, (B, 3, H, W), not clipped.
        """
        sigma = sigma.view(-1, 1, 1, 1)
        variance = sigma**2 + SIGMA_DATA**2
        c_skip, c_out, c_in = SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance.sqrt(), 0.5 / variance.sqrt()
        c_noise = (sigma / SIGMA_DATA).log() / 2
        centered = x_t - 0.5
        unshuffled = pixel_unshuffle(c_in * centered, 2)  # (B, 12, H/2, W/2)
        noise_map = c_noise.expand(-1, NOISE_CHANNELS, *unshuffled.shape[2:])
        inputs = torch.cat([noise_map, unshuffled], 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_t.device.type, enabled=False):  # bfloat16 would round away noise of sigma = 2/255
            hidden = self.conv_in(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return 0.5 + c_skip * centered + c_out * pixel_shuffle(self.conv_out(hidden), 2)


def convert_prototype(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an earlier script (`net.first`, `net.body.0.a`, ...) to the names of `ResidualDenoiser`."""
    patterns = (
        (r"^net\.first\.", "conv_in."),
        (r"^net\.last\.", "conv_out."),
        (r"^net\.body\.(\d+)\.a\.", r"blocks.\1.conv1."),
        (r"^net\.body\.(\d+)\.b\.", r"blocks.\1.conv2."),
    )
    converted = {}
    for name, value in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    return converted


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights of a `ResidualDenoiser`, those of the earlier script included.

    Args:
        path: A safetensors file, of any floating-point type.

    Returns:
        The state dictionary, float32.
    """
    return {name: value.float() for name, value in convert_prototype(load_file(path)).items()}
