"""Experts: networks for low noise only, the component `unet_2` of a pixel model; here, `ResidualDenoiser`.

At low noise, a denoiser needs no context, so a convolutional network of a tenth of the parameters of a `UNet2DModel`
is better at the same cost. `ResidualDenoiser` works at half resolution, on 2x2 pixel-unshuffled RGB with the noise
level as three further channels. It is preconditioned about mid-gray:

    D(x, sigma) = 1/2 + c_skip (x - 1/2) + c_out F(c_in (x - 1/2), c_noise),
    c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),
    c_in = 1 / (2 sqrt(sigma^2 + s^2)),  c_noise = log(sigma / s) / 2,

with s = 1/4, the standard deviation of pixel values in [0, 1].

Source: Karras et al., *Elucidating the design space of diffusion-based generative models* (2022), equation 7 and table
1; the noise level as an input map: Zhang et al., *FFDNet* (2018).
"""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

from adhere.core.denoisers import Denoiser
from adhere.core.schedules import Schedule
from adhere.io.images import pad_to_multiple

_SIGMA_DATA = 0.25
_NOISE_CHANNELS = 3


class ResidualDenoiser(ModelMixin, ConfigMixin):
    """The denoiser E[x0 | x0 + sigma eps] of RGB pictures in [0, 1].

    Args:
        channels: the number of hidden channels.
        num_blocks: the number of residual blocks.
    """

    @register_to_config
    def __init__(self, channels: int = 96, num_blocks: int = 5) -> None:
        super().__init__()
        self.conv_in = _conv3x3(12 + _NOISE_CHANNELS, channels)
        self.blocks = nn.ModuleList([_ResidualBlock(channels) for _ in range(num_blocks)])
        self.conv_out = _conv3x3(channels, 12, gain=0.1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised pictures (B, 3, H, W), in float32 and not clipped.

        Args:
            x_t: noisy RGB pictures (B, 3, H, W) with even H and W, where black is 0 and white is 1.
            sigma: the standard deviation of the noise of each picture, (B,), in the same units, above 0.
        """
        x_t, sigma = x_t.float(), sigma.float().view(-1, 1, 1, 1)
        variance = sigma**2 + _SIGMA_DATA**2
        c_skip, c_out, c_in = _SIGMA_DATA**2 / variance, sigma * _SIGMA_DATA / variance.sqrt(), 0.5 / variance.sqrt()
        c_noise = (sigma / _SIGMA_DATA).log() / 2
        centered = x_t - 0.5
        unshuffled = pixel_unshuffle(c_in * centered, 2)  # (B, 12, H/2, W/2)
        noise_map = c_noise.expand(-1, _NOISE_CHANNELS, *unshuffled.shape[2:])
        inputs = torch.cat([noise_map, unshuffled], 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_t.device.type, enabled=False):  # bfloat16 would round away noise of sigma = 2/255
            hidden = self.conv_in(inputs.to(self.conv_in.weight.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        return 0.5 + c_skip * centered + c_out * pixel_shuffle(self.conv_out(hidden).float(), 2)

    def as_denoiser(self, schedule: Schedule) -> Denoiser:
        """Return the network as E[x0 | x_t] for x_t = alpha_t x0 + sigma_t eps and pictures x0 in [-1, 1]."""
        return _PictureDenoiser(self, schedule)


@dataclass(frozen=True)
class _PictureDenoiser:
    network: ResidualDenoiser
    schedule: Schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        alpha_t, sigma_t = self.schedule(t)
        height, width = x_t.shape[-2:]  # a down-sampled picture may have odd sides
        sigma = x_t.new_full((len(x_t),), sigma_t / alpha_t / 2)
        x0 = 2 * self.network(pad_to_multiple((x_t / alpha_t + 1) / 2, 2), sigma) - 1
        return x0[..., :height, :width].to(x_t.dtype)


class _ResidualBlock(nn.Module):
    """h + conv2(relu(conv1(h))), without normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, channels)
        self.conv2 = _conv3x3(channels, channels, gain=0.3)  # a stack of blocks begins close to the identity

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv2(relu(self.conv1(hidden)))


def _conv3x3(in_channels: int, out_channels: int, gain: float = math.sqrt(2)) -> nn.Conv2d:
    """Return a 3x3 convolution with weights from N(0, gain^2 / fan_in); sqrt(2) keeps the variance before a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=gain / math.sqrt(9 * in_channels))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
