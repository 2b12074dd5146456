"""Pixel-space models: any `UNet2DModel` in diffusers' DDPM or DDIM layout, and the unshuffled one of adhere-photo.

    picture x_t (B, 3, H, W) --unshuffle r--> (B, 3 r^2, H/r, W/r) --UNet2DModel--> out --shuffle r--> (B, 3, H, W)

The network's input channels tell the layout: 3 are RGB (r = 1), 12 are RGB unshuffled by r = 2. Unshuffling is
orthogonal, so white noise stays white, and diffusion, constraints and solvers work on pixels. A network with twice as
many output channels also predicts variances (Nichol and Dhariwal, 2021), which are not used.

A second network, `unet_2`, may take over at low noise, as `transformer_2` does in diffusers' WanPipeline.
"""

import math
from typing import Any, Optional

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from adhere.core.denoisers import Denoiser, ExpertDenoiser, NetworkDenoiser
from adhere.core.schedules import Schedule
from adhere.errors import AdhereError
from adhere.io.images import pad_to_multiple
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.experts import FFDNet
from adhere.pipelines.prompts import PromptInputs
from adhere.pipelines.schedulers import noise_schedule


class PixelPipeline(ConstrainedPipeline, DDIMPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A pixel-space `UNet2DModel` of RGB pictures under constraints.

    Args:
        unet: the network.
        scheduler: a diffusers scheduler, of which only the noise levels are used.
        max_downsamplings: how many times pictures may be halved at high noise, for a network that was trained at
            several scales.
        unet_2: the network for low noise, if there is one.
        boundary_log_snr: the log-SNR from which on `unet_2` is used, in nats.

    Raises:
        AdhereError: for a network that is not understood, or for settings out of range.
    """

    model_cpu_offload_seq = "unet->unet_2"
    _optional_components = ["unet_2"]  # noqa: RUF012  # as in diffusers

    tile_size = 768  # a picture of this side takes about 0.6 GB
    unet: UNet2DModel
    unet_2: FFDNet | None
    scheduler: Any

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        max_downsamplings: int = 0,
        unet_2: Optional[FFDNet] = None,  # noqa: UP045  # diffusers 0.36 cannot read X | None
        boundary_log_snr: Optional[float] = None,  # noqa: UP045
    ) -> None:
        _check_network(unet)
        if not isinstance(max_downsamplings, int) or max_downsamplings < 0:
            raise AdhereError(
                f"max_downsamplings = {max_downsamplings!r} in model_index.json: give an integer of at least 0"
            )
        if unet_2 is not None and not (isinstance(boundary_log_snr, (int, float)) and math.isfinite(boundary_log_snr)):
            raise AdhereError(
                f"boundary_log_snr = {boundary_log_snr!r} in model_index.json: give a number, the log-SNR from which "
                "on unet_2 is used"
            )
        super().__init__(unet, scheduler)  # type: ignore[arg-type]
        self.register_modules(scheduler=scheduler, unet_2=unet_2)  # DDIMPipeline has replaced it by a DDIMScheduler
        self.max_downsamplings, self.boundary_log_snr = max_downsamplings, boundary_log_snr
        self.register_to_config(max_downsamplings=max_downsamplings, boundary_log_snr=boundary_log_snr)

    @property
    def unshuffle_factor(self) -> int:
        """r, the side of the blocks of pixels that the network takes as channels."""
        return math.isqrt(int(self.unet.config["in_channels"]) // 3)

    @property
    def multiple(self) -> int:
        return self.unshuffle_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def native_size(self) -> tuple[int, int]:
        r = self.unshuffle_factor
        size = self.unet.config["sample_size"] or 256 // r
        height, width = (size, size) if isinstance(size, int) else size
        return height * r, width * r

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return noise_schedule(self.scheduler)[0]

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        r, channels = self.unshuffle_factor, int(self.unet.config["in_channels"])

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            height, width = x_t.shape[-2:]  # a down-sampled picture need not be a multiple
            blocks = pixel_unshuffle(pad_to_multiple(x_t, self.multiple), r)
            out = self.unet(blocks.contiguous(memory_format=torch.channels_last), t, return_dict=False)[0]
            out = out[:, :channels]  # without predicted variances
            return pixel_shuffle(out, r)[..., :height, :width]

        denoiser = NetworkDenoiser(network, *noise_schedule(self.scheduler), self.unet.dtype)
        if self.unet_2 is None or self.boundary_log_snr is None:
            return denoiser
        return ExpertDenoiser(denoiser, self.unet_2.as_denoiser(denoiser.schedule), self.boundary_log_snr)

    @property
    def _compiled_modules(self) -> list[torch.nn.Module]:
        return [module for module in (self.unet, self.unet_2) if module is not None]


def _check_network(unet: UNet2DModel) -> None:
    channels, out = int(unet.config["in_channels"]), int(unet.config["out_channels"])
    if channels not in (3, 12):
        raise AdhereError(f"the network takes {channels} channels: 3 (RGB) or 12 (RGB unshuffled 2x2) are understood")
    if out not in (channels, 2 * channels):
        given = f"the network takes {channels} channels and returns {out}"
        raise AdhereError(f"{given}: {channels}, or {2 * channels} with predicted variances, are understood")
    if unet.config["num_class_embeds"] or unet.config["class_embed_type"]:
        raise AdhereError("the network asks for class labels: only unconditional networks are understood")
