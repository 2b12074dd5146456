"""Pixel-space models: any `UNet2DModel` in the DDPM/DDIM layout of diffusers, and adhere-photo's unshuffled one.

    picture x_t (B, 3, H, W) --unshuffle r--> (B, 3 r^2, H/r, W/r) --UNet2DModel--> out --shuffle r--> (B, 3, H, W)

The layout is read from the network itself: 3 input channels are RGB (r = 1), 12 are RGB unshuffled by r = 2.
Unshuffling is orthogonal, white noise stays white, so diffusion, constraints and solvers all live in pixels. A network
with twice as many output channels has learned variances as well (Nichol & Dhariwal, 2021); they are not used.
"""

import math
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser, Prediction
from adhere.core.schedule import Schedule
from adhere.errors import AdhereError
from adhere.families.schedules import noise_schedule
from adhere.images import pad_to_multiple
from adhere.pipeline import ConstrainedPipeline


class PixelPipeline(ConstrainedPipeline, DDIMPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over a pixel-space `UNet2DModel` of RGB pictures."""

    tile = 768  # a picture of this size takes about 0.6 GB
    unet: UNet2DModel
    scheduler: Any

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, octaves: int = 0) -> None:
        """octaves: how often pictures may be halved for the network, of those scales it was trained on.

        Raises AdhereError for a network the family cannot run.
        """
        _check_network(unet)
        if not isinstance(octaves, int) or octaves < 0:
            raise AdhereError(f"octaves = {octaves!r} in model_index.json: a whole number from 0")
        super().__init__(unet, scheduler)  # type: ignore[arg-type]
        self.register_modules(scheduler=scheduler)  # as given: DDIMPipeline makes a DDIMScheduler of it, and loses some
        self.octaves = octaves
        self.register_to_config(octaves=octaves)

    @property
    def unshuffle(self) -> int:
        """r, the side of the pixel blocks the network takes as channels."""
        return math.isqrt(int(self.unet.config["in_channels"]) // 3)

    @property
    def multiple(self) -> int:
        return self.unshuffle * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def native_size(self) -> tuple[int, int]:
        side = int(self.unet.config["sample_size"] or 256 // self.unshuffle) * self.unshuffle
        return side, side

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return noise_schedule(self.scheduler)[0]

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        conditioning.refuse_text()
        r, channels = self.unshuffle, int(self.unet.config["in_channels"])

        def network(x_t: Tensor, t: float) -> Tensor:
            height, width = x_t.shape[-2:]  # of a halved picture, no multiple
            blocks = pixel_unshuffle(pad_to_multiple(x_t, self.multiple), r).contiguous(
                memory_format=torch.channels_last
            )
            out = self.unet(blocks, torch.tensor(t, device=x_t.device), return_dict=False)[0]
            out = out[:, :channels]  # learned variances, when there are any, come after
            return pixel_shuffle(out, r)[..., :height, :width]

        return Prediction(network, *noise_schedule(self.scheduler), self.unet.dtype)


def _check_network(unet: UNet2DModel) -> None:
    channels, out = int(unet.config["in_channels"]), int(unet.config["out_channels"])
    if channels not in (3, 12):
        raise AdhereError(f"the network takes {channels} channels: 3 (RGB) or 12 (RGB unshuffled 2x2) are understood")
    if out not in (channels, 2 * channels):
        given = f"the network takes {channels} channels and returns {out}"
        raise AdhereError(f"{given}: {channels}, or {2 * channels} with learned variances, are understood")
    if unet.config["num_class_embeds"] or unet.config["class_embed_type"]:
        raise AdhereError("the network asks for class labels: only unconditional networks are understood")
