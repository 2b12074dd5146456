"""Experts: networks for low noise only, used as the component `unet_2` of a pixel-space model; here, `FFDNet`.

At low noise, a denoiser needs no context. There, a convolutional network with a tenth of the parameters of a
`UNet2DModel` is better at the same cost.

Source: Zhang, Zuo and Zhang, *FFDNet: toward a fast and flexible solution for CNN-based image denoising* (2018). Two
networks by noise level: Balaji et al., *eDiff-I* (2022).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

from adhere.core.denoisers import Denoiser
from adhere.core.schedules import Schedule
from adhere.errors import InvalidInput
from adhere.io.images import pad_to_multiple

_NOISE_CHANNELS = 3


class FFDNet(ModelMixin, ConfigMixin):
    """The denoiser E[x0 | x0 + sigma eps] of RGB pictures in [0, 1], D(x, sigma) = x - F(x, sigma).

    F is a chain of 3x3 convolutions and ReLUs at half resolution, on 2x2 pixel-unshuffled RGB with the noise level as
    three further channels. The batch normalizations of the paper are folded into the convolutions.

    Args:
        channels: the number of hidden channels.
        num_layers: the number of convolutions, at least 2.

    Raises:
        InvalidInput: for smaller numbers, or pictures with odd sides.
    """

    @register_to_config
    def __init__(self, channels: int = 96, num_layers: int = 12) -> None:
        super().__init__()
        if channels < 1 or num_layers < 2:
            raise InvalidInput(f"channels = {channels}, num_layers = {num_layers}: at least 1 and 2 are needed")
        sides = [12 + _NOISE_CHANNELS, *[channels] * (num_layers - 1), 12]
        self.convs = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise(sides))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised pictures (B, 3, H, W), in float32 and not clipped.

        Args:
            x_t: noisy RGB pictures (B, 3, H, W) with even H and W, where black is 0 and white is 1.
            sigma: the standard deviation of the noise of each picture, (B,), in the same units, above 0.
        """
        if x_t.shape[-2] % 2 or x_t.shape[-1] % 2:
            given = f"FFDNet takes pictures with even sides, not {tuple(x_t.shape[-2:])}"
            raise InvalidInput(f"{given}: pad them; as_denoiser does it")
        x_t = x_t.float()
        unshuffled = pixel_unshuffle(x_t, 2)  # (B, 12, H/2, W/2)
        noise_map = sigma.float().view(-1, 1, 1, 1).expand(-1, _NOISE_CHANNELS, *unshuffled.shape[2:])
        inputs = torch.cat([noise_map, unshuffled], 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_t.device.type, enabled=False):  # bfloat16 would round away noise of sigma = 2/255
            hidden = relu(self.convs[0](inputs.to(self.dtype)), inplace=True)
        for conv in self.convs[1:-1]:
            hidden = relu(conv(hidden), inplace=True)
        return x_t - pixel_shuffle(self.convs[-1](hidden).float(), 2)

    def as_denoiser(self, schedule: Schedule) -> Denoiser:
        """Return the network as E[x0 | x_t] for x_t = alpha_t x0 + sigma_t eps and pictures x0 in [-1, 1]."""
        return _PictureDenoiser(self, schedule)


@dataclass(frozen=True)
class _PictureDenoiser:
    network: FFDNet
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
