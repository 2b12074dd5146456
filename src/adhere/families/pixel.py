"""Pixel-space models: any `UNet2DModel` in the DDPM/DDIM layout of diffusers, and adhere-photo's unshuffled one.

    picture x_t (B, 3, H, W) --unshuffle r--> (B, 3 r^2, H/r, W/r) --UNet2DModel--> out --shuffle r--> (B, 3, H, W)

The layout is read from the network itself: 3 input channels are RGB (r = 1), 12 are RGB unshuffled by r = 2. Unshuffling is
orthogonal, white noise stays white, so diffusion, constraints and solvers all live in pixels. A network with twice as many
output channels has learned variances as well (Nichol & Dhariwal, 2021); they are not used.
"""

import math
from typing import cast

import torch
from diffusers import DDIMPipeline, UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from adhere.core.denoise import Denoiser, Prediction
from adhere.core.schedule import Discrete, PredictionType
from adhere.errors import AdhereError
from adhere.pipeline import ConstrainedPipeline


class PixelPipeline(ConstrainedPipeline, DDIMPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over a pixel-space `UNet2DModel` of RGB pictures."""

    unet: UNet2DModel

    @property
    def unshuffle(self) -> int:
        """r, the side of the pixel blocks the network takes as channels."""
        channels = int(self.unet.config["in_channels"])
        r = math.isqrt(channels // 3)
        if 3 * r * r != channels:
            raise AdhereError(
                f"the network takes {channels} channels: 3 (RGB) or 12 (RGB unshuffled 2x2) are understood"
            )
        return r

    @property
    def multiple(self) -> int:
        return self.unshuffle * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def schedule(self) -> Discrete:
        table = getattr(self.scheduler, "alphas_cumprod", None)
        if table is None:
            raise AdhereError(
                f"{type(self.scheduler).__name__} has no alphas_cumprod: its noise schedule cannot be read"
            )
        return Discrete(tuple(table.double().tolist()))

    def denoiser(self) -> Denoiser:
        r, channels = self.unshuffle, int(self.unet.config["in_channels"])

        def network(x_t: Tensor, t: float) -> Tensor:
            blocks = pixel_unshuffle(x_t, r).contiguous(memory_format=torch.channels_last)
            out = self.unet(blocks, torch.tensor(t, device=x_t.device), return_dict=False)[0]
            return pixel_shuffle(out[:, :channels], r)  # learned variances, when there are any, come after

        prediction = cast(PredictionType, self.scheduler.config["prediction_type"])
        return Prediction(network, self.schedule, prediction, self.unet.dtype)
